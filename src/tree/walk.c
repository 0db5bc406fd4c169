#include "tree/walk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"

struct frame {
    struct dir *dir;
    struct entries entries;
    struct stat st;
    size_t path_len;
};

struct dir *dir_ref(struct dir *d)
{
    if (d)
        d->refs++;
    return d;
}

void dir_unref(struct dir *d)
{
    if (d && --d->refs == 0) {
        close(d->fd);
        free(d);
    }
}

void walk_init(struct walk *w, const struct tree_source *src, unsigned max_depth)
{
    *w = (struct walk){.src = src, .max_depth = max_depth};
}

static void leave(struct walk *w)
{
    struct frame *f = &w->stack[--w->depth];

    entries_free(&f->entries);
    dir_unref(f->dir);
}

void walk_free(struct walk *w)
{
    while (w->depth)
        leave(w);
    free(w->stack);
    buf_free(&w->path);
}

static bool enter(struct walk *w, int fd, const struct stat *st, struct error *err)
{
    for (unsigned i = 0; i < w->depth; i++) {
        if (w->stack[i].st.st_ino == st->st_ino && w->stack[i].st.st_dev == st->st_dev) {
            close(fd);
            return error_set(
                err, ERR_INVALID,
                "`%s` is a link to a folder it is in; it cannot be followed: exclude it",
                w->path.data);
        }
    }
    if (w->depth > w->max_depth) {
        close(fd);
        return error_set(err, ERR_TOO_LARGE, "`%s`: deeper than %u folders, the limit",
                         w->path.data, w->max_depth);
    }
    if (w->depth == w->cap) {
        w->cap = w->cap ? w->cap * 2 : 16;
        w->stack = xreallocarray(w->stack, w->cap, sizeof *w->stack);
    }
    struct frame *f = &w->stack[w->depth++];
    *f = (struct frame){.dir = xcalloc(1, sizeof *f->dir), .st = *st, .path_len = w->path.len};
    f->dir->fd = fd;
    f->dir->refs = 1;
    /* Less for deep folders, which are small: 256 levels take 1.5 MB. */
    entries_init(&f->entries, fd, w->depth <= 16 ? 32768 : 4096);
    return true;
}

static int start(struct walk *w, struct item *item, struct error *err)
{
    const char *path = w->src->path;
    struct stat st;

    w->started = true;
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int sys = errno;
        error_sys(err, sys, "open `%s`", path);
        if (err && sys == ENOENT)
            err->code = ERR_NOT_FOUND;
        return -1;
    }
    bool file = S_ISREG(st.st_mode);
    if (!file && !S_ISDIR(st.st_mode)) {
        error_set(err, ERR_INVALID, "`%s` is neither a regular file nor a folder", path);
        return -1;
    }
    if (w->src->kind != TREE_ANY && (w->src->kind == TREE_FILE) != file) {
        error_set(err, ERR_INVALID, "`%s` is a %s, a %s was expected", path,
                  file ? "file" : "folder", file ? "folder" : "file");
        return -1;
    }
    *item =
        (struct item){.kind = file ? ITEM_FILE : ITEM_DIR, .root = true, .path = path, .st = st};
    if (file)
        return 1;
    buf_puts(&w->path, ".");
    if (!enter(w, steal_fd(&fd), &st, err))
        return -1;
    /* tar checks the member `.` too: what excludes it (`*`, say) leaves an empty folder. */
    if (tree_excluded(w->src->exclude, w->src->n_exclude, ".")) {
        lseek(w->stack[0].dir->fd, 0, SEEK_END);
        w->stack[0].entries.cap = 0;
    }
    item->path = w->path.data;
    return 1;
}

static bool note(struct walk *w, enum tree_note n, struct error *err)
{
    return !w->note || w->note(w->arg, n, w->path.data, err);
}

/* The entry at path. 1: *item; 0: left out; -1 */
static int look(struct walk *w, struct frame *f, const char *name, struct item *item,
                struct error *err)
{
    struct stat *st = &item->st;
    bool follow = w->src->follow;

    if (fstatat(f->dir->fd, name, st, follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0) {
        int sys = errno;
        bool dangling = follow && (sys == ENOENT || sys == ELOOP) &&
                        fstatat(f->dir->fd, name, st, AT_SYMLINK_NOFOLLOW) == 0;
        if (sys == ENOENT || dangling)
            return note(w, dangling ? TREE_DANGLING : TREE_VANISHED, err) ? 0 : -1;
        error_sys(err, sys, "read `%s`", w->path.data);
        return -1;
    }
    if (S_ISREG(st->st_mode)) {
        item->kind = ITEM_FILE;
    } else if (S_ISLNK(st->st_mode)) {
        item->kind = ITEM_SYMLINK;
    } else if (S_ISDIR(st->st_mode)) {
        item->kind = ITEM_DIR;
        int fd = openat(f->dir->fd, name,
                        O_RDONLY | O_DIRECTORY | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW));
        if (fd < 0 && errno == ENOENT)
            return note(w, TREE_VANISHED, err) ? 0 : -1;
        if (fd < 0 && (errno == ELOOP || errno == ENOTDIR)) {
            error_set(err, ERR_UNSAFE,
                      "`%s` was a folder and became something else while it was read",
                      w->path.data);
            return -1;
        }
        if (fd < 0 || fstat(fd, st) < 0) {
            error_sys(err, errno, "open the folder `%s`", w->path.data);
            if (fd >= 0)
                close(fd);
            return -1;
        }
        struct dir *in = f->dir; /* enter may move the frames */
        if (!enter(w, fd, st, err))
            return -1;
        item->dir = in;
        return 1;
    } else {
        return note(w, TREE_SKIPPED, err) ? 0 : -1;
    }
    item->dir = f->dir;
    return 1;
}

int walk_next(struct walk *w, struct item *item, struct error *err)
{
    if (!w->started)
        return start(w, item, err);
    while (w->depth) {
        struct frame *f = &w->stack[w->depth - 1];
        w->path.len = f->path_len;
        w->path.data[w->path.len] = 0;
        const char *name = f->entries.cap ? entries_next(&f->entries) : (errno = 0, NULL);
        if (!name && errno) {
            error_sys(err, errno, "read the folder `%s`", w->path.data);
            return -1;
        }
        if (!name) {
            *item = (struct item){
                .kind = ITEM_LEAVE, .root = w->depth == 1, .path = w->path.data, .st = f->st};
            leave(w);
            return 1;
        }
        buf_putc(&w->path, '/');
        buf_puts(&w->path, name);
        if (tree_excluded(w->src->exclude, w->src->n_exclude, w->path.data))
            continue;
        *item = (struct item){.name = f->path_len + 1};
        int r = look(w, f, w->path.data + item->name, item, err);
        item->path = w->path.data;
        if (r)
            return r;
    }
    return 0;
}
