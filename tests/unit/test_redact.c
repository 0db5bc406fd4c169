#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/cleanup.h"
#include "lib/redact.h"

static void hides_what_it_knows_until_it_forgets(void **state)
{
    (void)state;
    redact_add("topsecret");
    redact_add("topsecret");
    redact_remove("topsecret");
    cleanup_free char *a = redact("a topsecret b topsecret");
    assert_string_equal(a, "a [REDACTED] b [REDACTED]");
    redact_remove("topsecret");
    cleanup_free char *b = redact("a topsecret b");
    assert_string_equal(b, "a topsecret b");
    redact_remove("never added");
}

static void hides_other_spellings(void **state)
{
    (void)state;
    redact_add("it's \"a\" s+cret\nvalue");
    cleanup_free char *json = redact("{\"error\":\"bad it's \\\"a\\\" s+cret\\nvalue\"}");
    cleanup_free char *shell = redact("--env='K=it'\\''s \"a\" s+cret\nvalue'");
    cleanup_free char *url = redact("?q=it%27s%20%22a%22%20s%2Bcret%0Avalue&");
    redact_remove("it's \"a\" s+cret\nvalue");
    assert_string_equal(json, "{\"error\":\"bad [REDACTED]\"}");
    assert_string_equal(shell, "--env='K=[REDACTED]'");
    assert_string_equal(url, "?q=[REDACTED]&");
}

static void knows_the_lines_of_a_key(void **state)
{
    (void)state;
    static const char key[] =
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAABG5vbmU\nshort\n"
        "-----END OPENSSH PRIVATE KEY-----";
    redact_add(key);
    cleanup_free char *line = redact("bad line: b3BlbnNzaC1rZXktdjEAAAAABG5vbmU!");
    cleanup_free char *innocent =
        redact("-----BEGIN OPENSSH PRIVATE KEY----- is missing; too short");
    redact_remove(key);
    assert_string_equal(line, "bad line: [REDACTED]!");
    assert_string_equal(innocent, "-----BEGIN OPENSSH PRIVATE KEY----- is missing; too short");
}

static void a_part_does_not_spoil_the_whole(void **state)
{
    (void)state;
    redact_add("abcd");
    const char *more[] = {"abcdefgh"};
    cleanup_free char *s = redact_with("x abcdefgh y abcd", more, 1);
    redact_remove("abcd");
    assert_string_equal(s, "x [REDACTED] y [REDACTED]");
}

static void short_values_are_hidden_where_they_are_values(void **state)
{
    (void)state;
    const char *more[] = {"1"};
    cleanup_free char *s = redact_with("bad --env='A=1' in 11 of \"B=1\"", more, 1);
    assert_string_equal(s, "bad --env='A=[REDACTED]' in 11 of \"B=[REDACTED]\"");
}

static void errors_are_cleaned(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    redact_add("exe1.token");
    error_set(&err, ERR_AUTH, "bad exe1.token");
    redact_error(&err);
    redact_remove("exe1.token");
    assert_string_equal(err.msg, "bad [REDACTED]");
    redact_error(NULL);
}

static void nothing_and_little_are_no_secrets(void **state)
{
    (void)state;
    redact_add(NULL);
    redact_add("abc");
    cleanup_free char *s = redact("abc");
    cleanup_free char *n = redact(NULL);
    assert_string_equal(s, "abc");
    assert_string_equal(n, "");
    redact_remove(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hides_what_it_knows_until_it_forgets),
        cmocka_unit_test(hides_other_spellings),
        cmocka_unit_test(knows_the_lines_of_a_key),
        cmocka_unit_test(a_part_does_not_spoil_the_whole),
        cmocka_unit_test(short_values_are_hidden_where_they_are_values),
        cmocka_unit_test(errors_are_cleaned),
        cmocka_unit_test(nothing_and_little_are_no_secrets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
