/* Why an ssh session ended before our helper spoke: from what ssh and the far end have said. Only
 * looked at when a session failed; the texts are never searched while commands run, so that a
 * command may print the same words. */
#ifndef LIB_SSHFAIL_H
#define LIB_SSHFAIL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct sshfail {
    const char *vm, *host, *user; /* user may be NULL */
    int port;
    bool has_key;        /* a configured private key was offered */
    const char *pinned;  /* pinned host key lines, or NULL */
    const char *errors;  /* ssh's stderr; may be NULL */
    const char *chatter; /* the session's stdout before HELLO; may be NULL */
    int status;          /* as from waitpid; -1: it still ran */
};

/* Sets err: what was tried, on which VM, why it failed, what to do. Always returns false. */
bool sshfail_explain(const struct sshfail *f, struct error *err);
/* The last line of that, for a message: visible, without its full stop. Owned; NULL in: "". */
char *sshfail_last_line(const char *text);
/* Is this exe.dev telling an unregistered key off? */
bool sshfail_onboarding(const char *text, size_t n);

#endif
