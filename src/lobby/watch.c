/* One thread that notices what happens in VMs: lines in their events files, and their end. */
#include "lobby/vm.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lobby/event.h"
#include "lobby/proxy.h"

static int notify = -1, wake = -1;
static bool running;
static pthread_t thread;

void watch_wake(void)
{
    uint64_t one = 1;
    ssize_t ignored = write(wake, &one, sizeof one);
    (void)ignored;
}

void watch_add(struct vm *vm)
{
    cleanup_free char *path = xasprintf("%s/guest/events", vm->dir);

    vm->watch = inotify_add_watch(notify, path, IN_MODIFY);
    watch_wake();
}

void watch_drop(struct vm *vm)
{
    if (vm->watch >= 0)
        inotify_rm_watch(notify, vm->watch);
    vm->watch = -1;
    watch_wake();
}

/* Takes the fields. */
static void tell(const struct vm *vm, const char *event, json_t *fields)
{
    if (vm->quiet)
        json_decref(fields);
    else
        event_emit(event, fields);
}

/* "Accepted publickey for exedev from 127.0.0.1 port 1234 ssh2: ED25519 SHA256:..." */
static void on_login(struct vm *vm, const char *line)
{
    const char *key = strstr(line, "SHA256:"), *port = strstr(line, " port ");

    vm->logins++;
    tell(vm, "ssh-login",
         json_pack("{s:s, s:i, s:i, s:s}", "vm", vm->name, "logins", (int)vm->logins, "port",
                   port ? atoi(port + 6) : 0, "key", key ? key : ""));
}

static void on_line(struct vm *vm, const char *line)
{
    int code;

    if (text_starts(line, "Accepted publickey for ")) {
        on_login(vm, line);
    } else if (text_starts(line, "Connection from ")) {
        vm->connections++;
    } else if (strcmp(line, "exe: ready") == 0) {
        vm->status = VM_RUNNING;
        tell(vm, "vm-ready",
             json_pack("{s:s, s:I}", "vm", vm->name, "ms", (json_int_t)(now_ms() - vm->booted_ms)));
    } else if (strcmp(line, "exe: unregistered") == 0) {
        vm->unregistered++;
        tell(vm, "ssh-unregistered", json_pack("{s:s}", "vm", vm->name));
    } else if (strcmp(line, "exe: setup started") == 0) {
        vm->setup_status = -1;
    } else if (sscanf(line, "exe: setup exit %d", &code) == 1) {
        vm->setup_status = code;
        tell(vm, "vm-setup", json_pack("{s:s, s:i}", "vm", vm->name, "status", code));
    } else if (strcmp(line, "exe: reboot") == 0) {
        vm->reboot = true;
    } else if (strcmp(line, "exe: poweroff") == 0) {
        vm->reboot = false;
    } else if (text_starts(line, "exe: sshd exit") || text_starts(line, "exe: command exit")) {
        tell(vm, "vm-note", json_pack("{s:s, s:s}", "vm", vm->name, "text", line + 5));
    }
    pthread_cond_broadcast(&vms.changed);
}

static void read_events(struct vm *vm)
{
    cleanup_free char *path = xasprintf("%s/guest/events", vm->dir);
    /* The VM's user could put anything there: a FIFO must not hold us, nor a long line fill us. */
    cleanup_fd int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    char part[8192];
    ssize_t got;

    while (fd >= 0 && (got = pread(fd, part, sizeof part, vm->read_to)) > 0) {
        cleanup_buf struct buf text = {0};
        vm->read_to += got;
        if (vm->partial)
            buf_puts(&text, vm->partial);
        free(steal_ptr(vm->partial));
        buf_put(&text, part, (size_t)got);
        char *at = text.data, *end;
        while ((end = memchr(at, '\n', text.len - (size_t)(at - text.data)))) {
            *end = 0;
            if (end > at && end[-1] == '\r')
                end[-1] = 0;
            on_line(vm, at);
            at = end + 1;
        }
        size_t rest = text.len - (size_t)(at - text.data);
        if (rest && rest < 4096)
            vm->partial = xstrndup(at, rest);
    }
}

void watch_replay(struct vm *vm)
{
    vm->quiet = true;
    read_events(vm);
    vm->quiet = false;
    vm->reboot = false;
}

static void *boot_again(void *arg)
{
    cleanup_free char *name = arg;
    cleanup_error struct error err = {0};

    json_decref(vms_restart(name, &err));
    if (err.code)
        event_emit("vm-failed", json_pack("{s:s, s:s}", "vm", name, "why", err.msg));
    return NULL;
}

static void on_end(struct vm *vm)
{
    read_events(vm);
    if (vm->ours)
        waitpid(vm->child.pid, NULL, 0);
    child_free(&vm->child);
    vm->child.pid = -1;
    vm->status = VM_STOPPED;
    watch_drop(vm);
    proxy_drop_vm(vm->address);
    keep_save(vm, NULL);
    event_emit("vm-stopped", json_pack("{s:s}", "vm", vm->name));
    pthread_cond_broadcast(&vms.changed);
    pthread_t again;
    if (vm->reboot && !vms.stopping &&
        pthread_create(&again, NULL, boot_again, xstrdup(vm->name)) == 0)
        pthread_detach(again);
    vm->reboot = false;
}

static void look(void)
{
    char skip[4096];
    uint64_t count;

    while (read(notify, skip, sizeof skip) > 0)
        ;
    ssize_t ignored = read(wake, &count, sizeof count);
    (void)ignored;
    for (struct vm *vm = vms.first; vm; vm = vm->next) {
        if (vm->watch >= 0)
            read_events(vm);
        struct pollfd pfd = {.fd = vm->child.pidfd, .events = POLLIN};
        if (vm->child.pid > 0 && poll(&pfd, 1, 0) > 0)
            on_end(vm);
    }
}

static void *watcher(void *arg)
{
    struct pollfd *pfds = NULL;

    (void)arg;
    pthread_mutex_lock(&vms.lock);
    while (running) {
        size_t n = 2;
        for (struct vm *vm = vms.first; vm; vm = vm->next)
            n++;
        pfds = xreallocarray(pfds, n, sizeof *pfds);
        pfds[0] = (struct pollfd){.fd = notify, .events = POLLIN};
        pfds[1] = (struct pollfd){.fd = wake, .events = POLLIN};
        n = 2;
        for (struct vm *vm = vms.first; vm; vm = vm->next) {
            if (vm->child.pid > 0)
                pfds[n++] = (struct pollfd){.fd = vm->child.pidfd, .events = POLLIN};
        }
        pthread_mutex_unlock(&vms.lock);
        poll(pfds, n, -1);
        pthread_mutex_lock(&vms.lock);
        look();
    }
    pthread_mutex_unlock(&vms.lock);
    free(pfds);
    return NULL;
}

bool watch_start(struct error *err)
{
    notify = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    wake = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (notify < 0 || wake < 0)
        return error_sys(err, errno, "watch VMs (inotify; see fs.inotify.max_user_instances)");
    running = true;
    int sys = pthread_create(&thread, NULL, watcher, NULL);
    if (sys) {
        running = false;
        return error_sys(err, sys, "start a thread");
    }
    return true;
}

void watch_stop(void)
{
    if (!running)
        return;
    pthread_mutex_lock(&vms.lock);
    running = false;
    watch_wake();
    pthread_mutex_unlock(&vms.lock);
    pthread_join(thread, NULL);
    close(notify);
    close(wake);
}
