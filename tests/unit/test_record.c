#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "lib/record.h"

static json_t *object(const char *text)
{
    cleanup_free char *copy = xstrdup(text);
    json_t *v = json_parse(copy, strlen(copy), NULL);

    assert_non_null(v);
    return v;
}

static bool read_answer(const char *text, const char *name, struct record *r, struct error *err)
{
    cleanup_json json_t *v = object(text);

    return record_from_answer(v, name, r, err);
}

static void reads_the_documented_record(void **state)
{
    (void)state;
    cleanup_record struct record r = {0};
    assert_true(read_answer("{\"vm_name\":\"bloggy\",\"ssh_dest\":\"bloggy.exe.xyz\",\"ssh_host\":"
                            "\"h.exe.xyz\",\"ssh_user\":\"u+1\","
                            "\"https_url\":\"https://"
                            "bloggy.exe.xyz\",\"status\":\"running\",\"region\":\"lon\",\"region_"
                            "display\":\"London, UK\","
                            "\"tags\":[\"exedev\"],\"comment\":\"c\"}",
                            "bloggy", &r, NULL));
    assert_string_equal(r.vm_name, "bloggy");
    assert_string_equal(r.ssh_host, "h.exe.xyz");
    assert_string_equal(r.ssh_user, "u+1");
    assert_string_equal(r.ssh_dest, "bloggy.exe.xyz");
    assert_string_equal(r.https_url, "https://bloggy.exe.xyz");
    assert_string_equal(r.region_display, "London, UK");
    assert_string_equal(r.comment, "c");
    assert_false(record_is_stopped(&r));
    assert_int_equal(record_has_tag(&r, "exedev"), RECORD_TAG_YES);
    assert_int_equal(record_has_tag(&r, "other"), RECORD_TAG_NO);
}

static void reads_every_wrapping(void **state)
{
    static const char *const shapes[] = {
        "{\"vm\":{\"vm_name\":\"b\",\"ssh_dest\":\"vm+b@vm.exe.xyz\"}}",
        "{\"data\":{\"vm\":{\"name\":\"b\",\"sshDest\":\"vm+b@vm.exe.xyz\"}}}",
        "{\"name\":\"wrong\",\"data\":{\"vmName\":\"b\",\"sshDest\":\"vm+b@vm.exe.xyz\"}}",
        "{\"data\":{\"data\":{\"data\":{\"vm\":{\"ssh_dest\":\"vm+b@vm.exe.xyz\"}}}}}",
        "[{\"vm_name\":\"b\",\"sshUser\":\"vm+b\",\"sshHost\":\"vm.exe.xyz\"}]",
    };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        cleanup_record struct record r = {0};
        assert_true(read_answer(shapes[i], "b", &r, NULL));
        assert_string_equal(r.vm_name, "b");
        assert_string_equal(r.ssh_host, "vm.exe.xyz");
        assert_string_equal(r.ssh_user, "vm+b");
    }
}

static void looks_no_deeper_than_four(void **state)
{
    (void)state;
    cleanup_record struct record r = {0};
    cleanup_error struct error err = {0};
    assert_false(
        read_answer("{\"data\":{\"data\":{\"data\":{\"data\":{\"data\":{\"vm_name\":\"b\"}}}}}}",
                    "b", &r, &err));
    assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void no_destination_means_exe_xyz(void **state)
{
    (void)state;
    cleanup_record struct record r = {0};
    assert_true(read_answer("{\"vm_name\":\"b\"}", "b", &r, NULL));
    assert_string_equal(r.ssh_host, "b.exe.xyz");
    assert_string_equal(r.ssh_dest, "b.exe.xyz");
    assert_null(r.ssh_user);
    assert_int_equal(record_has_tag(&r, "exedev"), RECORD_TAG_UNTOLD);
    assert_false(record_is_stopped(&r));
}

static void splits_the_destination_at_its_last_at(void **state)
{
    (void)state;
    cleanup_record struct record r = {0};
    assert_true(
        read_answer("{\"vm_name\":\"b\",\"ssh_dest\":\"me@corp@vm.exe.xyz\"}", "b", &r, NULL));
    assert_string_equal(r.ssh_user, "me@corp");
    assert_string_equal(r.ssh_host, "vm.exe.xyz");
}

static void refuses_addresses_that_could_be_options(void **state)
{
    static const char *const bad[] = {
        "{\"vm_name\":\"b\",\"ssh_host\":\"-oProxyCommand=x\"}",
        "{\"vm_name\":\"b\",\"ssh_host\":\"a b\"}",
        "{\"vm_name\":\"b\",\"ssh_dest\":\"b.exe.xyz\\n\"}",
        "{\"vm_name\":\"b\",\"ssh_dest\":\"u'@b.exe.xyz\"}",
        "{\"vm_name\":\"b\",\"ssh_user\":\"-l\",\"ssh_host\":\"h\"}",
        "{\"vm_name\":\"b;rm\"}",
        "{\"vm_name\":\"-b\"}",
    };
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_record struct record r = {0};
        cleanup_error struct error err = {0};
        assert_false(read_answer(bad[i], "b", &r, &err));
        assert_int_equal(err.code, ERR_UNSAFE);
    }
}

static void refuses_another_vms_record(void **state)
{
    (void)state;
    cleanup_record struct record r = {0};
    cleanup_error struct error err = {0};
    assert_false(read_answer("{\"vm_name\":\"other\"}", "b", &r, &err));
    assert_int_equal(err.code, ERR_PROTOCOL);
}

static void refuses_answers_without_a_record(void **state)
{
    static const char *const bad[] = {
        "{}", "[]", "\"b\"", "null", "{\"vm\":\"b\"}", "{\"vm\":null,\"ok\":true}", "[1,2]"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_record struct record r = {0};
        assert_false(read_answer(bad[i], "b", &r, NULL));
    }
}

static void reads_every_shape_of_ls(void **state)
{
    static const struct {
        const char *text;
        size_t n;
    } shapes[] = {
        {"{\"vms\":[{\"vm_name\":\"a\"},{\"vm_name\":\"b\"}]}", 2},
        {"[{\"vm_name\":\"b\"},{\"name\":\"c\"}]", 2},
        {"{\"vm_name\":\"b\"}", 1},
        {"{\"data\":{\"vms\":[{\"ssh_dest\":\"vm+b@vm.exe.xyz\"}]}}", 1},
        {"{\"vms\":[1,null,{},\"x\",{\"vm_name\":\"b\"},{\"vm_name\":\"Bad Name\"}]}", 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        cleanup_json json_t *v = object(shapes[i].text);
        cleanup_records struct records all = {0};
        assert_true(records_from_ls(v, &all, NULL));
        assert_int_equal(all.n, shapes[i].n);
        assert_non_null(records_find(&all, "b"));
        assert_null(records_find(&all, "zz"));
    }
}

static void an_empty_list_is_a_list(void **state)
{
    static const char *const lists[] = {"{\"vms\":[]}", "[]", "{\"vms\":null}"};
    (void)state;
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        cleanup_json json_t *v = object(lists[i]);
        cleanup_records struct records all = {0};
        assert_true(records_from_ls(v, &all, NULL));
        assert_int_equal(all.n, 0);
    }
}

/* Or "it is gone" would be read out of an error. */
static void something_else_is_no_empty_list(void **state)
{
    static const char *const bad[] = {"{}",   "{\"error\":\"x\"}",  "null",
                                      "\"\"", "{\"vms\":\"none\"}", "{\"data\":null}"};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_json json_t *v = object(bad[i]);
        cleanup_records struct records all = {0};
        cleanup_error struct error err = {0};
        assert_false(records_from_ls(v, &all, &err));
        assert_int_equal(err.code, ERR_PROTOCOL);
    }
}

static void an_unsafe_address_is_still_there(void **state)
{
    (void)state;
    cleanup_json json_t *v = object("{\"vms\":[{\"vm_name\":\"b\",\"ssh_host\":\"-x\"}]}");
    cleanup_records struct records all = {0};
    assert_true(records_from_ls(v, &all, NULL));
    const struct record *r = records_find(&all, "b");
    assert_non_null(r);
    assert_true(r->unsafe);
    assert_string_equal(r->ssh_host, "");
}

static void found_by_destination_too(void **state)
{
    (void)state;
    cleanup_json json_t *v = object("[{\"vm_name\":\"renamed\",\"ssh_dest\":\"b.exe.xyz\"}]");
    cleanup_records struct records all = {0};
    assert_true(records_from_ls(v, &all, NULL));
    assert_non_null(records_find(&all, "b"));
    assert_non_null(records_find(&all, "b.exe.xyz"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_documented_record),
        cmocka_unit_test(reads_every_wrapping),
        cmocka_unit_test(looks_no_deeper_than_four),
        cmocka_unit_test(no_destination_means_exe_xyz),
        cmocka_unit_test(splits_the_destination_at_its_last_at),
        cmocka_unit_test(refuses_addresses_that_could_be_options),
        cmocka_unit_test(refuses_another_vms_record),
        cmocka_unit_test(refuses_answers_without_a_record),
        cmocka_unit_test(reads_every_shape_of_ls),
        cmocka_unit_test(an_empty_list_is_a_list),
        cmocka_unit_test(something_else_is_no_empty_list),
        cmocka_unit_test(an_unsafe_address_is_still_there),
        cmocka_unit_test(found_by_destination_too),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
