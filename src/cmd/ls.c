/* exedev ls [PATTERN]: the account's VMs. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/api.h"
#include "lib/config.h"
#include "lib/name.h"

CMD(ls);

static json_t *to_json(const struct record *r)
{
    json_t *o =
        json_pack("{s:s, s:s, s:s, s:s?, s:s?, s:s?, s:s?, s:s?}", "name", r->vm_name, "sshHost",
                  r->ssh_host, "sshDest", r->ssh_dest, "sshUser", r->ssh_user, "status", r->status,
                  "region", r->region, "httpsUrl", r->https_url, "comment", r->comment);

    if (r->tags)
        json_object_set(o, "tags", r->tags);
    json_object_set_new(o, "ours", json_boolean(record_has_tag(r, MARK_TAG) == RECORD_TAG_YES));
    return o;
}

/* What a server says is not for the terminal as it is: it could hold escape sequences. */
static void cell(const char *text, int width)
{
    cleanup_buf struct buf b = {0};

    if (!text)
        text = "-";
    text_visible(&b, text, strlen(text), 200);
    printf("%-*s ", width, b.len ? b.data : "-");
}

int cmd_ls(int argc, char **argv)
{
    bool json = false, ours = false, quiet = false;
    const struct cmd_option options[] = {
        {"json", 0, NULL, "print an array of records", OPT_FLAG, &json},
        {"ours", 0, NULL, "only VMs that exedev made (they carry the tag " MARK_TAG ")", OPT_FLAG,
         &ours},
        {"quiet", 'q', NULL, "names only, one a line", OPT_FLAG, &quiet},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] [PATTERN]",
        .about = "Lists the VMs of the account, or those whose name matches a shell pattern.",
        .examples = "  exedev ls\n  exedev ls 'ci-*' --json",
        .settings = true,
        .max = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    const char *pattern = i < argc ? argv[i] : NULL;
    cleanup_error struct error err = {0};
    cleanup_config struct config *cfg = cmd_config();

    if (!cfg)
        return EXIT_USAGE;
    cleanup_api struct api *api = api_new(cfg, &err);
    cleanup_records struct records all = {0};
    if (!api || !api_ls(api, NULL, deadline_in(60000), &all, &err))
        return cmd_fail_err(&err);

    cleanup_json json_t *list = json_array();
    size_t width = 4, shown = 0;
    for (size_t k = 0; k < all.n; k++)
        width = strlen(all.list[k].vm_name) > width ? strlen(all.list[k].vm_name) : width;
    for (size_t k = 0; k < all.n; k++) {
        const struct record *r = &all.list[k];
        if ((pattern && fnmatch(pattern, r->vm_name, 0) != 0) ||
            (ours && record_has_tag(r, MARK_TAG) != RECORD_TAG_YES))
            continue;
        if (json) {
            json_array_append_new(list, to_json(r));
            continue;
        }
        if (quiet) {
            printf("%s\n", r->vm_name);
            continue;
        }
        if (!shown++)
            printf("%-*s %-9s %-18s %s\n", (int)width, "NAME", "STATUS", "REGION", "ADDRESS");
        cell(r->vm_name, (int)width);
        cell(r->status, 9);
        cell(r->region_display ? r->region_display : r->region, 18);
        cell(r->ssh_dest, 0);
        putchar('\n');
    }
    if (json)
        cmd_print_json(list);
    else if (!shown && !quiet)
        fprintf(stderr, "no VMs%s%s\n", pattern ? " match " : "", pattern ? pattern : "");
    return EXIT_OK;
}
