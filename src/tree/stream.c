#include "tree/stream.h"

#include <endian.h>
#include <errno.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"

const struct tree_limits tree_limits_default = {
    .entries = 10000000, .bytes = 1ull << 40, .depth = 256, .name = TREE_MAX_NAME};

enum { HEADER = 5 };

static ssize_t fds_read(void *arg, void *p, size_t n, struct error *err)
{
    const struct tree_fds *fds = arg;

    for (;;) {
        ssize_t got = read(fds->in, p, n);
        if (got >= 0)
            return got;
        if (errno != EINTR) {
            error_sys(err, errno, "read the stream");
            return -1;
        }
    }
}

static bool fds_write(void *arg, const void *p, size_t n, struct error *err)
{
    const struct tree_fds *fds = arg;

    return io_write_all(fds->out, p, n, DEADLINE_NEVER, err);
}

struct tree_io tree_io_fds(struct tree_fds *fds)
{
    return (struct tree_io){fds_read, fds_write, fds};
}

void out_init(struct out *o, struct tree_io *io, size_t cap)
{
    *o = (struct out){.io = io, .cap = cap, .data = xmalloc(cap)};
}

void out_free(struct out *o)
{
    free(o->data);
    *o = (struct out){0};
}

bool out_flush(struct out *o, struct error *err)
{
    size_t n = o->len;

    o->len = 0;
    return !n || o->io->write(o->io->arg, o->data, n, err);
}

bool out_begin(struct out *o, enum record type, size_t max, struct error *err)
{
    if (o->cap - o->len < HEADER + max && !out_flush(o, err))
        return false;
    o->start = o->len;
    o->open = true;
    o->data[o->len++] = (unsigned char)type;
    o->len += 4;
    return true;
}

static void put(struct out *o, const void *p, size_t n)
{
    if (n)
        memcpy(o->data + o->len, p, n);
    o->len += n;
}

void out_u8(struct out *o, uint8_t v)
{
    put(o, &v, 1);
}

void out_u32(struct out *o, uint32_t v)
{
    v = htobe32(v);
    put(o, &v, 4);
}

void out_u64(struct out *o, uint64_t v)
{
    v = htobe64(v);
    put(o, &v, 8);
}

void out_meta(struct out *o, const struct meta *m)
{
    out_u32(o, m->mode);
    out_u64(o, (uint64_t)m->mtime);
    out_u32(o, m->nsec);
}

void out_str(struct out *o, const void *p, size_t n)
{
    out_u32(o, (uint32_t)n);
    put(o, p, n);
}

void out_end(struct out *o)
{
    uint32_t n = htobe32((uint32_t)(o->len - o->start - HEADER));

    memcpy(o->data + o->start + 1, &n, 4);
    o->open = false;
}

void out_undo(struct out *o)
{
    if (o->open)
        o->len = o->start;
    o->open = false;
}

bool out_note(struct out *o, enum tree_note note, const char *path, struct error *err)
{
    size_t n = strnlen(path, TREE_MAX_NOTE);

    if (!out_begin(o, REC_NOTE, n + 5, err))
        return false;
    out_u8(o, (uint8_t)note);
    out_str(o, path, n);
    out_end(o);
    return true;
}

void out_reason(struct out *o, const struct error *reason)
{
    const char *msg = reason->msg ? reason->msg : "";

    out_u32(o, reason->code);
    out_u32(o, (uint32_t)reason->sys);
    out_str(o, msg, strnlen(msg, TREE_MAX_MESSAGE));
}

void in_init(struct in *in, struct tree_io *io, struct out *flush)
{
    *in = (struct in){.io = io, .flush = flush, .cap = TREE_MAX_DATA + HEADER};
    in->data = xmalloc(in->cap);
}

void in_free(struct in *in)
{
    free(in->data);
    *in = (struct in){0};
}

static bool fill(struct in *in, struct error *err)
{
    if (in->flush && !out_flush(in->flush, err))
        return false;
    if (in->pos == in->len)
        in->pos = in->len = 0;
    ssize_t got = in->io->read(in->io->arg, in->data + in->len, in->cap - in->len, err);
    if (got < 0)
        return false;
    if (got == 0)
        return error_set(err, ERR_NETWORK,
                         "the transfer was cut off by the other side or the connection");
    in->len += (size_t)got;
    return true;
}

/* n bytes in one piece. */
static bool need(struct in *in, size_t n, struct error *err)
{
    if (in->cap - in->pos < n) {
        memmove(in->data, in->data + in->pos, in->len - in->pos);
        in->len -= in->pos;
        in->pos = 0;
    }
    while (in->len - in->pos < n) {
        if (!fill(in, err))
            return false;
    }
    return true;
}

bool in_next(struct in *in, enum record *type, size_t *len, struct error *err)
{
    uint32_t n;

    if (!need(in, HEADER, err))
        return false;
    *type = in->data[in->pos];
    memcpy(&n, in->data + in->pos + 1, 4);
    *len = be32toh(n);
    in->pos += HEADER;
    if (*len > (*type == REC_DATA ? TREE_MAX_DATA : TREE_MAX_SMALL))
        return error_set(err, ERR_PROTOCOL,
                         "the other side sent a record of %zu bytes, more than allowed", *len);
    return true;
}

bool in_payload(struct in *in, size_t len, struct cursor *c, struct error *err)
{
    if (!need(in, len, err))
        return false;
    *c = (struct cursor){.p = in->data + in->pos, .left = len};
    in->pos += len;
    return true;
}

size_t in_some(struct in *in, size_t max, const unsigned char **p, struct error *err)
{
    if (in->pos == in->len && !fill(in, err))
        return 0;
    size_t n = in->len - in->pos;
    if (n > max)
        n = max;
    *p = in->data + in->pos;
    in->pos += n;
    return n;
}

bool in_done(const struct cursor *c, enum record type, struct error *err)
{
    if (c->bad || c->left)
        return error_set(err, ERR_PROTOCOL, "the other side sent a malformed record (type %d)",
                         (int)type);
    return true;
}

bool in_unexpected(enum record type, struct error *err)
{
    return error_set(err, ERR_PROTOCOL,
                     "the other side sent a record (type %d) where it may not be", (int)type);
}

void in_meta(struct cursor *c, struct meta *m)
{
    m->mode = cursor_u32(c);
    m->mtime = (int64_t)cursor_u64(c);
    m->nsec = cursor_u32(c);
    if (m->mode > 07777 || m->nsec > 999999999)
        c->bad = 1;
}

bool in_reason(struct cursor *c, struct error *reason)
{
    uint32_t code = cursor_u32(c), sys = cursor_u32(c);
    size_t n;
    const char *msg = cursor_str(c, TREE_MAX_MESSAGE, &n);

    if (c->bad || code > ERR_UNSAFE || sys > 4095)
        return false;
    if (code == ERR_NONE)
        return true;
    cleanup_buf struct buf text = {0};
    text_visible(&text, msg, n, TREE_MAX_MESSAGE);
    error_set(reason, code, "%s", text.data ? text.data : "");
    reason->sys = (int)sys;
    return true;
}

void error_visible(struct error *err)
{
    struct buf text = {0};

    if (!err->msg)
        return;
    text_visible(&text, err->msg, strlen(err->msg), TREE_MAX_MESSAGE);
    free(err->msg);
    err->msg = buf_steal(&text);
}

bool in_note(struct cursor *c, const struct tree_opts *opts, struct tree_stats *stats,
             struct error *err)
{
    uint8_t note = cursor_u8(c);
    size_t n;
    const char *at = cursor_str(c, TREE_MAX_NOTE, &n);

    if (!in_done(c, REC_NOTE, err))
        return false;
    if (note < TREE_DELETED || note > TREE_DANGLING || memchr(at, 0, n))
        return error_set(err, ERR_PROTOCOL, "the other side sent a malformed note");
    if (opts->progress) {
        cleanup_free char *path = xstrndup(at, n);
        opts->progress(opts->arg, note, path, stats);
    }
    return true;
}
