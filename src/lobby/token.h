/* Who may call, and what. Bearer tokens of exe-dev.md: exe0 (signed permissions), exe1 (ours for
 * one of them), and plain ones given on the command line, which may do everything. Thread-safe. */
#ifndef LOBBY_TOKEN_H
#define LOBBY_TOKEN_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/json.h"

#define TOKEN_MAX 8192
#define TOKEN_LOBBY_NAMESPACE "v0@exe.dev"

/* Once, before threads start. `keys`: lines of "TYPE BASE64 [COMMENT]"; dir: a private folder. */
bool token_setup(const char *keys, const char *dir, struct error *err);
void token_add_plain(const char *token);

/* The permissions of a token, checked for `name_space` and for now. ERR_AUTH. The result is an
 * object, the caller's; a plain token gives one with "cmds" absent and "all" true. */
json_t *token_check(const char *token, const char *name_space, int64_t now_s, struct error *err);
/* May these permissions run this command? Absent cmds means the default ones. */
bool token_allows(const json_t *permissions, const char *command);
/* A short exe1 token that stands for these permissions in that name space, while the lobby runs. */
char *token_short(const json_t *permissions, const char *name_space);

/* exe0's payload alone: format rules, no signature, no times. ERR_AUTH. */
json_t *token_parse_permissions(char *text, size_t n, struct error *err);

#endif
