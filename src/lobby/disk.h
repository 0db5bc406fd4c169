/* Trees of files on this machine. Thread-safe. */
#ifndef LOBBY_DISK_H
#define LOBBY_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/* Removes a file or tree, whatever the modes of its folders; true when it was not there. */
bool disk_remove(const char *path, struct error *err);
/* Copies a tree with everything overlayfs keeps in it (whiteouts, attributes), sharing blocks where
 * the file system can. `to` must not exist. */
bool disk_copy(const char *from, const char *to, struct error *err);
/* As io_write_file without the fsyncs: for files that a crash may take. Owner when uid is not -1.
 */
bool disk_put(const char *path, mode_t mode, uid_t uid, const void *p, size_t n, struct error *err);
/* One folder, which may be there; owner when uid is not -1. */
bool disk_mkdir(const char *path, mode_t mode, uid_t uid, struct error *err);
enum disk_what { DISK_FOLDERS, DISK_FILES, DISK_LINKS };
/* The folders of `from` again under `to`, at most `depth` deep; with DISK_FILES, the regular files
 * that everybody may read too, with DISK_LINKS its symbolic links as well. The rest is left out. */
bool disk_skeleton(const char *from, const char *to, int depth, enum disk_what what, uid_t uid,
                   struct error *err);

#endif
