/* The records of a stream (docs/files.md): framing, bounds, buffers. Not shared between threads. */
#ifndef TREE_STREAM_H
#define TREE_STREAM_H

#include "base/buf.h"
#include "tree/tree.h"

enum record {
    /* sender */
    REC_VERSION = 'V',
    REC_PLAN = 'P',
    REC_BEGIN = 'G',
    REC_DIR = 'D',
    REC_LEAVE = 'E',
    REC_FILE = 'F',
    REC_SAME = 'S',
    REC_SYMLINK = 'L',
    REC_HARDLINK = 'H',
    REC_DATA = 'B',
    REC_HOLE = 'Z',
    REC_END_FILE = 'K',
    REC_OFFER_DIR = 'd',
    REC_OFFER_LEAVE = 'e',
    REC_OFFER_FILE = 'f',
    REC_END = 'X',
    /* both */
    REC_NOTE = 'W',
    REC_FAILED = 'Q',
    /* receiver */
    REC_ANSWERS = 'A',
    REC_RESULT = 'R',
};

#define TREE_MAGIC "EXDTREE\1"
#define TREE_FLAG_UPDATE 1u
#define TREE_FLAG_CHECKSUM 2u
#define TREE_FLAG_DRY_RUN 4u

enum {
    TREE_MAX_DATA = 256 * 1024, /* payload of REC_DATA */
    TREE_MAX_SMALL = 16 * 1024, /* payload of any other record */
    TREE_MAX_NAME = 255,
    TREE_MAX_LINK = 4095,
    TREE_MAX_MESSAGE = 8192,
    TREE_MAX_NOTE = 4096,
    TREE_MAX_NOTES = 100,
    TREE_MAX_BACK_NOTES =
        16 * 1024,      /* bytes of the receiver's notes: they fit a pipe, like the answers */
    TREE_WINDOW = 4096, /* unanswered offers: their answers always fit a pipe, so nobody waits for
                           two things */
};

struct meta {
    uint32_t mode; /* 07777 */
    int64_t mtime;
    uint32_t nsec;
};

struct out {
    struct tree_io *io;
    unsigned char *data;
    size_t len, cap, start; /* start: of the record being put, while `open` */
    bool open;
};

void out_init(struct out *o, struct tree_io *io, size_t cap);
void out_free(struct out *o);
/* Starts a record that will have at most max bytes of payload; there is room for them then. */
bool out_begin(struct out *o, enum record type, size_t max, struct error *err);
void out_u8(struct out *o, uint8_t v);
void out_u32(struct out *o, uint32_t v);
void out_u64(struct out *o, uint64_t v);
void out_meta(struct out *o, const struct meta *m);
void out_str(struct out *o, const void *p, size_t n);
void out_end(struct out *o);
/* Takes back a record that was begun. */
void out_undo(struct out *o);
bool out_flush(struct out *o, struct error *err);
bool out_note(struct out *o, enum tree_note note, const char *path, struct error *err);
/* REC_FAILED or REC_RESULT's reason: code, errno, message. */
void out_reason(struct out *o, const struct error *reason);

struct in {
    struct tree_io *io;
    struct out *flush; /* sent before a read blocks; may be NULL */
    unsigned char *data;
    size_t pos, len, cap;
};

void in_init(struct in *in, struct tree_io *io, struct out *flush);
void in_free(struct in *in);
/* The next record's header. ERR_NETWORK when the stream ends here. */
bool in_next(struct in *in, enum record *type, size_t *len, struct error *err);
/* A small record's whole payload; valid until the next call. */
bool in_payload(struct in *in, size_t len, struct cursor *c, struct error *err);
/* Some of the payload, 1..max bytes. 0: error. */
size_t in_some(struct in *in, size_t max, const unsigned char **p, struct error *err);
/* True when all fields were there and nothing more; else ERR_PROTOCOL. */
bool in_done(const struct cursor *c, enum record type, struct error *err);
void in_meta(struct cursor *c, struct meta *m);
/* The other side's reason, checked. */
bool in_reason(struct cursor *c, struct error *reason);
/* Moves a note into stats and the callback. */
bool in_note(struct cursor *c, const struct tree_opts *opts, struct tree_stats *stats,
             struct error *err);

/* Names in messages may hold anything: makes control characters visible. */
void error_visible(struct error *err);

bool in_unexpected(enum record type, struct error *err);

#endif
