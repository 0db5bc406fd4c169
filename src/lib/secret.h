/* Memory for secrets: pages of its own that no core dump holds, wiped before they go. Thread-safe.
 */
#ifndef LIB_SECRET_H
#define LIB_SECRET_H

#include <stddef.h>

/* NULL gives NULL. */
char *secret_dup(const char *text);
char *secret_dupn(const void *p, size_t n);
/* NULL is fine. */
void secret_free(char *s);
static inline void cleanup_secret_fn(char **s)
{
    secret_free(*s);
}
#define cleanup_secret __attribute__((cleanup(cleanup_secret_fn)))

/* Called first in main: no core dumps of this process or its children. It stays "dumpable" in the
 * kernel's sense, because ssh must open /proc/PID/fd/N. */
void secret_protect_process(void);

#endif
