/* Connection settings on the command line: every field of the schema is an option of its own. Used
 * by parse.c only. */
#ifndef CMD_SETTINGS_H
#define CMD_SETTINGS_H

#include <jansson.h>
#include <stdbool.h>

bool settings_is_option(const char *name);
bool settings_is_flag(const char *name); /* may stand without a value */
/* Remembers it; a message (owned) when it cannot be taken. */
char *settings_option(const char *name, const char *value);
/* One setting from text, as for --set, secrets too; a message (owned) when it cannot be taken. */
char *settings_put(json_t *raw, const char *key, const char *text);
void settings_add_names(const char ***names, int *n);
void settings_print_names(void);

#endif
