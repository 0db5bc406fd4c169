#include "lib/api.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/api_internal.h"
#include "lib/name.h"
#include "lib/redact.h"
#include "lib/secret.h"

#define ATTEMPTS 4
#define BACKOFF_MS 250
#define BACKOFF_MOST_MS 8000

struct api {
    struct api_http *http;
    struct breaker *breaker;
};

struct api *api_new(const struct config *c, struct error *err)
{
    if (!c->api_key) {
        error_set(err, ERR_INVALID,
                  "there is no exe.dev API key: set apiKey, or EXE_API_KEY, or put the token into "
                  "~/.config/exedev/token (mode 600); `exedev token mint` makes one");
        return NULL;
    }
    struct api *a = xcalloc(1, sizeof *a);
    a->http = http_get(c);
    a->breaker = breaker_get(c);
    return a;
}

void api_free(struct api *a)
{
    if (!a)
        return;
    http_put(a->http);
    free(a);
}

/* One command under way. */
struct call {
    struct api *api;
    const char *line;  /* secret */
    const char *shown; /* redacted */
    const char *word;
    const char *const *more; /* this call's own secrets */
    size_t more_n;
    bool fresh;
};

/* Half of it random: callers that failed together must not come back together. */
static int64_t backoff(int attempt)
{
    int64_t most = BACKOFF_MS << attempt;
    unsigned short r;

    most = most < BACKOFF_MOST_MS ? most : BACKOFF_MOST_MS;
    io_random(&r, sizeof r);
    return most / 2 + most / 2 * r / 65535;
}

static bool answered_well(const struct api_answer *a)
{
    return a->fault == API_ANSWERED && a->status >= 200 && a->status < 300;
}

static enum breaker_news news_of(const struct api_answer *a)
{
    if (a->fault == API_STOPPED)
        return BREAKER_NOTHING;
    if (a->fault == API_ANSWERED && a->status < 500)
        return BREAKER_WELL;
    /* A command that takes too long is no sign of a service that is down. */
    return a->status == 504 ? BREAKER_NOTHING : BREAKER_FAILING;
}

/* One request through the breaker. False: err is set, and out->fault says that nothing was sent
 * where that is so. */
static bool post(const struct call *c, struct deadline d, struct api_answer *out, struct error *err)
{
    bool trial_failed;
    cleanup_error struct error why = {0};

    *out = (struct api_answer){.fault = API_NOT_SENT, .retry_after_ms = -1};
    if (api_cancelled()) {
        out->fault = API_STOPPED;
        return api_explain(out, http_url(c->api->http), c->word, c->shown, NULL, 0, err);
    }
    if (!breaker_enter(c->api->breaker, d, &trial_failed, &why) || trial_failed) {
        if (!trial_failed)
            out->fault = API_STOPPED; /* no use trying again before the deadline */
        error_prefix(&why, "exe.dev command `%s` was not sent", c->shown);
        error_move(err, &why);
        return false;
    }
    http_post(c->api->http, c->line, c->fresh, d, out);
    if (!answered_well(out))
        api_explain(out, http_url(c->api->http), c->word, c->shown, c->more, c->more_n, &why);
    cleanup_free char *reason =
        out->fault == API_ANSWERED ? xasprintf("HTTP status %d", out->status) : redact(out->why);
    breaker_leave(c->api->breaker, news_of(out), reason);
    if (!why.code)
        return true;
    error_move(err, &why);
    return false;
}

/* Is it certain that the command was not run, and worth another try? */
static bool refused_for_now(const struct api_answer *a)
{
    return a->fault == API_NOT_SENT || (a->fault == API_ANSWERED && a->status == 429);
}

static bool worth_repeating(const struct api_answer *a, bool safe)
{
    if (refused_for_now(a))
        return true;
    if (!safe)
        return false;
    return a->fault == API_LOST || a->fault == API_LATE ||
           (a->fault == API_ANSWERED && a->status >= 500);
}

/* Repeats where that is safe. out is the last answer. */
static bool run(const struct call *c, bool safe, struct deadline d, struct api_answer *out,
                struct error *err)
{
    for (int attempt = 0;; attempt++) {
        if (post(c, d, out, err))
            return true;
        if (attempt + 1 >= ATTEMPTS || !worth_repeating(out, safe))
            return false;
        int64_t wait = backoff(attempt);
        if (out->retry_after_ms > wait)
            wait = out->retry_after_ms;
        if (wait >= deadline_left(d))
            return false;
        log_debug("%s; trying again in %lld ms", err && err->msg ? err->msg : "a call failed",
                  (long long)wait);
        if (!api_sleep(d, wait))
            return false;
        api_answer_clear(out);
        error_clear(err);
    }
}

/* Commands without JSON output of their own may answer with plain text: then JSON null. */
static json_t *parse(const struct call *c, struct api_answer *a, bool need_json, struct error *err)
{
    cleanup_error struct error why = {0};
    json_t *v = a->body.len ? json_parse(a->body.data, a->body.len, &why) : NULL;

    if (v || !need_json)
        return v ? v : json_null();
    error_set(err, ERR_PROTOCOL,
              "exe.dev command `%s`: the answer is %s; check that apiUrl (%s) is the API", c->shown,
              a->body.len ? why.msg : "empty", http_url(c->api->http));
    return NULL;
}

/* A command that may be repeated without harm. */
static json_t *simple(struct api *a, const char *line, const char *word, bool need_json,
                      struct deadline d, struct error *err)
{
    cleanup_error struct error why = {0};
    cleanup_free char *shown = redact(line);
    struct call c = {.api = a, .line = line, .shown = shown, .word = word};
    struct api_answer answer;
    json_t *v = NULL;

    /* Half an answer that nobody noticed as such is worth one more try. */
    for (int i = 0; i < 2 && !v; i++) {
        error_clear(&why);
        bool ok = run(&c, true, d, &answer, &why);
        v = ok ? parse(&c, &answer, need_json, &why) : NULL;
        api_answer_clear(&answer);
        if (!ok)
            break;
    }
    if (!v)
        error_move(err, &why);
    return v;
}

static char *line_of(const char *word, const char *a, const char *b, const char *tail)
{
    cleanup_buf struct buf l = {0};

    buf_puts(&l, word);
    for (int i = 0; i < 2; i++) {
        const char *arg = i ? b : a;
        if (!arg)
            continue;
        buf_putc(&l, ' ');
        shell_quote(&l, arg);
    }
    buf_puts(&l, tail);
    return buf_steal(&l);
}

static bool good_name(const char *name, struct error *err)
{
    if (name && text_is_vm_name(name))
        return true;
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, name ? name : "", name ? strlen(name) : 0, 80);
    return error_set(err, ERR_UNSAFE,
                     "`%s` is no name of a VM: lower-case letters, digits and hyphens",
                     shown.data ? shown.data : "");
}

bool api_ls(struct api *a, const char *name, struct deadline d, struct records *out,
            struct error *err)
{
    cleanup_error struct error why = {0};
    cleanup_free char *line = line_of("ls", name, NULL, "");

    *out = (struct records){0};
    if (name && !good_name(name, err))
        return false;
    cleanup_json json_t *v = simple(a, line, "ls", true, d, &why);
    if (v)
        return records_from_ls(v, out, err);
    if (name && why.code == ERR_NOT_FOUND)
        return true;
    error_move(err, &why);
    return false;
}

bool api_find(struct api *a, const char *name, struct deadline d, struct record *out,
              struct error *err)
{
    cleanup_records struct records all = {0};

    *out = (struct record){0};
    if (!api_ls(a, name, d, &all, err))
        return false;
    const struct record *r = records_find(&all, name);
    if (!r)
        return error_set(err, ERR_NOT_FOUND, "there is no VM %s in this exe.dev account", name);
    if (r->unsafe)
        return error_set(err, ERR_UNSAFE,
                         "exe.dev lists the VM %s with an address that must not be used", name);
    record_copy(out, r);
    return true;
}

enum api_found api_resolve_doubt(struct api *a, const char *name, int64_t settle_ms,
                                 struct deadline d, struct record *out, struct error *err)
{
    int64_t settled = now_ms() + settle_ms;
    cleanup_error struct error why = {0};

    *out = (struct record){0};
    for (int64_t pause = 250;; pause = pause < 2000 ? pause * 2 : 2000) {
        error_clear(&why);
        int64_t asked = now_ms();
        if (api_find(a, name, d, out, &why))
            return API_THERE;
        if (why.code == ERR_NOT_FOUND && asked >= settled)
            return API_ABSENT;
        bool final = why.code == ERR_AUTH || why.code == ERR_FORBIDDEN || why.code == ERR_UNSAFE ||
                     why.code == ERR_CANCELLED || why.code == ERR_UNSUPPORTED ||
                     why.code == ERR_INVALID;
        if (why.code == ERR_NOT_FOUND && settled - asked < pause)
            pause = settled - asked > 0 ? settled - asked : 1;
        if (final || deadline_left(d) <= pause || !api_sleep(d, pause))
            break;
    }
    if (why.code == ERR_NOT_FOUND)
        error_set(&why, ERR_TIMEOUT,
                  "the VM %s has not appeared, but exe.dev may still be making it", name);
    error_move(err, &why);
    return API_UNKNOWN;
}

/* How long the VM of a failed command may still appear. EXEDEV_SETTLE_MS shortens it where the
 * server is known (a lobby on this machine). */
static int64_t settle_ms(const struct api_answer *a, int64_t sent_at)
{
    const char *set = getenv("EXEDEV_SETTLE_MS");
    int64_t since = now_ms() - sent_at;

    if (set && *set)
        return atoll(set);
    /* The application itself answered: what it was going to do is done. */
    if (answered_well(a) || (a->fault == API_ANSWERED && (a->status == 500 || a->status == 503)))
        return 2000;
    /* At 504 the 30 s are over. */
    return a->status == 504 ? 5000 : API_RUN_MS + 2000 > since ? API_RUN_MS + 2000 - since : 1000;
}

static bool in_doubt(const struct api_answer *a)
{
    return a->fault == API_LOST || a->fault == API_LATE || a->fault == API_ANSWER_TOO_LARGE ||
           (a->fault == API_ANSWERED && (a->status >= 500 || answered_well(a)));
}

/* Found after a lost answer: ours, unless what the server tells about it speaks against that. cp
 * takes neither tag nor comment, so there the name decides. */
static bool looks_foreign(const struct record *r, const struct api_create *what, bool copy)
{
    cleanup_mark struct mark mark = {0}, ours = {0};

    if (copy)
        return false;
    if (what->tag && record_has_tag(r, what->tag) == RECORD_TAG_NO)
        return true;
    return r->comment && mark_parse(what->comment, &ours) &&
           !(mark_parse(r->comment, &mark) && mark_matches(&mark, ours.env_id, ours.run_id));
}

static size_t own_secrets(const struct config *c, const char ***out)
{
    const char **list = xcalloc(json_object_size(c->env) + 3, sizeof *list);
    const char *key;
    json_t *v;
    size_t n = 0;

    json_object_foreach (c->env, key, v) {
        list[n++] = json_string_value(v);
    }
    list[n++] = c->prompt;
    list[n++] = c->setup_script;
    list[n++] = c->registry_auth;
    *out = list;
    return n;
}

/* What is known after one go at making the VM. */
enum outcome { MADE, FAILED, SURELY_ABSENT };

static enum outcome create_once(const struct call *call, const struct api_create *what, bool copy,
                                bool again, struct deadline d, struct record *out,
                                struct error *err)
{
    struct api_answer a;
    int64_t sent_at = now_ms();
    bool ok = run(call, false, d, &a, err);

    if (ok) {
        cleanup_json json_t *v = parse(call, &a, true, err);
        if (v && record_from_answer(v, what->name, out, err)) {
            api_answer_clear(&a);
            return MADE;
        }
        if (err->code == ERR_NOT_FOUND)
            err->code = ERR_PROTOCOL;
    }
    if (err->code == ERR_UNSAFE) {
        /* It was made, but there is no going in. */
        api_rm(call->api, what->name, d, NULL);
        api_answer_clear(&a);
        return FAILED;
    }
    /* An attempt of ours that seemed to have come to nothing did not. */
    bool ours_after_all = again && err->code == ERR_EXISTS;
    if (!ours_after_all && !in_doubt(&a)) {
        api_answer_clear(&a);
        return FAILED;
    }
    int64_t settle = settle_ms(&a, sent_at);
    api_answer_clear(&a);
    log_warn("%s; looking whether the VM %s was made", err->msg, what->name);
    cleanup_error struct error why = {0};
    switch (api_resolve_doubt(call->api, what->name, settle, d, out, &why)) {
    case API_THERE:
        if (looks_foreign(out, what, copy)) {
            record_clear(out);
            error_set(err, ERR_EXISTS, "the name %s is taken by another VM of this account",
                      what->name);
            return FAILED;
        }
        error_clear(err);
        return MADE;
    case API_ABSENT:
        return SURELY_ABSENT;
    default:
        error_append(err, ". Whether the VM %s was made could not be found out: %s", what->name,
                     why.msg);
        err->code = why.code == ERR_CANCELLED ? ERR_CANCELLED : ERR_DOUBT;
        return FAILED;
    }
}

bool api_create_vm(struct api *a, const struct config *c, const struct api_create *what,
                   struct deadline d, struct record *out, struct error *err)
{
    bool copy = what->source || c->source_vm;
    cleanup_secret char *line = NULL;
    cleanup_free char *shown = api_create_line(c, what, true);
    cleanup_free const char **more = NULL;
    cleanup_error struct error why = {0};

    *out = (struct record){0};
    if (!good_name(what->name, err) ||
        (copy && !good_name(what->source ? what->source : c->source_vm, err)))
        return false;
    line = api_create_line(c, what, false);
    if (strlen(line) > API_BODY_MAX)
        return error_set(err, ERR_TOO_LARGE,
                         "the command for exe.dev would have %zu bytes, it takes 65536: shorten "
                         "setupScript, prompt or the "
                         "environment variables",
                         strlen(line));
    struct call call = {
        .api = a, .line = line, .shown = shown, .word = copy ? "cp" : "new", .fresh = true};
    call.more_n = own_secrets(c, &more);
    call.more = more;
    for (int go = 0; go < 3; go++) {
        error_clear(&why);
        enum outcome o = create_once(&call, what, copy, go > 0, d, out, &why);
        if (o == MADE)
            return true;
        if (o == FAILED)
            break;
        log_info("the VM %s was surely not made", what->name);
        if (!api_sleep(d, backoff(go + 1)) || deadline_passed(d))
            break;
    }
    error_move(err, &why);
    return false;
}

/* Waits for it to leave the list. */
static enum api_found watch_it_go(struct api *a, const char *name, struct deadline d,
                                  struct error *err)
{
    struct deadline patience = deadline_min(d, deadline_in(8000));
    enum api_found found;
    struct record r;

    for (int64_t pause = 200;; pause = pause < 1600 ? pause * 2 : 1600) {
        found = api_resolve_doubt(a, name, 0, d, &r, err);
        record_clear(&r);
        if (found != API_THERE || deadline_left(patience) <= pause || !api_sleep(patience, pause))
            return found;
    }
}

bool api_rm(struct api *a, const char *name, struct deadline d, struct error *err)
{
    cleanup_error struct error why = {0}, look = {0};
    cleanup_free char *line = line_of("rm", name, NULL, " --json");

    if (!good_name(name, err))
        return false;
    bool there = true;
    for (int go = 0; go < 3 && !deadline_passed(d) && !api_cancelled(); go++) {
        error_clear(&why);
        error_clear(&look);
        cleanup_json json_t *v = simple(a, line, "rm", false, d, &why);
        if (why.code == ERR_AUTH || why.code == ERR_FORBIDDEN || why.code == ERR_CANCELLED)
            break;
        enum api_found found = watch_it_go(a, name, d, &look);
        if (found == API_ABSENT)
            return true;
        there = found == API_THERE;
        /* A repeated rm that finds nothing has done its work; what is missing is the proof. */
        if (found == API_UNKNOWN && (!why.code || why.code == ERR_NOT_FOUND))
            error_move(&why, &look);
        else if (!why.code)
            error_set(&why, ERR_UNAVAILABLE, "exe.dev accepted `rm`, but still lists the VM");
        if (!api_sleep(d, backoff(go + 1)))
            break;
    }
    if (!why.code)
        error_set(&why, ERR_TIMEOUT, "timed out");
    if (there)
        error_prefix(&why, "the VM %s could not be deleted, it still runs and is billed", name);
    else
        error_prefix(&why, "whether the VM %s is deleted could not be confirmed", name);
    error_move(err, &why);
    return false;
}

bool api_restart(struct api *a, const char *name, struct deadline d, struct record *out,
                 struct error *err)
{
    cleanup_free char *line = line_of("restart", name, NULL, "");

    *out = (struct record){0};
    if (!good_name(name, err))
        return false;
    cleanup_json json_t *v = simple(a, line, "restart", false, d, err);
    if (!v)
        return false;
    return record_from_answer(v, name, out, NULL) || api_find(a, name, d, out, err);
}

bool api_tag(struct api *a, const char *name, const char *tag, struct deadline d, struct error *err)
{
    cleanup_free char *line = line_of("tag", name, tag, "");

    if (!good_name(name, err))
        return false;
    cleanup_json json_t *v = simple(a, line, "tag", false, d, err);
    return v != NULL;
}

bool api_comment(struct api *a, const char *name, const char *text, struct deadline d,
                 struct error *err)
{
    cleanup_free char *line = line_of("comment", name, text, "");

    if (!good_name(name, err))
        return false;
    cleanup_json json_t *v = simple(a, line, "comment", false, d, err);
    return v != NULL;
}
