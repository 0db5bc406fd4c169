#include "base/json.h"

#include <string.h>

static int hex4(const char *s)
{
    int v = 0;

    for (int i = 0; i < 4; i++) {
        char c = s[i];
        int d = c >= '0' && c <= '9'   ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            return -1;
        v = v * 16 + d;
    }
    return v;
}

/* JSON.stringify writes a lone surrogate as \udXXX (well-formed JSON.stringify, ECMA-262 25.5.2.3);
 * encoded as UTF-8 Node itself would make it U+FFFD, so do we. */
static void heal_surrogates(char *text, size_t n)
{
    for (size_t i = 0; i + 1 < n; i++) {
        if (text[i] != '\\')
            continue;
        if (text[i + 1] != 'u' || i + 6 > n) {
            i++;
            continue;
        }
        int v = hex4(text + i + 2);
        if (v >= 0xd800 && v <= 0xdbff && i + 12 <= n && text[i + 6] == '\\' &&
            text[i + 7] == 'u') {
            int low = hex4(text + i + 8);
            if (low >= 0xdc00 && low <= 0xdfff) {
                i += 11;
                continue;
            }
        }
        if (v >= 0xd800 && v <= 0xdfff)
            memcpy(text + i + 2, "fffd", 4);
        i += 5;
    }
}

json_t *json_parse(char *text, size_t n, struct error *err)
{
    json_error_t why;

    heal_surrogates(text, n);
    json_t *value = json_loadb(text, n, JSON_DECODE_ANY | JSON_ALLOW_NUL, &why);
    if (!value)
        error_set(err, ERR_INVALID, "not valid JSON: %s (line %d, column %d)", why.text, why.line,
                  why.column);
    return value;
}

/* Eight bytes at once, none of which needs a look
 * (https://graphics.stanford.edu/~seander/bithacks.html#ZeroInWord). May say no where yes would do.
 */
static bool all_plain(const char *s)
{
    const uint64_t ones = UINT64_MAX / 255, high = ones << 7;
    uint64_t v;

    memcpy(&v, s, sizeof v);
#define HAS(byte) (((v ^ ones * (byte)) - ones) & ~(v ^ ones * (byte)))
    return !((((v - ones * 0x20) & ~v) | HAS('"') | HAS('\\') | HAS(0x7f) | HAS(0xe2)) & high);
#undef HAS
}

void json_escape(struct buf *out, const char *s, size_t n)
{
    size_t from = 0;

    for (size_t i = 0; i < n; i++) {
        while (i + 8 <= n && all_plain(s + i))
            i += 8;
        if (i == n)
            break;
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f && c != 0xe2)
            continue;
        /* U+2028 and U+2029 are e2 80 a8 and e2 80 a9: line breaks to Node's reader. */
        bool separator = c == 0xe2 && i + 2 < n && (unsigned char)s[i + 1] == 0x80 &&
                         ((unsigned char)s[i + 2] & 0xfe) == 0xa8;
        if (c == 0xe2 && !separator)
            continue;
        buf_put(out, s + from, i - from);
        if (separator) {
            buf_puts(out, (unsigned char)s[i + 2] == 0xa8 ? "\\u2028" : "\\u2029");
            i += 2;
        } else if (c == '"' || c == '\\') {
            buf_putc(out, '\\');
            buf_putc(out, (char)c);
        } else if (c == '\n') {
            buf_puts(out, "\\n");
        } else if (c == '\t') {
            buf_puts(out, "\\t");
        } else if (c == '\r') {
            buf_puts(out, "\\r");
        } else {
            static const char hex[] = "0123456789abcdef";
            char u[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
            buf_put(out, u, 6);
        }
        from = i + 1;
    }
    buf_put(out, s + from, n - from);
}

void json_write(struct buf *out, const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT: {
        const char *key;
        json_t *member;
        bool first = true;

        buf_putc(out, '{');
        json_object_foreach ((json_t *)value, key, member) {
            if (!first)
                buf_putc(out, ',');
            first = false;
            buf_putc(out, '"');
            json_escape(out, key, strlen(key));
            buf_puts(out, "\":");
            json_write(out, member);
        }
        buf_putc(out, '}');
        return;
    }
    case JSON_ARRAY: {
        size_t i;
        json_t *item;

        buf_putc(out, '[');
        json_array_foreach ((json_t *)value, i, item) {
            if (i)
                buf_putc(out, ',');
            json_write(out, item);
        }
        buf_putc(out, ']');
        return;
    }
    case JSON_STRING:
        buf_putc(out, '"');
        json_escape(out, json_string_value(value), json_string_length(value));
        buf_putc(out, '"');
        return;
    default: {
        char *text = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        buf_puts(out, text ? text : "null");
        free(text);
    }
    }
}

const char *json_str(const json_t *obj, const char *key)
{
    const json_t *v = json_object_get(obj, key);
    const char *s = json_string_value(v);

    return s && strlen(s) == json_string_length(v) ? s : NULL;
}

bool json_bool(const json_t *obj, const char *key)
{
    return json_is_true(json_object_get(obj, key));
}

int64_t json_int(const json_t *obj, const char *key, int64_t fallback)
{
    const json_t *v = json_object_get(obj, key);

    if (json_is_integer(v))
        return json_integer_value(v);
    if (json_is_real(v) && json_real_value(v) >= -9e15 && json_real_value(v) <= 9e15)
        return (int64_t)json_real_value(v);
    return fallback;
}
