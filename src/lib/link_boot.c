/* From the start of a session to both HELLOs (PROTOCOL.vm section 6): what the far end says before
 * is noise that may explain a failure, or a request for the helper. */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/link_private.h"
#include "lib/sshfail.h"
#include "vm/blob.h"

#define NOISE_MOST (4u << 20) /* then it is no shell that we talk to */
#define UPLOAD_MS 120000

static void keep_chatter(struct connection *c, const char *p, size_t n)
{
    size_t room = c->chatter.len < VM_MAX_CHATTER ? VM_MAX_CHATTER - c->chatter.len : 0;

    buf_put(&c->chatter, p, n < room ? n : room);
    for (char *nul; (nul = memchr(c->chatter.data, 0, c->chatter.len));)
        *nul = ' ';
}

static bool explain(struct link *l, struct connection *c, int status, struct error *err)
{
    connection_read_errors(c);
    keep_chatter(c, c->in, c->in_len);
    return sshfail_explain(&(struct sshfail){.vm = link_label(l),
                                             .host = l->host,
                                             .user = l->user,
                                             .port = l->port,
                                             .has_key = l->key_fd >= 0 || l->identity_file,
                                             .pinned = l->known_hosts,
                                             .errors = c->errors.data,
                                             .chatter = c->chatter.data,
                                             .status = status},
                           err);
}

static bool ended_early(struct link *l, struct connection *c, struct error *err)
{
    int status = -1;

    if (!child_wait(&c->child, deadline_in(1000), &status, NULL))
        status = -1; /* its output is closed, and yet it runs */
    return explain(l, c, status, err);
}

/* Waits for bytes from the far end. False: it ended, or the time, or the attempt, is over. */
static bool more(struct link *l, struct connection *c, struct deadline d, struct cancel *stop,
                 struct error *err)
{
    for (;;) {
        struct pollfd p[3] = {{.fd = c->fd, .events = POLLIN},
                              {.fd = c->err_fd, .events = POLLIN},
                              {.fd = cancel_fd(stop), .events = POLLIN}};
        int ready = poll(p, 3, deadline_poll(d));
        if (cancel_fired(stop))
            return error_set(err, ERR_CANCELLED, "connecting to VM %s was cancelled",
                             link_label(l));
        if (ready == 0) {
            explain(l, c, -1, err);
            if (err && err->code == ERR_NETWORK)
                error_set(err, ERR_TIMEOUT,
                          "VM %s: timed out while our helper was being started over ssh. Try again",
                          link_label(l));
            return false;
        }
        if (p[1].revents && !connection_read_errors(c)) {
            close(c->err_fd);
            c->err_fd = -1;
        }
        if (sshfail_onboarding(c->errors.data ? c->errors.data : "", c->errors.len))
            return explain(l, c, -1, err);
        if (!p[0].revents)
            continue;
        ssize_t got = read(c->fd, c->in + c->in_len, LINK_IN_SIZE - c->in_len);
        if (got < 0 && (errno == EAGAIN || errno == EINTR))
            continue;
        if (got <= 0)
            return ended_early(l, c, err);
        c->in_len += (size_t)got;
        return true;
    }
}

static void consume(struct connection *c, size_t n)
{
    c->in_len -= n;
    memmove(c->in, c->in + n, c->in_len);
}

static bool send_all(struct link *l, struct connection *c, const void *p, size_t n,
                     struct deadline d, struct error *err)
{
    if (io_write_all(c->fd, p, n, d, err))
        return true;
    if (err && err->code == ERR_TIMEOUT)
        return error_set(err, ERR_TIMEOUT, "VM %s: timed out while sending our helper",
                         link_label(l));
    return ended_early(l, c, err);
}

/* "EXEDEV-VM NEED x86_64 /home/exedev/.cache/exedev" */
static bool upload(struct link *l, struct connection *c, const char *what, struct deadline d,
                   struct error *err)
{
    char machine[32] = "";

    if (c->needed.len)
        return error_set(err, ERR_PROTOCOL, "VM %s asked for our helper a second time",
                         link_label(l));
    buf_puts(&c->needed, what);
    sscanf(what, "%31s", machine);
    log_debug("VM %s: sending the helper for %s", link_label(l), what);
    if (!strcmp(machine, "x86_64") || !strcmp(machine, "amd64"))
        return send_all(l, c, exedev_vm_x86_64, exedev_vm_x86_64_size, d, err);
    if (!strcmp(machine, "aarch64") || !strcmp(machine, "arm64"))
        return send_all(l, c, exedev_vm_arm64, exedev_vm_arm64_size, d, err);
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, machine, strlen(machine), 32);
    return error_set(err, ERR_UNSUPPORTED,
                     "VM %s is a %s machine; exedev carries its helper for x86-64 and arm64 only",
                     link_label(l), shown.data);
}

/* Whole lines of noise are looked at once and moved to the chatter. */
static bool lines(struct link *l, struct connection *c, struct deadline d, struct error *err)
{
    char *newline;

    while ((newline = memchr(c->in, '\n', c->in_len))) {
        size_t n = (size_t)(newline - c->in);
        cleanup_free char *line = xstrndup(c->in, n);
        const char *ours = strstr(line, "EXEDEV-VM ");
        keep_chatter(c, c->in, n + 1);
        consume(c, n + 1);
        if (!ours)
            continue;
        ours += strlen("EXEDEV-VM ");
        if (text_starts(ours, "NEED ")) {
            if (!upload(l, c, ours + 5, d, err))
                return false;
        } else if (text_starts(ours, "FAIL ")) {
            cleanup_buf struct buf shown = {0};
            text_visible(&shown, ours + 5, strlen(ours + 5), 500);
            return error_set(
                err, ERR_UNSUPPORTED,
                "VM %s: our helper could not be started there: %s. It needs a folder in "
                "~/.cache, the runtime folder or /tmp where programs may run",
                link_label(l), shown.data);
        }
    }
    if (c->in_len > LINK_IN_SIZE / 2) { /* one endless line; the magic may lie across the cut */
        size_t n = c->in_len - 64;
        keep_chatter(c, c->in, n);
        consume(c, n);
    }
    return true;
}

static bool find_hello(struct link *l, struct connection *c, struct deadline d, struct cancel *stop,
                       struct error *err)
{
    size_t noise = 0;

    for (;;) {
        char *magic = memmem(c->in, c->in_len, VM_MAGIC, VM_MAGIC_LEN);
        if (magic && (size_t)(magic - c->in) >= VM_HEADER) {
            consume(c, (size_t)(magic - c->in) - VM_HEADER);
            return true;
        }
        size_t before = c->in_len;
        if (!lines(l, c, d, err))
            return false;
        noise += before - c->in_len;
        keep_chatter(c, "", 0);
        if (sshfail_onboarding(c->chatter.data, c->chatter.len) ||
            sshfail_onboarding(c->in, c->in_len))
            return explain(l, c, -1, err);
        if (noise > NOISE_MOST)
            return error_set(
                err, ERR_PROTOCOL,
                "VM %s answered with over %u MB of text instead of starting our helper; "
                "look at the login user's profile there",
                link_label(l), NOISE_MOST >> 20);
        if (!more(l, c, d, stop, err))
            return false;
    }
}

static void remember(struct link *l, char **fact, char *value)
{
    pthread_mutex_lock(&l->lock);
    if (*fact && !strcmp(*fact, value)) {
        free(value);
    } else {
        /* The old string was handed out; a VM whose home changes is odd enough to keep a few. */
        for (size_t i = 0; *fact && i < sizeof l->old_facts / sizeof *l->old_facts; i++) {
            if (!l->old_facts[i]) {
                l->old_facts[i] = *fact;
                *fact = NULL;
            }
        }
        if (!*fact)
            *fact = value;
        else
            free(value);
    }
    pthread_mutex_unlock(&l->lock);
}

static bool take_hello(struct link *l, const char *p, size_t n, struct error *err)
{
    struct cursor c = {.p = (const unsigned char *)p, .left = n};

    cursor_bytes(&c, VM_MAGIC_LEN);
    cleanup_free char *build = cursor_strdup(&c, 256);
    cursor_u32(&c); /* pid */
    cleanup_free char *home = cursor_strdup(&c, VM_MAX_MESSAGE);
    cleanup_free char *user = cursor_strdup(&c, VM_MAX_MESSAGE);
    cleanup_free char *runtime = cursor_strdup(&c, VM_MAX_MESSAGE);
    uint32_t flags = cursor_u32(&c);
    if (c.bad || c.left)
        return error_set(err, ERR_PROTOCOL,
                         "VM %s: what answers as our helper breaks its protocol (HELLO)",
                         link_label(l));
    if (strcmp(build, exedev_vm_build) != 0)
        return error_set(err, ERR_PROTOCOL, "VM %s: its helper is another build than ours",
                         link_label(l));
    if (!text_is_utf8(home, strlen(home)) || home[0] != '/')
        return error_set(err, ERR_PROTOCOL, "VM %s: the login user has no home directory",
                         link_label(l));
    remember(l, &l->home, steal_ptr(home));
    remember(l, &l->remote_user, steal_ptr(user));
    l->facts = flags;
    return true;
}

static void put_hello(struct link *l, struct buf *b)
{
    cleanup_buf struct buf p = {0};

    buf_put(&p, VM_MAGIC, VM_MAGIC_LEN);
    buf_put_str(&p, exedev_vm_build, strlen(exedev_vm_build));
    buf_put_u32(&p, (uint32_t)l->heartbeat_ms);
    buf_put_u32(&p, (uint32_t)l->dead_ms);
    buf_put_u32(&p, (uint32_t)l->grace_ms);
    buf_put_u32(&p, l->durable ? VM_HELLO_DURABLE : 0);
    buf_put_str(&p, l->session, l->durable ? strlen(l->session) : 0);
    buf_put_u32(&p, (uint32_t)l->keep_ms);
    frame_put(b, VM_HELLO, 0, 0, p.data, p.len);
}

bool link_boot(struct link *l, struct connection *c, struct deadline d, struct cancel *stop,
               struct error *err)
{
    cleanup_buf struct buf hello = {0};

    d = deadline_min(d, deadline_in(UPLOAD_MS));
    if (!find_hello(l, c, d, stop, err))
        return false;
    struct cursor head = {.p = (const unsigned char *)c->in, .left = VM_HEADER};
    uint32_t len = cursor_u32(&head);
    uint8_t type = cursor_u8(&head), channel = cursor_u8(&head);
    if (len > VM_MAX_PAYLOAD || type != VM_HELLO || channel || cursor_u16(&head) ||
        cursor_u32(&head))
        return error_set(err, ERR_PROTOCOL,
                         "VM %s: what answers as our helper breaks its protocol (first "
                         "frame)",
                         link_label(l));
    while (c->in_len < VM_HEADER + len) {
        if (!more(l, c, d, stop, err))
            return false;
    }
    if (!take_hello(l, c->in + VM_HEADER, len, err))
        return false;
    consume(c, VM_HEADER + len);
    put_hello(l, &hello);
    return send_all(l, c, hello.data, hello.len, d, err);
}
