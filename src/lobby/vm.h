/* Inside the table of VMs: shared by vms.c, watch.c and keep.c only. */
#ifndef LOBBY_VM_H
#define LOBBY_VM_H

#include <pthread.h>

#include "lobby/vms.h"

enum vm_status { VM_STARTING, VM_RUNNING, VM_STOPPED };

struct vm {
    struct vm *next;
    char *id; /* name of its folder */
    char *name;
    char *dir;
    char *address;
    json_t *conf;
    enum vm_status status;
    bool busy;                      /* somebody holds it */
    bool gone;                      /* being removed */
    bool quiet;                     /* its events are old */
    bool reboot;                    /* asked for from inside */
    bool ours;                      /* the sandbox is a child of this process */
    struct child child;             /* the sandbox's outermost process; pid <= 0: none */
    unsigned long long child_start; /* its start time, /proc/PID/stat field 22 */
    int watch;                      /* inotify */
    long long read_to;              /* of its events file */
    char *partial;                  /* an unfinished line of it */
    unsigned boots, logins, connections, unregistered;
    int64_t created_s; /* Unix time */
    int64_t booted_ms; /* monotonic */
    int setup_status;  /* -2: none, -1: running */
};

extern struct vms_table {
    struct vms_options o;
    pthread_mutex_t lock;
    pthread_cond_t changed; /* CLOCK_MONOTONIC */
    struct vm *first;
    bool stopping;
} vms;

/* watch.c. The lock is held for all of them but watch_start. */
bool watch_start(struct error *err);
void watch_stop(void);
void watch_add(struct vm *vm);
void watch_drop(struct vm *vm);
void watch_wake(void);
/* Reads a found VM's events from the start, for its counts. */
void watch_replay(struct vm *vm);

/* vms.c: starts the sandbox of a VM that the caller holds; the lock is not held. */
bool vm_boot(struct vm *vm, const char *setup, struct error *err);
/* Ends the sandbox and waits. */
void vm_halt(struct vm *vm);
void vm_free(struct vm *vm);

/* keep.c: the VM's record on disk. The lock is held. */
bool keep_save(const struct vm *vm, struct error *err);
/* Finds the VMs of an earlier lobby. */
bool keep_load(struct error *err);
/* Start time of a process, 0 when there is none. */
unsigned long long keep_process_start(pid_t pid);
/* The first child of a process, 0 when there is none. */
pid_t keep_only_child(pid_t pid);

/* record.c */
json_t *vm_record(const struct vm *vm);
json_t *vm_stat(const struct vm *vm);

#endif
