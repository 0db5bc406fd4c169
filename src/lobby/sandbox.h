/* What a VM is made of: folders on disk, and a bubblewrap sandbox over them with an sshd inside.
 *
 *   BASE/sys-HASH/...      a thin layer over this machine's system folders, the same for all VMs:
 * their tree of folders again, owned by the VMs' user, so that its "root" may change them
 *   BASE/vm/ID/root        what becomes "/"
 *   BASE/vm/ID/up, wk      overlayfs: what the VM changed below the system folders, and its work
 * space BASE/vm/ID/guest       /run/exe inside: sshd's configuration, events, the setup script
 *
 * Everything of a VM belongs to one user: the lobby's, or, when the lobby is root, one without a
 * name. Functions are thread-safe on different VMs. */
#ifndef LOBBY_SANDBOX_H
#define LOBBY_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/json.h"
#include "base/spawn.h"

#define SANDBOX_USER "exedev"
#define SANDBOX_HOME "/home/exedev"
/* The hidden first argument that turns the program into the process that becomes bwrap. */
#define SANDBOX_ENTER "--enter-sandbox"

enum disk_mode { DISK_AUTO, DISK_OVERLAY, DISK_PLAIN };

struct sandbox_host {
    char *base;          /* BASE */
    char *sys;           /* BASE/sys-HASH */
    char *host_key;      /* private key file, common to all VMs */
    char *host_key_line; /* "ssh-ed25519 AAAA..." */
    uid_t uid;           /* owner of the VMs' files, -1: the lobby's own user */
    enum disk_mode disk; /* never DISK_AUTO once set up */
    bool outlive;        /* VMs stay when the lobby ends */
};

/* Exit status for "this machine does not let us". */
#define SANDBOX_FORBIDDEN 3

/* Prepares BASE (which exists). ERR_UNSUPPORTED: user name spaces are forbidden; the message says
 * what to do. With DISK_AUTO, `note` tells why the disk is plain (owned by the caller, NULL when it
 * is not). */
bool sandbox_host_setup(struct sandbox_host *h, enum disk_mode want, char **note,
                        struct error *err);

struct sandbox {
    char *dir;           /* BASE/vm/ID */
    const char *name;    /* host name */
    const char *address; /* 127.x.y.z that sshd listens on */
    unsigned port;
    unsigned max_sessions;
    long long sshd_delay_ms;
    const json_t *env;   /* object of strings */
    const char *keys;    /* authorized_keys text */
    const char *setup;   /* script of the first boot, NULL for none */
    const char *command; /* started at each boot, NULL for none */
    long cpus;           /* 0: all */
};

/* Makes the folders of a new VM. */
bool sandbox_create(const struct sandbox_host *h, const char *dir, struct error *err);
/* Starts it. It is up when its events file has the line "exe: ready". */
bool sandbox_boot(const struct sandbox_host *h, const struct sandbox *s, struct child *out,
                  struct error *err);
/* Copies the disk of one VM for another. */
bool sandbox_copy(const struct sandbox_host *h, const char *from, const char *to,
                  struct error *err);
/* main() of the process that becomes bwrap; returns only on failure. */
int sandbox_enter(int argc, char **argv);

#endif
