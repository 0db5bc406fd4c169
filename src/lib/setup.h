/* The script of a VM's first boot. */
#ifndef LIB_SETUP_H
#define LIB_SETUP_H

#include "lib/config.h"

/* What --setup-script gets: the configured one, the built-in one that installs Node `nodeMajor` and
 * records its progress, or NULL for "none". Owned. Under 10 KiB. */
char *setup_script(const struct config *c);
/* The built-in script records here on the VM: `state` holds "running" or "done STATUS", `log` its
 * output. */
#define SETUP_DIR "/var/tmp/exedev-setup"

#endif
