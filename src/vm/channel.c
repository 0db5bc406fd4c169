#include "vm/channel.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/io.h"
#include "vm/request.h"

#define MAX_WINDOW (4u << 20)
#define EXTRA_WINDOWS (64u << 20) /* of all streams together */
#define BIG_PIPE (1 << 20)
#define TURNS 64 /* frames taken before other events get their turn */

/* ---- output ---- */

static void out_event(struct session *s, struct source *src, uint32_t events)
{
    struct out *o = container_of(src, struct out, src);

    o->ready = true;
    o->hup |= (events & (EPOLLHUP | EPOLLERR)) != 0;
    out_queue(s, o);
}

void out_watch(struct session *s, struct out *o)
{
    o->src.fn = out_event;
    watch(s, o->fd, &o->src, EPOLLIN | EPOLLET);
}

void out_queue(struct session *s, struct out *o)
{
    if (o->queued)
        return;
    o->queued = true;
    if (!s->queue) {
        s->queue = o->next = o->prev = o;
        return;
    }
    o->next = s->queue;
    o->prev = s->queue->prev;
    o->prev->next = o->next->prev = o;
}

static void out_unqueue(struct session *s, struct out *o)
{
    if (!o->queued)
        return;
    o->queued = false;
    if (o->next == o)
        s->queue = NULL;
    else if (s->queue == o)
        s->queue = o->next;
    o->prev->next = o->next;
    o->next->prev = o->prev;
}

void out_close(struct session *s, struct out *o)
{
    out_unqueue(s, o);
    if (o->fd >= 0) {
        unwatch(s, o->fd);
        close(o->fd);
    }
    o->fd = -1;
}

static bool behind(const struct out *o)
{
    return o->spool && o->sent < o->spool->end;
}

static void say_eof(struct session *s, struct out *o)
{
    if (o->fd >= 0 || behind(o) || o->eof_sent || !s->live)
        return;
    o->eof_sent = true;
    frame_lazy(s, VM_EOF, o->channel, o->stream->id, NULL, 0);
}

void out_eof(struct session *s, struct out *o)
{
    out_close(s, o);
    say_eof(s, o);
    if (behind(o))
        out_queue(s, o);
}

bool out_done(struct session *s, struct out *o)
{
    if (o->fd >= 0 || behind(o))
        return false;
    say_eof(s, o);
    return o->eof_sent || !s->live;
}

void out_linger_over(struct session *s, struct out *o)
{
    int n = 0;

    if (o->fd < 0)
        return;
    if (ioctl(o->fd, FIONREAD, &n) < 0)
        n = 0;
    o->last = n;
    if (n == 0) {
        out_eof(s, o);
    } else {
        o->ready = true;
        out_queue(s, o);
    }
}

/* Reads what the pipe has, at most `want`. 0: nothing now; -1: its end. */
static ssize_t take(struct out *o, char *to, size_t want)
{
    ssize_t n;

    if (o->last >= 0 && (uint64_t)o->last < want)
        want = (size_t)o->last;
    do
        n = read(o->fd, to, want);
    while (n < 0 && errno == EINTR);
    if (n < 0 && errno == EAGAIN) {
        o->ready = false;
        return 0;
    }
    if (n <= 0) /* EIO: a terminal that nobody has open any more */
        return -1;
    if (o->last >= 0)
        o->last -= n;
    if (o->nonblock)
        return n;
    /* A pipe that gave less than it was asked for is empty (epoll(7)); else the next read might
     * block, and this is a flood that a larger pipe does good. */
    if ((size_t)n < want) {
        o->ready = o->hup;
    } else {
        io_set_nonblock(o->fd, true);
        o->nonblock = true;
        if (want == VM_MAX_PAYLOAD)
            fcntl(o->fd, F_SETPIPE_SZ, BIG_PIPE);
    }
    return n;
}

static void sent(struct out *o, size_t n)
{
    o->sent += n;
    o->credit -= (uint32_t)n;
}

/* One frame straight from the pipe. True: there may be more. */
static bool forward(struct session *s, struct out *o)
{
    size_t want = o->credit < VM_MAX_PAYLOAD ? o->credit : VM_MAX_PAYLOAD;

    if (!o->ready || !want)
        return false;
    buf_reserve(&s->outbuf, VM_HEADER + want);
    ssize_t n = take(o, s->outbuf.data + s->outbuf.len + VM_HEADER, want);
    if (n > 0) {
        frame_write(s->outbuf.data + s->outbuf.len, (uint32_t)n, VM_DATA, o->channel,
                    o->stream->id);
        s->outbuf.len += VM_HEADER + (size_t)n;
        s->lazy_until = 0;
        sent(o, (size_t)n);
    }
    if (n < 0 || o->last == 0) {
        out_eof(s, o);
        return false;
    }
    return n > 0 && o->ready;
}

/* The oldest byte that the client may still ask for: it has at most VM_MAX_CREDIT not yet consumed.
 */
static uint64_t keep_from(const struct out *o)
{
    uint64_t consumed = o->granted > VM_MAX_CREDIT ? o->granted - VM_MAX_CREDIT : 0;

    return o->from + consumed;
}

/* A durable stream: from the pipe into the spool, from there to the client. */
static bool forward_spooled(struct session *s, struct out *o)
{
    static char chunk[VM_MAX_PAYLOAD];
    bool more = false;

    uint64_t room = spool_room(o->spool, keep_from(o));
    /* With a client there, no further ahead than it wants. */
    uint64_t ahead = o->spool->end - o->sent;
    uint64_t want = s->live ? (o->credit > ahead ? o->credit - ahead : 0) : room;
    want = want < room ? want : room;
    want = want < sizeof chunk ? want : sizeof chunk;
    if (o->ready && want && o->fd >= 0) {
        ssize_t n = take(o, chunk, (size_t)want);
        if (n > 0 && !spool_add(o->spool, s->dir, chunk, (size_t)n)) {
            session_log(s, "stream %u: its output cannot be kept: %s; it is ended", o->stream->id,
                        strerror(errno));
            stream_kill(s, o->stream, 0, false);
            n = -1;
        }
        if (n < 0 || o->last == 0) {
            out_eof(s, o);
            out_unqueue(s, o);
        }
        more = n > 0 && o->fd >= 0 && o->ready;
    }
    if (s->live && o->credit && behind(o)) {
        uint64_t n = o->spool->end - o->sent;
        n = n < o->credit ? n : o->credit;
        n = n < VM_MAX_PAYLOAD ? n : VM_MAX_PAYLOAD;
        if (!spool_read(o->spool, o->sent, chunk, (size_t)n)) {
            session_broken(s, "stream %u: output from byte %llu on is no longer there",
                           o->stream->id, (unsigned long long)o->sent);
            return false;
        }
        buf_put(frame_begin(s, VM_DATA, o->channel, o->stream->id), chunk, (size_t)n);
        frame_end(s);
        sent(o, n);
        more |= behind(o);
        say_eof(s, o);
    }
    return more;
}

void streams_pump(struct session *s)
{
    for (int turn = 0; s->queue && turn < TURNS && link_pending(s) < VM_OUT_LOW; turn++) {
        struct out *o = s->queue;
        out_unqueue(s, o);
        bool more = o->spool ? forward_spooled(s, o) : s->live && forward(s, o);
        if (more)
            out_queue(s, o);
        else
            stream_finish(s, o->stream);
    }
}

void stream_credit(struct session *s, struct stream *st, uint8_t channel, uint32_t n)
{
    struct out *o = &st->out[channel - 1];

    if (n > VM_MAX_CREDIT - o->credit) {
        session_broken(s, "stream %u: credit beyond %u", st->id, VM_MAX_CREDIT);
        return;
    }
    o->credit += n;
    o->granted += n;
    if (o->fd >= 0 || behind(o))
        out_queue(s, o);
}

void out_rewind(struct session *s, struct out *o, uint64_t at)
{
    o->sent = o->from = at;
    o->credit = 0;
    o->granted = 0;
    o->eof_sent = false;
    if (o->fd >= 0 || behind(o))
        out_queue(s, o);
}

/* ---- input ---- */

/* What the command took may be sent again; the more readily it takes, the more may be under way. */
void stream_grant(struct session *s, struct stream *st)
{
    struct in *in = &st->in;

    /* dead: an event of the turn in which EXIT went out can still name the stream's stdin. */
    if (st->dead || in->eof || in->owed < in->window / 2 || !s->live)
        return;
    /* Not where a durable client counts on a grant meaning that so much was received. */
    if (!st->out[0].spool && in->q.len == in->off && in->got >= in->window &&
        in->window < MAX_WINDOW && s->extra_windows + in->window <= EXTRA_WINDOWS && in->fd >= 0) {
        s->extra_windows += in->window;
        in->owed += in->window;
        in->window *= 2;
    }
    in->credit += in->owed;
    frame_u32(s, VM_CREDIT, VM_STDIN, st->id, in->owed);
    in->owed = 0;
}

void in_close(struct session *s, struct stream *st)
{
    struct in *in = &st->in;

    if (in->fd >= 0) {
        if (in->watched)
            unwatch(s, in->fd);
        close(in->fd);
    }
    in->fd = -1;
    if (in->window > VM_STDIN_CREDIT)
        s->extra_windows -= in->window - VM_STDIN_CREDIT;
    in->window = VM_STDIN_CREDIT;
    in->owed += (uint32_t)(in->q.len - in->off);
    in->off = 0;
    buf_free(&in->q);
}

/* A terminal's reader gets its end from the character for it, which works at a line's start only.
 */
static void send_eot(struct stream *st)
{
    struct termios t;
    char eot[2];

    if (tcgetattr(st->in.fd, &t) < 0)
        return;
    eot[0] = eot[1] = (char)t.c_cc[VEOF];
    ssize_t ignored =
        write(st->in.fd, eot, st->in.last && st->in.last != '\n' && st->in.last != '\r' ? 2 : 1);
    (void)ignored;
}

static void in_event(struct session *s, struct source *src, uint32_t events)
{
    struct stream *st = container_of(container_of(src, struct in, src), struct stream, in);

    (void)events;
    in_push(s, st);
}

static void in_wait(struct session *s, struct stream *st, bool wait)
{
    struct in *in = &st->in;

    if (wait == in->waiting)
        return;
    in->src.fn = in_event;
    if (in->watched)
        rewatch(s, in->fd, &in->src, wait ? EPOLLOUT : 0);
    else
        watch(s, in->fd, &in->src, EPOLLOUT);
    in->watched = true;
    in->waiting = wait;
}

/* How many bytes the command took; -1 when its end is closed. */
static ssize_t in_write(struct stream *st, const char *p, size_t n)
{
    struct in *in = &st->in;
    size_t done = 0;

    if (!in->nonblock) {
        io_set_nonblock(in->fd, true);
        in->nonblock = true;
    }
    while (done < n) {
        ssize_t m = write(in->fd, p + done, n - done);
        if (m > 0)
            done += (size_t)m;
        else if (m < 0 && errno == EAGAIN)
            break;
        else if (m == 0 || errno != EINTR)
            return -1;
    }
    if (done)
        in->last = p[done - 1];
    return (ssize_t)done;
}

void in_push(struct session *s, struct stream *st)
{
    struct in *in = &st->in;
    size_t left = in->q.len - in->off;

    if (in->fd >= 0 && left) {
        ssize_t n = in_write(st, in->q.data + in->off, left);
        if (n < 0) {
            in_close(s, st);
        } else {
            in->off += (size_t)n;
            in->owed += (uint32_t)n;
        }
        if (in->off == in->q.len) {
            in->off = 0;
            buf_free(&in->q);
        }
    }
    left = in->q.len - in->off;
    if (in->fd >= 0 && !left && in->eof) {
        if (st->pty)
            send_eot(st);
        in_close(s, st);
    }
    if (in->fd >= 0)
        in_wait(s, st, left > 0);
    stream_grant(s, st);
}

void stream_data(struct session *s, struct stream *st, const char *p, size_t n)
{
    struct in *in = &st->in;

    if (n > in->credit || (in->eof && !in->dropped)) {
        session_broken(s, "stream %u: stdin %s", st->id,
                       in->eof ? "after its end" : "beyond its credit");
        return;
    }
    in->credit -= (uint32_t)n;
    in->got += n;
    if (in->dropped || (in->fd < 0 && st->state != ST_WAITING)) { /* nobody will read it */
        in->owed += (uint32_t)n;
        stream_grant(s, st);
        return;
    }
    if (in->fd >= 0 && in->q.len == in->off) {
        ssize_t done = in_write(st, p, n);
        if (done < 0) {
            in->owed += (uint32_t)n;
            in_close(s, st);
            stream_grant(s, st);
            return;
        }
        in->owed += (uint32_t)done;
        p += done;
        n -= (size_t)done;
    }
    if (in->off > (64u << 10)) {
        buf_drop(&in->q, in->off);
        in->off = 0;
    }
    buf_put(&in->q, p, n);
    if (st->state != ST_WAITING)
        in_push(s, st);
}

void stream_in_eof(struct session *s, struct stream *st, bool drop)
{
    struct in *in = &st->in;

    in->eof = true;
    in->dropped |= drop;
    if (drop) {
        in->off = 0;
        buf_free(&in->q);
    }
    if (st->state != ST_WAITING)
        in_push(s, st);
}
