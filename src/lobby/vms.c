#include "lobby/vm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fnmatch.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lobby/disk.h"
#include "lobby/event.h"
#include "lobby/fault.h"
#include "lobby/proxy.h"
#include "lobby/relay.h"

#define BOOT_MS 20000

struct vms_table vms = {.lock = PTHREAD_MUTEX_INITIALIZER};

void vm_free(struct vm *vm)
{
    if (!vm)
        return;
    child_free(&vm->child);
    json_decref(vm->conf);
    free(vm->id);
    free(vm->name);
    free(vm->dir);
    free(vm->address);
    free(vm->partial);
    free(vm);
}

static struct vm *find(const char *name)
{
    for (struct vm *vm = vms.first; vm; vm = vm->next) {
        if (!vm->gone && strcmp(vm->name, name) == 0)
            return vm;
    }
    return NULL;
}

static bool not_found(const char *name, struct error *err)
{
    cleanup_buf struct buf shown = {0};

    text_visible(&shown, name, strlen(name), 80);
    return error_set(err, ERR_NOT_FOUND, "VM \"%s\" not found", shown.data ? shown.data : "");
}

/* Holds the VM for the caller alone. Lock held before and after. */
static struct vm *take(const char *name, struct error *err)
{
    for (;;) {
        struct vm *vm = find(name);
        if (!vm) {
            not_found(name, err);
            return NULL;
        }
        if (!vm->busy) {
            vm->busy = true;
            return vm;
        }
        pthread_cond_wait(&vms.changed, &vms.lock);
    }
}

static void put(struct vm *vm)
{
    vm->busy = false;
    pthread_cond_broadcast(&vms.changed);
}

/* An address of 127.0.0.0/8 that nobody uses with our port; well away from 127.0.x.y. */
static char *free_address(void)
{
    for (int tries = 0; tries < 500; tries++) {
        unsigned char r[3];
        io_random(r, sizeof r);
        struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)vms.o.port)};
        unsigned last = 1 + r[2] % 254;
        at.sin_addr.s_addr =
            htonl(127u << 24 | (64u + r[0] % 128u) << 16 | (unsigned)r[1] << 8 | last);
        cleanup_fd int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd >= 0 && bind(fd, (struct sockaddr *)&at, sizeof at) == 0)
            return xasprintf("127.%u.%u.%u", 64u + r[0] % 128u, r[1], last);
    }
    return NULL;
}

static char *random_name(void)
{
    static const char *const first[] = {"amber", "brave", "calm",  "dusty", "early", "fancy",
                                        "green", "happy", "ivory", "jolly", "kind",  "lucky"};
    static const char *const second[] = {"otter", "falcon", "maple", "river", "comet", "badger",
                                         "cedar", "heron",  "lotus", "panda", "raven", "tulip"};
    unsigned char r[4];

    io_random(r, sizeof r);
    return xasprintf("%s-%s-%c%02x", first[r[0] % 12], second[r[1] % 12], 'a' + r[2] % 26, r[3]);
}

static void wait_ready(struct vm *vm, struct deadline d)
{
    struct timespec t = deadline_timespec(d);

    while (vm->status == VM_STARTING && !deadline_passed(d)) {
        if (pthread_cond_timedwait(&vms.changed, &vms.lock, &t) == ETIMEDOUT)
            break;
    }
}

static char *boot_log(const struct vm *vm)
{
    cleanup_free char *path = xasprintf("%s/boot.log", vm->dir);
    cleanup_buf struct buf text = {0};

    if (!io_read_file(path, 65536, &text, NULL) || !text.len)
        return xstrdup("it said nothing");
    return text_trim(text.data);
}

bool vm_boot(struct vm *vm, const char *setup, struct error *err)
{
    struct fault_boot fault = fault_boot();
    cleanup_free char *script = NULL;

    if (setup && fault.setup_hang)
        setup = "sleep infinity\n";
    else if (setup && fault.setup_fail)
        script = xasprintf("echo 'fault: the setup script fails' >&2\nexit %d\n", fault.setup_fail);
    if (script)
        setup = script;
    struct sandbox s = {
        .dir = vm->dir,
        .name = vm->name,
        .address = vm->address,
        .port = vms.o.port,
        .max_sessions = fault.sessions ? fault.sessions : vms.o.max_sessions,
        .sshd_delay_ms = fault.sshd_delay_ms,
        .env = json_object_get(vm->conf, "env"),
        .keys = vms.o.keys,
        .setup = setup,
        .command = json_str(vm->conf, "command"),
        .cpus = (long)json_int(vm->conf, "cpu", 0),
    };
    if (vms.o.relay) {
        /* the same address, its own port: clients know only the relay's */
        unsigned port = relay_inner_port(vm->address, err);
        if (!port)
            return false;
        s.port = port;
        if (!relay_open(vm->address, vms.o.port, port, vm->name, err))
            return false;
    }
    proxy_add_vm(vm->address, vm->name);
    pthread_mutex_lock(&vms.lock);
    vm->status = VM_STARTING;
    vm->setup_status = setup ? -1 : -2;
    vm->booted_ms = now_ms();
    vm->boots++;
    pthread_mutex_unlock(&vms.lock);
    struct child child;
    if (!sandbox_boot(&vms.o.host, &s, &child, err)) {
        pthread_mutex_lock(&vms.lock);
        vm->status = VM_STOPPED;
        pthread_mutex_unlock(&vms.lock);
        return false;
    }
    pthread_mutex_lock(&vms.lock);
    vm->child = child;
    vm->ours = true;
    vm->child_start = keep_process_start(child.pid);
    watch_add(vm);
    keep_save(vm, NULL);
    /* With a slow boot the answer does not wait: at exe.dev too a VM is there before its sshd. */
    wait_ready(vm, deadline_in(fault.sshd_delay_ms ? 0 : BOOT_MS));
    bool up = vm->status != VM_STOPPED;
    pthread_mutex_unlock(&vms.lock);
    if (up)
        return true;
    cleanup_free char *why = boot_log(vm);
    return error_set(err, ERR_SYSTEM, "the VM's sandbox ended while it started: %.500s", why);
}

void vm_halt(struct vm *vm)
{
    pthread_mutex_lock(&vms.lock);
    watch_drop(vm);
    struct child child = vm->child;
    vm->child = (struct child){.pid = -1, .pidfd = -1};
    vm->status = VM_STOPPED;
    bool ours = vm->ours;
    pthread_mutex_unlock(&vms.lock);
    relay_close(vm->address);
    proxy_drop_vm(vm->address);
    if (child.pid <= 0)
        return;
    /* Process 1 of the name space takes everything in it along, and is gone when all of that is. */
    pid_t first = keep_only_child(child.pid);
    int pidfd = first > 0 ? (int)syscall(SYS_pidfd_open, first, 0) : -1;
    if (first > 0)
        kill(first, SIGKILL);
    else
        kill(child.pid, SIGKILL);
    if (pidfd >= 0) {
        struct pollfd pfd = {.fd = pidfd, .events = POLLIN};
        poll(&pfd, 1, 10000);
        close(pidfd);
    }
    kill(child.pid, SIGKILL);
    if (ours)
        child_wait(&child, deadline_in(10000), &(int){0}, NULL);
    child_free(&child);
}

static bool insert(struct vm *vm, struct error *err)
{
    unsigned count = 0;

    for (struct vm *v = vms.first; v; v = v->next)
        count += !v->gone;
    if (find(vm->name))
        return error_set(err, ERR_EXISTS, "VM name \"%s\" is already taken", vm->name);
    if (count >= vms.o.max_vms)
        return error_set(err, ERR_REFUSED,
                         "VM limit reached: your plan allows %u VMs; delete one with rm",
                         vms.o.max_vms);
    vm->next = vms.first;
    vms.first = vm;
    return true;
}

static void unlink_vm(struct vm *vm)
{
    for (struct vm **at = &vms.first; *at; at = &(*at)->next) {
        if (*at == vm) {
            *at = vm->next;
            break;
        }
    }
}

/* The holder's: ends it, deletes it, frees it. */
static bool destroy(struct vm *vm, struct error *err)
{
    vm_halt(vm);
    bool ok = false;
    struct error why = {0};
    /* The kernel is still letting go of the VM's mounts. */
    for (int i = 0; i < 100 && !ok; i++) {
        error_clear(&why);
        ok = disk_remove(vm->dir, &why);
        if (!ok)
            deadline_sleep(DEADLINE_NEVER, 20);
    }
    if (!ok)
        error_move(err, &why);
    pthread_mutex_lock(&vms.lock);
    unlink_vm(vm);
    put(vm);
    pthread_mutex_unlock(&vms.lock);
    vm_free(vm);
    return ok;
}

static struct vm *make(const struct new_vm *n, struct error *err)
{
    struct vm *vm = xcalloc(1, sizeof *vm);
    unsigned char r[8];
    char hex[17];

    io_random(r, sizeof r);
    io_hex(r, sizeof r, hex);
    vm->id = xstrdup(hex);
    vm->name = n->name ? xstrdup(n->name) : random_name();
    vm->dir = xasprintf("%s/vm/%s", vms.o.host.base, vm->id);
    vm->address = free_address();
    vm->conf = json_deep_copy(n->conf);
    vm->child = (struct child){.pid = -1, .pidfd = -1};
    vm->watch = -1;
    vm->busy = true;
    vm->created_s = time(NULL);
    if (!vm->address)
        error_set(err, ERR_SYSTEM, "found no free loopback address with port %u", vms.o.port);
    else if (!text_is_vm_name(vm->name))
        error_set(err, ERR_REFUSED,
                  "invalid VM name: use lower-case letters, digits and hyphens, at most 63, not "
                  "ending in a hyphen and digits");
    else
        return vm;
    vm_free(vm);
    return NULL;
}

static bool fill(struct vm *vm, const struct new_vm *n, struct error *err)
{
    if (!n->copy_of)
        return sandbox_create(&vms.o.host, vm->dir, err) && vm_boot(vm, n->setup, err);
    pthread_mutex_lock(&vms.lock);
    struct vm *source = take(n->copy_of, err);
    if (source) {
        json_t *conf = json_deep_copy(source->conf);
        json_object_update(conf, vm->conf);
        if (!n->copy_tags)
            json_object_del(conf, "tags");
        json_object_del(conf, "comment");
        json_decref(vm->conf);
        vm->conf = conf;
    }
    pthread_mutex_unlock(&vms.lock);
    if (!source)
        return false;
    bool ok = sandbox_copy(&vms.o.host, source->dir, vm->dir, err);
    pthread_mutex_lock(&vms.lock);
    put(source);
    pthread_mutex_unlock(&vms.lock);
    return ok && vm_boot(vm, NULL, err);
}

json_t *vms_new(const struct new_vm *n, struct error *err)
{
    int64_t began = now_ms();
    struct vm *vm = make(n, err);

    if (!vm)
        return NULL;
    pthread_mutex_lock(&vms.lock);
    bool ok =
        !vms.stopping ? insert(vm, err) : error_set(err, ERR_CANCELLED, "the lobby is closing");
    pthread_mutex_unlock(&vms.lock);
    if (!ok) {
        vm_free(vm);
        return NULL;
    }
    if (!fill(vm, n, err)) {
        destroy(vm, NULL);
        return NULL;
    }
    pthread_mutex_lock(&vms.lock);
    json_t *record = vm_record(vm);
    keep_save(vm, NULL);
    event_emit("vm-created",
               json_pack("{s:s, s:s, s:i, s:I}", "vm", vm->name, "address", vm->address, "port",
                         (int)vms.o.port, "ms", (json_int_t)(now_ms() - began)));
    put(vm);
    pthread_mutex_unlock(&vms.lock);
    return record;
}

bool vms_remove(const char *name, struct error *err)
{
    pthread_mutex_lock(&vms.lock);
    struct vm *vm = take(name, err);
    if (vm)
        vm->gone = true;
    pthread_mutex_unlock(&vms.lock);
    if (!vm)
        return false;
    bool ok = destroy(vm, err);
    event_emit("vm-removed", json_pack("{s:s}", "vm", name));
    return ok;
}

json_t *vms_restart(const char *name, struct error *err)
{
    pthread_mutex_lock(&vms.lock);
    struct vm *vm = take(name, err);
    pthread_mutex_unlock(&vms.lock);
    if (!vm)
        return NULL;
    vm_halt(vm);
    json_t *record = NULL;
    bool ok = vm_boot(vm, NULL, err);
    pthread_mutex_lock(&vms.lock);
    if (ok)
        record = vm_record(vm);
    put(vm);
    pthread_mutex_unlock(&vms.lock);
    if (ok)
        event_emit("vm-restarted", json_pack("{s:s}", "vm", name));
    return record;
}

json_t *vms_rename(const char *name, const char *to, struct error *err)
{
    json_t *record = NULL;

    if (!text_is_vm_name(to)) {
        error_set(err, ERR_REFUSED, "invalid VM name");
        return NULL;
    }
    pthread_mutex_lock(&vms.lock);
    struct vm *vm = take(name, err);
    if (vm && find(to)) {
        error_set(err, ERR_EXISTS, "VM name \"%s\" is already taken", to);
    } else if (vm) {
        free(vm->name);
        vm->name = xstrdup(to);
        keep_save(vm, NULL);
        record = vm_record(vm);
        if (vm->status != VM_STOPPED) {
            proxy_drop_vm(vm->address);
            proxy_add_vm(vm->address, vm->name);
        }
    }
    if (vm)
        put(vm);
    pthread_mutex_unlock(&vms.lock);
    return record;
}

json_t *vms_update(const char *name, json_t *changes, struct error *err)
{
    json_t *record = NULL;

    pthread_mutex_lock(&vms.lock);
    struct vm *vm = take(name, err);
    if (vm) {
        json_object_update(vm->conf, changes);
        keep_save(vm, NULL);
        record = vm_record(vm);
        put(vm);
    }
    pthread_mutex_unlock(&vms.lock);
    return record;
}

static void change_tags(json_t *list, json_t *tags, bool drop)
{
    json_t *tag;
    size_t i;

    json_array_foreach (tags, i, tag) {
        size_t at = 0;
        while (at < json_array_size(list) && !json_equal(json_array_get(list, at), tag))
            at++;
        if (drop && at < json_array_size(list))
            json_array_remove(list, at);
        else if (!drop && at == json_array_size(list))
            json_array_append(list, tag);
    }
}

json_t *vms_tag(const char *name, json_t *tags, bool remove, struct error *err)
{
    cleanup_json json_t *changes = json_object();

    pthread_mutex_lock(&vms.lock);
    struct vm *vm = find(name);
    json_t *list = vm ? json_deep_copy(json_object_get(vm->conf, "tags")) : NULL;
    pthread_mutex_unlock(&vms.lock);
    if (!list)
        list = json_array();
    change_tags(list, tags, remove);
    json_object_set_new(changes, "tags", list);
    return vms_update(name, changes, err);
}

json_t *vms_record(const char *name, struct error *err)
{
    json_t *record = NULL;

    pthread_mutex_lock(&vms.lock);
    struct vm *vm = find(name);
    if (vm)
        record = vm_record(vm);
    else
        not_found(name, err);
    pthread_mutex_unlock(&vms.lock);
    return record;
}

json_t *vms_stat(const char *name, struct error *err)
{
    json_t *record = NULL;

    pthread_mutex_lock(&vms.lock);
    struct vm *vm = find(name);
    if (vm)
        record = vm_stat(vm);
    else
        not_found(name, err);
    pthread_mutex_unlock(&vms.lock);
    return record;
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct vm *const *)a)->name, (*(struct vm *const *)b)->name);
}

json_t *vms_list(const char *pattern)
{
    json_t *list = json_array();
    size_t n = 0;

    pthread_mutex_lock(&vms.lock);
    for (struct vm *vm = vms.first; vm; vm = vm->next)
        n++;
    struct vm **sorted = xcalloc(n + 1, sizeof(struct vm *));
    n = 0;
    for (struct vm *vm = vms.first; vm; vm = vm->next) {
        if (!vm->gone && (!pattern || fnmatch(pattern, vm->name, 0) == 0))
            sorted[n++] = vm;
    }
    qsort(sorted, n, sizeof(struct vm *), by_name);
    for (size_t i = 0; i < n; i++)
        json_array_append_new(list, vm_record(sorted[i]));
    free(sorted);
    pthread_mutex_unlock(&vms.lock);
    return list;
}

bool vms_route(const char *name, char **address, unsigned *port, struct error *err)
{
    pthread_mutex_lock(&vms.lock);
    struct vm *vm = find(name);
    bool ok = vm && vm->status != VM_STOPPED;
    if (ok) {
        *address = xstrdup(vm->address);
        *port = (unsigned)json_int(vm->conf, "port", 8000);
    } else if (vm) {
        error_set(err, ERR_REFUSED, "VM \"%s\" is stopped", name);
    } else {
        not_found(name, err);
    }
    pthread_mutex_unlock(&vms.lock);
    return ok;
}

bool vms_start(const struct vms_options *o, struct error *err)
{
    pthread_condattr_t attr;

    vms.o = *o;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&vms.changed, &attr);
    pthread_condattr_destroy(&attr);
    return watch_start(err) && (!o->host.outlive || keep_load(err));
}

void vms_report(void)
{
    pthread_mutex_lock(&vms.lock);
    for (struct vm *vm = vms.first; vm; vm = vm->next)
        event_emit("vm-found", json_pack("{s:s, s:s}", "vm", vm->name, "status",
                                         vm->status == VM_STOPPED ? "stopped" : "running"));
    pthread_mutex_unlock(&vms.lock);
}

void vms_stop(void)
{
    pthread_mutex_lock(&vms.lock);
    vms.stopping = true;
    pthread_mutex_unlock(&vms.lock);
    if (!vms.o.host.outlive) {
        /* All at once, then one by one. */
        pthread_mutex_lock(&vms.lock);
        for (struct vm *vm = vms.first; vm; vm = vm->next) {
            if (vm->child.pid > 0)
                kill(vm->child.pid, SIGKILL);
        }
        for (;;) {
            struct vm *vm = vms.first;
            while (vm && vm->gone)
                vm = vm->next;
            if (!vm)
                break;
            cleanup_free char *name = xstrdup(vm->name);
            pthread_mutex_unlock(&vms.lock);
            vms_remove(name, NULL);
            pthread_mutex_lock(&vms.lock);
        }
        pthread_mutex_unlock(&vms.lock);
    }
    watch_stop();
}
