/* Carries out what the stream says, one name at a time below descriptors of folders that this
 * transfer made or opened without following a link. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/fs.h"
#include "tree/receiver.h"

/* Names in the folder for unfinished things. */
#define UNFINISHED "f"

static struct level *top(struct receiver *r)
{
    return r->depth ? &r->stack[r->depth - 1] : NULL;
}

static const char *at(struct receiver *r)
{
    return r->path.data;
}

static struct timespec *times(const struct meta *m, struct timespec t[2])
{
    t[0] = (struct timespec){.tv_nsec = UTIME_OMIT};
    t[1] = (struct timespec){m->mtime, m->nsec};
    return t;
}

static void link_name(char out[16], uint32_t id)
{
    snprintf(out, 16, "l%u", id);
}

/* Counts the entry, sets the path, notes the name. */
static bool begin_entry(struct receiver *r, const char *name, struct error *err)
{
    struct level *in = top(r);

    if (!r->placed || r->root_done || (in == NULL) != !*name)
        return error_set(err, ERR_PROTOCOL, "%s sent an entry where none may be", receiver_peer(r));
    r->path.len = in ? in->path_len : 0;
    buf_puts(&r->path, in ? "/" : ".");
    buf_puts(&r->path, name);
    if (++r->stats->entries > r->limits.entries)
        return error_set(err, ERR_TOO_LARGE, "more than %llu entries, the limit",
                         (unsigned long long)r->limits.entries);
    if (!in)
        return true;
    size_t n = strlen(name);
    bool track = r->target->remove && !in->fresh;
    if (track) {
        r->names += names_add(&in->seen, name, n, r->key);
    }
    if (r->opts->refuse_case) {
        cleanup_free char *folded = names_fold(name, &n);
        if (!names_add(&in->folded, folded, n, r->key))
            return error_set(err, ERR_UNSAFE,
                             "`%s`: another name in its folder differs from it only by case",
                             at(r));
        r->names++;
    }
    if (r->names > MAX_SEEN)
        return error_set(
            err, ERR_TOO_LARGE,
            "`%s`: more than %d names in one folder are too many to compare (deletion, "
            "names that differ by case)",
            at(r), MAX_SEEN);
    return true;
}

static bool twice(struct receiver *r, int sys, const char *what, struct error *err)
{
    if (sys == EEXIST)
        return error_set(err, ERR_UNSAFE,
                         "`%s` came twice, or with another name that this file system holds to be "
                         "the same",
                         at(r));
    return error_sys(err, sys, "%s `%s`", what, at(r));
}

/* Makes room for something that is no folder at in/name. */
static bool clear_way(struct receiver *r, struct level *in, const char *name, struct error *err)
{
    struct stat st;

    if (in->fresh || fstatat(in->fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode))
        return true;
    if (unlinkat(in->fd, name, AT_REMOVEDIR) == 0)
        return true;
    if (!r->target->remove)
        return error_set(
            err, ERR_EXISTS,
            "`%s` is a folder at the target, and not empty: to replace it, allow deletion", at(r));
    if (delete_would_spare(r, in->fd, name))
        return error_set(err, ERR_EXISTS,
                         "`%s` is a folder at the target with excluded entries, which are not "
                         "deleted: move it away, or exclude less",
                         at(r));
    r->stats->deleted++;
    return tree_remove_at(in->fd, name, err) || error_prefix(err, "replace `%s`", at(r));
}

/* Renames the unfinished thing to in/name. */
static bool finish(struct receiver *r, struct level *in, const char *name, struct error *err)
{
    if (!clear_way(r, in, name, err))
        return false;
    if (renameat(r->place.work, UNFINISHED, in->fd, name) < 0)
        return error_sys(err, errno, "rename the finished `%s`", at(r));
    return true;
}

static void push(struct receiver *r, struct level level)
{
    if (r->depth == r->cap) {
        r->cap = r->cap ? r->cap * 2 : 16;
        r->stack = xreallocarray(r->stack, r->cap, sizeof *r->stack);
    }
    level.path_len = r->path.len;
    r->stack[r->depth++] = level;
}

static void pop(struct receiver *r)
{
    struct level *l = &r->stack[--r->depth];

    if (l->fd >= 0 && r->depth)
        close(l->fd);
    if (l->old >= 0)
        close(l->old);
    r->names -= l->seen.n + l->folded.n;
    names_free(&l->seen);
    names_free(&l->folded);
}

static bool begin_root_dir(struct receiver *r, struct level *l, struct error *err)
{
    if (r->target->kind == TREE_FILE)
        return error_set(err, ERR_INVALID, "`%s`: %s sent a folder where a file was asked for",
                         r->place.shown, receiver_peer(r));
    if (r->target->placement == TREE_MERGE && place_is_no_dir(&r->place))
        return error_set(err, ERR_EXISTS,
                         "what is there is no folder: name another target, or replace it");
    if (r->opts->dry_run) {
        l->fd = r->place.root = place_peek(&r->place);
        l->fresh = l->fd < 0;
        return true;
    }
    if (!place_begin_dir(&r->place, err))
        return false;
    l->fd = r->place.root;
    l->fresh = r->place.staged;
    if (r->place.staged && r->opts->update && r->place.existing >= 0)
        l->old = dup(r->place.existing);
    return true;
}

static bool make_dir(struct receiver *r, struct level *in, const char *name, struct level *l,
                     struct error *err)
{
    if (r->opts->dry_run) {
        l->fd = in->fd < 0 ? -1 : fs_open_dir(in->fd, name, false);
        l->fresh = l->fd < 0;
        return true;
    }
    l->fresh = true;
    if (mkdirat(in->fd, name, 0700) < 0) {
        if (errno != EEXIST || in->fresh)
            return twice(r, errno, "make the folder", err);
        l->fresh = false;
        l->fd = fs_open_dir(in->fd, name, true);
        if (l->fd < 0 && (errno == ENOTDIR || errno == ELOOP)) {
            /* A file or a link is in the way (never followed): replaced, as rsync does. */
            if (unlinkat(in->fd, name, 0) < 0 || mkdirat(in->fd, name, 0700) < 0)
                return error_sys(err, errno, "replace `%s` by a folder", at(r));
            l->fresh = true;
        }
    }
    if (l->fd < 0)
        l->fd = fs_open_dir(in->fd, name, true);
    if (l->fd < 0)
        return error_sys(err, errno, "open the folder `%s`", at(r));
    if (in->old >= 0)
        l->old = openat(in->old, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    return true;
}

bool apply_dir(struct receiver *r, const char *name, const struct meta *m, struct error *err)
{
    struct level l = {.fd = -1, .old = -1, .meta = *m};

    if (!begin_entry(r, name, err))
        return false;
    if (r->depth > r->limits.depth)
        return error_set(err, ERR_TOO_LARGE, "`%s`: deeper than %u folders, the limit", at(r),
                         r->limits.depth);
    if (*name ? !make_dir(r, top(r), name, &l, err) : !begin_root_dir(r, &l, err))
        return false;
    l.meta.mode = receiver_mode(r, m->mode, !*name);
    push(r, l);
    receiver_tell(r, TREE_ENTRY, at(r));
    return true;
}

bool apply_leave(struct receiver *r, struct error *err)
{
    struct level *l = top(r);
    struct timespec t[2];

    if (!l)
        return error_set(err, ERR_PROTOCOL, "%s left a folder it had not entered",
                         receiver_peer(r));
    r->path.len = l->path_len;
    r->path.data[r->path.len] = 0;
    if (r->target->remove && !l->fresh && l->fd >= 0 && !delete_others(r, l, err))
        return false;
    if (r->depth == 1) {
        r->root_meta = l->meta;
        pop(r);
        return r->root_done = r->root_is_dir = true;
    }
    if (!r->opts->dry_run &&
        (fchmod(l->fd, l->meta.mode) < 0 || futimens(l->fd, times(&l->meta, t)) < 0))
        return error_sys(err, errno, "set mode and time of the folder `%s`", at(r));
    pop(r);
    return true;
}

static bool may_be_file(struct receiver *r, const char *name, struct error *err)
{
    if (!*name && r->target->kind == TREE_DIR)
        return error_set(err, ERR_INVALID, "`%s`: %s sent a file where a folder was asked for",
                         r->place.shown, receiver_peer(r));
    return true;
}

bool apply_file(struct receiver *r, const char *name, const struct meta *m, uint32_t link,
                struct error *err)
{
    struct level *in = top(r);
    struct incoming *f = &r->file;

    if (!begin_entry(r, name, err) || !may_be_file(r, name, err))
        return false;
    r->stats->files++;
    receiver_tell(r, TREE_ENTRY, at(r));
    *f = (struct incoming){
        .active = !r->opts->dry_run, .fd = -1, .meta = *m, .link = link, .name = xstrdup(name)};
    f->meta.mode = receiver_mode(r, m->mode, !*name);
    hash64_start(&f->hash, 0);
    if (r->opts->dry_run) {
        free(steal_ptr(f->name));
        r->root_done = !in;
        return true;
    }
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    if (!in)
        return (f->fd = place_begin_file(&r->place, err)) >= 0;
    f->fd = r->place.staged ? openat(in->fd, name, flags, 0600)
                            : openat(r->place.work, UNFINISHED, flags, 0600);
    return f->fd >= 0 || twice(r, errno, "make the file", err);
}

static bool grows(struct receiver *r, uint64_t n, struct error *err)
{
    if (n > r->limits.bytes || r->stats->bytes > r->limits.bytes - n)
        return error_set(err, ERR_TOO_LARGE, "`%s`: more than %llu bytes altogether, the limit",
                         at(r), (unsigned long long)r->limits.bytes);
    r->stats->bytes += n;
    return true;
}

bool apply_data(struct receiver *r, const void *p, size_t n, struct error *err)
{
    struct incoming *f = &r->file;
    const char *from = p;

    if (!grows(r, n, err))
        return false;
    hash64_add(&f->hash, p, n);
    for (size_t left = n; left;) {
        ssize_t done = pwrite(f->fd, from, left, (off_t)f->pos);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return error_sys(err, errno, "write `%s` at byte %llu", at(r),
                             (unsigned long long)f->pos);
        from += done;
        left -= (size_t)done;
        f->pos += (uint64_t)done;
    }
    f->hole_last = false;
    return true;
}

bool apply_hole(struct receiver *r, uint64_t n, struct error *err)
{
    unsigned char be[8];

    if (!grows(r, n, err))
        return false;
    for (int i = 0; i < 8; i++)
        be[i] = (unsigned char)(n >> (56 - 8 * i));
    hash64_add(&r->file.hash, be, 8);
    r->file.pos += n;
    r->file.hole_last = true;
    return true;
}

static bool remember_link(struct receiver *r, int dirfd, const char *name, uint32_t link,
                          struct error *err)
{
    char id[16];

    if (!link)
        return true;
    link_name(id, link);
    if (linkat(dirfd, name, r->place.work, id, 0) < 0)
        return error_sys(err, errno, "keep a link to `%s`", at(r));
    return true;
}

bool apply_end_file(struct receiver *r, uint64_t total, uint64_t hash, struct error *err)
{
    struct incoming *f = &r->file;
    struct level *in = top(r);
    struct timespec t[2];

    if (total != f->pos || hash != hash64_end(&f->hash))
        return error_set(err, ERR_PROTOCOL,
                         "`%s` arrived damaged: %llu bytes, %llu announced, or other content",
                         at(r), (unsigned long long)f->pos, (unsigned long long)total);
    if (f->hole_last && ftruncate(f->fd, (off_t)f->pos) < 0)
        return error_sys(err, errno, "write `%s`: its length of %llu bytes", at(r),
                         (unsigned long long)f->pos);
    if (fchmod(f->fd, f->meta.mode) < 0 || futimens(f->fd, times(&f->meta, t)) < 0)
        return error_sys(err, errno, "set mode and time of `%s`", at(r));
    /* Network file systems report a full disk only here. */
    if (close(steal_fd(&f->fd)) < 0)
        return error_sys(err, errno, "write `%s`", at(r));
    f->active = false;
    cleanup_free char *name = steal_ptr(f->name);
    if (!in)
        return r->root_done = true;
    if (!r->place.staged && !finish(r, in, name, err))
        return false;
    return remember_link(r, in->fd, name, f->link, err);
}

static bool repair(struct receiver *r, int dirfd, const char *name, const struct stat *st,
                   const struct meta *m, struct error *err)
{
    struct timespec t[2];

    if ((st->st_mode & 07777) != m->mode) {
        cleanup_fd int fd = openat(dirfd, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
        char self[40];
        snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
        if (fd < 0 || chmod(self, m->mode) < 0)
            return error_sys(err, errno, "set the mode of `%s`", at(r));
    }
    if ((st->st_mtim.tv_sec != m->mtime || st->st_mtim.tv_nsec != m->nsec) &&
        utimensat(dirfd, name, times(m, t), AT_SYMLINK_NOFOLLOW) < 0)
        return error_sys(err, errno, "set the time of `%s`", at(r));
    return true;
}

bool apply_same(struct receiver *r, const char *name, const struct meta *m, uint64_t size,
                uint32_t link, struct error *err)
{
    struct level *in = top(r);
    struct meta want = *m;
    struct stat st;

    if (!begin_entry(r, name, err) || !may_be_file(r, name, err))
        return false;
    want.mode = receiver_mode(r, m->mode, !*name);
    r->stats->same++;
    r->stats->same_bytes += size;
    receiver_tell(r, TREE_SAME, at(r));
    if (!in)
        r->root_done = r->place.done = true;
    if (r->opts->dry_run)
        return true;
    bool staged = in && r->place.staged;
    int dirfd = !in ? r->place.parent : staged ? in->old : in->fd;
    const char *entry = in ? name : r->place.name;
    if (dirfd < 0 || !entry || fstatat(dirfd, entry, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
        !S_ISREG(st.st_mode) || (uint64_t)st.st_size != size)
        return error_set(err, ERR_DOUBT,
                         "`%s` changed at the target during the transfer: try again", at(r));
    if (staged) {
        if (linkat(dirfd, entry, in->fd, name, 0) < 0)
            return twice(r, errno, "take over the unchanged", err);
    } else if (!repair(r, dirfd, entry, &st, &want, err)) {
        return false;
    }
    return !in || remember_link(r, in->fd, name, link, err);
}

bool apply_symlink(struct receiver *r, const char *name, const struct meta *m, const char *target,
                   struct error *err)
{
    struct level *in = top(r);
    struct timespec t[2];
    char now[TREE_MAX_LINK + 2];

    if (!begin_entry(r, name, err))
        return false;
    if (!*name)
        return in_unexpected(REC_SYMLINK, err);
    receiver_tell(r, TREE_ENTRY, at(r));
    if (r->opts->dry_run)
        return true;
    if (r->place.staged) {
        if (symlinkat(target, in->fd, name) < 0)
            return twice(r, errno, "make the link", err);
    } else {
        ssize_t n = in->fresh ? -1 : readlinkat(in->fd, name, now, sizeof now);
        bool same = n >= 0 && (size_t)n == strlen(target) && memcmp(now, target, (size_t)n) == 0;
        if (!same) {
            if (symlinkat(target, r->place.work, UNFINISHED) < 0)
                return error_sys(err, errno, "make the link `%s`", at(r));
            if (!finish(r, in, name, err))
                return false;
        }
    }
    if (utimensat(in->fd, name, times(m, t), AT_SYMLINK_NOFOLLOW) < 0)
        return error_sys(err, errno, "set the time of the link `%s`", at(r));
    return true;
}

bool apply_hardlink(struct receiver *r, const char *name, uint32_t link, bool last,
                    struct error *err)
{
    struct level *in = top(r);
    struct stat a, b;
    char id[16];

    if (!begin_entry(r, name, err))
        return false;
    if (!*name)
        return in_unexpected(REC_HARDLINK, err);
    receiver_tell(r, TREE_ENTRY, at(r));
    if (r->opts->dry_run)
        return true;
    link_name(id, link);
    if (fstatat(r->place.work, id, &a, AT_SYMLINK_NOFOLLOW) < 0)
        return error_set(err, ERR_PROTOCOL, "`%s` is a link to a file that was not sent", at(r));
    if (r->place.staged) {
        if (linkat(r->place.work, id, in->fd, name, 0) < 0)
            return twice(r, errno, "make the hard link", err);
    } else if (in->fresh || fstatat(in->fd, name, &b, AT_SYMLINK_NOFOLLOW) < 0 ||
               a.st_ino != b.st_ino || a.st_dev != b.st_dev) {
        /* Not when both are one file already: rename would do nothing then, and leave the other
         * name. */
        if (linkat(r->place.work, id, r->place.work, UNFINISHED, 0) < 0)
            return error_sys(err, errno, "make the hard link `%s`", at(r));
        if (!finish(r, in, name, err))
            return false;
    }
    if (last)
        unlinkat(r->place.work, id, 0);
    return true;
}

bool apply_commit(struct receiver *r, struct error *err)
{
    if (!r->placed || r->place.done || r->opts->dry_run)
        return true;
    return r->root_is_dir ? place_commit_dir(&r->place, &r->root_meta, err)
                          : place_commit_file(&r->place, err);
}

void apply_abort(struct receiver *r)
{
    if (r->file.fd >= 0 && r->file.active)
        close(r->file.fd);
    free(r->file.name);
    r->file = (struct incoming){.fd = -1};
    while (r->depth)
        pop(r);
    if (r->placed)
        place_end(&r->place);
    r->placed = false;
}
