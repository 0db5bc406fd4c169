/* probe: a VM made, entered and deleted, each step told. */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/lease_private.h"
#include "lib/redact.h"

#define PROBE_MS 95000 /* and LEASE_UNDO_MS: within the host's 120 s, and the promised 110 */

void probe_result_free(struct probe_result *r)
{
    free(r->summary);
    json_decref(r->diagnostics);
    json_decref(r->metadata);
    *r = (struct probe_result){0};
}

struct probe {
    lease_progress_fn *progress;
    void *arg;
    json_t *diagnostics;
};

static void told(struct probe *p, const char *step, const char *text, int64_t since, bool ok)
{
    int64_t ms = now_ms() - since;

    json_array_append_new(p->diagnostics, json_pack("{s:s, s:s, s:s, s:{s:I}}", "severity",
                                                    ok ? "info" : "error", "code", step, "message",
                                                    text, "details", "durationMs", (json_int_t)ms));
    if (p->progress)
        p->progress(step, text, ms, ok, p->arg);
}

static void tell_setup(struct probe *p, const struct guest *g, int64_t since)
{
    const char *state = g->setup ? json_str(g->setup, "state") : NULL;

    if (!state || strcmp(state, "done") == 0) {
        told(p, "setup",
             state ? "the setup script is done" : "node is there, or nothing to wait for", since,
             true);
        return;
    }
    cleanup_free char *text =
        xasprintf("the setup script is: %s. A lease comes all the same; its last lines: %s", state,
                  json_str(g->setup, "log") ? json_str(g->setup, "log") : "");
    json_t *d = json_pack("{s:s, s:s, s:s, s:{s:I}}", "severity", "warning", "code", "setup",
                          "message", text, "details", "durationMs", (json_int_t)(now_ms() - since));
    json_array_append_new(p->diagnostics, d);
    if (p->progress)
        p->progress("setup", text, now_ms() - since, false, p->arg);
}

static bool enter(struct probe *p, struct lease_vm *v, struct guest *g, struct deadline d,
                  struct cancel *cancel, struct error *err)
{
    cleanup_address struct lease_address a = {0};
    cleanup_buf struct buf out = {0};
    int64_t since = now_ms();

    address_from_record(v->cfg, &v->record, &a);
    struct link *l = lease_connect_to(v->cfg, v->name, &a, true, err);
    bool ok = l && link_connect(l, d, cancel, err);
    told(p, "connect", ok ? "connected over SSH" : err->msg, since, ok);
    since = now_ms();
    if (ok) {
        ok = guest_prepare(l, NULL, g, d, cancel, err) &&
             guest_run(l, (const char *[]){"uname", "-sm", NULL}, &out, d, cancel, err);
        cleanup_free char *text = ok ? xasprintf("a command ran in %s (%.*s)", g->cwd,
                                                 (int)(out.len ? out.len - 1 : 0), out.data)
                                     : NULL;
        told(p, "command", ok ? text : err->msg, since, ok);
    }
    since = now_ms();
    if (ok) {
        struct deadline some = deadline_min(d, deadline_in(30000));
        ok = guest_wait_setup(l, v->cfg, g, some, cancel, err);
        if (ok)
            tell_setup(p, g, since);
        else
            told(p, "setup", err->msg, since, false);
    }
    link_unref(l);
    return ok;
}

void lease_probe(const struct config *cfg, lease_progress_fn *progress, void *arg,
                 struct cancel *cancel, struct probe_result *out)
{
    struct probe p = {progress, arg, json_array()};
    cleanup_vm struct lease_vm v = {0};
    cleanup_error struct error err = {0}, undo = {0};
    struct deadline d = deadline_in(cfg->timeout_ms < PROBE_MS ? cfg->timeout_ms : PROBE_MS);
    struct guest g = {0};
    int64_t start = now_ms(), since = start;

    *out = (struct probe_result){0};
    bool ok = lease_vm_open(&v, cfg, "probe", &err);
    if (ok) {
        lease_vm_sweep(v.api, v.account, deadline_min(d, deadline_in(SWEEP_MS)));
        since = now_ms();
        ok = lease_vm_make(&v, NULL, d, &err);
    }
    cleanup_free char *made = ok ? xasprintf("VM %s is made", v.name) : NULL;
    told(&p, "create", ok ? made : err.msg, since, ok);
    if (v.created) {
        ok = ok && enter(&p, &v, &g, d, cancel, &err);
        since = now_ms();
        bool deleted = lease_vm_undo(&v, &undo);
        cleanup_free char *left =
            deleted ? NULL
                    : xasprintf("VM %s could not be deleted (%s). It is billed until it is gone: "
                                "the next call "
                                "tries again, or delete it with `ssh exe.dev rm %s`",
                                v.name, undo.msg, v.name);
        told(&p, "delete", deleted ? "the VM is deleted" : left, since, deleted);
        if (ok && !deleted)
            error_set(&err, undo.code, "%s", left);
        ok = ok && deleted;
    }
    out->ok = ok;
    out->diagnostics = p.diagnostics;
    redact_error(&err);
    cleanup_free char *took = text_duration_ms(now_ms() - start);
    out->summary = ok ? xasprintf("exe.dev works: a VM was made, entered and deleted in %s", took)
                      : xasprintf("exe.dev probe failed: %s", err.msg);
    out->metadata = json_pack("{s:s, s:I, s:b}", "provider", "exe-dev", "timeoutMs",
                              (json_int_t)cfg->timeout_ms, "reuseLease", cfg->reuse_lease);
    if (ok) {
        json_object_set_new(out->metadata, "vmName", json_string(v.name));
        json_object_set_new(out->metadata, "sshDest", json_string(v.record.ssh_dest));
        json_object_set_new(out->metadata, "remoteCwd", json_string(g.cwd));
        json_object_set_new(out->metadata, "shellCommand", json_string(g.bash ? "bash" : "sh"));
    } else {
        json_object_set_new(out->metadata, "error", json_string(err.msg));
    }
    guest_clear(&g);
}
