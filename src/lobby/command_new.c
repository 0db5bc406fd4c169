/* new, cp, resize: the commands with flags that say what a VM is like. */
#include "lobby/command.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lobby/vms.h"

#define MAX_COMMENT 200
#define MAX_SETUP 10240
#define MAX_ENV 65536

struct parsed {
    struct new_vm vm;
    json_t *conf; /* owned */
    char *setup;  /* owned */
    bool prompt, image;
    const char *positional[3];
    size_t positional_n;
};

typedef bool flag_fn(struct parsed *p, const char *name, const char *value, struct error *err);

struct flag {
    const char *name;
    flag_fn *set; /* NULL: takes no value, means nothing here */
    enum { IN_NEW = 1, IN_CP = 2, IN_RESIZE = 4 } in;
};

static bool set_name(struct parsed *p, const char *name, const char *value, struct error *err)
{
    (void)name;
    (void)err;
    p->vm.name = value;
    return true;
}

static bool set_text(struct parsed *p, const char *name, const char *value, struct error *err)
{
    if (!text_is_utf8(value, strlen(value)))
        return error_set(err, ERR_REFUSED, "--%s: not UTF-8", name);
    json_object_set_new(p->conf, name, json_string(value));
    return true;
}

static bool set_image(struct parsed *p, const char *name, const char *value, struct error *err)
{
    if (!*value || strpbrk(value, " \t\n"))
        return error_set(err, ERR_REFUSED, "--image: \"%s\" is no image name", value);
    p->image = true;
    return set_text(p, name, value, err);
}

/* exe.dev's words for "what the image says" and "nothing". */
static bool set_command(struct parsed *p, const char *name, const char *value, struct error *err)
{
    if (!*value || strcmp(value, "auto") == 0 || strcmp(value, "none") == 0)
        return true;
    return set_text(p, name, value, err);
}

static bool set_cpu(struct parsed *p, const char *name, const char *value, struct error *err)
{
    if (!*value || strspn(value, "0123456789") != strlen(value) || strlen(value) > 4 ||
        atoi(value) < 1)
        return error_set(err, ERR_REFUSED, "--cpu: \"%.40s\" is no number of CPUs", value);
    json_object_set_new(p->conf, name, json_integer(atoi(value)));
    return true;
}

/* "4GB", "16G", "50". */
static bool set_size(struct parsed *p, const char *name, const char *value, struct error *err)
{
    size_t n = strspn(value, "0123456789");
    static const char *const units[] = {"", "m", "mb", "mib", "g", "gb", "gib", "t", "tb", "tib"};

    for (size_t i = 0; n && n < 10 && i < sizeof units / sizeof *units; i++) {
        if (strcasecmp(value + n, units[i]) == 0 && strtol(value, NULL, 10) > 0)
            return set_text(p, name, value, err);
    }
    return error_set(err, ERR_REFUSED, "--%s: \"%.40s\" is no size (4GB, 16G, 50)", name, value);
}

static bool set_comment(struct parsed *p, const char *name, const char *value, struct error *err)
{
    if (strlen(value) > MAX_COMMENT)
        return error_set(err, ERR_REFUSED, "--comment: %zu bytes, at most %d", strlen(value),
                         MAX_COMMENT);
    return set_text(p, name, value, err);
}

static bool set_env(struct parsed *p, const char *name, const char *value, struct error *err)
{
    const char *eq = strchr(value, '=');
    size_t n = eq ? (size_t)(eq - value) : 0;

    if (!n || isdigit((unsigned char)value[0]) ||
        strspn(value, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") != n)
        return error_set(err, ERR_REFUSED, "--env: expected KEY=VALUE");
    if (strlen(value) > MAX_ENV || !text_is_utf8(value, strlen(value)) || strchr(value, '\n'))
        return error_set(err, ERR_REFUSED, "--env %.*s: the value must be one line of UTF-8",
                         (int)n, value);
    json_t *env = json_object_get(p->conf, name);
    if (!env)
        json_object_set_new(p->conf, name, env = json_object());
    cleanup_free char *key = xstrndup(value, n);
    json_object_set_new(env, key, json_string(eq + 1));
    return true;
}

static bool add_each(struct parsed *p, const char *key, const char *value, struct error *err)
{
    cleanup_free char *copy = xstrdup(value);
    char *save = NULL;
    json_t *list = json_object_get(p->conf, key), *have;
    size_t i;

    if (!list)
        json_object_set_new(p->conf, key, list = json_array());
    for (char *part = strtok_r(copy, ",", &save); part; part = strtok_r(NULL, ",", &save)) {
        cleanup_free char *one = text_trim(part);
        bool known = false;
        if (!*one || strlen(one) > 64 || strpbrk(one, " \t\n"))
            return error_set(err, ERR_REFUSED, "\"%.80s\" is no tag or name", one);
        json_array_foreach (list, i, have)
            known = known || strcmp(json_string_value(have), one) == 0;
        if (!known && !json_array_append_new(list, json_string(one)))
            continue;
        if (!known)
            return error_set(err, ERR_REFUSED, "a tag or name is not UTF-8");
    }
    return true;
}

static bool set_tag(struct parsed *p, const char *name, const char *value, struct error *err)
{
    (void)name;
    return add_each(p, "tags", value, err);
}

static bool set_integration(struct parsed *p, const char *name, const char *value,
                            struct error *err)
{
    (void)name;
    return add_each(p, "integrations", value, err);
}

static bool set_setup(struct parsed *p, const char *name, const char *value, struct error *err)
{
    cleanup_buf struct buf script = {0};

    (void)name;
    if (strlen(value) > MAX_SETUP)
        return error_set(err, ERR_REFUSED, "--setup-script: %zu bytes, at most %d", strlen(value),
                         MAX_SETUP);
    for (const char *c = value; *c; c++) {
        if (c[0] == '\\' && c[1] == 'n') {
            buf_putc(&script, '\n');
            c++;
        } else {
            buf_putc(&script, *c);
        }
    }
    buf_putc(&script, '\n');
    free(p->setup);
    p->setup = buf_steal(&script);
    return true;
}

static bool set_prompt(struct parsed *p, const char *name, const char *value, struct error *err)
{
    p->prompt = true;
    return set_text(p, name, value, err);
}

static bool set_registry(struct parsed *p, const char *name, const char *value, struct error *err)
{
    (void)p;
    (void)name;
    /* the images of this lobby are the machine's own: checked, and forgotten */
    const char *colon = strchr(value, ':');
    if (!colon || colon == value || !colon[1])
        return error_set(err, ERR_REFUSED, "--registry-auth: expected USER:PASS");
    return true;
}

static bool set_copy_tags(struct parsed *p, const char *name, const char *value, struct error *err)
{
    (void)name;
    p->vm.copy_tags = strcmp(value, "false") != 0;
    if (p->vm.copy_tags && strcmp(value, "true") != 0)
        return error_set(err, ERR_REFUSED, "--copy-tags: expected true or false");
    return true;
}

static const struct flag flags[] = {
    {"name", set_name, IN_NEW},
    {"image", set_image, IN_NEW},
    {"command", set_command, IN_NEW},
    {"cpu", set_cpu, IN_NEW | IN_CP | IN_RESIZE},
    {"memory", set_size, IN_NEW | IN_CP | IN_RESIZE},
    {"disk", set_size, IN_NEW | IN_CP | IN_RESIZE},
    {"comment", set_comment, IN_NEW},
    {"env", set_env, IN_NEW},
    {"integration", set_integration, IN_NEW},
    {"tag", set_tag, IN_NEW},
    {"setup-script", set_setup, IN_NEW},
    {"prompt", set_prompt, IN_NEW},
    {"registry-auth", set_registry, IN_NEW},
    {"copy-tags", set_copy_tags, IN_CP},
    {"no-email", NULL, IN_NEW},
    {"json", NULL, IN_NEW | IN_CP | IN_RESIZE},
};

static bool parse(struct parsed *p, int in, const char *command, char **argv, size_t n,
                  struct error *err)
{
    for (size_t i = 0; i < n; i++) {
        const char *a = argv[i];
        const struct flag *found = NULL;
        if (a[0] != '-') {
            if (p->positional_n == 3)
                return error_set(err, ERR_REFUSED, "%s: too many arguments", command);
            p->positional[p->positional_n++] = a;
            continue;
        }
        const char *word = a[1] == '-' ? a + 2 : a + 1;
        size_t len = strcspn(word, "=");
        for (size_t k = 0; k < sizeof flags / sizeof *flags; k++) {
            if ((flags[k].in & in) && strlen(flags[k].name) == len &&
                strncmp(flags[k].name, word, len) == 0)
                found = &flags[k];
        }
        if (!found)
            return error_set(err, ERR_REFUSED, "%s: unknown flag --%.*s", command,
                             (int)(len < 60 ? len : 60), word);
        const char *value = word[len] == '=' ? word + len + 1 : NULL;
        if (!found->set) {
            if (value && strcmp(value, "true") != 0 && strcmp(value, "false") != 0)
                return error_set(err, ERR_REFUSED, "%s: --%s takes no value", command, found->name);
            continue;
        }
        if (!value && ++i < n)
            value = argv[i];
        if (!value)
            return error_set(err, ERR_REFUSED, "%s: --%s needs a value", command, found->name);
        if (!found->set(p, found->name, value, err))
            return error_prefix(err, "%s", command);
    }
    return true;
}

static struct answer failed(struct error *err)
{
    int status = err->code == ERR_SYSTEM || err->code == ERR_INTERNAL ? 500 : 422;

    return answer_error(status, err->msg);
}

static struct answer made(json_t *record, struct error *err)
{
    return record ? (struct answer){200, record} : failed(err);
}

static struct answer run_new(struct parsed *p, char **argv, size_t n, struct error *err)
{
    if (!parse(p, IN_NEW, "new", argv, n, err))
        return failed(err);
    if (p->positional_n)
        return answer_error(422, "new: takes no arguments but flags (--name=NAME)");
    if (p->prompt && p->image)
        return answer_error(422, "new: --prompt needs the default image");
    p->vm.conf = p->conf;
    p->vm.setup = p->setup;
    return made(vms_new(&p->vm, err), err);
}

struct answer command_new(char **argv, size_t n)
{
    struct parsed p = {.conf = json_object()};
    cleanup_error struct error err = {0};
    struct answer a = run_new(&p, argv, n, &err);

    free(p.setup);
    json_decref(p.conf);
    return a;
}

struct answer command_cp(char **argv, size_t n)
{
    struct parsed p = {.conf = json_object(), .vm = {.copy_tags = true}};
    cleanup_error struct error err = {0};
    struct answer a;

    if (!parse(&p, IN_CP, "cp", argv, n, &err)) {
        a = failed(&err);
    } else if (p.positional_n < 1 || p.positional_n > 2) {
        a = answer_error(422, "usage: cp SOURCE [NEW]");
    } else {
        p.vm.copy_of = p.positional[0];
        p.vm.name = p.positional[1];
        p.vm.conf = p.conf;
        a = made(vms_new(&p.vm, &err), &err);
    }
    json_decref(p.conf);
    return a;
}

struct answer command_resize(char **argv, size_t n)
{
    struct parsed p = {.conf = json_object()};
    cleanup_error struct error err = {0};
    struct answer a;

    if (!parse(&p, IN_RESIZE, "resize", argv, n, &err))
        a = failed(&err);
    else if (p.positional_n != 1 || !json_object_size(p.conf))
        a = answer_error(422, "usage: resize NAME [--cpu=N] [--memory=SIZE] [--disk=SIZE]");
    else
        a = made(vms_update(p.positional[0], p.conf, &err), &err);
    json_decref(p.conf);
    return a;
}
