#include "lib/channel_login.h"

#include <ctype.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/text.h"
#include "lib/command.h"

#define HOME_MS 15000

static const struct login logins[] = {
    {"claude", "CLAUDE_CONFIG_DIR", {"claude", "setup-token", NULL}},
    {"codex", "CODEX_HOME", {"codex", "login", "--device-auth", NULL}},
    {"grok", "GROK_HOME", {"grok", "login", "--device-auth", NULL}},
};

const struct login *login_find(const char *key)
{
    for (size_t i = 0; key && i < sizeof logins / sizeof *logins; i++) {
        if (!strcmp(logins[i].key, key))
            return &logins[i];
    }
    return NULL;
}

bool login_is_home(const char *path)
{
    static const char shape[] = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";

    if (!path || !text_starts(path, LOGIN_ROOT) ||
        strlen(path) != sizeof LOGIN_ROOT + sizeof shape - 2)
        return false;
    path += sizeof LOGIN_ROOT - 1;
    for (size_t i = 0; shape[i]; i++) {
        bool hex = isdigit((unsigned char)path[i]) || (path[i] >= 'a' && path[i] <= 'f');
        if (shape[i] == '-' ? path[i] != '-' : !hex)
            return false;
    }
    return true;
}

static void run_on_vm(struct link *l, const char *script, const char *arg, struct deadline d,
                      struct command_result *res)
{
    const char *const argv[] = {"sh", "-c", script, "sh", arg, NULL};
    struct error ignored = {0};

    command_run(l,
                &(struct command_spec){
                    .argv = argv,
                    .cwd = "/",
                    .timeout_ms = deadline_left(d) < HOME_MS ? deadline_left(d) + 1 : HOME_MS,
                    .text = true,
                    .collect = true,
                    .cap = 4096},
                NULL, res, &ignored);
    error_clear(&ignored);
}

/* Fresh, ours, 0700; the folder above must be ours too, or somebody could swap it. */
bool login_make_home(struct link *l, const char *home, struct deadline d, struct error *err)
{
    static const char script[] = "umask 077; root=${1%/*}; mkdir \"$root\" 2>/dev/null; "
                                 "if [ -L \"$root\" ] || ! [ -O \"$root\" ]; then echo \"$root "
                                 "belongs to somebody else\" >&2; exit 1; fi; "
                                 "chmod 700 \"$root\" && mkdir -m 700 \"$1\"";
    struct command_result res;

    run_on_vm(l, script, home, d, &res);
    bool ok = res.ran && res.exit_code == 0;
    if (!ok) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, res.err.data ? res.err.data : "", res.err.len, 300);
        error_set(err, res.transport ? res.transport : ERR_UNSAFE,
                  "make the login's session home on the VM: %s",
                  shown.len ? shown.data : "it did not end in time");
    }
    command_result_free(&res);
    return ok;
}

void login_remove_home(struct link *l, const char *home)
{
    struct command_result res;

    if (!link_is_up(l)) /* a VM that was left is not entered again for this */
        return;
    run_on_vm(l, "rm -rf -- \"$1\"", home, deadline_in(HOME_MS), &res);
    command_result_free(&res);
}
