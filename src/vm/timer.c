/* `timer arm EPOCH`, `timer read`, `timer disarm`: powers this machine off at that time and leaves
 * a mark of it. The daemon that waits is a process of its own session with a clean environment, so
 * that no end of a command, a session or a helper takes it along. What proves that it is there is
 * the lock it holds on the file `timer` of the private folder. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "vm/vm.h"

#define TRY_S 60 /* between attempts to power off */
#define LOCK_FD 3

struct timer {
    char *dir, *path;
    int fd;
    long long epoch;
    long pid;
};

static void timer_clear(struct timer *t)
{
    if (t->fd >= 0)
        close(t->fd);
    free(t->path);
    free(t->dir);
    *t = (struct timer){.fd = -1};
}
#define cleanup_timer __attribute__((cleanup(timer_clear)))

static bool locked(int fd)
{
    if (flock(fd, LOCK_EX | LOCK_NB) < 0)
        return true;
    flock(fd, LOCK_UN);
    return false;
}

static bool open_timer(struct timer *t)
{
    cleanup_free char *home = home_folder();
    char text[64] = "";

    t->dir = private_folder(home);
    if (!t->dir) {
        fputs("timer: there is no private folder to keep it in\n", stderr);
        return false;
    }
    t->path = xasprintf("%s/timer", t->dir);
    t->fd = open(t->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (t->fd < 0) {
        fprintf(stderr, "timer: %s: %s\n", t->path, strerror(errno));
        return false;
    }
    if (locked(t->fd) && pread(t->fd, text, sizeof text - 1, 0) > 0)
        sscanf(text, "%lld %ld", &t->epoch, &t->pid);
    return true;
}

static bool disarm(struct timer *t)
{
    struct deadline d = deadline_in(3000);

    while (locked(t->fd)) {
        if (deadline_passed(d)) {
            fprintf(stderr, "timer: its process %ld does not end\n", t->pid);
            return false;
        }
        if (t->pid > 1)
            kill((pid_t)t->pid, SIGKILL);
        deadline_sleep(d, 5);
    }
    t->epoch = 0;
    return ftruncate(t->fd, 0) == 0;
}

/* The daemon's program is this file, started anew: `exedev-vm timer-wait EPOCH DIR`, lock on
 * LOCK_FD. */
static void become_daemon(struct timer *t)
{
    const char *path = getenv("PATH");
    cleanup_free char *epoch = xasprintf("%lld", t->epoch);
    cleanup_free char *env =
        xasprintf("PATH=%s:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin", path ? path : "");
    char *argv[] = {(char *)"exedev-vm", (char *)"timer-wait", epoch, t->dir, NULL};
    char *envp[] = {env, NULL};
    int null = open("/dev/null", O_RDWR);

    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (chdir("/") < 0 || dup2(t->fd, LOCK_FD) < 0)
        _exit(1);
    io_set_cloexec(LOCK_FD, false);
    execve("/proc/self/exe", argv, envp);
    _exit(1);
}

static int arm(struct timer *t, const char *text)
{
    char *end;
    int ready[2], status;

    errno = 0;
    long long epoch = strtoll(text, &end, 10);
    if (errno || *end || end == text || epoch <= (long long)time(NULL)) {
        fprintf(stderr, "timer: arm: '%s' is no time in the future (seconds since 1970)\n", text);
        return 2;
    }
    if (!disarm(t))
        return 1;
    t->epoch = epoch;
    if (flock(t->fd, LOCK_EX | LOCK_NB) < 0 || pipe2(ready, O_CLOEXEC) < 0) {
        fprintf(stderr, "timer: arm: %s\n", strerror(errno));
        return 1;
    }
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        pid = fork();
        if (pid == 0) {
            cleanup_free char *line = xasprintf("%lld %d\n", epoch, (int)getpid());
            if (io_write_all(t->fd, line, strlen(line), DEADLINE_NEVER, NULL))
                become_daemon(t);
            _exit(1);
        }
        _exit(pid < 0);
    }
    close(ready[1]);
    char byte;
    if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0 || read(ready[0], &byte, 1) != 0) {
        fputs("timer: arm: its process could not be started\n", stderr);
        return 1;
    }
    close(ready[0]);
    /* The pipe closed because the daemon's exec went through, or because it ended: the lock tells.
     */
    timer_clear(t);
    if (!open_timer(t) || t->epoch != epoch) {
        fputs("timer: arm: its process ended at once\n", stderr);
        return 1;
    }
    printf("%lld\n", epoch);
    return 0;
}

int timer_main(int argc, char **argv)
{
    cleanup_timer struct timer t = {.fd = -1};
    const char *verb = argc > 1 ? argv[1] : "";

    if (!(argc == 3 && !strcmp(verb, "arm")) &&
        !(argc == 2 && (!strcmp(verb, "read") || !strcmp(verb, "disarm")))) {
        fputs("usage: timer arm EPOCH | read | disarm\n", stderr);
        return 64;
    }
    if (!open_timer(&t))
        return 1;
    if (!strcmp(verb, "arm"))
        return arm(&t, argv[2]);
    if (!strcmp(verb, "disarm"))
        return disarm(&t) ? 0 : 1;
    if (!t.epoch) {
        fputs("timer: none is armed\n", stderr);
        return 1;
    }
    printf("%lld\n", t.epoch);
    return 0;
}

/* ---- the daemon ---- */

static void mark(const char *path, const char *text)
{
    cleanup_fd int fd =
        open(path, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0644);

    if (fd >= 0) {
        io_write_all(fd, text, strlen(text), deadline_in(5000), NULL);
        fsync(fd);
    }
}

/* True when the program says it did; it gets half the time between attempts. */
static bool run(char *const argv[])
{
    struct deadline d = deadline_in(TRY_S * 500);
    int status = 1;
    pid_t pid = fork();

    if (pid == 0) {
        execvp(argv[0], argv);
        _exit(127);
    }
    while (pid > 0 && waitpid(pid, &status, WNOHANG) == 0) {
        if (deadline_passed(d)) {
            kill(pid, SIGKILL);
            waitpid(pid, &status, 0);
            return false;
        }
        deadline_sleep(d, 20);
    }
    return pid > 0 && status == 0;
}

static bool kill_init(void)
{
    /* systemd takes TERM as "start again"; its signal for power-off is another. */
    bool systemd = access("/run/systemd/system", F_OK) == 0;

    return kill(1, systemd ? SIGRTMIN + 4 : SIGTERM) == 0;
}

#define ARGV(...)                                                                                  \
    (char *const[])                                                                                \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

int timer_wait_main(int argc, char **argv)
{
    if (argc != 4 || fcntl(LOCK_FD, F_GETFD) < 0)
        return 64;
    long long epoch = atoll(argv[2]);
    struct timespec at = {.tv_sec = (time_t)epoch};

    io_set_cloexec(LOCK_FD, true);
    while (clock_nanosleep(CLOCK_REALTIME, TIMER_ABSTIME, &at, NULL) != 0)
        ;
    cleanup_free char *text = xasprintf("expired %lld\n", epoch);
    cleanup_free char *path = xasprintf("%s/expired", argv[3]);
    cleanup_free char *shared = xasprintf("/var/tmp/exedev-expired-%u", (unsigned)geteuid());
    mark(path, text);
    mark(shared, text);
    sync();
    for (;;) {
        char poweroff[] = "poweroff", sudo[] = "sudo", n[] = "-n", systemctl[] = "systemctl",
             kill1[] = "kill", term[] = "-TERM", one[] = "1";
        bool asked = run(ARGV(poweroff)) || run(ARGV(sudo, n, poweroff)) ||
                     run(ARGV(systemctl, poweroff)) || run(ARGV(sudo, n, systemctl, poweroff)) ||
                     kill_init() || run(ARGV(sudo, n, kill1, term, one));
        (void)asked; /* either way the machine is still there: wait, and again */
        sleep(TRY_S);
    }
}
