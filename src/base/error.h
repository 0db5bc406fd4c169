/* Errors are values. A function that can fail takes `struct error *err` last and returns false or
 * NULL; the message is written where the cause is known and context is put in front on the way up.
 * A struct error is owned by its declarer (cleanup_error), may be NULL where the caller does not
 * care, and belongs to one thread at a time. */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdbool.h>

enum error_code {
    ERR_NONE = 0,
    ERR_INVALID,      /* the caller's input is wrong: config, arguments, parameters */
    ERR_SYSTEM,       /* this machine: a system call, a missing program, a full disk; see `sys` */
    ERR_INTERNAL,     /* a bug of ours */
    ERR_TIMEOUT,      /* a deadline of ours passed */
    ERR_CANCELLED,    /* asked to stop */
    ERR_AUTH,         /* the API or sshd refused the token or key; final until it is changed */
    ERR_FORBIDDEN,    /* the token lacks the command */
    ERR_HOST_KEY,     /* the host key is not the known one; final */
    ERR_UNREGISTERED, /* the SSH key is not registered with the exe.dev account; final */
    ERR_NETWORK,      /* could not reach, connection broke; may heal */
    ERR_RATE_LIMIT,   /* 429 */
    ERR_UNAVAILABLE,  /* 5xx; may heal */
    ERR_DOUBT,        /* the answer is lost; the work may have been done */
    ERR_REFUSED,      /* 422: the command ran and failed (quota, name taken) */
    ERR_NOT_FOUND,    /* no such VM, file, command */
    ERR_EXISTS,       /* name taken */
    ERR_TOO_LARGE,    /* a limit of ours or theirs */
    ERR_PROTOCOL,     /* the other side broke its protocol */
    ERR_UNSUPPORTED,  /* the far end lacks something we need */
    ERR_UNSAFE,       /* a path or name that would lead out of bounds */
};

struct error {
    enum error_code code;
    int sys;    /* errno where there is one, else 0 */
    int status; /* HTTP status where there is one, else 0 */
    char *msg;  /* owned; NULL when code is ERR_NONE */
};

void error_clear(struct error *err);
#define cleanup_error __attribute__((cleanup(error_clear)))

/* Sets err (dropping what it held) and returns false, so that `return error_set(...)` reads well.
 */
bool error_set(struct error *err, enum error_code code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* As error_set with ERR_SYSTEM; ": strerror(sys)" is appended. */
bool error_sys(struct error *err, int sys, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Puts "context: " in front of the message. Does nothing when err is NULL or empty. Returns false.
 */
bool error_prefix(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Appends text (a remedy, say) after the message. Returns false. */
bool error_append(struct error *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Moves src into dst (dst's old content is dropped, src is empty after). Either may be NULL. */
void error_move(struct error *dst, struct error *src);
/* Deep copy; dst's old content is dropped. */
void error_copy(struct error *dst, const struct error *src);
/* A stable lower-case word for a code ("network", "rate_limit"), for metadata and --json. */
const char *error_code_name(enum error_code code);

#endif
