/* bench-mux: a bare session through a standing ssh master, spoken to as OpenSSH's PROTOCOL.mux
 * says, without starting an ssh for it: the least that a command over OpenSSH's connection sharing
 * can cost.
 *
 *   bench-mux SOCKET
 *     run N      N times `true`, one after the other: JSON list of microseconds */
#include <endian.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define MUX_MSG_HELLO 0x00000001u
#define MUX_C_NEW_SESSION 0x10000002u
#define MUX_S_EXIT_MESSAGE 0x80000004u
#define MUX_S_SESSION_OPENED 0x80000006u
#define MUX_VERSION 4u

struct message {
    unsigned char data[1024];
    size_t n;
};

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void put_u32(struct message *m, uint32_t v)
{
    v = htobe32(v);
    memcpy(m->data + m->n, &v, 4);
    m->n += 4;
}

static void put_string(struct message *m, const char *s)
{
    put_u32(m, (uint32_t)strlen(s));
    memcpy(m->data + m->n, s, strlen(s));
    m->n += strlen(s);
}

static void send_message(int fd, const struct message *m)
{
    unsigned char all[1028];
    uint32_t be = htobe32((uint32_t)m->n);

    memcpy(all, &be, 4);
    memcpy(all + 4, m->data, m->n);
    if (write(fd, all, m->n + 4) != (ssize_t)(m->n + 4))
        die("write to the master");
}

static void read_all(int fd, void *to, size_t n)
{
    for (size_t at = 0; at < n;) {
        ssize_t got = read(fd, (char *)to + at, n - at);
        if (got <= 0)
            die("read from the master");
        at += (size_t)got;
    }
}

/* The type of the next message; *value: its last number. */
static uint32_t receive(int fd, uint32_t *value)
{
    unsigned char data[4096];
    uint32_t n, type;

    read_all(fd, &n, 4);
    n = be32toh(n);
    if (n < 4 || n > sizeof data)
        die("a message of the master");
    read_all(fd, data, n);
    memcpy(&type, data, 4);
    memcpy(value, data + n - 4, 4);
    *value = be32toh(*value);
    return be32toh(type);
}

static void pass_fd(int socket, int fd)
{
    char space[CMSG_SPACE(sizeof fd)] = "", byte = 0;
    struct iovec part = {&byte, 1};
    struct msghdr m = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);

    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    if (sendmsg(socket, &m, 0) != 1)
        die("pass a descriptor");
}

static void session(const char *path, int null_fd)
{
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    struct message hello = {0}, open = {0};
    uint32_t type, value;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(to.sun_path, sizeof to.sun_path, "%s", path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
        die(path);
    put_u32(&hello, MUX_MSG_HELLO);
    put_u32(&hello, MUX_VERSION);
    send_message(fd, &hello);
    if (receive(fd, &value) != MUX_MSG_HELLO)
        die("the master's hello");
    put_u32(&open, MUX_C_NEW_SESSION);
    put_u32(&open, 1);          /* request id */
    put_string(&open, "");      /* reserved */
    for (int i = 0; i < 4; i++) /* terminal, X11, agent, subsystem */
        put_u32(&open, 0);
    put_u32(&open, 0xffffffffu); /* no escape character */
    put_string(&open, "");       /* TERM */
    put_string(&open, "true");
    send_message(fd, &open);
    for (int i = 0; i < 3; i++)
        pass_fd(fd, null_fd);
    while ((type = receive(fd, &value)) != MUX_S_EXIT_MESSAGE) {
        if (type != MUX_S_SESSION_OPENED)
            die("the master refused the session");
    }
    if (value != 0)
        die("true failed");
    close(fd);
}

static long long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

int main(int argc, char **argv)
{
    char line[64];
    int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);

    if (argc != 2 || null_fd < 0) {
        fputs("usage: bench-mux SOCKET\n", stderr);
        return 2;
    }
    while (fgets(line, sizeof line, stdin)) {
        long n = strncmp(line, "run ", 4) ? 0 : atol(line + 4);
        printf("[");
        for (long i = 0; i < n; i++) {
            long long from = now_us();
            session(argv[1], null_fd);
            printf("%s%lld", i ? "," : "", now_us() - from);
        }
        printf("]\n");
        fflush(stdout);
    }
    return 0;
}
