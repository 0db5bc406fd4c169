/* exedev template start|capture|ls|rm: what Paperclip's interactive setup does, by hand. */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/interrupt.h"
#include "lib/config.h"
#include "lib/expiry.h"
#include "lib/lease.h"
#include "lib/template.h"
#include "lib/token.h"

CMD(template);

/* What a mark (lib/name.h) keeps of an id. */
#define LABEL_BYTES "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-"

static pthread_t stoppable(struct cancel *cancel)
{
    interrupts_block();
    return interrupts_start(cancel, "cleaning up first, so that no VM is left behind");
}

static int start(const struct config *cfg, const char *from, const char *expires, bool json)
{
    struct setup_request req = {.source = from};
    struct setup_session s;
    cleanup_error struct error err = {0};
    cleanup_free char *at = NULL;
    int64_t seconds;

    if (expires) {
        if (!token_duration(expires, &seconds, &err))
            return cmd_fail_err(&err);
        at = expiry_text((int64_t)time(NULL) + seconds);
        req.expires_at = at;
    }
    struct cancel *cancel = cancel_new();
    pthread_t interrupts = stoppable(cancel);
    bool ok = template_setup_start(cfg, &req, cancel, &s, &err);
    int sig = interrupts_stop(interrupts);
    cancel_unref(cancel);
    if (!ok)
        return sig ? cmd_fail(128 + sig, "%s", err.msg) : cmd_fail_err(&err);
    if (json) {
        cleanup_json json_t *j =
            json_pack("{s:s, s:s, s:s, s:i, s:s*, s:s*}", "name", s.id, "command", s.command,
                      "host", s.host, "port", s.port, "user", s.user, "expiresAt", s.expires_at);
        cmd_print_json(j);
    } else {
        printf("%s is ready. Enter it and set it up:\n\n    %s\n\nThen keep it as a template, or "
               "drop it:\n\n"
               "    exedev template capture %s\n    exedev rm %s\n",
               s.id, s.command, s.id, s.id);
        if (s.expires_at)
            printf("\nIt powers itself off at %s.\n", s.expires_at);
        else if (expires)
            fprintf(stderr,
                    "exedev template: the VM took no expiry timer: it lives until it is deleted\n");
    }
    setup_session_clear(&s);
    return EXIT_OK;
}

static int capture(const struct config *cfg, const char *vm, const char *label, bool keep,
                   bool json)
{
    cleanup_error struct error err = {0};
    cleanup_free char *ref = NULL;
    bool missing;

    if (label && (!*label || label[strspn(label, LABEL_BYTES)]))
        return cmd_fail(EXIT_USAGE, "--label takes letters, digits, . _ and -, not '%s'", label);
    struct cancel *cancel = cancel_new();
    pthread_t interrupts = stoppable(cancel);
    bool ok = template_capture(cfg, vm, NULL, label, 0, cancel, &ref, &err);
    int sig = interrupts_stop(interrupts);
    cancel_unref(cancel);
    if (!ok)
        return sig ? cmd_fail(128 + sig, "%s", err.msg) : cmd_fail_err(&err);
    if (json) {
        cleanup_json json_t *j = json_pack("{s:s}", "template", ref);
        cmd_print_json(j);
    } else {
        printf("%s is the template. Use it with --source-vm %s.\n", ref, ref);
    }
    if (!keep && !template_setup_cancel(cfg, vm, &missing, &err))
        return cmd_fail_err(&err);
    return EXIT_OK;
}

static int list(const struct config *cfg, bool json)
{
    cleanup_error struct error err = {0};
    cleanup_json json_t *all = json_array();
    struct template_list l;

    if (!template_ls(cfg, &l, &err))
        return cmd_fail_err(&err);
    for (size_t i = 0; i < l.n; i++) {
        const struct template_item *t = &l.list[i];
        cleanup_free char *age =
            t->since ? text_duration_ms(((long long)time(NULL) - t->since) * 1000) : NULL;
        if (json)
            json_array_append_new(all,
                                  json_pack("{s:s, s:s*, s:s*}", "name", t->name, "environmentId",
                                            t->environment_id, "label", t->label));
        else
            printf("%-40s %-14s %s\n", t->name, age ? age : "", t->label ? t->label : "");
    }
    if (json)
        cmd_print_json(all);
    template_list_clear(&l);
    return EXIT_OK;
}

static int rm(const struct config *cfg, char **names)
{
    int status = EXIT_OK;

    for (; *names; names++) {
        cleanup_error struct error err = {0};
        bool missing;
        if (!template_delete(cfg, *names, &missing, &err))
            status = cmd_fail_err(&err);
        else
            printf("%s %s\n", *names, missing ? "was gone already" : "is deleted");
    }
    return status;
}

int cmd_template(int argc, char **argv)
{
    bool json = false, keep = false;
    const char *from = NULL, *expires = NULL, *label = NULL;
    const struct cmd_option options[] = {
        {"from", 0, "TEMPLATE", "start: copy this VM instead of a fresh one", OPT_STRING, &from},
        {"expires", 0, "TIME", "start: the VM powers itself off after 2h, 90m", OPT_STRING,
         &expires},
        {"label", 0, "TEXT", "capture: a word to know it by", OPT_STRING, &label},
        {"keep", 0, NULL, "capture: do not delete the VM it was made from", OPT_FLAG, &keep},
        {"json", 0, NULL, "start, capture, ls: print the result as JSON", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options] start | capture VM | ls | rm TEMPLATE...",
        .about = "Templates are VMs that others are copied from (the setting sourceVm). `start` "
                 "makes a VM and says how to "
                 "enter it; `capture` copies it to a template; `ls` lists the templates; `rm` "
                 "deletes templates, and "
                 "nothing else. A template is a VM like any other, running and billed.",
        .examples =
            "  exedev template start --expires 2h\n  exedev template capture paperclip-setup-x7k2",
        .settings = true,
        .min = 1,
        .max = -1,
    };
    int i = cmd_parse(argc, argv, options, &usage), n = argc - i - 1;
    const char *verb = argv[i];
    bool known = (!strcmp(verb, "start") && n == 0) || (!strcmp(verb, "capture") && n == 1) ||
                 (!strcmp(verb, "ls") && n == 0) || (!strcmp(verb, "rm") && n > 0);

    if (!known)
        return cmd_fail(EXIT_USAGE, "it is start, capture VM, ls, or rm TEMPLATE...");
    if (((from || expires) && strcmp(verb, "start") != 0) ||
        ((label || keep) && strcmp(verb, "capture") != 0) || (json && !strcmp(verb, "rm")))
        return cmd_fail(EXIT_USAGE, "%s does not take that option; see exedev template --help",
                        verb);
    cleanup_config struct config *cfg = cmd_config();
    if (!cfg)
        return EXIT_USAGE;
    int status = !strcmp(verb, "start")     ? start(cfg, from, expires, json)
                 : !strcmp(verb, "capture") ? capture(cfg, argv[i + 1], label, keep, json)
                 : !strcmp(verb, "ls")      ? list(cfg, json)
                                            : rm(cfg, argv + i + 1);
    lease_shutdown(1000);
    return status;
}
