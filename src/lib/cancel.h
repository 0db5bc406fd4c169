/* A one-way switch that wakes whoever waits: a call's cancellation. Any thread may fire it, once or
 * more. `fd` is readable once it has fired, for poll(2). */
#ifndef LIB_CANCEL_H
#define LIB_CANCEL_H

#include <stdbool.h>

struct cancel;

struct cancel *cancel_new(void);
struct cancel *cancel_ref(struct cancel *c);
void cancel_unref(struct cancel *c); /* NULL is fine */
void cancel_fire(struct cancel *c);
bool cancel_fired(const struct cancel *c); /* NULL: never */
int cancel_fd(const struct cancel *c);     /* NULL: -1 */
/* Calls fn(arg) when it fires (at once when it has), from the firing thread; until cancel_unwatch.
 */
int cancel_watch(struct cancel *c, void (*fn)(void *arg), void *arg);
void cancel_unwatch(struct cancel *c, int id);

#endif
