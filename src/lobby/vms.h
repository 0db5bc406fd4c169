/* The table of VMs. All functions are thread-safe; a struct vm is only looked at or changed by
 * whoever holds it (vms_take ... vms_put), or under the table's lock inside vms.c and watch.c. */
#ifndef LOBBY_VMS_H
#define LOBBY_VMS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/json.h"
#include "lobby/sandbox.h"

struct vms_options {
    struct sandbox_host host;
    unsigned port; /* sshd's, on every VM's address */
    unsigned max_vms;
    unsigned max_sessions;
    const char *keys; /* authorized_keys text, borrowed */
    bool list_tags;   /* records list tags and comment */
    bool relay;       /* the lobby stands between a VM's address and its sshd */
};

/* Starts the table and its watcher thread; takes `o` over. With host.outlive, VMs of an earlier
 * lobby are found again. */
bool vms_start(const struct vms_options *o, struct error *err);
/* An event for each VM that was found. */
void vms_report(void);
/* Ends: without host.outlive every VM and every file of theirs. */
void vms_stop(void);

/* What `new` and `cp` set; kept as the JSON object that is saved:
 * image, command, cpu, memory, disk, comment, env{}, tags[], integrations[], port. */
struct new_vm {
    const char *name;    /* NULL: one is made up */
    json_t *conf;        /* borrowed */
    const char *setup;   /* may be NULL */
    const char *copy_of; /* NULL: fresh */
    bool copy_tags;
};
/* Returns the record (caller's). ERR_REFUSED, ERR_EXISTS, ERR_NOT_FOUND, ERR_SYSTEM. */
json_t *vms_new(const struct new_vm *n, struct error *err);
bool vms_remove(const char *name, struct error *err);
json_t *vms_restart(const char *name, struct error *err);
json_t *vms_rename(const char *name, const char *to, struct error *err);
/* Sets members of conf (an object). */
json_t *vms_update(const char *name, json_t *changes, struct error *err);
/* Adds or removes tags (an array of strings). */
json_t *vms_tag(const char *name, json_t *tags, bool remove, struct error *err);
json_t *vms_record(const char *name, struct error *err);
/* As vms_record, with processes and counts. */
json_t *vms_stat(const char *name, struct error *err);
/* Records of those whose name matches (fnmatch; NULL: all), sorted by name: an array. */
json_t *vms_list(const char *pattern);

/* Address and main port of a running VM for the proxy; `address` is the caller's. */
bool vms_route(const char *name, char **address, unsigned *port, struct error *err);

#endif
