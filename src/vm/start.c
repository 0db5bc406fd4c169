/* Starting a command: as few system calls as it takes, and an error that is known at once. The
 * child shares our memory until it execs (vfork's bargain), so nothing is copied. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "vm/vm.h"

extern char **environ;

/* A session of thousands of streams needs more descriptors than the usual soft limit; its commands
 * get the limit that was there. */
static struct rlimit files_before;

void raise_file_limit(void)
{
    struct rlimit all;

    if (getrlimit(RLIMIT_NOFILE, &files_before) < 0)
        return;
    all = files_before;
    all.rlim_cur = all.rlim_max;
    setrlimit(RLIMIT_NOFILE, &all);
}

struct child {
    struct launch *l;
    const char *path; /* PATH */
    char *candidate;  /* room for one of PATH's names with the file's */
    pid_t parent;
};

static void set_limits(const struct envset *e)
{
    umask(e->umask);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit now;
        /* Most were never changed; a hard limit cannot be raised by everybody. */
        if (getrlimit((__rlimit_resource_t)i, &now) == 0 &&
            (now.rlim_cur != e->limits[i].rlim_cur || now.rlim_max != e->limits[i].rlim_max))
            setrlimit((__rlimit_resource_t)i, &e->limits[i]);
    }
}

static bool prepare(struct child *c)
{
    struct launch *l = c->l;
    sigset_t none;
    struct sigaction dfl = {.sa_handler = SIG_DFL};

    setsid();
    /* We may be killed by a signal nobody can catch: what runs in the foreground goes too. Cleared
     * by the kernel for set-user-id programs, and not inherited. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != c->parent)
        _exit(127);
    for (int i = 0; i < 3; i++) {
        if (dup2(l->fds[i], i) < 0) {
            l->err = errno;
            return false;
        }
    }
    if (files_before.rlim_cur)
        setrlimit(RLIMIT_NOFILE, &files_before);
    if (l->tty)
        ioctl(0, TIOCSCTTY, 0);
    if ((l->cwd_fd >= 0 ? fchdir(l->cwd_fd) : chdir(l->cwd)) < 0) {
        l->err = errno;
        l->err_cwd = true;
        return false;
    }
    if (l->limits)
        set_limits(l->limits);
    sigaction(SIGPIPE, &dfl, NULL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    return true;
}

/* As execvp(3): a file the kernel does not know is one for the shell. */
static void try_exec(struct launch *l, const char *file)
{
    execve(file, l->argv, l->envp);
    if (errno == ENOEXEC) {
        char *name = l->argv[0];
        l->argv[-1] = (char *)"sh";
        l->argv[0] = (char *)file;
        execve("/bin/sh", l->argv - 1, l->envp);
        l->argv[0] = name;
    }
}

static int child_main(void *arg)
{
    struct child *c = arg;
    struct launch *l = c->l;

    if (!prepare(c))
        _exit(127);
    if (strchr(l->file, '/')) {
        try_exec(l, l->file);
        l->err = errno;
        _exit(127);
    }
    bool denied = false;
    errno = ENOENT;
    for (const char *dir = c->path;; dir++) {
        size_t n = strcspn(dir, ":");
        memcpy(c->candidate, dir, n);
        c->candidate[n] = '/';
        strcpy(c->candidate + n + (n > 0), l->file); /* an empty part is the current folder */
        try_exec(l, c->candidate);
        if (errno == EACCES) /* the file, not a folder of PATH that is somebody else's */
            denied |= access(c->candidate, F_OK) == 0;
        else if (errno != ENOENT && errno != ENOTDIR && errno != ESTALE && errno != ENAMETOOLONG &&
                 errno != ELOOP)
            break;
        dir += n;
        if (!*dir) {
            errno = denied ? EACCES : ENOENT;
            break;
        }
    }
    l->err = errno;
    _exit(127);
}

static void close_from(int first)
{
    if (syscall(SYS_close_range, first, ~0u, 0) == 0)
        return;
    int most = (int)sysconf(_SC_OPEN_MAX);
    for (int fd = first; fd < most && fd < 65536; fd++)
        close(fd);
}

static pid_t fork_builtin(struct launch *l)
{
    struct child c = {.l = l, .parent = getpid()};
    pid_t pid = fork();

    if (pid < 0)
        l->err = errno;
    if (pid)
        return pid;
    if (!prepare(&c))
        _exit(127);
    close_from(3);
    environ = l->envp;
    exit(l->builtin(l->argc, l->argv));
}

pid_t launch(struct launch *l)
{
    /* Its own stack, so that nothing of the child's can be in the way of ours. */
    static char stack[65536] __attribute__((aligned(16)));

    l->err = 0;
    l->err_cwd = false;
    if (l->builtin)
        return fork_builtin(l);
    const char *path = env_get(l->envp, "PATH");
    if (!path)
        path = "/usr/local/bin:/usr/bin:/bin";
    cleanup_free char *candidate = xmalloc(strlen(path) + strlen(l->file) + 2);
    struct child c = {.l = l, .path = path, .candidate = candidate, .parent = getpid()};
    pid_t pid = clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &c);
    if (pid < 0)
        l->err = errno;
    /* A child that failed is reaped where all are: its pid belongs to no stream. */
    return l->err ? -1 : pid;
}
