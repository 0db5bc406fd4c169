/* What a login terminal may run, and the home it runs in: nothing of either is the caller's choice.
 * Thread-safe. */
#ifndef LIB_CHANNEL_LOGIN_H
#define LIB_CHANNEL_LOGIN_H

#include "base/deadline.h"
#include "base/error.h"
#include "lib/link.h"

#define LOGIN_ROOT "/tmp/paperclip-adapter-login/"

struct login {
    const char *key, *variable; /* variable: names the session home to the program */
    const char *const argv[4];
};

/* claude, codex or grok; NULL for anything else. */
const struct login *login_find(const char *key);
/* Exactly LOGIN_ROOT and a UUID in lower case? */
bool login_is_home(const char *path);
/* Makes it on the VM: it must not be there, and the folder above must be ours. */
bool login_make_home(struct link *l, const char *home, struct deadline d, struct error *err);
/* Only while the link is up. */
void login_remove_home(struct link *l, const char *home);

#endif
