/* exe.dev's API: POST /exec. Thread-safe: one struct api serves any number of callers at once, and
 * two made from configs that agree on URL, key, proxy and CA share connections and circuit breaker.
 *
 * Each call ends by its deadline, or min(timeoutMs, 29 s) per request, whichever is first; retries
 * happen within the deadline and only where repeating is safe. Errors (see error.h): ERR_AUTH 401,
 * ERR_FORBIDDEN 403, ERR_INVALID 400, ERR_UNSUPPORTED 404 (no such command), ERR_TOO_LARGE 413 or
 * an answer over 8 MiB, ERR_NOT_FOUND / ERR_EXISTS / ERR_REFUSED 422, ERR_RATE_LIMIT 429,
 * ERR_UNAVAILABLE 5xx or an open breaker, ERR_NETWORK, ERR_TIMEOUT, ERR_PROTOCOL (no JSON),
 * ERR_CANCELLED, ERR_DOUBT. err->status has the HTTP status. Messages are redacted and hold the
 * advice. */
#ifndef LIB_API_H
#define LIB_API_H

#include <stdbool.h>
#include <stdint.h>

#include "base/deadline.h"
#include "base/error.h"
#include "base/json.h"
#include "lib/config.h"
#include "lib/record.h"

struct api;
/* Refuses a config without an API key. Does not touch the network, nor start libcurl. */
struct api *api_new(const struct config *c, struct error *err);
void api_free(struct api *a);
static inline void cleanup_api_fn(struct api **a)
{
    api_free(*a);
}
#define cleanup_api __attribute__((cleanup(cleanup_api_fn)))

/* Ends every call under way and every later one with ERR_CANCELLED: the process is going down. */
void api_cancel_all(void);

/* What `new` and `cp` take beside the config. */
struct api_create {
    const char *name;    /* legal VM name, chosen by the caller and in the journal already */
    const char *comment; /* with our mark (name.h); replaces the config's; NULL: none */
    const char *tag;     /* our tag, on top of the config's; NULL: none */
    const char *source;  /* a VM to copy instead of the config's sourceVm; NULL: the config's */
};

/* Makes a VM: `cp` when there is a source, else `new`. A lost, late or cut answer is looked into
 * with ls: found, it is a success; surely absent, the call is repeated or fails with the fault's
 * own code; neither by the deadline, ERR_DOUBT: the VM may exist, the name must stay in the
 * journal. So it must with ERR_CANCELLED (the process is ending) and ERR_UNSAFE (its record cannot
 * be used); with any other code there is no VM. ERR_EXISTS: the name was taken before we asked. */
bool api_create_vm(struct api *a, const struct config *c, const struct api_create *what,
                   struct deadline d, struct record *out, struct error *err);

enum api_found { API_THERE, API_ABSENT, API_UNKNOWN };
/* Looks by ls until the VM is there, or surely absent (seen missing for settle_ms), or d passes
 * (API_UNKNOWN, err says why). settle_ms 0: one good answer is enough. */
enum api_found api_resolve_doubt(struct api *a, const char *name, int64_t settle_ms,
                                 struct deadline d, struct record *out, struct error *err);

/* name NULL: all. A name that is not there is an empty list, not an error. */
bool api_ls(struct api *a, const char *name, struct deadline d, struct records *out,
            struct error *err);
/* One VM; ERR_NOT_FOUND when it is gone. */
bool api_find(struct api *a, const char *name, struct deadline d, struct record *out,
              struct error *err);
/* True only when an ls after it shows the VM gone; already gone is success. */
bool api_rm(struct api *a, const char *name, struct deadline d, struct error *err);
bool api_restart(struct api *a, const char *name, struct deadline d, struct record *out,
                 struct error *err);
bool api_tag(struct api *a, const char *name, const char *tag, struct deadline d,
             struct error *err);
bool api_comment(struct api *a, const char *name, const char *text, struct deadline d,
                 struct error *err);

/* The command line of new or cp, for tests and --dry-run; `shown`: with secrets replaced. Owned
 * (secret_free unless shown). */
char *api_create_line(const struct config *c, const struct api_create *what, bool shown);

#endif
