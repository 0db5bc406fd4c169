/* files-in and files-out: the far ends of a transfer, as built-ins of the helper. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "tree/tree.h"

enum { EXIT_USAGE = 64, PIPE_SIZE = 1 << 20 };

static int end_fd = -1;

/* Makes the stream end, wherever the receiver is in reading it, so that it cleans up as for any
 * cut. */
static void on_signal(int sig)
{
    (void)sig;
    dup2(end_fd, 0);
}

static bool catch_signals(void)
{
    struct sigaction sa = {.sa_handler = on_signal}; /* no SA_RESTART: a blocked read looks again */
    static const int sigs[] = {SIGTERM, SIGHUP, SIGINT};

    end_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (end_fd < 0)
        return false;
    for (size_t i = 0; i < sizeof sigs / sizeof sigs[0]; i++)
        sigaction(sigs[i], &sa, NULL);
    return true;
}

static const char *value(const char *arg, const char *name)
{
    return text_starts(arg, name) ? arg + strlen(name) : NULL;
}

static bool number(const char *s, int base, uint64_t max, uint64_t *out)
{
    char *end;

    if (*s < '0' || *s > '9')
        return false;
    errno = 0;
    *out = strtoull(s, &end, base);
    return !*end && !errno && *out <= max;
}

static bool parse_kind(const char *s, enum tree_kind *kind)
{
    *kind = strcmp(s, "file") == 0 ? TREE_FILE : strcmp(s, "folder") == 0 ? TREE_DIR : TREE_ANY;
    return *kind != TREE_ANY;
}

/* Options that hold for the whole transfer. */
static bool parse_common(const char *arg, struct tree_opts *o)
{
    const char *v;
    uint64_t n;

    if (strcmp(arg, "--update") == 0)
        o->update = true;
    else if (strcmp(arg, "--checksum") == 0)
        o->update = o->checksum = true;
    else if (strcmp(arg, "--dry-run") == 0)
        o->dry_run = true;
    else if (strcmp(arg, "--totals") == 0)
        o->totals = true;
    else if (strcmp(arg, "--keep-special") == 0)
        o->keep_special = true;
    else if ((v = value(arg, "--max-entries=")))
        return number(v, 10, UINT64_MAX, &o->limits.entries);
    else if ((v = value(arg, "--max-bytes=")))
        return number(v, 10, UINT64_MAX, &o->limits.bytes);
    else if ((v = value(arg, "--max-depth=")) && number(v, 10, 4096, &n))
        o->limits.depth = (unsigned)n;
    else
        return false;
    return true;
}

struct mapping {
    char *path;
    const char *into;
    enum tree_kind kind;
    bool merge, remove, follow;
    int mode;
    const char **exclude;
    size_t n_exclude;
};

static bool parse_mapping(const char *arg, struct mapping *m)
{
    const char *v;
    uint64_t n;

    if ((v = value(arg, "--kind=")))
        return parse_kind(v, &m->kind);
    if ((v = value(arg, "--into=")))
        m->into = v;
    else if ((v = value(arg, "--mode=")) && number(v, 8, 07777, &n))
        m->mode = (int)n;
    else if (strcmp(arg, "--merge") == 0)
        m->merge = true;
    else if (strcmp(arg, "--remove") == 0)
        m->remove = true;
    else if (strcmp(arg, "--follow") == 0)
        m->follow = true;
    else if ((v = value(arg, "--exclude="))) {
        m->exclude = xreallocarray(m->exclude, m->n_exclude + 1, sizeof *m->exclude);
        m->exclude[m->n_exclude++] = v;
    } else
        return false;
    return true;
}

/* Options before the first path hold for the transfer, those after a path for that path. */
static struct mapping *parse(int argc, char **argv, const char *path_option, struct tree_opts *o,
                             size_t *n)
{
    struct mapping *all = NULL;

    *n = 0;
    for (int i = 1; i < argc && argv[i]; i++) {
        const char *path = value(argv[i], path_option);
        if (path) {
            all = xreallocarray(all, *n + 1, sizeof *all);
            all[(*n)++] = (struct mapping){.path = xstrdup(path), .mode = -1};
        } else if (*n ? !parse_mapping(argv[i], &all[*n - 1]) : !parse_common(argv[i], o)) {
            fprintf(stderr, "exedev-vm: %s: the option `%s` is unknown or its value is wrong\n",
                    argv[0], argv[i]);
            exit(EXIT_USAGE);
        }
    }
    if (!*n) {
        fprintf(stderr, "exedev-vm: %s: name a path with %sPATH\n", argv[0], path_option);
        exit(EXIT_USAGE);
    }
    return all;
}

static int finish(const char *name, bool ok, struct error *err)
{
    if (!ok)
        fprintf(stderr, "exedev-vm: %s: %s\n", name, err->msg);
    error_clear(err);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}

int tree_in_main(int argc, char **argv)
{
    struct tree_opts opts = {0};
    struct tree_fds fds = {0, 1};
    struct tree_io io = tree_io_fds(&fds);
    struct error err = {0};
    size_t n;
    struct mapping *m = parse(argc, argv, "--to=", &opts, &n);
    struct tree_target *targets = xcalloc(n, sizeof *targets);

    for (size_t i = 0; i < n; i++)
        targets[i] = (struct tree_target){
            .path = m[i].path,
            .into = m[i].into,
            .kind = m[i].kind,
            .placement = m[i].merge ? TREE_MERGE : TREE_REPLACE,
            .remove = m[i].remove,
            .mode = m[i].mode,
            .exclude = m[i].exclude,
            .n_exclude = m[i].n_exclude,
        };
    signal(SIGPIPE, SIG_IGN);
    /* A file comes in larger pieces than a pipe holds: an eighth of the wakeups. Where the kernel
     * says no, the pipe stays as it is. */
    fcntl(fds.in, F_SETPIPE_SZ, PIPE_SIZE);
    if (!catch_signals())
        return finish(argv[0], error_sys(&err, errno, "open /dev/null"), &err);
    return finish(argv[0], tree_receive(targets, n, &opts, &io, NULL, &err), &err);
}

int tree_out_main(int argc, char **argv)
{
    struct tree_opts opts = {0};
    struct tree_fds fds = {0, 1};
    struct tree_io io = tree_io_fds(&fds);
    struct error err = {0};
    size_t n;
    struct mapping *m = parse(argc, argv, "--from=", &opts, &n);
    struct tree_source *sources = xcalloc(n, sizeof *sources);

    for (size_t i = 0; i < n; i++)
        sources[i] = (struct tree_source){
            .path = m[i].path,
            .kind = m[i].kind,
            .follow = m[i].follow,
            .exclude = m[i].exclude,
            .n_exclude = m[i].n_exclude,
        };
    signal(SIGPIPE, SIG_IGN);
    return finish(argv[0], tree_send(sources, n, &opts, &io, NULL, &err), &err);
}
