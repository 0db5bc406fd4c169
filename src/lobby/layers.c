#include "lobby/layers.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "base/alloc.h"

#define LAYER(name, slot) name, "/" name, "root/" name, "up/" slot, "wk/" slot

/* Anything else of this machine a VM does not see. */
const struct layer layers[] = {
    {LAYER("usr", "usr"), 3, DISK_FOLDERS},
    {LAYER("etc", "etc"), 8, DISK_FILES},
    {LAYER("opt", "opt"), 2, DISK_FOLDERS},
    {LAYER("bin", "bin"), 1, DISK_FOLDERS},
    {LAYER("sbin", "sbin"), 1, DISK_FOLDERS},
    {LAYER("lib", "lib"), 2, DISK_FOLDERS},
    {LAYER("lib32", "lib32"), 1, DISK_FOLDERS},
    {LAYER("lib64", "lib64"), 1, DISK_FOLDERS},
    {LAYER("libx32", "libx32"), 1, DISK_FOLDERS},
    {LAYER("var/lib/dpkg", "var_lib_dpkg"), 3, DISK_FOLDERS},
    {LAYER("var/lib/apt", "var_lib_apt"), 3, DISK_FOLDERS},
    {0},
};

static bool put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    int sys = errno;
    close(fd);
    errno = sys;
    return ok;
}

bool layers_unshare(uid_t uid)
{
    char map[64];

    if (uid != (uid_t)-1) {
        if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
            return false;
        /* else /proc/self belongs to root, and the maps below cannot be written */
        prctl(PR_SET_DUMPABLE, 1);
    }
    unsigned user = geteuid(), group = getegid();
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0)
        return false;
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", user);
    if (!put("/proc/self/uid_map", map))
        return false;
    snprintf(map, sizeof map, "0 %u 1", group);
    if (!put("/proc/self/gid_map", map))
        return false;
    return mount("none", "/", NULL, MS_REC | MS_SLAVE, NULL) == 0;
}

bool layers_overlay(const char *system, const char *thin, const char *upper, const char *work,
                    const char *at)
{
    char *opts =
        xasprintf("lowerdir=%s:%s,upperdir=%s,workdir=%s,userxattr", thin, system, upper, work);
    bool ok = mount("overlay", at, "overlay", 0, opts) == 0;

    /* Before Linux 5.11 there is no userxattr, and no overlayfs without privileges either, but for
     * distributions that patched it in. */
    if (!ok && errno == EINVAL) {
        *strstr(opts, ",userxattr") = 0;
        ok = mount("overlay", at, "overlay", 0, opts) == 0;
    }
    int sys = errno;
    free(opts);
    errno = sys;
    return ok;
}
