/* What the files of lease share: lease_table.c (states, links, active work), lease_vm.c (VMs made
 * and deleted, the journal), lease.c (the calls), lease_guest.c (what is done on the VM),
 * lease_gc.c. */
#ifndef LIB_LEASE_PRIVATE_H
#define LIB_LEASE_PRIVATE_H

#include "lib/api.h"
#include "lib/lease.h"
#include "lib/record.h"

/* ---- lease_table.c ---- */

enum lease_state {
    LEASE_CREATING, /* its VM is being made */
    LEASE_LIVE,
    LEASE_CLOSING,  /* being released or deleted: takes no new work */
    LEASE_DOUBTFUL, /* a deletion was not confirmed; takes no work, may be closed again */
    LEASE_GONE,     /* no VM; leaves the table */
};

/* The lease `id` enters the table in that state. False with ERR_EXISTS when this process has it
 * already, in a state that does not lead there. */
bool lease_enter(const char *id, enum lease_state to, struct error *err);
/* Leads the lease there, entering it when unknown. False, and ERR_INTERNAL, for a step the table
 * does not have. */
bool lease_move(const char *id, enum lease_state to, struct error *err);
/* Is it being made, in use or being released by this process? */
bool lease_is_held(const char *id);

/* Where its ssh goes. */
struct lease_address {
    char *host, *user; /* user NULL: none */
    bool guessed;      /* from the lease's id, nothing told it */
};
void lease_address_clear(struct lease_address *a);
#define cleanup_address __attribute__((cleanup(lease_address_clear)))
void address_from_record(const struct config *cfg, const struct record *r,
                         struct lease_address *out);
void address_from_metadata(const struct config *cfg, const char *id, const json_t *metadata,
                           struct lease_address *out);
/* The lease's link, made or remembered. fresh: the VM was just made. Referenced; not active work.
 */
struct link *lease_connect_to(const struct config *cfg, const char *id,
                              const struct lease_address *a, bool fresh, struct error *err);

/* Waits until no call is active on the lease; with cancel_active, or once patience is over, they
 * are cancelled. False: some still run at the deadline. */
bool lease_drain(const char *id, bool cancel_active, struct deadline patience, struct deadline d);
/* Closes its connection, if this process has one. */
void lease_hang_up(const char *id);

/* ---- lease_vm.c ---- */

struct lease_vm {
    const struct config *cfg;
    struct api *api;
    char *account;
    const char *kind; /* "lease", "probe", "template", "setup" */
    const char *env_id, *run_id;
    const char *source; /* copy of this VM; NULL: as the config says */
    char *name;         /* the VM, once chosen */
    struct record record;
    bool created; /* the VM is there (record is valid) */
    bool adopted;
    bool unmarked; /* `cp`, and the token allows neither tag nor comment: mark the disk */
};
bool lease_vm_open(struct lease_vm *v, const struct config *cfg, const char *kind,
                   struct error *err);
void lease_vm_close(struct lease_vm *v);
#define cleanup_vm __attribute__((cleanup(lease_vm_close)))

/* Chooses a name (wanted NULL: by the naming rules), writes the journal, makes the VM, or adopts
 * that of our own earlier attempt for the same run. On failure nothing is left, or the journal
 * knows it. */
bool lease_vm_make(struct lease_vm *v, const char *wanted, struct deadline d, struct error *err);
/* Deletes what lease_vm_make made; what cannot be deleted stays in the journal. */
bool lease_vm_undo(struct lease_vm *v, struct error *err);
bool lease_vm_journal(const struct lease_vm *v, int state, struct error *err);
/* Deletes a VM, confirmed by ls. needs_mark: only one on which our mark is seen; else also one that
 * lists no tags (the host vouches for its lease id), but never one that lists tags without ours. */
bool lease_vm_delete(const struct config *cfg, const char *id, bool needs_mark, struct deadline d,
                     struct error *err);
/* Is the VM ours? seen: what the API says of it; where it lists no tags, or for a copy, what the
 * journal knows of the name. needs_mark: one of the two must say so (else one without a list of
 * tags passes). */
struct journal_entry;
bool lease_vm_is_ours(const struct record *seen, const struct journal_entry *known,
                      bool needs_mark);
/* Deletes what earlier calls of this account could not, and what died before anybody knew it.
 * Quiet. */
#define SWEEP_MS 5000 /* of a call's deadline are for it at most */
void lease_vm_sweep(struct api *api, const char *account, struct deadline d);

/* ---- lease_guest.c ---- */

struct guest {
    char *home;
    char *cwd;
    bool bash;
    json_t *setup; /* how the setup script went; NULL: not waited for */
};
void guest_clear(struct guest *g);
/* Finds the home, makes the working directory (cwd NULL: HOME/paperclip-workspace). */
bool guest_prepare(struct link *l, const char *cwd, struct guest *g, struct deadline d,
                   struct cancel *cancel, struct error *err);
/* Waits for the setup script as behaviour.md says. Only a broken link or the deadline fail. */
bool guest_wait_setup(struct link *l, const struct config *cfg, struct guest *g, struct deadline d,
                      struct cancel *cancel, struct error *err);
bool guest_mkdir(struct link *l, const char *path, struct deadline d, struct cancel *cancel,
                 struct error *err);
/* Runs argv, its stdout in *out. A status other than 0 is an error with the command's stderr. */
bool guest_run(struct link *l, const char *const *argv, struct buf *out, struct deadline d,
               struct cancel *cancel, struct error *err);
bool guest_builtin(struct link *l, const char *const *argv, struct buf *out, int *status,
                   struct deadline d, struct cancel *cancel, struct error *err);
/* The mark of a VM whose record cannot carry it. */
bool guest_write_mark(struct link *l, const struct lease_vm *v, struct deadline d,
                      struct error *err);

#endif
