/* Sockets that listen. Thread-safe. */
#ifndef LOBBY_LISTEN_H
#define LOBBY_LISTEN_H

#include <netinet/in.h>
#include <stdbool.h>

#include "base/error.h"

/* A listening socket; *at gets the port that was chosen when it was 0. -1 on failure. */
int listen_tcp(struct sockaddr_in *at, struct error *err);
/* "127.0.0.1:8080", "127.0.0.1", ":8080" or "8080". */
bool listen_parse(const char *text, struct sockaddr_in *out, struct error *err);

#endif
