/* Run one command on a VM, top to bottom (behaviour.md, "execute"). Thread-safe: each call runs on
 * its caller's thread. */
#ifndef LIB_COMMAND_H
#define LIB_COMMAND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "lib/link.h"

/* Live output, valid UTF-8 made whole across reads when `text` is set, else raw bytes. channel 1 or
 * 2. Returning false cancels the command (ERR_CANCELLED). */
typedef bool command_output_fn(int channel, const char *data, size_t len, void *arg);
/* More stdin: up to max bytes into buf; 0: end. Called on a thread of command_run's, which ends
 * before command_run returns: one that waits must also wait for `stop`, which fires when no more is
 * needed. */
typedef ssize_t command_input_fn(char *buf, size_t max, struct cancel *stop, void *arg);

struct command_spec {
    const char *const *argv;
    const char *const *env; /* NAME=value, on top of the login environment; names are checked */
    const char *cwd;        /* NULL: the home directory */
    bool login_env;         /* start from the captured login environment */
    bool source_nvm;
    bool durable;
    bool text;          /* output is made valid UTF-8 (bad bytes: U+FFFD) */
    int64_t timeout_ms; /* 0: never. Connecting counts */
    uint32_t credit;    /* bytes in flight per channel at first; 0: 256 KiB. Grows while the caller
                           keeps up */
    const char *stdin_data; /* fed and closed; or: */
    size_t stdin_len;
    command_input_fn *input;   /* streamed */
    command_output_fn *output; /* NULL: none */
    void *arg;                 /* of both callbacks */
    bool collect;              /* keep output in the result */
    size_t cap; /* per channel, in JSON-escaped characters (bytes, unless text); 0: just under 64
                   Mi, so that two fit a line of 128 Mi. Cut at the end, with a mark; the live
                   output stops there too */
};

struct command_result {
    bool ran;        /* false: it never started */
    int exit_code;   /* 128+n for a signal; -1 when timed_out or cancelled */
    char signal[16]; /* "SIGKILL", else empty */
    bool timed_out, cancelled;
    bool confirmed;            /* after a kill: the whole tree is known to be gone */
    struct buf out, err;       /* collected output */
    enum error_code transport; /* ERR_NONE, else why SSH itself failed: exit code is 255 then */
    char *advice;              /* with transport: our words, one line; owned */
    uint64_t user_us, system_us, max_rss_kib;
};

/* True: *res says what happened (also a transport failure, a timeout, a cwd that cannot be entered:
 * exit code 1 and the reason in res->err). False: the request itself is wrong (ERR_INVALID,
 * ERR_TOO_LARGE) and nothing ran. The caller frees with command_result_free either way. */
bool command_run(struct link *l, const struct command_spec *spec, struct cancel *cancel,
                 struct command_result *res, struct error *err);
void command_result_free(struct command_result *res);

#endif
