/* Shared by key.c and token.c. */
#ifndef LIB_KEY_INTERNAL_H
#define LIB_KEY_INTERNAL_H

#include <stddef.h>

#include "base/error.h"

/* A sealed memfd of mode 0600 with these bytes; -1 on error. */
int key_memfd(const char *name, const void *p, size_t n, struct error *err);

#endif
