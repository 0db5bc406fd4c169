/* Between api.c (commands), api_http.c (one request), api_retry.c (repeating) and api_line.c. */
#ifndef LIB_API_INTERNAL_H
#define LIB_API_INTERNAL_H

#include "base/buf.h"
#include "lib/api.h"

#define API_BODY_MAX 65536 /* of a command, exe-dev.md */
#define API_ANSWER_MAX (8 << 20)
#define API_REQUEST_MS 29000 /* exe.dev ends a command after 30 s */
#define API_RUN_MS 30000     /* how long a command whose answer is lost may still be at work */

enum api_fault {
    API_ANSWERED, /* status and body are there */
    API_NOT_SENT, /* the command cannot have reached the server */
    API_LOST,     /* it may have: no answer, or half of one */
    API_LATE,     /* the same, by time-out */
    API_STOPPED,  /* api_cancel_all */
    API_ANSWER_TOO_LARGE,
};

struct api_answer {
    enum api_fault fault;
    int status;
    int64_t retry_after_ms; /* -1: not given */
    struct buf body;
    char *why;      /* for a fault: curl's words */
    char *location; /* of a redirect */
};
void api_answer_clear(struct api_answer *a);

/* Everything the requests of one account share. */
struct api_http;
/* Shared: the same for configs that agree on URL, key, proxy, CA and time-out. */
struct api_http *http_get(const struct config *c);
void http_put(struct api_http *h);
/* One POST, within d. fresh: on a connection of its own. */
void http_post(struct api_http *h, const char *line, bool fresh, struct deadline d,
               struct api_answer *out);
const char *http_url(const struct api_http *h);

/* The process is going down. */
bool api_cancelled(void);
/* Sleeps until ms have passed, d, or api_cancel_all; false when cancelled. */
bool api_sleep(struct deadline d, int64_t ms);

/* The breaker of one way to one URL (proxy and CA are part of it: a bad proxy says nothing about
 * the service). False when it is open and will not close before d, with ERR_UNAVAILABLE that says
 * why; *trial_failed: somebody else's attempt failed while we waited, count it as ours (err is set
 * too). */
struct breaker;
struct breaker *breaker_get(const struct config *c);
bool breaker_enter(struct breaker *b, struct deadline d, bool *trial_failed, struct error *err);
/* What came of it: service well, failing (reason says how), or nothing learnt about the service. */
enum breaker_news { BREAKER_WELL, BREAKER_FAILING, BREAKER_NOTHING };
void breaker_leave(struct breaker *b, enum breaker_news news, const char *reason);

/* How a failed answer is told: code, message with advice. `shown` is the redacted command line,
 * `word` its first word ("new", "ssh-key list"). more[n]: this call's own secrets. */
bool api_explain(const struct api_answer *a, const char *url, const char *word, const char *shown,
                 const char *const *more, size_t n, struct error *err);

#endif
