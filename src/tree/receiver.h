/* The receiver's parts among themselves: receive.c reads records, apply.c carries them out,
 * delete.c takes away what the source lacks, compare.c answers offers. */
#ifndef TREE_RECEIVER_H
#define TREE_RECEIVER_H

#include "tree/hash.h"
#include "tree/names.h"
#include "tree/place.h"
#include "tree/stream.h"

/* A folder that entries are being put into. */
struct level {
    int fd;     /* -1: does not exist (dry run) */
    int old;    /* staged with update: the same folder of the old tree; -1: none */
    bool fresh; /* made by this transfer: nothing of before is in it */
    size_t path_len;
    struct meta meta;
    struct names seen, folded;
};

struct incoming {
    bool active;
    int fd; /* -1: nothing is written (dry run) */
    struct meta meta;
    uint32_t link;
    uint64_t pos;
    bool hole_last;
    struct hash64 hash;
    char *name; /* owned; empty: the root */
};

struct receiver {
    const struct tree_target *targets, *target;
    size_t n, next; /* next: the mapping that may begin */
    const struct tree_opts *opts;
    struct tree_limits limits;
    struct in in;
    struct out out;
    struct tree_stats *stats;
    struct place place;
    bool placed, root_done; /* root_done: complete, to be put in place by apply_commit */
    bool root_is_dir;
    struct meta root_meta;
    struct level *stack;
    unsigned depth, cap;
    struct buf path; /* of the entry at hand: ./a/b */
    struct incoming file;
    uint64_t key;
    uint32_t names; /* in all sets together */
    size_t note_bytes;
    unsigned notes;

    int *look; /* folders of the offers' walk; -1: none there */
    unsigned look_depth, look_cap;
    bool look_done;
    uint64_t offered;
    struct buf answers;
    char *buffer;
};

/* More names than this at once (in the folders from the root to the current one) do not fit the
 * promised memory. */
enum { MAX_SEEN = 390000, COMPARE_BUFFER = 128 * 1024 };

const char *receiver_peer(const struct receiver *r);
void receiver_tell(struct receiver *r, enum tree_note note, const char *path);
bool receiver_note(struct receiver *r, enum tree_note note, const char *path, struct error *err);
uint32_t receiver_mode(struct receiver *r, uint32_t mode, bool root);

/* Names are checked by the caller; an empty one is the root. All set path for messages. */
bool apply_dir(struct receiver *r, const char *name, const struct meta *m, struct error *err);
bool apply_leave(struct receiver *r, struct error *err);
bool apply_file(struct receiver *r, const char *name, const struct meta *m, uint32_t link,
                struct error *err);
bool apply_data(struct receiver *r, const void *p, size_t n, struct error *err);
bool apply_hole(struct receiver *r, uint64_t n, struct error *err);
bool apply_end_file(struct receiver *r, uint64_t total, uint64_t hash, struct error *err);
bool apply_same(struct receiver *r, const char *name, const struct meta *m, uint64_t size,
                uint32_t link, struct error *err);
bool apply_symlink(struct receiver *r, const char *name, const struct meta *m, const char *target,
                   struct error *err);
bool apply_hardlink(struct receiver *r, const char *name, uint32_t link, bool last,
                    struct error *err);
/* Puts the complete mapping in place: once the sender has gone on, or ended properly. */
bool apply_commit(struct receiver *r, struct error *err);
/* Closes what is open, removes what is unfinished. */
void apply_abort(struct receiver *r);

/* Deletes what is in the folder and did not come, but for the excluded. */
bool delete_others(struct receiver *r, struct level *l, struct error *err);
/* Is there an excluded entry below the folder dirfd/name, whose path is r->path? */
bool delete_would_spare(struct receiver *r, int dirfd, const char *name);

bool compare_dir(struct receiver *r, const char *name, struct error *err);
bool compare_leave(struct receiver *r, struct error *err);
bool compare_file(struct receiver *r, const char *name, const struct meta *m, uint64_t size,
                  const uint64_t sum[2], struct error *err);
/* Moves the answers into r->out. */
bool compare_flush(struct receiver *r, struct error *err);
void compare_end(struct receiver *r);

#endif
