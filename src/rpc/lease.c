/* probe, acquire, resume, release, destroy, realize, ingress. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "lib/lease.h"
#include "rpc/rpc.h"

/* Where the config has no timeoutMs of its own the host gives up after 30 s; what LEASE_UNDO_MS
 * needs comes off. */
#define TIMEOUT_UNSET_MS 18000

struct config *rpc_config(struct call *c, struct error *err)
{
    const json_t *raw = json_object_get(c->params, "config");

    if (!json_is_object(raw)) {
        rpc_bad_params(c, err, "config must be an object");
        return NULL;
    }
    struct config *cfg = config_load(raw, err);
    /* The host reads only a number there. */
    const json_t *ms = json_object_get(raw, "timeoutMs");
    bool told = json_is_number(ms) && json_number_value(ms) > 0;
    if (cfg && !told && cfg->timeout_ms > TIMEOUT_UNSET_MS)
        cfg->timeout_ms = TIMEOUT_UNSET_MS;
    return cfg;
}

bool rpc_lease(struct call *c, const char **id, const json_t **metadata, struct error *err)
{
    const json_t *lease = json_object_get(c->params, "lease");

    if (lease && !json_is_null(lease) && !json_is_object(lease))
        return rpc_bad_params(c, err, "lease must be an object");
    *metadata = json_object_get(lease, "metadata");
    return rpc_opt_str(c, lease, "providerLeaseId", id, err);
}

static bool lease_result(struct buf *result, struct lease_result *r)
{
    json_t *answer = json_object();

    json_object_set_new(answer, "providerLeaseId", r->id ? json_string(r->id) : json_null());
    json_object_set(answer, "metadata", r->metadata);
    if (r->expires_at)
        json_object_set_new(answer, "expiresAt", json_string(r->expires_at));
    return rpc_result(result, answer);
}

bool rpc_env_probe(struct call *c, struct buf *result, struct error *err)
{
    cleanup_error struct error why = {0};
    struct probe_result p = {0};
    cleanup_config struct config *cfg = rpc_config(c, &why);

    if (!cfg && c->code) {
        error_move(err, &why);
        return false;
    }
    /* A config that cannot be used is a failed probe, not a failed call. */
    if (!cfg)
        return rpc_result(result, json_pack("{s:b, s:s, s:[{s:s, s:s, s:s}], s:{s:s, s:s}}", "ok",
                                            0, "summary", why.msg, "diagnostics", "severity",
                                            "error", "code", "config", "message", why.msg,
                                            "metadata", "provider", "exe-dev", "error", why.msg));
    lease_probe(cfg, NULL, NULL, c->cancel, &p);
    json_t *answer = json_pack("{s:b, s:s, s:O, s:O}", "ok", p.ok, "summary", p.summary,
                               "diagnostics", p.diagnostics, "metadata", p.metadata);
    probe_result_free(&p);
    return rpc_result(result, answer);
}

/* The host has the answer: now the lease is its own to end. */
static void acquired(struct call *c)
{
    cleanup_config struct config *cfg = rpc_config(c, NULL);

    if (cfg)
        lease_published(cfg, c->sent_id);
}

bool rpc_env_acquire(struct call *c, struct buf *result, struct error *err)
{
    struct lease_request req = {0};
    struct lease_result r;

    if (!rpc_opt_str(c, c->params, "environmentId", &req.environment_id, err) ||
        !rpc_opt_str(c, c->params, "runId", &req.run_id, err) ||
        !rpc_opt_str(c, c->params, "requestedCwd", &req.requested_cwd, err) ||
        !rpc_opt_str(c, c->params, "requestedExpiresAt", &req.requested_expires_at, err))
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg || !lease_acquire(cfg, &req, c->cancel, &r, err))
        return false;
    lease_result(result, &r);
    c->sent = acquired;
    c->sent_id = steal_ptr(r.id);
    lease_result_free(&r);
    return true;
}

bool rpc_env_resume(struct call *c, struct buf *result, struct error *err)
{
    const char *id = rpc_need_str(c, c->params, "providerLeaseId", err);
    struct lease_result r;

    if (!id)
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg ||
        !lease_resume(cfg, id, json_object_get(c->params, "leaseMetadata"), c->cancel, &r, err))
        return false;
    lease_result(result, &r);
    lease_result_free(&r);
    return true;
}

static bool receipt(struct buf *result, const char *id, enum receipt what)
{
    if (what == RECEIPT_NONE)
        return rpc_result(result, json_null());
    return rpc_result(result, json_pack("{s:s, s:s}", "providerLeaseId", id, "state",
                                        what == RECEIPT_STOPPED ? "stopped" : "destroyed"));
}

static bool kept(const struct config *cfg, const json_t *metadata)
{
    const json_t *reusable = json_object_get(metadata, "reusableSandboxLease");

    return cfg->reuse_lease && reusable && !json_is_null(reusable) && !json_is_false(reusable);
}

static bool end_lease(struct call *c, bool destroy, struct buf *result, struct error *err)
{
    const json_t *metadata = json_object_get(c->params, "leaseMetadata");
    enum receipt what = RECEIPT_NONE;
    const char *id;

    if (!rpc_opt_str(c, c->params, "providerLeaseId", &id, err))
        return false;
    if (!id || !*id)
        return receipt(result, id, RECEIPT_NONE);
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg)
        return false;
    bool ok = destroy ? lease_destroy(cfg, id, metadata, &what, err)
                      : lease_release(cfg, id, metadata, kept(cfg, metadata),
                                      json_bool(c->params, "cancelActiveWork"), &what, err);
    return ok && receipt(result, id, what);
}

bool rpc_env_release(struct call *c, struct buf *result, struct error *err)
{
    return end_lease(c, false, result, err);
}

bool rpc_env_destroy(struct call *c, struct buf *result, struct error *err)
{
    return end_lease(c, true, result, err);
}

bool rpc_env_realize(struct call *c, struct buf *result, struct error *err)
{
    const json_t *workspace = json_object_get(c->params, "workspace"), *metadata = NULL;
    const char *id = NULL, *remote = NULL, *local = NULL;

    if (!rpc_lease(c, &id, &metadata, err) ||
        !rpc_opt_str(c, workspace, "remotePath", &remote, err) ||
        !rpc_opt_str(c, workspace, "localPath", &local, err))
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    cleanup_free char *cwd = cfg ? lease_realize(cfg, id, metadata, remote, local, err) : NULL;
    return cwd && rpc_result(result, json_pack("{s:s, s:{s:s, s:s}}", "cwd", cwd, "metadata",
                                               "provider", "exe-dev", "remoteCwd", cwd));
}
