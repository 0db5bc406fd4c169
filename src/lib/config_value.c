#include "lib/config_value.h"

#include <curl/curl.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"

/* ECMA-262 6.1.6.1.20, Number::toString: the fewest digits that read back as the same number. */
char *value_number_text(double v)
{
    char sci[40];
    int digits;

    if (v == 0)
        return xstrdup("0");
    for (digits = 1; digits <= 17; digits++) {
        snprintf(sci, sizeof sci, "%.*e", digits - 1, fabs(v));
        if (strtod(sci, NULL) == fabs(v))
            break;
    }
    int exponent = atoi(strchr(sci, 'e') + 1);
    char mantissa[20] = {0};
    size_t n = 0;
    for (const char *c = sci; *c != 'e'; c++)
        if (*c != '.')
            mantissa[n++] = *c;

    cleanup_buf struct buf out = {0};
    if (v < 0)
        buf_putc(&out, '-');
    if (exponent >= 21 || exponent < -6) {
        buf_putc(&out, mantissa[0]);
        if (n > 1)
            buf_printf(&out, ".%s", mantissa + 1);
        buf_printf(&out, "e%c%d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        buf_puts(&out, "0.");
        for (int i = -1; i > exponent; i--)
            buf_putc(&out, '0');
        buf_puts(&out, mantissa);
    } else {
        for (int i = 0; i <= exponent || (size_t)i < n; i++) {
            if (i == exponent + 1)
                buf_putc(&out, '.');
            buf_putc(&out, (size_t)i < n ? mantissa[i] : '0');
        }
    }
    return buf_steal(&out);
}

/* Bytes of the white space character that s begins with (ECMA-262 WhiteSpace and LineTerminator).
 */
static size_t space_len(const char *s)
{
    static const char *const wide[] = {
        "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81", "\xe2\x80\x82",
        "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86", "\xe2\x80\x87",
        "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8", "\xe2\x80\xa9",
        "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80", "\xef\xbb\xbf",
    };

    if (*s && strchr(" \t\n\v\f\r", *s))
        return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++)
        if (text_starts(s, wide[i]))
            return strlen(wide[i]);
    return 0;
}

char *value_trim(const char *s)
{
    size_t n;
    const char *end;

    while ((n = space_len(s)))
        s += n;
    end = s;
    for (const char *c = s; *c;) {
        n = space_len(c);
        c += n ? n : 1;
        if (!n)
            end = c;
    }
    return xstrndup(s, (size_t)(end - s));
}

static char *trimmed_or_null(const char *s)
{
    char *t = value_trim(s);

    if (*t)
        return t;
    free(t);
    return NULL;
}

char *value_string(const json_t *v, const char *field, struct problems *p)
{
    if (json_is_number(v))
        return value_number_text(json_number_value(v));
    if (!json_is_string(v))
        return NULL;
    if (strlen(json_string_value(v)) != json_string_length(v)) {
        problems_error(p, field,
                       "%s holds a NUL character, which no command line can carry: remove it",
                       field);
        return NULL;
    }
    return trimmed_or_null(json_string_value(v));
}

/* What JavaScript's Number() takes for a finite number: no hexadecimal fractions, "inf" or "nan",
 * which strtod would. */
static bool number_from_text(const char *s, double *out)
{
    const char *c = s;
    char *end;

    if (c[0] == '0' && c[1] && strchr("xXoObB", c[1])) {
        int base = strchr("xX", c[1]) ? 16 : strchr("oO", c[1]) ? 8 : 2;
        if (!isalnum((unsigned char)c[2]))
            return false;
        errno = 0;
        unsigned long long v = strtoull(c + 2, &end, base);
        *out = (double)v;
        return !*end && !errno;
    }
    if (*c == '+' || *c == '-')
        c++;
    if (!isdigit((unsigned char)*c) && !(*c == '.' && isdigit((unsigned char)c[1])))
        return false;
    if (strspn(c, "0123456789.eE+-") != strlen(c))
        return false;
    *out = strtod(s, &end);
    return !*end && isfinite(*out);
}

enum value_int value_integer(const json_t *v, int64_t *out)
{
    double d;

    if (!v || json_is_null(v))
        return VALUE_INT_ABSENT;
    if (json_is_number(v)) {
        d = json_number_value(v);
    } else if (json_is_string(v)) {
        if (strlen(json_string_value(v)) != json_string_length(v))
            return VALUE_INT_BAD;
        cleanup_free char *t = value_trim(json_string_value(v));
        if (!*t)
            return VALUE_INT_ABSENT;
        if (!number_from_text(t, &d))
            return VALUE_INT_BAD;
    } else {
        return VALUE_INT_BAD;
    }
    d = trunc(d);
    *out = d > 9e18 ? INT64_MAX : d < -9e18 ? INT64_MIN : (int64_t)d;
    return VALUE_INT_OK;
}

static void list_put(json_t *list, char *item)
{
    if (item)
        json_array_append_new(list, json_string(item));
    free(item);
}

json_t *value_list(const json_t *v, const char *field, struct problems *p)
{
    json_t *list = json_array();

    if (json_is_array(v)) {
        size_t i;
        json_t *item;
        json_array_foreach ((json_t *)v, i, item) {
            list_put(list, value_string(item, field, p));
        }
    } else if (json_is_string(v)) {
        cleanup_free char *text = value_string(v, field, p);
        char *rest = text, *part;
        while (text && (part = strsep(&rest, ",")))
            list_put(list, trimmed_or_null(part));
    }
    return list;
}

json_t *value_map(const json_t *v, const char *field, struct problems *p)
{
    json_t *map = json_object();
    const char *key;
    json_t *item;

    if (!json_is_object(v))
        return map;
    json_object_foreach ((json_t *)v, key, item) {
        cleanup_free char *k = value_trim(key);
        cleanup_free char *text = value_string(item, field, p);
        if (*k && text)
            json_object_set_new(map, k, json_string(text));
    }
    return map;
}

bool value_is_env_key(const char *s)
{
    if (!isalpha((unsigned char)*s) && *s != '_')
        return false;
    for (; *s; s++)
        if (!isalnum((unsigned char)*s) && *s != '_')
            return false;
    return true;
}

/* The quoted value that begins after *s (the quote itself skipped); *s ends behind the closing
 * quote. */
static bool quoted(const char **s, char quote, int *line, struct buf *out)
{
    const char *c = *s;

    buf_puts(out, "");
    for (; *c && *c != quote; c++) {
        if (*c == '\n')
            ++*line;
        if (quote == '"' && *c == '\\' && c[1]) {
            static const char from[] = "nrt\"\\$", to[] = "\n\r\t\"\\$";
            const char *at = strchr(from, c[1]);
            if (at) {
                buf_putc(out, to[at - from]);
                c++;
                continue;
            }
        }
        buf_putc(out, *c);
    }
    if (!*c)
        return false;
    *s = c + 1;
    return true;
}

json_t *value_env_text(const char *text, const char *field, struct problems *p)
{
    json_t *map = json_object();
    const char *s = text ? text : "";

    for (int line = 1; *s; line++) {
        int at = line;
        size_t n = strcspn(s, "\n");
        cleanup_free char *raw = xstrndup(s, n);
        cleanup_free char *t = value_trim(raw);
        const char *from = text_starts(t, "export ") ? t + 7 : t;
        const char *eq = strchr(from, '=');

        if (!*t || *t == '#') {
            s += n + (s[n] == '\n');
            continue;
        }
        cleanup_free char *key_raw = xstrndup(from, eq ? (size_t)(eq - from) : 0);
        cleanup_free char *key = value_trim(key_raw);
        if (!eq || !value_is_env_key(key)) {
            problems_error(p, field,
                           "%s: line %d is not KEY=VALUE: a key is letters, digits and "
                           "underscores, and does not begin with a digit",
                           field, at);
            s += n + (s[n] == '\n');
            continue;
        }
        const char *v = strchr(s, '=') + 1;
        v += strspn(v, " \t");
        cleanup_buf struct buf value = {0};
        if (*v == '"' || *v == '\'') {
            char quote = *v++;
            if (!quoted(&v, quote, &line, &value)) {
                problems_error(p, field, "%s: the quote opened on line %d is never closed", field,
                               at);
                return map;
            }
            s = v + strcspn(v, "\n");
            cleanup_free char *rest_raw = xstrndup(v, (size_t)(s - v));
            cleanup_free char *rest = value_trim(rest_raw);
            if (*rest && *rest != '#')
                problems_error(p, field, "%s: line %d goes on after its closing quote", field,
                               line);
        } else {
            cleanup_free char *plain = xstrndup(v, n - (size_t)(v - s));
            for (char *c = plain; *c; c++)
                if (*c == '#' && (c == plain || isblank((unsigned char)c[-1]))) {
                    *c = '\0';
                    break;
                }
            cleanup_free char *done = value_trim(plain);
            buf_puts(&value, done);
            s += n;
        }
        json_object_set_new(map, key, json_string(value.data ? value.data : ""));
        s += *s == '\n';
    }
    return map;
}

bool value_is_size(const char *s)
{
    static const char *const units[] = {"",    "b", "k",  "kb",  "kib", "m",  "mb",
                                        "mib", "g", "gb", "gib", "t",   "tb", "tib"};
    char *end;
    size_t digits = strspn(s, "0123456789");
    size_t fraction = s[digits] == '.' ? strspn(s + digits + 1, "0123456789") + 1 : 0;

    if (!digits || fraction == 1 || !(strtod(s, &end) > 0))
        return false;
    end = (char *)s + digits + fraction;
    end += *end == ' ';
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (!strcasecmp(end, units[i]))
            return true;
    return false;
}

static void cleanup_url(CURLU **u)
{
    curl_url_cleanup(*u);
}

static void cleanup_curl_str(char **s)
{
    curl_free(*s);
}
#define cleanup_part __attribute__((cleanup(cleanup_curl_str)))

char *value_api_url(const char *s, const char **why)
{
    __attribute__((cleanup(cleanup_url))) CURLU *u = curl_url();
    cleanup_part char *scheme = NULL, *host = NULL, *path = NULL, *user = NULL, *password = NULL;
    cleanup_part char *whole = NULL;

    *why = "it cannot be read as a URL";
    if (!u || !strstr(s, "://") || curl_url_set(u, CURLUPART_URL, s, CURLU_NON_SUPPORT_SCHEME))
        return NULL;
    curl_url_get(u, CURLUPART_SCHEME, &scheme, 0);
    *why = "it does not begin with https:// (or http://)";
    if (!scheme || (strcasecmp(scheme, "https") != 0 && strcasecmp(scheme, "http") != 0))
        return NULL;
    *why = "it names no host";
    if (curl_url_get(u, CURLUPART_HOST, &host, 0) || !*host)
        return NULL;
    *why = "it holds a user name or password; the token has a field of its own";
    if (!curl_url_get(u, CURLUPART_USER, &user, 0) ||
        !curl_url_get(u, CURLUPART_PASSWORD, &password, 0))
        return NULL;
    *why = "it cannot be read as a URL";
    curl_url_set(u, CURLUPART_FRAGMENT, NULL, 0);
    if (curl_url_get(u, CURLUPART_PATH, &path, 0))
        return NULL;
    size_t n = strlen(path);
    while (n && path[n - 1] == '/')
        path[--n] = '\0';
    cleanup_free char *full = xasprintf("%s%s", path, text_ends(path, "/exec") ? "" : "/exec");
    if (curl_url_set(u, CURLUPART_PATH, full, 0) || curl_url_get(u, CURLUPART_URL, &whole, 0))
        return NULL;
    return xstrdup(whole);
}
