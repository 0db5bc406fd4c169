/* What of leases needs no VM: states, addresses, marks, times, addresses of the proxy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "lib/expiry.h"
#include "lib/ingress.h"
#include "lib/lease_private.h"
#include "lib/name.h"
#include "lib/state.h"
#include "lib/token.h"

static struct config *config(const char *text)
{
    cleanup_free char *copy = xstrdup(text);
    cleanup_json json_t *raw = json_parse(copy, strlen(copy), NULL);
    cleanup_error struct error err = {0};

    assert_non_null(raw);
    struct config *c = config_load(raw, &err);
    if (!c)
        fail_msg("%s", err.msg);
    return c;
}

/* ---- states ---- */

static void test_states(void **state)
{
    /* creating, live, closing, doubtful, gone */
    static const char *const expected[] = {"yyyyy", "nyyny", "nyyyy", "nyyyy"};
    char id[] = "state-xa";

    (void)state;
    for (int from = LEASE_CREATING; from <= LEASE_DOUBTFUL; from++) {
        for (int to = LEASE_CREATING; to <= LEASE_GONE; to++) {
            cleanup_error struct error err = {0};
            id[7]++;
            assert_true(lease_enter(id, (enum lease_state)from, NULL));
            bool ok = lease_move(id, (enum lease_state)to, &err);
            assert_int_equal(ok, expected[from][to] == 'y');
            assert_int_equal(err.code, ok ? ERR_NONE : ERR_INTERNAL);
            bool held = ok ? to != LEASE_GONE && to != LEASE_DOUBTFUL : from != LEASE_DOUBTFUL;
            assert_int_equal(lease_is_held(id), held);
            lease_move(id, LEASE_GONE, NULL);
            assert_false(lease_is_held(id));
        }
    }
}

static void test_enter_twice(void **state)
{
    cleanup_error struct error err = {0};

    (void)state;
    assert_true(lease_enter("twice-a", LEASE_CREATING, NULL));
    assert_false(lease_enter("twice-a", LEASE_CREATING, &err));
    assert_int_equal(err.code, ERR_EXISTS);
    assert_true(lease_move("twice-a", LEASE_DOUBTFUL, NULL));
    assert_true(lease_enter("twice-a", LEASE_CREATING,
                            NULL)); /* an attempt that failed may be taken up again */
    assert_true(lease_move("twice-a", LEASE_GONE, NULL));
}

static void test_closing_takes_no_work(void **state)
{
    cleanup_config struct config *c = config("{\"apiKey\":\"k-123456\"}");
    cleanup_error struct error err = {0};
    cleanup_json json_t *metadata = json_pack("{s:s}", "sshHost", "127.0.0.1");

    (void)state;
    struct link *l = lease_link(c, "work-a", metadata, NULL, &err);
    assert_non_null(l);
    assert_false(lease_drain("work-a", false, deadline_in(0), deadline_in(0)));
    lease_link_done(l, NULL);
    assert_true(lease_drain("work-a", false, deadline_in(0), deadline_in(0)));
    assert_true(lease_move("work-a", LEASE_CLOSING, NULL));
    assert_null(lease_link(c, "work-a", metadata, NULL, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_true(lease_move("work-a", LEASE_GONE, NULL));
    assert_null(lease_link_known("work-a", NULL, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_drain_cancels(void **state)
{
    cleanup_config struct config *c = config("{\"apiKey\":\"k-123456\"}");
    struct cancel *cancel = cancel_new();

    (void)state;
    struct link *l = lease_link(c, "drain-a", NULL, cancel, NULL);
    assert_non_null(l);
    assert_false(lease_drain("drain-a", true, DEADLINE_NEVER, deadline_in(20)));
    assert_true(cancel_fired(cancel));
    lease_link_done(l, cancel);
    assert_true(lease_drain("drain-a", true, DEADLINE_NEVER, deadline_in(20)));
    lease_move("drain-a", LEASE_CLOSING, NULL);
    lease_move("drain-a", LEASE_GONE, NULL);
    cancel_unref(cancel);
}

/* ---- ids and hosts that must not reach ssh ---- */

static void test_names_refused(void **state)
{
    static const char *const bad[] = {
        "-oProxyCommand=x", "a b", "A", "a;b", "a'b", "a\nb", "", "x-123", "../x", "a."};
    cleanup_config struct config *c = config("{\"apiKey\":\"k-123456\"}");
    enum receipt receipt;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_error struct error err = {0};
        assert_null(lease_link(c, bad[i], NULL, NULL, &err));
        assert_int_equal(err.code, ERR_UNSAFE);
        if (!*bad[i])
            continue;
        assert_false(lease_release(c, bad[i], NULL, false, true, &receipt, &err));
        assert_int_equal(err.code, ERR_UNSAFE);
        assert_int_equal(receipt, RECEIPT_NONE);
    }
    static const char *const hosts[] = {"-x", "a b", "$(x)", "a\nb"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        cleanup_error struct error err = {0};
        cleanup_json json_t *m = json_pack("{s:s}", "sshHost", hosts[i]);
        assert_null(lease_link(c, "good-name", m, NULL, &err));
        assert_true(err.code == ERR_INVALID || err.code == ERR_UNSAFE);
    }
}

static void test_addresses(void **state)
{
    cleanup_config struct config *c = config("{\"apiKey\":\"k-123456\",\"sshUser\":\"me\"}");
    static const struct {
        const char *json, *host, *user;
        bool guessed;
    } cases[] = {
        {"{\"sshHost\":\"h\",\"sshLogin\":\"u\",\"sshDest\":\"x@y\"}", "h", "u", false},
        {"{\"sshHost\":\"h\",\"sshLogin\":null}", "h", "me", false},
        {"{\"sshDest\":\"vm+a@vm.exe.xyz\"}", "vm.exe.xyz", "vm+a", false},
        {"{\"sshDest\":\"a@b@c\"}", "c", "a@b", false},
        {"{\"sshDest\":\"plain\"}", "plain", "me", false},
        {"{\"sshHost\":7}", "lease-a.exe.xyz", "me", true},
        {"{}", "lease-a.exe.xyz", "me", true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cleanup_address struct lease_address a = {0};
        cleanup_free char *text = xstrdup(cases[i].json);
        cleanup_json json_t *m = json_parse(text, strlen(text), NULL);
        address_from_metadata(c, "lease-a", m, &a);
        assert_string_equal(a.host, cases[i].host);
        assert_string_equal(a.user, cases[i].user);
        assert_int_equal(a.guessed, cases[i].guessed);
    }
}

/* ---- the mark ---- */

static void test_ours(void **state)
{
    cleanup_json json_t *ours = json_pack("[s, s]", "x", MARK_TAG), *others = json_pack("[s]", "x"),
                        *none = json_array();
    cleanup_free char *mark = mark_comment("hello", "lease", "env", "run");
    struct journal_entry made = {.name = (char *)"a", .kind = (char *)"lease"},
                         copied = {.name = (char *)"a", .kind = (char *)"lease-copy"};

    (void)state;
    /* tags, comment, what an rm that needs the mark says, what a host's lease id is given */
    struct {
        json_t *tags;
        char *comment;
        bool marked, vouched;
    } cases[] = {
        {ours, NULL, true, true},   {others, NULL, false, false},
        {none, NULL, false, false}, {others, mark, true, true},
        {NULL, mark, true, true},   {NULL, (char *)"just text", false, true},
        {NULL, NULL, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct record r = {
            .vm_name = (char *)"a", .tags = cases[i].tags, .comment = cases[i].comment};
        assert_int_equal(lease_vm_is_ours(&r, NULL, true), cases[i].marked);
        assert_int_equal(lease_vm_is_ours(&r, NULL, false), cases[i].vouched);
        /* Tagged by others only: the journal's VM of that name is gone, unless it was a copy. */
        assert_int_equal(lease_vm_is_ours(&r, &made, true), cases[i].marked || !cases[i].tags);
        assert_true(lease_vm_is_ours(&r, &copied, true));
    }
}

/* ---- times ---- */

static void test_times(void **state)
{
    static const struct {
        const char *text;
        int64_t at; /* -1: refused */
    } cases[] = {
        {"1970-01-01T00:00:00Z", 0},
        {"2026-11-22T02:46:40.123Z", 1795315600},
        {"2026-11-22T03:46:40+01:00", 1795315600},
        {"2026-11-21T21:16:40-05:30", 1795315600},
        {"2024-02-29T00:00:00Z", 1709164800},
        {"2026-11-22", -1},
        {"2026-11-22 02:46:40Z", -1},
        {"2026-11-22T02:46:40", -1},
        {"2026-13-22T02:46:40Z", -1},
        {"2026-11-22T25:46:40Z", -1},
        {"2026-11-22T02:46:40.Z", -1},
        {"2026-11-22T02:46:40Zx", -1},
        {"", -1},
        {"tomorrow\n", -1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cleanup_error struct error err = {0};
        int64_t at = -1;
        bool ok = expiry_parse(cases[i].text, &at, &err);
        assert_int_equal(ok, cases[i].at >= 0);
        if (ok)
            assert_int_equal(at, cases[i].at);
        else
            assert_null(strchr(err.msg, '\n'));
    }
    cleanup_free char *text = expiry_text(1795315600);
    assert_string_equal(text, "2026-11-22T02:46:40.000Z");
}

/* ---- the runner's way in ---- */

static void test_ingress(void **state)
{
    char dir[] = "/tmp/exedev-test-lease-XXXXXX";
    cleanup_buf struct buf key = {0};
    struct ingress in, again;

    (void)state;
    assert_non_null(mkdtemp(dir));
    cleanup_free char *make = xasprintf("ssh-keygen -q -t ed25519 -N '' -f %s/k", dir);
    cleanup_free char *file = xasprintf("%s/k", dir), *rm = xasprintf("rm -r %s", dir);
    assert_int_equal(system(make), 0);
    assert_true(io_read_file(file, 10000, &key, NULL));
    cleanup_json json_t *raw =
        json_pack("{s:s, s:s}", "apiKey", "k-123456", "sshPrivateKey", key.data);
    cleanup_config struct config *c = config_load(raw, NULL);
    assert_non_null(c);

    assert_true(ingress_open(c, "my-vm", "https://my-vm.exe.xyz", 8080, "/a/b", &in, NULL));
    assert_string_equal(in.url, "wss://my-vm.exe.xyz:8080/a/b");
    assert_int_equal(strncmp(in.header, "Bearer exe0.", 12), 0);
    struct token t = {0};
    assert_true(token_parse(in.header + 7, &t, NULL));
    assert_string_equal(t.scope, "v0@my-vm.exe.xyz");
    assert_true(t.exp > 0);
    token_clear(&t);
    assert_true(ingress_open(c, "my-vm", NULL, 443, "/", &again, NULL));
    assert_string_equal(again.url, "wss://my-vm.exe.xyz/");
    assert_string_not_equal(in.generation, again.generation);
    ingress_clear(&in);
    ingress_clear(&again);

    static const struct {
        const char *vm, *url, *path;
        int port;
    } bad[] = {
        {"my-vm", NULL, "/x", 80},
        {"my-vm", NULL, "/x", 22},
        {"my-vm", NULL, "/x", 10000},
        {"my-vm", NULL, "/x", -1},
        {"my-vm", NULL, "x", 8080},
        {"my-vm", NULL, "/a?b", 8080},
        {"my-vm", NULL, "/a#b", 8080},
        {"my-vm", NULL, "/a b", 8080},
        {"my-vm", NULL, "/../x", 8080},
        {"my-vm", NULL, "/\xc3\xa9", 8080},
        {"-vm", NULL, "/x", 8080},
        {"my-vm", "http://my-vm.exe.xyz", "/x", 8080},
        {"my-vm", "https://-x/", "/x", 8080},
        {"my-vm", "https://u@h/", "/x", 8080},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_error struct error err = {0};
        assert_false(ingress_open(c, bad[i].vm, bad[i].url, bad[i].port, bad[i].path, &in, &err));
        assert_true(err.code == ERR_INVALID || err.code == ERR_UNSAFE);
        assert_null(in.header);
    }
    assert_int_equal(system(rm), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_enter_twice),
        cmocka_unit_test(test_closing_takes_no_work),
        cmocka_unit_test(test_drain_cancels),
        cmocka_unit_test(test_names_refused),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_ours),
        cmocka_unit_test(test_times),
        cmocka_unit_test(test_ingress),
    };
    char dir[] = "/tmp/exedev-test-lease-XXXXXX";

    setenv("EXEDEV_STATE_DIR", mkdtemp(dir), 1);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    cleanup_free char *rm = xasprintf("rm -rf %s", dir);
    return system(rm) != 0 || failed;
}
