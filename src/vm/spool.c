#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "vm/vm.h"

#define SPOOL_MEM (256u << 10)
/* Two channels make up VM_MAX_SPOOL; twice VM_MAX_CREDIT, so that a client that is there never
 * meets the limit. */
#define SPOOL_RING (VM_MAX_SPOOL / 2)

struct spool *spool_new(void)
{
    struct spool *sp = xcalloc(1, sizeof *sp);

    sp->fd = -1;
    return sp;
}

void spool_free(struct spool *sp)
{
    if (!sp)
        return;
    if (sp->fd >= 0)
        close(sp->fd);
    buf_free(&sp->mem);
    free(sp);
}

uint64_t spool_room(const struct spool *sp, uint64_t keep)
{
    uint64_t held = sp->end - keep;

    return held < SPOOL_RING ? SPOOL_RING - held : 0;
}

/* The whole range [at, at + n) of the ring, in one piece or two. */
static bool ring(struct spool *sp, bool write, uint64_t at, char *p, size_t n)
{
    while (n) {
        off_t off = (off_t)(at % SPOOL_RING);
        size_t part = n < SPOOL_RING - (size_t)off ? n : SPOOL_RING - (size_t)off;
        ssize_t done = write ? pwrite(sp->fd, p, part, off) : pread(sp->fd, p, part, off);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return false;
        at += (uint64_t)done;
        p += done;
        n -= (size_t)done;
    }
    return true;
}

/* A file that has no name as soon as it is there: nothing to remove later. */
static int nameless(const char *dir)
{
    cleanup_free char *path = xasprintf("%s/spool.XXXXXX", dir ? dir : "/tmp");
    int fd = mkostemp(path, O_CLOEXEC);

    if (fd >= 0)
        unlink(path);
    return fd;
}

bool spool_add(struct spool *sp, const char *dir, const void *p, size_t n)
{
    if (sp->fd < 0 && sp->mem.len + n <= SPOOL_MEM) {
        buf_put(&sp->mem, p, n);
        sp->end += n;
        return true;
    }
    if (sp->fd < 0) {
        sp->fd = nameless(dir);
        if (sp->fd < 0)
            return false;
        if (!ring(sp, true, sp->base, sp->mem.data, sp->mem.len)) {
            close(sp->fd);
            sp->fd = -1;
            return false;
        }
        buf_free(&sp->mem);
    }
    if (!ring(sp, true, sp->end, (char *)p, n))
        return false;
    sp->end += n;
    if (sp->end - sp->base > SPOOL_RING)
        sp->base = sp->end - SPOOL_RING;
    return true;
}

bool spool_read(struct spool *sp, uint64_t at, void *p, size_t n)
{
    if (at < sp->base || at > sp->end || n > sp->end - at)
        return false;
    if (sp->fd >= 0)
        return ring(sp, false, at, p, n);
    memcpy(p, sp->mem.data + (at - sp->base), n);
    return true;
}
