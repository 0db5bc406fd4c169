#include "lib/secret.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/alloc.h"

/* In front of the text, in the same mapping. */
struct head {
    size_t mapped;
};

char *secret_dupn(const void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t mapped = (sizeof(struct head) + n + 1 + page - 1) / page * page;
    struct head *h = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (h == MAP_FAILED)
        xmalloc((size_t)-1 / 2); /* ends the process with the allocator's message */
    madvise(h, mapped, MADV_DONTDUMP);
    h->mapped = mapped;
    char *text = (char *)(h + 1);
    memcpy(text, p, n);
    text[n] = '\0';
    return text;
}

char *secret_dup(const char *text)
{
    return text ? secret_dupn(text, strlen(text)) : NULL;
}

void secret_free(char *s)
{
    if (!s)
        return;
    struct head *h = (struct head *)(void *)s - 1;
    size_t mapped = h->mapped;
    explicit_bzero(h, mapped);
    munmap(h, mapped);
}

void secret_protect_process(void)
{
    struct rlimit none = {0, 0};
    int fd = open("/proc/self/coredump_filter", O_WRONLY | O_CLOEXEC);

    setrlimit(RLIMIT_CORE, &none);
    /* core(5): the limit does not hold for dumps piped to a program, the filter does. */
    if (fd >= 0) {
        (void)!write(fd, "0", 1);
        close(fd);
    }
}
