/* Output of commands as text: UTF-8 put together across reads, and counted as the JSON line that
 * will carry it counts. Plain values, one thread at a time. */
#ifndef LIB_STREAM_H
#define LIB_STREAM_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* Carries the beginning of a character from one read to the next. Zero-initialised is empty. */
struct text_join {
    unsigned char part[4];
    unsigned char have;
};

/* Makes n bytes valid UTF-8: *out and *len are either the very bytes given or in scratch (whose old
 * content is dropped), valid until either changes. What is no UTF-8 becomes U+FFFD, one for each
 * maximal part of a character (as the Unicode standard and browsers do). With `last` an unfinished
 * character is given out as U+FFFD too, else it waits for the next call. */
void text_join(struct text_join *t, const char *p, size_t n, bool last, struct buf *scratch,
               const char **out, size_t *len);

/* How many bytes of n (valid UTF-8) fit into *room characters once json_escape has escaped them,
 * counted in UTF-16 units as the host counts; never cuts a character. Takes them off *room. */
size_t text_fit(const char *p, size_t n, size_t *room);

#endif
