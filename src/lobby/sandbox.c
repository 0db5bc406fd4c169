#include "lobby/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "lobby/disk.h"
#include "lobby/layers.h"

static const struct {
    const char *path;
    mode_t mode;
} folders[] = {
    {"root", 0755},
    {"root/home", 0755},
    {"root/home/exedev", 0755},
    {"root/tmp", 01777},
    {"root/root", 0700},
    {"root/mnt", 0755},
    {"root/media", 0755},
    {"root/srv", 0755},
    {"root/run", 0755},
    {"root/dev", 0755},
    {"root/proc", 0555},
    {"root/sys", 0555},
    {"root/var", 0755},
    {"root/var/cache", 0755},
    {"root/var/lib", 0755},
    {"root/var/log", 0755},
    {"root/var/spool", 0755},
    {"root/var/tmp", 01777},
    {"up", 0755},
    {"wk", 0755},
    {"guest", 0755},
    {"guest/bin", 0755},
};

static bool put_in(const struct sandbox_host *h, const char *dir, const char *rel, mode_t mode,
                   const char *text, struct error *err)
{
    cleanup_free char *path = xasprintf("%s/%s", dir, rel);

    return disk_put(path, mode, h->uid, text, strlen(text), err);
}

static bool make_in(const struct sandbox_host *h, const char *dir, const char *rel, mode_t mode,
                    struct error *err)
{
    cleanup_free char *path = xasprintf("%s/%s", dir, rel);

    return disk_mkdir(path, mode, h->uid, err);
}

/* Mount points, and the writable half of each overlay. */
static bool make_layers(const struct sandbox_host *h, const char *dir, struct error *err)
{
    for (const struct layer *l = layers; l->name; l++) {
        struct stat st;
        char target[256];

        if (lstat(l->system, &st) < 0)
            continue;
        if (S_ISLNK(st.st_mode)) {
            cleanup_free char *at = xasprintf("%s/%s", dir, l->at);
            ssize_t n = readlink(l->system, target, sizeof target - 1);
            if (n <= 0)
                continue;
            target[n] = 0;
            if ((symlink(target, at) < 0 && errno != EEXIST) ||
                (h->uid != (uid_t)-1 && lchown(at, h->uid, h->uid) < 0))
                return error_sys(err, errno, "link %s", at);
            continue;
        }
        if (!make_in(h, dir, l->at, 0755, err) || !make_in(h, dir, l->upper, 0755, err) ||
            !make_in(h, dir, l->work, 0755, err))
            return false;
    }
    return true;
}

/* Without overlays, /etc is a copy and /usr/local a folder of the VM's own with our shims in it. */
static bool make_plain(const struct sandbox_host *h, const char *dir, struct error *err)
{
    cleanup_free char *from = xasprintf("%s/etc", h->sys);
    cleanup_free char *to = xasprintf("%s/root/etc", dir);
    static const char *const parts[] = {"up/local", "up/local/bin", "up/local/sbin",
                                        "up/local/lib"};

    if (!disk_skeleton("/etc", to, 8, DISK_LINKS, h->uid, err) ||
        !disk_skeleton(from, to, 8, DISK_FILES, h->uid, err))
        return false;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        if (!make_in(h, dir, parts[i], 0755, err))
            return false;
    }
    static const char *const names[] = {"bin/sudo", "sbin/poweroff", "sbin/halt", "sbin/reboot",
                                        "sbin/shutdown"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        cleanup_free char *link = xasprintf("%s/up/local/%s", dir, names[i]);
        /* main() of the guest goes by the name it is called with, which stays the link's */
        if (symlink("/run/exe/bin/init", link) < 0 && errno != EEXIST)
            return error_sys(err, errno, "link %s", link);
    }
    return true;
}

bool sandbox_create(const struct sandbox_host *h, const char *dir, struct error *err)
{
    cleanup_free char *home = xasprintf("%s/root" SANDBOX_HOME, dir);

    if (!disk_mkdir(dir, 0711, h->uid, err))
        return false;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (!make_in(h, dir, folders[i].path, folders[i].mode, err))
            return false;
    }
    return disk_skeleton("/etc/skel", home, 4, DISK_LINKS, h->uid, err) &&
           make_layers(h, dir, err) && (h->disk == DISK_OVERLAY || make_plain(h, dir, err));
}

bool sandbox_copy(const struct sandbox_host *h, const char *from, const char *to, struct error *err)
{
    static const char *const parts[] = {"root", "up"};

    if (!disk_mkdir(to, 0711, h->uid, err))
        return false;
    for (size_t i = 0; i < 2; i++) {
        cleanup_free char *a = xasprintf("%s/%s", from, parts[i]);
        cleanup_free char *b = xasprintf("%s/%s", to, parts[i]);
        if (!disk_copy(a, b, err))
            return false;
    }
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        if (strncmp(folders[i].path, "root", 4) != 0 && strcmp(folders[i].path, "up") != 0 &&
            !make_in(h, to, folders[i].path, folders[i].mode, err))
            return false;
    }
    return make_layers(h, to, err);
}

/* sshd_config(5) takes a quoted word; inside it only quotes and backslashes are special. */
static void put_quoted(struct buf *out, const char *key, const char *value)
{
    buf_printf(out, " \"%s=", key);
    for (; *value; value++) {
        if (*value == '"' || *value == '\\' || *value == '\'')
            buf_putc(out, '\\');
        buf_putc(out, *value);
    }
    buf_putc(out, '"');
}

static void put_sshd_config(struct buf *out, const struct sandbox *s)
{
    const char *key;
    json_t *value;

    buf_printf(out,
               "Port %u\nListenAddress %s\nHostKey /run/exe/host_key\nPidFile /run/exe/sshd.pid\n"
               "AllowUsers " SANDBOX_USER "\n"
               "UsePAM no\nStrictModes no\nPasswordAuthentication no\n"
               "KbdInteractiveAuthentication no\nAuthorizedKeysFile none\n"
               "AuthorizedKeysCommand /run/exe/bin/keys %%t %%k\n"
               "AuthorizedKeysCommandUser " SANDBOX_USER "\n"
               "Subsystem sftp internal-sftp\nAcceptEnv LANG LC_*\nPrintLastLog no\nUseDNS no\n"
               "MaxSessions %u\nLogLevel VERBOSE\n",
               s->port, s->address, s->max_sessions);
    /* only the first SetEnv line counts (sshd_config(5): "the first obtained value will be used")
     */
    if (json_object_size(s->env))
        buf_puts(out, "SetEnv");
    json_object_foreach ((json_t *)(uintptr_t)s->env, key, value)
        put_quoted(out, key, json_string_value(value));
    buf_putc(out, '\n');
}

static bool put_guest_files(const struct sandbox_host *h, const struct sandbox *s,
                            struct error *err)
{
    cleanup_buf struct buf config = {0}, key = {0}, hosts = {0}, name = {0};
    const char *etc = h->disk == DISK_OVERLAY ? "up/etc" : "root/etc";
    cleanup_free char *hosts_at = xasprintf("%s/hosts", etc);
    cleanup_free char *name_at = xasprintf("%s/hostname", etc);

    put_sshd_config(&config, s);
    if (!io_read_file(h->host_key, 65536, &key, err))
        return false;
    buf_printf(&hosts, "127.0.0.1 localhost\n::1 localhost ip6-localhost\n%s %s %s.exe.xyz\n",
               s->address, s->name, s->name);
    buf_printf(&name, "%s\n", s->name);
    return put_in(h, s->dir, "guest/sshd_config", 0600, config.data, err) &&
           put_in(h, s->dir, "guest/host_key", 0600, key.data, err) &&
           put_in(h, s->dir, "guest/authorized_keys", 0600, s->keys, err) &&
           put_in(h, s->dir, hosts_at, 0644, hosts.data, err) &&
           put_in(h, s->dir, name_at, 0644, name.data, err) &&
           (!s->setup || put_in(h, s->dir, "guest/setup", 0700, s->setup, err)) &&
           (!s->command || put_in(h, s->dir, "guest/command", 0600, s->command, err));
}

bool sandbox_boot(const struct sandbox_host *h, const struct sandbox *s, struct child *out,
                  struct error *err)
{
    cleanup_free char *events = xasprintf("%s/guest/events", s->dir);
    cleanup_free char *log = xasprintf("%s/boot.log", s->dir);
    cleanup_free char *uid = xasprintf("%lld", h->uid == (uid_t)-1 ? -1LL : (long long)h->uid);
    cleanup_free char *delay = xasprintf("%lld", s->sshd_delay_ms);
    cleanup_free char *parent = xasprintf("%d", h->outlive ? 0 : (int)getpid());
    cleanup_free char *cpus = xasprintf("%ld", s->cpus);
    cleanup_json json_t *env_owned = json_array();
    struct stat st;

    if (!put_guest_files(h, s, err))
        return false;
    /* Appended to over the VM's life: what was read of it stays read. */
    if (stat(events, &st) < 0 && !disk_put(events, 0600, h->uid, "", 0, err))
        return false;
    unlink(log);
    cleanup_fd int fd = open(log, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_sys(err, errno, "write %s", log);

    const char *argv[] = {"/proc/self/exe",
                          SANDBOX_ENTER,
                          s->dir,
                          h->sys,
                          uid,
                          h->disk == DISK_OVERLAY ? "overlay" : "plain",
                          s->name,
                          parent,
                          cpus,
                          delay,
                          NULL};
    size_t n = 0;
    const char **envp = xcalloc(json_object_size(s->env) + 8, sizeof *envp);
    static const char *const basic[] = {
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" SANDBOX_HOME,
        "USER=" SANDBOX_USER, "LOGNAME=" SANDBOX_USER, "SHELL=/bin/bash"};
    for (size_t i = 0; i < sizeof basic / sizeof *basic; i++)
        envp[n++] = basic[i];
    const char *key;
    json_t *value;
    json_object_foreach ((json_t *)(uintptr_t)s->env, key, value) {
        json_t *pair = json_sprintf("%s=%s", key, json_string_value(value));
        json_array_append_new(env_owned, pair);
        envp[n++] = json_string_value(pair);
    }
    struct spawn_opts opts = {.argv = argv,
                              .envp = envp,
                              .cwd = "/",
                              .fd0 = -1,
                              .fd1 = fd,
                              .fd2 = fd,
                              .outlive = h->outlive,
                              .new_session = true};
    bool ok = spawn_child(&opts, out, err);
    free(envp);
    return ok;
}

static int give_up(const char *what)
{
    dprintf(2, "%s: %s\n", what, strerror(errno));
    return SANDBOX_FORBIDDEN;
}

static bool mount_layers(const char *sys, bool overlay)
{
    for (const struct layer *l = layers; l->name; l++) {
        cleanup_free char *thin = xasprintf("%s/%s", sys, l->name);
        struct stat st;

        if (lstat(l->system, &st) < 0 || !S_ISDIR(st.st_mode))
            continue;
        if (overlay) {
            if (!layers_overlay(l->system, thin, l->upper, l->work, l->at))
                return false;
        } else if (strcmp(l->name, "etc") != 0) {
            if (mount(l->system, l->at, NULL, MS_BIND | MS_REC, NULL) < 0)
                return false;
        }
    }
    return true;
}

/* --cpu: what nproc(1) and the like count. */
static void limit_cpus(long want)
{
    cpu_set_t have, use;
    long n = 0;

    if (want <= 0 || sched_getaffinity(0, sizeof have, &have) < 0)
        return;
    CPU_ZERO(&use);
    for (int i = 0; i < CPU_SETSIZE && n < want; i++) {
        if (CPU_ISSET(i, &have)) {
            CPU_SET(i, &use);
            n++;
        }
    }
    sched_setaffinity(0, sizeof use, &use);
}

int sandbox_enter(int argc, char **argv)
{
    if (argc != 10)
        return 2;
    const char *dir = argv[2], *sys = argv[3], *name = argv[6], *delay = argv[9];
    long long uid = atoll(argv[4]);
    bool overlay = strcmp(argv[5], "overlay") == 0;
    pid_t parent = (pid_t)atoi(argv[7]);

    limit_cpus(atol(argv[8]));
    if (chdir(dir) < 0)
        return give_up(dir);
    if (!layers_unshare(uid < 0 ? (uid_t)-1 : (uid_t)uid))
        return give_up("make a user name space");
    if (!mount_layers(sys, overlay))
        return give_up("mount the system folders");
    /* A change of credentials dropped the death signal that our spawner set. */
    if (parent) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            return 1;
    }
    cleanup_free char *root = xasprintf("%s/root", dir);
    cleanup_free char *guest = xasprintf("%s/guest", dir);
    cleanup_free char *bin = xasprintf("%s/guest", sys);
    cleanup_free char *local = xasprintf("%s/up/local", dir);
    const char *args[64] = {"bwrap",
                            "--unshare-user",
                            "--uid",
                            "1000",
                            "--gid",
                            "1000",
                            "--unshare-pid",
                            "--unshare-uts",
                            "--unshare-ipc",
                            "--hostname",
                            name,
                            "--bind",
                            root,
                            "/",
                            "--dev",
                            "/dev",
                            "--proc",
                            "/proc",
                            "--tmpfs",
                            "/run",
                            "--tmpfs",
                            "/dev/shm",
                            "--ro-bind-try",
                            "/sys",
                            "/sys",
                            "--bind",
                            guest,
                            "/run/exe",
                            "--ro-bind",
                            bin,
                            "/run/exe/bin",
                            "--dir",
                            "/run/lock",
                            "--chdir",
                            SANDBOX_HOME,
                            "--as-pid-1"};
    size_t n = 0;
    while (args[n])
        n++;
    if (!overlay) {
        static const char *const ro[] = {"/usr", "/opt"};
        for (size_t i = 0; i < 2; i++) {
            if (access(ro[i], F_OK) == 0) {
                args[n++] = "--remount-ro";
                args[n++] = ro[i];
            }
        }
        args[n++] = "--bind";
        args[n++] = local;
        args[n++] = "/usr/local";
    }
    if (parent)
        args[n++] = "--die-with-parent";
    args[n++] = "--";
    args[n++] = "/run/exe/bin/init";
    args[n++] = delay;
    args[n] = NULL;
    execvp(args[0], (char *const *)args);
    return give_up("start bwrap (install bubblewrap)");
}
