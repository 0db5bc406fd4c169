#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "tree/hash.h"
#include "tree_help.h"

/* ---- streams by hand ---- */

static size_t open_at;

static void begin(struct buf *b, char type)
{
    buf_putc(b, type);
    open_at = b->len;
    buf_put_u32(b, 0);
}

static void end(struct buf *b)
{
    uint32_t n = (uint32_t)(b->len - open_at - 4);
    unsigned char be[] = {(unsigned char)(n >> 24), (unsigned char)(n >> 16),
                          (unsigned char)(n >> 8), (unsigned char)n};

    memcpy(b->data + open_at, be, 4);
}

static void start(struct buf *b)
{
    begin(b, 'V');
    buf_put(b, "EXDTREE\1", 8);
    buf_put_u32(b, 0);
    end(b);
    begin(b, 'G');
    buf_put_u32(b, 0);
    end(b);
}

static void meta(struct buf *b, uint32_t mode)
{
    buf_put_u32(b, mode);
    buf_put_u64(b, 1000000000);
    buf_put_u32(b, 0);
}

static void dir(struct buf *b, const char *name, size_t n)
{
    begin(b, 'D');
    meta(b, 0755);
    buf_put_str(b, name, n);
    end(b);
}

static void file_head(struct buf *b, const char *name, size_t n, uint32_t mode)
{
    begin(b, 'F');
    meta(b, mode);
    buf_put_u64(b, 4);
    buf_put_u32(b, 0);
    buf_put_str(b, name, n);
    end(b);
}

static void file_end(struct buf *b, uint64_t total, const char *data)
{
    struct hash64 h;

    hash64_start(&h, 0);
    hash64_add(&h, data, strlen(data));
    begin(b, 'K');
    buf_put_u64(b, total);
    buf_put_u64(b, hash64_end(&h));
    end(b);
}

static void file(struct buf *b, const char *name, size_t n)
{
    file_head(b, name, n, 0644);
    begin(b, 'B');
    buf_puts(b, "evil");
    end(b);
    file_end(b, 4, "evil");
}

static void link_to(struct buf *b, const char *name, const char *target)
{
    begin(b, 'L');
    meta(b, 0777);
    buf_put_str(b, name, strlen(name));
    buf_put_str(b, target, strlen(target));
    end(b);
}

static void leave(struct buf *b)
{
    begin(b, 'E');
    end(b);
}

static void finish(struct buf *b, uint64_t entries, uint64_t bytes)
{
    begin(b, 'X');
    buf_put_u64(b, entries);
    buf_put_u64(b, bytes);
    for (int i = 0; i < 4; i++)
        buf_put_u64(b, 0);
    end(b);
}

struct place {
    char *root, *target, *outside;
};

static struct place new_place(bool existing)
{
    struct place p = {.root = scratch(), .outside = scratch()};

    p.target = below(p.root, "t");
    if (existing) {
        assert_int_equal(mkdir(p.target, 0755), 0);
        cleanup_free char *old = below(p.target, "old");
        close(open(old, O_CREAT | O_WRONLY, 0600));
    }
    return p;
}

/* The stream must be refused with the code, the target must be as before, nothing anywhere else. */
static void refused(struct buf *b, enum error_code code, const struct tree_opts *opts,
                    enum tree_placement placement)
{
    struct place p = new_place(true);
    struct tree_target t = {.path = p.target, .mode = -1, .placement = placement};
    const struct tree_opts none = {0};
    cleanup_error struct error err = {0};

    if (receive_bytes(b->data, b->len, &t, 1, opts ? opts : &none, &err))
        fail_msg("a lying stream was accepted");
    if (err.code != code)
        fail_msg("refused as %s, not as %s: %s", error_code_name(err.code), error_code_name(code),
                 err.msg);
    cleanup_free char *old = below(p.target, "old");
    assert_int_equal(access(old, F_OK), 0);
    if (placement == TREE_REPLACE) {
        assert_int_equal(count_entries(p.target), 1);
        assert_int_equal(count_entries(p.root), 2);
    }
    assert_int_equal(leftovers(p.root), 0);
    assert_int_equal(count_entries(p.outside), 0);
    free(p.root);
    free(p.target);
    free(p.outside);
    buf_free(b);
}

static void bad_names(void **state)
{
    (void)state;
    static const struct {
        const char *s;
        size_t n;
    } names[] = {{"..", 2},   {".", 1},    {"/etc/x", 6}, {"a/b", 3},
                 {"../x", 4}, {"a\0b", 3}, {"a/", 2},     {"/", 1}};

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        for (int placement = 0; placement < 2; placement++) {
            struct buf b = {0};
            start(&b);
            dir(&b, "", 0);
            file(&b, names[i].s, names[i].n);
            leave(&b);
            finish(&b, 2, 4);
            refused(&b, ERR_UNSAFE, NULL, placement ? TREE_MERGE : TREE_REPLACE);
            struct buf d = {0};
            start(&d);
            dir(&d, "", 0);
            dir(&d, names[i].s, names[i].n);
            refused(&d, ERR_UNSAFE, NULL, placement ? TREE_MERGE : TREE_REPLACE);
        }
    }
    char longer[256];
    memset(longer, 'a', sizeof longer);
    struct buf b = {0};
    start(&b);
    dir(&b, "", 0);
    file(&b, longer, sizeof longer);
    refused(&b, ERR_UNSAFE, NULL, TREE_REPLACE);
}

/* A link, then a folder or a file of the same name: nothing goes through the link. */
static void planted_links(void **state)
{
    (void)state;
    for (int what = 0; what < 2; what++) {
        struct place p = new_place(false);
        struct buf b = {0};
        start(&b);
        dir(&b, "", 0);
        link_to(&b, "x", p.outside);
        if (what == 0) {
            dir(&b, "x", 1);
            file(&b, "f", 1);
            leave(&b);
        } else {
            file(&b, "x", 1);
        }
        leave(&b);
        finish(&b, what ? 3 : 4, 4);
        struct tree_target t = {.path = p.target, .mode = -1};
        const struct tree_opts opts = {0};
        cleanup_error struct error err = {0};
        assert_false(receive_bytes(b.data, b.len, &t, 1, &opts, &err));
        assert_int_equal(err.code, ERR_UNSAFE);
        assert_int_equal(count_entries(p.outside), 0);
        assert_int_equal(count_entries(p.root), 0);

        /* Into a folder that has the link already: it is replaced, not followed. */
        assert_int_equal(mkdir(p.target, 0755), 0);
        cleanup_free char *link = below(p.target, "x");
        assert_int_equal(symlink(p.outside, link), 0);
        struct buf m = {0};
        start(&m);
        dir(&m, "", 0);
        if (what == 0) {
            dir(&m, "x", 1);
            file(&m, "f", 1);
            leave(&m);
        } else {
            file(&m, "x", 1);
        }
        leave(&m);
        finish(&m, what ? 2 : 3, 4);
        t.placement = TREE_MERGE;
        if (!receive_bytes(m.data, m.len, &t, 1, &opts, &err))
            fail_msg("%s", err.msg);
        struct stat st;
        assert_int_equal(lstat(link, &st), 0);
        assert_false(S_ISLNK(st.st_mode));
        assert_int_equal(count_entries(p.outside), 0);
        buf_free(&b);
        buf_free(&m);
        free(p.root);
        free(p.target);
        free(p.outside);
    }
}

static void lying_records(void **state)
{
    (void)state;
    for (int lie = 0;; lie++) {
        struct buf b = {0};
        enum error_code code = ERR_PROTOCOL;
        start(&b);
        dir(&b, "", 0);
        switch (lie) {
        case 0: /* fewer bytes than said */
            file_head(&b, "f", 1, 0644);
            file_end(&b, 4, "");
            break;
        case 1: /* other bytes than hashed */
            file_head(&b, "f", 1, 0644);
            begin(&b, 'B');
            buf_puts(&b, "evil");
            end(&b);
            file_end(&b, 4, "good");
            break;
        case 2: /* data outside of a file */
            begin(&b, 'B');
            buf_puts(&b, "evil");
            end(&b);
            break;
        case 3: /* an entry within a file */
            file_head(&b, "f", 1, 0644);
            file(&b, "g", 1);
            break;
        case 4: /* leaves more folders than entered */
            leave(&b);
            leave(&b);
            break;
        case 5: /* a second root */
            leave(&b);
            dir(&b, "", 0);
            break;
        case 6: /* ends in a folder */
            finish(&b, 1, 0);
            break;
        case 7: /* other sums */
            leave(&b);
            finish(&b, 7, 0);
            break;
        case 8: /* a mapping nobody asked for */
            leave(&b);
            begin(&b, 'G');
            buf_put_u32(&b, 1);
            end(&b);
            break;
        case 9: /* a hard link to what was not sent */
            begin(&b, 'H');
            buf_put_u32(&b, 9);
            buf_put_u8(&b, 0);
            buf_put_str(&b, "h", 1);
            end(&b);
            break;
        case 10: /* an impossible mode (a device's, say) */
            file_head(&b, "f", 1, 020644);
            break;
        case 11: /* the target has it already, without having been asked */
            begin(&b, 'S');
            meta(&b, 0644);
            buf_put_u64(&b, 0);
            buf_put_u32(&b, 0);
            buf_put_str(&b, "old", 3);
            end(&b);
            break;
        case 12: /* a record longer than any */
            buf_put(&b, "D\xff\xff\xff\xff", 5);
            break;
        case 13: /* a string longer than its record */
            begin(&b, 'D');
            meta(&b, 0755);
            buf_put_u32(&b, 1000000);
            end(&b);
            break;
        case 14: /* no such type */
            begin(&b, 'm');
            end(&b);
            break;
        case 15: /* twice the same name */
            file(&b, "f", 1);
            file(&b, "f", 1);
            code = ERR_UNSAFE;
            break;
        case 16: /* a link to nothing at all */
            link_to(&b, "l", "");
            break;
        case 17: /* just ends */
            code = ERR_NETWORK;
            break;
        case 18: /* a hole that overflows every count */
            file_head(&b, "f", 1, 0644);
            begin(&b, 'Z');
            buf_put_u64(&b, UINT64_MAX);
            end(&b);
            code = ERR_TOO_LARGE;
            break;
        case 19: /* a link target with a NUL */
            begin(&b, 'L');
            meta(&b, 0777);
            buf_put_str(&b, "l", 1);
            buf_put_str(&b, "a\0b", 3);
            end(&b);
            break;
        default:
            buf_free(&b);
            return;
        }
        refused(&b, code, NULL, TREE_REPLACE);
    }
}

static void too_much(void **state)
{
    (void)state;
    const struct tree_opts few = {.limits = {.entries = 1000}},
                           small = {.limits = {.bytes = 1 << 20}}, flat = {.limits = {.depth = 10}},
                           cased = {.refuse_case = true};
    char name[16];
    struct buf b = {0};
    start(&b);
    dir(&b, "", 0);
    for (int i = 0; i < 1000; i++) {
        snprintf(name, sizeof name, "%d", i);
        link_to(&b, name, "x");
    }
    refused(&b, ERR_TOO_LARGE, &few, TREE_REPLACE);

    start(&b);
    dir(&b, "", 0);
    file_head(&b, "bomb", 4, 0644);
    begin(&b, 'Z');
    buf_put_u64(&b, 1 << 21);
    end(&b);
    refused(&b, ERR_TOO_LARGE, &small, TREE_REPLACE);

    start(&b);
    dir(&b, "", 0);
    for (int i = 0; i < 12; i++)
        dir(&b, "d", 1);
    refused(&b, ERR_TOO_LARGE, &flat, TREE_REPLACE);

    start(&b);
    dir(&b, "", 0);
    file(&b, "README", 6);
    file(&b, "Readme", 6);
    refused(&b, ERR_UNSAFE, &cased, TREE_REPLACE);

    start(&b);
    dir(&b, "", 0);
    file(&b, "\xc3\x89t\xc3\xa9", 5);
    file(&b, "\xc3\xa9t\xc3\xa9", 5);
    refused(&b, ERR_UNSAFE, &cased, TREE_REPLACE);
}

/* Any bytes at all: never accepted by chance, never a crash (the sanitizers' job), nothing left. */
static void damaged_streams(void **state)
{
    (void)state;
    uint64_t seed = 3;
    cleanup_free char *src = scratch();
    tree_generate(src, &seed, 30);
    struct tree_source s = {.path = src};
    unsigned char *good;
    int64_t n = run_stream_length(&s, 1, &good);
    for (int i = 0; i < 1500; i++) {
        struct place p = new_place(true);
        cleanup_free unsigned char *bad = xmemdup(good, (size_t)n);
        for (unsigned k = 1 + random_below(&seed, 3); k; k--)
            bad[random_below(&seed, (unsigned)(n < 4000 || random_below(&seed, 2) ? n : 4000))] ^=
                (unsigned char)(1 + random_below(&seed, 255));
        struct tree_target t = {
            .path = p.target, .mode = -1, .placement = i % 2 ? TREE_MERGE : TREE_REPLACE};
        const struct tree_opts opts = {.limits = {.bytes = 64 << 20}};
        cleanup_error struct error err = {0};
        receive_bytes(bad, (size_t)n, &t, 1, &opts, &err);
        assert_int_equal(leftovers(p.root), 0);
        assert_int_equal(count_entries(p.outside), 0);
        assert_true(tree_remove_at(AT_FDCWD, p.root, NULL));
        free(p.root);
        free(p.target);
        free(p.outside);
    }
    free(good);
}

/* ---- cuts ---- */

static void cut_everywhere(const char *src, const char *copy, int64_t step,
                           enum tree_placement placement, bool update)
{
    struct tree_source s = {.path = src};
    int64_t n = run_stream_length(&s, 1, NULL);

    for (int64_t at = 0; at < n; at += step) {
        cleanup_free char *root = scratch(), *target = below(root, "deep/t"),
                          *deep = below(root, "deep");
        struct tree_target t = {.path = target, .mode = -1, .placement = placement};
        if (copy) { /* an old tree that must survive */
            struct tree_source old = {.path = copy};
            struct tree_target ot = {.path = target, .mode = -1};
            struct run first = {.cut_after = -1, .opts = {.keep_special = true}};
            run_transfer(&first, &old, &ot, 1);
            assert_true(first.ok);
        }
        struct run r = {.cut_after = at, .opts = {.update = update}};
        run_transfer(&r, &s, &t, 1);
        if (r.ok)
            fail_msg("cut at byte %lld of %lld: the receiver took it for whole", (long long)at,
                     (long long)n);
        assert_false(r.send_ok);
        assert_int_equal(leftovers(root), 0);
        if (copy && placement == TREE_REPLACE) {
            char *diff = tree_differ(copy, target);
            if (diff)
                fail_msg("cut at byte %lld: %s", (long long)at, diff);
        } else if (!copy) {
            assert_int_equal(access(deep, F_OK), -1);
        }
        run_end(&r);
        assert_true(tree_remove_at(AT_FDCWD, root, NULL));
    }
}

static void cut_at_every_byte(void **state)
{
    (void)state;
    cleanup_free char *dir_ = scratch(), *src = below(dir_, "s"), *old = below(dir_, "o");
    assert_int_equal(mkdir(src, 0755), 0);
    cleanup_free char *sub = below(src, "sub"), *f = below(src, "sub/f"), *l = below(src, "l"),
                      *h = below(src, "h");
    assert_int_equal(mkdir(sub, 0555), 0);
    assert_int_equal(chmod(sub, 0755), 0);
    cleanup_fd int fd = open(f, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, "hello", 5), 5);
    assert_int_equal(symlink("f", l), 0);
    assert_int_equal(link(f, h), 0);
    uint64_t seed = 9;
    tree_generate(old, &seed, 8);
    cut_everywhere(src, NULL, 1, TREE_REPLACE, false);
    cut_everywhere(src, old, 1, TREE_REPLACE, false);
    cut_everywhere(src, old, 7, TREE_MERGE, false);
    cut_everywhere(src, old, 7, TREE_REPLACE, true);
}

static void cut_at_every_kilobyte(void **state)
{
    (void)state;
    cleanup_free char *dir_ = scratch(), *src = below(dir_, "s"), *old = below(dir_, "o");
    uint64_t seed = 21;
    tree_generate(src, &seed, 60);
    cleanup_free char *big = below(src, "big");
    cleanup_fd int fd = open(big, O_CREAT | O_WRONLY, 0600);
    char block[4096];
    for (int i = 0; i < 100; i++) {
        for (size_t k = 0; k < sizeof block; k++)
            block[k] = (char)random_next(&seed);
        assert_int_equal(write(fd, block, sizeof block), sizeof block);
    }
    tree_generate(old, &seed, 8);
    cut_everywhere(src, old, 1024, TREE_REPLACE, false);
}

/* In a merge no file is ever half there: each is its old self, its new self, or absent. */
static void merges_leave_whole_files(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *f = below(src, "f");
    cleanup_free char *new = xmalloc(300000), *got = xmalloc(300001);
    memset(new, 'n', 300000);
    int fd = open(f, O_CREAT | O_WRONLY, 0600);
    assert_int_equal(write(fd, new, 300000), 300000);
    close(fd);
    struct tree_source s = {.path = src};
    int64_t n = run_stream_length(&s, 1, NULL);
    for (int64_t at = 0; at < n; at += 9973) {
        cleanup_free char *dst = scratch(), *g = below(dst, "f");
        fd = open(g, O_CREAT | O_RDWR, 0600);
        assert_int_equal(write(fd, "old", 3), 3);
        close(fd);
        struct tree_target t = {.path = dst, .mode = -1, .placement = TREE_MERGE};
        struct run r = {.cut_after = at};
        run_transfer(&r, &s, &t, 1);
        assert_false(r.ok);
        fd = open(g, O_RDONLY);
        ssize_t len = read(fd, got, 300001);
        close(fd);
        assert_true((len == 3 && memcmp(got, "old", 3) == 0) ||
                    (len == 300000 && memcmp(got, new, 300000) == 0));
        assert_int_equal(count_entries(dst), 1);
        run_end(&r);
    }
}

/* What somebody who was killed left is removed by the next transfer to that place; what somebody
 * works on is not. */
static void leftovers_are_swept(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *root = scratch(), *target = below(root, "t"),
                      *dead = below(root, ".exedev-tmp-0123456789abcdef");
    assert_int_equal(mkdir(dead, 0700), 0);
    struct tree_source s = {.path = src};
    struct tree_target t = {.path = target, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    assert_true(r.ok);
    assert_int_equal(leftovers(root), 0);
    run_end(&r);
}

/* ---- a full disk ---- */

static bool write_to(const char *path, const char *text)
{
    cleanup_fd int fd = open(path, O_WRONLY | O_CLOEXEC);

    return fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);
}

/* Without a user of its own in there nothing could be made. */
static bool own_name_spaces(void)
{
    cleanup_free char *users = xasprintf("0 %u 1", (unsigned)geteuid()),
                      *groups = xasprintf("0 %u 1", (unsigned)getegid());

    if (unshare(CLONE_NEWNS) == 0)
        return true;
    return unshare(CLONE_NEWNS | CLONE_NEWUSER) == 0 && write_to("/proc/self/uid_map", users) &&
           write_to("/proc/self/setgroups", "deny") && write_to("/proc/self/gid_map", groups);
}

static int on_a_small_disk(const char *src, const char *mount_point)
{
    if (!own_name_spaces())
        return 77;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
        mount("tmpfs", mount_point, "tmpfs", 0, "size=1m") < 0)
        return 77;
    cleanup_free char *target = below(mount_point, "t");
    mkdir(target, 0755);
    struct tree_source s = {.path = src};
    struct tree_target t = {.path = target, .mode = -1};
    struct run r = {.cut_after = -1};
    run_transfer(&r, &s, &t, 1);
    if (r.ok || r.err.sys != ENOSPC || r.send_err.sys != ENOSPC ||
        !strstr(r.send_err.msg, "No space left")) {
        fprintf(stderr, "receiver: %s; sender: %s\n", r.err.msg, r.send_err.msg);
        return 1;
    }
    return leftovers(mount_point) == 0 && count_entries(mount_point) == 1 ? 0 : 2;
}

static void a_full_disk_is_reported(void **state)
{
    (void)state;
    cleanup_free char *src = scratch(), *big = below(src, "big"), *mount_point = scratch();
    cleanup_fd int fd = open(big, O_CREAT | O_WRONLY, 0600);
    cleanup_free char *data = xcalloc(1, 3 << 20);
    assert_int_equal(write(fd, data, 3 << 20), 3 << 20);
    pid_t pid = fork();
    if (pid == 0)
        _exit(on_a_small_disk(src, mount_point));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip(); /* no name spaces to be had here */
    assert_int_equal(status, 0);
}

/* The helper's built-in, ended by TERM in the middle. */
static void a_signal_cleans_up(void **state)
{
    (void)state;
    cleanup_free char *root = scratch(), *to = xasprintf("--to=%s/t", root);
    struct buf b = {0};
    int in[2], out[2], status;

    start(&b);
    dir(&b, "", 0);
    file(&b, "f", 1);
    file_head(&b, "half", 4, 0644);
    assert_true(pipe(in) == 0 && pipe(out) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        close(in[1]);
        close(out[0]);
        dup2(open("/dev/null", O_WRONLY), 2);
        char *argv[] = {(char *)(uintptr_t) "files-in", to, NULL};
        _exit(tree_in_main(2, argv));
    }
    close(in[0]);
    close(out[1]);
    assert_int_equal(write(in[1], b.data, b.len), (ssize_t)b.len);
    for (int i = 0; i < 1000 && count_entries(root) < 4; i++)
        usleep(10000);
    assert_int_equal(leftovers(root), 1);
    kill(pid, SIGTERM);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    assert_int_equal(count_entries(root), 0);
    close(in[1]);
    close(out[0]);
    buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_names),
        cmocka_unit_test(planted_links),
        cmocka_unit_test(lying_records),
        cmocka_unit_test(too_much),
        cmocka_unit_test(damaged_streams),
        cmocka_unit_test(cut_at_every_byte),
        cmocka_unit_test(cut_at_every_kilobyte),
        cmocka_unit_test(merges_leave_whole_files),
        cmocka_unit_test(leftovers_are_swept),
        cmocka_unit_test(a_full_disk_is_reported),
        cmocka_unit_test(a_signal_cleans_up),
    };

    signal(SIGPIPE, SIG_IGN);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_end();
    return failed;
}
