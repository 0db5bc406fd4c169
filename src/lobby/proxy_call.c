#include "lobby/proxy_call.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/text.h"
#include "lobby/event.h"
#include "lobby/head.h"
#include "lobby/token.h"
#include "lobby/vms.h"

#define HEAD_MS 20000
#define IDLE_MS 600000
#define PART 65536

void proxy_call_free(struct proxy_call *c)
{
    close(c->fd);
    SSL_CTX_free(c->ctx);
    free(c->vm);
    free(c);
}

/* After an SSL call that did not get through: waits for what it wants. */
static bool ssl_wait(SSL *ssl, int result, struct deadline d)
{
    int why = SSL_get_error(ssl, result);
    struct pollfd pfd = {.fd = SSL_get_fd(ssl),
                         .events = why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN};

    if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
        return false;
    return poll(&pfd, 1, deadline_poll(d)) > 0;
}

static bool send_all(SSL *ssl, const char *p, size_t n, struct deadline d)
{
    while (n) {
        int done = SSL_write(ssl, p, n < PART ? (int)n : PART);
        if (done > 0) {
            p += done;
            n -= (size_t)done;
        } else if (!ssl_wait(ssl, done, d)) {
            return false;
        }
    }
    return true;
}

static void refuse(SSL *ssl, int status, const char *reason, const char *text)
{
    cleanup_free char *all =
        xasprintf("HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\n"
                  "Content-Length: %zu\r\nConnection: close\r\n%s\r\n%s\n",
                  status, reason, strlen(text) + 1,
                  status == 401 ? "WWW-Authenticate: Bearer\r\n" : "", text);

    send_all(ssl, all, strlen(all), deadline_in(HEAD_MS));
}

/* Reads up to the end of the head; what came after it stays in `in` behind it. Returns the head's
 * length, 0 on failure. */
static size_t read_head(SSL *ssl, struct buf *in)
{
    struct deadline d = deadline_in(HEAD_MS);

    while (in->len < HEAD_MAX) {
        int got = SSL_read(ssl, buf_reserve(in, 8192), 8192);
        if (got <= 0) {
            if (!ssl_wait(ssl, got, d))
                return 0;
            continue;
        }
        in->len += (size_t)got;
        char *end = memmem(in->data, in->len, "\r\n\r\n", 4);
        if (end)
            return (size_t)(end - in->data) + 4;
    }
    return 0;
}

/* NAME of NAME.exe.xyz or NAME.exe.localhost. */
static char *name_of(const char *host)
{
    static const char *const zones[] = {".exe.xyz", ".exe.localhost"};

    for (size_t i = 0; i < 2; i++) {
        if (text_ends(host, zones[i])) {
            char *name = xstrndup(host, strlen(host) - strlen(zones[i]));
            if (text_is_vm_name(name))
                return name;
            free(name);
        }
    }
    return NULL;
}

static int dial(const char *address, unsigned port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;

    inet_pton(AF_INET, address, &at.sin_addr);
    if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof at) < 0)
        return -1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    io_set_nonblock(fd, true);
    return steal_fd(&fd);
}

/* A header value cannot hold a line end, and JSON written by Jansson holds none. */
static void put_ours(struct buf *out, const json_t *permissions, const char *vm)
{
    json_t *ctx = json_object_get(permissions, "ctx");

    buf_printf(out,
               "X-ExeDev-UserID: local\r\nX-ExeDev-Email: you@localhost\r\n"
               "X-Forwarded-Proto: https\r\nX-Forwarded-Host: %s.exe.xyz\r\nX-Forwarded-For: "
               "127.0.0.1\r\n",
               vm);
    if (ctx) {
        char *text = json_dumps(ctx, JSON_COMPACT | JSON_ENCODE_ANY | JSON_ENSURE_ASCII);
        buf_printf(out, "X-ExeDev-Token-Ctx: %s\r\n", text ? text : "null");
        free(text);
    }
}

struct flow {
    struct buf data;
    long long left; /* of what may still pass; -1: no limit */
    bool ended;     /* its source is at its end */
    bool told;      /* and its sink knows */
};

/* Both ways until both ends are through. */
static void pump(SSL *ssl, int vm, struct flow *in, struct flow *out)
{
    struct deadline idle = deadline_in(IDLE_MS);

    while (!out->told) {
        bool moved = false;
        short client_wants = 0;
        if (in->left == 0)
            in->ended = true;
        if (!in->ended && in->data.len < PART) {
            long long most = in->left >= 0 && in->left < PART ? in->left : PART;
            int got = SSL_read(ssl, buf_reserve(&in->data, PART), (int)most);
            int why = got > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl, got);
            if (got > 0) {
                in->data.len += (size_t)got;
                in->left -= in->left > 0 ? got : 0;
                moved = true;
            } else if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
                client_wants |= why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
            } else {
                in->ended = true;
            }
        }
        if (in->data.len) {
            ssize_t done = send(vm, in->data.data, in->data.len, MSG_NOSIGNAL);
            if (done > 0) {
                buf_drop(&in->data, (size_t)done);
                moved = true;
            } else if (errno != EAGAIN && errno != EINTR) {
                in->data.len = 0;
                in->ended = in->told = true;
            }
        } else if (in->ended && !in->told && in->left != 0) {
            /* a client that is gone: tell the VM. One whose request is complete is not gone */
            shutdown(vm, SHUT_WR);
            in->told = true;
        }
        if (!out->ended && out->data.len < PART) {
            ssize_t got = recv(vm, buf_reserve(&out->data, PART), PART, 0);
            if (got > 0) {
                out->data.len += (size_t)got;
                moved = true;
            } else if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
                out->ended = true;
            }
        }
        if (out->data.len) {
            int done =
                SSL_write(ssl, out->data.data, out->data.len < PART ? (int)out->data.len : PART);
            int why = done > 0 ? SSL_ERROR_NONE : SSL_get_error(ssl, done);
            if (done > 0) {
                buf_drop(&out->data, (size_t)done);
                moved = true;
            } else if (why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ) {
                client_wants |= why == SSL_ERROR_WANT_WRITE ? POLLOUT : POLLIN;
            } else {
                return;
            }
        } else if (out->ended) {
            out->told = true;
        }
        if (moved || out->told) {
            idle = deadline_in(IDLE_MS);
            continue;
        }
        short vm_wants = (short)((in->data.len ? POLLOUT : 0) | (out->ended ? 0 : POLLIN));
        struct pollfd pfds[2] = {{.fd = SSL_get_fd(ssl), .events = client_wants},
                                 {.fd = vm_wants ? vm : -1, .events = vm_wants}};
        if (poll(pfds, 2, deadline_poll(idle)) == 0 ||
            (!client_wants && (pfds[0].revents & (POLLERR | POLLHUP))))
            return;
    }
}

/* Checks the request and finds the VM's end of it; -1 when the client was refused. */
static int open_vm(struct proxy_call *c, SSL *ssl, const struct head *h, struct buf *ours,
                   char **vm, int *status)
{
    cleanup_error struct error err = {0};
    cleanup_free char *address = NULL;
    unsigned port = 0;

    *vm = c->vm ? xstrdup(c->vm) : name_of(h->host);
    *status = 404;
    if (!*vm) {
        refuse(ssl, 404, "Not Found", "the Host field names no VM (NAME.exe.xyz)");
        return -1;
    }
    cleanup_free char *name_space = xasprintf("v0@%s.exe.xyz", *vm);
    cleanup_json json_t *permissions =
        h->token ? token_check(h->token, name_space, time(NULL), &err) : NULL;
    *status = 401;
    if (!permissions) {
        refuse(ssl, 401, "Unauthorized",
               h->token ? err.msg
                        : "this VM is private: send X-Exedev-Authorization: Bearer TOKEN");
        return -1;
    }
    *status = 404;
    if (!vms_route(*vm, &address, &port, &err)) {
        refuse(ssl, 404, "Not Found", err.msg);
        return -1;
    }
    if (c->fixed_port)
        port = c->fixed_port;
    else if (h->host_port >= 3000 && h->host_port <= 9999 && h->host_port != c->own_port)
        port = h->host_port;
    /* A server in the VM listens on all addresses, on the VM's, or on 127.0.0.1. */
    int fd = c->taken(port) ? -1 : dial(address, port);
    if (fd < 0)
        fd = dial("127.0.0.1", port);
    *status = fd < 0 ? 502 : 200;
    if (fd < 0) {
        cleanup_free char *text = xasprintf("nothing listens on port %u of VM %s", port, *vm);
        refuse(ssl, 502, "Bad Gateway", text);
        return -1;
    }
    put_ours(ours, permissions, *vm);
    return fd;
}

static void serve(struct proxy_call *c, SSL *ssl)
{
    cleanup_buf struct buf in = {0}, ours = {0};
    cleanup_head struct head h = {0};
    cleanup_error struct error err = {0};
    cleanup_free char *vm = NULL;
    int status;

    size_t n = read_head(ssl, &in);
    if (!n)
        return;
    if (!head_parse(in.data, n, &h, &err)) {
        refuse(ssl, 400, "Bad Request", err.msg);
        return;
    }
    cleanup_fd int fd = open_vm(c, ssl, &h, &ours, &vm, &status);
    event_emit("proxy", json_pack("{s:s, s:i, s:b}", "vm", vm ? vm : "", "status", status,
                                  "upgrade", h.upgrade));
    if (fd < 0)
        return;
    struct flow up = {.left = h.upgrade || h.chunked ? -1
                              : h.length > 0         ? h.length
                                                     : 0},
                down = {.left = -1};
    head_write(&h, ours.data, &up.data);
    /* of what came behind the head, the body; a second request must not pass unchecked */
    size_t rest = in.len - n;
    if (up.left >= 0 && (long long)rest > up.left)
        rest = (size_t)up.left;
    buf_put(&up.data, in.data + n, rest);
    up.left -= up.left > 0 ? (long long)rest : 0;
    pump(ssl, fd, &up, &down);
    buf_free(&up.data);
    buf_free(&down.data);
}

void proxy_call_run(struct proxy_call *c)
{
    SSL *ssl = SSL_new(c->ctx);
    struct deadline d = deadline_in(HEAD_MS);
    bool up = false;

    io_set_nonblock(c->fd, true);
    if (ssl && SSL_set_fd(ssl, c->fd) == 1) {
        for (int result; !(up = (result = SSL_accept(ssl)) == 1);) {
            if (!ssl_wait(ssl, result, d))
                break;
        }
    }
    if (up) {
        serve(c, ssl);
        SSL_shutdown(ssl);
    }
    SSL_free(ssl);
    proxy_call_free(c);
}
