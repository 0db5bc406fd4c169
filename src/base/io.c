#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/cleanup.h"

bool io_write_all(int fd, const void *p, size_t n, struct deadline d, struct error *err)
{
    const char *at = p;

    while (n) {
        ssize_t done = write(fd, at, n);
        if (done >= 0) {
            at += done;
            n -= (size_t)done;
        } else if (errno == EAGAIN) {
            struct pollfd pfd = {.fd = fd, .events = POLLOUT};
            if (poll(&pfd, 1, deadline_poll(d)) == 0)
                return error_set(err, ERR_TIMEOUT, "write: timed out");
        } else if (errno != EINTR) {
            return error_sys(err, errno, "write");
        }
    }
    return true;
}

bool io_read_fd(int fd, const char *name, size_t max, struct buf *out, struct error *err)
{
    size_t total = 0;

    for (;;) {
        char *to = buf_reserve(out, 16384);
        ssize_t got = read(fd, to, 16384);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_sys(err, errno, "%s", name);
        if (got == 0)
            break;
        out->len += (size_t)got;
        total += (size_t)got;
        if (total > max)
            return error_set(err, ERR_TOO_LARGE, "%s: larger than %zu bytes", name, max);
    }
    buf_reserve(out, 0)[0] = 0;
    return true;
}

bool io_read_file(const char *path, size_t max, struct buf *out, struct error *err)
{
    struct stat st;
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0) {
        int sys = errno;
        error_sys(err, sys, "%s", path);
        if (err && (sys == ENOENT || sys == ENOTDIR))
            err->code = ERR_NOT_FOUND;
        return false;
    }
    if (fstat(fd, &st) < 0)
        return error_sys(err, errno, "%s", path);
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERR_INVALID, "%s: not a regular file", path);
    return io_read_fd(fd, path, max, out, err);
}

bool io_write_file(const char *path, mode_t mode, const void *p, size_t n, struct error *err)
{
    cleanup_free char *temp = xasprintf("%s.XXXXXX", path);
    cleanup_free char *copy = xstrdup(path);
    cleanup_fd int fd = mkostemp(temp, O_CLOEXEC);

    if (fd < 0)
        return error_sys(err, errno, "make a file beside %s", path);
    bool ok = false;
    if (fchmod(fd, mode) < 0)
        error_sys(err, errno, "%s", temp);
    else if (!io_write_all(fd, p, n, DEADLINE_NEVER, err))
        error_prefix(err, "%s", temp);
    else if (fsync(fd) < 0)
        error_sys(err, errno, "fsync %s", temp);
    else if (rename(temp, path) < 0)
        error_sys(err, errno, "rename %s to %s", temp, path);
    else
        ok = true;
    if (!ok) {
        unlink(temp);
        return false;
    }
    cleanup_fd int dir = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir >= 0)
        fsync(dir);
    return true;
}

bool io_mkdirs(const char *path, mode_t mode, struct error *err)
{
    cleanup_free char *part = xstrdup(path);

    for (char *slash = part;;) {
        slash = strchr(slash + 1, '/');
        if (slash)
            *slash = 0;
        if (mkdir(part, mode) < 0 && errno != EEXIST)
            return error_sys(err, errno, "make the folder %s", part);
        if (!slash)
            break;
        *slash = '/';
    }
    struct stat st;
    if (stat(path, &st) < 0)
        return error_sys(err, errno, "%s", path);
    if (!S_ISDIR(st.st_mode))
        return error_sys(err, ENOTDIR, "%s", path);
    return true;
}

bool io_set_nonblock(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);

    return flags >= 0 && fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK) == 0;
}

bool io_set_cloexec(int fd, bool on)
{
    return fcntl(fd, F_SETFD, on ? FD_CLOEXEC : 0) == 0;
}

void io_hex(const void *p, size_t n, char *out)
{
    const unsigned char *at = p;

    for (size_t i = 0; i < n; i++)
        sprintf(out + 2 * i, "%02x", at[i]);
    out[2 * n] = 0;
}

void io_random(void *p, size_t n)
{
    char *at = p;

    while (n) {
        ssize_t got = getrandom(at, n, 0);
        if (got > 0) {
            at += got;
            n -= (size_t)got;
        }
    }
}
