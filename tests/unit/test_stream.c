#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/json.h"
#include "lib/stream.h"

/* Everything that text_join gives out for the bytes, fed in pieces of `step`. */
static char *joined(const char *p, size_t n, size_t step)
{
    struct text_join t = {0};
    struct buf scratch = {0}, all = {0};
    const char *out;
    size_t len;

    for (size_t i = 0; i < n; i += step) {
        size_t part = n - i < step ? n - i : step;
        text_join(&t, p + i, part, false, &scratch, &out, &len);
        buf_put(&all, out, len);
    }
    text_join(&t, "", 0, true, &scratch, &out, &len);
    buf_put(&all, out, len);
    buf_free(&scratch);
    return buf_steal(&all);
}

static void check(const char *in, const char *want)
{
    for (size_t step = 1; step <= 9; step++) {
        char *got = joined(in, strlen(in), step);
        assert_string_equal(got, want);
        free(got);
    }
}

#define FFFD "\xef\xbf\xbd"

static void characters_are_put_together(void **state)
{
    (void)state;
    check("plain", "plain");
    check("a\xc3\xa9z", "a\xc3\xa9z");
    check("\xe2\x82\xac\xf0\x9f\x98\x80", "\xe2\x82\xac\xf0\x9f\x98\x80");
    check("0123456789abcdef\xe2\x82\xac"
          "0123456789",
          "0123456789abcdef\xe2\x82\xac"
          "0123456789");
}

/* The number of replacements is the Unicode standard's (table 3-8), and browsers'. */
static void bad_bytes_are_replaced(void **state)
{
    (void)state;
    check("a\xff"
          "b",
          "a" FFFD "b");
    check("\xc3", FFFD);
    check("\xe2\x82", FFFD);
    check("\xe2\x82"
          "a",
          FFFD "a");
    check("\xf0\x9f\x98", FFFD);
    check("\xf0\x9f\x98\xff", FFFD FFFD);
    check("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    check("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", FFFD FFFD FFFD FFFD FFFD FFFD FFFD FFFD "A");
    check("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42", FFFD FFFD FFFD FFFD FFFD "A" FFFD FFFD "B");
    check("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", FFFD FFFD FFFD FFFD "A");
}

static void valid_text_is_not_copied(void **state)
{
    (void)state;
    struct text_join t = {0};
    struct buf scratch = {0};
    const char text[] = "some text \xe2\x82\xac", *out;
    size_t len;

    text_join(&t, text, sizeof text - 1, false, &scratch, &out, &len);
    assert_ptr_equal(out, text);
    assert_int_equal(len, sizeof text - 1);
    text_join(&t, text, sizeof text - 2, false, &scratch, &out, &len);
    assert_ptr_equal(out, text);
    assert_int_equal(len, sizeof text - 4);
    assert_int_equal(t.have, 2);
    buf_free(&scratch);
}

static size_t utf16_units(const char *s, size_t n)
{
    size_t units = 0;

    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        units += (c & 0xc0) == 0x80 ? 0 : c >= 0xf0 ? 2 : 1;
    }
    return units;
}

/* text_fit's sum is what json_escape really makes, for every character below U+0800 and some more.
 */
static void fit_counts_what_escaping_makes(void **state)
{
    (void)state;
    struct buf all = {0};

    for (int c = 0; c < 0x80; c++)
        buf_putc(&all, (char)c);
    for (int c = 0x80; c < 0x800; c++) {
        buf_putc(&all, (char)(0xc0 | c >> 6));
        buf_putc(&all, (char)(0x80 | (c & 63)));
    }
    buf_puts(&all, "\xe2\x80\xa8\xe2\x80\xa9\xe2\x80\xaa\xe2\x82\xac\xf0\x9f\x98\x80");
    struct buf line = {0};
    json_escape(&line, all.data, all.len);
    size_t room = 1 << 20;
    assert_int_equal(text_fit(all.data, all.len, &room), all.len);
    assert_int_equal((1 << 20) - room, utf16_units(line.data, line.len));
    /* The long way, near the end of the room, agrees. */
    room = utf16_units(line.data, line.len);
    assert_int_equal(text_fit(all.data, all.len, &room), all.len);
    assert_int_equal(room, 0);
    buf_free(&line);
    buf_free(&all);
}

static void fit_cuts_before_a_character(void **state)
{
    (void)state;
    size_t room = 3;

    assert_int_equal(text_fit("ab\xf0\x9f\x98\x80", 6, &room), 2);
    assert_int_equal(room, 0);
    room = 4;
    assert_int_equal(text_fit("ab\xf0\x9f\x98\x80", 6, &room), 6);
    room = 1;
    assert_int_equal(text_fit("\n", 1, &room), 0);
    room = 5;
    assert_int_equal(text_fit("\x01", 1, &room), 0);
    room = 6;
    assert_int_equal(text_fit("\x01", 1, &room), 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(characters_are_put_together),
        cmocka_unit_test(bad_bytes_are_replaced),
        cmocka_unit_test(valid_text_is_not_copied),
        cmocka_unit_test(fit_counts_what_escaping_makes),
        cmocka_unit_test(fit_cuts_before_a_character),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
