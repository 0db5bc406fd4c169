#include "lib/transfer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"

enum {
    CREDIT = 4 << 20, /* bytes under way from the VM: 100 MB/s at 40 ms, and the most that waits in
                         memory */
    MAX_WORDS = 4096, /* kept of what files-in, files-out say on stderr */
    END_MS = 2000,    /* for the far end to exit after a success */
    CLEAN_UP_MS = 20000, /* for the far end to remove what is unfinished */
};

/* The far end's stream as a tree_io. */
struct far {
    struct stream *stream;
    struct cancel *cancel;
    struct deadline deadline;
    const char *data; /* of the last chunk, not yet read */
    size_t left;
    bool eof, ended;
    bool failed; /* the link or a deadline of ours, not the far end */
    struct buf words;
};

/* Waits for the next thing the far end says. False: nothing will come, or err. */
static bool far_next(struct far *f, struct deadline d, struct cancel *cancel, struct error *err)
{
    enum stream_event event;
    struct stream_chunk chunk;

    if (f->ended)
        return false;
    if (!stream_next(f->stream, &event, &chunk, d, cancel, err)) {
        f->failed = true;
        return false;
    }
    switch (event) {
    case STREAM_DATA:
        if (chunk.channel == 1) {
            f->data = chunk.data;
            f->left = chunk.len;
        } else if (f->words.len < MAX_WORDS) {
            buf_put(&f->words, chunk.data,
                    chunk.len < MAX_WORDS - f->words.len ? chunk.len : MAX_WORDS - f->words.len);
        }
        break;
    case STREAM_EOF:
        f->eof |= chunk.channel == 1;
        break;
    case STREAM_EXIT:
        f->eof = f->ended = true;
        break;
    case STREAM_FAILED:
    case STREAM_BROKEN:
        f->ended = f->failed = true;
        return false;
    default:
        break;
    }
    return true;
}

/* Looked at before anything is read or written: what never has to wait would never notice. */
static bool far_may_go_on(struct far *f, struct error *err)
{
    if (!cancel_fired(f->cancel) && !deadline_passed(f->deadline))
        return true;
    f->failed = true;
    return cancel_fired(f->cancel) ? error_set(err, ERR_CANCELLED, "the transfer was cancelled")
                                   : error_set(err, ERR_TIMEOUT, "the transfer timed out");
}

static ssize_t far_read(void *arg, void *p, size_t n, struct error *err)
{
    struct far *f = arg;

    if (!far_may_go_on(f, err))
        return -1;
    while (!f->left && !f->eof) {
        if (!far_next(f, f->deadline, f->cancel, err))
            return f->failed ? -1 : 0;
    }
    if (n > f->left)
        n = f->left;
    if (n)
        memcpy(p, f->data, n);
    f->data += n;
    f->left -= n;
    return (ssize_t)n;
}

static bool far_write(void *arg, const void *p, size_t n, struct error *err)
{
    struct far *f = arg;

    return far_may_go_on(f, err) && stream_write(f->stream, p, n, f->deadline, f->cancel, err);
}

/* Ends the far end's part. After a failed push it gets the time to remove what it had begun, also
 * when the call was cancelled; after a failed pull it has nothing to do and may be stopped. */
static void far_close(struct far *f, bool push, bool ok)
{
    struct deadline d = deadline_in(ok ? END_MS : push ? CLEAN_UP_MS : 0);

    stream_write_eof(f->stream);
    while (!f->ended && far_next(f, d, NULL, NULL))
        f->left = 0;
    stream_close(f->stream);
    buf_free(&f->words);
}

static void on_progress(void *arg, enum tree_note note, const char *path,
                        const struct tree_stats *now)
{
    const struct transfer_opts *o = arg;

    if (path && o->entry)
        o->entry(note, path, o->progress_arg);
    if (o->progress)
        o->progress(now->bytes, now->bytes + now->same_bytes, now->total_bytes, o->progress_arg);
}

static struct tree_opts tree_opts_of(const struct transfer_opts *o)
{
    return (struct tree_opts){
        .update = o->update || o->checksum,
        .checksum = o->checksum,
        .dry_run = o->dry_run,
        .totals = o->progress != NULL,
        .refuse_case = o->refuse_case,
        .limits = o->limits,
        .peer = "the VM",
        .progress = o->progress || o->entry ? on_progress : NULL,
        .arg = (void *)(uintptr_t)o,
    };
}

/* The words of files-in or files-out. */
struct args {
    char **list;
    size_t n;
};

static void args_free(struct args *a)
{
    while (a->n)
        free(a->list[--a->n]);
    free(a->list);
}

static void add(struct args *a, const char *name, const char *value)
{
    a->list = xreallocarray(a->list, a->n + 2, sizeof *a->list);
    a->list[a->n++] = xasprintf("%s%s", name, value);
    a->list[a->n] = NULL;
}

static void add_if(struct args *a, bool yes, const char *name)
{
    if (yes)
        add(a, name, "");
}

/* `~/x` is what people write; to the helper a path without a leading slash is below the home
 * directory. */
static const char *remote_path(const char *path)
{
    if (strcmp(path, "~") == 0)
        return ".";
    if (text_starts(path, "~/")) {
        path += 1 + strspn(path + 1, "/");
        return *path ? path : ".";
    }
    return *path ? path : ".";
}

static void describe(struct args *a, const struct transfer_item *items, size_t n,
                     const struct transfer_opts *o, bool push)
{
    add(a, push ? "files-in" : "files-out", "");
    add_if(a, o->checksum, "--checksum");
    add_if(a, o->update && !o->checksum, "--update");
    add_if(a, o->dry_run, "--dry-run");
    add_if(a, push, "--keep-special");
    add_if(a, !push && o->progress, "--totals");
    for (size_t i = 0; i < n; i++) {
        const struct transfer_item *it = &items[i];
        char mode[16];
        add(a, push ? "--to=" : "--from=", remote_path(it->remote));
        if (it->kind != TREE_ANY)
            add(a, "--kind=", it->kind == TREE_FILE ? "file" : "folder");
        for (size_t k = 0; k < it->n_exclude; k++)
            add(a, "--exclude=", it->exclude[k]);
        add_if(a, !push && it->follow, "--follow");
        if (!push)
            continue;
        if (it->into)
            add(a, "--into=", it->into);
        snprintf(mode, sizeof mode, "%o", (unsigned)it->mode & 07777);
        if (it->mode >= 0)
            add(a, "--mode=", mode);
        add_if(a, o->merge, "--merge");
        add_if(a, o->merge && o->remove, "--remove");
    }
}

static bool far_open(struct far *f, struct link *l, const struct transfer_item *items, size_t n,
                     const struct transfer_opts *o, bool push, struct error *err)
{
    struct args args __attribute__((cleanup(args_free))) = {0};

    describe(&args, items, n, o, push);
    *f = (struct far){
        .cancel = o->cancel,
        .deadline = o->timeout_ms > 0 ? deadline_in(o->timeout_ms) : DEADLINE_NEVER,
    };
    struct stream_request req = {
        .kind = STREAM_BUILTIN,
        .credit = CREDIT,
        .argv = (const char *const *)args.list,
    };
    f->stream = stream_open(l, &req, f->deadline, f->cancel, err);
    return f->stream != NULL;
}

/* What the far end said on stderr explains a stream that ended without a reason. */
static void explain(struct far *f, struct error *err)
{
    if (err->code != ERR_NETWORK || f->failed || !f->words.len)
        return;
    cleanup_free char *words = text_trim(f->words.data);
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, words, strlen(words), MAX_WORDS);
    error_set(err, ERR_SYSTEM, "on the VM: %s", shown.data ? shown.data : "");
}

static void account(struct transfer_stats *stats, const struct tree_stats *s)
{
    if (!stats)
        return;
    stats->files += s->files;
    stats->bytes += s->bytes;
    stats->entries += s->entries;
    stats->same += s->same;
    stats->deleted += s->deleted;
    stats->vanished += s->vanished;
    stats->changed += s->changed;
    stats->skipped += s->skipped;
    stats->stripped += s->stripped;
    stats->split += s->split;
}

static bool finish(struct far *f, bool push, bool ok, const struct tree_stats *done,
                   struct transfer_stats *stats, struct error *local, struct error *err)
{
    /* Its last words may still be under way. */
    if (!ok && !f->failed && !f->ended && local->code == ERR_NETWORK) {
        stream_write_eof(f->stream);
        while (far_next(f, deadline_in(END_MS), NULL, NULL))
            f->left = 0;
    }
    if (!ok)
        explain(f, local);
    far_close(f, push, ok);
    account(stats, done);
    error_move(err, local);
    return ok;
}

bool transfer_push_items(struct link *l, const struct transfer_item *items, size_t n,
                         const struct transfer_opts *opts, struct transfer_stats *stats,
                         struct error *err)
{
    cleanup_error struct error local = {0};
    cleanup_free struct tree_source *sources = xcalloc(n, sizeof *sources);
    struct tree_opts tree = tree_opts_of(opts);
    struct tree_stats done = {0};
    struct far f;

    for (size_t i = 0; i < n; i++)
        sources[i] = (struct tree_source){
            .path = items[i].local,
            .kind = items[i].kind,
            .follow = items[i].follow,
            .exclude = items[i].exclude,
            .n_exclude = items[i].n_exclude,
        };
    if (!far_open(&f, l, items, n, opts, true, err))
        return false;
    struct tree_io io = {far_read, far_write, &f};
    bool ok = tree_send(sources, n, &tree, &io, &done, &local);
    return finish(&f, true, ok, &done, stats, &local, err);
}

bool transfer_pull_items(struct link *l, const struct transfer_item *items, size_t n,
                         const struct transfer_opts *opts, struct transfer_stats *stats,
                         struct error *err)
{
    cleanup_error struct error local = {0};
    cleanup_free struct tree_target *targets = xcalloc(n, sizeof *targets);
    struct tree_opts tree = tree_opts_of(opts);
    struct tree_stats done = {0};
    struct far f;

    for (size_t i = 0; i < n; i++)
        targets[i] = (struct tree_target){
            .path = items[i].local,
            .into = items[i].into,
            .inside = items[i].inside,
            .kind = items[i].kind,
            .placement = opts->merge ? TREE_MERGE : TREE_REPLACE,
            .remove = opts->merge && opts->remove,
            .mode = items[i].mode,
            .exclude = items[i].exclude,
            .n_exclude = items[i].n_exclude,
        };
    if (!far_open(&f, l, items, n, opts, false, err))
        return false;
    struct tree_io io = {far_read, far_write, &f};
    bool ok = tree_receive(targets, n, &tree, &io, &done, &local);
    return finish(&f, false, ok, &done, stats, &local, err);
}

static struct transfer_item one(const char *local, const char *remote,
                                const struct transfer_opts *o)
{
    return (struct transfer_item){
        .local = local,
        .remote = remote,
        .mode = -1,
        .follow = o->follow,
        .exclude = o->exclude,
        .n_exclude = o->n_exclude,
    };
}

bool transfer_push(struct link *l, const char *local, const char *remote,
                   const struct transfer_opts *opts, struct transfer_stats *stats,
                   struct error *err)
{
    struct transfer_item item = one(local, remote, opts);

    return transfer_push_items(l, &item, 1, opts, stats, err);
}

bool transfer_pull(struct link *l, const char *remote, const char *local,
                   const struct transfer_opts *opts, struct transfer_stats *stats,
                   struct error *err)
{
    struct transfer_item item = one(local, remote, opts);

    return transfer_pull_items(l, &item, 1, opts, stats, err);
}
