/* What the tests of the API client share: a config, an api and a misbehaving server for it.
 * Included by one program once. */
#ifndef API_WORLD_H
#define API_WORLD_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "http_double.h"
#include "lib/api.h"
#include "lib/redact.h"
#include "lib/secret.h"

#define TOKEN "exe1.secrettoken0123"
#define RECORD "{\"vm_name\":\"vm-a\",\"ssh_dest\":\"vm-a.exe.xyz\",\"status\":\"running\"}"
#define THERE "{\"vms\":[" RECORD "]}"
#define GONE "{\"vms\":[]}"

struct world {
    struct http_double *server;
    struct config *config;
    struct api *api;
};

static struct config *config_for(int port, const char *more)
{
    cleanup_free char *text = xasprintf(
        "{\"apiKey\":\"" TOKEN "\",\"setupScript\":\"none\",\"apiUrl\":\"http://127.0.0.1:%d\"%s}",
        port, more);
    cleanup_json json_t *raw = json_parse(text, strlen(text), NULL);
    cleanup_error struct error err = {0};
    struct config *c = config_load(raw, &err);

    if (!c)
        fail_msg("%s", err.msg);
    return c;
}

static struct world begin(const struct step *steps, size_t n, const char *more)
{
    struct world w = {.server = double_start(steps, n)};

    w.config = config_for(double_port(w.server), more);
    w.api = api_new(w.config, NULL);
    assert_non_null(w.api);
    return w;
}
#define BEGIN(more, ...)                                                                           \
    static const struct step steps[] = {__VA_ARGS__};                                              \
    struct world w = begin(steps, sizeof steps / sizeof *steps, more);                             \
    cleanup_error struct error err = {0};                                                          \
    cleanup_record struct record r = {0};                                                          \
    (void)state, (void)r

static void end(struct world *w)
{
    api_free(w->api);
    config_free(w->config);
    double_stop(w->server);
}

static const struct api_create vm_a = {
    .name = "vm-a", .comment = "[exedev lease env=e run=r]", .tag = "exedev"};

static bool create(struct world *w, struct record *r, struct error *err)
{
    return api_create_vm(w->api, w->config, &vm_a, deadline_in(20000), r, err);
}

static void says(const struct error *err, enum error_code code, const char *words)
{
    if (err->code != code || !strstr(err->msg, words))
        fail_msg("%s: %s", error_code_name(err->code), err->msg ? err->msg : "(no error)");
    assert_null(strstr(err->msg, TOKEN));
}

#endif
