/* SSH private keys: told from what is not one, healed, held where no file and no dump shows them.
 * A struct key may be used by any thread; it is freed once. */
#ifndef LIB_KEY_H
#define LIB_KEY_H

#include <stdbool.h>

#include "base/deadline.h"
#include "base/error.h"

/* The form only (behaviour.md, "Private key"): starts no program. A bare UUID and blank text pass.
 * ERR_INVALID with one message per kind of mistake; never quotes the key. */
bool key_check(const char *text, struct error *err);

/* A key in a sealed memfd, mode 0600, line ends healed. */
struct key;
/* Checks the form, then holds the key. Starts no program. */
struct key *key_load(const char *text, struct error *err);
void key_free(struct key *k);
static inline void cleanup_key_fn(struct key **k)
{
    key_free(*k);
}
#define cleanup_key __attribute__((cleanup(cleanup_key_fn)))

/* "/proc/PID/fd/N", readable by a child of ours running as the same user while the key lives. */
const char *key_path(const struct key *k);
/* Decodes it with `ssh-keygen -y`: refuses a damaged one and one with a passphrase. *public_key
 * (may be NULL) gets "TYPE BASE64", owned. ERR_UNSUPPORTED when there is no ssh-keygen. */
bool key_decode(const struct key *k, char **public_key, struct deadline d, struct error *err);

#endif
