#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/api_internal.h"

#define TRIP 5             /* failures in a row that open it */
#define OPEN_FIRST_MS 1000 /* doubled at each failed trial */
#define OPEN_MOST_MS 10000

/* One per way, for the life of the process: there are few. While it is open one caller at a time is
 * let through as a trial; who waits shares the trial's fate. */
struct breaker {
    char *way;
    int failures;
    bool open, trial;
    int64_t until, step;
    unsigned failed_trials;
    char *reason;
    struct breaker *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct breaker *all;

struct breaker *breaker_get(const struct config *c)
{
    cleanup_free char *way =
        xasprintf("%s\n%s\n%s", c->api_url, c->https_proxy ? c->https_proxy : "",
                  c->ca_file ? c->ca_file : "");

    pthread_mutex_lock(&lock);
    struct breaker *b = all;
    while (b && strcmp(b->way, way) != 0)
        b = b->next;
    if (!b) {
        b = xcalloc(1, sizeof *b);
        b->way = steal_ptr(way);
        b->next = all;
        all = b;
    }
    pthread_mutex_unlock(&lock);
    return b;
}

/* Lock held. */
static void refuse(const struct breaker *b, struct error *err)
{
    error_set(
        err, ERR_UNAVAILABLE,
        "service unavailable: %d calls in a row have failed (the last: %s), so that no more are "
        "made for a moment",
        b->failures, b->reason);
}

bool breaker_enter(struct breaker *b, struct deadline d, bool *trial_failed, struct error *err)
{
    *trial_failed = false;
    pthread_mutex_lock(&lock);
    unsigned seen = b->failed_trials;
    for (;;) {
        if (!b->open)
            break;
        if (b->failed_trials != seen) {
            *trial_failed = true;
            refuse(b, err);
            break;
        }
        if (!b->trial && now_ms() >= b->until) {
            b->trial = true;
            break;
        }
        bool hopeless = !b->trial && b->until > d.at_ms;
        if (hopeless || deadline_passed(d) || api_cancelled()) {
            refuse(b, err);
            pthread_mutex_unlock(&lock);
            return false;
        }
        pthread_mutex_unlock(&lock);
        deadline_sleep(d, 20);
        pthread_mutex_lock(&lock);
    }
    pthread_mutex_unlock(&lock);
    return true;
}

void breaker_leave(struct breaker *b, enum breaker_news news, const char *reason)
{
    unsigned short jitter;

    pthread_mutex_lock(&lock);
    bool was_trial = b->open && b->trial;
    if (news == BREAKER_WELL) {
        b->failures = 0;
        b->open = b->trial = false;
    } else if (news == BREAKER_NOTHING) {
        b->trial = false;
    } else {
        free(b->reason);
        b->reason = xstrdup(reason);
        b->failures++;
        /* Calls that were under way when it opened say nothing new. */
        if (was_trial || (!b->open && b->failures >= TRIP)) {
            io_random(&jitter, sizeof jitter);
            b->step = !b->open                     ? OPEN_FIRST_MS
                      : b->step * 2 < OPEN_MOST_MS ? b->step * 2
                                                   : OPEN_MOST_MS;
            b->until = now_ms() + b->step / 2 + b->step / 2 * jitter / 65535;
            b->failed_trials += was_trial;
            b->open = true;
            b->trial = false;
        }
    }
    pthread_mutex_unlock(&lock);
}
