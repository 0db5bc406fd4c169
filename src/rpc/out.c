#include "rpc/out.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/text.h"
#include "lib/redact.h"

/* A plain mutex would let a command that floods its output take it again and again; writers are
 * served in their order instead, each waiting on a condition of its own. */
struct writer {
    pthread_cond_t turn;
    struct writer *next;
    bool mine;
};

static int out_fd = -1;
static atomic_bool dead;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool busy;
static struct writer *first, *last;

void out_open(int fd)
{
    out_fd = fd;
}

static void take_turn(void)
{
    pthread_mutex_lock(&lock);
    if (!busy) {
        busy = true;
    } else {
        struct writer me = {.turn = PTHREAD_COND_INITIALIZER};
        if (last)
            last->next = &me;
        else
            first = &me;
        last = &me;
        while (!me.mine)
            pthread_cond_wait(&me.turn, &lock);
        pthread_cond_destroy(&me.turn);
    }
    /* Whoever gave us the turn has taken `me` off:
     * NOLINTNEXTLINE(clang-analyzer-core.StackAddressEscape) */
    pthread_mutex_unlock(&lock);
}

static void pass_turn(void)
{
    pthread_mutex_lock(&lock);
    struct writer *w = first;
    if (w) {
        first = w->next;
        if (!first)
            last = NULL;
        w->mine = true;
        pthread_cond_signal(&w->turn);
    } else {
        busy = false;
    }
    pthread_mutex_unlock(&lock);
}

bool rpc_write(const void *line, size_t n)
{
    if (dead)
        return false;
    take_turn();
    bool ok = !dead && io_write_all(out_fd, line, n, DEADLINE_NEVER, NULL);
    /* A host that stopped reading is gone: `main` may still wait for a line of it. */
    if (!ok && !dead) {
        dead = true;
        kill(getpid(), SIGTERM);
    }
    pass_turn();
    return ok;
}

void out_error(const char *id, enum rpc_code code, const char *msg)
{
    cleanup_buf struct buf line = {0};

    buf_printf(&line, "{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":{\"code\":%d,\"message\":\"",
               id ? id : "null", code);
    json_escape(&line, msg, strlen(msg));
    buf_puts(&line, "\"}}\n");
    rpc_write(line.data, line.len);
}

void out_log_sink(enum log_level level, const char *text, void *arg)
{
    cleanup_buf struct buf line = {0};
    cleanup_free char *clean = redact(text);
    struct call *c = rpc_current();

    (void)arg;
    buf_printf(
        &line,
        "{\"jsonrpc\":\"2.0\",\"method\":\"log\",\"params\":{\"level\":\"%s\",\"message\":\"",
        log_level_name(level));
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, clean, strlen(clean), 8192);
    json_escape(&line, shown.data ? shown.data : "", shown.len);
    buf_puts(&line, "\"");
    if (c)
        buf_printf(&line, ",\"meta\":{\"method\":\"%s\"}", c->method);
    buf_puts(&line, "}");
    if (c && c->invocation) {
        buf_puts(&line, ",\"paperclipInvocationId\":\"");
        json_escape(&line, c->invocation, strlen(c->invocation));
        buf_puts(&line, "\"");
    }
    buf_puts(&line, "}\n");
    rpc_write(line.data, line.len);
}
