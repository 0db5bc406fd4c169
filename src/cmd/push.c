/* exedev push LOCAL... VM:PATH, exedev pull VM:PATH... LOCAL */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/interrupt.h"
#include "cmd/progress.h"
#include "cmd/target.h"
#include "lib/lease.h"
#include "lib/transfer.h"

CMD(push);
CMD(pull);

struct copy {
    bool push, json, quiet, replace;
    struct transfer_opts opts;
    struct cmd_list exclude;
    char *vm;
    struct transfer_item *items;
    size_t n;
    struct progress *progress;
    json_t *listed; /* --json with --dry-run: what would be done */
};

/* "VM:PATH"; NULL for a path of this machine. As with scp a slash before the colon makes it local.
 */
static const char *remote_part(const char *arg, char **vm)
{
    const char *colon = strchr(arg, ':'), *slash = strchr(arg, '/');

    if (!colon || colon == arg || (slash && slash < colon))
        return NULL;
    free(*vm);
    *vm = xstrndup(arg, (size_t)(colon - arg));
    return colon + 1;
}

/* The name that a source takes in an existing folder; NULL (its content goes there, as with rsync)
 * for one that ends in a slash or has no name of its own. Owned. */
static char *own_name(const char *path)
{
    const char *last = strrchr(path, '/');

    last = last ? last + 1 : path;
    return !*last || strcmp(last, ".") == 0 || strcmp(last, "..") == 0 || strcmp(path, "~") == 0
               ? NULL
               : xstrdup(last);
}

static int wrong(const char *arg, const char *why)
{
    cleanup_buf struct buf shown = {0};

    text_visible(&shown, arg, strlen(arg), 200);
    return cmd_fail(EXIT_USAGE, "'%s' %s", shown.data ? shown.data : "", why);
}

static int read_paths(struct copy *c, int n, char **argv)
{
    const char *last = argv[n - 1], *target = c->push ? remote_part(last, &c->vm) : last;
    cleanup_free char *other = NULL;

    if (c->push && !target)
        return wrong(last, "is on this machine; the last path is where the files go: VM:PATH");
    if (!c->push && remote_part(last, &other))
        return wrong(
            last,
            "is on a VM; the last path is where the files go, on this machine (./NAME for a name "
            "with a colon)");
    c->n = (size_t)n - 1;
    c->items = xcalloc(c->n, sizeof *c->items);
    for (size_t i = 0; i < c->n; i++) {
        cleanup_free char *vm = NULL;
        const char *path = remote_part(argv[i], &vm);
        if (c->push && path)
            return wrong(
                argv[i],
                "is on a VM: push copies from this machine (./NAME for a name with a colon)");
        if (!c->push && !path)
            return wrong(argv[i], "names no VM: pull copies from VM:PATH");
        if (!c->push && c->vm && strcmp(c->vm, vm) != 0)
            return wrong(argv[i], "is on another VM than the path before it: one VM at a time");
        if (!c->push && !c->vm)
            c->vm = steal_ptr(vm);
        const char *source = c->push ? argv[i] : path;
        c->items[i] = (struct transfer_item){
            .local = c->push ? argv[i] : target,
            .remote = c->push ? target : path,
            .mode = -1,
            .into = own_name(source),
            .follow = c->opts.follow,
            .exclude = c->exclude.items,
            .n_exclude = (size_t)c->exclude.n,
        };
    }
    return EXIT_OK;
}

static const char *note_word(enum tree_note note, bool dry_run)
{
    switch (note) {
    case TREE_ENTRY:
        return dry_run ? "copy" : NULL;
    case TREE_DELETED:
        return dry_run ? "delete" : NULL;
    case TREE_VANISHED:
        return "vanished";
    case TREE_CHANGED:
        return "changed while it was read";
    case TREE_SKIPPED:
        return "skipped (neither file, folder nor link)";
    case TREE_DANGLING:
        return "skipped (a link to nothing)";
    default:
        return NULL;
    }
}

static void on_entry(enum tree_note note, const char *path, void *arg)
{
    struct copy *c = arg;
    const char *word = note_word(note, c->opts.dry_run);

    if (!word)
        return;
    cleanup_buf struct buf shown = {0};
    text_visible(&shown, path, strlen(path), 4096);
    if (c->listed) {
        json_array_append_new(c->listed,
                              json_pack("{s:s, s:s}", "action", word, "path", shown.data));
        return;
    }
    if (note == TREE_ENTRY || note == TREE_DELETED) {
        if (!c->json && !c->quiet) {
            progress_quiet(c->progress);
            printf("%s %s\n", word, shown.data);
        }
        return;
    }
    progress_quiet(c->progress);
    fprintf(stderr, "exedev %s: %s: %s\n", cmd_name, shown.data, word);
}

static void on_progress(uint64_t moved, uint64_t done, uint64_t total, void *arg)
{
    struct copy *c = arg;

    progress_transfer(moved, done, total, c->progress);
}

static void summary(struct copy *c, const struct transfer_stats *s, int64_t ms)
{
    const char *would = c->opts.dry_run ? "would copy " : "";

    if (c->json) {
        cleanup_json json_t *o = json_pack(
            "{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "vm", c->vm,
            "dryRun", c->opts.dry_run, "entries", (json_int_t)s->entries, "files",
            (json_int_t)s->files, "bytes", (json_int_t)s->bytes, "unchanged", (json_int_t)s->same,
            "deleted", (json_int_t)s->deleted, "vanished", (json_int_t)s->vanished, "changed",
            (json_int_t)s->changed, "skipped", (json_int_t)s->skipped, "strippedModes",
            (json_int_t)s->stripped, "splitHardLinks", (json_int_t)s->split, "ms", (json_int_t)ms);
        if (c->listed)
            json_object_set(o, "actions", c->listed);
        cmd_print_json(o);
        return;
    }
    cleanup_free char *amount = progress_amount(s->files, s->bytes),
                      *rate = text_bytes(ms ? s->bytes * 1000 / (uint64_t)ms : s->bytes);
    cleanup_buf struct buf text = {0};
    buf_printf(&text, "%s%s", would, amount);
    if (!c->opts.dry_run)
        buf_printf(&text, ", %s/s", rate);
    if (s->same)
        buf_printf(&text, "; %llu unchanged", (unsigned long long)s->same);
    if (s->deleted)
        buf_printf(&text, "; %llu %sdeleted", (unsigned long long)s->deleted,
                   c->opts.dry_run ? "would be " : "");
    if (s->stripped)
        buf_printf(&text, "; setuid, setgid or sticky bits of %llu not taken over",
                   (unsigned long long)s->stripped);
    if (s->split)
        buf_printf(&text, "; %llu hard links became files of their own",
                   (unsigned long long)s->split);
    progress_step(c->progress, cmd_name, text.data, ms, true);
}

static bool transfer(struct copy *c, const struct config *cfg, struct error *err)
{
    struct transfer_stats stats = {0};
    struct link *l = target_link(cfg, c->vm, err);

    if (!l)
        return false;
    int64_t start = now_ms();
    progress_begin(c->progress, cmd_name, c->vm);
    bool ok = c->push ? transfer_push_items(l, c->items, c->n, &c->opts, &stats, err)
                      : transfer_pull_items(l, c->items, c->n, &c->opts, &stats, err);
    progress_quiet(c->progress);
    lease_link_done(l, NULL);
    if (ok)
        summary(c, &stats, now_ms() - start);
    return ok;
}

static int run_copy(struct copy *c)
{
    cleanup_error struct error err = {0};
    cleanup_config struct config *cfg = cmd_config();

    if (!cfg)
        return EXIT_USAGE;
    interrupts_block();
    c->opts.cancel = cancel_new();
    c->progress = progress_new(c->quiet, c->json);
    if (c->json && c->opts.dry_run)
        c->listed = json_array();
    c->opts.entry = on_entry;
    /* Where every entry is listed, a bar between the lines would tell nothing. */
    bool bar = !c->quiet && !c->json && !c->opts.dry_run && isatty(STDERR_FILENO);
    c->opts.progress = bar ? on_progress : NULL;
    c->opts.progress_arg = c;
    c->opts.merge = !c->replace;
    /* A transfer that is stopped removes what it had begun. */
    pthread_t interrupts = interrupts_start(c->opts.cancel, NULL);
    bool ok = transfer(c, cfg, &err);
    int sig = interrupts_stop(interrupts);
    link_close_all(2000);
    int status = EXIT_OK;
    if (!ok && sig)
        status = cmd_fail(128 + sig,
                          "interrupted: each file is as it was before or whole, nothing unfinished "
                          "is left");
    else if (!ok)
        status = cmd_fail_err(&err);
    progress_free(c->progress);
    json_decref(c->listed);
    cancel_unref(c->opts.cancel);
    return status;
}

static int copy_main(int argc, char **argv, bool push)
{
    struct copy c = {.push = push};
    long long max_entries = 0, max_bytes = 0;
    const struct cmd_option options[] = {
        {"update", 'u', NULL, "copy only files whose size or time differs", OPT_FLAG,
         &c.opts.update},
        {"checksum", 'c', NULL, "copy only files whose size or content differs", OPT_FLAG,
         &c.opts.checksum},
        {"delete", 0, NULL,
         "delete at the target what the source does not have (excluded files apart)", OPT_FLAG,
         &c.opts.remove},
        {"replace", 0, NULL, "replace a folder as a whole, at once, instead of copying into it",
         OPT_FLAG, &c.replace},
        {"exclude", 'x', "GLOB", "leave these files out, as tar --exclude does (may be repeated)",
         OPT_LIST, &c.exclude},
        {"follow", 'L', NULL, "copy what symbolic links lead to", OPT_FLAG, &c.opts.follow},
        {"dry-run", 'n', NULL, "say what would be done, write nothing", OPT_FLAG, &c.opts.dry_run},
        {"quiet", 'q', NULL, "no progress, no summary", OPT_FLAG, &c.quiet},
        {"json", 0, NULL, "print a summary as JSON", OPT_FLAG, &c.json},
        /* From here on for pull alone, whose other side is not trusted: NULL ends the list. */
        {push ? NULL : "refuse-case", 0, NULL, "fail on names in a folder that differ only by case",
         OPT_FLAG, &c.opts.refuse_case},
        {"max-entries", 0, "N", "fail on more files and folders than this (10 million)", OPT_INT,
         &max_entries},
        {"max-bytes", 0, "N", "fail on more bytes than this (1 TiB)", OPT_INT, &max_bytes},
        {0},
    };
    static const struct cmd_usage push_usage = {
        .synopsis = "[options] LOCAL... VM:[PATH]",
        .about = "Copies files and folders to a VM. A PATH without a leading slash is in the home "
                 "directory. As with\n"
                 "scp, a source goes into PATH when that is an existing folder (or ends in a "
                 "slash), else it becomes\n"
                 "PATH; a source that ends in a slash, or is `.`, gives its content.",
        .examples = "  exedev push report.csv my-vm:\n"
                    "  exedev push --update --delete -x node_modules ./ my-vm:project",
        .settings = true,
        .min = 2,
        .max = -1,
    };
    static const struct cmd_usage pull_usage = {
        .synopsis = "[options] VM:PATH... LOCAL",
        .about =
            "Copies files and folders from a VM. Nothing it sends is trusted: names cannot lead "
            "out of the target,\n"
            "links are not followed, setuid bits stay behind. Where things go: as `exedev push`.",
        .examples = "  exedev pull my-vm:project/build ./build\n"
                    "  exedev pull --update my-vm:results/ results",
        .settings = true,
        .min = 2,
        .max = -1,
    };
    int i = cmd_parse(argc, argv, options, push ? &push_usage : &pull_usage);

    if (c.opts.remove && c.replace)
        return cmd_fail(EXIT_USAGE,
                        "--replace leaves nothing of the old folder: --delete adds nothing to it");
    if (max_entries < 0 || max_bytes < 0)
        return cmd_fail(EXIT_USAGE, "--max-entries and --max-bytes take numbers from 1");
    c.opts.limits =
        (struct tree_limits){.entries = (uint64_t)max_entries, .bytes = (uint64_t)max_bytes};
    int status = read_paths(&c, argc - i, argv + i);
    if (status == EXIT_OK)
        status = run_copy(&c);
    for (size_t k = 0; k < c.n && c.items; k++)
        free((void *)(uintptr_t)c.items[k].into);
    free(c.items);
    free(c.vm);
    return status;
}

int cmd_push(int argc, char **argv)
{
    return copy_main(argc, argv, true);
}

int cmd_pull(int argc, char **argv)
{
    return copy_main(argc, argv, false);
}
