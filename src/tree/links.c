#include "tree/links.h"

#include <stdlib.h>

#include "base/alloc.h"

void links_free(struct links *l)
{
    free(l->slots);
    *l = (struct links){0};
}

static struct link_slot *find(struct link_slot *slots, uint32_t cap, uint64_t dev, uint64_t ino)
{
    uint64_t h = (ino ^ dev << 32) * 0x9E3779B97F4A7C15u;

    for (uint32_t i = (uint32_t)(h >> 32) & (cap - 1);; i = (i + 1) & (cap - 1)) {
        struct link_slot *s = &slots[i];
        if (!s->id || (s->ino == ino && s->dev == dev))
            return s;
    }
}

static void grow(struct links *l)
{
    uint32_t cap = l->cap ? l->cap * 2 : 256;
    struct link_slot *slots = xcalloc(cap, sizeof *slots);

    for (uint32_t i = 0; i < l->cap; i++) {
        if (l->slots[i].id)
            *find(slots, cap, l->slots[i].dev, l->slots[i].ino) = l->slots[i];
    }
    free(l->slots);
    l->slots = slots;
    l->cap = cap;
}

uint32_t links_number(struct links *l, const struct stat *st, bool *known, bool *last)
{
    *known = *last = false;
    if (l->n * 2 >= l->cap && l->cap < 2 * LINKS_MAX)
        grow(l);
    struct link_slot *s = find(l->slots, l->cap, st->st_dev, st->st_ino);
    if (s->id) {
        *known = true;
        *last = s->left <= 1;
        if (s->left)
            s->left--;
        return s->id;
    }
    if (l->n >= LINKS_MAX)
        return 0;
    *s = (struct link_slot){.ino = st->st_ino,
                            .dev = st->st_dev,
                            .id = ++l->last_id,
                            .left = (uint32_t)st->st_nlink - 1};
    l->n++;
    return s->id;
}
