#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fnmatch.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/spawn.h"
#include "tree/hash.h"
#include "tree_help.h"

static uint64_t sum(const char *s, uint64_t seed, size_t step)
{
    struct hash64 h;
    size_t n = strlen(s);

    hash64_start(&h, seed);
    for (size_t i = 0; i < n; i += step)
        hash64_add(&h, s + i, n - i < step ? n - i : step);
    return hash64_end(&h);
}

/* Values that other implementations of XXH64 publish. */
static void hash_is_xxh64(void **state)
{
    (void)state;
    assert_true(sum("", 0, 1) == 0xef46db3751d8e999u);
    assert_true(sum("abc", 0, 1) == 0x44bc2cf5ad770999u);
    assert_true(sum("Nobody inspects the spammish repetition", 0, 100) == 0xfbcea83c8a378bf1u);
    assert_true(sum("Nobody inspects the spammish repetition", 0, 7) == 0xfbcea83c8a378bf1u);
}

static void excludes_as_tar_documents(void **state)
{
    (void)state;
    assert_true(tree_glob("*.o", "./a/b.o"));
    assert_true(tree_glob("b.o", "./a/b.o"));
    assert_true(tree_glob("a/*", "./a/b/c"));
    assert_true(tree_glob("./a", "./a"));
    assert_true(tree_glob("a*c", "./ab/bc"));
    assert_false(tree_glob("b", "./a/bc"));
    assert_false(tree_glob("a/", "./a"));
    assert_true(tree_glob("[!b]x", "./cx"));
    assert_false(tree_glob("[!b]x", "./bx"));
    assert_true(tree_glob("[", "./["));
    assert_true(tree_glob("\\*", "./*"));
    assert_false(tree_glob("\\*", "./a"));
    assert_true(tree_glob("?", "./\xc3\xa9"));
    assert_true(tree_glob("?", "./\xff"));
}

/* Time must stay bounded: this takes years in a matcher that tries every split. */
static void many_stars_end(void **state)
{
    (void)state;
    char pattern[201], name[2001];

    for (int i = 0; i < 200; i++)
        pattern[i] = i % 2 ? 'a' : '*';
    pattern[199] = 'b';
    pattern[200] = 0;
    memset(name, 'a', 2000);
    name[2000] = 0;
    assert_false(tree_glob(pattern, name));
}

static void pick(char *out, uint64_t *seed, const char *alphabet, unsigned max)
{
    unsigned n = 1 + random_below(seed, max);

    for (unsigned i = 0; i < n; i++)
        out[i] = alphabet[random_below(seed, (unsigned)strlen(alphabet))];
    out[n] = 0;
}

/* libc's fnmatch, tried as gnulib's exclude.c does. */
static bool by_fnmatch(const char *pattern, const char *name)
{
    for (const char *s = name; s; s = strchr(s, '/'), s = s ? s + 1 : NULL) {
        if ((s == name || s[0] != '/') && fnmatch(pattern, s, FNM_LEADING_DIR) == 0)
            return true;
    }
    return false;
}

static void matches_as_fnmatch(void **state)
{
    (void)state;
    uint64_t seed = 7;
    char pattern[16], name[24] = "./";
    unsigned hits = 0;

    for (int i = 0; i < 200000; i++) {
        pick(pattern, &seed, "ab.-/*?[]!^\\", 9);
        pick(name + 2, &seed, "ab.-/[]\\", 9);
        /* What has no end (a bracket, a collating symbol, a backslash) differs from libc to libc.
         */
        const char *open = strrchr(pattern, '['), *close = strrchr(pattern, ']');
        if (strstr(pattern, "[.") || strstr(name, "//") || (open && (!close || close < open + 3)) ||
            pattern[strlen(pattern) - 1] == '\\')
            continue;
        bool want = by_fnmatch(pattern, name);
        hits += want;
        if (tree_glob(pattern, name) != want)
            fail_msg("pattern `%s` on `%s`: fnmatch says %d", pattern, name, want);
    }
    assert_true(hits > 1000);
}

/* The list of what the real tar packs from a tree, and from ours. */
static void tar_list(const char *tree, char *const *patterns, unsigned n, struct buf *out)
{
    cleanup_buf struct buf cmd = {0};
    buf_puts(&cmd, "tar -C \"$0\" ");
    const char *args[24] = {"sh", "-c", NULL, tree};
    unsigned a = 4;
    for (unsigned i = 0; i < n; i++) {
        buf_printf(&cmd, "--exclude=\"${%u}\" ", i + 1);
        args[a++] = patterns[i];
    }
    buf_puts(&cmd, "-cf - . | tar --quoting-style=literal -tf - | sed 's,/$,,' | LC_ALL=C sort");
    args[2] = cmd.data;
    int status;
    cleanup_buf struct buf errors = {0};
    cleanup_error struct error err = {0};
    if (!spawn_run(args, NULL, 0, out, &errors, 1 << 20, deadline_in(20000), &status, &err))
        fail_msg("%s", err.msg);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

struct listing {
    char *paths[4096];
    unsigned n;
};

static void remember(void *arg, enum tree_note note, const char *path, const struct tree_stats *now)
{
    struct listing *l = arg;

    (void)now;
    if (path && note == TREE_ENTRY && l->n < 4096)
        l->paths[l->n++] = xstrdup(path);
}

static void excludes_as_real_tar(void **state)
{
    (void)state;
    uint64_t seed = 11;

    for (int round = 0; round < 60; round++) {
        cleanup_free char *src = scratch(), *dst = scratch();
        /* Few letters, so that patterns hit. */
        for (int i = 0; i < 25; i++) {
            char name[24];
            pick(name, &seed, "ab.[*", 3);
            cleanup_free char *dir = xasprintf("%s/%c%c", src, "ab*["[random_below(&seed, 4)],
                                               "ab"[random_below(&seed, 2)]);
            cleanup_free char *path = xasprintf("%s/%s", random_below(&seed, 2) ? dir : src, name);
            const char *const make[] = {"sh", "-c", "mkdir -p \"$0\"; [ -e \"$1\" ] || : > \"$1\"",
                                        dir,  path, NULL};
            int status;
            struct buf o = {0}, e = {0};
            assert_true(spawn_run(make, NULL, 0, &o, &e, 1000, deadline_in(20000), &status, NULL));
            buf_free(&o);
            buf_free(&e);
        }
        char *patterns[3];
        unsigned n = 1 + random_below(&seed, 3);
        for (unsigned i = 0; i < n; i++) {
            patterns[i] = xmalloc(16);
            pick(patterns[i], &seed, "aabb.*?[]!\\/", 4);
        }
        struct listing list = {.n = 0};
        struct run r = {.cut_after = -1, .opts = {.progress = remember, .arg = &list}};
        struct tree_source s = {
            .path = src, .exclude = (const char *const *)patterns, .n_exclude = n};
        struct tree_target t = {.path = dst, .placement = TREE_REPLACE, .mode = -1};
        run_transfer(&r, &s, &t, 1);
        if (!r.ok)
            fail_msg("%s", r.err.msg);
        run_end(&r);
        qsort(list.paths, list.n, sizeof list.paths[0], by_name);
        cleanup_buf struct buf ours = {0}, theirs = {0};
        for (unsigned i = 0; i < list.n; i++) {
            buf_printf(&ours, "%s\n", list.paths[i]);
            free(list.paths[i]);
        }
        tar_list(src, patterns, n, &theirs);
        /* What leaves out `.` itself leaves an empty folder. */
        if (!theirs.len)
            buf_puts(&theirs, ".\n");
        if (strcmp(ours.data, theirs.data) != 0)
            fail_msg("round %d, patterns `%s` `%s` `%s`:\nours:\n%s\ntar's:\n%s", round,
                     patterns[0], n > 1 ? patterns[1] : "", n > 2 ? patterns[2] : "", ours.data,
                     theirs.data);
        while (n)
            free(patterns[--n]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hash_is_xxh64),        cmocka_unit_test(excludes_as_tar_documents),
        cmocka_unit_test(many_stars_end),       cmocka_unit_test(matches_as_fnmatch),
        cmocka_unit_test(excludes_as_real_tar),
    };

    setlocale(LC_ALL, "C.UTF-8");
    setenv("LC_ALL", "C.UTF-8", 1);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
