#include "lib/state.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <pwd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/io.h"
#include "base/text.h"

/* A folder that we may use: made by us or ours already, nobody else can write. */
static bool private_folder(const char *path, struct error *err)
{
    struct stat st;

    if (!io_mkdirs(path, 0700, err))
        return false;
    if (lstat(path, &st))
        return error_sys(err, errno, "look at the state folder %s", path);
    if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return error_set(
            err, ERR_UNSAFE,
            "the state folder %s belongs to somebody else: remove it, or name another with "
            "EXEDEV_STATE_DIR",
            path);
    if ((st.st_mode & 077) && chmod(path, 0700))
        return error_sys(err, errno, "make the state folder %s private (chmod 700)", path);
    if (access(path, W_OK | X_OK))
        return error_sys(err, errno, "write into the state folder %s", path);
    return true;
}

char *state_dir(struct error *err)
{
    const char *named = getenv("EXEDEV_STATE_DIR");
    struct passwd pw, *found = NULL;
    char buf[16384];

    if (named && *named) {
        if (*named != '/') {
            error_set(err, ERR_INVALID, "EXEDEV_STATE_DIR must be an absolute path, it is `%s`",
                      named);
            return NULL;
        }
        return private_folder(named, err) ? xstrdup(named) : NULL;
    }
    /* Not HOME: the worker has none, and both must find the same folder. */
    getpwuid_r(geteuid(), &pw, buf, sizeof buf, &found);
    if (found && *found->pw_dir == '/') {
        cleanup_free char *path = xasprintf("%s/.local/state/exedev", found->pw_dir);
        if (private_folder(path, NULL))
            return steal_ptr(path);
    }
    /* Service users often have no home they may write to. */
    cleanup_free char *path = xasprintf("/var/tmp/exedev-%u", (unsigned)geteuid());
    return private_folder(path, err) ? steal_ptr(path) : NULL;
}

char *state_path(const char *name, struct error *err)
{
    cleanup_free char *dir = state_dir(err);

    if (!dir)
        return NULL;
    if (*name == '/' || strstr(name, "..")) {
        error_set(err, ERR_INTERNAL, "`%s` is no name in the state folder", name);
        return NULL;
    }
    return xasprintf("%s/%s", dir, name);
}

char *state_known_hosts(const char *pinned, struct error *err)
{
    unsigned char digest[EVP_MAX_MD_SIZE];
    char hex[33];

    if (!pinned)
        return state_path("known_hosts", err);
    /* Named by its content: two configs with different pins never share a file, and it is never
     * changed. */
    EVP_Digest(pinned, strlen(pinned), digest, NULL, EVP_sha256(), NULL);
    io_hex(digest, 16, hex);
    cleanup_free char *name = xasprintf("known_hosts.pinned-%s", hex);
    cleanup_free char *path = state_path(name, err);
    cleanup_free char *text = xasprintf("%s\n", pinned);
    if (!path || (access(path, R_OK) && !io_write_file(path, 0600, text, strlen(text), err)))
        return NULL;
    return steal_ptr(path);
}

int state_lock(const char *name, int64_t wait_ms, struct error *err)
{
    cleanup_free char *path = state_path(name, err);
    struct deadline d = deadline_in(wait_ms);

    if (!path)
        return -1;
    cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) {
        error_sys(err, errno, "open the lock %s", path);
        return -1;
    }
    while (flock(fd, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            error_sys(err, errno, "lock %s", path);
            return -1;
        }
        if (deadline_passed(d)) {
            error_set(err, ERR_TIMEOUT, "another exedev process has held the lock %s for too long",
                      path);
            return -1;
        }
        deadline_sleep(d, 5);
    }
    return steal_fd(&fd);
}
