/* Ending whole process trees. A tree is what PROTOCOL.vm section 4 says; it is looked for in /proc
 * again and again until nobody of it is left, so that forks do not escape. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "vm/vm.h"

#define STEP_MIN_MS 5
#define STEP_MAX_MS 50
#define GIVE_UP_MS 5000
#define ENVIRON_MAX (4u << 20)

struct proc {
    pid_t pid, ppid, pgrp, sid;
    unsigned long long start;
    char mark[sizeof((struct stream *)0)->mark];
    bool marker, member;
};

struct scan {
    struct proc *v;
    size_t n, cap;
    struct buf env;
};

static ssize_t read_at(int dir, const char *pid, const char *name, struct buf *out, size_t max)
{
    char path[64];

    if (strlen(pid) > 20)
        return -1;
    strcpy(stpcpy(stpcpy(path, pid), "/"), name);
    cleanup_fd int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
    out->len = 0;
    if (fd < 0)
        return -1;
    for (;;) {
        ssize_t n = read(fd, buf_reserve(out, 8192), 8192);
        if (n <= 0)
            break;
        out->len += (size_t)n;
        if (out->len > max)
            break;
    }
    buf_reserve(out, 0)[0] = 0;
    return (ssize_t)out->len;
}

/* "pid (name) S ppid pgrp session ...", the start time being field 22. The name may hold anything.
 */
static bool parse_stat(const char *text, struct proc *p)
{
    const char *at = strrchr(text, ')');

    if (!at || at[1] != ' ')
        return false;
    char state = at[2];
    char *end = (char *)at + 3;
    p->ppid = (pid_t)strtol(end, &end, 10);
    p->pgrp = (pid_t)strtol(end, &end, 10);
    p->sid = (pid_t)strtol(end, &end, 10);
    for (int field = 7; field < 22; field++)
        strtoll(end, &end, 10);
    p->start = strtoull(end, &end, 10);
    return state != 'Z' && state != 'X' && p->ppid != 2 && p->pid != 2; /* 2: kernel threads */
}

static void read_marks(struct proc *p, const struct buf *env, const char *marker)
{
    static const char stream[] = "EXEDEV_STREAM=", mark[] = "EXEDEV_MARK=";
    const char *at = env->data, *end = at + env->len;

    while (at < end) {
        size_t n = strnlen(at, (size_t)(end - at));
        if (n > sizeof stream - 1 && n - (sizeof stream - 1) < sizeof p->mark && !p->mark[0] &&
            !memcmp(at, stream, sizeof stream - 1))
            memcpy(p->mark, at + sizeof stream - 1, n - (sizeof stream - 1));
        else if (marker && n > sizeof mark - 1 && !memcmp(at, mark, sizeof mark - 1) &&
                 n - (sizeof mark - 1) == strlen(marker) &&
                 !memcmp(at + sizeof mark - 1, marker, strlen(marker)))
            p->marker = true;
        at += n + 1;
    }
}

static bool scan_proc(struct scan *sc, const char *marker)
{
    cleanup_dir DIR *dir = opendir("/proc");
    cleanup_buf struct buf stat = {0};
    pid_t self = getpid();

    sc->n = 0;
    if (!dir)
        return false;
    for (struct dirent *e; (e = readdir(dir));) {
        char *end;
        struct proc p = {.pid = (pid_t)strtol(e->d_name, &end, 10)};
        if (*end || p.pid <= 0 || p.pid == self)
            continue;
        if (read_at(dirfd(dir), e->d_name, "stat", &stat, 8192) <= 0 || !parse_stat(stat.data, &p))
            continue;
        if (read_at(dirfd(dir), e->d_name, "environ", &sc->env, ENVIRON_MAX) > 0)
            read_marks(&p, &sc->env, marker);
        if (sc->n == sc->cap) {
            sc->cap = sc->cap ? sc->cap * 2 : 256;
            sc->v = xreallocarray(sc->v, sc->cap, sizeof *sc->v);
        }
        sc->v[sc->n++] = p;
    }
    return true;
}

static void add_descendants(struct scan *sc)
{
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < sc->n; i++) {
            struct proc *p = &sc->v[i];
            for (size_t j = 0; !p->member && j < sc->n; j++) {
                if (sc->v[j].member && sc->v[j].pid == p->ppid)
                    p->member = more = true;
            }
        }
    }
}

static void members_of_stream(struct scan *sc, const struct stream *st)
{
    bool reused = false;

    /* Once the command was reaped its number may be somebody else's. */
    for (size_t i = 0; i < sc->n && st->state != ST_RUNNING; i++)
        reused |= sc->v[i].pid == st->pid;
    bool any = false;
    for (size_t i = 0; i < sc->n; i++) {
        struct proc *p = &sc->v[i];
        p->member = (!reused && (p->pid == st->pid || p->pgrp == st->pid || p->sid == st->pid)) ||
                    !strcmp(p->mark, st->mark);
        any |= p->member;
    }
    if (any)
        add_descendants(sc);
}

static bool first_time(struct killjob *job, const struct proc *p)
{
    for (size_t i = 0; i < job->nhits; i++) {
        if (job->hits[i].pid == p->pid && job->hits[i].start == p->start)
            return false;
    }
    job->hits = xreallocarray(job->hits, job->nhits + 1, sizeof *job->hits);
    job->hits[job->nhits++] = (struct hit){p->pid, p->start};
    return true;
}

/* Where we may not, sudo may: a command run with sudo is root's. One try, its children are ours to
 * reap and nobody waits for them. */
static void kill_as_root(struct session *s, pid_t pid, int sig)
{
    char number[16], signal[16];
    char *argv[] = {NULL, (char *)"sudo", (char *)"-n", (char *)"kill", signal, number, NULL};

    if (geteuid() == 0)
        return;
    cleanup_free char *n = xasprintf("%d", (int)pid), *g = xasprintf("-%d", sig);
    strcpy(number, n);
    strcpy(signal, g);
    struct launch l = {.file = "sudo",
                       .argv = argv + 1,
                       .envp = s->base.v,
                       .cwd = "/",
                       .cwd_fd = -1,
                       .fds = {s->null_fd, s->null_fd, s->null_fd}};
    launch(&l);
}

static void signal_members(struct session *s, struct scan *sc, struct killjob *job, int64_t now)
{
    unsigned left = 0;

    if (!job->killing && now >= job->kill_at)
        job->killing = true;
    for (size_t i = 0; i < sc->n; i++) {
        struct proc *p = &sc->v[i];
        if (!p->member)
            continue;
        left++;
        bool first = first_time(job, p);
        if (!job->killing && !first)
            continue;
        int sig = job->killing ? SIGKILL : job->signal;
        if (kill(p->pid, sig) < 0 && errno == EPERM) {
            if (first || s->kill_step >= STEP_MAX_MS)
                kill_as_root(s, p->pid, sig);
        } else if (!job->killing) {
            kill(p->pid, SIGCONT); /* one that is stopped could not end */
        }
    }
    job->left = left;
    job->empty = left ? 0 : job->empty + 1;
    /* Twice, because a child made while the first look was under way may have been missed. */
    if (job->empty >= 2 || now >= job->give_up_at) {
        job->active = false;
        job->done = true;
        job->confirmed = job->empty >= 2;
    }
}

/* Without /proc there are process groups only, and no proof. */
static void blind(struct killjob *job, pid_t group, int64_t now)
{
    job->killing = job->killing || now >= job->kill_at;
    if (group > 0 && kill(-group, job->killing ? SIGKILL : job->signal) == 0 &&
        now < job->give_up_at)
        return;
    job->active = false;
    job->done = true;
}

void kill_start(struct session *s, struct killjob *job, int sig, bool now)
{
    int64_t t = now_ms();

    if (!job->active) {
        killjob_free(job);
        job->active = true;
        job->signal = sig ? sig : SIGTERM;
        job->kill_at = t + s->grace_ms;
        job->give_up_at = job->kill_at + GIVE_UP_MS;
    }
    if (now && t < job->kill_at) {
        job->kill_at = t;
        job->give_up_at = t + GIVE_UP_MS;
    }
    s->kill_step = STEP_MIN_MS;
    s->kill_now = true;
    session_timer(s, job->kill_at);
}

void killjob_free(struct killjob *job)
{
    free(job->hits);
    *job = (struct killjob){0};
}

static void job_over(struct session *s, struct stream *st)
{
    if (st->state == ST_RUNNING && !st->job.confirmed) {
        /* Nobody could end it: say so, rather than nothing ever. */
        stream_exited(s, st, SIGKILL, NULL);
    }
    stream_finish(s, st);
}

void kill_tick(struct session *s)
{
    static struct scan sc;
    bool active = s->ender.active && s->ender.job.active;

    s->kill_now = false;
    for (struct stream *st = s->streams; st && !active; st = st->next)
        active = !st->dead && st->job.active;
    for (int round = 0; active && round < 2; round++) {
        const char *marker = s->ender.active ? s->ender.marker : NULL;
        bool look_again = false;
        int64_t now = now_ms();

        s->hidden_proc = !scan_proc(&sc, marker);
        active = false;
        for (struct stream *st = s->streams; st; st = st->next) {
            if (st->dead || !st->job.active)
                continue;
            if (s->hidden_proc) {
                blind(&st->job, st->pid, now);
            } else {
                members_of_stream(&sc, st);
                signal_members(s, &sc, &st->job, now);
            }
            active |= st->job.active;
            look_again |= st->job.active && st->job.empty == 1;
            if (st->job.done)
                job_over(s, st);
        }
        if (s->ender.active && s->ender.job.active) {
            for (size_t i = 0; i < sc.n; i++)
                sc.v[i].member = sc.v[i].marker;
            add_descendants(&sc);
            if (s->hidden_proc)
                blind(&s->ender.job, 0, now);
            else
                signal_members(s, &sc, &s->ender.job, now);
            active |= s->ender.job.active;
            look_again |= s->ender.job.active && s->ender.job.empty == 1;
        }
        if (!look_again)
            break;
    }
    if (s->ender.active && !s->ender.job.active) {
        bool ours = false;
        for (struct stream *st = s->streams; st; st = st->next)
            ours |= !st->dead && st->job.active && !strcmp(st->marker, s->ender.marker);
        if (!ours) {
            const struct killjob *j = &s->ender.job;
            struct buf *b = frame_begin(s, VM_ENDED, 0, 0);
            buf_put_u32(b, (uint32_t)j->nhits - j->left);
            buf_put_u32(b, j->confirmed ? 0 : j->left ? j->left : 1);
            frame_end(s);
            s->ender.active = false;
        }
    }
    s->kill_tick = 0;
    if (active) {
        s->kill_tick = now_ms() + s->kill_step;
        session_timer(s, s->kill_tick);
        s->kill_step = s->kill_step * 2 < STEP_MAX_MS ? s->kill_step * 2 : STEP_MAX_MS;
    }
}
