#include "lobby/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lobby/disk.h"
#include "lobby/layers.h"
#include "lobby_guest_bytes.h"

#define LOGIN_ID "1000"

static const char *const shims[] = {"usr/bin/sudo",      "usr/sbin/poweroff", "usr/sbin/halt",
                                    "usr/sbin/shutdown", "usr/sbin/reboot",   NULL};

/* Where installers make new files further down. */
static const struct layer deeper[] = {
    {.name = "usr/local", .system = "/usr/local", .depth = 4, .what = DISK_FOLDERS},
    {.name = "usr/share/man", .system = "/usr/share/man", .depth = 2, .what = DISK_FOLDERS},
    {0},
};

/* FNV-1a: names the layer after the programs in it; no secret depends on it. */
static unsigned long long fnv(unsigned long long h, const unsigned char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ p[i]) * 1099511628211ull;
    return h;
}

/* What an administrator has to change, as far as this machine shows it. */
static bool forbidden(struct error *err, const char *what)
{
    struct {
        const char *path, *bad, *advice;
    } switches[] = {
        {"/proc/sys/kernel/unprivileged_userns_clone", "0",
         "sysctl kernel.unprivileged_userns_clone=1"},
        {"/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=10000"},
        {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
         "sysctl kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu 24.04 and later; or an "
         "AppArmor "
         "profile with `userns,` for exedev-lobby and bwrap)"},
    };
    bool found = false;

    error_set(err, ERR_UNSUPPORTED,
              "this machine does not let the lobby make sandboxes: %s. A VM is a user name space",
              what);
    for (size_t i = 0; i < sizeof switches / sizeof *switches; i++) {
        cleanup_buf struct buf text = {0};
        if (!io_read_file(switches[i].path, 64, &text, NULL))
            continue;
        cleanup_free char *value = text_trim(text.data ? text.data : "");
        if (strcmp(value, switches[i].bad) == 0) {
            error_append(err, "; %s is %s: as root, run: %s", switches[i].path, value,
                         switches[i].advice);
            found = true;
        }
    }
    if (!found)
        error_append(err, "; in a container, start it with --security-opt seccomp=unconfined "
                          "--security-opt apparmor=unconfined, or with --privileged");
    return false;
}

static bool put_guest(const char *dir, const char *name, struct error *err)
{
    cleanup_free char *path = xasprintf("%s/%s", dir, name);

    return disk_put(path, 0755, (uid_t)-1, lobby_guest, sizeof lobby_guest, err);
}

/* The system's own users, less those in the way of ours. sshd would want to give terminals to a
 * group `tty`, which is not mapped. */
static void filter_accounts(const char *path, struct buf *out, bool groups)
{
    cleanup_buf struct buf text = {0};
    char *save = NULL;

    if (!io_read_file(path, 1 << 20, &text, NULL) || !text.len)
        return;
    for (char *line = strtok_r(text.data, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        cleanup_free char *copy = xstrdup(line);
        char *at = copy, *name = strsep(&at, ":"), *id = (strsep(&at, ":"), strsep(&at, ":"));
        if (!id || strcmp(id, LOGIN_ID) == 0 || strcmp(name, SANDBOX_USER) == 0 ||
            (groups && strcmp(name, "tty") == 0))
            continue;
        buf_printf(out, "%s\n", line);
    }
}

static bool put_text(const struct sandbox_host *h, const char *rel, const char *text, mode_t mode,
                     struct error *err)
{
    cleanup_free char *path = xasprintf("%s/%s", h->sys, rel);

    return disk_put(path, mode, h->uid, text, strlen(text), err);
}

/* For `sudo apt-get`: it would drop to a user that is not mapped, and its locks are root's. */
static bool put_apt(const struct sandbox_host *h, struct error *err)
{
    static const char *const files[][2] = {{"etc/apt/apt.conf.d", "00exedev-lobby"},
                                           {"var/lib/dpkg", "lock"},
                                           {"var/lib/dpkg", "lock-frontend"},
                                           {"var/lib/apt/lists", "lock"}};

    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        cleanup_free char *dir = xasprintf("%s/%s", h->sys, files[i][0]);
        cleanup_free char *rel = xasprintf("%s/%s", files[i][0], files[i][1]);
        if (access(dir, F_OK) == 0 &&
            !put_text(h, rel, i ? "" : "APT::Sandbox::User \"root\";\n", 0644, err))
            return false;
    }
    return true;
}

static bool put_etc(const struct sandbox_host *h, struct error *err)
{
    cleanup_buf struct buf passwd = {0}, group = {0}, resolv = {0};

    filter_accounts("/etc/passwd", &passwd, false);
    buf_printf(&passwd, "%s:x:" LOGIN_ID ":" LOGIN_ID "::%s:/bin/bash\n", SANDBOX_USER,
               SANDBOX_HOME);
    filter_accounts("/etc/group", &group, true);
    buf_printf(&group, "%s:x:" LOGIN_ID ":\n", SANDBOX_USER);
    if (!io_read_file("/etc/resolv.conf", 65536, &resolv, NULL))
        buf_puts(&resolv, "nameserver 127.0.0.53\n");
    buf_putc(&resolv, 0);
    return put_text(h, "etc/passwd", passwd.data, 0644, err) &&
           put_text(h, "etc/group", group.data, 0644, err) &&
           put_text(h, "etc/shadow",
                    "root:*:19000:0:99999:7:::\n" SANDBOX_USER ":*:19000:0:99999:7:::\n", 0600,
                    err) &&
           put_text(h, "etc/resolv.conf", resolv.data, 0644, err) && put_apt(h, err);
}

static bool make_layer(struct sandbox_host *h, struct error *err)
{
    unsigned long long hash = fnv(14695981039346656037ull, lobby_guest, sizeof lobby_guest);

    hash = fnv(hash, lobby_owner, sizeof lobby_owner);
    h->sys = xasprintf("%s/sys-%016llx", h->base, hash);
    cleanup_free char *done = xasprintf("%s/done", h->sys);
    cleanup_free char *guest = xasprintf("%s/guest", h->sys);
    cleanup_free char *owner = xasprintf("%s/guest/owner.so", h->sys);
    if (access(done, F_OK) == 0)
        return true;
    if (!disk_remove(h->sys, err) || !disk_mkdir(h->sys, 0755, (uid_t)-1, err) ||
        !disk_mkdir(guest, 0755, (uid_t)-1, err))
        return false;
    if (!put_guest(guest, "init", err) || !put_guest(guest, "keys", err) ||
        !put_guest(guest, "unregistered", err) ||
        !disk_put(owner, 0755, (uid_t)-1, lobby_owner, sizeof lobby_owner, err))
        return false;
    for (const struct layer *l = layers; l->name; l++) {
        cleanup_free char *to = xasprintf("%s/%s", h->sys, l->name);
        struct stat st;
        if (lstat(l->system, &st) < 0 || !S_ISDIR(st.st_mode))
            continue;
        cleanup_free char *parent = xstrndup(to, (size_t)(strrchr(to, '/') - to));
        if (!io_mkdirs(parent, 0755, err) ||
            !disk_skeleton(l->system, to, l->depth, l->what, h->uid, err))
            return false;
    }
    for (const struct layer *l = deeper; l->name; l++) {
        cleanup_free char *to = xasprintf("%s/%s", h->sys, l->name);
        if (!disk_skeleton(l->system, to, l->depth, l->what, h->uid, err))
            return false;
    }
    for (const char *const *s = shims; *s; s++) {
        if (!put_guest(h->sys, *s, err))
            return false;
    }
    return put_etc(h, err) && disk_put(done, 0644, (uid_t)-1, "", 0, err);
}

static bool make_host_key(struct sandbox_host *h, struct error *err)
{
    h->host_key = xasprintf("%s/host_key", h->base);
    cleanup_free char *public = xasprintf("%s.pub", h->host_key);
    const char *argv[] = {"ssh-keygen", "-q",        "-t", "ed25519",   "-N", "",
                          "-C",         "exe.local", "-f", h->host_key, NULL};
    cleanup_buf struct buf out = {0}, problems = {0}, line = {0};
    int status = 0;

    if (access(h->host_key, F_OK) < 0 &&
        (!spawn_run(argv, NULL, 0, &out, &problems, 4096, deadline_in(20000), &status, err) ||
         status))
        return err && err->code ? false
                                : error_set(err, ERR_SYSTEM, "ssh-keygen made no host key: %.300s",
                                            problems.data ? problems.data : "");
    if (!io_read_file(public, 4096, &line, err))
        return false;
    h->host_key_line = text_trim(line.data);
    return true;
}

/* Tries the real thing in a child: the name spaces, then the mount. */
static bool probe(const struct sandbox_host *h, bool *overlay, char **note, struct error *err)
{
    cleanup_free char *dir = xasprintf("%s/probe", h->base);
    static const char *const parts[] = {"", "/lo", "/up", "/wk", "/at"};
    struct {
        int step, sys;
    } result = {0};
    int pipes[2];

    for (int i = 0; i < 5; i++) {
        cleanup_free char *path = xasprintf("%s%s", dir, parts[i]);
        if (!disk_mkdir(path, 0755, h->uid, err))
            return false;
    }
    if (pipe2(pipes, O_CLOEXEC) < 0)
        return error_sys(err, errno, "pipe");
    pid_t pid = fork();
    if (pid == 0) {
        if (chdir(dir) < 0)
            result.step = 1;
        else if (!layers_unshare(h->uid))
            result.step = 2;
        else if (!layers_overlay("/usr", "lo", "up", "wk", "at"))
            result.step = 3;
        result.sys = errno;
        ssize_t ignored = write(pipes[1], &result, sizeof result);
        (void)ignored;
        _exit(0);
    }
    close(pipes[1]);
    result.step = 2;
    ssize_t got = read(pipes[0], &result, sizeof result);
    (void)got;
    close(pipes[0]);
    if (pid > 0)
        waitpid(pid, NULL, 0);
    disk_remove(dir, NULL);
    if (result.step == 1)
        return error_sys(err, result.sys, "enter %s", dir);
    if (result.step == 2)
        return forbidden(err, strerror(result.sys));
    *overlay = result.step == 0;
    if (result.step == 3)
        *note =
            xasprintf("overlayfs on %s: %s. The system folders of VMs are read-only but for /etc "
                      "and /usr/local; name a folder on ext4, xfs or btrfs with --state or TMPDIR "
                      "for whole disks",
                      h->base, strerror(result.sys));
    return true;
}

static bool need_programs(struct error *err)
{
    if (access("/usr/sbin/sshd", X_OK) < 0)
        return error_set(err, ERR_SYSTEM,
                         "/usr/sbin/sshd is not there: install openssh-server "
                         "(it need not run)");
    cleanup_buf struct buf out = {0}, problems = {0};
    const char *argv[] = {"bwrap", "--version", NULL};
    int status;
    if (!spawn_run(argv, NULL, 0, &out, &problems, 256, deadline_in(10000), &status, err))
        return error_append(err, "; install bubblewrap");
    return true;
}

/* For a lobby that is root: a number that nobody else has, so that VMs have none of root's rights.
 * Inside a user name space (a rootless container) few numbers are mapped, or one: then VMs run as
 * the lobby. */
static uid_t choose_user(const char *vms)
{
    unsigned short random;
    struct stat st;

    /* kept by a folder that is found again */
    if (stat(vms, &st) == 0 && st.st_uid != 0)
        return st.st_uid;
    io_random(&random, sizeof random);
    const uid_t candidates[] = {1u << 20 | random, 20000 + random % 40000u};
    for (size_t i = 0; i < 2; i++) {
        if (disk_mkdir(vms, 0711, candidates[i], NULL))
            return candidates[i];
    }
    return (uid_t)-1;
}

bool sandbox_host_setup(struct sandbox_host *h, enum disk_mode want, char **note, struct error *err)
{
    cleanup_free char *vms = xasprintf("%s/vm", h->base);
    bool overlay = false;

    *note = NULL;
    h->uid = (uid_t)-1;
    if (!need_programs(err))
        return false;
    if (geteuid() == 0)
        h->uid = choose_user(vms);
    if (!disk_mkdir(vms, 0711, h->uid, err) || !probe(h, &overlay, note, err))
        return false;
    if (want == DISK_OVERLAY && !overlay) {
        error_set(err, ERR_UNSUPPORTED, "--disk overlay: %s", *note);
        free(steal_ptr(*note));
        return false;
    }
    h->disk = overlay && want != DISK_PLAIN ? DISK_OVERLAY : DISK_PLAIN;
    return make_layer(h, err) && make_host_key(h, err);
}
