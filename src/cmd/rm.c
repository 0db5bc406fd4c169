/* exedev rm NAME...: delete VMs. */
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/api.h"
#include "lib/config.h"
#include "lib/lease.h"
#include "lib/name.h"
#include "lib/state.h"

CMD(rm);

static bool remove_one(struct api *api, const struct config *cfg, const char *name, bool force,
                       struct error *err)
{
    cleanup_record struct record r = {0};
    struct deadline d = deadline_in(120000);

    if (!text_is_vm_name(name))
        return error_set(err, ERR_INVALID, "'%s' is no VM name", name);
    if (!api_find(api, name, d, &r, err))
        return error_prefix(err, "look for %s", name);
    if (!force && !lease_owns(cfg, &r))
        return error_set(err, ERR_INVALID,
                         "%s was not made by exedev (it does not carry the tag " MARK_TAG
                         "); nothing was "
                         "deleted. Say --force if it is really meant",
                         name);
    if (!api_rm(api, name, d, err))
        return error_prefix(err, "delete %s", name);
    cleanup_free char *account = config_account_id(cfg);
    journal_write(&(struct journal_entry){.name = (char *)name,
                                          .account = account,
                                          .kind = (char *)"lease",
                                          .state = JOURNAL_GONE},
                  NULL);
    return true;
}

int cmd_rm(int argc, char **argv)
{
    bool force = false, quiet = false;
    const struct cmd_option options[] = {
        {"force", 'f', NULL, "delete VMs that exedev did not make, too", OPT_FLAG, &force},
        {"quiet", 'q', NULL, "say nothing on success", OPT_FLAG, &quiet},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] NAME...",
        .about =
            "Deletes VMs and makes sure that they are gone. A VM that exedev did not make is left "
            "alone unless --force is given.",
        .examples = "  exedev rm my-vm\n  exedev ls -q --ours | xargs exedev rm",
        .settings = true,
        .min = 1,
        .max = -1,
    };
    int i = cmd_parse(argc, argv, options, &usage), status = EXIT_OK;
    cleanup_error struct error err = {0};
    cleanup_config struct config *cfg = cmd_config();

    if (!cfg)
        return EXIT_USAGE;
    cleanup_api struct api *api = api_new(cfg, &err);
    if (!api)
        return cmd_fail_err(&err);
    for (; i < argc; i++) {
        cleanup_error struct error why = {0};
        if (!remove_one(api, cfg, argv[i], force, &why))
            status = cmd_fail_err(&why);
        else if (!quiet)
            printf("%s is deleted\n", argv[i]);
    }
    return status;
}
