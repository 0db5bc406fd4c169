#include "base/error.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"

void error_clear(struct error *err)
{
    if (!err)
        return;
    free(err->msg);
    *err = (struct error){0};
}

bool error_set(struct error *err, enum error_code code, const char *fmt, ...)
{
    va_list ap;

    if (!err)
        return false;
    va_start(ap, fmt);
    char *msg = xvasprintf(fmt, ap);
    va_end(ap);
    error_clear(err);
    err->code = code;
    err->msg = msg;
    return false;
}

bool error_sys(struct error *err, int sys, const char *fmt, ...)
{
    va_list ap;

    if (!err)
        return false;
    va_start(ap, fmt);
    cleanup_free char *what = xvasprintf(fmt, ap);
    va_end(ap);
    error_clear(err);
    err->code = ERR_SYSTEM;
    err->sys = sys;
    err->msg = xasprintf("%s: %s", what, strerror(sys));
    return false;
}

bool error_prefix(struct error *err, const char *fmt, ...)
{
    va_list ap;

    if (!err || !err->msg)
        return false;
    va_start(ap, fmt);
    cleanup_free char *context = xvasprintf(fmt, ap);
    va_end(ap);
    cleanup_free char *old = err->msg;
    err->msg = xasprintf("%s: %s", context, old);
    return false;
}

bool error_append(struct error *err, const char *fmt, ...)
{
    va_list ap;

    if (!err || !err->msg)
        return false;
    va_start(ap, fmt);
    cleanup_free char *more = xvasprintf(fmt, ap);
    va_end(ap);
    cleanup_free char *old = err->msg;
    err->msg = xasprintf("%s%s", old, more);
    return false;
}

void error_move(struct error *dst, struct error *src)
{
    if (!src)
        return;
    if (!dst) {
        error_clear(src);
        return;
    }
    error_clear(dst);
    *dst = *src;
    *src = (struct error){0};
}

void error_copy(struct error *dst, const struct error *src)
{
    if (!dst)
        return;
    error_clear(dst);
    *dst = *src;
    dst->msg = src->msg ? xstrdup(src->msg) : NULL;
}

const char *error_code_name(enum error_code code)
{
    static const char *const names[] = {
        [ERR_NONE] = "none",
        [ERR_INVALID] = "invalid",
        [ERR_SYSTEM] = "system",
        [ERR_INTERNAL] = "internal",
        [ERR_TIMEOUT] = "timeout",
        [ERR_CANCELLED] = "cancelled",
        [ERR_AUTH] = "auth",
        [ERR_FORBIDDEN] = "forbidden",
        [ERR_HOST_KEY] = "host_key",
        [ERR_UNREGISTERED] = "unregistered_key",
        [ERR_NETWORK] = "network",
        [ERR_RATE_LIMIT] = "rate_limit",
        [ERR_UNAVAILABLE] = "unavailable",
        [ERR_DOUBT] = "doubt",
        [ERR_REFUSED] = "refused",
        [ERR_NOT_FOUND] = "not_found",
        [ERR_EXISTS] = "exists",
        [ERR_TOO_LARGE] = "too_large",
        [ERR_PROTOCOL] = "protocol",
        [ERR_UNSUPPORTED] = "unsupported",
        [ERR_UNSAFE] = "unsafe",
    };
    return names[code];
}
