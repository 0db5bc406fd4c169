/* Small text helpers. All results are owned by the caller. Thread-safe. */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"

/* Appends s, single-quoted for a POSIX shell ('a'\''b'). */
void shell_quote(struct buf *out, const char *s);
/* Host, user and VM names that may appear on a command line. A leading hyphen, whitespace, quotes
 * and control characters never pass. host: letters, digits, '.', '-', '_', ':' and, bracketed,
 * IPv6; at most 255. user: letters, digits and ._+-@; at most 64. VM name (exe-dev.md): a-z 0-9
 * '-', at most 63, no hyphen at either end, last hyphen part not all digits. */
bool text_is_host(const char *s);
bool text_is_user(const char *s);
bool text_is_vm_name(const char *s);
bool text_starts(const char *s, const char *prefix);
bool text_ends(const char *s, const char *suffix);
/* s without ASCII white space at both ends (copied). */
char *text_trim(const char *s);
/* Valid UTF-8 without overlong forms and surrogates? */
bool text_is_utf8(const char *s, size_t n);
/* Appends s, with every control character (and DEL, and invalid UTF-8) made visible as \xNN, for
 * messages and terminals; at most max bytes of s, then "...". */
void text_visible(struct buf *out, const char *s, size_t n, size_t max);
/* "3.2 MB", "850 ms", "2 h 5 min": for people. */
char *text_bytes(unsigned long long n);
char *text_duration_ms(long long ms);

#endif
