/* exedev-vm: durable sessions (PROTOCOL.vm section 5). A cut is a relay killed without a word. */
#include "vm_client.h"

#include <dirent.h>

#define KEY "0123abcd-test_KEY"

static void cut(struct vm *v)
{
    kill(v->pid, SIGKILL);
    vm_close(v);
}

static void say_bye(struct vm *v)
{
    struct got g = {0};

    vm_send(v, VM_BYE, 0, 0, NULL, 0);
    do
        assert_true(vm_recv(v, &g, PATIENCE_MS));
    while (g.type != VM_BYE);
    assert_true(gone((pid_t)v->helper_pid));
    assert_int_equal(vm_close(v), 0);
    got_free(&g);
}

struct point {
    uint32_t stream;
    uint64_t got[3], in_sent;
};

/* RESUME, and what RESUMED says of each. */
static void resume(struct vm *v, const struct point *p, uint32_t n, bool *known, uint64_t *in_got)
{
    struct buf b = {0};
    struct got g = {0};

    buf_put_u32(&b, n);
    for (uint32_t i = 0; i < n; i++) {
        buf_put_u32(&b, p[i].stream);
        buf_put_u64(&b, p[i].got[1]);
        buf_put_u64(&b, p[i].got[2]);
        buf_put_u64(&b, p[i].in_sent);
    }
    vm_send(v, VM_RESUME, 0, 0, b.data, b.len);
    buf_free(&b);
    assert_true(vm_recv(v, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_RESUMED);
    struct cursor c = {.p = (unsigned char *)g.data.data, .left = g.data.len};
    assert_int_equal(cursor_u32(&c), n);
    for (uint32_t i = 0; i < n; i++) {
        assert_int_equal(cursor_u32(&c), p[i].stream);
        known[i] = cursor_u8(&c);
        in_got[i] = cursor_u64(&c);
    }
    assert_false(c.bad);
    assert_int_equal(c.left, 0);
    got_free(&g);
}

static void back(struct vm *v)
{
    vm_start(v, (struct hello){.key = KEY});
    assert_true(v->flags & VM_HELLO_FOUND);
}

static bool folder_is_clean(void)
{
    cleanup_free char *path = home_path(".cache/exedev");
    cleanup_dir DIR *d = opendir(path);

    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] != '.')
            return false;
    }
    return true;
}

static void starts_once_and_says_bye(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){.key = KEY});
    assert_false(v.flags & VM_HELLO_FOUND);
    assert_int_not_equal(v.helper_pid, v.pid);
    vm_run(&v, (struct want){.argv = SH("echo hi; exit 3")}, &r);
    assert_string_equal(text(&r), "hi\n");
    assert_int_equal(r.status, 3);
    say_bye(&v);
    assert_true(folder_is_clean());
    /* The key is free again. */
    vm_start(&v, (struct hello){.key = KEY});
    assert_false(v.flags & VM_HELLO_FOUND);
    say_bye(&v);
}

/* Takes frames until `stop` bytes more have come or the stream ended; grants as it goes. */
static bool take_some(struct vm *v, uint32_t id, struct result *r, size_t stop)
{
    struct got g = {0};
    size_t n = 0;
    bool last = false;

    while (!last && n < stop) {
        assert_true(vm_recv(v, &g, PATIENCE_MS));
        if (g.stream != id)
            continue;
        if (g.type == VM_DATA) {
            n += g.data.len;
            vm_send_u32s(v, VM_CREDIT, g.channel, id, 1, (uint32_t)g.data.len);
        }
        last = result_take(r, &g);
    }
    got_free(&g);
    return last;
}

static void no_byte_lost_or_doubled(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    struct buf want[3] = {{0}, {0}, {0}};
    unsigned cuts = 0, seed = (unsigned)getpid();

    for (int i = 1; i <= 150000; i++)
        buf_printf(&want[i % 3 == 0 ? 2 : 1], "%d\n", i);
    vm_start(&v, (struct hello){.key = KEY});
    uint32_t id = vm_open(
        &v, (struct want){
                .argv = ARGS("awk", "BEGIN { for (i = 1; i <= 150000; i++) if (i % 3 == 0) print i "
                                    ">\"/dev/stderr\"; else print i; exit 6 }"),
                .flags = VM_OPEN_DURABLE,
                .credit = 40000});
    wait_started(&v, id, &r);
    while (!take_some(&v, id, &r, (size_t)rand_r(&seed) % 60000)) {
        cut(&v);
        cuts++;
        if (rand_r(&seed) % 4 == 0)
            deadline_sleep(DEADLINE_NEVER, 50);
        bool known;
        uint64_t in_got;
        struct point p = {id, {0, r.out[1].len, r.out[2].len}, 0};
        back(&v);
        resume(&v, &p, 1, &known, &in_got);
        assert_true(known);
        r.eof[1] = r.eof[2] = false;
        r.pid = 0;
        vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 40000u);
        vm_send_u32s(&v, VM_CREDIT, 2, id, 1, 40000u);
        wait_started(&v, id, &r); /* said again */
    }
    assert_true(cuts > 5);
    assert_int_equal(r.status, 6);
    for (int i = 1; i <= 2; i++) {
        assert_int_equal(r.out[i].len, want[i].len);
        assert_memory_equal(r.out[i].data, want[i].data, want[i].len);
        buf_free(&want[i]);
    }
    say_bye(&v);
}

static void stdin_goes_on_from_its_byte(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    cleanup_buf struct buf all = {0};
    unsigned seed = (unsigned)getpid();

    for (int i = 0; all.len < 2000000; i++)
        buf_printf(&all, "line %d\n", i);
    vm_start(&v, (struct hello){.key = KEY});
    uint32_t id = vm_open(&v, (struct want){.argv = ARGS("md5sum"), .flags = VM_OPEN_DURABLE});
    wait_started(&v, id, &r); /* a request that was under way at a cut is lost */
    uint64_t sent = 0;
    size_t credit = VM_STDIN_CREDIT;
    struct got g = {0};
    bool last = false, eof = false;
    while (!last) {
        while (sent < all.len && credit) {
            size_t n = credit < 9000 ? credit : 9000;
            n = n < all.len - sent ? n : all.len - sent;
            vm_send(&v, VM_DATA, VM_STDIN, id, all.data + sent, n);
            sent += n;
            credit -= n;
        }
        if (sent == all.len && !eof) {
            eof = true;
            vm_send(&v, VM_EOF, VM_STDIN, id, NULL, 0);
        }
        if (rand_r(&seed) % 8 == 0) {
            bool known;
            uint64_t in_got;
            struct point p = {id, {0, r.out[1].len, r.out[2].len}, sent};
            cut(&v);
            back(&v);
            resume(&v, &p, 1, &known, &in_got);
            assert_true(known && in_got <= sent);
            sent = in_got;
            credit = 0;
            eof = false;
            r.eof[1] = r.eof[2] = false;
            vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 1000u);
            if (sent == all.len)
                continue;
        }
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        struct cursor c = {.p = (unsigned char *)g.data.data, .left = g.data.len};
        if (g.type == VM_CREDIT)
            credit += cursor_u32(&c);
        else
            last = result_take(&r, &g);
    }
    got_free(&g);
    say_bye(&v);
    /* The same sum from the same bytes here. */
    write_home("all", "");
    cleanup_free char *path = home_path("all"), *cmd = xasprintf("md5sum <'%s'", path);
    assert_true(io_write_file(path, 0600, all.data, all.len, NULL));
    FILE *f = popen(cmd, "r");
    char line[100] = "";
    assert_non_null(fgets(line, sizeof line, f));
    pclose(f);
    assert_string_equal(text(&r), line);
}

static void ends_are_kept_until_they_were_read(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    struct got g = {0};
    bool known[3];
    uint64_t in_got[3];

    vm_start(&v, (struct hello){.key = KEY});
    v.mute = true; /* no PONG: the helper cannot know what was read */
    uint32_t exits =
        vm_open(&v, (struct want){.argv = SH("echo out; exit 5"), .flags = VM_OPEN_DURABLE});
    uint32_t fails =
        vm_open(&v, (struct want){.argv = ARGS("no-such-thing"), .flags = VM_OPEN_DURABLE});
    uint32_t later = vm_open(
        &v, (struct want){.argv = SH("sleep 0.5; echo later; exit 6"), .flags = VM_OPEN_DURABLE});
    for (int ends = 0, begun = 0; ends < 2 || !begun;) {
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        ends += g.stream != later && (g.type == VM_EXIT || g.type == VM_FAIL);
        begun += g.stream == later;
    }
    cut(&v);
    deadline_sleep(DEADLINE_NEVER, 1000);
    back(&v);
    struct point p[3] = {{exits, {0, 4, 0}, 0}, {fails, {0}, 0}, {later, {0}, 0}};
    resume(&v, p, 3, known, in_got);
    assert_true(known[0] && known[1] && known[2]);
    struct result all[3] = {{{{0}}}};
    for (int ends = 0; ends < 3;) {
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        for (int i = 0; i < 3; i++)
            ends += g.stream == p[i].stream && result_take(&all[i], &g);
        if (g.type == VM_STARTED && g.stream == later)
            vm_send_u32s(&v, VM_CREDIT, 1, later, 1, 100u);
    }
    assert_int_equal(all[0].status, 5);
    assert_int_equal(all[0].out[1].len, 0);
    assert_int_equal(all[1].code, ENOENT);
    assert_int_equal(all[2].status, 6);
    assert_string_equal(text(&all[2]), "later\n");
    for (int i = 0; i < 3; i++)
        result_free(&all[i]);
    /* Once PONG has come they are forgotten, and with nothing durable left a break is the end. */
    vm_send(&v, VM_PONG, 0, 0, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    v.next = 10;
    vm_run(&v, (struct want){.argv = ARGS("true")}, &r);
    pid_t daemon = (pid_t)v.helper_pid;
    cut(&v);
    assert_true(gone(daemon));
    assert_true(folder_is_clean());
    got_free(&g);
}

static void a_break_ends_what_is_not_durable(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0}, plain = {0};
    bool known[2];
    uint64_t in_got[2];

    vm_start(&v, (struct hello){.key = KEY});
    uint32_t a = vm_open(
        &v, (struct want){.argv = SH("echo $$ >a; trap '' TERM; while :; do sleep 1; done")});
    uint32_t b = vm_open(
        &v, (struct want){.argv = SH("echo $$ >b; exec sleep 1000"), .flags = VM_OPEN_DURABLE});
    uint32_t c = vm_open(
        &v, (struct want){.argv = SH("echo $$ >c; exec sleep 1000"), .flags = VM_OPEN_DURABLE});
    wait_started(&v, a, &plain);
    pid_t pa = pid_in("a"), pb = pid_in("b"), pc = pid_in("c");
    cut(&v);
    assert_true(gone(pa));
    assert_true(alive(pb) && alive(pc));
    back(&v);
    struct point p[2] = {{a, {0}, 0}, {b, {0}, 0}};
    resume(&v, p, 2, known, in_got);
    assert_false(known[0]);
    assert_true(known[1]);
    assert_true(gone(pc)); /* not named */
    (void)c;
    vm_send_u32s(&v, VM_KILL, 0, b, 2, 0u, 0u);
    vm_wait(&v, b, &r);
    assert_int_equal(r.signal, SIGTERM);
    assert_int_equal(r.flags, VM_EXIT_KILLED | VM_EXIT_CONFIRMED);
    say_bye(&v);
}

static void nobody_comes_back(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){.key = KEY, .keep_ms = 700});
    uint32_t id = vm_open(
        &v, (struct want){.argv = SH("echo $$ >a; exec sleep 1000"), .flags = VM_OPEN_DURABLE});
    wait_started(&v, id, &r);
    pid_t a = pid_in("a"), daemon = (pid_t)v.helper_pid;
    cut(&v);
    assert_true(gone(a));
    assert_true(gone(daemon));
    assert_true(folder_is_clean());
}

static void a_second_client_takes_over(void **state)
{
    (void)state;
    struct vm one, two;
    cleanup_result struct result r = {0};
    struct got g = {0};
    bool known;
    uint64_t in_got;

    vm_start(&one, (struct hello){.key = KEY});
    uint32_t id =
        vm_open(&one, (struct want){.argv = SH("read x; echo got $x"), .flags = VM_OPEN_DURABLE});
    wait_started(&one, id, &r);
    back(&two);
    assert_int_equal(two.helper_pid, one.helper_pid);
    while (vm_recv(&one, &g, PATIENCE_MS))
        ;
    assert_int_equal(vm_close(&one), 0);
    struct point p = {id, {0}, 0};
    resume(&two, &p, 1, &known, &in_got);
    assert_true(known);
    vm_send_u32s(&two, VM_CREDIT, 1, id, 1, 100u);
    vm_send(&two, VM_DATA, VM_STDIN, id, "it\n", 3);
    vm_wait(&two, id, &r);
    assert_string_equal(text(&r), "got it\n");
    got_free(&g);
    say_bye(&two);
}

static void endall_ends_sessions_without_a_client(void **state)
{
    (void)state;
    struct vm durable, plain;
    cleanup_result struct result r = {0};
    struct got g = {0};
    struct buf ask = {0};

    vm_start(&durable, (struct hello){.key = KEY});
    uint32_t id = vm_open(&durable, (struct want){.argv = SH("echo $$ >a; exec sleep 1000"),
                                                  .flags = VM_OPEN_DURABLE,
                                                  .marker = "lease-9"});
    wait_started(&durable, id, &r);
    pid_t a = pid_in("a"), daemon = (pid_t)durable.helper_pid;
    cut(&durable);
    vm_start(&plain, (struct hello){0});
    buf_put_u32(&ask, VM_ENDALL_MARKER);
    buf_put_str(&ask, "lease-9", 7);
    vm_send(&plain, VM_ENDALL, 0, 0, ask.data, ask.len);
    assert_true(vm_recv(&plain, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_ENDED);
    assert_memory_equal(g.data.data + 4, "\0\0\0\0", 4);
    assert_false(alive(a));
    assert_true(gone(daemon));
    buf_free(&ask);
    got_free(&g);
    assert_int_equal(vm_close(&plain), 0);
    assert_true(folder_is_clean());
}

static void the_spool_is_bounded(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    bool known;
    uint64_t in_got, total = 0;
    struct got g = {0};

    vm_start(&v, (struct hello){.key = KEY});
    uint32_t id = vm_open(&v, (struct want){.argv = SH("echo $$ >a; exec yes 0123456789abcde"),
                                            .flags = VM_OPEN_DURABLE,
                                            .no_credit = true});
    pid_t a = pid_in("a");
    cut(&v);
    /* It fills, and waits. */
    deadline_sleep(DEADLINE_NEVER, 3000);
    assert_true(alive(a));
    back(&v);
    struct point p = {id, {0}, 0};
    resume(&v, &p, 1, &known, &in_got);
    assert_true(known);
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 32u << 20);
    while (total < (32u << 20)) {
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
        for (size_t i = 0; g.type == VM_DATA && i < g.data.len; i++)
            assert_int_equal(g.data.data[i], "0123456789abcde\n"[(total + i) % 16]);
        total += g.type == VM_DATA ? g.data.len : 0;
    }
    assert_int_equal(total, 32u << 20);
    vm_send_u32s(&v, VM_KILL, 0, id, 2, 0u, (uint32_t)VM_KILL_NOW);
    vm_send_u32s(&v, VM_CREDIT, 1, id, 1, 60u << 20);
    got_free(&g);
    say_bye(&v);
    assert_true(folder_is_clean());
}

static void lies_in_resume_end_the_session(void **state)
{
    (void)state;
    struct vm v;
    struct got g = {0};
    struct buf b = {0};
    cleanup_result struct result r = {0};

    vm_start(&v, (struct hello){.key = KEY});
    uint32_t id = vm_open(&v, (struct want){.argv = SH("echo $$ >a; echo hi; exec sleep 1000"),
                                            .flags = VM_OPEN_DURABLE});
    wait_started(&v, id, &r);
    pid_t a = pid_in("a"), daemon = (pid_t)v.helper_pid;
    cut(&v);
    back(&v);
    buf_put_u32(&b, 1);
    buf_put_u32(&b, id);
    buf_put_u64(&b, 1000); /* more than there ever was */
    buf_put_u64(&b, 0);
    buf_put_u64(&b, 0);
    vm_send(&v, VM_RESUME, 0, 0, b.data, b.len);
    while (vm_recv(&v, &g, PATIENCE_MS))
        ;
    assert_true(gone(a));
    assert_true(gone(daemon));
    vm_close(&v);
    buf_free(&b);
    got_free(&g);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)
    const struct CMUnitTest tests[] = {
        TEST(starts_once_and_says_bye),
        TEST(no_byte_lost_or_doubled),
        TEST(stdin_goes_on_from_its_byte),
        TEST(ends_are_kept_until_they_were_read),
        TEST(a_break_ends_what_is_not_durable),
        TEST(nobody_comes_back),
        TEST(a_second_client_takes_over),
        TEST(endall_ends_sessions_without_a_client),
        TEST(the_spool_is_bounded),
        TEST(lies_in_resume_end_the_session),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
