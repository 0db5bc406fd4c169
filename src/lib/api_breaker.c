#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/api_internal.h"

#define TRIP 5             /* failures in a row that open it */
#define OPEN_FIRST_MS 1000 /* doubled at each failed trial */
#define OPEN_MOST_MS 30000

/* One per URL, for the life of the process: there are few. While it is open one caller at a time is
 * let through as a trial; who waits shares the trial's fate. */
struct breaker {
    char *url;
    int failures;
    bool open, trial;
    int64_t until, step;
    unsigned failed_trials;
    struct error last;
    struct breaker *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct breaker *all;

struct breaker *breaker_get(const char *url)
{
    pthread_mutex_lock(&lock);
    struct breaker *b = all;
    while (b && strcmp(b->url, url) != 0)
        b = b->next;
    if (!b) {
        b = xcalloc(1, sizeof *b);
        b->url = xstrdup(url);
        b->next = all;
        all = b;
    }
    pthread_mutex_unlock(&lock);
    return b;
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
            error_copy(err, &b->last);
            break;
        }
        if (!b->trial && now_ms() >= b->until) {
            b->trial = true;
            break;
        }
        bool hopeless = !b->trial && b->until > d.at_ms;
        if (hopeless || deadline_passed(d) || api_cancelled()) {
            error_copy(err, &b->last);
            error_prefix(
                err,
                "service unavailable, %d calls in a row failed and no more are made for the "
                "moment; the last",
                b->failures);
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

void breaker_leave(struct breaker *b, enum breaker_news news, const struct error *err)
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
        error_copy(&b->last, err);
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
