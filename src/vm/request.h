/* PROTOCOL.vm section 4: what OPEN asks for, and section 1: a frame's head. Pure functions over
 * untrusted bytes. */
#ifndef VM_REQUEST_H
#define VM_REQUEST_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"

struct frame {
    uint32_t length;
    uint8_t type;
    uint8_t channel;
    uint32_t stream;
};

/* VM_HEADER bytes. False: they break a rule of section 1. */
bool frame_parse(const void *p, struct frame *out);
void frame_write(void *p, uint32_t length, uint8_t type, uint8_t channel, uint32_t stream);

struct request {
    struct buf raw; /* owns the text that the pointers below lead into */
    uint8_t kind;
    uint32_t flags, timeout_ms, credit;
    uint16_t rows, cols;
    char *marker, *cwd;
    char **argv; /* argc and a NULL; argv[-1] exists and is spare */
    uint32_t argc;
    char **envp; /* envc and a NULL */
    uint32_t envc;
    char **block; /* owns argv and envp */
};

enum request_result {
    REQUEST_OK,
    REQUEST_BROKEN,   /* not what section 4 says: ends the session */
    REQUEST_TOO_LONG, /* a string or all of them: FAIL with E2BIG */
    REQUEST_INVALID,  /* FAIL with EINVAL */
};

/* Takes raw over, in every case; free with request_free. */
enum request_result request_parse(struct request *r, struct buf *raw);
void request_free(struct request *r);

#endif
