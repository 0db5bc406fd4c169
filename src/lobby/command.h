/* The lobby's commands: words in, a status and JSON out. Thread-safe. */
#ifndef LOBBY_COMMAND_H
#define LOBBY_COMMAND_H

#include <stdbool.h>

#include "base/json.h"
#include "lobby/lex.h"

struct caller {
    const json_t *permissions;
    const char *keys; /* authorized_keys text, for ssh-key list */
};

struct answer {
    int status;   /* HTTP */
    json_t *json; /* owned */
};

/* The name under which permissions list what these words run ("ssh-key list" is one), or NULL when
 * there is no such command. *skip is the number of words in it. */
const char *command_name(const struct words *w, size_t *skip);
/* Runs it; `name` from command_name. */
struct answer command_run(const char *name, const struct words *w, size_t skip,
                          const struct caller *who);
/* {"error": text} with this status. */
struct answer answer_error(int status, const char *text);

/* Flags of `new` and `cp`; command_new.c. */
struct answer command_new(char **argv, size_t n);
struct answer command_cp(char **argv, size_t n);
struct answer command_resize(char **argv, size_t n);

#endif
