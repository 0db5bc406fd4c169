#include "tree/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "tree/fs.h"

/* Unfinished things have this prefix and are locked (flock) by whoever works on them; what is not
 * locked is the leftover of somebody who was killed. */
#define TEMP_PREFIX ".exedev-tmp-"

#ifndef RENAME_EXCHANGE
#define RENAME_EXCHANGE 2
#endif

void place_temp_name(char out[32])
{
    unsigned char id[8];

    io_random(id, sizeof id);
    strcpy(out, TEMP_PREFIX);
    io_hex(id, sizeof id, out + sizeof TEMP_PREFIX - 1);
}

/* Opens the folder `path`, component by component where it lies below `inside`. */
static int open_folder(struct place *p, const char *path, bool make, struct error *err)
{
    const char *inside = p->target->inside, *rest = path;
    cleanup_fd int at = -1;

    if (inside) {
        size_t n = strlen(inside);
        while (n > 1 && inside[n - 1] == '/')
            n--;
        if (strncmp(path, inside, n) != 0 || (path[n] && path[n] != '/')) {
            error_set(err, ERR_UNSAFE, "`%s` is not below `%s`", path, inside);
            return -1;
        }
        cleanup_free char *base = xstrndup(inside, n);
        at = open(base, O_PATH | O_DIRECTORY | O_CLOEXEC);
        rest = path + n;
    } else {
        at = open(path[0] == '/' ? "/" : ".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    if (at < 0) {
        error_sys(err, errno, "open the folder of `%s`", path);
        return -1;
    }
    while (*rest) {
        size_t n = strcspn(rest, "/");
        cleanup_free char *part = xstrndup(rest, n);
        rest += n + strspn(rest + n, "/");
        if (n == 0 || strcmp(part, ".") == 0)
            continue;
        if (inside && strcmp(part, "..") == 0) {
            error_set(err, ERR_UNSAFE, "`%s` leads out of `%s`", path, inside);
            return -1;
        }
        int flags = O_PATH | O_DIRECTORY | O_CLOEXEC | (inside ? O_NOFOLLOW : 0);
        int next = openat(at, part, flags);
        if (next < 0 && errno == ENOENT && make) {
            if (mkdirat(at, part, 0777) == 0)
                p->n_made++;
            else if (errno != EEXIST) {
                error_sys(err, errno, "make the folder `%s` of `%s`", part, path);
                return -1;
            }
            next = openat(at, part, flags | O_NOFOLLOW);
        }
        if (next < 0 && !make && errno == ENOENT)
            return -1;
        if (next < 0) {
            bool link = inside && (errno == ENOTDIR || errno == ELOOP);
            if (link)
                error_set(err, ERR_UNSAFE,
                          "`%s` in `%s` is not a folder (a link, perhaps): it is not followed",
                          part, path);
            else
                error_sys(err, errno, "open the folder `%s` of `%s`", part, path);
            return -1;
        }
        close(at);
        at = next;
    }
    int fd = openat(at, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        error_sys(err, errno, "open the folder `%s`", path);
    return fd;
}

static bool is_folder(const struct place *p, const char *path)
{
    struct stat st;

    return (p->target->inside ? lstat(path, &st) : stat(path, &st)) == 0 && S_ISDIR(st.st_mode);
}

bool place_open(struct place *p, const struct tree_target *target, bool dry_run, struct error *err)
{
    *p = (struct place){
        .target = target, .parent = -1, .root = -1, .work = -1, .work_in = -1, .existing = -1};
    cleanup_free char *path = xstrdup(target->path[0] ? target->path : ".");
    size_t n = strlen(path);
    bool slash = n > 1 && path[n - 1] == '/';
    while (n > 1 && path[n - 1] == '/')
        path[--n] = 0;
    const char *last = strrchr(path, '/');
    last = last ? last + 1 : path;
    cleanup_free char *dir = NULL;
    if (target->into && (slash || is_folder(p, path))) {
        p->name = xstrdup(target->into);
        dir = xstrdup(path);
    } else if (strcmp(last, ".") == 0 || strcmp(last, "..") == 0 || !*last) {
        dir = xstrdup(path);
    } else {
        p->name = xstrdup(last);
        dir = last == path ? xstrdup(".") : xstrndup(path, (size_t)(last - path));
    }
    if (p->name && !fs_name_ok(p->name, strlen(p->name), TREE_MAX_NAME))
        return error_set(err, ERR_INVALID, "`%s` cannot be the name of a file", p->name);
    p->shown =
        p->name ? xasprintf("%s%s%s", dir, text_ends(dir, "/") ? "" : "/", p->name) : xstrdup(dir);
    cleanup_error struct error why = {0};
    p->parent = open_folder(p, dir, !dry_run, &why);
    if (p->n_made)
        p->made = steal_ptr(dir);
    if (p->parent < 0 && why.code) {
        error_move(err, &why);
        return false;
    }
    return true;
}

int place_peek(const struct place *p)
{
    if (p->parent < 0)
        return -1;
    return openat(p->parent, p->name ? p->name : ".",
                  O_RDONLY | O_DIRECTORY | O_CLOEXEC | (p->target->inside ? O_NOFOLLOW : 0));
}

bool place_is_no_dir(const struct place *p)
{
    struct stat st;
    int flags = p->target->inside ? AT_SYMLINK_NOFOLLOW : 0;

    return p->parent >= 0 && p->name && fstatat(p->parent, p->name, &st, flags) == 0 &&
           !S_ISDIR(st.st_mode);
}

/* Removes what somebody who was killed left in the folder. Whatever cannot be removed stays. */
static void sweep(int dirfd)
{
    cleanup_fd int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return;
    struct entries e;
    entries_init(&e, fd, 32768);
    for (const char *name; (name = entries_next(&e));) {
        if (!text_starts(name, TEMP_PREFIX))
            continue;
        cleanup_fd int old =
            openat(fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
        if (old >= 0 && flock(old, LOCK_EX | LOCK_NB) == 0)
            tree_remove_at(fd, name, NULL);
    }
    entries_free(&e);
}

/* Takes the lock; false when a sweep was faster and removed it. */
static bool claim(int fd)
{
    struct stat st;

    return flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &st) == 0 && st.st_nlink > 0;
}

/* -1 and errno */
static int make_work(struct place *p, int in)
{
    for (int tries = 0; tries < 8; tries++) {
        place_temp_name(p->work_name);
        if (mkdirat(in, p->work_name, 0700) < 0)
            return -1;
        int fd = fs_open_dir(in, p->work_name, true);
        if (fd >= 0 && claim(fd)) {
            p->work = fd;
            p->work_in = in;
            return fd;
        }
        if (fd >= 0)
            close(fd);
    }
    errno = EAGAIN;
    return -1;
}

static bool stage(struct place *p, struct error *err)
{
    if (mkdirat(p->work, "tree", 0700) < 0 || (p->root = fs_open_dir(p->work, "tree", true)) < 0)
        return error_sys(err, errno, "make a folder to stage `%s` in", p->shown);
    p->staged = true;
    return true;
}

bool place_begin_dir(struct place *p, struct error *err)
{
    struct stat st, up;
    bool merge = p->target->placement == TREE_MERGE;

    p->existing = place_peek(p);
    p->existed = p->existing >= 0;
    if (p->existed && merge) {
        p->root = steal_fd(&p->existing);
        sweep(p->root);
        if (make_work(p, p->root) < 0)
            return error_sys(err, errno, "make a folder for unfinished files in `%s`", p->shown);
        return true;
    }
    /* A mount point cannot be renamed, and a parent that is not ours takes no new folder beside it:
     * then what is staged moves into the folder that is there. */
    if (p->existed && (!p->name || (fstat(p->existing, &st) == 0 && fstat(p->parent, &up) == 0 &&
                                    (st.st_dev != up.st_dev || (st.st_ino == up.st_ino)))))
        p->in_place = true;
    if (!p->in_place) {
        sweep(p->parent);
        if (make_work(p, p->parent) < 0) {
            if (!p->existed || (errno != EACCES && errno != EPERM && errno != EROFS))
                return error_sys(err, errno, "make a folder to stage `%s` in", p->shown);
            p->in_place = true;
        }
    }
    if (p->in_place) {
        sweep(p->existing);
        if (make_work(p, p->existing) < 0)
            return error_sys(err, errno, "make a folder for the new files in `%s`", p->shown);
    }
    return stage(p, err);
}

/* A folder that forbids writing to its owner cannot move to another parent: `..` is in it. */
static bool move_protected(int from, const char *name, int to)
{
    struct stat st;
    int why = errno;

    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) == 0 && S_ISDIR(st.st_mode)) {
        cleanup_fd int fd = fs_open_dir(from, name, true);
        bool ok = fd >= 0 && renameat(from, name, to, name) == 0;
        if (fd >= 0)
            fchmod(fd, st.st_mode & 07777);
        if (ok)
            return true;
    }
    errno = why;
    return false;
}

/* Moves the entries of `from` to `to`, but for `except`. */
static bool move_entries(int from, int to, const char *except, bool remove_unmovable,
                         struct error *err)
{
    struct entries e;
    bool ok = true;

    entries_init(&e, from, 32768);
    entries_restart(&e);
    for (const char *name; ok && (name = entries_next(&e));) {
        if (except && strcmp(name, except) == 0)
            continue;
        if (renameat(from, name, to, name) == 0 ||
            (errno == EACCES && move_protected(from, name, to)))
            continue;
        /* EXDEV: a folder of an overlay's lower layer, or a mount point */
        if (errno == EXDEV && remove_unmovable)
            ok = tree_remove_at(from, name, err);
        else
            ok = error_sys(err, errno, "move `%s`", name);
    }
    entries_free(&e);
    return ok;
}

static bool replace_entries(struct place *p, const struct meta *m, struct error *err)
{
    cleanup_fd int old = -1;
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {m->mtime, m->nsec}};

    if (mkdirat(p->work, "old", 0700) < 0 || (old = fs_open_dir(p->work, "old", true)) < 0)
        return error_sys(err, errno, "make a folder for what `%s` held", p->shown);
    if (!move_entries(p->existing, old, p->work_name, true, err) ||
        !move_entries(p->root, p->existing, NULL, false, err)) {
        move_entries(old, p->existing, NULL, false, NULL);
        return error_prefix(err, "replace the content of `%s`", p->shown);
    }
    if (!tree_remove_at(p->work_in, p->work_name, err))
        return error_prefix(err, "`%s` is in place, but what it replaced could not be removed",
                            p->shown);
    p->work_name[0] = 0;
    if (fchmod(p->existing, m->mode) < 0 || futimens(p->existing, times) < 0)
        return error_sys(err, errno, "set mode and time of `%s`", p->shown);
    return true;
}

static bool swap(struct place *p, const struct meta *m, struct error *err)
{
    /* Of libc's functions only newer ones have this one. */
    if (syscall(SYS_renameat2, p->work, "tree", p->parent, p->name, RENAME_EXCHANGE) == 0)
        return true;
    if (errno == EINVAL || errno == ENOSYS) {
        if (renameat(p->parent, p->name, p->work, "old") < 0 && errno != ENOENT)
            return error_sys(err, errno, "move the old `%s` away", p->shown);
        errno = ENOENT;
    }
    if (errno == ENOENT) {
        if (renameat(p->work, "tree", p->parent, p->name) == 0)
            return true;
        int why = errno;
        renameat(p->work, "old", p->parent, p->name);
        return error_sys(err, why, "put `%s` in place", p->shown);
    }
    int why = errno;
    if (why == EXDEV || why == EBUSY) {
        if (p->existing < 0)
            p->existing = place_peek(p);
        if (p->existing >= 0)
            return replace_entries(p, m, err);
    }
    return error_sys(err, why, "put `%s` in place", p->shown);
}

static bool commit_dir(struct place *p, const struct meta *m, struct error *err)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {m->mtime, m->nsec}};

    if (!p->staged) {
        /* The folder was there before and is the user's (a home, say): its mode stays unless asked.
         */
        if (!tree_remove_at(p->work_in, p->work_name, err))
            return error_prefix(err, "`%s`", p->shown);
        p->work_name[0] = 0;
        if ((p->target->mode >= 0 && fchmod(p->root, m->mode) < 0) ||
            (futimens(p->root, times) < 0 && errno != EPERM))
            return error_sys(err, errno, "set mode and time of `%s`", p->shown);
        return true;
    }
    if (p->in_place)
        return replace_entries(p, m, err);
    if (!swap(p, m, err))
        return false;
    if (p->work_name[0]) {
        if (!tree_remove_at(p->work_in, p->work_name, err))
            return error_prefix(err, "`%s` is in place, but what it replaced could not be removed",
                                p->shown);
        p->work_name[0] = 0;
        if (fchmod(p->root, m->mode) < 0 || futimens(p->root, times) < 0)
            return error_sys(err, errno, "set mode and time of `%s`", p->shown);
    }
    return true;
}

bool place_commit_dir(struct place *p, const struct meta *m, struct error *err)
{
    p->done = commit_dir(p, m, err);
    return p->done;
}

int place_begin_file(struct place *p, struct error *err)
{
    if (!p->name) {
        error_set(err, ERR_INVALID, "`%s` is a folder; name the file", p->shown);
        return -1;
    }
    sweep(p->parent);
    for (int tries = 0; tries < 8; tries++) {
        place_temp_name(p->file_name);
        int fd = openat(p->parent, p->file_name,
                        O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (fd < 0) {
            p->file_name[0] = 0;
            error_sys(err, errno, "make a file beside `%s`", p->shown);
            return -1;
        }
        if (claim(fd))
            return fd;
        close(fd);
    }
    error_sys(err, EAGAIN, "make a file beside `%s`", p->shown);
    return -1;
}

bool place_commit_file(struct place *p, struct error *err)
{
    if (renameat(p->parent, p->file_name, p->parent, p->name) < 0)
        return error_sys(err, errno, "rename the finished file to `%s`", p->shown);
    p->file_name[0] = 0;
    p->done = true;
    return true;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void place_end(struct place *p)
{
    if (p->file_name[0])
        unlinkat(p->parent, p->file_name, 0);
    if (p->work_name[0])
        tree_remove_at(p->work_in, p->work_name, NULL);
    if (!p->done) {
        while (p->n_made && p->made[0] && rmdir(p->made) == 0) {
            p->n_made--;
            char *slash = strrchr(p->made, '/');
            while (slash && slash > p->made && slash[-1] == '/')
                slash--;
            *(slash ? slash : p->made) = 0;
        }
    }
    close_fd(&p->work);
    close_fd(&p->root);
    close_fd(&p->existing);
    close_fd(&p->parent);
    free(p->name);
    free(p->made);
    free(p->shown);
    *p = (struct place){.parent = -1, .root = -1, .work = -1, .work_in = -1, .existing = -1};
}
