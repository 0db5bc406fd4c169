/* The life of a stream: opened, started, ended. Its bytes are in channel.c. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "vm/channel.h"
#include "vm/vm.h"

struct stream *stream_find(struct session *s, uint32_t id)
{
    struct stream *st = s->buckets[id % 1024];

    while (st && st->id != id)
        st = st->hash_next;
    return st;
}

bool stream_open_durable(const struct stream *st)
{
    return st->flags & VM_OPEN_DURABLE;
}

static struct stream *stream_new(struct session *s, uint32_t id)
{
    struct stream *st = xcalloc(1, sizeof *st);

    st->id = id;
    st->next = s->streams;
    if (st->next)
        st->next->prev = st;
    s->streams = st;
    st->hash_next = s->buckets[id % 1024];
    s->buckets[id % 1024] = st;
    s->nstreams++;
    st->in.fd = -1;
    for (int i = 0; i < 2; i++)
        st->out[i] = (struct out){.stream = st, .fd = -1, .channel = (uint8_t)(i + 1), .last = -1};
    snprintf(st->mark, sizeof st->mark, "%s-%u", s->id, id);
    return st;
}

void stream_drop(struct session *s, struct stream *st)
{
    struct stream **at = &s->buckets[st->id % 1024];

    if (st->dead)
        return;
    while (*at != st)
        at = &(*at)->hash_next;
    *at = st->hash_next;
    if (st->state == ST_WAITING)
        s->nwaiting--;
    in_close(s, st);
    out_close(s, &st->out[0]);
    out_close(s, &st->out[1]);
    s->nstreams--;
    st->dead = true; /* freed when no event of this turn can mean it any more */
}

void streams_reap_dead(struct session *s)
{
    for (struct stream *st = s->streams, *next; st; st = next) {
        next = st->next;
        if (!st->dead)
            continue;
        if (st->prev)
            st->prev->next = next;
        else
            s->streams = next;
        if (next)
            next->prev = st->prev;
        request_free(&st->req);
        killjob_free(&st->job);
        buf_free(&st->in.q);
        buf_free(&st->final);
        spool_free(st->out[0].spool);
        spool_free(st->out[1].spool);
        free(st->marker);
        free(st);
    }
}

/* The stream's last frame. A durable client may have to be told again. */
static void last_frame(struct session *s, struct stream *st, enum vm_type type, struct buf *payload)
{
    if (st->silent) {
        stream_drop(s, st);
        return;
    }
    if (s->live)
        frame_raw(s, type, st->id, payload->data, payload->len);
    if (!s->durable || !stream_open_durable(st)) {
        stream_drop(s, st);
        return;
    }
    if (st->state == ST_WAITING)
        s->nwaiting--;
    st->state = ST_KEPT;
    st->final_type = (uint8_t)type;
    buf_free(&st->final);
    st->final = *payload;
    *payload = (struct buf){0};
    st->ping = UINT64_MAX;
    if (s->live) {
        st->ping = ++s->ping_seq;
        buf_put_u64(frame_begin(s, VM_PING, 0, 0), st->ping);
        frame_end(s);
    }
}

static void put_fail(struct buf *b, uint32_t code, const char *text)
{
    size_t n = strlen(text);

    buf_put_u32(b, code);
    buf_put_str(b, text, n < VM_MAX_MESSAGE ? n : VM_MAX_MESSAGE);
}

__attribute__((format(printf, 4, 5))) static void fail(struct session *s, struct stream *st,
                                                       uint32_t code, const char *fmt, ...)
{
    cleanup_buf struct buf payload = {0};
    va_list ap;

    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    put_fail(&payload, code, text);
    last_frame(s, st, VM_FAIL, &payload);
}

static void fail_launch(struct session *s, struct stream *st, const struct launch *l)
{
    const char *what = st->req.argv[0];
    const char *path = env_get(l->envp, "PATH");
    uint32_t code = (uint32_t)l->err | (l->err_cwd ? VM_FAIL_CWD : 0);

    if (l->err_cwd)
        fail(s, st, code, "cannot enter the directory %s: %s", l->cwd, strerror(l->err));
    else if (l->err == ENOENT && strchr(what, '/'))
        fail(s, st, code, "cannot start %s: %s", what,
             access(what, F_OK) == 0 ? "the interpreter in its first line does not exist"
                                     : strerror(ENOENT));
    else if (l->err == ENOENT)
        fail(s, st, code, "cannot start %s: no such command in PATH (%s)", what,
             path ? path : "unset");
    else if (l->err == E2BIG)
        fail(s, st, code,
             "cannot start %s: its arguments and environment are longer than this system takes",
             what);
    else
        fail(s, st, code, "cannot start %s: %s", what, strerror(l->err));
}

static int open_pty(uint16_t rows, uint16_t cols, int *tty)
{
    struct winsize ws = {.ws_row = rows, .ws_col = cols};
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK), unlock = 0, n;
    char name[32];

    if (fd < 0)
        return -1;
    if (ioctl(fd, TIOCSPTLCK, &unlock) == 0 && ioctl(fd, TIOCGPTN, &n) == 0) {
        snprintf(name, sizeof name, "/dev/pts/%d", n);
        *tty = open(name, O_RDWR | O_NOCTTY | O_CLOEXEC);
        if (*tty >= 0) {
            ioctl(fd, TIOCSWINSZ, &ws);
            return fd;
        }
    }
    int sys = errno;
    close(fd);
    errno = sys;
    return -1;
}

struct ends { /* the command's, closed here once it runs */
    int in, out, err;
};

static bool make_pipe(int *ours, int *theirs, bool we_read)
{
    int p[2];

    if (pipe2(p, O_CLOEXEC) < 0)
        return false;
    *ours = p[we_read ? 0 : 1];
    *theirs = p[we_read ? 1 : 0];
    return true;
}

static bool make_ends(struct session *s, struct stream *st, struct ends *e)
{
    if (st->req.kind == VM_KIND_PTY) {
        st->out[0].fd = open_pty(st->req.rows, st->req.cols, &e->in);
        if (st->out[0].fd < 0)
            return false;
        st->pty = st->out[0].nonblock = st->in.nonblock = true;
        st->in.fd = fcntl(st->out[0].fd, F_DUPFD_CLOEXEC, 3);
        return st->in.fd >= 0;
    }
    if (!make_pipe(&st->out[0].fd, &e->out, true))
        return false;
    if (!(st->flags & VM_OPEN_MERGE) && !make_pipe(&st->out[1].fd, &e->err, true))
        return false;
    return (st->flags & VM_OPEN_NO_STDIN) ? s->null_fd >= 0 : make_pipe(&st->in.fd, &e->in, false);
}

static void close_ends(struct ends *e)
{
    if (e->in >= 0)
        close(e->in);
    if (e->out >= 0)
        close(e->out);
    if (e->err >= 0)
        close(e->err);
}

static void started(struct session *s, struct stream *st)
{
    uint32_t pid = __builtin_bswap32((uint32_t)st->pid);

    if (s->live)
        frame_lazy(s, VM_STARTED, 0, st->id, &pid, 4);
}

void stream_restarted(struct session *s, struct stream *st)
{
    if (st->pid)
        started(s, st);
}

static void start(struct session *s, struct stream *st, const struct envset *base)
{
    struct request *r = &st->req;
    struct ends e = {-1, -1, -1};
    const struct builtin *builtin = r->kind == VM_KIND_BUILTIN ? builtin_find(r->argv[0]) : NULL;
    char *extra[3];
    size_t nextra = 0;
    const char *cwd = r->cwd[0] ? r->cwd : s->home;

    if (st->state == ST_WAITING) {
        st->state = ST_RUNNING;
        s->nwaiting--;
    }
    if (r->kind == VM_KIND_BUILTIN && !builtin) {
        fail(s, st, ENOENT, "this helper has no built-in '%s'", r->argv[0]);
        return;
    }
    cleanup_free char *mark = xasprintf("EXEDEV_STREAM=%s", st->mark);
    cleanup_free char *marker = xasprintf("EXEDEV_MARK=%s", st->marker);
    cleanup_free char *pwd = xasprintf("PWD=%s", cwd);
    extra[nextra++] = mark;
    if (st->marker[0])
        extra[nextra++] = marker;
    if (cwd[0] == '/' && !env_get(r->envp, "PWD"))
        extra[nextra++] = pwd;
    cleanup_free char **envp = env_merge(base, r->envp, r->envc, extra, nextra);
    if (!make_ends(s, st, &e)) {
        int sys = errno;
        close_ends(&e);
        fail(s, st, (uint32_t)sys, "cannot make the pipes of %s: %s", r->argv[0], strerror(sys));
        return;
    }
    int in = st->pty || e.in >= 0 ? e.in : s->null_fd, out = st->pty ? e.in : e.out;
    struct launch l = {.file = r->argv[0],
                       .argv = r->argv,
                       .argc = (int)r->argc,
                       .envp = envp,
                       .cwd = cwd,
                       .cwd_fd = -1,
                       .fds = {in, out, st->pty || e.err < 0 ? out : e.err},
                       .tty = st->pty,
                       .limits = base->known ? base : NULL};
    cleanup_fd int dir = -1;
    if (builtin) { /* its process could not tell us that the folder is not there */
        l.builtin = builtin->main;
        dir = l.cwd_fd = open(cwd, O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (dir < 0 || faccessat(dir, ".", X_OK, 0) < 0) {
            l.err = errno;
            l.err_cwd = true;
        }
    }
    pid_t pid = l.err ? -1 : launch(&l);
    close_ends(&e);
    if (pid < 0) {
        fail_launch(s, st, &l);
        return;
    }
    st->pid = pid;
    bool no_err = st->out[1].fd < 0;
    if (s->durable && stream_open_durable(st)) {
        st->out[0].spool = spool_new();
        st->out[1].spool = no_err ? NULL : spool_new();
    }
    started(s, st);
    if (r->timeout_ms) {
        st->timeout_at = now_ms() + r->timeout_ms;
        session_timer(s, st->timeout_at);
    }
    request_free(r);
    out_watch(s, &st->out[0]);
    if (no_err)
        out_eof(s, &st->out[1]);
    else
        out_watch(s, &st->out[1]);
    in_push(s, st);
}

void stream_open(struct session *s, uint32_t id, struct buf *request)
{
    struct request r;
    enum request_result result = request_parse(&r, request);

    if (result == REQUEST_BROKEN) {
        request_free(&r);
        session_broken(s, "OPEN of stream %u is no request", id);
        return;
    }
    struct stream *st = stream_new(s, id);
    st->req = r;
    st->flags = r.flags;
    st->marker = xstrdup(r.marker);
    st->state = ST_WAITING;
    s->nwaiting++;
    st->out[0].credit = st->out[1].credit = r.credit;
    st->in.credit = st->in.window = vm_stdin_credit(r.kind);
    s->extra_windows += st->in.window - VM_STDIN_CREDIT;
    if (r.flags & VM_OPEN_NO_STDIN)
        st->in.eof = true;
    if (result == REQUEST_TOO_LONG) {
        fail(s, st, E2BIG,
             "arguments and environment are too long: at most %u bytes each and %u together",
             VM_MAX_STRING, VM_MAX_ARGS);
        return;
    }
    if (result == REQUEST_INVALID) {
        fail(s, st, EINVAL, "there is no command, or a variable without a name");
        return;
    }
    if (s->durable)
        durable_note_marker(s, st->marker);
    const struct envset *base = &s->base;
    if (r.flags & VM_OPEN_LOGIN)
        base = env_login(s, r.flags & VM_OPEN_NVM);
    if (base && st->state == ST_WAITING &&
        !st->dead) /* a capture that failed at once has started it */
        start(s, st, base);
}

void streams_env_ready(struct session *s)
{
    struct stream *oldest = s->streams;

    while (oldest && oldest->next)
        oldest = oldest->next;
    for (struct stream *st = oldest; st && s->nwaiting; st = st->prev) {
        if (st->dead || st->state != ST_WAITING)
            continue;
        const struct envset *base = env_login(s, st->flags & VM_OPEN_NVM);
        if (base && st->state == ST_WAITING && !st->dead)
            start(s, st, base);
    }
}

void stream_kill(struct session *s, struct stream *st, int sig, bool now)
{
    if (st->state == ST_WAITING) {
        fail(s, st, ECANCELED, "ended before it ran");
    } else if (st->state != ST_KEPT) {
        if (!st->timed_out)
            st->killed = true;
        kill_start(s, &st->job, sig, now);
    }
}

void stream_abandon(struct session *s, struct stream *st)
{
    for (int i = 0; i < 2; i++) {
        out_close(s, &st->out[i]);
        spool_free(st->out[i].spool);
        st->out[i].spool = NULL;
        st->out[i].eof_sent = true;
    }
    in_close(s, st);
    st->silent = true;
    st->flags &= ~(uint32_t)VM_OPEN_DURABLE;
    stream_kill(s, st, 0, false);
}

void stream_signal(struct session *s, struct stream *st, int sig)
{
    pid_t group = st->pid;

    (void)s;
    if (st->state != ST_RUNNING)
        return;
    if (st->pty)
        ioctl(st->out[0].fd, TIOCGPGRP, &group);
    if (group > 1)
        kill(-group, sig ? sig : SIGTERM);
}

void stream_winch(struct session *s, struct stream *st, uint16_t rows, uint16_t cols)
{
    struct winsize ws = {.ws_row = rows, .ws_col = cols};

    (void)s;
    if (st->state == ST_WAITING) {
        st->req.rows = rows;
        st->req.cols = cols;
    } else if (st->pty && st->out[0].fd >= 0) {
        ioctl(st->out[0].fd, TIOCSWINSZ, &ws);
    }
}

void stream_exited(struct session *s, struct stream *st, int status, const struct rusage *ru)
{
    st->state = ST_EXITED;
    st->status = status;
    if (ru)
        st->usage = *ru;
    in_close(s, st);
    st->linger_at = now_ms() + VM_LINGER_MS;
    if ((st->flags & VM_OPEN_KILL_BG) && !st->job.active)
        kill_start(s, &st->job, 0, false);
    stream_finish(s, st);
    if (!st->dead && st->state == ST_EXITED && !st->linger_over)
        session_timer(s, st->linger_at);
}

static uint64_t micros(const struct timeval *t)
{
    return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

void stream_finish(struct session *s, struct stream *st)
{
    cleanup_buf struct buf b = {0};

    if (st->dead || st->state != ST_EXITED || st->job.active || !out_done(s, &st->out[0]) ||
        !out_done(s, &st->out[1]))
        return;
    bool signalled = WIFSIGNALED(st->status);
    buf_put_u32(&b, signalled ? 0 : (uint32_t)WEXITSTATUS(st->status));
    buf_put_u32(&b, signalled ? (uint32_t)WTERMSIG(st->status) : 0);
    buf_put_u32(&b, (st->killed || st->timed_out ? VM_EXIT_KILLED : 0) |
                        (st->job.confirmed ? VM_EXIT_CONFIRMED : 0) |
                        (st->timed_out ? VM_EXIT_TIMEOUT : 0));
    buf_put_u64(&b, micros(&st->usage.ru_utime));
    buf_put_u64(&b, micros(&st->usage.ru_stime));
    buf_put_u64(&b, (uint64_t)st->usage.ru_maxrss);
    last_frame(s, st, VM_EXIT, &b);
}

void streams_timers(struct session *s, int64_t now)
{
    for (struct stream *st = s->streams; st; st = st->next) {
        if (st->dead)
            continue;
        if (st->state == ST_RUNNING && st->timeout_at && !st->job.active) {
            if (now >= st->timeout_at) {
                st->timeout_at = 0;
                st->timed_out = !st->killed;
                kill_start(s, &st->job, 0, false);
            } else {
                session_timer(s, st->timeout_at);
            }
        }
        if (st->state == ST_EXITED && !st->linger_over) {
            if (now >= st->linger_at) {
                st->linger_over = true;
                out_linger_over(s, &st->out[0]);
                out_linger_over(s, &st->out[1]);
                stream_finish(s, st);
            } else {
                session_timer(s, st->linger_at);
            }
        }
        if (st->job.active && !st->job.killing)
            session_timer(s, st->job.kill_at);
    }
}
