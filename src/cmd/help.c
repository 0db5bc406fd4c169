/* exedev help [SUBCOMMAND|settings], exedev version */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "lib/config.h"
#include "version.h"

CMD(help);
CMD(version);

static void list_commands(void)
{
    const char *group = NULL;

    printf("usage: exedev SUBCOMMAND [options]\n\n"
           "Machines on exe.dev: run commands on a fresh VM, move files, clean up.\n");
    for (const struct cmd *c = commands; c->name; c++) {
        if (!c->group)
            continue;
        if (!group || strcmp(group, c->group) != 0)
            printf("\n%s\n", c->group);
        group = c->group;
        printf("  %-12s %s\n", c->name, c->summary);
    }
    printf(
        "\nExamples:\n"
        "  exedev run -- make test            a fresh VM, this folder on it, deleted afterwards\n"
        "  exedev exec my-vm -- uname -a      a command on a VM that is there\n"
        "\n`exedev SUBCOMMAND --help` explains one; `man exedev` tells all.\n");
}

static void list_settings(void)
{
    const char *group = "";

    printf("Every setting is an option of the subcommands that talk to exe.dev (--FLAG VALUE), a "
           "variable\n"
           "(EXEDEV_FLAG, upper case, hyphens as _), and a member of the saved environments "
           "(exedev configure).\n"
           "Options win over variables, variables over what is saved.\n");
    for (const struct config_field *f = config_fields; f->key; f++) {
        const char *of = f->group ? f->group : "Essential";
        if (strcmp(group, of) != 0)
            printf("\n%s\n", of);
        group = of;
        if (f->secret || f->type == FIELD_MAP)
            printf("  %s%s%s%s\n", f->key, f->secret ? " (secret: not an option)" : " (--set ",
                   f->secret ? "" : f->key, f->secret ? "" : ".NAME=VALUE)");
        else
            printf("  --%s%s%s%s\n", f->flag, f->type == FIELD_FLAG ? "" : " VALUE",
                   f->fallback ? ", default " : "", f->fallback ? f->fallback : "");
        printf("      %s\n", f->text);
    }
}

int cmd_help(int argc, char **argv)
{
    static const struct cmd_option options[] = {{0}};
    static const struct cmd_usage usage = {
        .synopsis = "[SUBCOMMAND|settings]",
        .about = "Explains a subcommand or lists the settings; without one, lists the subcommands.",
        .examples = "  exedev help run\n  exedev help settings",
        .max = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);

    if (i == argc) {
        list_commands();
        return EXIT_OK;
    }
    if (strcmp(argv[i], "settings") == 0) {
        cmd_pager();
        list_settings();
        cmd_pager_end();
        return EXIT_OK;
    }
    for (const struct cmd *c = commands; c->name; c++) {
        if (strcmp(c->name, argv[i]) == 0)
            return c->run(2, (char *[]){argv[i], (char *)"--help", NULL});
    }
    return cmd_fail(EXIT_USAGE, "there is no subcommand '%s'; `exedev help` lists them", argv[i]);
}

int cmd_version(int argc, char **argv)
{
    static const struct cmd_option options[] = {{0}};
    static const struct cmd_usage usage = {
        .synopsis = "", .about = "Prints the version.", .examples = "  exedev version"};

    cmd_parse(argc, argv, options, &usage);
    printf("exedev " EXEDEV_VERSION "\n");
    return EXIT_OK;
}
