#include "lib/form_server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "lib/form_stream.h"

#define TOKEN_BYTES 24

struct form_server {
    const struct form_asset *assets;
    const struct form_route *routes;
    void *arg;
    struct MHD_Daemon *daemon;
    int port;
    int wake; /* eventfd */
    long long idle_ms;
    atomic_llong last_ms; /* of the last request that was let in */
    atomic_int busy;      /* requests and streams under way */
    char token[2 * TOKEN_BYTES + 1];
    char session[2 * TOKEN_BYTES + 1];
    char cookie[32]; /* its name: cookies are not kept apart by port */
    char *url;
    pthread_mutex_t lock;
    bool visited;
};

struct request {
    struct buf body;
    bool known; /* brought the cookie */
    bool too_large;
};

/* Takes the same time wherever the first difference is. */
static bool same_secret(const char *a, const char *b)
{
    size_t n = strlen(b);
    unsigned char differ = 0;

    if (!a || strlen(a) != n)
        return false;
    for (size_t i = 0; i < n; i++)
        differ |= (unsigned char)(a[i] ^ b[i]);
    return !differ;
}

static enum MHD_Result send_response(struct MHD_Connection *c, int status, const char *type,
                                     struct MHD_Response *r, const struct form_server *cookie_of)
{
    /* Nothing but our own files, and nobody may frame, read or keep the page. */
    static const char *const headers[][2] = {
        {"Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; "
                                    "connect-src 'self'; img-src data:; "
                                    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"},
        {"X-Content-Type-Options", "nosniff"},
        {"Referrer-Policy", "no-referrer"},
        {"Cache-Control", "no-store"},
        {"Cross-Origin-Opener-Policy", "same-origin"},
        {"Cross-Origin-Resource-Policy", "same-origin"},
    };

    for (size_t i = 0; i < sizeof headers / sizeof *headers; i++)
        MHD_add_response_header(r, headers[i][0], headers[i][1]);
    MHD_add_response_header(r, "Content-Type", type);
    if (cookie_of) {
        cleanup_free char *value = xasprintf("%s=%s; Path=/; HttpOnly; SameSite=Strict",
                                             cookie_of->cookie, cookie_of->session);
        MHD_add_response_header(r, "Set-Cookie", value);
    }
    enum MHD_Result result = MHD_queue_response(c, (unsigned)status, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result send_text(struct MHD_Connection *c, int status, const char *text)
{
    return send_response(c, status, "text/plain; charset=utf-8",
                         MHD_create_response_from_buffer(strlen(text), (void *)(uintptr_t)text,
                                                         MHD_RESPMEM_MUST_COPY),
                         NULL);
}

static enum MHD_Result send_json(struct MHD_Connection *c, int status, const json_t *value)
{
    cleanup_secret_buf struct buf text = {0};

    json_write(&text, value);
    return send_response(
        c, status, "application/json",
        MHD_create_response_from_buffer(text.len, text.data, MHD_RESPMEM_MUST_COPY), NULL);
}

static enum MHD_Result send_asset(struct MHD_Connection *c, const struct form_asset *a,
                                  const struct form_server *cookie_of)
{
    return send_response(c, 200, a->type,
                         MHD_create_response_from_buffer(*a->len, (void *)(uintptr_t)a->data,
                                                         MHD_RESPMEM_PERSISTENT),
                         cookie_of);
}

/* A page elsewhere can name us by a host of its own that resolves to loopback (DNS rebinding): only
 * these two names are ours. */
static bool host_is_ours(const struct form_server *s, const char *host)
{
    cleanup_free char *number = xasprintf("127.0.0.1:%d", s->port);
    cleanup_free char *name = xasprintf("localhost:%d", s->port);

    return host && (strcmp(host, number) == 0 || strcmp(host, name) == 0);
}

static bool origin_is_ours(const char *origin, const char *host)
{
    return strncmp(origin, "http://", 7) == 0 && strcmp(origin + 7, host) == 0;
}

static const char *header(struct MHD_Connection *c, const char *name)
{
    return MHD_lookup_connection_value(c, MHD_HEADER_KIND, name);
}

static enum MHD_Result answer_post(struct form_server *s, struct MHD_Connection *c,
                                   const char *path, struct request *req)
{
    const char *type = header(c, "Content-Type");
    const struct form_route *route = s->routes;

    /* A form of another site can send text, never this type without asking first (CORS). */
    if (!type || strcmp(type, "application/json") != 0)
        return send_text(c, 415, "only application/json is taken here\n");
    if (req->too_large)
        return send_text(c, 413, "the request is larger than 4 MiB\n");
    while (route->path && strcmp(route->path, path) != 0)
        route++;
    if (!route->path)
        return send_text(c, 404, "there is nothing here\n");

    cleanup_error struct error err = {0};
    cleanup_json json_t *in =
        req->body.len ? json_parse(req->body.data, req->body.len, &err) : json_object();
    struct form_answer answer = {.status = 0};
    cleanup_json json_t *out = NULL;
    if (in && !json_is_object(in))
        error_set(&err, ERR_INVALID, "the request is no JSON object");
    else if (in)
        out = route->handler(s->arg, in, &answer, &err);
    if (answer.stream)
        return send_response(c, 200, "application/x-ndjson", form_stream_response(answer.stream),
                             NULL);
    if (!out)
        out = json_pack("{s:s, s:s}", "error", err.msg ? err.msg : "failed", "code",
                        error_code_name(err.code));
    return send_json(c, answer.status ? answer.status : err.code ? 400 : 200, out);
}

static enum MHD_Result answer_get(struct form_server *s, struct MHD_Connection *c, const char *path,
                                  const char *method, bool known)
{
    const char *token = MHD_lookup_connection_value(c, MHD_GET_ARGUMENT_KIND, "t");

    if (strcmp(method, "GET") != 0)
        return send_text(c, 405, "only GET and POST are taken here\n");
    if (!known && token && strcmp(path, "/") == 0) {
        pthread_mutex_lock(&s->lock);
        bool first = !s->visited && same_secret(token, s->token);
        s->visited |= first;
        pthread_mutex_unlock(&s->lock);
        /* The page itself, no redirect: a browser that came from a file would not send a strict
         * cookie on the way back. */
        if (first)
            s->last_ms = now_ms();
        if (first)
            return send_asset(c, s->assets, s);
    }
    if (!known)
        return send_text(
            c, 403,
            "This address is for one browser only, and its link works once. Run `exedev configure` "
            "again for a new one.\n");
    for (const struct form_asset *a = s->assets; a->path; a++) {
        if (strcmp(a->path, path) == 0)
            return send_asset(c, a, NULL);
    }
    return send_text(c, 404, "there is nothing here\n");
}

static enum MHD_Result answer(void *arg, struct MHD_Connection *c, const char *path,
                              const char *method, const char *version, const char *data, size_t *n,
                              void **state)
{
    struct form_server *s = arg;
    struct request *req = *state;

    (void)version;
    if (!req) {
        *state = req = xcalloc(1, sizeof *req);
        req->known =
            same_secret(MHD_lookup_connection_value(c, MHD_COOKIE_KIND, s->cookie), s->session);
        s->busy += req->known;
        return MHD_YES;
    }
    if (*n) {
        req->too_large |= req->body.len + *n > FORM_BODY_MAX;
        if (!req->too_large && req->known)
            buf_put(&req->body, data, *n);
        *n = 0;
        return MHD_YES;
    }
    const char *host = header(c, "Host"), *origin = header(c, "Origin");
    bool post = strcmp(method, "POST") == 0;
    if (!host_is_ours(s, host)) {
        cleanup_free char *text = xasprintf("This is http://127.0.0.1:%d and answers to no other "
                                            "name. Through an ssh tunnel use the same "
                                            "port on both sides: ssh -L %d:127.0.0.1:%d\n",
                                            s->port, s->port, s->port);
        return send_text(c, 403, text);
    }
    if (origin ? !origin_is_ours(origin, host) : post)
        return send_text(c, 403, "This is no request of our own page: refused.\n");
    if (!post)
        return answer_get(s, c, path, method, req->known);
    return req->known ? answer_post(s, c, path, req)
                      : send_text(c, 403, "Open the printed link first.\n");
}

static void completed(void *arg, struct MHD_Connection *c, void **state,
                      enum MHD_RequestTerminationCode why)
{
    struct form_server *s = arg;
    struct request *req = *state;

    (void)c;
    (void)why;
    if (!req)
        return;
    if (req->known) {
        s->last_ms = now_ms();
        s->busy--;
    }
    buf_wipe(&req->body);
    free(req);
    *state = NULL;
}

static void random_hex(char *out)
{
    unsigned char noise[TOKEN_BYTES];

    io_random(noise, sizeof noise);
    io_hex(noise, sizeof noise, out);
}

struct form_server *form_server_start(const struct form_asset *assets,
                                      const struct form_route *routes, void *arg, long long idle_ms,
                                      struct error *err)
{
    struct form_server *s = xcalloc(1, sizeof *s);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    s->assets = assets;
    s->routes = routes;
    s->arg = arg;
    s->idle_ms = idle_ms;
    s->last_ms = now_ms();
    pthread_mutex_init(&s->lock, NULL);
    random_hex(s->token);
    random_hex(s->session);
    s->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    s->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL, 0, NULL,
        NULL, answer, s, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at, MHD_OPTION_NOTIFY_COMPLETED,
        completed, s, MHD_OPTION_CONNECTION_LIMIT, 64U, MHD_OPTION_CONNECTION_TIMEOUT, 180U,
        MHD_OPTION_END);
    const union MHD_DaemonInfo *info =
        s->daemon ? MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_BIND_PORT) : NULL;
    if (!info || s->wake < 0) {
        error_sys(err, errno, "serve the settings form on 127.0.0.1");
        form_server_free(s);
        return NULL;
    }
    s->port = info->port;
    snprintf(s->cookie, sizeof s->cookie, "exedev_%d", s->port);
    s->url = xasprintf("http://127.0.0.1:%d/?t=%s", s->port, s->token);
    return s;
}

int form_server_port(const struct form_server *s)
{
    return s->port;
}

const char *form_server_url(const struct form_server *s)
{
    return s->url;
}

int form_server_wake_fd(const struct form_server *s)
{
    return s->wake;
}

void form_server_finish(struct form_server *s)
{
    uint64_t one = 1;
    ssize_t ignored = write(s->wake, &one, sizeof one);

    (void)ignored;
}

bool form_server_wait(struct form_server *s)
{
    for (;;) {
        long long left = s->last_ms + s->idle_ms - now_ms();
        if (s->busy)
            left = left > 1000 ? left : 1000;
        if (left <= 0)
            return false;
        struct pollfd pfd = {.fd = s->wake, .events = POLLIN};
        if (poll(&pfd, 1, left > 60000 ? 60000 : (int)left) > 0)
            break;
    }
    /* The answer to the request that asked for the end is still to go out. */
    for (int i = 0; i < 100 && s->busy; i++)
        deadline_sleep(DEADLINE_NEVER, 20);
    return true;
}

void form_server_free(struct form_server *s)
{
    if (!s)
        return;
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    if (s->wake >= 0)
        close(s->wake);
    pthread_mutex_destroy(&s->lock);
    explicit_bzero(s->token, sizeof s->token);
    explicit_bzero(s->session, sizeof s->session);
    free(s->url);
    free(s);
}
