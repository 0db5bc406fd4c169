/* Settings for the subcommands: flags over environment variables over the saved environments. */
#include "cmd/settings.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/config.h"
#include "lib/configfile.h"
#include "lib/problems.h"
#include "lib/redact.h"

static json_t *from_flags; /* what this command line sets */
static const char *environment;

/* The four that are no field of the schema. */
static const char *const own_options[][2] = {
    {"environment", "use this one of the saved environments"},
    {"set", "set any setting: KEY=VALUE"},
    {"api-key-file", "read the exe.dev token from a file"},
    {"ssh-key-file", "read the SSH private key from a file"},
};

static const struct config_field *by_flag(const char *name)
{
    for (const struct config_field *f = config_fields; f->key; f++) {
        if (strcmp(f->flag, name) == 0)
            return f;
    }
    return NULL;
}

static bool is_own(const char *name)
{
    for (size_t i = 0; i < sizeof own_options / sizeof *own_options; i++) {
        if (strcmp(own_options[i][0], name) == 0)
            return true;
    }
    return false;
}

bool settings_is_option(const char *name)
{
    return is_own(name) || by_flag(name);
}

bool settings_is_flag(const char *name)
{
    const struct config_field *f = by_flag(name);

    return f && f->type == FIELD_FLAG;
}

void settings_add_names(const char ***names, int *n)
{
    size_t own = sizeof own_options / sizeof *own_options;
    const struct config_field *f = config_fields;

    for (size_t i = 0; i < own; i++) {
        *names = xreallocarray(*names, (size_t)*n + 1, sizeof **names);
        (*names)[(*n)++] = own_options[i][0];
    }
    for (; f->key; f++) {
        *names = xreallocarray(*names, (size_t)*n + 1, sizeof **names);
        (*names)[(*n)++] = f->flag;
    }
}

void settings_print_names(void)
{
    for (size_t i = 0; i < sizeof own_options / sizeof *own_options; i++)
        printf("--%s=\t%s\n", own_options[i][0], own_options[i][1]);
    for (const struct config_field *f = config_fields; f->key; f++) {
        if (!f->secret && f->type != FIELD_MAP)
            printf("--%s%s\t%s\n", f->flag, f->type == FIELD_FLAG ? "" : "=", f->title);
    }
}

/* Text to what config_parse takes for that field; NULL: not a truth value. */
static json_t *value_of(const struct config_field *f, const char *text)
{
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no",
                                                                                "off", "0", ""};
    if (f->type != FIELD_FLAG)
        return json_string(text);
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, yes[i]) == 0)
            return json_true();
    }
    for (size_t i = 0; i < 5; i++) {
        if (strcmp(text, no[i]) == 0)
            return json_false();
    }
    return NULL;
}

static char *set(json_t *raw, const char *key, const char *text)
{
    if (text_starts(key, "env.")) {
        json_t *env = json_object_get(raw, "env");
        if (!json_is_object(env)) {
            env = json_object();
            json_object_set_new(raw, "env", env);
        }
        json_object_set_new(env, key + 4, json_string(text));
        return NULL;
    }
    const struct config_field *f = config_field_find(key);
    if (!f)
        f = by_flag(key);
    if (!f)
        return xasprintf("there is no setting '%s' (exedev help settings lists them)", key);
    if (f->type == FIELD_MAP)
        return xasprintf("%s is a map: set one member, as in --set %s.NAME=VALUE", f->key, f->key);
    if (!text_is_utf8(text, strlen(text)))
        return xasprintf("%s: the value is not valid UTF-8", f->key);
    json_t *value = value_of(f, text);
    if (!value)
        return xasprintf("%s is yes or no, not '%s'", f->key, text);
    if (f->secret)
        redact_add(text);
    json_object_set_new(raw, f->key, value);
    return NULL;
}

char *settings_put(json_t *raw, const char *key, const char *text)
{
    return set(raw, key, text);
}

static char *set_from_file(json_t *raw, const char *key, const char *path)
{
    cleanup_error struct error err = {0};
    cleanup_secret_buf struct buf text = {0};

    if (!io_read_file(path, 64 << 10, &text, &err))
        return xasprintf("cannot read the %s: %s",
                         strcmp(key, "apiKey") == 0 ? "token" : "private key", err.msg);
    if (strlen(text.data) != text.len)
        return xasprintf("%s holds a NUL byte; it is not a key or token file", path);
    return set(raw, key, text.data);
}

char *settings_option(const char *name, const char *value)
{
    if (!from_flags)
        from_flags = json_object();
    if (strcmp(name, "environment") == 0) {
        environment = value;
        return NULL;
    }
    if (strcmp(name, "api-key-file") == 0)
        return set_from_file(from_flags, "apiKey", value);
    if (strcmp(name, "ssh-key-file") == 0)
        return set_from_file(from_flags, "sshPrivateKey", value);
    if (strcmp(name, "set") == 0) {
        const char *eq = strchr(value, '=');
        if (!eq)
            return xasprintf("--set wants KEY=VALUE, not '%s'", value);
        cleanup_free char *key = xstrndup(value, (size_t)(eq - value));
        const struct config_field *f = config_field_find(key);
        if (f && f->secret)
            return xasprintf(
                "%s is a secret: on a command line every user of this machine could read it. "
                "Use --api-key-file or --ssh-key-file, an EXEDEV_... variable, or `exedev "
                "configure`",
                key);
        return set(from_flags, key, eq + 1);
    }
    const struct config_field *f = by_flag(name);
    if (f->secret)
        return xasprintf(
            "--%s would show a secret to every user of this machine. Use --api-key-file or "
            "--ssh-key-file, an EXEDEV_... variable, or `exedev configure`",
            name);
    return set(from_flags, f->key, value);
}

/* EXEDEV_SSH_PORT for ssh-port. Secrets are taken out of the environment once read, so that no
 * child gets them. */
static char *set_from_environment(json_t *raw)
{
    static const char *const files[][2] = {{"EXEDEV_API_KEY_FILE", "apiKey"},
                                           {"EXEDEV_SSH_KEY_FILE", "sshPrivateKey"}};

    for (size_t i = 0; i < 2; i++) {
        const char *path = getenv(files[i][0]);
        if (!path || !*path || json_object_get(from_flags, files[i][1]))
            continue;
        cleanup_free char *why = set_from_file(raw, files[i][1], path);
        if (why)
            return xasprintf("%s: %s", files[i][0], why);
    }
    for (const struct config_field *f = config_fields; f->key; f++) {
        if (f->type == FIELD_MAP)
            continue;
        cleanup_free char *name = xasprintf("EXEDEV_%s", f->flag);
        for (char *c = name; *c; c++)
            *c = *c == '-' ? '_' : (char)toupper((unsigned char)*c);
        const char *value = getenv(name);
        if (!value)
            continue;
        cleanup_free char *why = set(raw, f->key, value);
        if (why)
            return xasprintf("%s: %s", name, why);
        if (f->secret)
            unsetenv(name);
    }
    return NULL;
}

const char *cmd_environment(void)
{
    if (environment)
        return environment;
    const char *name = getenv("EXEDEV_ENVIRONMENT");
    return name && *name ? name : NULL;
}

json_t *cmd_settings(void)
{
    cleanup_error struct error err = {0};
    cleanup_configfile struct configfile cf = {0};

    if (!configfile_load(&cf, &err)) {
        cmd_fail_err(&err);
        return NULL;
    }
    json_t *raw = configfile_raw(&cf, cmd_environment(), &err);
    if (!raw) {
        cmd_fail_err(&err);
        return NULL;
    }
    cleanup_free char *why = set_from_environment(raw);
    if (why) {
        cmd_fail(EXIT_USAGE, "%s", why);
        json_decref(raw);
        return NULL;
    }
    if (from_flags) {
        json_t *env = json_object_get(from_flags, "env"), *base = json_object_get(raw, "env");
        if (env && json_is_object(base)) /* one member set must not drop the others */
            json_object_update_missing(env, base);
        json_object_update(raw, from_flags);
    }
    return raw;
}

struct config *cmd_config(void)
{
    cleanup_json json_t *raw = cmd_settings();

    if (!raw)
        return NULL;
    cleanup_problems struct problems problems = {0};
    struct config *cfg = config_parse(raw, &problems);
    if (!problems_errors(&problems))
        return cfg;
    for (size_t i = 0; i < problems.n; i++) {
        if (!problems.list[i].warning)
            cmd_fail(EXIT_USAGE, "%s", problems.list[i].text);
    }
    config_free(cfg);
    return NULL;
}
