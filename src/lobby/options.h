/* The command line of exedev-lobby. */
#ifndef LOBBY_OPTIONS_H
#define LOBBY_OPTIONS_H

#include <netinet/in.h>
#include <stdbool.h>

#include "base/error.h"
#include "base/json.h"
#include "lobby/sandbox.h"

struct options {
    struct sockaddr_in listen, proxy;
    bool want_proxy;
    unsigned ssh_port;                   /* 0: 2222, or a free one */
    char *state;                         /* NULL: VMs end with the lobby */
    json_t *key_files, *tokens, *faults; /* arrays of strings */
    json_t *proxy_ports;                 /* array of integers */
    unsigned max_vms, max_sessions;
    enum disk_mode disk;
    bool json, hide_tags, relay;
    char *tls_cert, *tls_key; /* file names */
    bool done;                /* --help or --version: all was said */
};

bool options_parse(struct options *o, int argc, char **argv, struct error *err);

#endif
