#include "base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"

struct request {
    const struct spawn_opts *opts;
    struct child *out;
    struct error *err;
    bool ok, done;
    struct request *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t asked = PTHREAD_COND_INITIALIZER;
static pthread_cond_t answered = PTHREAD_COND_INITIALIZER;
static struct request *queue, **queue_tail = &queue;
static bool running;

extern char **environ;

/* Between fork and exec: async-signal-safe calls only. */
static void child_main(const struct spawn_opts *o, pid_t parent, int report, int lowest)
{
    int fds[3] = {o->fd0, o->fd1, o->fd2};
    sigset_t none;
    struct sigaction dfl = {.sa_handler = SIG_DFL};

    if (!o->outlive) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) /* it ended before the line above */
            _exit(127);
    }
    for (int sig = 1; sig < NSIG; sig++)
        sigaction(sig, &dfl, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (o->new_session)
        setsid();

    int at = fcntl(report, F_DUPFD_CLOEXEC, lowest);
    for (int i = 0; i < 3; i++) {
        if (fds[i] < 0)
            fds[i] = open("/dev/null", i ? O_WRONLY | O_CLOEXEC : O_RDONLY | O_CLOEXEC);
        fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, lowest);
    }
    for (int i = 0; i < 3; i++) {
        if (fds[i] < 0 || dup2(fds[i], i) < 0)
            goto failed;
    }
    syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
    for (const int *keep = o->keep_fds; keep && *keep >= 0; keep++)
        fcntl(*keep, F_SETFD, 0);
    if (o->cwd && chdir(o->cwd) < 0)
        goto failed;
    environ = o->envp ? (char **)o->envp : environ;
    execvp(o->argv[0], (char *const *)o->argv);
failed:;
    int why = errno;
    ssize_t ignored = write(at, &why, sizeof why);
    (void)ignored;
    _exit(127);
}

static bool start(struct request *r)
{
    int pipes[2], why = 0, lowest = 3;
    pid_t parent = getpid();

    for (const int *keep = r->opts->keep_fds; keep && *keep >= 0; keep++) {
        if (*keep >= lowest)
            lowest = *keep + 1;
    }
    if (pipe2(pipes, O_CLOEXEC) < 0)
        return error_sys(r->err, errno, "start %s: pipe", r->opts->argv[0]);
    pid_t pid = fork();
    if (pid == 0)
        child_main(r->opts, parent, pipes[1], lowest);
    int sys = errno;
    close(pipes[1]);
    ssize_t got = -1;
    if (pid > 0) {
        while ((got = read(pipes[0], &why, sizeof why)) < 0 && errno == EINTR)
            ;
    }
    close(pipes[0]);
    if (pid < 0)
        return error_sys(r->err, sys, "start %s: fork", r->opts->argv[0]);
    if (got == (ssize_t)sizeof why) {
        waitpid(pid, NULL, 0);
        error_sys(r->err, why, "start %s", r->opts->argv[0]);
        if (why == ENOENT && !r->opts->cwd)
            error_append(r->err, " (is it installed?)");
        return false;
    }
    r->out->pid = pid;
    r->out->pidfd =
        (int)syscall(SYS_pidfd_open, pid, 0); /* -1 under valgrind: has_ended asks then */
    return true;
}

static void *spawner(void *arg)
{
    (void)arg;
    prctl(PR_SET_NAME, "spawner");
    pthread_mutex_lock(&lock);
    for (;;) {
        while (!queue)
            pthread_cond_wait(&asked, &lock);
        struct request *r = queue;
        queue = r->next;
        if (!queue)
            queue_tail = &queue;
        pthread_mutex_unlock(&lock);
        bool ok = start(r);
        pthread_mutex_lock(&lock);
        r->ok = ok;
        r->done = true;
        pthread_cond_broadcast(&answered);
    }
    return NULL;
}

bool spawn_child(const struct spawn_opts *opts, struct child *out, struct error *err)
{
    struct request r = {.opts = opts, .out = out, .err = err};

    *out = (struct child){.pid = -1, .pidfd = -1};
    pthread_mutex_lock(&lock);
    if (!running) {
        pthread_t thread;
        sigset_t all, old;
        sigfillset(&all); /* signals belong to the main thread */
        pthread_sigmask(SIG_SETMASK, &all, &old);
        int sys = pthread_create(&thread, NULL, spawner, NULL);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (sys) {
            pthread_mutex_unlock(&lock);
            return error_sys(err, sys, "start a thread");
        }
        pthread_detach(thread);
        running = true;
    }
    *queue_tail = &r;
    queue_tail = &r.next;
    pthread_cond_signal(&asked);
    while (!r.done)
        pthread_cond_wait(&answered, &lock);
    pthread_mutex_unlock(&lock);
    return r.ok;
}

enum { ASK_MS = 10 }; /* how often a child without a pidfd is asked after */

static bool has_ended(const struct child *c)
{
    siginfo_t info = {0};

    return waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid != 0;
}

bool child_wait(struct child *c, struct deadline d, int *status, struct error *err)
{
    struct pollfd pfd = {.fd = c->pidfd, .events = POLLIN};
    int ready = 0;

    while (c->pidfd < 0 && !(ready = has_ended(c)) && !deadline_passed(d))
        deadline_sleep(d, ASK_MS);
    while (c->pidfd >= 0 && (ready = poll(&pfd, 1, deadline_poll(d))) < 0 && errno == EINTR)
        ;
    if (ready == 0)
        return error_set(err, ERR_TIMEOUT, "process %d did not end in time", (int)c->pid);
    pid_t got;
    while ((got = waitpid(c->pid, status, 0)) < 0 && errno == EINTR)
        ;
    if (got < 0)
        return error_sys(err, errno, "wait for process %d", (int)c->pid);
    c->pid = -1;
    return true;
}

void child_end(struct child *c, int grace_ms)
{
    int status;

    if (c->pid <= 0)
        return;
    kill(c->pid, SIGTERM);
    if (!child_wait(c, deadline_in(grace_ms), &status, NULL)) {
        kill(c->pid, SIGKILL);
        child_wait(c, DEADLINE_NEVER, &status, NULL);
    }
}

void child_free(struct child *c)
{
    if (c->pidfd >= 0)
        close(c->pidfd);
    c->pidfd = -1;
}

static void take(struct pollfd *pfd, struct buf *to, size_t max)
{
    char part[16384];
    ssize_t got;

    while ((got = read(pfd->fd, part, sizeof part)) > 0) {
        size_t room = to && to->len < max ? max - to->len : 0;
        if (room)
            buf_put(to, part, (size_t)got < room ? (size_t)got : room);
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR))
        pfd->fd = -1;
}

static void feed(struct pollfd *pfd, int *fd, const char **in, size_t *left)
{
    while (*left) {
        ssize_t done = write(*fd, *in, *left);
        if (done < 0 && errno == EAGAIN)
            return;
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            break;
        *in += done;
        *left -= (size_t)done;
    }
    close(steal_fd(fd));
    pfd->fd = -1;
}

bool spawn_run(const char *const *argv, const void *in, size_t in_len, struct buf *out,
               struct buf *errout, size_t max, struct deadline d, int *status, struct error *err)
{
    int p[3][2] = {{-1, -1}, {-1, -1}, {-1, -1}};
    struct child c;
    const char *at = in;
    bool ok = false;

    for (int i = 0; i < 3; i++) {
        if (pipe2(p[i], O_CLOEXEC) < 0) {
            error_sys(err, errno, "pipe");
            goto out;
        }
    }
    ok = spawn_child(
        &(struct spawn_opts){.argv = argv, .fd0 = p[0][0], .fd1 = p[1][1], .fd2 = p[2][1]}, &c,
        err);
    if (!ok)
        goto out;
    close(steal_fd(&p[0][0]));
    close(steal_fd(&p[1][1]));
    close(steal_fd(&p[2][1]));
    for (int i = 0; i < 3; i++)
        io_set_nonblock(i ? p[i][0] : p[0][1], true);
    struct pollfd pfds[4] = {{.fd = p[0][1], .events = POLLOUT},
                             {.fd = p[1][0], .events = POLLIN},
                             {.fd = p[2][0], .events = POLLIN},
                             {.fd = c.pidfd, .events = POLLIN}};
    if (!in_len)
        feed(&pfds[0], &p[0][1], &at, &in_len);
    /* Over when the process ends: a grandchild may hold the pipes for ever. */
    while (!pfds[3].revents && (c.pidfd >= 0 || !has_ended(&c))) {
        int ready =
            poll(pfds, 4, deadline_poll(c.pidfd >= 0 ? d : deadline_min(d, deadline_in(ASK_MS))));
        if (ready == 0 && deadline_passed(d)) {
            child_end(&c, 0);
            ok = error_set(err, ERR_TIMEOUT, "%s: did not end in time", argv[0]);
            break;
        }
        if (ready < 0)
            continue;
        if (pfds[0].fd >= 0 && pfds[0].revents)
            feed(&pfds[0], &p[0][1], &at, &in_len);
        if (pfds[1].fd >= 0 && pfds[1].revents)
            take(&pfds[1], out, max);
        if (pfds[2].fd >= 0 && pfds[2].revents)
            take(&pfds[2], errout, max);
    }
    if (ok) {
        if (pfds[1].fd >= 0)
            take(&pfds[1], out, max);
        if (pfds[2].fd >= 0)
            take(&pfds[2], errout, max);
        ok = child_wait(&c, DEADLINE_NEVER, status, err);
    }
    child_free(&c);
out:
    for (int i = 0; i < 3; i++) {
        if (p[i][0] >= 0)
            close(p[i][0]);
        if (p[i][1] >= 0)
            close(p[i][1]);
    }
    return ok;
}
