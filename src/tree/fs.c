#include "tree/fs.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/tree.h"

/* The kernel's struct linux_dirent64 (getdents64(2)): u64 ino, s64 off, u16 reclen, u8 type, name.
 */
enum { DIRENT_RECLEN = 16, DIRENT_NAME = 19 };

void entries_init(struct entries *e, int fd, size_t cap)
{
    *e = (struct entries){.fd = fd, .cap = cap, .data = xmalloc(cap)};
}

void entries_free(struct entries *e)
{
    free(e->data);
    e->data = NULL;
}

void entries_restart(struct entries *e)
{
    lseek(e->fd, 0, SEEK_SET);
    e->pos = e->len = 0;
}

const char *entries_next(struct entries *e)
{
    for (;;) {
        if (e->pos == e->len) {
            long got = syscall(SYS_getdents64, e->fd, e->data, e->cap);
            if (got <= 0) {
                if (got == 0)
                    errno = 0;
                return NULL;
            }
            e->pos = 0;
            e->len = (size_t)got;
        }
        unsigned char *at = e->data + e->pos;
        uint16_t reclen;
        memcpy(&reclen, at + DIRENT_RECLEN, sizeof reclen);
        e->pos += reclen;
        const char *name = (const char *)at + DIRENT_NAME;
        if (strcmp(name, ".") != 0 && strcmp(name, "..") != 0)
            return name;
    }
}

int fs_open_dir(int dirfd, const char *name, bool write)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    struct stat st;
    int fd = openat(dirfd, name, flags);

    if (!write || (fd < 0 && errno != EACCES))
        return fd;
    if (fd >= 0) {
        if (fstat(fd, &st) == 0 && (st.st_mode & 0700) != 0700 && st.st_uid == geteuid())
            fchmod(fd, (st.st_mode & 07777) | 0700);
        return fd;
    }
    /* The mode forbids even opening it; through an O_PATH descriptor chmod cannot be led elsewhere.
     */
    cleanup_fd int at = openat(dirfd, name, O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (at < 0)
        return -1;
    char self[40];
    snprintf(self, sizeof self, "/proc/self/fd/%d", at);
    if (fstat(at, &st) < 0 || chmod(self, (st.st_mode & 07777) | 0700) < 0) {
        errno = EACCES;
        return -1;
    }
    return openat(dirfd, name, flags);
}

bool fs_name_ok(const char *name, size_t n, size_t max)
{
    if (n == 0 || n > max || memchr(name, '/', n) || memchr(name, 0, n))
        return false;
    return !(name[0] == '.' && (n == 1 || (n == 2 && name[1] == '.')));
}

struct id {
    dev_t dev;
    ino_t ino;
};

static bool same_place(int fd, const struct id *id)
{
    struct stat st;

    return fstat(fd, &st) == 0 && st.st_dev == id->dev && st.st_ino == id->ino;
}

/* 0: gone. 1: a folder with something in it. -1: errno */
static int remove_one(int dirfd, const char *name)
{
    if (unlinkat(dirfd, name, 0) == 0 || errno == ENOENT)
        return 0;
    int why = errno;
    if (why != EISDIR && why != EPERM)
        return -1;
    if (unlinkat(dirfd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
        return 0;
    if (errno == ENOTEMPTY || errno == EEXIST)
        return 1;
    if (errno == ENOTDIR)
        errno = why;
    return -1;
}

bool tree_remove_at(int dirfd, const char *name, struct error *err)
{
    int r = remove_one(dirfd, name);
    if (r < 0)
        return error_sys(err, errno, "remove `%s`", name);
    if (r == 0)
        return true;

    /* One descriptor and 16 bytes for each level, however deep: up is `..`, checked to be the
     * folder that we came from (a folder moved meanwhile must not lead us out). */
    cleanup_free struct id *up = NULL;
    size_t depth = 0, cap = 0;
    cleanup_fd int cur = fs_open_dir(dirfd, name, true);
    if (cur < 0)
        return error_sys(err, errno, "remove the folder `%s`", name);
    struct entries e;
    entries_init(&e, cur, 32768);
    cleanup_free unsigned char *data = e.data;
    for (;;) {
        const char *entry = entries_next(&e);
        if (!entry && errno)
            return error_sys(err, errno, "read a folder below `%s` to remove it", name);
        int next;
        if (entry) {
            r = remove_one(cur, entry);
            if (r < 0)
                return error_sys(err, errno, "remove `%s` below `%s`", entry, name);
            if (r == 0)
                continue;
            struct stat st;
            if (fstat(cur, &st) < 0)
                return error_sys(err, errno, "remove `%s`", name);
            if (depth == cap) {
                cap = cap ? cap * 2 : 64;
                up = xreallocarray(up, cap, sizeof *up);
            }
            up[depth++] = (struct id){st.st_dev, st.st_ino};
            next = fs_open_dir(cur, entry, true);
            if (next < 0)
                return error_sys(err, errno, "remove the folder `%s` below `%s`", entry, name);
        } else if (depth == 0) {
            break;
        } else {
            next = openat(cur, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            if (next < 0 || !same_place(next, &up[--depth])) {
                if (next >= 0)
                    close(next);
                return error_set(err, ERR_SYSTEM, "remove `%s`: a folder in it was moved meanwhile",
                                 name);
            }
        }
        close(cur);
        cur = e.fd = next;
        e.pos = e.len = 0;
    }
    if (unlinkat(dirfd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return error_sys(err, errno, "remove the folder `%s`", name);
    return true;
}
