#include "lobby/disk.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"

#define MAX_FILE (4u << 20) /* a file of /etc */

static bool remove_at(int at, const char *name, int depth)
{
    if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
        return true;
    if (errno != EISDIR && errno != EPERM)
        return false;
    if (unlinkat(at, name, AT_REMOVEDIR) == 0)
        return true;
    if (depth > 4000)
        return false;
    /* overlayfs leaves a folder of mode 000 in its work folder; people leave others */
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EACCES && fchmodat(at, name, 0700, 0) == 0)
        fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return false;
    fchmod(fd, 0700);
    cleanup_dir DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return false;
    }
    bool ok = true;
    for (struct dirent *e; (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            ok = remove_at(fd, e->d_name, depth + 1) && ok;
    }
    return ok && unlinkat(at, name, AT_REMOVEDIR) == 0;
}

bool disk_remove(const char *path, struct error *err)
{
    if (remove_at(AT_FDCWD, path, 0))
        return true;
    return error_sys(err, errno, "remove %s", path);
}

bool disk_copy(const char *from, const char *to, struct error *err)
{
    const char *argv[] = {"cp", "-a", "--reflink=auto", "--sparse=auto", "--", from, to, NULL};
    cleanup_buf struct buf out = {0}, problems = {0};
    int status;

    if (!spawn_run(argv, NULL, 0, &out, &problems, 4096, deadline_in(600000), &status, err))
        return error_prefix(err, "copy %s", from);
    /* Sockets and files that went away under the copy are no failure: a running VM is copied as a
     * power cut would leave it. */
    struct stat st;
    if (stat(to, &st) < 0)
        return error_set(err, ERR_SYSTEM, "copy %s to %s: %.500s", from, to,
                         problems.data ? problems.data : "cp failed");
    return true;
}

bool disk_put(const char *path, mode_t mode, uid_t uid, const void *p, size_t n, struct error *err)
{
    unlink(path);
    cleanup_fd int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);

    if (fd < 0)
        return error_sys(err, errno, "write %s", path);
    if (fchmod(fd, mode) < 0 || (uid != (uid_t)-1 && fchown(fd, uid, uid) < 0))
        return error_sys(err, errno, "write %s", path);
    if (!io_write_all(fd, p, n, DEADLINE_NEVER, err))
        return error_prefix(err, "write %s", path);
    return true;
}

bool disk_mkdir(const char *path, mode_t mode, uid_t uid, struct error *err)
{
    if (mkdir(path, mode) < 0 && errno != EEXIST)
        return error_sys(err, errno, "make the folder %s", path);
    if (chmod(path, mode) < 0 || (uid != (uid_t)-1 && lchown(path, uid, uid) < 0))
        return error_sys(err, errno, "make the folder %s", path);
    return true;
}

static bool copy_entry(int at, const char *name, const char *to, uid_t uid, mode_t mode)
{
    cleanup_fd int fd = openat(at, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    cleanup_buf struct buf data = {0};

    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > MAX_FILE)
        return false;
    ssize_t got;
    while ((got = read(fd, buf_reserve(&data, 65536), 65536)) > 0) {
        data.len += (size_t)got;
        if (data.len > MAX_FILE)
            return false;
    }
    return disk_put(to, mode & 0777, uid, data.data ? data.data : "", data.len, NULL);
}

static void copy_link(int at, const char *name, const char *to, uid_t uid)
{
    char target[4096];
    ssize_t n = readlinkat(at, name, target, sizeof target - 1);

    if (n <= 0)
        return;
    target[n] = 0;
    if (symlink(target, to) == 0 && uid != (uid_t)-1 && lchown(to, uid, uid) < 0)
        unlink(to);
}

static bool skeleton_at(int at, const char *name, const char *to, int depth, enum disk_what what,
                        uid_t uid, struct error *err)
{
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    struct stat st;

    if (fd < 0)
        return true;
    cleanup_dir DIR *dir = fdopendir(fd);
    /* Only what everybody may read: the lobby may be root, a VM's user is not. */
    if (!dir || fstat(fd, &st) < 0 || (st.st_mode & 05) != 05) {
        if (!dir)
            close(fd);
        return true;
    }
    if (!disk_mkdir(to, 0755, uid, err))
        return false;
    for (struct dirent *e; (e = readdir(dir));) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        /* /usr/share has tens of thousands of files: most are not worth a call */
        if (e->d_type != DT_UNKNOWN && e->d_type != DT_DIR && what == DISK_FOLDERS)
            continue;
        if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        bool folder = S_ISDIR(st.st_mode) && depth > 1;
        if (!folder && what == DISK_FOLDERS)
            continue;
        cleanup_free char *below = xasprintf("%s/%s", to, e->d_name);
        if (folder) {
            if (!skeleton_at(fd, e->d_name, below, depth - 1, what, uid, err))
                return false;
        } else if (S_ISLNK(st.st_mode) && what == DISK_LINKS) {
            copy_link(fd, e->d_name, below, uid);
        } else if (S_ISREG(st.st_mode) && (st.st_mode & 04)) {
            copy_entry(fd, e->d_name, below, uid, st.st_mode);
        }
    }
    return true;
}

bool disk_skeleton(const char *from, const char *to, int depth, enum disk_what what, uid_t uid,
                   struct error *err)
{
    return skeleton_at(AT_FDCWD, from, to, depth, what, uid, err);
}
