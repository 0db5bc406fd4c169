/* One VM's connection: one `ssh` process with exedev-vm at its far end (PROTOCOL.vm), shared by
 * every call on that VM, opened when first needed, opened again when it broke. All functions are
 * thread-safe; a struct link is reference-counted. */
#ifndef LIB_LINK_H
#define LIB_LINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"

struct key; /* lib/key.h */

/* All strings are copied; the key is referenced. */
struct link_options {
    const char *vm_name;     /* for messages */
    const char *host, *user; /* user NULL: none given. Checked (text_is_host, text_is_user) here */
    int port;                /* 0: 22 */
    struct key *key;         /* the only identity used, when given; else: */
    const char *identity_file;
    const char *agent_socket;
    const char *strict;          /* accept-new, yes, no */
    const char *known_hosts;     /* pinned host key lines; then checking is `yes` */
    const char *ssh_config_file; /* an OpenSSH configuration to read */
    int keep_alive_seconds;      /* idle connection's lifetime; 0: until link_close */
    int heartbeat_ms, dead_ms;   /* 0: 15000 and 45000 */
    int kill_grace_ms;           /* 0: 250 */
    int pace_burst;              /* new connections per ten seconds; 0: four */
    const char *marker;          /* the lease's mark on its processes */
    bool durable;                /* streams may ask to survive a broken link */
    int durable_keep_ms;         /* 0: 600000 */
    bool fresh; /* the VM was just made: retry until its sshd answers, 90 s at most */
    const char *const *local_argv; /* instead of ssh: run this (tests: exedev-vm over a pipe); a
                                      durable session's key is put after it */
};

struct link;

/* The process's link for that VM (same host, user, port, identity, marker), made when there is
 * none. Does not connect. NULL with ERR_INVALID for a name that may not reach a command line. */
struct link *link_get(const struct link_options *opts, struct error *err);
struct link *link_ref(struct link *l);
void link_unref(struct link *l); /* NULL is fine */

/* Connects now, if it is not connected. Paced (lib/pace.h), retried only where opts.fresh allows; a
 * refused key and a changed host key are final. Codes: ERR_AUTH, ERR_UNREGISTERED, ERR_HOST_KEY,
 * ERR_NETWORK, ERR_TIMEOUT, ERR_UNSUPPORTED (no helper for the machine), ERR_CANCELLED. */
bool link_connect(struct link *l, struct deadline d, struct cancel *cancel, struct error *err);
bool link_is_up(struct link *l);

/* Facts of the helper's HELLO, valid once connected. Strings live as long as the link. */
struct link_facts {
    const char *home, *user;
    bool has_bash, is_root;
};
struct link_facts link_facts(struct link *l);

/* Ends every process of ours on the VM (PROTOCOL.vm ENDALL) and says whether that is confirmed. */
bool link_end_all(struct link *l, struct deadline d, struct error *err);
/* BYE, then the ssh process is ended. Running streams fail with ERR_CANCELLED. The next stream_open
 * would connect again. */
void link_close(struct link *l);
/* link_close for every link of the process, side by side, within ms. For shutdown. */
void link_close_all(int ms);
/* Connections opened so far by this process, for health and bench. */
unsigned link_connections_opened(void);

/* ---- streams: one command, or built-in job, each ---- */

enum stream_kind { STREAM_COMMAND = 0, STREAM_PTY = 1, STREAM_BUILTIN = 2 };

struct stream_request {
    enum stream_kind kind;
    bool login_env, durable, no_stdin, merge_stderr, end_background, source_nvm;
    uint32_t timeout_ms; /* 0: none */
    uint32_t credit;     /* 0: 1 MiB. Bytes in flight per output channel */
    uint16_t rows, cols;
    const char *cwd;         /* NULL: the home directory */
    const char *const *argv; /* NULL-terminated */
    const char *const *env;  /* NULL-terminated NAME=value; may be NULL */
};

struct stream;

/* Connects when needed, sends OPEN. The answer (STARTED, FAIL) comes as an event. */
struct stream *stream_open(struct link *l, const struct stream_request *req, struct deadline d,
                           struct cancel *cancel, struct error *err);

enum stream_event {
    STREAM_STARTED,
    STREAM_DATA,     /* chunk.channel 1 or 2; data is the stream's until the next stream_next */
    STREAM_EOF,      /* chunk.channel */
    STREAM_EXIT,     /* the last one */
    STREAM_FAILED,   /* the last one: the helper could not start it (fail_code is an errno) */
    STREAM_BROKEN,   /* the last one: the link broke and the command is not durable */
    STREAM_RESUMED,  /* a durable stream goes on after a reconnect */
    STREAM_WRITABLE, /* stream_write_some took less than it was given: now there is room again */
};

struct stream_chunk {
    int channel;
    const char *data;
    size_t len;
    /* STREAM_EXIT */
    int status, signal; /* signal 0: exited with status */
    bool killed_by_us, confirmed, timed_out;
    uint64_t user_us, system_us, max_rss_kib;
    int fail_code; /* STREAM_FAILED */
};

/* Waits for the next event. False with ERR_TIMEOUT (nothing is lost; call again), ERR_CANCELLED
 * (likewise) or, after the last event, ERR_INTERNAL. STREAM_FAILED and STREAM_BROKEN also set err.
 * One reader at a time. */
bool stream_next(struct stream *s, enum stream_event *event, struct stream_chunk *chunk,
                 struct deadline d, struct cancel *cancel, struct error *err);

/* Writes to stdin, waiting for credit. False once the command closed its stdin or ended
 * (ERR_NETWORK when the link broke): a writer just stops then. Another thread than the reader's may
 * write. */
bool stream_write(struct stream *s, const void *p, size_t n, struct deadline d,
                  struct cancel *cancel, struct error *err);
/* As much as credit allows right now; 0 when none: STREAM_WRITABLE follows. -1 as stream_write's
 * false. */
ssize_t stream_write_some(struct stream *s, const void *p, size_t n);
void stream_write_eof(struct stream *s);
/* scope as PROTOCOL.vm KILL; the end still comes as STREAM_EXIT. */
void stream_kill(struct stream *s, int sig, int scope);
void stream_resize(struct stream *s, uint16_t rows, uint16_t cols);
/* Forgets the stream; one that runs is killed first (not awaited). */
void stream_close(struct stream *s);
static inline void cleanup_stream_fn(struct stream **s)
{
    if (*s)
        stream_close(*s);
}
#define cleanup_stream __attribute__((cleanup(cleanup_stream_fn)))

#endif
