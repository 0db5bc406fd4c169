/* The lobby between a VM's address and its sshd: for faults that sshd itself cannot have (silence
 * after a burst of connections, a frozen link). Only with --relay, or a fault that needs it.
 * Thread-safe. */
#ifndef LOBBY_RELAY_H
#define LOBBY_RELAY_H

#include <stdbool.h>

#include "base/error.h"

/* A free port on this address for the real sshd; 0 on failure. */
unsigned relay_inner_port(const char *address, struct error *err);
/* Listens on address:port and passes on to address:inner, until relay_close. */
bool relay_open(const char *address, unsigned port, unsigned inner, const char *vm,
                struct error *err);
/* Ends its connections too. Nothing when there is none. */
void relay_close(const char *address);

#endif
