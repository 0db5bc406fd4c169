/* A growable byte buffer. Zero-initialised is empty and valid. Not shared between threads without a
 * lock of the owner's. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data; /* owned; NUL follows data[len - 1] once anything was put in */
    size_t len;
    size_t cap;
};

void buf_free(struct buf *b);
/* As buf_free, the bytes wiped first. */
void buf_wipe(struct buf *b);
#define cleanup_buf __attribute__((cleanup(buf_free)))
#define cleanup_secret_buf __attribute__((cleanup(buf_wipe)))

/* Room for n more bytes after len; returns where they go. Does not change len. */
char *buf_reserve(struct buf *b, size_t n);
void buf_put(struct buf *b, const void *p, size_t n);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Drops n bytes from the front (n <= len). */
void buf_drop(struct buf *b, size_t n);
/* The content as a NUL-terminated string that the caller owns; the buffer is empty after. */
char *buf_steal(struct buf *b);

/* Big-endian integers and PROTOCOL.vm strings (u32 length, bytes). */
void buf_put_u8(struct buf *b, uint8_t v);
void buf_put_u16(struct buf *b, uint16_t v);
void buf_put_u32(struct buf *b, uint32_t v);
void buf_put_u64(struct buf *b, uint64_t v);
void buf_put_str(struct buf *b, const void *p, size_t n);

/* A reader over bytes somebody else owns. After a read past the end `bad` is set, and every read
 * gives 0 or NULL; so a parser reads all its fields and checks `bad` once. */
struct cursor {
    const unsigned char *p;
    size_t left;
    int bad;
};

uint8_t cursor_u8(struct cursor *c);
uint16_t cursor_u16(struct cursor *c);
uint32_t cursor_u32(struct cursor *c);
uint64_t cursor_u64(struct cursor *c);
const void *cursor_bytes(struct cursor *c, size_t n);
/* A string of at most max bytes; *n is its length. Not NUL-terminated. */
const char *cursor_str(struct cursor *c, size_t max, size_t *n);
/* The same, copied and terminated; bad when it holds NUL. NULL when bad. */
char *cursor_strdup(struct cursor *c, size_t max);

#endif
