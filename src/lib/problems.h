/* What is wrong with a config: every complaint, not only the first. Owned by one thread. */
#ifndef LIB_PROBLEMS_H
#define LIB_PROBLEMS_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"

struct problem {
    char *field;  /* the config key it belongs to ("apiKey"), NULL for the whole config */
    char *text;   /* one sentence or two: what is wrong, what to do; begins with the key */
    bool warning; /* worth saying, no reason to refuse */
};

struct problems {
    struct problem *list;
    size_t n;
};

void problems_free(struct problems *p);
#define cleanup_problems __attribute__((cleanup(problems_free)))

/* The text is redacted here. p may be NULL. */
void problems_error(struct problems *p, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void problems_warn(struct problems *p, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* How many are errors. */
size_t problems_errors(const struct problems *p);
/* ERR_INVALID with every error's text, one after another; true when there is none. */
bool problems_to_error(const struct problems *p, struct error *err);

#endif
