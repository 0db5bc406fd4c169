/* What the parts of exedev-vm share. One process, one thread, one event loop; every descriptor is
 * non-blocking and closed on exec. Allocation never fails (base/alloc.h). */
#ifndef VM_VM_H
#define VM_VM_H

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/vmproto.h"
#include "vm/request.h"

struct session;

/* What an epoll event leads to. */
struct source {
    void (*fn)(struct session *s, struct source *src, uint32_t events);
};

/* One declares the resources of getrlimit(2) as an enumeration, the other as int. */
#ifndef __GLIBC__
typedef int __rlimit_resource_t;
#endif

#define container_of(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))

/* ---- spool.c: a durable stream's output that the client may ask for again ---- */

struct spool {
    struct buf mem; /* the bytes, as long as they are few; base is the offset of its first */
    uint64_t base, end;
    int fd; /* -1: in mem; else a ring of SPOOL_RING bytes in a file without a name */
};

struct spool *spool_new(void);
void spool_free(struct spool *sp);
/* Bytes that can be added while everything from `keep` on must stay. */
uint64_t spool_room(const struct spool *sp, uint64_t keep);
/* n <= spool_room. False (errno) when the disk refuses: nothing was added. */
bool spool_add(struct spool *sp, const char *dir, const void *p, size_t n);
/* n bytes from offset `at`; false when they are no longer there. */
bool spool_read(struct spool *sp, uint64_t at, void *p, size_t n);

/* ---- out channels ---- */

struct out {
    struct source src;
    struct stream *stream;
    struct out *next, *prev; /* in the session's queue of those with something to read */
    struct spool *spool;     /* durable streams only */
    uint64_t sent, granted;  /* byte counts; granted: since the client attached */
    uint64_t from;           /* `sent` when the client attached */
    int64_t last;            /* after the linger: bytes still to be taken, -1 before */
    uint32_t credit;
    int fd; /* -1: at its end */
    uint8_t channel;
    bool ready, queued, hup, eof_sent, nonblock;
};

struct in {
    struct source src;
    struct buf q; /* taken from the client, not yet by the command */
    size_t off;
    uint64_t got;                    /* bytes of stdin ever received */
    uint32_t credit;                 /* what the client may still send */
    uint32_t window, owed;           /* size of the grant; consumed and not granted again */
    int fd;                          /* -1: closed */
    bool eof, dropped;               /* the end was asked for; by CLOSE_IN */
    bool nonblock, watched, waiting; /* in epoll; for EPOLLOUT */
    char last;                       /* the last byte a pty was given */
};

/* ---- kill.c ---- */

struct hit {
    pid_t pid;
    unsigned long long start;
};

struct killjob {
    bool active, killing, done, confirmed;
    int signal;
    int64_t kill_at, give_up_at;
    int empty;        /* scans in a row that found nobody */
    struct hit *hits; /* who has had the first signal */
    size_t nhits;
    uint32_t left;
};

/* ---- streams ---- */

enum stream_state {
    ST_WAITING, /* for the login environment */
    ST_RUNNING,
    ST_EXITED, /* its process has ended; output, linger or a kill is still going on */
    ST_KEPT,   /* EXIT or FAIL was sent, a durable client has not confirmed it */
};

struct stream {
    struct stream *next, *prev; /* all of the session */
    struct stream *hash_next;
    uint32_t id;
    enum stream_state state;
    struct request req; /* until it runs */
    char *marker;
    uint32_t flags; /* OPEN's */
    bool pty, killed, timed_out, dead, linger_over, named,
        silent; /* silent: the client does not know it */
    pid_t pid;
    int status;
    struct rusage usage;
    int64_t timeout_at, linger_at;
    struct in in;
    struct out out[2]; /* stdout, stderr */
    struct killjob job;
    char mark[32];    /* value of EXEDEV_STREAM */
    struct buf final; /* durable: EXIT's or FAIL's payload, to be sent again */
    uint8_t final_type;
    uint64_t ping; /* ST_KEPT: the PING whose answer frees it */
};

/* ---- env.c: the login environment ---- */

struct envset {
    char **v; /* sorted by name */
    size_t n;
    bool known; /* umask and limits below were captured */
    mode_t umask;
    struct rlimit limits[RLIM_NLIMITS];
};

struct capture;

/* ---- the session ---- */

struct used { /* stream numbers seen, as ranges */
    uint32_t from, to;
};

struct ender { /* ENDALL in progress */
    char *marker;
    struct killjob job;
    bool active;
};

struct session {
    int ep;
    struct source sig_src, in_src, out_src, accept_src;
    int sigfd, in, out, listener;
    bool same_fd; /* in and out are one socket */
    bool in_armed, out_armed, attached, greeted, resuming;
    bool live;                /* attached, and the client knows where its streams are */
    bool ending, bye, broken; /* no new work; answer BYE; exit 76 */
    bool hidden_proc;         /* /proc cannot be read */
    int64_t end_by;

    struct buf inbuf;
    size_t in_off;
    struct buf outbuf;
    size_t out_off;
    int64_t lazy_until; /* what waits may wait for company until then; 0: no */

    uint32_t heartbeat_ms, dead_ms, grace_ms, keep_ms;
    int64_t heard_at, pinged_at, detached_until;
    uint64_t ping_seq;

    struct stream *streams, *buckets[1024], *dead;
    unsigned nstreams, nwaiting;
    struct used *used;
    size_t nused;
    uint32_t open_id; /* a request in parts */
    bool open_partial;
    struct buf open_buf;
    struct out *queue; /* circular */
    int64_t next_timer;
    uint64_t extra_windows; /* bytes of stdin windows beyond VM_STDIN_CREDIT, of all streams */
    char id[17];            /* random, in EXEDEV_STREAM */

    int64_t kill_tick, kill_step;
    bool kill_now;
    struct ender ender;

    struct envset base, login[2];
    struct capture *capture[2]; /* [1]: with nvm */
    char *home, *user, *dir, *key;
    char self[32]; /* /proc/PID/exe */
    int null_fd;
    bool bash;
    bool durable, client_known; /* the daemon of a durable session; a client was here before */
    bool taking_over;           /* the link goes because another comes */
};

/* serve.c */
int serve_main(int argc, char **argv);
/* Runs until the session is over; the exit status. */
int session_loop(struct session *s);
void session_init(struct session *s);
void session_attach(struct session *s, int in, int out);
/* The link is gone: a durable session waits for its client, any other ends. */
void session_detach(struct session *s);
/* Ends everything, then session_loop returns. */
void session_end(struct session *s);
void session_broken(struct session *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void session_log(struct session *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void session_timer(struct session *s, int64_t at);
void watch(struct session *s, int fd, struct source *src, uint32_t events);
void unwatch(struct session *s, int fd);
void rewatch(struct session *s, int fd, struct source *src, uint32_t events);

/* link.c: frames out and in */
struct buf *frame_begin(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream);
void frame_end(struct session *s);
/* A frame of one u32. */
void frame_u32(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream, uint32_t v);
void frame_raw(struct session *s, enum vm_type type, uint32_t stream, const void *p, size_t n);
/* A frame that may wait 2 ms for company: what follows at once leaves in the same packet. */
void frame_lazy(struct session *s, enum vm_type type, uint8_t channel, uint32_t stream,
                const void *p, size_t n);
void link_flush(struct session *s);
size_t link_pending(const struct session *s);
void link_readable(struct session *s, struct source *src, uint32_t events);
void link_writable(struct session *s, struct source *src, uint32_t events);
void send_hello(struct session *s);
/* One whole frame from the client. */
void dispatch(struct session *s, uint8_t type, uint8_t channel, uint32_t stream, const char *p,
              size_t n);

/* stream.c */
void stream_open(struct session *s, uint32_t id, struct buf *request);
struct stream *stream_find(struct session *s, uint32_t id);
void stream_data(struct session *s, struct stream *st, const char *p, size_t n);
void stream_in_eof(struct session *s, struct stream *st, bool drop);
void stream_credit(struct session *s, struct stream *st, uint8_t channel, uint32_t n);
void stream_kill(struct session *s, struct stream *st, int sig, bool now);
/* Once, to the foreground process group. */
void stream_signal(struct session *s, struct stream *st, int sig);
void stream_winch(struct session *s, struct stream *st, uint16_t rows, uint16_t cols);
void stream_exited(struct session *s, struct stream *st, int status, const struct rusage *ru);
/* Sends EXIT when nothing is missing any more. */
void stream_finish(struct session *s, struct stream *st);
/* Starts what waited for the login environment of that kind. */
void streams_env_ready(struct session *s);
void streams_timers(struct session *s, int64_t now);
/* Takes output in turn while little waits to be sent. */
void streams_pump(struct session *s);
void out_queue(struct session *s, struct out *o);
void stream_grant(struct session *s, struct stream *st);
/* Ends it, its output unread. */
void stream_abandon(struct session *s, struct stream *st);
void stream_drop(struct session *s, struct stream *st);
void streams_reap_dead(struct session *s);
bool stream_open_durable(const struct stream *st);

/* start.c */
struct launch {
    const char *file;
    char **argv; /* argv[-1] is spare: the shell's name for a file without #! */
    char **envp;
    const char *cwd;
    int cwd_fd; /* wins over cwd; -1: none */
    int fds[3];
    bool tty;                    /* fds[0] becomes the controlling terminal */
    const struct envset *limits; /* umask and limits, or NULL */
    int (*builtin)(int argc, char **argv);
    int argc;
    int err; /* out: errno of what failed; 0: it runs */
    bool err_cwd;
};
/* The pid, or -1 with err set. */
pid_t launch(struct launch *l);
void raise_file_limit(void);

/* kill.c */
void kill_start(struct session *s, struct killjob *job, int sig, bool now);
/* One scan of /proc for all active jobs. */
void kill_tick(struct session *s);
void killjob_free(struct killjob *job);

/* env.c */
void env_init(struct session *s);
/* Ready: the environment to start from. NULL: being captured; streams_env_ready will be called. */
const struct envset *env_login(struct session *s, bool nvm);
bool env_capture_ended(struct session *s, pid_t pid);
void env_timers(struct session *s, int64_t now);
int env_dump_main(int argc, char **argv);
void envset_free(struct envset *e);
/* base with what `over` (n entries) names replaced, then `over`, then the extra ones; one block
 * that the caller frees, strings borrowed. */
char **env_merge(const struct envset *base, char **over, size_t n, char **extra, size_t nextra);
const char *env_get(char *const *envp, const char *name);

/* folder.c: the private folder of PROTOCOL.vm 6.1. NULL when there is none. */
char *private_folder(const char *home);
char *home_folder(void);
char *user_name(void);

/* builtin.c */
struct builtin {
    const char *name;
    int (*main)(int argc, char **argv);
};
const struct builtin *builtin_find(const char *name);
int timer_main(int argc, char **argv);
/* The daemon that `timer arm` leaves behind. */
int timer_wait_main(int argc, char **argv);

/* durable.c */
bool durable_key_ok(const char *key);
int durable_main(const char *key);
void durable_resume(struct session *s, const char *p, size_t n);
/* No more clients. */
void durable_close(struct session *s);
void durable_pong(struct session *s, uint64_t seq);
/* Notes that this session runs commands of that marker, for ENDALL of other sessions. */
void durable_note_marker(struct session *s, const char *marker);
/* Tells the daemons of other sessions that run commands of that marker to end. How many. */
unsigned durable_end_marker(struct session *s, const char *marker);

#endif
