/* The link to the client: frames out of and into two buffers. */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/deadline.h"
#include "vm/request.h"
#include "vm/vm.h"

/* A client that asks and does not read its answers is not listened to beyond this. */
#define OUT_MAX (1u << 20)
#define IN_CHUNK (256u << 10)
#define LAZY_MS 2

static size_t frame_at; /* of the frame being built, in outbuf */

struct buf *frame_begin(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream)
{
    frame_at = s->outbuf.len;
    frame_write(buf_reserve(&s->outbuf, VM_HEADER), 0, (uint8_t)type, channel, stream);
    s->outbuf.len += VM_HEADER;
    s->lazy_until = 0;
    return &s->outbuf;
}

void frame_end(struct session *s)
{
    struct frame f;
    char *head = s->outbuf.data + frame_at;

    frame_parse(head, &f);
    frame_write(head, (uint32_t)(s->outbuf.len - frame_at - VM_HEADER), f.type, f.channel,
                f.stream);
    if (!s->attached) /* nobody to read it */
        s->outbuf.len = frame_at;
}

void frame_u32(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream, uint32_t v)
{
    buf_put_u32(frame_begin(s, type, channel, stream), v);
    frame_end(s);
}

void frame_raw(struct session *s, enum vm_type type, uint32_t stream, const void *p, size_t n)
{
    buf_put(frame_begin(s, type, 0, stream), p, n);
    frame_end(s);
}

void frame_lazy(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream,
                const void *p, size_t n)
{
    bool alone = link_pending(s) == 0;
    int64_t until = s->lazy_until;

    buf_put(frame_begin(s, type, channel, stream), p, n);
    frame_end(s);
    s->lazy_until = alone ? now_ms() + LAZY_MS : until;
}

size_t link_pending(const struct session *s)
{
    return s->outbuf.len - s->out_off;
}

void session_log(struct session *s, const char *fmt, ...)
{
    char text[512];
    va_list ap;

    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n >= (int)sizeof text)
        n = sizeof text - 1;
    if (n > 0) {
        buf_put_str(frame_begin(s, VM_LOG, 0, 0), text, (size_t)n);
        frame_end(s);
    }
}

void send_hello(struct session *s)
{
    extern const char exedev_vm_id[];
    struct buf *b = frame_begin(s, VM_HELLO, 0, 0);
    uint32_t flags = (s->bash ? VM_HELLO_BASH : 0) | (s->client_known ? VM_HELLO_FOUND : 0) |
                     (geteuid() == 0 ? VM_HELLO_ROOT : 0);
    const char *dir = s->dir ? s->dir : "";

    buf_put(b, VM_MAGIC, VM_MAGIC_LEN);
    buf_put_str(b, exedev_vm_id, strlen(exedev_vm_id));
    buf_put_u32(b, (uint32_t)getpid());
    buf_put_str(b, s->home, strlen(s->home));
    buf_put_str(b, s->user, strlen(s->user));
    buf_put_str(b, dir, strlen(dir));
    buf_put_u32(b, flags);
    frame_end(s);
}

/* Listening stops while too much waits to be sent, writing is watched only while it is stuck. */
static void arm(struct session *s, bool stuck)
{
    bool in = link_pending(s) < OUT_MAX;

    if (in == s->in_armed && stuck == s->out_armed)
        return;
    uint32_t in_events = in ? EPOLLIN : 0, out_events = stuck ? EPOLLOUT : 0;
    if (s->same_fd) {
        rewatch(s, s->in, &s->in_src, in_events | out_events);
    } else {
        if (in != s->in_armed)
            rewatch(s, s->in, &s->in_src, in_events);
        if (stuck != s->out_armed)
            rewatch(s, s->out, &s->out_src, out_events);
    }
    s->in_armed = in;
    s->out_armed = stuck;
}

void link_flush(struct session *s)
{
    bool stuck = false;

    if (!s->attached) {
        s->outbuf.len = s->out_off = 0;
        return;
    }
    while (link_pending(s)) {
        ssize_t n = write(s->out, s->outbuf.data + s->out_off, link_pending(s));
        if (n > 0) {
            s->out_off += (size_t)n;
        } else if (n < 0 && errno == EAGAIN) {
            stuck = true;
            break;
        } else if (n == 0 || errno != EINTR) {
            session_detach(s);
            return;
        }
    }
    s->lazy_until = 0;
    if (!link_pending(s))
        s->outbuf.len = s->out_off = 0;
    else if (s->out_off > (64u << 10)) {
        buf_drop(&s->outbuf, s->out_off);
        s->out_off = 0;
    }
    arm(s, stuck);
}

void link_writable(struct session *s, struct source *src, uint32_t events)
{
    (void)src;
    if (events & (EPOLLERR | EPOLLHUP)) /* the reader is gone */
        session_detach(s);
    else
        link_flush(s);
}

static void parse(struct session *s)
{
    while (s->attached && !s->broken && s->inbuf.len - s->in_off >= VM_HEADER) {
        const char *at = s->inbuf.data + s->in_off;
        struct frame f;

        if (!frame_parse(at, &f)) {
            session_broken(s, "a frame with a bad header");
            break;
        }
        if (s->inbuf.len - s->in_off < VM_HEADER + f.length)
            break;
        s->in_off += VM_HEADER + f.length;
        dispatch(s, f.type, f.channel, f.stream, at + VM_HEADER, f.length);
    }
    if (s->in_off == s->inbuf.len) {
        s->inbuf.len = s->in_off = 0;
    } else if (s->in_off) {
        buf_drop(&s->inbuf, s->in_off);
        s->in_off = 0;
    }
}

void link_readable(struct session *s, struct source *src, uint32_t events)
{
    (void)src;
    if (s->same_fd && (events & EPOLLOUT))
        link_flush(s);
    if (!s->attached || !(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        return;
    /* A session takes little at a time until it floods: small commands leave small memory behind.
     */
    size_t chunk = s->inbuf.cap > 16384 ? IN_CHUNK : 16384;
    ssize_t n = read(s->in, buf_reserve(&s->inbuf, chunk), chunk);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n <= 0) {
        session_detach(s);
        return;
    }
    if ((size_t)n == chunk)
        buf_reserve(&s->inbuf, IN_CHUNK);
    s->inbuf.len += (size_t)n;
    s->heard_at = now_ms();
    parse(s);
}
