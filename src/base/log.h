/* Diagnostics of the library, for whoever runs it: the worker turns them into `log` notifications,
 * the command line into lines on stderr. The sinks redact. Thread-safe. */
#ifndef BASE_LOG_H
#define BASE_LOG_H

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

/* text is one line without its newline, valid only during the call. */
typedef void log_sink_fn(enum log_level level, const char *text, void *arg);

/* Set once, before threads start. Without a sink nothing is logged. */
void log_set_sink(log_sink_fn *sink, void *arg, enum log_level least);
void log_msg(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *log_level_name(enum log_level level);

#define log_debug(...) log_msg(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...) log_msg(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warn(...) log_msg(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_error(...) log_msg(LOG_LEVEL_ERROR, __VA_ARGS__)

#endif
