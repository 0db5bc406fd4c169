/* The network side of `exedev doctor`: one plain request to the API's address. */
#ifndef CMD_DOCTOR_NET_H
#define CMD_DOCTOR_NET_H

#include <stdbool.h>

#include "lib/config.h"

enum doctor_level { DOCTOR_OK, DOCTOR_WARNING, DOCTOR_FAILURE };
typedef void doctor_say_fn(enum doctor_level level, const char *check, const char *text, void *arg);

/* DNS, connection, TLS, and this clock against the server's Date header. Sends no token. True when
 * the API answers. */
bool doctor_net(const struct config *cfg, doctor_say_fn *say, void *arg);

#endif
