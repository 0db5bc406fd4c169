#include "cmd/edit.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/settings.h"

static bool known(const char *key, const struct config_field **field, struct error *err)
{
    cleanup_free char *base = text_starts(key, "env.") ? xstrdup("env") : xstrdup(key);
    const char *names[128] = {0};

    *field = config_field_find(base);
    if (*field)
        return true;
    for (size_t i = 0; i < 127 && config_fields[i].key; i++)
        names[i] = config_fields[i].key;
    const char *near = cmd_nearest(key, names);
    return error_set(err, ERR_INVALID,
                     "there is no setting '%s'%s%s%s (`exedev help settings` lists them)", key,
                     near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* Text becomes what the web form would have saved, so that both see the same. */
static void make_typed(json_t *raw, const struct config_field *f)
{
    const char *text = json_str(raw, f->key);
    char *end;

    if (!text)
        return;
    if (f->type == FIELD_INTEGER) {
        errno = 0;
        long long n = strtoll(text, &end, 10);
        if (!errno && end != text && !*end)
            json_object_set_new(raw, f->key, json_integer(n));
    } else if (f->type == FIELD_LIST) {
        cleanup_free char *copy = xstrdup(text);
        json_t *list = json_array();
        char *rest = copy, *part;
        while ((part = strsep(&rest, ","))) {
            cleanup_free char *item = text_trim(part);
            if (*item)
                json_array_append_new(list, json_string(item));
        }
        json_object_set_new(raw, f->key, list);
    }
}

static bool check(const json_t *raw, const char *key, struct error *err)
{
    cleanup_problems struct problems p = {0};

    json_decref(config_validate(raw, CONFIG_OFFLINE, &p));
    for (size_t i = 0; i < p.n; i++) {
        if (!p.list[i].warning && p.list[i].field && strcmp(p.list[i].field, key) == 0)
            return error_set(err, ERR_INVALID, "%s", p.list[i].text);
    }
    return true;
}

bool edit_put(struct configfile *cf, const char *name, const char *key, const char *text,
              struct error *err)
{
    const struct config_field *field;
    json_t *env = json_object_get(cf->environments, name);

    if (!known(key, &field, err))
        return false;
    cleanup_json json_t *raw = json_deep_copy(env);
    cleanup_free char *why = settings_put(raw, key, text);
    if (why)
        return error_set(err, ERR_INVALID, "%s", why);
    make_typed(raw, field);
    if (!check(raw, field->key, err))
        return false;
    if (field->secret)
        configfile_set_secret(cf, name, field->key, text);
    else
        json_object_set(env, field->key, json_object_get(raw, field->key));
    return true;
}

bool edit_unset(struct configfile *cf, const char *name, const char *key, struct error *err)
{
    const struct config_field *field = NULL;
    json_t *env = json_object_get(cf->environments, name), *map = json_object_get(env, "env");

    if (text_starts(key, "env."))
        return json_object_del(map, key + 4) == 0 ||
               error_set(err, ERR_NOT_FOUND, "%s is not set in \"%s\"", key, name);
    bool there = json_object_del(env, key) == 0;
    if (configfile_has_secret(cf, name, key)) {
        configfile_set_secret(cf, name, key, NULL);
        there = true;
    }
    /* An unknown one that is there may go; for one that is not, the name is the likelier mistake.
     */
    return there || (known(key, &field, err) &&
                     error_set(err, ERR_NOT_FOUND, "%s is not set in \"%s\"", key, name));
}

char *edit_text(const json_t *value)
{
    cleanup_buf struct buf out = {0};

    if (json_is_string(value)) {
        buf_puts(&out, json_string_value(value));
    } else if (json_is_array(value)) {
        size_t i;
        json_t *item;
        json_array_foreach ((json_t *)value, i, item) {
            cleanup_free char *text = edit_text(item);
            buf_printf(&out, "%s%s", i ? "," : "", text);
        }
    } else {
        json_write(&out, value);
    }
    buf_puts(&out, "");
    return buf_steal(&out);
}
