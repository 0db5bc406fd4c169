/* command_run against the real helper, over a socket on this machine. */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/command.h"
#include "link_help.h"

static struct link *vm;

static int setup(void **state)
{
    (void)state;
    vm = local_link((struct link_options){.vm_name = "vm-t", .marker = "test-command"});
    return link_connect(vm, deadline_in(20000), NULL, NULL) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    drop_link(vm);
    return 0;
}

static struct command_result run_spec(struct command_spec spec, struct cancel *cancel)
{
    cleanup_error struct error err = {0};
    struct command_result res;

    spec.text = true;
    spec.collect = true;
    if (!command_run(vm, &spec, cancel, &res, &err))
        fail_msg("refused: %s", err.msg);
    return res;
}

static struct command_result run(const char *script)
{
    const char *const argv[] = {"sh", "-c", script, NULL};

    return run_spec((struct command_spec){.argv = argv, .timeout_ms = 60000}, NULL);
}

static const char *str(const struct buf *b)
{
    return b->data ? b->data : "";
}

static void results_are_the_commands_own(void **state)
{
    (void)state;
    struct command_result r = run("echo out; echo err >&2; exit 7");

    assert_true(r.ran);
    assert_int_equal(r.exit_code, 7);
    assert_string_equal(str(&r.out), "out\n");
    assert_string_equal(str(&r.err), "err\n");
    assert_int_equal(r.transport, ERR_NONE);
    command_result_free(&r);
    r = run("exit 255");
    assert_int_equal(r.exit_code, 255);
    assert_int_equal(r.transport, ERR_NONE);
    command_result_free(&r);
    r = run("kill -SEGV $$");
    assert_int_equal(r.exit_code, 128 + SIGSEGV);
    assert_string_equal(r.signal, "SIGSEGV");
    command_result_free(&r);
}

static void what_cannot_start_says_why(void **state)
{
    (void)state;
    static const char *const none[] = {"no-such-command-here", NULL},
                             *const folder[] = {"/etc", NULL}, *const true_argv[] = {"true", NULL};
    struct command_result r = run_spec((struct command_spec){.argv = none}, NULL);

    assert_false(r.ran);
    assert_int_equal(r.exit_code, 127);
    assert_non_null(strstr(str(&r.err), "no-such-command-here"));
    command_result_free(&r);
    r = run_spec((struct command_spec){.argv = folder}, NULL);
    assert_int_equal(r.exit_code, 126);
    command_result_free(&r);
    r = run_spec((struct command_spec){.argv = true_argv, .cwd = "/no/such/folder"}, NULL);
    assert_false(r.ran);
    assert_int_equal(r.exit_code, 1);
    assert_non_null(strstr(str(&r.err), "/no/such/folder"));
    command_result_free(&r);
}

static void requests_are_checked_first(void **state)
{
    (void)state;
    static const char *const true_argv[] = {"true", NULL};
    static const char *const bad[] = {"1A=x", "A B=x", "=x", "A-B=x", "A", "\xc3\xa9=x"};
    struct command_result r;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_error struct error err = {0};
        const char *const env[] = {bad[i], NULL};
        assert_false(
            command_run(vm, &(struct command_spec){.argv = true_argv, .env = env}, NULL, &r, &err));
        assert_int_equal(err.code, ERR_INVALID);
        command_result_free(&r);
    }
    cleanup_error struct error err = {0};
    cleanup_free char *big = xmalloc(131073);
    memset(big, 'x', 131072);
    big[131072] = 0;
    const char *const argv[] = {"echo", big, NULL};
    assert_false(command_run(vm, &(struct command_spec){.argv = argv}, NULL, &r, &err));
    assert_int_equal(err.code, ERR_TOO_LARGE);
    command_result_free(&r);
}

static void arguments_arrive_as_given(void **state)
{
    (void)state;
    cleanup_free char *big = xmalloc(131072);
    memset(big, 'y', 131071);
    big[131071] = 0;
    static const char odd[] = " a'b\"c\\d$HOME`x`\n\t*?\x01\xff ";
    const char *const argv[] = {"printf", "%s|", odd, "", "-n", big, big, big, NULL};
    const char *const env[] = {"ODD= x=y'\n", NULL};
    struct command_result r;
    struct error err = {0};

    assert_true(command_run(vm, &(struct command_spec){.argv = argv, .env = env, .collect = true},
                            NULL, &r, &err));
    assert_int_equal(r.exit_code, 0);
    size_t n = strlen(odd);
    assert_int_equal(r.out.len, n + 1 + 1 + 3 + 3 * 131072);
    assert_memory_equal(r.out.data, odd, n);
    assert_memory_equal(r.out.data + n, "||-n|yy", 7);
    command_result_free(&r);
    static const char *const show[] = {"sh", "-c", "printf %s \"$ODD\"", NULL};
    r = run_spec((struct command_spec){.argv = show, .env = env}, NULL);
    assert_string_equal(str(&r.out), " x=y'\n");
    command_result_free(&r);
}

static void stdin_that_nobody_reads_is_no_obstacle(void **state)
{
    (void)state;
    size_t n = 50u << 20;
    cleanup_free char *data = xmalloc(n);
    static const char *const leave[] = {"sh", "-c", "exit 7", NULL},
                             *const count[] = {"wc", "-c", NULL},
                             *const closed[] = {"sh", "-c", "exec 0<&-; sleep 0.3; echo done",
                                                NULL};

    memset(data, 'z', n);
    struct command_result r =
        run_spec((struct command_spec){.argv = leave, .stdin_data = data, .stdin_len = n}, NULL);
    assert_int_equal(r.exit_code, 7);
    command_result_free(&r);
    r = run_spec((struct command_spec){.argv = count, .stdin_data = data, .stdin_len = n}, NULL);
    assert_int_equal(strtoul(str(&r.out), NULL, 10), n);
    command_result_free(&r);
    r = run_spec((struct command_spec){.argv = closed, .stdin_data = data, .stdin_len = n}, NULL);
    assert_string_equal(str(&r.out), "done\n");
    command_result_free(&r);
    r = run("cat; echo end"); /* none given: at its end from the start */
    assert_string_equal(str(&r.out), "end\n");
    command_result_free(&r);
}

struct live {
    struct buf got;
    int calls, stop_after;
};

static bool live_output(int channel, const char *data, size_t len, void *arg)
{
    struct live *l = arg;

    if (channel == 1)
        buf_put(&l->got, data, len);
    return ++l->calls != l->stop_after;
}

static void text_is_made_whole_and_streamed(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c",
                                       "printf '\\303'; sleep 0.05; printf '\\251\\342\\202'; "
                                       "sleep 0.05; printf '\\254|\\377|\\360\\237'",
                                       NULL};
    struct live live = {0};
    struct command_result r =
        run_spec((struct command_spec){.argv = argv, .output = live_output, .arg = &live}, NULL);

    assert_string_equal(str(&r.out), "\xc3\xa9\xe2\x82\xac|\xef\xbf\xbd|\xef\xbf\xbd");
    assert_string_equal(str(&live.got), str(&r.out));
    assert_true(live.calls > 1);
    command_result_free(&r);
    buf_free(&live.got);
}

static void output_is_cut_at_the_cap(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "yes '\"' | head -c 100000; echo last >&2",
                                       NULL};
    struct live live = {0};
    struct command_result r = run_spec(
        (struct command_spec){.argv = argv, .cap = 4001, .output = live_output, .arg = &live},
        NULL);

    assert_int_equal(live.got.len, 2000); /* two characters each, once escaped */
    assert_true(r.out.len > 2000);
    assert_memory_equal(r.out.data, live.got.data, 2000);
    assert_non_null(strstr(str(&r.out), "98000 bytes more"));
    assert_string_equal(str(&r.err), "last\n");
    command_result_free(&r);
    buf_free(&live.got);
}

static void a_gigabyte_passes_in_little_memory(void **state)
{
    (void)state;
    static const char *const argv[] = {"head", "-c", "1000000000", "/dev/zero", NULL};
    struct command_result r;
    long before, after, peak;
    FILE *f = fopen("/proc/self/statm", "r");

    assert_int_equal(fscanf(f, "%*d %ld", &before), 1);
    fclose(f);
    assert_true(
        command_run(vm, &(struct command_spec){.argv = argv, .text = true}, NULL, &r, NULL));
    assert_int_equal(r.exit_code, 0);
    command_result_free(&r);
    f = fopen("/proc/self/statm", "r");
    assert_int_equal(fscanf(f, "%*d %ld", &after), 1);
    fclose(f);
    peak = (after - before) * sysconf(_SC_PAGESIZE);
#ifndef __SANITIZE_ADDRESS__ /* which keeps what was freed */
    assert_true(peak < 48 << 20);
#else
    (void)peak;
#endif
}

static bool process_lives(const char *marker)
{
    cleanup_free char *command =
        xasprintf("grep -lzs '^EXEDEV_TEST=%s$' /proc/[0-9]*/environ", marker);
    char line[100] = "";
    FILE *f = popen(command, "r");
    bool any = fgets(line, sizeof line, f) != NULL;

    pclose(f);
    return any;
}

/* A double fork into a new session, TERM ignored everywhere, its output closed. */
#define STUBBORN                                                                                   \
    "trap '' TERM; (setsid sh -c 'trap \"\" TERM; (sleep 300 & wait) & wait' >/dev/null 2>&1 &) "  \
    "& wait; sleep 300"

static void a_timeout_ends_the_whole_tree(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "echo begun; " STUBBORN, NULL},
                             *const env[] = {"EXEDEV_TEST=timeout", NULL};
    struct command_result r =
        run_spec((struct command_spec){.argv = argv, .env = env, .timeout_ms = 400}, NULL);

    assert_true(r.timed_out);
    assert_int_equal(r.exit_code, -1);
    assert_true(r.confirmed);
    assert_string_equal(str(&r.out), "begun\n");
    assert_false(process_lives("timeout"));
    command_result_free(&r);
}

static void *fire_soon(void *arg)
{
    usleep(300000);
    cancel_fire(arg);
    return NULL;
}

static void a_cancel_ends_the_whole_tree_and_no_other(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "echo begun; " STUBBORN, NULL},
                             *const env[] = {"EXEDEV_TEST=cancel", NULL};
    struct cancel *c = cancel_new();
    pthread_t thread;

    struct command_result other = run("(EXEDEV_TEST=other sleep 300 >/dev/null 2>&1 &)");
    assert_int_equal(other.exit_code, 0);
    command_result_free(&other);
    pthread_create(&thread, NULL, fire_soon, c);
    struct command_result r = run_spec((struct command_spec){.argv = argv, .env = env}, c);
    pthread_join(thread, NULL);
    cancel_unref(c);
    assert_true(r.cancelled);
    assert_true(r.confirmed);
    assert_string_equal(str(&r.out), "begun\n");
    assert_false(process_lives("cancel"));
    assert_true(process_lives("other")); /* a background child of a normal exit lives on */
    command_result_free(&r);
    assert_true(link_end_all(vm, deadline_in(10000), NULL));
    assert_false(process_lives("other"));
}

static void an_output_callback_can_stop_it(void **state)
{
    (void)state;
    static const char *const argv[] = {"yes", NULL};
    struct live live = {.stop_after = 3};
    struct command_result r =
        run_spec((struct command_spec){.argv = argv, .output = live_output, .arg = &live}, NULL);

    assert_true(r.cancelled);
    assert_int_equal(live.calls, 3);
    command_result_free(&r);
    buf_free(&live.got);
}

static void *run_numbered(void *arg)
{
    cleanup_free char *script = xasprintf("read x; echo $x; exit %d", (int)(intptr_t)arg % 200);
    cleanup_free char *in = xasprintf("%d\n", (int)(intptr_t)arg);
    const char *const argv[] = {"sh", "-c", script, NULL};
    struct command_result r = run_spec(
        (struct command_spec){
            .argv = argv, .stdin_data = in, .stdin_len = strlen(in), .timeout_ms = 60000},
        NULL);
    bool ok = r.exit_code == (int)(intptr_t)arg % 200 && !strcmp(str(&r.out), in);

    command_result_free(&r);
    return ok ? NULL : arg;
}

static void many_at_once_do_not_mix(void **state)
{
    (void)state;
    pthread_t threads[200];
    pthread_attr_t attr;
    unsigned before = link_connections_opened();

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    for (intptr_t i = 0; i < 200; i++)
        assert_int_equal(pthread_create(&threads[i], &attr, run_numbered, (void *)(i + 1)), 0);
    for (int i = 0; i < 200; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        assert_null(wrong);
    }
    assert_int_equal(link_connections_opened(), before);
}

static bool stall(int channel, const char *data, size_t len, void *arg)
{
    (void)channel;
    (void)data;
    (void)len;
    while (!cancel_fired(arg))
        usleep(1000);
    return true;
}

static void *run_stalled(void *arg)
{
    static const char *const argv[] = {"sh", "-c", "yes | head -c 20000000", NULL};
    struct command_result r;

    command_run(vm, &(struct command_spec){.argv = argv, .output = stall, .arg = arg}, NULL, &r,
                NULL);
    intptr_t code = r.exit_code;
    command_result_free(&r);
    return (void *)code;
}

static void a_reader_that_stalls_holds_up_only_itself(void **state)
{
    (void)state;
    struct cancel *go = cancel_new();
    pthread_t thread;
    void *code;

    pthread_create(&thread, NULL, run_stalled, go);
    usleep(200000);
    for (int i = 0; i < 20; i++) {
        struct command_result r = run("head -c 3000000 /dev/zero | wc -c");
        assert_int_equal(strtoul(str(&r.out), NULL, 10), 3000000);
        command_result_free(&r);
    }
    cancel_fire(go);
    pthread_join(thread, &code);
    assert_null(code);
    cancel_unref(go);
}

static void an_idle_link_closes_by_itself(void **state)
{
    (void)state;
    struct link *l = local_link(
        (struct link_options){.vm_name = "vm-t", .marker = "idle", .keep_alive_seconds = 1});
    static const char *const argv[] = {"true", NULL};
    struct command_result r;

    assert_true(command_run(l, &(struct command_spec){.argv = argv}, NULL, &r, NULL));
    assert_int_equal(r.exit_code, 0);
    command_result_free(&r);
    assert_true(link_is_up(l));
    for (int i = 0; link_is_up(l) && i < 100; i++)
        usleep(100000);
    assert_false(link_is_up(l));
    assert_true(command_run(l, &(struct command_spec){.argv = argv}, NULL, &r, NULL));
    assert_int_equal(r.exit_code, 0);
    command_result_free(&r);
    drop_link(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(results_are_the_commands_own),
        cmocka_unit_test(what_cannot_start_says_why),
        cmocka_unit_test(requests_are_checked_first),
        cmocka_unit_test(arguments_arrive_as_given),
        cmocka_unit_test(stdin_that_nobody_reads_is_no_obstacle),
        cmocka_unit_test(text_is_made_whole_and_streamed),
        cmocka_unit_test(output_is_cut_at_the_cap),
        cmocka_unit_test(a_gigabyte_passes_in_little_memory),
        cmocka_unit_test(a_timeout_ends_the_whole_tree),
        cmocka_unit_test(a_cancel_ends_the_whole_tree_and_no_other),
        cmocka_unit_test(an_output_callback_can_stop_it),
        cmocka_unit_test(many_at_once_do_not_mix),
        cmocka_unit_test(a_reader_that_stalls_holds_up_only_itself),
        cmocka_unit_test(an_idle_link_closes_by_itself),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
