#include "lib/channel.h"

#include <ctype.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "base/vmproto.h"
#include "lib/channel_login.h"
#include "lib/stream.h"

#define CLOSED_KEPT 4096 /* routes that are over; the host bounds its own list alike */
#define HOME_MS 15000

struct write {
    struct write *next;
    size_t at, n;
    channel_done_fn *done;
    void *arg;
    char data[];
};

struct channel {
    struct channel *next;
    int refs; /* registry's, the thread's, callers' */
    char *route, *session, *home;
    enum channel_kind kind;
    struct channel_events events;
    void *arg;
    struct link *link;
    struct stream *stream;
    struct cancel *opening; /* fired by a close that comes during channel_open */
    bool started;           /* channel_start, or a close, was called */
    bool silent;            /* closed: no more events */
    bool ended;             /* the program is over, or the stream is */
    bool thread, opened;
    pthread_t reader;
    struct write *head, *tail;
    size_t queued;
    struct error write_error;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the registry and all channels */
static pthread_cond_t changed;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct channel *channels;
static char *closed[CLOSED_KEPT];
static size_t closed_at;

/* ---- the registry (lock held) ---- */

static void init(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attr);
    pthread_condattr_destroy(&attr);
}

static void wait_change(struct deadline d)
{
    struct timespec ts = deadline_timespec(d);

    pthread_cond_timedwait(&changed, &lock, &ts);
}

static struct channel *by_route(const char *route)
{
    struct channel *c = channels;

    while (c && strcmp(c->route, route) != 0)
        c = c->next;
    return c;
}

static struct channel *by_pair(const char *route, const char *session)
{
    for (struct channel *c = channels; c; c = c->next) {
        if (c->opened && !strcmp(c->session, session) &&
            (route ? !strcmp(c->route, route) : c->kind == CHANNEL_LOGIN))
            return c;
    }
    return NULL;
}

static bool was_closed(const char *route)
{
    for (size_t i = 0; i < CLOSED_KEPT; i++) {
        if (closed[i] && !strcmp(closed[i], route))
            return true;
    }
    return false;
}

static void remember_closed(const char *route)
{
    if (was_closed(route))
        return;
    free(closed[closed_at]);
    closed[closed_at] = xstrdup(route);
    closed_at = (closed_at + 1) % CLOSED_KEPT;
}

static void unlist(struct channel *c)
{
    for (struct channel **at = &channels; *at; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            c->refs--;
            return;
        }
    }
}

/* Lock not held. */
static void drop(struct channel *c)
{
    pthread_mutex_lock(&lock);
    bool last = --c->refs == 0;
    pthread_mutex_unlock(&lock);
    if (!last)
        return;
    free(c->route);
    free(c->session);
    free(c->home);
    cancel_unref(c->opening);
    error_clear(&c->write_error);
    free(c);
}

/* ---- stdin ---- */

/* Takes what is written, or was refused, off the queue; the caller reports it without the lock. */
static struct write *pump(struct channel *c)
{
    struct write *over = NULL, **tail = &over;

    while (c->head) {
        struct write *w = c->head;
        ssize_t done = c->ended ? -1 : stream_write_some(c->stream, w->data + w->at, w->n - w->at);
        if (done >= 0 && (w->at += (size_t)done) < w->n)
            break;
        if (done < 0 && c->write_error.code == ERR_NONE)
            error_set(&c->write_error, ERR_NOT_FOUND,
                      "the program has ended, or reads its input no more");
        c->head = w->next;
        c->queued -= w->n;
        w->next = NULL;
        *tail = w;
        tail = &w->next;
    }
    if (!c->head)
        c->tail = NULL;
    return over;
}

static void report(struct write *list, const struct error *why)
{
    while (list) {
        struct write *w = list;
        list = w->next;
        w->done(w->at == w->n ? NULL : why, w->arg);
        free(w);
    }
}

static void pump_and_report(struct channel *c)
{
    cleanup_error struct error why = {0};

    pthread_mutex_lock(&lock);
    struct write *over = pump(c);
    error_copy(&why, &c->write_error);
    pthread_mutex_unlock(&lock);
    report(over, &why);
}

void channel_write(const char *route, const char *session, const void *p, size_t n,
                   channel_done_fn *done, void *arg)
{
    cleanup_error struct error why = {0};
    struct write *over = NULL;

    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    struct channel *c = by_pair(route, session);
    if (!c || c->silent) {
        error_set(&why, ERR_NOT_FOUND, "there is no open channel of that route and session");
    } else if (n > CHANNEL_MAX_WRITE) {
        error_set(&why, ERR_TOO_LARGE, "%zu bytes in one write; at most %u are taken", n,
                  CHANNEL_MAX_WRITE);
    } else if (c->queued + n > CHANNEL_MAX_QUEUED) {
        error_set(
            &why, ERR_TOO_LARGE,
            "the program has not read %zu bytes that were written before; wait for their answer",
            c->queued);
    } else {
        struct write *w = xmalloc(sizeof *w + n);
        *w = (struct write){.n = n, .done = done, .arg = arg};
        memcpy(w->data, p, n);
        if (c->tail)
            c->tail->next = w;
        else
            c->head = w;
        c->tail = w;
        c->queued += n;
        over = pump(c);
        error_copy(&why, &c->write_error);
        pthread_mutex_unlock(&lock);
        report(over, &why);
        return;
    }
    pthread_mutex_unlock(&lock);
    done(&why, arg);
}

/* ---- the thread ---- */

static void emit(struct channel *c, const char *p, size_t n)
{
    pthread_mutex_lock(&lock);
    bool silent = c->silent;
    pthread_mutex_unlock(&lock);
    if (n && !silent && c->events.data)
        c->events.data(c->route, c->session, p, n, c->arg);
}

struct outcome {
    int code;
    bool transport;
};

static struct outcome follow(struct channel *c)
{
    struct deadline life = deadline_in(CHANNEL_MAX_MS);
    struct text_join join = {0};
    cleanup_buf struct buf scratch = {0};
    struct outcome end = {-1, false};
    uint64_t total = 0,
             most = c->kind == CHANNEL_LOGIN ? CHANNEL_MAX_LOGIN_CHARS : CHANNEL_MAX_BYTES;
    bool over_limit = false;

    for (;;) {
        enum stream_event event;
        struct stream_chunk chunk;
        if (!stream_next(c->stream, &event, &chunk, life, NULL, NULL)) {
            if (over_limit)
                return end; /* and it was given its time to end */
            over_limit = end.transport = true;
            life = deadline_in(HOME_MS);
            stream_kill(c->stream, 0, VM_KILL_TREE);
            continue;
        }
        switch (event) {
        case STREAM_DATA: {
            const char *p = chunk.data;
            size_t n = chunk.len;
            if (chunk.channel == VM_STDERR || over_limit)
                break; /* only a duplex channel has it, and there is no place for it in the contract
                        */
            if (c->kind == CHANNEL_LOGIN)
                text_join(&join, chunk.data, chunk.len, false, &scratch, &p, &n);
            if ((total += n) > most) {
                over_limit = end.transport = true;
                life = deadline_in(HOME_MS);
                stream_kill(c->stream, 0, VM_KILL_TREE);
                break;
            }
            emit(c, p, n);
            break;
        }
        case STREAM_WRITABLE:
            pump_and_report(c);
            break;
        case STREAM_EXIT:
            if (!over_limit)
                end.code = chunk.signal ? -1 : chunk.status;
            return end;
        case STREAM_FAILED:
        case STREAM_BROKEN:
            return (struct outcome){-1, true};
        case STREAM_STARTED:
        case STREAM_EOF:
        case STREAM_RESUMED:
            break;
        }
    }
}

static void *channel_main(void *arg)
{
    struct channel *c = arg;

    pthread_mutex_lock(&lock);
    while (!c->started)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    struct outcome end = follow(c);
    pthread_mutex_lock(&lock);
    c->ended = true;
    bool silent = c->silent;
    pthread_mutex_unlock(&lock);
    pump_and_report(c);
    if (!silent && c->events.exit)
        c->events.exit(c->route, c->session, end.code, end.transport, c->arg);
    /* The host may read what the login left in its home until it closes the terminal. */
    pthread_mutex_lock(&lock);
    while (c->home && !c->silent && link_is_up(c->link))
        wait_change(deadline_in(1000));
    pthread_mutex_unlock(&lock);
    if (c->home)
        login_remove_home(c->link, c->home);
    stream_close(c->stream);
    pthread_mutex_lock(&lock);
    c->stream = NULL;
    c->thread = false;
    struct link *l = steal_ptr(c->link);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    link_unref(l);
    if (c->events.gone)
        c->events.gone(c->arg);
    drop(c);
    return NULL;
}

/* ---- opening ---- */

static bool await_start(struct stream *s, struct deadline d, struct cancel *cancel,
                        struct error *err)
{
    enum stream_event event;
    struct stream_chunk chunk;

    while (stream_next(s, &event, &chunk, d, cancel, err)) {
        if (event == STREAM_STARTED)
            return true;
        if (event == STREAM_FAILED || event == STREAM_BROKEN)
            return false;
    }
    return false;
}

static bool open_stream(struct channel *c, const struct channel_request *req, struct deadline d,
                        struct error *err)
{
    const struct login *login = login_find(req->login_key);
    struct stream_request sr = {.kind = STREAM_COMMAND, .login_env = true, .argv = req->command};
    cleanup_free char *variable = NULL;
    const char *env[3] = {0};

    if (c->kind == CHANNEL_LOGIN) {
        if (!login_make_home(c->link, c->home, d, err)) {
            free(steal_ptr(c->home)); /* not ours to remove */
            return false;
        }
        variable = xasprintf("%s=%s", login->variable, c->home);
        env[0] = variable;
        env[1] = "TERM=xterm-256color";
        sr = (struct stream_request){.kind = STREAM_PTY,
                                     .login_env = true,
                                     .argv = login->argv,
                                     .env = env,
                                     .rows = 30,
                                     .cols = 120};
    }
    c->stream = stream_open(c->link, &sr, d, c->opening, err);
    return c->stream && await_start(c->stream, d, c->opening, err);
}

static bool start_thread(struct channel *c, struct error *err)
{
    pthread_attr_t attr;
    sigset_t all, old;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 192 << 10);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int sys = pthread_create(&c->reader, &attr, channel_main, c);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return sys ? error_sys(err, sys, "start a thread") : true;
}

static bool check(const struct channel_request *req, struct error *err)
{
    if (!req->route || !*req->route)
        return error_set(err, ERR_INVALID, "the channel has no route id");
    if (req->kind == CHANNEL_DUPLEX)
        return (req->command && req->command[0]) ||
               error_set(err, ERR_INVALID, "the channel has no command");
    if (!login_find(req->login_key))
        return error_set(err, ERR_INVALID, "the login command must be claude, codex or grok");
    return login_is_home(req->session_home) ||
           error_set(err, ERR_INVALID, "the session home must be " LOGIN_ROOT "UUID");
}

static struct channel *enlist(struct link *l, const struct channel_request *req, struct error *err)
{
    unsigned char random[16];
    char session[33];
    struct channel *c = NULL;

    io_random(random, sizeof random);
    io_hex(random, sizeof random, session);
    pthread_mutex_lock(&lock);
    if (by_route(req->route) || was_closed(req->route)) {
        error_set(err, ERR_EXISTS, "the route is in use already, or was closed");
    } else {
        c = xcalloc(1, sizeof *c);
        c->refs = 2;
        c->route = xstrdup(req->route);
        c->session = xstrdup(session);
        c->kind = req->kind;
        c->home = req->kind == CHANNEL_LOGIN ? xstrdup(req->session_home) : NULL;
        c->events = req->events;
        c->arg = req->arg;
        c->link = link_ref(l);
        c->opening = cancel_new();
        c->next = channels;
        channels = c;
    }
    pthread_mutex_unlock(&lock);
    return c;
}

static void fire(void *cancel)
{
    cancel_fire(cancel);
}

char *channel_open(struct link *l, const struct channel_request *req, struct deadline d,
                   struct cancel *cancel, struct error *err)
{
    struct channel *c = NULL;

    pthread_once(&once, init);
    if (!check(req, err) || !(c = enlist(l, req, err))) {
        if (req->events.gone)
            req->events.gone(req->arg);
        return NULL;
    }
    int watch = cancel_watch(cancel, fire, c->opening);
    bool ok = open_stream(c, req, d, err);
    cancel_unwatch(cancel, watch);
    pthread_mutex_lock(&lock);
    ok = ok && (!c->silent ||
                error_set(err, ERR_CANCELLED, "the channel was closed while it was being opened"));
    ok = ok && start_thread(c, err);
    c->thread = c->opened = ok;
    char *session = ok ? xstrdup(c->session) : NULL;
    if (!ok) {
        unlist(c);
        remember_closed(c->route);
    }
    pthread_mutex_unlock(&lock);
    if (ok)
        return session; /* the thread has our reference */
    if (c->stream)
        stream_close(c->stream);
    if (c->home)
        login_remove_home(c->link, c->home);
    link_unref(steal_ptr(c->link));
    if (c->events.gone)
        c->events.gone(c->arg);
    pthread_mutex_lock(&lock);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    drop(c);
    return NULL;
}

void channel_start(const char *route)
{
    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    struct channel *c = by_route(route);
    if (c)
        c->started = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* ---- ending ---- */

bool channel_stop(const char *route, const char *session, struct error *err)
{
    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    struct channel *c = by_pair(route, session);
    if (c && c->stream && !c->ended)
        stream_kill(c->stream, 0, VM_KILL_TREE);
    pthread_mutex_unlock(&lock);
    return c || error_set(err, ERR_NOT_FOUND, "there is no channel of that route and session");
}

void channel_end(const char *route)
{
    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    struct channel *c = by_route(route);
    struct cancel *opening = c && !c->opened ? cancel_ref(c->opening) : NULL;
    if (c && c->opened && c->stream && !c->ended)
        stream_kill(c->stream, 0, VM_KILL_TREE);
    pthread_mutex_unlock(&lock);
    if (opening)
        cancel_fire(opening);
    cancel_unref(opening);
}

/* Lock held: no more events, and the program ends. */
static void quieten(struct channel *c)
{
    c->silent = c->started = true;
    if (c->opened && c->stream && !c->ended)
        stream_kill(c->stream, 0, VM_KILL_TREE);
    pthread_cond_broadcast(&changed);
}

char *channel_close(const char *route, struct deadline d)
{
    char *session = NULL;

    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    struct channel *c = by_route(route);
    if (!c) {
        remember_closed(route);
    } else {
        struct cancel *opening = cancel_ref(c->opening);
        c->refs++;
        quieten(c);
        pthread_mutex_unlock(&lock);
        cancel_fire(opening); /* its watchers take the link's lock */
        cancel_unref(opening);
        pthread_mutex_lock(&lock);
        while (c->link && !deadline_passed(d))
            wait_change(d);
        if (c->opened)
            session = xstrdup(c->session);
        unlist(c);
        remember_closed(route);
        pthread_mutex_unlock(&lock);
        drop(c);
        return session;
    }
    pthread_mutex_unlock(&lock);
    return session;
}

void channel_close_all(struct deadline d)
{
    pthread_once(&once, init);
    pthread_mutex_lock(&lock);
    for (struct channel *c = channels; c; c = c->next)
        quieten(c);
    for (;;) {
        bool busy = false;
        for (struct channel *c = channels; c; c = c->next)
            busy = busy || c->link;
        if (!busy || deadline_passed(d))
            break;
        wait_change(d);
    }
    pthread_mutex_unlock(&lock);
}
