/* HTTPS and WebSockets to the ports of VMs, as https://NAME.exe.xyz[:PORT] is at exe.dev.
 * Thread-safe.
 *
 * It listens at one address for all VMs (the Host field says which) and, with the same port, at
 * every VM's own address; and there at further ports, each passed on to that very port. */
#ifndef LOBBY_PROXY_H
#define LOBBY_PROXY_H

#include <netinet/in.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/json.h"

/* `ports`: array of integers, the further ports. *authority (the caller's) gets ADDRESS:PORT.
 * tls_setup first. */
bool proxy_start(struct sockaddr_in at, const json_t *ports, char **authority, struct error *err);
void proxy_stop(void);
/* The port it listens at; 0 when there is none. */
unsigned proxy_port(void);
/* A VM came or went. Where a further port is in use there, an event says so. */
void proxy_add_vm(const char *address, const char *name);
void proxy_drop_vm(const char *address);

#endif
