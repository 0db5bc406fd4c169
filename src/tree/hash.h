/* XXH64 over a stream of bytes (the algorithm's public specification, version 0.1.1): finds damage
 * and tells contents apart, is no defence against forgery and need not be. */
#ifndef TREE_HASH_H
#define TREE_HASH_H

#include <stddef.h>
#include <stdint.h>

struct hash64 {
    uint64_t lane[4];
    uint64_t seed, total;
    unsigned char part[32];
    size_t have;
};

void hash64_start(struct hash64 *h, uint64_t seed);
void hash64_add(struct hash64 *h, const void *p, size_t n);
uint64_t hash64_end(const struct hash64 *h);

#endif
