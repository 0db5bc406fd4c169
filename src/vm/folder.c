/* The private folder, and who we are, without the name service (a static program cannot load it).
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "vm/vm.h"

static bool usable(const char *path)
{
    struct stat st;
    struct statvfs fs;

    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return false;
    if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != geteuid())
        return false;
    if ((st.st_mode & 07777) != 0700 && chmod(path, 0700) < 0)
        return false;
    return access(path, W_OK) == 0 && statvfs(path, &fs) == 0 && !(fs.f_flag & ST_NOEXEC);
}

char *private_folder(const char *home)
{
    const char *run = getenv("XDG_RUNTIME_DIR");
    char *path = xasprintf("%s/.cache", home);

    if (mkdir(path, 0700) < 0)
        errno = 0; /* it is there, or the next step fails */
    free(path);
    path = xasprintf("%s/.cache/exedev", home);
    if (usable(path))
        return path;
    free(path);
    if (run && run[0] == '/') {
        path = xasprintf("%s/exedev", run);
        if (usable(path))
            return path;
        free(path);
    }
    path = xasprintf("/tmp/exedev-%u", (unsigned)geteuid());
    if (usable(path))
        return path;
    free(path);
    return NULL;
}

/* Field n (from 0) of our line in /etc/passwd, or NULL. */
static char *passwd_field(int n)
{
    cleanup_buf struct buf text = {0};
    cleanup_free char *uid = xasprintf("%u", (unsigned)geteuid());

    if (!io_read_file("/etc/passwd", 1 << 20, &text, NULL))
        return NULL;
    char *rest = text.data;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char *fields[7] = {0};
        for (int i = 0; i < 7 && line; i++)
            fields[i] = strsep(&line, ":");
        if (fields[2] && !strcmp(fields[2], uid) && fields[n] && fields[n][0])
            return xstrdup(fields[n]);
    }
    return NULL;
}

char *home_folder(void)
{
    const char *home = getenv("HOME");
    char *found = home && home[0] == '/' ? xstrdup(home) : passwd_field(5);

    return found ? found : xstrdup("/");
}

char *user_name(void)
{
    const char *user = getenv("USER");
    char *found;

    if (!user || !user[0])
        user = getenv("LOGNAME");
    found = user && user[0] ? xstrdup(user) : passwd_field(0);
    return found ? found : xasprintf("%u", (unsigned)geteuid());
}
