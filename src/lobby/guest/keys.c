/* Which keys may log in. Any other key is let in as well, as far as exe.dev lets it: into a session
 * that says to register. */
#include "guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int guest_keys(int argc, char **argv)
{
    if (argc != 3)
        return 1;
    const char *type = argv[1], *key = argv[2];
    FILE *f = fopen(GUEST_DIR "/authorized_keys", "r");
    char *line = NULL;
    size_t cap = 0;

    while (f && getline(&line, &cap, f) > 0) {
        char *save, *t = strtok_r(line, " \t\n", &save);
        char *k = t ? strtok_r(NULL, " \t\n", &save) : NULL;
        if (k && strcmp(t, type) == 0 && strcmp(k, key) == 0) {
            printf("%s %s\n", type, key);
            return 0;
        }
    }
    printf("restrict,pty,command=\"" GUEST_DIR "/bin/unregistered\" %s %s\n", type, key);
    return 0;
}

int guest_unregistered(void)
{
    guest_event("unregistered");
    puts("Please complete registration by running: ssh exe.dev");
    return 1;
}
