#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree_help.h"

static void put(const char *dir, const char *name, const char *text)
{
    cleanup_free char *path = below(dir, name);
    cleanup_file FILE *f = fopen(path, "w");

    assert_non_null(f);
    fputs(text, f);
}

static void special_bits_stay_behind(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *dst = below(dir, "x");
    put(src, "su", "x");
    cleanup_free char *su = below(src, "su");
    assert_int_equal(chmod(su, 06755), 0);
    struct tree_source s = {.path = src};
    struct tree_target t = {.path = dst, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    must(&r, "special", 0);
    cleanup_free char *diff = tree_differ_plain(src, dst);
    assert_null(diff);
    assert_int_equal(r.sent.stripped, 1);
    run_end(&r);
}

static void files_are_placed_whole(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *from = below(src, "f"),
                      *to = below(dir, "deep/er/f");
    put(src, "f", "new");
    struct tree_source s = {.path = from, .kind = TREE_FILE};
    struct tree_target t = {.path = to, .kind = TREE_FILE, .mode = 0600};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    must(&r, "file", 0);
    struct stat st;
    assert_int_equal(stat(to, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(st.st_size, 3);
    run_end(&r);

    /* Over a link: the link goes, what it led to stays. */
    put(src, "victim", "victim");
    cleanup_free char *victim = below(src, "victim"), *link = below(dir, "link");
    assert_int_equal(symlink(victim, link), 0);
    t.path = link;
    struct run r2 = {.cut_after = -1};
    run_transfer(&r2, &s, &t, 1);
    must(&r2, "over a link", 0);
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    assert_int_equal(stat(victim, &st), 0);
    assert_int_equal(st.st_size, 6);
    run_end(&r2);
}

/* Several mappings in one stream; a failure leaves the ones before it and the old of its own. */
static void mappings_go_in_order(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *a = below(dir, "a"),
                      *b = below(dir, "b"), *f = below(src, "f");
    put(src, "f", "text");
    assert_int_equal(mkdir(b, 0755), 0);
    put(b, "old", "old");
    struct tree_source s[] = {{.path = f}, {.path = "/nonexistent/x"}};
    struct tree_target t[] = {{.path = a, .mode = -1}, {.path = b, .mode = -1}};
    struct run r = {.cut_after = -1};
    run_transfer(&r, s, t, 2);
    assert_false(r.ok);
    assert_false(r.send_ok);
    assert_int_equal(r.send_err.code, ERR_NOT_FOUND);
    assert_int_equal(r.err.code, ERR_NOT_FOUND);
    assert_non_null(strstr(r.err.msg, "/nonexistent/x"));
    cleanup_free char *old = below(b, "old");
    assert_int_equal(access(a, F_OK), 0);
    assert_int_equal(access(old, F_OK), 0);
    assert_int_equal(leftovers(dir), 0);
    run_end(&r);
}

static void dry_run_writes_nothing(void **state)
{
    (void)state;
    uint64_t seed = 5;
    cleanup_free char *dir = scratch(), *src = below(dir, "s"), *dst = below(dir, "d"),
                      *copy = below(dir, "c");
    tree_generate(src, &seed, 20);
    tree_generate(dst, &seed, 20);
    struct tree_source s = {.path = dst};
    struct tree_target t = {.path = copy, .mode = -1};
    struct run a = {.cut_after = -1, .opts = {.keep_special = true}};
    run_transfer(&a, &s, &t, 1);
    must(&a, "copy", 0);
    s.path = src;
    t = (struct tree_target){.path = dst, .mode = -1, .placement = TREE_MERGE, .remove = true};
    struct run b = {.cut_after = -1, .opts = {.dry_run = true, .update = true}};
    run_transfer(&b, &s, &t, 1);
    must(&b, "dry run", 0);
    assert_true(b.sent.files > 0 && b.sent.deleted > 0);
    must_equal(copy, dst, "dry run", 0);
    run_end(&a);
    run_end(&b);
}

static void follow_takes_what_links_lead_to(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *dst = below(dir, "x"),
                      *other = scratch();
    put(other, "file", "followed");
    cleanup_free char *dlink = below(src, "dir"), *flink = below(src, "flink"),
                      *gone = below(src, "gone"), *file = below(other, "file");
    assert_int_equal(symlink(other, dlink), 0);
    assert_int_equal(symlink(file, flink), 0);
    assert_int_equal(symlink("nowhere", gone), 0);
    struct tree_source s = {.path = src, .follow = true};
    struct tree_target t = {.path = dst, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    must(&r, "follow", 0);
    assert_int_equal(r.sent.vanished, 1);
    assert_int_equal(count_entries(dst), 3);
    struct stat st;
    cleanup_free char *got = below(dst, "dir/file");
    assert_int_equal(lstat(got, &st), 0);
    assert_int_equal(st.st_size, 8);
    run_end(&r);

    cleanup_free char *loop = below(src, "loop");
    assert_int_equal(symlink(".", loop), 0);
    struct run r2 = {.cut_after = -1};
    run_transfer(&r2, &s, &t, 1);
    assert_false(r2.ok);
    assert_non_null(strstr(r2.err.msg, "cannot be followed"));
    assert_int_equal(leftovers(dir), 0);
    run_end(&r2);
}

static void no_pipes_no_sockets(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *dst = below(dir, "x"),
                      *fifo = below(src, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    struct tree_source s = {.path = src};
    struct tree_target t = {.path = dst, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    must(&r, "fifo", 0);
    assert_int_equal(r.got.skipped, 1);
    assert_int_equal(count_entries(dst), 0);
    run_end(&r);
}

/* Paths far over PATH_MAX. */
static void deep_trees_survive(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *dst = below(dir, "x");
    char name[201];
    memset(name, 'd', 200);
    name[200] = 0;
    int fd = open(src, O_RDONLY | O_DIRECTORY);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(mkdirat(fd, name, 0755), 0);
        int next = openat(fd, name, O_RDONLY | O_DIRECTORY);
        close(fd);
        fd = next;
    }
    close(openat(fd, "leaf", O_WRONLY | O_CREAT, 0644));
    close(fd);
    struct tree_source s = {.path = src};
    struct tree_target t = {.path = dst, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    must(&r, "deep", 0);
    assert_int_equal(r.got.entries, 102);
    run_end(&r);
    struct run r2 = {.cut_after = -1, .opts = {.limits = {.depth = 50}}};
    run_transfer(&r2, &s, &t, 1);
    assert_false(r2.ok);
    assert_int_equal(r2.err.code, ERR_TOO_LARGE);
    run_end(&r2);
}

/* A later mapping may not be led out by a link that an earlier one brought. */
static void later_targets_follow_no_planted_link(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *out = scratch(), *a = below(dir, "a"),
                      *b = below(dir, "a/sub/file"), *f = below(src, "f"),
                      *link = below(src, "sub");
    put(src, "f", "x");
    assert_int_equal(symlink(out, link), 0);
    struct tree_source s[] = {{.path = src}, {.path = f}};
    struct tree_target t[] = {{.path = a, .mode = -1}, {.path = b, .mode = -1, .inside = a}};
    struct run r = {.cut_after = -1};
    run_transfer(&r, s, t, 2);
    assert_false(r.ok);
    assert_int_equal(r.err.code, ERR_UNSAFE);
    assert_int_equal(count_entries(out), 0);
    run_end(&r);
}

static void into_takes_the_name(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *new = below(dir, "new"),
                      *slash = below(dir, "made/");
    put(src, "f", "x");
    cleanup_free char *f = below(src, "f"), *one = below(dir, "g"), *two = below(dir, "made/g"),
                      *three = below(dir, "new");
    struct tree_source s[] = {{.path = f}, {.path = f}, {.path = f}};
    struct tree_target t[] = {{.path = dir, .into = "g", .mode = -1},
                              {.path = slash, .into = "g", .mode = -1},
                              {.path = new, .into = "g", .mode = -1}};
    struct run r = {.cut_after = -1};
    run_transfer(&r, s, t, 3);
    must(&r, "into", 0);
    struct stat st;
    assert_true(stat(one, &st) == 0 && S_ISREG(st.st_mode));
    assert_true(stat(two, &st) == 0 && S_ISREG(st.st_mode));
    assert_true(stat(three, &st) == 0 && S_ISREG(st.st_mode));
    run_end(&r);
}

static void excluded_entries_are_not_deleted(void **state)
{
    (void)state;
    const char *const patterns[] = {"*.keep"};
    cleanup_free char *src = scratch(), *dst = scratch();
    put(src, "a", "1");
    put(dst, "b", "1");
    put(dst, "x.keep", "1");
    struct tree_source s = {.path = src, .exclude = patterns, .n_exclude = 1};
    struct tree_target t = {.path = dst,
                            .mode = -1,
                            .placement = TREE_MERGE,
                            .remove = true,
                            .exclude = patterns,
                            .n_exclude = 1};
    struct run r = {.cut_after = -1, .opts = {.update = true}};
    run_transfer(&r, &s, &t, 1);
    must(&r, "exclude", 0);
    assert_int_equal(r.sent.deleted, 1);
    assert_int_equal(count_entries(dst), 2);
    run_end(&r);
}

/* Both ends in a process that may have 16 MB of heap, with more entries than fit there. */
static void memory_is_bounded(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *dir = scratch(), *dst = below(dir, "x");
    int fd = open(src, O_RDONLY | O_DIRECTORY);
    char name[256];
    for (int i = 0; i < 30000; i++) {
        snprintf(name, sizeof name, "%0240d", i);
        assert_int_equal(mknodat(fd, name, S_IFREG | 0644, 0), 0);
    }
    cleanup_fd int big = openat(fd, "big", O_WRONLY | O_CREAT, 0644);
    cleanup_free char *block = xcalloc(1, 1 << 20);
    for (int i = 0; i < 20; i++)
        assert_int_equal(write(big, block, 1 << 20), 1 << 20);
    close(fd);
    for (int update = 0; update < 2; update++) {
        pid_t pid = fork();
        if (pid == 0) {
            struct rlimit limit = {16 << 20, 16 << 20};
#ifndef __SANITIZE_ADDRESS__ /* its own needs are above that; the transfer itself is run all the   \
                                same */
            setrlimit(RLIMIT_DATA, &limit);
#else
            (void)limit;
#endif
            struct tree_source s = {.path = src};
            struct tree_target t = {
                .path = dst, .mode = -1, .placement = update ? TREE_MERGE : TREE_REPLACE};
            struct run r = {.cut_after = -1, .opts = {.update = update}};
            run_transfer(&r, &s, &t, 1);
            _exit(r.ok && r.send_ok ? 0 : 1);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(special_bits_stay_behind),
        cmocka_unit_test(files_are_placed_whole),
        cmocka_unit_test(mappings_go_in_order),
        cmocka_unit_test(dry_run_writes_nothing),
        cmocka_unit_test(follow_takes_what_links_lead_to),
        cmocka_unit_test(no_pipes_no_sockets),
        cmocka_unit_test(deep_trees_survive),
        cmocka_unit_test(later_targets_follow_no_planted_link),
        cmocka_unit_test(into_takes_the_name),
        cmocka_unit_test(excluded_entries_are_not_deleted),
        cmocka_unit_test(memory_is_bounded),
    };

    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
