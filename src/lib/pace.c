#include "lib/pace.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"

#define PACE_MOST 64

/* The first address ssh would try, as text; NULL for loopback and for what does not resolve. */
static char *counted_address(const char *host)
{
    struct addrinfo *list = NULL, hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_ADDRCONFIG};
    char text[INET6_ADDRSTRLEN] = "";
    size_t n = strlen(host);
    cleanup_free char *bare =
        host[0] == '[' && host[n - 1] == ']' ? xstrndup(host + 1, n - 2) : xstrdup(host);

    if (getaddrinfo(bare, NULL, &hints, &list))
        return NULL;
    if (list->ai_family == AF_INET) {
        struct in_addr a = ((struct sockaddr_in *)list->ai_addr)->sin_addr;
        if ((ntohl(a.s_addr) >> 24) != 127)
            inet_ntop(AF_INET, &a, text, sizeof text);
    } else if (list->ai_family == AF_INET6) {
        struct in6_addr a = ((struct sockaddr_in6 *)list->ai_addr)->sin6_addr;
        if (!IN6_IS_ADDR_LOOPBACK(&a))
            inet_ntop(AF_INET6, &a, text, sizeof text);
    }
    freeaddrinfo(list);
    return text[0] ? xstrdup(text) : NULL;
}

/* Under the file's lock: milliseconds until one more may go (0: it is counted now), -1 on error. */
static int64_t take_turn(const char *path, int burst, struct error *err)
{
    int64_t stamp[PACE_MOST], kept[PACE_MOST], now = now_ms();
    cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    int n = 0;

    if (fd < 0 || flock(fd, LOCK_EX) < 0) {
        error_sys(err, errno, "count connections in %s", path);
        return -1;
    }
    ssize_t got = pread(fd, stamp, sizeof stamp, 0);
    for (size_t i = 0; got > 0 && i < (size_t)got / sizeof *stamp; i++) {
        /* A stamp from the future is of an earlier boot. */
        if (stamp[i] <= now && stamp[i] > now - PACE_WINDOW_MS)
            kept[n++] = stamp[i];
    }
    if (n >= burst)
        return kept[n - burst] + PACE_WINDOW_MS - now;
    kept[n++] = now;
    size_t size = (size_t)n * sizeof *kept;
    if (pwrite(fd, kept, size, 0) != (ssize_t)size || ftruncate(fd, (off_t)size) < 0) {
        error_sys(err, errno, "count connections in %s", path);
        return -1;
    }
    return 0;
}

bool pace_wait(const char *dir, const char *host, int burst, struct deadline d,
               struct cancel *cancel, struct error *err)
{
    cleanup_free char *address = counted_address(host);

    if (!address)
        return true;
    if (burst <= 0)
        burst = PACE_BURST;
    if (burst > PACE_MOST)
        burst = PACE_MOST;
    cleanup_free char *folder = xasprintf("%s/pace", dir);
    if (!io_mkdirs(folder, 0700, err))
        return false;
    cleanup_free char *path = xasprintf("%s/%s", folder, address);
    for (;;) {
        int64_t wait = take_turn(path, burst, err);
        if (wait <= 0)
            return wait == 0;
        if (deadline_left(d) < wait)
            return error_set(
                err, ERR_TIMEOUT,
                "timed out: %d connections to %s (%s) were opened in the last %d seconds, "
                "the next may go in %lld ms: try again then",
                burst, host, address, PACE_WINDOW_MS / 1000, (long long)wait);
        struct pollfd pfd = {.fd = cancel_fd(cancel), .events = POLLIN};
        poll(&pfd, 1, (int)wait + 1);
        if (cancel_fired(cancel))
            return error_set(err, ERR_CANCELLED, "cancelled while waiting to connect to %s", host);
    }
}
