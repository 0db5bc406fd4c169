#include "lobby/http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/text.h"
#include "lobby/command.h"
#include "lobby/event.h"
#include "lobby/fault.h"
#include "lobby/lex.h"
#include "lobby/listen.h"
#include "lobby/token.h"

#define MAX_BODY 65536
#define RUN_MS 30000

static struct {
    struct http_options o;
    struct MHD_Daemon *api, *control;
    struct sockaddr_in at, control_at;
    pthread_t door;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool stopping;
} http = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct call {
    struct buf body;
    bool too_large;
};

/* The answer's body, as a fault wants it sent. */
struct sending {
    char *data;
    size_t len;
    enum fault_kind kind;
    long long value;
};

static ssize_t send_part(void *cls, uint64_t pos, char *out, size_t max)
{
    struct sending *s = cls;

    switch (s->kind) {
    case FAULT_HUGE:
        if (pos >= (uint64_t)s->value)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (max > (uint64_t)s->value - pos)
            max = (size_t)((uint64_t)s->value - pos);
        memset(out, 'x', max);
        if (pos == 0)
            out[0] = '"';
        return (ssize_t)max;
    case FAULT_DRIP:
        if (pos >= s->len)
            return MHD_CONTENT_READER_END_OF_STREAM;
        if (pos)
            deadline_sleep(DEADLINE_NEVER, s->value);
        out[0] = s->data[pos];
        return 1;
    default: /* FAULT_SHORT */
        if (pos >= s->len / 2)
            return MHD_CONTENT_READER_END_WITH_ERROR;
        if (max > s->len / 2 - pos)
            max = s->len / 2 - (size_t)pos;
        memcpy(out, s->data + pos, max);
        return (ssize_t)max;
    }
}

static void sending_free(void *cls)
{
    struct sending *s = cls;

    free(s->data);
    free(s);
}

static enum MHD_Result cut(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct linger reset = {.l_onoff = 1};

    if (info)
        setsockopt(info->connect_fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return MHD_NO;
}

/* Takes the text. */
static enum MHD_Result reply(struct MHD_Connection *c, unsigned status, char *text, size_t n,
                             const struct fault *f)
{
    struct MHD_Response *r;

    if (f && (f->kind == FAULT_HUGE || f->kind == FAULT_DRIP || f->kind == FAULT_SHORT)) {
        struct sending *s = xcalloc(1, sizeof *s);
        *s = (struct sending){text, n, f->kind, f->value};
        uint64_t size = f->kind == FAULT_HUGE ? (uint64_t)f->value : n;
        r = MHD_create_response_from_callback(size, 65536, send_part, s, sending_free);
    } else {
        r = MHD_create_response_from_buffer(n, text, MHD_RESPMEM_MUST_FREE);
    }
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "application/json");
    if (f && f->retry_after >= 0) {
        char seconds[16];
        snprintf(seconds, sizeof seconds, "%d", f->retry_after);
        MHD_add_response_header(r, "Retry-After", seconds);
    }
    if (f && f->kind == FAULT_REDIRECT)
        MHD_add_response_header(r, "Location", f->body);
    if (status == 405)
        MHD_add_response_header(r, "Allow", "POST");
    enum MHD_Result ok = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return ok;
}

static enum MHD_Result reply_json(struct MHD_Connection *c, struct answer a, const struct fault *f)
{
    struct buf text = {0};

    json_write(&text, a.json);
    buf_putc(&text, '\n');
    json_decref(a.json);
    size_t n = text.len;
    return reply(c, (unsigned)a.status, buf_steal(&text), n, f);
}

/* Lets a client wait, at most `ms`, for as long as it wants to. */
static void keep_waiting(struct MHD_Connection *c, long long ms)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct deadline d = deadline_in(ms);
    struct pollfd pfd = {.fd = info ? info->connect_fd : -1, .events = POLLRDHUP};

    while (!deadline_passed(d) && poll(&pfd, 1, deadline_poll(d)) < 0 && errno == EINTR)
        ;
}

static const char *bearer(struct MHD_Connection *c)
{
    const char *value = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Authorization");

    return value && strncasecmp(value, "Bearer ", 7) == 0 ? value + 7 : NULL;
}

static json_t *authorise(struct MHD_Connection *c, struct answer *refusal)
{
    const char *token = bearer(c);
    cleanup_error struct error err = {0};
    json_t *p = token ? token_check(token, TOKEN_LOBBY_NAMESPACE, time(NULL), &err) : NULL;

    if (!p)
        *refusal = answer_error(401, token ? err.msg : "no bearer token");
    return p;
}

/* Answers with what the fault says instead of doing the work; false when the work is to be done. */
static bool instead(struct MHD_Connection *c, struct fault *f, enum MHD_Result *result)
{
    struct answer a;

    switch (f->kind) {
    case FAULT_CUT:
        *result = cut(c);
        return true;
    case FAULT_HANG:
        keep_waiting(c, f->value);
        *result = cut(c);
        return true;
    case FAULT_STATUS:
    case FAULT_REDIRECT:
        if (f->body && f->kind == FAULT_STATUS) {
            size_t n = strlen(f->body);
            *result = reply(c, (unsigned)f->value, xstrdup(f->body), n, f);
            return true;
        }
        a = answer_error((int)f->value, "injected fault");
        *result = reply_json(c, a, f);
        return true;
    default:
        return false;
    }
}

/* After the work: the answer, or what becomes of it. */
static enum MHD_Result finish(struct MHD_Connection *c, struct answer a, struct fault *f, bool late)
{
    static const char garbage[] = "\x1f\x8b\xff\xfe{]<html>upstream connect error\n";
    cleanup_buf struct buf text = {0};

    if (late && f->kind != FAULT_LOST) {
        json_decref(a.json);
        return reply_json(c, answer_error(504, "the command ran longer than 30 s"), f);
    }
    switch (f->kind) {
    case FAULT_LOST:
        json_decref(a.json);
        return f->value ? reply_json(c, answer_error((int)f->value, "injected fault"), f) : cut(c);
    case FAULT_GARBAGE:
        json_decref(a.json);
        return reply(c, 200, xstrdup(f->body ? f->body : garbage),
                     strlen(f->body ? f->body : garbage), f);
    case FAULT_TRUNCATE:
        json_write(&text, a.json);
        json_decref(a.json);
        return reply(c, (unsigned)a.status, xstrndup(text.data, text.len / 2), text.len / 2, f);
    default:
        return reply_json(c, a, f);
    }
}

static enum MHD_Result execute(struct MHD_Connection *c, struct call *call, const char **name,
                               int *status)
{
    cleanup_error struct error err = {0};
    cleanup_words struct words w = {0};
    cleanup_fault struct fault f = {0};
    struct answer a;
    size_t skip = 0;
    struct deadline d = deadline_in(RUN_MS);

    cleanup_json json_t *who = authorise(c, &a);
    if (!who)
        goto refuse;
    if (call->too_large) {
        a = answer_error(413, "the command line is larger than 64 KiB");
        goto refuse;
    }
    if (!lex_words(call->body.data ? call->body.data : "", call->body.len, &w, &err)) {
        a = answer_error(400, err.msg);
        goto refuse;
    }
    if (!w.n) {
        a = answer_error(400, "the command line is empty");
        goto refuse;
    }
    *name = command_name(&w, &skip);
    if (!*name) {
        a = answer_error(404, "no such command");
        goto refuse;
    }
    if (!token_allows(who, *name)) {
        cleanup_free char *text = xasprintf("this token may not run \"%s\"", *name);
        a = answer_error(403, text);
        goto refuse;
    }
    fault_take(*name, &f);
    if (f.delay_ms)
        deadline_sleep(d, f.delay_ms);
    enum MHD_Result result;
    if (instead(c, &f, &result)) {
        *status = f.kind == FAULT_STATUS || f.kind == FAULT_REDIRECT ? (int)f.value : 0;
        return result;
    }
    struct caller caller = {who, http.o.keys};
    a = command_run(*name, &w, skip, &caller);
    bool late = deadline_passed(d);
    *status = f.kind == FAULT_LOST ? (int)f.value : late ? 504 : a.status;
    return finish(c, a, &f, late);
refuse:
    *status = a.status;
    return reply_json(c, a, NULL);
}

static enum MHD_Result on_exec(struct MHD_Connection *c, const char *method, struct call *call)
{
    const char *name = NULL;
    int64_t began = now_ms();
    int status = 405;
    enum MHD_Result result;

    if (strcmp(method, "POST") != 0)
        result = reply_json(c, answer_error(405, "use POST"), NULL);
    else
        result = execute(c, call, &name, &status);
    event_emit("exec", json_pack("{s:s, s:i, s:I}", "command", name ? name : "", "status", status,
                                 "ms", (json_int_t)(now_ms() - began)));
    return result;
}

static void close_requested(void);

/* Lines: a spec each, or "clear [WHERE]". */
static struct answer change_faults(struct call *call)
{
    cleanup_error struct error err = {0};
    char *save = NULL;

    if (call->body.len && memchr(call->body.data, 0, call->body.len))
        return answer_error(400, "NUL in the specs");
    buf_putc(&call->body, 0);
    for (char *line = strtok_r(call->body.data, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        cleanup_free char *spec = text_trim(line);
        if (strcmp(spec, "clear") == 0)
            fault_clear(NULL);
        else if (text_starts(spec, "clear "))
            fault_clear(spec + 6);
        else if (*spec && !fault_add(spec, &err))
            return answer_error(400, err.msg);
    }
    close_requested();
    return (struct answer){200, json_pack("{s:o}", "faults", fault_list())};
}

static enum MHD_Result on_faults(struct MHD_Connection *c, const char *method, struct call *call)
{
    struct answer a;
    cleanup_json json_t *who = authorise(c, &a);

    if (who && call->too_large)
        a = answer_error(413, "larger than 64 KiB");
    else if (who && strcmp(method, "GET") == 0)
        a = (struct answer){200, json_pack("{s:o}", "faults", fault_list())};
    else if (who && strcmp(method, "POST") == 0)
        a = change_faults(call);
    else if (who)
        a = answer_error(405, "use GET or POST");
    return reply_json(c, a, NULL);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *upload,
                                  size_t *upload_n, void **state)
{
    struct call *call = *state;
    bool control = cls != NULL;

    (void)version;
    if (!call) {
        *state = xcalloc(1, sizeof *call);
        return MHD_YES;
    }
    if (*upload_n) {
        if (call->body.len + *upload_n > MAX_BODY)
            call->too_large = true;
        else
            buf_put(&call->body, upload, *upload_n);
        *upload_n = 0;
        return MHD_YES;
    }
    if (control && strcmp(url, "/faults") == 0)
        return on_faults(c, method, call);
    if (!control && strcmp(url, "/exec") == 0)
        return on_exec(c, method, call);
    return reply_json(
        c,
        answer_error(404, control ? "the control side has /faults only" : "the API is POST /exec"),
        NULL);
}

static void on_done(void *cls, struct MHD_Connection *c, void **state,
                    enum MHD_RequestTerminationCode why)
{
    struct call *call = *state;

    (void)cls;
    (void)c;
    (void)why;
    if (call)
        buf_free(&call->body);
    free(call);
    *state = NULL;
}

static struct MHD_Daemon *serve(int fd, bool control)
{
    unsigned flags = MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL;
    struct MHD_OptionItem tls[] = {{MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)http.o.key},
                                   {MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)http.o.cert},
                                   {MHD_OPTION_END, 0, NULL}};
    struct MHD_OptionItem none[] = {{MHD_OPTION_END, 0, NULL}};
    bool secure = http.o.cert && !control;

    return MHD_start_daemon(flags | (secure ? MHD_USE_TLS : 0), 0, NULL, NULL, on_request,
                            control ? &http : NULL, MHD_OPTION_LISTEN_SOCKET, fd,
                            MHD_OPTION_NOTIFY_COMPLETED, on_done, NULL,
                            MHD_OPTION_CONNECTION_TIMEOUT, 120u,
                            /* a token of 8 KiB, and what else a header holds */
                            MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)65536, MHD_OPTION_ARRAY,
                            secure ? tls : none, MHD_OPTION_END);
}

static void *close_daemon(void *arg)
{
    MHD_stop_daemon(arg);
    return NULL;
}

/* listen:refuse closes the API's port, and opens it again when the fault is over. */
static void *door(void *arg)
{
    (void)arg;
    pthread_mutex_lock(&http.lock);
    while (!http.stopping) {
        if (http.api && fault_refusing()) {
            int fd = MHD_quiesce_daemon(http.api);
            if (fd >= 0)
                close(fd);
            /* ends calls under way, and waits for them: not here */
            pthread_t closer;
            if (pthread_create(&closer, NULL, close_daemon, http.api) == 0)
                pthread_detach(closer);
            http.api = NULL;
            pthread_cond_broadcast(&http.changed);
        } else if (!http.api && !fault_refusing()) {
            int fd = listen_tcp(&http.at, NULL);
            if (fd >= 0 && !(http.api = serve(fd, false)))
                close(fd);
            pthread_cond_broadcast(&http.changed);
        }
        /* while refusing: until the fault is over, which nobody tells */
        struct timespec soon = deadline_timespec(deadline_in(http.api ? 3600000 : 20));
        if (!http.stopping && (http.api == NULL) == fault_refusing())
            pthread_cond_timedwait(&http.changed, &http.lock, &soon);
    }
    pthread_mutex_unlock(&http.lock);
    return NULL;
}

/* Waits until the door is as the faults want it, so that a test can go on at once. */
static void close_requested(void)
{
    struct timespec limit = deadline_timespec(deadline_in(2000));

    pthread_mutex_lock(&http.lock);
    pthread_cond_broadcast(&http.changed);
    while ((http.api == NULL) != fault_refusing() &&
           pthread_cond_timedwait(&http.changed, &http.lock, &limit) == 0)
        ;
    pthread_mutex_unlock(&http.lock);
}

bool http_start(const struct http_options *o, char **url, char **control, struct error *err)
{
    char host[INET_ADDRSTRLEN];
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&http.changed, &attr);
    pthread_condattr_destroy(&attr);
    http.o = *o;
    http.at = o->listen;
    http.control_at =
        (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = listen_tcp(&http.at, err);
    if (fd < 0)
        return false;
    int control_fd = listen_tcp(&http.control_at, err);
    if (control_fd < 0) {
        close(fd);
        return false;
    }
    http.api = serve(fd, false);
    http.control = serve(control_fd, true);
    if (!http.api || !http.control)
        return error_set(
            err, ERR_SYSTEM, "libmicrohttpd did not start%s",
            o->cert ? "; is the certificate and its key PEM, and do they belong together?" : "");
    int sys = pthread_create(&http.door, NULL, door, NULL);
    if (sys)
        return error_sys(err, sys, "start a thread");
    inet_ntop(AF_INET, &http.at.sin_addr, host, sizeof host);
    *url = xasprintf("%s://%s:%u/exec", o->cert ? "https" : "http", host, ntohs(http.at.sin_port));
    *control = xasprintf("http://127.0.0.1:%u", ntohs(http.control_at.sin_port));
    return true;
}

void http_stop(void)
{
    pthread_mutex_lock(&http.lock);
    http.stopping = true;
    pthread_cond_broadcast(&http.changed);
    pthread_mutex_unlock(&http.lock);
    pthread_join(http.door, NULL);
    /* Calls under way may sleep in a fault: the process ends soon, and they with it. */
}
