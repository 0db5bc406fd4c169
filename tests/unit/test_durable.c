/* Durable commands over broken links: the real helper, its passing end killed under the commands.
 */
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "lib/command.h"
#include "link_help.h"

static struct link *durable_link(const char *marker, int keep_ms)
{
    return local_link((struct link_options){
        .vm_name = "vm-d", .marker = marker, .durable = true, .durable_keep_ms = keep_ms});
}

/* Our own children: what stands for ssh. */
static int break_links(void)
{
    DIR *dir = opendir("/proc");
    int n = 0;

    for (struct dirent *e; (e = readdir(dir));) {
        cleanup_free char *path = xasprintf("/proc/%s/stat", e->d_name);
        int pid, parent;
        cleanup_file FILE *f = e->d_name[0] > '0' && e->d_name[0] <= '9' ? fopen(path, "r") : NULL;
        if (f && fscanf(f, "%d %*s %*c %d", &pid, &parent) == 2 && parent == getpid())
            n += kill(pid, SIGKILL) == 0;
    }
    closedir(dir);
    return n;
}

struct breaker {
    int times, ms;
    int broken;
};

static void *break_now_and_then(void *arg)
{
    struct breaker *b = arg;

    for (int i = 0; i < b->times; i++) {
        usleep((unsigned)b->ms * 1000);
        b->broken += break_links();
    }
    return NULL;
}

static struct command_result run_broken(struct link *l, struct command_spec spec, int times, int ms)
{
    struct breaker b = {.times = times, .ms = ms};
    struct error err = {0};
    struct command_result res;
    pthread_t thread;

    assert_true(link_connect(l, deadline_in(20000), NULL, NULL));
    pthread_create(&thread, NULL, break_now_and_then, &b);
    spec.collect = spec.text = true;
    assert_true(command_run(l, &spec, NULL, &res, &err));
    pthread_join(thread, NULL);
    assert_true(b.broken >= times);
    return res;
}

static void no_number_is_lost_and_none_comes_twice(void **state)
{
    (void)state;
    static const char *const argv[] = {
        "sh", "-c",
        "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.01; done; echo end >&2; exit 5",
        NULL};
    struct link *l = durable_link("numbers", 0);
    struct command_result r = run_broken(
        l, (struct command_spec){.argv = argv, .durable = true, .timeout_ms = 60000}, 3, 300);
    struct buf want = {0};

    for (int i = 0; i < 150; i++)
        buf_printf(&want, "%d\n", i);
    if (r.transport)
        fail_msg("%s", r.advice);
    assert_string_equal(r.out.data, want.data);
    assert_string_equal(r.err.data, "end\n");
    assert_int_equal(r.exit_code, 5);
    command_result_free(&r);
    buf_free(&want);
    drop_link(l);
}

/* Output that waits in the spool, and a reader that has credit again only after the reconnect. */
static void much_output_goes_on_from_the_exact_byte(void **state)
{
    (void)state;
    static const char *const argv[] = {"seq", "1", "2000000", NULL};
    struct link *l = durable_link("much", 0);
    struct command_result r = run_broken(
        l, (struct command_spec){.argv = argv, .durable = true, .timeout_ms = 60000}, 3, 15);
    char *at = r.out.data;

    if (r.transport)
        fail_msg("%s", r.advice);
    for (long i = 1; i <= 2000000; i++) {
        if (strtol(at, &at, 10) != i)
            fail_msg("line %ld is another", i);
    }
    assert_string_equal(at, "\n");
    command_result_free(&r);
    drop_link(l);
}

static void stdin_goes_on_too(void **state)
{
    (void)state;
    static const char *const slow[] = {
        "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9 10; do head -c 50000; sleep 0.1; done; cat", NULL};
    size_t n = 3u << 20;
    cleanup_free char *data = xmalloc(n);
    struct link *l = durable_link("stdin", 0);

    for (size_t i = 0; i < n; i++)
        data[i] = (char)('a' + (i * 7 + i / 251) % 26);
    struct command_result r = run_broken(
        l,
        (struct command_spec){
            .argv = slow, .durable = true, .stdin_data = data, .stdin_len = n, .timeout_ms = 60000},
        4, 200);
    if (r.transport)
        fail_msg("%s", r.advice);
    assert_int_equal(r.exit_code, 0);
    assert_int_equal(r.out.len, n);
    assert_memory_equal(r.out.data, data, n);
    command_result_free(&r);
    drop_link(l);
}

static void *run_plain(void *arg)
{
    static const char *const argv[] = {"sh", "-c", "echo begun; sleep 300", NULL},
                             *const env[] = {"EXEDEV_TEST=plain", NULL};
    struct command_result *r = xcalloc(1, sizeof *r);

    command_run(arg, &(struct command_spec){.argv = argv, .env = env, .collect = true}, NULL, r,
                NULL);
    return r;
}

static bool process_lives(const char *name)
{
    cleanup_free char *command =
        xasprintf("grep -lzs '^EXEDEV_TEST=%s$' /proc/[0-9]*/environ", name);
    char line[100] = "";
    FILE *f = popen(command, "r");
    bool any = fgets(line, sizeof line, f) != NULL;

    pclose(f);
    return any;
}

static void only_durable_commands_survive(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "sleep 1; echo kept", NULL};
    struct link *l = durable_link("both", 0);
    struct command_result *plain;
    pthread_t thread;

    assert_true(link_connect(l, deadline_in(20000), NULL, NULL));
    pthread_create(&thread, NULL, run_plain, l);
    struct command_result r =
        run_broken(l, (struct command_spec){.argv = argv, .durable = true}, 1, 400);
    pthread_join(thread, (void **)&plain);
    assert_string_equal(r.out.data, "kept\n");
    assert_int_equal(plain->transport, ERR_NETWORK);
    assert_int_equal(plain->exit_code, 255);
    assert_memory_equal(plain->out.data, "begun\n", 6);
    for (int i = 0; process_lives("plain") && i < 50; i++)
        usleep(100000);
    assert_false(process_lives("plain"));
    command_result_free(&r);
    command_result_free(plain);
    free(plain);
    drop_link(l);
}

/* The client is gone for longer than the session waits. */
static void the_vm_does_not_wait_for_ever(void **state)
{
    (void)state;
    static const char *const argv[] = {"sleep", "300", NULL}, *const env[] = {
                                                                  "EXEDEV_TEST=forsaken", NULL};
    pid_t pid = fork();

    if (pid == 0) {
        struct link *l = durable_link("forsaken", 1000);
        struct command_result r;
        command_run(l, &(struct command_spec){.argv = argv, .env = env, .durable = true}, NULL, &r,
                    NULL);
        _exit(0);
    }
    for (int i = 0; !process_lives("forsaken") && i < 100; i++)
        usleep(100000);
    assert_true(process_lives("forsaken"));
    kill(pid, SIGKILL);
    usleep(300000);
    assert_true(process_lives("forsaken")); /* it is kept for a while */
    for (int i = 0; process_lives("forsaken") && i < 100; i++)
        usleep(100000);
    assert_false(process_lives("forsaken"));
}

static void what_was_left_over_is_ended_by_marker(void **state)
{
    (void)state;
    static const char *const argv[] = {"sleep", "300", NULL}, *const env[] = {"EXEDEV_TEST=left",
                                                                              NULL};
    pid_t pid = fork();

    if (pid == 0) {
        struct link *l = durable_link("left", 0);
        struct command_result r;
        command_run(l, &(struct command_spec){.argv = argv, .env = env, .durable = true}, NULL, &r,
                    NULL);
        _exit(0);
    }
    for (int i = 0; !process_lives("left") && i < 100; i++)
        usleep(100000);
    kill(pid, SIGKILL);
    struct link *l = durable_link("left", 0); /* another process's session, the same lease */
    struct error err = {0};
    if (!link_end_all(l, deadline_in(10000), &err))
        fail_msg("%s", err.msg);
    assert_false(process_lives("left"));
    drop_link(l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        /* These two fork: before there are threads. */
        cmocka_unit_test(the_vm_does_not_wait_for_ever),
        cmocka_unit_test(what_was_left_over_is_ended_by_marker),
        cmocka_unit_test(no_number_is_lost_and_none_comes_twice),
        cmocka_unit_test(much_output_goes_on_from_the_exact_byte),
        cmocka_unit_test(stdin_goes_on_too),
        cmocka_unit_test(only_durable_commands_survive),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
