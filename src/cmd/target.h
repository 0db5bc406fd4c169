/* From a VM's name on the command line to its link. */
#ifndef CMD_TARGET_H
#define CMD_TARGET_H

#include "lib/cancel.h"
#include "lib/config.h"
#include "lib/link.h"

/* Looks the VM up (ERR_NOT_FOUND when there is none of that name), restarts nothing. With the SSH
 * address of the record. End with lease_link_done(link, NULL). */
struct link *target_link(const struct config *cfg, const char *vm, struct error *err);

#endif
