/* The client's side of PROTOCOL.vm against helpers that lie. This program is also the helper: run
 * as "test-link --helper MODE" by the link under test, over a socket like ssh's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/vmproto.h"
#include "lib/command.h"
#include "lib/link.h"
#include "vm/blob.h"

/* ---- the helper ---- */

static void out(const void *p, size_t n)
{
    if (!io_write_all(1, p, n, DEADLINE_NEVER, NULL))
        exit(3);
}

static void text(const char *s)
{
    out(s, strlen(s));
}

static void raw_frame(uint32_t len, int type, int channel, int reserved, uint32_t stream,
                      const void *p, size_t n)
{
    cleanup_buf struct buf b = {0};

    buf_put_u32(&b, len);
    buf_put_u8(&b, (uint8_t)type);
    buf_put_u8(&b, (uint8_t)channel);
    buf_put_u16(&b, (uint16_t)reserved);
    buf_put_u32(&b, stream);
    buf_put(&b, p, n);
    out(b.data, b.len);
}

static void frame(int type, int channel, uint32_t stream, const void *p, size_t n)
{
    raw_frame((uint32_t)n, type, channel, 0, stream, p, n);
}

static void hello(const char *build)
{
    cleanup_buf struct buf b = {0};

    buf_put(&b, VM_MAGIC, VM_MAGIC_LEN);
    buf_put_str(&b, build, strlen(build));
    buf_put_u32(&b, 1);
    buf_put_str(&b, "/home/t", 7);
    buf_put_str(&b, "t", 1);
    buf_put_str(&b, "/run", 4);
    buf_put_u32(&b, VM_HELLO_BASH);
    frame(VM_HELLO, 0, 0, b.data, b.len);
}

static void exit_frame(uint32_t stream, uint32_t status, uint32_t sig)
{
    cleanup_buf struct buf b = {0};

    buf_put_u32(&b, status);
    buf_put_u32(&b, sig);
    buf_put_u32(&b, 0);
    for (int i = 0; i < 3; i++)
        buf_put_u64(&b, 0);
    frame(VM_EXIT, 0, stream, b.data, b.len);
}

/* Reads frames until one of that type; its stream. */
static uint32_t await(int want)
{
    static unsigned char payload[VM_MAX_PAYLOAD];

    for (;;) {
        unsigned char head[VM_HEADER];
        for (size_t at = 0; at < sizeof head;) {
            ssize_t got = read(0, head + at, sizeof head - at);
            if (got <= 0)
                exit(0);
            at += (size_t)got;
        }
        struct cursor c = {.p = head, .left = sizeof head};
        uint32_t len = cursor_u32(&c);
        int type = cursor_u8(&c);
        cursor_u8(&c);
        cursor_u16(&c);
        uint32_t stream = cursor_u32(&c);
        for (size_t at = 0; at < len;) {
            ssize_t got = read(0, payload + at, len - at);
            if (got <= 0)
                exit(0);
            at += (size_t)got;
        }
        if (type == want)
            return stream;
        if (type == VM_BYE) {
            frame(VM_BYE, 0, 0, NULL, 0);
            exit(0);
        }
    }
}

static void serve_politely(const char *answer)
{
    for (;;) {
        uint32_t s = await(VM_OPEN);
        frame(VM_STARTED, 0, s, "\0\0\0\1", 4);
        frame(VM_DATA, VM_STDOUT, s, answer, strlen(answer));
        frame(VM_EOF, VM_STDOUT, s, NULL, 0);
        frame(VM_EOF, VM_STDERR, s, NULL, 0);
        exit_frame(s, 0, 0);
    }
}

/* What a helper that breaks the protocol does once a command was opened. */
static void lie(const char *mode, uint32_t s)
{
    static char zeros[VM_MAX_PAYLOAD];

    if (!strcmp(mode, "too-long"))
        raw_frame(VM_MAX_PAYLOAD + 1, VM_DATA, VM_STDOUT, 0, s, "x", 1);
    else if (!strcmp(mode, "reserved"))
        raw_frame(1, VM_DATA, VM_STDOUT, 1, s, "x", 1);
    else if (!strcmp(mode, "over-credit"))
        for (int i = 0; i < 64; i++)
            frame(VM_DATA, VM_STDOUT, s, zeros, sizeof zeros);
    else if (!strcmp(mode, "other-stream"))
        frame(VM_DATA, VM_STDOUT, s + 1000, "x", 1);
    else if (!strcmp(mode, "stdin-data"))
        frame(VM_DATA, VM_STDIN, s, "x", 1);
    else if (!strcmp(mode, "channel-9"))
        frame(VM_DATA, 9, s, "x", 1);
    else if (!strcmp(mode, "no-data"))
        frame(VM_DATA, VM_STDOUT, s, NULL, 0);
    else if (!strcmp(mode, "after-eof")) {
        frame(VM_EOF, VM_STDOUT, s, NULL, 0);
        frame(VM_DATA, VM_STDOUT, s, "x", 1);
    } else if (!strcmp(mode, "short-exit"))
        frame(VM_EXIT, 0, s, "\0\0\0\0", 4);
    else if (!strcmp(mode, "odd-signal"))
        exit_frame(s, 0, 4000000000u);
    else if (!strcmp(mode, "odd-status"))
        exit_frame(s, 4000000000u, 0);
    else if (!strcmp(mode, "fail-string"))
        frame(VM_FAIL, 0, s, "\0\0\0\2\xff\xff\xff\xff", 8);
    else if (!strcmp(mode, "credit-bomb"))
        frame(VM_CREDIT, VM_STDIN, s, "\xff\xff\xff\xff", 4);
    else if (!strcmp(mode, "credit-sum"))
        for (int i = 0; i < 3; i++)
            frame(VM_CREDIT, VM_STDIN, s, "\x03\xff\xff\xff", 4);
    else if (!strcmp(mode, "ended"))
        frame(VM_ENDED, 0, 0, "\0\0\0\0\0\0\0\0", 8);
    else if (!strcmp(mode, "resumed"))
        frame(VM_RESUMED, 0, 0, "\xff\xff\xff\xff", 4);
    else if (!strcmp(mode, "unknown-type"))
        frame(200, 0, s, NULL, 0);
    else if (!strcmp(mode, "unknown-session-type"))
        frame(200, 0, 0, NULL, 0);
    else if (!strcmp(mode, "log-string"))
        frame(VM_LOG, 0, 0, "\x7f\xff\xff\xff", 4);
    else if (!strcmp(mode, "garbage"))
        for (int i = 0; i < 100; i++)
            text("this is no frame at all, whatever one reads into it; ");
}

static int helper(const char *mode)
{
    signal(SIGPIPE, SIG_DFL);
    if (!strcmp(mode, "onboarding")) {
        text("Welcome!\r\nPlease enter your email address: ");
        pause();
    } else if (!strcmp(mode, "registration")) {
        text("Please complete registration by running: ssh exe.dev\r\n");
        return 1;
    } else if (!strcmp(mode, "fail")) {
        text("motd\nEXEDEV-VM FAIL no folder can execute \x1b[31m\n");
        return 1;
    } else if (!strcmp(mode, "machine")) {
        text("EXEDEV-VM NEED sparc64 /tmp\n");
        pause();
    } else if (!strcmp(mode, "upload")) {
        static char got[16 << 20];
        size_t at = 0;
        text("noise before\nEXEDEV-VM NEED x86_64 /home/t/.cache/exedev\n");
        while (at < exedev_vm_x86_64_size) {
            ssize_t n = read(0, got + at, exedev_vm_x86_64_size - at);
            if (n <= 0)
                return 9;
            at += (size_t)n;
        }
        if (memcmp(got, exedev_vm_x86_64, at))
            return 8;
    } else if (!strcmp(mode, "need-twice")) {
        text("EXEDEV-VM NEED x86_64 /a\nEXEDEV-VM NEED x86_64 /a\n");
        for (char part[65536]; read(0, part, sizeof part) > 0;)
            ;
        return 0;
    } else if (!strcmp(mode, "noise")) {
        for (int i = 0; i < 100000; i++)
            text("a profile that never stops talking, line after line after line\n");
        pause();
    } else if (!strcmp(mode, "one-line")) {
        for (int i = 0; i < 200000; i++)
            text("and never ends its line, never ");
        pause();
    } else if (!strcmp(mode, "wrong-build")) {
        hello("0123");
        pause();
    } else if (!strcmp(mode, "short-hello")) {
        frame(VM_HELLO, 0, 0, VM_MAGIC "\0\0\0\5ab", VM_MAGIC_LEN + 6);
        pause();
    } else if (!strcmp(mode, "long-hello")) {
        raw_frame(10 << 20, VM_HELLO, 0, 0, 0, VM_MAGIC, VM_MAGIC_LEN);
        pause();
    } else if (!strcmp(mode, "bare-magic")) {
        out(VM_MAGIC, VM_MAGIC_LEN);
        pause();
    } else if (!strcmp(mode, "chatty")) {
        for (int i = 0; i < 3000; i++)
            text("Last login: from somewhere, and a profile with \xff\x80 in it\r\n");
        text("and no newline at the end: EXEDEV");
    } else if (!strcmp(mode, "leave")) {
        fputs("kex_exchange_identification: read: Connection reset by peer\n", stderr);
        return 255;
    }
    hello(exedev_vm_build);
    await(VM_HELLO);
    if (!strcmp(mode, "deaf"))
        pause();
    if (!strcmp(mode, "upload") || !strcmp(mode, "chatty") || !strcmp(mode, "polite"))
        serve_politely("ok");
    if (!strcmp(mode, "lookalike"))
        serve_politely("Permission denied (publickey).\nHost key verification failed.\nPlease "
                       "enter your email address:");
    uint32_t s = await(VM_OPEN);
    frame(VM_STARTED, 0, s, "\0\0\0\1", 4);
    frame(VM_DATA, VM_STDOUT, s, "so far", 6);
    if (!strcmp(mode, "die"))
        raise(SIGKILL);
    if (!strcmp(mode, "hang-up"))
        return 0;
    lie(mode, s);
    await(0);
    return 0;
}

/* ---- the tests ---- */

static char *self;

static struct link *link_to(const char *mode, int dead_ms)
{
    const char *const argv[] = {self, "--helper", mode, NULL};
    static int n;
    cleanup_free char *marker = xasprintf("t%d", n++);
    struct link *l = link_get(&(struct link_options){.vm_name = "vm-t",
                                                     .host = "localhost",
                                                     .local_argv = argv,
                                                     .marker = marker,
                                                     .heartbeat_ms = dead_ms ? dead_ms / 3 : 0,
                                                     .dead_ms = dead_ms},
                              NULL);
    assert_non_null(l);
    return l;
}

static void connect_fails(const char *mode, enum error_code code, const char *words)
{
    cleanup_error struct error err = {0};
    struct link *l = link_to(mode, 0);

    if (link_connect(l, deadline_in(20000), NULL, &err))
        fail_msg("%s: connected", mode);
    if (err.code != code || !strstr(err.msg, words))
        fail_msg("%s: %s: %s", mode, error_code_name(err.code), err.msg);
    assert_non_null(strstr(err.msg, "vm-t"));
    for (const char *p = err.msg; *p; p++)
        assert_true((unsigned char)*p >= 0x20);
    link_close(l);
    link_unref(l);
}

static void what_comes_before_hello_is_told_apart(void **state)
{
    (void)state;
    connect_fails("onboarding", ERR_UNREGISTERED, "ssh exe.dev");
    connect_fails("registration", ERR_UNREGISTERED, "ssh exe.dev");
    connect_fails("fail", ERR_UNSUPPORTED, "no folder can execute");
    connect_fails("machine", ERR_UNSUPPORTED, "sparc64");
    connect_fails("need-twice", ERR_PROTOCOL, "second time");
    connect_fails("noise", ERR_PROTOCOL, "profile");
    connect_fails("one-line", ERR_PROTOCOL, "profile");
    connect_fails("wrong-build", ERR_PROTOCOL, "another build");
    connect_fails("short-hello", ERR_PROTOCOL, "HELLO");
    connect_fails("long-hello", ERR_PROTOCOL, "first frame");
    connect_fails("leave", ERR_NETWORK, "connection reset");
}

static void a_bare_magic_is_not_hello(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    struct link *l = link_to("bare-magic", 0);

    assert_false(link_connect(l, deadline_in(300), NULL, &err));
    assert_int_equal(err.code, ERR_TIMEOUT);
    assert_non_null(strstr(err.msg, "timed out"));
    link_close(l);
    link_unref(l);
}

static struct command_result run_with(struct link *l,
                                      bool (*output)(int, const char *, size_t, void *))
{
    static const char *const argv[] = {"true", NULL};
    cleanup_error struct error err = {0};
    struct command_result res;

    assert_true(command_run(l,
                            &(struct command_spec){.argv = argv,
                                                   .text = true,
                                                   .collect = true,
                                                   .output = output,
                                                   .arg = l,
                                                   .timeout_ms = 20000},
                            NULL, &res, &err));
    return res;
}

static struct command_result run(struct link *l)
{
    return run_with(l, NULL);
}

/* A reader that takes nothing more while the connection stands: so no credit is granted again. */
static bool hold_back(int channel, const char *data, size_t len, void *arg)
{
    (void)channel, (void)data, (void)len;
    for (struct deadline d = deadline_in(20000); link_is_up(arg) && !deadline_passed(d);)
        usleep(1000);
    return true;
}

static void noise_and_upload_pass(void **state)
{
    (void)state;
    static const char *const modes[] = {"chatty", "upload", "polite"};

    for (size_t i = 0; i < 3; i++) {
        struct link *l = link_to(modes[i], 0);
        struct command_result res = run(l);
        assert_int_equal(res.transport, ERR_NONE);
        assert_int_equal(res.exit_code, 0);
        assert_string_equal(res.out.data, "ok");
        assert_string_equal(link_facts(l).home, "/home/t");
        command_result_free(&res);
        link_close(l);
        link_unref(l);
    }
}

static void lies_end_the_connection_and_nothing_else(void **state)
{
    (void)state;
    static const char *const modes[] = {"too-long",     "reserved",     "over-credit",
                                        "other-stream", "stdin-data",   "channel-9",
                                        "no-data",      "after-eof",    "short-exit",
                                        "odd-signal",   "odd-status",   "fail-string",
                                        "credit-bomb",  "credit-sum",   "ended",
                                        "resumed",      "unknown-type", "unknown-session-type",
                                        "log-string",   "garbage"};

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        struct link *l = link_to(modes[i], 0);
        struct command_result res = run_with(l, hold_back);
        if (res.transport != ERR_PROTOCOL || res.exit_code != 255)
            fail_msg("%s: code %d, transport %s, %s", modes[i], res.exit_code,
                     error_code_name(res.transport), res.advice ? res.advice : "-");
        if (res.out.len < 6 || memcmp(res.out.data, "so far", 6))
            fail_msg("%s: the output so far is lost", modes[i]);
        assert_non_null(strstr(res.err.data, "exedev: VM vm-t"));
        assert_int_equal(res.err.data[res.err.len - 1], '\n');
        command_result_free(&res);
        assert_false(link_is_up(l));
        link_unref(l);
    }
}

static void a_dead_session_is_a_transport_error(void **state)
{
    (void)state;
    static const char *const modes[] = {"die", "hang-up"};

    for (size_t i = 0; i < 2; i++) {
        struct link *l = link_to(modes[i], 0);
        struct command_result res = run(l);
        assert_int_equal(res.transport, ERR_NETWORK);
        assert_int_equal(res.exit_code, 255);
        assert_non_null(strstr(res.advice, "network"));
        assert_string_equal(res.out.data, "so far");
        command_result_free(&res);
        link_unref(l);
    }
}

static void a_command_may_print_what_ssh_prints(void **state)
{
    (void)state;
    struct link *l = link_to("lookalike", 0);
    struct command_result res = run(l);

    assert_int_equal(res.transport, ERR_NONE);
    assert_int_equal(res.exit_code, 0);
    assert_non_null(strstr(res.out.data, "Permission denied"));
    command_result_free(&res);
    link_close(l);
    link_unref(l);
}

static void silence_is_noticed(void **state)
{
    (void)state;
    struct link *l = link_to("deaf", 300);
    struct command_result res = run(l);

    assert_int_equal(res.transport, ERR_NETWORK);
    assert_non_null(strstr(res.advice, "nothing was heard"));
    command_result_free(&res);
    link_unref(l);
}

static void *connect_one(void *arg)
{
    return (void *)(intptr_t)link_connect(arg, deadline_in(20000), NULL, NULL);
}

static void many_callers_share_one_connection(void **state)
{
    (void)state;
    struct link *l = link_to("polite", 0);
    unsigned before = link_connections_opened();
    pthread_t threads[50];
    void *ok;

    for (int i = 0; i < 50; i++)
        pthread_create(&threads[i], NULL, connect_one, l);
    for (int i = 0; i < 50; i++) {
        pthread_join(threads[i], &ok);
        assert_non_null(ok);
    }
    assert_int_equal(link_connections_opened() - before, 1);
    link_close(l);
    assert_false(link_is_up(l));
    /* and a closed one opens again */
    struct command_result res = run(l);
    assert_int_equal(res.exit_code, 0);
    command_result_free(&res);
    assert_int_equal(link_connections_opened() - before, 2);
    link_close(l);
    link_unref(l);
}

static void *fire_soon(void *arg)
{
    usleep(50000);
    cancel_fire(arg);
    return NULL;
}

/* One who gives up does not take the connection from those who still wait. */
static void connecting_can_be_cancelled(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    struct link *l = link_to("bare-magic", 0);
    struct cancel *c = cancel_new();
    pthread_t thread;

    pthread_create(&thread, NULL, fire_soon, c);
    assert_false(link_connect(l, deadline_in(20000), c, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    pthread_join(thread, NULL);
    cancel_unref(c);
    link_close(l);
    link_unref(l);
}

static void names_that_are_options_are_refused(void **state)
{
    (void)state;
    static const char *const hosts[] = {
        "-oProxyCommand=x", "a b", "a\nb", "a'b", "", "a;b", "$(x)", "a\"b"};
    static const char *const users[] = {"-l", "a b", "a\tb", "x'", "a\nb", "`x`"};

    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        cleanup_error struct error err = {0};
        assert_null(link_get(&(struct link_options){.host = hosts[i]}, &err));
        assert_int_equal(err.code, ERR_INVALID);
    }
    for (size_t i = 0; i < sizeof users / sizeof *users; i++) {
        cleanup_error struct error err = {0};
        assert_null(link_get(&(struct link_options){.host = "h", .user = users[i]}, &err));
        assert_int_equal(err.code, ERR_INVALID);
    }
    cleanup_error struct error err = {0};
    assert_null(link_get(&(struct link_options){.host = "h", .strict = "ask"}, &err));
}

static void the_same_vm_is_the_same_link(void **state)
{
    (void)state;
    struct link_options o = {.host = "h", .user = "u", .marker = "m"};
    struct link *a = link_get(&o, NULL), *b = link_get(&o, NULL);

    assert_ptr_equal(a, b);
    o.user = "v";
    struct link *c = link_get(&o, NULL);
    assert_ptr_not_equal(a, c);
    link_unref(a);
    link_unref(b);
    link_unref(c);
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "--helper"))
        return helper(argv[2]);
    self = realpath("/proc/self/exe", NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_comes_before_hello_is_told_apart),
        cmocka_unit_test(a_bare_magic_is_not_hello),
        cmocka_unit_test(noise_and_upload_pass),
        cmocka_unit_test(lies_end_the_connection_and_nothing_else),
        cmocka_unit_test(a_dead_session_is_a_transport_error),
        cmocka_unit_test(a_command_may_print_what_ssh_prints),
        cmocka_unit_test(silence_is_noticed),
        cmocka_unit_test(many_callers_share_one_connection),
        cmocka_unit_test(connecting_can_be_cancelled),
        cmocka_unit_test(names_that_are_options_are_refused),
        cmocka_unit_test(the_same_vm_is_the_same_link),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(self);
    return failed;
}
