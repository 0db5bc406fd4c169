/* The timer inside a VM that powers it off and leaves a mark, so that a VM ends when its worker is
 * gone. Thread-safe. */
#ifndef LIB_EXPIRY_H
#define LIB_EXPIRY_H

#include <stdbool.h>
#include <stdint.h>

#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"
#include "lib/link.h"

/* "2026-11-22T02:46:40.000Z", with any offset, to Unix seconds (rounded down); ERR_INVALID. */
bool expiry_parse(const char *text, int64_t *unix_seconds, struct error *err);
/* As JavaScript's toISOString writes it. Owned. */
char *expiry_text(int64_t unix_seconds);

/* Arms the timer for that moment and reads it back: *armed is what the VM says, at or before `at`.
 * False: no timer is armed, and nothing may be promised. */
bool expiry_arm(struct link *l, int64_t at, int64_t *armed, struct deadline d,
                struct cancel *cancel, struct error *err);
/* *armed 0: none. *expired: it has fired once. */
bool expiry_read(struct link *l, int64_t *armed, bool *expired, struct deadline d,
                 struct cancel *cancel, struct error *err);

#endif
