#include "lobby/relay.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "lobby/event.h"
#include "lobby/fault.h"

#define WINDOW_MS 10000
#define LOOK_MS 50 /* how soon a fault set at run time is noticed */

struct relay {
    struct relay *next;
    char *address, *vm;
    unsigned inner;
    int listener;
    int stop[2];      /* closing the write end ends all its threads */
    unsigned threads; /* under the lock */
    int64_t recent[64];
    unsigned recent_n;
    int64_t silent_until;
};

struct link {
    struct relay *relay;
    int client;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;
static struct relay *relays;

static struct sockaddr_in at(const char *address, unsigned port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};

    inet_pton(AF_INET, address, &a.sin_addr);
    return a;
}

unsigned relay_inner_port(const char *address, struct error *err)
{
    struct sockaddr_in a = at(address, 0);
    socklen_t n = sizeof a;
    cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) < 0) {
        error_sys(err, errno, "find a port on %s", address);
        return 0;
    }
    return ntohs(a.sin_port);
}

static bool start(void *(*run)(void *), void *arg)
{
    pthread_t thread;

    if (pthread_create(&thread, NULL, run, arg) != 0)
        return false;
    pthread_detach(thread);
    return true;
}

static void done(struct relay *r)
{
    pthread_mutex_lock(&lock);
    r->threads--;
    pthread_cond_broadcast(&ended);
    pthread_mutex_unlock(&lock);
}

/* Moves what one side has to the other; false at the end of the connection. */
static bool move(int from, int to, bool *open)
{
    char part[65536];
    ssize_t got = read(from, part, sizeof part);

    if (got < 0)
        return errno == EINTR || errno == EAGAIN;
    if (got == 0) {
        *open = false;
        shutdown(to, SHUT_WR);
        return true;
    }
    return io_write_all(to, part, (size_t)got, deadline_in(60000), NULL);
}

static void *pass(void *arg)
{
    struct link *l = arg;
    struct sockaddr_in a = at(l->relay->address, l->relay->inner);
    cleanup_fd int client = l->client;
    cleanup_fd int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool open[2] = {true, true};
    int one = 1;

    /* sshd may come later (boot:delay): then this connection is refused, as without a relay */
    if (server >= 0 && connect(server, (struct sockaddr *)&a, sizeof a) == 0) {
        setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        while (open[0] || open[1]) {
            bool frozen = fault_ssh().freeze;
            struct pollfd pfds[3] = {{.fd = l->relay->stop[0], .events = POLLIN},
                                     {.fd = open[0] && !frozen ? client : -1, .events = POLLIN},
                                     {.fd = open[1] && !frozen ? server : -1, .events = POLLIN}};
            if (poll(pfds, 3, LOOK_MS) < 0 && errno != EINTR)
                break;
            if (pfds[0].revents)
                break;
            if (fault_ssh().freeze)
                continue;
            if (pfds[1].revents && !move(client, server, &open[0]))
                break;
            if (pfds[2].revents && !move(server, client, &open[1]))
                break;
        }
    } else {
        struct linger reset = {.l_onoff = 1};
        setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    done(l->relay);
    free(l);
    return NULL;
}

/* Counts a new connection; true when it is to be met with silence. */
static bool too_many(struct relay *r, const struct fault_ssh *f)
{
    int64_t now = now_ms();
    unsigned in_window = 0;

    if (!f->burst)
        return false;
    if (now < r->silent_until)
        return true;
    r->recent[r->recent_n++ % 64] = now;
    for (unsigned i = 0; i < 64; i++)
        in_window += r->recent[i] && now - r->recent[i] < WINDOW_MS;
    if (in_window <= f->burst)
        return false;
    r->silent_until = now + f->burst_silence_s * 1000LL;
    event_emit("ssh-burst",
               json_pack("{s:s, s:i}", "vm", r->vm, "silentSeconds", f->burst_silence_s));
    return true;
}

static void *listen_on(void *arg)
{
    struct relay *r = arg;
    int held[64], held_n = 0;

    for (;;) {
        struct fault_ssh f = fault_ssh();
        struct pollfd pfds[2] = {{.fd = r->stop[0], .events = POLLIN},
                                 {.fd = f.freeze ? -1 : r->listener, .events = POLLIN}};
        if (poll(pfds, 2, LOOK_MS) < 0 && errno != EINTR)
            break;
        if (pfds[0].revents)
            break;
        if (!pfds[1].revents)
            continue;
        f = fault_ssh(); /* it may have changed while we waited */
        if (f.freeze)
            continue;
        int fd = accept4(r->listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0)
            continue;
        /* A firewall would drop the first packet. Without one, what comes nearest is to take the
         * connection and never say a word: the client waits for the banner as long. */
        if (too_many(r, &f)) {
            if (held_n == 64)
                close(held[--held_n]);
            held[held_n++] = fd;
            continue;
        }
        struct link *l = xcalloc(1, sizeof *l);
        *l = (struct link){r, fd};
        pthread_mutex_lock(&lock);
        r->threads++;
        pthread_mutex_unlock(&lock);
        if (!start(pass, l)) {
            close(fd);
            free(l);
            done(r);
        }
    }
    while (held_n)
        close(held[--held_n]);
    done(r);
    return NULL;
}

bool relay_open(const char *address, unsigned port, unsigned inner, const char *vm,
                struct error *err)
{
    struct sockaddr_in a = at(address, port);
    int one = 1;

    relay_close(address);
    cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0)
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 128) < 0)
        return error_sys(err, errno, "relay: listen on %s:%u", address, port);
    struct relay *r = xcalloc(1, sizeof *r);
    if (pipe2(r->stop, O_CLOEXEC) < 0) {
        free(r);
        return error_sys(err, errno, "pipe");
    }
    r->address = xstrdup(address);
    r->vm = xstrdup(vm);
    r->inner = inner;
    r->listener = steal_fd(&fd);
    r->threads = 1;
    pthread_mutex_lock(&lock);
    r->next = relays;
    relays = r;
    pthread_mutex_unlock(&lock);
    if (start(listen_on, r))
        return true;
    done(r);
    relay_close(address);
    return error_set(err, ERR_SYSTEM, "start a thread");
}

void relay_close(const char *address)
{
    struct relay *r = NULL;

    pthread_mutex_lock(&lock);
    for (struct relay **p = &relays; *p; p = &(*p)->next) {
        if (strcmp((*p)->address, address) == 0) {
            r = *p;
            *p = r->next;
            break;
        }
    }
    if (r) {
        close(r->stop[1]);
        while (r->threads)
            pthread_cond_wait(&ended, &lock);
    }
    pthread_mutex_unlock(&lock);
    if (!r)
        return;
    close(r->stop[0]);
    close(r->listener);
    free(r->address);
    free(r->vm);
    free(r);
}
