/* exedev validate: what Paperclip would say on saving these settings. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "cmd/cmd.h"
#include "lib/config.h"

CMD(validate);

#define FILE_MOST (1 << 20)

/* A raw config from a file or stdin, for configs that other tools write. */
static json_t *raw_from(const char *path, struct error *err)
{
    cleanup_secret_buf struct buf text = {0};

    if (strcmp(path, "-") ? !io_read_file(path, FILE_MOST, &text, err)
                          : !io_read_fd(STDIN_FILENO, "standard input", FILE_MOST, &text, err))
        return NULL;
    json_t *raw = json_parse(text.data ? text.data : (char *)"", text.len, err);
    if (!raw)
        error_prefix(err, "%s", path);
    return raw;
}

static json_t *problems_json(const struct problems *p, bool warnings)
{
    json_t *list = json_array();

    for (size_t i = 0; i < p->n; i++)
        if (p->list[i].warning == warnings)
            json_array_append_new(list, json_pack("{s:s?, s:s}", "field", p->list[i].field,
                                                  "message", p->list[i].text));
    return list;
}

static void print(const struct problems *p, bool ok)
{
    bool color = cmd_color(STDOUT_FILENO);

    for (int warnings = 0; warnings < 2; warnings++)
        for (size_t i = 0; i < p->n; i++)
            if (p->list[i].warning == warnings)
                printf("%s%s%s  %s\n", color ? warnings ? "\033[33m" : "\033[31m" : "",
                       warnings ? "warning" : "error  ", color ? "\033[0m" : "", p->list[i].text);
    printf(ok ? "The settings are good.\n" : "The settings cannot be used as they are.\n");
}

int cmd_validate(int argc, char **argv)
{
    bool json = false, offline = false;
    const struct cmd_option options[] = {
        {"json", 0, NULL, "print errors, warnings and the normalised settings (no secrets) as JSON",
         OPT_FLAG, &json},
        {"offline", 0, NULL,
         "start no program: a private key's form is checked, not whether it decodes", OPT_FLAG,
         &offline},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] [FILE]",
        .about = "Checks the settings at hand, or those of a JSON file (- for standard input), as "
                 "Paperclip has them "
                 "checked when an environment is saved: every problem at once, with its remedy. "
                 "Calls nobody and makes "
                 "no VM.",
        .examples = "  exedev validate\n  exedev validate --environment staging\n  exedev validate "
                    "config.json --json",
        .settings = true,
        .max = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    cleanup_error struct error err = {0};
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *raw = i < argc ? raw_from(argv[i], &err) : cmd_settings();

    if (!raw)
        return i < argc ? cmd_fail(EXIT_USAGE, "%s", err.msg) : EXIT_USAGE;
    cleanup_json json_t *normal = config_validate(raw, offline ? CONFIG_OFFLINE : 0, &p);
    if (!json) {
        print(&p, normal != NULL);
        return normal ? EXIT_OK : EXIT_FAILED;
    }
    for (const struct config_field *f = config_fields; normal && f->key; f++)
        if (f->secret && json_is_string(json_object_get(normal, f->key)))
            json_object_set_new(normal, f->key, json_string("[set]"));
    cleanup_json json_t *all = json_object();
    json_object_set_new(all, "ok", json_boolean(normal));
    json_object_set_new(all, "errors", problems_json(&p, false));
    json_object_set_new(all, "warnings", problems_json(&p, true));
    if (normal)
        json_object_set(all, "normalizedConfig", normal);
    cmd_print_json(all);
    return normal ? EXIT_OK : EXIT_FAILED;
}
