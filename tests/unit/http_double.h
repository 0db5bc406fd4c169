/* An HTTP server that misbehaves on order, for test_api.c: one script of steps, one step a request.
 * Only for faults; the lobby is the real thing. */
#ifndef HTTP_DOUBLE_H
#define HTTP_DOUBLE_H

#include <stdbool.h>
#include <stddef.h>

enum act {
    ANSWER,       /* status and body */
    RESET,        /* RST once the request is read: the work may be done */
    CUT,          /* half of the body that was promised */
    HANG,         /* nothing, until the client goes */
    DRIP,         /* a byte at a time, for ever */
    HUGE_BODY,    /* 1 GB, as long as the client takes it */
    ANSWER_CLOSE, /* an answer that promises to keep the connection, and closes it */
};

struct step {
    const char *when; /* the request must begin so; NULL: any */
    enum act act;
    int status;
    const char *body;
    const char *headers; /* further ones, each with "\r\n" */
    bool forever;        /* never used up */
};

struct http_double;
/* Takes steps[n] in order; a request that matches no step in turn gets 599, which fails every test.
 */
struct http_double *double_start(const struct step *steps, size_t n);
int double_port(const struct http_double *d);
/* Requests so far, those that begin with `what`, and new TCP connections. */
int double_requests(struct http_double *d, const char *what);
int double_connections(struct http_double *d);
/* The whole n-th request (from 0), valid until double_stop. */
const char *double_request(struct http_double *d, int n);
void double_stop(struct http_double *d);

#endif
