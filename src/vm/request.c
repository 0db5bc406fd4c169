#include "vm/request.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/vmproto.h"

bool frame_parse(const void *p, struct frame *out)
{
    struct cursor c = {.p = p, .left = VM_HEADER};

    out->length = cursor_u32(&c);
    out->type = cursor_u8(&c);
    out->channel = cursor_u8(&c);
    uint16_t reserved = cursor_u16(&c);
    out->stream = cursor_u32(&c);
    return out->length <= VM_MAX_PAYLOAD && out->type >= VM_HELLO && out->type <= VM_LOG &&
           out->channel < VM_CHANNELS && reserved == 0;
}

void frame_write(void *p, uint32_t length, uint8_t type, uint8_t channel, uint32_t stream)
{
    unsigned char *at = p;
    uint32_t v = htobe32(length);

    memcpy(at, &v, 4);
    at[4] = type;
    at[5] = channel;
    at[6] = at[7] = 0;
    v = htobe32(stream);
    memcpy(at + 8, &v, 4);
}

/* Every string's terminator goes where the next one's length began, so it can only be written once
 * that has been read: hence two steps. */
struct reader {
    struct cursor c;
    size_t longest, total;
};

static char *take(struct reader *r, char ***ends)
{
    size_t n;
    const char *s = cursor_str(&r->c, SIZE_MAX, &n);

    if (!s || memchr(s, 0, n)) {
        r->c.bad = 1;
        return NULL;
    }
    if (n > r->longest)
        r->longest = n;
    r->total += n + 1;
    *(*ends)++ = (char *)s + n;
    return (char *)s;
}

static uint32_t take_count(struct reader *r)
{
    uint32_t n = cursor_u32(&r->c);

    if (n > r->c.left / 4)
        r->c.bad = 1;
    return r->c.bad ? 0 : n;
}

enum request_result request_parse(struct request *r, struct buf *raw)
{
    *r = (struct request){.raw = *raw};
    *raw = (struct buf){0};
    buf_reserve(&r->raw, 1);
    size_t most = r->raw.len / 4 + 4;
    char **ends = xreallocarray(NULL, most, sizeof *ends), **end = ends;
    struct reader in = {.c = {.p = (unsigned char *)r->raw.data, .left = r->raw.len}};

    r->block = xreallocarray(NULL, most + 4, sizeof *r->block);
    r->kind = cursor_u8(&in.c);
    r->flags = cursor_u32(&in.c);
    r->timeout_ms = cursor_u32(&in.c);
    r->credit = cursor_u32(&in.c);
    r->rows = cursor_u16(&in.c);
    r->cols = cursor_u16(&in.c);
    r->marker = take(&in, &end);
    r->cwd = take(&in, &end);
    in.total = 0;
    r->argv = r->block + 1;
    r->block[0] = NULL;
    r->argc = take_count(&in);
    for (uint32_t i = 0; i < r->argc && !in.c.bad; i++)
        r->argv[i] = take(&in, &end);
    r->argv[r->argc] = NULL;
    r->envp = r->argv + r->argc + 1;
    r->envc = take_count(&in);
    for (uint32_t i = 0; i < r->envc && !in.c.bad; i++)
        r->envp[i] = take(&in, &end);
    r->envp[r->envc] = NULL;

    bool bad = in.c.bad || in.c.left || r->kind > VM_KIND_BUILTIN ||
               (r->flags & ~(uint32_t)VM_OPEN_FLAGS) || r->credit > VM_MAX_CREDIT;
    if (!bad) {
        while (end > ends)
            **--end = 0;
    }
    free(ends);
    if (bad)
        return REQUEST_BROKEN;
    if (in.longest > VM_MAX_STRING || in.total > VM_MAX_ARGS)
        return REQUEST_TOO_LONG;
    if (r->argc == 0 || !r->argv[0][0])
        return REQUEST_INVALID;
    for (uint32_t i = 0; i < r->envc; i++) {
        if (strchr(r->envp[i], '=') == NULL || r->envp[i][0] == '=')
            return REQUEST_INVALID;
    }
    return REQUEST_OK;
}

void request_free(struct request *r)
{
    buf_free(&r->raw);
    free(r->block);
    *r = (struct request){0};
}
