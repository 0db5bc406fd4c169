#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/sender.h"

/* An entry that was offered; sent in the order of the walk once its answer is there. */
struct queued {
    struct item item;
    char *path;
    char answer; /* 0: not yet; '+': the receiver needs it; '=': has it; '-': no question */
};

/* Everything queued is bounded: paths together, and open folders, which keep descriptors. */
enum { MAX_QUEUED_BYTES = 1 << 20, MAX_QUEUED_DIRS = 100 };

static void push(struct sender *s, const struct item *it)
{
    struct queued *q = &s->queue[(s->head + s->count++) % TREE_WINDOW];

    *q = (struct queued){
        .item = *it, .path = xstrdup(it->path), .answer = it->kind == ITEM_FILE ? 0 : '-'};
    q->item.path = q->path;
    dir_ref(q->item.dir);
    s->queued_bytes += strlen(q->path);
    s->queued_dirs += it->kind == ITEM_DIR;
}

static void pop(struct sender *s)
{
    struct queued *q = &s->queue[s->head];

    s->queued_bytes -= strlen(q->path);
    s->queued_dirs -= q->item.kind == ITEM_DIR;
    dir_unref(q->item.dir);
    free(q->path);
    s->head = (s->head + 1) % TREE_WINDOW;
    s->count--;
    if (s->unanswered_at)
        s->unanswered_at--;
}

static bool emit_ready(struct sender *s, struct error *err)
{
    while (s->count && s->queue[s->head].answer) {
        if (!send_entry(s, &s->queue[s->head].item, s->queue[s->head].answer, err))
            return false;
        pop(s);
    }
    return true;
}

static bool answers(struct sender *s, struct cursor *c, struct error *err)
{
    while (c->left) {
        char a = (char)cursor_u8(c);
        while (s->unanswered_at < s->count &&
               s->queue[(s->head + s->unanswered_at) % TREE_WINDOW].answer)
            s->unanswered_at++;
        if ((a != '+' && a != '=') || s->unanswered_at == s->count)
            return error_set(err, ERR_PROTOCOL, "%s answered a question that was not asked",
                             s->opts->peer ? s->opts->peer : "the other side");
        s->queue[(s->head + s->unanswered_at++) % TREE_WINDOW].answer = a;
    }
    return true;
}

/* One record from the receiver. *end: it was the result. */
static bool receive_one(struct sender *s, bool *end, struct error *err)
{
    enum record type;
    size_t len;
    struct cursor c;

    *end = false;
    if (!in_next(&s->in, &type, &len, err))
        return false;
    if (type != REC_ANSWERS && type != REC_NOTE && type != REC_RESULT)
        return in_unexpected(type, err);
    if (!in_payload(&s->in, len, &c, err))
        return false;
    if (type == REC_ANSWERS)
        return answers(s, &c, err);
    if (type == REC_NOTE)
        return in_note(&c, s->opts, s->stats, err);
    *end = true;
    cleanup_error struct error reason = {0};
    bool ok = in_reason(&c, &reason);
    uint64_t deleted = cursor_u64(&c), stripped = cursor_u64(&c);
    if (!ok || !in_done(&c, type, err))
        return error_set(err, ERR_PROTOCOL, "the other side's result is malformed");
    s->stats->deleted = deleted;
    s->stats->stripped = stripped;
    if (reason.code == ERR_NONE)
        return true;
    s->refused = true;
    if (s->opts->peer)
        error_prefix(&reason, "on %s", s->opts->peer);
    error_move(err, &reason);
    return false;
}

static bool wait_answers(struct sender *s, struct error *err)
{
    bool end;

    if (!out_flush(&s->out, err) || !receive_one(s, &end, err))
        return false;
    if (end)
        return error_set(err, ERR_PROTOCOL, "the other side reported success before the end");
    return emit_ready(s, err);
}

static bool send_source(struct sender *s, const struct tree_source *src, uint32_t index,
                        struct error *err)
{
    struct walk w __attribute__((cleanup(walk_free)));
    struct item it;
    int r;

    s->src = src;
    walk_init(&w, src, s->limits->depth);
    w.note = send_note;
    w.arg = s;
    if (!out_begin(&s->out, REC_BEGIN, 4, err))
        return false;
    out_u32(&s->out, index);
    out_end(&s->out);
    while ((r = walk_next(&w, &it, err)) > 0) {
        if (!s->opts->update) {
            if (!send_entry(s, &it, '-', err))
                return false;
            continue;
        }
        if (!send_offer(s, &it, err))
            return false;
        push(s, &it);
        while (s->count == TREE_WINDOW || s->queued_bytes > MAX_QUEUED_BYTES ||
               s->queued_dirs > MAX_QUEUED_DIRS) {
            if (!emit_ready(s, err))
                return false;
            if (s->count == TREE_WINDOW || s->queued_bytes > MAX_QUEUED_BYTES ||
                s->queued_dirs > MAX_QUEUED_DIRS) {
                if (!wait_answers(s, err))
                    return false;
            }
        }
    }
    if (r < 0)
        return false;
    while (s->count) {
        if (!emit_ready(s, err) || (s->count && !wait_answers(s, err)))
            return false;
    }
    return true;
}

static bool send_start(struct sender *s, const struct tree_source *sources, size_t n,
                       struct error *err)
{
    const struct tree_opts *o = s->opts;

    if (!out_begin(&s->out, REC_VERSION, 16, err))
        return false;
    for (int i = 0; i < 8; i++)
        out_u8(&s->out, (uint8_t)TREE_MAGIC[i]);
    out_u32(&s->out, (o->update ? TREE_FLAG_UPDATE : 0) | (o->checksum ? TREE_FLAG_CHECKSUM : 0) |
                         (o->dry_run ? TREE_FLAG_DRY_RUN : 0));
    out_end(&s->out);
    if (!o->totals)
        return true;
    for (size_t i = 0; i < n; i++) {
        uint64_t entries, bytes;
        if (!tree_measure(&sources[i], &entries, &bytes, err))
            return false;
        s->stats->total_entries += entries;
        s->stats->total_bytes += bytes;
    }
    if (!out_begin(&s->out, REC_PLAN, 16, err))
        return false;
    out_u64(&s->out, s->stats->total_entries);
    out_u64(&s->out, s->stats->total_bytes);
    out_end(&s->out);
    return true;
}

static bool send_all(struct sender *s, const struct tree_source *sources, size_t n,
                     struct error *err)
{
    bool end = false;

    if (!send_start(s, sources, n, err))
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!send_source(s, &sources[i], (uint32_t)i, err))
            return false;
    }
    if (!out_begin(&s->out, REC_END, 64, err))
        return false;
    const struct tree_stats *st = s->stats;
    const uint64_t sums[] = {st->entries, st->bytes,   st->vanished,
                             st->changed, st->skipped, st->split};
    for (size_t i = 0; i < sizeof sums / sizeof sums[0]; i++)
        out_u64(&s->out, sums[i]);
    out_end(&s->out);
    if (!out_flush(&s->out, err))
        return false;
    while (!end) {
        if (!receive_one(s, &end, err))
            return false;
    }
    return true;
}

/* The receiver may have ended because of something it told us before it closed the stream. */
static void look_for_reason(struct sender *s, struct error *err)
{
    cleanup_error struct error why = {0};
    bool end = false;

    while (!end && receive_one(s, &end, &why))
        ;
    if (s->refused)
        error_move(err, &why);
}

/* Counts failures of the way out, to tell them from failures of the source. */
struct counted {
    struct tree_io *io;
    bool failed;
};

static ssize_t counted_read(void *arg, void *p, size_t n, struct error *err)
{
    struct counted *c = arg;

    return c->io->read(c->io->arg, p, n, err);
}

static bool counted_write(void *arg, const void *p, size_t n, struct error *err)
{
    struct counted *c = arg;

    if (c->io->write(c->io->arg, p, n, err))
        return true;
    c->failed = true;
    return false;
}

bool tree_send(const struct tree_source *sources, size_t n, const struct tree_opts *opts,
               struct tree_io *io, struct tree_stats *stats, struct error *err)
{
    struct tree_stats own = {0};
    struct counted counted = {.io = io};
    struct tree_io through = {counted_read, counted_write, &counted};
    struct tree_limits limits = opts->limits;
    cleanup_error struct error local = {0};

    if (!limits.depth)
        limits.depth = tree_limits_default.depth;
    struct sender s = {.opts = opts, .limits = &limits, .stats = stats ? stats : &own};
    *s.stats = (struct tree_stats){0};
    out_init(&s.out, &through, TREE_MAX_DATA + 64);
    in_init(&s.in, &through, NULL);
    if (opts->update)
        s.queue = xcalloc(TREE_WINDOW, sizeof *s.queue);
    bool ok = send_all(&s, sources, n, &local);
    error_visible(&local);
    if (!ok && counted.failed) {
        look_for_reason(&s, &local);
    } else if (!ok && !s.refused) {
        out_undo(&s.out);
        if (out_begin(&s.out, REC_FAILED, TREE_MAX_MESSAGE + 16, NULL)) {
            out_reason(&s.out, &local);
            out_end(&s.out);
            out_flush(&s.out, NULL);
        }
    }
    while (s.count)
        pop(&s);
    error_move(err, &local);
    free(s.queue);
    free(s.buffer);
    links_free(&s.links);
    out_free(&s.out);
    in_free(&s.in);
    return ok;
}

bool tree_measure(const struct tree_source *source, uint64_t *entries, uint64_t *bytes,
                  struct error *err)
{
    struct walk w __attribute__((cleanup(walk_free)));
    struct links links __attribute__((cleanup(links_free))) = {0};
    struct item it;
    int r;

    *entries = *bytes = 0;
    walk_init(&w, source, tree_limits_default.depth);
    while ((r = walk_next(&w, &it, err)) > 0) {
        bool known = false, last;
        if (it.kind == ITEM_FILE && it.st.st_nlink > 1 && !source->follow && !it.root)
            links_number(&links, &it.st, &known, &last);
        *entries += it.kind != ITEM_LEAVE;
        *bytes += it.kind == ITEM_FILE && !known ? (uint64_t)it.st.st_size : 0;
    }
    return r == 0;
}
