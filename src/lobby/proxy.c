#include "lobby/proxy.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "lobby/event.h"
#include "lobby/listen.h"
#include "lobby/proxy_call.h"
#include "lobby/tls.h"

struct listener {
    struct listener *next;
    int fd;
    char *address; /* of the VM; NULL: the one for all VMs */
    char *vm;
    unsigned port;
    SSL_CTX *ctx;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct listener *listeners;
static unsigned main_port, further[64], further_n;
static int wake = -1;
static bool stopping;
static pthread_t thread;

unsigned proxy_port(void)
{
    return main_port;
}

static void rouse(void)
{
    uint64_t one = 1;
    ssize_t ignored = write(wake, &one, sizeof one);
    (void)ignored;
}

static void listener_free(struct listener *l)
{
    close(l->fd);
    SSL_CTX_free(l->ctx);
    free(l->address);
    free(l->vm);
    free(l);
}

static bool listen_at(struct sockaddr_in *at, const char *address, const char *vm, SSL_CTX *ctx,
                      struct error *err)
{
    int fd = listen_tcp(at, err);

    if (fd < 0)
        return false;
    struct listener *l = xcalloc(1, sizeof *l);
    l->fd = fd;
    l->address = address ? xstrdup(address) : NULL;
    l->vm = vm ? xstrdup(vm) : NULL;
    l->port = ntohs(at->sin_port);
    SSL_CTX_up_ref(ctx);
    l->ctx = ctx;
    pthread_mutex_lock(&lock);
    l->next = listeners;
    listeners = l;
    pthread_mutex_unlock(&lock);
    rouse();
    return true;
}

static bool is_further(unsigned port)
{
    for (unsigned i = 0; i < further_n; i++) {
        if (further[i] == port)
            return true;
    }
    return false;
}

static void *run_call(void *arg)
{
    proxy_call_run(arg);
    return NULL;
}

/* Lock held. */
static void accept_one(const struct listener *l)
{
    struct proxy_call *call = xcalloc(1, sizeof *call);
    pthread_t worker;
    int one = 1;

    call->fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC);
    if (call->fd < 0) {
        free(call);
        return;
    }
    setsockopt(call->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    call->vm = l->vm ? xstrdup(l->vm) : NULL;
    call->fixed_port = is_further(l->port) ? l->port : 0;
    call->own_port = l->port;
    call->taken = is_further;
    SSL_CTX_up_ref(l->ctx);
    call->ctx = l->ctx;
    if (pthread_create(&worker, NULL, run_call, call) != 0)
        proxy_call_free(call);
    else
        pthread_detach(worker);
}

static void *serve(void *arg)
{
    struct pollfd *pfds = NULL;

    (void)arg;
    pthread_mutex_lock(&lock);
    while (!stopping) {
        size_t n = 1;
        for (struct listener *l = listeners; l; l = l->next)
            n++;
        pfds = xreallocarray(pfds, n, sizeof *pfds);
        pfds[0] = (struct pollfd){.fd = wake, .events = POLLIN};
        n = 1;
        for (struct listener *l = listeners; l; l = l->next)
            pfds[n++] = (struct pollfd){.fd = l->fd, .events = POLLIN};
        pthread_mutex_unlock(&lock);
        poll(pfds, n, -1);
        pthread_mutex_lock(&lock);
        if (pfds[0].revents) { /* the list has changed: look again */
            uint64_t count;
            ssize_t ignored = read(wake, &count, sizeof count);
            (void)ignored;
            continue;
        }
        size_t i = 1;
        for (struct listener *l = listeners; l && i < n; l = l->next, i++) {
            if (pfds[i].fd == l->fd && pfds[i].revents)
                accept_one(l);
        }
    }
    pthread_mutex_unlock(&lock);
    free(pfds);
    return NULL;
}

bool proxy_start(struct sockaddr_in at, const json_t *ports, char **authority, struct error *err)
{
    char host[INET_ADDRSTRLEN];
    json_t *port;
    size_t i;

    inet_ntop(AF_INET, &at.sin_addr, host, sizeof host);
    json_array_foreach ((json_t *)(uintptr_t)ports, i, port) {
        if (further_n < sizeof further / sizeof *further)
            further[further_n++] = (unsigned)json_integer_value(port);
    }
    wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    SSL_CTX *ctx = tls_context(host, err);
    bool ok = ctx && listen_at(&at, NULL, NULL, ctx, err);
    SSL_CTX_free(ctx);
    if (!ok)
        return error_prefix(err, "--proxy");
    main_port = ntohs(at.sin_port);
    int sys = pthread_create(&thread, NULL, serve, NULL);
    if (sys)
        return error_sys(err, sys, "start a thread");
    *authority = xasprintf("%s:%u", host, main_port);
    return true;
}

void proxy_stop(void)
{
    if (!main_port)
        return;
    pthread_mutex_lock(&lock);
    stopping = true;
    rouse();
    pthread_mutex_unlock(&lock);
    pthread_join(thread, NULL);
    while (listeners) {
        struct listener *l = listeners;
        listeners = l->next;
        listener_free(l);
    }
}

void proxy_add_vm(const char *address, const char *name)
{
    cleanup_error struct error err = {0};

    if (!main_port)
        return;
    SSL_CTX *ctx = tls_context(address, &err);
    for (unsigned i = 0; ctx && i <= further_n; i++) {
        struct sockaddr_in at = {.sin_family = AF_INET};
        inet_pton(AF_INET, address, &at.sin_addr);
        at.sin_port = htons((uint16_t)(i < further_n ? further[i] : main_port));
        error_clear(&err);
        if (!listen_at(&at, address, name, ctx, &err))
            event_emit("proxy-failed", json_pack("{s:s, s:s}", "vm", name, "why", err.msg));
    }
    SSL_CTX_free(ctx);
}

void proxy_drop_vm(const char *address)
{
    pthread_mutex_lock(&lock);
    for (struct listener **at = &listeners; *at;) {
        struct listener *l = *at;
        if (l->address && strcmp(l->address, address) == 0) {
            *at = l->next;
            listener_free(l);
        } else {
            at = &l->next;
        }
    }
    if (main_port)
        rouse();
    pthread_mutex_unlock(&lock);
}
