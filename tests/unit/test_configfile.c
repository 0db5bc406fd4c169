#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/configfile.h"

static char home[] = "/tmp/exedev-configfile-XXXXXX";

static char *in_folder(const char *name)
{
    return xasprintf("%s/.config/exedev/%s", home, name);
}

static void put(const char *name, const char *text, mode_t mode)
{
    cleanup_free char *folder = in_folder("");
    cleanup_free char *path = in_folder(name);

    assert_true(io_mkdirs(folder, 0700, NULL));
    assert_true(io_write_file(path, mode, text, strlen(text), NULL));
}

static void assert_holds(const char *name, const char *text)
{
    cleanup_buf struct buf now = {0};
    cleanup_free char *path = in_folder(name);

    assert_true(io_read_file(path, 1 << 20, &now, NULL));
    assert_string_equal(now.data, text);
}

static int fresh(void **state)
{
    (void)state;
    static const char *const names[] = {"config.json", "secrets.json", ".lock"};

    for (size_t i = 0; i < 3; i++) {
        cleanup_free char *path = in_folder(names[i]);
        unlink(path);
    }
    return 0;
}

static void nothing_there_is_an_empty_store(void **state)
{
    (void)state;
    cleanup_configfile struct configfile cf = {0};

    assert_true(configfile_load(&cf, NULL));
    assert_false(cf.exists);
    assert_null(configfile_default(&cf));
    cleanup_json json_t *raw = configfile_raw(&cf, NULL, NULL);
    assert_int_equal(json_object_size(raw), 0);
}

static void secrets_go_into_their_own_private_file(void **state)
{
    (void)state;
    cleanup_free char *path = in_folder("secrets.json");
    cleanup_free char *config = in_folder("config.json");
    cleanup_buf struct buf text = {0};
    struct stat st;
    {
        cleanup_configfile struct configfile cf = {0};
        assert_true(configfile_load(&cf, NULL));
        assert_true(configfile_add(&cf, "work", NULL));
        json_object_set_new(json_object_get(cf.environments, "work"), "cpu", json_integer(2));
        configfile_set_secret(&cf, "work", "apiKey", "exe1.hidden");
        assert_true(configfile_save(&cf, NULL));
    }
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_true(io_read_file(config, 1 << 20, &text, NULL));
    assert_null(strstr(text.data, "hidden"));

    cleanup_configfile struct configfile cf = {0};
    assert_true(configfile_load(&cf, NULL));
    assert_string_equal(configfile_default(&cf), "work");
    cleanup_json json_t *raw = configfile_raw(&cf, NULL, NULL);
    assert_string_equal(json_str(raw, "apiKey"), "exe1.hidden");
    assert_int_equal(json_int(raw, "cpu", 0), 2);
}

static void a_name_is_taken_once(void **state)
{
    (void)state;
    cleanup_configfile struct configfile cf = {0};
    cleanup_error struct error err = {0};

    assert_true(configfile_load(&cf, NULL));
    assert_true(configfile_add(&cf, "a", NULL));
    assert_true(configfile_add(&cf, "b", NULL));
    assert_string_equal(configfile_default(&cf), "a");
    assert_false(configfile_add(&cf, "b", &err));
    assert_int_equal(err.code, ERR_EXISTS);
    assert_false(configfile_add(&cf, "-b", &err));
    assert_int_equal(err.code, ERR_INVALID);
}

static void bad_files_are_refused_and_kept(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
        enum error_code code;
    } bad[] = {
        {"{\"version\": 2, \"environments\": {}}", "version 2", ERR_UNSUPPORTED},
        {"{\"environments\": {}}", "version (none)", ERR_UNSUPPORTED},
        {"{\"version\": 1, \"environments\": {\"a\": {", "damaged", ERR_INVALID},
        {"", "damaged", ERR_INVALID},
        {"[]", "damaged", ERR_INVALID},
        {"{\"version\": 1, \"environments\": {\"../x\": {}}}", "no valid name", ERR_INVALID},
    };

    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        cleanup_configfile struct configfile cf = {0};
        cleanup_error struct error err = {0};
        put("config.json", bad[i].text, 0644);
        assert_false(configfile_load(&cf, &err));
        assert_int_equal(err.code, bad[i].code);
        assert_non_null(strstr(err.msg, bad[i].says));
        assert_holds("config.json", bad[i].text);
    }
}

static void readable_secrets_are_refused_with_the_remedy(void **state)
{
    (void)state;
    cleanup_configfile struct configfile cf = {0};
    cleanup_error struct error err = {0};

    put("secrets.json", "{\"a\": {\"apiKey\": \"x\"}}", 0644);
    assert_false(configfile_load(&cf, &err));
    assert_int_equal(err.code, ERR_UNSAFE);
    assert_non_null(strstr(err.msg, "chmod 600"));
}

static void the_second_of_two_writers_is_told(void **state)
{
    (void)state;
    cleanup_configfile struct configfile one = {0}, two = {0};
    cleanup_error struct error err = {0};

    assert_true(configfile_load(&one, NULL));
    assert_true(configfile_load(&two, NULL));
    assert_true(configfile_add(&one, "first", NULL));
    assert_true(configfile_add(&two, "second", NULL));
    assert_true(configfile_save(&one, NULL));
    assert_false(configfile_save(&two, &err));
    assert_int_equal(err.code, ERR_EXISTS);

    cleanup_configfile struct configfile now = {0};
    assert_true(configfile_load(&now, NULL));
    assert_non_null(json_object_get(now.environments, "first"));
    assert_null(json_object_get(now.environments, "second"));
    /* The same store may save twice. */
    assert_true(configfile_add(&one, "third", NULL));
    assert_true(configfile_save(&one, NULL));
}

static void unknown_members_survive(void **state)
{
    (void)state;
    cleanup_configfile struct configfile cf = {0};

    put("config.json",
        "{\"version\": 1, \"later\": [1], \"environments\": {\"a\": {\"novel\": true}}}", 0600);
    assert_true(configfile_load(&cf, NULL));
    assert_true(configfile_add(&cf, "b", NULL));
    assert_true(configfile_save(&cf, NULL));
    cleanup_configfile struct configfile now = {0};
    assert_true(configfile_load(&now, NULL));
    assert_true(json_is_array(json_object_get(now.root, "later")));
    assert_true(json_bool(json_object_get(now.environments, "a"), "novel"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_there_is_an_empty_store, fresh),
        cmocka_unit_test_setup(secrets_go_into_their_own_private_file, fresh),
        cmocka_unit_test_setup(a_name_is_taken_once, fresh),
        cmocka_unit_test_setup(bad_files_are_refused_and_kept, fresh),
        cmocka_unit_test_setup(readable_secrets_are_refused_with_the_remedy, fresh),
        cmocka_unit_test_setup(the_second_of_two_writers_is_told, fresh),
        cmocka_unit_test_setup(unknown_members_survive, fresh),
    };

    if (!mkdtemp(home))
        return 1;
    setenv("HOME", home, 1);
    setenv("EXEDEV_KEYRING", "off", 1);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    fresh(NULL);
    cleanup_free char *folder = in_folder("");
    rmdir(folder);
    *strrchr(folder, '/') = 0;
    *strrchr(folder, '/') = 0;
    rmdir(folder);
    rmdir(home);
    return failed;
}
