/* File trees as one byte stream (docs/files.md): one side sends, the other receives. Shared by the
 * helper on the VM and by exedev; needs nothing but libc and base. Neither side trusts the other:
 * names are single components, opened one at a time without following links, so that nothing is
 * ever read or written outside what the caller named; every length and count has a limit.
 *
 * Memory stays below 16 MB whatever the tree. Blocking; any number of threads at once, each with
 * its own stream. Nothing temporary is left when a call returns, whatever it returns. */
#ifndef TREE_TREE_H
#define TREE_TREE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"

/* The two directions of a stream. read: 1..n bytes, 0 at the end, -1 with err. write: all or false.
 */
struct tree_io {
    ssize_t (*read)(void *arg, void *p, size_t n, struct error *err);
    bool (*write)(void *arg, const void *p, size_t n, struct error *err);
    void *arg;
};

/* Over two blocking descriptors, which stay the caller's. `fds` must outlive the io. */
struct tree_fds {
    int in, out;
};
struct tree_io tree_io_fds(struct tree_fds *fds);

enum tree_kind { TREE_ANY, TREE_FILE, TREE_DIR };

struct tree_source {
    const char *path;           /* its last component may be a link, which is followed */
    enum tree_kind kind;        /* another kind on disk is an error */
    bool follow;                /* links inside are followed, as tar -h does */
    const char *const *exclude; /* globs as tar's --exclude, matched against ./a/b; not for files */
    size_t n_exclude;
};

enum tree_placement {
    TREE_REPLACE, /* a folder: staged beside the target, then swapped with it. A file: renamed over
                     it */
    TREE_MERGE,   /* into an existing folder: every file replaced as a whole, others left alone */
};

struct tree_target {
    const char *path; /* missing parents are made, mode 0777 & ~umask */
    const char *into; /* when path is an existing folder or ends in '/': the name to take in it.
                         NULL: path itself */
    const char
        *inside; /* a folder path is below; what follows it is resolved without links. NULL: none */
    enum tree_kind kind; /* another kind in the stream is an error */
    enum tree_placement placement;
    bool remove; /* TREE_MERGE: delete what the source lacks, the excluded ones apart */
    int mode;    /* of the target itself; -1: the source's */
    const char *const *exclude;
    size_t n_exclude;
};

struct tree_limits { /* 0: the default of tree_limits_default */
    uint64_t entries;
    uint64_t bytes; /* lengths of files, holes included */
    unsigned depth; /* folders in folders */
    unsigned name;  /* bytes of one name */
};
extern const struct tree_limits tree_limits_default;

/* What a transfer did, and had to leave out. */
struct tree_stats {
    uint64_t entries, bytes;    /* seen in the stream: all entries; bytes of files sent */
    uint64_t files;             /* regular files sent whole */
    uint64_t same, same_bytes;  /* files the target had already */
    uint64_t deleted;           /* entries `remove` took away */
    uint64_t vanished, changed; /* files that went away, or were written to, while they were read */
    uint64_t skipped;           /* sockets, pipes, devices: never sent */
    uint64_t stripped;          /* setuid, setgid and sticky bits not taken over */
    uint64_t split;             /* hard links sent as files of their own: too many of them */
    uint64_t total_entries, total_bytes; /* announced before the first one; 0: not asked for */
};

enum tree_note {
    TREE_ENTRY,
    TREE_SAME,
    TREE_DELETED,
    TREE_VANISHED,
    TREE_CHANGED,
    TREE_SKIPPED,
    TREE_DANGLING
};

struct tree_opts {
    bool update;       /* send only what differs by size and time */
    bool checksum;     /* with update: by size and content */
    bool dry_run;      /* nothing is written */
    bool totals;       /* the sender counts first, for progress */
    bool keep_special; /* receiver: setuid, setgid, sticky bits are taken over */
    bool refuse_case;  /* receiver: names in a folder that differ only by case are an error */
    struct tree_limits limits;
    const char *peer; /* names the other side in messages ("the VM"); NULL: "the other side" */
    /* Called for each entry that is sent or received (path as in ./a/b, valid during the call) and,
     * with path NULL, at least each 256 KiB of a file. May be NULL. The other side's VANISHED,
     * CHANGED, SKIPPED, DANGLING and DELETED arrive too, the first hundred of them. */
    void (*progress)(void *arg, enum tree_note note, const char *path,
                     const struct tree_stats *now);
    void *arg;
};

/* Sends n sources, in order, and waits for the receiver's confirmation: true means that every one
 * is in place at the other side. Both sides need the same update, checksum, dry_run and n. */
bool tree_send(const struct tree_source *sources, size_t n, const struct tree_opts *opts,
               struct tree_io *io, struct tree_stats *stats, struct error *err);

/* Receives n targets, each put in place when its last byte is there. On failure those before the
 * failed one stay, and the failed one is as it was (TREE_REPLACE) or holds some whole new files
 * (TREE_MERGE). The other side learns the reason. */
bool tree_receive(const struct tree_target *targets, size_t n, const struct tree_opts *opts,
                  struct tree_io *io, struct tree_stats *stats, struct error *err);

/* Counts what a source would send. */
bool tree_measure(const struct tree_source *source, uint64_t *entries, uint64_t *bytes,
                  struct error *err);

/* Removes dirfd/name and everything below it, following nothing. Absent is success. */
bool tree_remove_at(int dirfd, const char *name, struct error *err);

/* Does an --exclude=pattern of GNU tar (its defaults: wildcards, unanchored, * matches /) leave out
 * the member `name`? */
bool tree_glob(const char *pattern, const char *name);
bool tree_excluded(const char *const *patterns, size_t n, const char *name);

/* The helper's built-ins files-in and files-out (docs/files.md, "Built-ins"): the stream on stdin
 * and stdout. Returns the exit status. */
int tree_in_main(int argc, char **argv);
int tree_out_main(int argc, char **argv);

#endif
