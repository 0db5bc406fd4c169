#include <errno.h>
#include <malloc.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/api.h"
#include "lib/channel.h"
#include "lib/lease.h"
#include "lib/redact.h"
#include "rpc/out.h"
#include "rpc/rpc.h"

#define MAX_THREADS 4096
#define MAX_WAITING 65536
#define PARSE_HERE                                                                                 \
    (1u << 20) /* a longer line is parsed by its own thread, so that it delays no other */
#if defined(__SANITIZE_ADDRESS__)
#define STACK_SIZE (1u << 20)
#else
#define STACK_SIZE (192u << 10)
#endif
#define END_MS 1500  /* for running commands and connections at shutdown */
#define DRAIN_MS 300 /* then for the answers of calls that were cut off */

/* A request under way. `next` links what waits for a thread; `after` links calls of one serial key
 * behind the one that runs. */
struct task {
    struct call call;
    const struct rpc_method *method;
    json_t *request;
    char *raw; /* not parsed yet */
    size_t raw_len;
    char *id;  /* as JSON text; NULL: a notification */
    char *key; /* serial key */
    struct task *next, *after, *after_last;
    struct task *run_prev, *run_next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t all_done = PTHREAD_COND_INITIALIZER;
static unsigned threads, peak, waiting;
static struct task *queue, *queue_last; /* waiting for a thread */
static struct task *running;
static atomic_bool closing;
static pthread_attr_t thread_attr;
static __thread struct call *current;

struct call *rpc_current(void)
{
    return current;
}

static void task_free(struct task *t)
{
    json_decref(t->request);
    free(t->raw);
    free(t->id);
    free(t->key);
    free(t->call.sent_id);
    cancel_unref(t->call.cancel);
    free(t);
}

/* ---- running ---- */

static enum rpc_code code_of(const struct call *c, const struct error *err)
{
    if (c->code)
        return c->code;
    switch (err->code) {
    case ERR_TIMEOUT:
        return RPC_TIMEOUT;
    case ERR_INTERNAL:
        return RPC_INTERNAL;
    default:
        return RPC_WORKER;
    }
}

static void answer(struct task *t)
{
    cleanup_buf struct buf line = {0};
    cleanup_error struct error err = {0};

    if (t->id)
        buf_printf(&line, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":", t->id);
    bool ok = t->method->run(&t->call, &line, &err);
    redact_error(&err);
    if (!t->id)
        return;
    if (ok && line.len + 2 > RPC_MAX_LINE)
        ok = error_set(&err, ERR_TOO_LARGE,
                       "%s: the result is %zu bytes, and the host takes no line over %u",
                       t->method->name, line.len, RPC_MAX_LINE);
    if (!ok) {
        out_error(t->id, code_of(&t->call, &err), err.msg ? err.msg : "failed without a reason");
        return;
    }
    buf_puts(&line, "}\n");
    if (rpc_write(line.data, line.len) && t->call.sent)
        t->call.sent(&t->call);
}

static bool parse_task(struct task *t, char *text, size_t n);

static void run_task(struct task *t)
{
    if (t->raw) {
        cleanup_free char *raw = steal_ptr(t->raw);
        if (!parse_task(t, raw, t->raw_len))
            return;
    }
    current = &t->call;
    answer(t);
    current = NULL;
}

static void link_running(struct task *t)
{
    t->run_next = running;
    if (running)
        running->run_prev = t;
    running = t;
}

static void unlink_running(struct task *t)
{
    if (t->run_prev)
        t->run_prev->run_next = t->run_next;
    else
        running = t->run_next;
    if (t->run_next)
        t->run_next->run_prev = t->run_prev;
}

/* The lock is held. What follows the finished task: the next of its key, else the next that waits.
 */
static struct task *next_task(struct task *done)
{
    struct task *t = done->after;

    unlink_running(done);
    if (t) {
        t->after_last = done->after_last == t ? NULL : done->after_last;
    } else if ((t = queue)) {
        queue = t->next;
        if (!queue)
            queue_last = NULL;
        waiting--;
    }
    if (t)
        link_running(t);
    return t;
}

static void *thread_main(void *arg)
{
    struct task *t = arg;

    while (t) {
        run_task(t);
        pthread_mutex_lock(&lock);
        struct task *next = next_task(t);
        if (!next) {
            threads--;
            if (threads == 0) {
                pthread_cond_broadcast(&all_done);
                /* After a burst the heap gives back what it holds. */
                if (peak > 64) {
                    peak = 0;
                    malloc_trim(0);
                }
            }
        }
        pthread_mutex_unlock(&lock);
        task_free(t);
        t = next;
    }
    return NULL;
}

static struct task *same_key(const char *key)
{
    for (struct task *t = running; key && t; t = t->run_next)
        if (t->key && strcmp(t->key, key) == 0)
            return t;
    for (struct task *t = queue; key && t; t = t->next)
        if (t->key && strcmp(t->key, key) == 0)
            return t;
    return NULL;
}

static void start_task(struct task *t)
{
    pthread_t id;
    bool refused = false;

    pthread_mutex_lock(&lock);
    struct task *before = same_key(t->key);
    if (before) {
        if (before->after_last)
            before->after_last->after = t;
        else
            before->after = t;
        before->after_last = t;
    } else if (threads < MAX_THREADS &&
               (link_running(t), pthread_create(&id, &thread_attr, thread_main, t) == 0)) {
        threads++;
        if (threads > peak)
            peak = threads;
    } else {
        if (threads < MAX_THREADS)
            unlink_running(t);
        /* With no thread at all nobody would come back for what waits. */
        refused = threads == 0 || waiting >= MAX_WAITING;
        if (!refused) {
            if (queue_last)
                queue_last->next = t;
            else
                queue = t;
            queue_last = t;
            waiting++;
        }
    }
    pthread_mutex_unlock(&lock);
    if (refused) {
        out_error(t->id, RPC_WORKER,
                  "the worker has no room for another call: too many run at once");
        task_free(t);
    }
}

/* ---- the end ---- */

/* Once, from whichever comes first: shutdown's thread, `main` at the end of stdin, a signal. */
static void end_process(int status, const char *shutdown_id)
{
    static atomic_flag once = ATOMIC_FLAG_INIT;
    if (atomic_flag_test_and_set(&once)) {
        for (;;)
            pause();
    }
    closing = true;
    pthread_mutex_lock(&lock);
    for (struct task *t = running; t; t = t->run_next)
        cancel_fire(t->call.cancel);
    pthread_mutex_unlock(&lock);
    api_cancel_all();
    channel_close_all(deadline_in(END_MS / 3)); /* logins leave no home behind */
    lease_shutdown(END_MS * 2 / 3);

    struct timespec until = deadline_timespec(deadline_in(DRAIN_MS));
    pthread_mutex_lock(&lock);
    unsigned mine = current ? 1 : 0;
    while (threads > mine)
        if (pthread_cond_clockwait(&all_done, &lock, CLOCK_MONOTONIC, &until) != 0)
            break;
    pthread_mutex_unlock(&lock);
    if (shutdown_id) {
        cleanup_buf struct buf line = {0};
        buf_printf(&line, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":null}\n", shutdown_id);
        rpc_write(line.data, line.len);
    }
    /* Calls that would not stop still use the library: its destructors must not run under them. */
    _exit(status);
}

/* The watchdog: whatever hangs, a host that asked for the end gets it within 2 s. */
static void *watchdog_main(void *arg)
{
    (void)arg;
    deadline_sleep(DEADLINE_NEVER, END_MS + DRAIN_MS + 100);
    _exit(1);
}

static void begin_end(int status, const char *shutdown_id)
{
    pthread_t id;

    pthread_create(&id, &thread_attr, watchdog_main, NULL);
    end_process(status, shutdown_id);
}

static void *signal_main(void *arg)
{
    int sig;

    if (sigwait(arg, &sig) == 0)
        begin_end(0, NULL);
    return NULL;
}

/* ---- reading ---- */

static char *id_text(const json_t *id)
{
    cleanup_buf struct buf b = {0};

    if (json_is_string(id) || json_is_number(id))
        json_write(&b, id);
    return b.len ? buf_steal(&b) : NULL;
}

/* The id of a line that was refused unread, so that its caller learns of it: the host always writes
 * it in front. */
static char *salvage_id(const char *s, size_t n)
{
    static const char start[] = "{\"jsonrpc\":\"2.0\",\"id\":";
    size_t i = sizeof start - 1, from = i;

    if (n < i || memcmp(s, start, i) != 0)
        return NULL;
    while (i < n && i - from < 18 && s[i] >= '0' && s[i] <= '9')
        i++;
    return i > from && i < n && s[i] == ',' ? xstrndup(s + from, i - from) : NULL;
}

/* Jansson recurses; threads of calls have small stacks. */
static bool too_deep(const char *s, size_t n)
{
    int depth = 0;
    bool string = false;

    for (size_t i = 0; i < n; i++) {
        char c = s[i];
        if (string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                string = false;
        } else if (c == '"') {
            string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > RPC_MAX_DEPTH)
                return true;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

/* Fills the task from its line; false when it has been answered, or needs no answer. */
static bool parse_task(struct task *t, char *text, size_t n)
{
    cleanup_error struct error err = {0};

    if (too_deep(text, n)) {
        t->id = salvage_id(text, n);
        cleanup_free char *why =
            xasprintf("the request is nested deeper than %d levels", RPC_MAX_DEPTH);
        out_error(t->id, RPC_REQUEST, why);
        return false;
    }
    t->request = json_parse(text, n, &err);
    if (!t->request) {
        out_error(NULL, RPC_PARSE, err.msg);
        return false;
    }
    const json_t *id = json_object_get(t->request, "id");
    const char *version = json_str(t->request, "jsonrpc");
    const char *method = json_str(t->request, "method");
    t->id = id_text(id);
    bool is_reply =
        !method && (json_object_get(t->request, "result") || json_object_get(t->request, "error"));
    if (is_reply) /* to a request of ours: we send none */
        return false;
    if (!version || strcmp(version, "2.0") != 0 || !method || (id && !t->id)) {
        out_error(t->id, RPC_REQUEST,
                  "not a JSON-RPC 2.0 request: it needs jsonrpc \"2.0\", a method, and an id that "
                  "is a string or a number");
        return false;
    }
    t->call.method = method;
    t->call.invocation = json_str(json_object_get(t->request, "paperclipInvocation"), "id");
    json_t *params = json_object_get(t->request, "params");
    if (!params || json_is_null(params)) {
        json_object_set_new(t->request, "params", json_object());
        params = json_object_get(t->request, "params");
    }
    t->call.params = params;
    t->method = rpc_method_find(method);
    if (!t->id && !t->method)
        return false;
    cleanup_buf struct buf why = {0};
    if (!t->method) {
        buf_puts(&why, "unknown method: ");
        text_visible(&why, method, strlen(method), 100);
        out_error(t->id, RPC_UNKNOWN_METHOD, why.data);
        return false;
    }
    if (!t->method->run) {
        if (t->id) {
            buf_printf(&why, "%s is not implemented by this plugin", t->method->name);
            out_error(t->id, RPC_NOT_IMPLEMENTED, why.data);
        }
        return false;
    }
    if (!json_is_object(params)) {
        if (t->id)
            out_error(t->id, RPC_PARAMS, "params must be an object");
        return false;
    }
    if (strcmp(method, "shutdown") == 0)
        begin_end(0, t->id);
    const char *serial = t->method->serial ? json_str(params, t->method->serial) : NULL;
    if (serial)
        t->key = xasprintf("%.4s %s", t->method->name, serial);
    return true;
}

static void handle_line(char *text, size_t n)
{
    while (n > 0 && (text[n - 1] == '\r' || text[n - 1] == ' '))
        n--;
    if (n == 0)
        return;
    struct task *t = xcalloc(1, sizeof *t);
    t->call.cancel = cancel_new();
    if (n > PARSE_HERE) {
        t->raw = xmemdup(text, n);
        t->raw_len = n;
        t->call.method = "";
    } else if (!parse_task(t, text, n)) {
        task_free(t);
        return;
    }
    start_task(t);
}

static void read_lines(int in)
{
    cleanup_buf struct buf b = {0};
    size_t seen = 0; /* of b, without a newline */
    bool skipping = false;

    for (;;) {
        char *to = buf_reserve(&b, 64 << 10);
        ssize_t got = read(in, to, 64 << 10);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0 && errno == EAGAIN) {
            struct pollfd p = {.fd = in, .events = POLLIN};
            poll(&p, 1, -1);
            continue;
        }
        if (got <= 0)
            return;
        b.len += (size_t)got;
        char *line = b.data, *nl;
        while ((nl = memchr(b.data + seen, '\n', b.len - seen))) {
            if (!skipping)
                handle_line(line, (size_t)(nl - line));
            skipping = false;
            line = nl + 1;
            seen = (size_t)(line - b.data);
        }
        buf_drop(&b, (size_t)(line - b.data));
        seen = b.len;
        if (b.len > RPC_MAX_LINE) {
            cleanup_free char *id = salvage_id(b.data, b.len);
            out_error(id, RPC_REQUEST, "the line is longer than 128 Mi characters and was skipped");
            skipping = true;
        }
        if (skipping)
            b.len = seen = 0;
        if (b.cap > (1u << 20) && b.len < (64u << 10)) {
            struct buf small = {0};
            buf_put(&small, b.data, b.len);
            buf_free(&b);
            b = small;
        }
    }
}

const char *rpc_version = "";

int rpc_serve(int in, int out, const char *version)
{
    static sigset_t ends;
    pthread_t id;

    /* Two arenas: a thread per call must not mean an arena per core; and big results go back to the
     * system at once. */
    mallopt(M_ARENA_MAX, 2);
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    mallopt(M_TRIM_THRESHOLD, 256 << 10);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    sigaddset(&ends, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    pthread_attr_init(&thread_attr);
    pthread_attr_setstacksize(&thread_attr, STACK_SIZE);
    pthread_attr_setdetachstate(&thread_attr, PTHREAD_CREATE_DETACHED);
    rpc_version = version;
    out_open(out);
    log_set_sink(out_log_sink, NULL, LOG_LEVEL_INFO);
    if (pthread_create(&id, &thread_attr, signal_main, &ends) != 0)
        return 1;
    read_lines(in);
    begin_end(0, NULL);
    return 0;
}
