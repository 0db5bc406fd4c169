/* Jansson, with what Node's JSON needs on top (https://jansson.readthedocs.io): strings may hold
 * NUL and lone surrogates, which Jansson refuses. Thread-safe as Jansson is: a value belongs to one
 * thread at a time. */
#ifndef BASE_JSON_H
#define BASE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

static inline void cleanup_json_fn(json_t **j)
{
    json_decref(*j);
}
#define cleanup_json __attribute__((cleanup(cleanup_json_fn)))

/* Parses one value of n bytes; writable: an escaped lone surrogate becomes \ufffd in place.
 * NULL and ERR_INVALID with line/column and reason. */
json_t *json_parse(char *text, size_t n, struct error *err);

/* Compact, UTF-8, U+2028 and U+2029 and lone controls escaped: safe as one line for Node's line
 * readers. */
void json_write(struct buf *out, const json_t *value);

/* Appends the inside of a JSON string for n bytes of valid UTF-8 (NUL allowed), escaped as
 * json_write does. */
void json_escape(struct buf *out, const char *s, size_t n);

/* Member lookups that tolerate any type: NULL / fallback when absent or of another type.
 * json_str is borrowed from the object and never holds NUL (such a string counts as absent). */
const char *json_str(const json_t *obj, const char *key);
bool json_bool(const json_t *obj, const char *key); /* only true is true */
int64_t json_int(const json_t *obj, const char *key, int64_t fallback);

#endif
