/* initialize, health, shutdown, configChanged, validateConfig, environmentValidateConfig. */
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "lib/config.h"
#include "lib/link.h"
#include "rpc/rpc.h"

bool rpc_initialize(struct call *c, struct buf *result, struct error *err)
{
    json_t *methods = json_array();

    (void)c;
    (void)err;
    for (const struct rpc_method *m = rpc_methods; m->name; m++)
        if (m->listed)
            json_array_append_new(methods, json_string(m->name));
    return rpc_result(result, json_pack("{s:b, s:o}", "ok", 1, "supportedMethods", methods));
}

/* Resident memory in KiB; 0 where /proc is not there. */
static long resident_kib(void)
{
    cleanup_file FILE *f = fopen("/proc/self/statm", "re");
    long size = 0, resident = 0;

    if (!f || fscanf(f, "%ld %ld", &size, &resident) != 2)
        return 0;
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

bool rpc_health(struct call *c, struct buf *result, struct error *err)
{
    (void)c;
    (void)err;
    return rpc_result(result,
                      json_pack("{s:s, s:s, s:{s:s, s:I, s:I}}", "status", "ok", "message",
                                "the worker answers", "details", "version", rpc_version,
                                "residentKib", (json_int_t)resident_kib(), "connectionsOpened",
                                (json_int_t)link_connections_opened()));
}

/* Never runs: the reader ends the process when it sees the request, and answers it last. */
bool rpc_shutdown(struct call *c, struct buf *result, struct error *err)
{
    (void)c;
    (void)err;
    return rpc_result(result, json_null());
}

/* The settings belong to each environment and come with every call; the plugin itself has none. */
bool rpc_config_changed(struct call *c, struct buf *result, struct error *err)
{
    (void)c;
    (void)err;
    return rpc_result(result, json_null());
}

static json_t *texts(const struct problems *p, bool warnings)
{
    json_t *list = json_array();

    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].warning == warnings)
            json_array_append_new(list, json_string(p->list[i].text));
    return list;
}

static bool validate(const json_t *config, bool with_normalized, struct buf *result)
{
    cleanup_problems struct problems p = {0};
    json_t *normalized = config_validate(config, 0, &p);
    json_t *answer = json_pack("{s:b, s:o, s:o}", "ok", normalized != NULL, "errors",
                               texts(&p, false), "warnings", texts(&p, true));

    if (normalized && with_normalized)
        json_object_set(answer, "normalizedConfig", normalized);
    json_decref(normalized);
    return rpc_result(result, answer);
}

static const json_t *need_config(struct call *c, struct error *err)
{
    const json_t *config = json_object_get(c->params, "config");

    if (json_is_object(config))
        return config;
    rpc_bad_params(c, err, "config must be an object");
    return NULL;
}

bool rpc_validate_config(struct call *c, struct buf *result, struct error *err)
{
    const json_t *config = need_config(c, err);

    if (!config)
        return false;
    /* The plugin-wide config is empty (no instanceConfigSchema); what an operator puts there is
     * read as an environment's settings are. */
    if (json_object_size(config) == 0)
        return rpc_result(result, json_pack("{s:b, s:[], s:[]}", "ok", 1, "errors", "warnings"));
    return validate(config, false, result);
}

bool rpc_env_validate_config(struct call *c, struct buf *result, struct error *err)
{
    const json_t *config = need_config(c, err);

    return config && validate(config, true, result);
}
