/* A remote command with this process's stdin, stdout, stderr, terminal and signals: what exec,
 * shell and run share. One at a time in a process. */
#ifndef CMD_REMOTE_H
#define CMD_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "cmd/cmd.h"
#include "lib/link.h"

struct remote_spec {
    const char *const *argv;
    const char *const *env; /* NAME=value; may be NULL */
    const char *cwd;        /* NULL: the home directory */
    bool tty;               /* a terminal on the VM, this one in raw mode meanwhile */
    bool no_stdin;
    bool source_nvm, durable;
    uint32_t timeout_ms; /* 0: none */
};

/* --env and --timeout (in seconds) as the command line gives them, into the spec, which borrows the
 * strings. EXIT_OK, or EXIT_USAGE after printing why. */
int remote_options(struct remote_spec *spec, const struct cmd_list *env, long long timeout);

/* Any amount of stdin and output, byte for byte. Ctrl-C and SIGINT go to the command's foreground
 * process group; a second one, SIGTERM and SIGHUP end its whole tree. True: *status is the
 * command's own (128+n for a signal; 126 or 127 when it could not be started, 124 when it timed
 * out). False: SSH failed under it. */
bool remote_run(struct link *l, const struct remote_spec *spec, int *status, struct error *err);

#endif
