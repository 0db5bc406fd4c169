#include "guest.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void guest_event(const char *fmt, ...)
{
    char line[512] = "exe: ";
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line + 5, sizeof line - 6, fmt, ap);
    va_end(ap);
    strcat(line, "\n");
    int fd = open(GUEST_EVENTS, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t ignored = write(fd, line, strlen(line));
    (void)ignored;
    close(fd);
}

int main(int argc, char **argv)
{
    const char *slash = argc ? strrchr(argv[0], '/') : NULL;
    const char *name = slash ? slash + 1 : argc ? argv[0] : "";

    if (strcmp(name, "init") == 0)
        return guest_init(argc, argv);
    if (strcmp(name, "sudo") == 0)
        return guest_sudo(argc, argv);
    if (strcmp(name, "keys") == 0)
        return guest_keys(argc, argv);
    if (strcmp(name, "unregistered") == 0)
        return guest_unregistered();
    if (strcmp(name, "poweroff") == 0 || strcmp(name, "halt") == 0 || strcmp(name, "reboot") == 0 ||
        strcmp(name, "shutdown") == 0)
        return guest_power(name, argc, argv);
    fprintf(stderr, "%s: a program of exedev-lobby's VMs; it has no use outside of them\n", name);
    return 2;
}
