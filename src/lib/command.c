#include "lib/command.h"

#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/vmproto.h"
#include "lib/stream.h"

#define DEFAULT_CAP ((64u << 20) - (64u << 10))
#define TIMEOUT_MARGIN_MS 15000 /* the helper counts; this is for one that does not */
#define CONFIRM_MS 10000

/* One output channel on its way to the caller. */
struct sink {
    struct text_join join;
    struct buf *kept;
    size_t room; /* characters (bytes, when not text) still allowed */
    uint64_t left_out;
};

struct run {
    const struct command_spec *spec;
    struct command_result *res;
    struct stream *stream;
    struct sink sinks[VM_CHANNELS];
    struct buf scratch;
    size_t fed;   /* of spec->stdin_data */
    bool refused; /* the output callback wants no more */
    bool started;
};

void command_result_free(struct command_result *res)
{
    buf_free(&res->out);
    buf_free(&res->err);
    free(res->advice);
    *res = (struct command_result){0};
}

/* ---- output ---- */

static void emit(struct run *r, int channel, const char *p, size_t n)
{
    struct sink *s = &r->sinks[channel];
    size_t fits = n;

    if (!n || r->refused)
        return;
    if (r->spec->collect) {
        if (s->left_out) {
            fits = 0; /* once cut, it stays cut: the result begins with what was streamed */
        } else if (r->spec->text) {
            fits = text_fit(p, n, &s->room);
        } else {
            fits = n < s->room ? n : s->room;
            s->room -= fits;
        }
        buf_put(s->kept, p, fits);
        s->left_out += n - fits;
    }
    if (fits && r->spec->output && !r->spec->output(channel, p, fits, r->spec->arg))
        r->refused = true;
}

static void take(struct run *r, int channel, const char *p, size_t n, bool last)
{
    if (r->spec->text) {
        const char *text;
        size_t len;
        text_join(&r->sinks[channel].join, p, n, last, &r->scratch, &text, &len);
        emit(r, channel, text, len);
    } else {
        emit(r, channel, p, n);
    }
}

static void close_sinks(struct run *r)
{
    for (int i = VM_STDOUT; i <= VM_STDERR; i++) {
        struct sink *s = &r->sinks[i];
        take(r, i, "", 0, true);
        if (s->left_out)
            buf_printf(s->kept,
                       "\n[exedev: the output was cut here, %llu bytes more were left out]\n",
                       (unsigned long long)s->left_out);
    }
}

/* Our own words on a line of their own at the end of stderr. */
static void say(struct run *r, const char *text)
{
    struct buf *b = &r->res->err;
    cleanup_buf struct buf line = {0};

    if (b->len && b->data[b->len - 1] != '\n')
        buf_putc(&line, '\n');
    buf_printf(&line, "exedev: %s\n", text);
    buf_put(b, line.data, line.len);
}

/* ---- the request ---- */

static bool check_env(const char *const *env, struct error *err)
{
    for (; env && *env; env++) {
        const char *p = *env;
        bool good = isalpha((unsigned char)*p) || *p == '_';
        while (good && *p && *p != '=') {
            good = isalnum((unsigned char)*p) || *p == '_';
            p++;
        }
        if (!good || *p != '=') {
            size_t n = strcspn(*env, "=");
            return error_set(
                err, ERR_INVALID,
                "\"%.*s\" is no name for an environment variable: letters, digits and _, and no "
                "digit first",
                (int)(n < 80 ? n : 80), *env);
        }
    }
    return true;
}

static void transport(struct run *r, const struct error *why)
{
    r->res->transport = why->code;
    r->res->exit_code = 255;
    free(r->res->advice);
    r->res->advice = xstrdup(why->msg ? why->msg : "the connection failed");
}

static struct stream *start(struct run *r, struct link *l, struct cancel *cancel, struct deadline d,
                            struct error *err)
{
    const struct command_spec *spec = r->spec;
    int64_t left = deadline_left(d);

    return stream_open(l,
                       &(struct stream_request){
                           .kind = STREAM_COMMAND,
                           .login_env = spec->login_env,
                           .source_nvm = spec->source_nvm,
                           .durable = spec->durable,
                           .no_stdin = !spec->input && !spec->stdin_len,
                           .timeout_ms = left == INT64_MAX   ? 0
                                         : left > UINT32_MAX ? UINT32_MAX
                                         : left < 1          ? 1
                                                             : (uint32_t)left,
                           .credit = spec->credit ? spec->credit : 256u << 10,
                           .cwd = spec->cwd,
                           .argv = spec->argv,
                           .env = spec->env,
                       },
                       d, cancel, err);
}

/* ---- stdin ---- */

static void feed(struct run *r)
{
    const struct command_spec *s = r->spec;

    if (s->input || !s->stdin_len || r->fed > s->stdin_len)
        return;
    ssize_t done = stream_write_some(r->stream, s->stdin_data + r->fed, s->stdin_len - r->fed);
    if (done < 0)
        r->fed = s->stdin_len + 1;
    else if ((r->fed += (size_t)done) == s->stdin_len) {
        stream_write_eof(r->stream);
        r->fed = s->stdin_len + 1;
    }
}

struct feeder {
    struct stream *stream;
    const struct command_spec *spec;
    struct cancel *stop;
    pthread_t thread;
};

static void *feeder_main(void *arg)
{
    struct feeder *f = arg;
    cleanup_free char *part = xmalloc(VM_MAX_PAYLOAD);
    ssize_t got;

    while ((got = f->spec->input(part, VM_MAX_PAYLOAD, f->stop, f->spec->arg)) > 0) {
        if (!stream_write(f->stream, part, (size_t)got, DEADLINE_NEVER, f->stop, NULL))
            break;
    }
    if (!cancel_fired(f->stop))
        stream_write_eof(f->stream);
    return NULL;
}

static bool feeder_start(struct feeder *f, struct run *r, struct error *err)
{
    pthread_attr_t attr;
    sigset_t all, old;

    if (!r->spec->input)
        return true;
    *f = (struct feeder){.stream = r->stream, .spec = r->spec, .stop = cancel_new()};
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 128 << 10);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int sys = pthread_create(&f->thread, &attr, feeder_main, f);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (!sys)
        return true;
    cancel_unref(steal_ptr(f->stop));
    return error_sys(err, sys, "start a thread");
}

static void feeder_end(struct feeder *f)
{
    if (!f->stop)
        return;
    cancel_fire(f->stop);
    pthread_join(f->thread, NULL);
    cancel_unref(f->stop);
}

/* ---- the end ---- */

static void signal_name(int sig, char out[16])
{
    const char *name = sigabbrev_np(sig);

    if (name)
        snprintf(out, 16, "SIG%s", name);
    else
        snprintf(out, 16, "SIG%d", sig);
}

static void set_exit(struct run *r, const struct stream_chunk *c)
{
    struct command_result *res = r->res;

    res->ran = true;
    res->confirmed = c->confirmed;
    res->user_us = c->user_us;
    res->system_us = c->system_us;
    res->max_rss_kib = c->max_rss_kib;
    res->timed_out = res->timed_out || c->timed_out;
    if (c->signal)
        signal_name(c->signal, res->signal);
    if (res->timed_out || res->cancelled)
        res->exit_code = -1;
    else
        res->exit_code = c->signal ? 128 + c->signal : c->status;
}

/* As a shell would: 127 when there is no such command, 126 when it cannot be run; 1 when its folder
 * cannot be entered. */
static void on_failed(struct run *r, int code, const struct error *why)
{
    if ((code & ~VM_FAIL_CWD) == ECANCELED) { /* our kill came first */
        r->res->confirmed = true;
        return;
    }
    r->res->exit_code = code & VM_FAIL_CWD ? 1 : code == ENOENT ? 127 : 126;
    say(r, why->msg && *why->msg ? why->msg : strerror(code & ~VM_FAIL_CWD));
}

/* A kill that the helper does not confirm in time is left to it; the caller sees confirmed ==
 * false. */
struct ending {
    bool asked;
    struct deadline by;
};

static void ask_end(struct run *r, struct ending *e)
{
    if (e->asked)
        return;
    stream_kill(r->stream, 0, VM_KILL_TREE);
    e->asked = true;
    e->by = deadline_in(CONFIRM_MS);
}

/* Events until the last one. False: the call fails by transport, err says why. */
static bool follow(struct run *r, struct deadline backstop, struct cancel *cancel,
                   struct error *err)
{
    struct ending end = {.by = DEADLINE_NEVER};

    for (;;) {
        enum stream_event event;
        struct stream_chunk c;
        cleanup_error struct error why = {0};
        if (stream_next(r->stream, &event, &c, end.asked ? end.by : backstop,
                        end.asked ? NULL : cancel, &why)) {
            switch (event) {
            case STREAM_STARTED:
                r->started = true;
                feed(r);
                break;
            case STREAM_DATA:
                take(r, c.channel, c.data, c.len, false);
                break;
            case STREAM_WRITABLE:
                feed(r);
                break;
            case STREAM_EXIT:
                set_exit(r, &c);
                return true;
            case STREAM_FAILED:
                on_failed(r, c.fail_code, &why);
                return true;
            case STREAM_BROKEN:
                error_move(err, &why);
                return false;
            case STREAM_EOF:
            case STREAM_RESUMED:
                break;
            }
            if (r->refused && !end.asked) {
                r->res->cancelled = true;
                ask_end(r, &end);
            }
        } else if (end.asked || why.code == ERR_INTERNAL) {
            r->res->ran = r->started;
            r->res->exit_code = -1;
            return true;
        } else {
            if (why.code == ERR_CANCELLED)
                r->res->cancelled = true;
            else
                r->res->timed_out = true;
            ask_end(r, &end);
        }
    }
}

bool command_run(struct link *l, const struct command_spec *spec, struct cancel *cancel,
                 struct command_result *res, struct error *err)
{
    struct run r = {.spec = spec, .res = res};
    struct feeder feeder = {0};
    cleanup_error struct error why = {0};
    struct deadline d = spec->timeout_ms > 0 ? deadline_in(spec->timeout_ms) : DEADLINE_NEVER;
    size_t cap = spec->cap ? spec->cap : DEFAULT_CAP;

    *res = (struct command_result){.exit_code = -1};
    if (!check_env(spec->env, err))
        return false;
    r.sinks[VM_STDOUT] = (struct sink){.kept = &res->out, .room = cap};
    r.sinks[VM_STDERR] = (struct sink){.kept = &res->err, .room = cap};
    r.stream = start(&r, l, cancel, d, &why);
    if (!r.stream && (why.code == ERR_INVALID || why.code == ERR_TOO_LARGE)) {
        error_move(err, &why);
        return false;
    }
    if (!r.stream && why.code == ERR_CANCELLED) {
        res->cancelled = true;
        return true;
    }
    bool ok = r.stream && feeder_start(&feeder, &r, &why);
    if (ok) {
        struct deadline backstop = spec->timeout_ms > 0
                                       ? deadline_in(deadline_left(d) + TIMEOUT_MARGIN_MS)
                                       : DEADLINE_NEVER;
        ok = follow(&r, backstop, cancel, &why);
    }
    feeder_end(&feeder);
    close_sinks(&r);
    if (!ok) {
        res->ran = r.started;
        transport(&r, &why);
        say(&r, res->advice);
    }
    if (r.stream)
        stream_close(r.stream);
    buf_free(&r.scratch);
    return true;
}
