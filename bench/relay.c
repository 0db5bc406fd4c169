/* bench-relay: passes TCP connections on, every byte later by a fixed time, each way: a long road
 * on loopback. `bench-relay LISTEN-PORT HOST PORT DELAY-MS` prints "ready" and serves until killed.
 * One thread, one poll loop; each direction is a queue of pieces with the time at which they are
 * due. SIGUSR1 cuts: nothing passes any more, new connections included, until SIGUSR2. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define PIECE 65536
#define MOST_QUEUED (16u << 20)

struct piece {
    struct piece *next;
    long long due_us;
    size_t n, at;
    char data[];
};

struct way {
    int from, to;
    bool eof, shut;
    size_t queued;
    struct piece *head, *tail;
};

struct pair {
    struct pair *next;
    struct way way[2];
};

static struct pair *pairs;
static long long delay_us;
static volatile sig_atomic_t is_cut;

static void on_signal(int sig)
{
    is_cut = sig == SIGUSR1;
}

static long long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static int dial(const struct sockaddr_in *to)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd >= 0 && connect(fd, (const struct sockaddr *)to, sizeof *to) == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static void welcome(int listener, const struct sockaddr_in *to)
{
    int a = accept4(listener, NULL, NULL, SOCK_CLOEXEC), b = a < 0 ? -1 : dial(to), on = 1;

    if (b < 0) {
        if (a >= 0)
            close(a);
        return;
    }
    setsockopt(a, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(b, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct pair *p = calloc(1, sizeof *p);
    if (!p)
        abort();
    p->way[0] = (struct way){.from = a, .to = b};
    p->way[1] = (struct way){.from = b, .to = a};
    p->next = pairs;
    pairs = p;
}

static void take(struct way *w)
{
    struct piece *p = malloc(sizeof *p + PIECE);

    if (!p)
        abort();
    ssize_t got = recv(w->from, p->data, PIECE, MSG_DONTWAIT);
    if (got <= 0) {
        w->eof = w->eof || got == 0 || (errno != EAGAIN && errno != EINTR);
        free(p);
        return;
    }
    p->next = NULL;
    p->n = (size_t)got;
    p->at = 0;
    p->due_us = now_us() + delay_us;
    if (w->tail)
        w->tail->next = p;
    else
        w->head = p;
    w->tail = p;
    w->queued += p->n;
}

/* Sends what is due; microseconds until the next is, -1 for none, -2: the socket is full. */
static long long give(struct way *w)
{
    while (w->head) {
        struct piece *p = w->head;
        long long wait = p->due_us - now_us();
        if (wait > 0)
            return wait;
        ssize_t done = send(w->to, p->data + p->at, p->n - p->at, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done < 0 && (errno == EAGAIN || errno == EINTR))
            return -2;
        if (done < 0) {
            w->eof = true;
            done = (ssize_t)(p->n - p->at);
        }
        p->at += (size_t)done;
        if (p->at < p->n)
            return -2;
        w->queued -= p->n;
        w->head = p->next;
        if (!w->head)
            w->tail = NULL;
        free(p);
    }
    if (w->eof && !w->shut) {
        shutdown(w->to, SHUT_WR);
        w->shut = true;
    }
    return -1;
}

static void bury(void)
{
    for (struct pair **at = &pairs; *at;) {
        struct pair *p = *at;
        if (p->way[0].shut && p->way[1].shut) {
            *at = p->next;
            close(p->way[0].from);
            close(p->way[1].from);
            free(p);
        } else {
            at = &p->next;
        }
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in here = {.sin_family = AF_INET}, there = {.sin_family = AF_INET};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;

    if (argc != 5 || inet_pton(AF_INET, argv[2], &there.sin_addr) != 1) {
        fputs("usage: bench-relay LISTEN-PORT ADDRESS PORT DELAY-MS\n", stderr);
        return 2;
    }
    here.sin_port = htons((unsigned short)atoi(argv[1]));
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    there.sin_port = htons((unsigned short)atoi(argv[3]));
    delay_us = (long long)(atof(argv[4]) * 1000);
    sigset_t ours, waiting;
    sigemptyset(&ours);
    sigaddset(&ours, SIGUSR1);
    sigaddset(&ours, SIGUSR2);
    sigprocmask(SIG_BLOCK, &ours, &waiting); /* delivered while waiting only: none is missed */
    signal(SIGUSR1, on_signal);
    signal(SIGUSR2, on_signal);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) < 0 || listen(listener, 64) < 0) {
        perror("bench-relay: listen");
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd fds[512] = {{.fd = listener, .events = POLLIN}};
        nfds_t n = 1;
        long long wait = -1;
        for (struct pair *p = pairs; !is_cut && p && n + 2 <= 512; p = p->next) {
            for (int i = 0; i < 2; i++) {
                struct way *w = &p->way[i], *back = &p->way[!i];
                long long due = give(w);
                if (due >= 0 && (wait < 0 || due < wait))
                    wait = due;
                bool more = !w->eof && w->queued < MOST_QUEUED, full = give(back) == -2;
                fds[n++] =
                    (struct pollfd){.fd = more || full ? w->from : -1,
                                    .events = (short)((more ? POLLIN : 0) | (full ? POLLOUT : 0))};
            }
        }
        bury();
        struct timespec ts = {.tv_sec = wait / 1000000, .tv_nsec = wait % 1000000 * 1000};
        if (is_cut)
            n = 0;
        if (ppoll(fds, n, wait < 0 || is_cut ? NULL : &ts, &waiting) < 0)
            continue;
        if (is_cut)
            continue;
        if (fds[0].revents)
            welcome(listener, &there);
        for (struct pair *p = pairs; p; p = p->next) {
            for (int i = 0; i < 2; i++) {
                if (!p->way[i].eof && p->way[i].queued < MOST_QUEUED)
                    take(&p->way[i]);
            }
        }
    }
}
