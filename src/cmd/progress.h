/* Progress on stderr: a line per finished step with its time; on a terminal the running one as
 * well, with a bar, rate and time left for a transfer. One thread at a time. */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress;

/* quiet: nothing at all. json: {"step","text","ms","ok"} a line, and no bar. */
struct progress *progress_new(bool quiet, bool json);
void progress_free(struct progress *p);
/* A step begins. On a terminal it is shown until the next call. */
void progress_begin(struct progress *p, const char *step, const char *text);
/* Takes the running step off the terminal, for output of others. */
void progress_quiet(struct progress *p);
void progress_step(struct progress *p, const char *step, const char *text, long long ms, bool ok);
/* "3 files, 4.5 kB"; owned. */
char *progress_amount(uint64_t files, uint64_t bytes);
/* For transfer_opts.progress. */
void progress_transfer(uint64_t moved, uint64_t done, uint64_t total, void *arg);

#endif
