#include "lobby/vm.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lobby/proxy.h"

static const char *status_word(enum vm_status s)
{
    return s == VM_STOPPED ? "stopped" : s == VM_RUNNING ? "running" : "starting";
}

json_t *vm_record(const struct vm *vm)
{
    cleanup_free char *dest = xasprintf(SANDBOX_USER "@%s", vm->address);
    /* The VM's own address, where the proxy listens too: no name to resolve. */
    cleanup_free char *url = proxy_port() ? xasprintf("https://%s:%u", vm->address, proxy_port())
                                          : xasprintf("https://%s.exe.xyz", vm->name);
    json_t *r = json_pack(
        "{s:s, s:s, s:s, s:s, s:i, s:s, s:s, s:s, s:s}", "vm_name", vm->name, "ssh_dest", dest,
        "ssh_host", vm->address, "ssh_user", SANDBOX_USER, "ssh_port", (int)vms.o.port, "https_url",
        url, "status", status_word(vm->status), "region", "loc", "region_display", "This machine");

    if (vms.o.list_tags) {
        json_t *tags = json_object_get(vm->conf, "tags");
        const char *comment = json_str(vm->conf, "comment");
        json_object_set_new(r, "tags", tags ? json_deep_copy(tags) : json_array());
        json_object_set_new(r, "comment", json_string(comment ? comment : ""));
    }
    return r;
}

struct process {
    long pid, parent;
    char name[64];
    bool inside;
};

static bool read_process(const char *pid, struct process *p)
{
    cleanup_free char *path = xasprintf("/proc/%s/stat", pid);
    cleanup_buf struct buf text = {0};
    char state;

    if (!io_read_file(path, 4096, &text, NULL) || !text.len)
        return false;
    /* the name may hold anything: its end is the last parenthesis */
    char *open = strchr(text.data, '('), *close = strrchr(text.data, ')');
    if (!open || !close || close < open || sscanf(close + 1, " %c %ld", &state, &p->parent) != 2 ||
        state == 'Z' || state == 'X')
        return false;
    *close = 0;
    p->pid = atol(pid);
    p->inside = false;
    snprintf(p->name, sizeof p->name, "%.60s", open + 1);
    return true;
}

static json_t *command_line(long pid)
{
    cleanup_free char *path = xasprintf("/proc/%ld/cmdline", pid);
    cleanup_buf struct buf text = {0};

    if (!io_read_file(path, 1 << 20, &text, NULL) || !text.len)
        return json_string("");
    for (size_t i = 0; i + 1 < text.len; i++) {
        if (!text.data[i])
            text.data[i] = ' ';
    }
    if (text.len > 4096)
        text.data[4096] = 0;
    json_t *line = json_string(text.data);
    return line ? line : json_string("(not UTF-8)");
}

/* Everything in the VM descends from its process 1, because nothing can leave a PID name space. The
 * system's own (bwrap, process 1, sshd) is left out. */
static json_t *processes(const struct vm *vm)
{
    struct process *all = NULL;
    size_t n = 0, cap = 0;
    cleanup_dir DIR *dir = opendir("/proc");
    json_t *list = json_array();

    for (struct dirent *e; dir && vm->child.pid > 0 && (e = readdir(dir));) {
        if (e->d_name[0] < '0' || e->d_name[0] > '9')
            continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 256;
            all = xreallocarray(all, cap, sizeof *all);
        }
        if (read_process(e->d_name, &all[n])) {
            all[n].inside = all[n].pid == vm->child.pid;
            n++;
        }
    }
    for (bool more = true; more;) {
        more = false;
        for (size_t i = 0; i < n; i++) {
            for (size_t j = 0; !all[i].inside && j < n; j++) {
                if (all[j].inside && all[j].pid == all[i].parent)
                    all[i].inside = more = true;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        if (!all[i].inside || strcmp(all[i].name, "bwrap") == 0 ||
            strcmp(all[i].name, "init") == 0 || strcmp(all[i].name, "sshd") == 0)
            continue;
        json_array_append_new(list, json_pack("{s:I, s:I, s:s, s:o}", "pid", (json_int_t)all[i].pid,
                                              "ppid", (json_int_t)all[i].parent, "name",
                                              all[i].name, "args", command_line(all[i].pid)));
    }
    free(all);
    return list;
}

json_t *vm_stat(const struct vm *vm)
{
    json_t *r = vm_record(vm);
    json_t *list = processes(vm);
    static const char *const shown[] = {"image", "cpu", "memory", "disk", "integrations", "port"};

    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++) {
        json_t *value = json_object_get(vm->conf, shown[i]);
        if (value)
            json_object_set(r, shown[i], value);
    }
    json_object_set_new(r, "created_at", json_integer(vm->created_s));
    json_object_set_new(r, "uptime_ms",
                        json_integer(vm->status == VM_STOPPED ? 0 : now_ms() - vm->booted_ms));
    json_object_set_new(r, "boots", json_integer(vm->boots));
    json_object_set_new(r, "logins", json_integer(vm->logins));
    json_object_set_new(r, "connections", json_integer(vm->connections));
    json_object_set_new(r, "unregistered_logins", json_integer(vm->unregistered));
    json_object_set_new(r, "setup",
                        vm->setup_status == -2   ? json_null()
                        : vm->setup_status == -1 ? json_string("running")
                                                 : json_integer(vm->setup_status));
    json_object_set_new(r, "processes", json_integer((json_int_t)json_array_size(list)));
    json_object_set_new(r, "process_list", list);
    return r;
}
