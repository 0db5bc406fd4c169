/* One entry of the walk becomes records: its head, its content, its end. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/hash.h"
#include "tree/sender.h"

enum { CHECK_BUFFER = 128 * 1024 };

static void tell(struct sender *s, enum tree_note note, const char *path)
{
    if (s->opts->progress)
        s->opts->progress(s->opts->arg, note, path, s->stats);
}

bool send_note(void *arg, enum tree_note n, const char *path, struct error *err)
{
    struct sender *s = arg;

    if (n == TREE_SKIPPED)
        s->stats->skipped++;
    else if (n == TREE_CHANGED)
        s->stats->changed++;
    else
        s->stats->vanished++;
    tell(s, n, path);
    return s->notes++ >= TREE_MAX_NOTES || out_note(&s->out, n, path, err);
}

static struct meta meta_of(const struct stat *st)
{
    return (struct meta){st->st_mode & 07777, st->st_mtim.tv_sec, (uint32_t)st->st_mtim.tv_nsec};
}

static bool put_named(struct sender *s, enum record type, const struct item *it, struct error *err)
{
    const char *name = it->root ? "" : it->path + it->name;
    size_t n = strlen(name);
    struct meta m = meta_of(&it->st);

    if (!out_begin(&s->out, type, n + 64, err))
        return false;
    out_meta(&s->out, &m);
    if (type == REC_FILE || type == REC_SAME) {
        out_u64(&s->out, (uint64_t)it->st.st_size);
        out_u32(&s->out, 0); /* link number, set by the caller */
    }
    out_str(&s->out, name, n);
    out_end(&s->out);
    return true;
}

/* The link number's place in a REC_FILE or REC_SAME that was just put: before the name. */
static void set_link(struct sender *s, const struct item *it, uint32_t id)
{
    size_t n = it->root ? 0 : strlen(it->path + it->name), end = s->out.len;

    s->out.len = end - n - 8;
    out_u32(&s->out, id);
    s->out.len = end;
}

static int open_file(const struct item *it)
{
    const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;

    return it->root ? open(it->path, flags)
                    : openat(it->dir->fd, it->path + it->name, flags | O_NOFOLLOW);
}

static int open_followed(const struct sender *s, const struct item *it)
{
    if (!s->src->follow || it->root)
        return open_file(it);
    return openat(it->dir->fd, it->path + it->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
}

static bool unreadable(const struct item *it, int sys, struct error *err)
{
    if (sys == ELOOP)
        return error_set(err, ERR_UNSAFE, "`%s` was a file and became a link while it was read",
                         it->path);
    return error_sys(err, sys, "read `%s`", it->path);
}

/* [*pos, end) of fd as data records; *pos stops early when the file became shorter. */
static bool send_data(struct sender *s, const struct item *it, int fd, off_t *pos, off_t end,
                      struct hash64 *h, struct error *err)
{
    struct out *o = &s->out;

    while (*pos < end) {
        size_t want = end - *pos < TREE_MAX_DATA ? (size_t)(end - *pos) : TREE_MAX_DATA;
        if (!out_begin(o, REC_DATA, want < 65536 ? want : 65536, err))
            return false;
        if (want > o->cap - o->len)
            want = o->cap - o->len;
        ssize_t got = pread(fd, o->data + o->len, want, *pos);
        if (got <= 0) {
            int sys = errno;
            out_undo(o);
            if (got < 0 && sys == EINTR)
                continue;
            return got == 0 || error_sys(err, sys, "read `%s`", it->path);
        }
        hash64_add(h, o->data + o->len, (size_t)got);
        o->len += (size_t)got;
        out_end(o);
        *pos += got;
        s->stats->bytes += (uint64_t)got;
        if (*pos < end)
            tell(s, TREE_ENTRY, NULL);
    }
    return true;
}

static bool send_hole(struct sender *s, uint64_t n, struct hash64 *h, struct error *err)
{
    if (!out_begin(&s->out, REC_HOLE, 8, err))
        return false;
    out_u64(&s->out, n);
    hash64_add(h, s->out.data + s->out.len - 8, 8);
    out_end(&s->out);
    s->stats->bytes += n;
    return true;
}

/* What was in the file when it was opened, up to its size then; a log that grows does not hold us.
 */
static bool send_content(struct sender *s, const struct item *it, int fd, const struct stat *st,
                         struct error *err)
{
    struct hash64 h;
    off_t pos = 0, size = st->st_size;
    bool sparse = (off_t)st->st_blocks * 512 < size;

    hash64_start(&h, 0);
    while (pos < size) {
        off_t end = size;
        if (sparse) {
            off_t data = lseek(fd, pos, SEEK_DATA);
            if (data < 0)
                data = errno == ENXIO ? size : pos;
            if (data > size)
                data = size;
            if (data > pos && !send_hole(s, (uint64_t)(data - pos), &h, err))
                return false;
            pos = data;
            end = lseek(fd, pos, SEEK_HOLE);
            if (end <= pos || end > size)
                end = size;
        }
        off_t from = pos;
        if (!send_data(s, it, fd, &pos, end, &h, err))
            return false;
        if (pos < end && pos - from < end - from)
            break;
    }
    if (!out_begin(&s->out, REC_END_FILE, 16, err))
        return false;
    out_u64(&s->out, (uint64_t)pos);
    out_u64(&s->out, hash64_end(&h));
    out_end(&s->out);
    struct stat now;
    if (fstat(fd, &now) == 0 && (now.st_size != size || now.st_mtim.tv_sec != st->st_mtim.tv_sec ||
                                 now.st_mtim.tv_nsec != st->st_mtim.tv_nsec))
        return send_note(s, TREE_CHANGED, it->path, err);
    return true;
}

static bool send_hardlink(struct sender *s, const struct item *it, uint32_t id, bool last,
                          struct error *err)
{
    const char *name = it->path + it->name;
    size_t n = strlen(name);

    if (!out_begin(&s->out, REC_HARDLINK, n + 16, err))
        return false;
    out_u32(&s->out, id);
    out_u8(&s->out, last);
    out_str(&s->out, name, n);
    out_end(&s->out);
    tell(s, TREE_ENTRY, it->path);
    return true;
}

static bool send_file(struct sender *s, const struct item *it, char answer, struct error *err)
{
    struct item now = *it;
    cleanup_fd int fd = -1;
    uint32_t id = 0;
    bool known = false, last = false;

    if (answer != '=') {
        fd = open_followed(s, it);
        if (fd < 0 && errno == ENOENT)
            return send_note(s, TREE_VANISHED, it->path, err);
        if (fd < 0 || fstat(fd, &now.st) < 0)
            return unreadable(it, errno, err);
        if (!S_ISREG(now.st.st_mode))
            return error_set(err, ERR_UNSAFE,
                             "`%s` was a file and became something else while it was read",
                             it->path);
    }
    if (now.st.st_nlink > 1 && !s->src->follow && !it->root) {
        id = links_number(&s->links, &now.st, &known, &last);
        s->stats->split += id == 0;
    }
    s->stats->entries++;
    if (known)
        return send_hardlink(s, it, id, last, err);
    if (!put_named(s, answer == '=' ? REC_SAME : REC_FILE, &now, err))
        return false;
    if (id)
        set_link(s, &now, id);
    if (answer == '=') {
        s->stats->same++;
        s->stats->same_bytes += (uint64_t)now.st.st_size;
        tell(s, TREE_SAME, it->path);
        return true;
    }
    s->stats->files++;
    tell(s, TREE_ENTRY, it->path);
    if (s->opts->dry_run) {
        s->stats->bytes += (uint64_t)now.st.st_size;
        return true;
    }
    return send_content(s, it, fd, &now.st, err);
}

static bool send_symlink(struct sender *s, const struct item *it, struct error *err)
{
    const char *name = it->path + it->name;
    char target[TREE_MAX_LINK + 1];
    ssize_t n = readlinkat(it->dir->fd, name, target, sizeof target);

    if (n < 0 && errno == ENOENT)
        return send_note(s, TREE_VANISHED, it->path, err);
    if (n < 0)
        return error_sys(err, errno, "read the link `%s`", it->path);
    if (n > TREE_MAX_LINK)
        return error_set(err, ERR_TOO_LARGE, "the link `%s` is longer than %d bytes", it->path,
                         TREE_MAX_LINK);
    struct meta m = meta_of(&it->st);
    if (!out_begin(&s->out, REC_SYMLINK, strlen(name) + (size_t)n + 32, err))
        return false;
    out_meta(&s->out, &m);
    out_str(&s->out, name, strlen(name));
    out_str(&s->out, target, (size_t)n);
    out_end(&s->out);
    s->stats->entries++;
    tell(s, TREE_ENTRY, it->path);
    return true;
}

bool send_entry(struct sender *s, const struct item *it, char answer, struct error *err)
{
    switch (it->kind) {
    case ITEM_DIR:
        s->stats->entries++;
        tell(s, TREE_ENTRY, it->path);
        return put_named(s, REC_DIR, it, err);
    case ITEM_LEAVE:
        if (!out_begin(&s->out, REC_LEAVE, 0, err))
            return false;
        out_end(&s->out);
        return true;
    case ITEM_FILE:
        return send_file(s, it, answer, err);
    case ITEM_SYMLINK:
        return send_symlink(s, it, err);
    }
    return true;
}

/* Two independent 64-bit hashes of the content, for `checksum`. */
static bool content_hash(struct sender *s, const struct item *it, uint64_t out[2],
                         struct error *err)
{
    struct hash64 h[2];
    cleanup_fd int fd = open_followed(s, it);

    hash64_start(&h[0], 1);
    hash64_start(&h[1], 2);
    if (fd < 0 && errno != ENOENT)
        return unreadable(it, errno, err);
    if (!s->buffer)
        s->buffer = xmalloc(CHECK_BUFFER);
    for (off_t pos = 0; fd >= 0 && pos < it->st.st_size;) {
        ssize_t got = pread(fd, s->buffer, CHECK_BUFFER, pos);
        if (got < 0 && errno != EINTR)
            return error_sys(err, errno, "read `%s`", it->path);
        if (got == 0)
            break;
        if (got > 0) {
            hash64_add(&h[0], s->buffer, (size_t)got);
            hash64_add(&h[1], s->buffer, (size_t)got);
            pos += got;
        }
    }
    out[0] = hash64_end(&h[0]);
    out[1] = hash64_end(&h[1]);
    return true;
}

bool send_offer(struct sender *s, const struct item *it, struct error *err)
{
    const char *name = it->root ? "" : it->path + it->name;
    size_t n = strlen(name);
    uint64_t sum[2] = {0, 0};

    if (it->kind == ITEM_SYMLINK)
        return true;
    if (it->kind == ITEM_FILE && s->opts->checksum && !content_hash(s, it, sum, err))
        return false;
    enum record type = it->kind == ITEM_DIR    ? REC_OFFER_DIR
                       : it->kind == ITEM_FILE ? REC_OFFER_FILE
                                               : REC_OFFER_LEAVE;
    if (!out_begin(&s->out, type, n + 64, err))
        return false;
    if (type == REC_OFFER_FILE) {
        struct meta m = meta_of(&it->st);
        out_meta(&s->out, &m);
        out_u64(&s->out, (uint64_t)it->st.st_size);
        out_u64(&s->out, sum[0]);
        out_u64(&s->out, sum[1]);
    }
    if (type != REC_OFFER_LEAVE)
        out_str(&s->out, name, n);
    out_end(&s->out);
    return true;
}
