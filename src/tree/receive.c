#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "tree/fs.h"
#include "tree/receiver.h"

const char *receiver_peer(const struct receiver *r)
{
    return r->opts->peer ? r->opts->peer : "the other side";
}

void receiver_tell(struct receiver *r, enum tree_note note, const char *path)
{
    if (r->opts->progress)
        r->opts->progress(r->opts->arg, note, path, r->stats);
}

bool receiver_note(struct receiver *r, enum tree_note note, const char *path, struct error *err)
{
    size_t n = strlen(path) + 10;

    receiver_tell(r, note, path);
    if (r->notes >= TREE_MAX_NOTES || n > TREE_MAX_BACK_NOTES - r->note_bytes)
        return true;
    r->notes++;
    r->note_bytes += n;
    return out_note(&r->out, note, path, err);
}

uint32_t receiver_mode(struct receiver *r, uint32_t mode, bool root)
{
    if (root && r->target->mode >= 0)
        return (uint32_t)r->target->mode & 07777;
    if (!r->opts->keep_special && (mode & 07000)) {
        r->stats->stripped++;
        mode &= 0777;
    }
    return mode;
}

/* A name of the stream. Copied, because a record's bytes last until the next one only. */
static char *take_name(struct receiver *r, struct cursor *c, struct error *err)
{
    size_t n;
    const char *s = cursor_str(c, TREE_MAX_SMALL, &n);

    if (c->bad) {
        error_set(err, ERR_PROTOCOL, "%s sent a malformed record", receiver_peer(r));
        return NULL;
    }
    if (n && !fs_name_ok(s, n, r->limits.name)) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, s, n, 100);
        error_set(err, ERR_UNSAFE, "%s sent the name `%s`, which is %s: refused", receiver_peer(r),
                  shown.data, n > r->limits.name ? "longer than allowed" : "no name of a file");
        return NULL;
    }
    return xstrndup(s, n);
}

static bool begin_mapping(struct receiver *r, uint32_t index, struct error *err)
{
    if (r->placed && (!r->root_done || (r->opts->update && !r->look_done)))
        return in_unexpected(REC_BEGIN, err);
    if (index != r->next || index >= r->n)
        return error_set(err, ERR_PROTOCOL, "%s began entry %u of the transfer out of turn",
                         receiver_peer(r), index);
    if (!apply_commit(r, err))
        return false;
    apply_abort(r);
    compare_end(r);
    r->target = &r->targets[r->next++];
    r->placed = true; /* from here place_end is needed */
    r->root_done = r->root_is_dir = false;
    return place_open(&r->place, r->target, r->opts->dry_run, err);
}

static bool take_data(struct receiver *r, size_t len, struct error *err)
{
    while (len) {
        const unsigned char *p;
        size_t n = in_some(&r->in, len, &p, err);
        if (!n || !apply_data(r, p, n, err))
            return false;
        len -= n;
    }
    receiver_tell(r, TREE_ENTRY, NULL);
    return true;
}

static bool take_symlink(struct receiver *r, struct cursor *c, struct error *err)
{
    struct meta m;

    in_meta(c, &m);
    cleanup_free char *name = take_name(r, c, err);
    if (!name)
        return false;
    cleanup_free char *target = cursor_strdup(c, TREE_MAX_LINK);
    if (!in_done(c, REC_SYMLINK, err))
        return false;
    if (!*target)
        return error_set(err, ERR_PROTOCOL, "%s sent a link without a target", receiver_peer(r));
    return apply_symlink(r, name, &m, target, err);
}

static bool take_offer(struct receiver *r, enum record type, struct cursor *c, struct error *err)
{
    struct meta m = {0};
    uint64_t size = 0, sum[2] = {0, 0};

    if (!r->opts->update)
        return in_unexpected(type, err);
    if (type == REC_OFFER_LEAVE)
        return in_done(c, type, err) && compare_leave(r, err);
    if (type == REC_OFFER_FILE) {
        in_meta(c, &m);
        size = cursor_u64(c);
        sum[0] = cursor_u64(c);
        sum[1] = cursor_u64(c);
    }
    cleanup_free char *name = take_name(r, c, err);
    if (!name || !in_done(c, type, err))
        return false;
    return type == REC_OFFER_DIR ? compare_dir(r, name, err)
                                 : compare_file(r, name, &m, size, sum, err);
}

static bool take_entry(struct receiver *r, enum record type, struct cursor *c, struct error *err)
{
    struct meta m = {0};
    uint64_t size = 0;
    uint32_t link = 0;
    bool last = false;

    if (type == REC_HARDLINK) {
        link = cursor_u32(c);
        last = cursor_u8(c);
    } else {
        in_meta(c, &m);
        if (type != REC_DIR) {
            size = cursor_u64(c);
            link = cursor_u32(c);
        }
    }
    cleanup_free char *name = take_name(r, c, err);
    if (!name || !in_done(c, type, err))
        return false;
    if (link && !*name)
        return in_unexpected(type, err);
    switch (type) {
    case REC_DIR:
        return apply_dir(r, name, &m, err);
    case REC_FILE:
        return apply_file(r, name, &m, link, err);
    case REC_SAME:
        if (!r->opts->update)
            return in_unexpected(type, err);
        return apply_same(r, name, &m, size, link, err);
    default:
        return apply_hardlink(r, name, link, last, err);
    }
}

/* Within a file only these may come; everything else only outside of one. */
static bool in_file(enum record type)
{
    return type == REC_DATA || type == REC_HOLE || type == REC_END_FILE;
}

static bool take_end(struct receiver *r, struct cursor *c, struct error *err)
{
    struct tree_stats *s = r->stats;
    uint64_t entries = cursor_u64(c), bytes = cursor_u64(c);

    s->vanished = cursor_u64(c);
    s->changed = cursor_u64(c);
    s->skipped = cursor_u64(c);
    s->split = cursor_u64(c);
    if (!in_done(c, REC_END, err))
        return false;
    if (r->next != r->n || (r->n && !r->root_done))
        return error_set(err, ERR_PROTOCOL, "%s ended the transfer too early", receiver_peer(r));
    if (entries != s->entries || (!r->opts->dry_run && bytes != s->bytes))
        return error_set(err, ERR_PROTOCOL,
                         "%s announced %llu entries and %llu bytes, %llu and %llu arrived",
                         receiver_peer(r), (unsigned long long)entries, (unsigned long long)bytes,
                         (unsigned long long)s->entries, (unsigned long long)s->bytes);
    s->bytes = bytes;
    return apply_commit(r, err);
}

static bool take_failed(struct receiver *r, struct cursor *c, struct error *err)
{
    cleanup_error struct error reason = {0};

    if (!in_reason(c, &reason) || !in_done(c, REC_FAILED, NULL) || reason.code == ERR_NONE)
        return error_set(err, ERR_PROTOCOL, "%s failed, for a reason it did not say properly",
                         receiver_peer(r));
    if (r->opts->peer)
        error_prefix(&reason, "on %s", r->opts->peer);
    error_move(err, &reason);
    return false;
}

/* One record. *end: it was the last. */
static bool take_record(struct receiver *r, bool *end, struct error *err)
{
    enum record type;
    size_t len;
    struct cursor c;

    /* Nothing left to work on: what was decided goes out before the read blocks. */
    if (r->in.pos == r->in.len && !compare_flush(r, err))
        return false;
    if (!in_next(&r->in, &type, &len, err))
        return false;
    if (in_file(type) != r->file.active && type != REC_FAILED)
        return in_unexpected(type, err);
    if (type == REC_DATA)
        return take_data(r, len, err);
    if (!in_payload(&r->in, len, &c, err))
        return false;
    switch (type) {
    case REC_HOLE: {
        uint64_t n = cursor_u64(&c);
        return in_done(&c, type, err) && apply_hole(r, n, err);
    }
    case REC_END_FILE: {
        uint64_t total = cursor_u64(&c), hash = cursor_u64(&c);
        return in_done(&c, type, err) && apply_end_file(r, total, hash, err);
    }
    case REC_PLAN:
        r->stats->total_entries = cursor_u64(&c);
        r->stats->total_bytes = cursor_u64(&c);
        return in_done(&c, type, err);
    case REC_BEGIN: {
        uint32_t index = cursor_u32(&c);
        return in_done(&c, type, err) && begin_mapping(r, index, err);
    }
    case REC_DIR:
    case REC_FILE:
    case REC_SAME:
    case REC_HARDLINK:
        return take_entry(r, type, &c, err);
    case REC_LEAVE:
        return in_done(&c, type, err) && apply_leave(r, err);
    case REC_SYMLINK:
        return take_symlink(r, &c, err);
    case REC_OFFER_DIR:
    case REC_OFFER_LEAVE:
    case REC_OFFER_FILE:
        return take_offer(r, type, &c, err);
    case REC_NOTE:
        return in_note(&c, r->opts, r->stats, err);
    case REC_FAILED:
        return take_failed(r, &c, err);
    case REC_END:
        *end = true;
        return take_end(r, &c, err);
    default:
        return in_unexpected(type, err);
    }
}

static bool take_version(struct receiver *r, struct error *err)
{
    const struct tree_opts *o = r->opts;
    enum record type;
    size_t len;
    struct cursor c;

    if (!in_next(&r->in, &type, &len, err))
        return false;
    if (!in_payload(&r->in, len, &c, err))
        return false;
    if (type == REC_FAILED)
        return take_failed(r, &c, err);
    const void *magic = cursor_bytes(&c, 8);
    uint32_t flags = cursor_u32(&c);
    if (type != REC_VERSION || c.bad || c.left || memcmp(magic, TREE_MAGIC, 8) != 0)
        return error_set(err, ERR_PROTOCOL,
                         "%s does not send a stream of files this build understands",
                         receiver_peer(r));
    uint32_t want = (o->update ? TREE_FLAG_UPDATE : 0) | (o->checksum ? TREE_FLAG_CHECKSUM : 0) |
                    (o->dry_run ? TREE_FLAG_DRY_RUN : 0);
    if (flags != want)
        return error_set(err, ERR_PROTOCOL, "%s sends another kind of transfer than was asked for",
                         receiver_peer(r));
    return true;
}

static bool receive_all(struct receiver *r, struct error *err)
{
    bool end = false;

    if (!take_version(r, err))
        return false;
    while (!end) {
        if (!take_record(r, &end, err)) {
            if (r->placed && r->place.shown && err && err->code != ERR_NETWORK)
                error_prefix(err, "`%s`", r->place.shown);
            return false;
        }
    }
    return true;
}

static void report(struct receiver *r, const struct error *reason)
{
    if (!out_begin(&r->out, REC_RESULT, TREE_MAX_MESSAGE + 64, NULL))
        return;
    out_reason(&r->out, reason);
    out_u64(&r->out, r->stats->deleted);
    out_u64(&r->out, r->stats->stripped);
    out_end(&r->out);
    out_flush(&r->out, NULL);
}

bool tree_receive(const struct tree_target *targets, size_t n, const struct tree_opts *opts,
                  struct tree_io *io, struct tree_stats *stats, struct error *err)
{
    struct tree_stats own = {0};
    struct receiver r = {.targets = targets, .n = n, .opts = opts, .stats = stats ? stats : &own};
    const struct tree_limits *d = &tree_limits_default, *l = &opts->limits;
    cleanup_error struct error local = {0};

    *r.stats = (struct tree_stats){0};
    r.limits = (struct tree_limits){
        .entries = l->entries ? l->entries : d->entries,
        .bytes = l->bytes ? l->bytes : d->bytes,
        .depth = l->depth ? l->depth : d->depth,
        .name = l->name && l->name < TREE_MAX_NAME ? l->name : d->name,
    };
    r.file.fd = -1;
    io_random(&r.key, sizeof r.key);
    out_init(&r.out, io, 32 * 1024);
    in_init(&r.in, io, &r.out);
    bool ok = receive_all(&r, &local);
    apply_abort(&r);
    compare_end(&r);
    error_visible(&local);
    report(&r, &local);
    error_move(err, &local);
    free(r.stack);
    free(r.look);
    free(r.buffer);
    buf_free(&r.path);
    buf_free(&r.answers);
    in_free(&r.in);
    out_free(&r.out);
    return ok;
}
