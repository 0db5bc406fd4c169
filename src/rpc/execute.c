/* environmentExecute: live output as execute.log, whole in the result. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/command.h"
#include "lib/lease.h"
#include "rpc/rpc.h"

/* Both streams, escaped, and the rest of the line must stay under RPC_MAX_LINE; the host takes that
 * much of execute.log, too. */
#define LINE_REST (64u << 10)
static const char cut_mark[] = "\\n[exedev: output cut here, over the limit]\\n";

/* Output is escaped once: the same bytes go live and into the result. Of tens of megabytes a copy
 * more is felt, so stdout goes straight into the answer's line. */
struct capture {
    struct call *call;
    struct buf *text[3]; /* escaped, by channel: [1] is the answer itself, `err` is [2] */
    struct buf err;
    struct buf line;  /* the notification being built */
    size_t cap, used; /* escaped bytes of both channels */
    bool cut[3];
};

static void notify(struct capture *cap, int channel, const char *escaped, size_t n)
{
    struct buf *line = &cap->line;

    if (!cap->call->invocation || n == 0)
        return;
    line->len = 0;
    buf_printf(line,
               "{\"jsonrpc\":\"2.0\",\"method\":\"execute.log\",\"params\":{\"stream\":\"%s\","
               "\"chunk\":\"",
               channel == 1 ? "stdout" : "stderr");
    buf_put(line, escaped, n);
    buf_puts(line, "\"},\"paperclipInvocationId\":\"");
    json_escape(line, cap->call->invocation, strlen(cap->call->invocation));
    buf_puts(line, "\"}\n");
    rpc_write(line->data, line->len);
}

/* How many of n bytes of escaped text fit into `room` without cutting an escape or a character. */
static size_t whole_prefix(const char *s, size_t n, size_t room)
{
    size_t at = 0;

    if (n <= room)
        return n;
    while (at < n) {
        unsigned char c = (unsigned char)s[at];
        size_t len = c == '\\'  ? (s[at + 1] == 'u' ? 6 : 2)
                     : c < 0x80 ? 1
                     : c < 0xe0 ? 2
                     : c < 0xf0 ? 3
                                : 4;
        if (at + len > room)
            break;
        at += len;
    }
    return at;
}

static bool take_output(int channel, const char *data, size_t len, void *arg)
{
    struct capture *cap = arg;
    struct buf *text = cap->text[channel];
    size_t from = text->len;

    if (cap->cut[channel])
        return true;
    json_escape(text, data, len);
    size_t n = text->len - from;
    if (cap->used + n > cap->cap) {
        n = whole_prefix(text->data + from, n, cap->cap - cap->used);
        text->len = from + n;
        cap->cut[channel] = true;
    }
    cap->used += n;
    /* The host takes a million characters a chunk; escapes only make them fewer. */
    notify(cap, channel, text->data + from, n);
    return true;
}

/* ---- parameters ---- */

struct words {
    const char **list;
    size_t n;
};

static void words_free(struct words *w)
{
    free(w->list);
}

static bool read_args(struct call *c, struct words *argv, struct error *err)
{
    const json_t *args = json_object_get(c->params, "args");
    const char *command = rpc_need_str(c, c->params, "command", err);

    if (!command)
        return false;
    if (args && !json_is_null(args) && !json_is_array(args))
        return rpc_bad_params(c, err, "args must be an array of strings");
    argv->list = xcalloc(json_array_size(args) + 2, sizeof *argv->list);
    argv->list[argv->n++] = command;
    for (size_t i = 0; i < json_array_size(args); i++) {
        const json_t *v = json_array_get(args, i);
        if (!json_is_string(v))
            return rpc_bad_params(c, err, "args[%zu] must be a string", i);
        if (strlen(json_string_value(v)) != json_string_length(v))
            return rpc_bad_params(c, err, "args[%zu] holds a NUL character", i);
        argv->list[argv->n++] = json_string_value(v);
    }
    return true;
}

static bool env_name_ok(const char *s)
{
    if (!*s || (*s >= '0' && *s <= '9'))
        return false;
    return s[strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")] == '\0';
}

static void env_free(char ***env)
{
    for (size_t i = 0; *env && (*env)[i]; i++)
        free((*env)[i]);
    free(*env);
}

static bool read_env(struct call *c, char ***out, struct error *err)
{
    const json_t *env = json_object_get(c->params, "env");
    const char *key;
    json_t *v;
    size_t n = 0;

    if (env && !json_is_null(env) && !json_is_object(env))
        return rpc_bad_params(c, err, "env must be an object");
    *out = xcalloc(json_object_size(env) + 1, sizeof **out);
    json_object_foreach ((json_t *)env, key, v) {
        if (!env_name_ok(key)) {
            cleanup_buf struct buf shown = {0};
            text_visible(&shown, key, strlen(key), 80);
            return rpc_bad_params(
                c, err, "env: '%s' is no variable name (letters, digits and _, not a digit first)",
                shown.data ? shown.data : "");
        }
        if (!json_is_string(v))
            continue;
        if (strlen(json_string_value(v)) != json_string_length(v))
            return rpc_bad_params(c, err, "env: the value of %s holds a NUL character", key);
        (*out)[n++] = xasprintf("%s=%s", key, json_string_value(v));
    }
    return true;
}

/* ---- the answer ---- */

/* command_run's own words (lines), on a line of their own. */
static void put_lines(struct buf *text, const struct buf *lines)
{
    if (text->len > 0 &&
        !(text->len >= 2 && text->data[text->len - 1] == 'n' && text->data[text->len - 2] == '\\'))
        buf_puts(text, "\\n");
    json_escape(text, lines->data, lines->len);
}

/* The answer from its beginning to the first byte of stdout; put_rest goes on behind the last. */
static void put_start(struct buf *out)
{
    buf_puts(out, "{\"stdout\":\"");
}

static void put_rest(struct buf *out, struct capture *cap, const struct command_result *r,
                     const char *id, const json_t *lease_metadata)
{
    for (int ch = 1; ch <= 2; ch++)
        if (cap->cut[ch])
            buf_puts(cap->text[ch], cut_mark);
    if (r->err.len)
        put_lines(&cap->err, &r->err);
    buf_puts(out, "\",\"stderr\":\"");
    buf_put(out, cap->err.data, cap->err.len);
    bool none = r->timed_out || r->cancelled;
    if (none)
        buf_puts(out, "\",\"exitCode\":null");
    else
        buf_printf(out, "\",\"exitCode\":%d", r->exit_code);
    if (r->signal[0])
        buf_printf(out, ",\"signal\":\"%s\"", r->signal);
    else
        buf_puts(out, ",\"signal\":null");
    buf_printf(out, ",\"timedOut\":%s", r->timed_out ? "true" : "false");
    json_t *m = json_pack("{s:s, s:s}", "provider", "exe-dev", "vmName", id);
    const char *dest = json_str(lease_metadata, "sshDest");
    json_object_set_new(m, "sshDest", dest ? json_string(dest) : json_null());
    if (r->transport)
        json_object_set_new(m, "transportError", json_string(error_code_name(r->transport)));
    if (r->cancelled)
        json_object_set_new(m, "cancelled", json_true());
    if ((r->cancelled || r->timed_out) && !r->confirmed)
        json_object_set_new(m, "endConfirmed", json_false());
    buf_puts(out, ",\"metadata\":");
    rpc_result(out, m);
    buf_putc(out, '}');
}

static bool no_lease(struct buf *out)
{
    return rpc_result(
        out, json_pack("{s:i, s:n, s:b, s:s, s:s, s:{s:s}}", "exitCode", 1, "signal", "timedOut", 0,
                       "stdout", "", "stderr",
                       "exe.dev: there is no lease to run the command on (no providerLeaseId)\n",
                       "metadata", "provider", "exe-dev"));
}

static void capture_free(struct capture *cap)
{
    buf_free(&cap->err);
    buf_free(&cap->line);
}

static int64_t timeout_of(const struct call *c, const struct config *cfg)
{
    const json_t *v = json_object_get(c->params, "timeoutMs");

    return json_is_number(v) && json_number_value(v) >= 0 ? json_int(c->params, "timeoutMs", 0)
                                                          : cfg->timeout_ms;
}

bool rpc_env_execute(struct call *c, struct buf *result, struct error *err)
{
    __attribute__((cleanup(words_free))) struct words argv = {0};
    __attribute__((cleanup(env_free))) char **env = NULL;
    __attribute__((cleanup(capture_free))) struct capture cap = {.call = c,
                                                                 .text = {NULL, result, &cap.err}};
    __attribute__((cleanup(command_result_free))) struct command_result r = {0};
    const json_t *input = json_object_get(c->params, "stdin"), *metadata;
    const char *id, *cwd;

    if (!read_args(c, &argv, err) || !read_env(c, &env, err) ||
        !rpc_lease(c, &id, &metadata, err) || !rpc_opt_str(c, c->params, "cwd", &cwd, err))
        return false;
    if (input && !json_is_null(input) && !json_is_string(input))
        return rpc_bad_params(c, err, "stdin must be a string");
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg)
        return false;
    if (!id || !*id)
        return no_lease(result);
    if (!json_object_get(c->params, "cwd"))
        cwd = json_str(metadata, "remoteCwd");
    cap.cap = RPC_MAX_LINE - LINE_REST;
    if ((size_t)cfg->output_cap < cap.cap)
        cap.cap = (size_t)cfg->output_cap;

    /* A release that ends active work fires the call's cancel, too. */
    struct link *link = lease_link(cfg, id, metadata, c->cancel, err);
    if (!link)
        return false;
    struct command_spec spec = {
        .argv = argv.list,
        .env = (const char *const *)env,
        .cwd = cwd && *cwd ? cwd : NULL,
        .login_env = true,
        .source_nvm = cfg->source_nvm,
        .durable = cfg->durable_commands,
        .text = true,
        .timeout_ms = timeout_of(c, cfg),
        .stdin_data = json_string_value(input),
        .stdin_len = json_string_length(input),
        .output = take_output,
        .arg = &cap,
    };
    put_start(result);
    bool ok = command_run(link, &spec, c->cancel, &r, err);
    lease_link_done(link, c->cancel);
    if (!ok) {
        if (err->code == ERR_INVALID || err->code == ERR_TOO_LARGE)
            c->code = RPC_PARAMS;
        return false;
    }
    put_rest(result, &cap, &r, id, metadata);
    return true;
}
