/* The worker's loop driven over pipes, as the host does: lines in, lines out. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/json.h"
#include "rpc/rpc.h"

#define WAIT_MS 120000

struct worker {
    pid_t pid;
    int in, out;
    struct buf got;
    char home[64];
};

static void worker_start(struct worker *w)
{
    int in[2], out[2];

    *w = (struct worker){0};
    strcpy(w->home, "/tmp/exedev-test-rpc-XXXXXX");
    assert_non_null(mkdtemp(w->home));
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    w->pid = fork();
    assert_true(w->pid >= 0);
    if (w->pid == 0) {
        clearenv();
        setenv("PATH", "/usr/bin:/bin", 1);
        setenv("EXEDEV_STATE_DIR", w->home, 1);
        close(in[1]);
        close(out[0]);
        _exit(rpc_serve(in[0], out[1], "test"));
    }
    close(in[0]);
    close(out[1]);
    w->in = in[1];
    w->out = out[0];
}

static void put(struct worker *w, const char *text)
{
    assert_true(io_write_all(w->in, text, strlen(text), deadline_in(WAIT_MS), NULL));
    assert_true(io_write_all(w->in, "\n", 1, deadline_in(WAIT_MS), NULL));
}

/* The next line, or NULL at the end of the stream. Fails the test when neither comes. */
static char *next_line(struct worker *w)
{
    struct deadline d = deadline_in(WAIT_MS);

    for (;;) {
        char *nl = w->got.len ? memchr(w->got.data, '\n', w->got.len) : NULL;
        if (nl) {
            char *line = xstrndup(w->got.data, (size_t)(nl - w->got.data));
            buf_drop(&w->got, (size_t)(nl - w->got.data) + 1);
            return line;
        }
        struct pollfd p = {.fd = w->out, .events = POLLIN};
        assert_int_equal(poll(&p, 1, deadline_poll(d)), 1);
        ssize_t n = read(w->out, buf_reserve(&w->got, 65536), 65536);
        assert_true(n >= 0);
        if (n == 0)
            return NULL;
        w->got.len += (size_t)n;
    }
}

static json_t *answer(struct worker *w)
{
    for (;;) {
        cleanup_free char *line = next_line(w);
        assert_non_null(line);
        cleanup_error struct error err = {0};
        json_t *j = json_parse(line, strlen(line), &err);
        assert_non_null(j);
        if (!json_str(j, "method")) /* not a log notification */
            return j;
        json_decref(j);
    }
}

static json_t *call(struct worker *w, const char *text)
{
    put(w, text);
    return answer(w);
}

static void expect_error(struct worker *w, const char *text, int code, int64_t id)
{
    cleanup_json json_t *j = call(w, text);

    assert_int_equal(json_int(json_object_get(j, "error"), "code", 0), code);
    assert_true(strlen(json_str(json_object_get(j, "error"), "message")) > 10);
    if (id < 0)
        assert_true(json_is_null(json_object_get(j, "id")));
    else
        assert_int_equal(json_int(j, "id", -5), id);
}

static void expect_alive(struct worker *w)
{
    cleanup_json json_t *j =
        call(w, "{\"jsonrpc\":\"2.0\",\"id\":\"alive\",\"method\":\"health\",\"params\":{}}");

    assert_string_equal(json_str(j, "id"), "alive");
    assert_string_equal(json_str(json_object_get(j, "result"), "status"), "ok");
}

/* The worker ends by itself, in good time, with that status. */
static void expect_end(struct worker *w, int status)
{
    struct deadline d = deadline_in(4000);
    int got = -1;

    while (waitpid(w->pid, &got, WNOHANG) == 0) {
        assert_false(deadline_passed(d));
        deadline_sleep(d, 5);
    }
    assert_true(WIFEXITED(got));
    assert_int_equal(WEXITSTATUS(got), status);
}

static void worker_clear(struct worker *w)
{
    cleanup_free char *rm = xasprintf("rm -rf '%s'", w->home);

    buf_free(&w->got);
    assert_int_equal(system(rm), 0);
}

static void worker_stop(struct worker *w)
{
    if (w->in >= 0)
        close(w->in);
    expect_end(w, 0);
    close(w->out);
    worker_clear(w);
}

static void test_initialize(void **state)
{
    struct worker w;
    bool execute = false;

    (void)state;
    worker_start(&w);
    cleanup_json json_t *j = call(&w, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\","
                                      "\"params\":{\"manifest\":{},\"config\":{}}}");
    assert_int_equal(json_int(j, "id", 0), 1);
    json_t *r = json_object_get(j, "result"), *m;
    assert_true(json_bool(r, "ok"));
    size_t i;
    json_array_foreach (json_object_get(r, "supportedMethods"), i, m) {
        const struct rpc_method *known = rpc_method_find(json_string_value(m));
        assert_non_null(known);
        assert_non_null(known->run);
        execute = execute || strcmp(json_string_value(m), "environmentExecute") == 0;
    }
    assert_true(execute);
    expect_alive(&w);
    worker_stop(&w);
}

static void test_bad_lines(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
    expect_error(&w, "{broken", RPC_PARSE, -1);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":1", RPC_PARSE, -1);
    expect_error(&w, "\xff\xfe{}", RPC_PARSE, -1);
    expect_error(&w, "[]", RPC_REQUEST, -1);
    expect_error(&w, "3", RPC_REQUEST, -1);
    expect_error(&w, "{\"id\":4,\"method\":\"health\"}", RPC_REQUEST, 4);
    expect_error(&w, "{\"jsonrpc\":\"1.0\",\"id\":4,\"method\":\"health\"}", RPC_REQUEST, 4);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":4,\"method\":7}", RPC_REQUEST, 4);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"health\"}", RPC_REQUEST, -1);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"noSuchThing\"}",
                 RPC_UNKNOWN_METHOD, 5);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"\\ud800x\\udc00\"}",
                 RPC_UNKNOWN_METHOD, 5);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":6,\"method\":\"runJob\",\"params\":{}}",
                 RPC_NOT_IMPLEMENTED, 6);
    expect_error(&w, "{\"jsonrpc\":\"2.0\",\"id\":7,\"method\":\"health\",\"params\":[1]}",
                 RPC_PARAMS, 7);
    /* Blank lines, notifications and answers to nothing are no errors and get none. */
    put(&w, "");
    put(&w, "\r");
    put(&w, "{\"jsonrpc\":\"2.0\",\"method\":\"onEvent\",\"params\":{}}");
    put(&w, "{\"jsonrpc\":\"2.0\",\"method\":\"neverHeardOf\"}");
    put(&w, "{\"jsonrpc\":\"2.0\",\"id\":9,\"result\":null}");
    expect_alive(&w);
    worker_stop(&w);
}

static void test_deep(void **state)
{
    struct worker w;
    cleanup_buf struct buf b = {0};

    (void)state;
    worker_start(&w);
    buf_puts(&b, "{\"jsonrpc\":\"2.0\",\"id\":11,\"method\":\"health\",\"params\":{\"a\":");
    for (int i = 0; i < 100000; i++)
        buf_putc(&b, '[');
    for (int i = 0; i < 100000; i++)
        buf_putc(&b, ']');
    buf_puts(&b, "}}");
    expect_error(&w, b.data, RPC_REQUEST, 11);
    /* Brackets inside a string are no depth. */
    b.len = 0;
    buf_puts(&b, "{\"jsonrpc\":\"2.0\",\"id\":12,\"method\":\"health\",\"params\":{\"a\":\"\\\"");
    for (int i = 0; i < 100000; i++)
        buf_putc(&b, '[');
    buf_puts(&b, "\"}}");
    cleanup_json json_t *j = call(&w, b.data);
    assert_int_equal(json_int(j, "id", 0), 12);
    assert_non_null(json_object_get(j, "result"));
    worker_stop(&w);
}

static long peak_kib(pid_t pid)
{
    cleanup_free char *path = xasprintf("/proc/%d/status", (int)pid);
    cleanup_file FILE *f = fopen(path, "re");
    char line[256];
    long kib = -1;

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %ld", &kib) == 1)
            break;
    return kib;
}

static void test_huge_line(void **state)
{
    struct worker w;
    cleanup_free char *part = xmalloc(1 << 20);

    (void)state;
    worker_start(&w);
    memset(part, 'x', 1 << 20);
    static const char head[] =
        "{\"jsonrpc\":\"2.0\",\"id\":77,\"method\":\"health\",\"params\":{\"a\":\"";
    assert_true(io_write_all(w.in, head, strlen(head), deadline_in(WAIT_MS), NULL));
    for (int i = 0; i < 140; i++)
        assert_true(io_write_all(w.in, part, 1 << 20, deadline_in(WAIT_MS), NULL));
    expect_error(&w, "\"}}", RPC_REQUEST, 77);
    expect_alive(&w);
#ifdef __SANITIZE_ADDRESS__ /* which keeps freed memory for a while */
    const long most_kib = 1024 << 10;
#else
    const long most_kib = 320 << 10;
#endif
    assert_in_range(peak_kib(w.pid), 1, most_kib);
    /* One of 100 MB is taken. */
    assert_true(io_write_all(w.in, head, strlen(head), deadline_in(WAIT_MS), NULL));
    for (int i = 0; i < 100; i++)
        assert_true(io_write_all(w.in, part, 1 << 20, deadline_in(WAIT_MS), NULL));
    cleanup_json json_t *j = call(&w, "\"}}");
    assert_int_equal(json_int(j, "id", 0), 77);
    assert_non_null(json_object_get(j, "result"));
    worker_stop(&w);
}

static void test_params(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
#define CALL(method, params)                                                                       \
    "{\"jsonrpc\":\"2.0\",\"id\":3,\"method\":\"" method "\",\"params\":{" params "}}"
    expect_error(&w, CALL("environmentValidateConfig", ""), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentValidateConfig", "\"config\":[]"), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentAcquireLease", ""), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentAcquireLease", "\"config\":{},\"runId\":7"), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentResumeLease", "\"config\":{}"), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentResumeLease", "\"config\":{},\"providerLeaseId\":\"\""),
                 RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{}"), RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\\u0000b\""),
                 RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"args\":{}"),
                 RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"args\":[1]"),
                 RPC_PARAMS, 3);
    expect_error(
        &w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"env\":{\"A B\":\"x\"}"),
        RPC_PARAMS, 3);
    expect_error(
        &w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"env\":{\"1A\":\"x\"}"),
        RPC_PARAMS, 3);
    expect_error(
        &w,
        CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"env\":{\"A\":\"x\\u0000\"}"),
        RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"stdin\":5"),
                 RPC_PARAMS, 3);
    expect_error(&w, CALL("environmentExecute", "\"config\":{},\"command\":\"a\",\"lease\":5"),
                 RPC_PARAMS, 3);
    expect_error(&w,
                 CALL("environmentRunnerIngressEndpoint",
                      "\"config\":{},\"lease\":{\"providerLeaseId\":\"a\"}"),
                 RPC_PARAMS, 3);
    /* A lease id that could be an option, or anything but a name, reaches neither API nor ssh. */
    expect_error(
        &w,
        CALL("environmentDestroyLease",
             "\"config\":{\"apiKey\":\"k123456\"},\"providerLeaseId\":\"-oProxyCommand=x\""),
        RPC_WORKER, 3);
    expect_error(&w,
                 CALL("environmentExecute", "\"config\":{\"apiKey\":\"k123456\"},\"command\":\"a\","
                                            "\"lease\":{\"providerLeaseId\":\"a b\"}"),
                 RPC_WORKER, 3);
    worker_stop(&w);
}

static void test_without_lease(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
    cleanup_json json_t *a =
        call(&w, CALL("environmentReleaseLease", "\"config\":{},\"providerLeaseId\":null"));
    assert_true(json_is_null(json_object_get(a, "result")));
    cleanup_json json_t *b = call(&w, CALL("environmentDestroyLease", "\"config\":{}"));
    assert_true(json_is_null(json_object_get(b, "result")));
    cleanup_json json_t *c =
        call(&w, CALL("environmentExecute",
                      "\"config\":{},\"command\":\"ls\",\"lease\":{\"providerLeaseId\":null}"));
    json_t *r = json_object_get(c, "result");
    assert_int_equal(json_int(r, "exitCode", 9), 1);
    assert_true(strstr(json_str(r, "stderr"), "no lease") != NULL);
    cleanup_json json_t *d = call(&w, CALL("environmentRealizeWorkspace",
                                           "\"config\":{},\"lease\":{},\"workspace\":{"
                                           "\"remotePath\":\"/r\",\"localPath\":\"/l\"}"));
    assert_string_equal(json_str(json_object_get(d, "result"), "cwd"), "/r");
    worker_stop(&w);
}

static void test_separators(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
    put(&w, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\\u2028b\\u2029c\"}");
    cleanup_free char *line = next_line(&w);
    assert_null(strstr(line, "\xe2\x80\xa8"));
    assert_null(strstr(line, "\xe2\x80\xa9"));
    assert_non_null(strstr(line, "-32601"));
    worker_stop(&w);
}

/* A server that takes connections and never answers. */
static int silent_server(int *port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(fd, 64), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &n), 0);
    *port = ntohs(a.sin_port);
    return fd;
}

static void start_hanging_call(struct worker *w, int port)
{
    cleanup_free char *text =
        xasprintf("{\"jsonrpc\":\"2.0\",\"id\":50,\"method\":\"environmentAcquireLease\","
                  "\"params\":{\"config\":{\"apiKey\":"
                  "\"secret-key-123\",\"apiUrl\":\"http://127.0.0.1:%d/"
                  "exec\",\"timeoutMs\":60000},\"environmentId\":\"e\","
                  "\"runId\":\"r\"}}",
                  port);
    put(w, text);
}

static void test_slow_call_delays_none(void **state)
{
    struct worker w;
    int port;
    cleanup_fd int server = silent_server(&port);

    (void)state;
    (void)server;
    worker_start(&w);
    for (int i = 0; i < 20; i++)
        start_hanging_call(&w, port);
    for (int i = 0; i < 20; i++)
        expect_alive(
            &w);     /* answer() would fail on a line of the hanging call: none may come first */
    worker_stop(&w); /* the end of stdin cuts them off */
}

static void test_shutdown(void **state)
{
    struct worker w;
    int port;
    cleanup_fd int server = silent_server(&port);
    bool cut_off = false;

    (void)state;
    (void)server;
    worker_start(&w);
    start_hanging_call(&w, port);
    expect_alive(&w);
    put(&w, "{\"jsonrpc\":\"2.0\",\"id\":99,\"method\":\"shutdown\",\"params\":{}}");
    for (;;) { /* the answer to shutdown is the last line */
        cleanup_json json_t *j = answer(&w);
        if (json_int(j, "id", 0) == 99) {
            assert_true(json_is_null(json_object_get(j, "result")));
            assert_null(json_object_get(j, "error"));
            break;
        }
        assert_int_equal(json_int(j, "id", 0), 50);
        assert_non_null(json_object_get(j, "error"));
        cut_off = true;
    }
    assert_true(cut_off);
    assert_null(next_line(&w));
    worker_stop(&w);
}

static void test_sigterm(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
    expect_alive(&w);
    kill(w.pid, SIGTERM);
    worker_stop(&w);
}

static void test_host_stops_reading(void **state)
{
    struct worker w;

    (void)state;
    worker_start(&w);
    expect_alive(&w);
    close(w.out);
    put(&w, "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"health\"}");
    expect_end(&w, 0);
    close(w.in);
    worker_clear(&w);
}

static void test_many(void **state)
{
    struct worker w;
    bool seen[3000] = {0};

    (void)state;
    worker_start(&w);
    for (int i = 0; i < 3000; i += 100) {
        for (int k = i; k < i + 100; k++) {
            cleanup_free char *text = xasprintf(
                "{\"jsonrpc\":\"2.0\",\"id\":%d,\"method\":\"environmentExecute\",\"params\":"
                "{\"config\":{},\"command\":\"x\"}}",
                k);
            put(&w, text);
        }
        for (int k = i; k < i + 100; k++) {
            cleanup_json json_t *j = answer(&w);
            int64_t id = json_int(j, "id", -1);
            assert_in_range(id, i, i + 99);
            assert_false(seen[id]);
            seen[id] = true;
            assert_int_equal(json_int(json_object_get(j, "result"), "exitCode", 0), 1);
        }
    }
    worker_stop(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_initialize),
        cmocka_unit_test(test_bad_lines),
        cmocka_unit_test(test_deep),
        cmocka_unit_test(test_huge_line),
        cmocka_unit_test(test_params),
        cmocka_unit_test(test_without_lease),
        cmocka_unit_test(test_separators),
        cmocka_unit_test(test_slow_call_delays_none),
        cmocka_unit_test(test_shutdown),
        cmocka_unit_test(test_sigterm),
        cmocka_unit_test(test_host_stops_reading),
        cmocka_unit_test(test_many),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
