#include "lobby/listen.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"

int listen_tcp(struct sockaddr_in *at, struct error *err)
{
    cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    socklen_t n = sizeof *at;
    char host[INET_ADDRSTRLEN];
    int one = 1;

    inet_ntop(AF_INET, &at->sin_addr, host, sizeof host);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)at, sizeof *at) < 0 || listen(fd, 1024) < 0 ||
        getsockname(fd, (struct sockaddr *)at, &n) < 0) {
        error_sys(err, errno, "listen on %s:%u", host, ntohs(at->sin_port));
        return -1;
    }
    return steal_fd(&fd);
}

bool listen_parse(const char *text, struct sockaddr_in *out, struct error *err)
{
    const char *colon = strrchr(text, ':');
    bool only_port = !colon && !strchr(text, '.');
    cleanup_free char *host =
        only_port ? xstrdup("") : xstrndup(text, colon ? (size_t)(colon - text) : strlen(text));
    const char *port = only_port ? text : colon ? colon + 1 : "0";
    char *end;
    long n = strtol(port, &end, 10);

    *out = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)n)};
    if (!*port || *end || n < 0 || n > 65535)
        return error_set(err, ERR_INVALID, "\"%s\": expected ADDRESS:PORT (127.0.0.1:8080)", text);
    if (inet_pton(AF_INET, *host ? host : "127.0.0.1", &out->sin_addr) != 1)
        return error_set(err, ERR_INVALID, "\"%s\": not an IPv4 address (127.0.0.1:8080)", text);
    return true;
}
