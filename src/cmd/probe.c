/* exedev probe: make a VM, enter it, delete it. */
#include <stdio.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/interrupt.h"
#include "lib/config.h"
#include "lib/lease.h"

CMD(probe);

static void progress(const char *step, const char *text, long long ms, bool ok, void *arg)
{
    cleanup_free char *took = text_duration_ms(ms);
    bool color = cmd_color(STDOUT_FILENO);

    (void)arg;
    printf("%s%-4s%s %-10s %8s  %s\n", color ? ok ? "\033[32m" : "\033[31m" : "",
           ok ? "ok" : "FAIL", color ? "\033[0m" : "", step, took, text);
    fflush(stdout);
}

int cmd_probe(int argc, char **argv)
{
    bool json = false;
    const struct cmd_option options[] = {
        {"json", 0, NULL, "print the result as JSON", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options]",
        .about = "Makes a VM with the settings at hand, enters it over SSH, runs a command and "
                 "deletes it, telling "
                 "each step and its time. The VM is real and billed for as long as it lives.",
        .examples = "  exedev probe\n  exedev probe --environment staging --json",
        .settings = true,
    };
    struct probe_result r;

    cmd_parse(argc, argv, options, &usage);
    cleanup_config struct config *cfg = cmd_config();
    if (!cfg)
        return EXIT_USAGE;
    interrupts_block();
    struct cancel *cancel = cancel_new();
    pthread_t interrupts = interrupts_start(cancel, "deleting the VM first");
    lease_probe(cfg, json ? NULL : progress, NULL, cancel, &r);
    int sig = interrupts_stop(interrupts);
    cancel_unref(cancel);
    bool ok = r.ok;
    if (json) {
        cleanup_json json_t *all = json_pack("{s:b, s:s, s:O, s:O}", "ok", ok, "summary", r.summary,
                                             "diagnostics", r.diagnostics, "metadata", r.metadata);
        cmd_print_json(all);
    } else if (ok) {
        printf("%s\n", r.summary);
    } else {
        cmd_fail(EXIT_FAILED, "%s", r.summary);
    }
    probe_result_free(&r);
    lease_shutdown(1000);
    return ok ? EXIT_OK : sig ? 128 + sig : EXIT_FAILED;
}
