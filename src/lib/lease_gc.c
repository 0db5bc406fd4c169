/* What carries our mark and nobody needs any more. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/lease_private.h"
#include "lib/name.h"
#include "lib/state.h"

void gc_list_clear(struct gc_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->list[i].name);
        free(l->list[i].env_id);
        free(l->list[i].run_id);
        free(l->list[i].kind);
    }
    free(l->list);
    *l = (struct gc_list){0};
}

const char *gc_why_text(enum gc_why why)
{
    static const char *const texts[] = {
        [GC_STRAY] = "nobody knows it", [GC_DOOMED] = "its deletion was begun",
        [GC_LIVE] = "a lease in use",   [GC_RETAINED] = "kept for reuse",
        [GC_TEMPLATE] = "a template",   [GC_YOUNG] = "too young, or of unknown age",
    };
    return texts[why];
}

static const struct journal_entry *entry_of(const struct journal *j, const char *name)
{
    for (size_t i = 0; i < j->n; i++)
        if (strcmp(j->list[i].name, name) == 0)
            return &j->list[i];
    return NULL;
}

static enum gc_why judge(const char *kind, const struct journal_entry *e)
{
    if (kind && text_starts(kind, "template"))
        return GC_TEMPLATE;
    if (lease_is_held(e ? e->name : ""))
        return GC_LIVE;
    if (!e)
        return GC_STRAY;
    switch (e->state) {
    case JOURNAL_LIVE:
        return GC_LIVE;
    case JOURNAL_RETAINED:
        return GC_RETAINED;
    case JOURNAL_INTENT:
        return e->owner_alive ? GC_LIVE : GC_DOOMED;
    case JOURNAL_DOOMED:
        return GC_DOOMED;
    case JOURNAL_GONE:
        break;
    }
    return GC_STRAY;
}

static char *dup_or_null(const char *s)
{
    return s && *s ? xstrdup(s) : NULL;
}

static void add(struct gc_list *out, const struct record *r, const struct mark *m,
                const struct journal_entry *e, int64_t older_than)
{
    const char *kind = e ? e->kind : m->kind;
    struct gc_item item = {
        .name = xstrdup(r->vm_name),
        .env_id = dup_or_null(m->env_id ? m->env_id
                              : e       ? e->env_id
                                        : NULL),
        .run_id = dup_or_null(m->run_id ? m->run_id
                              : e       ? e->run_id
                                        : NULL),
        .kind = dup_or_null(kind),
        .since = e ? e->since : 0,
        /* The mark on the VM tells a template even where the journal does not know it. */
        .why = judge(m->kind && text_starts(m->kind, "template") ? m->kind : kind, e),
    };
    item.remove = item.why == GC_STRAY || item.why == GC_DOOMED;
    if (item.remove && older_than > 0 &&
        (!item.since || (int64_t)time(NULL) - item.since < older_than)) {
        item.why = GC_YOUNG;
        item.remove = false;
    }
    out->list = xreallocarray(out->list, out->n + 1, sizeof *out->list);
    out->list[out->n++] = item;
}

bool lease_gc_list(const struct config *cfg, int64_t older_than, struct gc_list *out,
                   struct error *err)
{
    cleanup_journal struct journal j = {0};
    cleanup_records struct records seen = {0};
    struct deadline d = deadline_in(cfg->timeout_ms);
    cleanup_api struct api *api = api_new(cfg, err);

    *out = (struct gc_list){0};
    if (!api)
        return false;
    cleanup_free char *account = config_account_id(cfg);
    if (!journal_read(account, &j, err) || !api_ls(api, NULL, d, &seen, err))
        return false;
    for (size_t i = 0; i < seen.n; i++) {
        const struct record *r = &seen.list[i];
        const struct journal_entry *e = entry_of(&j, r->vm_name);
        cleanup_mark struct mark m = {0};
        if (r->comment)
            mark_parse(r->comment, &m);
        if (lease_vm_is_ours(r, e, true))
            add(out, r, &m, e, older_than);
    }
    return true;
}

bool lease_gc_remove(const struct config *cfg, struct gc_list *l, struct error *err)
{
    bool all = true;

    for (size_t i = 0; i < l->n; i++) {
        struct gc_item *item = &l->list[i];
        cleanup_error struct error why = {0};
        if (!item->remove)
            continue;
        /* Looked at again: meanwhile it may have become somebody's. */
        item->removed = lease_vm_delete(cfg, item->name, true, deadline_in(cfg->timeout_ms), &why);
        if (!item->removed && all)
            error_move(err, &why);
        all = all && item->removed;
    }
    return all;
}
