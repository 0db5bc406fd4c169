/* What the subcommands share: the table's entry, option parsing, messages, settings. */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

/* Exit statuses, documented in exedev(1). A remote command's own status is passed on unchanged. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,       /* it was tried and failed */
    EXIT_USAGE = 2,        /* the command line or a setting is wrong; nothing was done */
    EXIT_TRANSPORT = 255,  /* SSH or the API failed under a remote command */
    EXIT_NOT_STARTED = 126,/* a remote command could not be started */
};

struct cmd {
    const char *name, *group, *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the subcommand's name */
    bool hidden;
};
extern const struct cmd commands[];

#define CMD(name) int cmd_##name(int argc, char **argv)

/* One option. `arg` NULL: a flag. Long names only get "--", a short name is one letter or 0. */
struct cmd_option {
    const char *name;
    char letter;
    const char *arg;
    const char *help;
    enum { OPT_FLAG, OPT_STRING, OPT_INT, OPT_LIST } type;
    void *value; /* bool *, const char **, long long *, struct cmd_list * */
};
struct cmd_list {
    const char **items; /* owned array of borrowed strings */
    int n;
};

/* Parses options up to the first operand or "--"; `--help` prints usage, summary, options and examples and exits 0; an unknown
 * one suggests the nearest and exits EXIT_USAGE. Returns the index of the first operand. Options end
 * with {0}. settings: also accept the connection settings (--env-name NAME, --set KEY=VALUE, ...), see cmd_config. */
int cmd_parse(int argc, char **argv, const struct cmd_option *options, bool settings, const char *usage,
              const char *about, const char *examples);

/* Settings from flags, then the environment (EXEDEV_*, EXE_API_KEY), then ~/.config/exedev: the raw
 * object that config_parse reads. NULL after printing why. */
json_t *cmd_settings(void);
struct config;
/* The same, parsed and checked; prints every problem. */
struct config *cmd_config(void);

/* "exedev NAME: message" on stderr; returns status. */
int cmd_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int cmd_fail_err(const struct error *err);
bool cmd_color(int fd);    /* a terminal, no NO_COLOR, TERM not dumb */
bool cmd_confirm(const char *question); /* on a terminal; else false */

#endif
