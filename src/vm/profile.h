/* The files a login environment comes from (behaviour.md "execute"), and whether one changed. */
#ifndef VM_PROFILE_H
#define VM_PROFILE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/stat.h>

struct profile {
    char *path;
    bool there;
    struct stat st;
};

struct profiles {
    struct profile *v;
    size_t n;
};

/* What the capture's step sources: a path that is there and can be read (the caller frees), or
 * NULL. */
char *profile_step(int step, const char *home, bool nvm, const char *nvm_dir);
/* Notes all files as they are now. True: one is so young that a change in the same tick of the file
 * system's clock would not show. */
bool profiles_note(struct profiles *p, const char *home, bool nvm, const char *nvm_dir);
bool profiles_changed(const struct profiles *p);
bool profile_find_bash(const char *path);

#endif
