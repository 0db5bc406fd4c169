/* What happens in the lobby, one line each on stderr: words for people, JSON with --json.
 * Thread-safe. */
#ifndef LOBBY_EVENT_H
#define LOBBY_EVENT_H

#include <stdbool.h>

#include "base/json.h"

/* Once, before threads start. */
void event_set_json(bool json);
/* Takes `fields` (an object, may be NULL); `name` becomes its member "event". */
void event_emit(const char *name, json_t *fields);

#endif
