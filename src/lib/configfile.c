#include "lib/configfile.h"

#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lib/keyring.h"

/* From the password database when HOME is unset, as under a service manager or the host. */
static char *config_folder(void)
{
    const char *home = getenv("HOME");
    struct passwd pw, *found = NULL;
    char store[4096];

    if (!home || home[0] != '/') {
        getpwuid_r(getuid(), &pw, store, sizeof(store), &found);
        home = found && found->pw_dir[0] == '/' ? found->pw_dir : "/nonexistent";
    }
    return xasprintf("%s/.config/exedev", home);
}

/* A file that is not there is empty. */
static bool read_if_there(const char *path, struct buf *out, struct error *err)
{
    cleanup_error struct error why = {0};

    out->len = 0;
    if (io_read_file(path, CONFIGFILE_MAX, out, &why))
        return true;
    if (why.code == ERR_NOT_FOUND)
        return true;
    if (why.sys == EACCES)
        error_append(&why,
                     ": make it readable for you (chmod u+r), or move it away to start afresh");
    error_move(err, &why);
    return false;
}

static json_t *parse_object(const char *path, const struct buf *text, struct error *err)
{
    cleanup_error struct error why = {0};
    cleanup_secret_buf struct buf copy = {0};

    buf_put(&copy, text->data, text->len);
    json_t *value = json_parse(copy.data, copy.len, &why);
    if (value && json_is_object(value))
        return value;
    json_decref(value);
    error_set(err, ERR_INVALID,
              "%s is damaged: %s. It was left as it is: repair it, put a backup in its place, or "
              "move it away to "
              "start afresh",
              path, why.msg ? why.msg : "it holds no JSON object");
    return NULL;
}

static bool check_root(const struct configfile *cf, struct error *err)
{
    const json_t *version = json_object_get(cf->root, "version");
    const json_t *envs = json_object_get(cf->root, "environments");
    const char *name;
    json_t *value;

    if (!json_is_integer(version) || json_integer_value(version) != CONFIGFILE_VERSION) {
        cleanup_free char *says =
            version ? json_dumps(version, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
        return error_set(err, ERR_UNSUPPORTED,
                         "%s is of version %s, this exedev reads version %d: use the exedev that "
                         "wrote it, or move "
                         "it away to start afresh. It was left as it is",
                         cf->path, says ? says : "(none)", CONFIGFILE_VERSION);
    }
    if (envs && !json_is_object(envs))
        return error_set(err, ERR_INVALID, "%s: \"environments\" is no object of NAME: {settings}",
                         cf->path);
    json_object_foreach ((json_t *)envs, name, value) {
        if (!configfile_name_ok(name) || !json_is_object(value))
            return error_set(err, ERR_INVALID,
                             "%s: the environment \"%s\" has no valid name (letters, digits, . _ "
                             "-, 64 at most) or "
                             "is no object: repair it by hand",
                             cf->path, name);
    }
    return true;
}

/* A secrets file that somebody else can read is no secret any more: say so before using it. */
static bool check_mode(const char *path, struct error *err)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return errno == ENOENT || errno == ENOTDIR || error_sys(err, errno, "%s", path);
    if (st.st_uid != geteuid() && st.st_uid != 0)
        return error_set(
            err, ERR_UNSAFE,
            "%s belongs to another user (uid %u): its secrets are not used. Move it away", path,
            (unsigned)st.st_uid);
    if (st.st_mode & 077)
        return error_set(err, ERR_UNSAFE,
                         "%s can be read by other users (mode %03o): its secrets are not used. "
                         "Run: chmod 600 %s - and "
                         "replace the secrets in it if this machine has other users",
                         path, (unsigned)(st.st_mode & 0777), path);
    return true;
}

static bool check_secrets(const struct configfile *cf, struct error *err)
{
    const char *name, *key;
    json_t *env, *value;

    json_object_foreach (cf->secrets, name, env) {
        if (!json_is_object(env))
            return error_set(err, ERR_INVALID, "%s: \"%s\" is no object of {key: secret}",
                             cf->secrets_path, name);
        json_object_foreach (env, key, value) {
            if (!json_is_string(value) && !json_str(value, "keyring"))
                return error_set(err, ERR_INVALID,
                                 "%s: \"%s\" of \"%s\" is neither a text nor a keyring entry",
                                 cf->secrets_path, key, name);
        }
    }
    return true;
}

bool configfile_load(struct configfile *cf, struct error *err)
{
    cleanup_free char *folder = config_folder();

    *cf = (struct configfile){.path = xasprintf("%s/config.json", folder),
                              .secrets_path = xasprintf("%s/secrets.json", folder)};
    if (!read_if_there(cf->path, &cf->was, err) || !check_mode(cf->secrets_path, err) ||
        !read_if_there(cf->secrets_path, &cf->secrets_was, err))
        return false;
    cf->exists = cf->was.len > 0 || access(cf->path, F_OK) == 0;
    if (cf->exists) {
        cf->root = parse_object(cf->path, &cf->was, err);
        if (!cf->root || !check_root(cf, err))
            return false;
    } else {
        cf->root = json_pack("{s:i, s:{}}", "version", CONFIGFILE_VERSION, "environments");
    }
    if (!json_object_get(cf->root, "environments"))
        json_object_set_new(cf->root, "environments", json_object());
    cf->environments = json_object_get(cf->root, "environments");
    cf->secrets =
        cf->secrets_was.len ? parse_object(cf->secrets_path, &cf->secrets_was, err) : json_object();
    return cf->secrets && check_secrets(cf, err);
}

/* Jansson frees strings without wiping them; these hold keys. */
static void wipe_secrets(json_t *secrets)
{
    const char *name, *key;
    json_t *env, *value;

    json_object_foreach (secrets, name, env) {
        json_object_foreach (env, key, value) {
            if (json_is_string(value) && value->refcount == 1)
                explicit_bzero((char *)json_string_value(value), json_string_length(value));
        }
    }
}

void configfile_free(struct configfile *cf)
{
    free(cf->path);
    free(cf->secrets_path);
    json_decref(cf->root);
    if (cf->secrets)
        wipe_secrets(cf->secrets);
    json_decref(cf->secrets);
    buf_free(&cf->was);
    buf_wipe(&cf->secrets_was);
    *cf = (struct configfile){0};
}

const char *configfile_default(const struct configfile *cf)
{
    const char *name = json_str(cf->root, "default");

    if (name && json_object_get(cf->environments, name))
        return name;
    return json_object_iter_key(json_object_iter(cf->environments));
}

void configfile_set_default(struct configfile *cf, const char *name)
{
    json_object_set_new(cf->root, "default", json_string(name));
}

bool configfile_name_ok(const char *name)
{
    size_t n = strlen(name);

    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

    return n >= 1 && n <= 64 && strspn(name, allowed) == n && !strchr("._-", name[0]);
}

static bool no_such(const struct configfile *cf, const char *name, struct error *err)
{
    cleanup_buf struct buf names = {0};
    const char *key;
    json_t *value;

    json_object_foreach (cf->environments, key, value) {
        buf_printf(&names, "%s%s", names.len ? ", " : "", key);
    }
    return error_set(err, ERR_NOT_FOUND, "no environment \"%s\" in %s: %s%s", name, cf->path,
                     names.len ? "there are "
                               : "there is none yet, make one with `exedev configure`",
                     names.len ? names.data : "");
}

static json_t *secret_of(const struct configfile *cf, const char *name, const char *key)
{
    return json_object_get(json_object_get(cf->secrets, name), key);
}

bool configfile_has_secret(const struct configfile *cf, const char *name, const char *key)
{
    return secret_of(cf, name, key) != NULL;
}

char *configfile_secret(const struct configfile *cf, const char *name, const char *key,
                        struct error *err)
{
    const json_t *value = secret_of(cf, name, key);

    if (!value)
        return NULL;
    if (json_is_string(value))
        return xstrndup(json_string_value(value), json_string_length(value));
    char *text = keyring_lookup(json_str(value, "keyring"), err);
    if (!text)
        error_prefix(err, "read %s of environment \"%s\"", key, name);
    return text;
}

void configfile_set_secret(struct configfile *cf, const char *name, const char *key,
                           const char *text)
{
    json_t *env = json_object_get(cf->secrets, name);

    if (text && *text) {
        if (!env) {
            env = json_object();
            json_object_set_new(cf->secrets, name, env);
        }
        json_object_set_new(env, key, json_string(text));
    } else if (env) {
        json_object_del(env, key);
        if (!json_object_size(env))
            json_object_del(cf->secrets, name);
    }
}

json_t *configfile_raw(const struct configfile *cf, const char *name, struct error *err)
{
    if (!name)
        name = configfile_default(cf);
    if (!name)
        return json_object();
    const json_t *env = json_object_get(cf->environments, name);
    if (!env) {
        no_such(cf, name, err);
        return NULL;
    }
    cleanup_json json_t *raw = json_deep_copy(env);
    const char *key;
    json_t *value;
    json_object_foreach (json_object_get(cf->secrets, name), key, value) {
        char *text = configfile_secret(cf, name, key, err);
        if (!text)
            return NULL;
        json_t *plain = json_string(text);
        explicit_bzero(text, strlen(text));
        free(text);
        if (!plain) {
            error_set(err, ERR_INVALID, "%s of environment \"%s\" is no valid UTF-8: set it again",
                      key, name);
            return NULL;
        }
        json_object_set_new(raw, key, plain);
    }
    return steal_ptr(raw);
}

bool configfile_add(struct configfile *cf, const char *name, struct error *err)
{
    if (!configfile_name_ok(name))
        return error_set(err, ERR_INVALID,
                         "\"%s\" is no name for an environment: use 1 to 64 letters, digits, . _ "
                         "or -, beginning with a letter or digit",
                         name);
    if (json_object_get(cf->environments, name))
        return error_set(err, ERR_EXISTS,
                         "there is an environment \"%s\" already: choose another name", name);
    json_object_set_new(cf->environments, name, json_object());
    if (!json_str(cf->root, "default"))
        configfile_set_default(cf, name);
    return true;
}

bool configfile_keyring_works(void)
{
    return keyring_works();
}

/* Moves the texts set since loading into the keyring; without one they stay where they are, for the
 * file. */
static bool to_keyring(struct configfile *cf, struct error *err)
{
    const char *name, *key;
    json_t *env, *value;
    void *next;

    if (!json_object_size(cf->secrets) || !keyring_works())
        return true;
    json_object_foreach (cf->secrets, name, env) {
        json_object_foreach_safe(env, next, key, value)
        {
            if (!json_is_string(value))
                continue;
            unsigned char noise[16];
            char id[2 * sizeof(noise) + 1];
            cleanup_free char *label = xasprintf("exedev: %s of %s", key, name);
            io_random(noise, sizeof(noise));
            io_hex(noise, sizeof(noise), id);
            if (!keyring_store(id, label, json_string_value(value), err))
                return false;
            json_object_set_new(env, key, json_pack("{s:s}", "keyring", id));
        }
    }
    return true;
}

static bool refers_to(const json_t *secrets, const char *id)
{
    const char *name, *key;
    json_t *env, *value;

    json_object_foreach ((json_t *)secrets, name, env) {
        json_object_foreach (env, key, value) {
            const char *other = json_str(value, "keyring");
            if (other && strcmp(other, id) == 0)
                return true;
        }
    }
    return false;
}

/* Entries that only the old file knew. One that cannot be cleared is left behind, harmless. */
static void clear_unused(const json_t *before, const json_t *now)
{
    const char *name, *key;
    json_t *env, *value;

    json_object_foreach ((json_t *)before, name, env) {
        json_object_foreach (env, key, value) {
            const char *id = json_str(value, "keyring");
            if (id && !refers_to(now, id))
                keyring_clear(id, NULL);
        }
    }
}

static bool same(const struct buf *a, const struct buf *b)
{
    return a->len == b->len && (!a->len || memcmp(a->data, b->data, a->len) == 0);
}

static bool unchanged(const struct configfile *cf, struct error *err)
{
    cleanup_buf struct buf now = {0};
    cleanup_secret_buf struct buf secrets_now = {0};

    if (!read_if_there(cf->path, &now, err) || !read_if_there(cf->secrets_path, &secrets_now, err))
        return false;
    if (same(&now, &cf->was) && same(&secrets_now, &cf->secrets_was))
        return true;
    return error_set(err, ERR_EXISTS,
                     "%s was changed by another program (a second form?) since it was read, so "
                     "nothing was written: read it "
                     "again, then make your change again",
                     same(&now, &cf->was) ? cf->secrets_path : cf->path);
}

static bool write_json(const char *path, const json_t *value, struct buf *written,
                       struct error *err)
{
    char *text = json_dumps(value, JSON_INDENT(2));
    size_t n = strlen(text);

    text[n] = '\n'; /* in place of the NUL: the file ends in a newline */
    bool ok = io_write_file(path, 0600, text, n + 1, err);
    if (ok) {
        buf_wipe(written);
        buf_put(written, text, n + 1);
    }
    explicit_bzero(text, n);
    free(text);
    return ok;
}

/* Before config.json is replaced secrets.json must fit the old one, afterwards the new one: for the
 * time between, both. */
static json_t *both_secrets(const json_t *before, const json_t *now)
{
    json_t *both = json_deep_copy(before);
    const char *name;
    json_t *env;

    json_object_foreach ((json_t *)now, name, env) {
        json_t *there = json_object_get(both, name);
        if (there)
            json_object_update(there, env);
        else
            json_object_set(both, name, env);
    }
    return both;
}

static bool write_both(struct configfile *cf, struct error *err)
{
    cleanup_json json_t *before = cf->secrets_was.len
                                      ? parse_object(cf->secrets_path, &cf->secrets_was, NULL)
                                      : json_object();
    bool have = json_object_size(before) || json_object_size(cf->secrets);

    if (have && !json_equal(before, cf->secrets)) {
        cleanup_json json_t *both = both_secrets(before, cf->secrets);
        if (!write_json(cf->secrets_path, both, &cf->secrets_was, err))
            return false;
    }
    if (!write_json(cf->path, cf->root, &cf->was, err))
        return false;
    if (have && !write_json(cf->secrets_path, cf->secrets, &cf->secrets_was, err))
        return false;
    clear_unused(before, cf->secrets);
    wipe_secrets(before);
    return true;
}

bool configfile_save(struct configfile *cf, struct error *err)
{
    cleanup_free char *folder = xstrndup(cf->path, (size_t)(strrchr(cf->path, '/') - cf->path));
    cleanup_free char *lock_path = xasprintf("%s/.lock", folder);

    if (!io_mkdirs(folder, 0700, err))
        return error_prefix(err, "save the settings");
    cleanup_fd int lock = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (lock < 0)
        return error_sys(err, errno, "save the settings: lock %s", lock_path);
    while (flock(lock, LOCK_EX) < 0) {
        if (errno != EINTR)
            return error_sys(err, errno, "save the settings: lock %s", lock_path);
    }
    if (!unchanged(cf, err))
        return false;
    if (!to_keyring(cf, err) || !write_both(cf, err))
        return error_prefix(err, "save the settings");
    cf->exists = true;
    return true;
}
