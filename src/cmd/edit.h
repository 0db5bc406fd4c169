/* Changes to saved settings, for `exedev config` and `exedev configure --cli`. One thread. */
#ifndef CMD_EDIT_H
#define CMD_EDIT_H

#include "base/error.h"
#include "lib/config.h"
#include "lib/configfile.h"

/* "env.NAME" is a member of the map env. Checked: a value that the provider would refuse is refused
 * here, and nothing is changed. Secrets go where secrets go. */
bool edit_put(struct configfile *cf, const char *name, const char *key, const char *text,
              struct error *err);
/* True when there was something to forget. */
bool edit_unset(struct configfile *cf, const char *name, const char *key, struct error *err);
/* A value as one line of text for people; owned. */
char *edit_text(const json_t *value);

#endif
