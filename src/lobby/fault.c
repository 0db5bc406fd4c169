#include "lobby/fault.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/text.h"

struct entry {
    struct entry *next;
    char *where;
    struct fault f;
    long long times; /* -1: for ever */
    long long skip;
    int64_t until_ms; /* refuse=MS: on CLOCK_MONOTONIC; 0: until cleared */
    char *spec;
};

enum scope { ON_COMMAND = 1, ON_BOOT = 2, ON_SETUP = 4, ON_SSH = 8, ON_LISTEN = 16 };

static const struct kind {
    const char *word;
    enum fault_kind kind;
    enum scope scope;
    long long fallback; /* -1: a value must be given */
    long long least, most;
} kinds[] = {
    {"status", FAULT_STATUS, ON_COMMAND, -1, 200, 599},
    {"lost", FAULT_LOST, ON_COMMAND, 0, 200, 599},
    {"cut", FAULT_CUT, ON_COMMAND, 0, 0, 0},
    {"hang", FAULT_HANG, ON_COMMAND, 600000, 1, 86400000},
    {"delay", FAULT_DELAY, ON_COMMAND, -1, 0, 86400000},
    {"drip", FAULT_DRIP, ON_COMMAND, 1000, 1, 600000},
    {"garbage", FAULT_GARBAGE, ON_COMMAND, 0, 0, 0},
    {"truncate", FAULT_TRUNCATE, ON_COMMAND, 0, 0, 0},
    {"short", FAULT_SHORT, ON_COMMAND, 0, 0, 0},
    {"huge", FAULT_HUGE, ON_COMMAND, 1000000000, 1, 100000000000},
    {"redirect", FAULT_REDIRECT, ON_COMMAND, 302, 300, 399},
    {"delay", FAULT_SLOW_BOOT, ON_BOOT, -1, 0, 86400000},
    {"hang", FAULT_SETUP_HANG, ON_SETUP, 0, 0, 0},
    {"fail", FAULT_SETUP_FAIL, ON_SETUP, 1, 1, 255},
    {"sessions", FAULT_SESSIONS, ON_SSH, -1, 1, 10000},
    {"burst", FAULT_BURST, ON_SSH, 5, 1, 10000},
    {"freeze", FAULT_FREEZE, ON_SSH, 0, 0, 0},
    {"refuse", FAULT_REFUSE, ON_LISTEN, 0, 1, 86400000},
};

const char fault_help[] =
    "Faults: WHERE:WHAT[=VALUE][,times=N][,skip=N][,retry-after=S][,body=TEXT]\n"
    "  COMMAND or *: status=CODE  nothing is done, this status\n"
    "                lost[=CODE]  done, then the connection is cut (or this status)\n"
    "                cut          the connection is cut, nothing is done\n"
    "                hang[=MS]    nothing is done, no answer\n"
    "                delay=MS     done that much later\n"
    "                drip[=MS]    one byte of the answer at a time\n"
    "                garbage, truncate, short, huge[=BYTES]   done; the answer is bad\n"
    "                redirect[=CODE],body=URL\n"
    "  boot:delay=MS              sshd starts later\n"
    "  setup:hang, setup:fail[=STATUS]\n"
    "  ssh:sessions=N             MaxSessions of VMs that boot from now on\n"
    "  ssh:burst=N                more new connections than N in 10 s: silence for retry-after= "
    "(60) s\n"
    "  ssh:freeze                 connections to VMs stall, new ones are not accepted\n"
    "  listen:refuse[=MS]         nobody listens at the API's port\n";

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *entries;

void fault_free(struct fault *f)
{
    free(f->body);
    f->body = NULL;
}

static void entry_free(struct entry *e)
{
    free(e->where);
    free(e->spec);
    fault_free(&e->f);
    free(e);
}

static enum scope scope_of(const char *where)
{
    return strcmp(where, "boot") == 0     ? ON_BOOT
           : strcmp(where, "setup") == 0  ? ON_SETUP
           : strcmp(where, "ssh") == 0    ? ON_SSH
           : strcmp(where, "listen") == 0 ? ON_LISTEN
                                          : ON_COMMAND;
}

static bool number(const char *text, long long least, long long most, long long *out)
{
    char *end;

    if (!*text || *text == '-' || *text == '+' || strspn(text, "0123456789") != strlen(text))
        return false;
    *out = strtoll(text, &end, 10);
    return *out >= least && *out <= most;
}

static bool parse_kind(struct entry *e, const char *what, struct error *err)
{
    cleanup_free char *word = xstrndup(what, strcspn(what, "="));
    const char *value = strchr(what, '=');

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const struct kind *k = &kinds[i];
        if (strcmp(k->word, word) != 0 || k->scope != scope_of(e->where))
            continue;
        e->f.kind = k->kind;
        e->f.value = k->fallback;
        if (!value && k->fallback >= 0)
            return true;
        if (!value)
            return error_set(err, ERR_INVALID, "%s needs a value (%s=%lld..%lld)", word, word,
                             k->least, k->most);
        if (!k->most || !number(value + 1, k->least, k->most, &e->f.value))
            return error_set(err, ERR_INVALID,
                             k->most ? "%s: the value must be a number from %lld to %lld"
                                     : "%s takes no value",
                             word, k->least, k->most);
        return true;
    }
    return error_set(err, ERR_INVALID, "\"%s\" is no fault of %s", word, e->where);
}

static bool parse_option(struct entry *e, const char *name, const char *value, struct error *err)
{
    long long n;

    if (strcmp(name, "times") == 0 && number(value, 1, 1000000, &n))
        e->times = n;
    else if (strcmp(name, "skip") == 0 && number(value, 0, 1000000, &n))
        e->skip = n;
    else if (strcmp(name, "retry-after") == 0 && number(value, 0, 86400, &n))
        e->f.retry_after = (int)n;
    else
        return error_set(err, ERR_INVALID, "bad option \"%s=%s\" (times, skip, retry-after, body)",
                         name, value);
    return true;
}

static bool parse(struct entry *e, const char *spec, struct error *err)
{
    const char *colon = strchr(spec, ':');

    if (!colon || colon == spec)
        return error_set(err, ERR_INVALID, "expected WHERE:WHAT");
    e->where = xstrndup(spec, (size_t)(colon - spec));
    /* the body is last and holds what it likes */
    const char *body = strstr(colon, ",body=");
    if (body)
        e->f.body = xstrdup(body + 6);
    cleanup_free char *rest =
        xstrndup(colon + 1, body ? (size_t)(body - colon - 1) : strlen(colon + 1));
    char *save = NULL, *part = strtok_r(rest, ",", &save);
    if (!part || !parse_kind(e, part, err))
        return part ? false : error_set(err, ERR_INVALID, "expected WHERE:WHAT");
    while ((part = strtok_r(NULL, ",", &save))) {
        char *value = strchr(part, '=');
        if (value)
            *value++ = 0;
        if (!parse_option(e, part, value ? value : "", err))
            return false;
    }
    if (e->f.kind == FAULT_REDIRECT && !e->f.body)
        return error_set(err, ERR_INVALID, "redirect needs body=URL");
    return true;
}

bool fault_add(const char *spec, struct error *err)
{
    struct entry *e = xcalloc(1, sizeof *e), **at;

    e->times = -1;
    e->f.retry_after = -1;
    e->spec = xstrdup(spec);
    if (!parse(e, spec, err)) {
        entry_free(e);
        return error_prefix(err, "fault \"%.200s\"", spec);
    }
    if (e->f.kind == FAULT_REFUSE && e->f.value)
        e->until_ms = now_ms() + e->f.value;
    pthread_mutex_lock(&lock);
    for (at = &entries; *at; at = &(*at)->next)
        ;
    *at = e;
    pthread_mutex_unlock(&lock);
    return true;
}

void fault_clear(const char *where)
{
    pthread_mutex_lock(&lock);
    for (struct entry **at = &entries; *at;) {
        struct entry *e = *at;
        if (!where || strcmp(where, e->where) == 0) {
            *at = e->next;
            entry_free(e);
        } else {
            at = &e->next;
        }
    }
    pthread_mutex_unlock(&lock);
}

json_t *fault_list(void)
{
    json_t *list = json_array();

    pthread_mutex_lock(&lock);
    for (struct entry *e = entries; e; e = e->next)
        json_array_append_new(list, json_pack("{s:s, s:I, s:I}", "spec", e->spec, "times",
                                              (json_int_t)e->times, "skip", (json_int_t)e->skip));
    pthread_mutex_unlock(&lock);
    return list;
}

void fault_take(const char *command, struct fault *out)
{
    *out = (struct fault){.retry_after = -1};
    pthread_mutex_lock(&lock);
    for (struct entry *e = entries; e; e = e->next) {
        if (scope_of(e->where) != ON_COMMAND ||
            (strcmp(e->where, "*") != 0 && strcmp(e->where, command) != 0) || e->times == 0)
            continue;
        if (e->f.kind != FAULT_DELAY && out->kind != FAULT_NONE)
            continue;
        if (e->skip > 0) {
            e->skip--;
            continue;
        }
        if (e->times > 0)
            e->times--;
        if (e->f.kind == FAULT_DELAY) {
            out->delay_ms += e->f.value;
            continue;
        }
        out->kind = e->f.kind;
        out->value = e->f.value;
        out->retry_after = e->f.retry_after;
        out->body = e->f.body ? xstrdup(e->f.body) : NULL;
    }
    pthread_mutex_unlock(&lock);
}

struct fault_boot fault_boot(void)
{
    struct fault_boot b = {0};

    pthread_mutex_lock(&lock);
    for (struct entry *e = entries; e; e = e->next) {
        bool counted = e->f.kind == FAULT_SLOW_BOOT || e->f.kind == FAULT_SETUP_HANG ||
                       e->f.kind == FAULT_SETUP_FAIL || e->f.kind == FAULT_SESSIONS;
        if (!counted || e->times == 0)
            continue;
        if (e->skip > 0) {
            e->skip--;
            continue;
        }
        if (e->times > 0)
            e->times--;
        if (e->f.kind == FAULT_SLOW_BOOT)
            b.sshd_delay_ms = e->f.value;
        else if (e->f.kind == FAULT_SETUP_HANG)
            b.setup_hang = true;
        else if (e->f.kind == FAULT_SETUP_FAIL)
            b.setup_fail = (int)e->f.value;
        else
            b.sessions = (unsigned)e->f.value;
    }
    pthread_mutex_unlock(&lock);
    return b;
}

struct fault_ssh fault_ssh(void)
{
    struct fault_ssh s = {0};

    pthread_mutex_lock(&lock);
    for (struct entry *e = entries; e; e = e->next) {
        if (e->f.kind == FAULT_BURST) {
            s.burst = (unsigned)e->f.value;
            s.burst_silence_s = e->f.retry_after >= 0 ? e->f.retry_after : 60;
        } else if (e->f.kind == FAULT_FREEZE) {
            s.freeze = true;
        }
    }
    pthread_mutex_unlock(&lock);
    return s;
}

bool fault_refusing(void)
{
    bool refusing = false;

    pthread_mutex_lock(&lock);
    for (struct entry *e = entries; e; e = e->next) {
        if (e->f.kind == FAULT_REFUSE && (!e->until_ms || now_ms() < e->until_ms))
            refusing = true;
    }
    pthread_mutex_unlock(&lock);
    return refusing;
}

bool fault_needs_relay(void)
{
    struct fault_ssh s = fault_ssh();

    return s.burst || s.freeze;
}
