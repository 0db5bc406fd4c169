/* exedev gc: what carries our mark, and who needs it. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/config.h"
#include "lib/lease.h"
#include "lib/token.h"

CMD(gc);

static void print_list(const struct gc_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        const struct gc_item *g = &l->list[i];
        cleanup_free char *age =
            g->since ? text_duration_ms(((long long)time(NULL) - g->since) * 1000) : NULL;
        printf("%-7s %-40s %-14s %s\n", g->remove ? "remove" : "keep", g->name,
               age ? age : "age unknown", gc_why_text(g->why));
    }
}

static json_t *as_json(const struct gc_list *l)
{
    json_t *all = json_array();

    for (size_t i = 0; i < l->n; i++) {
        const struct gc_item *g = &l->list[i];
        json_t *item = json_pack("{s:s, s:s, s:b, s:b, s:s*, s:s*, s:s*}", "name", g->name, "why",
                                 gc_why_text(g->why), "remove", g->remove, "removed", g->removed,
                                 "kind", g->kind, "environmentId", g->env_id, "runId", g->run_id);
        if (g->since)
            json_object_set_new(item, "since", json_integer(g->since));
        json_array_append_new(all, item);
    }
    return all;
}

static size_t to_remove(const struct gc_list *l)
{
    size_t n = 0;

    for (size_t i = 0; i < l->n; i++)
        n += l->list[i].remove;
    return n;
}

int cmd_gc(int argc, char **argv)
{
    bool dry = false, json = false, yes = false;
    const char *older = NULL;
    const struct cmd_option options[] = {
        {"older-than", 0, "AGE", "remove only what is known to be older: 24h, 7d, 90m", OPT_STRING,
         &older},
        {"dry-run", 'n', NULL, "list, remove nothing", OPT_FLAG, &dry},
        {"yes", 'y', NULL, "do not ask (asked is only on a terminal)", OPT_FLAG, &yes},
        {"json", 0, NULL, "print the list as JSON; does not ask", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options]",
        .about = "Lists the VMs that carry exedev's mark, says which are leases in use, kept for "
                 "reuse or templates, "
                 "and removes the others. A VM without the mark is never touched. What another "
                 "machine's exedev uses is "
                 "not known here: with several machines on one account, use --dry-run first.",
        .examples = "  exedev gc --dry-run\n  exedev gc --older-than 24h --yes",
        .settings = true,
    };
    struct gc_list l;
    cleanup_error struct error err = {0};
    int64_t seconds = 0;

    cmd_parse(argc, argv, options, &usage);
    if (older && !token_duration(older, &seconds, &err))
        return cmd_fail_err(&err);
    cleanup_config struct config *cfg = cmd_config();
    if (!cfg)
        return EXIT_USAGE;
    if (!lease_gc_list(cfg, seconds, &l, &err))
        return cmd_fail_err(&err);
    if (!json)
        print_list(&l);
    int status = EXIT_OK;
    size_t n = to_remove(&l);
    /* In a cron job there is nobody to ask, and it was started for this. */
    bool ask = !dry && !yes && !json && n > 0 && isatty(STDIN_FILENO);
    if (ask && !cmd_confirm("Remove them?")) {
        dry = true;
        status = cmd_fail(EXIT_FAILED, "nothing was removed");
    }
    if (!dry && n > 0 && !lease_gc_remove(cfg, &l, &err))
        status = cmd_fail_err(&err);
    if (json) {
        cleanup_json json_t *all = as_json(&l);
        cmd_print_json(all);
    } else if (!dry && n > 0) {
        size_t done = 0;
        for (size_t i = 0; i < l.n; i++)
            done += l.list[i].removed;
        printf("%zu of %zu removed\n", done, n);
    }
    gc_list_clear(&l);
    return status;
}
