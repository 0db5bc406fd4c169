#include "cmd/target.h"

#include "base/cleanup.h"
#include "base/json.h"
#include "base/text.h"
#include "lib/api.h"
#include "lib/lease.h"
#include "lib/record.h"

struct link *target_link(const struct config *cfg, const char *vm, struct error *err)
{
    cleanup_record struct record r = {0};
    cleanup_json json_t *metadata = NULL;

    if (!text_is_vm_name(vm)) {
        error_set(err, ERR_INVALID,
                  "'%s' is no VM name: lower-case letters, digits and hyphens, 63 at most, not "
                  "ending in a "
                  "hyphen and digits only",
                  vm);
        return NULL;
    }
    cleanup_api struct api *api = api_new(cfg, err);
    if (!api)
        return NULL;
    if (!api_find(api, vm, deadline_in(60000), &r, err)) {
        error_prefix(err, "look for the VM %s", vm);
        return NULL;
    }
    if (record_is_stopped(&r)) {
        error_set(err, ERR_NOT_FOUND, "the VM %s is stopped; start it with: ssh exe.dev restart %s",
                  vm, vm);
        return NULL;
    }
    metadata = json_pack("{s:s, s:s, s:s, s:s?}", "vmName", r.vm_name, "sshDest", r.ssh_dest,
                         "sshHost", r.ssh_host, "sshLogin", r.ssh_user);
    return lease_link(cfg, vm, metadata, NULL, err);
}
