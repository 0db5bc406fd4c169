/* What each frame of the client means: PROTOCOL.vm section 3. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/deadline.h"
#include "vm/vm.h"

static void on_hello(struct session *s, struct cursor *c)
{
    extern const char exedev_vm_id[];
    const void *magic = cursor_bytes(c, VM_MAGIC_LEN);
    size_t build_len, key_len;
    const char *build = cursor_str(c, VM_MAX_KEY, &build_len);

    s->heartbeat_ms = cursor_u32(c);
    s->dead_ms = cursor_u32(c);
    s->grace_ms = cursor_u32(c);
    uint32_t flags = cursor_u32(c);
    const char *key = cursor_str(c, VM_MAX_KEY, &key_len);
    s->keep_ms = cursor_u32(c);
    bool durable = flags & VM_HELLO_DURABLE;

    if (c->bad || c->left || memcmp(magic, VM_MAGIC, VM_MAGIC_LEN) != 0 ||
        (flags & ~(uint32_t)VM_HELLO_DURABLE)) {
        session_broken(s, "a HELLO that is none of version 1");
    } else if (build_len != strlen(exedev_vm_id) || memcmp(build, exedev_vm_id, build_len) != 0) {
        session_broken(s, "a client of another build");
    } else if (durable != s->durable ||
               (durable && (key_len != strlen(s->key) || memcmp(key, s->key, key_len) != 0)) ||
               (!durable && key_len)) {
        session_broken(s, "a HELLO for another session");
    } else {
        s->greeted = true;
        if (s->heartbeat_ms)
            session_timer(s, now_ms() + s->heartbeat_ms);
        if (s->dead_ms)
            session_timer(s, now_ms() + s->dead_ms);
        s->resuming = s->client_known;
        s->client_known = true;
        env_login(s, false); /* so that it is there when the first command comes */
    }
}

static bool number_used(struct session *s, uint32_t id)
{
    size_t i = 0;

    while (i < s->nused && s->used[i].to < id - 1)
        i++;
    if (i < s->nused && s->used[i].from <= id && id <= s->used[i].to)
        return true;
    struct used *u = &s->used[i];
    if (i < s->nused && u->to == id - 1) {
        u->to = id;
        if (i + 1 < s->nused && u[1].from == id + 1) {
            u->to = u[1].to;
            memmove(u + 1, u + 2, (s->nused - i - 2) * sizeof *u);
            s->nused--;
        }
    } else if (i < s->nused && u->from == id + 1) {
        u->from = id;
    } else {
        s->used = xreallocarray(s->used, s->nused + 1, sizeof *s->used);
        u = &s->used[i];
        memmove(u + 1, u, (s->nused - i) * sizeof *u);
        *u = (struct used){id, id};
        s->nused++;
    }
    return false;
}

/* Numbers come nearly in order, so the ranges are one or two; a client that leaves this many holes
 * breaks rules on purpose. */
#define MAX_RANGES 8192

static void on_open(struct session *s, uint8_t channel, uint32_t id, const char *p, size_t n)
{
    if (s->open_partial ? s->open_id != id : number_used(s, id)) {
        session_broken(s, "OPEN of stream %u between another's parts, or again", id);
        return;
    }
    if (channel > VM_OPEN_MORE || s->open_buf.len + n > VM_MAX_REQUEST || s->nused > MAX_RANGES) {
        session_broken(s, "OPEN of stream %u beyond a limit", id);
        return;
    }
    buf_put(&s->open_buf, p, n);
    s->open_id = id;
    s->open_partial = channel == VM_OPEN_MORE;
    if (s->open_partial)
        return;
    if (s->nstreams >= VM_MAX_STREAMS) {
        session_broken(s, "more than %u streams", VM_MAX_STREAMS);
        return;
    }
    stream_open(s, id, &s->open_buf);
    buf_free(&s->open_buf);
}

static void on_endall(struct session *s, struct cursor *c)
{
    uint32_t scope = cursor_u32(c);
    char *marker = cursor_strdup(c, VM_MAX_STRING);

    if (c->bad || c->left || scope != VM_ENDALL_MARKER || !marker[0] || s->ender.active) {
        session_broken(s, "a bad ENDALL");
        free(marker);
        return;
    }
    free(s->ender.marker);
    s->ender.marker = marker;
    s->ender.active = true;
    for (struct stream *st = s->streams; st; st = st->next) {
        if (!st->dead && !strcmp(st->marker, marker))
            stream_kill(s, st, 0, false);
    }
    durable_end_marker(s, marker);
    kill_start(s, &s->ender.job, 0, false);
}

/* Frames of one stream. */
static void on_stream(struct session *s, struct stream *st, uint8_t type, uint8_t channel,
                      const char *p, size_t n)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};

    switch (type) {
    case VM_DATA:
        if (channel != VM_STDIN || n == 0)
            session_broken(s, "a bad DATA");
        else
            stream_data(s, st, p, n);
        return;
    case VM_EOF:
        if (channel != VM_STDIN || n)
            session_broken(s, "a bad EOF");
        else
            stream_in_eof(s, st, false);
        return;
    case VM_CLOSE_IN:
        if (n)
            session_broken(s, "a bad CLOSE_IN");
        else
            stream_in_eof(s, st, true);
        return;
    case VM_CREDIT: {
        uint32_t more = cursor_u32(&c);
        if (c.bad || c.left || channel == VM_STDIN)
            session_broken(s, "a bad CREDIT");
        else
            stream_credit(s, st, channel, more);
        return;
    }
    case VM_KILL: {
        uint32_t sig = cursor_u32(&c), scope = cursor_u32(&c);
        if (c.bad || c.left || sig > 64 || scope > VM_KILL_NOW)
            session_broken(s, "a bad KILL");
        else if (scope == VM_KILL_FOREGROUND)
            stream_signal(s, st, (int)sig);
        else
            stream_kill(s, st, (int)sig, scope == VM_KILL_NOW);
        return;
    }
    case VM_WINCH: {
        uint16_t rows = cursor_u16(&c), cols = cursor_u16(&c);
        if (c.bad || c.left)
            session_broken(s, "a bad WINCH");
        else
            stream_winch(s, st, rows, cols);
        return;
    }
    default:
        session_broken(s, "a frame of type %u from a client", type);
    }
}

void dispatch(struct session *s, uint8_t type, uint8_t channel, uint32_t stream, const char *p,
              size_t n)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};

    if (!s->greeted) {
        if (type != VM_HELLO || stream)
            session_broken(s, "something before HELLO");
        else
            on_hello(s, &c);
        return;
    }
    if (s->resuming) {
        if (type != VM_RESUME || stream)
            session_broken(s, "something before RESUME");
        else
            durable_resume(s, p, n);
        return;
    }
    bool session_wide = type == VM_PING || type == VM_PONG || type == VM_ENDALL || type == VM_BYE;
    if (session_wide != (stream == 0)) {
        session_broken(s, "a frame of type %u for stream %u", type, stream);
        return;
    }
    switch (type) {
    case VM_PING:
        if (n != 8)
            session_broken(s, "a bad PING");
        else
            frame_raw(s, VM_PONG, 0, p, n);
        return;
    case VM_PONG: {
        uint64_t seq = cursor_u64(&c);
        if (n != 8)
            session_broken(s, "a bad PONG");
        else if (s->durable)
            durable_pong(s, seq);
        return;
    }
    case VM_ENDALL:
        on_endall(s, &c);
        return;
    case VM_BYE:
        if (n) {
            session_broken(s, "a bad BYE");
        } else {
            s->bye = true;
            session_end(s);
        }
        return;
    case VM_OPEN:
        if (!s->ending)
            on_open(s, channel, stream, p, n);
        return;
    default:
        break;
    }
    struct stream *st = stream_find(s, stream);
    if (st && st->state != ST_KEPT && !st->dead)
        on_stream(s, st, type, channel, p, n);
    else if (type < VM_DATA ||
             (type > VM_CREDIT && type != VM_KILL && type != VM_WINCH && type != VM_CLOSE_IN))
        session_broken(s, "a frame of type %u from a client", type);
}
