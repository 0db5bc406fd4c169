#include "lib/form_stream.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/deadline.h"

/* Silence is broken that often, so that a reader who went away is noticed. */
#define BEAT_MS 1000

struct form_stream {
    pthread_mutex_t lock;
    pthread_cond_t more;
    struct buf lines;
    bool ended, gone;
    int refs;
    void (*on_gone)(void *arg);
    void *on_gone_arg;
};

struct form_stream *form_stream_new(void)
{
    struct form_stream *s = xcalloc(1, sizeof *s);

    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->more, NULL);
    s->refs = 2;
    return s;
}

/* With the lock held; lets it go. */
static void unref(struct form_stream *s)
{
    bool last = --s->refs == 0;

    pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    buf_free(&s->lines);
    pthread_cond_destroy(&s->more);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void form_stream_put(struct form_stream *s, const json_t *value)
{
    pthread_mutex_lock(&s->lock);
    if (!s->gone) {
        json_write(&s->lines, value);
        buf_putc(&s->lines, '\n');
        pthread_cond_signal(&s->more);
    }
    pthread_mutex_unlock(&s->lock);
}

void form_stream_end(struct form_stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    s->on_gone = NULL;
    pthread_cond_signal(&s->more);
    unref(s);
}

void form_stream_on_gone(struct form_stream *s, void (*fn)(void *arg), void *arg)
{
    pthread_mutex_lock(&s->lock);
    s->on_gone = fn;
    s->on_gone_arg = arg;
    pthread_mutex_unlock(&s->lock);
}

static ssize_t read_more(void *arg, uint64_t pos, char *to, size_t max)
{
    struct form_stream *s = arg;
    struct deadline beat = deadline_in(BEAT_MS);
    struct timespec until = deadline_timespec(beat);
    ssize_t n;

    (void)pos;
    pthread_mutex_lock(&s->lock);
    while (!s->lines.len && !s->ended && !deadline_passed(beat))
        pthread_cond_clockwait(&s->more, &s->lock, CLOCK_MONOTONIC, &until);
    if (s->lines.len) {
        n = (ssize_t)(s->lines.len < max ? s->lines.len : max);
        memcpy(to, s->lines.data, (size_t)n);
        buf_drop(&s->lines, (size_t)n);
    } else if (s->ended) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        to[0] = '\n';
        n = 1;
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void reader_gone(void *arg)
{
    struct form_stream *s = arg;

    pthread_mutex_lock(&s->lock);
    s->gone = true;
    if (s->on_gone)
        s->on_gone(s->on_gone_arg);
    unref(s);
}

struct MHD_Response *form_stream_response(struct form_stream *s)
{
    return MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_more, s, reader_gone);
}
