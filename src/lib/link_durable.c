/* Durable streams over a reconnect (PROTOCOL.vm section 5): each side says how far it got, and goes
 * on from that byte. All with the link's lock held. */
#include "base/alloc.h"
#include "lib/link_private.h"

void link_send_resume(struct link *l)
{
    cleanup_buf struct buf b = {0}, frame = {0};
    uint32_t n = 0;

    for (unsigned i = 0; i < LINK_BUCKETS; i++) {
        for (struct stream *s = l->streams[i]; s; s = s->next) {
            if (!s->waits_resume)
                continue;
            buf_put_u32(&b, s->number);
            buf_put_u64(&b, s->got[VM_STDOUT]);
            buf_put_u64(&b, s->got[VM_STDERR]);
            buf_put_u64(&b, s->in_sent);
            n++;
        }
    }
    cleanup_buf struct buf payload = {0};
    buf_put_u32(&payload, n);
    buf_put(&payload, b.data, b.len);
    frame_put(&frame, VM_RESUME, 0, 0, payload.data, payload.len);
    link_send_buf(l, &frame);
}

/* What the helper has granted again was read; but the first grant of a connection is its empty
 * buffer. */
void stream_note_credit(struct stream *s, uint32_t n)
{
    s->in_granted += n;
    uint64_t from = s->in_sent - s->unacked.len;
    uint64_t read_to =
        s->ack_base + (s->in_granted > VM_STDIN_CREDIT ? s->in_granted - VM_STDIN_CREDIT : 0);
    if (read_to > from && read_to <= s->in_sent)
        buf_drop(&s->unacked, (size_t)(read_to - from));
}

void stream_resend(struct stream *s)
{
    while (s->resend.len && s->in_credit && !s->waits_resume) {
        size_t n = s->resend.len < VM_MAX_PAYLOAD ? s->resend.len : VM_MAX_PAYLOAD;
        if (n > s->in_credit)
            n = (size_t)s->in_credit;
        link_send(s->link, VM_DATA, VM_STDIN, s->number, s->resend.data, n);
        buf_put(&s->unacked, s->resend.data, n);
        buf_drop(&s->resend, n);
        s->in_sent += n;
        s->in_credit -= n;
        if (!s->resend.len && s->in_eof)
            link_send(s->link, VM_EOF, VM_STDIN, s->number, NULL, 0);
    }
}

static bool go_on(struct stream *s, uint64_t stdin_got)
{
    uint64_t end = s->in_sent + s->resend.len, from = s->in_sent - s->unacked.len;

    if (stdin_got > end || stdin_got < from)
        return false;
    cleanup_buf struct buf tail = {0};
    buf_put(&tail, s->unacked.data, s->unacked.len);
    buf_put(&tail, s->resend.data, s->resend.len);
    buf_free(&s->resend);
    buf_put(&s->resend, tail.data + (stdin_got - from), (size_t)(end - stdin_got));
    s->unacked.len = 0;
    s->in_sent = s->ack_base = stdin_got;
    s->in_granted = 0;
    s->in_credit = 0;
    s->waits_resume = false;
    for (int i = VM_STDOUT; i <= VM_STDERR; i++) {
        s->credit[i] = 0;
        s->owed[i] = s->window[i] - (s->queued[i] < s->window[i] ? s->queued[i] : s->window[i]);
        stream_grant(s, i);
    }
    if (s->in_eof && !s->resend.len)
        link_send(s->link, VM_EOF, VM_STDIN, s->number, NULL, 0);
    if (s->kill_asked) {
        cleanup_buf struct buf b = {0};
        buf_put_u32(&b, s->kill_signal);
        buf_put_u32(&b, s->kill_scope);
        link_send(s->link, VM_KILL, 0, s->number, b.data, b.len);
    }
    stream_push(s, STREAM_RESUMED, 0, NULL, 0);
    return true;
}

bool link_on_resumed(struct link *l, struct cursor *c)
{
    uint32_t n = cursor_u32(c);

    for (uint32_t i = 0; i < n && !c->bad; i++) {
        uint32_t number = cursor_u32(c);
        uint8_t known = cursor_u8(c);
        uint64_t stdin_got = cursor_u64(c);
        struct stream *s = c->bad ? NULL : link_find(l, number);
        if (!s) /* closed by its caller while RESUME was under way */
            continue;
        if (!s->waits_resume)
            return false;
        if (known && !go_on(s, stdin_got))
            return false;
        if (!known) {
            error_set(
                &s->failure, ERR_NETWORK,
                "VM %s: network: the connection broke, and the VM no longer knows the command",
                link_label(l));
            stream_finish(s, STREAM_BROKEN);
        }
    }
    return !c->bad && !c->left;
}
