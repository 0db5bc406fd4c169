/* VMs that outlive their lobby: each has a vm.json beside its disk. */
#include "lobby/vm.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lobby/disk.h"
#include "lobby/proxy.h"

unsigned long long keep_process_start(pid_t pid)
{
    cleanup_free char *path = xasprintf("/proc/%d/stat", (int)pid);
    cleanup_buf struct buf text = {0};
    unsigned long long start = 0;

    if (!io_read_file(path, 4096, &text, NULL) || !text.len)
        return 0;
    char *at = strrchr(text.data, ')');
    /* fields 3 to 21 lie between */
    for (int field = 3; at && field <= 22; field++)
        at = strchr(at + 1, ' ');
    if (at)
        start = strtoull(at + 1, NULL, 10);
    return start;
}

pid_t keep_only_child(pid_t pid)
{
    cleanup_free char *path = xasprintf("/proc/%d/task/%d/children", (int)pid, (int)pid);
    cleanup_buf struct buf text = {0};

    if (!io_read_file(path, 4096, &text, NULL) || !text.len)
        return 0;
    return (pid_t)atol(text.data);
}

static void boot_id(struct buf *out)
{
    if (io_read_file("/proc/sys/kernel/random/boot_id", 128, out, NULL) && out->len)
        out->data[strcspn(out->data, "\n")] = 0;
    else
        buf_puts(out, "");
}

bool keep_save(const struct vm *vm, struct error *err)
{
    if (!vms.o.host.outlive)
        return true;
    cleanup_buf struct buf boot = {0}, text = {0};
    boot_id(&boot);
    cleanup_json json_t *j =
        json_pack("{s:s, s:s, s:O, s:I, s:I, s:I, s:s, s:i, s:i}", "name", vm->name, "address",
                  vm->address, "conf", vm->conf, "created", (json_int_t)vm->created_s, "pid",
                  (json_int_t)vm->child.pid, "start", (json_int_t)vm->child_start, "boot_id",
                  boot.data ? boot.data : "", "port", (int)vms.o.port, "boots", (int)vm->boots);
    /* root of the VM cannot reach it: it lies outside of what the sandbox sees */
    cleanup_free char *path = xasprintf("%s/vm.json", vm->dir);
    json_write(&text, j);
    return io_write_file(path, 0600, text.data, text.len, err);
}

static struct vm *load(const char *id)
{
    cleanup_free char *dir = xasprintf("%s/vm/%s", vms.o.host.base, id);
    cleanup_free char *path = xasprintf("%s/vm.json", dir);
    cleanup_buf struct buf text = {0}, boot = {0};
    cleanup_json json_t *j = NULL;

    if (!io_read_file(path, 1 << 20, &text, NULL) || !(j = json_parse(text.data, text.len, NULL)) ||
        !json_str(j, "name") || !json_str(j, "address") || !text_is_vm_name(json_str(j, "name")) ||
        !json_is_object(json_object_get(j, "conf"))) {
        /* a VM whose making was cut off */
        disk_remove(dir, NULL);
        return NULL;
    }
    struct vm *vm = xcalloc(1, sizeof *vm);
    vm->id = xstrdup(id);
    vm->name = xstrdup(json_str(j, "name"));
    vm->dir = xstrdup(dir);
    vm->address = xstrdup(json_str(j, "address"));
    vm->conf = json_deep_copy(json_object_get(j, "conf"));
    vm->created_s = json_int(j, "created", 0);
    vm->boots = (unsigned)json_int(j, "boots", 0);
    vm->setup_status = -2;
    vm->child = (struct child){.pid = -1, .pidfd = -1};
    vm->watch = -1;
    watch_replay(vm);
    vm->status = VM_STOPPED;
    boot_id(&boot);
    const char *then = json_str(j, "boot_id");
    pid_t pid = (pid_t)json_int(j, "pid", -1);
    unsigned long long start = (unsigned long long)json_int(j, "start", 0);
    if (pid > 1 && start && then && boot.data && strcmp(then, boot.data) == 0 &&
        keep_process_start(pid) == start) {
        vm->child.pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        /* looked at again: the number may have gone to another process in between */
        if (vm->child.pidfd >= 0 && keep_process_start(pid) == start) {
            vm->child.pid = pid;
            vm->child_start = start;
            vm->status = VM_RUNNING;
            vm->booted_ms = now_ms();
            vms.o.port = (unsigned)json_int(j, "port", vms.o.port);
        }
    }
    return vm;
}

bool keep_load(struct error *err)
{
    cleanup_free char *path = xasprintf("%s/vm", vms.o.host.base);
    cleanup_dir DIR *dir = opendir(path);

    if (!dir)
        return error_sys(err, errno, "%s", path);
    pthread_mutex_lock(&vms.lock);
    for (struct dirent *e; (e = readdir(dir));) {
        if (e->d_name[0] == '.')
            continue;
        struct vm *vm = load(e->d_name);
        if (!vm)
            continue;
        vm->next = vms.first;
        vms.first = vm;
        if (vm->status == VM_RUNNING) {
            watch_add(vm);
            proxy_add_vm(vm->address, vm->name);
        }
    }
    pthread_mutex_unlock(&vms.lock);
    return true;
}
