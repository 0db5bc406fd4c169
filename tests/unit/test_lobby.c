/* The lobby's parsers and rules: command line, tokens, fault specs, request heads, addresses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"
#include "lobby/command.h"
#include "lobby/disk.h"
#include "lobby/fault.h"
#include "lobby/head.h"
#include "lobby/lex.h"
#include "lobby/listen.h"
#include "lobby/token.h"

static void lexes(const char *line, size_t n, const char *const *want)
{
    cleanup_words struct words w = {0};
    size_t i = 0;

    assert_true(lex_words(line, n, &w, NULL));
    for (; want[i]; i++) {
        assert_true(i < w.n);
        assert_string_equal(w.v[i], want[i]);
    }
    assert_int_equal(w.n, i);
    assert_null(w.v[w.n]);
}

#define LEX(line, ...) lexes(line, sizeof(line) - 1, (const char *const[]){__VA_ARGS__, NULL})

static void test_lexer(void **state)
{
    (void)state;
    LEX("new --name=a", "new", "--name=a");
    LEX("  a \t b\n\r\fc  ", "a", "b", "c");
    LEX("'a b'\"c d\"e", "a bc de");
    LEX("a '' \"\" b", "a", "", "", "b");
    LEX("'it'\\''s'", "it's");
    LEX("'\\n \"x'", "\\n \"x");
    LEX("\"a\\\"b\\\\c\\$d\\`e\\nf\"", "a\"b\\c$d`e\\nf");
    LEX("a\\ b \\'c", "a b", "'c");
    LEX("a\\\nb \"c\\\nd\"", "ab", "cd");
    LEX("\xc3\xa4 # ; | & $HOME *", "\xc3\xa4", "#", ";", "|", "&", "$HOME", "*");
    lexes("", 0, (const char *const[]){NULL});
    lexes(" \n", 2, (const char *const[]){NULL});
}

static void test_lexer_refuses(void **state)
{
    static const struct {
        const char *line;
        size_t n;
    } bad[] = {{"a 'b", 4}, {"a \"b", 4}, {"a \"b\\\"", 6}, {"a\\", 2}, {"a\0b", 3}, {"'", 1}};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_words struct words w = {0};
        cleanup_error struct error err = {0};
        assert_false(lex_words(bad[i].line, bad[i].n, &w, &err));
        assert_int_equal(err.code, ERR_INVALID);
        assert_non_null(err.msg);
    }
}

static const char *name_of(const char *line, size_t *skip)
{
    cleanup_words struct words w = {0};

    assert_true(lex_words(line, strlen(line), &w, NULL));
    return command_name(&w, skip);
}

static void test_command_names(void **state)
{
    size_t skip;

    (void)state;
    assert_string_equal(name_of("new --name=x", &skip), "new");
    assert_int_equal(skip, 1);
    assert_string_equal(name_of("ssh-key list --json", &skip), "ssh-key list");
    assert_int_equal(skip, 2);
    assert_string_equal(name_of("share port a 80", &skip), "share port");
    assert_null(name_of("ssh-key", &skip));
    assert_null(name_of("ssh-key remove", &skip));
    assert_null(name_of("newer", &skip));
    assert_null(name_of("ne", &skip));
    assert_null(name_of("'ssh-key list'", &skip));
}

static bool permissions_ok(const char *text, size_t n)
{
    cleanup_free char *copy = xmemdup(text, n + 1);
    cleanup_error struct error err = {0};
    cleanup_json json_t *p = token_parse_permissions(copy, n, &err);

    assert_true(p || err.code == ERR_AUTH);
    return p != NULL;
}

#define OK(s) assert_true(permissions_ok(s, sizeof(s) - 1))
#define BAD(s) assert_false(permissions_ok(s, sizeof(s) - 1))

static void test_permissions(void **state)
{
    (void)state;
    OK("{}");
    OK("{\"exp\":1900000000,\"nbf\":946684800,\"cmds\":[\"ls\",\"ssh-key "
       "list\"],\"ctx\":{\"a\":[1]}}");
    OK("{\"exp\":4102444800}");
    OK("{\"ctx\":null}");
    OK("{\"cmds\":[]}");
    BAD("");
    BAD("[]");
    BAD("{} ");
    BAD(" {}");
    BAD("{\n}");
    BAD("{\"exp\":946684799}");
    BAD("{\"exp\":4102444801}");
    BAD("{\"exp\":1900000000.5}");
    BAD("{\"exp\":1.9e9}");
    BAD("{\"exp\":\"1900000000\"}");
    BAD("{\"nbf\":null}");
    BAD("{\"cmds\":\"ls\"}");
    BAD("{\"cmds\":[1]}");
    BAD("{\"exp\":1900000000,\"exp\":1900000001}");
    BAD("{\"expires\":1900000000}");
    BAD("{\"all\":true}");
    BAD("{\"ctx\":\"a\0b\"}");
    BAD("{\"cmds\":[\"ls\"");
}

static void test_default_commands(void **state)
{
    cleanup_json json_t *none = json_object(),
                        *some = json_pack("{s:[s,s]}", "cmds", "rm", "ssh-key list");
    cleanup_json json_t *empty = json_pack("{s:[]}", "cmds");

    (void)state;
    assert_true(token_allows(none, "new"));
    assert_true(token_allows(none, "ls"));
    assert_true(token_allows(none, "ssh-key list"));
    assert_false(token_allows(none, "rm"));
    assert_false(token_allows(none, "cp"));
    assert_false(token_allows(none, "restart"));
    assert_true(token_allows(some, "rm"));
    assert_true(token_allows(some, "ssh-key list"));
    assert_false(token_allows(some, "ls"));
    assert_false(token_allows(empty, "ls"));
}

static void base64url(struct buf *out, const char *p, size_t n)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned value = 0, bits = 0;

    for (size_t i = 0; i < n; i++) {
        value = value << 8 | (unsigned char)p[i];
        for (bits += 8; bits >= 6; value &= (1u << bits) - 1)
            bits -= 6, buf_putc(out, digits[value >> bits & 63]);
    }
    if (bits)
        buf_putc(out, digits[value << (6 - bits) & 63]);
}

static void run(const char *const *argv, const char *in, struct buf *out)
{
    cleanup_error struct error err = {0};
    cleanup_buf struct buf problems = {0};
    int status = -1;

    assert_true(spawn_run(argv, in, strlen(in), out, &problems, 1 << 20, deadline_in(20000),
                          &status, &err));
    assert_int_equal(status, 0);
}

/* A token as a holder of the key makes it: ssh-keygen signs, its armour comes off. */
static char *mint(const char *key, const char *name_space, const char *permissions)
{
    const char *argv[] = {"ssh-keygen", "-q", "-Y", "sign", "-f", key, "-n", name_space, NULL};
    cleanup_buf struct buf armour = {0}, body = {0}, blob = {0}, token = {0};
    char *save = NULL;

    run(argv, permissions, &armour);
    for (char *line = strtok_r(armour.data, "\n", &save); line;
         line = strtok_r(NULL, "\n", &save)) {
        if (line[0] != '-')
            buf_printf(&body, "%s\n", line);
    }
    const char *decode[] = {"base64", "-d", NULL};
    run(decode, body.data, &blob);
    buf_puts(&token, "exe0.");
    base64url(&token, permissions, strlen(permissions));
    buf_putc(&token, '.');
    base64url(&token, blob.data, blob.len);
    return buf_steal(&token);
}

static char *make_key(const char *dir, const char *name, const char *type, char **public)
{
    char *key = xasprintf("%s/%s", dir, name);
    cleanup_free char *pub = xasprintf("%s.pub", key);
    cleanup_buf struct buf out = {0}, text = {0};
    const char *argv[] = {"ssh-keygen", "-q", "-t", type, "-N", "", "-C", "", "-f", key, NULL};

    run(argv, "", &out);
    assert_true(io_read_file(pub, 65536, &text, NULL));
    *public = buf_steal(&text);
    return key;
}

static bool accepted(const char *token, const char *name_space, int64_t now)
{
    cleanup_error struct error err = {0};
    cleanup_json json_t *p = token_check(token, name_space, now, &err);

    assert_true(p || err.code == ERR_AUTH);
    assert_true(p || !strstr(err.msg, token) || strlen(token) < 2);
    return p != NULL;
}

static void test_tokens(void **state)
{
    char dir[] = "/tmp/test-lobby.XXXXXX";
    cleanup_free char *pub_a = NULL, *pub_b = NULL, *pub_c = NULL;
    const char *lobby = TOKEN_LOBBY_NAMESPACE;

    (void)state;
    assert_non_null(mkdtemp(dir));
    cleanup_free char *a = make_key(dir, "a", "ed25519", &pub_a);
    cleanup_free char *b = make_key(dir, "b", "ecdsa", &pub_b);
    cleanup_free char *c = make_key(dir, "c", "ed25519", &pub_c);
    cleanup_free char *keys = xasprintf("%s%s", pub_a, pub_b);
    assert_true(token_setup(keys, dir, NULL));
    token_add_plain("secret");

    assert_true(accepted("secret", lobby, 0));
    assert_false(accepted("secreT", lobby, 0));
    assert_false(accepted("secret1", lobby, 0));
    assert_false(accepted("", lobby, 0));

    cleanup_free char *by_a = mint(a, lobby, "{\"exp\":1900000000,\"nbf\":1800000000}");
    cleanup_free char *by_b = mint(b, lobby, "{}"), *by_c = mint(c, lobby, "{}");
    cleanup_free char *vm = mint(a, "v0@x.exe.xyz", "{}");
    assert_true(accepted(by_b, lobby, 0));
    assert_false(accepted(by_c, lobby, 0));
    assert_true(accepted(by_a, lobby, 1800000000));
    assert_true(accepted(by_a, lobby, 1899999999));
    assert_false(accepted(by_a, lobby, 1900000000));
    assert_false(accepted(by_a, lobby, 1799999999));
    assert_false(accepted(vm, lobby, 0));
    assert_true(accepted(vm, "v0@x.exe.xyz", 0));
    assert_false(accepted(vm, "v0@y.exe.xyz", 0));

    /* one character of the payload, of the signature, padding, a third part */
    cleanup_free char *bent = xstrdup(by_b);
    bent[6] = bent[6] == 'x' ? 'y' : 'x';
    assert_false(accepted(bent, lobby, 0));
    cleanup_free char *broken = xstrdup(by_b);
    char *at = broken + strlen(broken) - 20;
    *at = *at == 'x' ? 'y' : 'x';
    assert_false(accepted(broken, lobby, 0));
    cleanup_free char *padded = xasprintf("%s=", by_b), *longer = xasprintf("%s.AAAA", by_b);
    assert_false(accepted(padded, lobby, 0));
    assert_false(accepted(longer, lobby, 0));
    assert_false(accepted("exe0.e30", lobby, 0));
    assert_false(accepted("exe0..", lobby, 0));
    cleanup_free char *huge = xcalloc(1, TOKEN_MAX + 2);
    memset(huge, 'a', TOKEN_MAX + 1);
    assert_false(accepted(huge, lobby, 0));

    cleanup_json json_t *permissions = json_pack("{s:[s]}", "cmds", "ls");
    cleanup_free char *brief = token_short(permissions, lobby);
    assert_true(accepted(brief, lobby, 0));
    assert_false(accepted(brief, "v0@x.exe.xyz", 0));
    assert_false(accepted("exe1.0000", lobby, 0));
    assert_true(disk_remove(dir, NULL));
}

static enum fault_kind taken(const char *command, long long *value)
{
    struct fault f;

    fault_take(command, &f);
    if (value)
        *value = f.value;
    enum fault_kind kind = f.kind;
    fault_free(&f);
    return kind;
}

static void test_faults(void **state)
{
    long long value;
    struct fault f;

    (void)state;
    fault_clear(NULL);
    assert_true(fault_add("new:status=503,times=2,skip=1,retry-after=7,body={\"a\":1,b}", NULL));
    assert_int_equal(taken("ls", NULL), FAULT_NONE);
    assert_int_equal(taken("new", NULL), FAULT_NONE);
    fault_take("new", &f);
    assert_int_equal(f.kind, FAULT_STATUS);
    assert_int_equal(f.value, 503);
    assert_int_equal(f.retry_after, 7);
    assert_string_equal(f.body, "{\"a\":1,b}");
    fault_free(&f);
    assert_int_equal(taken("new", &value), FAULT_STATUS);
    assert_int_equal(taken("new", NULL), FAULT_NONE);

    fault_clear(NULL);
    assert_true(fault_add("*:delay=20", NULL));
    assert_true(fault_add("ssh-key list:lost=504", NULL));
    assert_true(fault_add("*:cut", NULL));
    fault_take("ssh-key list", &f);
    assert_int_equal(f.kind, FAULT_LOST);
    assert_int_equal(f.delay_ms, 20);
    fault_free(&f);
    assert_int_equal(taken("rm", NULL), FAULT_CUT);
    fault_clear("*");
    assert_int_equal(taken("rm", NULL), FAULT_NONE);
    assert_int_equal(taken("ssh-key list", NULL), FAULT_LOST);
    fault_clear(NULL);

    assert_false(fault_needs_relay());
    assert_true(fault_add("ssh:burst=5", NULL));
    assert_true(fault_needs_relay());
    assert_int_equal(fault_ssh().burst_silence_s, 60);
    assert_true(fault_add("boot:delay=300,times=1", NULL));
    assert_int_equal(fault_boot().sshd_delay_ms, 300);
    assert_int_equal(fault_boot().sshd_delay_ms, 0);
    assert_true(fault_add("listen:refuse", NULL));
    assert_true(fault_refusing());
    fault_clear(NULL);
    assert_false(fault_refusing());
}

static void test_fault_specs_refused(void **state)
{
    static const char *const bad[] = {"",
                                      "new",
                                      ":cut",
                                      "new:",
                                      "new:nope",
                                      "new:status",
                                      "new:status=99",
                                      "new:status=abc",
                                      "new:cut=1",
                                      "boot:cut",
                                      "ssh:delay=1",
                                      "new:cut,times=0",
                                      "new:cut,x",
                                      "new:redirect",
                                      "new:delay=-1",
                                      "setup:fail=0",
                                      "new:cut,",
                                      "new:status=503,retry-after=x"};

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_error struct error err = {0};
        bool ok = fault_add(bad[i], &err);
        /* a comma at the end separates nothing */
        assert_int_equal(ok, strcmp(bad[i], "new:cut,") == 0);
        assert_int_equal(err.code, ok ? ERR_NONE : ERR_INVALID);
    }
    fault_clear(NULL);
}

static bool head(const char *text, struct head *h)
{
    cleanup_error struct error err = {0};
    bool ok = head_parse(text, strlen(text), h, &err);

    assert_int_equal(err.code, ok ? ERR_NONE : ERR_PROTOCOL);
    return ok;
}

static void test_heads(void **state)
{
    cleanup_head struct head h = {0}, ws = {0};
    cleanup_buf struct buf out = {0}, up = {0};

    (void)state;
    assert_true(head("POST /a?b HTTP/1.1\r\nHost: Alpha.EXE.xyz:4000\r\nConnection: "
                     "keep-alive\r\nContent-Length: 3\r\n"
                     "X-Exedev-Authorization: Bearer abc\r\nX-EXEDEV-Email: "
                     "evil\r\nx-forwarded-for: 1\r\nA:b \r\n\r\n",
                     &h));
    assert_string_equal(h.host, "alpha.exe.xyz");
    assert_int_equal(h.host_port, 4000);
    assert_string_equal(h.token, "abc");
    assert_int_equal(h.length, 3);
    assert_false(h.upgrade);
    head_write(&h, "X-ExeDev-Email: me\r\n", &out);
    assert_string_equal(
        out.data, "POST /a?b HTTP/1.1\r\nHost: Alpha.EXE.xyz:4000\r\nContent-Length: 3\r\nA: b\r\n"
                  "Connection: close\r\nX-ExeDev-Email: me\r\n\r\n");

    assert_true(head("GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive, Upgrade\r\nUpgrade: "
                     "websocket\r\n\r\n",
                     &ws));
    assert_true(ws.upgrade);
    assert_null(ws.token);
    head_write(&ws, "", &up);
    assert_non_null(strstr(up.data, "connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"));
}

static void test_heads_refused(void **state)
{
    static const char *const bad[] = {
        "GET / HTTP/1.1\r\nHost: a\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        "GET / HTTP/2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:70000\r\n\r\n",
        "GET / HTTP/1.1\r\nnocolon\r\n\r\n",
        "GET / HTTP/1.1\r\nA : b\r\n\r\n",
        "GET / HTTP/1.1\r\n folded: b\r\n\r\n",
        "GET / HTTP/1.1\r\nA: b\nC: d\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1 2\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cleanup_head struct head h = {0};
        assert_false(head(bad[i], &h));
    }
}

static void test_addresses(void **state)
{
    struct sockaddr_in at;

    (void)state;
    assert_true(listen_parse("127.0.0.2:80", &at, NULL));
    assert_int_equal(ntohs(at.sin_port), 80);
    assert_int_equal(ntohl(at.sin_addr.s_addr), 0x7f000002);
    assert_true(listen_parse(":81", &at, NULL));
    assert_int_equal(ntohl(at.sin_addr.s_addr), 0x7f000001);
    assert_true(listen_parse("82", &at, NULL));
    assert_int_equal(ntohs(at.sin_port), 82);
    assert_true(listen_parse("0.0.0.0", &at, NULL));
    assert_int_equal(at.sin_port, 0);
    assert_false(listen_parse("127.0.0.1:x", &at, NULL));
    assert_false(listen_parse("127.0.0.1:", &at, NULL));
    assert_false(listen_parse("127.0.0.1:65536", &at, NULL));
    assert_false(listen_parse("localhost:80", &at, NULL));
    assert_false(listen_parse("", &at, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lexer),
        cmocka_unit_test(test_lexer_refuses),
        cmocka_unit_test(test_command_names),
        cmocka_unit_test(test_permissions),
        cmocka_unit_test(test_default_commands),
        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_fault_specs_refused),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_heads_refused),
        cmocka_unit_test(test_addresses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
