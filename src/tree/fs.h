/* Steps in a file system that follow no link. Paths in messages are the caller's business. */
#ifndef TREE_FS_H
#define TREE_FS_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

#include "base/error.h"

/* Entries of an open folder, one at a time, in a buffer of the given size. */
struct entries {
    int fd; /* borrowed */
    unsigned char *data;
    size_t pos, len, cap;
};
void entries_init(struct entries *e, int fd, size_t cap);
void entries_free(struct entries *e);
/* The next name other than . and .., valid until the next call; NULL at the end and, errno set, on
 * failure (errno is 0 at the end). */
const char *entries_next(struct entries *e);
void entries_restart(struct entries *e);

/* Opens dirfd/name, a folder and no link, for reading. With `write`, one of ours whose mode forbids
 * us to work in it is made accessible first. -1 and errno. */
int fs_open_dir(int dirfd, const char *name, bool write);

/* A single name that may be created: 1..max bytes, no slash, no NUL, not . or .. */
bool fs_name_ok(const char *name, size_t n, size_t max);

#endif
