#include "base/buf.h"

#include <endian.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

void buf_free(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

void buf_wipe(struct buf *b)
{
    if (b->data)
        explicit_bzero(b->data, b->cap);
    buf_free(b);
}

char *buf_reserve(struct buf *b, size_t n)
{
    size_t need;

    if (__builtin_add_overflow(b->len, n, &need) || __builtin_add_overflow(need, 1, &need))
        need = (size_t)-1;
    if (need > b->cap) {
        size_t cap = b->cap ? b->cap : 64;
        while (cap < need)
            cap = cap > (size_t)-1 / 2 ? need : cap * 2;
        b->data = xreallocarray(b->data, cap, 1);
        b->cap = cap;
    }
    return b->data + b->len;
}

void buf_put(struct buf *b, const void *p, size_t n)
{
    char *to = buf_reserve(b, n);

    if (n)
        memcpy(to, p, n);
    b->len += n;
    b->data[b->len] = 0;
}

void buf_puts(struct buf *b, const char *s)
{
    buf_put(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_put(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    char *s = xvasprintf(fmt, ap);
    va_end(ap);
    buf_puts(b, s);
    free(s);
}

void buf_drop(struct buf *b, size_t n)
{
    if (!n)
        return;
    b->len -= n;
    memmove(b->data, b->data + n, b->len);
    b->data[b->len] = 0;
}

char *buf_steal(struct buf *b)
{
    buf_reserve(b, 0)[0] = 0;
    char *s = b->data;
    *b = (struct buf){0};
    return s;
}

void buf_put_u8(struct buf *b, uint8_t v)
{
    buf_put(b, &v, 1);
}

void buf_put_u16(struct buf *b, uint16_t v)
{
    v = htobe16(v);
    buf_put(b, &v, 2);
}

void buf_put_u32(struct buf *b, uint32_t v)
{
    v = htobe32(v);
    buf_put(b, &v, 4);
}

void buf_put_u64(struct buf *b, uint64_t v)
{
    v = htobe64(v);
    buf_put(b, &v, 8);
}

void buf_put_str(struct buf *b, const void *p, size_t n)
{
    buf_put_u32(b, (uint32_t)n);
    buf_put(b, p, n);
}

const void *cursor_bytes(struct cursor *c, size_t n)
{
    if (c->bad || n > c->left) {
        c->bad = 1;
        c->left = 0;
        return NULL;
    }
    const void *at = c->p;
    c->p += n;
    c->left -= n;
    return at;
}

uint8_t cursor_u8(struct cursor *c)
{
    const unsigned char *p = cursor_bytes(c, 1);

    return p ? *p : 0;
}

uint16_t cursor_u16(struct cursor *c)
{
    const void *p = cursor_bytes(c, 2);
    uint16_t v = 0;

    if (p)
        memcpy(&v, p, 2);
    return be16toh(v);
}

uint32_t cursor_u32(struct cursor *c)
{
    const void *p = cursor_bytes(c, 4);
    uint32_t v = 0;

    if (p)
        memcpy(&v, p, 4);
    return be32toh(v);
}

uint64_t cursor_u64(struct cursor *c)
{
    const void *p = cursor_bytes(c, 8);
    uint64_t v = 0;

    if (p)
        memcpy(&v, p, 8);
    return be64toh(v);
}

const char *cursor_str(struct cursor *c, size_t max, size_t *n)
{
    size_t len = cursor_u32(c);

    if (!c->bad && len > max)
        c->bad = 1;
    const char *s = c->bad ? NULL : cursor_bytes(c, len);
    *n = s ? len : 0;
    return s;
}

char *cursor_strdup(struct cursor *c, size_t max)
{
    size_t n;
    const char *s = cursor_str(c, max, &n);

    if (s && memchr(s, 0, n)) {
        c->bad = 1;
        s = NULL;
    }
    return s ? xstrndup(s, n) : NULL;
}
