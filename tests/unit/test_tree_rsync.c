/* rsync is the measure of an update: the real one and ours on equal copies of generated trees must
 * leave equal trees (docs/files.md, "Update"). EXEDEV_TREES=7 runs the pair of seed 7 alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "tree_help.h"

/* Runs a program; its exit status. */
static int run(const char *const *argv)
{
    extern char **environ;
    posix_spawn_file_actions_t quiet;
    pid_t pid;
    int status;

    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_addopen(&quiet, 2, "/dev/null", O_WRONLY, 0);
    if (posix_spawnp(&pid, argv[0], &quiet, NULL, (char *const *)(uintptr_t)argv, environ) != 0)
        fail_msg("%s does not run: ./dev test installs it", argv[0]);
    posix_spawn_file_actions_destroy(&quiet);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

struct how {
    bool checksum, remove, keep;
};

/* -S because we keep holes; -@-1 because we compare times to the nanosecond. */
static bool by_rsync(const char *src, const char *dst, const struct how *how)
{
    cleanup_free char *from = below(src, ""), *to = below(dst, "");
    const char *argv[14] = {"timeout", "60", "rsync", "-aHS", "-@-1"};
    int n = 5;

    if (how->checksum)
        argv[n++] = "--checksum";
    if (how->remove)
        argv[n++] = "--delete";
    if (how->keep)
        argv[n++] = "--exclude=*.keep";
    argv[n++] = from;
    argv[n++] = to;
    int status = run(argv);
    return status == 0;
}

static void as_rsync(void **state)
{
    static const char *const patterns[] = {"*.keep"};
    uint64_t first = 1, last = 300;

    (void)state;
#ifdef __SANITIZE_ADDRESS__
    last = 60;
#endif
    seed_range("EXEDEV_TREES", &first, &last);
    for (uint64_t seed = first; seed <= last; seed++) {
        uint64_t random = seed + 70000;
        const struct how how = {seed & 1, seed & 2, seed & 4};
        cleanup_free char *dir = scratch(), *src = below(dir, "src"),
                          *theirs = below(dir, "theirs"), *ours = below(dir, "ours");
        struct tree_source s = {.path = src};
        struct tree_target t = {.path = theirs, .mode = -1};
        tree_generate(src, &random, 5 + random_below(&random, 30));
        struct run copy = {.cut_after = -1, .opts = {.keep_special = true}};
        run_transfer(&copy, &s, &t, 1);
        must(&copy, "copy", seed);
        run_end(&copy);
        /* Of several files that are one at the source, which becomes that one at the target depends
         * on the order of the names: so where size and time decide none of them differs otherwise,
         * and only single files have names outside of the source. A full folder that may not be
         * deleted is an error with both; rsync 3.5.0 may hang over it. */
        tree_alter_slyly(theirs, how.checksum, how.remove, &random);
        assert_int_equal(run((const char *const[]){"cp", "-a", theirs, ours, NULL}), 0);
        must_equal(theirs, ours, "the two copies", seed);

        if (how.keep) {
            s.exclude = patterns;
            s.n_exclude = 1;
        }
        t = (struct tree_target){.path = ours,
                                 .mode = -1,
                                 .placement = TREE_MERGE,
                                 .remove = how.remove,
                                 .exclude = s.exclude,
                                 .n_exclude = s.n_exclude};
        struct run r = {.cut_after = -1,
                        .opts = {.keep_special = true, .update = true, .checksum = how.checksum}};
        run_transfer(&r, &s, &t, 1);
        bool done = by_rsync(src, theirs, &how);
        cleanup_free char *what =
            xasprintf("rsync%s%s%s and ours", how.checksum ? " -c" : "",
                      how.remove ? " --delete" : "", how.keep ? " --exclude=*.keep" : "");
        if (!r.ok || !done)
            fail_msg("%s, seed %llu: rsync %s, ours: %s", what, (unsigned long long)seed,
                     done ? "succeeds" : "fails", r.ok ? "succeeds" : r.err.msg);
        chmod(theirs, 0750);
        chmod(ours, 0750);
        /* What was spared lies in folders whose time is now that of the deletion beside it. */
        assert_int_equal(
            run((const char *const[]){"find", theirs, ours, "-name", "folder only here", "-exec",
                                      "touch", "-d@0", "{}", "+", NULL}),
            0);
        must_equal(theirs, ours, what, seed);
        assert_int_equal(leftovers(dir), 0);
        run_end(&r);
        assert_true(tree_remove_at(AT_FDCWD, dir, NULL));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_rsync)};

    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
