/* Between config.c and config_validate.c. */
#ifndef LIB_CONFIG_INTERNAL_H
#define LIB_CONFIG_INTERNAL_H

#include "lib/config.h"

/* The fields as given (with defaults), before they are combined. */
struct config *config_read(const json_t *raw, struct problems *p);
/* Combines them, finds the API key, checks values; what config_parse returns. */
void config_finish(struct config *c, struct problems *p);

#endif
