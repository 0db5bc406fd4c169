#include "lib/redact.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "lib/secret.h"

#define LEAST 4       /* shorter texts stand in too many innocent places */
#define LINE_LEAST 16 /* of a text of several lines: the base64 of a key, not "-----END" */

struct form {
    char *text; /* secret_dup */
    size_t len;
    struct form *next;
};

struct known {
    char *text; /* secret_dup */
    size_t users;
    struct form *forms;
    struct known *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct known *all;

static void form_add(struct form **forms, const char *s, size_t n)
{
    for (struct form *f = *forms; f; f = f->next)
        if (f->len == n && !memcmp(f->text, s, n))
            return;
    struct form *f = xcalloc(1, sizeof *f);
    f->text = secret_dupn(s, n);
    f->len = n;
    /* Longest first, so that a part never spoils the match of the whole. */
    while (*forms && (*forms)->len >= n)
        forms = &(*forms)->next;
    f->next = *forms;
    *forms = f;
}

static void form_add_buf(struct form **forms, struct buf *b)
{
    if (b->len)
        form_add(forms, b->data, b->len);
    buf_wipe(b);
}

/* How others write a text when they quote it back: JSON, a shell word, a URL's query. */
static void add_spellings(struct form **forms, const char *s, size_t n)
{
    struct buf b = {0};

    form_add(forms, s, n);
    json_escape(&b, s, n);
    form_add_buf(forms, &b);
    for (size_t i = 0; i < n; i++)
        buf_puts(&b, s[i] == '\'' ? "'\\''" : (char[]){s[i], '\0'});
    form_add_buf(forms, &b);
    for (size_t i = 0; i < n; i++)
        buf_puts(&b, s[i] == '\n' ? "\\n" : (char[]){s[i], '\0'});
    form_add_buf(forms, &b);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if ((c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
            strchr("-._~", c))
            buf_putc(&b, (char)c);
        else
            buf_printf(&b, "%%%02X", c);
    }
    form_add_buf(forms, &b);
}

static struct form *forms_of(const char *s)
{
    struct form *forms = NULL;

    add_spellings(&forms, s, strlen(s));
    if (!strchr(s, '\n'))
        return forms;
    for (const char *line = s; *line;) {
        size_t n = strcspn(line, "\r\n");
        if (n >= LINE_LEAST && strncmp(line, "-----", 5) != 0)
            add_spellings(&forms, line, n);
        line += n;
        line += strspn(line, "\r\n");
    }
    return forms;
}

static void forms_free(struct form *f)
{
    while (f) {
        struct form *next = f->next;
        secret_free(f->text);
        free(f);
        f = next;
    }
}

void redact_add(const char *secret)
{
    if (!secret || strlen(secret) < LEAST)
        return;
    pthread_mutex_lock(&lock);
    struct known *k = all;
    while (k && strcmp(k->text, secret) != 0)
        k = k->next;
    if (!k) {
        k = xcalloc(1, sizeof *k);
        k->text = secret_dup(secret);
        k->forms = forms_of(secret);
        k->next = all;
        all = k;
    }
    k->users++;
    pthread_mutex_unlock(&lock);
}

void redact_remove(const char *secret)
{
    if (!secret)
        return;
    pthread_mutex_lock(&lock);
    for (struct known **at = &all; *at; at = &(*at)->next) {
        struct known *k = *at;
        if (strcmp(k->text, secret) != 0)
            continue;
        if (--k->users == 0) {
            *at = k->next;
            forms_free(k->forms);
            secret_free(k->text);
            free(k);
        }
        break;
    }
    pthread_mutex_unlock(&lock);
}

/* Replaces every form in *text (owned). `keep`: only where '=' stands before it. */
static void replace(char **text, const struct form *forms, bool after_equals)
{
    for (const struct form *f = forms; f; f = f->next) {
        const char *at = *text, *hit;
        struct buf out = {0};

        while ((hit = strstr(at, f->text))) {
            const char *before = hit;
            while (before > *text && strchr("'\"\\", before[-1]))
                before--;
            bool take = !after_equals || (before > *text && before[-1] == '=');
            buf_put(&out, at, (size_t)(hit - at));
            buf_puts(&out, take ? REDACTED : f->text);
            at = hit + f->len;
        }
        if (at == *text) {
            buf_free(&out);
            continue;
        }
        buf_puts(&out, at);
        explicit_bzero(*text, strlen(*text));
        free(*text);
        *text = buf_steal(&out);
    }
}

char *redact_with(const char *text, const char *const *more, size_t n)
{
    char *out = xstrdup(text ? text : "");

    for (size_t i = 0; i < n; i++) {
        if (!more[i] || !*more[i])
            continue;
        struct form *forms = forms_of(more[i]);
        replace(&out, forms, strlen(more[i]) < LEAST);
        forms_free(forms);
    }
    pthread_mutex_lock(&lock);
    for (struct known *k = all; k; k = k->next)
        replace(&out, k->forms, false);
    pthread_mutex_unlock(&lock);
    return out;
}

char *redact(const char *text)
{
    return redact_with(text, NULL, 0);
}

void redact_error(struct error *err)
{
    if (!err || !err->msg)
        return;
    char *clean = redact(err->msg);
    free(err->msg);
    err->msg = clean;
}
