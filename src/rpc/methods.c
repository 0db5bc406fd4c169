/* The method table, and what methods share. */
#include <stdarg.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "rpc/rpc.h"

const struct rpc_method rpc_methods[] = {
    {"initialize", rpc_initialize},
    {"health", rpc_health, .listed = true},
    {"shutdown", rpc_shutdown, .listed = true},
    {"configChanged", rpc_config_changed, .listed = true},
    {"validateConfig", rpc_validate_config, .listed = true},
    {"environmentValidateConfig", rpc_env_validate_config, .listed = true},
    {"environmentProbe", rpc_env_probe, .listed = true},
    {"environmentAcquireLease", rpc_env_acquire, .listed = true},
    {"environmentResumeLease", rpc_env_resume, .listed = true},
    {"environmentReleaseLease", rpc_env_release, .listed = true},
    {"environmentDestroyLease", rpc_env_destroy, .listed = true},
    {"environmentRealizeWorkspace", rpc_env_realize, .listed = true},
    {"environmentExecute", rpc_env_execute, .listed = true},
    {"environmentSyncIn", rpc_env_sync_in, .listed = true},
    {"environmentSyncOut", rpc_env_sync_out, .listed = true},
    {"environmentRunnerIngressEndpoint", rpc_env_ingress, .listed = true},
    {"environmentStartInteractiveSetup", rpc_env_setup_start, .listed = true},
    {"environmentGetInteractiveSetup", rpc_env_setup_get, .listed = true},
    {"environmentCancelInteractiveSetup", rpc_env_setup_cancel, .listed = true},
    {"environmentCaptureTemplate", rpc_env_capture, .listed = true},
    {"environmentDeleteTemplate", rpc_env_template_delete, .listed = true},
    {"duplexChannelOpen", rpc_duplex_open, .listed = true},
    {"duplexChannelWrite", rpc_duplex_write, .serial = "hostRouteId", .listed = true},
    {"duplexChannelStop", rpc_duplex_stop, .listed = true},
    {"duplexChannelClose", rpc_channel_close, .listed = true},
    {"loginPtyOpen", rpc_login_open, .listed = true},
    {"loginPtyInput", rpc_login_input, .serial = "workerSessionId", .listed = true},
    {"loginPtyStop", rpc_login_stop, .listed = true},
    {"loginPtyClose", rpc_channel_close, .listed = true},
    /* Of the contract, for other kinds of plugins. */
    {"onEvent"},
    {"runJob"},
    {"handleWebhook"},
    {"handleApiRequest"},
    {"getData"},
    {"performAction"},
    {"executeTool"},
    {"detectExternalObjects"},
    {"resolveExternalObject"},
    {"refreshExternalObjects"},
    {0},
};

const struct rpc_method *rpc_method_find(const char *name)
{
    for (const struct rpc_method *m = rpc_methods; m->name; m++)
        if (strcmp(m->name, name) == 0)
            return m;
    return NULL;
}

bool rpc_bad_params(struct call *c, struct error *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    c->code = RPC_PARAMS;
    return error_set(err, ERR_INVALID, "%s: %s", c->method, text);
}

bool rpc_opt_str(struct call *c, const json_t *obj, const char *key, const char **out,
                 struct error *err)
{
    const json_t *v = json_object_get(obj, key);

    *out = NULL;
    if (!v || json_is_null(v))
        return true;
    if (!json_is_string(v))
        return rpc_bad_params(c, err, "%s must be a string", key);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return rpc_bad_params(c, err, "%s holds a NUL character", key);
    *out = json_string_value(v);
    return true;
}

const char *rpc_need_str(struct call *c, const json_t *obj, const char *key, struct error *err)
{
    const char *s;

    if (!rpc_opt_str(c, obj, key, &s, err))
        return NULL;
    if (!s || !*s) {
        rpc_bad_params(c, err, "%s is missing", key);
        return NULL;
    }
    return s;
}

bool rpc_result(struct buf *result, json_t *value)
{
    json_write(result, value);
    json_decref(value);
    return true;
}
