#include "lib/stream.h"

#include <stdint.h>
#include <string.h>

/* The character at p: its length when whole, 0 when n bytes are a good beginning of one, or minus
 * the length of the part that one U+FFFD stands for. */
static int character(const unsigned char *p, size_t n)
{
    unsigned char low = 0x80, high = 0xbf;
    int len;

    if (p[0] < 0x80)
        return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf)
        len = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef)
        len = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4)
        len = 4;
    else
        return -1;
    /* Overlong forms, surrogates and what is past U+10FFFF show in the second byte. */
    if (p[0] == 0xe0)
        low = 0xa0;
    else if (p[0] == 0xed)
        high = 0x9f;
    else if (p[0] == 0xf0)
        low = 0x90;
    else if (p[0] == 0xf4)
        high = 0x8f;
    for (int i = 1; i < len; i++) {
        if ((size_t)i == n)
            return 0;
        if (p[i] < low || p[i] > high)
            return -i;
        low = 0x80;
        high = 0xbf;
    }
    return len;
}

/* How many bytes are whole characters. */
static size_t valid_prefix(const unsigned char *p, size_t n)
{
    size_t i = 0;

    while (i < n) {
        uint64_t word;
        while (n - i >= sizeof word) {
            memcpy(&word, p + i, sizeof word);
            if (word & 0x8080808080808080u)
                break;
            i += sizeof word;
        }
        if (i == n)
            break;
        int len = character(p + i, n - i);
        if (len <= 0)
            break;
        i += (size_t)len;
    }
    return i;
}

static void put_replacement(struct buf *out)
{
    buf_put(out, "\xef\xbf\xbd", 3);
}

void text_join(struct text_join *t, const char *bytes, size_t n, bool last, struct buf *scratch,
               const char **out, size_t *len)
{
    const unsigned char *p = (const unsigned char *)bytes;

    scratch->len = 0;
    if (!t->have) { /* most output: nothing to copy */
        size_t good = valid_prefix(p, n);
        if (good == n || (!last && n - good < 4 && character(p + good, n - good) == 0)) {
            memcpy(t->part, p + good, n - good);
            t->have = (unsigned char)(n - good);
            *out = bytes;
            *len = good;
            return;
        }
    }
    while (t->have && n) {
        t->part[t->have] = *p;
        int whole = character(t->part, t->have + 1u);
        if (whole < 0) { /* the byte belongs to what comes next */
            put_replacement(scratch);
            t->have = 0;
            break;
        }
        p++;
        n--;
        t->have++;
        if (whole > 0) {
            buf_put(scratch, t->part, t->have);
            t->have = 0;
        }
    }
    while (n) {
        size_t good = valid_prefix(p, n);
        buf_put(scratch, p, good);
        p += good;
        n -= good;
        if (!n)
            break;
        int bad = character(p, n);
        if (bad == 0) {
            memcpy(t->part, p, n);
            t->have = (unsigned char)n;
            break;
        }
        put_replacement(scratch);
        p += -bad;
        n -= (size_t)-bad;
    }
    if (last && t->have) {
        put_replacement(scratch);
        t->have = 0;
    }
    *out = scratch->data ? scratch->data : "";
    *len = scratch->len;
}

/* What json_escape makes of a byte: its length for ASCII; for a longer character the UTF-16 units
 * are counted at its first byte. */
static const unsigned char weight[256] = {
    [0x00 ... 0x08] = 6, ['\t'] = 2,          ['\n'] = 2,          [0x0b ... 0x0c] = 6,
    ['\r'] = 2,          [0x0e ... 0x1f] = 6, [0x20 ... 0x21] = 1, ['"'] = 2,
    [0x23 ... 0x5b] = 1, ['\\'] = 2,          [0x5d ... 0x7e] = 1, [0x7f] = 6,
    [0x80 ... 0xbf] = 0, [0xc0 ... 0xef] = 1, [0xf0 ... 0xff] = 2,
};

/* U+2028 and U+2029 are escaped. */
static bool is_separator(const unsigned char *p, size_t left)
{
    return left >= 3 && p[0] == 0xe2 && p[1] == 0x80 && (p[2] & 0xfe) == 0xa8;
}

size_t text_fit(const char *bytes, size_t n, size_t *room)
{
    const unsigned char *p = (const unsigned char *)bytes;
    size_t left = *room;

    if (n <= left / 6) { /* certainly: count only */
        for (size_t i = 0; i < n; i++)
            left -= is_separator(p + i, n - i) ? 6 : weight[p[i]];
        *room = left;
        return n;
    }
    for (size_t i = 0; i < n; i++) {
        size_t w = is_separator(p + i, n - i) ? 6 : weight[p[i]];
        if (w > left) {
            *room = 0; /* nothing shorter may slip in behind the cut */
            return i;
        }
        left -= w;
    }
    *room = left;
    return n;
}
