/* Answers offers: which files the target has already (docs/files.md, "Update"). Only looks. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/fs.h"
#include "tree/receiver.h"

static void push(struct receiver *r, int fd)
{
    if (r->look_depth == r->look_cap) {
        r->look_cap = r->look_cap ? r->look_cap * 2 : 16;
        r->look = xreallocarray(r->look, r->look_cap, sizeof *r->look);
    }
    r->look[r->look_depth++] = fd;
}

static bool may_offer(struct receiver *r, const char *name, struct error *err)
{
    if (!r->placed || r->look_done || (r->look_depth == 0) != !*name)
        return error_set(err, ERR_PROTOCOL, "%s offered an entry where none may be",
                         receiver_peer(r));
    if (++r->offered > r->limits.entries)
        return error_set(err, ERR_TOO_LARGE, "more than %llu entries, the limit",
                         (unsigned long long)r->limits.entries);
    return true;
}

bool compare_dir(struct receiver *r, const char *name, struct error *err)
{
    if (!may_offer(r, name, err))
        return false;
    if (r->look_depth > r->limits.depth)
        return error_set(err, ERR_TOO_LARGE, "folders nested deeper than %u, the limit",
                         r->limits.depth);
    if (!*name) {
        push(r, place_peek(&r->place));
        return true;
    }
    int in = r->look[r->look_depth - 1];
    push(r, in < 0 ? -1 : openat(in, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    return true;
}

bool compare_leave(struct receiver *r, struct error *err)
{
    if (!r->look_depth)
        return error_set(err, ERR_PROTOCOL, "%s left a folder it had not entered",
                         receiver_peer(r));
    int fd = r->look[--r->look_depth];
    if (fd >= 0)
        close(fd);
    r->look_done = r->look_depth == 0;
    return true;
}

static bool same_content(struct receiver *r, int dirfd, const char *name, off_t size,
                         const uint64_t sum[2])
{
    struct hash64 h[2];
    off_t pos = 0;
    cleanup_fd int fd =
        openat(dirfd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);

    if (fd < 0)
        return false;
    hash64_start(&h[0], 1);
    hash64_start(&h[1], 2);
    if (!r->buffer)
        r->buffer = xmalloc(COMPARE_BUFFER);
    while (pos < size) {
        ssize_t got = pread(fd, r->buffer, COMPARE_BUFFER, pos);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        hash64_add(&h[0], r->buffer, (size_t)got);
        hash64_add(&h[1], r->buffer, (size_t)got);
        pos += got;
    }
    return hash64_end(&h[0]) == sum[0] && hash64_end(&h[1]) == sum[1];
}

static bool has(struct receiver *r, int dirfd, const char *name, const struct meta *m,
                uint64_t size, const uint64_t sum[2])
{
    struct stat st;

    if (dirfd < 0 || fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode) ||
        (uint64_t)st.st_size != size)
        return false;
    bool same_time = st.st_mtim.tv_sec == m->mtime && st.st_mtim.tv_nsec == m->nsec;
    if (!r->opts->checksum && !same_time)
        return false;
    /* A staged tree takes unchanged files over as hard links, so mode and time must be right
     * already: to change them would change the old tree, which must stay as it is until the swap.
     */
    if (r->target->placement == TREE_REPLACE &&
        (!same_time || st.st_nlink != 1 || st.st_uid != geteuid() ||
         (st.st_mode & 07777) != (m->mode & (r->opts->keep_special ? 07777u : 0777u))))
        return false;
    return !r->opts->checksum || same_content(r, dirfd, name, st.st_size, sum);
}

bool compare_file(struct receiver *r, const char *name, const struct meta *m, uint64_t size,
                  const uint64_t sum[2], struct error *err)
{
    if (!may_offer(r, name, err))
        return false;
    int dirfd = *name ? r->look[r->look_depth - 1] : r->place.parent;
    const char *at = *name ? name : r->place.name;
    /* A single file that replaces another needs no link to the old one: it just stays. */
    bool same = at && has(r, dirfd, at, m, size, sum);
    buf_putc(&r->answers, same ? '=' : '+');
    if (!*name)
        r->look_done = true;
    return r->answers.len < 1024 || compare_flush(r, err);
}

bool compare_flush(struct receiver *r, struct error *err)
{
    if (!r->answers.len)
        return true;
    if (!out_begin(&r->out, REC_ANSWERS, r->answers.len, err))
        return false;
    for (size_t i = 0; i < r->answers.len; i++)
        out_u8(&r->out, (uint8_t)r->answers.data[i]);
    out_end(&r->out);
    r->answers.len = 0;
    return true;
}

void compare_end(struct receiver *r)
{
    while (r->look_depth) {
        int fd = r->look[--r->look_depth];
        if (fd >= 0)
            close(fd);
    }
    r->look_done = false;
}
