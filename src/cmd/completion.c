/* exedev completion SHELL: what to source. exedev __complete WORD...: what the shells ask. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/api.h"
#include "lib/config.h"

CMD(completion);
CMD(__complete);

static const char bash_script[] =
    "_exedev() {\n"
    "    local IFS=$'\\n' cur=${COMP_WORDS[COMP_CWORD]} found\n"
    "    found=$(exedev __complete \"${COMP_WORDS[@]:1:COMP_CWORD}\" 2>/dev/null | cut -f1)\n"
    "    COMPREPLY=($(compgen -W \"$found\" -- \"$cur\"))\n"
    "    [[ ${COMPREPLY[0]} == *[=:] ]] && compopt -o nospace\n"
    "    return 0\n"
    "}\n"
    "complete -o default -F _exedev exedev\n";

static const char zsh_script[] =
    "#compdef exedev\n"
    "_exedev() {\n"
    "    local -a found\n"
    "    local line\n"
    "    for line in \"${(@f)$(exedev __complete \"${(@)words[2,CURRENT]}\" 2>/dev/null)}\"; do\n"
    "        [[ -n $line ]] && found+=(\"${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}\")\n"
    "    done\n"
    "    (( ${#found} )) && _describe exedev found || _files\n"
    "}\n"
    "compdef _exedev exedev\n";

static const char fish_script[] = "function __exedev_complete\n"
                                  "    set -l words (commandline -opc) (commandline -ct)\n"
                                  "    exedev __complete $words[2..-1] 2>/dev/null\n"
                                  "end\n"
                                  "complete -c exedev -a '(__exedev_complete)'\n";

int cmd_completion(int argc, char **argv)
{
    static const struct cmd_option options[] = {{0}};
    static const struct cmd_usage usage = {
        .synopsis = "bash|zsh|fish",
        .about = "Prints the completion script for a shell. It completes subcommands, options and "
                 "the names "
                 "of the account's VMs.",
        .examples = "  source <(exedev completion bash)\n"
                    "  exedev completion fish > ~/.config/fish/completions/exedev.fish",
        .min = 1,
        .max = 1,
    };
    const char *shell = argv[cmd_parse(argc, argv, options, &usage)];

    if (strcmp(shell, "bash") == 0)
        fputs(bash_script, stdout);
    else if (strcmp(shell, "zsh") == 0)
        fputs(zsh_script, stdout);
    else if (strcmp(shell, "fish") == 0)
        fputs(fish_script, stdout);
    else
        return cmd_fail(EXIT_USAGE, "there is a script for bash, zsh and fish, none for '%s'",
                        shell);
    return EXIT_OK;
}

static void vm_names(const char *after)
{
    cleanup_config struct config *cfg = cmd_config();
    cleanup_api struct api *api = cfg ? api_new(cfg, NULL) : NULL;
    cleanup_records struct records all = {0};

    /* A key was pressed and somebody waits: two seconds, then no names. */
    if (!api || !api_ls(api, NULL, deadline_in(2000), &all, NULL))
        return;
    for (size_t i = 0; i < all.n; i++)
        printf("%s%s\t%s\n", all.list[i].vm_name, after,
               all.list[i].region_display ? all.list[i].region_display : "VM");
}

int cmd___complete(int argc, char **argv)
{
    const char *word = argc > 1 ? argv[argc - 1] : "";
    const struct cmd *c = commands;

    cmd_name = "completion";
    /* Whatever goes wrong, nothing but candidates may appear on the line being edited. */
    if (!freopen("/dev/null", "w", stderr))
        return EXIT_FAILED;
    if (argc <= 2) {
        for (; c->name; c++) {
            if (c->group)
                printf("%s\t%s\n", c->name, c->summary);
        }
        return EXIT_OK;
    }
    for (int i = 2; i < argc - 1; i++) {
        if (strcmp(argv[i], "--") == 0) /* the remote command's own words */
            return EXIT_OK;
    }
    while (c->name && strcmp(c->name, argv[1]) != 0)
        c++;
    if (!c->name)
        return EXIT_OK;
    if (word[0] == '-')
        return c->run(2, (char *[]){argv[1], (char *)"--help-options", NULL});
    static const char *const take_vm[] = {"exec", "shell", "rm", "ls"};
    for (size_t i = 0; i < sizeof take_vm / sizeof *take_vm; i++) {
        if (strcmp(argv[1], take_vm[i]) == 0)
            vm_names("");
    }
    if (strcmp(argv[1], "push") == 0 || strcmp(argv[1], "pull") == 0)
        vm_names(":");
    if (strcmp(argv[1], "help") == 0) {
        for (c = commands; c->name; c++) {
            if (c->group)
                printf("%s\t%s\n", c->name, c->summary);
        }
    }
    return EXIT_OK;
}
