/* Questions on the terminal. One thread. */
#ifndef CMD_TERMINAL_H
#define CMD_TERMINAL_H

#include <stdbool.h>

#include "base/error.h"

/* A line, trimmed, owned; NULL with ERR_CANCELLED at the end of input. */
char *terminal_line(const char *prompt, struct error *err);
/* The same without echo and of any length up to 64 KiB; `many`: several lines, up to a "-----END"
 * line or Ctrl-D. Wiped and freed by the caller. The terminal is put back as it was, also when a
 * signal ends the process. */
char *terminal_secret(const char *prompt, bool many, struct error *err);
/* "y" or "n", Enter: the fallback. End of input: false with ERR_CANCELLED. */
bool terminal_yes(const char *question, bool fallback, struct error *err);

#endif
