/* A client of exedev-vm for its tests: raw frames over pipes, nothing shared with lib/link. The
 * helper is the program named by EXEDEV_VM; each test has a home folder of its own. */
#ifndef TESTS_VM_CLIENT_H
#define TESTS_VM_CLIENT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/vmproto.h"

#define UNUSED __attribute__((unused))
#define PATIENCE_MS 60000 /* for what must come; a machine may be busy */

struct vm {
    pid_t pid;
    int in, out; /* ours: to the helper, from it */
    struct buf rx;
    char build[40];
    char *home, *user, *dir;
    uint32_t flags, helper_pid, next;
    uint64_t pings; /* unanswered, when `mute` */
    bool mute;      /* do not answer PING */
    struct buf logs;
};

struct hello {
    const char *key;
    uint32_t heartbeat_ms, dead_ms, grace_ms, keep_ms;
    bool no_hello; /* the caller sends its own */
};

struct got {
    uint8_t type, channel;
    uint32_t stream;
    struct buf data;
};

static char *test_home UNUSED;

static UNUSED int make_home(void **state)
{
    char name[] = "/tmp/exedev-test.XXXXXX";

    (void)state;
    signal(SIGPIPE, SIG_IGN);
    test_home = xstrdup(mkdtemp(name));
    setenv("HOME", test_home, 1);
    unsetenv("XDG_RUNTIME_DIR");
    return 0;
}

static UNUSED int remove_home(void **state)
{
    cleanup_free char *cmd = xasprintf("rm -rf '%s'", test_home);

    (void)state;
    if (system(cmd) != 0)
        return -1;
    free(test_home);
    test_home = NULL;
    return 0;
}

static UNUSED char *home_path(const char *name)
{
    return xasprintf("%s/%s", test_home, name);
}

static UNUSED void write_home(const char *name, const char *text)
{
    cleanup_free char *path = home_path(name);
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static UNUSED char *filled(size_t n)
{
    char *s = xmalloc(n + 1);

    memset(s, 'x', n);
    s[n] = 0;
    return s;
}

static UNUSED void vm_send(struct vm *v, uint8_t type, uint8_t channel, uint32_t stream,
                           const void *p, size_t n)
{
    struct buf b = {0};

    buf_put_u32(&b, (uint32_t)n);
    buf_put_u8(&b, type);
    buf_put_u8(&b, channel);
    buf_put_u16(&b, 0);
    buf_put_u32(&b, stream);
    buf_put(&b, p, n);
    io_write_all(v->in, b.data, b.len, deadline_in(PATIENCE_MS), NULL);
    buf_free(&b);
}

static UNUSED void vm_send_u32s(struct vm *v, uint8_t type, uint8_t channel, uint32_t stream, int n,
                                ...)
{
    struct buf b = {0};
    va_list ap;

    va_start(ap, n);
    while (n--)
        buf_put_u32(&b, va_arg(ap, uint32_t));
    va_end(ap);
    vm_send(v, type, channel, stream, b.data, b.len);
    buf_free(&b);
}

static UNUSED void got_free(struct got *g)
{
    buf_free(&g->data);
}

/* The next frame of any type. False: the helper closed its end, or nothing came for ms. */
static UNUSED bool vm_raw(struct vm *v, struct got *g, int64_t ms)
{
    struct deadline d = deadline_in(ms);

    got_free(g);
    for (;;) {
        struct cursor c = {.p = (unsigned char *)v->rx.data, .left = v->rx.len};
        if (v->rx.len >= VM_HEADER) {
            uint32_t n = cursor_u32(&c);
            assert_true(n <= VM_MAX_PAYLOAD);
            g->type = cursor_u8(&c);
            g->channel = cursor_u8(&c);
            assert_int_equal(cursor_u16(&c), 0);
            g->stream = cursor_u32(&c);
            if (c.left >= n) {
                buf_put(&g->data, c.p, n);
                buf_drop(&v->rx, VM_HEADER + n);
                return true;
            }
        }
        struct pollfd p = {.fd = v->out, .events = POLLIN};
        if (poll(&p, 1, deadline_poll(d)) <= 0)
            return false;
        ssize_t n = read(v->out, buf_reserve(&v->rx, 65536), 65536);
        if (n <= 0)
            return false;
        v->rx.len += (size_t)n;
    }
}

/* As vm_raw; answers PING and keeps LOG. */
static UNUSED bool vm_recv(struct vm *v, struct got *g, int64_t ms)
{
    while (vm_raw(v, g, ms)) {
        if (g->type == VM_PING && !v->mute)
            vm_send(v, VM_PONG, 0, 0, g->data.data, g->data.len);
        else if (g->type == VM_PING)
            v->pings++;
        else if (g->type == VM_LOG)
            buf_put(&v->logs, g->data.data + 4, g->data.len - 4);
        else
            return true;
    }
    return false;
}

static UNUSED void vm_put_hello(struct vm *v, struct hello h)
{
    struct buf b = {0};
    const char *key = h.key ? h.key : "";

    buf_put(&b, VM_MAGIC, VM_MAGIC_LEN);
    buf_put_str(&b, v->build, strlen(v->build));
    buf_put_u32(&b, h.heartbeat_ms);
    buf_put_u32(&b, h.dead_ms);
    buf_put_u32(&b, h.grace_ms ? h.grace_ms : 250);
    buf_put_u32(&b, key[0] ? VM_HELLO_DURABLE : 0);
    buf_put_str(&b, key, strlen(key));
    buf_put_u32(&b, h.keep_ms ? h.keep_ms : 60000);
    vm_send(v, VM_HELLO, 0, 0, b.data, b.len);
    buf_free(&b);
}

static UNUSED void vm_start(struct vm *v, struct hello h)
{
    int in[2], out[2];
    struct got g = {0};
    const char *words = getenv("EXEDEV_VM"); /* a program, with qemu's name before it perhaps */

    *v = (struct vm){0};
    assert_non_null(words);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    v->pid = fork();
    if (v->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        char *argv[8], *copy = xstrdup(words);
        int n = 0;
        for (char *w; n < 5 && (w = strsep(&copy, " "));)
            argv[n++] = w;
        argv[n++] = (char *)"serve";
        argv[n++] = (char *)h.key;
        argv[n] = NULL;
        execv(argv[0], argv);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    v->in = in[1];
    v->out = out[0];
    assert_true(vm_raw(v, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_HELLO);
    struct cursor c = {.p = (unsigned char *)g.data.data, .left = g.data.len};
    assert_memory_equal(cursor_bytes(&c, VM_MAGIC_LEN), VM_MAGIC, VM_MAGIC_LEN);
    cleanup_free char *build = cursor_strdup(&c, sizeof v->build - 1);
    strcpy(v->build, build);
    v->helper_pid = cursor_u32(&c);
    v->home = cursor_strdup(&c, 4096);
    v->user = cursor_strdup(&c, 4096);
    v->dir = cursor_strdup(&c, 4096);
    v->flags = cursor_u32(&c);
    assert_false(c.bad);
    assert_int_equal(c.left, 0);
    got_free(&g);
    if (!h.no_hello)
        vm_put_hello(v, h);
}

/* The exit status once the helper has ended; 1000 + signal for a killed one. */
static UNUSED int vm_reap(struct vm *v)
{
    int status;

    for (struct deadline d = deadline_in(PATIENCE_MS); waitpid(v->pid, &status, WNOHANG) == 0;) {
        assert_false(deadline_passed(d));
        deadline_sleep(d, 5);
    }
    return WIFSIGNALED(status) ? 1000 + WTERMSIG(status) : WEXITSTATUS(status);
}

static UNUSED void vm_free(struct vm *v)
{
    if (v->in >= 0)
        close(v->in);
    close(v->out);
    buf_free(&v->rx);
    buf_free(&v->logs);
    free(v->home);
    free(v->user);
    free(v->dir);
}

static UNUSED int vm_close(struct vm *v)
{
    if (v->in >= 0)
        close(v->in);
    v->in = -1;
    int status = vm_reap(v);
    vm_free(v);
    return status;
}

struct want {
    const char *const *argv;
    uint8_t kind;
    uint32_t flags, timeout_ms, credit;
    bool no_credit;
    uint16_t rows, cols;
    const char *marker, *cwd;
    const char *const *env;
};

#define ARGS(...) ((const char *const[]){__VA_ARGS__, NULL})
#define SH(script) ARGS("sh", "-c", script)

static UNUSED void put_strings(struct buf *b, const char *const *v)
{
    uint32_t n = 0;

    while (v && v[n])
        n++;
    buf_put_u32(b, n);
    for (uint32_t i = 0; i < n; i++)
        buf_put_str(b, v[i], strlen(v[i]));
}

static UNUSED void put_request(struct buf *b, struct want w)
{
    const char *marker = w.marker ? w.marker : "test", *cwd = w.cwd ? w.cwd : "";

    buf_put_u8(b, w.kind);
    buf_put_u32(b, w.flags);
    buf_put_u32(b, w.timeout_ms);
    buf_put_u32(b, w.no_credit ? 0 : w.credit ? w.credit : 1u << 20);
    buf_put_u16(b, w.rows);
    buf_put_u16(b, w.cols);
    buf_put_str(b, marker, strlen(marker));
    buf_put_str(b, cwd, strlen(cwd));
    put_strings(b, w.argv);
    put_strings(b, w.env);
}

static UNUSED uint32_t vm_open(struct vm *v, struct want w)
{
    struct buf b = {0};
    uint32_t id = ++v->next;
    size_t at = 0;

    put_request(&b, w);
    do {
        size_t n = b.len - at < VM_MAX_PAYLOAD ? b.len - at : VM_MAX_PAYLOAD;
        vm_send(v, VM_OPEN, at + n < b.len ? VM_OPEN_MORE : VM_OPEN_LAST, id, b.data + at, n);
        at += n;
    } while (at < b.len);
    buf_free(&b);
    return id;
}

struct result {
    struct buf out[3]; /* [1], [2] */
    bool eof[3], failed;
    uint32_t status, signal, flags, code, pid;
    char *message;
};

static UNUSED void result_free(struct result *r)
{
    buf_free(&r->out[1]);
    buf_free(&r->out[2]);
    free(r->message);
    *r = (struct result){0};
}

#define cleanup_result __attribute__((cleanup(result_free)))

/* Takes one frame of the stream in; true when it was the last. */
static UNUSED bool result_take(struct result *r, struct got *g)
{
    struct cursor c = {.p = (unsigned char *)g->data.data, .left = g->data.len};

    switch (g->type) {
    case VM_STARTED:
        r->pid = cursor_u32(&c);
        return false;
    case VM_DATA:
        assert_in_range(g->channel, 1, 2);
        assert_false(r->eof[g->channel]);
        assert_true(g->data.len > 0);
        buf_put(&r->out[g->channel], g->data.data, g->data.len);
        return false;
    case VM_EOF:
        assert_false(r->eof[g->channel]);
        r->eof[g->channel] = true;
        return false;
    case VM_EXIT:
        r->status = cursor_u32(&c);
        r->signal = cursor_u32(&c);
        r->flags = cursor_u32(&c);
        assert_int_equal(c.left, 24);
        return true;
    case VM_FAIL:
        r->failed = true;
        r->code = cursor_u32(&c);
        r->message = cursor_strdup(&c, VM_MAX_MESSAGE);
        assert_false(c.bad);
        return true;
    default:
        return false;
    }
}

/* Waits for that stream's end. Output is granted again as it comes. */
static UNUSED void vm_wait(struct vm *v, uint32_t id, struct result *r)
{
    struct got g = {0};

    for (;;) {
        assert_true(vm_recv(v, &g, PATIENCE_MS));
        if (g.stream != id)
            continue;
        bool last = result_take(r, &g);
        if (g.type == VM_DATA)
            vm_send_u32s(v, VM_CREDIT, g.channel, id, 1, (uint32_t)g.data.len);
        if (last)
            break;
    }
    got_free(&g);
}

static UNUSED void vm_run(struct vm *v, struct want w, struct result *r)
{
    vm_wait(v, vm_open(v, w), r);
}

/* The text of stdout, NUL-terminated. */
static UNUSED const char *text(struct result *r)
{
    buf_reserve(&r->out[1], 1)[0] = 0;
    return r->out[1].data;
}

static UNUSED void wait_started(struct vm *v, uint32_t id, struct result *r)
{
    struct got g = {0};

    while (!r->pid) {
        assert_true(vm_recv(v, &g, PATIENCE_MS));
        if (g.stream == id)
            assert_false(result_take(r, &g));
    }
    got_free(&g);
}

/* Until the stream's stdout holds that text. */
static UNUSED void wait_text(struct vm *v, uint32_t id, struct result *r, const char *what)
{
    struct got g = {0};

    while (!strstr(text(r), what)) {
        assert_true(vm_recv(v, &g, PATIENCE_MS));
        if (g.stream == id)
            assert_false(result_take(r, &g));
    }
    got_free(&g);
}

/* A zombie does not count: whoever has to reap it may be slow. */
static UNUSED bool alive(pid_t pid)
{
    cleanup_free char *path = xasprintf("/proc/%d/stat", (int)pid);
    cleanup_buf struct buf b = {0};

    if (!io_read_file(path, 4096, &b, NULL))
        return false;
    const char *paren = strrchr(b.data, ')');
    return paren && paren[2] != 'Z' && paren[2] != 'X';
}

/* Waits until it is. */
static UNUSED bool gone(pid_t pid)
{
    struct deadline d = deadline_in(PATIENCE_MS);

    while (alive(pid)) {
        if (deadline_passed(d))
            return false;
        deadline_sleep(d, 10);
    }
    return true;
}

/* A file of the test's home that holds a pid, once a command has written it. */
static UNUSED pid_t pid_in(const char *name)
{
    cleanup_free char *path = home_path(name);

    for (struct deadline d = deadline_in(PATIENCE_MS); !deadline_passed(d); deadline_sleep(d, 10)) {
        cleanup_buf struct buf b = {0};
        if (io_read_file(path, 4096, &b, NULL) && b.len && b.data[b.len - 1] == '\n')
            return (pid_t)atoi(b.data);
    }
    fail_msg("no pid in %s", path);
    return -1;
}

#endif
