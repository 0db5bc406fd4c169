/* Streams: the table, the queue of events of each, credit both ways. One lock for all of a link:
 * what is done under it is short. */
#include <errno.h>
#include <string.h>

#include "base/alloc.h"
#include "lib/link_private.h"

#define DEFAULT_WINDOW (1u << 20)
#define SMALL_NODE 2048u

/* ---- the table (lock held) ---- */

struct stream *link_find(struct link *l, uint32_t number)
{
    struct stream *s = l->streams[number % LINK_BUCKETS];

    while (s && s->number != number)
        s = s->next;
    return s;
}

static void list(struct stream *s)
{
    struct link *l = s->link;
    struct stream **bucket = &l->streams[s->number % LINK_BUCKETS];

    s->next = *bucket;
    *bucket = s;
    s->listed = true;
    l->listed++;
}

static void unlist(struct stream *s)
{
    struct link *l = s->link;
    struct stream **at = &l->streams[s->number % LINK_BUCKETS];

    while (*at != s)
        at = &(*at)->next;
    *at = s->next;
    s->listed = false;
    l->idle_since = now_ms();
    if (l->listed-- == VM_MAX_STREAMS)
        pthread_cond_broadcast(&l->changed);
}

static void drop_queue(struct stream *s)
{
    while (s->head) {
        struct node *n = s->head;
        s->head = n->next;
        free(n);
    }
    s->tail = NULL;
}

static void stream_free(struct stream *s)
{
    drop_queue(s);
    free(s->current);
    buf_free(&s->unacked);
    buf_free(&s->resend);
    error_clear(&s->failure);
    pthread_cond_destroy(&s->ready);
    free(s);
}

/* ---- events (lock held) ---- */

void stream_push(struct stream *s, enum stream_event event, int channel, const void *p, size_t n)
{
    struct node *tail = s->tail;

    if (s->abandoned)
        return;
    /* A command that writes byte by byte to a slow reader must not cost a node for each. */
    if (event == STREAM_DATA && tail && tail->event == event && tail->channel == channel &&
        tail->cap - tail->len >= n) {
        memcpy(tail->data + tail->len, p, n);
        tail->len += n;
        return;
    }
    size_t cap = event == STREAM_DATA && tail && n < SMALL_NODE ? SMALL_NODE : n;
    struct node *node = xmalloc(sizeof *node + cap);
    *node = (struct node){.event = event, .channel = channel, .len = n, .cap = cap};
    if (n)
        memcpy(node->data, p, n);
    if (tail)
        tail->next = node;
    else
        s->head = node;
    s->tail = node;
    pthread_cond_broadcast(&s->ready);
}

void stream_finish(struct stream *s, enum stream_event event)
{
    stream_push(s, event, 0, NULL, 0);
    s->over = true;
    unlist(s);
    if (s->abandoned)
        stream_free(s);
}

void stream_grant(struct stream *s, int channel)
{
    uint64_t owed = s->owed[channel], window = s->window[channel];

    if (!s->listed || s->eof[channel] || owed < window / 2 || s->waits_resume)
        return;
    if (s->got[channel] >= 2 * window && window < LINK_WINDOW_MAX && !s->abandoned) {
        s->window[channel] *= 2; /* the reader keeps up: let a long way hold more */
        owed += window;
    }
    unsigned char be[4] = {(unsigned char)(owed >> 24), (unsigned char)(owed >> 16),
                           (unsigned char)(owed >> 8), (unsigned char)owed};
    link_send(s->link, VM_CREDIT, channel, s->number, be, sizeof be);
    s->credit[channel] += owed;
    s->owed[channel] = 0;
}

void stream_on_room(struct stream *s)
{
    stream_resend(s);
    if (s->want_write || s->writer_waits)
        pthread_cond_broadcast(&s->ready);
}

void link_break_streams(struct link *l, bool durable_too, const struct error *why)
{
    for (unsigned i = 0; i < LINK_BUCKETS; i++) {
        for (struct stream *s = l->streams[i], *next; s; s = next) {
            next = s->next;
            if (s->durable && !durable_too && !s->abandoned) {
                s->waits_resume = true;
                s->in_credit = 0;
                s->credit[VM_STDOUT] = s->credit[VM_STDERR] =
                    0; /* nothing may come before RESUMED */
                continue;
            }
            error_copy(&s->failure, why);
            stream_finish(s, STREAM_BROKEN);
        }
    }
}

bool link_has_durable(const struct link *l)
{
    for (unsigned i = 0; i < LINK_BUCKETS; i++) {
        for (struct stream *s = l->streams[i]; s; s = s->next) {
            if (s->durable && !s->abandoned)
                return true;
        }
    }
    return false;
}

/* ---- opening ---- */

static bool put_strings(struct buf *b, const char *const *list, size_t *total, struct error *err)
{
    uint32_t n = 0;

    for (; list && list[n]; n++)
        ;
    buf_put_u32(b, n);
    for (uint32_t i = 0; i < n; i++) {
        size_t len = strlen(list[i]);
        if (len > VM_MAX_STRING)
            return error_set(
                err, ERR_TOO_LARGE,
                "an argument or variable of %zu bytes: Linux takes at most %u in one (pass "
                "it on stdin or in a file)",
                len, VM_MAX_STRING);
        if ((*total += len + 1) > VM_MAX_ARGS)
            return error_set(
                err, ERR_TOO_LARGE,
                "arguments and environment are over %u bytes together: pass the bulk on "
                "stdin or in a file",
                VM_MAX_ARGS);
        buf_put_str(b, list[i], len);
    }
    return true;
}

static bool build_request(const struct link *l, const struct stream_request *r, uint32_t window,
                          struct buf *b, struct error *err)
{
    uint32_t flags = (r->login_env ? VM_OPEN_LOGIN : 0) |
                     (r->durable && l->durable ? VM_OPEN_DURABLE : 0) |
                     (r->no_stdin ? VM_OPEN_NO_STDIN : 0) | (r->merge_stderr ? VM_OPEN_MERGE : 0) |
                     (r->end_background ? VM_OPEN_KILL_BG : 0) |
                     (r->source_nvm && r->login_env ? VM_OPEN_NVM : 0);
    size_t total = 0;
    const char *cwd = r->cwd ? r->cwd : "";

    if (!r->argv || !r->argv[0])
        return error_set(err, ERR_INVALID, "no command was given");
    if (strlen(cwd) >= 4096)
        return error_set(err, ERR_TOO_LARGE,
                         "the working directory's path is longer than 4095 bytes");
    buf_put_u8(b, (uint8_t)r->kind);
    buf_put_u32(b, flags);
    buf_put_u32(b, r->timeout_ms);
    buf_put_u32(b, window);
    buf_put_u16(b, r->rows);
    buf_put_u16(b, r->cols);
    buf_put_str(b, l->marker ? l->marker : "", l->marker ? strlen(l->marker) : 0);
    buf_put_str(b, cwd, strlen(cwd));
    return put_strings(b, r->argv, &total, err) && put_strings(b, r->env, &total, err);
}

static void wake_stream(void *arg)
{
    struct stream *s = arg;

    pthread_mutex_lock(&s->link->lock);
    pthread_cond_broadcast(&s->ready);
    pthread_mutex_unlock(&s->link->lock);
}

static bool waited_out(struct deadline d, struct cancel *cancel, const char *what,
                       const struct link *l, struct error *err)
{
    if (cancel_fired(cancel))
        return error_set(err, ERR_CANCELLED, "VM %s: %s was cancelled", link_label(l), what);
    if (deadline_passed(d))
        return error_set(err, ERR_TIMEOUT, "VM %s: %s timed out", link_label(l), what);
    return true;
}

/* The request in OPEN frames. A long one lets others' frames pass between its parts; then the
 * connection may break meanwhile, which the stream's events tell. */
static void send_request(struct link *l, struct stream *s, const struct buf *b)
{
    size_t at = 0;

    l->opening = true;
    do {
        size_t n = b->len - at < VM_MAX_PAYLOAD ? b->len - at : VM_MAX_PAYLOAD;
        while (at && s->listed && l->state == LINK_UP && link_out_waiting(l) > LINK_OUT_LOW)
            pthread_cond_wait(&l->changed, &l->lock);
        if (!s->listed || l->state != LINK_UP)
            break;
        link_send(l, VM_OPEN, at + n < b->len ? VM_OPEN_MORE : VM_OPEN_LAST, s->number,
                  b->data + at, n);
        at += n;
    } while (at < b->len);
    l->opening = false;
    pthread_cond_broadcast(&l->changed);
}

struct stream *stream_open(struct link *l, const struct stream_request *req, struct deadline d,
                           struct cancel *cancel, struct error *err)
{
    cleanup_buf struct buf b = {0};
    uint32_t window = req->credit ? req->credit : DEFAULT_WINDOW;
    bool ok;

    if (!build_request(l, req, window, &b, err))
        return NULL;
    int watch = cancel_watch(cancel, link_wake_fn, l);
    for (;;) {
        if (!(ok = link_wait_up(l, d, cancel, err)))
            break;
        pthread_mutex_lock(&l->lock);
        while (l->state == LINK_UP && !l->closing && (l->opening || l->listed >= VM_MAX_STREAMS) &&
               (ok = waited_out(d, cancel, "starting a command", l, err)))
            link_wait(&l->changed, &l->lock, d);
        if (ok && l->state == LINK_UP && !l->closing)
            break;
        pthread_mutex_unlock(&l->lock);
        if (!ok)
            break;
        /* it broke just now: once more */
    }
    if (!ok) {
        cancel_unwatch(cancel, watch);
        return NULL;
    }
    struct stream *s = xcalloc(1, sizeof *s);
    link_cond_init(&s->ready);
    s->link = link_ref(l);
    s->number = ++l->last_number;
    s->durable = req->durable && l->durable;
    for (int i = VM_STDOUT; i <= VM_STDERR; i++) {
        s->window[i] = window;
        s->credit[i] = window;
    }
    s->in_credit = s->in_granted = vm_stdin_credit(req->kind);
    s->in_eof = req->no_stdin;
    list(s);
    send_request(l, s, &b);
    pthread_mutex_unlock(&l->lock);
    cancel_unwatch(cancel, watch);
    return s;
}

/* ---- reading ---- */

static void consumed(struct stream *s, int channel, size_t n)
{
    s->owed[channel] += n;
    s->queued[channel] -= n;
    stream_grant(s, channel);
}

static bool can_write(const struct stream *s)
{
    return s->in_eof || s->over ||
           (s->in_credit && !s->resend.len && link_out_waiting(s->link) <= LINK_OUT_LOW);
}

static void give(struct stream *s, enum stream_event *event, struct stream_chunk *chunk,
                 struct error *err)
{
    struct node *n = s->head;

    s->head = n->next;
    if (!s->head)
        s->tail = NULL;
    s->current = n;
    *event = n->event;
    *chunk = (struct stream_chunk){.channel = n->channel, .data = n->data, .len = n->len};
    if (n->event == STREAM_EXIT || n->event == STREAM_FAILED)
        *chunk = s->end;
    if (n->event == STREAM_FAILED || n->event == STREAM_BROKEN)
        error_copy(err, &s->failure);
}

bool stream_next(struct stream *s, enum stream_event *event, struct stream_chunk *chunk,
                 struct deadline d, struct cancel *cancel, struct error *err)
{
    struct link *l = s->link;
    bool ok = true;
    int watch = cancel_watch(cancel, wake_stream, s);

    pthread_mutex_lock(&l->lock);
    if (s->current) {
        if (s->current->event == STREAM_DATA)
            consumed(s, s->current->channel, s->current->len);
        free(steal_ptr(s->current));
    }
    for (;;) {
        if (s->head) {
            give(s, event, chunk, err);
            break;
        }
        if (s->over) {
            ok = error_set(err, ERR_INTERNAL, "VM %s: the command is over", link_label(l));
            break;
        }
        if (s->want_write && can_write(s)) {
            s->want_write = false;
            *event = STREAM_WRITABLE;
            *chunk = (struct stream_chunk){0};
            break;
        }
        if (!(ok = waited_out(d, cancel, "waiting for the command", l, err)))
            break;
        link_wait(&s->ready, &l->lock, d);
    }
    pthread_mutex_unlock(&l->lock);
    cancel_unwatch(cancel, watch);
    return ok;
}

/* ---- writing ---- */

static ssize_t write_some(struct stream *s, const char *p, size_t n)
{
    struct link *l = s->link;
    size_t done = 0;

    if (s->in_eof || s->over)
        return -1;
    while (done < n && can_write(s)) {
        size_t part = n - done < VM_MAX_PAYLOAD ? n - done : VM_MAX_PAYLOAD;
        if (part > s->in_credit)
            part = (size_t)s->in_credit;
        link_send(l, VM_DATA, VM_STDIN, s->number, p + done, part);
        s->in_credit -= part;
        s->in_sent += part;
        if (s->durable)
            buf_put(&s->unacked, p + done, part);
        done += part;
    }
    return (ssize_t)done;
}

ssize_t stream_write_some(struct stream *s, const void *p, size_t n)
{
    pthread_mutex_lock(&s->link->lock);
    ssize_t done = write_some(s, p, n);
    s->want_write = done >= 0 && (size_t)done < n;
    pthread_mutex_unlock(&s->link->lock);
    return done;
}

bool stream_write(struct stream *s, const void *p, size_t n, struct deadline d,
                  struct cancel *cancel, struct error *err)
{
    struct link *l = s->link;
    const char *at = p;
    bool ok = true;
    int watch = cancel_watch(cancel, wake_stream, s);

    pthread_mutex_lock(&l->lock);
    while (n) {
        ssize_t done = write_some(s, at, n);
        if (done < 0) {
            ok = s->failure.code == ERR_NONE
                     ? error_set(err, ERR_NOT_FOUND, "VM %s: the command reads no more",
                                 link_label(l))
                     : (error_copy(err, &s->failure), false);
            break;
        }
        at += done;
        n -= (size_t)done;
        if (!n || !(ok = waited_out(d, cancel, "writing to the command", l, err)))
            break;
        s->writer_waits = true;
        link_wait(&s->ready, &l->lock, d);
        s->writer_waits = false;
    }
    pthread_mutex_unlock(&l->lock);
    cancel_unwatch(cancel, watch);
    return ok;
}

void stream_write_eof(struct stream *s)
{
    pthread_mutex_lock(&s->link->lock);
    if (!s->in_eof && s->listed) {
        s->in_eof = true;
        if (!s->resend.len && !s->waits_resume)
            link_send(s->link, VM_EOF, VM_STDIN, s->number, NULL, 0);
    }
    pthread_mutex_unlock(&s->link->lock);
}

static void send_kill(struct stream *s)
{
    cleanup_buf struct buf b = {0};

    buf_put_u32(&b, s->kill_signal);
    buf_put_u32(&b, s->kill_scope);
    link_send(s->link, VM_KILL, 0, s->number, b.data, b.len);
}

void stream_kill(struct stream *s, int sig, int scope)
{
    pthread_mutex_lock(&s->link->lock);
    if (s->listed) {
        s->kill_signal = (uint32_t)sig;
        s->kill_scope = (uint32_t)scope;
        s->kill_asked = scope != VM_KILL_FOREGROUND;
        send_kill(s);
    }
    pthread_mutex_unlock(&s->link->lock);
}

void stream_resize(struct stream *s, uint16_t rows, uint16_t cols)
{
    unsigned char be[4] = {(unsigned char)(rows >> 8), (unsigned char)rows,
                           (unsigned char)(cols >> 8), (unsigned char)cols};

    pthread_mutex_lock(&s->link->lock);
    if (s->listed && !s->waits_resume)
        link_send(s->link, VM_WINCH, 0, s->number, be, sizeof be);
    pthread_mutex_unlock(&s->link->lock);
}

void stream_close(struct stream *s)
{
    struct link *l = s->link;

    pthread_mutex_lock(&l->lock);
    drop_queue(s);
    free(steal_ptr(s->current));
    if (s->listed) {
        s->abandoned = true;
        s->kill_signal = 0;
        s->kill_scope = VM_KILL_TREE;
        s->kill_asked = true;
        if (s->waits_resume && l->state != LINK_UP) {
            unlist(s); /* what RESUME does not name is ended */
            stream_free(s);
        } else if (!s->waits_resume) {
            send_kill(s);
            for (int i = VM_STDOUT; i <= VM_STDERR; i++) {
                s->owed[i] += s->queued[i];
                s->queued[i] = 0;
                stream_grant(s, i);
            }
        }
    } else {
        stream_free(s);
    }
    pthread_mutex_unlock(&l->lock);
    link_unref(l);
}
