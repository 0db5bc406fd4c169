#include "lib/name.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"

#define PREFIX_MAX 24
#define ID_PART 8
#define COMMENT_MAX 200
#define MARK_ID_MAX 64

char *name_prefix(const char *text)
{
    char out[PREFIX_MAX + 1];
    size_t n = 0;

    for (const char *s = text ? text : ""; *s && n < PREFIX_MAX; s++) {
        /* ASCII only: a name's letters are a-z whatever the locale. */
        char c = *s >= 'A' && *s <= 'Z' ? (char)(*s + 32) : *s;
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
            out[n++] = c;
        else if (n && out[n - 1] != '-')
            out[n++] = '-';
    }
    while (n && out[n - 1] == '-')
        n--;
    return n ? xstrndup(out, n) : xstrdup("paperclip");
}

static void random_part(char out[ID_PART + 1])
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    unsigned char bytes[ID_PART];

    io_random(bytes, sizeof bytes);
    out[0] = letters[bytes[0] % 26]; /* a letter first: never all digits */
    for (size_t i = 1; i < ID_PART; i++)
        out[i] = letters[bytes[i] % 36];
    out[ID_PART] = '\0';
}

/* The first letters and digits of an id. */
static size_t id_part(const char *id, char out[ID_PART + 1])
{
    size_t n = 0;

    for (const char *s = id ? id : ""; *s && n < ID_PART; s++) {
        char c = *s >= 'A' && *s <= 'Z' ? (char)(*s + 32) : *s;
        if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'))
            out[n++] = c;
    }
    out[n] = '\0';
    return n;
}

static char *join(const char *prefix, const char *middle, const char *last)
{
    cleanup_free char *clean = name_prefix(prefix);

    return xasprintf("%s-%s-%s", clean, middle, last);
}

char *name_lease(const char *prefix, const char *env_id, const char *run_id)
{
    char env[ID_PART + 1], run[ID_PART + 1];

    if (!id_part(env_id, env))
        strcpy(env, "env");
    if (!id_part(run_id, run))
        random_part(run);
    if (strspn(run, "0123456789") == strlen(run)) {
        /* exe.dev refuses a last part of digits only. */
        memmove(run + 1, run, ID_PART - 1);
        run[0] = 'r';
        run[ID_PART] = '\0';
    }
    return join(prefix, env, run);
}

char *name_lease_other(const char *prefix, const char *env_id)
{
    return name_lease(prefix, env_id, NULL);
}

char *name_random(const char *prefix, const char *kind)
{
    char last[ID_PART + 1];
    cleanup_free char *middle = name_prefix(kind);

    random_part(last);
    return join(prefix, middle, last);
}

char *name_probe(const char *prefix)
{
    return name_random(prefix, "probe");
}

static char *mark_id(const char *id)
{
    cleanup_buf struct buf b = {0};

    buf_puts(&b, "");
    for (const char *s = id ? id : ""; *s && b.len < MARK_ID_MAX; s++)
        if (isalnum((unsigned char)*s) || strchr("._-", *s))
            buf_putc(&b, *s);
    return buf_steal(&b);
}

char *mark_comment(const char *text, const char *kind, const char *env_id, const char *run_id)
{
    cleanup_free char *k = mark_id(kind), *e = mark_id(env_id), *r = mark_id(run_id);
    cleanup_buf struct buf mark = {0}, out = {0};

    buf_printf(&mark, "[" MARK_TAG " %.16s", *k ? k : "lease");
    if (*e)
        buf_printf(&mark, " env=%s", e);
    if (*r)
        buf_printf(&mark, " run=%s", r);
    buf_putc(&mark, ']');

    size_t room = COMMENT_MAX - mark.len - 1;
    size_t n = text ? strlen(text) : 0;
    if (n > room) {
        n = room;
        while (n && ((unsigned char)text[n] & 0xc0) == 0x80)
            n--;
    }
    buf_put(&out, text ? text : "", n);
    buf_printf(&out, "%s%s", n ? " " : "", mark.data);
    return buf_steal(&out);
}

void mark_clear(struct mark *m)
{
    free(m->kind);
    free(m->env_id);
    free(m->run_id);
    *m = (struct mark){0};
}

bool mark_parse(const char *comment, struct mark *out)
{
    static const char head[] = "[" MARK_TAG " ";
    const char *at = NULL, *end;

    *out = (struct mark){0};
    /* The last one: the operator's own text comes first, and may hold anything. */
    for (const char *s = comment; s && (s = strstr(s, head)); s++)
        at = s;
    if (!at || !(end = strchr(at, ']')))
        return false;
    at += strlen(head);
    cleanup_free char *inside = xstrndup(at, (size_t)(end - at));
    char *rest = inside, *word;
    while ((word = strsep(&rest, " "))) {
        char **to = text_starts(word, "env=")   ? &out->env_id
                    : text_starts(word, "run=") ? &out->run_id
                                                : &out->kind;
        if (!*to)
            *to = xstrdup(to == &out->kind ? word : word + 4);
    }
    return true;
}

static bool same(const char *stored, const char *id)
{
    cleanup_free char *clean = mark_id(id);

    return !strcmp(stored ? stored : "", clean);
}

bool mark_matches(const struct mark *m, const char *env_id, const char *run_id)
{
    return same(m->env_id, env_id) && same(m->run_id, run_id);
}
