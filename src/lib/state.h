/* What is kept on disk: ~/.local/state/exedev (home from the password database; EXEDEV_STATE_DIR
 * names another folder), 0700. Any number of processes may use it at once. Thread-safe. */
#ifndef LIB_STATE_H
#define LIB_STATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* The folder, made when absent; refuses one that is not ours. Owned. */
char *state_dir(struct error *err);
/* A file or sub-folder path in it (nothing is made). name is relative, without "..". */
char *state_path(const char *name, struct error *err);
/* Where OpenSSH keeps the VMs' host keys; for pinned lines a file of that content. Owned. */
char *state_known_hosts(const char *pinned, struct error *err);

/* An exclusive lock shared by our processes, freed by closing the descriptor or by any death. Waits
 * at most wait_ms; -1 and ERR_TIMEOUT. Names are of our own choosing. */
int state_lock(const char *name, int64_t wait_ms, struct error *err);

/* The journal: one line per event, appended and fsynced before it returns; a torn last line is
 * ignored. It never holds a token. */
enum journal_state {
    JOURNAL_INTENT,   /* written before new: the VM may exist */
    JOURNAL_LIVE,     /* a lease; its owner or the host knows it */
    JOURNAL_RETAINED, /* released and kept for reuse: not to be deleted */
    JOURNAL_DOOMED,   /* must be deleted: rm has not been confirmed */
    JOURNAL_GONE,     /* seen gone; forgotten at the next compaction */
};
struct journal_entry {
    char *name;    /* the VM */
    char *account; /* config_account_id */
    char *kind;    /* "lease", "probe", "template", "setup" */
    char *env_id;  /* may be NULL */
    char *run_id;  /* may be NULL */
    enum journal_state state;
    int64_t since;    /* Unix seconds of the first event */
    int64_t at;       /* of the last */
    bool owner_alive; /* read only: the process that wrote last still runs (false after a reboot) */
    bool owner_is_us; /* read only */
};
struct journal {
    struct journal_entry *list;
    size_t n;
};

/* Only name, account, kind, ids and state of e are read. */
bool journal_write(const struct journal_entry *e, struct error *err);
/* What is not gone, oldest first. account NULL: all. */
bool journal_read(const char *account, struct journal *out, struct error *err);
void journal_clear(struct journal *j);
#define cleanup_journal __attribute__((cleanup(journal_clear)))
/* A lock on one VM's clean-up, so that two workers do not both do it; -1 when another has it (no
 * error) or on error. Close it. */
int journal_claim(const char *account, const char *name, struct error *err);

#endif
