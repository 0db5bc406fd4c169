/* How raw JSON values are read (behaviour.md, "Config"); internal to config. Results are owned. */
#ifndef LIB_CONFIG_VALUE_H
#define LIB_CONFIG_VALUE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "lib/problems.h"

/* As JavaScript prints a number: 4.0 is "4", 1e21 is "1e+21". */
char *value_number_text(double v);
/* As JavaScript's trim: Unicode white space too. */
char *value_trim(const char *s);
/* NULL: absent. A text that holds NUL is a problem of that field. */
char *value_string(const json_t *v, const char *field, struct problems *p);
enum value_int { VALUE_INT_ABSENT, VALUE_INT_OK, VALUE_INT_BAD };
/* Truncated toward zero; BAD is not reported here. */
enum value_int value_integer(const json_t *v, int64_t *out);
json_t *value_list(const json_t *v, const char *field, struct problems *p);
json_t *value_map(const json_t *v, const char *field, struct problems *p);
/* KEY=VALUE lines as in a .env file: blank lines, # comments, `export `, single and double quotes
 * (which may span lines). Problems name the line, never its text, which may be a secret. */
json_t *value_env_text(const char *text, const char *field, struct problems *p);
bool value_is_env_key(const char *s);
/* "4GB", "16G", "50", "1.5TiB": more than nothing. */
bool value_is_size(const char *s);
/* The API URL as we use it; NULL when it is no http(s) URL, *why says what is wrong. */
char *value_api_url(const char *s, const char **why);

#endif
