/* Walks a source, one entry at a time, depth first, following nothing unless asked to. */
#ifndef TREE_WALK_H
#define TREE_WALK_H

#include "base/buf.h"
#include "tree/fs.h"
#include "tree/tree.h"

/* An open folder, kept as long as the walk or a queued entry needs it. */
struct dir {
    int fd;
    unsigned refs;
};
struct dir *dir_ref(struct dir *d);
void dir_unref(struct dir *d);

enum item_kind { ITEM_DIR, ITEM_LEAVE, ITEM_FILE, ITEM_SYMLINK };

struct item {
    enum item_kind kind;
    bool root;        /* the source itself */
    struct dir *dir;  /* holds it; NULL for a root, which is opened by its path */
    const char *path; /* ./a/b; valid until the next walk_next. A root file: the source's path */
    size_t name;      /* where its name begins in path */
    struct stat st;
};

struct frame;

struct walk {
    const struct tree_source *src;
    unsigned max_depth;
    /* Something left out. False stops the walk. */
    bool (*note)(void *arg, enum tree_note note, const char *path, struct error *err);
    void *arg;
    struct buf path;
    struct frame *stack;
    unsigned depth, cap;
    bool started;
};

void walk_init(struct walk *w, const struct tree_source *src, unsigned max_depth);
void walk_free(struct walk *w);
/* 1: *item is set. 0: the end. -1: err. */
int walk_next(struct walk *w, struct item *item, struct error *err);

#endif
