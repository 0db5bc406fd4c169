/* The head of an HTTP/1.1 request on its way through the proxy (RFC 9112). Thread-safe. */
#ifndef LOBBY_HEAD_H
#define LOBBY_HEAD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "base/error.h"

#define HEAD_MAX 65536

struct head {
    char *text; /* owned; what follows points into it */
    char *request_line;
    char *host;         /* lower case, without its port; may be "" */
    unsigned host_port; /* 0: none */
    char *token;        /* of X-Exedev-Authorization, NULL: none */
    struct {
        char *name, *value;
    } * fields;
    size_t n;
    bool upgrade;
    bool chunked;
    long long length; /* of the body; -1: not said */
};

/* `n` bytes up to and with the empty line. ERR_PROTOCOL. */
bool head_parse(const char *text, size_t n, struct head *out, struct error *err);
void head_free(struct head *h);
#define cleanup_head __attribute__((cleanup(head_free)))
/* The head for the VM: without the client's X-ExeDev-* fields, and with ours (lines that end in
 * \r\n). One request a connection, unless it is upgraded. */
void head_write(const struct head *h, const char *ours, struct buf *out);

#endif
