/* duplexChannel*: programs with stdin and stdout held open; loginPty*: the fixed login commands on
 * a terminal. */
#include <openssl/evp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "lib/channel.h"
#include "lib/lease.h"
#include "rpc/rpc.h"

#define OPEN_MS 25000 /* the host's 30 s */
#define CLOSE_MS 8000 /* the host's 10 s */
#define MAX_WORDS 4096

/* What a channel holds of its lease until it is gone. */
struct held {
    struct link *link;
    struct cancel *cancel; /* fired by a release that ends active work */
    int watch;
    char *route;
};

static void stop_channel(void *arg)
{
    struct held *h = arg;

    channel_end(h->route);
}

static void on_gone(void *arg)
{
    struct held *h = arg;

    cancel_unwatch(h->cancel, h->watch);
    lease_link_done(h->link, h->cancel);
    cancel_unref(h->cancel);
    free(h->route);
    free(h);
}

/* ---- notifications ---- */

static void begin(struct buf *line, const char *method, const char *route, const char *session)
{
    buf_printf(line, "{\"jsonrpc\":\"2.0\",\"method\":\"%s\",\"params\":{\"hostRouteId\":\"",
               method);
    json_escape(line, route, strlen(route));
    buf_printf(line, "\",\"workerSessionId\":\"%s\"", session);
}

static void on_data(const char *route, const char *session, const char *data, size_t n, void *arg)
{
    cleanup_buf struct buf line = {0};

    (void)arg;
    begin(&line, "duplexChannel.data", route, session);
    buf_puts(&line, ",\"chunk\":\"");
    char *to = buf_reserve(&line, (n + 2) / 3 * 4 + 1);
    line.len += (size_t)EVP_EncodeBlock((unsigned char *)to, (const unsigned char *)data, (int)n);
    buf_puts(&line, "\"}}\n");
    rpc_write(line.data, line.len);
}

static void on_exit_duplex(const char *route, const char *session, int code, bool transport_closed,
                           void *arg)
{
    cleanup_buf struct buf line = {0};

    (void)arg;
    begin(&line, "duplexChannel.exit", route, session);
    if (code < 0)
        buf_puts(&line, ",\"exitCode\":null");
    else
        buf_printf(&line, ",\"exitCode\":%d", code);
    buf_puts(&line, transport_closed ? ",\"transportClosed\":true}}\n" : "}}\n");
    rpc_write(line.data, line.len);
}

static void on_output(const char *route, const char *session, const char *data, size_t n, void *arg)
{
    cleanup_buf struct buf line = {0};

    (void)arg;
    begin(&line, "loginPty.output", route, session);
    buf_puts(&line, ",\"chunk\":\"");
    json_escape(&line, data, n);
    buf_puts(&line, "\"}}\n");
    rpc_write(line.data, line.len);
}

static void on_exit_login(const char *route, const char *session, int code, bool transport_closed,
                          void *arg)
{
    cleanup_buf struct buf line = {0};

    (void)transport_closed;
    (void)arg;
    begin(&line, "loginPty.exit", route, session);
    if (code < 0)
        buf_puts(&line, ",\"exitCode\":null}}\n");
    else
        buf_printf(&line, ",\"exitCode\":%d}}\n", code);
    rpc_write(line.data, line.len);
}

/* ---- open ---- */

static void answered(struct call *c)
{
    channel_start(c->sent_id);
}

static char *open_channel(struct call *c, struct channel_request *req, struct error *err)
{
    const char *id = rpc_need_str(c, c->params, "providerLeaseId", err);
    struct cancel *cancel = id ? cancel_new() : NULL;
    struct link *link = id ? lease_link_known(id, cancel, err) : NULL;

    if (!link) {
        cancel_unref(cancel);
        return NULL;
    }
    struct held *h = xcalloc(1, sizeof *h);
    *h = (struct held){.link = link, .cancel = cancel, .route = xstrdup(req->route)};
    h->watch = cancel_watch(cancel, stop_channel, h);
    req->arg = h;
    c->sent = answered;
    c->sent_id = xstrdup(req->route);
    return channel_open(link, req, deadline_in(OPEN_MS), c->cancel, err);
}

static const char **read_command(struct call *c, struct error *err)
{
    const json_t *list = json_object_get(c->params, "command");
    size_t n = json_array_size(list), i;
    json_t *v;

    if (n == 0 || n > MAX_WORDS) {
        rpc_bad_params(c, err, "command must be an array of 1 to %d strings", MAX_WORDS);
        return NULL;
    }
    cleanup_free const char **argv = xcalloc(n + 1, sizeof *argv);
    json_array_foreach (list, i, v) {
        const char *s = json_string_value(v);
        if (!s || strlen(s) != json_string_length(v)) {
            rpc_bad_params(c, err, "command[%zu] must be a string without NUL characters", i);
            return NULL;
        }
        argv[i] = s;
    }
    return steal_ptr(argv);
}

bool rpc_duplex_open(struct call *c, struct buf *result, struct error *err)
{
    const char *route = rpc_need_str(c, c->params, "hostRouteId", err);
    cleanup_free const char **command = route ? read_command(c, err) : NULL;

    if (!command)
        return false;
    struct channel_request req = {
        .kind = CHANNEL_DUPLEX,
        .route = route,
        .command = command,
        .events = {on_data, on_exit_duplex, on_gone},
    };
    cleanup_free char *session = open_channel(c, &req, err);
    return session && rpc_result(result, json_pack("{s:s, s:s}", "hostRouteId", route,
                                                   "workerSessionId", session));
}

bool rpc_login_open(struct call *c, struct buf *result, struct error *err)
{
    const char *route = rpc_need_str(c, c->params, "hostRouteId", err);
    const char *key = route ? rpc_need_str(c, c->params, "loginCommandKey", err) : NULL;
    const char *home = key ? rpc_need_str(c, c->params, "sessionHome", err) : NULL;

    if (!home)
        return false;
    struct channel_request req = {
        .kind = CHANNEL_LOGIN,
        .route = route,
        .login_key = key,
        .session_home = home,
        .events = {on_output, on_exit_login, on_gone},
    };
    cleanup_free char *session = open_channel(c, &req, err);
    return session && rpc_result(result, json_pack("{s:s}", "workerSessionId", session));
}

/* ---- input ---- */

struct wait {
    pthread_mutex_t lock;
    pthread_cond_t cond;
    bool done;
    struct error why;
};

static void written(const struct error *why, void *arg)
{
    struct wait *w = arg;

    pthread_mutex_lock(&w->lock);
    if (why)
        error_copy(&w->why, why);
    w->done = true;
    pthread_cond_signal(&w->cond);
    pthread_mutex_unlock(&w->lock);
}

/* Calls of one route come here one after the other (the method table says so): the order holds. */
static bool write_and_wait(const char *route, const char *session, const void *p, size_t n,
                           struct error *err)
{
    struct wait w = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, {0}};

    channel_write(route, session, p, n, written, &w);
    pthread_mutex_lock(&w.lock);
    while (!w.done)
        pthread_cond_wait(&w.cond, &w.lock);
    pthread_mutex_unlock(&w.lock);
    error_move(err, &w.why);
    return !err->msg;
}

/* Canonical base64 only: what it decodes to must encode to the same again. */
static bool decode(const char *text, size_t n, struct buf *out)
{
    if (n == 0 || n % 4 != 0 || n > 2 * CHANNEL_MAX_WRITE)
        return false;
    unsigned char *to = (unsigned char *)buf_reserve(out, n);
    int len = EVP_DecodeBlock(to, (const unsigned char *)text, (int)n);
    if (len < 0)
        return false;
    len -= text[n - 1] != '=' ? 0 : text[n - 2] != '=' ? 1 : 2;
    out->len = (size_t)len;
    cleanup_free char *again = xmalloc(n + 1);
    return EVP_EncodeBlock((unsigned char *)again, to, len) == (int)n &&
           memcmp(again, text, n) == 0;
}

bool rpc_duplex_write(struct call *c, struct buf *result, struct error *err)
{
    const char *route = rpc_need_str(c, c->params, "hostRouteId", err);
    const char *session = route ? rpc_need_str(c, c->params, "workerSessionId", err) : NULL;
    const char *data = session ? rpc_need_str(c, c->params, "data", err) : NULL;
    cleanup_buf struct buf bytes = {0};

    if (!data)
        return false;
    if (!decode(data, strlen(data), &bytes))
        return rpc_bad_params(c, err, "data is not canonical base64 of 1 to %u bytes",
                              CHANNEL_MAX_WRITE);
    return write_and_wait(route, session, bytes.data, bytes.len, err) &&
           rpc_result(result, json_null());
}

bool rpc_login_input(struct call *c, struct buf *result, struct error *err)
{
    const char *session = rpc_need_str(c, c->params, "workerSessionId", err);
    const json_t *data = json_object_get(c->params, "data");

    if (!session)
        return false;
    if (!json_is_string(data))
        return rpc_bad_params(c, err, "data must be a string");
    if (json_string_length(data) == 0)
        return rpc_result(result, json_null());
    return write_and_wait(NULL, session, json_string_value(data), json_string_length(data), err) &&
           rpc_result(result, json_null());
}

/* ---- the end ---- */

bool rpc_duplex_stop(struct call *c, struct buf *result, struct error *err)
{
    const char *route = rpc_need_str(c, c->params, "hostRouteId", err);
    const char *session = route ? rpc_need_str(c, c->params, "workerSessionId", err) : NULL;

    return session && channel_stop(route, session, err) && rpc_result(result, json_null());
}

bool rpc_login_stop(struct call *c, struct buf *result, struct error *err)
{
    const char *session = rpc_need_str(c, c->params, "workerSessionId", err);

    return session && channel_stop(NULL, session, err) && rpc_result(result, json_null());
}

bool rpc_channel_close(struct call *c, struct buf *result, struct error *err)
{
    const char *route = rpc_need_str(c, c->params, "hostRouteId", err);

    if (!route)
        return false;
    cleanup_free char *session = channel_close(route, deadline_in(CLOSE_MS));
    json_t *answer = json_pack("{s:s}", "hostRouteId", route);
    if (session)
        json_object_set_new(answer, "workerSessionId", json_string(session));
    return rpc_result(result, answer);
}
