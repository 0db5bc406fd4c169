/* The worker's side of Paperclip's plugin contract: JSON-RPC 2.0, a message a line, on two
 * descriptors. `main` reads lines; every request runs on a thread of its own, top to bottom. */
#ifndef RPC_RPC_H
#define RPC_RPC_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"
#include "lib/config.h"

/* JSON-RPC's and Paperclip's error codes. */
enum rpc_code {
    RPC_PARSE = -32700,
    RPC_REQUEST = -32600,
    RPC_UNKNOWN_METHOD = -32601,
    RPC_PARAMS = -32602,
    RPC_INTERNAL = -32603,
    RPC_WORKER = -32002,
    RPC_TIMEOUT = -32003,
    RPC_NOT_IMPLEMENTED = -32004,
};

/* The host drops a longer line without a word; so do we, with one. */
#define RPC_MAX_LINE (128u << 20)
/* Stacks of calls are small and Jansson is recursive. */
#define RPC_MAX_DEPTH 128

/* Serves until `in` ends, `shutdown` or SIGTERM; returns the exit status. Owns the process: blocks
 * signals, sets the log sink, ends by _exit when calls still run. Call it once, from main, before
 * any thread starts. */
int rpc_serve(int in, int out, const char *version);
extern const char *rpc_version;

/* One request. The strings live as long as the call. */
struct call {
    const char *method;
    const json_t *params;         /* an object */
    const char *invocation;       /* paperclipInvocation.id, or NULL */
    struct cancel *cancel;        /* fires when the worker shuts down */
    enum rpc_code code;           /* of a failure; 0: by the error's code */
    void (*sent)(struct call *c); /* called once the host has the answer */
    char *sent_id;                /* for `sent`; freed with the call */
};

/* Appends the result's JSON text to `result` and returns true, or fails. What was appended before a
 * failure is dropped. */
typedef bool rpc_method_fn(struct call *c, struct buf *result, struct error *err);

struct rpc_method {
    const char *name;
    rpc_method_fn *run; /* NULL: known to the contract, not to us */
    const char *serial; /* calls with the same value of this parameter run in their order */
    bool listed;        /* in initialize's supportedMethods */
};
extern const struct rpc_method rpc_methods[]; /* ends with a NULL name */
const struct rpc_method *rpc_method_find(const char *name);

/* ---- for methods ---- */

/* The parameter is wrong: -32602. Returns false. */
bool rpc_bad_params(struct call *c, struct error *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A parameter that must be a non-empty string; NULL after rpc_bad_params. */
const char *rpc_need_str(struct call *c, const json_t *obj, const char *key, struct error *err);
/* A member that, when there, must be a string, and holds no NUL. *out NULL when absent or null. */
bool rpc_opt_str(struct call *c, const json_t *obj, const char *key, const char **out,
                 struct error *err);
/* Appends the value and drops the reference. */
bool rpc_result(struct buf *result, json_t *value);

/* Writes one whole line (its newline included), after those that asked before. False once the host
 * is gone. Lines of one thread keep their order. */
bool rpc_write(const void *line, size_t n);

/* The call this thread runs, or NULL. */
struct call *rpc_current(void);

/* The call's config, checked; NULL with the reason. */
struct config *rpc_config(struct call *c, struct error *err);
/* The parameter `lease`: its id (NULL: none) and metadata (may be NULL). */
bool rpc_lease(struct call *c, const char **id, const json_t **metadata, struct error *err);

/* ---- the methods, a file per group ---- */
rpc_method_fn rpc_initialize, rpc_health, rpc_shutdown, rpc_config_changed, rpc_validate_config;
rpc_method_fn rpc_env_validate_config, rpc_env_probe, rpc_env_acquire, rpc_env_resume,
    rpc_env_release, rpc_env_destroy, rpc_env_realize, rpc_env_ingress;
rpc_method_fn rpc_env_execute;
rpc_method_fn rpc_env_sync_in, rpc_env_sync_out;
rpc_method_fn rpc_env_setup_start, rpc_env_setup_get, rpc_env_setup_cancel, rpc_env_capture,
    rpc_env_template_delete;
rpc_method_fn rpc_duplex_open, rpc_duplex_write, rpc_duplex_stop, rpc_login_open, rpc_login_input,
    rpc_login_stop, rpc_channel_close;

#endif
