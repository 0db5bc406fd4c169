#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/spawn.h"
#include "base/text.h"

static void errors_carry_context(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};

    assert_false(error_sys(&err, 2, "open `%s`", "x"));
    error_prefix(&err, "read the config");
    assert_string_equal(err.msg, "read the config: open `x`: No such file or directory");
    assert_int_equal(err.code, ERR_SYSTEM);
}

static void cursor_stops_at_the_end(void **state)
{
    (void)state;
    struct cursor c = {.p = (const unsigned char *)"\0\0\0\5ab", .left = 6};
    size_t n;

    assert_null(cursor_str(&c, 100, &n));
    assert_true(c.bad);
    assert_int_equal(cursor_u64(&c), 0);
}

static void json_survives_node_strings(void **state)
{
    (void)state;
    char text[] =
        "{\"a\":\"x\\ud800y\",\"b\":\"\\u0000\",\"c\":\"\\ud83d\\ude00\",\"d\":\"\\\\ud800\"}";
    cleanup_json json_t *v = json_parse(text, strlen(text), NULL);

    assert_non_null(v);
    assert_string_equal(json_str(v, "a"), "x\xef\xbf\xbdy");
    assert_null(json_str(v, "b"));
    assert_string_equal(json_str(v, "c"), "\xf0\x9f\x98\x80");
    assert_string_equal(json_str(v, "d"), "\\ud800");
}

static void json_lines_hold_no_line_separator(void **state)
{
    (void)state;
    cleanup_buf struct buf b = {0};

    json_escape(&b,
                "a\xe2\x80\xa8"
                "b\xe2\x80\xa9\xe2\x82\xac\x01\n\"",
                14);
    assert_string_equal(b.data, "a\\u2028b\\u2029\xe2\x82\xac\\u0001\\n\\\"");
}

static void deep_json_is_refused(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_free char *deep = xmalloc(200000);

    memset(deep, '[', 200000);
    assert_null(json_parse(deep, 200000, &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void names_that_could_be_options_are_refused(void **state)
{
    (void)state;
    assert_true(text_is_vm_name("test-a123"));
    assert_false(text_is_vm_name("test-123"));
    assert_true(text_is_vm_name("123"));
    assert_false(text_is_vm_name("-a"));
    assert_false(text_is_vm_name("a b"));
    assert_false(text_is_host("-oProxyCommand=x"));
    assert_false(text_is_host("a\nb"));
    assert_true(text_is_user("vm+bloggy"));
    assert_false(text_is_user("a b"));
}

static void shell_quoting(void **state)
{
    (void)state;
    cleanup_buf struct buf b = {0};

    shell_quote(&b, "a'b");
    assert_string_equal(b.data, "'a'\\''b'");
}

static void spawn_reports_and_collects(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_buf struct buf out = {0}, errout = {0};
    int status;

    assert_true(spawn_run((const char *[]){"sh", "-c", "cat; echo e >&2; exit 7", NULL}, "hi", 2,
                          &out, &errout, 100, deadline_in(10000), &status, &err));
    assert_int_equal(WEXITSTATUS(status), 7);
    assert_string_equal(out.data, "hi");
    assert_string_equal(errout.data, "e\n");
    assert_false(spawn_run((const char *[]){"/nonexistent/x", NULL}, NULL, 0, NULL, NULL, 0,
                           deadline_in(10000), &status, &err));
    assert_non_null(strstr(err.msg, "/nonexistent/x"));
    assert_false(spawn_run((const char *[]){"sleep", "100", NULL}, NULL, 0, NULL, NULL, 0,
                           deadline_in(50), &status, &err));
    assert_int_equal(err.code, ERR_TIMEOUT);
}

/* Byte by byte, what json_escape does eight at a time. */
static void escape_slowly(struct buf *out, const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c == 0xe2 && i + 2 < n && (unsigned char)s[i + 1] == 0x80 &&
            ((unsigned char)s[i + 2] & 0xfe) == 0xa8) {
            buf_puts(out, (unsigned char)s[i + 2] == 0xa8 ? "\\u2028" : "\\u2029");
            i += 2;
        } else if (c == '"' || c == '\\') {
            buf_printf(out, "\\%c", c);
        } else if (c == '\n' || c == '\t' || c == '\r') {
            buf_puts(out, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\r");
        } else if (c < 0x20 || c == 0x7f) {
            buf_printf(out, "\\u%04x", c);
        } else {
            buf_putc(out, (char)c);
        }
    }
}

static void test_escape_fast_and_slow(void **state)
{
    static const unsigned char odd[] = {'"',  '\\', 0x7f, 0xe2, 0x80, 0xa8,
                                        0xa9, '\n', 0,    0x1f, 0x20, 0xff};
    unsigned seed = 1;

    (void)state;
    for (int round = 0; round < 20000; round++) {
        char s[64];
        size_t n = (size_t)rand_r(&seed) % sizeof s;
        int plain = rand_r(&seed) % 8;
        cleanup_buf struct buf fast = {0}, slow = {0};
        for (size_t i = 0; i < n; i++)
            s[i] = rand_r(&seed) % 8 < plain ? 'x' : (char)odd[(size_t)rand_r(&seed) % sizeof odd];
        json_escape(&fast, s, n);
        escape_slowly(&slow, s, n);
        assert_int_equal(fast.len, slow.len);
        if (fast.len)
            assert_memory_equal(fast.data, slow.data, fast.len);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_escape_fast_and_slow),
        cmocka_unit_test(errors_carry_context),
        cmocka_unit_test(cursor_stops_at_the_end),
        cmocka_unit_test(json_survives_node_strings),
        cmocka_unit_test(json_lines_hold_no_line_separator),
        cmocka_unit_test(deep_json_is_refused),
        cmocka_unit_test(names_that_could_be_options_are_refused),
        cmocka_unit_test(shell_quoting),
        cmocka_unit_test(spawn_reports_and_collects),
    };
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
