/* The settings form's terminal twin. */
#ifndef CMD_CONFIGURE_CLI_H
#define CMD_CONFIGURE_CLI_H

#include "lib/configfile.h"

/* Exit status. environment NULL: the default one, or a first one that it asks a name for. */
int configure_cli(struct configfile *cf, const char *environment);

#endif
