/* The ssh process of a link: its command line, its pipes, its end. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/link_private.h"
#include "lib/state.h"
#include "vm/blob.h"

#define ERRORS_KEPT (16u << 10)

extern char **environ;

struct words {
    char **list; /* owned, NULL-terminated */
    size_t n;
};

static void words_free(struct words *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->list[i]);
    free(w->list);
}

static void word(struct words *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void word(struct words *w, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    w->list = xreallocarray(w->list, w->n + 2, sizeof *w->list);
    w->list[w->n++] = xvasprintf(fmt, ap);
    w->list[w->n] = NULL;
    va_end(ap);
}

/* "-o NAME="PATH"": quoted for ssh's own lexer, its percent tokens made literal. ${...} would be
 * expanded and has no escape. */
static bool path_option(struct words *w, const char *name, const char *path, struct error *err)
{
    cleanup_buf struct buf b = {0};

    if (strstr(path, "${") || strpbrk(path, "\r\n"))
        return error_set(err, ERR_INVALID,
                         "%s: a path with \"${\" or a line break cannot be given to ssh: %s", name,
                         path);
    for (const char *p = path; *p; p++) {
        if (*p == '"' || *p == '\\')
            buf_putc(&b, '\\');
        if (*p == '%')
            buf_putc(&b, '%');
        buf_putc(&b, *p);
    }
    word(w, "-o");
    word(w, "%s=\"%s\"", name, b.data ? b.data : "");
    return true;
}

static int pinned_file(const char *lines, struct error *err)
{
    int fd = memfd_create("known_hosts", MFD_CLOEXEC);

    if (fd < 0 || !io_write_all(fd, lines, strlen(lines), DEADLINE_NEVER, NULL) ||
        !io_write_all(fd, "\n", 1, DEADLINE_NEVER, NULL)) {
        error_sys(err, errno, "keep the pinned host keys in memory");
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

static void fill(struct buf *out, const char *text, const char *const (*pairs)[2])
{
    while (*text) {
        size_t i = 0;
        for (; pairs[i][0]; i++) {
            if (text_starts(text, pairs[i][0]))
                break;
        }
        if (pairs[i][0]) {
            buf_puts(out, pairs[i][1]);
            text += strlen(pairs[i][0]);
        } else {
            buf_putc(out, *text++);
        }
    }
}

/* The line of vm/bootstrap.sh, for any login shell. */
static char *bootstrap(const struct link *l)
{
    struct buf b = {0};
    cleanup_free char *x86 = xasprintf("%zu", exedev_vm_x86_64_size);
    cleanup_free char *arm = xasprintf("%zu", exedev_vm_arm64_size);
    const char *const pairs[][2] = {{"@BUILD@", exedev_vm_build},
                                    {"@X86_64@", x86},
                                    {"@ARM64@", arm},
                                    {"@KEY@", l->durable ? l->session : ""},
                                    {NULL, NULL}};

    buf_puts(&b, "exec sh -c '");
    fill(&b, exedev_vm_bootstrap, pairs);
    buf_puts(&b, "'");
    return buf_steal(&b);
}

static void plain_options(struct words *w, const struct link *l)
{
    static const char *const fixed[] = {
        "BatchMode=yes",
        "RequestTTY=no",
        "UpdateHostKeys=no",
        "ConnectTimeout=15",
        "ConnectionAttempts=1",
        "TCPKeepAlive=yes",
        "CheckHostIP=no",
        "ControlMaster=no",
        "ControlPath=none",
        "EscapeChar=none",
        "PermitLocalCommand=no",
        "ClearAllForwardings=yes",
        "ForwardAgent=no",
        "ForwardX11=no",
        "LogLevel=INFO",
        "Compression=no",
        /* With AES in the processor twice as fast as OpenSSH's first choice, which stays in the
           list. */
        "Ciphers=^aes128-gcm@openssh.com,aes256-gcm@openssh.com",
    };

    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        word(w, "-o");
        word(w, "%s", fixed[i]);
    }
    word(w, "-o");
    word(w, "ServerAliveInterval=%d", l->heartbeat_ms < 1000 ? 1 : l->heartbeat_ms / 1000);
    word(w, "-o");
    word(w, "ServerAliveCountMax=%d",
         l->dead_ms / (l->heartbeat_ms < 1000 ? 1000 : l->heartbeat_ms) + 1);
    word(w, "-p");
    word(w, "%d", l->port);
}

static bool identity_options(struct words *w, const struct link *l, struct error *err)
{
    cleanup_free char *key =
        l->key_fd >= 0 ? xasprintf("/proc/%d/fd/%d", (int)getpid(), l->key_fd) : NULL;
    const char *file = key ? key : l->identity_file;

    if (file) {
        if (!path_option(w, "IdentityFile", file, err))
            return false;
        word(w, "-o");
        word(w, "IdentitiesOnly=yes");
    }
    if (key) {
        word(w, "-o");
        word(w, "IdentityAgent=none");
        word(w, "-o");
        word(w, "CertificateFile=none");
    } else if (l->agent_socket) {
        return path_option(w, "IdentityAgent", l->agent_socket, err);
    }
    return true;
}

static bool host_key_options(struct words *w, const struct link *l, int pinned, struct error *err)
{
    if (pinned >= 0) {
        word(w, "-o");
        word(w, "StrictHostKeyChecking=yes");
        word(w, "-o");
        word(w, "GlobalKnownHostsFile=/dev/null");
        word(w, "-o");
        word(w, "UserKnownHostsFile=/proc/%d/fd/%d", (int)getpid(), pinned);
        return true;
    }
    word(w, "-o");
    word(w, "StrictHostKeyChecking=%s", l->strict ? l->strict : "accept-new");
    cleanup_free char *known = state_known_hosts(NULL, err);
    return known && path_option(w, "UserKnownHostsFile", known, err);
}

static bool ssh_command(struct words *w, const struct link *l, int pinned, struct error *err)
{
    word(w, "ssh");
    word(w, "-F");
    word(w, "%s", l->ssh_config_file ? l->ssh_config_file : "none");
    plain_options(w, l); /* an option given here wins over the file */
    if (!identity_options(w, l, err) || !host_key_options(w, l, pinned, err))
        return false;
    if (l->user) {
        word(w, "-l");
        word(w, "%s", l->user);
    }
    word(w, "--");
    word(w, "%s", l->host);
    w->list = xreallocarray(w->list, w->n + 2, sizeof *w->list);
    w->list[w->n++] = bootstrap(l);
    w->list[w->n] = NULL;
    return true;
}

static void local_command(struct words *w, const struct link *l)
{
    for (char **p = l->local_argv; *p; p++)
        word(w, "%s", *p);
    if (l->durable)
        word(w, "%s", l->session);
}

/* Ours without what is secret or would change ssh's ways. */
static char **environment(void)
{
    static const char *const dropped[] = {"EXE_API_KEY=", "EXEDEV_", "SSH_ASKPASS", "DISPLAY="};
    size_t n = 0, kept = 0;

    while (environ[n])
        n++;
    char **list = xcalloc(n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++) {
        bool drop = false;
        for (size_t k = 0; k < sizeof dropped / sizeof *dropped; k++)
            drop = drop || text_starts(environ[i], dropped[k]);
        if (!drop)
            list[kept++] = environ[i];
    }
    return list;
}

bool connection_start(struct link *l, struct connection *c, struct error *err)
{
    __attribute__((cleanup(words_free))) struct words w = {0};
    cleanup_free char **env = environment();
    int pair[2], errors[2];

    *c = (struct connection){.fd = -1, .err_fd = -1, .pinned_fd = -1, .child = {-1, -1}};
    if (l->known_hosts && !l->local_argv && (c->pinned_fd = pinned_file(l->known_hosts, err)) < 0)
        return false;
    if (l->local_argv)
        local_command(&w, l);
    else if (!ssh_command(&w, l, c->pinned_fd, err))
        goto failed;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) {
        error_sys(err, errno, "connect to VM %s: socketpair", link_label(l));
        goto failed;
    }
    /* As much as the kernel gives: fewer turns between us and ssh under a flood. */
    for (int i = 0; i < 2; i++) {
        setsockopt(pair[i], SOL_SOCKET, SO_SNDBUF, &(int){512 << 10}, sizeof(int));
        setsockopt(pair[i], SOL_SOCKET, SO_RCVBUF, &(int){512 << 10}, sizeof(int));
    }
    if (pipe2(errors, O_CLOEXEC) < 0) {
        error_sys(err, errno, "connect to VM %s: pipe", link_label(l));
        close(pair[0]);
        close(pair[1]);
        goto failed;
    }
    bool ok = spawn_child(&(struct spawn_opts){.argv = (const char *const *)w.list,
                                               .envp = (const char *const *)env,
                                               .fd0 = pair[1],
                                               .fd1 = pair[1],
                                               .fd2 = errors[1],
                                               /* A terminal's Ctrl-C is ours to pass on. */
                                               .new_session = true},
                          &c->child, err);
    close(pair[1]);
    close(errors[1]);
    c->fd = pair[0];
    c->err_fd = errors[0];
    if (!ok)
        goto failed;
    io_set_nonblock(c->fd, true);
    io_set_nonblock(c->err_fd, true);
    c->in = xmalloc(LINK_IN_SIZE);
    return true;
failed:
    connection_end(c, 0);
    return false;
}

bool connection_read_errors(struct connection *c)
{
    char part[4096];
    ssize_t got;

    while ((got = read(c->err_fd, part, sizeof part)) > 0) {
        buf_put(&c->errors, part, (size_t)got);
        if (c->errors.len > 2 * ERRORS_KEPT) /* what was said last explains an end */
            buf_drop(&c->errors, c->errors.len - ERRORS_KEPT);
    }
    if (c->errors.data) { /* strstr reads it */
        for (char *nul; (nul = memchr(c->errors.data, 0, c->errors.len));)
            *nul = ' ';
    }
    return got < 0 && (errno == EAGAIN || errno == EINTR);
}

void connection_end(struct connection *c, int grace_ms)
{
    if (c->fd >= 0)
        close(c->fd);
    if (c->child.pid > 0)
        child_end(&c->child, grace_ms);
    if (c->child.pidfd >= 0)
        child_free(&c->child);
    if (c->err_fd >= 0)
        close(c->err_fd);
    if (c->pinned_fd >= 0)
        close(c->pinned_fd);
    free(c->in);
    buf_free(&c->chatter);
    buf_free(&c->errors);
    buf_free(&c->needed);
    *c = (struct connection){.fd = -1, .err_fd = -1, .pinned_fd = -1, .child = {-1, -1}};
}
