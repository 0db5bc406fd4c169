/* Generated trees, thousands of them: what arrives is what was sent, entry by entry. EXEDEV_TREES=7
 * runs the tree of seed 7 alone, EXEDEV_TREES=1-3000 a range. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#include "base/cleanup.h"
#include "tree_help.h"

static void arrives_new(const struct tree_source *s, const struct tree_target *t, uint64_t seed)
{
    struct run r = {.cut_after = -1, .opts = {.keep_special = true, .totals = true}};

    run_transfer(&r, s, t, 1);
    must(&r, "new", seed);
    must_equal(s->path, t->path, "new", seed);
    assert_int_equal(r.sent.total_entries, r.sent.entries);
    assert_int_equal(r.got.total_bytes, r.got.bytes);
    run_end(&r);
}

/* Nothing changed: nothing travels. */
static void unchanged(const struct tree_source *s, struct tree_target t, uint64_t seed)
{
    struct run r = {.cut_after = -1, .opts = {.keep_special = true, .update = true}};

    t.placement = TREE_MERGE;
    run_transfer(&r, s, &t, 1);
    must(&r, "unchanged", seed);
    must_equal(s->path, t.path, "unchanged", seed);
    assert_int_equal(r.sent.files, 0);
    run_end(&r);
}

/* Into an altered tree, deleting what is too much: by size and time, or by content. */
static void updated(const struct tree_source *s, struct tree_target t, uint64_t seed,
                    uint64_t *random)
{
    struct run r = {
        .cut_after = -1,
        .opts = {.keep_special = true, .update = true, .checksum = random_below(random, 2)}};

    tree_alter(t.path, random);
    t.placement = TREE_MERGE;
    t.remove = true;
    run_transfer(&r, s, &t, 1);
    must(&r, "update", seed);
    chmod(t.path, 0750);
    must_equal(s->path, t.path, "update", seed);
    run_end(&r);
}

/* Staged and swapped, unchanged files taken over from the old tree. */
static void replaced(const struct tree_source *s, const struct tree_target *t, uint64_t seed,
                     uint64_t *random)
{
    struct run r = {.cut_after = -1,
                    .opts = {.keep_special = true, .update = random_below(random, 2)}};

    tree_alter(t->path, random);
    run_transfer(&r, s, t, 1);
    must(&r, "replace", seed);
    must_equal(s->path, t->path, "replace", seed);
    run_end(&r);
}

/* Over another whole tree without deletion. */
static void merged(const struct tree_source *s, const char *old, uint64_t *random)
{
    struct run r = {.cut_after = -1, .opts = {.keep_special = true}};
    struct tree_target t = {.path = old, .mode = -1, .placement = TREE_MERGE};

    tree_generate(old, random, 10);
    run_transfer(&r, s, &t, 1);
    if (!r.ok)
        assert_int_equal(r.err.code, ERR_EXISTS); /* a full folder where a file should go */
    run_end(&r);
}

static void trees_survive(void **state)
{
    (void)state;
    uint64_t first = 1, last = 3000;
#ifdef __SANITIZE_ADDRESS__
    last = 300;
#endif
    seed_range("EXEDEV_TREES", &first, &last);
    for (uint64_t seed = first; seed <= last; seed++) {
        uint64_t random = seed;
        cleanup_free char *dir = scratch(), *src = below(dir, "src"), *dst = below(dir, "dst"),
                          *old = below(dir, "old");
        struct tree_source s = {.path = src};
        struct tree_target t = {.path = dst, .mode = -1};
        tree_generate(src, &random, 3 + random_below(&random, 25));
        arrives_new(&s, &t, seed);
        if (seed % 4 == 0)
            unchanged(&s, t, seed);
        switch (seed % 3) {
        case 0:
            updated(&s, t, seed, &random);
            break;
        case 1:
            replaced(&s, &t, seed, &random);
            break;
        default:
            merged(&s, old, &random);
        }
        assert_int_equal(leftovers(dir), 0);
        assert_true(tree_remove_at(AT_FDCWD, dir, NULL));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(trees_survive)};

    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
