/* exedev configure: the settings form in a browser, or its twin on the terminal. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"
#include "cmd/cmd.h"
#include "cmd/configure_cli.h"
#include "lib/form.h"
#include "lib/state.h"

CMD(configure);

static volatile sig_atomic_t wake_fd = -1;

static void wake(int sig)
{
    long long one = 1;
    int was = errno;
    ssize_t ignored = write(wake_fd, &one, sizeof one);

    (void)sig;
    (void)ignored;
    errno = was;
}

static bool set(const char *name)
{
    const char *value = getenv(name);

    return value && *value;
}

/* The URL holds the token, so it stays out of every argv (other users can read those): the browser
 * gets a file that leads on to it. Returns the file's path, to be removed. */
static char *open_browser(const char *url, struct error *err)
{
    cleanup_free char *name = xasprintf("configure-%d.html", (int)getpid());
    cleanup_free char *path = state_path(name, err);
    cleanup_free char *html = xasprintf(
        "<!doctype html><title>exedev</title><meta http-equiv=\"refresh\" content=\"0;url=%s\">"
        "<a href=\"%s\">exedev settings</a>\n",
        url, url);
    struct child child = {0};

    if (!path || !io_write_file(path, 0600, html, strlen(html), err))
        return NULL;
    const char *argv[] = {"xdg-open", path, NULL};
    if (!spawn_child(&(struct spawn_opts){.argv = argv,
                                          .fd0 = -1,
                                          .fd1 = -1,
                                          .fd2 = -1,
                                          .outlive = true,
                                          .new_session = true},
                     &child, err)) {
        unlink(path);
        return NULL;
    }
    child_free(&child);
    return steal_ptr(path);
}

static void tell_tunnel(int port)
{
    const char *user = getenv("USER"), *connection = getenv("SSH_CONNECTION");
    char host[256] = "";
    char there[256] = "";

    if (connection)
        sscanf(connection, "%*255s %*255s %255s", there);
    if (!*there && gethostname(host, sizeof host - 1) < 0)
        strcpy(host, "THIS-MACHINE");
    printf("\nThis machine has no display. From the computer you sit at, run\n\n"
           "    ssh -N -L %d:127.0.0.1:%d %s%s%s\n\n"
           "(the same port on both sides) and open the address there. Or use: exedev configure "
           "--cli\n",
           port, port, user ? user : "", user ? "@" : "", *there ? there : host);
}

static int serve(struct configfile *cf, bool browser, long long idle_s)
{
    cleanup_error struct error err = {0};
    struct form *form = form_start(cf, idle_s * 1000, &err);
    cleanup_free char *file = NULL;

    if (!form)
        return cmd_fail_err(&err);
    struct form_server *http = form_http(form);
    bool display = set("DISPLAY") || set("WAYLAND_DISPLAY");
    wake_fd = form_server_wake_fd(http);
    struct sigaction action = {.sa_handler = wake};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);

    printf("The settings form is at (this address works once, for one browser)\n\n    %s\n",
           form_server_url(http));
    if (!display)
        tell_tunnel(form_server_port(http));
    else if (browser && !(file = open_browser(form_server_url(http), &err)))
        printf("\nNo browser could be started (%s): open the address yourself.\n", err.msg);
    printf("\nIt ends with the Done button, with Ctrl-C, or after %lld minutes without use.\n",
           (idle_s + 59) / 60);
    fflush(stdout);

    bool asked = form_server_wait(http);
    if (file)
        unlink(file);
    puts(asked ? "Ended." : "Ended: nobody used it for a while.");
    fflush(stdout);
    form_free(form);
    return EXIT_OK;
}

int cmd_configure(int argc, char **argv)
{
    bool cli = false, no_browser = false;
    long long idle = 1800;
    const char *environment = NULL;
    const struct cmd_option options[] = {
        {"cli", 0, NULL, "ask on the terminal instead", OPT_FLAG, &cli},
        {"environment", 'e', "NAME", "with --cli: this environment instead of the default one",
         OPT_STRING, &environment},
        {"no-browser", 0, NULL, "print the address, start no browser", OPT_FLAG, &no_browser},
        {"idle", 0, "SECONDS", "end after so long without use (1800)", OPT_INT, &idle},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[--cli | --no-browser] [options]",
        .about = "Edits the saved settings: in a browser, in a form that only this machine and "
                 "only one browser can reach, or "
                 "on the terminal. Both check what was entered and can try it on a real VM.",
        .examples = "  exedev configure\n  exedev configure --cli",
        .max = 0,
    };
    cleanup_configfile struct configfile cf = {0};
    cleanup_error struct error err = {0};

    cmd_parse(argc, argv, options, &usage);
    if (idle < 1 || idle > 86400)
        return cmd_fail(EXIT_USAGE, "--idle takes 1 to 86400 seconds, not %lld", idle);
    if (environment && !cli)
        return cmd_fail(EXIT_USAGE,
                        "--environment goes with --cli: the form shows all environments");
    if (!configfile_load(&cf, &err))
        return cmd_fail_err(&err);
    return cli ? configure_cli(&cf, environment ? environment : cmd_environment())
               : serve(&cf, !no_browser, idle);
}
