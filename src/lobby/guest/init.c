/* Process 1 of a VM: starts sshd, the setup script and the command, reaps, and turns the power off.
 */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define SETUP GUEST_DIR "/setup"
#define COMMAND GUEST_DIR "/command"
#define SSHD_PID GUEST_DIR "/sshd.pid"

static volatile sig_atomic_t wanted; /* SIGTERM: off, SIGINT: again */
static pid_t sshd, setup, command;

static void on_signal(int sig)
{
    if (sig != SIGCHLD)
        wanted = sig;
}

static long long now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static pid_t start(char *const argv[], const char *log, const char *preload)
{
    pid_t pid = fork();

    if (pid)
        return pid;
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    setsid();
    int null = open("/dev/null", O_RDWR);
    int out = open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(null, 0);
    dup2(out < 0 ? null : out, 1);
    dup2(out < 0 ? null : out, 2);
    for (int fd = 3; fd < 64; fd++)
        close(fd);
    if (preload)
        setenv("LD_PRELOAD", preload, 1);
    execv(argv[0], argv);
    dprintf(2, "%s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static void start_sshd(void)
{
    char *const argv[] = {"/usr/sbin/sshd", "-D", "-f", GUEST_DIR "/sshd_config", "-E",
                          GUEST_EVENTS,     NULL};

    unlink(SSHD_PID);
    sshd = start(argv, GUEST_EVENTS, GUEST_DIR "/bin/owner.so");
}

/* A setup script with its own "#!" line runs as such; exe.dev's default shell is bash. */
static void start_setup(void)
{
    char head[2] = "";
    int fd = open(SETUP, O_RDONLY);

    if (fd < 0)
        return;
    bool own = read(fd, head, 2) == 2 && head[0] == '#' && head[1] == '!';
    close(fd);
    char *const direct[] = {SETUP, NULL};
    char *const bash[] = {"/bin/bash", SETUP, NULL};
    guest_event("setup started");
    setup = start(own ? direct : bash, "/var/log/exe-setup.log", NULL);
}

static void start_command(void)
{
    char *const argv[] = {"/bin/sh", COMMAND, NULL};

    if (access(COMMAND, R_OK) == 0)
        command = start(argv, "/var/log/exe-command.log", NULL);
}

static int status_code(int status)
{
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

static void reap(bool running)
{
    int status;
    pid_t pid;

    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (!running)
            continue;
        if (pid == setup) {
            unlink(SETUP); /* first boot only */
            guest_event("setup exit %d", status_code(status));
            setup = 0;
        } else if (pid == command) {
            guest_event("command exit %d", status_code(status));
            command = 0;
        } else if (pid == sshd) {
            guest_event("sshd exit %d", status_code(status));
            sshd = 0;
        }
    }
}

static void power_down(void)
{
    guest_event(wanted == SIGINT ? "reboot" : "poweroff");
    poll(NULL, 0, 100); /* what was said before is still on its way out */
    kill(-1, SIGTERM);
    for (int i = 0; i < 50; i++) {
        reap(false);
        if (kill(-1, 0) < 0 && errno == ESRCH)
            break;
        poll(NULL, 0, 5);
    }
    exit(0); /* the kernel ends the rest with the name space */
}

int guest_init(int argc, char **argv)
{
    struct sigaction sa = {.sa_handler = on_signal};
    long long sshd_at = now() + (argc > 1 ? atoll(argv[1]) : 0);
    long long began = now();
    bool ready = false;
    sigset_t block, none;

    sigemptyset(&none);
    sigemptyset(&block);
    sigaddset(&block, SIGTERM);
    sigaddset(&block, SIGINT);
    sigaddset(&block, SIGCHLD);
    sigprocmask(SIG_BLOCK, &block, NULL);
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigaction(SIGCHLD, &sa, NULL);
    umask(022);
    unlink(SSHD_PID);
    bool later = sshd_at > now();
    if (!later)
        start_sshd();
    start_setup();
    start_command();
    guest_event("boot");
    while (!wanted) {
        int wait = 1000;
        if (!sshd && now() >= sshd_at) {
            began = now();
            start_sshd();
            ready = false;
        } else if (!sshd) {
            wait = sshd_at - now() < 1000 ? (int)(sshd_at - now()) + 1 : 1000;
        }
        /* sshd writes its pid once it listens. */
        if (sshd && !ready) {
            ready = access(SSHD_PID, F_OK) == 0;
            if (ready)
                guest_event("ready");
            else
                wait = 2;
        }
        struct timespec t = {wait / 1000, wait % 1000 * 1000000L};
        ppoll(NULL, 0, &t, &none);
        pid_t was = sshd;
        reap(true);
        /* Elsewhere sshd is root's, and `kill -9 -1` does not reach it: it is back at once, but not
         * in a tight loop. */
        if (was && !sshd)
            sshd_at = now() + (now() - began < 1000 ? 1000 : 0);
    }
    power_down();
    return 0;
}
