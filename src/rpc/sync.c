/* environmentSyncIn, environmentSyncOut: operations in their order, each one stream of files and
 * then its commands; the first failure ends the call, so that no partial success is ever reported.
 */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/text.h"
#include "lib/command.h"
#include "lib/lease.h"
#include "lib/transfer.h"
#include "rpc/rpc.h"

/* Words of a failed command that go into the message. */
enum { MAX_OUTPUT = 4000 };

struct mapping {
    struct transfer_item item;
    const char *source, *target;
};

struct operation {
    const char *id;
    struct mapping *files;
    size_t n_files;
    const json_t *commands; /* an array, or NULL */
};

struct sync {
    struct call *call;
    bool in;
    struct operation *ops;
    size_t n_ops;
    struct link *link;
    const json_t *metadata;
    struct deadline deadline;
    struct tree_limits limits; /* of what the VM may send */
};

static void sync_free(struct sync *s)
{
    for (size_t i = 0; i < s->n_ops; i++) {
        for (size_t k = 0; k < s->ops[i].n_files; k++)
            free((void *)(uintptr_t)s->ops[i].files[k].item.exclude);
        free(s->ops[i].files);
    }
    free(s->ops);
}

/* ---- parameters: all are checked before anything is done ---- */

static bool has_dotdot(const char *path)
{
    for (const char *p = path; (p = strstr(p, "..")); p += 2) {
        if ((p == path || p[-1] == '/') && (p[2] == '/' || !p[2]))
            return true;
    }
    return false;
}

static const char *read_path(struct sync *s, const json_t *o, const char *key, const char *where,
                             struct error *err)
{
    const char *path = rpc_need_str(s->call, o, key, err);

    if (!path)
        return error_prefix(err, "%s", where), NULL;
    if (path[0] != '/' || has_dotdot(path)) {
        rpc_bad_params(s->call, err, "%s: %s must be an absolute path without `..`, not `%s`",
                       where, key, path);
        return NULL;
    }
    return path;
}

static bool read_exclude(struct sync *s, const json_t *o, struct transfer_item *item,
                         const char *where, struct error *err)
{
    const json_t *list = json_object_get(o, "exclude");

    if (!list || json_is_null(list) || item->kind == TREE_FILE)
        return true;
    if (!json_is_array(list))
        return rpc_bad_params(s->call, err, "%s: exclude must be an array of globs", where);
    const char **globs = xcalloc(json_array_size(list) + 1, sizeof *globs);
    item->exclude = globs;
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_string(v) || strlen(json_string_value(v)) != json_string_length(v))
            return rpc_bad_params(s->call, err, "%s: exclude[%zu] must be a string without NUL",
                                  where, i);
        globs[item->n_exclude++] = json_string_value(v);
    }
    return true;
}

static bool read_mapping(struct sync *s, const json_t *o, const char *where, struct mapping *m,
                         struct error *err)
{
    const json_t *mode = json_object_get(o, "mode");
    const char *kind = json_str(o, "kind");

    if (!json_is_object(o))
        return rpc_bad_params(s->call, err, "%s must be an object", where);
    m->source = read_path(s, o, "sourcePath", where, err);
    m->target = m->source ? read_path(s, o, "targetPath", where, err) : NULL;
    if (!m->target)
        return false;
    if (!kind || (strcmp(kind, "file") != 0 && strcmp(kind, "directory") != 0))
        return rpc_bad_params(s->call, err, "%s: kind must be \"file\" or \"directory\"", where);
    m->item.kind = strcmp(kind, "file") == 0 ? TREE_FILE : TREE_DIR;
    m->item.mode = -1;
    if (mode && !json_is_null(mode)) {
        double v = json_number_value(mode);
        if (!json_is_number(mode) || v < 0 || v > 07777 || v != (double)(int)v)
            return rpc_bad_params(s->call, err,
                                  "%s: mode must be an integer from 0 to 4095 (octal 7777)", where);
        m->item.mode = (int)v;
    }
    m->item.follow = m->item.kind == TREE_DIR && json_bool(o, "followSymlinks");
    m->item.local = s->in ? m->source : m->target;
    m->item.remote = s->in ? m->target : m->source;
    return read_exclude(s, o, &m->item, where, err);
}

static bool is_below(const char *path, const char *dir)
{
    size_t n = strlen(dir);

    while (n > 1 && dir[n - 1] == '/')
        n--;
    return strncmp(path, dir, n) == 0 && path[n] == '/' && path[n + strspn(path + n, "/")];
}

/* The contract's confinement of a command's folder: an own target of the operation, or below one;
 * the lease's working directory, which is the default, is as good. */
static bool cwd_is_confined(const struct sync *s, const struct operation *op, const char *cwd)
{
    const char *home = json_str(s->metadata, "remoteCwd");

    if (home && (strcmp(cwd, home) == 0 || is_below(cwd, home)))
        return true;
    for (size_t i = 0; i < op->n_files; i++) {
        const char *target = op->files[i].target;
        if (strcmp(cwd, target) == 0 || is_below(cwd, target))
            return true;
    }
    return false;
}

static bool read_commands(struct sync *s, const json_t *o, const char *where, struct operation *op,
                          struct error *err)
{
    const json_t *list = json_object_get(o, "postUploadCommands");

    if (!list || json_is_null(list))
        return true;
    if (!s->in)
        return rpc_bad_params(s->call, err, "%s: postUploadCommands belong to environmentSyncIn",
                              where);
    if (!json_is_array(list))
        return rpc_bad_params(s->call, err, "%s: postUploadCommands must be an array", where);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *c = json_array_get(list, i);
        cleanup_free char *at = xasprintf("%s.postUploadCommands[%zu]", where, i);
        const json_t *timeout = json_object_get(c, "timeoutMs"), *cwd = json_object_get(c, "cwd");
        if (!json_is_object(c))
            return rpc_bad_params(s->call, err, "%s must be an object", at);
        if (!rpc_need_str(s->call, c, "command", err))
            return error_prefix(err, "%s", at);
        if (cwd && !json_is_null(cwd)) {
            const char *path = read_path(s, c, "cwd", at, err);
            if (!path)
                return false;
            if (!cwd_is_confined(s, op, path))
                return rpc_bad_params(
                    s->call, err, "%s: cwd `%s` is in none of the operation's targets", at, path);
        }
        if (timeout && !json_is_null(timeout) &&
            (!json_is_number(timeout) || json_number_value(timeout) < 0))
            return rpc_bad_params(s->call, err, "%s: timeoutMs must be a number of milliseconds",
                                  at);
    }
    op->commands = list;
    return true;
}

static bool read_operations(struct sync *s, struct error *err)
{
    const json_t *ops = json_object_get(s->call->params, "operations");

    if (!json_is_array(ops))
        return rpc_bad_params(s->call, err, "operations must be an array");
    s->ops = xcalloc(json_array_size(ops) + 1, sizeof *s->ops);
    for (size_t i = 0; i < json_array_size(ops); i++) {
        const json_t *o = json_array_get(ops, i), *files = json_object_get(o, "files");
        struct operation *op = &s->ops[s->n_ops++];
        cleanup_free char *where = xasprintf("operations[%zu]", i);
        if (!json_is_object(o))
            return rpc_bad_params(s->call, err, "%s must be an object", where);
        if (!(op->id = rpc_need_str(s->call, o, "operationId", err)))
            return error_prefix(err, "%s", where);
        if (!json_is_array(files))
            return rpc_bad_params(s->call, err, "%s: files must be an array", where);
        op->files = xcalloc(json_array_size(files) + 1, sizeof *op->files);
        for (size_t k = 0; k < json_array_size(files); k++) {
            cleanup_free char *at = xasprintf("%s.files[%zu]", where, k);
            if (!read_mapping(s, json_array_get(files, k), at, &op->files[op->n_files++], err))
                return false;
        }
        if (!read_commands(s, o, where, op, err))
            return false;
    }
    return true;
}

/* ---- work ---- */

/* What came out of the sandbox earlier in this call may hold links: a later target in it must not
 * be led out by one. The outermost such folder is where links stop being followed. */
static void confine(struct sync *s)
{
    for (size_t i = 0; i < s->n_ops; i++) {
        for (size_t k = 0; k < s->ops[i].n_files; k++) {
            struct mapping *m = &s->ops[i].files[k];
            for (size_t a = 0; a <= i; a++) {
                for (size_t b = 0; b < (a == i ? k : s->ops[a].n_files); b++) {
                    const char *before = s->ops[a].files[b].target;
                    if (is_below(m->target, before) &&
                        (!m->item.inside || strlen(before) < strlen(m->item.inside)))
                        m->item.inside = before;
                }
            }
        }
    }
}

static bool move_files(struct sync *s, const struct operation *op, struct transfer_stats *stats,
                       struct error *err)
{
    cleanup_free struct transfer_item *items = xcalloc(op->n_files, sizeof *items);
    bool folders = false;
    int64_t left = deadline_left(s->deadline);

    for (size_t k = 0; k < op->n_files; k++) {
        items[k] = op->files[k].item;
        folders |= items[k].kind == TREE_DIR;
    }
    if (left <= 0)
        return error_set(err, ERR_TIMEOUT, "timed out: no time left for its files");
    struct transfer_opts opts = {
        .cancel = s->call->cancel,
        .timeout_ms = left,
        /* A VM that was used before has most of it: compared by content, because equal times and
         * sizes prove nothing about archives unpacked with fixed times. */
        .checksum = s->in && folders && json_bool(s->metadata, "resumedLease"),
        .limits = s->limits,
    };
    return s->in ? transfer_push_items(s->link, items, op->n_files, &opts, stats, err)
                 : transfer_pull_items(s->link, items, op->n_files, &opts, stats, err);
}

/* The end of what the command said: errors come last. */
static char *tail(const struct command_result *r)
{
    cleanup_buf struct buf all = {0}, shown = {0};

    if (r->out.len)
        buf_put(&all, r->out.data, r->out.len);
    if (r->err.len)
        buf_put(&all, r->err.data, r->err.len);
    size_t from = all.len > MAX_OUTPUT ? all.len - MAX_OUTPUT : 0;
    while (all.len && (all.data[all.len - 1] == '\n'))
        all.len--;
    if (all.len > from)
        text_visible(&shown, all.data + from, all.len - from, MAX_OUTPUT);
    return xasprintf("%s%s%s", shown.len ? ": " : "", from && shown.len ? "..." : "",
                     shown.len ? shown.data : "");
}

static bool run_command(struct sync *s, const json_t *c, struct error *err)
{
    __attribute__((cleanup(command_result_free))) struct command_result r = {0};
    const char *shell = json_str(s->metadata, "shellCommand"), *cwd = json_str(c, "cwd");
    const char *const argv[] = {shell && strcmp(shell, "bash") == 0 ? "bash" : "sh", "-c",
                                json_str(c, "command"), NULL};
    int64_t timeout = json_int(c, "timeoutMs", 0), left = deadline_left(s->deadline);

    if (left <= 0)
        return error_set(err, ERR_TIMEOUT, "timed out before it began");
    struct command_spec spec = {
        .argv = argv,
        .cwd = cwd ? cwd : json_str(s->metadata, "remoteCwd"),
        .login_env = true,
        .text = true,
        .collect = true,
        .cap = 1 << 20,
        .timeout_ms = timeout > 0 && timeout < left ? timeout : left,
    };
    if (!command_run(s->link, &spec, s->call->cancel, &r, err))
        return false;
    cleanup_free char *said = tail(&r);
    if (r.transport)
        return error_set(err, r.transport, "%s", r.advice ? r.advice : "the connection failed");
    if (r.cancelled)
        return error_set(err, ERR_CANCELLED, "it was cancelled");
    if (r.timed_out)
        return error_set(err, ERR_TIMEOUT, "it timed out after %lld ms%s",
                         (long long)spec.timeout_ms, said);
    if (r.exit_code != 0)
        return error_set(err, ERR_SYSTEM, "it exited with %d%s%s%s", r.exit_code,
                         r.signal[0] ? ", " : "", r.signal, said);
    return true;
}

static bool run_operation(struct sync *s, const struct operation *op, json_t *results,
                          struct error *err)
{
    struct transfer_stats stats = {0};

    if (op->n_files && !move_files(s, op, &stats, err))
        return error_prefix(err, "operation %s", op->id);
    for (size_t i = 0; i < json_array_size(op->commands); i++) {
        if (!run_command(s, json_array_get(op->commands, i), err))
            return error_prefix(err, "operation %s: postUploadCommands[%zu]", op->id, i);
    }
    json_array_append_new(results,
                          json_pack("{s:s, s:I, s:I}", "operationId", op->id, "filesTransferred",
                                    (json_int_t)stats.files + (json_int_t)stats.same,
                                    "bytesTransferred", (json_int_t)stats.bytes));
    return true;
}

static bool run_sync(struct call *c, bool in, struct buf *result, struct error *err)
{
    __attribute__((cleanup(sync_free))) struct sync s = {.call = c, .in = in};
    const char *id;

    if (!rpc_lease(c, &id, &s.metadata, err) || !read_operations(&s, err))
        return false;
    if (!id || !*id)
        return rpc_bad_params(c, err, "there is no lease to sync with (no providerLeaseId)");
    cleanup_config struct config *cfg = rpc_config(c, err);
    if (!cfg)
        return false;
    if (!in) {
        confine(&s);
        s.limits = (struct tree_limits){.entries = (uint64_t)cfg->sync_max_entries,
                                        .bytes = (uint64_t)cfg->sync_max_bytes};
    }
    /* The host gives up 30 s after this. */
    s.deadline = deadline_in(cfg->timeout_ms);
    s.link = lease_link(cfg, id, s.metadata, c->cancel, err);
    if (!s.link)
        return false;
    cleanup_json json_t *results = json_array();
    bool ok = true;
    for (size_t i = 0; ok && i < s.n_ops; i++)
        ok = run_operation(&s, &s.ops[i], results, err);
    lease_link_done(s.link, c->cancel);
    return ok && rpc_result(result, json_pack("{s:O}", "operations", results));
}

bool rpc_env_sync_in(struct call *c, struct buf *result, struct error *err)
{
    return run_sync(c, true, result, err);
}

bool rpc_env_sync_out(struct call *c, struct buf *result, struct error *err)
{
    return run_sync(c, false, result, err);
}
