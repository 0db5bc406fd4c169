/* The desktop keyring, through libsecret's own program secret-tool, with secrets on its stdin and
 * stdout only. Thread-safe. */
#ifndef LIB_KEYRING_H
#define LIB_KEYRING_H

#include <stdbool.h>

#include "base/error.h"

/* There is one, unlocked: found by storing, reading and clearing a test value once per process.
 * False where there is no session bus or EXEDEV_KEYRING=off. */
bool keyring_works(void);
bool keyring_store(const char *id, const char *label, const char *text, struct error *err);
/* Wiped and freed by the caller. ERR_NOT_FOUND: not in the keyring. */
char *keyring_lookup(const char *id, struct error *err);
bool keyring_clear(const char *id, struct error *err);

#endif
