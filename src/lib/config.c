#include "lib/config.h"

#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/config_internal.h"
#include "lib/config_value.h"
#include "lib/name.h"
#include "lib/redact.h"
#include "lib/setup.h"
#include "lib/secret.h"
#include "lib/token.h"

const struct config_field config_fields[] = {
#include "config_fields.inc"
    {.key = NULL},
};

const struct config_field *config_field_find(const char *key)
{
    for (const struct config_field *f = config_fields; f->key; f++)
        if (!strcmp(f->key, key))
            return f;
    return NULL;
}

static void *member(struct config *c, const struct config_field *f)
{
    return (char *)c + f->offset;
}

static void read_string(char **to, const struct config_field *f, const json_t *v,
                        struct problems *p)
{
    char *text = value_string(v, f->key, p);

    if (!text && f->fallback)
        text = xstrdup(f->fallback);
    if (!f->secret) {
        *to = text;
        return;
    }
    *to = secret_dup(text);
    redact_add(*to);
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

static void read_integer(int64_t *to, const struct config_field *f, const json_t *v,
                         struct problems *p)
{
    int64_t given;

    *to = f->fallback ? atoll(f->fallback) : 0;
    switch (value_integer(v, &given)) {
    case VALUE_INT_ABSENT:
        return;
    case VALUE_INT_BAD:
        problems_error(p, f->key, "%s must be a whole number from %lld to %lld", f->key,
                       (long long)f->min, (long long)f->max);
        return;
    case VALUE_INT_OK:
        if (given < f->min || given > f->max)
            problems_error(p, f->key, "%s is %lld, out of range: it must be from %lld to %lld",
                           f->key, (long long)given, (long long)f->min, (long long)f->max);
        else
            *to = given;
    }
}

/* JSON says 22.9; text may say anything. Replaces *text by what we use, where the two differ. */
static void set_text(char **text, char *better)
{
    free(*text);
    *text = better;
}

static void read_strict(struct config *c, const json_t *raw, struct problems *p)
{
    const json_t *v = json_object_get(raw, "strictHostKeyChecking");
    const char *s = c->strict_host_key_checking;

    if (json_is_string(v)) {
        cleanup_free char *given = value_string(v, "strictHostKeyChecking", p);
        if (!given) {
            problems_error(p, "strictHostKeyChecking",
                           "strictHostKeyChecking is blank: choose accept-new, yes or no");
            return;
        }
    }
    if (!strcmp(s, "off"))
        set_text(&c->strict_host_key_checking, xstrdup("no"));
    else if (!strcmp(s, "ask"))
        problems_error(p, "strictHostKeyChecking",
                       "strictHostKeyChecking is `ask`, but nobody is there to answer: choose "
                       "accept-new, yes or no");
    else if (strcmp(s, "accept-new") != 0 && strcmp(s, "yes") != 0 && strcmp(s, "no") != 0)
        problems_error(p, "strictHostKeyChecking",
                       "strictHostKeyChecking must be accept-new, yes or no");
    else
        return;
    if (strcmp(c->strict_host_key_checking, "no") != 0)
        set_text(&c->strict_host_key_checking, xstrdup("accept-new"));
}

static void read_url(struct config *c, struct problems *p)
{
    const char *why;
    char *url = value_api_url(c->api_url, &why);

    if (url) {
        set_text(&c->api_url, url);
        return;
    }
    problems_error(p, "apiUrl",
                   "apiUrl is not an http(s) URL: %s. Write it like https://exe.dev/exec", why);
    set_text(&c->api_url, xstrdup(config_field_find("apiUrl")->fallback));
}

struct config *config_read(const json_t *raw, struct problems *p)
{
    struct config *c = xcalloc(1, sizeof *c);

    if (raw && !json_is_object(raw) && !json_is_null(raw))
        problems_error(p, NULL, "the config is not a JSON object");
    for (const struct config_field *f = config_fields; f->key; f++) {
        const json_t *v = json_object_get(raw, f->key);
        switch (f->type) {
        case FIELD_STRING:
            read_string(member(c, f), f, v, p);
            break;
        case FIELD_INTEGER:
            read_integer(member(c, f), f, v, p);
            break;
        case FIELD_LIST:
            *(json_t **)member(c, f) = value_list(v, f->key, p);
            break;
        case FIELD_MAP:
            *(json_t **)member(c, f) = value_map(v, f->key, p);
            break;
        case FIELD_FLAG:
            *(bool *)member(c, f) = json_is_true(v);
            break;
        }
    }
    read_strict(c, raw, p);
    read_url(c, p);
    set_text(&c->name_prefix, name_prefix(c->name_prefix));
    return c;
}

char *config_home(void)
{
    const char *home = getenv("HOME");
    struct passwd pw, *found = NULL;
    char buf[16384];

    if (home && *home == '/')
        return xstrdup(home);
    if (getpwuid_r(geteuid(), &pw, buf, sizeof buf, &found) || !found || *found->pw_dir != '/')
        return NULL;
    return xstrdup(found->pw_dir);
}

/* A token file that is there but may not be used is a problem: going on without it would only say
 * that there is no token. */
static char *token_from_file(const char *path, mode_t refused, struct problems *p)
{
    cleanup_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    char text[TOKEN_MAX + 3];

    if (fd < 0) {
        if (errno != ENOENT && errno != ENOTDIR)
            problems_error(p, "apiKey", "the token file %s cannot be opened: %s", path,
                           strerror(errno));
        return NULL;
    }
    if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
        problems_error(p, "apiKey", "the token file %s is not a regular file", path);
        return NULL;
    }
    if (st.st_mode & refused) {
        problems_error(
            p, "apiKey",
            "the token file %s can be read by others (mode %03o): run `chmod 600 %s`, and "
            "replace the token if others use this machine",
            path, (unsigned)st.st_mode & 0777, path);
        return NULL;
    }
    ssize_t n = read(fd, text, sizeof text - 1);
    if (n < 0 || n > TOKEN_MAX + 1) {
        problems_error(p, "apiKey", "the token file %s %s", path,
                       n < 0 ? "cannot be read" : "is longer than a token can be (8 KiB)");
        return NULL;
    }
    text[n] = '\0';
    cleanup_free char *trimmed = value_trim(text);
    char *token = *trimmed ? secret_dup(trimmed) : NULL;
    explicit_bzero(text, sizeof text);
    explicit_bzero(trimmed, strlen(trimmed));
    return token;
}

static void find_api_key(struct config *c, struct problems *p)
{
    const char *env = getenv("EXE_API_KEY");
    cleanup_free char *trimmed = env ? value_trim(env) : NULL;
    cleanup_free char *home = config_home();
    cleanup_free char *own = home ? xasprintf("%s/.config/exedev/token", home) : NULL;

    if (c->api_key) {
        c->api_key_source = xstrdup("apiKey");
        return;
    }
    if (trimmed && *trimmed) {
        c->api_key = secret_dup(trimmed);
        c->api_key_source = xstrdup("EXE_API_KEY");
    } else if (own && (c->api_key = token_from_file(own, 077, p))) {
        c->api_key_source = steal_ptr(own);
    } else if ((c->api_key = token_from_file("/etc/exedev/token", 007, p))) {
        /* Root may give it to the worker's group. */
        c->api_key_source = xstrdup("/etc/exedev/token");
    }
    redact_add(c->api_key);
}

static void check_api_key(const struct config *c, struct problems *p)
{
    const char *from = c->api_key_source;

    for (const char *s = c->api_key; s && *s; s++)
        if ((unsigned char)*s <= ' ' || (unsigned char)*s >= 0x7f) {
            problems_error(
                p, "apiKey",
                "apiKey (from %s) holds white space or a character no token has: copy the "
                "token again, as one line",
                from);
            return;
        }
    if (c->api_key && strlen(c->api_key) > TOKEN_MAX)
        problems_error(p, "apiKey", "apiKey (from %s) is longer than exe.dev takes (8 KiB)", from);
}

static void check_path(const char *key, const char *path, struct problems *p)
{
    if (path && *path != '/')
        problems_error(p, key,
                       "%s must be an absolute path (it begins with /), because the worker has no "
                       "folder of its own",
                       key);
}

static void check_ssh(struct config *c, struct problems *p)
{
    if (c->ssh_user && !text_is_user(c->ssh_user))
        problems_error(
            p, "sshUser",
            "sshUser holds a character that no login name has: letters, digits and . _ + - @ "
            "are allowed, at most 64, and no hyphen first");
    check_path("sshIdentityFile", c->ssh_identity_file, p);
    check_path("sshAgentSocket", c->ssh_agent_socket, p);
    check_path("sshConfigFile", c->ssh_config_file, p);

    int line = 0;
    cleanup_free char *lines = c->ssh_known_hosts ? xstrdup(c->ssh_known_hosts) : NULL;
    char *rest = lines, *one;
    bool any = false;
    while (lines && (one = strsep(&rest, "\n"))) {
        line++;
        cleanup_free char *t = text_trim(one);
        if (!*t || *t == '#')
            continue;
        const char *s = t;
        int words = 0;
        for (; *s; words++) {
            s += strcspn(s, " \t");
            s += strspn(s, " \t");
        }
        any = true;
        if (words < (*t == '@' ? 4 : 3)) {
            problems_error(
                p, "sshKnownHosts",
                "sshKnownHosts: line %d is no known_hosts line; it needs host, key type and key, "
                "as `ssh-keyscan HOST` prints them",
                line);
            break;
        }
    }
    if (c->ssh_known_hosts && !any)
        problems_error(p, "sshKnownHosts", "sshKnownHosts holds no host key, only comments");
}

static void check_creation(struct config *c, struct problems *p)
{
    const char *key;
    json_t *value;

    if (c->source_vm && !text_is_vm_name(c->source_vm))
        problems_error(
            p, "sourceVm",
            "sourceVm is not the name of a VM: lower-case letters, digits and hyphens, at "
            "most 63, not ending in a hyphen and digits");
    if (c->memory && !value_is_size(c->memory))
        problems_error(p, "memory", "memory is not a size: write it like 4GB, 512M or 8");
    if (c->disk && !value_is_size(c->disk))
        problems_error(p, "disk", "disk is not a size: write it like 20GB or 50");
    if (c->comment && strlen(c->comment) > 200)
        problems_error(p, "comment", "comment has %zu bytes, exe.dev takes at most 200: shorten it",
                       strlen(c->comment));
    cleanup_free char *sent =
        c->setup_script ? setup_script(c) : NULL; /* with what waitForSetup puts around it */
    if (sent && strlen(sent) > 10240)
        problems_error(
            p, "setupScript",
            "setupScript has %zu bytes, exe.dev takes at most 10240 (10 KiB): let it download the "
            "rest, or put it into an image",
            strlen(sent));
    if (c->registry_auth && !config_is_secret_id(c->registry_auth) &&
        !strchr(c->registry_auth, ':'))
        problems_error(p, "registryAuth", "registryAuth must be USER:PASSWORD");
    json_object_foreach (c->env, key, value) {
        if (value_is_env_key(key))
            continue;
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, key, strlen(key), 60);
        problems_error(p, "env",
                       "env: `%s` is no name for a variable: letters, digits and underscores, not "
                       "beginning with a digit",
                       shown.data);
    }
}

static void check_api(struct config *c, struct problems *p)
{
    const char *why;

    check_path("caFile", c->ca_file, p);
    if (!c->https_proxy)
        return;
    /* Its path is of no interest; scheme and host are checked the same way. A user name in it is
     * legal. */
    const char *at = strrchr(c->https_proxy, '@'), *scheme = strstr(c->https_proxy, "://");
    cleanup_free char *bare = at && scheme ? xasprintf("%.*s%s", (int)(scheme + 3 - c->https_proxy),
                                                       c->https_proxy, at + 1)
                                           : xstrdup(c->https_proxy);
    cleanup_free char *url = value_api_url(bare, &why);
    if (!url)
        problems_error(
            p, "httpsProxy",
            "httpsProxy is not an http(s) URL: %s. Write it like http://proxy.example:3128", why);
}

void config_finish(struct config *c, struct problems *p)
{
    const char *key;
    json_t *value;

    find_api_key(c, p);
    check_api_key(c, p);
    check_ssh(c, p);
    check_creation(c, p);
    check_api(c, p);
    /* A proxy's password. */
    redact_add(strchr(c->https_proxy ? c->https_proxy : "", '@') ? c->https_proxy : NULL);

    cleanup_json json_t *more = value_env_text(c->env_text, "envText", p);
    json_object_foreach (more, key, value) {
        json_object_set(c->env, key, value);
    }
    if (c->ssh_private_key)
        set_text(&c->ssh_identity_file, NULL);
    if (c->ssh_known_hosts)
        set_text(&c->strict_host_key_checking, xstrdup("yes"));
}

struct config *config_parse(const json_t *raw, struct problems *p)
{
    struct config *c = config_read(raw, p);

    config_finish(c, p);
    return c;
}

struct config *config_load(const json_t *raw, struct error *err)
{
    cleanup_problems struct problems p = {0};
    struct config *c = config_parse(raw, &p);

    if (problems_to_error(&p, err))
        return c;
    config_free(c);
    return NULL;
}

void config_free(struct config *c)
{
    if (!c)
        return;
    redact_remove(strchr(c->https_proxy ? c->https_proxy : "", '@') ? c->https_proxy : NULL);
    for (const struct config_field *f = config_fields; f->key; f++) {
        if (f->type == FIELD_LIST || f->type == FIELD_MAP) {
            json_decref(*(json_t **)member(c, f));
        } else if (f->type == FIELD_STRING) {
            char *text = *(char **)member(c, f);
            if (!f->secret) {
                free(text);
                continue;
            }
            redact_remove(text);
            secret_free(text);
        }
    }
    free(c->api_key_source);
    free(c);
}

bool config_is_secret_id(const char *text)
{
    size_t i;

    if (!text)
        return false;
    for (i = 0; i < 36; i++) {
        bool hyphen = i == 8 || i == 13 || i == 18 || i == 23;
        if (hyphen ? text[i] != '-' : !isxdigit((unsigned char)text[i]))
            return false;
    }
    return !text[i];
}

/* An exe0 token is known by the key that signed it: minting the next one from the same key must not
 * make the old one's VMs strangers. */
char *config_account_id(const struct config *c)
{
    cleanup_token struct token t = {0};
    const char *who = c->api_key ? c->api_key : "";
    unsigned char digest[EVP_MAX_MD_SIZE];
    char *hex = xmalloc(33);

    if (token_parse(who, &t, NULL) && t.fingerprint)
        who = t.fingerprint;
    cleanup_secret_buf struct buf all = {0};
    buf_printf(&all, "%s\n%s", c->api_url, who);
    EVP_Digest(all.data, all.len, digest, NULL, EVP_sha256(), NULL);
    io_hex(digest, 16, hex);
    return hex;
}
