#include "base/log.h"

#include <stdarg.h>
#include <stddef.h>

#include "base/alloc.h"
#include "base/cleanup.h"

static log_sink_fn *sink_fn;
static void *sink_arg;
static enum log_level sink_least;

void log_set_sink(log_sink_fn *sink, void *arg, enum log_level least)
{
    sink_fn = sink;
    sink_arg = arg;
    sink_least = least;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
    va_list ap;

    if (!sink_fn || level < sink_least)
        return;
    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    sink_fn(level, text, sink_arg);
}

const char *log_level_name(enum log_level level)
{
    static const char *const names[] = {"debug", "info", "warn", "error"};
    return names[level];
}
