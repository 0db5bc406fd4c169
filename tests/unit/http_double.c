#include "http_double.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"

#define REQUESTS_MAX 4096

struct http_double {
    int fd, port;
    pthread_t thread;
    pthread_mutex_t lock;
    const struct step *steps;
    bool used[64];
    size_t n;
    char *requests[REQUESTS_MAX];
    int request_n, connection_n, open_n;
    bool stopping;
};

struct conn {
    struct http_double *d;
    int fd;
};

static bool stopping(struct http_double *d)
{
    pthread_mutex_lock(&d->lock);
    bool s = d->stopping;
    pthread_mutex_unlock(&d->lock);
    return s;
}

/* False: the client is gone, or the test is over. */
static bool readable(struct conn *c)
{
    struct pollfd p = {c->fd, POLLIN, 0};

    while (!stopping(c->d))
        if (poll(&p, 1, 20) > 0)
            return true;
    return false;
}

static char *body_of(char *request)
{
    char *b = strstr(request, "\r\n\r\n");

    return b ? b + 4 : NULL;
}

static bool read_request(struct conn *c, struct buf *in)
{
    while (readable(c)) {
        ssize_t n = recv(c->fd, buf_reserve(in, 65536), 65535, 0);
        if (n <= 0)
            return false;
        in->len += (size_t)n;
        in->data[in->len] = '\0';
        const char *body = body_of(in->data), *length = strcasestr(in->data, "content-length:");
        if (body && length && strlen(body) >= (size_t)atol(length + 15))
            return true;
    }
    return false;
}

static const struct step *next_step(struct http_double *d, char *request)
{
    static const struct step unexpected = {.status = 599, .body = "unexpected request"};
    const struct step *found = &unexpected;

    pthread_mutex_lock(&d->lock);
    if (d->request_n < REQUESTS_MAX)
        d->requests[d->request_n++] = xstrdup(request);
    const char *body = body_of(request);
    for (size_t i = 0; i < d->n; i++) {
        const struct step *s = &d->steps[i];
        if (d->used[i] || (s->when && strncmp(body, s->when, strlen(s->when))))
            continue;
        d->used[i] = !s->forever;
        found = s;
        break;
    }
    pthread_mutex_unlock(&d->lock);
    return found;
}

static bool say(struct conn *c, const char *text, size_t n)
{
    while (n) {
        struct pollfd p = {c->fd, POLLOUT, 0};
        if (stopping(c->d))
            return false;
        if (poll(&p, 1, 20) <= 0)
            continue;
        ssize_t wrote = send(c->fd, text, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (wrote < 0)
            return false;
        text += wrote;
        n -= (size_t)wrote;
    }
    return true;
}

static void head(struct conn *c, const struct step *s, size_t length)
{
    cleanup_free char *h = xasprintf(
        "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n%s\r\n",
        s->status ? s->status : 200, length, s->headers ? s->headers : "");
    say(c, h, strlen(h));
}

/* False: this connection is over. */
static bool act(struct conn *c, const struct step *s)
{
    const char *body = s->body ? s->body : "";
    char block[65536];

    switch (s->act) {
    case ANSWER:
    case ANSWER_CLOSE:
        head(c, s, strlen(body));
        return say(c, body, strlen(body)) && s->act == ANSWER;
    case RESET: {
        struct linger now = {1, 0};
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
        return false;
    }
    case CUT:
        head(c, s, strlen(body) * 2);
        say(c, body, strlen(body));
        return false;
    case HANG:
        while (readable(c) && recv(c->fd, block, sizeof block, 0) > 0)
            ;
        return false;
    case DRIP:
        head(c, s, 1000000);
        while (say(c, " ", 1))
            usleep(20000);
        return false;
    default:
        memset(block, ' ', sizeof block);
        head(c, s, 1000000000);
        while (say(c, block, sizeof block))
            ;
        return false;
    }
}

static void *serve(void *arg)
{
    struct conn *c = arg;
    bool go_on = true;

    while (go_on) {
        cleanup_buf struct buf in = {0};
        go_on = read_request(c, &in);
        if (go_on)
            go_on = act(c, next_step(c->d, in.data));
    }
    close(c->fd);
    pthread_mutex_lock(&c->d->lock);
    c->d->open_n--;
    pthread_mutex_unlock(&c->d->lock);
    free(c);
    return NULL;
}

static void *listener(void *arg)
{
    struct http_double *d = arg;

    while (!stopping(d)) {
        struct pollfd p = {d->fd, POLLIN, 0};
        if (poll(&p, 1, 20) <= 0)
            continue;
        int fd = accept(d->fd, NULL, NULL);
        if (fd < 0)
            continue;
        struct conn *c = xmalloc(sizeof *c);
        *c = (struct conn){d, fd};
        pthread_mutex_lock(&d->lock);
        d->connection_n++;
        d->open_n++;
        pthread_mutex_unlock(&d->lock);
        pthread_t t;
        if (pthread_create(&t, NULL, serve, c) == 0)
            pthread_detach(t);
    }
    return NULL;
}

struct http_double *double_start(const struct step *steps, size_t n)
{
    struct http_double *d = xcalloc(1, sizeof *d);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;

    d->steps = steps;
    d->n = n;
    pthread_mutex_init(&d->lock, NULL);
    d->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (n > 64 || bind(d->fd, (struct sockaddr *)&a, len) || listen(d->fd, 128) ||
        getsockname(d->fd, (struct sockaddr *)&a, &len))
        abort();
    d->port = ntohs(a.sin_port);
    if (pthread_create(&d->thread, NULL, listener, d))
        abort();
    return d;
}

int double_port(const struct http_double *d)
{
    return d->port;
}

int double_requests(struct http_double *d, const char *what)
{
    int n = 0;

    pthread_mutex_lock(&d->lock);
    for (int i = 0; i < d->request_n; i++) {
        const char *body = body_of(d->requests[i]);
        n += body && !strncmp(body, what, strlen(what));
    }
    pthread_mutex_unlock(&d->lock);
    return n;
}

int double_connections(struct http_double *d)
{
    pthread_mutex_lock(&d->lock);
    int n = d->connection_n;
    pthread_mutex_unlock(&d->lock);
    return n;
}

const char *double_request(struct http_double *d, int n)
{
    pthread_mutex_lock(&d->lock);
    const char *r = n < d->request_n ? d->requests[n] : "";
    pthread_mutex_unlock(&d->lock);
    return r;
}

void double_stop(struct http_double *d)
{
    pthread_mutex_lock(&d->lock);
    d->stopping = true;
    pthread_mutex_unlock(&d->lock);
    pthread_join(d->thread, NULL);
    for (bool busy = true; busy; usleep(1000)) {
        pthread_mutex_lock(&d->lock);
        busy = d->open_n > 0;
        pthread_mutex_unlock(&d->lock);
    }
    for (int i = 0; i < d->request_n; i++)
        free(d->requests[i]);
    close(d->fd);
    free(d);
}
