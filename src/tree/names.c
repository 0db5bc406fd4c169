#include "tree/names.h"

#include <locale.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/text.h"
#include "tree/hash.h"

void names_free(struct names *s)
{
    free(s->slots);
    *s = (struct names){0};
}

static uint64_t hash(const char *name, size_t n, uint64_t key)
{
    struct hash64 h;

    hash64_start(&h, key);
    hash64_add(&h, name, n);
    uint64_t v = hash64_end(&h);
    return v ? v : 1; /* 0 marks an empty slot */
}

static uint64_t *find(uint64_t *slots, uint32_t cap, uint64_t v)
{
    uint32_t i = (uint32_t)v & (cap - 1);

    while (slots[i] && slots[i] != v)
        i = (i + 1) & (cap - 1);
    return &slots[i];
}

bool names_add(struct names *s, const char *name, size_t n, uint64_t key)
{
    if (s->n * 4 >= s->cap * 3) {
        uint32_t cap = s->cap ? s->cap * 2 : 16;
        uint64_t *slots = xcalloc(cap, sizeof *slots);
        for (uint32_t i = 0; i < s->cap; i++) {
            if (s->slots[i])
                *find(slots, cap, s->slots[i]) = s->slots[i];
        }
        free(s->slots);
        s->slots = slots;
        s->cap = cap;
    }
    uint64_t v = hash(name, n, key), *slot = find(s->slots, s->cap, v);
    if (*slot)
        return false;
    *slot = v;
    s->n++;
    return true;
}

bool names_has(const struct names *s, const char *name, size_t n, uint64_t key)
{
    return s->n && *find(s->slots, s->cap, hash(name, n, key));
}

static locale_t unicode;

static void load_unicode(void)
{
    unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
}

char *names_fold(const char *name, size_t *n)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct buf out = {0};

    pthread_once(&once, load_unicode);
    bool wide = text_is_utf8(name, *n);
    for (size_t i = 0; i < *n;) {
        unsigned char c = (unsigned char)name[i++];
        if (c < 0x80 || !wide) {
            buf_putc(&out, (char)(c >= 'A' && c <= 'Z' ? c + 32 : c));
            continue;
        }
        int more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
        uint32_t v = c & (0x3fu >> more);
        while (more--)
            v = v << 6 | ((unsigned char)name[i++] & 0x3f);
        v = (uint32_t)(unicode ? towlower_l((wint_t)v, unicode) : towlower((wint_t)v));
        buf_put(&out, &v, sizeof v);
    }
    *n = out.len;
    return buf_steal(&out);
}
