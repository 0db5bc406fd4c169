#include "base/text.h"

#include <string.h>

#include "base/alloc.h"

void shell_quote(struct buf *out, const char *s)
{
    buf_putc(out, '\'');
    for (; *s; s++) {
        if (*s == '\'')
            buf_puts(out, "'\\''");
        else
            buf_putc(out, *s);
    }
    buf_putc(out, '\'');
}

static bool is_lower(char c)
{
    return c >= 'a' && c <= 'z';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_alnum(char c)
{
    return is_lower(c) || is_digit(c) || (c >= 'A' && c <= 'Z');
}

static bool all_of(const char *s, size_t max, const char *extra)
{
    size_t n = strlen(s);

    if (n == 0 || n > max || s[0] == '-')
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!is_alnum(s[i]) && !strchr(extra, s[i]))
            return false;
    }
    return true;
}

bool text_is_host(const char *s)
{
    return all_of(s, 255, ".-_:[]");
}

bool text_is_user(const char *s)
{
    return all_of(s, 64, "._+-@");
}

bool text_is_vm_name(const char *s)
{
    size_t n = strlen(s);

    if (n == 0 || n > 63 || s[0] == '-' || s[n - 1] == '-')
        return false;
    bool digits = true;
    for (size_t i = 0; i < n; i++) {
        if (!is_lower(s[i]) && !is_digit(s[i]) && s[i] != '-')
            return false;
        if (s[i] == '-')
            digits = true;
        else if (!is_digit(s[i]))
            digits = false;
    }
    return !(digits && strchr(s, '-'));
}

bool text_starts(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool text_ends(const char *s, const char *suffix)
{
    size_t n = strlen(s), m = strlen(suffix);

    return n >= m && strcmp(s + n - m, suffix) == 0;
}

char *text_trim(const char *s)
{
    static const char space[] = " \t\r\n\f\v";

    s += strspn(s, space);
    size_t n = strlen(s);
    while (n && strchr(space, s[n - 1]))
        n--;
    return xstrndup(s, n);
}

/* Length of the UTF-8 character at s (RFC 3629), 0 when it is none. */
static size_t utf8_len(const unsigned char *s, size_t n)
{
    unsigned char c = s[0];

    if (c < 0x80)
        return 1;
    size_t len = c >= 0xc2 && c <= 0xdf   ? 2
                 : (c & 0xf0) == 0xe0     ? 3
                 : c >= 0xf0 && c <= 0xf4 ? 4
                                          : 0;
    if (!len || len > n)
        return 0;
    for (size_t i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((c == 0xe0 && s[1] < 0xa0) || (c == 0xed && s[1] > 0x9f) || (c == 0xf0 && s[1] < 0x90) ||
        (c == 0xf4 && s[1] > 0x8f))
        return 0;
    return len;
}

bool text_is_utf8(const char *s, size_t n)
{
    const unsigned char *at = (const unsigned char *)s;

    while (n) {
        size_t len = utf8_len(at, n);
        if (!len)
            return false;
        at += len;
        n -= len;
    }
    return true;
}

void text_visible(struct buf *out, const char *s, size_t n, size_t max)
{
    const unsigned char *at = (const unsigned char *)s;
    bool cut = n > max;

    if (cut)
        n = max;
    while (n) {
        size_t len = utf8_len(at, n);
        if (!len || at[0] < 0x20 || at[0] == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0)) {
            buf_printf(out, "\\x%02x", at[0]);
            len = 1;
        } else {
            buf_put(out, at, len);
        }
        at += len;
        n -= len;
    }
    if (cut)
        buf_puts(out, "...");
}

char *text_bytes(unsigned long long n)
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double v = (double)n;
    unsigned u = 0;

    while (v >= 1000 && u < 4) {
        v /= 1000;
        u++;
    }
    return u ? xasprintf("%.1f %s", v, units[u]) : xasprintf("%llu B", n);
}

char *text_duration_ms(long long ms)
{
    if (ms < 1000)
        return xasprintf("%lld ms", ms);
    if (ms < 60000)
        return xasprintf("%.1f s", (double)ms / 1000);
    if (ms < 3600000)
        return xasprintf("%lld min %lld s", ms / 60000, ms / 1000 % 60);
    if (ms < 2 * 86400000LL)
        return xasprintf("%lld h %lld min", ms / 3600000, ms / 60000 % 60);
    return xasprintf("%lld days", ms / 86400000);
}
