/* What the form's buttons ask: the validator, the token reader, the probe, the API. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/api.h"
#include "lib/config.h"
#include "lib/form_internal.h"
#include "lib/lease.h"
#include "lib/name.h"
#include "lib/redact.h"
#include "lib/state.h"
#include "lib/token.h"

#define VMS_MS 25000

/* "apiKey: no token" under a field that is labelled already: the name is left out. */
static const char *beside_field(const char *text, const char *field)
{
    size_t n = field ? strlen(field) : 0;

    return n && strncmp(text, field, n) == 0 && text[n] == ':'
               ? text + n + 1 + strspn(text + n + 1, " ")
               : text;
}

static void append_text(json_t *map, const char *field, const char *text)
{
    cleanup_free char *pointer = field ? xasprintf("/%s", field) : xstrdup("");
    const char *there = json_str(map, pointer);
    cleanup_free char *all = there ? xasprintf("%s\n%s", there, text) : xstrdup(text);

    json_object_set_new(map, pointer, json_string(all));
}

json_t *form_validate(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    cleanup_raw json_t *raw = form_raw(arg, in, err);
    cleanup_problems struct problems p = {0};

    (void)answer;
    if (!raw)
        return NULL;
    cleanup_json json_t *normalised = config_validate(raw, 0, &p);
    json_t *errors = json_object(), *warnings = json_object();
    for (size_t i = 0; i < p.n; i++)
        append_text(p.list[i].warning ? warnings : errors, p.list[i].field,
                    beside_field(p.list[i].text, p.list[i].field));
    return json_pack("{s:b, s:o, s:o}", "ok", normalised != NULL, "errors", errors, "warnings",
                     warnings);
}

json_t *form_token(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    cleanup_raw json_t *raw = form_raw(arg, in, err);
    cleanup_token struct token token = {0};
    cleanup_error struct error why = {0};
    cleanup_buf struct buf words = {0};

    (void)answer;
    if (!raw)
        return NULL;
    const char *text = json_str(raw, "apiKey");
    cleanup_free char *trimmed = text_trim(text ? text : "");
    if (!*trimmed)
        return json_pack("{s:s}", "words", "");
    bool readable = token_parse(trimmed, &token, &why);
    explicit_bzero(trimmed, strlen(trimmed));
    if (!readable)
        return json_pack("{s:s}", "words", why.msg);
    token_describe(&token, time(NULL), &words);
    return json_pack("{s:s%}", "words", words.data ? words.data : "", words.len);
}

/* ---- Test connection ---- */

struct test_job {
    struct form *form;
    struct config *config;
    struct cancel *cancel;
    struct form_stream *stream;
};

static void put_step(const char *step, const char *text, long long ms, bool ok, void *arg)
{
    struct test_job *job = arg;
    cleanup_free char *safe = redact(text);
    cleanup_json json_t *line = json_pack("{s:s, s:s, s:I, s:b}", "step", step, "text", safe, "ms",
                                          (json_int_t)ms, "ok", ok);

    form_stream_put(job->stream, line);
}

static void *run_test(void *arg)
{
    struct test_job *job = arg;
    struct form *f = job->form;
    struct probe_result result = {0};

    lease_probe(job->config, put_step, job, job->cancel, &result);
    cleanup_json json_t *last =
        json_pack("{s:b, s:b, s:s, s:b}", "done", 1, "ok", result.ok, "text",
                  result.summary ? result.summary : "", "cancelled", cancel_fired(job->cancel));
    form_stream_put(job->stream, last);
    form_stream_end(job->stream);
    probe_result_free(&result);
    config_free(job->config);
    pthread_mutex_lock(&f->lock);
    cancel_unref(job->cancel);
    f->test = NULL;
    f->jobs--;
    pthread_cond_broadcast(&f->job_over);
    pthread_mutex_unlock(&f->lock);
    free(job);
    return NULL;
}

static void gone(void *arg)
{
    cancel_fire(arg);
}

json_t *form_test(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;
    cleanup_raw json_t *raw = form_raw(f, in, err);
    cleanup_config struct config *config = raw ? config_load(raw, err) : NULL;
    pthread_t thread;

    if (!config)
        return NULL;
    struct test_job *job = xcalloc(1, sizeof *job);
    pthread_mutex_lock(&f->lock);
    bool mine = !f->test;
    if (mine) {
        *job = (struct test_job){.form = f, .cancel = cancel_new(), .stream = form_stream_new()};
        f->test = job->cancel;
        f->jobs++;
    }
    pthread_mutex_unlock(&f->lock);
    if (!mine) {
        free(job);
        answer->status = 409;
        error_set(err, ERR_EXISTS, "a test is under way: wait for its end, or cancel it");
        return NULL;
    }
    job->config = steal_ptr(config);
    form_stream_on_gone(job->stream, gone, job->cancel);
    answer->stream = job->stream;
    if (pthread_create(&thread, NULL, run_test, job) == 0)
        pthread_detach(thread);
    else
        run_test(job);
    return NULL;
}

json_t *form_cancel_test(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    struct form *f = arg;

    (void)in;
    (void)answer;
    (void)err;
    pthread_mutex_lock(&f->lock);
    bool running = f->test != NULL;
    if (running)
        cancel_fire(f->test);
    pthread_mutex_unlock(&f->lock);
    return json_pack("{s:b}", "cancelled", running);
}

/* ---- the VMs that carry our mark ---- */

static const struct journal_entry *in_journal(const struct journal *j, const char *name)
{
    for (size_t i = 0; i < j->n; i++) {
        if (strcmp(j->list[i].name, name) == 0)
            return &j->list[i];
    }
    return NULL;
}

/* What makes it ours, in words; NULL: nothing. */
static const char *mark_of(const struct record *r, const struct journal_entry *entry)
{
    cleanup_mark struct mark mark = {0};

    if (record_has_tag(r, MARK_TAG) == RECORD_TAG_YES)
        return "tag";
    if (r->comment && mark_parse(r->comment, &mark))
        return "comment";
    return entry ? "journal" : NULL;
}

static json_t *vm_json(const struct record *r, const struct journal_entry *entry, const char *proof)
{
    cleanup_mark struct mark mark = {0};
    bool told = r->comment && mark_parse(r->comment, &mark);

    return json_pack("{s:s, s:s?, s:s?, s:s, s:s?, s:s?, s:s?, s:I}", "name", r->vm_name, "status",
                     r->status, "region", r->region_display ? r->region_display : r->region, "mark",
                     proof, "kind",
                     told    ? mark.kind
                     : entry ? entry->kind
                             : NULL,
                     "environment",
                     told    ? mark.env_id
                     : entry ? entry->env_id
                             : NULL,
                     "run",
                     told    ? mark.run_id
                     : entry ? entry->run_id
                             : NULL,
                     "age", (json_int_t)(entry && entry->since ? time(NULL) - entry->since : -1));
}

static struct config *config_of(void *form, const json_t *in, struct error *err)
{
    cleanup_raw json_t *raw = form_raw(form, in, err);

    return raw ? config_load(raw, err) : NULL;
}

json_t *form_vms(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    cleanup_config struct config *config = config_of(arg, in, err);
    cleanup_api struct api *api = config ? api_new(config, err) : NULL;
    cleanup_records struct records all = {0};
    cleanup_journal struct journal journal = {0};

    (void)answer;
    if (!api || !api_ls(api, NULL, deadline_in(VMS_MS), &all, err))
        return NULL;
    cleanup_free char *account = config_account_id(config);
    if (!journal_read(account, &journal, err))
        return NULL;
    json_t *list = json_array();
    for (size_t i = 0; i < all.n; i++) {
        const struct journal_entry *entry = in_journal(&journal, all.list[i].vm_name);
        const char *proof = mark_of(&all.list[i], entry);
        if (proof)
            json_array_append_new(list, vm_json(&all.list[i], entry, proof));
    }
    return json_pack("{s:o, s:i}", "vms", list, "others", (int)(all.n - json_array_size(list)));
}

json_t *form_delete_vm(void *arg, const json_t *in, struct form_answer *answer, struct error *err)
{
    const char *name = json_str(in, "name");
    cleanup_config struct config *config = config_of(arg, in, err);
    cleanup_api struct api *api = config ? api_new(config, err) : NULL;
    cleanup_record struct record record = {0};
    cleanup_journal struct journal journal = {0};
    struct deadline d = deadline_in(2 * VMS_MS);

    (void)answer;
    if (!api)
        return NULL;
    if (!name || !text_is_vm_name(name)) {
        error_set(err, ERR_INVALID, "no VM can have that name: reload the list");
        return NULL;
    }
    cleanup_free char *account = config_account_id(config);
    if (!journal_read(account, &journal, err) || !api_find(api, name, d, &record, err))
        return NULL;
    const struct journal_entry *entry = in_journal(&journal, name);
    if (!mark_of(&record, entry)) {
        error_set(err, ERR_UNSAFE,
                  "%s does not carry our mark: it was not deleted. `exedev rm` can", name);
        return NULL;
    }
    if (!api_rm(api, name, d, err))
        return NULL;
    if (entry) {
        struct journal_entry over = *entry;
        over.state = JOURNAL_GONE;
        if (!journal_write(&over, err))
            return NULL;
    }
    return json_pack("{s:s}", "deleted", name);
}
