#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/config.h"
#include "lib/secret.h"
#include "lib/token.h"

static char dir[] = "/tmp/exedev-token-XXXXXX";

static char *file(const char *name)
{
    return xasprintf("%s/%s", dir, name);
}

static char *content(const char *name)
{
    cleanup_free char *path = file(name);
    cleanup_buf struct buf b = {0};

    assert_true(io_read_file(path, 65536, &b, NULL));
    return buf_steal(&b);
}

static json_t *list(const char *a, const char *b, const char *c)
{
    json_t *l = json_array();

    for (int i = 0; i < 3; i++) {
        const char *s = i == 0 ? a : i == 1 ? b : c;
        if (s)
            json_array_append_new(l, json_string(s));
    }
    return l;
}

static char *mint(json_t *cmds, int64_t nbf, int64_t exp, const char *vm)
{
    cleanup_buf struct buf payload = {0};
    cleanup_error struct error err = {0};
    cleanup_free char *key = file("key");
    struct token_signer s = {.key_file = key};

    assert_true(token_payload(cmds, nbf, exp, NULL, &payload, &err));
    json_decref(cmds);
    char *t = token_mint(&s, vm, &payload, deadline_in(20000), &err);
    if (!t)
        fail_msg("%s", err.msg);
    return t;
}

/* An exe0 token of any payload text, with a real signature's bytes after it. */
static char *forge(const char *payload)
{
    cleanup_secret char *good = mint(list("ls", NULL, NULL), 0, 0, NULL);
    size_t n = strlen(payload);
    cleanup_free char *b64 = xmalloc(n * 2 + 8);

    EVP_EncodeBlock((unsigned char *)b64, (const unsigned char *)payload, (int)n);
    b64[strcspn(b64, "=")] = '\0';
    for (char *c = b64; *c; c++)
        *c = *c == '+' ? '-' : *c == '/' ? '_' : *c;
    return xasprintf("exe0.%s%s", b64, strrchr(good, '.'));
}

static void refused(const char *text, const char *words)
{
    cleanup_token struct token t = {0};
    cleanup_error struct error err = {0};

    assert_false(token_parse(text, &t, &err));
    assert_int_equal(err.code, ERR_INVALID);
    if (!strstr(err.msg, words))
        fail_msg("%s", err.msg);
}

static void payload_refused(const char *payload, const char *words)
{
    cleanup_free char *t = forge(payload);

    refused(t, words);
}

static void a_minted_token_reads_back(void **state)
{
    (void)state;
    int64_t exp = time(NULL) + 3600;
    cleanup_secret char *text = mint(list("new", "rm", "ssh-key list"), 0, exp, NULL);
    cleanup_token struct token t = {0};
    assert_true(token_parse(text, &t, NULL));
    assert_int_equal(t.kind, TOKEN_EXE0);
    assert_int_equal(t.exp, exp);
    assert_int_equal(t.nbf, 0);
    assert_string_equal(t.scope, "v0@exe.dev");
    assert_string_equal(t.key_type, "ssh-ed25519");
    assert_true(token_allows(&t, "rm"));
    assert_true(token_allows(&t, "ssh-key list"));
    assert_false(token_allows(&t, "ls"));
}

static void the_fingerprint_is_what_ssh_keygen_prints(void **state)
{
    (void)state;
    cleanup_secret char *text = mint(NULL, 0, 0, NULL);
    cleanup_token struct token t = {0};
    cleanup_free char *cmd = xasprintf("ssh-keygen -lf %s/key.pub", dir);
    char line[300];
    assert_true(token_parse(text, &t, NULL));
    FILE *f = popen(cmd, "r");
    assert_non_null(fgets(line, sizeof line, f));
    pclose(f);
    assert_non_null(strstr(line, t.fingerprint));
    assert_int_equal(strlen(t.fingerprint), 7 + 43);
}

/* exe-dev.md: the signature is an SSHSIG over exactly the payload's bytes, namespace v0@exe.dev. */
static void the_signature_is_good_for_ssh_keygen(void **state)
{
    (void)state;
    cleanup_secret char *text = mint(list("ls", NULL, NULL), 0, 0, "bloggy");
    cleanup_free char *pub = content("key.pub");
    cleanup_free char *script = xasprintf(
        "set -e; cd %s; printf 'me namespaces=\"v0@bloggy.exe.xyz\" %%s' '%.*s' >signers\n"
        "b() { tr '_-' '/+' | awk '{ while (length($0) %% 4) $0 = $0 \"=\"; print }' | base64 -d; "
        "}\n"
        "echo '%.*s' | b >payload\n"
        "{ echo '-----BEGIN SSH SIGNATURE-----'; echo '%s' | b | base64 -w70; echo '-----END SSH "
        "SIGNATURE-----'; } >sig\n"
        "ssh-keygen -Y verify -f signers -I me -n v0@bloggy.exe.xyz -s sig <payload >/dev/null",
        dir, (int)strcspn(pub, "\n"), pub, (int)strcspn(text + 5, "."), text + 5,
        strrchr(text, '.') + 1);
    assert_int_equal(system(script), 0);
}

static void default_commands_cannot_delete(void **state)
{
    (void)state;
    cleanup_secret char *text = mint(NULL, 0, 0, NULL);
    cleanup_token struct token t = {0};
    assert_true(token_parse(text, &t, NULL));
    assert_true(token_allows(&t, "new"));
    assert_true(token_allows(&t, "team members"));
    assert_false(token_allows(&t, "rm"));
    assert_false(token_allows(&t, "cp"));
    assert_false(token_allows(&t, "restart"));
}

static void an_empty_list_allows_nothing(void **state)
{
    (void)state;
    cleanup_secret char *text = mint(list(NULL, NULL, NULL), 0, 0, NULL);
    cleanup_token struct token t = {0};
    assert_true(token_parse(text, &t, NULL));
    assert_false(token_allows(&t, "ls"));
}

static void opaque_tokens_pass_and_allow_everything(void **state)
{
    (void)state;
    cleanup_token struct token t = {0}, o = {0};
    assert_true(token_parse("exe1.whatever", &t, NULL));
    assert_int_equal(t.kind, TOKEN_EXE1);
    assert_true(token_allows(&t, "rm"));
    assert_true(token_parse("lobby-token", &o, NULL));
    assert_int_equal(o.kind, TOKEN_OTHER);
}

static void refuses_unknown_members(void **state)
{
    (void)state;
    payload_refused("{\"cmds\":[\"ls\"],\"admin\":true}", "`admin`");
}

static void refuses_duplicate_keys(void **state)
{
    (void)state;
    payload_refused("{\"exp\":1800000000,\"exp\":1900000000}", "duplicate");
}

static void refuses_times_out_of_range(void **state)
{
    (void)state;
    payload_refused("{\"exp\":1}", "`exp`");
    payload_refused("{\"nbf\":4102444801}", "`nbf`");
    payload_refused("{\"exp\":1800000000.5}", "`exp`");
    payload_refused("{\"exp\":\"1800000000\"}", "`exp`");
    cleanup_buf struct buf b = {0};
    assert_false(token_payload(NULL, 1900000000, 1800000000, NULL, &b, NULL));
    assert_false(token_payload(NULL, 0, 1, NULL, &b, NULL));
}

static void refuses_cmds_that_are_no_list_of_names(void **state)
{
    (void)state;
    payload_refused("{\"cmds\":\"ls\"}", "`cmds`");
    payload_refused("{\"cmds\":[1]}", "`cmds`");
}

static void refuses_white_space_around_and_newlines(void **state)
{
    (void)state;
    payload_refused(" {\"cmds\":[]}", "bare JSON object");
    payload_refused("{\"cmds\":[]} ", "bare JSON object");
    payload_refused("{\"cmds\":\n[]}", "newline");
    payload_refused("[1]", "bare JSON object");
    payload_refused("{\"cmds\":[}", "not valid JSON");
}

static void refuses_damage(void **state)
{
    (void)state;
    cleanup_secret char *good = mint(NULL, 0, 0, NULL);
    cleanup_free char *cut = xstrndup(good, strlen(good) - 12);
    cleanup_free char *long_one = xmalloc(9001);
    memset(long_one, 'a', 9000);
    long_one[9000] = '\0';
    refused(cut, "cut off");
    refused("exe0.abc", "three parts");
    refused("exe0.a.b.c", "three parts");
    refused("exe0.e30=.e30", "base64url");
    refused("exe0.e30.e30", "no SSH signature");
    refused("exe1.a b", "white space");
    refused("", "empty");
    refused(long_one, "8 KiB");
}

static void mints_from_memory(void **state)
{
    (void)state;
    cleanup_free char *pem = content("key");
    cleanup_key struct key *k = key_load(pem, NULL);
    struct token_signer s = {.key = k};
    cleanup_buf struct buf payload = {0};
    cleanup_error struct error err = {0};
    cleanup_token struct token t = {0};
    token_payload(NULL, 0, 0, NULL, &payload, NULL);
    cleanup_secret char *text = token_mint(&s, NULL, &payload, deadline_in(20000), &err);
    if (!text)
        fail_msg("%s", err.msg);
    assert_true(token_parse(text, &t, NULL));
}

static void mints_with_an_agent(void **state)
{
    (void)state;
    cleanup_free char *sock = file("agent.sock");
    cleanup_free char *start = xasprintf("ssh-agent -a %s >%s/agent.env && . %s/agent.env "
                                         ">/dev/null && ssh-add -q %s/key 2>/dev/null",
                                         sock, dir, dir, dir);
    cleanup_free char *stop = xasprintf(". %s/agent.env >/dev/null; kill $SSH_AGENT_PID", dir);
    cleanup_free char *pub = content("key.pub");
    struct token_signer s = {.agent_socket = sock, .public_key = pub};
    cleanup_buf struct buf payload = {0};
    cleanup_error struct error err = {0};
    cleanup_token struct token t = {0};

    assert_int_equal(system(start), 0);
    token_payload(NULL, 0, 0, NULL, &payload, NULL);
    char *text = token_mint(&s, NULL, &payload, deadline_in(20000), &err);
    struct config c = {.ssh_agent_socket = sock};
    char *vm = token_mint_vm(&c, "bloggy", 600, deadline_in(20000), NULL);
    assert_int_equal(system(stop), 0);
    if (!text)
        fail_msg("%s", err.msg);
    assert_true(token_parse(text, &t, NULL));
    secret_free(text);
    assert_non_null(vm);
    token_clear(&t);
    assert_true(token_parse(vm, &t, NULL));
    assert_string_equal(t.scope, "v0@bloggy.exe.xyz");
    secret_free(vm);
}

static void minting_fails_with_ssh_keygens_words(void **state)
{
    (void)state;
    struct token_signer s = {.key_file = "/nonexistent/key"};
    cleanup_buf struct buf payload = {0};
    cleanup_error struct error err = {0};
    token_payload(NULL, 0, 0, NULL, &payload, NULL);
    assert_null(token_mint(&s, NULL, &payload, deadline_in(20000), &err));
    assert_non_null(strstr(err.msg, "No such file"));
    error_clear(&err);
    assert_null(token_mint(&s, "bad name", &payload, deadline_in(20000), &err));
    assert_non_null(strstr(err.msg, "one VM"));
}

static void descriptions(void **state)
{
    (void)state;
    int64_t now = time(NULL);
    cleanup_secret char *text = mint(list("new", "ls", NULL), now - 100, now + 86400, NULL);
    cleanup_secret char *old = mint(NULL, 0, now - 100, "bloggy");
    cleanup_token struct token t = {0}, o = {0};
    cleanup_buf struct buf b = {0}, c = {0};
    assert_true(token_parse(text, &t, NULL) && token_parse(old, &o, NULL));
    token_describe(&t, now, &b);
    token_describe(&o, now, &c);
    assert_non_null(strstr(b.data, "new, ls"));
    assert_non_null(strstr(b.data, "SHA256:"));
    assert_non_null(strstr(b.data, "expires: "));
    assert_non_null(strstr(c.data, "expired: "));
    assert_non_null(strstr(c.data, "bloggy.exe.xyz"));
}

static void durations(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "d", "-1d", "1x", "1dd", "0", " 1", "99999999999999999999d", "200000d"};
    int64_t s;
    assert_true(token_duration("30d", &s, NULL) && s == 30 * 86400);
    assert_true(token_duration("12h", &s, NULL) && s == 43200);
    assert_true(token_duration("90", &s, NULL) && s == 90);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(token_duration(bad[i], &s, NULL));
}

/* What the settings form says about the token. */
static void judged(char *token, const char *more, bool warning, const char *words)
{
    cleanup_free char *text = xasprintf("{\"apiKey\":\"%s\"%s}", token, more);
    cleanup_json json_t *raw = json_parse(text, strlen(text), NULL);
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *n = config_validate(raw, CONFIG_OFFLINE, &p);

    secret_free(token);
    for (size_t i = 0; i < p.n; i++)
        if (p.list[i].field && !strcmp(p.list[i].field, "apiKey") && p.list[i].warning == warning &&
            strstr(p.list[i].text, words))
            return;
    fail_msg("nothing said about `%s`", words);
}

static void an_expired_token_is_an_error(void **state)
{
    (void)state;
    judged(mint(list("new", "ls", "rm"), 0, time(NULL) - 60, NULL), "", false, "expired");
}

static void a_token_not_yet_valid_is_an_error(void **state)
{
    (void)state;
    judged(mint(list("new", "ls", "rm"), time(NULL) + 6000, 0, NULL), "", false, "not valid yet");
}

static void a_token_that_expires_soon_is_a_warning(void **state)
{
    (void)state;
    judged(mint(list("new", "ls", "rm"), 0, time(NULL) + 86400, NULL), "", true, "expires in");
}

static void a_token_without_a_command_names_it(void **state)
{
    (void)state;
    judged(mint(NULL, 0, 0, NULL), "", false, "`rm`");
    judged(mint(list("new", "rm", NULL), 0, 0, NULL), "", false, "`ls`");
    judged(mint(list("new", "ls", "rm"), 0, 0, NULL), ",\"sourceVm\":\"tmpl\"", false, "`cp`");
    judged(mint(list("new", "ls", "rm"), 0, 0, NULL), ",\"reuseLease\":true", false, "`restart`");
    judged(mint(list("ls", "rm", NULL), 0, 0, NULL), "", false, "--cmds new,ls,rm");
}

static void a_vm_token_is_no_api_key(void **state)
{
    (void)state;
    judged(mint(list("new", "ls", "rm"), 0, 0, "bloggy"), "", false, "HTTPS proxy of one VM");
}

static void a_damaged_token_is_an_error(void **state)
{
    (void)state;
    judged(secret_dup("exe0.xyz"), "", false, "three parts");
}

static void a_good_token_is_nothing_to_talk_about(void **state)
{
    (void)state;
    cleanup_secret char *t = mint(list("new", "ls", "rm"), 0, time(NULL) + 90 * 86400, NULL);
    cleanup_free char *text = xasprintf("{\"apiKey\":\"%s\"}", t);
    cleanup_json json_t *raw = json_parse(text, strlen(text), NULL);
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *n = config_validate(raw, CONFIG_OFFLINE, &p);
    assert_non_null(n);
    assert_int_equal(p.n, 1); /* SSH access */
}

static void the_next_token_of_a_key_is_the_same_account(void **state)
{
    (void)state;
    cleanup_secret char *a = mint(NULL, 0, 0, NULL), *b = mint(list("ls", NULL, NULL), 0, 0, NULL);
    struct config ca = {.api_url = (char *)"https://exe.dev/exec", .api_key = a}, cb = ca;
    cb.api_key = b;
    cleanup_free char *ia = config_account_id(&ca), *ib = config_account_id(&cb);
    assert_string_equal(ia, ib);
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    cleanup_free char *cmd = xasprintf("ssh-keygen -q -t ed25519 -N '' -C test -f %s/key", dir);
    return system(cmd);
}

static int tear_down(void **state)
{
    (void)state;
    cleanup_free char *cmd = xasprintf("rm -r %s", dir);
    return system(cmd);
}

int main(void)
{
    unsetenv("EXE_API_KEY");
    setenv("HOME", "/nonexistent", 1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_minted_token_reads_back),
        cmocka_unit_test(the_fingerprint_is_what_ssh_keygen_prints),
        cmocka_unit_test(the_signature_is_good_for_ssh_keygen),
        cmocka_unit_test(default_commands_cannot_delete),
        cmocka_unit_test(an_empty_list_allows_nothing),
        cmocka_unit_test(opaque_tokens_pass_and_allow_everything),
        cmocka_unit_test(refuses_unknown_members),
        cmocka_unit_test(refuses_duplicate_keys),
        cmocka_unit_test(refuses_times_out_of_range),
        cmocka_unit_test(refuses_cmds_that_are_no_list_of_names),
        cmocka_unit_test(refuses_white_space_around_and_newlines),
        cmocka_unit_test(refuses_damage),
        cmocka_unit_test(mints_from_memory),
        cmocka_unit_test(mints_with_an_agent),
        cmocka_unit_test(minting_fails_with_ssh_keygens_words),
        cmocka_unit_test(descriptions),
        cmocka_unit_test(durations),
        cmocka_unit_test(an_expired_token_is_an_error),
        cmocka_unit_test(a_token_not_yet_valid_is_an_error),
        cmocka_unit_test(a_token_that_expires_soon_is_a_warning),
        cmocka_unit_test(a_token_without_a_command_names_it),
        cmocka_unit_test(a_vm_token_is_no_api_key),
        cmocka_unit_test(a_damaged_token_is_an_error),
        cmocka_unit_test(a_good_token_is_nothing_to_talk_about),
        cmocka_unit_test(the_next_token_of_a_key_is_the_same_account),
    };
    signal(SIGPIPE, SIG_IGN); /* as the programs do: ssh-keygen may end before it has read all */
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
