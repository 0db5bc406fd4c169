/* exedev-vm: commands, credit, stdin, terminals, the heartbeat. */
#include "vm_client.h"

#include <sys/resource.h>

static void greets_first(void **state)
{
    (void)state;
    struct vm v;
    struct stat st;

    vm_start(&v, (struct hello){0});
    assert_string_equal(v.home, test_home);
    assert_true(v.user[0]);
    assert_int_equal(v.helper_pid, v.pid);
    assert_int_equal(!!(v.flags & VM_HELLO_ROOT), geteuid() == 0);
    assert_int_equal(strlen(v.build), 32);
    cleanup_free char *dir = home_path(".cache/exedev");
    assert_string_equal(v.dir, dir);
    assert_int_equal(stat(dir, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    vm_send(&v, VM_BYE, 0, 0, NULL, 0);
    struct got g = {0};
    assert_true(vm_recv(&v, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_BYE);
    assert_int_equal(vm_close(&v), 0);
    got_free(&g);
}

static void reports_status_output_and_signal(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = SH("echo out; echo err >&2; exit 3")}, &r);
    assert_string_equal(text(&r), "out\n");
    assert_memory_equal(r.out[2].data, "err\n", 4);
    assert_int_equal(r.status, 3);
    assert_int_equal(r.signal, 0);
    assert_int_equal(r.flags, 0);
    assert_true(r.eof[1] && r.eof[2]);
    result_free(&r);
    vm_run(&v, (struct want){.argv = SH("kill -SEGV $$")}, &r);
    assert_int_equal(r.signal, SIGSEGV);
    assert_int_equal(r.flags, 0);
    result_free(&r);
    vm_run(&v, (struct want){.argv = SH("echo a; echo b >&2"), .flags = VM_OPEN_MERGE}, &r);
    assert_string_equal(text(&r), "a\nb\n");
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("printf", "%s|", "", "a b", "'\"$x\\", "\n", "-n")}, &r);
    assert_string_equal(text(&r), "|a b|'\"$x\\|\n|-n|");
    assert_int_equal(vm_close(&v), 0);
}

static void says_why_a_command_did_not_run(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    cleanup_free char *script = home_path("script"), *plain = home_path("plain"),
                      *file = home_path("file");

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = ARGS("no-such-command")}, &r);
    assert_true(r.failed);
    assert_int_equal(r.code, ENOENT);
    assert_non_null(strstr(r.message, "no-such-command"));
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("true"), .cwd = "/nonexistent"}, &r);
    assert_int_equal(r.code, ENOENT | VM_FAIL_CWD);
    assert_non_null(strstr(r.message, "/nonexistent"));
    result_free(&r);
    write_home("script", "#!/no/such/interpreter\n");
    chmod(script, 0700);
    vm_run(&v, (struct want){.argv = ARGS(script)}, &r);
    assert_int_equal(r.code, ENOENT);
    assert_non_null(strstr(r.message, "interpreter"));
    result_free(&r);
    write_home("file", "");
    chmod(file, 0600);
    vm_run(&v, (struct want){.argv = ARGS(file)}, &r);
    assert_int_equal(r.code, EACCES);
    result_free(&r);
    /* A script without a first line is the shell's, as with execvp(3). */
    write_home("plain", "echo \"$0 $1\"\n");
    chmod(plain, 0700);
    vm_run(&v, (struct want){.argv = ARGS("./plain", "x"), .cwd = test_home}, &r);
    assert_string_equal(text(&r), "./plain x\n");
    result_free(&r);
    vm_run(&v, (struct want){.kind = VM_KIND_BUILTIN, .argv = ARGS("nothing")}, &r);
    assert_int_equal(r.code, ENOENT);
    result_free(&r);
    vm_run(&v, (struct want){.argv = NULL}, &r);
    assert_int_equal(r.code, EINVAL);
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("true"), .env = ARGS("NOVALUE")}, &r);
    assert_int_equal(r.code, EINVAL);
    assert_int_equal(vm_close(&v), 0);
}

static void takes_long_arguments_and_refuses_longer(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    cleanup_free char *longest = filled(VM_MAX_STRING), *longer = filled(VM_MAX_STRING + 1);
    const char *seven[] = {"sh",    "-c",    "echo $(($# - 1)) ${#7}",
                           "0",     longest, longest,
                           longest, longest, longest,
                           longest, longest, NULL};
    const char *nine[] = {"true",  longest, longest, longest, longest, longest,
                          longest, longest, longest, longest, NULL};

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = seven}, &r);
    assert_string_equal(text(&r), "6 131071\n");
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("true", longer)}, &r);
    assert_int_equal(r.code, E2BIG);
    result_free(&r);
    vm_run(&v, (struct want){.argv = nine}, &r);
    assert_int_equal(r.code, E2BIG);
    assert_int_equal(vm_close(&v), 0);
}

static void sets_folder_and_environment(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    setenv("FROM_SESSION", "1", 1);
    setenv("OVER", "below", 1);
    vm_start(&v, (struct hello){0});
    unsetenv("FROM_SESSION");
    unsetenv("OVER");
    vm_run(
        &v,
        (struct want){
            .argv = SH("pwd; echo $FROM_SESSION $OVER $EXEDEV_MARK $EMPTY.; env | grep -c ^OVER="),
            .env = ARGS("OVER=above", "EMPTY=", "EXEDEV_MARK=forged"),
            .marker = "lease-7"},
        &r);
    cleanup_free char *want = xasprintf("%s\n1 above lease-7 .\n1\n", test_home);
    assert_string_equal(text(&r), want);
    result_free(&r);
    /* PATH of the resulting environment decides. */
    write_home("here", "#!/bin/sh\necho found\n");
    cleanup_free char *here = home_path("here"),
                      *path = xasprintf("PATH=/nonexistent:%s:/bin", test_home);
    chmod(here, 0700);
    vm_run(&v, (struct want){.argv = ARGS("here"), .env = (const char *const[]){path, NULL}}, &r);
    assert_string_equal(text(&r), "found\n");
    result_free(&r);
    /* Nothing of the helper's own is open in a command, and its signals are as they should be. */
    vm_run(&v,
           (struct want){
               .argv = SH("ls /proc/self/fd | wc -l; grep -E 'SigIgn|SigBlk' /proc/self/status")},
           &r);
    assert_string_equal(text(&r), "4\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
    assert_int_equal(vm_close(&v), 0);
}

static void stdin_ends_where_it_should(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    uint32_t id = vm_open(&v, (struct want){.argv = ARGS("cat")});
    vm_send(&v, VM_DATA, VM_STDIN, id, "a\0b", 3);
    vm_send(&v, VM_EOF, VM_STDIN, id, NULL, 0);
    vm_wait(&v, id, &r);
    assert_int_equal(r.out[1].len, 3);
    assert_memory_equal(r.out[1].data, "a\0b", 3);
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("cat"), .flags = VM_OPEN_NO_STDIN}, &r);
    assert_int_equal(r.status, 0);
    result_free(&r);
    id = vm_open(&v, (struct want){.argv = ARGS("cat")});
    vm_send(&v, VM_CLOSE_IN, 0, id, NULL, 0);
    vm_wait(&v, id, &r);
    assert_int_equal(r.status, 0);
    assert_int_equal(vm_close(&v), 0);
}

/* Sends n bytes as credit allows until the stream ends. */
static size_t feed(struct vm *v, uint32_t id, size_t n, struct result *r)
{
    size_t credit = VM_STDIN_CREDIT, sent = 0;
    cleanup_free char *block = filled(VM_MAX_PAYLOAD);
    struct got g = {0};

    for (;;) {
        while (credit && sent < n) {
            size_t m = credit < VM_MAX_PAYLOAD ? credit : VM_MAX_PAYLOAD;
            m = m < n - sent ? m : n - sent;
            vm_send(v, VM_DATA, VM_STDIN, id, block, m);
            sent += m;
            credit -= m;
            if (sent == n)
                vm_send(v, VM_EOF, VM_STDIN, id, NULL, 0);
        }
        assert_true(vm_recv(v, &g, PATIENCE_MS));
        struct cursor c = {.p = (unsigned char *)g.data.data, .left = g.data.len};
        if (g.type == VM_CREDIT && g.stream == id && g.channel == VM_STDIN)
            credit += cursor_u32(&c);
        else if (g.stream == id && result_take(r, &g))
            break;
    }
    got_free(&g);
    return sent;
}

static void stdin_that_nobody_reads_blocks_nothing(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0}, quick = {0}, all = {0};

    vm_start(&v, (struct hello){0});
    uint32_t deaf = vm_open(&v, (struct want){.argv = ARGS("sleep", "1000")});
    cleanup_free char *block = filled(VM_MAX_PAYLOAD);
    vm_send(&v, VM_DATA, VM_STDIN, deaf, block, VM_STDIN_CREDIT);
    vm_run(&v, (struct want){.argv = ARGS("echo", "on")}, &quick);
    assert_string_equal(text(&quick), "on\n");
    vm_send_u32s(&v, VM_KILL, 0, deaf, 2, 0u, (uint32_t)VM_KILL_NOW);
    vm_wait(&v, deaf, &r);
    assert_int_equal(r.signal, SIGKILL);
    result_free(&r);
    /* 50 MB to a command that ends without reading. */
    feed(&v, vm_open(&v, (struct want){.argv = SH("exit 7")}), 50000000, &r);
    assert_int_equal(r.status, 7);
    result_free(&r);
    /* To one that closes its stdin and goes on: all of it is taken, and dropped. */
    assert_int_equal(
        feed(&v, vm_open(&v, (struct want){.argv = SH("exec <&-; sleep 1; exit 8")}), 3000000, &r),
        3000000);
    assert_int_equal(r.status, 8);
    assert_int_equal(feed(&v, vm_open(&v, (struct want){.argv = ARGS("wc", "-c")}), 50000000, &all),
                     50000000);
    assert_int_equal(atol(text(&all)), 50000000);
    assert_int_equal(vm_close(&v), 0);
}

static void output_keeps_to_its_credit(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0}, quiet = {0};
    struct got g = {0};

    vm_start(&v, (struct hello){0});
    uint32_t id =
        vm_open(&v, (struct want){.argv = SH("yes | head -c 1000000; echo done >&2; sleep 0.2"),
                                  .credit = 1000});
    while (r.out[1].len < 1000) {
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        result_take(&r, &g);
    }
    assert_int_equal(r.out[1].len, 1000);
    assert_false(vm_recv(&v, &g, 300)); /* the flood is held, to the byte */
    /* ... and it alone. */
    vm_run(&v, (struct want){.argv = ARGS("echo", "quiet")}, &quiet);
    assert_string_equal(text(&quiet), "quiet\n");
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 1u);
    assert_true(vm_recv(&v, &g, PATIENCE_MS));
    assert_int_equal(g.data.len, 1);
    result_take(&r, &g);
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 2000000u);
    vm_wait(&v, id, &r);
    assert_int_equal(r.out[1].len, 1000000);
    assert_int_equal(r.status, 0);
    got_free(&g);
    assert_int_equal(vm_close(&v), 0);
}

static void exit_waits_for_output_already_written(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    struct got g = {0};

    vm_start(&v, (struct hello){0});
    /* The command is long over when its output may come. A child of its own has the pipe, too. */
    uint32_t id =
        vm_open(&v, (struct want){.argv = SH("head -c 50000 /dev/zero; sleep 1000 & echo $! >pid"),
                                  .no_credit = true});
    assert_true(vm_recv(&v, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_STARTED);
    while (vm_recv(&v, &g, 500))
        assert_int_equal(g.type, VM_EOF); /* of stderr, where nothing was written */
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 100000u);
    vm_wait(&v, id, &r);
    assert_int_equal(r.out[1].len, 50000);
    pid_t pid = pid_in("pid");
    assert_true(alive(pid)); /* background children live on */
    got_free(&g);
    assert_int_equal(vm_close(&v), 0);
    assert_true(alive(pid));
    kill(pid, SIGKILL);
}

static void flood_beside_a_quiet_command(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    uint32_t flood =
        vm_open(&v, (struct want){.argv = ARGS("cat", "/dev/zero"), .credit = VM_MAX_CREDIT});
    wait_started(&v, flood, &r);
    for (int i = 0; i < 20; i++) {
        /* What waits before the quiet command's frames is a pipe and VM_OUT_LOW, not the flood's
         * credit. */
        struct got g = {0};
        uint32_t id = vm_open(&v, (struct want){.argv = ARGS("echo", "quiet")});
        size_t before = 0;
        do {
            assert_true(vm_recv(&v, &g, PATIENCE_MS));
            if (g.stream == flood) {
                before += g.data.len;
                vm_send_u32s(&v, VM_CREDIT, 1, flood, 1, (uint32_t)g.data.len);
            }
        } while (!(g.stream == id && g.type == VM_EXIT));
        got_free(&g);
        assert_true(before < VM_MAX_CREDIT);
    }
    assert_int_equal(vm_close(&v), 0);
}

static void many_at_once(void **state)
{
    (void)state;
    struct vm v;
    struct got g = {0};
    unsigned ended = 0;
    struct rlimit before, few = {100, 4096};

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    few.rlim_max = before.rlim_max;
    setrlimit(RLIMIT_NOFILE, &few); /* what a session starts with is less than it needs */

    vm_start(&v, (struct hello){0});
    setrlimit(RLIMIT_NOFILE, &before);
    for (int i = 0; i < 200; i++)
        vm_open(&v, (struct want){.argv = SH("sleep 0.1; test $(ulimit -n) = 100 && exit 5"),
                                  .flags = VM_OPEN_NO_STDIN});
    while (ended < 200) {
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        struct cursor c = {.p = (unsigned char *)g.data.data, .left = g.data.len};
        assert_int_not_equal(g.type, VM_FAIL);
        if (g.type == VM_EXIT) {
            assert_int_equal(cursor_u32(&c), 5);
            ended++;
        }
    }
    got_free(&g);
    assert_int_equal(vm_close(&v), 0);
}

static void terminal(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    struct want w = {.kind = VM_KIND_PTY, .rows = 30, .cols = 120};

    vm_start(&v, (struct hello){0});
    w.argv = SH("tty; stty size; test -t 2 && echo err; read x; echo got $x; stty size; trap 'exit "
                "9' INT; echo ready; while :; do sleep 0.1; done");
    uint32_t id = vm_open(&v, w);
    wait_text(&v, id, &r, "err");
    assert_non_null(strstr(text(&r), "/dev/pts/"));
    assert_non_null(strstr(text(&r), "30 120"));
    struct buf size = {0};
    buf_put_u16(&size, 50);
    buf_put_u16(&size, 99);
    vm_send(&v, VM_WINCH, 0, id, size.data, size.len);
    buf_free(&size);
    vm_send(&v, VM_DATA, VM_STDIN, id, "hello\r", 6);
    wait_text(&v, id, &r, "ready");
    assert_non_null(strstr(text(&r), "got hello"));
    assert_non_null(strstr(text(&r), "50 99"));
    vm_send_u32s(&v, VM_KILL, 0, id, 2, (uint32_t)SIGINT, (uint32_t)VM_KILL_FOREGROUND);
    vm_wait(&v, id, &r);
    assert_int_equal(r.status, 9);
    assert_int_equal(r.flags & VM_EXIT_KILLED, 0);
    result_free(&r);
    w.argv = SH("stty -echo; echo ready; cat; echo end");
    id = vm_open(&v, w);
    wait_text(&v, id, &r, "ready");
    vm_send(&v, VM_DATA, VM_STDIN, id, "partial", 7);
    vm_send(&v, VM_EOF, VM_STDIN, id, NULL, 0);
    vm_wait(&v, id, &r);
    assert_non_null(strstr(text(&r), "partialend"));
    assert_int_equal(vm_close(&v), 0);
}

static void pings_are_answered_and_silence_is_the_end(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    struct got g = {0};

    vm_start(&v, (struct hello){.heartbeat_ms = 100, .dead_ms = 1500});
    vm_send(&v, VM_PING, 0, 0, "12345678", 8);
    do
        assert_true(vm_raw(&v, &g, PATIENCE_MS));
    while (g.type != VM_PONG);
    assert_memory_equal(g.data.data, "12345678", 8);
    uint32_t id = vm_open(&v, (struct want){.argv = ARGS("sleep", "1000")});
    wait_started(&v, id, &r);
    /* Answering keeps it alive beyond dead_ms. */
    assert_false(vm_recv(&v, &g, 100));
    for (struct deadline d = deadline_in(2500); !deadline_passed(d);)
        vm_recv(&v, &g, 100);
    assert_true(alive((pid_t)r.pid));
    v.mute = true;
    while (vm_recv(&v, &g, PATIENCE_MS))
        ;
    assert_true(v.pings > 0);
    assert_int_equal(vm_reap(&v), 0);
    assert_true(gone((pid_t)r.pid));
    vm_free(&v);
    got_free(&g);
}

static void times_out(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = SH("echo before; sleep 1000"), .timeout_ms = 300}, &r);
    assert_string_equal(text(&r), "before\n");
    assert_int_equal(r.flags, VM_EXIT_KILLED | VM_EXIT_CONFIRMED | VM_EXIT_TIMEOUT);
    assert_int_equal(r.signal, SIGTERM);
    assert_int_equal(vm_close(&v), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)
    const struct CMUnitTest tests[] = {
        TEST(greets_first),
        TEST(reports_status_output_and_signal),
        TEST(says_why_a_command_did_not_run),
        TEST(takes_long_arguments_and_refuses_longer),
        TEST(sets_folder_and_environment),
        TEST(stdin_ends_where_it_should),
        TEST(stdin_that_nobody_reads_blocks_nothing),
        TEST(output_keeps_to_its_credit),
        TEST(exit_waits_for_output_already_written),
        TEST(flood_beside_a_quiet_command),
        TEST(many_at_once),
        TEST(terminal),
        TEST(pings_are_answered_and_silence_is_the_end),
        TEST(times_out),
    };

    /* qemu makes a copy where the kernel shares memory: why an exec failed cannot be seen there. */
    if (strstr(getenv("EXEDEV_VM"), "qemu"))
        cmocka_set_skip_filter("says_why_*");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
