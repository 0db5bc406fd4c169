#include "lib/cancel.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/alloc.h"

struct watcher {
    int id;
    void (*fn)(void *arg);
    void *arg;
    struct watcher *next;
};

struct cancel {
    atomic_int refs;
    atomic_bool fired;
    pthread_mutex_t lock; /* held while watchers run, so that unwatch means: not running any more */
    struct watcher *watchers;
    int next_id;
    int fd; /* made when first asked for: a thousand calls must not cost a thousand descriptors */
};

struct cancel *cancel_new(void)
{
    struct cancel *c = xcalloc(1, sizeof *c);

    c->refs = 1;
    c->fd = -1;
    pthread_mutex_init(&c->lock, NULL);
    return c;
}

struct cancel *cancel_ref(struct cancel *c)
{
    if (c)
        c->refs++;
    return c;
}

void cancel_unref(struct cancel *c)
{
    if (!c || --c->refs)
        return;
    while (c->watchers) {
        struct watcher *w = c->watchers;
        c->watchers = w->next;
        free(w);
    }
    if (c->fd >= 0)
        close(c->fd);
    pthread_mutex_destroy(&c->lock);
    free(c);
}

void cancel_fire(struct cancel *c)
{
    pthread_mutex_lock(&c->lock);
    if (!c->fired) {
        c->fired = true;
        if (c->fd >= 0)
            eventfd_write(c->fd, 1);
        for (struct watcher *w = c->watchers; w; w = w->next)
            w->fn(w->arg);
    }
    pthread_mutex_unlock(&c->lock);
}

bool cancel_fired(const struct cancel *c)
{
    return c && c->fired;
}

int cancel_fd(const struct cancel *c)
{
    struct cancel *m = (struct cancel *)c; /* the lazily made part is not the caller's to see */

    if (!c)
        return -1;
    pthread_mutex_lock(&m->lock);
    if (m->fd < 0)
        m->fd = eventfd(m->fired ? 1 : 0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_mutex_unlock(&m->lock);
    return m->fd;
}

int cancel_watch(struct cancel *c, void (*fn)(void *arg), void *arg)
{
    if (!c)
        return 0;
    struct watcher *w = xmalloc(sizeof *w);
    pthread_mutex_lock(&c->lock);
    *w = (struct watcher){.id = ++c->next_id, .fn = fn, .arg = arg, .next = c->watchers};
    c->watchers = w;
    if (c->fired)
        fn(arg);
    int id = w->id;
    pthread_mutex_unlock(&c->lock);
    return id;
}

void cancel_unwatch(struct cancel *c, int id)
{
    if (!c)
        return;
    pthread_mutex_lock(&c->lock);
    for (struct watcher **at = &c->watchers; *at; at = &(*at)->next) {
        if ((*at)->id == id) {
            struct watcher *w = *at;
            *at = w->next;
            free(w);
            break;
        }
    }
    pthread_mutex_unlock(&c->lock);
}
