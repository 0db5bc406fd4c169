#include "vm/profile.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"

#define TICK_NS 50000000LL /* file systems stamp with the kernel's tick, some are coarser */
#define MAX_PARTS 256      /* of profile.d */

static char *nvm_path(const char *home, const char *nvm_dir)
{
    return nvm_dir && nvm_dir[0] ? xasprintf("%s/nvm.sh", nvm_dir)
                                 : xasprintf("%s/.nvm/nvm.sh", home);
}

char *profile_step(int step, const char *home, bool nvm, const char *nvm_dir)
{
    char *path = NULL;

    if (step == 1)
        path = xstrdup("/etc/profile");
    else if (step == 2)
        path = xasprintf("%s/.profile", home);
    else if (step == 3)
        path = xasprintf("%s/.bash_profile", home);
    else if (step == 4)
        path = xasprintf("%s/.zprofile", home);
    else if (step == 5 && nvm)
        path = nvm_path(home, nvm_dir);
    if (step == 3 && access(path, R_OK) < 0) {
        free(path);
        path = xasprintf("%s/.bashrc", home);
    }
    if (path && access(path, R_OK) < 0) {
        free(path);
        path = NULL;
    }
    return path;
}

static void note(struct profiles *p, char *path)
{
    p->v = xreallocarray(p->v, p->n + 1, sizeof *p->v);
    struct profile *f = &p->v[p->n++];
    *f = (struct profile){.path = path};
    f->there = stat(path, &f->st) == 0;
}

static long long nanos(struct timespec t)
{
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

bool profiles_note(struct profiles *p, const char *home, bool nvm, const char *nvm_dir)
{
    static const char *const ours[] = {".profile", ".bash_profile", ".bashrc", ".zprofile"};
    struct timespec now;

    for (size_t i = 0; i < p->n; i++)
        free(p->v[i].path);
    p->n = 0;
    note(p, xstrdup("/etc/profile"));
    note(p, xstrdup("/etc/bash.bashrc"));
    note(p, xstrdup("/etc/profile.d"));
    cleanup_dir DIR *dir = opendir("/etc/profile.d");
    for (struct dirent *e; dir && (e = readdir(dir)) && p->n < MAX_PARTS;) {
        if (e->d_name[0] != '.')
            note(p, xasprintf("/etc/profile.d/%s", e->d_name));
    }
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        note(p, xasprintf("%s/%s", home, ours[i]));
    if (nvm)
        note(p, nvm_path(home, nvm_dir));

    clock_gettime(CLOCK_REALTIME, &now);
    for (size_t i = 0; i < p->n; i++) {
        long long age = nanos(now) - nanos(p->v[i].st.st_ctim);
        if (p->v[i].there && age < TICK_NS && age > -TICK_NS)
            return true;
    }
    return false;
}

bool profiles_changed(const struct profiles *p)
{
    for (size_t i = 0; i < p->n; i++) {
        const struct profile *f = &p->v[i];
        struct stat st;
        bool there = stat(f->path, &st) == 0;
        if (there != f->there)
            return true;
        if (there && (st.st_ino != f->st.st_ino || st.st_dev != f->st.st_dev ||
                      st.st_size != f->st.st_size || st.st_mode != f->st.st_mode ||
                      nanos(st.st_mtim) != nanos(f->st.st_mtim) ||
                      nanos(st.st_ctim) != nanos(f->st.st_ctim)))
            return true;
    }
    return false;
}

bool profile_find_bash(const char *path)
{
    for (const char *dir = path ? path : "/usr/local/bin:/usr/bin:/bin"; *dir;) {
        size_t n = strcspn(dir, ":");
        cleanup_free char *file = xasprintf("%.*s/bash", (int)n, dir);
        if (n && access(file, X_OK) == 0)
            return true;
        dir += n + (dir[n] == ':');
    }
    return false;
}
