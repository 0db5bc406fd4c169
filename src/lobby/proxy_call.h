/* One connection to the proxy, from the TLS handshake to its end. */
#ifndef LOBBY_PROXY_CALL_H
#define LOBBY_PROXY_CALL_H

#include <openssl/ssl.h>
#include <stdbool.h>

struct proxy_call {
    int fd;
    SSL_CTX *ctx;
    char *vm;            /* NULL: the Host field says */
    unsigned fixed_port; /* 0: the Host field's port, or the VM's main one */
    unsigned own_port;
    bool (*taken)(unsigned port); /* is it the proxy that listens there on VMs' addresses? */
};

/* Runs it and frees it. */
void proxy_call_run(struct proxy_call *c);
void proxy_call_free(struct proxy_call *c);

#endif
