/* Frames (PROTOCOL.vm section 1). Writers put whole frames under the link's lock, straight into the
 * socket while it takes them; what it does not take waits in `out` for the link's thread, which
 * reads, dispatches and never waits for a writer. */
#include <endian.h>
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/link_private.h"
#include "lib/sshfail.h"

static void header(unsigned char *to, int type, int channel, uint32_t stream, size_t n)
{
    uint32_t be = htobe32((uint32_t)n);

    memcpy(to, &be, 4);
    to[4] = (unsigned char)type;
    to[5] = (unsigned char)channel;
    to[6] = to[7] = 0;
    be = htobe32(stream);
    memcpy(to + 8, &be, 4);
}

void frame_put(struct buf *b, int type, int channel, uint32_t stream, const void *p, size_t n)
{
    unsigned char head[VM_HEADER];

    header(head, type, channel, stream, n);
    buf_put(b, head, sizeof head);
    buf_put(b, p, n);
}

size_t link_out_waiting(const struct link *l)
{
    return l->out.len - l->out_at;
}

static void later(struct link *l, const void *p, size_t n)
{
    if (!n)
        return;
    bool empty = !link_out_waiting(l);
    if (l->out_at > LINK_OUT_LOW) {
        buf_drop(&l->out, l->out_at);
        l->out_at = 0;
    }
    buf_put(&l->out, p, n);
    if (empty)
        eventfd_write(l->wake, 1);
}

/* A socket that broke is the thread's to notice. */
static void send_parts(struct link *l, struct iovec *parts, int n)
{
    if (l->conn.fd < 0)
        return;
    if (!link_out_waiting(l)) {
        struct msghdr m = {.msg_iov = parts, .msg_iovlen = (size_t)n};
        ssize_t done = sendmsg(l->conn.fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        for (int i = 0; done > 0 && i < n; i++) {
            size_t part = (size_t)done < parts[i].iov_len ? (size_t)done : parts[i].iov_len;
            parts[i].iov_base = (char *)parts[i].iov_base + part;
            parts[i].iov_len -= part;
            done -= (ssize_t)part;
        }
    }
    for (int i = 0; i < n; i++)
        later(l, parts[i].iov_base, parts[i].iov_len);
}

void link_send(struct link *l, int type, int channel, uint32_t stream, const void *p, size_t n)
{
    unsigned char head[VM_HEADER];
    struct iovec parts[2] = {{head, sizeof head}, {(void *)p, n}};

    header(head, type, channel, stream, n);
    send_parts(l, parts, n ? 2 : 1);
}

void link_send_buf(struct link *l, const struct buf *frames)
{
    struct iovec part = {frames->data, frames->len};

    send_parts(l, &part, 1);
}

static bool flush(struct link *l)
{
    size_t n = link_out_waiting(l);
    ssize_t done = send(l->conn.fd, l->out.data + l->out_at, n, MSG_NOSIGNAL | MSG_DONTWAIT);

    if (done < 0)
        return errno == EAGAIN || errno == EINTR;
    l->out_at += (size_t)done;
    n -= (size_t)done;
    if (!n) {
        if (l->out.cap > 2 * LINK_OUT_LOW)
            buf_free(&l->out);
        l->out.len = l->out_at = 0;
    }
    if (n < LINK_OUT_LOW) {
        pthread_cond_broadcast(&l->changed);
        for (unsigned i = 0; i < LINK_BUCKETS; i++) {
            for (struct stream *s = l->streams[i]; s; s = s->next)
                stream_on_room(s);
        }
    }
    return true;
}

static bool broke_rule(struct link *l, struct error *err, const char *what)
{
    return error_set(err, ERR_PROTOCOL,
                     "VM %s: its helper broke the protocol (%s); the connection was closed",
                     link_label(l), what);
}

static bool on_data(struct link *l, struct stream *s, int channel, const char *p, size_t n,
                    struct error *err)
{
    if (channel != VM_STDOUT && channel != VM_STDERR)
        return broke_rule(l, err, "DATA on a wrong channel");
    if (!n)
        return broke_rule(l, err, "DATA without data");
    if (n > s->credit[channel])
        return broke_rule(l, err, "more DATA than was granted");
    if (s->eof[channel])
        return broke_rule(l, err, "DATA after EOF");
    s->credit[channel] -= n;
    s->got[channel] += n;
    if (s->abandoned) { /* thrown away, but granted again: EXIT comes only after the last DATA */
        s->owed[channel] += n;
        stream_grant(s, channel);
        return true;
    }
    s->queued[channel] += n;
    stream_push(s, STREAM_DATA, channel, p, n);
    return true;
}

static bool take_exit(struct link *l, struct stream *s, struct cursor *c, struct error *err)
{
    s->end.status = (int)cursor_u32(c);
    s->end.signal = (int)cursor_u32(c);
    uint32_t flags = cursor_u32(c);
    s->end.user_us = cursor_u64(c);
    s->end.system_us = cursor_u64(c);
    s->end.max_rss_kib = cursor_u64(c);
    if (c->bad || c->left || s->end.signal < 0 || s->end.signal > 64 || s->end.status < 0 ||
        s->end.status > 255)
        return broke_rule(l, err, "EXIT");
    s->end.killed_by_us = flags & VM_EXIT_KILLED;
    s->end.confirmed = flags & VM_EXIT_CONFIRMED;
    s->end.timed_out = flags & VM_EXIT_TIMEOUT;
    stream_finish(s, STREAM_EXIT);
    return true;
}

static bool take_fail(struct link *l, struct stream *s, struct cursor *c, struct error *err)
{
    s->end.fail_code = (int)cursor_u32(c);
    size_t n;
    const char *text = cursor_str(c, VM_MAX_MESSAGE, &n);
    if (c->bad || c->left)
        return broke_rule(l, err, "FAIL");
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, text, n, VM_MAX_MESSAGE);
    error_set(&s->failure, ERR_SYSTEM, "%s", shown.data ? shown.data : "");
    s->failure.sys = s->end.fail_code;
    stream_finish(s, STREAM_FAILED);
    return true;
}

static bool on_credit(struct link *l, struct stream *s, int channel, struct cursor *c,
                      struct error *err)
{
    uint32_t n = cursor_u32(c);

    if (c->bad || c->left || channel != VM_STDIN || n > VM_MAX_CREDIT ||
        s->in_credit + n > VM_MAX_CREDIT)
        return broke_rule(l, err, "CREDIT");
    s->in_credit += n;
    if (s->durable)
        stream_note_credit(s, n);
    stream_on_room(s);
    return true;
}

static bool stream_frame(struct link *l, int type, int channel, uint32_t number, const char *p,
                         size_t n, struct error *err)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};
    struct stream *s = link_find(l, number);

    if (number > l->last_number)
        return broke_rule(l, err, "a stream that was never opened");
    if (!s)
        return broke_rule(l, err, "a stream that it had closed");
    switch (type) {
    case VM_STARTED:
        cursor_u32(&c);
        if (c.bad || c.left)
            return broke_rule(l, err, "STARTED");
        stream_push(s, STREAM_STARTED, 0, NULL, 0);
        return true;
    case VM_DATA:
        return on_data(l, s, channel, p, n, err);
    case VM_EOF:
        if (channel == VM_STDIN) { /* the command reads no more */
            s->in_eof = true;
            stream_on_room(s);
            return true;
        }
        if (channel >= VM_CHANNELS || (s->eof[channel] && !s->durable))
            return broke_rule(l, err, "EOF");
        if (s->eof[channel]) /* said again after a reconnect */
            return true;
        s->eof[channel] = true;
        stream_push(s, STREAM_EOF, channel, NULL, 0);
        return true;
    case VM_CREDIT:
        return on_credit(l, s, channel, &c, err);
    case VM_EXIT:
        return take_exit(l, s, &c, err);
    case VM_FAIL:
        return take_fail(l, s, &c, err);
    }
    return broke_rule(l, err, "a frame of unknown type");
}

static bool session_frame(struct link *l, int type, const char *p, size_t n, struct error *err)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};

    switch (type) {
    case VM_PING:
        if (n != 8)
            return broke_rule(l, err, "PING");
        link_send(l, VM_PONG, 0, 0, p, n);
        return true;
    case VM_PONG:
        return true;
    case VM_LOG: {
        size_t len;
        const char *text = cursor_str(&c, VM_MAX_MESSAGE, &len);
        if (c.bad || c.left)
            return broke_rule(l, err, "LOG");
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, text, len, VM_MAX_MESSAGE);
        log_info("VM %s: %s", link_label(l), shown.data ? shown.data : "");
        return true;
    }
    case VM_ENDED:
        l->ended = cursor_u32(&c);
        l->end_left = cursor_u32(&c);
        if (c.bad || c.left || l->end_answered == l->end_asked)
            return broke_rule(l, err, "ENDED");
        l->end_answered++;
        pthread_cond_broadcast(&l->changed);
        return true;
    case VM_RESUMED:
        return link_on_resumed(l, &c) || broke_rule(l, err, "RESUMED");
    case VM_BYE:
        l->bye = true;
        return error_set(err, ERR_CANCELLED, "VM %s: the connection was closed", link_label(l));
    }
    return broke_rule(l, err, "a frame of unknown type");
}

/* Every whole frame that was read. */
static bool dispatch(struct link *l, struct error *err)
{
    struct connection *c = &l->conn;
    size_t at = 0;

    while (c->in_len - at >= VM_HEADER) {
        struct cursor head = {.p = (unsigned char *)c->in + at, .left = VM_HEADER};
        uint32_t len = cursor_u32(&head);
        uint8_t type = cursor_u8(&head), channel = cursor_u8(&head);
        uint16_t reserved = cursor_u16(&head);
        uint32_t number = cursor_u32(&head);
        if (len > VM_MAX_PAYLOAD || reserved)
            return broke_rule(l, err, "a frame's header");
        if (c->in_len - at < VM_HEADER + len)
            break;
        const char *p = c->in + at + VM_HEADER;
        if (number ? !stream_frame(l, type, channel, number, p, len, err)
                   : !session_frame(l, type, p, len, err))
            return false;
        at += VM_HEADER + len;
    }
    c->in_len -= at;
    if (at && c->in_len)
        memmove(c->in, c->in + at, c->in_len);
    return true;
}

static bool ended(struct link *l, struct error *err)
{
    struct connection *c = &l->conn;
    int status = -1;

    child_wait(&c->child, deadline_in(500), &status, NULL);
    if (c->err_fd >= 0)
        connection_read_errors(c);
    /* The last line is what ssh said at the end; the ones before are warnings of the start. */
    cleanup_free char *said = sshfail_last_line(c->errors.data);
    cleanup_free char *how = status == -1 ? xstrdup("")
                             : WIFSIGNALED(status)
                                 ? xasprintf(" (ssh was killed by signal %d)", WTERMSIG(status))
                                 : xasprintf(" (ssh ended with status %d)", WEXITSTATUS(status));
    return error_set(
        err, ERR_NETWORK,
        "VM %s: network: the connection broke%s%s%s. It is opened again with the next command",
        link_label(l), how, *said ? ": " : "", said);
}

void link_start_close(struct link *l, int ms)
{
    if (!l->closing)
        link_send(l, VM_BYE, 0, 0, NULL, 0);
    l->closing = true;
    l->close_by = now_ms() + ms;
    eventfd_write(l->wake, 1);
}

static int64_t idle_left(const struct link *l)
{
    if (l->keep_alive_seconds <= 0 || l->listed || l->waiters || l->closing)
        return INT64_MAX;
    return l->idle_since + (int64_t)l->keep_alive_seconds * 1000 - now_ms();
}

/* How long the thread may sleep; 0 or less: something is due. */
static int64_t sleep_for(const struct link *l, int64_t heard, int64_t next)
{
    int64_t now = now_ms(), left = next - now, idle = idle_left(l);

    if (heard + l->dead_ms - now < left)
        left = heard + l->dead_ms - now;
    if (idle < left)
        left = idle;
    if (l->closing && l->close_by - now < left)
        left = l->close_by - now;
    return left;
}

static bool close_when_due(struct link *l, struct error *err)
{
    if (idle_left(l) <= 0) {
        log_debug("VM %s: closing the idle connection", link_label(l));
        link_start_close(l, 2000);
    }
    if (l->closing && now_ms() >= l->close_by)
        return error_set(err, ERR_CANCELLED, "VM %s: the connection was closed", link_label(l));
    return true;
}

static bool heartbeat(struct link *l, int64_t heard, int64_t *next, struct error *err)
{
    int64_t now = now_ms();

    if (now - heard >= l->dead_ms)
        return error_set(
            err, ERR_NETWORK,
            "VM %s: network: nothing was heard from it for %d s (timed out); the connection was "
            "given up. It is opened again with the next command",
            link_label(l), (int)((now - heard) / 1000));
    if (now >= *next) {
        uint64_t be = htobe64((uint64_t)now);
        *next = now + l->heartbeat_ms;
        link_send(l, VM_PING, 0, 0, &be, sizeof be);
    }
    return true;
}

void link_serve(struct link *l, struct error *err)
{
    struct connection *c = &l->conn;
    int64_t heard = now_ms(), next = heard + l->heartbeat_ms;
    bool ok = true;

    pthread_mutex_lock(&l->lock);
    ok = dispatch(l, err); /* what came along with HELLO */
    while (ok && close_when_due(l, err)) {
        int64_t wait = sleep_for(l, heard, next);
        struct pollfd p[3] = {
            {.fd = c->fd, .events = (short)(POLLIN | (link_out_waiting(l) ? POLLOUT : 0))},
            {.fd = l->wake, .events = POLLIN},
            {.fd = c->err_fd, .events = POLLIN}};
        pthread_mutex_unlock(&l->lock);
        int ready = poll(p, 3, wait > 0 ? (int)wait : 0);
        ssize_t got = -1;
        errno = EAGAIN;
        if (ready > 0 && (p[0].revents & (POLLIN | POLLHUP | POLLERR)))
            got = read(c->fd, c->in + c->in_len, LINK_IN_SIZE - c->in_len);
        int sys = errno;
        if (ready > 0 && p[2].revents && !connection_read_errors(c)) {
            close(c->err_fd);
            c->err_fd = -1;
        }
        pthread_mutex_lock(&l->lock);
        if (ready > 0 && p[1].revents) {
            eventfd_t ignored;
            eventfd_read(l->wake, &ignored);
        }
        if (got > 0) {
            heard = now_ms();
            c->in_len += (size_t)got;
            ok = dispatch(l, err);
        } else if (got == 0 || (sys != EAGAIN && sys != EINTR)) {
            ok = l->closing ? error_set(err, ERR_CANCELLED, "VM %s: the connection was closed",
                                        link_label(l))
                            : ended(l, err);
        }
        ok = ok && heartbeat(l, heard, &next, err);
        if (ok && link_out_waiting(l))
            flush(l);
    }
    pthread_mutex_unlock(&l->lock);
}
