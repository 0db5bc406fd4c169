/* A point on CLOCK_MONOTONIC by which something must be done. A plain value. */
#ifndef BASE_DEADLINE_H
#define BASE_DEADLINE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Milliseconds of CLOCK_MONOTONIC. */
int64_t now_ms(void);

struct deadline {
    int64_t at_ms; /* INT64_MAX: never */
};

#define DEADLINE_NEVER ((struct deadline){INT64_MAX})

struct deadline deadline_in(int64_t ms);
/* The earlier of two. */
struct deadline deadline_min(struct deadline a, struct deadline b);
/* Milliseconds left, never negative; INT64_MAX for never. */
int64_t deadline_left(struct deadline d);
bool deadline_passed(struct deadline d);
/* For poll(2): -1 for never, else 0 .. INT_MAX. */
int deadline_poll(struct deadline d);
/* For pthread_cond_clockwait / a condition variable on CLOCK_MONOTONIC. */
struct timespec deadline_timespec(struct deadline d);
/* Sleeps at most ms, and not past d. */
void deadline_sleep(struct deadline d, int64_t ms);

#endif
