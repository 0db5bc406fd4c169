#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/text.h"
#include "lib/state.h"

#define FILE_NAME "journal"
#define LOCK_NAME "journal.lock"
#define LOCK_WAIT_MS 10000
#define FILE_MOST (64 << 20)
#define COMPACT_OVER 65536 /* bytes */

static const char *const names[] = {
    [JOURNAL_INTENT] = "intent", [JOURNAL_LIVE] = "live", [JOURNAL_RETAINED] = "retained",
    [JOURNAL_DOOMED] = "doomed", [JOURNAL_GONE] = "gone",
};

static void entry_clear(struct journal_entry *e)
{
    free(e->name);
    free(e->account);
    free(e->kind);
    free(e->env_id);
    free(e->run_id);
}

void journal_clear(struct journal *j)
{
    for (size_t i = 0; i < j->n; i++)
        entry_clear(&j->list[i]);
    free(j->list);
    *j = (struct journal){0};
}

/* A process is known by its number, its start (proc(5), field 22 of stat) and the boot: numbers
 * come again. False for one that has ended, even where its parent never asks for it (Z, X). */
static bool process_start(int pid, unsigned long long *start)
{
    cleanup_free char *path = xasprintf("/proc/%d/stat", pid);
    cleanup_buf struct buf b = {0};

    if (!io_read_file(path, 8192, &b, NULL) || !b.len)
        return false;
    /* The name in brackets may hold anything. */
    const char *s = strrchr(b.data, ')');
    if (s && (text_starts(s, ") Z") || text_starts(s, ") X")))
        return false;
    for (int field = 2; s && field < 22; field++)
        s = strchr(s + 1, ' ');
    return s && sscanf(s, "%llu", start) == 1;
}

static char *boot_id(void)
{
    cleanup_buf struct buf b = {0};

    if (!io_read_file("/proc/sys/kernel/random/boot_id", 100, &b, NULL) || !b.len)
        return xstrdup("");
    return text_trim(b.data);
}

static void set_text(json_t *o, const char *key, const char *value)
{
    if (value)
        json_object_set_new(o, key, json_string(value));
}

static void write_line(struct buf *out, const struct journal_entry *e, int64_t at, int pid,
                       unsigned long long start, const char *boot)
{
    cleanup_json json_t *o = json_object();

    set_text(o, "vm", e->name);
    set_text(o, "account", e->account);
    set_text(o, "kind", e->kind);
    set_text(o, "env", e->env_id);
    set_text(o, "run", e->run_id);
    set_text(o, "state", names[e->state]);
    json_object_set_new(o, "at", json_integer(at));
    json_object_set_new(o, "pid", json_integer(pid));
    json_object_set_new(o, "start", json_integer((json_int_t)start));
    set_text(o, "boot", boot);
    json_write(out, o);
    buf_putc(out, '\n');
}

/* The file as it stands, folded: the last line about a VM counts. Lines are kept as they are for
 * compaction. */
struct folded {
    struct journal j;
    char **lines;
};

static void folded_clear(struct folded *f)
{
    for (size_t i = 0; i < f->j.n; i++)
        free(f->lines[i]);
    free(f->lines);
    f->lines = NULL;
    journal_clear(&f->j);
}

static char *dup_or_null(const char *s)
{
    return s ? xstrdup(s) : NULL;
}

static void fold_line(struct folded *f, const char *line, size_t n, const char *boot)
{
    cleanup_free char *copy = xstrndup(line, n);
    cleanup_json json_t *o = json_parse(copy, n, NULL);
    const char *vm = json_str(o, "vm"), *account = json_str(o, "account"),
               *state = json_str(o, "state");
    const char *was_boot = json_str(o, "boot");
    unsigned long long start = 0;
    size_t i, s = 0;

    while (state && s < sizeof names / sizeof *names && strcmp(names[s], state) != 0)
        s++;
    if (!vm || !account || !state || s == sizeof names / sizeof *names)
        return; /* a torn line: its write never returned, so nobody relied on it */
    for (i = 0; i < f->j.n; i++)
        if (!strcmp(f->j.list[i].name, vm) && !strcmp(f->j.list[i].account, account))
            break;
    int64_t at = json_int(o, "at", 0), since = at;
    if (i == f->j.n) {
        f->j.list = xreallocarray(f->j.list, i + 1, sizeof *f->j.list);
        f->lines = xreallocarray(f->lines, i + 1, sizeof *f->lines);
        f->j.n++;
    } else {
        /* A name that is used again after it was gone is another VM. */
        if (f->j.list[i].state != JOURNAL_GONE)
            since = f->j.list[i].since;
        entry_clear(&f->j.list[i]);
        free(f->lines[i]);
    }
    int pid = (int)json_int(o, "pid", 0);
    bool alive = pid > 0 && was_boot && !strcmp(was_boot, boot) && process_start(pid, &start) &&
                 (int64_t)start == json_int(o, "start", -1);
    f->lines[i] = xstrndup(line, n);
    f->j.list[i] = (struct journal_entry){
        .name = xstrdup(vm),
        .account = xstrdup(account),
        .kind = dup_or_null(json_str(o, "kind")),
        .env_id = dup_or_null(json_str(o, "env")),
        .run_id = dup_or_null(json_str(o, "run")),
        .state = (enum journal_state)s,
        .since = since,
        .at = at,
        .owner_alive = alive,
        .owner_is_us = alive && pid == (int)getpid(),
    };
}

static bool fold(const char *path, struct folded *out, size_t *bytes, struct error *err)
{
    cleanup_buf struct buf text = {0};
    cleanup_error struct error why = {0};
    cleanup_free char *boot = boot_id();

    *out = (struct folded){0};
    if (!io_read_file(path, FILE_MOST, &text, &why)) {
        if (why.code == ERR_NOT_FOUND)
            return true;
        error_move(err, &why);
        return error_prefix(err, "read the journal of VMs");
    }
    *bytes = text.len;
    for (const char *s = text.data, *end = text.data + text.len; s < end;) {
        const char *nl = memchr(s, '\n', (size_t)(end - s));
        if (!nl)
            break;
        fold_line(out, s, (size_t)(nl - s), boot);
        s = nl + 1;
    }
    return true;
}

/* Lock held. What is gone is left out; the new file takes the old one's place whole. */
static void compact(const char *path)
{
    struct folded f = {0};
    cleanup_buf struct buf text = {0};
    size_t bytes = 0;

    if (fold(path, &f, &bytes, NULL)) {
        buf_puts(&text, "");
        for (size_t i = 0; i < f.j.n; i++)
            if (f.j.list[i].state != JOURNAL_GONE)
                buf_printf(&text, "%s\n", f.lines[i]);
        /* Not when little would be won: many live VMs are no reason to write it again at each line.
         */
        if (text.len < bytes / 2)
            io_write_file(path, 0600, text.data, text.len, NULL);
    }
    folded_clear(&f);
}

bool journal_write(const struct journal_entry *e, struct error *err)
{
    cleanup_buf struct buf line = {0};
    cleanup_free char *path = state_path(FILE_NAME, err);
    cleanup_free char *boot = boot_id();
    unsigned long long start = 0;
    struct stat st;

    if (!path)
        return error_prefix(err, "note the VM %s in the journal", e->name);
    /* Compaction swaps the file: an append must not go to the one swapped out. */
    cleanup_fd int held = state_lock(LOCK_NAME, LOCK_WAIT_MS, err);
    if (held < 0)
        return false;
    cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || fstat(fd, &st))
        return error_sys(err, errno, "open the journal %s", path);
    /* A writer that died in the middle of its line must not spoil ours. */
    char last = '\n';
    if (st.st_size && pread(fd, &last, 1, st.st_size - 1) == 1 && last != '\n')
        buf_putc(&line, '\n');
    process_start((int)getpid(), &start);
    write_line(&line, e, time(NULL), (int)getpid(), start, boot);
    ssize_t wrote = write(fd, line.data, line.len);
    if (wrote != (ssize_t)line.len || fsync(fd))
        return error_sys(err, wrote < 0 || wrote == (ssize_t)line.len ? errno : ENOSPC,
                         "write the journal %s", path);
    if (!st.st_size) {
        cleanup_free char *dir = state_dir(NULL);
        cleanup_fd int folder = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
        if (folder >= 0)
            fsync(folder);
    }
    if (e->state == JOURNAL_GONE && st.st_size > COMPACT_OVER)
        compact(path);
    return true;
}

bool journal_read(const char *account, struct journal *out, struct error *err)
{
    cleanup_free char *path = state_path(FILE_NAME, err);
    struct folded f = {0};
    size_t bytes = 0;

    *out = (struct journal){0};
    if (!path)
        return false;
    cleanup_fd int held = state_lock(LOCK_NAME, LOCK_WAIT_MS, err);
    if (held < 0 || !fold(path, &f, &bytes, err))
        return false;
    for (size_t i = 0; i < f.j.n; i++) {
        struct journal_entry *e = &f.j.list[i];
        if (e->state == JOURNAL_GONE || (account && strcmp(account, e->account) != 0))
            continue;
        out->list = xreallocarray(out->list, out->n + 1, sizeof *out->list);
        out->list[out->n++] = *e;
        *e = (struct journal_entry){0};
    }
    folded_clear(&f);
    return true;
}

int journal_claim(const char *account, const char *name, struct error *err)
{
    cleanup_error struct error why = {0};
    cleanup_free char *folder = state_path("claims", err);
    cleanup_free char *lock = xasprintf("claims/%.32s-%.63s", account, name);

    if (!folder || !io_mkdirs(folder, 0700, err))
        return -1;
    int fd = state_lock(lock, 0, &why);
    if (fd < 0 && why.code != ERR_TIMEOUT)
        error_move(err, &why);
    return fd;
}
