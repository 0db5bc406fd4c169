/* A stream with one entry more than the limit, made as it is read. EXEDEV_ENTRIES=10000000 takes
 * the default limit (and prints time and memory); ordinarily a smaller one is set. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "tree_help.h"

enum { IN_A_FOLDER = 1000 };

/* Folders of files without content, for ever. */
struct endless {
    struct buf ready;
    size_t at;
    uint64_t entries;
    bool dry_run;
};

static void record(struct buf *b, char type, const struct buf *payload)
{
    buf_putc(b, type);
    buf_put_u32(b, (uint32_t)payload->len);
    if (payload->len)
        buf_put(b, payload->data, payload->len);
}

static void entry(struct endless *e, char type, const char *name)
{
    cleanup_buf struct buf p = {0};

    buf_put_u32(&p, 0755);
    buf_put_u64(&p, 1000000000);
    buf_put_u32(&p, 0);
    if (type == 'F') {
        buf_put_u64(&p, 0);
        buf_put_u32(&p, 0);
    }
    buf_put_str(&p, name, strlen(name));
    record(&e->ready, type, &p);
    e->entries++;
    if (type == 'D' || e->dry_run)
        return;
    p.len = 0;
    buf_put_u64(&p, 0);
    buf_put_u64(&p, 0xEF46DB3751D8E999u); /* XXH64 of nothing */
    record(&e->ready, 'K', &p);
}

static void make_more(struct endless *e)
{
    cleanup_buf struct buf none = {0};
    char name[32];

    snprintf(name, sizeof name, "%llu", (unsigned long long)e->entries);
    if (e->entries > 1)
        record(&e->ready, 'E', &none);
    entry(e, 'D', name);
    for (int i = 0; i < IN_A_FOLDER; i++) {
        snprintf(name, sizeof name, "file %d", i);
        entry(e, 'F', name);
    }
}

static ssize_t endless_read(void *arg, void *p, size_t n, struct error *err)
{
    struct endless *e = arg;

    (void)err;
    if (e->at == e->ready.len) {
        e->at = e->ready.len = 0;
        make_more(e);
    }
    if (n > e->ready.len - e->at)
        n = e->ready.len - e->at;
    memcpy(p, e->ready.data + e->at, n);
    e->at += n;
    return (ssize_t)n;
}

static bool nowhere(void *arg, const void *p, size_t n, struct error *err)
{
    (void)arg;
    (void)p;
    (void)n;
    (void)err;
    return true;
}

static void refused_at(uint64_t limit, bool dry_run, bool say)
{
    cleanup_error struct error err = {0};
    cleanup_free char *dir = scratch(), *target = below(dir, "t");
    struct endless e = {.dry_run = dry_run};
    struct buf p = {0};
    struct tree_io io = {endless_read, nowhere, &e};
    struct tree_target t = {.path = target, .mode = -1};
    struct tree_opts opts = {.dry_run = dry_run, .limits = {.entries = limit}};
    struct tree_stats stats;
    struct rusage before, after;

    buf_put(&p, "EXDTREE\1", 8);
    buf_put_u32(&p, dry_run ? 4 : 0);
    record(&e.ready, 'V', &p);
    p.len = 0;
    buf_put_u32(&p, 0);
    record(&e.ready, 'G', &p);
    buf_free(&p);
    entry(&e, 'D', "");
    getrusage(RUSAGE_SELF, &before);
    int64_t start = now_ms();
    assert_false(tree_receive(&t, 1, &opts, &io, &stats, &err));
    int64_t took = now_ms() - start;
    getrusage(RUSAGE_SELF, &after);
    assert_int_equal(err.code, ERR_TOO_LARGE);
    char says[64];
    snprintf(says, sizeof says, "more than %llu entries, the limit", (unsigned long long)limit);
    assert_non_null(strstr(err.msg, says));
    assert_int_equal(stats.entries, limit + 1);
    assert_int_equal(count_entries(dir), 0);
#ifndef __SANITIZE_ADDRESS__
    assert_true(after.ru_maxrss - before.ru_maxrss < 16 << 10);
#endif
    if (say)
        fprintf(stderr,
                "%llu entries%s: %lld ms until all was as before, peak %ld KiB (%ld before)\n",
                (unsigned long long)stats.entries, dry_run ? ", dry run" : "", (long long)took,
                after.ru_maxrss, before.ru_maxrss);
    buf_free(&e.ready);
}

static void one_entry_too_many(void **state)
{
    const char *asked = getenv("EXEDEV_ENTRIES");

    (void)state;
    if (asked)
        refused_at(strtoull(asked, NULL, 10), getenv("EXEDEV_DRY_RUN") != NULL, true);
    refused_at(300000, true, false);
    refused_at(20000, false, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(one_entry_too_many)};

    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
