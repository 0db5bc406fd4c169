/* What the files of link share: link.c (connecting), link_registry.c, link_ssh.c (the ssh process),
 * link_boot.c (until HELLO), link_io.c (frames), link_durable.c (RESUME), link_stream.c (streams).
 */
#ifndef LIB_LINK_PRIVATE_H
#define LIB_LINK_PRIVATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/cleanup.h"
#include "base/spawn.h"
#include "base/vmproto.h"
#include "lib/link.h"

#define LINK_OUT_LOW (128u << 10) /* writers of stdin and requests wait above this */
#define LINK_IN_SIZE (128u << 10)
#define LINK_BUCKETS 64u
#define LINK_WINDOW_MAX (8u << 20) /* what a stream's window grows to while its reader keeps up */

struct node {
    struct node *next;
    enum stream_event event;
    int channel;
    size_t len, cap;
    char data[];
};

struct stream {
    struct link *link; /* referenced */
    uint32_t number;
    struct stream *next; /* in its bucket */
    bool listed;         /* the helper has not closed it yet */
    bool abandoned;      /* the caller has closed it: freed when the helper has */
    bool durable;
    pthread_cond_t ready;
    struct node *head, *tail; /* events not yet given out */
    struct node *current;     /* the data given out last */
    bool over;                /* the last event is in the queue, or was given out */
    struct stream_chunk end;  /* STREAM_EXIT's */
    struct error failure;     /* STREAM_FAILED's, STREAM_BROKEN's */

    /* stdout and stderr; indexed by channel */
    uint32_t window[VM_CHANNELS];
    uint64_t credit[VM_CHANNELS]; /* what the helper may still send */
    uint64_t owed[VM_CHANNELS];   /* consumed, not granted again yet */
    uint64_t got[VM_CHANNELS];    /* received in all */
    uint64_t queued[VM_CHANNELS]; /* received, not consumed */
    bool eof[VM_CHANNELS];

    /* stdin */
    uint64_t in_credit, in_sent, in_granted;
    bool in_eof;     /* EOF was asked for and sent */
    bool want_write; /* STREAM_WRITABLE is owed once there is room again */
    bool writer_waits;
    struct buf unacked; /* durable: sent, perhaps not read; its last byte is in_sent - 1 */
    struct buf resend;  /* durable: to be sent again after a reconnect, before anything new */
    uint64_t ack_base;  /* in_granted counts from here */
    bool waits_resume;  /* durable: named in RESUME, not yet answered */
    uint32_t kill_signal, kill_scope;
    bool kill_asked; /* durable: said again after a reconnect */
};

struct connection {
    int fd;     /* the frames' socket; -1: none */
    int err_fd; /* ssh's stderr */
    struct child child;
    char *in; /* LINK_IN_SIZE bytes */
    size_t in_len;
    struct buf chatter; /* stdout before HELLO */
    struct buf errors;  /* stderr, its last part */
    struct buf needed;  /* "MACHINE DIR" once an upload was asked for */
    int pinned_fd;      /* known hosts that are pinned */
};

enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_UP };

struct link {
    atomic_int refs;
    struct link *next; /* registry */
    bool registered;
    char *id;

    /* options, constant */
    char *vm_name, *host, *user, *identity_file, *agent_socket, *strict, *known_hosts;
    char *ssh_config_file, *marker, *session;
    char **local_argv;
    int key_fd; /* our own opening of the key's memfd; -1: none */
    int port, keep_alive_seconds, heartbeat_ms, dead_ms, grace_ms, pace_burst, keep_ms;
    bool durable;
    _Atomic bool fresh;

    pthread_mutex_t lock;   /* all below */
    pthread_cond_t changed; /* state, attempts, room to write, number of streams */
    enum link_state state;
    bool thread;          /* the link's thread lives */
    bool resuming;        /* durable streams wait for the connection that is being made */
    bool closing;         /* it is to go down: BYE was sent, or no connection is wanted */
    int64_t close_by;     /* closing: without waiting any longer for the answer to BYE */
    struct cancel *stop;  /* of the connection attempt under way */
    unsigned attempts;    /* finished ones */
    bool orphaned;        /* all who waited for this attempt have left: it is being stopped */
    struct error failure; /* of the last attempt, or of the connection */
    int waiters;
    int wake; /* eventfd: the thread should look at `out` and `closing` */
    struct connection
        conn;       /* the thread's, but conn.fd may be written to under the lock while UP */
    struct buf out; /* frames that did not fit into the socket */
    size_t out_at;
    bool opening; /* a request of several OPEN frames is being sent */
    bool bye;     /* the helper has answered BYE */

    struct stream *streams[LINK_BUCKETS];
    unsigned listed; /* streams in the table */
    uint32_t last_number;
    int64_t idle_since;

    char *home, *remote_user;
    uint32_t facts;     /* VM_HELLO_... flags */
    char *old_facts[8]; /* strings handed out must live as long as the link */

    unsigned end_asked, end_answered;
    uint32_t ended, end_left;
};

/* link.c */
bool link_wait_up(struct link *l, struct deadline d, struct cancel *cancel, struct error *err);
const char *link_label(const struct link *l); /* the VM's name, else its host */
void link_wake_fn(void *link);                /* a cancel_watch: broadcasts `changed` */
void link_cond_init(pthread_cond_t *c);
bool link_wait(pthread_cond_t *c, pthread_mutex_t *m, struct deadline d); /* false: it passed */

/* link_registry.c: every link, each referenced; the list is the caller's. */
struct link **link_all(size_t *n);

/* link_ssh.c */
bool connection_start(struct link *l, struct connection *c, struct error *err);
void connection_end(struct connection *c, int grace_ms);
/* Reads what ssh has said on stderr, without waiting. False at its end. */
bool connection_read_errors(struct connection *c);

/* link_boot.c: reads up to HELLO (uploading the helper where asked), answers it, takes the facts.
 */
bool link_boot(struct link *l, struct connection *c, struct deadline d, struct cancel *stop,
               struct error *err);

/* link_io.c. All but link_serve with l->lock held. */
void frame_put(struct buf *b, int type, int channel, uint32_t stream, const void *p, size_t n);
void link_send(struct link *l, int type, int channel, uint32_t stream, const void *p, size_t n);
void link_send_buf(struct link *l, const struct buf *frames);
size_t link_out_waiting(const struct link *l);
/* Says BYE and lets the thread wait ms for the answer. */
void link_start_close(struct link *l, int ms);
/* Reads and dispatches until the connection ends: err says why (ERR_CANCELLED: it was to). */
void link_serve(struct link *l, struct error *err);

/* link_stream.c. With l->lock held. */
struct stream *link_find(struct link *l, uint32_t number);
void stream_push(struct stream *s, enum stream_event event, int channel, const void *p, size_t n);
void stream_finish(struct stream *s, enum stream_event event);
void stream_grant(struct stream *s, int channel);
void stream_on_room(struct stream *s);
/* Ends what a broken connection ends: all streams, or those that are not durable. */
void link_break_streams(struct link *l, bool durable_too, const struct error *why);
bool link_has_durable(const struct link *l);

/* link_durable.c. With l->lock held. */
void link_send_resume(struct link *l);
bool link_on_resumed(struct link *l, struct cursor *c);
void stream_note_credit(struct stream *s, uint32_t n);
void stream_resend(struct stream *s);

#endif
