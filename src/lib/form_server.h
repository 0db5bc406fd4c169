/* A page of our own, shown to one person on this machine: HTTP on loopback at a random port.
 * Whoever brings the one-time token gets a cookie; requests of other hosts, origins or without the
 * cookie are refused. Handlers run on a thread per connection. */
#ifndef LIB_FORM_SERVER_H
#define LIB_FORM_SERVER_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/json.h"

#define FORM_BODY_MAX (4 << 20) /* bytes of a request */

struct form_asset {
    const char *path; /* "/form.js"; "/" is the page itself */
    const char *type; /* MIME type */
    const unsigned char *data;
    const size_t *len;
};

/* An answer that arrives line by line while work goes on (NDJSON). Reference-counted between the
 * worker and the connection; thread-safe. */
struct form_stream;
struct form_stream *form_stream_new(void);
/* One JSON value as a line. */
void form_stream_put(struct form_stream *s, const json_t *value);
/* The worker is done; drops its reference. */
void form_stream_end(struct form_stream *s);
/* Called once when the reader went away before the end; from the connection's thread. */
void form_stream_on_gone(struct form_stream *s, void (*fn)(void *arg), void *arg);

struct form_answer {
    int status;                 /* HTTP; 200 unless set */
    struct form_stream *stream; /* instead of the returned value; the connection's reference */
};

/* POST path, in: the request's JSON object (borrowed). Returns the answer, or NULL with err for
 * {"error": text} and status (400 unless set). */
typedef json_t *form_handler_fn(void *arg, const json_t *in, struct form_answer *answer,
                                struct error *err);
struct form_route {
    const char *path;
    form_handler_fn *handler;
};

struct form_server;
/* assets and routes end with a NULL path and must live as long as the server. idle_ms: without a
 * request for that long it ends by itself. */
struct form_server *form_server_start(const struct form_asset *assets,
                                      const struct form_route *routes, void *arg, long long idle_ms,
                                      struct error *err);
int form_server_port(const struct form_server *s);
/* With the one-time token. */
const char *form_server_url(const struct form_server *s);
/* Blocks until form_server_finish (true) or idleness (false). */
bool form_server_wait(struct form_server *s);
/* Ends the wait, once the answer under way is out. Any thread. */
void form_server_finish(struct form_server *s);
/* Descriptor that becomes readable when the wait would end; for a signal handler: write 8 bytes. */
int form_server_wake_fd(const struct form_server *s);
void form_server_free(struct form_server *s);

#endif
