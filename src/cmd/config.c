/* exedev config get|set|unset|list|path: the saved settings, one at a time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/edit.h"
#include "cmd/terminal.h"
#include "lib/redact.h"

CMD(config_file);

#define SECRET_MAX 65536

static const char *environment;
static bool json, create;

/* The named environment, or the default one; made where that is meant. NULL: not there. */
static const char *pick(struct configfile *cf, bool to_change, struct error *err)
{
    const char *name = environment ? environment : cmd_environment();

    if (!name)
        name = configfile_default(cf);
    if (!name && to_change)
        return configfile_add(cf, "main", err) ? "main" : NULL;
    if (!name) {
        error_set(
            err, ERR_NOT_FOUND,
            "there is no environment yet: `exedev configure` or `exedev config set` makes one");
        return NULL;
    }
    if (!json_object_get(cf->environments, name)) {
        if (to_change && create)
            return configfile_add(cf, name, err) ? name : NULL;
        cleanup_json json_t *none = configfile_raw(cf, name, err);
        if (to_change)
            error_append(err, ". --create makes it");
        return NULL;
    }
    return name;
}

static int list(struct configfile *cf, const char *name)
{
    const json_t *env = json_object_get(cf->environments, name);
    cleanup_json json_t *all = json_copy((json_t *)env);
    const char *key;
    json_t *value;

    json_object_foreach (json_object_get(cf->secrets, name), key, value) {
        json_object_set_new(all, key, json_string("(stored)"));
    }
    json_object_foreach ((json_t *)env, key, value) {
        const struct config_field *field = config_field_find(key);
        if (field && field->secret)
            json_object_set_new(all, key, json_string("(stored)"));
    }
    if (json) {
        cleanup_json json_t *out = json_pack("{s:s, s:O}", "environment", name, "settings", all);
        cmd_print_json(out);
        return EXIT_OK;
    }
    json_object_foreach (all, key, value) {
        cleanup_free char *text = edit_text(value);
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, text, strlen(text), 2000);
        printf("%s=%s\n", key, shown.data ? shown.data : "");
    }
    return EXIT_OK;
}

static int get(struct configfile *cf, const char *name, const char *key)
{
    const json_t *env = json_object_get(cf->environments, name);
    const json_t *value = text_starts(key, "env.")
                              ? json_object_get(json_object_get(env, "env"), key + 4)
                              : json_object_get(env, key);
    const struct config_field *field = config_field_find(key);

    if (configfile_has_secret(cf, name, key) || (value && field && field->secret)) {
        fprintf(stderr, "exedev config: %s is a secret: it is stored, and not printed\n", key);
        return EXIT_OK;
    }
    if (!value)
        return cmd_fail(EXIT_FAILED, "%s is not set in \"%s\"", key, name);
    if (json) {
        cmd_print_json(value);
        return EXIT_OK;
    }
    cleanup_free char *text = edit_text(value);
    puts(text);
    return EXIT_OK;
}

/* A secret's text never stands on a command line: it is typed without echo, or piped. */
static char *read_secret(const struct config_field *field, struct error *err)
{
    cleanup_secret_buf struct buf text = {0};

    if (isatty(0)) {
        cleanup_free char *prompt =
            xasprintf("%s (not shown%s): ", field->title, field->multiline ? ", Ctrl-D ends" : "");
        return terminal_secret(prompt, field->multiline, err);
    }
    for (;;) {
        char *to = buf_reserve(&text, 4096);
        ssize_t n = read(0, to, 4096);
        if (n <= 0)
            break;
        text.len += (size_t)n;
        if (text.len > SECRET_MAX) {
            error_set(err, ERR_TOO_LARGE, "%s: more than %d bytes on stdin: that is no key",
                      field->key, SECRET_MAX);
            return NULL;
        }
    }
    while (text.len && !field->multiline && strchr("\r\n", text.data[text.len - 1]))
        text.len--;
    if (text.len == 0 || memchr(text.data, 0, text.len)) {
        error_set(err, ERR_INVALID, "%s: stdin held %s", field->key,
                  text.len ? "a NUL byte" : "nothing");
        return NULL;
    }
    buf_reserve(&text, 1)[0] = 0;
    return buf_steal(&text);
}

static bool set(struct configfile *cf, const char *name, const char *key, const char *value,
                struct error *err)
{
    const struct config_field *field = config_field_find(key);

    if (!field || !field->secret) {
        if (value)
            return edit_put(cf, name, key, value, err);
        return error_set(err, ERR_INVALID, "a value is missing: exedev config set %s VALUE", key);
    }
    if (value)
        return error_set(err, ERR_INVALID,
                         "%s is a secret: on a command line every user of this machine could read "
                         "it. Leave the value out "
                         "and type it, or pipe it in: exedev config set %s < FILE",
                         key, key);
    char *secret = read_secret(field, err);
    if (!secret)
        return false;
    bool ok = edit_put(cf, name, key, secret, err);
    explicit_bzero(secret, strlen(secret));
    free(secret);
    return ok;
}

static int change(struct configfile *cf, const char *verb, const char *key, const char *value)
{
    cleanup_error struct error err = {0};
    const char *name = pick(cf, true, &err);
    bool setting = strcmp(verb, "set") == 0;

    if (!name || !(setting ? set(cf, name, key, value, &err) : edit_unset(cf, name, key, &err)) ||
        !configfile_save(cf, &err)) {
        redact_error(&err);
        return cmd_fail_err(&err);
    }
    return EXIT_OK;
}

int cmd_config_file(int argc, char **argv)
{
    const struct cmd_option options[] = {
        {"environment", 'e', "NAME", "this environment instead of the default one", OPT_STRING,
         &environment},
        {"create", 0, NULL, "with set: make the environment when there is none of that name",
         OPT_FLAG, &create},
        {"json", 0, NULL, "with get and list: print JSON", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] get KEY | set KEY [VALUE] | unset KEY | list | path",
        .about = "Reads and changes the saved settings. A secret is typed without echo or piped "
                 "in, kept apart from the "
                 "others, and never printed. `exedev help settings` lists the keys; env.NAME is "
                 "one variable of env. "
                 "A value that begins with a hyphen goes after --.",
        .examples =
            "  exedev config set cpu 8\n  exedev config set sshPrivateKey < ~/.ssh/id_ed25519",
        .min = 1,
        .max = -1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    const char *verb = argv[i++];
    int n = argc - i;
    const char *key = n > 0 ? argv[i] : NULL, *value = n > 1 ? argv[i + 1] : NULL;
    static const char *const verbs[] = {"get", "set", "unset", "list", "path", NULL};
    static const int least[] = {1, 1, 1, 0, 0}, most[] = {1, 2, 1, 0, 0};
    cleanup_configfile struct configfile cf = {0};
    cleanup_error struct error err = {0};
    int v = 0;

    while (verbs[v] && strcmp(verbs[v], verb) != 0)
        v++;
    if (!verbs[v]) {
        const char *near = cmd_nearest(verb, verbs);
        return cmd_fail(EXIT_USAGE, "'%s' is none of get, set, unset, list, path%s%s%s", verb,
                        near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    if (n < least[v] || n > most[v])
        return cmd_fail(EXIT_USAGE, "%s takes %s; see exedev config --help", verb,
                        most[v] == 2 ? "a key and a value"
                        : most[v]    ? "one key"
                                     : "nothing");
    if (!configfile_load(&cf, &err))
        return cmd_fail_err(&err);
    if (strcmp(verb, "path") == 0) {
        puts(cf.path);
        return EXIT_OK;
    }
    if (strcmp(verb, "set") == 0 || strcmp(verb, "unset") == 0)
        return change(&cf, verb, key, value);
    const char *name = pick(&cf, false, &err);
    if (!name)
        return cmd_fail_err(&err);
    return key ? get(&cf, name, key) : list(&cf, name);
}
