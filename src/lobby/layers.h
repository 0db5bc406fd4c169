/* The system folders that a VM sees, and the calls that put them together. */
#ifndef LOBBY_LAYERS_H
#define LOBBY_LAYERS_H

#include <stdbool.h>
#include <sys/types.h>

#include "lobby/disk.h"

struct layer {
    const char *name;   /* below "/"; NULL ends */
    const char *system; /* the same as a path */
    const char *at;     /* below a VM's folder: where it is mounted, */
    const char *upper;  /* what the VM wrote over it, */
    const char *work;   /* and the overlay's own place */
    int depth;          /* of folders that a VM's "root" may write in */
    enum disk_what what;
};
extern const struct layer layers[];

/* Both are for a process with one thread, between fork and exec, and set errno. */
/* Becomes `uid` (unless -1), then "root" of a new user and mount name space that maps only that
 * user. */
bool layers_unshare(uid_t uid);
/* Paths are relative or absolute; `thin` over `system` is what shows through. */
bool layers_overlay(const char *system, const char *thin, const char *upper, const char *work,
                    const char *at);

#endif
