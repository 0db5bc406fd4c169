/* Programs on a VM whose stdin and stdout a host holds open: duplex channels and login terminals
 * (paperclip.md). One stream of the link each, found by the host's route id. All functions are
 * thread-safe. Events come from a thread of the channel's own, in order; a callback that blocks
 * holds up that channel only (its program then fills its credit and waits). */
#ifndef LIB_CHANNEL_H
#define LIB_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>

#include "base/deadline.h"
#include "base/error.h"
#include "lib/cancel.h"
#include "lib/link.h"

#define CHANNEL_MAX_WRITE (256u << 10)     /* one write; the host's own bound */
#define CHANNEL_MAX_QUEUED (512u << 10)    /* writes not yet taken by the program */
#define CHANNEL_MAX_BYTES (256u << 20)     /* output of a duplex channel in all */
#define CHANNEL_MAX_LOGIN_CHARS (8u << 20) /* output of a login terminal in all */
#define CHANNEL_MAX_MS (3600 * 1000)       /* life */

enum channel_kind { CHANNEL_DUPLEX, CHANNEL_LOGIN };

struct channel_events {
    /* Output: bytes, at most 64 KiB; of a login terminal valid UTF-8. */
    void (*data)(const char *route, const char *session, const char *data, size_t n, void *arg);
    /* Once, after the last data. code -1: none (killed, or cut off). transport_closed: the link
     * broke, or a limit above was reached; no news of the program. */
    void (*exit)(const char *route, const char *session, int code, bool transport_closed,
                 void *arg);
    /* Once, last of all, also when channel_open failed: nothing uses the link or arg any more. */
    void (*gone)(void *arg);
};

struct channel_request {
    enum channel_kind kind;
    const char *route;          /* hostRouteId; never used twice */
    const char *const *command; /* CHANNEL_DUPLEX: argv */
    const char *login_key;      /* CHANNEL_LOGIN: claude, codex or grok */
    const char *session_home;   /* CHANNEL_LOGIN: exactly /tmp/paperclip-adapter-login/UUID */
    struct channel_events events;
    void *arg;
};

/* Starts the program and waits until it runs. The answer is the session's id (owned). Nothing is
 * read from it before channel_start, so that the host can bind the id first. ERR_CANCELLED when
 * channel_close came meanwhile; ERR_EXISTS for a route that is, or was, in use. */
char *channel_open(struct link *l, const struct channel_request *req, struct deadline d,
                   struct cancel *cancel, struct error *err);
void channel_start(const char *route);

/* why is NULL when all was handed to the program. Called once, from any thread, perhaps before
 * channel_write returns. */
typedef void channel_done_fn(const struct error *why, void *arg);
/* Queues input (copied) and never blocks: writes reach the program in the order of the calls. route
 * NULL: the login terminal of that session; else the pair must match. */
void channel_write(const char *route, const char *session, const void *p, size_t n,
                   channel_done_fn *done, void *arg);
/* Ends the program; its exit still comes. False with ERR_NOT_FOUND when the pair does not match. */
bool channel_stop(const char *route, const char *session, struct error *err);
/* Ends the program, by route alone, without waiting; its exit still comes. */
void channel_end(const char *route);
/* By route alone, also before channel_open has answered, or ever began: then no open with that
 * route will succeed. Ends the program and waits until that is confirmed or d has passed. The
 * session's id (owned), NULL when none was given out. No event follows. May be said again. */
char *channel_close(const char *route, struct deadline d);
/* For shutdown: channel_close for all, side by side. */
void channel_close_all(struct deadline d);

#endif
