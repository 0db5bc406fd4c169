/* Interactive setup, templates, the runner's way in. */
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "lib/ingress.h"
#include "lib/template.h"
#include "rpc/rpc.h"

#define TEMPLATE_KIND "provider_template"

static json_t *text_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

static bool session(struct buf *result, struct setup_session *s, bool payload)
{
    json_t *answer = json_object();

    json_object_set_new(answer, "providerLeaseId", text_or_null(s->id));
    json_object_set_new(answer, "status", json_string(s->id ? "waiting_for_user" : "missing"));
    json_t *summary = json_null();
    if (s->id)
        summary = json_pack("{s:s, s:o, s:b, s:b, s:b, s:o}", "type", "ssh", "username",
                            text_or_null(s->user), "hostRedacted", 1, "portRedacted", 1,
                            "commandRedacted", 1, "expiresAt", text_or_null(s->expires_at));
    json_object_set_new(answer, "connectionSummary", summary);
    json_t *connection = json_null();
    if (s->id && payload)
        connection =
            json_pack("{s:s, s:s, s:n, s:o, s:{s:s, s:i, s:o}}", "type", "ssh", "command",
                      s->command, "token", "expiresAt", text_or_null(s->expires_at), "metadata",
                      "host", s->host, "port", s->port, "username", text_or_null(s->user));
    json_object_set_new(answer, "connectionPayload", connection);
    if (s->expires_at)
        json_object_set_new(answer, "expiresAt", json_string(s->expires_at));
    if (s->metadata)
        json_object_set(answer, "metadata", s->metadata);
    setup_session_clear(s);
    return rpc_result(result, answer);
}

bool rpc_env_setup_start(struct call *c, struct buf *result, struct error *err)
{
    struct setup_request req = {0};
    struct setup_session s;
    const char *kind;

    if (!rpc_opt_str(c, c->params, "environmentId", &req.environment_id, err) ||
        !rpc_opt_str(c, c->params, "sessionId", &req.session_id, err) ||
        !rpc_opt_str(c, c->params, "sourceTemplateRef", &req.source, err) ||
        !rpc_opt_str(c, c->params, "sourceTemplateKind", &kind, err) ||
        !rpc_opt_str(c, c->params, "expiresAt", &req.expires_at, err))
        return false;
    /* An image or a snapshot of another provider is no VM to copy. */
    if (req.source && (!*req.source || (kind && strcmp(kind, TEMPLATE_KIND) != 0)))
        req.source = NULL;
    cleanup_config struct config *cfg = rpc_config(c, err);
    return cfg && template_setup_start(cfg, &req, c->cancel, &s, err) && session(result, &s, true);
}

bool rpc_env_setup_get(struct call *c, struct buf *result, struct error *err)
{
    struct setup_session s;
    const char *id;

    if (!rpc_opt_str(c, c->params, "providerLeaseId", &id, err))
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    return cfg && template_setup_get(cfg, id, &s, err) &&
           session(result, &s, json_bool(c->params, "includeConnectionPayload"));
}

bool rpc_env_capture(struct call *c, struct buf *result, struct error *err)
{
    const char *id = rpc_need_str(c, c->params, "providerLeaseId", err), *env, *label;
    cleanup_free char *ref = NULL;

    if (!id || !rpc_opt_str(c, c->params, "environmentId", &env, err) ||
        !rpc_opt_str(c, c->params, "templateLabel", &label, err))
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    return cfg &&
           template_capture(cfg, id, env, label, json_int(c->params, "timeoutMs", 0), c->cancel,
                            &ref, err) &&
           rpc_result(result, json_pack("{s:s, s:s, s:{s:s, s:s}}", "templateRef", ref,
                                        "templateKind", TEMPLATE_KIND, "metadata", "provider",
                                        "exe-dev", "sourceVmName", id));
}

bool rpc_env_setup_cancel(struct call *c, struct buf *result, struct error *err)
{
    const char *id, *reason;
    bool missing = false;

    if (!rpc_opt_str(c, c->params, "providerLeaseId", &id, err) ||
        !rpc_opt_str(c, c->params, "reason", &reason, err))
        return false;
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg || !template_setup_cancel(cfg, id, &missing, err))
        return false;
    const char *status = missing                                      ? "missing"
                         : reason && strcmp(reason, "timed_out") == 0 ? "timed_out"
                                                                      : "cancelled";
    return rpc_result(
        result, json_pack("{s:s, s:{s:s}}", "status", status, "metadata", "provider", "exe-dev"));
}

bool rpc_env_template_delete(struct call *c, struct buf *result, struct error *err)
{
    const char *ref = rpc_need_str(c, c->params, "templateRef", err);
    bool missing = false;
    cleanup_config struct config *cfg = ref ? rpc_config(c, err) : NULL;

    if (!cfg || !template_delete(cfg, ref, &missing, err))
        return false;
    return rpc_result(result, json_pack("{s:b, s:{s:s, s:b}}", "deleted", 1, "metadata", "provider",
                                        "exe-dev", "alreadyGone", missing));
}

bool rpc_env_ingress(struct call *c, struct buf *result, struct error *err)
{
    const char *path = rpc_need_str(c, c->params, "path", err), *id;
    const json_t *metadata;
    struct ingress in;

    if (!path || !rpc_lease(c, &id, &metadata, err))
        return false;
    if (!id || !*id)
        return rpc_bad_params(c, err, "lease.providerLeaseId is missing");
    if (!json_is_integer(json_object_get(c->params, "port")))
        return rpc_bad_params(c, err, "port must be a whole number");
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg || !ingress_open(cfg, id, json_str(metadata, "httpsUrl"),
                              json_int(c->params, "port", 0), path, &in, err))
        return false;
    json_t *answer = json_pack("{s:s, s:s, s:[{s:s, s:s}], s:s}", "kind", "authenticated_websocket",
                               "websocketUrl", in.url, "secretHeaders", "name", INGRESS_HEADER,
                               "value", in.header, "generation", in.generation);
    ingress_clear(&in);
    return rpc_result(result, answer);
}
