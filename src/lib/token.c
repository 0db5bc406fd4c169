#include "lib/token.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/spawn.h"
#include "base/text.h"
#include "lib/config.h"
#include "lib/key_internal.h"
#include "lib/redact.h"
#include "lib/secret.h"

#define TIME_MIN 946684800LL  /* 2000-01-01, exe-dev.md */
#define TIME_MAX 4102444800LL /* 2100-01-01 */
#define SCOPE_ACCOUNT "v0@exe.dev"

static const char *const default_cmds[] = {"help",         "ls",           "new",
                                           "whoami",       "ssh-key list", "share show",
                                           "exe0-to-exe1", "team",         "team members"};

void token_clear(struct token *t)
{
    json_decref(t->cmds);
    json_decref(t->ctx);
    free(t->key_type);
    free(t->fingerprint);
    free(t->scope);
    *t = (struct token){0};
}

/* base64url without padding -> bytes. */
static bool base64url_decode(const char *s, size_t n, struct buf *out)
{
    cleanup_secret_buf struct buf std = {0};

    if (!n || n % 4 == 1)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (!((s[i] >= 'A' && s[i] <= 'Z') || (s[i] >= 'a' && s[i] <= 'z') ||
              (s[i] >= '0' && s[i] <= '9') || s[i] == '-' || s[i] == '_'))
            return false;
        buf_putc(&std, s[i] == '-' ? '+' : s[i] == '_' ? '/' : s[i]);
    }
    size_t pad = (4 - n % 4) % 4;
    for (size_t i = 0; i < pad; i++)
        buf_putc(&std, '=');
    unsigned char *to = (unsigned char *)buf_reserve(out, std.len / 4 * 3 + 1);
    int got = EVP_DecodeBlock(to, (unsigned char *)std.data, (int)std.len);
    if (got < (int)pad)
        return false;
    out->len += (size_t)got - pad; /* DecodeBlock counts the padding as zero bytes */
    return true;
}

static void base64url_encode(const void *p, size_t n, struct buf *out)
{
    char *to = buf_reserve(out, (n + 2) / 3 * 4 + 1);
    int len = EVP_EncodeBlock((unsigned char *)to, p, (int)n);

    while (len && to[len - 1] == '=')
        len--;
    for (int i = 0; i < len; i++)
        to[i] = to[i] == '+' ? '-' : to[i] == '/' ? '_' : to[i];
    out->len += (size_t)len;
    buf_puts(out, "");
}

static bool read_time(const json_t *v, const char *key, int64_t *out, struct error *err)
{
    if (!v)
        return true;
    if (!json_is_integer(v) || json_integer_value(v) < TIME_MIN || json_integer_value(v) > TIME_MAX)
        return error_set(
            err, ERR_INVALID,
            "the token's `%s` is not a whole number of Unix seconds between the years 2000 "
            "and 2100",
            key);
    *out = json_integer_value(v);
    return true;
}

static bool read_payload(const struct buf *text, struct token *t, struct error *err)
{
    json_error_t why;
    const char *key;
    json_t *v;
    size_t i;

    if (memchr(text->data, '\n', text->len) || memchr(text->data, '\0', text->len))
        return error_set(err, ERR_INVALID, "the token's permissions hold a newline or NUL");
    if (text->data[0] != '{' || text->data[text->len - 1] != '}')
        return error_set(
            err, ERR_INVALID,
            "the token's permissions are not a bare JSON object (nothing may stand around it)");
    cleanup_json json_t *o = json_loadb(text->data, text->len, JSON_REJECT_DUPLICATES, &why);
    if (!o)
        return error_set(err, ERR_INVALID, "the token's permissions are not valid JSON: %s",
                         why.text);
    json_object_foreach (o, key, v) {
        if (strcmp(key, "exp") != 0 && strcmp(key, "nbf") != 0 && strcmp(key, "cmds") != 0 &&
            strcmp(key, "ctx") != 0) {
            cleanup_buf struct buf shown = {0};
            text_visible(&shown, key, strlen(key), 40);
            return error_set(
                err, ERR_INVALID,
                "the token's permissions hold `%s`; only exp, nbf, cmds and ctx are known",
                shown.data ? shown.data : "");
        }
    }
    if (!read_time(json_object_get(o, "exp"), "exp", &t->exp, err) ||
        !read_time(json_object_get(o, "nbf"), "nbf", &t->nbf, err))
        return false;
    json_t *cmds = json_object_get(o, "cmds");
    if (cmds && !json_is_array(cmds))
        return error_set(err, ERR_INVALID, "the token's `cmds` is not a list of command names");
    json_array_foreach (cmds, i, v) {
        if (!json_is_string(v))
            return error_set(err, ERR_INVALID, "the token's `cmds` is not a list of command names");
    }
    t->cmds = json_incref(cmds);
    t->ctx = json_incref(json_object_get(o, "ctx"));
    return true;
}

/* PROTOCOL.sshsig, "Blob format". */
static bool read_signature(const struct buf *blob, struct token *t, struct error *err)
{
    struct cursor c = {.p = (const unsigned char *)blob->data, .left = blob->len};
    size_t key_len, n;
    const char *magic = cursor_bytes(&c, 6);

    if (!magic || memcmp(magic, "SSHSIG", 6) != 0 || cursor_u32(&c) != 1)
        return error_set(err, ERR_INVALID, "the token's signature is no SSH signature");
    const char *key = cursor_str(&c, 16384, &key_len);
    t->scope = cursor_strdup(&c, 300);
    cursor_str(&c, 1024, &n); /* reserved */
    cursor_str(&c, 64, &n);   /* hash algorithm */
    cursor_str(&c, 16384, &n);
    struct cursor inner = {.p = (const unsigned char *)key, .left = key ? key_len : 0};
    t->key_type = cursor_strdup(&inner, 100);
    if (c.bad || c.left || inner.bad)
        return error_set(err, ERR_INVALID, "the token's signature is cut off or damaged");

    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned char text[64];
    unsigned int len;
    EVP_Digest(key, key_len, digest, &len, EVP_sha256(), NULL);
    EVP_EncodeBlock(text, digest, (int)len);
    text[strcspn((char *)text, "=")] = '\0';
    t->fingerprint = xasprintf("SHA256:%s", text);
    return true;
}

static bool read_exe0(const char *text, struct token *t, struct error *err)
{
    const char *payload = text + 5, *dot = strchr(payload, '.');
    cleanup_secret_buf struct buf json = {0}, blob = {0};

    if (!dot || strchr(dot + 1, '.'))
        return error_set(
            err, ERR_INVALID,
            "an exe0 token has three parts, exe0.PERMISSIONS.SIGNATURE; this one does not: "
            "copy it again");
    if (!base64url_decode(payload, (size_t)(dot - payload), &json) ||
        !base64url_decode(dot + 1, strlen(dot + 1), &blob))
        return error_set(
            err, ERR_INVALID,
            "the exe0 token is damaged: its parts are not base64url without padding; copy it "
            "again");
    return read_payload(&json, t, err) && read_signature(&blob, t, err);
}

bool token_parse(const char *text, struct token *out, struct error *err)
{
    *out = (struct token){.kind = TOKEN_OTHER};
    if (!text || !*text)
        return error_set(err, ERR_INVALID, "the token is empty");
    if (strlen(text) > TOKEN_MAX)
        return error_set(err, ERR_INVALID, "the token is longer than exe.dev takes (8 KiB)");
    for (const char *s = text; *s; s++)
        if ((unsigned char)*s <= ' ' || (unsigned char)*s >= 0x7f)
            return error_set(
                err, ERR_INVALID,
                "the token holds white space or a character no token has: copy it again, as "
                "one line");
    if (text_starts(text, "exe1."))
        out->kind = TOKEN_EXE1;
    if (!text_starts(text, "exe0."))
        return true;
    out->kind = TOKEN_EXE0;
    if (read_exe0(text, out, err))
        return true;
    token_clear(out);
    return false;
}

bool token_allows(const struct token *t, const char *command)
{
    json_t *v;
    size_t i;

    if (t->kind != TOKEN_EXE0)
        return true;
    if (!t->cmds) {
        for (i = 0; i < sizeof default_cmds / sizeof *default_cmds; i++)
            if (!strcmp(default_cmds[i], command))
                return true;
        return false;
    }
    json_array_foreach (t->cmds, i, v) {
        if (!strcmp(json_string_value(v), command))
            return true;
    }
    return false;
}

static void describe_time(struct buf *out, const char *what, int64_t at, int64_t now)
{
    struct tm tm;
    char date[32];
    time_t when = (time_t)at;

    gmtime_r(&when, &tm);
    strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &tm);
    cleanup_free char *span = text_duration_ms((at > now ? at - now : now - at) * 1000);
    buf_printf(out, "%s %s (%s%s%s)\n", what, date, at > now ? "in " : "", span,
               at > now ? "" : " ago");
}

void token_describe(const struct token *t, int64_t now, struct buf *out)
{
    json_t *v;
    size_t i;

    if (t->kind == TOKEN_EXE1) {
        buf_puts(out,
                 "kind:       exe1, a short form issued by exe.dev; nothing can be read from it\n");
        return;
    }
    if (t->kind == TOKEN_OTHER) {
        buf_puts(out, "kind:       not exe0 and not exe1; only the server can judge it\n");
        return;
    }
    buf_puts(
        out,
        "kind:       exe0, signed by an SSH key (the signature itself is checked by exe.dev)\n");
    if (!strcmp(t->scope, SCOPE_ACCOUNT))
        buf_puts(out, "opens:      the API of the account that holds the key\n");
    else
        buf_printf(out, "opens:      the HTTPS proxy of %s, not the API\n",
                   text_starts(t->scope, "v0@") ? t->scope + 3 : t->scope);
    buf_printf(out, "signed by:  %s (%s)\n", t->fingerprint, t->key_type);
    if (t->nbf)
        describe_time(out, t->nbf > now ? "valid from:" : "valid since:", t->nbf, now);
    if (t->exp)
        describe_time(out, t->exp > now ? "expires:   " : "expired:   ", t->exp, now);
    else
        buf_puts(out, "expires:    never\n");
    buf_puts(out, t->cmds ? "commands:   " : "commands:   the default ones: ");
    if (!t->cmds)
        for (i = 0; i < sizeof default_cmds / sizeof *default_cmds; i++)
            buf_printf(out, "%s%s", i ? ", " : "", default_cmds[i]);
    json_array_foreach (t->cmds, i, v) {
        buf_puts(out, i ? ", " : "");
        text_visible(out, json_string_value(v), json_string_length(v), 60);
    }
    buf_puts(out, t->cmds && !json_array_size(t->cmds) ? "none\n" : "\n");
}

bool token_payload(const json_t *cmds, int64_t nbf, int64_t exp, const json_t *ctx, struct buf *out,
                   struct error *err)
{
    cleanup_json json_t *o = json_object();

    if ((nbf && (nbf < TIME_MIN || nbf > TIME_MAX)) || (exp && (exp < TIME_MIN || exp > TIME_MAX)))
        return error_set(err, ERR_INVALID,
                         "a token's times must lie between the years 2000 and 2100");
    if (exp && nbf && exp <= nbf)
        return error_set(err, ERR_INVALID, "the token would expire before it becomes valid");
    if (cmds)
        json_object_set(o, "cmds", (json_t *)cmds);
    if (exp)
        json_object_set_new(o, "exp", json_integer(exp));
    if (nbf)
        json_object_set_new(o, "nbf", json_integer(nbf));
    if (ctx)
        json_object_set(o, "ctx", (json_t *)ctx);
    json_write(out, o);
    return true;
}

static bool armour_to_blob(const char *armour, struct buf *blob)
{
    const char *s = strstr(armour, "-----BEGIN SSH SIGNATURE-----");
    const char *end = s ? strstr(s, "-----END SSH SIGNATURE-----") : NULL;
    cleanup_buf struct buf b64 = {0};

    if (!end)
        return false;
    for (s += strlen("-----BEGIN SSH SIGNATURE-----"); s < end; s++)
        if (!strchr("\r\n=", *s))
            buf_putc(&b64, *s == '+' ? '-' : *s == '/' ? '_' : *s);
    return b64.len && base64url_decode(b64.data, b64.len, blob);
}

static bool sign(const struct token_signer *s, const char *scope, const struct buf *payload,
                 struct deadline d, struct buf *blob, struct error *err)
{
    cleanup_fd int fd = -1;
    cleanup_free char *file = s->key        ? xstrdup(key_path(s->key))
                              : s->key_file ? xstrdup(s->key_file)
                                            : NULL;
    cleanup_free char *agent =
        xasprintf("SSH_AUTH_SOCK=%s", s->agent_socket ? s->agent_socket : "");
    cleanup_secret_buf struct buf out = {0};
    cleanup_buf struct buf said = {0};
    int status;

    if (!file && !s->public_key)
        return error_set(err, ERR_INTERNAL, "a token needs a key to be signed with");
    if (!file) {
        /* ssh-keygen takes the agent's key by its public half, from a file. */
        fd = key_memfd("public-key", s->public_key, strlen(s->public_key), err);
        if (fd < 0)
            return false;
        file = xasprintf("/proc/%d/fd/%d", (int)getpid(), fd);
    }
    const char *const argv[] = {"env", agent, "ssh-keygen", "-q", "-Y", "sign",
                                "-n",  scope, "-f",         file, NULL};
    cleanup_error struct error why = {0};
    if (!spawn_run(argv + (s->agent_socket ? 0 : 2), payload->data, payload->len, &out, &said,
                   65536, d, &status, &why)) {
        error_move(err, &why);
        return error_prefix(err, "sign a token with ssh-keygen (from openssh-client)");
    }
    if (status != 0 || !out.data || !armour_to_blob(out.data, blob)) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, said.data ? said.data : "", said.len, 300);
        return error_set(err, ERR_INVALID, "ssh-keygen could not sign the token: %s",
                         shown.len ? shown.data : "it gave no reason");
    }
    return true;
}

char *token_mint(const struct token_signer *s, const char *vm, const struct buf *payload,
                 struct deadline d, struct error *err)
{
    cleanup_free char *scope = vm ? xasprintf("v0@%s.exe.xyz", vm) : xstrdup(SCOPE_ACCOUNT);
    cleanup_secret_buf struct buf blob = {0}, text = {0};

    if (vm && !text_is_vm_name(vm)) {
        error_set(err, ERR_INVALID,
                  "a token is made for one VM, by its name alone (no `.exe.xyz`)");
        return NULL;
    }
    if (!sign(s, scope, payload, d, &blob, err))
        return NULL;
    buf_puts(&text, "exe0.");
    base64url_encode(payload->data, payload->len, &text);
    buf_putc(&text, '.');
    base64url_encode(blob.data, blob.len, &text);
    if (text.len > TOKEN_MAX) {
        error_set(err, ERR_TOO_LARGE,
                  "the token has %zu bytes, exe.dev takes at most 8192: sign with an "
                  "Ed25519 key, or name fewer commands",
                  text.len);
        return NULL;
    }
    return secret_dupn(text.data, text.len);
}

/* The agent's first key, "TYPE BASE64 COMMENT". */
static char *agent_key(const char *socket, struct deadline d, struct error *err)
{
    cleanup_free char *agent = xasprintf("SSH_AUTH_SOCK=%s", socket);
    const char *const argv[] = {"env", agent, "ssh-add", "-L", NULL};
    cleanup_buf struct buf out = {0}, said = {0};
    int status;

    if (!spawn_run(argv, NULL, 0, &out, &said, 65536, d, &status, err))
        return NULL;
    if (status || !out.len) {
        error_set(err, ERR_INVALID, "the SSH agent at %s offers no key", socket);
        return NULL;
    }
    return xstrndup(out.data, strcspn(out.data, "\n") + 1);
}

char *token_mint_vm(const struct config *c, const char *vm, int64_t seconds, struct deadline d,
                    struct error *err)
{
    cleanup_key struct key *key = NULL;
    cleanup_free char *public_key = NULL;
    cleanup_buf struct buf payload = {0};
    struct token_signer s = {0};
    int64_t now = time(NULL);

    if (c->ssh_private_key) {
        if (!(key = key_load(c->ssh_private_key, err)))
            return NULL;
        s.key = key;
    } else if (c->ssh_identity_file) {
        s.key_file = c->ssh_identity_file;
    } else if (c->ssh_agent_socket) {
        if (!(public_key = agent_key(c->ssh_agent_socket, d, err)))
            return NULL;
        s.agent_socket = c->ssh_agent_socket;
        s.public_key = public_key;
    } else {
        error_set(
            err, ERR_INVALID,
            "a token for the VM's HTTPS proxy must be signed by your SSH key: set sshPrivateKey, "
            "sshIdentityFile or sshAgentSocket");
        return NULL;
    }
    /* Clocks differ: valid from a little earlier than now. */
    if (!token_payload(NULL, now - 60, now + seconds, NULL, &payload, err))
        return NULL;
    return token_mint(&s, vm, &payload, d, err);
}

bool token_duration(const char *text, int64_t *seconds, struct error *err)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}, {'w', 604800}, {'\0', 1}};
    char *end;

    errno = 0;
    long long n = strtoll(text, &end, 10);
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (end > text && *text >= '0' && *text <= '9' && !errno && *end == units[i].unit &&
            (!*end || !end[1]) && n > 0 && n < 100LL * 366 * 86400 / units[i].seconds) {
            *seconds = n * units[i].seconds;
            return true;
        }
    return error_set(err, ERR_INVALID,
                     "`%s` is no length of time: write it like 30d, 12h, 45m or 90s", text);
}
