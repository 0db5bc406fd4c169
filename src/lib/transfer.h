/* Files to and from a VM, many in one stream (docs/files.md). Thread-safe; any number side by side
 * on one link, in both directions and beside commands. Each call blocks its caller's thread and
 * needs less than 16 MB whatever the size. When it returns, nothing temporary is left on either
 * side (on the VM: unless the link broke; then the helper clears it away by itself). */
#ifndef LIB_TRANSFER_H
#define LIB_TRANSFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/deadline.h"
#include "lib/cancel.h"
#include "lib/link.h"
#include "tree/tree.h"

struct transfer_stats {
    uint64_t files, bytes; /* sent whole; with dry_run: that would be */
    uint64_t entries;      /* everything seen: folders, files, links */
    uint64_t same;         /* files the target had already */
    uint64_t deleted;      /* by `remove` */
    uint64_t vanished, changed, skipped, stripped,
        split; /* left out or altered: tree.h's tree_stats */
};

/* Zero-initialised: replace the target by the source. */
struct transfer_opts {
    bool merge;            /* into an existing folder, each file replaced as a whole */
    bool update, checksum; /* only what differs: by size and time, or by content */
    bool remove;           /* with merge: delete what the source lacks (excluded entries apart) */
    bool follow;           /* send what links lead to (tar -h) */
    bool dry_run;
    bool refuse_case;           /* pull: names that differ only by case are an error */
    const char *const *exclude; /* globs as tar's --exclude */
    size_t n_exclude;
    struct tree_limits limits; /* of what a VM may send; 0: defaults */
    int64_t timeout_ms;        /* 0: none */
    struct cancel *cancel;
    /* Bytes that were moved, those and what the target had already, and all there are (0: not known
     * yet). Counting them first costs one walk of the source. */
    void (*progress)(uint64_t moved, uint64_t done, uint64_t total, void *progress_arg);
    /* Each entry as it goes, and what was left out or deleted (at most the first hundred of those);
     * path as in ./a/b, its bytes unchecked: make it visible before printing. */
    void (*entry)(enum tree_note note, const char *path, void *progress_arg);
    void *progress_arg;
};

/* One of several things in one transfer. Paths on the VM are relative to the home directory. */
struct transfer_item {
    const char *local, *remote;
    enum tree_kind kind; /* TREE_ANY: either */
    int mode;            /* of the target itself; -1: the source's */
    /* pull: a folder `local` is below; what follows it is resolved without links */
    const char *inside;
    const char
        *into; /* when the target is an existing folder or ends in '/': the name to take in it */
    bool follow;
    const char *const *exclude;
    size_t n_exclude;
};

/* Stats are added to what is in *stats (may be NULL). The message says which side failed at what;
 * a full disk has err->sys ENOSPC. */
bool transfer_push(struct link *l, const char *local, const char *remote,
                   const struct transfer_opts *opts, struct transfer_stats *stats,
                   struct error *err);
bool transfer_pull(struct link *l, const char *remote, const char *local,
                   const struct transfer_opts *opts, struct transfer_stats *stats,
                   struct error *err);

/* Items in their order, each placed when it is complete; the first failure ends it. opts' exclude
 * and follow are not used: the items have their own. */
bool transfer_push_items(struct link *l, const struct transfer_item *items, size_t n,
                         const struct transfer_opts *opts, struct transfer_stats *stats,
                         struct error *err);
bool transfer_pull_items(struct link *l, const struct transfer_item *items, size_t n,
                         const struct transfer_opts *opts, struct transfer_stats *stats,
                         struct error *err);

#endif
