/* The operator's own settings: named environments in ~/.config/exedev/config.json, their secrets
 * apart in secrets.json (0600) or in the desktop keyring. What the two files hold:
 *
 *   config.json   {"version": 1, "default": NAME, "environments": {NAME: {raw settings}}}
 *   secrets.json  {NAME: {key: text, or {"keyring": id} where the text is in the keyring}}
 *
 * Unknown members are kept as they are. A struct belongs to one thread at a time. */
#ifndef LIB_CONFIGFILE_H
#define LIB_CONFIGFILE_H

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"
#include "base/json.h"

#define CONFIGFILE_VERSION 1
#define CONFIGFILE_MAX (4 << 20) /* bytes of either file */

struct configfile {
    char *path; /* of config.json, absolute */
    char *secrets_path;
    json_t *root;         /* config.json as it stands */
    json_t *environments; /* borrowed from root: NAME -> settings without secrets; edit in place */
    json_t *secrets;      /* NAME -> {key: text or keyring reference}; edit in place */
    struct buf was;       /* both files' bytes as loaded: what a save must still find there */
    struct buf secrets_was;
    bool exists; /* config.json was there */
};

/* Absent files are an empty store, not an error. Refused, with the remedy, and nothing touched: a
 * file that cannot be read or parsed, one of another version, a secrets file that others can read.
 */
bool configfile_load(struct configfile *cf, struct error *err);
void configfile_free(struct configfile *cf);
#define cleanup_configfile __attribute__((cleanup(configfile_free)))

/* The environment that is meant when none is named: NULL when there is none at all. Borrowed. */
const char *configfile_default(const struct configfile *cf);
void configfile_set_default(struct configfile *cf, const char *name);

/* One environment's raw settings with its secrets put in, as config_parse takes them. name NULL:
 * the default; without any environment an empty object. ERR_NOT_FOUND lists the names there are. A
 * new reference. */
json_t *configfile_raw(const struct configfile *cf, const char *name, struct error *err);

/* The text of a secret (from the keyring, if it is there), wiped and freed by the caller; NULL
 * without an error: none is stored. */
char *configfile_secret(const struct configfile *cf, const char *name, const char *key,
                        struct error *err);
bool configfile_has_secret(const struct configfile *cf, const char *name, const char *key);
/* text NULL or empty: forget it. Takes effect in configfile_save. */
void configfile_set_secret(struct configfile *cf, const char *name, const char *key,
                           const char *text);

/* Environments. Names are 1..64 letters, digits, '.', '_', '-', the first a letter or digit. The
 * first one added becomes the default. */
bool configfile_name_ok(const char *name);
bool configfile_add(struct configfile *cf, const char *name, struct error *err);

/* Where the secrets set since loading will go. */
bool configfile_keyring_works(void);

/* Writes both files, atomically each and in an order that loses no secret on a crash. ERR_EXISTS:
 * somebody else changed them since they were loaded; nothing was written. */
bool configfile_save(struct configfile *cf, struct error *err);

#endif
