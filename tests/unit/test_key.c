#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/key.h"

static char dir[] = "/tmp/exedev-key-XXXXXX";

/* The file of a key made by the real ssh-keygen. */
static char *make(const char *name, const char *options)
{
    cleanup_free char *cmd =
        xasprintf("ssh-keygen -q %s -C test -f %s/%s >/dev/null 2>&1", options, dir, name);
    cleanup_free char *path = xasprintf("%s/%s", dir, name);
    cleanup_buf struct buf b = {0};

    assert_int_equal(system(cmd), 0);
    assert_true(io_read_file(path, 65536, &b, NULL));
    return buf_steal(&b);
}

static void refused(const char *text, const char *words)
{
    cleanup_error struct error err = {0};

    assert_false(key_check(text, &err));
    assert_int_equal(err.code, ERR_INVALID);
    if (!strstr(err.msg, words))
        fail_msg("%s", err.msg);
}

static void decodes(const char *text)
{
    cleanup_error struct error err = {0};
    cleanup_key struct key *k = key_load(text, &err);
    cleanup_free char *public_key = NULL;

    if (!k || !key_decode(k, &public_key, deadline_in(20000), &err))
        fail_msg("%s", err.msg);
    assert_true(!strncmp(public_key, "ssh-", 4) || !strncmp(public_key, "ecdsa-", 6));
    assert_null(strchr(public_key, '\n'));
}

static void blank_and_secret_ids_pass(void **state)
{
    (void)state;
    assert_true(key_check(NULL, NULL));
    assert_true(key_check(" \r\n\t", NULL));
    assert_true(key_check("0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d", NULL));
}

static void refuses_putty(void **state)
{
    (void)state;
    refused("junk\r\n PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\n", "PuTTY");
}

static void refuses_public_keys(void **state)
{
    static const char *const keys[] = {
        "ssh-rsa AAAAB3",
        "ssh-dss AAAA",
        "ssh-ed25519 AAAAC3 me@x",
        "ecdsa-sha2-nistp256 AAAA",
        "sk-ssh-ed25519@openssh.com AAAA",
        "  \nssh-ed25519 AAAA\n",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"};
    (void)state;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        refused(keys[i], "public SSH key");
}

static void refuses_text_without_begin(void **state)
{
    (void)state;
    refused("hello", "BEGIN ... PRIVATE KEY");
    refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
            "BEGIN ... PRIVATE KEY");
}

static void refuses_a_truncated_key(void **state)
{
    (void)state;
    refused("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n", "cut off");
}

static void refuses_labels_that_differ(void **state)
{
    (void)state;
    refused("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", "differ");
}

static void refuses_an_empty_body(void **state)
{
    (void)state;
    refused("-----BEGIN RSA PRIVATE KEY-----\n\n-----END RSA PRIVATE KEY-----\n", "empty");
}

static void refuses_a_line_that_is_no_base64(void **state)
{
    (void)state;
    refused("-----BEGIN RSA PRIVATE KEY-----\nAAAA\n<b>\n-----END RSA PRIVATE KEY-----\n",
            "neither base64");
}

static void refuses_lost_line_breaks(void **state)
{
    (void)state;
    refused("-----BEGIN RSA PRIVATE KEY----- AAAA -----END RSA PRIVATE KEY-----", "line breaks");
}

static void refuses_passphrases(void **state)
{
    (void)state;
    cleanup_free char *openssh = make("enc", "-t ed25519 -N secretpass");
    cleanup_free char *pem = make("encpem", "-t rsa -b 2048 -m PEM -N secretpass");
    cleanup_free char *pkcs8 = make("encp8", "-t rsa -b 2048 -m PKCS8 -N secretpass");
    refused(openssh, "passphrase");
    refused(pem, "passphrase");
    refused(pkcs8, "passphrase");
}

static void reads_every_form_of_openssh(void **state)
{
    (void)state;
    cleanup_free char *a = make("ed", "-t ed25519 -N ''"),
                      *b = make("rsa", "-t rsa -b 2048 -m PEM -N ''");
    cleanup_free char *c = make("ec", "-t ecdsa -m PEM -N ''"),
                      *d = make("p8", "-t rsa -b 2048 -m PKCS8 -N ''");
    decodes(a);
    decodes(b);
    decodes(c);
    decodes(d);
}

static void heals_line_ends_and_what_stands_around(void **state)
{
    (void)state;
    cleanup_free char *key = make("heal", "-t ed25519 -N ''");
    cleanup_buf struct buf crlf = {0}, bare = {0}, around = {0}, indented = {0};
    for (const char *s = key; *s; s++)
        buf_puts(&crlf, *s == '\n' ? "\r\n" : (char[]){*s, 0});
    buf_put(&bare, key, strlen(key) - 1);
    buf_printf(&around, "my key:\n%s\nthat was it", key);
    buf_puts(&indented, "  ");
    for (const char *s = key; *s; s++)
        buf_puts(&indented, *s == '\n' ? " \n  " : (char[]){*s, 0});
    decodes(crlf.data);
    decodes(bare.data);
    decodes(around.data);
    decodes(indented.data);
}

static void a_damaged_key_is_found_by_decoding(void **state)
{
    (void)state;
    cleanup_free char *key = make("dam", "-t ed25519 -N ''");
    cleanup_error struct error err = {0};
    char *line = strchr(key, '\n') + 100;
    while (*line == '\n')
        line++;
    memset(line, 'A', 30);
    for (char *s = line; s < line + 30; s++)
        assert_true(*s == 'A');
    cleanup_key struct key *k = key_load(key, &err);
    if (k)
        assert_false(key_decode(k, NULL, deadline_in(20000), &err));
    assert_int_equal(err.code, ERR_INVALID);
    assert_non_null(strstr(err.msg, "damaged"));
    assert_null(strstr(err.msg, "/proc/"));
}

static void pkcs8_ed25519_is_told_how_to_convert(void **state)
{
    (void)state;
    cleanup_free char *cmd =
        xasprintf("openssl genpkey -algorithm ed25519 -out %s/p8ed 2>/dev/null", dir);
    cleanup_free char *path = xasprintf("%s/p8ed", dir);
    cleanup_buf struct buf b = {0};
    cleanup_error struct error err = {0};
    if (system(cmd))
        skip();
    assert_true(io_read_file(path, 65536, &b, NULL));
    cleanup_key struct key *k = key_load(b.data, &err);
    assert_non_null(k);
    /* From OpenSSH 9.6 on it simply works. */
    if (!key_decode(k, NULL, deadline_in(20000), &err))
        assert_non_null(strstr(err.msg, "PKCS#8"));
}

static void the_key_is_private_and_sealed(void **state)
{
    (void)state;
    cleanup_free char *text = make("seal", "-t ed25519 -N ''");
    cleanup_key struct key *k = key_load(text, NULL);
    struct stat st;
    assert_non_null(k);
    assert_int_equal(stat(key_path(k), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    cleanup_fd int fd = open(key_path(k), O_RDWR);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "x", 1), -1);
    assert_int_equal(ftruncate(fd, 0), -1);
    cleanup_free char *gone = xstrdup(key_path(k));
    key_free(steal_ptr(k));
    close(steal_fd(&fd));
    assert_int_equal(access(gone, F_OK), -1);
}

static void an_unresolved_secret_cannot_be_loaded(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    assert_null(key_load("0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d", &err));
    assert_non_null(strstr(err.msg, "id of a secret"));
    assert_null(key_load("", &err));
}

static int set_up(void **state)
{
    (void)state;
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    cleanup_free char *cmd = xasprintf("rm -r %s", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blank_and_secret_ids_pass),
        cmocka_unit_test(refuses_putty),
        cmocka_unit_test(refuses_public_keys),
        cmocka_unit_test(refuses_text_without_begin),
        cmocka_unit_test(refuses_a_truncated_key),
        cmocka_unit_test(refuses_labels_that_differ),
        cmocka_unit_test(refuses_an_empty_body),
        cmocka_unit_test(refuses_a_line_that_is_no_base64),
        cmocka_unit_test(refuses_lost_line_breaks),
        cmocka_unit_test(refuses_passphrases),
        cmocka_unit_test(reads_every_form_of_openssh),
        cmocka_unit_test(heals_line_ends_and_what_stands_around),
        cmocka_unit_test(a_damaged_key_is_found_by_decoding),
        cmocka_unit_test(pkcs8_ed25519_is_told_how_to_convert),
        cmocka_unit_test(the_key_is_private_and_sealed),
        cmocka_unit_test(an_unresolved_secret_cannot_be_loaded),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
