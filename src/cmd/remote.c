#include "cmd/remote.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"

#define TIMEOUT_MAX (30 * 86400) /* seconds; in milliseconds they fit the protocol's 32 bits */

struct remote {
    struct stream *stream;
    bool tty;
    int stop; /* eventfd: the command is over */
    unsigned interrupts;
};

/* The terminal as it was. Global for the handlers that must put it back whatever happens. */
static struct termios cooked;
static volatile sig_atomic_t is_raw;

static void terminal_restore(void)
{
    if (is_raw) {
        is_raw = 0;
        tcsetattr(STDIN_FILENO, TCSAFLUSH, &cooked);
    }
}

static void on_fatal(int sig)
{
    terminal_restore();
    signal(sig, SIG_DFL);
    raise(sig);
}

static bool terminal_raw(struct error *err)
{
    static bool registered;

    if (tcgetattr(STDIN_FILENO, &cooked) < 0)
        return error_sys(err, errno, "stdin is not a terminal that can be used");
    if (!registered) {
        atexit(terminal_restore);
        static const int fatal[] = {SIGSEGV, SIGABRT, SIGBUS, SIGFPE, SIGILL, SIGQUIT};
        for (size_t i = 0; i < sizeof fatal / sizeof *fatal; i++)
            signal(fatal[i], on_fatal);
        registered = true;
    }
    struct termios raw = cooked;
    cfmakeraw(&raw);
    is_raw = 1;
    if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) < 0) {
        is_raw = 0;
        return error_sys(err, errno, "put the terminal into raw mode");
    }
    return true;
}

static void resize(struct remote *r)
{
    struct winsize ws;

    if (r->tty && ioctl(STDIN_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_row && ws.ws_col)
        stream_resize(r->stream, ws.ws_row, ws.ws_col);
}

static void *feed_stdin(void *arg)
{
    struct remote *r = arg;
    struct pollfd pfds[2] = {{.fd = STDIN_FILENO, .events = POLLIN},
                             {.fd = r->stop, .events = POLLIN}};
    cleanup_free char *part = xmalloc(65536);

    for (;;) {
        if (poll(pfds, 2, -1) < 0 && errno != EINTR)
            break;
        if (pfds[1].revents)
            return NULL;
        if (!pfds[0].revents)
            continue;
        ssize_t got = read(STDIN_FILENO, part, 65536);
        if (got < 0 && (errno == EINTR || errno == EAGAIN))
            continue;
        if (got <= 0)
            break;
        if (!stream_write(r->stream, part, (size_t)got, DEADLINE_NEVER, NULL, NULL))
            return NULL; /* it closed its stdin: what else comes is nobody's */
    }
    stream_write_eof(r->stream);
    return NULL;
}

static const int forwarded[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGWINCH, SIGCONT, SIGUSR1};

static void forwarded_set(sigset_t *set)
{
    sigemptyset(set);
    for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
        sigaddset(set, forwarded[i]);
}

/* SIGUSR1 is our own: the command is over. */
static void *take_signals(void *arg)
{
    struct remote *r = arg;
    sigset_t set;
    int sig;

    forwarded_set(&set);
    while (sigwait(&set, &sig) == 0) {
        switch (sig) {
        case SIGUSR1:
            return NULL;
        case SIGWINCH:
            resize(r);
            break;
        case SIGCONT:
            if (r->tty && terminal_raw(NULL))
                resize(r);
            break;
        case SIGINT:
            stream_kill(r->stream, r->interrupts ? 0 : SIGINT, r->interrupts ? 0 : 1);
            r->interrupts++;
            break;
        case SIGQUIT:
            stream_kill(r->stream, SIGQUIT, 1);
            break;
        default:
            stream_kill(r->stream, 0, 0);
        }
    }
    return NULL;
}

/* False once there is nobody to write to (a closed pipe): the command is ended then, as a local one
 * would be by SIGPIPE. */
static bool put(struct remote *r, const struct stream_chunk *chunk, int *status)
{
    cleanup_error struct error err = {0};

    if (*status)
        return false;
    if (io_write_all(chunk->channel == 2 ? STDERR_FILENO : STDOUT_FILENO, chunk->data, chunk->len,
                     DEADLINE_NEVER, &err))
        return true;
    *status =
        err.sys == EPIPE ? 128 + SIGPIPE : cmd_fail(EXIT_FAILED, "pass on the output: %s", err.msg);
    stream_kill(r->stream, 0, 0);
    return false;
}

static bool pass_output(struct remote *r, const struct remote_spec *spec, int *status,
                        struct error *err)
{
    for (;;) {
        enum stream_event event;
        struct stream_chunk chunk;

        if (!stream_next(r->stream, &event, &chunk, DEADLINE_NEVER, NULL, err))
            return false;
        switch (event) {
        case STREAM_DATA:
            put(r, &chunk, status);
            break;
        case STREAM_EXIT:
            if (*status == 0)
                *status = chunk.timed_out ? 124 : chunk.signal ? 128 + chunk.signal : chunk.status;
            if (chunk.timed_out)
                cmd_fail(124, "the command was ended after %u ms (--timeout)", spec->timeout_ms);
            return true;
        case STREAM_FAILED:
            *status = chunk.fail_code == ENOENT ? 127 : EXIT_NOT_STARTED;
            cmd_fail(*status, "%s", err->msg);
            error_clear(err);
            return true;
        case STREAM_BROKEN:
            return false;
        case STREAM_STARTED:
        case STREAM_EOF:
        case STREAM_RESUMED:
        case STREAM_WRITABLE:
            break;
        }
    }
}

/* TERM and friends, so that colours come out right on the VM's terminal. */
static const char **with_terminal(const char *const *env)
{
    static const char *const names[] = {"TERM", "COLORTERM"};
    size_t n = 0;

    while (env && env[n])
        n++;
    const char **all = xcalloc(n + 3, sizeof *all);
    size_t k = 0;
    for (size_t i = 0; i < 2; i++) {
        const char *value = getenv(names[i]);
        if (value)
            all[k++] = xasprintf("%s=%s", names[i], value); /* lives as long as the process */
    }
    if (n)
        memcpy(all + k, env, n * sizeof *all);
    return all;
}

int remote_options(struct remote_spec *spec, const struct cmd_list *env, long long timeout)
{
    if (timeout < 0 || timeout > TIMEOUT_MAX)
        return cmd_fail(EXIT_USAGE, "--timeout is 1 to %d seconds, or 0 for none", TIMEOUT_MAX);
    for (int i = 0; i < env->n; i++) {
        const char *eq = strchr(env->items[i], '=');
        if (!eq || eq == env->items[i])
            return cmd_fail(EXIT_USAGE, "--env wants NAME=VALUE, not '%s'", env->items[i]);
    }
    spec->env = env->items;
    spec->timeout_ms = (uint32_t)timeout * 1000;
    return EXIT_OK;
}

bool remote_run(struct link *l, const struct remote_spec *spec, int *status, struct error *err)
{
    cleanup_fd int stop = eventfd(0, EFD_CLOEXEC);
    struct remote r = {.tty = spec->tty, .stop = stop};
    struct winsize ws = {.ws_row = 24, .ws_col = 80};
    cleanup_free const char **env = spec->tty ? with_terminal(spec->env) : NULL;
    struct stream_request req = {
        .kind = spec->tty ? STREAM_PTY : STREAM_COMMAND,
        .login_env = true,
        .source_nvm = spec->source_nvm,
        .durable = spec->durable,
        .no_stdin = spec->no_stdin,
        .timeout_ms = spec->timeout_ms,
        .cwd = spec->cwd,
        .argv = spec->argv,
        .env = env ? env : spec->env,
    };
    sigset_t set, old;
    pthread_t feeder, signals;

    *status = 0;
    if (spec->tty) {
        ioctl(STDIN_FILENO, TIOCGWINSZ, &ws);
        req.rows = ws.ws_row;
        req.cols = ws.ws_col;
    }
    if (!link_connect(l, DEADLINE_NEVER, NULL, err))
        return false;
    cleanup_stream struct stream *stream = stream_open(l, &req, DEADLINE_NEVER, NULL, err);
    if (!stream)
        return false;
    r.stream = stream;
    if (spec->tty && !terminal_raw(err))
        return false;

    forwarded_set(&set);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    bool feeding = !spec->no_stdin && pthread_create(&feeder, NULL, feed_stdin, &r) == 0;
    bool taking = pthread_create(&signals, NULL, take_signals, &r) == 0;
    bool ok = pass_output(&r, spec, status, err);
    uint64_t one = 1;
    ssize_t ignored = write(stop, &one, sizeof one);
    (void)ignored;
    if (taking) {
        pthread_kill(signals, SIGUSR1);
        pthread_join(signals, NULL);
    }
    if (feeding)
        pthread_join(feeder, NULL);
    terminal_restore();
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return ok;
}
