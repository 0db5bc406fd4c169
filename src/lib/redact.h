/* The one place that knows what is secret. Whatever goes to a message, a log or a person passes
 * redact() first. Thread-safe. */
#ifndef LIB_REDACT_H
#define LIB_REDACT_H

#include <stddef.h>

#include "base/error.h"

#define REDACTED "[REDACTED]"

/* Counted: each redact_add needs its redact_remove, after which the copy kept here is wiped. NULL,
 * and texts too short to be secret (under 4 bytes), are ignored. A text of several lines is known
 * by each long line too. */
void redact_add(const char *secret);
void redact_remove(const char *secret);

/* A copy with every known secret replaced, also as JSON, shell or percent-encoding write it. Owned.
 */
char *redact(const char *text);
/* The same, with further secrets of this call only (short ones too, where they stand after '='). */
char *redact_with(const char *text, const char *const *more, size_t n);
/* Redacts err->msg in place. */
void redact_error(struct error *err);

#endif
