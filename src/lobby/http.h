/* POST /exec, and the control side for tests. */
#ifndef LOBBY_HTTP_H
#define LOBBY_HTTP_H

#include <netinet/in.h>
#include <stdbool.h>

#include "base/error.h"

struct http_options {
    struct sockaddr_in listen;
    const char *cert, *key; /* PEM text, NULL: plain HTTP */
    const char *keys;       /* registered keys, borrowed */
};

/* Listens and answers on threads of its own. `url` and `control` (both the caller's) are where. */
bool http_start(const struct http_options *o, char **url, char **control, struct error *err);
void http_stop(void);

#endif
