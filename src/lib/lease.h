/* The life of a lease: probe, acquire, resume, realize, release, destroy (behaviour.md "Lease").
 * Knows no JSON-RPC. Every call runs on its caller's thread under a deadline of its own, earlier
 * than the host's, and undoes what it made when it fails. Thread-safe. */
#ifndef LIB_LEASE_H
#define LIB_LEASE_H

#include <jansson.h>
#include <stdbool.h>

#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"
#include "lib/config.h"
#include "lib/link.h"

/* After a call's own deadline (the config's timeoutMs; shorter for resume and probe) it has this
 * long to undo what it made. */
#define LEASE_UNDO_MS 10000

/* A step of probe or acquire, for diagnostics and progress lines; text is one line. */
typedef void lease_progress_fn(const char *step, const char *text, long long ms, bool ok,
                               void *arg);

struct lease_request {
    const char *environment_id, *run_id; /* may be NULL */
    const char *requested_cwd;
    const char *requested_expires_at; /* ISO 8601 or NULL */
    const char *name;                 /* command line only: this very VM name */
    lease_progress_fn *progress;
    void *progress_arg;
};

struct lease_result {
    char *id;         /* providerLeaseId; NULL: gone for good (resume) */
    json_t *metadata; /* object */
    char *expires_at; /* ISO 8601, only when a timer is armed in the VM; else NULL */
};
void lease_result_free(struct lease_result *r);

/* Until lease_published, the VM counts as an attempt under way: when this process dies, the next
 * call of any process with a matching config deletes it. So a caller whose VM ends with it (`exedev
 * run`) never calls lease_published. */
bool lease_acquire(const struct config *cfg, const struct lease_request *req, struct cancel *cancel,
                   struct lease_result *out, struct error *err);
/* Somebody outside this process knows the lease now and will release it. */
void lease_published(const struct config *cfg, const char *id);

bool lease_resume(const struct config *cfg, const char *id, const json_t *metadata,
                  struct cancel *cancel, struct lease_result *out, struct error *err);

enum receipt { RECEIPT_NONE, RECEIPT_STOPPED, RECEIPT_DESTROYED };

/* keep: the VM stays (the caller has decided by paperclip.md's rule); then our processes on it are
 * ended and that is confirmed. Else the VM is deleted and `ls` shows it gone. */
bool lease_release(const struct config *cfg, const char *id, const json_t *metadata, bool keep,
                   bool cancel_active, enum receipt *receipt, struct error *err);
bool lease_destroy(const struct config *cfg, const char *id, const json_t *metadata,
                   enum receipt *receipt, struct error *err);

struct probe_result {
    bool ok;
    char *summary;
    json_t *diagnostics; /* array of {severity, message, code, details: {durationMs}} */
    json_t *metadata;
};
void probe_result_free(struct probe_result *r);
/* Creates, connects, deletes always, within 110 s. Never fails as a call. */
void lease_probe(const struct config *cfg, lease_progress_fn *progress, void *arg,
                 struct cancel *cancel, struct probe_result *out);

/* The lease's link, from its metadata (ssh address) or, with none, ID.exe.xyz. Referenced.
 * Registers the call as active work of the lease until lease_link_done, so that release can cancel
 * or await it. cancel may be NULL. */
struct link *lease_link(const struct config *cfg, const char *id, const json_t *metadata,
                        struct cancel *cancel, struct error *err);
/* The same for a lease this process already connected to, where no config is at hand. */
struct link *lease_link_known(const char *id, struct cancel *cancel, struct error *err);
/* Ends the registration and drops the reference. */
void lease_link_done(struct link *l, struct cancel *cancel);

/* Makes the folder and answers it (owned). id NULL: only answers. */
char *lease_realize(const struct config *cfg, const char *id, const json_t *metadata,
                    const char *remote_path, const char *local_path, struct error *err);

/* Shutdown: ends running commands, closes connections, within ms. Nothing is deleted. */
void lease_shutdown(int ms);

/* ---- what carries our mark ---- */

/* Is a VM of this account, as the API lists it, one that exedev made? Reads the journal. */
struct record;
bool lease_owns(const struct config *cfg, const struct record *seen);

enum gc_why {
    GC_STRAY,  /* neither journalled nor a template: to be removed */
    GC_DOOMED, /* its removal was begun, or the process that made it died before anybody knew it */
    GC_LIVE,   /* the journal knows it as a lease */
    GC_RETAINED, /* kept for reuse */
    GC_TEMPLATE,
    GC_YOUNG, /* would go, but is younger than asked for, or of unknown age */
};
struct gc_item {
    char *name, *env_id, *run_id, *kind; /* ids and kind may be NULL */
    int64_t since;                       /* Unix seconds; 0: unknown */
    enum gc_why why;
    bool remove;
    bool removed;
};
struct gc_list {
    struct gc_item *list;
    size_t n;
};
void gc_list_clear(struct gc_list *l);
const char *gc_why_text(enum gc_why why);
/* Lists what carries our mark. older_than: seconds, 0 for any age. */
bool lease_gc_list(const struct config *cfg, int64_t older_than, struct gc_list *out,
                   struct error *err);
/* Removes the items to be removed; false with the first failure, the others are tried all the same.
 */
bool lease_gc_remove(const struct config *cfg, struct gc_list *l, struct error *err);

#endif
