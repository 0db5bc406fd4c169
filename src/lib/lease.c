/* acquire, resume, release, destroy, realize: straight down, each under its own deadline. */
#include "lib/lease.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/expiry.h"
#include "lib/lease_private.h"
#include "lib/name.h"
#include "lib/state.h"

#define RESUME_MS 50000 /* the host's 60 s hold its own retries too */
#define DRAIN_MS 10000  /* what release leaves running commands, when not told to cancel them */
#define MARK_MS 10000
#define REALIZE_FALLBACK "/tmp/paperclip-workspace"

void lease_result_free(struct lease_result *r)
{
    free(r->id);
    json_decref(r->metadata);
    free(r->expires_at);
    *r = (struct lease_result){0};
}

static void step(const struct lease_request *req, const char *name, const char *text, int64_t since,
                 bool ok)
{
    if (req && req->progress)
        req->progress(name, text, now_ms() - since, ok, req->progress_arg);
}

static json_t *text_or_null(const char *s)
{
    return s ? json_string(s) : json_null();
}

static json_t *lease_metadata(const struct config *cfg, const struct record *r,
                              const struct lease_address *a, const struct guest *g, bool resumed)
{
    json_t *m = json_object();

    json_object_set_new(m, "provider", json_string("exe-dev"));
    json_object_set_new(m, "vmName", json_string(r->vm_name));
    json_object_set_new(m, "sshDest", json_string(r->ssh_dest));
    json_object_set_new(m, "sshHost", json_string(a->host));
    json_object_set_new(m, "sshLogin", text_or_null(a->user));
    json_object_set_new(m, "httpsUrl", text_or_null(r->https_url));
    json_object_set_new(m, "region", text_or_null(r->region));
    json_object_set_new(m, "regionDisplay", text_or_null(r->region_display));
    json_object_set_new(m, "shellCommand", json_string(g->bash ? "bash" : "sh"));
    json_object_set_new(m, "remoteCwd", json_string(g->cwd));
    json_object_set_new(m, "timeoutMs", json_integer(cfg->timeout_ms));
    json_object_set_new(m, "reuseLease", json_boolean(cfg->reuse_lease));
    json_object_set_new(m, "resumedLease", json_boolean(resumed));
    if (g->setup)
        json_object_set(m, "setup", g->setup);
    return m;
}

/* ---- acquire ---- */

/* When the VM should end; 0: never. */
static bool wanted_expiry(const struct config *cfg, const char *requested, int64_t *at,
                          struct error *err)
{
    int64_t asked = 0;

    if (requested && !expiry_parse(requested, &asked, err))
        return error_prefix(err, "requestedExpiresAt");
    int64_t ours =
        cfg->expires_in_minutes > 0 ? (int64_t)time(NULL) + cfg->expires_in_minutes * 60 : 0;
    *at = asked && ours ? (asked < ours ? asked : ours) : asked ? asked : ours;
    return true;
}

/* Only a timer that the VM itself reports is promised. */
static char *arm(struct link *l, const char *name, int64_t at, struct deadline d,
                 struct cancel *cancel)
{
    cleanup_error struct error err = {0};
    int64_t armed = 0;

    if (!at)
        return NULL;
    if (expiry_arm(l, at, &armed, d, cancel, &err))
        return expiry_text(armed);
    log_warn("lease %s has no expiry: %s", name, err.msg);
    return NULL;
}

/* A fresh VM is there; make it a lease. */
static bool furnish(struct lease_vm *v, const struct lease_request *req, int64_t expires,
                    struct deadline d, struct cancel *cancel, struct lease_result *out,
                    struct error *err)
{
    cleanup_address struct lease_address a = {0};
    struct guest g = {0};
    int64_t since = now_ms();

    address_from_record(v->cfg, &v->record, &a);
    struct link *l = lease_connect_to(v->cfg, v->name, &a, true, err);
    bool ok = l && link_connect(l, d, cancel, err);
    step(req, "connect", ok ? "connected" : "no connection", since, ok);
    since = now_ms();
    ok = ok && guest_prepare(l, req->requested_cwd, &g, d, cancel, err);
    if (ok && v->unmarked)
        guest_write_mark(l, v, deadline_min(d, deadline_in(MARK_MS)), NULL);
    if (ok) {
        step(req, "workspace", g.cwd, since, true);
        since = now_ms();
        ok = guest_wait_setup(l, v->cfg, &g, d, cancel, err);
        const char *state = g.setup ? json_str(g.setup, "state") : NULL;
        step(req, "setup", state ? state : "nothing to wait for", since,
             ok && (!state || strcmp(state, "done") == 0));
        if (state && strcmp(state, "done") != 0)
            log_warn("the setup script of VM %s is: %s; its last lines: %s", v->name, state,
                     json_str(g.setup, "log") ? json_str(g.setup, "log") : "");
    }
    if (ok) {
        out->expires_at = arm(l, v->name, expires, d, cancel);
        out->metadata = lease_metadata(v->cfg, &v->record, &a, &g, false);
        out->id = xstrdup(v->name);
    }
    guest_clear(&g);
    link_unref(l);
    if (!ok && v->name && err->msg && !strstr(err->msg, v->name))
        error_prefix(err, "VM %s", v->name);
    return ok;
}

bool lease_acquire(const struct config *cfg, const struct lease_request *req, struct cancel *cancel,
                   struct lease_result *out, struct error *err)
{
    cleanup_vm struct lease_vm v = {0};
    struct deadline d = deadline_in(cfg->timeout_ms);
    int64_t since = now_ms(), expires = 0;

    *out = (struct lease_result){0};
    if (!wanted_expiry(cfg, req->requested_expires_at, &expires, err) ||
        !lease_vm_open(&v, cfg, "lease", err))
        return false;
    v.env_id = req->environment_id;
    v.run_id = req->run_id;
    lease_vm_sweep(v.api, v.account, deadline_min(d, deadline_in(SWEEP_MS)));
    bool ok = lease_vm_make(&v, req->name, d, err);
    step(req, "create", v.name ? v.name : "no VM", since, ok);
    if (!ok)
        return false;
    ok = furnish(&v, req, expires, d, cancel, out, err) && lease_move(v.name, LEASE_LIVE, err);
    if (ok)
        return true;
    lease_result_free(out);
    cleanup_error struct error undo = {0};
    since = now_ms();
    bool undone = lease_vm_undo(&v, &undo);
    step(req, "delete", undone ? "deleted" : undo.msg, since, undone);
    if (!undone)
        error_append(err, ". VM %s could not be deleted either (%s); the next call tries again",
                     v.name, undo.msg);
    return false;
}

void lease_published(const struct config *cfg, const char *id)
{
    cleanup_journal struct journal j = {0};
    cleanup_free char *account = config_account_id(cfg);
    cleanup_error struct error err = {0};

    journal_read(account, &j, NULL);
    for (size_t i = 0; i < j.n; i++) {
        if (strcmp(j.list[i].name, id) != 0)
            continue;
        struct journal_entry e = j.list[i];
        e.state = JOURNAL_LIVE;
        if (!journal_write(&e, &err))
            log_warn("the journal does not know that lease %s is in use: %s", id, err.msg);
        return;
    }
}

/* ---- resume ---- */

static void gone_for_good(struct lease_result *out, const char *id, const char *why)
{
    log_info("lease %s is gone: %s", id, why);
    out->id = NULL;
    out->metadata =
        json_pack("{s:b, s:s, s:s}", "expired", 1, "provider", "exe-dev", "reason", why);
}

/* The words the host looks for before it tries again. */
static bool passing_fault(struct error *err, const char *id)
{
    const char *word = NULL;

    switch (err->code) {
    case ERR_TIMEOUT:
        word = "timed out";
        break;
    case ERR_RATE_LIMIT:
        word = "rate limit";
        break;
    case ERR_NETWORK:
    case ERR_DOUBT:
    case ERR_PROTOCOL:
    case ERR_TOO_LARGE: /* an answer that is not the API's */
        word = "network";
        break;
    case ERR_UNAVAILABLE:
        word = "service unavailable";
        break;
    default:
        break;
    }
    if (word && !strstr(err->msg, word))
        return error_prefix(err, "resume lease %s (%s)", id, word);
    return error_prefix(err, "resume lease %s", id);
}

/* The VM's record, running; *gone says why there is none. */
static bool find_running(struct api *api, const char *id, struct deadline d, struct record *r,
                         bool *fresh, const char **gone, struct error *err)
{
    if (!api_find(api, id, d, r, err)) {
        *gone = err->code == ERR_NOT_FOUND ? "the VM is not there any more" : NULL;
        return false;
    }
    if (record_has_tag(r, MARK_TAG) == RECORD_TAG_NO) {
        cleanup_journal struct journal j = {0};
        journal_read(NULL, &j, NULL);
        bool known = false;
        for (size_t i = 0; i < j.n; i++)
            known = known || strcmp(j.list[i].name, id) == 0;
        if (!known) {
            *gone = "the VM of that name is not this provider's";
            return false;
        }
    }
    *fresh = record_is_stopped(r);
    if (!*fresh)
        return true;
    struct record restarted = {0};
    if (!api_restart(api, id, d, &restarted, err)) {
        *gone = err->code == ERR_NOT_FOUND ? "the VM is not there any more" : NULL;
        record_clear(&restarted);
        return false;
    }
    if (restarted.vm_name) {
        record_clear(r);
        *r = restarted;
    }
    return true;
}

static bool reconnect(const struct config *cfg, const char *id, const char *cwd,
                      const struct record *r, bool fresh, struct deadline d, struct cancel *cancel,
                      struct lease_result *out, const char **gone, struct error *err)
{
    cleanup_address struct lease_address a = {0};
    cleanup_error struct error why = {0};
    struct guest g = {0};
    int64_t armed = 0, expires = 0;
    bool expired = false;

    address_from_record(cfg, r, &a);
    struct link *l = lease_connect_to(cfg, id, &a, fresh, err);
    if (!l)
        return false;
    bool ok = link_connect(l, d, cancel, err);
    if (!ok &&
        (err->code == ERR_AUTH || err->code == ERR_UNREGISTERED || err->code == ERR_HOST_KEY))
        *gone = err->msg;
    if (ok && expiry_read(l, &armed, &expired, d, cancel, &why) && expired) {
        *gone = "its time is over (expiry mark on the VM)";
        ok = false;
    }
    /* Durable commands of an earlier worker belong to nobody now. */
    ok = ok && link_end_all(l, d, err) && guest_prepare(l, cwd, &g, d, cancel, err);
    if (ok) {
        wanted_expiry(cfg, NULL, &expires, NULL);
        out->expires_at = expires ? arm(l, id, expires, d, cancel)
                          : armed ? expiry_text(armed)
                                  : NULL;
        out->id = xstrdup(id);
        out->metadata = lease_metadata(cfg, r, &a, &g, true);
    }
    guest_clear(&g);
    link_unref(l);
    return ok;
}

bool lease_resume(const struct config *cfg, const char *id, const json_t *metadata,
                  struct cancel *cancel, struct lease_result *out, struct error *err)
{
    struct deadline d = deadline_in(cfg->timeout_ms < RESUME_MS ? cfg->timeout_ms : RESUME_MS);
    cleanup_record struct record r = {0};
    cleanup_error struct error own = {0};
    const char *gone = NULL;
    bool fresh = false;

    *out = (struct lease_result){0};
    if (!text_is_vm_name(id))
        return error_set(err, ERR_UNSAFE, "the lease id is no VM name");
    cleanup_api struct api *api = api_new(cfg, err);
    if (!api)
        return false;
    cleanup_free char *account = config_account_id(cfg);
    bool ok =
        find_running(api, id, d, &r, &fresh, &gone, &own) &&
        reconnect(cfg, id, json_str(metadata, "remoteCwd"), &r, fresh, d, cancel, out, &gone, &own);
    if (gone) {
        gone_for_good(out, id, gone);
        lease_hang_up(id);
        return true;
    }
    if (!ok) {
        lease_result_free(out);
        passing_fault(&own, id);
        error_move(err, &own);
        return false;
    }
    lease_move(id, LEASE_LIVE, NULL);
    struct journal_entry e = {
        .name = (char *)id, .account = account, .kind = (char *)"lease", .state = JOURNAL_LIVE};
    journal_write(&e, NULL);
    lease_vm_sweep(api, account, deadline_min(d, deadline_in(1000)));
    return true;
}

/* ---- release ---- */

static bool journal_state(const struct config *cfg, const char *id, enum journal_state state)
{
    cleanup_journal struct journal j = {0};
    cleanup_free char *account = config_account_id(cfg);
    struct journal_entry e = {
        .name = (char *)id, .account = account, .kind = (char *)"lease", .state = state};

    journal_read(account, &j, NULL);
    for (size_t i = 0; i < j.n; i++)
        if (strcmp(j.list[i].name, id) == 0)
            e = j.list[i];
    e.state = state;
    return journal_write(&e, NULL);
}

/* Every process of ours on the VM is ended, and the VM says so; or there is no VM, or none that
 * runs. */
static bool quieten(const struct config *cfg, const char *id, const json_t *metadata,
                    struct deadline d, enum receipt *receipt, struct error *err)
{
    cleanup_address struct lease_address a = {0};
    cleanup_error struct error why = {0};
    cleanup_record struct record r = {0};

    address_from_metadata(cfg, id, metadata, &a);
    struct link *l = lease_connect_to(cfg, id, &a, false, err);
    if (!l)
        return false;
    struct deadline first = deadline_in(deadline_left(d) / 2);
    bool ended = link_connect(l, first, NULL, &why) && link_end_all(l, first, &why);
    link_unref(l);
    if (ended) {
        *receipt = RECEIPT_STOPPED;
        return true;
    }
    cleanup_api struct api *api = api_new(cfg, err);
    if (!api)
        return false;
    cleanup_error struct error look = {0};
    if (!api_find(api, id, d, &r, &look)) {
        if (look.code == ERR_NOT_FOUND) {
            *receipt = RECEIPT_DESTROYED;
            return true;
        }
        error_move(err, &look);
        return error_prefix(
            err, "release lease %s: its VM could not be reached (%s), nor looked for", id, why.msg);
    }
    if (record_is_stopped(&r)) {
        *receipt = RECEIPT_STOPPED;
        return true;
    }
    error_move(err, &why);
    return error_prefix(err, "release lease %s: its processes are not confirmed ended", id);
}

bool lease_release(const struct config *cfg, const char *id, const json_t *metadata, bool keep,
                   bool cancel_active, enum receipt *receipt, struct error *err)
{
    struct deadline d = deadline_in(cfg->timeout_ms);
    int64_t patience = cfg->timeout_ms / 4 < DRAIN_MS ? cfg->timeout_ms / 4 : DRAIN_MS;

    *receipt = RECEIPT_NONE;
    if (!id || !*id)
        return true;
    if (!text_is_vm_name(id)) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, id, strlen(id), 80);
        return error_set(err, ERR_UNSAFE, "lease id '%s' is no VM name: nothing is deleted",
                         shown.data);
    }
    if (!lease_move(id, LEASE_CLOSING, err))
        return false;
    if (!lease_drain(id, cancel_active, deadline_in(patience), deadline_in(patience + 5000)))
        log_warn("lease %s is released while calls on it still run", id);
    if (keep) {
        bool ok = quieten(cfg, id, metadata, d, receipt, err);
        bool gone = *receipt == RECEIPT_DESTROYED;
        journal_state(cfg, id, gone ? JOURNAL_GONE : JOURNAL_RETAINED);
        lease_move(id, gone ? LEASE_GONE : LEASE_LIVE, NULL);
        return ok;
    }
    lease_hang_up(id); /* else the VM's end looks like a broken connection */
    if (!lease_vm_delete(cfg, id, false, d, err)) {
        lease_move(id, LEASE_DOUBTFUL, NULL);
        return false;
    }
    lease_move(id, LEASE_GONE, NULL);
    *receipt = RECEIPT_DESTROYED;
    return true;
}

bool lease_destroy(const struct config *cfg, const char *id, const json_t *metadata,
                   enum receipt *receipt, struct error *err)
{
    return lease_release(cfg, id, metadata, false, true, receipt, err);
}

/* ---- realize ---- */

char *lease_realize(const struct config *cfg, const char *id, const json_t *metadata,
                    const char *remote_path, const char *local_path, struct error *err)
{
    const char *known = json_str(metadata, "remoteCwd");
    const char *cwd = known && *known               ? known
                      : remote_path && *remote_path ? remote_path
                      : local_path && *local_path   ? local_path
                                                    : REALIZE_FALLBACK;

    if (!id || !*id)
        return xstrdup(cwd);
    struct link *l = lease_link(cfg, id, metadata, NULL, err);
    if (!l)
        return NULL;
    bool ok = guest_mkdir(l, cwd, deadline_in(cfg->timeout_ms), NULL, err);
    lease_link_done(l, NULL);
    return ok ? xstrdup(cwd) : NULL;
}
