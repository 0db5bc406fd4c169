/* What a lease needs done on its VM: folders, the setup script's end, marks. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/lease_private.h"
#include "lib/setup.h"

#define ANSWER_MAX (64u << 10)
#define SETUP_START_MS 20000

void guest_clear(struct guest *g)
{
    free(g->home);
    free(g->cwd);
    json_decref(g->setup);
    *g = (struct guest){0};
}

/* Reads the stream to its end. */
static bool drain(struct stream *s, struct buf *out, struct buf *errout, int *status,
                  struct deadline d, struct cancel *cancel, struct error *err)
{
    for (;;) {
        enum stream_event event;
        struct stream_chunk chunk = {0};
        if (!stream_next(s, &event, &chunk, d, cancel, err))
            return false;
        switch (event) {
        case STREAM_DATA: {
            struct buf *to = chunk.channel == 1 ? out : errout;
            if (to && to->len + chunk.len <= ANSWER_MAX)
                buf_put(to, chunk.data, chunk.len);
            break;
        }
        case STREAM_EXIT:
            *status = chunk.signal ? 128 + chunk.signal : chunk.status;
            return true;
        case STREAM_FAILED:
        case STREAM_BROKEN:
            if (err && !err->msg)
                error_set(err, ERR_NETWORK, "the connection broke");
            return false;
        default:
            break;
        }
    }
}

static bool run(struct link *l, enum stream_kind kind, const char *const *argv, struct buf *out,
                struct buf *errout, int *status, struct deadline d, struct cancel *cancel,
                struct error *err)
{
    struct stream_request r = {.kind = kind, .no_stdin = true, .argv = argv};
    cleanup_stream struct stream *s = stream_open(l, &r, d, cancel, err);

    return s && drain(s, out, errout, status, d, cancel, err);
}

bool guest_builtin(struct link *l, const char *const *argv, struct buf *out, int *status,
                   struct deadline d, struct cancel *cancel, struct error *err)
{
    return run(l, STREAM_BUILTIN, argv, out, out, status, d, cancel, err);
}

bool guest_run(struct link *l, const char *const *argv, struct buf *out, struct deadline d,
               struct cancel *cancel, struct error *err)
{
    cleanup_buf struct buf errout = {0}, shown = {0};
    int status;

    if (!run(l, STREAM_COMMAND, argv, out, &errout, &status, d, cancel, err))
        return false;
    if (status == 0)
        return true;
    while (errout.len > 0 && errout.data[errout.len - 1] == '\n')
        errout.len--;
    text_visible(&shown, errout.data ? errout.data : "", errout.len, 400);
    return error_set(err, ERR_SYSTEM, "%s failed with status %d on the VM%s%s", argv[0], status,
                     shown.len ? ": " : "", shown.len ? shown.data : "");
}

bool guest_mkdir(struct link *l, const char *path, struct deadline d, struct cancel *cancel,
                 struct error *err)
{
    return guest_run(l, (const char *[]){"mkdir", "-p", "--", path, NULL}, NULL, d, cancel, err) ||
           error_prefix(err, "make the folder %s", path);
}

static char *first_line(struct buf *b)
{
    char *nl = b->len ? memchr(b->data, '\n', b->len) : NULL;
    return b->len ? xstrndup(b->data, nl ? (size_t)(nl - b->data) : b->len) : NULL;
}

bool guest_prepare(struct link *l, const char *cwd, struct guest *g, struct deadline d,
                   struct cancel *cancel, struct error *err)
{
    struct link_facts facts = link_facts(l);

    g->bash = facts.has_bash;
    if (facts.home && facts.home[0] == '/') {
        g->home = xstrdup(facts.home);
    } else {
        cleanup_buf struct buf out = {0};
        if (!guest_run(l, (const char *[]){"pwd", NULL}, &out, d, cancel, NULL) && !link_is_up(l))
            return error_set(err, ERR_NETWORK,
                             "the connection broke while the home folder was looked for");
        g->home = first_line(&out);
        if (!g->home || g->home[0] != '/') {
            free(g->home);
            g->home = xstrdup("/tmp");
        }
    }
    g->cwd = cwd && *cwd
                 ? xstrdup(cwd)
                 : xasprintf("%s/paperclip-workspace", strcmp(g->home, "/") == 0 ? "" : g->home);
    return guest_mkdir(l, g->cwd, d, cancel, err);
}

/* Prints one line when there is nothing to wait for any more: "good", "done STATUS", "missing"
 * (never started); then the log's last lines. Waiting happens there: one command, whatever it
 * takes. */
static const char wait_script[] =
    "dir=$1 want=$2 start=$3\n"
    "good() { v=$(node --version 2>/dev/null) || return 1; v=${v#v}; a=${v%%.*}; b=${v#*.}; "
    "b=${b%%.*}\n"
    "  [ \"$a\" -gt \"$want\" ] 2>/dev/null && return 0\n"
    "  [ \"$a\" -eq \"$want\" ] 2>/dev/null || return 1\n"
    "  [ \"$want\" -ne 24 ] || [ \"$b\" -ge 11 ]; }\n"
    "state() { cat \"$dir/state\" 2>/dev/null; }\n"
    "tick=0\n"
    "while :; do\n"
    "  s=$(state)\n"
    "  case $s in done*) echo \"$s\"; break;; esac\n"
    "  if [ -n \"$want\" ] && [ \"$want\" != 0 ] && good; then echo good; break; fi\n"
    "  if [ -z \"$s\" ] && [ $tick -ge $((start * 5)) ]; then echo missing; break; fi\n"
    "  sleep 0.2 2>/dev/null || { sleep 1; tick=$((tick + 4)); }\n"
    "  tick=$((tick + 1))\n"
    "done\n"
    "tail -n 10 \"$dir/log\" 2>/dev/null\n";

bool guest_wait_setup(struct link *l, const struct config *cfg, struct guest *g, struct deadline d,
                      struct cancel *cancel, struct error *err)
{
    bool none = cfg->source_vm || (cfg->setup_script && strcmp(cfg->setup_script, "none") == 0);
    bool built_in = !cfg->setup_script;
    cleanup_buf struct buf out = {0}, errout = {0};
    cleanup_error struct error why = {0};
    int status = 0;

    if (none || (!built_in && !cfg->wait_for_setup))
        return true;
    cleanup_free char *want = xasprintf("%lld", built_in ? (long long)cfg->node_major : 0LL);
    cleanup_free char *start = xasprintf("%d", SETUP_START_MS / 1000);
    const char *argv[] = {"sh", "-c", wait_script, "exedev-wait", SETUP_DIR, want, start, NULL};
    if (!run(l, STREAM_COMMAND, argv, &out, &errout, &status, d, cancel, &why)) {
        if (why.code != ERR_TIMEOUT) {
            error_move(err, &why);
            return error_prefix(err, "wait for the setup script");
        }
        g->setup = json_pack("{s:s}", "state", "running");
        return true;
    }
    cleanup_free char *line = first_line(&out);
    if (line && strcmp(line, "good") == 0)
        return true;
    const char *rest = line ? out.data + strlen(line) : "";
    size_t n = line ? out.len - strlen(line) : 0;
    cleanup_buf struct buf tail = {0};
    while (n > 0 && *rest == '\n')
        rest++, n--;
    for (size_t i = 0; i < n;) { /* line ends stay, other controls become visible */
        const char *nl = memchr(rest + i, '\n', n - i);
        size_t len = nl ? (size_t)(nl - rest) - i : n - i;
        text_visible(&tail, rest + i, len, 400);
        i += len + 1;
        if (i < n)
            buf_putc(&tail, '\n');
    }
    bool done = line && text_starts(line, "done");
    int code = done ? atoi(line + 4) : 0;
    g->setup = json_pack("{s:s, s:s}", "state",
                         !done  ? "not started"
                         : code ? "failed"
                                : "done",
                         "log", tail.data ? tail.data : "");
    if (done)
        json_object_set_new(g->setup, "exitCode", json_integer(code));
    return true;
}

bool guest_write_mark(struct link *l, const struct lease_vm *v, struct deadline d,
                      struct error *err)
{
    static const char script[] =
        "umask 077; mkdir -p ~/.config/exedev && printf 'exedev kind=%s env=%s run=%s\\n' "
        "\"$1\" \"$2\" \"$3\" > ~/.config/exedev/mark";
    const char *argv[] = {"sh",
                          "-c",
                          script,
                          "exedev-mark",
                          v->kind,
                          v->env_id ? v->env_id : "",
                          v->run_id ? v->run_id : "",
                          NULL};
    return guest_run(l, argv, NULL, d, NULL, err);
}
