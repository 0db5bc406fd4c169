/* GNU tar's --exclude with its defaults (its manual, "Controlling Pattern-Matching"; gnulib's
 * exclude.c): a pattern is tried against the whole member name and against what follows each slash,
 * `*` and `?` match slashes too, and a match that ends before a slash leaves out what is below.
 * Own code, because the helper's libc (musl) and glibc differ in corners and neither bounds its
 * time. */
#include <string.h>
#include <wchar.h>
#include <wctype.h>

#include "base/text.h"
#include "tree/tree.h"

/* The text is walked in characters when both sides are UTF-8, else in bytes, as glibc does. */
struct text {
    const unsigned char *p, *end;
    bool wide;
};

static wint_t take(struct text *t)
{
    unsigned char c = *t->p++;

    if (!t->wide || c < 0x80)
        return c;
    int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    wint_t v = c & (0x3f >> more);
    while (more--)
        v = v << 6 | (*t->p++ & 0x3f);
    return v;
}

static bool in_class(const unsigned char *name, size_t n, wint_t c)
{
    char copy[16];

    if (n >= sizeof copy)
        return false;
    memcpy(copy, name, n);
    copy[n] = 0;
    wctype_t type = wctype(copy);
    return type && iswctype(c, type);
}

enum bracket { BRACKET_NONE, BRACKET_MISS, BRACKET_HIT };

/* One element of a bracket expression that may begin a range: a character, [.c.] or [=c=]. */
static bool bracket_char(struct text *p, wint_t *c)
{
    if (p->p >= p->end)
        return false;
    *c = take(p);
    if (*c == '\\') {
        if (p->p >= p->end)
            return false;
        *c = take(p);
    } else if (*c == '[' && p->p < p->end && (*p->p == '.' || *p->p == '=')) {
        struct text look = *p;
        wint_t mark = take(&look);
        if (look.p >= look.end)
            return true;
        wint_t element = take(&look);
        if (look.end - look.p >= 2 && look.p[0] == mark && look.p[1] == ']') {
            *c = element;
            p->p = look.p + 2;
        }
    }
    return true;
}

/* p stands behind the `[`; moved behind the `]` unless there is none, when `[` is an ordinary
 * character. */
static enum bracket bracket(struct text *p, wint_t c)
{
    struct text at = *p;
    bool negate = at.p < at.end && (*at.p == '!' || *at.p == '^'), hit = false;

    if (negate)
        at.p++;
    for (bool first = true;; first = false) {
        if (at.p >= at.end)
            return BRACKET_NONE;
        if (*at.p == ']' && !first) {
            at.p++;
            break;
        }
        if (at.end - at.p > 1 && at.p[0] == '[' && at.p[1] == ':') {
            const unsigned char *name = at.p + 2, *stop = name;
            while (stop < at.end && *stop >= 'a' && *stop <= 'z')
                stop++;
            if (at.end - stop >= 2 && stop[0] == ':' && stop[1] == ']') {
                hit |= in_class(name, (size_t)(stop - name), c);
                at.p = stop + 2;
                continue;
            }
        }
        wint_t low, high;
        if (!bracket_char(&at, &low))
            return BRACKET_NONE;
        high = low;
        if (at.end - at.p > 1 && at.p[0] == '-' && at.p[1] != ']') {
            at.p++;
            if (!bracket_char(&at, &high))
                return BRACKET_NONE;
        }
        hit |= low <= c && c <= high;
    }
    p->p = at.p;
    return hit != negate ? BRACKET_HIT : BRACKET_MISS;
}

/* One pattern element other than `*` against one character. */
static bool step(struct text *p, struct text *s)
{
    wint_t want = take(p);
    wint_t c = take(s);

    if (want == '?')
        return true;
    if (want == '[') {
        enum bracket b = bracket(p, c);
        if (b != BRACKET_NONE)
            return b == BRACKET_HIT;
    } else if (want == '\\') {
        if (p->p >= p->end)
            return false;
        want = take(p);
    }
    return c == want;
}

/* Matches up to the end or a slash. Only the last star needs to be tried again: what an earlier one
 * matched was the shortest that could do. So the time is bounded by the product of the lengths. */
static bool match(struct text p, struct text s)
{
    struct text star_p = {0}, star_s = {0};

    for (;;) {
        if (p.p == p.end && (s.p == s.end || *s.p == '/'))
            return true;
        if (p.p < p.end && *p.p == '*') {
            while (p.p < p.end && *p.p == '*')
                p.p++;
            star_p = p;
            star_s = s;
            continue;
        }
        if (p.p < p.end && s.p < s.end && step(&p, &s))
            continue;
        if (!star_p.p || star_s.p >= star_s.end)
            return false;
        take(&star_s);
        p = star_p;
        s = star_s;
    }
}

static bool has_wildcard(const char *s)
{
    for (; *s; s++) {
        if (*s == '\\' && s[1])
            s++;
        else if (strchr("?*[", *s))
            return true;
    }
    return false;
}

bool tree_glob(const char *pattern, const char *name)
{
    size_t n = strlen(pattern), len = strlen(name);
    bool wide = text_is_utf8(pattern, n) && text_is_utf8(name, len);
    struct text p = {(const unsigned char *)pattern, (const unsigned char *)pattern + n, wide};
    struct text s = {(const unsigned char *)name, (const unsigned char *)name + len, wide};
    char literal[4096];

    /* Without wildcards a last lone backslash stands for itself. */
    if (n && n < sizeof literal - 1 && pattern[n - 1] == '\\' && !has_wildcard(pattern)) {
        size_t slashes = 0;
        while (slashes < n && pattern[n - 1 - slashes] == '\\')
            slashes++;
        if (slashes % 2) {
            memcpy(literal, pattern, n);
            literal[n] = '\\';
            p.p = (const unsigned char *)literal;
            p.end = p.p + n + 1;
        }
    }
    for (;;) {
        if (match(p, s))
            return true;
        const unsigned char *slash = memchr(s.p, '/', (size_t)(s.end - s.p));
        while (slash && slash + 1 < s.end && slash[1] == '/')
            slash++;
        if (!slash)
            return false;
        s.p = slash + 1;
    }
}

bool tree_excluded(const char *const *patterns, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++) {
        if (tree_glob(patterns[i], name))
            return true;
    }
    return false;
}
