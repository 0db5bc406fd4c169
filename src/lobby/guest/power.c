/* poweroff, halt, reboot and shutdown: a signal to process 1. */
#include "guest.h"

#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PENDING GUEST_DIR "/shutdown.pid"

static int signal_init(bool again)
{
    if (kill(1, again ? SIGINT : SIGTERM) == 0)
        return 0;
    perror("signal process 1");
    return 1;
}

static int cancel(void)
{
    FILE *f = fopen(PENDING, "r");
    int pid = 0;

    if (f) {
        if (fscanf(f, "%d", &pid) == 1 && pid > 1)
            kill(pid, SIGTERM);
        fclose(f);
        unlink(PENDING);
    }
    return 0;
}

/* "now", "+MINUTES" or "HH:MM" as seconds from now; -1 when it is none of them. */
static long delay_of(const char *when)
{
    char *end;

    if (strcmp(when, "now") == 0)
        return 0;
    if (when[0] == '+') {
        long minutes = strtol(when + 1, &end, 10);
        return *end || end == when + 1 || minutes < 0 || minutes > 1000000 ? -1 : minutes * 60;
    }
    int hour, minute, used = 0;
    if (sscanf(when, "%2d:%2d%n", &hour, &minute, &used) != 2 || when[used] || hour < 0 ||
        hour > 23 || minute < 0 || minute > 59)
        return -1;
    time_t t = time(NULL);
    struct tm tm;
    localtime_r(&t, &tm);
    long wait = (hour - tm.tm_hour) * 3600L + (minute - tm.tm_min) * 60L - tm.tm_sec;
    return wait < 0 ? wait + 86400 : wait;
}

static int later(long seconds, bool again)
{
    pid_t pid = fork();

    if (pid < 0) {
        perror("fork");
        return 1;
    }
    if (pid == 0) {
        setsid();
        for (int fd = 0; fd < 64; fd++)
            close(fd);
        sleep((unsigned)seconds);
        _exit(signal_init(again));
    }
    FILE *f = fopen(PENDING, "w");
    if (f) {
        fprintf(f, "%d\n", (int)pid);
        fclose(f);
    }
    return 0;
}

int guest_power(const char *name, int argc, char **argv)
{
    bool again = strcmp(name, "reboot") == 0;
    const char *when = NULL;

    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (strcmp(a, "-r") == 0 || strcmp(a, "--reboot") == 0)
            again = true;
        else if (strcmp(a, "-c") == 0)
            return cancel();
        else if (a[0] != '-' && !when)
            when = a;
    }
    if (strcmp(name, "shutdown") != 0)
        return signal_init(again);
    long wait = delay_of(when ? when : "+1");
    if (wait < 0) {
        fprintf(stderr, "shutdown: %s: not a time (now, +MINUTES, HH:MM)\n", when);
        return 1;
    }
    cancel();
    return wait ? later(wait, again) : signal_init(again);
}
