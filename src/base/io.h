/* Files and descriptors, whole or not at all. Thread-safe; no state. */
#ifndef BASE_IO_H
#define BASE_IO_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"

/* Writes all n bytes to a blocking or non-blocking descriptor, restarting after EINTR and waiting
 * on EAGAIN up to the deadline. */
bool io_write_all(int fd, const void *p, size_t n, struct deadline d, struct error *err);

/* Reads a whole regular file of at most max bytes (ERR_TOO_LARGE beyond; ERR_NOT_FOUND when
 * absent). Follows links. */
bool io_read_file(const char *path, size_t max, struct buf *out, struct error *err);

/* The same from a descriptor of any kind, to its end; name is for messages. */
bool io_read_fd(int fd, const char *name, size_t max, struct buf *out, struct error *err);

/* Writes beside the target (same folder, mode from the first byte), fsyncs, renames, fsyncs the
 * folder: after a crash the old file is there, or the new one. */
bool io_write_file(const char *path, mode_t mode, const void *p, size_t n, struct error *err);

/* mkdir -p; folders that are made get the mode. */
bool io_mkdirs(const char *path, mode_t mode, struct error *err);

bool io_set_nonblock(int fd, bool on);
bool io_set_cloexec(int fd, bool on);

/* Lower-case, NUL-terminated. */
void io_hex(const void *p, size_t n, char *out /* 2n + 1 */);
/* n random bytes from the kernel; never fails. */
void io_random(void *p, size_t n);

#endif
