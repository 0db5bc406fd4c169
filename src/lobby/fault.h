/* Faults on request. A spec is
 *
 *     WHERE:WHAT[=VALUE][,times=N][,skip=N][,retry-after=SECONDS][,body=TEXT]
 *
 * WHERE is a lobby command ("new", "ssh-key list"), "*" for every command, or one of boot, setup,
 * ssh, listen. docs/lobby.md has the table. Thread-safe. */
#ifndef LOBBY_FAULT_H
#define LOBBY_FAULT_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/json.h"

enum fault_kind {
    FAULT_NONE,
    FAULT_STATUS,    /* value: the status; nothing is done */
    FAULT_LOST,      /* done, then cut, or answered with the status `value` */
    FAULT_CUT,       /* reset before anything is done */
    FAULT_HANG,      /* nothing done, no answer for `value` ms */
    FAULT_DRIP,      /* done; a byte of the answer every `value` ms */
    FAULT_GARBAGE,   /* done; 200 and no JSON */
    FAULT_TRUNCATE,  /* done; half of the JSON */
    FAULT_SHORT,     /* done; cut in the middle of the announced body */
    FAULT_HUGE,      /* done; `value` bytes */
    FAULT_REDIRECT,  /* nothing done; 302 to body= */
    FAULT_DELAY,     /* `value` ms before it is done; adds up with another fault */
    FAULT_SLOW_BOOT, /* boot: sshd `value` ms later */
    FAULT_SETUP_HANG,
    FAULT_SETUP_FAIL, /* exits with `value` */
    FAULT_SESSIONS,   /* ssh: MaxSessions for VMs that boot */
    FAULT_BURST,  /* ssh: `value` new connections in 10 s, then silence for retry-after (60) s */
    FAULT_FREEZE, /* ssh: no byte passes */
    FAULT_REFUSE, /* listen: nobody listens, for `value` ms when it is not 0 */
};

struct fault {
    enum fault_kind kind;
    long long value;
    int retry_after; /* -1: no header */
    char *body;      /* owned; NULL: the default */
    long long delay_ms;
};

void fault_free(struct fault *f);
#define cleanup_fault __attribute__((cleanup(fault_free)))

bool fault_add(const char *spec, struct error *err);
/* "*" or a WHERE; all of them for NULL. */
void fault_clear(const char *where);
/* An array of specs as they were given, with what is left of times and skip. */
json_t *fault_list(void);
/* What is to go wrong with this call of `command`; counts it. */
void fault_take(const char *command, struct fault *out);

struct fault_boot {
    long long sshd_delay_ms;
    bool setup_hang;
    int setup_fail;
    unsigned sessions;
};
struct fault_boot fault_boot(void);

/* For the relay. */
struct fault_ssh {
    unsigned burst; /* 0: none */
    int burst_silence_s;
    bool freeze;
};
struct fault_ssh fault_ssh(void);
/* Is nobody to listen now? */
bool fault_refusing(void);
/* Does a spec given at start need the relay? */
bool fault_needs_relay(void);
/* The lines of --help about specs. */
extern const char fault_help[];

#endif
