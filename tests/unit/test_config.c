#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "lib/config.h"
#include "lib/config_value.h"
#include "lib/redact.h"
#include "lib/setup.h"
#include "lib/token.h"

static json_t *object(const char *text)
{
    cleanup_free char *copy = xstrdup(text);
    json_t *v = json_parse(copy, strlen(copy), NULL);

    assert_non_null(v);
    return v;
}

static json_t *validate(const char *text, struct problems *p)
{
    cleanup_json json_t *raw = object(text);

    return config_validate(raw, CONFIG_OFFLINE, p);
}

static bool has(const struct problems *p, bool warning, const char *field, const char *words)
{
    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].warning == warning && strstr(p->list[i].text, words) &&
            !strcmp(field ? field : "", p->list[i].field ? p->list[i].field : ""))
            return true;
    for (size_t i = 0; i < p->n; i++)
        print_message("  %s: %s\n", p->list[i].warning ? "warning" : "error", p->list[i].text);
    return false;
}

/* Exactly one error, at that field, with those words; and no normalised config. */
static void refused(const char *text, const char *field, const char *words)
{
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normal = validate(text, &p);

    assert_true(has(&p, false, field, words));
    assert_int_equal(problems_errors(&p), 1);
    assert_null(normal);
}

static void warned(const char *text, const char *field, const char *words)
{
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normal = validate(text, &p);

    assert_true(has(&p, true, field, words));
    assert_non_null(normal);
}

static struct config *parsed(const char *text)
{
    cleanup_json json_t *raw = object(text);
    cleanup_problems struct problems p = {0};
    struct config *c = config_parse(raw, &p);

    for (size_t i = 0; i < p.n; i++)
        print_message("  %s\n", p.list[i].text);
    assert_int_equal(p.n, 0);
    return c;
}

#define K "\"apiKey\":\"exe1.abcdefgh\""

static void numbers_print_as_javascript_prints_them(void **state)
{
    static const struct {
        double v;
        const char *text;
    } cases[] = {
        {4.0, "4"},
        {0, "0"},
        {-0.0, "0"},
        {1e21, "1e+21"},
        {123456789012345680000.0, "123456789012345680000"},
        {0.1, "0.1"},
        {1e-6, "0.000001"},
        {1e-7, "1e-7"},
        {1.5e-7, "1.5e-7"},
        {-2.5, "-2.5"},
        {1e300, "1e+300"},
        {100, "100"},
        {5e-324, "5e-324"},
        {0.30000000000000004, "0.30000000000000004"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cleanup_free char *s = value_number_text(cases[i].v);
        assert_string_equal(s, cases[i].text);
    }
}

static void strings_are_trimmed_and_numbers_become_text(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"memory\":4.0,\"image\":\" \xc2\xa0ubuntu\\n\",\"disk\":\"  "
               "\",\"command\":true,\"prompt\":[1]}");
    assert_string_equal(c->memory, "4");
    assert_string_equal(c->image, "ubuntu");
    assert_null(c->disk);
    assert_null(c->command);
    assert_null(c->prompt);
}

static void integers_are_read_from_text_and_truncated(void **state)
{
    static const struct {
        const char *json;
        int64_t port;
    } cases[] = {{"\"4.8\"", 4},   {"\"1e3\"", 1000}, {"\"0x10\"", 16}, {"22.9", 22},
                 {"\" 80 \"", 80}, {"\"\"", 22},      {"null", 22},     {"\"0b11\"", 3},
                 {"\"+7\"", 7},    {"\"5.\"", 5}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cleanup_free char *text = xasprintf("{" K ",\"sshPort\":%s}", cases[i].json);
        cleanup_config struct config *c = parsed(text);
        assert_int_equal(c->ssh_port, cases[i].port);
    }
}

static void other_text_is_no_integer(void **state)
{
    static const char *const bad[] = {
        "\"abc\"", "true",    "[]",        "[5]",      "{}",     "\"5 6\"",      "\"0x1.8p3\"",
        "\"inf\"", "\"nan\"", "\"1e999\"", "\"12px\"", "\"0x\"", "\"5\\u0000\"", "\".\""};
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_free char *text = xasprintf("{" K ",\"sshPort\":%s}", bad[i]);
        refused(text, "sshPort", "sshPort must be a whole number from 1 to 65535");
    }
}

static void lists_come_from_arrays_and_commas(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"tags\":[\" a,b \",5,\"\",true,null],\"integrations\":\"x, y,,z \"}");
    assert_int_equal(json_array_size(c->tags), 2);
    assert_string_equal(json_string_value(json_array_get(c->tags, 0)), "a,b");
    assert_string_equal(json_string_value(json_array_get(c->tags, 1)), "5");
    assert_int_equal(json_array_size(c->integrations), 3);
    assert_string_equal(json_string_value(json_array_get(c->integrations, 2)), "z");
    cleanup_config struct config *d = parsed("{" K ",\"tags\":7,\"integrations\":{\"a\":1}}");
    assert_int_equal(json_array_size(d->tags) + json_array_size(d->integrations), 0);
}

static void maps_keep_what_has_a_value(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"env\":{\" A \":\" x \",\"B\":4.0,\"C\":\"\",\"D\":null,\"  \":\"y\"}}");
    assert_int_equal(json_object_size(c->env), 2);
    assert_string_equal(json_str(c->env, "A"), "x");
    assert_string_equal(json_str(c->env, "B"), "4");
}

static void only_true_is_true(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"reuseLease\":\"true\",\"waitForSetup\":1,\"sourceNvm\":true}");
    assert_false(c->reuse_lease);
    assert_false(c->wait_for_setup);
    assert_true(c->source_nvm);
}

static void defaults_hold(void **state)
{
    (void)state;
    cleanup_config struct config *c = parsed("{" K "}");
    assert_int_equal(c->ssh_port, 22);
    assert_string_equal(c->strict_host_key_checking, "accept-new");
    assert_int_equal(c->cpu, 0);
    assert_null(c->memory);
    assert_string_equal(c->name_prefix, "paperclip");
    assert_string_equal(c->api_url, "https://exe.dev/exec");
    assert_int_equal(c->timeout_ms, 300000);
    assert_int_equal(c->connections_per_ten_seconds, 4);
    assert_int_equal(c->node_major, 24);
    assert_int_equal(c->output_cap, 64 << 20);
    assert_string_equal(c->api_key_source, "apiKey");
}

static void api_urls_are_normalised(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {
        {"https://exe.dev", "https://exe.dev/exec"},
        {"https://exe.dev/exec///", "https://exe.dev/exec"},
        {"http://127.0.0.1:8080/", "http://127.0.0.1:8080/exec"},
        {"https://exe.dev/api?x=1", "https://exe.dev/api/exec?x=1"},
        {"https://exe.dev/exec/?x=/", "https://exe.dev/exec?x=/"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *why;
        cleanup_free char *url = value_api_url(cases[i].in, &why);
        assert_string_equal(url, cases[i].out);
    }
}

static void refuses_a_url_that_is_none(void **state)
{
    (void)state;
    refused("{" K ",\"apiUrl\":\"ftp://exe.dev/\"}", "apiUrl", "https://");
    refused("{" K ",\"apiUrl\":\"exe.dev\"}", "apiUrl", "not an http(s) URL");
    refused("{" K ",\"apiUrl\":\"https://\"}", "apiUrl", "not an http(s) URL");
    refused("{" K ",\"apiUrl\":\"https://exe.dev/a b\\nHost: x\"}", "apiUrl", "not an http(s) URL");
    refused("{" K ",\"apiUrl\":\"https://u:p@exe.dev\"}", "apiUrl", "user name or password");
}

static void refuses_numbers_out_of_range(void **state)
{
    (void)state;
    refused("{" K ",\"sshPort\":0}", "sshPort", "out of range");
    refused("{" K ",\"sshPort\":65536}", "sshPort", "from 1 to 65535");
    refused("{" K ",\"timeoutMs\":0}", "timeoutMs", "from 1 to 86400000");
    refused("{" K ",\"timeoutMs\":86400001}", "timeoutMs", "out of range");
    refused("{" K ",\"cpu\":0}", "cpu", "out of range");
    refused("{" K ",\"cpu\":-1e300}", "cpu", "out of range");
}

static void refuses_a_missing_api_key(void **state)
{
    (void)state;
    refused("{}", "apiKey", "exedev token mint");
    refused("{\"apiKey\":\"  \"}", "apiKey", "missing");
}

static void refuses_a_bad_env_key(void **state)
{
    (void)state;
    refused("{" K ",\"env\":{\"1A\":\"x\"}}", "env", "`1A`");
    refused("{" K ",\"env\":{\"A-B\":\"x\"}}", "env", "`A-B`");
    refused("{" K ",\"env\":{\"A=B\":\"x\"}}", "env", "`A=B`");
}

static void refuses_blank_and_unknown_host_key_checking(void **state)
{
    (void)state;
    refused("{" K ",\"strictHostKeyChecking\":\"  \"}", "strictHostKeyChecking", "blank");
    refused("{" K ",\"strictHostKeyChecking\":\"ask\"}", "strictHostKeyChecking",
            "nobody is there");
    refused("{" K ",\"strictHostKeyChecking\":\"maybe\"}", "strictHostKeyChecking",
            "accept-new, yes or no");
    cleanup_config struct config *c = parsed("{" K ",\"strictHostKeyChecking\":\"off\"}");
    assert_string_equal(c->strict_host_key_checking, "no");
}

static void refuses_what_exe_dev_would_refuse(void **state)
{
    cleanup_free char *big = xmalloc(70001);
    (void)state;

    memset(big, 'x', 70000);
    cleanup_free char *comment = xasprintf("{" K ",\"comment\":\"%.201s\"}", big);
    refused(comment, "comment", "201 bytes");
    cleanup_free char *script = xasprintf("{" K ",\"setupScript\":\"%.10241s\"}", big);
    refused(script, "setupScript", "10241 bytes");
    cleanup_free char *prompt = xasprintf("{" K ",\"prompt\":\"%.66000s\"}", big);
    refused(prompt, "env", "65536");
    refused("{" K ",\"memory\":\"lots\"}", "memory", "not a size");
    refused("{" K ",\"disk\":\"0GB\"}", "disk", "not a size");
    refused("{" K ",\"disk\":\"-5GB\"}", "disk", "not a size");
    refused("{" K ",\"registryAuth\":\"nocolon\"}", "registryAuth", "USER:PASSWORD");
}

static void refuses_names_that_could_be_options(void **state)
{
    (void)state;
    refused("{" K ",\"sshUser\":\"-oProxyCommand=x\"}", "sshUser", "sshUser");
    refused("{" K ",\"sshUser\":\"a b\"}", "sshUser", "sshUser");
    refused("{" K ",\"sshUser\":\"a'b\"}", "sshUser", "sshUser");
    refused("{" K ",\"sourceVm\":\"-rf\"}", "sourceVm", "name of a VM");
    refused("{" K ",\"sourceVm\":\"test-123\"}", "sourceVm", "name of a VM");
    refused("{" K ",\"sshIdentityFile\":\"id_rsa\"}", "sshIdentityFile", "absolute path");
    refused("{" K ",\"caFile\":\"ca.pem\"}", "caFile", "absolute path");
    refused("{" K ",\"sshAgentSocket\":\"agent\"}", "sshAgentSocket", "absolute path");
    refused("{" K ",\"sshConfigFile\":\"config\"}", "sshConfigFile", "absolute path");
    refused("{" K ",\"httpsProxy\":\"proxy:3128\"}", "httpsProxy", "http(s) URL");
}

static void refuses_nul_and_header_injection(void **state)
{
    (void)state;
    refused("{" K ",\"image\":\"a\\u0000b\"}", "image", "NUL");
    refused("{\"apiKey\":\"exe1.abc\\r\\nX-Evil: 1\"}", "apiKey", "white space");
}

static void refuses_known_hosts_that_are_none(void **state)
{
    (void)state;
    refused("{" K ",\"sshKnownHosts\":\"# c\\nhost only\"}", "sshKnownHosts", "line 2");
    refused("{" K ",\"sshKnownHosts\":\"# only a comment\"}", "sshKnownHosts", "no host key");
    cleanup_config struct config *c = parsed(
        "{" K
        ",\"sshKnownHosts\":\"*.exe.xyz ssh-ed25519 AAAA\",\"strictHostKeyChecking\":\"no\"}");
    assert_string_equal(c->strict_host_key_checking, "yes");
}

static void refuses_something_that_is_no_object(void **state)
{
    (void)state;
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *raw = object("[1]");
    cleanup_json json_t *normal = config_validate(raw, CONFIG_OFFLINE, &p);
    assert_null(normal);
    assert_true(has(&p, false, NULL, "not a JSON object"));
}

static void tells_every_problem_at_once(void **state)
{
    (void)state;
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normal = validate("{\"sshPort\":\"x\",\"apiUrl\":\"ftp:\",\"env\":{\"-\":"
                                           "\"1\"},\"sshPrivateKey\":\"junk\",\"cpu\":0}",
                                           &p);
    assert_null(normal);
    assert_int_equal(problems_errors(&p), 6);
    cleanup_error struct error err = {0};
    assert_false(problems_to_error(&p, &err));
    assert_non_null(strstr(err.msg, "sshPort"));
    assert_non_null(strstr(err.msg, "apiKey"));
}

static void a_private_key_that_is_none_is_an_error(void **state)
{
    (void)state;
    refused("{" K ",\"sshPrivateKey\":\"ssh-ed25519 AAAAC3NzaC1\"}", "sshPrivateKey",
            "public SSH key");
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normal =
        validate("{" K ",\"sshPrivateKey\":\"0B9C3A52-7B1E-4B0F-9D6A-2C8E5F7A1B3D\"}", &p);
    assert_non_null(normal);
}

static void warnings_of_the_spec(void **state)
{
    (void)state;
    warned("{" K "}", NULL, "registered with the exe.dev account");
    warned("{" K ",\"reuseLease\":true}", "reuseLease", "billed");
    warned("{" K ",\"sourceVm\":\"tmpl\",\"image\":\"x\",\"env\":{\"A\":\"b\"},\"setupScript\":"
           "\"true\",\"tags\":\"t\"}",
           "sourceVm", "image, env, tags, setupScript");
    warned("{" K ",\"apiUrl\":\"http://exe.example\"}", "apiUrl", "unencrypted");
    warned("{" K ",\"sshIdentityFile\":\"/nonexistent/key\"}", "sshIdentityFile", "cannot be read");
}

static void nothing_ignored_no_warning(void **state)
{
    (void)state;
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normal = validate("{" K ",\"sourceVm\":\"tmpl\",\"cpu\":2}", &p);
    assert_non_null(normal);
    assert_int_equal(p.n, 1); /* the one about SSH access */
}

static void normalised_config_has_every_field(void **state)
{
    (void)state;
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *n =
        validate("{" K ",\"cpu\":\"4\",\"namePrefix\":\"My "
                 "Agents!\",\"apiUrl\":\"https://exe.dev\",\"future\":{\"a\":[1]},"
                 "\"sshIdentityFile\":\"/k\",\"envText\":\"A=1\"}",
                 &p);
    assert_non_null(n);
    for (const struct config_field *f = config_fields; f->key; f++)
        assert_non_null(json_object_get(n, f->key));
    assert_int_equal(json_int(n, "cpu", 0), 4);
    assert_string_equal(json_str(n, "namePrefix"), "my-agents");
    assert_string_equal(json_str(n, "apiUrl"), "https://exe.dev/exec");
    assert_true(json_is_null(json_object_get(n, "memory")));
    assert_true(json_is_null(json_object_get(n, "expiresInMinutes")));
    assert_int_equal(json_int(n, "sshPort", 0), 22);
    assert_true(json_is_false(json_object_get(n, "reuseLease")));
    assert_int_equal(json_array_size(json_object_get(json_object_get(n, "future"), "a")), 1);
    /* envText stays where it is, or saving twice would turn it into env. */
    assert_int_equal(json_object_size(json_object_get(n, "env")), 0);
}

static void normalising_twice_changes_nothing(void **state)
{
    (void)state;
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *one =
        validate("{" K ",\"cpu\":2,\"tags\":\"a,b\",\"env\":{\"A\":\"1\"},\"x\":null}", &p);
    cleanup_json json_t *two = config_validate(one, CONFIG_OFFLINE, &p);
    assert_true(json_equal(one, two));
}

static void a_key_from_the_environment_is_used_and_never_saved(void **state)
{
    (void)state;
    setenv("EXE_API_KEY", " exe1.fromenvironment \n", 1);
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *n = validate("{}", &p);
    cleanup_config struct config *c = parsed("{}");
    unsetenv("EXE_API_KEY");
    assert_non_null(n);
    assert_true(json_is_null(json_object_get(n, "apiKey")));
    assert_string_equal(c->api_key, "exe1.fromenvironment");
    assert_string_equal(c->api_key_source, "EXE_API_KEY");
}

static void token_file(const char *home, mode_t mode, const char *text)
{
    cleanup_free char *cmd = xasprintf("mkdir -p %s/.config/exedev", home);
    cleanup_free char *path = xasprintf("%s/.config/exedev/token", home);

    assert_int_equal(system(cmd), 0);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
    assert_int_equal(chmod(path, mode), 0);
}

static void a_token_file_is_found_and_refused_when_others_can_read_it(void **state)
{
    (void)state;
    char home[] = "/tmp/exedev-test-XXXXXX";
    assert_non_null(mkdtemp(home));
    setenv("HOME", home, 1);

    token_file(home, 0600, "exe1.fromafile\n");
    cleanup_config struct config *c = parsed("{}");
    assert_string_equal(c->api_key, "exe1.fromafile");
    token_file(home, 0644, "exe1.fromafile\n");
    refused("{}", "apiKey", "chmod 600");

    setenv("HOME", "/nonexistent", 1);
    cleanup_free char *cmd = xasprintf("rm -r %s", home);
    assert_int_equal(system(cmd), 0);
}

static void env_text_is_read_like_a_dotenv_file(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"env\":{\"A\":\"old\",\"Z\":\"z\"},\"envText\":\"# c\\nA=new # "
               "note\\n\\nexport B='x # y'\\n"
               "C=\\\"l1\\nl2\\\\t$\\\"\\nD=a#b\\nE=\\nF= 'q' # c\\r\\n\"}");
    assert_string_equal(json_str(c->env, "A"), "new");
    assert_string_equal(json_str(c->env, "B"), "x # y");
    assert_string_equal(json_str(c->env, "C"), "l1\nl2\t$");
    assert_string_equal(json_str(c->env, "D"), "a#b");
    assert_string_equal(json_str(c->env, "E"), "");
    assert_string_equal(json_str(c->env, "F"), "q");
    assert_string_equal(json_str(c->env, "Z"), "z");
}

static void env_text_problems_name_the_line_and_not_its_text(void **state)
{
    (void)state;
    refused("{" K ",\"envText\":\"A=1\\nhunter2\"}", "envText", "line 2");
    refused("{" K ",\"envText\":\"A=1\\n\\nB='open\\nmore\"}", "envText", "line 3 is never closed");
    refused("{" K ",\"envText\":\"A='x'y\"}", "envText", "line 1 goes on");
    cleanup_problems struct problems p = {0};
    json_t *n = validate("{" K ",\"envText\":\"hunter2\"}", &p);
    assert_null(n);
    for (size_t i = 0; i < p.n; i++)
        assert_null(strstr(p.list[i].text, "hunter2"));
}

static void the_identity_file_gives_way_to_the_key(void **state)
{
    (void)state;
    cleanup_config struct config *c =
        parsed("{" K ",\"sshIdentityFile\":\"/k\",\"sshPrivateKey\":\"x\"}");
    assert_null(c->ssh_identity_file);
}

static void secrets_are_known_to_redact_while_the_config_lives(void **state)
{
    (void)state;
    struct config *c = parsed("{\"apiKey\":\"exe1.verysecret\",\"registryAuth\":\"me:passw0rd\"}");
    cleanup_free char *hidden = redact("exe1.verysecret me:passw0rd");
    assert_string_equal(hidden, REDACTED " " REDACTED);
    config_free(c);
    cleanup_free char *again = redact("exe1.verysecret");
    assert_string_equal(again, "exe1.verysecret");
}

static void account_ids_tell_accounts_apart(void **state)
{
    (void)state;
    cleanup_config struct config *a = parsed("{" K "}"), *b = parsed("{" K ",\"cpu\":2}");
    cleanup_config struct config *c = parsed("{" K ",\"apiUrl\":\"https://other.example\"}");
    cleanup_config struct config *d = parsed("{\"apiKey\":\"exe1.other\"}");
    cleanup_free char *ia = config_account_id(a), *ib = config_account_id(b),
                      *ic = config_account_id(c), *id = config_account_id(d);
    assert_string_equal(ia, ib);
    assert_string_not_equal(ia, ic);
    assert_string_not_equal(ia, id);
    assert_int_equal(strlen(ia), 32);
}

static void setup_scripts(void **state)
{
    (void)state;
    cleanup_config struct config *plain = parsed("{" K "}"),
                                 *none = parsed("{" K ",\"setupScript\":\"none\"}");
    cleanup_config struct config *own = parsed("{" K ",\"setupScript\":\" echo hi \"}");
    cleanup_free char *built = setup_script(plain), *nothing = setup_script(none),
                      *mine = setup_script(own);
    assert_null(nothing);
    assert_string_equal(mine, "echo hi");
    assert_non_null(strstr(built, "setup_24.x"));
    assert_true(strlen(built) < 10240);
    /* exe.dev reads backslash-n as a newline. */
    assert_null(strstr(built, "\\n"));
    FILE *sh = popen("sh -n", "w");
    assert_non_null(sh);
    fputs(built, sh);
    assert_int_equal(pclose(sh), 0);
}

int main(void)
{
    unsetenv("EXE_API_KEY");
    setenv("HOME", "/nonexistent", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(numbers_print_as_javascript_prints_them),
        cmocka_unit_test(strings_are_trimmed_and_numbers_become_text),
        cmocka_unit_test(integers_are_read_from_text_and_truncated),
        cmocka_unit_test(other_text_is_no_integer),
        cmocka_unit_test(lists_come_from_arrays_and_commas),
        cmocka_unit_test(maps_keep_what_has_a_value),
        cmocka_unit_test(only_true_is_true),
        cmocka_unit_test(defaults_hold),
        cmocka_unit_test(api_urls_are_normalised),
        cmocka_unit_test(refuses_a_url_that_is_none),
        cmocka_unit_test(refuses_numbers_out_of_range),
        cmocka_unit_test(refuses_a_missing_api_key),
        cmocka_unit_test(refuses_a_bad_env_key),
        cmocka_unit_test(refuses_blank_and_unknown_host_key_checking),
        cmocka_unit_test(refuses_what_exe_dev_would_refuse),
        cmocka_unit_test(refuses_names_that_could_be_options),
        cmocka_unit_test(refuses_nul_and_header_injection),
        cmocka_unit_test(refuses_known_hosts_that_are_none),
        cmocka_unit_test(refuses_something_that_is_no_object),
        cmocka_unit_test(tells_every_problem_at_once),
        cmocka_unit_test(a_private_key_that_is_none_is_an_error),
        cmocka_unit_test(warnings_of_the_spec),
        cmocka_unit_test(nothing_ignored_no_warning),
        cmocka_unit_test(normalised_config_has_every_field),
        cmocka_unit_test(normalising_twice_changes_nothing),
        cmocka_unit_test(a_key_from_the_environment_is_used_and_never_saved),
        cmocka_unit_test(a_token_file_is_found_and_refused_when_others_can_read_it),
        cmocka_unit_test(env_text_is_read_like_a_dotenv_file),
        cmocka_unit_test(env_text_problems_name_the_line_and_not_its_text),
        cmocka_unit_test(the_identity_file_gives_way_to_the_key),
        cmocka_unit_test(secrets_are_known_to_redact_while_the_config_lives),
        cmocka_unit_test(account_ids_tell_accounts_apart),
        cmocka_unit_test(setup_scripts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
