#include "base/deadline.h"

#include <errno.h>
#include <limits.h>

int64_t now_ms(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

struct deadline deadline_in(int64_t ms)
{
    int64_t at;

    if (__builtin_add_overflow(now_ms(), ms, &at))
        at = INT64_MAX;
    return (struct deadline){at};
}

struct deadline deadline_min(struct deadline a, struct deadline b)
{
    return a.at_ms < b.at_ms ? a : b;
}

int64_t deadline_left(struct deadline d)
{
    if (d.at_ms == INT64_MAX)
        return INT64_MAX;
    int64_t left = d.at_ms - now_ms();
    return left > 0 ? left : 0;
}

bool deadline_passed(struct deadline d)
{
    return deadline_left(d) == 0;
}

int deadline_poll(struct deadline d)
{
    int64_t left = deadline_left(d);

    if (left == INT64_MAX)
        return -1;
    return left > INT_MAX ? INT_MAX : (int)left;
}

struct timespec deadline_timespec(struct deadline d)
{
    if (d.at_ms == INT64_MAX) /* far enough, and no overflow inside libc */
        return (struct timespec){.tv_sec = (time_t)(now_ms() / 1000) + 10 * 365 * 86400};
    return (struct timespec){.tv_sec = (time_t)(d.at_ms / 1000),
                             .tv_nsec = (long)(d.at_ms % 1000) * 1000000};
}

void deadline_sleep(struct deadline d, int64_t ms)
{
    struct timespec ts = deadline_timespec(deadline_min(d, deadline_in(ms)));

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL) == EINTR)
        ;
}
