/* The session: one event loop over the link, the commands' pipes and the signals. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/deadline.h"
#include "base/io.h"
#include "vm/channel.h"
#include "vm/vm.h"

#define GREETING_MS 60000 /* for a client's HELLO, and RESUME */
#define END_SLACK_MS 6000 /* beyond the grace: kill.c gives up before */

void watch(struct session *s, int fd, struct source *src, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = src};

    epoll_ctl(s->ep, EPOLL_CTL_ADD, fd, &e);
}

void rewatch(struct session *s, int fd, struct source *src, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = src};

    epoll_ctl(s->ep, EPOLL_CTL_MOD, fd, &e);
}

/* Closing would not do: a built-in that was just forked still has the descriptor. */
void unwatch(struct session *s, int fd)
{
    epoll_ctl(s->ep, EPOLL_CTL_DEL, fd, NULL);
}

void session_timer(struct session *s, int64_t at)
{
    if (at < s->next_timer)
        s->next_timer = at;
}

static void reap(struct session *s)
{
    struct rusage ru;
    int status;

    for (pid_t pid; (pid = wait4(-1, &status, WNOHANG, &ru)) > 0;) {
        if (env_capture_ended(s, pid))
            continue;
        struct stream *st = s->streams;
        while (st && (st->dead || st->pid != pid || st->state != ST_RUNNING))
            st = st->next;
        if (st)
            stream_exited(s, st, status, &ru);
        s->kill_now |= st ? st->job.active : true;
    }
}

static void on_signal(struct session *s, struct source *src, uint32_t events)
{
    struct signalfd_siginfo info[16];
    ssize_t n = read(s->sigfd, info, sizeof info);
    bool child = false;

    (void)src;
    (void)events;
    for (ssize_t i = 0; i < n / (ssize_t)sizeof *info; i++) {
        if (info[i].ssi_signo == SIGCHLD)
            child = true;
        else
            session_end(s);
    }
    if (child)
        reap(s);
}

/* Signals reach us through a descriptor; what a parent of ours ignored, commands shall not. */
static int signals(void)
{
    sigset_t set;

    for (int i = 1; i < 65; i++) {
        if (i != SIGKILL && i != SIGSTOP)
            signal(i, SIG_DFL);
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_SETMASK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

void session_init(struct session *s)
{
    unsigned char random[8];

    s->in = s->out = s->listener = -1;
    s->next_timer = INT64_MAX;
    s->ep = epoll_create1(EPOLL_CLOEXEC);
    s->sigfd = signals();
    s->sig_src.fn = on_signal;
    watch(s, s->sigfd, &s->sig_src, EPOLLIN);
    raise_file_limit();
    io_random(random, sizeof random);
    io_hex(random, sizeof random, s->id);
    s->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    snprintf(s->self, sizeof s->self, "/proc/%d/exe", (int)getpid());
    env_init(s);
}

static bool same_file(int a, int b)
{
    struct stat x, y;

    return a == b || (fstat(a, &x) == 0 && fstat(b, &y) == 0 && S_ISSOCK(x.st_mode) &&
                      x.st_ino == y.st_ino && x.st_dev == y.st_dev);
}

void session_attach(struct session *s, int in, int out)
{
    s->in = in;
    s->out = same_file(in, out) ? in : out;
    s->same_fd = s->in == s->out;
    s->attached = true;
    s->live = !s->client_known;
    s->greeted = s->resuming = s->open_partial = false;
    s->inbuf.len = s->in_off = s->outbuf.len = s->out_off = 0;
    buf_free(&s->open_buf);
    s->in_armed = true;
    s->out_armed = false;
    s->heard_at = now_ms();
    session_timer(s, s->heard_at + GREETING_MS);
    s->in_src.fn = link_readable;
    s->out_src.fn = link_writable;
    io_set_nonblock(in, true);
    io_set_nonblock(out, true);
    watch(s, s->in, &s->in_src, EPOLLIN);
    if (!s->same_fd)
        watch(s, s->out, &s->out_src, 0);
    send_hello(s);
}

void session_detach(struct session *s)
{
    bool durable = false;

    if (!s->attached)
        return;
    unwatch(s, s->in);
    if (!s->same_fd)
        unwatch(s, s->out);
    if (s->durable)
        close(s->in);
    s->attached = s->live = s->greeted = false;
    s->in = s->out = -1;
    s->lazy_until = 0;
    s->outbuf.len = s->out_off = 0;
    for (struct stream *st = s->streams; st; st = st->next) {
        if (st->dead)
            continue;
        if (s->durable && !s->ending && stream_open_durable(st)) {
            durable = true;
            for (int i = 0; i < 2; i++) {
                if (st->out[i].fd >= 0)
                    out_queue(s, &st->out[i]); /* into the spool, without the client's credit */
            }
        } else if (st->state == ST_KEPT) {
            stream_drop(s, st);
        } else {
            stream_abandon(s, st);
        }
    }
    if (s->taking_over)
        return;
    if (!durable || s->ending) {
        session_end(s);
    } else {
        s->detached_until = now_ms() + s->keep_ms;
        session_timer(s, s->detached_until);
    }
}

void session_end(struct session *s)
{
    if (s->ending)
        return;
    s->ending = true;
    durable_close(s);
    s->end_by = now_ms() + s->grace_ms + END_SLACK_MS;
    session_timer(s, s->end_by);
    for (struct stream *st = s->streams; st; st = st->next) {
        if (st->dead)
            continue;
        if (st->state == ST_KEPT)
            stream_drop(s, st);
        else if (s->attached)
            stream_kill(s, st, 0, false);
        else
            stream_abandon(s, st);
    }
}

void session_broken(struct session *s, const char *fmt, ...)
{
    va_list ap;

    if (s->broken)
        return;
    va_start(ap, fmt);
    char *what = xvasprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "exedev-vm: the client broke the protocol: %s\n", what);
    session_log(s, "the client broke the protocol: %s", what);
    free(what);
    s->broken = true;
    session_end(s);
}

static void heartbeat(struct session *s, int64_t now)
{
    if (!s->attached)
        return;
    if (!s->greeted || s->resuming) {
        if (now - s->heard_at >= GREETING_MS)
            session_detach(s);
        else
            session_timer(s, s->heard_at + GREETING_MS);
        return;
    }
    if (s->dead_ms) {
        if (now - s->heard_at >= s->dead_ms) {
            session_detach(s);
            return;
        }
        session_timer(s, s->heard_at + s->dead_ms);
    }
    if (s->heartbeat_ms) {
        int64_t last = s->heard_at > s->pinged_at ? s->heard_at : s->pinged_at;
        if (now - last >= s->heartbeat_ms) {
            buf_put_u64(frame_begin(s, VM_PING, 0, 0), ++s->ping_seq);
            frame_end(s);
            s->pinged_at = last = now;
        }
        session_timer(s, last + s->heartbeat_ms);
    }
}

static void timers(struct session *s)
{
    int64_t now = now_ms();

    if (now < s->next_timer)
        return;
    s->next_timer = INT64_MAX;
    heartbeat(s, now);
    streams_timers(s, now);
    env_timers(s, now);
    if (s->kill_tick) {
        if (now >= s->kill_tick)
            s->kill_now = true;
        session_timer(s, s->kill_tick);
    }
    if (s->ending)
        session_timer(s, s->end_by);
    if (!s->attached && s->durable && !s->ending) {
        if (now >= s->detached_until)
            session_end(s);
        else
            session_timer(s, s->detached_until);
    }
}

static int timeout(struct session *s)
{
    if ((s->queue && link_pending(s) < VM_OUT_LOW) || s->kill_now)
        return 0;
    int64_t at = s->next_timer;
    if (s->lazy_until && s->lazy_until < at)
        at = s->lazy_until;
    return deadline_poll((struct deadline){at});
}

static bool over(struct session *s)
{
    return s->ending && (s->nstreams == 0 || now_ms() >= s->end_by) && !s->ender.active;
}

int session_loop(struct session *s)
{
    struct epoll_event events[64];

    while (!over(s)) {
        streams_pump(s);
        if (!s->lazy_until || now_ms() >= s->lazy_until)
            link_flush(s);
        streams_reap_dead(s);
        if (over(s))
            break;
        int n = epoll_wait(s->ep, events, 64, timeout(s));
        for (int i = 0; i < n; i++) {
            struct source *src = events[i].data.ptr;
            src->fn(s, src, events[i].events);
        }
        if (s->kill_now)
            kill_tick(s);
        timers(s);
        streams_reap_dead(s);
    }
    if (s->bye && s->attached) {
        frame_raw(s, VM_BYE, 0, NULL, 0);
        alarm(5); /* a client that does not read its answer keeps nobody here */
        if (io_set_nonblock(s->out, false))
            link_flush(s);
    }
    return s->broken ? VM_EXIT_PROTOCOL : 0;
}

static bool standard_files_open(void)
{
    for (int fd = 0; fd < 3; fd++) {
        while (fcntl(fd, F_GETFD) < 0) {
            if (fd < 2 || open("/dev/null", O_RDWR) < 0)
                return false;
        }
    }
    return true;
}

int serve_main(int argc, char **argv)
{
    static struct session s;

    if (!standard_files_open())
        return 71; /* EX_OSERR */
    syscall(SYS_close_range, 3, ~0u, 4 /* CLOSE_RANGE_CLOEXEC */);
    if (argc == 3 && argv[2][0]) {
        if (!durable_key_ok(argv[2])) {
            fputs("exedev-vm: serve: a session's key is 1 to 64 letters, digits, - and _\n",
                  stderr);
            return 64;
        }
        return durable_main(argv[2]);
    }
    session_init(&s);
    session_attach(&s, 0, 1);
    return session_loop(&s);
}
