/* Which files with several names were sent already: (device, inode) -> number. Bounded. */
#ifndef TREE_LINKS_H
#define TREE_LINKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

struct link_slot {
    uint64_t ino, dev;
    uint32_t id; /* 0: empty */
    uint32_t left;
};

struct links {
    struct link_slot *slots;
    uint32_t n, cap, last_id;
};

void links_free(struct links *l);
/* The file's number, and whether it was sent before and this is its last name; 0 when the table is
 * full (LINKS_MAX). */
uint32_t links_number(struct links *l, const struct stat *st, bool *known, bool *last);

#define LINKS_MAX 131072u

#endif
