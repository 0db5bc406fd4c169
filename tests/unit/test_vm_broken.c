/* exedev-vm: what breaks PROTOCOL.vm ends the session, what only looks like it does not. */
#include "vm_client.h"

/* What the helper does with bytes that break a rule: it says so, ends what runs, exits 76. */
static void broken_by(void (*act)(struct vm *v, uint32_t id), bool greet)
{
    struct vm v;
    cleanup_result struct result r = {0};
    uint32_t id = 0;
    struct got g = {0};

    vm_start(&v, (struct hello){.no_hello = !greet});
    if (greet) {
        id = vm_open(&v, (struct want){.argv = ARGS("sleep", "1000")});
        wait_started(&v, id, &r);
    }
    act(&v, id);
    while (vm_recv(&v, &g, PATIENCE_MS))
        ;
    assert_int_equal(vm_close(&v), VM_EXIT_PROTOCOL);
    if (greet)
        assert_true(gone((pid_t)r.pid));
    got_free(&g);
}

#define BREAK(name, ...)                                                                           \
    static void break_##name(struct vm *v, uint32_t id)                                            \
    {                                                                                              \
        (void)v;                                                                                   \
        (void)id;                                                                                  \
        __VA_ARGS__;                                                                               \
    }

BREAK(length, write(v->in, "\0\1\0\1\2\0\0\0\0\0\0\0", 12) == 12 ? (void)0 : fail())
BREAK(reserved, write(v->in, "\0\0\0\0\2\0\0\1\0\0\0\0", 12) == 12 ? (void)0 : fail())
BREAK(type, vm_send(v, 20, 0, 0, NULL, 0))
BREAK(channel, vm_send(v, VM_DATA, 3, id, "x", 1))
BREAK(helper_type, vm_send(v, VM_STARTED, 0, id, "1234", 4))
BREAK(ping, vm_send(v, VM_PING, 0, 0, "1", 1))
BREAK(ping_stream, vm_send(v, VM_PING, 0, id, "12345678", 8))
BREAK(data_stream_0, vm_send(v, VM_DATA, 0, 0, "x", 1))
BREAK(empty_data, vm_send(v, VM_DATA, 0, id, NULL, 0))
BREAK(data_on_stdout, vm_send(v, VM_DATA, 1, id, "x", 1))
BREAK(kill_signal, vm_send_u32s(v, VM_KILL, 0, id, 2, 65u, 0u))
BREAK(kill_scope, vm_send_u32s(v, VM_KILL, 0, id, 2, 0u, 3u))
BREAK(credit, vm_send_u32s(v, VM_CREDIT, 1, id, 1, VM_MAX_CREDIT))
BREAK(credit_stdin, vm_send_u32s(v, VM_CREDIT, 0, id, 1, 1u))
BREAK(winch, vm_send(v, VM_WINCH, 0, id, "1", 1))
BREAK(reopen, vm_send(v, VM_OPEN, 0, id, "", 0))
BREAK(request, vm_send(v, VM_OPEN, 0, id + 1, "\xff\0\0\0", 4))
BREAK(resume, vm_send_u32s(v, VM_RESUME, 0, 0, 1, 0u))
BREAK(second_hello, vm_put_hello(v, (struct hello){0}))
BREAK(endall, vm_send_u32s(v, VM_ENDALL, 0, 0, 2, 0u, 0u))
BREAK(no_hello, vm_send(v, VM_PING, 0, 0, "12345678", 8))
BREAK(other_build, strcpy(v->build, "feed"); vm_put_hello(v, (struct hello){0}))
BREAK(durable_here, vm_put_hello(v, (struct hello){.key = "k"}))

static void break_stdin_credit(struct vm *v, uint32_t id)
{
    cleanup_free char *block = filled(VM_STDIN_CREDIT);

    /* The pipe takes some, and what it took is granted again, at most twice over. */
    for (int i = 0; i < 8; i++)
        vm_send(v, VM_DATA, VM_STDIN, id, block, VM_STDIN_CREDIT);
}

static void break_after_eof(struct vm *v, uint32_t id)
{
    vm_send(v, VM_EOF, VM_STDIN, id, NULL, 0);
    vm_send(v, VM_DATA, VM_STDIN, id, "x", 1);
}

static void break_parts(struct vm *v, uint32_t id)
{
    vm_send(v, VM_OPEN, VM_OPEN_MORE, id + 1, "x", 1);
    vm_send(v, VM_OPEN, VM_OPEN_MORE, id + 2, "x", 1);
}

static void break_big_request(struct vm *v, uint32_t id)
{
    cleanup_free char *block = filled(VM_MAX_PAYLOAD);

    for (size_t n = 0; n <= VM_MAX_REQUEST; n += VM_MAX_PAYLOAD)
        vm_send(v, VM_OPEN, VM_OPEN_MORE, id + 1, block, VM_MAX_PAYLOAD);
}

static void break_streams(struct vm *v, uint32_t id)
{
    /* Waiting ones are streams, too: nothing is started while the profile sleeps. */
    (void)id;
    for (unsigned i = 0; i < VM_MAX_STREAMS; i++)
        vm_open(v, (struct want){.argv = ARGS("true"), .flags = VM_OPEN_LOGIN});
}

static void what_breaks_the_protocol_ends_the_session(void **state)
{
    (void)state;
    static void (*const greeted[])(struct vm *, uint32_t) = {
        break_length,       break_reserved,       break_type,         break_channel,
        break_helper_type,  break_ping,           break_ping_stream,  break_data_stream_0,
        break_empty_data,   break_data_on_stdout, break_kill_signal,  break_kill_scope,
        break_credit,       break_credit_stdin,   break_winch,        break_reopen,
        break_request,      break_resume,         break_second_hello, break_endall,
        break_stdin_credit, break_after_eof,      break_parts,        break_big_request};

    for (size_t i = 0; i < sizeof greeted / sizeof *greeted; i++)
        broken_by(greeted[i], true);
    broken_by(break_no_hello, false);
    broken_by(break_other_build, false);
    broken_by(break_durable_here, false);
    write_home(".profile", "sleep 8\n");
    broken_by(break_streams, true);
}

static void frames_of_closed_streams_are_dropped(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){0});
    uint32_t id = vm_open(&v, (struct want){.argv = ARGS("true")});
    vm_wait(&v, id, &r);
    vm_send(&v, VM_DATA, VM_STDIN, id, "x", 1);
    vm_send(&v, VM_EOF, VM_STDIN, id, NULL, 0);
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 5u);
    vm_send_u32s(&v, VM_KILL, 0, id, 2, 0u, 0u);
    vm_send(&v, VM_CLOSE_IN, 0, id, NULL, 0);
    /* Numbers may come in any order, once each. */
    v.next = 9;
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("true")}, &r);
    v.next = 4;
    result_free(&r);
    vm_run(&v, (struct want){.argv = ARGS("echo", "fine")}, &r);
    assert_string_equal(text(&r), "fine\n");
    v.next = 4;
    vm_open(&v, (struct want){.argv = ARGS("true")});
    struct got g = {0};
    while (vm_recv(&v, &g, PATIENCE_MS))
        ;
    got_free(&g);
    assert_int_equal(vm_close(&v), VM_EXIT_PROTOCOL);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)
    const struct CMUnitTest tests[] = {
        TEST(what_breaks_the_protocol_ends_the_session),
        TEST(frames_of_closed_streams_are_dropped),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
