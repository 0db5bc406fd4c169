/* Generated trees and their comparison, for the tests of src/tree. */
#ifndef TREE_HELP_H
#define TREE_HELP_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "tree/tree.h"

uint64_t random_next(uint64_t *seed);
unsigned random_below(uint64_t *seed, unsigned n);

/* A new empty folder; ends with the process's removal of scratch_end. */
char *scratch(void);
void scratch_end(void);
/* dir/name, owned. */
char *below(const char *dir, const char *name);

/* Fills the folder (made here) with about n entries of every kind a tree can have. */
void tree_generate(const char *path, uint64_t *seed, unsigned n);
/* Changes, adds and removes some entries, so that sizes or times differ. */
void tree_alter(const char *path, uint64_t *seed);
/* The same, and *.keep files; content: and content that neither size nor time shows; full: folders
 * with something in them may be where something else was. */
void tree_alter_slyly(const char *path, bool content, bool full, uint64_t *seed);
/* The range that VARIABLE names (`7`, `1-3000`), to run some of the generated cases again; else
 * what is given. */
void seed_range(const char *variable, uint64_t *first, uint64_t *last);

/* NULL when the trees are equal entry by entry (names, kinds, modes, times, contents, links, hard
 * links, holes); else what differs, owned. */
char *tree_differ(const char *a, const char *b);
/* As tree_differ, with the special bits of a taken as unset. */
char *tree_differ_plain(const char *a, const char *b);

/* Names of exedev's unfinished things below path, how many. */
unsigned leftovers(const char *path);
unsigned count_entries(const char *path);

struct run {
    struct tree_opts opts; /* of both sides */
    struct tree_stats sent, got;
    struct error send_err, err;
    bool send_ok, ok;
    int64_t cut_after; /* the stream ends after so many bytes; -1: never */
};
/* Sender and receiver over pipes. */
void run_transfer(struct run *r, const struct tree_source *s, const struct tree_target *t,
                  size_t n);
/* The test fails, naming the seed, unless both ends succeeded; unless both trees are equal. */
void must(struct run *r, const char *what, uint64_t seed);
void must_equal(const char *a, const char *b, const char *what, uint64_t seed);
void run_end(struct run *r);
/* Bytes a whole stream has. */
int64_t run_stream_length(const struct tree_source *s, size_t n, unsigned char **copy);
/* The receiver alone, fed these bytes. */
bool receive_bytes(const void *p, size_t n, const struct tree_target *t, size_t n_targets,
                   const struct tree_opts *opts, struct error *err);

#endif
