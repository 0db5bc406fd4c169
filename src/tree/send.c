#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree/hash.h"
#include "tree/links.h"
#include "tree/stream.h"
#include "tree/walk.h"

/* An entry that was offered; sent in the order of the walk once its answer is there. */
struct queued {
    struct item item;
    char *path;
    char answer; /* 0: not yet; '+': the receiver needs it; '=': has it; '-': no question */
};

struct sender {
    const struct tree_source *src;
    const struct tree_opts *opts;
    const struct tree_limits *limits;
    struct out out;
    struct in in;
    struct links links;
    struct tree_stats *stats;
    struct queued *queue; /* ring of TREE_WINDOW */
    unsigned head, count,
        unanswered_at; /* unanswered_at: how many of the queue have been passed by answers */
    size_t queued_bytes;
    unsigned queued_dirs, notes;
    bool io_failed, refused;
    char *buffer; /* for checksums */
};

/* Everything queued is bounded: paths together, and open folders, which keep descriptors. */
enum { MAX_QUEUED_BYTES = 1 << 20, MAX_QUEUED_DIRS = 100, CHECK_BUFFER = 128 * 1024 };

static void tell(struct sender *s, enum tree_note note, const char *path)
{
    if (s->opts->progress)
        s->opts->progress(s->opts->arg, note, path, s->stats);
}

static bool note(void *arg, enum tree_note n, const char *path, struct error *err)
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
        return note(s, TREE_CHANGED, it->path, err);
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
            return note(s, TREE_VANISHED, it->path, err);
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
        return note(s, TREE_VANISHED, it->path, err);
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

static bool emit(struct sender *s, const struct item *it, char answer, struct error *err)
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

static bool offer(struct sender *s, const struct item *it, struct error *err)
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
        if (!emit(s, &s->queue[s->head].item, s->queue[s->head].answer, err))
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
    w.note = note;
    w.arg = s;
    if (!out_begin(&s->out, REC_BEGIN, 4, err))
        return false;
    out_u32(&s->out, index);
    out_end(&s->out);
    while ((r = walk_next(&w, &it, err)) > 0) {
        if (!s->opts->update) {
            if (!emit(s, &it, '-', err))
                return false;
            continue;
        }
        if (!offer(s, &it, err))
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
