#include "lib/template.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/expiry.h"
#include "lib/lease_private.h"
#include "lib/name.h"
#include "lib/state.h"

#define SYNC_MS 30000

void setup_session_clear(struct setup_session *s)
{
    free(s->id);
    free(s->user);
    free(s->host);
    free(s->command);
    free(s->expires_at);
    json_decref(s->metadata);
    *s = (struct setup_session){0};
}

void template_list_clear(struct template_list *l)
{
    for (size_t i = 0; i < l->n; i++) {
        free(l->list[i].name);
        free(l->list[i].environment_id);
        free(l->list[i].label);
    }
    free(l->list);
    *l = (struct template_list){0};
}

/* ---- setup sessions ---- */

/* The host redacts names and addresses of what it stores: a session is described from the API's
 * record. */
static void describe(const struct config *cfg, const struct record *r, struct setup_session *out)
{
    cleanup_address struct lease_address a = {0};
    cleanup_buf struct buf line = {0};

    address_from_record(cfg, r, &a);
    out->id = xstrdup(r->vm_name);
    out->host = xstrdup(a.host);
    out->user = a.user ? xstrdup(a.user) : NULL;
    out->port = (int)cfg->ssh_port;
    buf_puts(&line, "ssh ");
    if (out->port != 22)
        buf_printf(&line, "-p %d ", out->port);
    cleanup_free char *dest = a.user ? xasprintf("%s@%s", a.user, a.host) : xstrdup(a.host);
    shell_quote(&line, dest);
    /* Quotes only where they are needed: it is read by a person. */
    if (line.data[line.len - 1] == '\'' &&
        strspn(dest, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                     "0123456789.-_@+:") == strlen(dest)) {
        line.len -= strlen(dest) + 2;
        buf_puts(&line, dest);
    }
    out->command = buf_steal(&line);
    out->metadata = json_pack("{s:s, s:s}", "provider", "exe-dev", "vmName", r->vm_name);
}

bool template_setup_start(const struct config *cfg, const struct setup_request *req,
                          struct cancel *cancel, struct setup_session *out, struct error *err)
{
    cleanup_vm struct lease_vm v = {0};
    cleanup_address struct lease_address a = {0};
    struct deadline d = deadline_in(cfg->timeout_ms);
    int64_t at = 0, armed = 0;

    *out = (struct setup_session){0};
    if (req->source && !text_is_vm_name(req->source))
        return error_set(err, ERR_UNSAFE, "the template reference is no VM name");
    if (req->expires_at && !expiry_parse(req->expires_at, &at, err))
        return error_prefix(err, "expiresAt");
    if (!lease_vm_open(&v, cfg, "setup", err))
        return false;
    lease_vm_sweep(v.api, v.account, deadline_min(d, deadline_in(SWEEP_MS)));
    v.env_id = req->environment_id;
    v.run_id = req->session_id;
    v.source = req->source;
    if (!lease_vm_make(&v, NULL, d, err))
        return false;
    address_from_record(cfg, &v.record, &a);
    struct link *l = lease_connect_to(cfg, v.name, &a, true, err);
    bool ok = l && link_connect(l, d, cancel, err);
    if (ok) {
        cleanup_error struct error why = {0};
        describe(cfg, &v.record, out);
        if (at && expiry_arm(l, at, &armed, d, cancel, &why))
            out->expires_at = expiry_text(armed);
        else if (at)
            log_warn("setup VM %s has no expiry of its own: %s", v.name, why.msg);
        lease_vm_journal(&v, JOURNAL_LIVE, NULL);
        lease_move(v.name, LEASE_LIVE, NULL);
    }
    link_unref(l);
    if (ok)
        return true;
    cleanup_error struct error undo = {0};
    error_prefix(err, "setup VM %s", v.name);
    if (!lease_vm_undo(&v, &undo))
        error_append(err, ". It could not be deleted either (%s); the next call tries again",
                     undo.msg);
    return false;
}

bool template_setup_get(const struct config *cfg, const char *id, struct setup_session *out,
                        struct error *err)
{
    cleanup_record struct record r = {0};
    cleanup_error struct error why = {0};
    cleanup_api struct api *api = api_new(cfg, err);

    *out = (struct setup_session){0};
    if (!api)
        return false;
    if (!id || !text_is_vm_name(id))
        return true;
    if (!api_find(api, id, deadline_in(cfg->timeout_ms), &r, &why)) {
        if (why.code == ERR_NOT_FOUND)
            return true;
        error_move(err, &why);
        return error_prefix(err, "look for setup VM %s", id);
    }
    if (record_is_stopped(&r)) /* its timer has powered it off */
        return true;
    describe(cfg, &r, out);
    return true;
}

/* What the mark, or else the journal, says the VM is; owned, NULL: neither does. */
static char *kind_of_vm(const struct record *r, const struct journal *j)
{
    cleanup_mark struct mark m = {0};

    if (r->comment && mark_parse(r->comment, &m) && m.kind)
        return xstrdup(m.kind);
    for (size_t i = 0; i < j->n; i++)
        if (strcmp(j->list[i].name, r->vm_name) == 0)
            return xstrdup(j->list[i].kind);
    return NULL;
}

static bool find(const struct config *cfg, const char *id, struct record *r, char **kind,
                 bool *missing, struct error *err)
{
    cleanup_journal struct journal j = {0};
    cleanup_error struct error why = {0};
    cleanup_api struct api *api = api_new(cfg, err);

    *kind = NULL;
    *missing = false;
    if (!api)
        return false;
    if (!api_find(api, id, deadline_in(cfg->timeout_ms / 2), r, &why)) {
        *missing = why.code == ERR_NOT_FOUND;
        error_move(err, &why);
        return error_prefix(err, "look for VM %s", id);
    }
    cleanup_free char *account = config_account_id(cfg);
    journal_read(account, &j, NULL);
    *kind = kind_of_vm(r, &j);
    return true;
}

bool template_setup_cancel(const struct config *cfg, const char *id, bool *missing,
                           struct error *err)
{
    cleanup_record struct record r = {0};
    cleanup_free char *kind = NULL;

    *missing = true;
    if (!id || !text_is_vm_name(id))
        return true;
    if (!find(cfg, id, &r, &kind, missing, err)) {
        if (*missing)
            error_clear(err);
        return *missing;
    }
    if (kind && text_starts(kind, "template"))
        return error_set(err, ERR_UNSAFE, "VM %s is a template, not a setup session: it stays", id);
    lease_move(id, LEASE_CLOSING, NULL);
    lease_hang_up(id); /* else the VM's end looks like a broken connection */
    bool ok = lease_vm_delete(cfg, id, false, deadline_in(cfg->timeout_ms), err);
    lease_move(id, ok ? LEASE_GONE : LEASE_DOUBTFUL, NULL);
    return ok;
}

/* ---- capture ---- */

/* What is on its way to the disk gets there. (A timer is a process: the copy has none.) */
static bool sync_disk(const struct config *cfg, const char *id, struct deadline d,
                      struct cancel *cancel, struct error *err)
{
    cleanup_record struct record r = {0};
    cleanup_address struct lease_address a = {0};
    cleanup_api struct api *api = api_new(cfg, err);

    if (!api || !api_find(api, id, d, &r, err))
        return false;
    address_from_record(cfg, &r, &a);
    struct link *l = lease_connect_to(cfg, id, &a, false, err);
    bool ok = l && link_connect(l, d, cancel, err) &&
              guest_run(l, (const char *[]){"sync", NULL}, NULL,
                        deadline_min(d, deadline_in(SYNC_MS)), cancel, err);
    link_unref(l);
    return ok;
}

bool template_capture(const struct config *cfg, const char *id, const char *environment_id,
                      const char *label, int64_t timeout_ms, struct cancel *cancel, char **ref,
                      struct error *err)
{
    cleanup_vm struct lease_vm v = {0};
    struct deadline d = deadline_in(timeout_ms > 0 ? timeout_ms : cfg->timeout_ms);

    *ref = NULL;
    if (!id || !text_is_vm_name(id))
        return error_set(err, ERR_UNSAFE, "there is no setup VM to capture");
    if (!sync_disk(cfg, id, d, cancel, err))
        return error_prefix(err, "capture VM %s", id);
    bool ok = lease_vm_open(&v, cfg, "template", err);
    if (ok) {
        lease_vm_sweep(v.api, v.account, deadline_min(d, deadline_in(SWEEP_MS)));
        v.env_id = environment_id;
        v.run_id = label;
        v.source = id;
        ok = lease_vm_make(&v, NULL, d, err);
    }
    if (!ok)
        return error_prefix(err, "capture VM %s", id);
    /* It belongs to the environment from now on; a crash before this deletes it. */
    lease_vm_journal(&v, JOURNAL_RETAINED, NULL);
    lease_move(v.name, LEASE_LIVE, NULL);
    lease_move(v.name, LEASE_GONE, NULL);
    *ref = xstrdup(v.name);
    return true;
}

bool template_delete(const struct config *cfg, const char *ref, bool *missing, struct error *err)
{
    cleanup_record struct record r = {0};
    cleanup_free char *kind = NULL;

    *missing = false;
    if (!text_is_vm_name(ref)) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, ref, strlen(ref), 80);
        return error_set(err, ERR_UNSAFE,
                         "template reference '%s' is no VM name: nothing is deleted",
                         shown.data ? shown.data : "");
    }
    if (!find(cfg, ref, &r, &kind, missing, err)) {
        if (*missing)
            error_clear(err);
        return *missing;
    }
    if (!kind || !text_starts(kind, "template"))
        return error_set(
            err, ERR_UNSAFE,
            "VM %s is not marked as a template of this provider: it stays. Delete it by hand with "
            "`ssh exe.dev rm %s` if it should go",
            ref, ref);
    return lease_vm_delete(cfg, ref, true, deadline_in(cfg->timeout_ms), err);
}

bool template_ls(const struct config *cfg, struct template_list *out, struct error *err)
{
    struct gc_list all = {0};

    *out = (struct template_list){0};
    if (!lease_gc_list(cfg, 0, &all, err))
        return false;
    for (size_t i = 0; i < all.n; i++) {
        struct gc_item *g = &all.list[i];
        if (g->why != GC_TEMPLATE)
            continue;
        out->list = xreallocarray(out->list, out->n + 1, sizeof *out->list);
        out->list[out->n++] = (struct template_item){steal_ptr(g->name), steal_ptr(g->env_id),
                                                     steal_ptr(g->run_id), g->since};
    }
    gc_list_clear(&all);
    return true;
}
