/* Where a received tree goes: found, staged, put in place, or left as it was. */
#ifndef TREE_PLACE_H
#define TREE_PLACE_H

#include "tree/stream.h"

struct place {
    const struct tree_target *target;
    char *shown; /* the target's path, for messages */
    int parent;  /* the folder that holds it; -1: missing (dry run only) */
    char *name;  /* in parent; NULL: parent itself is the target (`.` or `/`) */
    char *made;  /* the parent's path, when folders of it were made here */
    unsigned n_made;
    int root;      /* the folder that entries go to; -1: none yet */
    bool staged;   /* root is new and nobody sees it yet */
    bool in_place; /* the staged entries are moved into the existing folder, which cannot be swapped
                    */
    bool existed;
    bool done;    /* committed */
    int work;     /* folder for what is unfinished; -1: none */
    int work_in;  /* holds `work`, borrowed from parent or root or `existing` */
    int existing; /* in_place: the target */
    char work_name[32];
    char file_name[32]; /* the unfinished file beside the target; empty: none */
};

/* Finds the folder that holds the target, making it unless dry_run. */
bool place_open(struct place *p, const struct tree_target *target, bool dry_run, struct error *err);
/* The target as it is, a folder: a descriptor to look at (-1: there is none). */
int place_peek(const struct place *p);
/* Something else than a folder, or a link to one, is at the target. */
bool place_is_no_dir(const struct place *p);

/* A folder: sets root (and work). */
bool place_begin_dir(struct place *p, struct error *err);
/* Puts it in place; m: its mode and time, mode already masked. */
bool place_commit_dir(struct place *p, const struct meta *m, struct error *err);

/* A file: a descriptor to write to, mode 0600. */
int place_begin_file(struct place *p, struct error *err);
bool place_commit_file(struct place *p, struct error *err);

/* Removes whatever is unfinished. After a commit: closes. Always to be called. */
void place_end(struct place *p);

/* A fresh name for something unfinished. */
void place_temp_name(char out[32]);

#endif
