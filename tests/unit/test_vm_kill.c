/* exedev-vm: ending process trees, and what happens to them when a session ends. */
#include "vm_client.h"

/* Scripts write pids into files of the test's home, the current folder. */
#define PIDS(n) "echo $$ >" n "; "

static void kill_it(struct vm *v, uint32_t id, struct result *r, uint32_t scope)
{
    vm_send_u32s(v, VM_KILL, 0, id, 2, 0u, scope);
    vm_wait(v, id, r);
    assert_int_equal(r->flags, VM_EXIT_KILLED | VM_EXIT_CONFIRMED);
}

/* Beside each tree that is ended runs a command that must not notice. */
static void check_tree(const char *script, const char *const *files, uint32_t scope,
                       uint32_t signal)
{
    struct vm v;
    cleanup_result struct result r = {0}, other = {0};

    vm_start(&v, (struct hello){0});
    uint32_t bystander = vm_open(&v, (struct want){.argv = SH("read x; echo still $x")});
    uint32_t id = vm_open(&v, (struct want){.argv = SH(script)});
    wait_started(&v, bystander, &other);
    wait_started(&v, id, &r);
    pid_t pids[8];
    size_t n = 0;
    for (; files[n]; n++)
        pids[n] = pid_in(files[n]);
    kill_it(&v, id, &r, scope);
    for (size_t i = 0; i < n; i++)
        assert_false(alive(pids[i])); /* at once: that is what confirmed means */
    if (signal)
        assert_int_equal(r.signal, signal);
    vm_send(&v, VM_DATA, VM_STDIN, bystander, "here\n", 5);
    vm_wait(&v, bystander, &other);
    assert_string_equal(text(&other), "still here\n");
    assert_int_equal(vm_close(&v), 0);
}

static void a_plain_command(void **state)
{
    (void)state;
    check_tree(PIDS("a") "exec sleep 1000", ARGS("a"), VM_KILL_TREE, SIGTERM);
}

static void children_and_theirs(void **state)
{
    (void)state;
    check_tree(PIDS("a") "(sleep 1000 & echo $! >b; wait) & sh -c 'echo $$ >c; sleep 1000; :'",
               ARGS("a", "b", "c"), VM_KILL_TREE, 0);
}

static void double_fork_and_new_session(void **state)
{
    (void)state;
    check_tree("(setsid sh -c '(echo $$ >b; exec sleep 1000) & echo $! >c' &) ; " PIDS(
                   "a") "sleep 1000; :",
               ARGS("a", "b", "c"), VM_KILL_TREE, 0);
}

static void ignores_term(void **state)
{
    (void)state;
    check_tree("trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >b; while :; do sleep 1; done' "
               "& " PIDS("a") "while :; do sleep 1; done",
               ARGS("a", "b"), VM_KILL_TREE, SIGKILL);
}

static void stopped(void **state)
{
    (void)state;
    check_tree(
        "sh -c 'echo $$ >b; kill -STOP $$; sleep 1000' & " PIDS("a") "kill -STOP $$; sleep 1000",
        ARGS("a", "b"), VM_KILL_TREE, SIGTERM);
}

static void straight_to_kill(void **state)
{
    (void)state;
    check_tree("trap 'exit 0' TERM; " PIDS("a") "while :; do sleep 1; done", ARGS("a"), VM_KILL_NOW,
               SIGKILL);
}

static void keeps_forking(void **state)
{
    (void)state;
    check_tree("trap '' TERM; " PIDS(
                   "a") "while :; do (trap '' TERM; sleep 0.05; sleep 0.05) & sleep 0.01; done",
               ARGS("a"), VM_KILL_TREE, 0);
}

static void term_may_be_answered(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){.grace_ms = 20000});
    uint32_t id = vm_open(
        &v,
        (struct want){
            .argv = SH("trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done")});
    wait_text(&v, id, &r, "ready");
    kill_it(&v, id, &r, VM_KILL_TREE);
    assert_string_equal(text(&r), "ready\nbye\n");
    assert_int_equal(r.status, 4);
    result_free(&r);
    /* Another first signal, then KILL while the grace still runs. */
    id = vm_open(&v,
                 (struct want){
                     .argv = SH("trap 'echo usr' USR1; echo ready; while :; do sleep 0.05; done")});
    wait_text(&v, id, &r, "ready");
    vm_send_u32s(&v, VM_KILL, 0, id, 2, (uint32_t)SIGUSR1, (uint32_t)VM_KILL_TREE);
    wait_text(&v, id, &r, "usr");
    kill_it(&v, id, &r, VM_KILL_NOW);
    assert_int_equal(r.signal, SIGKILL);
    assert_int_equal(vm_close(&v), 0);
}

static void background_children_live_on_or_not(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = SH("setsid sleep 1000 & echo $! >a")}, &r);
    assert_int_equal(r.flags, 0);
    pid_t a = pid_in("a");
    result_free(&r);
    vm_run(&v,
           (struct want){.argv = SH("setsid sleep 1000 & echo $! >b; echo last"),
                         .flags = VM_OPEN_KILL_BG},
           &r);
    assert_int_equal(r.flags, VM_EXIT_CONFIRMED);
    assert_int_equal(r.status, 0);
    assert_string_equal(text(&r), "last\n");
    assert_false(alive(pid_in("b")));
    assert_true(alive(a));
    assert_int_equal(vm_close(&v), 0);
    assert_true(alive(a));
    kill(a, SIGKILL);
}

static void kill_before_it_ran(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    write_home(".profile", "sleep 3\n");
    vm_start(&v, (struct hello){0});
    uint32_t id = vm_open(&v, (struct want){.argv = ARGS("touch", "ran"), .flags = VM_OPEN_LOGIN});
    vm_send_u32s(&v, VM_KILL, 0, id, 2, 0u, 0u);
    vm_wait(&v, id, &r);
    assert_true(r.failed);
    assert_int_equal(r.code, ECANCELED);
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("ls", "ran"), .flags = VM_OPEN_LOGIN}, &r);
    assert_int_not_equal(r.status, 0);
    assert_int_equal(vm_close(&v), 0);
}

/* How a session may end; the foreground ends, the background lives. */
enum end { END_EOF, END_BYE, END_TERM, END_HUP, END_KILL, END_BROKEN, END_READER };

static void session_ends(enum end how)
{
    struct vm v;
    cleanup_result struct result r = {0};
    struct got g = {0};

    vm_start(&v, (struct hello){0});
    vm_run(&v, (struct want){.argv = SH("setsid sleep 1000 & echo $! >back")}, &r);
    result_free(&r);
    uint32_t id = vm_open(
        &v, (struct want){.argv = SH("trap '' TERM HUP; setsid sleep 1000 & echo $! >a; " PIDS(
                              "b") "while :; do sleep 1; done")});
    wait_started(&v, id, &r);
    pid_t a = pid_in("a"), b = pid_in("b"), back = pid_in("back");
    if (how == END_EOF) {
        close(v.in);
        v.in = -1;
    } else if (how == END_BYE) {
        vm_send(&v, VM_BYE, 0, 0, NULL, 0);
        do
            assert_true(vm_recv(&v, &g, PATIENCE_MS));
        while (g.type != VM_BYE);
    } else if (how == END_BROKEN) {
        vm_send(&v, 99, 0, 0, NULL, 0);
    } else if (how == END_READER) {
        close(v.out);
        v.out = open("/dev/null", O_RDONLY | O_CLOEXEC);
        vm_send(&v, VM_PING, 0, 0, "12345678", 8);
    } else {
        kill(v.pid, how == END_TERM ? SIGTERM : how == END_HUP ? SIGHUP : SIGKILL);
    }
    int status = vm_reap(&v);
    assert_int_equal(status, how == END_BROKEN ? VM_EXIT_PROTOCOL
                             : how == END_KILL ? 1000 + SIGKILL
                                               : 0);
    if (how == END_KILL) {
        /* Nobody is left to look for the rest; the command itself goes by its death signal. */
        assert_true(gone(b));
        kill(a, SIGKILL);
    } else {
        assert_false(alive(a));
        assert_false(alive(b));
    }
    assert_true(alive(back));
    kill(back, SIGKILL);
    vm_free(&v);
    got_free(&g);
}

static void every_end_of_a_session(void **state)
{
    (void)state;
    for (enum end how = END_EOF; how <= END_READER; how++)
        session_ends(how);
}

static void endall_finds_every_session(void **state)
{
    (void)state;
    struct vm one, two;
    cleanup_result struct result r = {0}, other = {0}, kept = {0};
    struct got g = {0};

    vm_start(&one, (struct hello){0});
    vm_start(&two, (struct hello){0});
    vm_run(&one, (struct want){.argv = SH("setsid sleep 1000 & echo $! >a"), .marker = "lease-1"},
           &r);
    result_free(&r);
    uint32_t front =
        vm_open(&one, (struct want){.argv = SH(PIDS("b") "sleep 1000; :"), .marker = "lease-1"});
    uint32_t theirs =
        vm_open(&two, (struct want){.argv = SH(PIDS("c") "trap '' TERM; while :; do sleep 1; done"),
                                    .marker = "lease-1"});
    uint32_t not =
        vm_open(&two, (struct want){.argv = SH(PIDS("d") "exec sleep 1000"), .marker = "lease-10"});
    wait_started(&one, front, &r);
    wait_started(&two, theirs, &other);
    wait_started(&two, not, &kept);
    pid_t a = pid_in("a"), b = pid_in("b"), c = pid_in("c"), d = pid_in("d");
    struct buf ask = {0};
    buf_put_u32(&ask, VM_ENDALL_MARKER);
    buf_put_str(&ask, "lease-1", 7);
    vm_send(&one, VM_ENDALL, 0, 0, ask.data, ask.len);
    bool ended = false, exited = false;
    while (!ended) {
        assert_true(vm_recv(&one, &g, PATIENCE_MS));
        if (g.type == VM_EXIT) {
            exited = true;
        } else if (g.type == VM_ENDED) {
            struct cursor cur = {.p = (unsigned char *)g.data.data, .left = g.data.len};
            assert_true(cursor_u32(&cur) >= 4);
            assert_int_equal(cursor_u32(&cur), 0);
            ended = true;
        }
    }
    assert_true(exited);
    assert_false(alive(a) || alive(b));
    assert_true(gone(c));
    assert_true(alive(d));
    /* Nothing there: nothing ended, and that for certain. */
    vm_send(&one, VM_ENDALL, 0, 0, ask.data, ask.len);
    assert_true(vm_recv(&one, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_ENDED);
    assert_memory_equal(g.data.data, "\0\0\0\0\0\0\0\0", 8);
    vm_wait(&two, theirs, &other);
    assert_int_equal(other.signal, SIGKILL);
    buf_free(&ask);
    got_free(&g);
    assert_int_equal(vm_close(&one), 0);
    assert_int_equal(vm_close(&two), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)
    const struct CMUnitTest tests[] = {
        TEST(a_plain_command),
        TEST(children_and_theirs),
        TEST(double_fork_and_new_session),
        TEST(ignores_term),
        TEST(stopped),
        TEST(straight_to_kill),
        TEST(keeps_forking),
        TEST(term_may_be_answered),
        TEST(background_children_live_on_or_not),
        TEST(kill_before_it_ran),
        TEST(every_end_of_a_session),
        TEST(endall_finds_every_session),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
