/* Environments as sorted sets, and the login environment: captured by a shell that sources the
 * profiles, kept until one of them changes. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/text.h"
#include "vm/profile.h"
#include "vm/vm.h"

extern char **environ;

#define RUN_MS 10000   /* one shell */
#define TOTAL_MS 20000 /* all of them */
#define RECORDS_MAX (64u << 20)
#define HIGH_FD 200 /* out of the way of profiles that use descriptors of their own */

/* ---- sets ---- */

static int by_name(const void *a, const void *b)
{
    const char *x = *(char *const *)a, *y = *(char *const *)b;

    while (*x && *x == *y && *x != '=')
        x++, y++;
    unsigned char p = *x == '=' ? 0 : (unsigned char)*x, q = *y == '=' ? 0 : (unsigned char)*y;
    return (p > q) - (p < q);
}

/* What describes the shell or session that ran before, not the user's settings. */
static bool transient(const char *entry)
{
    static const char *const names[] = {
        "_=", "PWD=", "OLDPWD=", "SHLVL=", "EXEDEV_MARK=", "EXEDEV_STREAM=", "__exedev_"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (text_starts(entry, names[i]))
            return true;
    }
    return !strchr(entry, '=');
}

static void envset_from(struct envset *e, char *const *from, size_t n)
{
    e->v = xreallocarray(NULL, n + 1, sizeof *e->v);
    e->n = 0;
    for (size_t i = 0; i < n; i++) {
        if (!transient(from[i]))
            e->v[e->n++] = xstrdup(from[i]);
    }
    e->v[e->n] = NULL;
    qsort(e->v, e->n, sizeof *e->v, by_name);
}

void envset_free(struct envset *e)
{
    for (size_t i = 0; i < e->n; i++)
        free(e->v[i]);
    free(e->v);
    *e = (struct envset){0};
}

const char *env_get(char *const *envp, const char *name)
{
    size_t n = strlen(name);

    for (; *envp; envp++) {
        if (!strncmp(*envp, name, n) && (*envp)[n] == '=')
            return *envp + n + 1;
    }
    return NULL;
}

static bool is_ours(const char *entry)
{
    return text_starts(entry, "EXEDEV_MARK=") || text_starts(entry, "EXEDEV_STREAM=");
}

char **env_merge(const struct envset *base, char **over, size_t n, char **extra, size_t nextra)
{
    char **v = xreallocarray(NULL, base->n + n + nextra + 1, sizeof *v);
    cleanup_free bool *hidden = xcalloc(base->n + 1, sizeof *hidden);
    size_t count = 0;

    /* Ours first: a scan of /proc then finds them at once. */
    for (size_t i = 0; i < nextra; i++)
        v[count++] = extra[i];
    for (size_t i = 0; i < n; i++) {
        char **found = bsearch(&over[i], base->v, base->n, sizeof *base->v, by_name);
        if (found)
            hidden[found - base->v] = true;
        if (!is_ours(over[i]))
            v[count++] = over[i];
    }
    for (size_t i = 0; i < base->n; i++) {
        if (!hidden[i])
            v[count++] = base->v[i];
    }
    v[count] = NULL;
    return v;
}

/* ---- the far end of a capture: `exedev-vm env-dump FD STEP` in the shell ---- */

int env_dump_main(int argc, char **argv)
{
    struct buf b = {0};
    uint32_t n = 0;

    if (argc != 4)
        return 64;
    int fd = atoi(argv[2]);
    mode_t mask = umask(0);
    buf_put_u32(&b, (uint32_t)atoi(argv[3]));
    buf_put_u32(&b, mask);
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit l = {RLIM_INFINITY, RLIM_INFINITY};
        getrlimit((__rlimit_resource_t)i, &l);
        buf_put_u64(&b, l.rlim_cur);
        buf_put_u64(&b, l.rlim_max);
    }
    while (environ[n])
        n++;
    buf_put_u32(&b, n);
    for (uint32_t i = 0; i < n; i++)
        buf_put_str(&b, environ[i], strlen(environ[i]));
    struct buf record = {0};
    buf_put_str(&record, b.data, b.len);
    return io_write_all(fd, record.data, record.len, DEADLINE_NEVER, NULL) ? 0 : 1;
}

/* ---- our end ---- */

static const char script[] =
    "__exedev_vm=$1 __exedev_fd=$2 __exedev_at=$3 __exedev_nvm=$4\n"
    "set --\n"
    "__exedev_dump() { \"$__exedev_vm\" env-dump \"$__exedev_fd\" \"$__exedev_at\"; }\n"
    "trap __exedev_dump EXIT\n"
    "while [ \"$__exedev_at\" -lt 5 ]; do\n"
    "  __exedev_at=$((__exedev_at + 1))\n"
    "  case $__exedev_at in\n"
    "    1) __exedev_f=/etc/profile ;;\n"
    "    2) __exedev_f=$HOME/.profile ;;\n"
    "    3) __exedev_f=$HOME/.bash_profile; [ -r \"$__exedev_f\" ] || __exedev_f=$HOME/.bashrc ;;\n"
    "    4) __exedev_f=$HOME/.zprofile ;;\n"
    "    5) __exedev_f=; [ -z \"$__exedev_nvm\" ] || __exedev_f=${NVM_DIR:-$HOME/.nvm}/nvm.sh ;;\n"
    "  esac\n"
    "  if [ -f \"$__exedev_f\" ] && [ -r \"$__exedev_f\" ]; then\n"
    "    . \"$__exedev_f\" </dev/null >/dev/null 2>&1\n"
    "    set +eu\n"
    "    __exedev_dump\n"
    "  fi\n"
    "done\n"
    "trap - EXIT\n"
    "__exedev_at=9\n"
    "__exedev_dump\n";

#define STEP_DONE 9
#define STEPS 5

struct capture {
    bool have, racy, nvm;
    pid_t pid;            /* 0: none is under way */
    int fd, streak, step; /* step: the last one that need not be done again */
    int64_t kill_at, stop_at;
    struct envset got;     /* what we have so far */
    struct profiles files; /* as they were when it began */
};

static void step_path(struct session *s, const struct capture *c, int step, char **out)
{
    const struct envset *e = c->got.v ? &c->got : &s->base;
    const char *home = env_get(e->v, "HOME");

    *out = profile_step(step, home ? home : s->home, c->nvm, env_get(e->v, "NVM_DIR"));
}

static void run(struct session *s, struct capture *c)
{
    const struct envset *from = c->got.v ? &c->got : &s->base;
    cleanup_free char *fd = xasprintf("%d", c->fd), *step = xasprintf("%d", c->step);
    cleanup_free char **envp = env_merge(from, NULL, 0, NULL, 0);
    char *argv[] = {NULL,
                    (char *)(s->bash ? "bash" : "sh"),
                    (char *)"-c",
                    (char *)script,
                    (char *)"exedev-vm",
                    s->self,
                    fd,
                    step,
                    (char *)(c->nvm ? "y" : ""),
                    NULL};
    struct launch l = {.file = argv[1],
                       .argv = argv + 1,
                       .argc = 8,
                       .envp = envp,
                       .cwd = s->home,
                       .cwd_fd = -1,
                       .fds = {s->null_fd, s->null_fd, s->null_fd},
                       .limits = c->got.known ? &c->got : NULL};

    io_set_cloexec(c->fd, false);
    pid_t pid = launch(&l);
    if (pid < 0 && l.err_cwd) { /* a home that is not there stops nobody */
        l.cwd = "/";
        pid = launch(&l);
    }
    io_set_cloexec(c->fd, true);
    c->pid = pid > 0 ? pid : 0;
    int64_t now = now_ms();
    c->kill_at = now + RUN_MS < c->stop_at ? now + RUN_MS : c->stop_at;
    session_timer(s, c->kill_at);
}

static void finish(struct session *s, struct capture *c)
{
    struct envset *e = &s->login[c->nvm];

    close(c->fd);
    c->fd = -1;
    envset_free(e);
    if (c->got.v) {
        *e = c->got;
        c->got = (struct envset){0};
    } else {
        session_log(s,
                    "the login environment could not be had (%s did not run): commands get the "
                    "session's own",
                    s->bash ? "bash" : "sh");
        envset_from(e, s->base.v, s->base.n);
    }
    c->have = true;
    c->streak++;
    streams_env_ready(s);
    if (!c->pid) /* else it has to be done once more */
        c->streak = 0;
}

static void begin(struct session *s, struct capture *c)
{
    int fd = memfd_create("exedev-env", MFD_CLOEXEC);
    int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);

    if (high >= 0) {
        close(fd);
        fd = high;
    }
    envset_free(&c->got);
    c->fd = fd;
    c->step = 0;
    c->have = false;
    c->stop_at = now_ms() + TOTAL_MS;
    c->racy = profiles_note(&c->files, s->home, c->nvm, env_get(s->base.v, "NVM_DIR"));
    run(s, c);
    if (!c->pid)
        finish(s, c);
}

static bool read_record(struct cursor *c, struct envset *out, int *step)
{
    size_t n;
    const char *body = cursor_str(c, RECORDS_MAX, &n);
    struct cursor r = {.p = (const unsigned char *)body, .left = n};

    if (!body)
        return false;
    *step = (int)cursor_u32(&r);
    out->umask = (mode_t)cursor_u32(&r) & 0777;
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        out->limits[i].rlim_cur = cursor_u64(&r);
        out->limits[i].rlim_max = cursor_u64(&r);
    }
    uint32_t count = cursor_u32(&r);
    if (r.bad || count > r.left / 4)
        return false;
    char **v = xcalloc(count + 1, sizeof *v);
    for (uint32_t i = 0; i < count && !r.bad; i++)
        v[i] = cursor_strdup(&r, RECORDS_MAX);
    if (!r.bad) {
        envset_from(out, v, count);
        out->known = true;
    }
    for (uint32_t i = 0; i < count; i++)
        free(v[i]);
    free(v);
    return !r.bad;
}

/* The last whole record: the steps before it are in it. */
static void take_records(struct capture *c)
{
    cleanup_buf struct buf all = {0};
    off_t size = lseek(c->fd, 0, SEEK_END);

    if (size <= 0 || size > (off_t)RECORDS_MAX)
        return;
    ssize_t n = pread(c->fd, buf_reserve(&all, (size_t)size), (size_t)size, 0);
    struct cursor cur = {.p = (unsigned char *)all.data, .left = n > 0 ? (size_t)n : 0};
    while (cur.left) {
        struct envset e = {0};
        int step;
        if (!read_record(&cur, &e, &step))
            break;
        envset_free(&c->got);
        c->got = e;
        if (step > c->step)
            c->step = step;
    }
    if (ftruncate(c->fd, 0) == 0)
        lseek(c->fd, 0, SEEK_SET);
}

bool env_capture_ended(struct session *s, pid_t pid)
{
    struct capture *c = s->capture[0] && s->capture[0]->pid == pid ? s->capture[0] : s->capture[1];

    if (!c || c->pid != pid)
        return false;
    int before = c->step;
    c->pid = 0;
    take_records(c);
    bool late = now_ms() >= c->kill_at;
    if (c->step >= STEP_DONE) {
        finish(s, c);
        return true;
    }
    /* A profile ended the shell, or hung: the one whose environment came last, or the next after
     * it. */
    cleanup_free char *path = NULL;
    if (c->step > before && !late) {
        step_path(s, c, c->step, &path);
    } else {
        do {
            free(path);
            path = NULL;
            step_path(s, c, ++c->step, &path);
        } while (c->step < STEPS && !path);
    }
    if (path)
        session_log(s, "%s %s: the login environment goes on without the rest of it", path,
                    late ? "takes too long" : "ends the shell");
    if (c->step < STEPS && now_ms() < c->stop_at)
        run(s, c);
    if (!c->pid)
        finish(s, c);
    return true;
}

void env_timers(struct session *s, int64_t now)
{
    for (int i = 0; i < 2; i++) {
        struct capture *c = s->capture[i];
        if (!c || !c->pid)
            continue;
        if (now >= c->kill_at) {
            kill(-c->pid, SIGKILL);
            kill(c->pid, SIGKILL);
            session_timer(s, now + 1000);
        } else {
            session_timer(s, c->kill_at);
        }
    }
}

const struct envset *env_login(struct session *s, bool nvm)
{
    struct capture *c = s->capture[nvm];

    if (!c) {
        c = s->capture[nvm] = xcalloc(1, sizeof *c);
        c->fd = -1;
        c->nvm = nvm;
    }
    if (c->pid)
        return NULL;
    /* A profile that changes a profile each time it runs must not keep its command waiting. */
    if (c->have && (c->streak >= 2 || (!c->racy && !profiles_changed(&c->files))))
        return &s->login[nvm];
    begin(s, c);
    return c->pid ? NULL : &s->login[nvm];
}

void env_init(struct session *s)
{
    size_t n = 0;

    s->home = home_folder();
    s->user = user_name();
    while (environ[n])
        n++;
    envset_from(&s->base, environ, n);
    if (!env_get(s->base.v, "HOME")) {
        char *home = xasprintf("HOME=%s", s->home);
        char **v = env_merge(&s->base, &home, 1, NULL, 0);
        envset_free(&s->base);
        for (n = 0; v[n];)
            n++;
        envset_from(&s->base, v, n);
        free(v);
        free(home);
    }
    s->dir = private_folder(s->home);
    s->bash = profile_find_bash(env_get(s->base.v, "PATH"));
}
