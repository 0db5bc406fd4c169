/* The way in for the runner: a WebSocket address at the VM's HTTPS proxy and a short-lived VM
 * token. Thread-safe. */
#ifndef LIB_INGRESS_H
#define LIB_INGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "lib/config.h"

#define INGRESS_HEADER "X-Exedev-Authorization"
#define INGRESS_SECONDS 3600 /* a token's life; the host asks again */

struct ingress {
    char *url;        /* wss://HOST:PORT/PATH */
    char *header;     /* the value of INGRESS_HEADER; secret (secret_free) */
    char *generation; /* another on each call */
};
void ingress_clear(struct ingress *i);

/* https_url NULL: https://VM.exe.xyz. port: 443, or 3000 to 9999, what the proxy lets through. path
 * begins with a slash, and holds nothing a URL would rewrite. */
bool ingress_open(const struct config *cfg, const char *vm, const char *https_url, int64_t port,
                  const char *path, struct ingress *out, struct error *err);

#endif
