/* Ctrl-C and its like while no remote command runs (then they are remote_run's): what goes on is
 * cancelled, and what was begun is cleaned up. */
#ifndef CMD_INTERRUPT_H
#define CMD_INTERRUPT_H

#include <pthread.h>

#include "lib/cancel.h"

/* From here on SIGINT, SIGTERM and SIGHUP wait for interrupts_start or remote_run, for good. Before
 * any thread is made: those inherit it. */
void interrupts_block(void);
/* Each of these signals fires the cancel, which stays the caller's, until interrupts_stop. `again`
 * is said on stderr from the second one on; NULL: nothing. Without a thread the process exits. */
pthread_t interrupts_start(struct cancel *cancel, const char *again);
/* The last of them that came; 0: none. */
int interrupts_stop(pthread_t thread);

#endif
