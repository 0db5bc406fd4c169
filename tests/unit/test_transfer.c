/* Transfers through the real helper, over a socket on this machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "lib/command.h"
#include "lib/transfer.h"
#include "tree_help.h"

static struct link *vm;

static int setup(void **state)
{
    (void)state;
    const char *const plain[] = {getenv("EXEDEV_VM"), "serve", NULL};

    vm = link_get(
        &(struct link_options){
            .vm_name = "vm-t", .host = "localhost", .local_argv = plain, .marker = "test-transfer"},
        NULL);
    return vm && link_connect(vm, deadline_in(20000), NULL, NULL) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    link_close(vm);
    link_unref(vm);
    scratch_end();
    return 0;
}

static void there_and_back(void **state)
{
    (void)state;
    for (uint64_t first = 1; first <= 60; first++) {
        uint64_t seed = first + 5000;
        cleanup_error struct error err = {0};
        cleanup_free char *dir = scratch(), *src = below(dir, "s"), *far = below(dir, "new/far"),
                          *back = below(dir, "back");
        struct transfer_opts opts = {.update = first % 3 == 0, .checksum = first % 6 == 0};
        struct transfer_stats in = {0}, out = {0};
        tree_generate(src, &seed, 30);
        if (!transfer_push(vm, src, far, &opts, &in, &err) ||
            !transfer_pull(vm, far, back, &opts, &out, &err))
            fail_msg("tree %llu: %s", (unsigned long long)first, err.msg);
        char *diff = tree_differ(src, far);
        if (diff)
            fail_msg("tree %llu, pushed: %s", (unsigned long long)first, diff);
        diff = tree_differ_plain(src, back);
        if (diff)
            fail_msg("tree %llu, pulled: %s", (unsigned long long)first, diff);
        assert_int_equal(in.bytes, out.bytes);
        assert_int_equal(in.files, out.files);
        assert_int_equal(leftovers(dir), 0);
        assert_true(tree_remove_at(AT_FDCWD, dir, NULL));
    }
}

static void failures_name_their_side(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_free char *dir = scratch(), *missing = below(dir, "missing"),
                      *file = below(dir, "file"), *target = below(dir, "t"),
                      *through = below(dir, "file/x");
    const struct transfer_opts opts = {0};

    close(open(file, O_CREAT | O_WRONLY, 0600));
    assert_false(transfer_pull(vm, missing, target, &opts, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(err.msg, "on the VM: "));
    assert_false(transfer_push(vm, missing, target, &opts, NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
    assert_null(strstr(err.msg, "on the VM"));
    assert_false(transfer_push(vm, file, through, &opts, NULL, &err));
    assert_int_equal(err.sys, ENOTDIR);
    assert_non_null(strstr(err.msg, "on the VM: "));
    assert_int_equal(count_entries(dir), 1);
}

/* A big file whose transfer is stopped in the middle, from either end. */
static bool cancel_soon(struct cancel *c, uint64_t done)
{
    if (done > 3 << 20)
        cancel_fire(c);
    return true;
}

static void on_bytes(uint64_t moved, uint64_t done, uint64_t total, void *arg)
{
    (void)done;
    (void)total;
    cancel_soon(arg, moved);
}

static void cancelled_transfers_leave_nothing(void **state)
{
    (void)state;
    cleanup_free char *dir = scratch(), *src = below(dir, "big"), *dst = below(dir, "deep/t");
    cleanup_fd int fd = open(src, O_CREAT | O_WRONLY, 0600);
    cleanup_free char *block = xcalloc(1, 1 << 20);
    for (int i = 0; i < 24; i++)
        assert_int_equal(write(fd, block, 1 << 20), 1 << 20);
    for (int push = 0; push < 2; push++) {
        cleanup_error struct error err = {0};
        struct cancel *cancel = cancel_new();
        struct transfer_opts opts = {
            .cancel = cancel, .progress = on_bytes, .progress_arg = cancel};
        bool ok = push ? transfer_push(vm, src, dst, &opts, NULL, &err)
                       : transfer_pull(vm, src, dst, &opts, NULL, &err);
        assert_false(ok);
        assert_int_equal(err.code, ERR_CANCELLED);
        assert_int_equal(count_entries(dir), 1);
        cancel_unref(cancel);
    }
}

struct side {
    bool push, ok;
    const char *from, *to;
    struct error err;
};

static void *carry(void *arg)
{
    struct side *s = arg;
    const struct transfer_opts opts = {0};

    s->ok = s->push ? transfer_push(vm, s->from, s->to, &opts, NULL, &s->err)
                    : transfer_pull(vm, s->from, s->to, &opts, NULL, &s->err);
    return NULL;
}

static void both_directions_and_commands_at_once(void **state)
{
    (void)state;
    uint64_t seed = 77;
    cleanup_free char *dir = scratch(), *src = below(dir, "s"), *a = below(dir, "a"),
                      *b = below(dir, "b");
    tree_generate(src, &seed, 400);
    struct side sides[2] = {{.push = true, .from = src, .to = a},
                            {.push = false, .from = src, .to = b}};
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, carry, &sides[i]), 0);
    for (int i = 0; i < 20; i++) {
        const char *const argv[] = {"echo", "hello", NULL};
        struct command_result res;
        assert_true(command_run(vm, &(struct command_spec){.argv = argv, .collect = true}, NULL,
                                &res, NULL));
        assert_int_equal(res.exit_code, 0);
        assert_string_equal(res.out.data, "hello\n");
        command_result_free(&res);
    }
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        if (!sides[i].ok)
            fail_msg("%s", sides[i].err.msg);
    }
    assert_null(tree_differ(src, a));
    assert_null(tree_differ_plain(src, b));
}

static void home_is_where_remote_paths_begin(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_free char *dir = scratch(), *src = below(dir, "f"),
                      *name = xasprintf("exedev-test-%d", (int)getpid()),
                      *tilde = xasprintf("~/%s", name), *back = below(dir, "g"),
                      *there = below(link_facts(vm).home, name);
    const struct transfer_opts opts = {0};

    close(open(src, O_CREAT | O_WRONLY, 0640));
    if (!transfer_push(vm, src, tilde, &opts, NULL, &err) ||
        !transfer_pull(vm, name, back, &opts, NULL, &err))
        fail_msg("%s", err.msg);
    assert_int_equal(access(there, F_OK), 0);
    unlink(there);
    assert_null(tree_differ(src, back));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(there_and_back),
        cmocka_unit_test(failures_name_their_side),
        cmocka_unit_test(cancelled_transfers_leave_nothing),
        cmocka_unit_test(both_directions_and_commands_at_once),
        cmocka_unit_test(home_is_where_remote_paths_begin),
    };

    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, setup, teardown);
}
