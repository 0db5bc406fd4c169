#include "cmd/interrupt.h"

#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "cmd/cmd.h"

struct interrupts {
    struct cancel *cancel;
    const char *again;
};

/* SIGUSR1 is our own: interrupts_stop. */
static void fill(sigset_t *set)
{
    sigemptyset(set);
    sigaddset(set, SIGINT);
    sigaddset(set, SIGTERM);
    sigaddset(set, SIGHUP);
    sigaddset(set, SIGUSR1);
}

static void *take(void *arg)
{
    struct interrupts *in = arg;
    sigset_t set;
    int sig, n = 0;
    intptr_t last = 0;

    fill(&set);
    while (sigwait(&set, &sig) == 0 && sig != SIGUSR1) {
        last = sig;
        cancel_fire(in->cancel);
        if (n++ && in->again)
            cmd_fail(0, "%s", in->again);
    }
    free(in);
    return (void *)last;
}

void interrupts_block(void)
{
    sigset_t set;

    fill(&set);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

pthread_t interrupts_start(struct cancel *cancel, const char *again)
{
    struct interrupts *in = xcalloc(1, sizeof *in);
    pthread_t thread;

    *in = (struct interrupts){.cancel = cancel, .again = again};
    int sys = pthread_create(&thread, NULL, take, in);
    if (sys)
        exit(cmd_fail(EXIT_FAILED, "start a thread: %s", strerror(sys)));
    return thread;
}

int interrupts_stop(pthread_t thread)
{
    void *last = NULL;

    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, &last);
    return (int)(intptr_t)last;
}
