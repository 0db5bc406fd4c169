/* The command line of POST /exec, as the lobby's shell-style lexer reads it. Thread-safe. */
#ifndef LOBBY_LEX_H
#define LOBBY_LEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct words {
    char **v; /* owned; v[n] is NULL */
    size_t n;
};

/* White space separates; '...' is literal; in "..." a backslash escapes $ ` " \ and newline;
 * outside it escapes anything. ERR_INVALID: an open quote, a last backslash, NUL. No words is no
 * error. */
bool lex_words(const char *line, size_t n, struct words *out, struct error *err);
void words_free(struct words *w);
#define cleanup_words __attribute__((cleanup(words_free)))

#endif
