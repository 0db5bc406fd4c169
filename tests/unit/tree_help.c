#include "tree_help.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"

uint64_t random_next(uint64_t *seed)
{
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    uint64_t v = *seed ^ *seed >> 29;
    return (v * 0x9E3779B97F4A7C15u) >> 16;
}

unsigned random_below(uint64_t *seed, unsigned n)
{
    return (unsigned)(random_next(seed) % n);
}

static char *base;
static unsigned scratches;

char *scratch(void)
{
    if (!base) {
        const char *tmp = getenv("TMPDIR");
        base = xasprintf("%s/exedev-tree-XXXXXX", tmp                             ? tmp
                                                  : access("/dev/shm", W_OK) == 0 ? "/dev/shm"
                                                                                  : "/tmp");
        if (!mkdtemp(base))
            abort();
    }
    char *path = xasprintf("%s/%u", base, scratches++);
    if (mkdir(path, 0755) < 0)
        abort();
    return path;
}

void scratch_end(void)
{
    if (base && !tree_remove_at(AT_FDCWD, base, NULL))
        abort();
    free(base);
    base = NULL;
}

char *below(const char *dir, const char *name)
{
    return xasprintf("%s/%s", dir, name);
}

static char *make_name(uint64_t *seed)
{
    static const char *const odd[] = {"-rf",      "--exclude=x", "a b",     "a\nb",     "'",
                                      "\"q\"",    "$(id)",       "\\",      "*",        "[a]",
                                      "\xff\xfe", "\xc3\xa9",    ".hidden", "...",      "con",
                                      "~",        "A",           "a",       "\x1b[31m", ".exedev"};
    unsigned kind = random_below(seed, 10);

    if (kind < 4)
        return xstrdup(odd[random_below(seed, sizeof odd / sizeof odd[0])]);
    size_t n = kind == 4 ? 255 : 1 + random_below(seed, 12);
    char *s = xmalloc(n + 1);
    for (size_t i = 0; i < n; i++) {
        do
            s[i] = (char)(kind < 7 ? 1 + random_below(seed, 255) : 'a' + random_below(seed, 26));
        while (s[i] == '/');
    }
    s[n] = 0;
    if (strcmp(s, ".") == 0 || strcmp(s, "..") == 0)
        s[0] = 'x';
    return s;
}

static void set_time(int dirfd, const char *name, uint64_t *seed)
{
    struct timespec t[2] = {
        {.tv_nsec = UTIME_OMIT},
        {(time_t)random_below(seed, 4000000000u) - 100000000, random_below(seed, 1000000000)}};

    if (utimensat(dirfd, name, t, AT_SYMLINK_NOFOLLOW) < 0)
        abort();
}

static void make_content(int fd, uint64_t *seed)
{
    static const unsigned sizes[] = {0, 1, 100, 4096, 65535, 65536, 262144, 262145, 300000};
    unsigned pick = random_below(seed, 30),
             size = pick < 9 ? sizes[pick] : random_below(seed, 2000);
    cleanup_free char *data = xmalloc(size + 8);

    for (unsigned i = 0; i < size; i += 8) {
        uint64_t v = random_next(seed);
        memcpy(data + i, &v, 8);
    }
    if (pick == 9) { /* holes before, between, after */
        if (pwrite(fd, data, size, 1 << 18) < 0 || pwrite(fd, data, size, 3 << 18) < 0)
            abort();
        if (ftruncate(fd, random_below(seed, 2) ? 5 << 18 : (3 << 18) + (off_t)size) < 0)
            abort();
    } else if (pwrite(fd, data, size, 0) != (ssize_t)size) {
        abort();
    }
}

static void fill(int fd, uint64_t *seed, unsigned n, unsigned depth, int *links, unsigned *n_links)
{
    while (n) {
        cleanup_free char *name = make_name(seed);
        unsigned kind = random_below(seed, 10);
        struct stat st;
        n--;
        if (fstatat(fd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
            continue;
        if (kind < 2 && depth < 12) {
            if (mkdirat(fd, name, 0700) < 0)
                abort();
            cleanup_fd int sub = openat(fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
            unsigned part = random_below(seed, n + 1);
            fill(sub, seed, part, depth + 1, links, n_links);
            n -= part;
            if (fchmod(sub, (random_below(seed, 01000) & 0777) | 0500) < 0)
                abort();
        } else if (kind == 2) {
            static const char *const targets[] = {"/etc/passwd", "../../..", "nowhere", ".",
                                                  "a",           "\xff",     "x\ny"};
            if (symlinkat(targets[random_below(seed, 7)], fd, name) < 0)
                abort();
        } else if (kind == 3 && *n_links) {
            char self[40];
            snprintf(self, sizeof self, "/proc/self/fd/%d", links[random_below(seed, *n_links)]);
            if (linkat(AT_FDCWD, self, fd, name, AT_SYMLINK_FOLLOW) < 0)
                abort();
            continue;
        } else {
            int file = openat(fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
            if (file < 0)
                abort();
            make_content(file, seed);
            unsigned special = random_below(seed, 20);
            if (fchmod(file, (random_below(seed, 01000) & 0777) | 0400 |
                                 (special == 0   ? 04000
                                  : special == 1 ? 02000
                                                 : 0)) < 0)
                abort();
            set_time(fd, name, seed);
            if (*n_links < 4 && random_below(seed, 4) == 0)
                links[(*n_links)++] = file;
            else
                close(file);
            continue;
        }
        set_time(fd, name, seed);
    }
}

void tree_generate(const char *path, uint64_t *seed, unsigned n)
{
    int links[4];
    unsigned n_links = 0;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        abort();
    cleanup_fd int fd = open(path, O_RDONLY | O_DIRECTORY);
    fill(fd, seed, n, 0, links, &n_links);
    while (n_links)
        close(links[--n_links]);
    if (fchmod(fd, 0750) < 0)
        abort();
    set_time(AT_FDCWD, path, seed);
}

static void touch(int fd, const char *name)
{
    close(openat(fd, name, O_WRONLY | O_CREAT, 0600));
}

static void set_back(int fd, const char *name, const struct stat *st)
{
    const struct timespec t[2] = {st->st_atim, st->st_mtim};

    if (utimensat(fd, name, t, AT_SYMLINK_NOFOLLOW) < 0)
        abort();
}

/* A file with one name more becomes one of its own, equal in everything. */
static void split_link(int fd, const char *name, const struct stat *st)
{
    cleanup_free char *data = xmalloc((size_t)st->st_size + 1);
    cleanup_fd int from = openat(fd, name, O_RDONLY);
    if (from < 0 || read(from, data, (size_t)st->st_size) != st->st_size ||
        unlinkat(fd, name, 0) < 0)
        abort();
    cleanup_fd int to = openat(fd, name, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (to < 0 || write(to, data, (size_t)st->st_size) != st->st_size ||
        fchmod(to, st->st_mode & 07777) < 0)
        abort();
    set_back(fd, name, st);
}

struct sly {
    bool on, content, full, more;
};

static void alter_file(int fd, const char *name, const struct stat *st, struct sly sly,
                       uint64_t *seed)
{
    cleanup_fd int file = -1;
    struct stat changed = *st;

    if (fchmodat(fd, name, st->st_mode | 0200, 0) < 0)
        abort();
    switch (random_below(seed, sly.content ? 6 : 5)) {
    case 0: /* longer */
        file = openat(fd, name, O_WRONLY);
        if (file >= 0 && pwrite(file, "changed", 7, st->st_size) != 7)
            abort();
        break;
    case 1: /* another time, by nanoseconds or by more */
        changed.st_mtim.tv_nsec ^= 1;
        changed.st_mtim.tv_sec += random_below(seed, 2) * 1000;
        set_back(fd, name, &changed);
        break;
    case 2:
        if (st->st_nlink > 1 && st->st_size <= 300000 && !sly.more)
            split_link(fd, name, st);
        break;
    case 3: { /* a name more, outside of the source */
        cleanup_free char *more = xasprintf("more\xfe%u", random_below(seed, 1000));
        if ((!sly.on || (sly.more && st->st_nlink == 1)) && linkat(fd, name, fd, more, 0) < 0 &&
            errno != EEXIST)
            abort();
        break;
    }
    case 4: /* shorter */
        file = openat(fd, name, O_WRONLY);
        if (file < 0 || ftruncate(file, st->st_size / 2) < 0)
            abort();
        break;
    default: /* other content that size and time do not show */
        file = openat(fd, name, O_WRONLY);
        if (file < 0 || (st->st_size && pwrite(file, "\xaa", 1, st->st_size / 2) != 1))
            abort();
        set_back(fd, name, st);
    }
    if (fchmodat(fd, name, st->st_mode & 07777, 0) < 0)
        abort();
}

static void another_kind(int fd, const char *name, const struct stat *st, bool full)
{
    tree_remove_at(fd, name, NULL);
    if (S_ISDIR(st->st_mode)) {
        touch(fd, name);
    } else if (mkdirat(fd, name, 0700) == 0 && full) {
        cleanup_fd int sub = openat(fd, name, O_RDONLY | O_DIRECTORY);
        touch(sub, "inside");
    }
}

static void alter(int fd, struct sly sly, uint64_t *seed)
{
    DIR *d = fdopendir(fd);
    char *names[512];
    unsigned n = 0;

    for (struct dirent *e; n < 512 && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            names[n++] = xstrdup(e->d_name);
    }
    for (unsigned i = 0; i < n; i++) {
        struct stat st;
        unsigned what = random_below(seed, 8);
        if (fstatat(fd, names[i], &st, AT_SYMLINK_NOFOLLOW) < 0)
            abort();
        if (what == 0) {
            tree_remove_at(fd, names[i], NULL);
        } else if (what == 1) {
            another_kind(fd, names[i], &st, !sly.on || sly.full);
        } else if (what < 4 && S_ISREG(st.st_mode)) {
            alter_file(fd, names[i], &st, sly, seed);
        } else if (what == 2 && S_ISLNK(st.st_mode)) {
            if (unlinkat(fd, names[i], 0) < 0 || symlinkat("elsewhere", fd, names[i]) < 0)
                abort();
        } else if (what == 4 && !S_ISLNK(st.st_mode)) {
            if (fchmodat(fd, names[i], (st.st_mode & 0700) | 0500, 0) < 0)
                abort();
        } else if (S_ISDIR(st.st_mode)) {
            int sub = openat(fd, names[i], O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
            fchmod(sub, 0700);
            alter(sub, sly, seed);
        }
    }
    touch(fd, "only here");
    if (sly.on) {
        touch(fd, "x.keep");
        if (mkdirat(fd, "folder only here", 0700) == 0) {
            cleanup_fd int sub = openat(fd, "folder only here", O_RDONLY | O_DIRECTORY);
            touch(sub, "\xff\n");
            if (random_below(seed, 2))
                touch(sub, "y.keep");
        }
    }
    while (n)
        free(names[--n]);
    closedir(d);
}

void tree_alter(const char *path, uint64_t *seed)
{
    alter(open(path, O_RDONLY | O_DIRECTORY), (struct sly){0}, seed);
}

void tree_alter_slyly(const char *path, bool content, bool full, uint64_t *seed)
{
    alter(open(path, O_RDONLY | O_DIRECTORY),
          (struct sly){true, content, full, random_below(seed, 2)}, seed);
}

void seed_range(const char *variable, uint64_t *first, uint64_t *last)
{
    unsigned long long a, b;
    const char *value = getenv(variable);
    int n = value ? sscanf(value, "%llu-%llu", &a, &b) : 0;

    if (n >= 1) {
        *first = a;
        *last = n == 2 ? b : a;
    }
}

struct pairs {
    ino_t a[4096], b[4096];
    unsigned n;
};

static bool same_bytes(int a, const char *an, int b, const char *bn, off_t size)
{
    enum { PIECE = 65536 };
    char da[PIECE], db[PIECE];
    cleanup_fd int fa = openat(a, an, O_RDONLY | O_NOFOLLOW),
                   fb = openat(b, bn, O_RDONLY | O_NOFOLLOW);

    if (fa < 0 || fb < 0)
        return false;
    for (off_t at = 0; at < size;) {
        ssize_t n = pread(fa, da, sizeof da, at);
        if (n <= 0 || pread(fb, db, (size_t)n, at) != n || memcmp(da, db, (size_t)n) != 0)
            return false;
        at += n;
    }
    return true;
}

static char *differ(int a, int b, const char *an, const char *bn, const char *path, mode_t mask,
                    struct pairs *links)
{
    struct stat x, y;

    if (fstatat(a, an, &x, AT_SYMLINK_NOFOLLOW) < 0)
        return xasprintf("%s: missing on the left", path);
    if (fstatat(b, bn, &y, AT_SYMLINK_NOFOLLOW) < 0)
        return xasprintf("%s: missing on the right", path);
    if ((x.st_mode & S_IFMT) != (y.st_mode & S_IFMT))
        return xasprintf("%s: kinds differ", path);
    if (!S_ISLNK(x.st_mode) && (x.st_mode & mask) != (y.st_mode & 07777))
        return xasprintf("%s: modes %o and %o", path, x.st_mode & mask, y.st_mode & 07777);
    if (x.st_mtim.tv_sec != y.st_mtim.tv_sec || x.st_mtim.tv_nsec != y.st_mtim.tv_nsec)
        return xasprintf("%s: times %lld.%09ld and %lld.%09ld", path, (long long)x.st_mtim.tv_sec,
                         x.st_mtim.tv_nsec, (long long)y.st_mtim.tv_sec, y.st_mtim.tv_nsec);
    if (S_ISREG(x.st_mode)) {
        if (x.st_size != y.st_size || !same_bytes(a, an, b, bn, x.st_size))
            return xasprintf("%s: contents differ", path);
        if (x.st_blocks * 512 < x.st_size / 2 && y.st_blocks * 512 > y.st_size / 2)
            return xasprintf("%s: the holes were filled", path);
        if (x.st_nlink != y.st_nlink)
            return xasprintf("%s: %lu and %lu names", path, (unsigned long)x.st_nlink,
                             (unsigned long)y.st_nlink);
        for (unsigned i = 0; i < links->n; i++) {
            if ((links->a[i] == x.st_ino) != (links->b[i] == y.st_ino))
                return xasprintf("%s: hard links differ", path);
        }
        if (x.st_nlink > 1 && links->n < 4096) {
            links->a[links->n] = x.st_ino;
            links->b[links->n++] = y.st_ino;
        }
    } else if (S_ISLNK(x.st_mode)) {
        char ta[4096] = "", tb[4096] = "";
        if (readlinkat(a, an, ta, sizeof ta - 1) < 0 || readlinkat(b, bn, tb, sizeof tb - 1) < 0 ||
            strcmp(ta, tb) != 0)
            return xasprintf("%s: links to `%s` and `%s`", path, ta, tb);
    } else if (S_ISDIR(x.st_mode)) {
        cleanup_fd int fa = openat(a, an, O_RDONLY | O_DIRECTORY | O_NOFOLLOW),
                       fb = openat(b, bn, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        for (int side = 0; side < 2; side++) {
            cleanup_dir DIR *d = fdopendir(dup(side ? fb : fa));
            rewinddir(d);
            for (struct dirent *e; (e = readdir(d));) {
                struct stat st;
                if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
                    continue;
                if (side == 1 && fstatat(fa, e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0)
                    continue;
                cleanup_free char *sub = xasprintf("%s/%s", path, e->d_name);
                char *diff = differ(fa, fb, e->d_name, e->d_name, sub, mask, links);
                if (diff)
                    return diff;
            }
        }
    }
    return NULL;
}

char *tree_differ(const char *a, const char *b)
{
    struct pairs links = {.n = 0};

    return differ(AT_FDCWD, AT_FDCWD, a, b, ".", 07777, &links);
}

char *tree_differ_plain(const char *a, const char *b)
{
    struct pairs links = {.n = 0};

    return differ(AT_FDCWD, AT_FDCWD, a, b, ".", 0777, &links);
}

static unsigned count(int fd, const char *prefix)
{
    cleanup_dir DIR *d = fdopendir(fd);
    unsigned n = 0;

    for (struct dirent *e; d && (e = readdir(d));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        n += text_starts(e->d_name, prefix);
        int sub = openat(fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (sub >= 0)
            n += count(sub, prefix);
    }
    return n;
}

unsigned leftovers(const char *path)
{
    return count(open(path, O_RDONLY | O_DIRECTORY), ".exedev-tmp-");
}

unsigned count_entries(const char *path)
{
    return count(open(path, O_RDONLY | O_DIRECTORY), "");
}

struct end {
    struct tree_io io;
    struct tree_fds fds;
    struct run *run;
    const struct tree_source *sources;
    size_t n;
    int64_t left;
};

static bool cut_write(void *arg, const void *p, size_t n, struct error *err)
{
    struct end *e = arg;
    size_t take = e->left >= 0 && (int64_t)n > e->left ? (size_t)e->left : n;
    struct tree_io through = tree_io_fds(&e->fds);

    if (take && !through.write(through.arg, p, take, err))
        return false;
    if (e->left >= 0)
        e->left -= (int64_t)take;
    if (take == n)
        return true;
    close(e->fds.out);
    e->fds.out = -1;
    return error_set(err, ERR_NETWORK, "cut");
}

static ssize_t plain_read(void *arg, void *p, size_t n, struct error *err)
{
    struct end *e = arg;
    struct tree_io through = tree_io_fds(&e->fds);

    return through.read(through.arg, p, n, err);
}

static void *sender(void *arg)
{
    struct end *e = arg;
    struct tree_io io = {plain_read, cut_write, e};

    e->run->send_ok =
        tree_send(e->sources, e->n, &e->run->opts, &io, &e->run->sent, &e->run->send_err);
    if (e->fds.out >= 0)
        close(e->fds.out);
    close(e->fds.in);
    return NULL;
}

void run_transfer(struct run *r, const struct tree_source *s, const struct tree_target *t, size_t n)
{
    int forth[2], back[2];
    pthread_t thread;

    if (pipe2(forth, O_CLOEXEC) < 0 || pipe2(back, O_CLOEXEC) < 0)
        abort();
    struct end e = {
        .run = r, .sources = s, .n = n, .fds = {back[0], forth[1]}, .left = r->cut_after};
    struct tree_fds fds = {forth[0], back[1]};
    struct tree_io io = tree_io_fds(&fds);
    pthread_create(&thread, NULL, sender, &e);
    struct tree_opts opts = r->opts;
    opts.progress = NULL;
    r->ok = tree_receive(t, n, &opts, &io, &r->got, &r->err);
    close(forth[0]);
    close(back[1]);
    pthread_join(thread, NULL);
}

void must(struct run *r, const char *what, uint64_t seed)
{
    if (!r->ok || !r->send_ok)
        fail_msg("%s, seed %llu: receiver: %s; sender: %s", what, (unsigned long long)seed,
                 r->ok ? "ok" : r->err.msg, r->send_ok ? "ok" : r->send_err.msg);
}

void must_equal(const char *a, const char *b, const char *what, uint64_t seed)
{
    char *diff = tree_differ(a, b);

    if (diff)
        fail_msg("%s, seed %llu: %s", what, (unsigned long long)seed, diff);
}

void run_end(struct run *r)
{
    error_clear(&r->err);
    error_clear(&r->send_err);
}

struct keep {
    struct buf bytes;
    bool result_given;
};

static bool keep_write(void *arg, const void *p, size_t n, struct error *err)
{
    (void)err;
    buf_put(&((struct keep *)arg)->bytes, p, n);
    return true;
}

static ssize_t keep_read(void *arg, void *p, size_t n, struct error *err)
{
    /* A receiver's word that all went well: code, errno, empty message, two counts. */
    static const char result[5 + 28] = {'R', 0, 0, 0, 28};
    struct keep *k = arg;

    (void)err;
    if (k->result_given || n < sizeof result)
        return 0;
    k->result_given = true;
    memcpy(p, result, sizeof result);
    return sizeof result;
}

int64_t run_stream_length(const struct tree_source *s, size_t n, unsigned char **copy)
{
    struct keep k = {0};
    struct tree_io io = {keep_read, keep_write, &k};
    struct tree_opts opts = {0};

    if (!tree_send(s, n, &opts, &io, NULL, NULL))
        abort();
    int64_t len = (int64_t)k.bytes.len;
    if (copy)
        *copy = (unsigned char *)buf_steal(&k.bytes);
    buf_free(&k.bytes);
    return len;
}

struct feed {
    const unsigned char *p;
    size_t left;
};

static ssize_t feed_read(void *arg, void *p, size_t n, struct error *err)
{
    struct feed *f = arg;

    (void)err;
    if (n > f->left)
        n = f->left;
    memcpy(p, f->p, n);
    f->p += n;
    f->left -= n;
    return (ssize_t)n;
}

static bool feed_write(void *arg, const void *p, size_t n, struct error *err)
{
    (void)arg;
    (void)p;
    (void)n;
    (void)err;
    return true;
}

bool receive_bytes(const void *p, size_t n, const struct tree_target *t, size_t n_targets,
                   const struct tree_opts *opts, struct error *err)
{
    struct feed f = {p, n};
    struct tree_io io = {feed_read, feed_write, &f};

    return tree_receive(t, n_targets, opts, &io, NULL, err);
}
