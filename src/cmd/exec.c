/* exedev exec VM -- COMMAND..., exedev shell VM */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "cmd/cmd.h"
#include "cmd/remote.h"
#include "cmd/target.h"
#include "lib/lease.h"

CMD(exec);
CMD(shell);

static int run_on(const char *vm, const struct remote_spec *spec)
{
    cleanup_error struct error err = {0};
    cleanup_config struct config *cfg = cmd_config();
    int status = EXIT_TRANSPORT;

    if (!cfg)
        return EXIT_USAGE;
    struct remote_spec all = *spec;
    all.source_nvm = cfg->source_nvm;
    all.durable = cfg->durable_commands;
    struct link *l = target_link(cfg, vm, &err);
    if (!l)
        return cmd_fail_err(&err);
    bool ok = remote_run(l, &all, &status, &err);
    lease_link_done(l, NULL);
    link_close_all(2000);
    if (!ok) {
        cmd_fail_err(&err);
        return EXIT_TRANSPORT;
    }
    return status;
}

int cmd_exec(int argc, char **argv)
{
    struct cmd_list env = {0};
    const char *cwd = NULL;
    long long timeout = 0;
    bool tty = false, no_stdin = false;
    const struct cmd_option options[] = {
        {"cwd", 'C', "DIR", "run it in this directory of the VM (else the home directory)",
         OPT_STRING, &cwd},
        {"env", 'e', "NAME=VALUE", "add to its environment (may be repeated)", OPT_LIST, &env},
        {"timeout", 0, "SECONDS", "end it after this time; the exit status is 124 then", OPT_INT,
         &timeout},
        {"tty", 't', NULL, "give it a terminal", OPT_FLAG, &tty},
        {"no-stdin", 'n', NULL, "its stdin is empty", OPT_FLAG, &no_stdin},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] VM [--] COMMAND [ARGUMENT...]",
        .about = "Runs a command on a VM, with the VM's login environment, this stdin, stdout and "
                 "stderr, byte\n"
                 "for byte. The exit status is the command's; 255 when SSH failed under it.",
        .examples = "  exedev exec my-vm -- uname -a\n"
                    "  tar c src | exedev exec -C /srv my-vm -- tar x",
        .settings = true,
        .min = 2,
        .max = -1,
        .command = 2,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    const char *vm = argv[i++];

    struct remote_spec spec = {
        .argv = (const char *const *)argv + i, .cwd = cwd, .tty = tty, .no_stdin = no_stdin};
    int status = remote_options(&spec, &env, timeout);
    if (status != EXIT_OK)
        return status;
    if (tty && !isatty(STDIN_FILENO))
        return cmd_fail(EXIT_USAGE, "--tty: stdin is not a terminal");
    return run_on(vm, &spec);
}

int cmd_shell(int argc, char **argv)
{
    const char *cwd = NULL;
    const struct cmd_option options[] = {
        {"cwd", 'C', "DIR", "start in this directory of the VM", OPT_STRING, &cwd},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] VM",
        .about = "Opens the login shell of a VM on this terminal.",
        .examples = "  exedev shell my-vm\n  exedev shell -C /srv my-vm",
        .settings = true,
        .min = 1,
        .max = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    static const char *const login[] = {"sh", "-c", "exec \"${SHELL:-/bin/sh}\" -l", NULL};

    if (!isatty(STDIN_FILENO))
        return cmd_fail(EXIT_USAGE, "stdin is not a terminal; for a script there is `exedev exec`");
    return run_on(argv[i], &(struct remote_spec){.argv = login, .cwd = cwd, .tty = true});
}
