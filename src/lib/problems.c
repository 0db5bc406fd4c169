#include "lib/problems.h"

#include <stdarg.h>
#include <stdlib.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "lib/redact.h"

void problems_free(struct problems *p)
{
    for (size_t i = 0; i < p->n; i++) {
        free(p->list[i].field);
        free(p->list[i].text);
    }
    free(p->list);
    *p = (struct problems){0};
}

static void add(struct problems *p, bool warning, const char *field, const char *fmt, va_list ap)
    __attribute__((format(printf, 4, 0)));
static void add(struct problems *p, bool warning, const char *field, const char *fmt, va_list ap)
{
    if (!p)
        return;
    cleanup_free char *text = xvasprintf(fmt, ap);
    p->list = xreallocarray(p->list, p->n + 1, sizeof *p->list);
    p->list[p->n++] = (struct problem){
        .field = field ? xstrdup(field) : NULL,
        .text = redact(text),
        .warning = warning,
    };
}

void problems_error(struct problems *p, const char *field, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    add(p, false, field, fmt, ap);
    va_end(ap);
}

void problems_warn(struct problems *p, const char *field, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    add(p, true, field, fmt, ap);
    va_end(ap);
}

size_t problems_errors(const struct problems *p)
{
    size_t n = 0;

    for (size_t i = 0; i < p->n; i++)
        n += !p->list[i].warning;
    return n;
}

bool problems_to_error(const struct problems *p, struct error *err)
{
    cleanup_buf struct buf all = {0};

    for (size_t i = 0; i < p->n; i++)
        if (!p->list[i].warning)
            buf_printf(&all, "%s%s", all.len ? "; " : "", p->list[i].text);
    return all.len ? error_set(err, ERR_INVALID, "%s", all.data) : true;
}
