#include "lib/form.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/config.h"
#include "lib/form_internal.h"

/* Made by tools/embed.py. */
extern const unsigned char form_html[], form_css[], form_js[], form_page_js[], form_page_css[],
    form_schema[];
extern const size_t form_html_len, form_css_len, form_js_len, form_page_js_len, form_page_css_len,
    form_schema_len;

static const struct form_asset assets[] = {
    {"/", "text/html; charset=utf-8", form_html, &form_html_len},
    {"/form.css", "text/css; charset=utf-8", form_css, &form_css_len},
    {"/form.js", "text/javascript; charset=utf-8", form_js, &form_js_len},
    {"/page.css", "text/css; charset=utf-8", form_page_css, &form_page_css_len},
    {"/page.js", "text/javascript; charset=utf-8", form_page_js, &form_page_js_len},
    {0},
};

static bool is_secret(const char *key)
{
    const struct config_field *field = config_field_find(key);

    return field && field->secret;
}

static bool listed(const json_t *list, const char *word)
{
    size_t i;
    json_t *item;

    json_array_foreach ((json_t *)list, i, item) {
        const char *text = json_string_value(item);
        if (text && strcmp(text, word) == 0)
            return true;
    }
    return false;
}

void form_drop_raw(json_t **raw)
{
    const char *key;
    json_t *value;

    if (*raw && (*raw)->refcount == 1) {
        json_object_foreach (*raw, key, value) {
            if (is_secret(key) && json_is_string(value) && value->refcount == 1)
                explicit_bzero((char *)(uintptr_t)json_string_value(value),
                               json_string_length(value));
        }
    }
    json_decref(*raw);
    *raw = NULL;
}

json_t *form_raw(struct form *f, const json_t *in, struct error *err)
{
    const json_t *settings = json_object_get(in, "settings"),
                 *cleared = json_object_get(in, "cleared");
    const char *from = json_str(in, "from"), *key;
    json_t *value;
    bool ok = true;

    if (!json_is_object(settings)) {
        error_set(err, ERR_INVALID, "the page sent no settings: reload it");
        return NULL;
    }
    cleanup_raw json_t *raw = json_deep_copy(settings);
    pthread_mutex_lock(&f->lock);
    json_object_foreach (from ? json_object_get(f->cf.secrets, from) : NULL, key, value) {
        if (!ok || json_object_get(raw, key) || listed(cleared, key))
            continue;
        char *text = configfile_secret(&f->cf, from, key, err);
        ok = text != NULL;
        if (ok) {
            json_object_set_new(raw, key, json_string(text));
            explicit_bzero(text, strlen(text));
            free(text);
        }
    }
    pthread_mutex_unlock(&f->lock);
    return ok ? steal_ptr(raw) : NULL;
}

/* With the lock held. */
static json_t *state_of(const struct form *f)
{
    json_t *list = json_array();
    const char *name, *key;
    json_t *env, *value;

    json_object_foreach (f->cf.environments, name, env) {
        json_t *settings = json_object(), *stored = json_array();
        json_object_foreach (env, key, value) {
            /* A secret that somebody wrote into config.json by hand: to the page it is a stored
             * one. */
            if (is_secret(key) && json_is_string(value))
                json_array_append_new(stored, json_string(key));
            else
                json_object_set(settings, key, value);
        }
        json_object_foreach (json_object_get(f->cf.secrets, name), key, value) {
            if (!listed(stored, key))
                json_array_append_new(stored, json_string(key));
        }
        json_array_append_new(list, json_pack("{s:s, s:o, s:o}", "name", name, "settings", settings,
                                              "stored", stored));
    }
    return json_pack("{s:i, s:o, s:s?, s:s, s:s, s:O}", "generation", (int)f->generation,
                     "environments", list, "default", configfile_default(&f->cf), "path",
                     f->cf.path, "secretsIn",
                     configfile_keyring_works() ? "the desktop keyring" : f->cf.secrets_path,
                     "version", json_object_get(f->cf.root, "version"));
}

static json_t *get_state(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;
    cleanup_buf struct buf text = {0};

    (void)in;
    (void)answer;
    buf_put(&text, form_schema, form_schema_len);
    json_t *schema = json_parse(text.data, text.len, err);
    if (!schema)
        return NULL;
    pthread_mutex_lock(&f->lock);
    json_t *state = state_of(f);
    pthread_mutex_unlock(&f->lock);
    json_object_set_new(state, "schema", schema);
    json_object_set_new(state, "idleMs", json_integer(f->idle_ms));
    return state;
}

static json_t *reload(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;
    cleanup_configfile struct configfile now = {0};
    json_t *state = NULL;

    (void)in;
    (void)answer;
    if (!configfile_load(&now, err))
        return NULL;
    pthread_mutex_lock(&f->lock);
    struct configfile old = f->cf;
    f->cf = now;
    now = old;
    f->generation++;
    state = state_of(f);
    pthread_mutex_unlock(&f->lock);
    return state;
}

/* One environment of the page into both stores. */
static bool put_environment(const struct configfile *old, json_t *envs, json_t *secrets,
                            const json_t *one, struct error *err)
{
    const char *name = json_str(one, "name"), *from = json_str(one, "from"), *key;
    const json_t *settings = json_object_get(one, "settings"),
                 *cleared = json_object_get(one, "cleared");
    cleanup_json json_t *open = json_object(), *hidden = json_object();
    json_t *value;

    if (!name || !configfile_name_ok(name) || !json_is_object(settings))
        return error_set(err, ERR_INVALID,
                         "\"%s\" is no name for an environment: use letters, digits, . _ or -, 64 "
                         "at most, beginning with a "
                         "letter or digit",
                         name ? name : "");
    if (json_object_get(envs, name))
        return error_set(err, ERR_INVALID, "two environments are called \"%s\": rename one", name);
    if (from) {
        json_object_foreach (json_object_get(old->environments, from), key, value) {
            if (is_secret(key) && !listed(cleared, key))
                json_object_set(hidden, key, value);
        }
        json_object_foreach (json_object_get(old->secrets, from), key, value) {
            if (!listed(cleared, key))
                json_object_set(hidden, key, value);
        }
    }
    json_object_foreach ((json_t *)settings, key, value) {
        if (!is_secret(key))
            json_object_set(open, key, value);
        else if (json_is_string(value) && json_string_length(value) && json_str(settings, key))
            json_object_set(hidden, key, value);
        else
            return error_set(err, ERR_INVALID, "%s of \"%s\" is no text: paste it again", key,
                             name);
    }
    json_object_set(envs, name, open);
    if (json_object_size(hidden))
        json_object_set(secrets, name, hidden);
    return true;
}

static bool replace_all(struct configfile *cf, const json_t *in, struct error *err)
{
    cleanup_json json_t *envs = json_object(), *secrets = json_object();
    const char *def = json_str(in, "default");
    size_t i;
    json_t *one;

    json_array_foreach (json_object_get(in, "environments"), i, one) {
        if (!put_environment(cf, envs, secrets, one, err))
            return false;
    }
    json_object_clear(cf->environments);
    json_object_update(cf->environments, envs);
    json_object_clear(cf->secrets);
    json_object_update(cf->secrets, secrets);
    if (def && json_object_get(cf->environments, def))
        configfile_set_default(cf, def);
    else
        json_object_del(cf->root, "default");
    return true;
}

static bool save_locked(struct form *f, const json_t *in, struct error *err)
{
    cleanup_json json_t *root = json_deep_copy(f->cf.root),
                        *secrets = json_deep_copy(f->cf.secrets);

    if (json_int(in, "generation", -1) != f->generation)
        return error_set(err, ERR_EXISTS,
                         "these settings were saved from another tab since this one read them, so "
                         "nothing was written: load "
                         "what is saved now, or export your changes first");
    if (!json_is_array(json_object_get(in, "environments")))
        return error_set(err, ERR_INVALID, "the page sent no environments: reload it");
    if (replace_all(&f->cf, in, err) && configfile_save(&f->cf, err)) {
        f->generation++;
        return true;
    }
    /* Back to what the disk was known to hold, so that the next attempt is judged against that. */
    json_decref(f->cf.root);
    json_decref(f->cf.secrets);
    f->cf.root = json_incref(root);
    f->cf.environments = json_object_get(root, "environments");
    f->cf.secrets = json_incref(secrets);
    return false;
}

static json_t *save(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;
    cleanup_error struct error why = {0};

    pthread_mutex_lock(&f->lock);
    json_t *state = save_locked(f, in, &why) ? state_of(f) : NULL;
    pthread_mutex_unlock(&f->lock);
    if (why.code == ERR_EXISTS)
        answer->status = 409;
    error_move(err, &why);
    return state;
}

static json_t *ping(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    (void)arg;
    (void)in;
    (void)answer;
    (void)err;
    return json_object();
}

static json_t *done(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;

    form_server_finish(f->server);
    return ping(arg, in, answer, err);
}

static const struct form_route routes[] = {
    {"/api/state", get_state},
    {"/api/save", save},
    {"/api/reload", reload},
    {"/api/validate", form_validate},
    {"/api/token", form_token},
    {"/api/test", form_test},
    {"/api/cancel", form_cancel_test},
    {"/api/vms", form_vms},
    {"/api/delete", form_delete_vm},
    {"/api/ping", ping},
    {"/api/done", done},
    {0},
};

struct form *form_start(struct configfile *cf, long long idle_ms, struct error *err)
{
    struct form *f = xcalloc(1, sizeof *f);

    f->idle_ms = idle_ms;
    f->cf = *cf;
    *cf = (struct configfile){0};
    pthread_mutex_init(&f->lock, NULL);
    pthread_cond_init(&f->job_over, NULL);
    f->server = form_server_start(assets, routes, f, idle_ms, err);
    if (f->server)
        return f;
    form_free(f);
    return NULL;
}

struct form_server *form_http(struct form *f)
{
    return f->server;
}

void form_free(struct form *f)
{
    pthread_mutex_lock(&f->lock);
    if (f->test)
        cancel_fire(f->test);
    while (f->jobs)
        pthread_cond_wait(&f->job_over, &f->lock);
    pthread_mutex_unlock(&f->lock);
    form_server_free(f->server);
    configfile_free(&f->cf);
    pthread_cond_destroy(&f->job_over);
    pthread_mutex_destroy(&f->lock);
    free(f);
}
