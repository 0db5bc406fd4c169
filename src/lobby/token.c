#include "lobby/token.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"
#include "base/text.h"
#include "lobby/disk.h"

#define FIRST_TIME 946684800 /* 2000-01-01 */
#define LAST_TIME 4102444800 /* 2100-01-01 */
#define REMEMBERED 256

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static json_t *plain;      /* array of strings */
static json_t *short_ones; /* exe1 token -> {permissions, namespace} */
static json_t *verified;   /* hex SHA-256 of token and name space -> true */
static char *signers;      /* file for ssh-keygen -Y verify */
static char *signature_dir;
static unsigned long long counter;

bool token_setup(const char *keys, const char *dir, struct error *err)
{
    cleanup_buf struct buf text = {0};
    cleanup_free char *copy = xstrdup(keys);
    char *save = NULL;

    plain = plain ? plain : json_array();
    short_ones = json_object();
    verified = json_object();
    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        buf_printf(&text, "owner %s\n", line);
    signers = xasprintf("%s/signers", dir);
    signature_dir = xstrdup(dir);
    return disk_put(signers, 0600, (uid_t)-1, text.data ? text.data : "", text.len, err);
}

void token_add_plain(const char *token)
{
    plain = plain ? plain : json_array();
    json_array_append_new(plain, json_string(token));
}

static bool malformed(struct error *err, const char *why)
{
    return error_set(err, ERR_AUTH, "invalid token: %s", why);
}

/* base64url without padding (RFC 4648, section 5). */
static bool decode(const char *s, size_t n, struct buf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    unsigned value = 0, bits = 0;

    if (!n || n % 4 == 1)
        return false;
    for (size_t i = 0; i < n; i++) {
        const char *d = s[i] ? strchr(digits, s[i]) : NULL;
        if (!d)
            return false;
        value = value << 6 | (unsigned)(d - digits);
        bits += 6;
        if (bits >= 8) {
            bits -= 8;
            buf_put_u8(out, (uint8_t)(value >> bits));
            value &= (1u << bits) - 1;
        }
    }
    return value == 0; /* left-over bits are zero in a canonical text */
}

static bool time_in_range(const json_t *value)
{
    return json_is_integer(value) && json_integer_value(value) >= FIRST_TIME &&
           json_integer_value(value) <= LAST_TIME;
}

json_t *token_parse_permissions(char *text, size_t n, struct error *err)
{
    const char *key;
    json_t *value;
    size_t i;

    if (!n || text[0] != '{' || text[n - 1] != '}') {
        malformed(err, "the permissions are no JSON object, or have white space around them");
        return NULL;
    }
    if (memchr(text, '\n', n) || memchr(text, 0, n)) {
        malformed(err, "the permissions hold a newline or NUL");
        return NULL;
    }
    cleanup_json json_t *p = json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL);
    if (!json_is_object(p)) {
        malformed(err, "the permissions are no JSON, or have a key twice");
        return NULL;
    }
    json_object_foreach (p, key, value) {
        if (strcmp(key, "exp") == 0 || strcmp(key, "nbf") == 0) {
            if (time_in_range(value))
                continue;
            error_set(err, ERR_AUTH, "invalid token: %s is no Unix time between 2000 and 2100",
                      key);
            return NULL;
        }
        if (strcmp(key, "ctx") == 0)
            continue;
        if (strcmp(key, "cmds") != 0) {
            malformed(err, "the permissions have an unknown key");
            return NULL;
        }
        if (!json_is_array(value)) {
            malformed(err, "cmds is no array");
            return NULL;
        }
        json_t *name;
        json_array_foreach (value, i, name) {
            if (!json_is_string(name)) {
                malformed(err, "cmds holds something that is no string");
                return NULL;
            }
        }
    }
    return steal_ptr(p);
}

static void put_armour(struct buf *out, const struct buf *blob)
{
    cleanup_free char *text = xmalloc(blob->len / 3 * 4 + 8);
    int n =
        EVP_EncodeBlock((unsigned char *)text, (const unsigned char *)blob->data, (int)blob->len);

    buf_puts(out, "-----BEGIN SSH SIGNATURE-----\n");
    for (int at = 0; at < n; at += 70) {
        buf_put(out, text + at, (size_t)(n - at < 70 ? n - at : 70));
        buf_putc(out, '\n');
    }
    buf_puts(out, "-----END SSH SIGNATURE-----\n");
}

static bool verify(const struct buf *payload, const struct buf *blob, const char *name_space,
                   struct error *err)
{
    cleanup_buf struct buf armour = {0}, out = {0}, problems = {0};
    cleanup_free char *path = xasprintf("%s/signature.%llu", signature_dir,
                                        __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    const char *argv[] = {"ssh-keygen", "-Y", "verify",   "-f", signers, "-I",
                          "owner",      "-n", name_space, "-s", path,    NULL};
    int status = 1;

    put_armour(&armour, blob);
    if (!disk_put(path, 0600, (uid_t)-1, armour.data, armour.len, err))
        return false;
    bool ran = spawn_run(argv, payload->data, payload->len, &out, &problems, 4096,
                         deadline_in(10000), &status, err);
    unlink(path);
    if (!ran)
        return false;
    if (status)
        return malformed(err, "its signature is not by a registered key in this name space");
    return true;
}

static bool remembered(const char *digest, bool add)
{
    pthread_mutex_lock(&lock);
    bool known = json_object_get(verified, digest);
    if (add && !known) {
        if (json_object_size(verified) >= REMEMBERED)
            json_object_clear(verified);
        json_object_set_new(verified, digest, json_true());
    }
    pthread_mutex_unlock(&lock);
    return known;
}

static json_t *check_signed(const char *token, const char *name_space, struct error *err)
{
    const char *payload = token + strlen("exe0."), *dot = strchr(payload, '.');
    cleanup_buf struct buf text = {0}, blob = {0}, whole = {0};
    unsigned char sum[SHA256_DIGEST_LENGTH];
    char digest[2 * sizeof sum + 1];

    if (!dot || !decode(payload, (size_t)(dot - payload), &text) ||
        !decode(dot + 1, strlen(dot + 1), &blob)) {
        malformed(err, "not exe0.PAYLOAD.SIGNATURE in base64url without padding");
        return NULL;
    }
    cleanup_json json_t *permissions = token_parse_permissions(text.data, text.len, err);
    if (!permissions)
        return NULL;
    buf_printf(&whole, "%s %s", name_space, token);
    SHA256((unsigned char *)whole.data, whole.len, sum);
    io_hex(sum, sizeof sum, digest);
    if (!remembered(digest, false)) {
        if (!verify(&text, &blob, name_space, err))
            return NULL;
        remembered(digest, true);
    }
    return steal_ptr(permissions);
}

static bool is_plain(const char *token)
{
    size_t i, n = strlen(token);
    json_t *known;
    bool found = false;

    json_array_foreach (plain, i, known) {
        if (json_string_length(known) == n &&
            CRYPTO_memcmp(json_string_value(known), token, n) == 0)
            found = true;
    }
    return found;
}

json_t *token_check(const char *token, const char *name_space, int64_t now_s, struct error *err)
{
    cleanup_json json_t *p = NULL;

    if (!*token || strlen(token) > TOKEN_MAX) {
        malformed(err, *token ? "longer than 8 KiB" : "empty");
        return NULL;
    }
    if (is_plain(token))
        return json_pack("{s:b}", "all", true);
    if (text_starts(token, "exe0.")) {
        p = check_signed(token, name_space, err);
    } else {
        pthread_mutex_lock(&lock);
        json_t *entry = json_object_get(short_ones, token);
        const char *made_for = json_str(entry, "namespace");
        if (made_for && strcmp(made_for, name_space) == 0)
            p = json_deep_copy(json_object_get(entry, "permissions"));
        pthread_mutex_unlock(&lock);
        if (!p)
            malformed(err, "unknown");
    }
    if (!p)
        return NULL;
    if (now_s >= json_int(p, "exp", INT64_MAX)) {
        malformed(err, "it has expired");
        return NULL;
    }
    if (now_s < json_int(p, "nbf", INT64_MIN)) {
        malformed(err, "it is not valid yet");
        return NULL;
    }
    return steal_ptr(p);
}

bool token_allows(const json_t *permissions, const char *command)
{
    static const char *const defaults[] = {"help",         "ls",           "new",
                                           "whoami",       "ssh-key list", "share show",
                                           "exe0-to-exe1", "team",         "team members"};
    json_t *cmds = json_object_get(permissions, "cmds"), *name;
    size_t i;

    if (json_bool(permissions, "all"))
        return true;
    for (i = 0; !cmds && i < sizeof defaults / sizeof *defaults; i++) {
        if (strcmp(defaults[i], command) == 0)
            return true;
    }
    json_array_foreach (cmds, i, name) {
        if (strcmp(json_string_value(name), command) == 0)
            return true;
    }
    return false;
}

char *token_short(const json_t *permissions, const char *name_space)
{
    unsigned char r[24];
    char hex[2 * sizeof r + 1];

    io_random(r, sizeof r);
    io_hex(r, sizeof r, hex);
    char *token = xasprintf("exe1.%s", hex);
    pthread_mutex_lock(&lock);
    json_object_set_new(
        short_ones, token,
        json_pack("{s:O, s:s}", "permissions", permissions, "namespace", name_space));
    pthread_mutex_unlock(&lock);
    return token;
}
