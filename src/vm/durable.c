/* Durable sessions, PROTOCOL.vm section 5: a daemon per key that runs the commands, its socket and
 * lock in the private folder, and what a client that comes back may ask for. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/text.h"
#include "vm/channel.h"
#include "vm/vm.h"

#define FIRST_CLIENT_MS 30000 /* a daemon that nobody ever spoke to ends */
#define START_MS 15000        /* until a daemon that is ending has let go of its key */

static int lock_fd = -1; /* the daemon's, for its life; its file names the pid and the markers */
static struct buf noted; /* what the file holds of markers */

bool durable_key_ok(const char *key)
{
    size_t n = strlen(key);

    return n >= 1 && n <= VM_MAX_KEY &&
           strspn(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == n;
}

/* ---- the daemon's side of a link ---- */

static void on_accept(struct session *s, struct source *src, uint32_t events)
{
    struct ucred peer;
    socklen_t len = sizeof peer;
    cleanup_fd int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    (void)src;
    (void)events;
    if (fd < 0 || s->ending)
        return;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0 || peer.uid != geteuid())
        return;
    s->taking_over = true;
    session_detach(s);
    s->taking_over = false;
    int link = steal_fd(&fd);
    session_attach(s, link, link);
}

static void resume_stream(struct session *s, struct stream *st)
{
    struct in *in = &st->in;

    if (st->state == ST_KEPT && st->final_type == VM_FAIL) {
        st->ping = ++s->ping_seq;
        frame_raw(s, VM_FAIL, st->id, st->final.data, st->final.len);
        buf_put_u64(frame_begin(s, VM_PING, 0, 0), st->ping);
        frame_end(s);
        return;
    }
    if (st->state == ST_KEPT) {
        st->state = ST_EXITED; /* and on to EXIT again, once the output is there */
        st->linger_over = true;
    }
    stream_restarted(s, st);
    in->credit = in->owed = 0;
    if (!in->eof && st->state <= ST_RUNNING) {
        in->credit = in->window - (uint32_t)(in->q.len - in->off);
        if (in->credit)
            frame_u32(s, VM_CREDIT, VM_STDIN, st->id, in->credit);
    }
}

/* Nothing a client says here can be more than what we sent. */
static bool rewind_stream(struct session *s, struct stream *st, const uint64_t got[2])
{
    for (int i = 0; i < 2; i++) {
        uint64_t end = st->out[i].spool ? st->out[i].spool->end : 0;
        uint64_t base = st->out[i].spool ? st->out[i].spool->base : 0;
        if (got[i] > end) {
            session_broken(s, "stream %u: RESUME from byte %llu of %llu", st->id,
                           (unsigned long long)got[i], (unsigned long long)end);
            return false;
        }
        if (got[i] < base) {
            session_log(s, "stream %u: output from byte %llu on is no longer there", st->id,
                        (unsigned long long)got[i]);
            return false;
        }
    }
    for (int i = 0; i < 2; i++)
        out_rewind(s, &st->out[i], got[i]);
    return true;
}

void durable_resume(struct session *s, const char *p, size_t n)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};
    uint32_t count = cursor_u32(&c);
    cleanup_buf struct buf answer = {0};

    for (struct stream *st = s->streams; st; st = st->next)
        st->named = false;
    buf_put_u32(&answer, count);
    if (count > VM_MAX_STREAMS || c.left != count * 28ul)
        c.bad = 1;
    for (uint32_t i = 0; i < count && !c.bad; i++) {
        uint32_t id = cursor_u32(&c);
        uint64_t got[2] = {cursor_u64(&c), cursor_u64(&c)};
        uint64_t in_sent = cursor_u64(&c);
        struct stream *st = stream_find(s, id);
        if (st && (!stream_open_durable(st) || st->named || !rewind_stream(s, st, got)))
            st = NULL;
        if (st && in_sent < st->in.got)
            session_broken(s, "stream %u: RESUME with less stdin than was received", id);
        if (st)
            st->named = true;
        buf_put_u32(&answer, id);
        buf_put_u8(&answer, st != NULL);
        buf_put_u64(&answer, st ? st->in.got : 0);
    }
    if (c.bad)
        session_broken(s, "a bad RESUME");
    if (s->broken)
        return;
    s->resuming = false;
    s->live = true;
    frame_raw(s, VM_RESUMED, 0, answer.data, answer.len);
    for (struct stream *st = s->streams; st; st = st->next) {
        if (st->dead)
            continue;
        if (st->named)
            resume_stream(s, st);
        else if (st->state == ST_KEPT)
            stream_drop(s, st);
        else
            stream_abandon(s, st);
        if (!st->dead)
            stream_finish(s, st);
    }
}

void durable_pong(struct session *s, uint64_t seq)
{
    for (struct stream *st = s->streams; st; st = st->next) {
        if (!st->dead && st->state == ST_KEPT && st->ping <= seq)
            stream_drop(s, st);
    }
}

/* ---- other daemons ---- */

static char *hex_of(const char *text)
{
    size_t n = strlen(text);
    char *hex = xmalloc(2 * n + 3);

    hex[0] = '\n';
    io_hex(text, n, hex + 1);
    strcat(hex, "\n");
    return hex;
}

void durable_note_marker(struct session *s, const char *marker)
{
    cleanup_free char *line = hex_of(marker);

    (void)s;
    if (!marker[0] || (noted.len && strstr(noted.data, line)))
        return;
    buf_puts(&noted, line);
    io_write_all(lock_fd, line, strlen(line), deadline_in(1000), NULL);
}

static bool end_if_marked(const char *path, const char *line)
{
    cleanup_buf struct buf text = {0};

    if (!io_read_file(path, 8 << 20, &text, NULL) || !strstr(text.data, line))
        return false;
    long pid = strtol(text.data, NULL, 10);
    return pid > 1 && pid != getpid() && kill((pid_t)pid, SIGTERM) == 0;
}

/* Goes through the sessions of the folder: those that live and have the marker are told to end
 * (marker NULL: none), what dead ones left is removed. */
static unsigned walk(const char *dir, const char *marker)
{
    cleanup_dir DIR *d = dir ? opendir(dir) : NULL;
    cleanup_free char *line = marker ? hex_of(marker) : NULL;
    unsigned count = 0;

    for (struct dirent *e; d && (e = readdir(d));) {
        if (!text_starts(e->d_name, "s-") || !text_ends(e->d_name, ".lock"))
            continue;
        cleanup_free char *path = xasprintf("%s/%s", dir, e->d_name);
        cleanup_fd int fd = open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd < 0)
            continue;
        if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
            count += line && end_if_marked(path, line);
            continue;
        }
        unlink(path);
        strcpy(path + strlen(path) - 5, ".sock");
        unlink(path);
    }
    return count;
}

unsigned durable_end_marker(struct session *s, const char *marker)
{
    return walk(s->dir, marker);
}

/* ---- starting ---- */

/* Names are taken relative to the private folder, because a socket's whole path may be 107 bytes.
 */
static bool address(const char *key, struct sockaddr_un *sa)
{
    *sa = (struct sockaddr_un){.sun_family = AF_UNIX};
    return snprintf(sa->sun_path, sizeof sa->sun_path, "s-%s.sock", key) < (int)sizeof sa->sun_path;
}

static int try_connect(const char *key)
{
    struct sockaddr_un sa;
    cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (fd < 0 || !address(key, &sa) || connect(fd, (struct sockaddr *)&sa, sizeof sa) < 0)
        return -1;
    return steal_fd(&fd);
}

/* The lock on the key, -1 while a daemon has it. */
static int try_lock(const char *key)
{
    struct stat ours, there;
    cleanup_free char *name = xasprintf("s-%s.lock", key);
    cleanup_fd int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_APPEND, 0600);

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return -1;
    /* A daemon that ended between the two calls took the file with it. */
    if (fstat(fd, &ours) < 0 || stat(name, &there) < 0 || ours.st_ino != there.st_ino)
        return -1;
    return steal_fd(&fd);
}

static int listen_on(const char *key)
{
    struct sockaddr_un sa;
    cleanup_fd int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || !address(key, &sa))
        return -1;
    unlink(sa.sun_path);
    if (bind(fd, (struct sockaddr *)&sa, sizeof sa) < 0 || listen(fd, 8) < 0)
        return -1;
    return steal_fd(&fd);
}

void durable_close(struct session *s)
{
    struct sockaddr_un sa;

    if (!s->durable || s->listener < 0)
        return;
    unwatch(s, s->listener);
    close(s->listener);
    s->listener = -1;
    cleanup_free char *path = address(s->key, &sa) ? xasprintf("%s/%s", s->dir, sa.sun_path) : NULL;
    if (path)
        unlink(path);
}

static void daemon_main(const char *key, int listener)
{
    static struct session s;
    int null = open("/dev/null", O_RDWR);

    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    session_init(&s);
    s.durable = true;
    s.key = xstrdup(key);
    s.listener = listener;
    s.accept_src.fn = on_accept;
    watch(&s, listener, &s.accept_src, EPOLLIN);
    s.detached_until = now_ms() + FIRST_CLIENT_MS;
    session_timer(&s, s.detached_until);
    cleanup_free char *pid = xasprintf("%d\n", (int)getpid());
    io_write_all(lock_fd, pid, strlen(pid), DEADLINE_NEVER, NULL);
    walk(s.dir, NULL);
    int status = session_loop(&s);
    durable_close(&s);
    cleanup_free char *path = xasprintf("%s/s-%s.lock", s.dir, key);
    unlink(path);
    _exit(status);
}

/* The daemon shall be nobody's child here: neither our end nor that of our session is its own. */
static bool start_daemon(const char *key)
{
    cleanup_fd int listener = listen_on(key);
    int status;

    if (listener < 0 || ftruncate(lock_fd, 0) < 0)
        return false;
    pid_t pid = fork();
    if (pid == 0) {
        setsid();
        if (fork() == 0)
            daemon_main(key, listener);
        _exit(0);
    }
    return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

/* ---- the relay ---- */

struct half {
    int from, to;
    char data[65536];
    size_t len, off;
};

/* False: that way is at its end. */
static bool half_step(struct half *h, short from, short to)
{
    if (h->off == h->len && (from & (POLLIN | POLLHUP | POLLERR))) {
        ssize_t n = read(h->from, h->data, sizeof h->data);
        if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
            return false;
        h->off = 0;
        h->len = n > 0 ? (size_t)n : 0;
        to |= POLLOUT;
    }
    if (h->off < h->len && (to & (POLLOUT | POLLERR | POLLHUP))) {
        ssize_t n = write(h->to, h->data + h->off, h->len - h->off);
        if (n < 0 && errno != EAGAIN && errno != EINTR)
            return false;
        h->off += n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* True when the daemon said anything. */
static bool relay(int sock)
{
    static struct half up = {.from = 0}, down = {.to = 1};
    bool spoke = false;

    up.to = down.from = sock;
    up.len = up.off = down.len = down.off = 0;
    io_set_nonblock(0, true);
    io_set_nonblock(1, true);
    io_set_nonblock(sock, true);
    for (bool alive = true; alive;) {
        bool up_full = up.off < up.len, down_full = down.off < down.len;
        struct pollfd p[3] = {
            {.fd = up_full || !spoke ? -1 : 0, .events = POLLIN},
            {.fd = down_full ? 1 : -1, .events = POLLOUT},
            {.fd = sock, .events = (short)((up_full ? POLLOUT : 0) | (down_full ? 0 : POLLIN))},
        };
        if (poll(p, 3, -1) < 0 && errno != EINTR)
            break;
        spoke |= (p[2].revents & POLLIN) != 0;
        short from_sock = down_full ? 0 : p[2].revents;
        alive = half_step(&down, from_sock, p[1].revents) &&
                half_step(&up, p[0].revents, p[2].revents & POLLOUT);
    }
    return spoke;
}

int durable_main(const char *key)
{
    cleanup_free char *home = home_folder();
    cleanup_free char *dir = private_folder(home);
    struct deadline d = deadline_in(START_MS);

    if (!dir || chdir(dir) < 0) {
        fprintf(stderr, "exedev-vm: no private folder for a durable session: ~/.cache/exedev, "
                        "$XDG_RUNTIME_DIR/exedev and /tmp/exedev-UID are all unusable\n");
        return 71;
    }
    signal(SIGPIPE, SIG_IGN);
    while (!deadline_passed(d)) {
        cleanup_fd int sock = try_connect(key);
        if (sock >= 0) {
            /* A daemon that was just ending hangs up without a word; nothing of the client's is
             * lost. */
            if (relay(sock))
                return 0;
        } else if ((lock_fd = try_lock(key)) >= 0) {
            bool started = start_daemon(key);
            close(lock_fd);
            if (!started) {
                fprintf(stderr, "exedev-vm: cannot start a durable session in %s: %s\n", dir,
                        strerror(errno));
                return 71;
            }
            continue;
        }
        deadline_sleep(d, 20);
    }
    fprintf(stderr, "exedev-vm: the durable session in %s neither answers nor ends\n", dir);
    return 71;
}
