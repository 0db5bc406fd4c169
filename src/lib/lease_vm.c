/* VMs made and deleted so that none is ever lost: name, journal, create, adopt, undo, sweep. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/lease_private.h"
#include "lib/name.h"
#include "lib/state.h"

#define NAMES_TRIED 4
#define SWEEP_AT_ONCE 8
#define COPY "-copy"
#define MARK_MS 5000

bool lease_vm_open(struct lease_vm *v, const struct config *cfg, const char *kind,
                   struct error *err)
{
    *v = (struct lease_vm){.cfg = cfg, .kind = kind};
    v->api = api_new(cfg, err);
    if (!v->api)
        return false;
    v->account = config_account_id(cfg);
    return true;
}

void lease_vm_close(struct lease_vm *v)
{
    if (v->api)
        api_free(v->api);
    record_clear(&v->record);
    free(v->account);
    free(v->name);
}

static bool journal(const char *account, const char *name, const char *kind, const char *env_id,
                    const char *run_id, enum journal_state state, struct error *err)
{
    struct journal_entry e = {
        .name = (char *)name,
        .account = (char *)account,
        .kind = (char *)kind,
        .env_id = (char *)env_id,
        .run_id = (char *)run_id,
        .state = state,
    };
    return journal_write(&e, err);
}

static bool is_copy(const struct lease_vm *v)
{
    return v->source || v->cfg->source_vm;
}

/* A copy may carry no tag; the journal remembers that its name was free before. */
static char *kind_of(const struct lease_vm *v)
{
    return xasprintf("%s%s", v->kind, is_copy(v) ? COPY : "");
}

bool lease_vm_journal(const struct lease_vm *v, int state, struct error *err)
{
    cleanup_free char *kind = kind_of(v);
    return journal(v->account, v->name, kind, v->env_id, v->run_id, (enum journal_state)state, err);
}

static const struct journal_entry *entry_of(const struct journal *j, const char *name)
{
    for (size_t i = 0; i < j->n; i++)
        if (strcmp(j->list[i].name, name) == 0)
            return &j->list[i];
    return NULL;
}

static bool same(const char *a, const char *b)
{
    return strcmp(a ? a : "", b ? b : "") == 0;
}

bool lease_vm_is_ours(const struct record *seen, const struct journal_entry *known, bool needs_mark)
{
    cleanup_mark struct mark m = {0};

    enum record_tag tag = record_has_tag(seen, MARK_TAG);
    if (tag == RECORD_TAG_YES || (seen->comment && mark_parse(seen->comment, &m)))
        return true;
    if (tag == RECORD_TAG_UNTOLD)
        return known || !needs_mark;
    /* Tagged, and not by us: somebody made another VM of this name. Only a copy can be ours
     * without a tag, for the token may not allow one. */
    return known && text_ends(known->kind, COPY);
}

bool lease_owns(const struct config *cfg, const struct record *seen)
{
    cleanup_journal struct journal j = {0};
    cleanup_free char *account = config_account_id(cfg);

    journal_read(account, &j, NULL);
    return lease_vm_is_ours(seen, entry_of(&j, seen->vm_name), true);
}

/* ---- names ---- */

enum name_use { NAME_FREE, NAME_RETRY, NAME_OTHER };

/* What the journal knows of the name: nothing, an attempt of ours for the same run that nobody
 * holds, or something that must be left alone. */
static enum name_use name_use(const struct lease_vm *v, const char *name, struct error *err)
{
    cleanup_journal struct journal j = {0};

    if (lease_is_held(name))
        return NAME_OTHER;
    if (!journal_read(v->account, &j, err))
        return NAME_FREE; /* err says so */
    const struct journal_entry *e = entry_of(&j, name);
    if (!e)
        return NAME_FREE;
    bool attempt = e->state == JOURNAL_INTENT || e->state == JOURNAL_DOOMED;
    bool held = e->owner_alive && !e->owner_is_us;
    cleanup_free char *kind = kind_of(v);
    if (attempt && !held && v->run_id && same(e->env_id, v->env_id) && same(e->run_id, v->run_id) &&
        same(e->kind, kind))
        return NAME_RETRY;
    return NAME_OTHER;
}

static char *next_name(const struct lease_vm *v, int attempt)
{
    const char *prefix = v->cfg->name_prefix;

    if (strcmp(v->kind, "probe") == 0)
        return name_probe(prefix);
    if (strcmp(v->kind, "lease") != 0)
        return name_random(prefix, v->kind);
    return attempt == 0 ? name_lease(prefix, v->env_id, v->run_id)
                        : name_lease_other(prefix, v->env_id);
}

/* Takes the name: in the table, and in the journal before anything can exist. One lock over
 * looking and writing, so that two workers never both take it. */
static enum name_use take_name(struct lease_vm *v, struct error *err)
{
    cleanup_error struct error why = {0};
    cleanup_fd int held = state_lock("names", 5000, err);

    if (held < 0)
        return NAME_OTHER;
    enum name_use use = name_use(v, v->name, &why);
    if (why.msg) {
        error_move(err, &why);
        return NAME_OTHER;
    }
    if (use == NAME_OTHER)
        return use;
    if (!lease_enter(v->name, LEASE_CREATING, NULL))
        return NAME_OTHER;
    if (!lease_vm_journal(v, JOURNAL_INTENT, err)) {
        error_prefix(err, "the journal must know of VM %s before it is made", v->name);
        lease_move(v->name, LEASE_GONE, NULL);
        return NAME_OTHER;
    }
    return use;
}

/* ---- making ---- */

/* The name is there already: our own earlier attempt for the same run, or a stranger's. */
static bool adopt(struct lease_vm *v, struct deadline d, struct error *err)
{
    cleanup_mark struct mark m = {0};

    if (!api_find(v->api, v->name, d, &v->record, err))
        return false;
    const char *comment = v->record.comment;
    bool marked = comment && mark_parse(comment, &m);
    bool ours = record_has_tag(&v->record, MARK_TAG) != RECORD_TAG_NO &&
                (!marked || (same(m.kind, v->kind) && mark_matches(&m, v->env_id, v->run_id)));
    if (!ours) {
        record_clear(&v->record);
        return error_set(err, ERR_EXISTS, "VM %s exists and is not ours", v->name);
    }
    v->adopted = true;
    log_info("VM %s of an earlier attempt for the same run is used again", v->name);
    return true;
}

/* `cp` takes neither tag nor comment; they are set by commands that a token may lack. */
static void mark_copy(struct lease_vm *v, const char *comment, struct deadline whole)
{
    cleanup_error struct error err = {0};
    int64_t left = deadline_left(whole) / 4;
    /* The lease does not wait for its mark: the journal has it already. */
    struct deadline d = deadline_in(left < MARK_MS ? left : MARK_MS);
    bool tagged = api_tag(v->api, v->name, MARK_TAG, d, &err);

    if (!tagged)
        log_info("VM %s carries no tag: %s", v->name, err.msg);
    error_clear(&err);
    bool told = api_comment(v->api, v->name, comment, d, &err);
    if (!told)
        log_info("VM %s carries no comment: %s", v->name, err.msg);
    v->unmarked = !tagged && !told;
}

/* Of what api_create_vm says only this leaves a VM possible. */
static bool may_exist(enum error_code code)
{
    return code == ERR_DOUBT || code == ERR_CANCELLED || code == ERR_UNSAFE;
}

static bool make_one(struct lease_vm *v, enum name_use use, struct deadline d, struct error *err)
{
    cleanup_free char *comment = mark_comment(v->cfg->comment, v->kind, v->env_id, v->run_id);
    struct api_create what = {
        .name = v->name, .comment = comment, .tag = MARK_TAG, .source = v->source};

    if (use == NAME_RETRY) {
        cleanup_error struct error why = {0};
        if (adopt(v, d, &why))
            return true;
        if (why.code != ERR_NOT_FOUND) {
            error_move(err, &why);
            return false;
        }
    }
    if (!api_create_vm(v->api, v->cfg, &what, d, &v->record, err))
        return false;
    if (is_copy(v))
        mark_copy(v, comment, d);
    return true;
}

/* A copy cannot carry our mark from its first moment, as `new` can: that a VM of this name is ours
 * is only sure when there was none before. */
static enum name_use name_for_copy(struct lease_vm *v, struct deadline d, struct error *err)
{
    cleanup_record struct record seen = {0};
    cleanup_error struct error why = {0};
    enum name_use use = name_use(v, v->name, err);

    if (use != NAME_FREE || (err && err->msg))
        return use;
    if (api_find(v->api, v->name, d, &seen, &why))
        return NAME_OTHER;
    if (why.code != ERR_NOT_FOUND)
        error_move(err, &why);
    return NAME_FREE;
}

bool lease_vm_make(struct lease_vm *v, const char *wanted, struct deadline d, struct error *err)
{
    for (int attempt = 0; attempt < NAMES_TRIED; attempt++) {
        error_clear(err);
        free(v->name);
        v->name = wanted ? xstrdup(wanted) : next_name(v, attempt);
        enum name_use use = is_copy(v) ? name_for_copy(v, d, err) : NAME_FREE;
        if (err->msg) {
            free(steal_ptr(v->name));
            return false;
        }
        if (use != NAME_OTHER)
            use = take_name(v, err);
        if (use == NAME_OTHER) {
            if (err->msg) {
                free(steal_ptr(v->name));
                return false;
            }
            error_set(err, ERR_EXISTS, "the name %s is in use by another lease", v->name);
            if (wanted)
                return false;
            continue;
        }
        if (make_one(v, use, d, err)) {
            v->created = true;
            return true;
        }
        if (err->code == ERR_EXISTS && !v->created) {
            /* A stranger's: nothing of ours to remember. */
            lease_vm_journal(v, JOURNAL_GONE, NULL);
            lease_move(v->name, LEASE_GONE, NULL);
            if (wanted)
                return false;
            continue;
        }
        /* An earlier attempt of the same run can still come to something. */
        if (use != NAME_RETRY && !may_exist(err->code)) {
            lease_vm_journal(v, JOURNAL_GONE, NULL);
            lease_move(v->name, LEASE_GONE, NULL);
            return false;
        }
        cleanup_error struct error undo = {0};
        if (!lease_vm_undo(v, &undo))
            log_warn(
                "VM %s may exist: %s. It stays in the journal and is deleted by the next call.",
                v->name, undo.msg);
        return false;
    }
    return error_prefix(err, "no free name found in %d attempts", NAMES_TRIED);
}

/* ---- deleting ---- */

bool lease_vm_undo(struct lease_vm *v, struct error *err)
{
    cleanup_record struct record seen = {0};
    cleanup_error struct error why = {0};
    struct deadline d = deadline_in(LEASE_UNDO_MS);

    if (!v->name)
        return true;
    lease_move(v->name, LEASE_CLOSING, NULL);
    lease_vm_journal(v, JOURNAL_DOOMED, NULL);
    lease_hang_up(v->name);
    bool ok = true, foreign = false;
    if (!v->created) { /* nobody has affirmed that it is there, or whose it is */
        ok = api_find(v->api, v->name, d, &seen, &why);
        foreign = ok && record_has_tag(&seen, MARK_TAG) == RECORD_TAG_NO && !is_copy(v);
        if (!ok && why.code == ERR_NOT_FOUND) {
            foreign = true;
            error_clear(&why);
        }
    }
    if (!foreign && ok)
        ok = api_rm(v->api, v->name, d, &why);
    if (ok || foreign) {
        lease_vm_journal(v, JOURNAL_GONE, NULL);
        lease_move(v->name, LEASE_GONE, NULL);
        return true;
    }
    lease_move(v->name, LEASE_DOUBTFUL, NULL);
    error_move(err, &why);
    return false;
}

bool lease_vm_delete(const struct config *cfg, const char *id, bool needs_mark, struct deadline d,
                     struct error *err)
{
    cleanup_journal struct journal j = {0};
    cleanup_record struct record seen = {0};
    cleanup_error struct error why = {0};
    cleanup_api struct api *api = api_new(cfg, err);

    if (!api)
        return false;
    cleanup_free char *account = config_account_id(cfg);
    journal_read(account, &j, NULL);
    const struct journal_entry *e = entry_of(&j, id);
    const char *kind = e ? e->kind : "lease", *env = e ? e->env_id : NULL,
               *run = e ? e->run_id : NULL;

    bool there = api_find(api, id, d, &seen, &why);
    if (!there && why.code == ERR_NOT_FOUND) {
        journal(account, id, kind, env, run, JOURNAL_GONE, NULL);
        return true;
    }
    if (there && !lease_vm_is_ours(&seen, e, needs_mark))
        return error_set(err, ERR_UNSAFE,
                         "VM %s does not carry the tag '%s': it is not this provider's and stays. "
                         "Delete it by hand with `ssh exe.dev rm %s` if it should go",
                         id, MARK_TAG, id);
    /* An ls that fails says nothing of the mark; the host vouches for its lease, and rm verifies
     * itself. */
    if (!there && needs_mark) {
        error_move(err, &why);
        return false;
    }
    journal(account, id, kind, env, run, JOURNAL_DOOMED, NULL);
    if (!there && (why.code == ERR_AUTH || why.code == ERR_CANCELLED)) {
        error_move(err, &why); /* rm would say the same; the next call that may takes it up */
        return error_prefix(err, "delete VM %s", id);
    }
    if (!api_rm(api, id, d, err))
        return error_prefix(err, "delete VM %s", id);
    journal(account, id, kind, env, run, JOURNAL_GONE, NULL);
    return true;
}

/* ---- the journal worked off ---- */

static bool left_over(const struct journal_entry *e)
{
    if (e->owner_alive && !e->owner_is_us)
        return false;
    if (e->state == JOURNAL_INTENT)
        return !e->owner_alive;
    return e->state == JOURNAL_DOOMED && !(e->owner_is_us && lease_is_held(e->name));
}

static void sweep_one(struct api *api, const struct journal_entry *e, struct deadline d)
{
    cleanup_fd int claim = journal_claim(e->account, e->name, NULL);
    cleanup_record struct record seen = {0};
    cleanup_error struct error err = {0};

    if (claim < 0)
        return;
    bool gone = false;
    if (!api_find(api, e->name, d, &seen, &err)) {
        gone = err.code == ERR_NOT_FOUND;
    } else if (!lease_vm_is_ours(&seen, e, true)) {
        gone = true; /* ours is: the name is another's by now */
    } else {
        gone = api_rm(api, e->name, d, &err);
        if (gone)
            log_info("VM %s, left over from an earlier call, is deleted", e->name);
    }
    if (gone) {
        journal(e->account, e->name, e->kind, e->env_id, e->run_id, JOURNAL_GONE, NULL);
        lease_move(e->name, LEASE_GONE, NULL);
    } else {
        log_warn("VM %s is left over and could not be deleted yet: %s", e->name, err.msg);
    }
}

void lease_vm_sweep(struct api *api, const char *account, struct deadline d)
{
    cleanup_journal struct journal j = {0};
    int done = 0;

    if (!journal_read(account, &j, NULL))
        return;
    for (size_t i = 0; i < j.n && done < SWEEP_AT_ONCE && !deadline_passed(d); i++) {
        if (!left_over(&j.list[i]))
            continue;
        sweep_one(api, &j.list[i], d);
        done++;
    }
}
