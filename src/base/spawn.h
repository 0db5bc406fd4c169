/* Child processes. Every child is started by one permanent thread, because PR_SET_PDEATHSIG fires
 * when the thread that forked ends, not the process: so a child started here dies with us, even
 * after SIGKILL, and not with the thread of the call that asked for it. Thread-safe. */
#ifndef BASE_SPAWN_H
#define BASE_SPAWN_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"

struct spawn_opts {
    const char *const *argv; /* NULL-terminated; argv[0] is looked up in PATH */
    const char *const *envp; /* NULL: ours */
    const char *cwd;         /* NULL: ours */
    int fd0, fd1, fd2;       /* the child's; -1: /dev/null. Not closed here */
    const int *keep_fds; /* further descriptors the child inherits under the same number, -1 ends */
    bool outlive;        /* no death signal (a connection that lingers under its own rules) */
    bool new_session;    /* setsid */
};

struct child {
    pid_t pid;
    int pidfd; /* readable when it has ended; -1 where there is no pidfd_open; close with child_free
                */
};

/* The child has default signal dispositions and an empty mask, SIGPIPE default included, and no
 * descriptor of ours but those named. The error names the program and, for ENOENT, that it is not
 * installed. */
bool spawn_child(const struct spawn_opts *opts, struct child *out, struct error *err);

/* Waits; status as from waitpid. ERR_TIMEOUT leaves the child running. */
bool child_wait(struct child *c, struct deadline d, int *status, struct error *err);
/* SIGTERM, then after grace_ms SIGKILL, and reaps. Does nothing when already reaped. */
void child_end(struct child *c, int grace_ms);
void child_free(struct child *c);

/* Runs to the end with `in` on stdin; stdout and stderr are collected up to max bytes each (the
 * rest is dropped). A deadline that passes ends the child: ERR_TIMEOUT. Returns true whenever the
 * child ran; its wait status is in *status. */
bool spawn_run(const char *const *argv, const void *in, size_t in_len, struct buf *out,
               struct buf *errout, size_t max, struct deadline d, int *status, struct error *err);

#endif
