/* exedev: a table of subcommands, each a file in src/cmd. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "cmd/cmd.h"
#include "lib/secret.h"

CMD(__complete);
CMD(completion);
CMD(config_file);
CMD(configure);
CMD(doctor);
CMD(exec);
CMD(gc);
CMD(help);
CMD(ls);
CMD(probe);
CMD(pull);
CMD(push);
CMD(rm);
CMD(run);
CMD(shell);
CMD(template);
CMD(token);
CMD(validate);
CMD(version);
CMD(worker);

const struct cmd commands[] = {
    {"run", "Work", "run a command on a fresh VM with this folder on it", cmd_run},
    {"exec", "Work", "run a command on a VM", cmd_exec},
    {"shell", "Work", "open a shell on a VM", cmd_shell},
    {"push", "Work", "copy files to a VM", cmd_push},
    {"pull", "Work", "copy files from a VM", cmd_pull},
    {"ls", "VMs", "list VMs", cmd_ls},
    {"rm", "VMs", "delete VMs", cmd_rm},
    {"gc", "VMs", "remove VMs that were left behind", cmd_gc},
    {"template", "VMs", "make and keep VMs that others are copied from", cmd_template},
    {"validate", "Settings", "check the settings, as Paperclip does when saving", cmd_validate},
    {"token", "Settings", "explain or make an exe.dev token", cmd_token},
    {"probe", "Settings", "make a VM, enter it, delete it", cmd_probe},
    {"configure", "Settings", "edit the saved settings in a browser or the terminal",
     cmd_configure},
    {"config", "Settings", "read and change saved settings", cmd_config_file},
    {"doctor", "Settings", "check this machine, the settings and the account", cmd_doctor},
    {"worker", "Paperclip", "serve Paperclip's plugin contract on stdin and stdout", cmd_worker},
    {"completion", "Help", "print a shell's completion script", cmd_completion},
    {"__complete", NULL, NULL, cmd___complete},
    {"help", "Help", "explain a subcommand, or the settings", cmd_help},
    {"version", "Help", "print the version", cmd_version},
    {0},
};

static int unknown(const char *word)
{
    size_t n = 0;

    while (commands[n].name)
        n++;
    cleanup_free const char **names = xcalloc(n + 1, sizeof *names);
    for (size_t i = 0; i < n; i++)
        names[i] = commands[i].name;
    const char *near = cmd_nearest(word, names);
    fprintf(stderr, "exedev: there is no subcommand '%s'%s%s%s\nTry `exedev help`.\n", word,
            near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    return EXIT_USAGE;
}

/* A standard stream that is closed must not become the first file that is opened. */
static void fill_standard_streams(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd >= 0)
        close(fd);
}

/* What could not be written is a failure, but not to a reader that has gone: it has what it wants.
 */
static void finish_stdout(void)
{
    bool failed = ferror(stdout);

    errno = 0;
    if ((fflush(stdout) == 0 && !failed) || errno == EPIPE)
        return;
    cmd_fail(EXIT_FAILED, "write to standard output: %s",
             errno ? strerror(errno) : "some of it could not be written");
    _exit(EXIT_FAILED);
}

int main(int argc, char **argv)
{
    fill_standard_streams();
    atexit(finish_stdout);
    /* Secrets live in this process: no core dump of it, whatever the user's limit. */
    secret_protect_process();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is an error of write, told where it happens */
    cmd_log_to_stderr();
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return cmd_help(1, (char *[]){(char *)"help", NULL}) | (argc < 2 ? EXIT_USAGE : 0);
    if (strcmp(argv[1], "--version") == 0)
        return cmd_version(1, (char *[]){(char *)"version", NULL});
    for (const struct cmd *c = commands; c->name; c++) {
        if (strcmp(c->name, argv[1]) == 0)
            return c->run(argc - 1, argv + 1);
    }
    return unknown(argv[1]);
}
