/* exedev doctor: this machine, the settings, the account. Nothing is made or changed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/spawn.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/doctor_net.h"
#include "lib/api.h"
#include "lib/config.h"
#include "lib/key.h"
#include "lib/name.h"
#include "lib/problems.h"
#include "lib/state.h"
#include "lib/token.h"

CMD(doctor);

struct doctor {
    json_t *lines;
    bool json, color;
    int failures, warnings;
};

static void say(struct doctor *d, enum doctor_level level, const char *check, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void say(struct doctor *d, enum doctor_level level, const char *check, const char *fmt, ...)
{
    static const char *const words[] = {"ok", "warning", "failure"};
    static const char *const colors[] = {"\033[32m", "\033[33m", "\033[31m"};
    va_list ap;

    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    d->failures += level == DOCTOR_FAILURE;
    d->warnings += level == DOCTOR_WARNING;
    if (d->json)
        json_array_append_new(d->lines, json_pack("{s:s, s:s, s:s}", "check", check, "state",
                                                  words[level], "text", text));
    else
        printf("%s%-8s%s %-12s %s\n", d->color ? colors[level] : "", words[level],
               d->color ? "\033[0m" : "", check, text);
}

static void say_finding(enum doctor_level level, const char *check, const char *text, void *arg)
{
    say(arg, level, check, "%s", text);
}

/* The first line of what a program prints, on either stream; NULL: it did not run. */
static char *first_line(const char *const *argv, int *status)
{
    cleanup_buf struct buf out = {0};

    if (!spawn_run(argv, NULL, 0, &out, &out, 4096, deadline_in(10000), status, NULL))
        return NULL;
    buf_putc(&out, '\n');
    *strchr(out.data, '\n') = 0;
    return buf_steal(&out);
}

static void check_openssh(struct doctor *d)
{
    int status;
    unsigned major = 0, minor = 0;
    cleanup_free char *version = first_line((const char *[]){"ssh", "-V", NULL}, &status);

    if (!version) {
        say(d, DOCTOR_FAILURE, "openssh", "ssh does not run: install openssh-client");
        return;
    }
    if (sscanf(version, "OpenSSH_%u.%u", &major, &minor) != 2)
        say(d, DOCTOR_WARNING, "openssh", "this ssh is not OpenSSH: %s", version);
    else if (major < 8 || (major == 8 && minor < 5))
        say(d, DOCTOR_WARNING, "openssh",
            "%s is older than 8.5, the oldest tried; upgrade openssh-client", version);
    else
        say(d, DOCTOR_OK, "openssh", "%s", version);
    cleanup_free char *keygen = first_line((const char *[]){"ssh-keygen", "-?", NULL}, &status);
    if (!keygen)
        say(d, DOCTOR_WARNING, "openssh",
            "ssh-keygen does not run: keys cannot be checked nor tokens made");
}

static void check_settings(struct doctor *d, const json_t *raw)
{
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *normalized = config_validate(raw, 0, &p);

    for (size_t i = 0; i < p.n; i++)
        say(d, p.list[i].warning ? DOCTOR_WARNING : DOCTOR_FAILURE, "settings", "%s",
            p.list[i].text);
    if (!p.n)
        say(d, DOCTOR_OK, "settings", "nothing wrong with them");
}

static void check_token(struct doctor *d, const struct config *cfg)
{
    cleanup_token struct token token = {0};
    cleanup_buf struct buf words = {0};
    cleanup_error struct error err = {0};

    if (!cfg->api_key) {
        say(d, DOCTOR_FAILURE, "token",
            "no exe.dev token: set apiKey (exedev configure), EXE_API_KEY, or write it to "
            "~/.config/exedev/token");
        return;
    }
    if (!token_parse(cfg->api_key, &token, &err)) {
        say(d, DOCTOR_FAILURE, "token", "%s (from %s)", err.msg, cfg->api_key_source);
        return;
    }
    token_describe(&token, time(NULL), &words);
    buf_puts(&words, ""); /* never NULL from here on */
    cleanup_buf struct buf line = {0};
    for (const char *c = words.data; *c; c++) {
        if (*c == '\n')
            buf_puts(&line, c[1] ? "; " : "");
        else if (*c != ' ' || c[1] != ' ') /* it was a table */
            buf_putc(&line, *c);
    }
    buf_puts(&line, "");
    say(d, DOCTOR_OK, "token", "from %s: %s", cfg->api_key_source, line.data);
}

static void check_agent(struct doctor *d, const char *socket)
{
    int status;
    cleanup_free char *was = getenv("SSH_AUTH_SOCK") ? xstrdup(getenv("SSH_AUTH_SOCK")) : NULL;

    setenv("SSH_AUTH_SOCK", socket, 1);
    cleanup_free char *line = first_line((const char *[]){"ssh-add", "-l", NULL}, &status);
    if (was)
        setenv("SSH_AUTH_SOCK", was, 1);
    else
        unsetenv("SSH_AUTH_SOCK");
    if (line && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        say(d, DOCTOR_OK, "agent", "%s: %s", socket, line);
    else if (line && WIFEXITED(status) && WEXITSTATUS(status) == 1)
        say(d, DOCTOR_WARNING, "agent", "%s holds no key: add one with ssh-add", socket);
    else
        say(d, DOCTOR_FAILURE, "agent", "no agent answers at %s: start it, or set sshPrivateKey",
            socket);
}

static void check_key(struct doctor *d, const struct config *cfg)
{
    cleanup_error struct error err = {0};

    if (cfg->ssh_private_key) {
        cleanup_key struct key *key = key_load(cfg->ssh_private_key, &err);
        cleanup_free char *public = NULL;
        if (!key || !key_decode(key, &public, deadline_in(10000), &err))
            say(d, err.code == ERR_UNSUPPORTED ? DOCTOR_WARNING : DOCTOR_FAILURE, "key", "%s",
                err.msg);
        else
            say(d, DOCTOR_OK, "key",
                "sshPrivateKey is a good key (%.*s); it must be registered: ssh exe.dev",
                (int)strcspn(public, " "), public);
    } else if (cfg->ssh_identity_file) {
        struct stat st;
        if (stat(cfg->ssh_identity_file, &st) < 0)
            say(d, DOCTOR_FAILURE, "key", "%s: %s", cfg->ssh_identity_file, strerror(errno));
        else if (st.st_mode & 077)
            say(d, DOCTOR_FAILURE, "key",
                "%s can be read by others, ssh will not use it: chmod 600 %s",
                cfg->ssh_identity_file, cfg->ssh_identity_file);
        else
            say(d, DOCTOR_OK, "key", "%s", cfg->ssh_identity_file);
    } else if (!cfg->ssh_agent_socket) {
        say(d, DOCTOR_WARNING, "key",
            "no key is set: OpenSSH's own default identities will be tried. Set sshPrivateKey for "
            "a sure one");
    }
    if (cfg->ssh_agent_socket)
        check_agent(d, cfg->ssh_agent_socket);
}

/* The VMs' host keys that are trusted: pinned in the settings, or remembered from earlier. */
static void check_host_keys(struct doctor *d, const struct config *cfg)
{
    cleanup_error struct error err = {0};
    cleanup_free char *path = state_known_hosts(cfg->ssh_known_hosts, &err);
    cleanup_buf struct buf out = {0};
    int status = 0;
    size_t n = 0;

    if (strcmp(cfg->strict_host_key_checking, "no") == 0)
        say(d, DOCTOR_WARNING, "host key",
            "strictHostKeyChecking is no: anybody on the way can pose as a VM; use accept-new");
    if (!path) {
        say(d, DOCTOR_FAILURE, "host key", "%s", err.msg);
        return;
    }
    if (access(path, F_OK) < 0) {
        say(d, DOCTOR_OK, "host key", "none remembered yet; the first one a VM shows is");
        return;
    }
    if (!spawn_run((const char *[]){"ssh-keygen", "-l", "-f", path, NULL}, NULL, 0, &out, NULL,
                   1 << 20, deadline_in(10000), &status, &err)) {
        say(d, DOCTOR_WARNING, "host key", "%s", err.msg);
        return;
    }
    for (size_t i = 0; i < out.len; i++)
        n += out.data[i] == '\n';
    if (status || !n)
        say(d, DOCTOR_FAILURE, "host key", "%s holds no host key that OpenSSH can read: %s", path,
            cfg->ssh_known_hosts ? "mend sshKnownHosts (lines of a known_hosts file)"
                                 : "delete the file");
    else
        say(d, DOCTOR_OK, "host key", "%zu %s, in %s", n,
            cfg->ssh_known_hosts ? "pinned" : "remembered", path);
}

static void check_account(struct doctor *d, const struct config *cfg)
{
    cleanup_error struct error err = {0};
    cleanup_api struct api *api = api_new(cfg, &err);
    cleanup_records struct records all = {0};
    size_t ours = 0;

    if (!api || !api_ls(api, NULL, deadline_in(30000), &all, &err)) {
        say(d, DOCTOR_FAILURE, "account", "%s", err.msg);
        return;
    }
    for (size_t i = 0; i < all.n; i++)
        ours += record_has_tag(&all.list[i], MARK_TAG) == RECORD_TAG_YES;
    say(d, DOCTOR_OK, "account", "the token is taken; VMs: %zu, made by exedev: %zu", all.n, ours);
}

static void check_limits(struct doctor *d)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) == 0 && files.rlim_cur < 1024)
        say(d, DOCTOR_WARNING, "limits",
            "only %llu open files are allowed: raise it (ulimit -n 4096)",
            (unsigned long long)files.rlim_cur);
    else
        say(d, DOCTOR_OK, "limits", "%llu open files", (unsigned long long)files.rlim_cur);
}

static void check_state(struct doctor *d, const struct config *cfg)
{
    cleanup_error struct error err = {0};
    cleanup_free char *dir = state_dir(&err), *account = config_account_id(cfg);
    cleanup_journal struct journal journal = {0};
    struct statvfs fs;
    size_t waiting = 0;

    if (!dir) {
        say(d, DOCTOR_FAILURE, "state", "%s", err.msg);
        return;
    }
    if (statvfs(dir, &fs) == 0 && (unsigned long long)fs.f_bavail * fs.f_frsize < (16ull << 20))
        say(d, DOCTOR_WARNING, "state",
            "less than 16 MB free where %s is: the journal may not be written", dir);
    if (!journal_read(account, &journal, &err)) {
        say(d, DOCTOR_FAILURE, "state", "%s", err.msg);
        return;
    }
    for (size_t i = 0; i < journal.n; i++) {
        const struct journal_entry *e = &journal.list[i];
        waiting += e->state == JOURNAL_DOOMED || (e->state == JOURNAL_INTENT && !e->owner_alive);
    }
    if (waiting)
        say(d, DOCTOR_WARNING, "state",
            "VMs in the journal that still wait to be deleted: %zu. Run exedev gc", waiting);
    else
        say(d, DOCTOR_OK, "state", "%s, VMs in the journal: %zu", dir, journal.n);
}

/* The host takes the first running plugin that declares a driver key (paperclip.md). */
static void check_paperclip(struct doctor *d)
{
    cleanup_free char *home = config_home();
    cleanup_free char *dir = home ? xasprintf("%s/.paperclip", home) : NULL;

    if (dir && access(dir, F_OK) == 0)
        say(d, DOCTOR_OK, "paperclip",
            "%s is there: of two installed plugins for exe-dev Paperclip uses the first that runs; "
            "keep one",
            dir);
}

int cmd_doctor(int argc, char **argv)
{
    struct doctor d = {0};
    bool offline = false;
    const struct cmd_option options[] = {
        {"json", 0, NULL, "print an array of {check, state, text}", OPT_FLAG, &d.json},
        {"offline", 0, NULL, "make no connection", OPT_FLAG, &offline},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "[options]",
        .about = "Checks OpenSSH, the settings, the token, the key, the API and what is kept on "
                 "this machine.\n"
                 "Each line is ok, a warning or a failure with its remedy. The exit status is 1 "
                 "after a failure.",
        .examples = "  exedev doctor\n  exedev doctor --json | jq '.[] | select(.state != \"ok\")'",
        .settings = true,
    };

    cmd_parse(argc, argv, options, &usage);
    d.lines = json_array();
    d.color = cmd_color(STDOUT_FILENO);
    check_openssh(&d);
    check_limits(&d);
    check_paperclip(&d);
    cleanup_json json_t *raw = cmd_settings();
    if (!raw) {
        say(&d, DOCTOR_FAILURE, "settings", "the saved settings cannot be used (see above)");
    } else {
        cleanup_config struct config *cfg = config_parse(raw, NULL);
        check_settings(&d, raw);
        check_token(&d, cfg);
        check_key(&d, cfg);
        check_host_keys(&d, cfg);
        check_state(&d, cfg);
        if (!offline && doctor_net(cfg, say_finding, &d) && cfg->api_key)
            check_account(&d, cfg);
    }
    if (d.json)
        cmd_print_json(d.lines);
    else
        printf("\n%d failure%s, %d warning%s\n", d.failures, d.failures == 1 ? "" : "s", d.warnings,
               d.warnings == 1 ? "" : "s");
    json_decref(d.lines);
    return d.failures ? EXIT_FAILED : EXIT_OK;
}
