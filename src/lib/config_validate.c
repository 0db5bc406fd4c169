#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/api.h"
#include "lib/config_internal.h"
#include "lib/key.h"
#include "lib/secret.h"
#include "lib/token.h"

#define DECODE_MS 8000
#define SOON_SECONDS (7 * 86400)
#define COMMAND_MOST 65536

static json_t *text_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

/* The fields as read, before envText, known hosts and the key's sources are worked in: what is
 * saved must be what was meant. */
static json_t *normalize(const struct config *c, const json_t *raw)
{
    json_t *out = json_object();
    const char *key;
    json_t *v;

    json_object_foreach ((json_t *)raw, key, v) {
        if (!config_field_find(key))
            json_object_set(out, key, v);
    }
    for (const struct config_field *f = config_fields; f->key; f++) {
        const void *at = (const char *)c + f->offset;
        int64_t n;
        switch (f->type) {
        case FIELD_STRING:
            v = text_or_null(*(char *const *)at);
            break;
        case FIELD_INTEGER:
            n = *(const int64_t *)at;
            v = n || f->fallback ? json_integer(n) : json_null();
            break;
        case FIELD_LIST:
        case FIELD_MAP:
            v = json_deep_copy(*(json_t *const *)at);
            break;
        default:
            v = json_boolean(*(const bool *)at);
        }
        json_object_set_new(out, f->key, v);
    }
    return out;
}

static void missing_commands(const struct config *c, const struct token *t, struct problems *p)
{
    const char *const needed[] = {c->source_vm ? "cp" : "new", "ls", "rm",
                                  c->reuse_lease ? "restart" : NULL};
    cleanup_buf struct buf lacks = {0}, all = {0};
    size_t n = 0;

    for (size_t i = 0; i < sizeof needed / sizeof *needed; i++) {
        if (!needed[i])
            continue;
        buf_printf(&all, "%s%s", all.len ? "," : "", needed[i]);
        if (token_allows(t, needed[i]))
            continue;
        buf_printf(&lacks, "%s`%s`", n++ ? ", " : "", needed[i]);
    }
    if (!n)
        return;
    problems_error(p, "apiKey",
                   "apiKey does not allow the command%s %s%s: grant %s with a new token, `exedev "
                   "token mint --cmds "
                   "%s`",
                   n > 1 ? "s" : "", lacks.data,
                   token_allows(t, "rm") ? "" : ", so that VMs could be made and never deleted",
                   n > 1 ? "them" : "it", all.data);
}

static void check_token(const struct config *c, struct problems *p)
{
    cleanup_token struct token t = {0};
    cleanup_error struct error err = {0};
    int64_t now = time(NULL);

    if (!c->api_key) {
        /* A token file that may not be used has its own complaint. */
        for (size_t i = 0; i < p->n; i++)
            if (!p->list[i].warning && p->list[i].field && !strcmp(p->list[i].field, "apiKey"))
                return;
        problems_error(p, "apiKey",
                       "apiKey is missing, and there is neither EXE_API_KEY nor a token file "
                       "(~/.config/exedev/token, /etc/exedev/token): paste an exe.dev token; "
                       "`exedev token mint` "
                       "makes one from your SSH key");
        return;
    }
    if (config_is_secret_id(c->api_key))
        return;
    if (!token_parse(c->api_key, &t, &err)) {
        /* White space and length are told already. */
        if (!strpbrk(c->api_key, " \t\r\n") && strlen(c->api_key) <= TOKEN_MAX)
            problems_error(p, "apiKey", "apiKey: %s", err.msg);
        return;
    }
    if (t.kind != TOKEN_EXE0)
        return;
    if (strcmp(t.scope, "v0@exe.dev") != 0) {
        problems_error(
            p, "apiKey",
            "apiKey opens only the HTTPS proxy of one VM (%s), not the API: make an account token "
            "with `exedev token mint`",
            t.scope);
        return;
    }
    cleanup_free char *span = text_duration_ms(llabs((t.exp ? t.exp : t.nbf) - now) * 1000);
    if (t.exp && t.exp <= now)
        problems_error(p, "apiKey",
                       "apiKey expired %s ago: make a new token with `exedev token mint`", span);
    else if (t.exp && t.exp - now < SOON_SECONDS)
        problems_warn(p, "apiKey",
                      "apiKey expires in %s: make a new token soon, with `exedev token mint`",
                      span);
    if (t.nbf > now) {
        cleanup_free char *wait = text_duration_ms((t.nbf - now) * 1000);
        problems_error(
            p, "apiKey",
            "apiKey is not valid yet, only in %s: wait, make another, or set this machine's "
            "clock",
            wait);
    }
    missing_commands(c, &t, p);
}

static void check_private_key(const struct config *c, unsigned flags, struct problems *p)
{
    cleanup_error struct error err = {0};

    if (!key_check(c->ssh_private_key, &err)) {
        problems_error(p, "sshPrivateKey", "sshPrivateKey: %s", err.msg);
        return;
    }
    if (!c->ssh_private_key || config_is_secret_id(c->ssh_private_key) || flags & CONFIG_OFFLINE)
        return;
    cleanup_key struct key *k = key_load(c->ssh_private_key, &err);
    if (k && key_decode(k, NULL, deadline_in(DECODE_MS), &err))
        return;
    if (err.code == ERR_INVALID)
        problems_error(p, "sshPrivateKey", "sshPrivateKey: %s", err.msg);
    else
        problems_warn(p, "sshPrivateKey", "sshPrivateKey could not be tried out: %s", err.msg);
}

static void check_file(const char *key, const char *path, bool private_one, struct problems *p)
{
    struct stat st;

    if (!path || *path != '/')
        return;
    if (stat(path, &st) || access(path, R_OK))
        problems_warn(p, key, "%s: %s cannot be read by the user that runs this worker: %s", key,
                      path, strerror(errno));
    else if (private_one && (st.st_mode & 077))
        problems_warn(p, key,
                      "%s: others can read %s, so that OpenSSH will refuse it: run `chmod 600 %s`",
                      key, path, path);
}

static void warn_ignored(const struct config *c, struct problems *p)
{
    const struct {
        const char *name;
        bool set;
    } fields[] = {
        {"image", c->image},
        {"command", c->command},
        {"comment", c->comment},
        {"env", json_object_size(c->env) > 0},
        {"integrations", json_array_size(c->integrations) > 0},
        {"tags", json_array_size(c->tags) > 0},
        {"setupScript", c->setup_script},
        {"prompt", c->prompt},
    };
    cleanup_buf struct buf names = {0};

    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].set)
            buf_printf(&names, "%s%s", names.len ? ", " : "", fields[i].name);
    if (c->source_vm && names.len)
        problems_warn(
            p, "sourceVm",
            "sourceVm copies a VM as it is, so these settings have no effect: %s. Clear them, or "
            "make the change in the VM that is copied",
            names.data);
}

static void check_command_size(const struct config *c, struct problems *p)
{
    /* The longest name and comment a lease can have. */
    char name[64] = {0}, comment[201] = {0};

    memset(name, 'a', sizeof name - 1);
    memset(comment, 'a', sizeof comment - 1);
    struct api_create what = {.name = name, .comment = comment, .tag = "exedev"};
    cleanup_secret char *line = api_create_line(c, &what, false);
    if (strlen(line) > COMMAND_MOST)
        problems_error(p, "env",
                       "the command that creates a VM would have %zu bytes, exe.dev takes 65536: "
                       "shorten env, envText, "
                       "prompt or setupScript",
                       strlen(line));
}

json_t *config_validate(const json_t *raw, unsigned flags, struct problems *p)
{
    struct problems own = {0};
    struct problems *all = p ? p : &own;
    size_t before = problems_errors(all);
    cleanup_config struct config *c = config_read(raw, all);
    cleanup_json json_t *normal = normalize(c, raw);

    config_finish(c, all);
    check_token(c, all);
    check_private_key(c, flags, all);
    check_command_size(c, all);
    check_file("sshIdentityFile", c->ssh_identity_file, true, all);
    check_file("sshConfigFile", c->ssh_config_file, false, all);
    check_file("caFile", c->ca_file, false, all);
    warn_ignored(c, all);
    if (text_starts(c->api_url, "http://") && !text_starts(c->api_url, "http://127.") &&
        !text_starts(c->api_url, "http://localhost"))
        problems_warn(all, "apiUrl", "apiUrl is http, not https: the API key travels unencrypted");
    problems_warn(all, NULL,
                  "the API key only lets VMs be made and deleted; commands run over SSH, so this "
                  "machine must be able to "
                  "reach the VMs on port %lld, with a key that is registered with the exe.dev "
                  "account (`ssh exe.dev`)",
                  (long long)c->ssh_port);
    if (c->reuse_lease)
        problems_warn(
            all, "reuseLease",
            "reuseLease keeps VMs running between runs, and billed, until Paperclip destroys them; "
            "they are not suspended");
    bool ok = problems_errors(all) == before;
    problems_free(&own);
    return ok ? steal_ptr(normal) : NULL;
}
