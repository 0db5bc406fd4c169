/* The one way out: whole lines, in the order they were asked for. Thread-safe. */
#ifndef RPC_OUT_H
#define RPC_OUT_H

#include <stdbool.h>

#include "base/log.h"
#include "rpc/rpc.h"

void out_open(int fd);
void out_error(const char *id, enum rpc_code code, const char *msg);
/* `log` notifications for base/log.h. */
void out_log_sink(enum log_level level, const char *text, void *arg);

#endif
