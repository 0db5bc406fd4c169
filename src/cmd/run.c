/* exedev run -- COMMAND...: the whole job on a fresh VM. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/interrupt.h"
#include "cmd/progress.h"
#include "cmd/remote.h"
#include "lib/config.h"
#include "lib/lease.h"
#include "lib/transfer.h"

CMD(run);

struct run {
    struct config *cfg;
    struct progress *progress;
    struct cancel *cancel;
    struct lease_result lease;
    struct link *link;
    const char *remote_dir;
    struct cmd_list pull, exclude;
    const char *name, *dir;
    bool keep, no_push, no_pull, tty;
};

static pthread_t watch(struct run *r)
{
    return interrupts_start(r->cancel, "cleaning up first, so that no VM is left behind");
}

/* A home folder or a whole file system is hardly what somebody means to copy to a VM. */
static bool check_folder(struct error *err)
{
    struct stat here, other;
    cleanup_free char *home = config_home();

    if (stat(".", &here) < 0)
        return error_sys(err, errno, "the working directory");
    if ((stat("/", &other) == 0 && other.st_dev == here.st_dev && other.st_ino == here.st_ino) ||
        (home && stat(home, &other) == 0 && other.st_dev == here.st_dev &&
         other.st_ino == here.st_ino))
        return error_set(
            err, ERR_INVALID,
            "this would copy all of your home folder or file system to the VM: change to the "
            "project's folder, or say --no-push");
    return true;
}

static void lease_step(const char *step, const char *text, long long ms, bool ok, void *arg)
{
    cleanup_free char *failed = ok ? NULL : xasprintf("failed: %s", text);

    progress_step(arg, step, ok ? text : failed, ms, ok);
}

static bool acquire(struct run *r, struct error *err)
{
    unsigned char random[4];
    char id[9];

    io_random(random, sizeof random);
    io_hex(random, sizeof random, id);
    struct lease_request req = {
        .environment_id = "run",
        .run_id = id,
        .name = r->name,
        .requested_cwd = r->dir,
        .progress = lease_step,
        .progress_arg = r->progress,
    };
    if (!lease_acquire(r->cfg, &req, r->cancel, &r->lease, err))
        return false;
    r->remote_dir = json_str(r->lease.metadata, "remoteCwd");
    r->link = lease_link(r->cfg, r->lease.id, r->lease.metadata, r->cancel, err);
    return r->link != NULL;
}

static bool push(struct run *r, struct error *err)
{
    struct transfer_opts opts = {
        .merge = true,
        .exclude = r->exclude.items,
        .n_exclude = (size_t)r->exclude.n,
        .cancel = r->cancel,
        .progress = progress_transfer,
        .progress_arg = r->progress,
    };
    struct transfer_stats stats = {0};
    int64_t start = now_ms();

    progress_begin(r->progress, "push", "this folder to the VM");
    if (!transfer_push(r->link, ".", r->remote_dir, &opts, &stats, err))
        return error_prefix(err, "copy this folder to the VM");
    cleanup_free char *amount = progress_amount(stats.files, stats.bytes);
    cleanup_free char *text = xasprintf("%s, to %s", amount, r->remote_dir);
    progress_step(r->progress, "push", text, now_ms() - start, true);
    return true;
}

/* Only what differs comes back; a file that the command deleted stays here, one that it made a
 * folder of is replaced. */
static bool pull_one(struct run *r, const char *path, struct transfer_stats *stats,
                     struct error *err)
{
    struct transfer_opts opts = {
        .merge = true,
        .update = true,
        .exclude = r->exclude.items,
        .n_exclude = (size_t)r->exclude.n,
        .cancel = r->cancel,
        .progress = progress_transfer,
        .progress_arg = r->progress,
    };
    cleanup_free char *remote = xasprintf("%s/%s", r->remote_dir, path);
    cleanup_error struct error why = {0};

    bool ok = transfer_pull(r->link, remote, path, &opts, stats, &why);
    opts.merge = false;
    if (!ok && why.code == ERR_EXISTS)
        ok = transfer_pull(r->link, remote, path, &opts, stats, err);
    else
        error_move(err, &why);
    if (!ok)
        return error_prefix(err, "copy %s back", path);
    return true;
}

static bool pull(struct run *r, struct error *err)
{
    struct transfer_stats stats = {0};
    int64_t start = now_ms();

    progress_begin(r->progress, "pull", "what changed");
    if (!r->pull.n && !pull_one(r, ".", &stats, err))
        return false;
    for (int i = 0; i < r->pull.n; i++) {
        if (!pull_one(r, r->pull.items[i], &stats, err))
            return false;
    }
    cleanup_free char *amount = progress_amount(stats.files, stats.bytes);
    progress_step(r->progress, "pull", amount, now_ms() - start, true);
    return true;
}

static bool release(struct run *r, struct error *err)
{
    enum receipt receipt = RECEIPT_NONE;
    int64_t start = now_ms();

    if (r->link)
        lease_link_done(r->link, r->cancel);
    r->link = NULL;
    if (!r->lease.id)
        return true;
    progress_begin(r->progress, r->keep ? "keep" : "delete", r->lease.id);
    if (!lease_release(r->cfg, r->lease.id, r->lease.metadata, r->keep, true, &receipt, err))
        return error_prefix(err, r->keep ? "leave %s" : "delete %s (exedev gc will try again)",
                            r->lease.id);
    cleanup_free char *kept =
        xasprintf("%s stays, and is billed, until: exedev rm %s", r->lease.id, r->lease.id);
    progress_step(r->progress, r->keep ? "keep" : "delete", r->keep ? kept : r->lease.id,
                  now_ms() - start, true);
    return true;
}

/* One path, so that the VM is released whatever happened before. */
static int whole_job(struct run *r, struct remote_spec *spec)
{
    cleanup_error struct error err = {0}, release_err = {0};
    int status = EXIT_FAILED;
    pthread_t interrupts = watch(r);
    bool ok = acquire(r, &err) && (r->no_push || push(r, &err));
    int sig = interrupts_stop(interrupts);

    if (ok) {
        int64_t start = now_ms();
        spec->cwd = r->remote_dir;
        progress_begin(r->progress, "run", spec->argv[0]);
        progress_quiet(r->progress);
        ok = remote_run(r->link, spec, &status, &err);
        cleanup_free char *text = xasprintf("exit status %d", status);
        if (ok)
            progress_step(r->progress, "run", text, now_ms() - start, status == 0);
        interrupts = watch(r);
        if (ok && !r->no_pull && !pull(r, &err)) {
            ok = false;
            status = status ? status : EXIT_FAILED;
        }
        sig = interrupts_stop(interrupts);
    }
    if (!ok) {
        int why = sig ? cmd_fail(128 + sig, "%s", err.msg) : cmd_fail_err(&err);
        status = status == EXIT_FAILED || status == 0 ? why : status;
    }
    interrupts = watch(r);
    if (!release(r, &release_err)) {
        cmd_fail_err(&release_err);
        status = status ? status : EXIT_FAILED;
    }
    interrupts_stop(interrupts);
    return status;
}

static bool paths_are_inside(const struct cmd_list *pull)
{
    for (int i = 0; i < pull->n; i++) {
        const char *p = pull->items[i];
        if (!*p || *p == '/' || strcmp(p, "..") == 0 || text_starts(p, "../") ||
            strstr(p, "/../") || text_ends(p, "/.."))
            return false;
    }
    return true;
}

int cmd_run(int argc, char **argv)
{
    struct run r = {0};
    struct cmd_list env = {0};
    bool json = false, quiet = false, no_tty = false, no_stdin = false;
    long long timeout = 0;
    const struct cmd_option options[] = {
        {"pull", 'p', "PATH", "bring back only this path of the folder (may be repeated)", OPT_LIST,
         &r.pull},
        {"no-push", 0, NULL, "do not copy this folder to the VM", OPT_FLAG, &r.no_push},
        {"no-pull", 0, NULL, "bring nothing back", OPT_FLAG, &r.no_pull},
        {"exclude", 'x', "GLOB",
         "leave these files out both ways, as tar --exclude does (may be repeated)", OPT_LIST,
         &r.exclude},
        {"env", 'e', "NAME=VALUE", "add to the command's environment (may be repeated)", OPT_LIST,
         &env},
        {"dir", 'C', "DIR", "the folder on the VM (else paperclip-workspace in the home directory)",
         OPT_STRING, &r.dir},
        {"name", 0, "NAME", "the VM's name (else one is made up)", OPT_STRING, &r.name},
        {"keep", 'k', NULL, "keep the VM afterwards", OPT_FLAG, &r.keep},
        {"timeout", 0, "SECONDS", "end the command after this time; the exit status is 124 then",
         OPT_INT, &timeout},
        {"no-tty", 'T', NULL, "no terminal for the command, even on a terminal", OPT_FLAG, &no_tty},
        {"no-stdin", 'n', NULL, "its stdin is empty", OPT_FLAG, &no_stdin},
        {"quiet", 'q', NULL, "no progress lines", OPT_FLAG, &quiet},
        {"json", 0, NULL, "progress as JSON lines on stderr", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] [--] COMMAND [ARGUMENT...]",
        .about = "Makes a VM, copies this folder to it, runs the command there with live output, "
                 "copies what\n"
                 "changed back, deletes the VM, and exits with the command's status.",
        .examples = "  exedev run -- make test\n"
                    "  exedev run --cpu 8 --pull build/report.html -x node_modules -- sh -c 'npm "
                    "ci && npm run report'",
        .settings = true,
        .min = 1,
        .max = -1,
        .command = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    cleanup_error struct error err = {0};

    struct remote_spec spec = {.argv = (const char *const *)argv + i, .no_stdin = no_stdin};
    int status = remote_options(&spec, &env, timeout);
    if (status != EXIT_OK)
        return status;
    if (!paths_are_inside(&r.pull))
        return cmd_fail(EXIT_USAGE, "--pull takes paths inside this folder, relative to it");
    if (r.name && !text_is_vm_name(r.name))
        return cmd_fail(EXIT_USAGE, "--name: '%s' is no VM name", r.name);
    if (!r.no_push && !check_folder(&err))
        return cmd_fail_err(&err);
    cleanup_config struct config *cfg = cmd_config();
    if (!cfg)
        return EXIT_USAGE;
    spec.tty = !no_tty && !no_stdin && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    spec.source_nvm = cfg->source_nvm;
    spec.durable = cfg->durable_commands;
    interrupts_block();
    r.cfg = cfg;
    r.cancel = cancel_new();
    r.progress = progress_new(quiet, json);
    status = whole_job(&r, &spec);
    lease_shutdown(1500);
    progress_free(r.progress);
    lease_result_free(&r.lease);
    cancel_unref(r.cancel);
    return status;
}
