/* `remove`: what the target has and the source lacks goes, but for the excluded entries and the
 * folders that hold them; as rsync's --delete. Follows nothing. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "tree/fs.h"
#include "tree/receiver.h"

static bool excluded(const struct receiver *r)
{
    return tree_excluded(r->target->exclude, r->target->n_exclude, r->path.data);
}

/* Sets the path to that of an entry in the folder whose path has `len` bytes. */
static void enter_name(struct receiver *r, size_t len, const char *name)
{
    r->path.len = len;
    buf_putc(&r->path, '/');
    buf_puts(&r->path, name);
}

static void back_to(struct receiver *r, size_t len)
{
    r->path.len = len;
    r->path.data[len] = 0;
}

static bool too_deep(struct receiver *r, unsigned depth, struct error *err)
{
    return depth > r->limits.depth &&
           !error_set(err, ERR_TOO_LARGE,
                      "delete `%s`: deeper than %u folders, the limit where entries are excluded",
                      r->path.data, r->limits.depth);
}

/* True also where it is so deep that nobody can say. */
static bool holds_excluded(struct receiver *r, int dirfd, const char *name, unsigned depth)
{
    size_t len = r->path.len;
    bool found = false;
    cleanup_fd int fd = fs_open_dir(dirfd, name, !r->opts->dry_run);

    if (fd < 0)
        return false;
    if (too_deep(r, depth, NULL))
        return true;
    struct entries e;
    entries_init(&e, fd, 4096);
    for (const char *entry; !found && (entry = entries_next(&e));) {
        enter_name(r, len, entry);
        found = excluded(r) || holds_excluded(r, fd, entry, depth + 1);
    }
    entries_free(&e);
    back_to(r, len);
    return found;
}

bool delete_would_spare(struct receiver *r, int dirfd, const char *name)
{
    return r->target->n_exclude && holds_excluded(r, dirfd, name, r->depth);
}

static bool told(struct receiver *r, struct error *err)
{
    r->stats->deleted++;
    return receiver_note(r, TREE_DELETED, r->path.data, err);
}

static bool delete_entry(struct receiver *r, int dirfd, const char *name, unsigned depth,
                         struct error *err)
{
    size_t len = r->path.len;
    bool ok = true;

    if (!r->target->n_exclude || !holds_excluded(r, dirfd, name, depth)) {
        if (!r->opts->dry_run && !tree_remove_at(dirfd, name, err))
            return error_prefix(err, "delete `%s`, which the source does not have", r->path.data);
        return told(r, err);
    }
    if (too_deep(r, depth, err))
        return false;
    cleanup_fd int fd = fs_open_dir(dirfd, name, !r->opts->dry_run);
    if (fd < 0)
        return error_sys(err, errno, "open the folder `%s` to delete in it", r->path.data);
    struct entries e;
    entries_init(&e, fd, 4096);
    for (const char *entry; ok && (entry = entries_next(&e));) {
        enter_name(r, len, entry);
        ok = excluded(r) || delete_entry(r, fd, entry, depth + 1, err);
    }
    entries_free(&e);
    back_to(r, len);
    return ok;
}

bool delete_others(struct receiver *r, struct level *l, struct error *err)
{
    struct entries e;
    bool ok = true;

    entries_init(&e, l->fd, 32768);
    entries_restart(&e);
    for (const char *name; ok && (name = entries_next(&e));) {
        if (names_has(&l->seen, name, strlen(name), r->key))
            continue;
        if (r->place.work_name[0] && r->depth == 1 && strcmp(name, r->place.work_name) == 0)
            continue;
        enter_name(r, l->path_len, name);
        ok = excluded(r) || delete_entry(r, l->fd, name, r->depth, err);
    }
    entries_free(&e);
    back_to(r, l->path_len);
    return ok;
}
