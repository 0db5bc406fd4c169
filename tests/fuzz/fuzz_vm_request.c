/* The helper's parsers over bytes from anywhere: frame heads, and OPEN's request (PROTOCOL.vm 1,
 * 4). What is accepted must be what was sent: it is put together again and compared. */
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/vmproto.h"
#include "vm/request.h"

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n);

static void put(struct buf *b, const char *s)
{
    buf_put_str(b, s, strlen(s));
}

static void check(const struct request *r, const uint8_t *p, size_t n)
{
    struct buf b = {0};

    buf_put_u8(&b, r->kind);
    buf_put_u32(&b, r->flags);
    buf_put_u32(&b, r->timeout_ms);
    buf_put_u32(&b, r->credit);
    buf_put_u16(&b, r->rows);
    buf_put_u16(&b, r->cols);
    put(&b, r->marker);
    put(&b, r->cwd);
    buf_put_u32(&b, r->argc);
    for (uint32_t i = 0; i < r->argc; i++)
        put(&b, r->argv[i]);
    buf_put_u32(&b, r->envc);
    for (uint32_t i = 0; i < r->envc; i++)
        put(&b, r->envp[i]);
    if (b.len != n || memcmp(b.data, p, n) != 0 || r->argv[r->argc] || r->envp[r->envc] ||
        r->argv[-1] || r->argc == 0)
        abort();
    buf_free(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *p, size_t n)
{
    struct frame f;

    if (n >= VM_HEADER && frame_parse(p, &f)) {
        uint8_t again[VM_HEADER];
        frame_write(again, f.length, f.type, f.channel, f.stream);
        if (f.length > VM_MAX_PAYLOAD || memcmp(again, p, VM_HEADER) != 0)
            abort();
    }
    struct buf raw = {0};
    struct request r;
    buf_put(&raw, p, n);
    if (request_parse(&r, &raw) == REQUEST_OK)
        check(&r, p, n);
    request_free(&r);
    buf_free(&raw);
    return 0;
}
