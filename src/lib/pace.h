/* How often we may knock: new TCP connections per resolved address, counted over all processes that
 * share a state folder, because the far end counts per source address and drops the port silently
 * for minutes (exe-dev.md). Loopback is not counted. Thread-safe. */
#ifndef LIB_PACE_H
#define LIB_PACE_H

#include <stdbool.h>

#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"

#define PACE_BURST 4
#define PACE_WINDOW_MS 10000

/* Waits until one more connection to host may be opened, and counts it. burst 0: PACE_BURST. A host
 * that does not resolve is let through at once: whoever connects says so better. ERR_TIMEOUT,
 * ERR_CANCELLED, or ERR_SYSTEM when the folder cannot be used. */
bool pace_wait(const char *dir, const char *host, int burst, struct deadline d,
               struct cancel *cancel, struct error *err);

#endif
