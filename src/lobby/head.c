#include "lobby/head.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"

void head_free(struct head *h)
{
    free(h->text);
    free(h->fields);
    free(h->host);
    *h = (struct head){0};
}

static bool bad(struct error *err, const char *why)
{
    return error_set(err, ERR_PROTOCOL, "bad request: %s", why);
}

/* RFC 9110, section 5.6.2 */
static bool is_token(const char *s)
{
    return *s && s[strspn(s, "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
                             "ABCDEFGHIJKLMNOPQRSTUVWXYZ")] == 0;
}

static bool has_word(const char *list, const char *word)
{
    cleanup_free char *copy = xstrdup(list);
    char *save = NULL;

    for (char *part = strtok_r(copy, ", \t", &save); part; part = strtok_r(NULL, ", \t", &save)) {
        if (strcasecmp(part, word) == 0)
            return true;
    }
    return false;
}

static bool take_host(struct head *h, const char *value, struct error *err)
{
    if (h->host)
        return bad(err, "two Host fields");
    h->host = xstrdup(value);
    for (char *c = h->host; *c; c++)
        *c = (char)tolower((unsigned char)*c);
    char *colon = strrchr(h->host, ':');
    if (!colon)
        return true;
    char *end;
    long port = strtol(colon + 1, &end, 10);
    if (!isdigit((unsigned char)colon[1]) || *end || port < 1 || port > 65535)
        return bad(err, "the Host field's port is none");
    *colon = 0;
    h->host_port = (unsigned)port;
    return true;
}

static bool take_field(struct head *h, char *name, char *value, struct error *err)
{
    if (strcasecmp(name, "Host") == 0)
        return take_host(h, value, err);
    if (strcasecmp(name, "X-Exedev-Authorization") == 0) {
        if (strncasecmp(value, "Bearer ", 7) == 0)
            h->token = value + 7;
    } else if (strcasecmp(name, "Content-Length") == 0) {
        char *end;
        if (h->length >= 0 || !isdigit((unsigned char)*value) || strlen(value) > 18)
            return bad(err, "Content-Length is no number, or there twice");
        h->length = strtoll(value, &end, 10);
        if (*end)
            return bad(err, "Content-Length is no number");
    } else if (strcasecmp(name, "Transfer-Encoding") == 0) {
        if (strcasecmp(value, "chunked") != 0)
            return bad(err, "a Transfer-Encoding other than chunked");
        h->chunked = true;
    } else if (strcasecmp(name, "Connection") == 0 && has_word(value, "upgrade")) {
        h->upgrade = true;
    }
    return true;
}

bool head_parse(const char *text, size_t n, struct head *out, struct error *err)
{
    bool wants_upgrade = false;

    *out = (struct head){.text = xstrndup(text, n), .length = -1};
    if (memchr(text, 0, n))
        return bad(err, "NUL in its head");
    char *at = out->text, *end;
    out->request_line = at;
    for (size_t line = 0;; line++) {
        if (!(end = strstr(at, "\r\n")))
            return bad(err, "its head does not end");
        *end = 0;
        if (strpbrk(at, "\r\n"))
            return bad(err, "a bare CR or LF in its head");
        if (line && !*at)
            break;
        if (line) {
            char *colon = strchr(at, ':');
            if (!colon)
                return bad(err, "a field without a colon");
            *colon = 0;
            if (!is_token(at))
                return bad(err, "a field's name is none");
            char *value = colon + 1 + strspn(colon + 1, " \t");
            for (char *last = value + strlen(value); last > value && strchr(" \t", last[-1]);)
                *--last = 0;
            out->fields = xreallocarray(out->fields, out->n + 1, sizeof *out->fields);
            out->fields[out->n].name = at;
            out->fields[out->n++].value = value;
            wants_upgrade = wants_upgrade || strcasecmp(at, "Upgrade") == 0;
            if (!take_field(out, at, value, err))
                return false;
        }
        at = end + 2;
    }
    if (!text_ends(out->request_line, " HTTP/1.1") && !text_ends(out->request_line, " HTTP/1.0"))
        return bad(err, "no HTTP/1.1 request");
    /* the classic of request smuggling */
    if (out->chunked && out->length >= 0)
        return bad(err, "both Content-Length and Transfer-Encoding");
    out->upgrade = out->upgrade && wants_upgrade;
    if (!out->host)
        out->host = xstrdup("");
    return true;
}

void head_write(const struct head *h, const char *ours, struct buf *out)
{
    buf_printf(out, "%s\r\n", h->request_line);
    for (size_t i = 0; i < h->n; i++) {
        const char *name = h->fields[i].name;
        if (strncasecmp(name, "X-ExeDev-", 9) == 0 || strncasecmp(name, "X-Forwarded-", 12) == 0)
            continue;
        if (!h->upgrade &&
            (strcasecmp(name, "Connection") == 0 || strcasecmp(name, "Upgrade") == 0 ||
             strcasecmp(name, "Keep-Alive") == 0))
            continue;
        buf_printf(out, "%s: %s\r\n", name, h->fields[i].value);
    }
    if (!h->upgrade)
        buf_puts(out, "Connection: close\r\n");
    buf_printf(out, "%s\r\n", ours);
}
