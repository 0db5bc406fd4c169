/* What the subcommands share: the table's entry, option parsing, messages, settings. One thread. */
#ifndef CMD_CMD_H
#define CMD_CMD_H

#include <jansson.h>
#include <stdbool.h>

#include "base/error.h"

/* Exit statuses, documented in exedev(1). A remote command's own status is passed on unchanged. */
enum {
    EXIT_OK = 0,
    EXIT_FAILED = 1,        /* it was tried and failed */
    EXIT_USAGE = 2,         /* the command line or a setting is wrong; nothing was done */
    EXIT_NOT_STARTED = 126, /* a remote command could not be started */
    EXIT_TRANSPORT = 255,   /* SSH or the API failed under a remote command */
};

struct cmd {
    const char *name, *group, *summary;
    int (*run)(int argc, char **argv); /* argv[0] is the subcommand's name */
};
extern const struct cmd commands[]; /* name NULL ends; group NULL: not listed */

#define CMD(name) int cmd_##name(int argc, char **argv)

struct cmd_list {
    const char **items; /* owned array of borrowed strings, ended by NULL; NULL when n is 0 */
    int n;
};

/* One option, "--NAME", "--NAME=VALUE", "--NAME VALUE" or "-L VALUE". */
struct cmd_option {
    const char *name;
    char letter;      /* 0: none */
    const char *arg;  /* what the value is called in the help; NULL for a flag */
    const char *help; /* NULL: accepted, not listed */
    enum { OPT_FLAG, OPT_STRING, OPT_INT, OPT_LIST } type;
    void *value; /* bool *, const char **, long long *, struct cmd_list * */
};

struct cmd_usage {
    const char *synopsis; /* after "exedev NAME ": "[options] VM -- COMMAND..." */
    const char *about;    /* a paragraph */
    const char *examples; /* lines */
    bool settings;        /* takes the connection settings too: --environment, --set, --KEY */
    int min, max;         /* operands; max -1: any number */
    int command;          /* from this operand on all is a remote command's own; 0: there is none */
};

/* Options may stand before, between and after the operands, up to "--" (which is dropped) or to a
 * remote command. `--help` prints the help and exits 0; an unknown option suggests the nearest and
 * exits EXIT_USAGE, as does a wrong number of operands. options end with {0}. Returns the index of
 * the first operand: argv is put in order, so that they are its last. */
int cmd_parse(int argc, char **argv, const struct cmd_option *options,
              const struct cmd_usage *usage);
/* The name for messages: argv[0] of the running subcommand. */
extern const char *cmd_name;

/* Settings from flags, then the environment (EXEDEV_KEY, EXE_API_KEY), then the named environment
 * of
 * ~/.config/exedev (--environment, EXEDEV_ENVIRONMENT, its default): the raw object that
 * config_parse reads. A new reference; NULL after printing why. */
json_t *cmd_settings(void);
/* The environment's name that was asked for, or NULL. */
const char *cmd_environment(void);
struct config;
/* The same, parsed and checked; NULL after printing every problem. Caller frees. */
struct config *cmd_config(void);

/* "exedev NAME: message" on stderr; returns status. */
int cmd_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The error's message; returns EXIT_USAGE for a wrong input, EXIT_TRANSPORT for network and SSH,
 * else EXIT_FAILED. */
int cmd_fail_err(const struct error *err);

bool cmd_color(int fd); /* a terminal, NO_COLOR not set, TERM not dumb */
/* Asks on the terminal; false without one. */
bool cmd_confirm(const char *question);
/* Prints a JSON value and a newline on stdout. */
void cmd_print_json(const json_t *value);
/* Pipes what follows on stdout through $PAGER when stdout is a terminal; cmd_pager_end waits. */
void cmd_pager(void);
void cmd_pager_end(void);
/* Log lines of the library go to stderr: warnings and above, all with EXEDEV_DEBUG=1. */
void cmd_log_to_stderr(void);
/* The nearest of the names to word, or NULL when none is near. */
const char *cmd_nearest(const char *word, const char *const *names);

#endif
