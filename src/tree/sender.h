/* The sender's parts among themselves: send.c walks, asks and takes the answers, entry.c puts one
 * entry into the stream. */
#ifndef TREE_SENDER_H
#define TREE_SENDER_H

#include "tree/links.h"
#include "tree/stream.h"
#include "tree/walk.h"

struct queued;

struct sender {
    const struct tree_source *src;
    const struct tree_opts *opts;
    const struct tree_limits *limits;
    struct out out;
    struct in in;
    struct links links;
    struct tree_stats *stats;
    struct queued *queue; /* ring of TREE_WINDOW */
    unsigned head, count,
        unanswered_at; /* unanswered_at: how many of the queue have been passed by answers */
    size_t queued_bytes;
    unsigned queued_dirs, notes;
    bool io_failed, refused;
    char *buffer; /* for checksums */
};

/* A walk's note (arg: the sender), for the receiver and for progress. */
bool send_note(void *arg, enum tree_note n, const char *path, struct error *err);
/* answer: '=' when the receiver has the file. */
bool send_entry(struct sender *s, const struct item *it, char answer, struct error *err);
/* Asks whether the receiver has it; with checksum that reads the whole file. */
bool send_offer(struct sender *s, const struct item *it, struct error *err);

#endif
