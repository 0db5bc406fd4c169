/* The names seen in one folder, as keyed 64-bit hashes: 16 bytes or less a name. Two names that
 * collide (less than one chance in 2^30 for a billion pairs) only make `remove` keep an entry. */
#ifndef TREE_NAMES_H
#define TREE_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct names {
    uint64_t *slots;
    uint32_t n, cap;
};

void names_free(struct names *s);
/* True when it was new. */
bool names_add(struct names *s, const char *name, size_t n, uint64_t key);
bool names_has(const struct names *s, const char *name, size_t n, uint64_t key);
/* The name with the difference of case taken out, in a new buffer of *n bytes. */
char *names_fold(const char *name, size_t *n);

#endif
