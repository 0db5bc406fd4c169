#include "lobby/command.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lobby/token.h"
#include "lobby/vms.h"

#define MAX_COMMENT 200

typedef struct answer run_fn(char **argv, size_t n, const struct caller *who);

struct answer answer_error(int status, const char *text)
{
    json_t *j = json_pack("{s:s}", "error", text ? text : "failed");

    return (struct answer){status, j ? j : json_pack("{s:s}", "error", "failed")};
}

static struct answer failed(const struct error *err)
{
    return answer_error(err->code == ERR_SYSTEM || err->code == ERR_INTERNAL ? 500 : 422, err->msg);
}

static struct answer record_or(json_t *record, const struct error *err)
{
    return record ? (struct answer){200, record} : failed(err);
}

/* The words stay the lexer's, each of them once: they are freed by it. */
static void keep_word(char **argv, size_t *kept, size_t i)
{
    char *word = argv[i];

    argv[i] = argv[*kept];
    argv[(*kept)++] = word;
}

/* Drops --json wherever it stands; false when another flag is there. */
static bool plain_words(char **argv, size_t *n)
{
    size_t kept = 0;

    for (size_t i = 0; i < *n; i++) {
        if (strcmp(argv[i], "--json") == 0 || strcmp(argv[i], "-l") == 0)
            continue;
        if (argv[i][0] == '-')
            return false;
        keep_word(argv, &kept, i);
    }
    *n = kept;
    return true;
}

static struct answer run_new(char **argv, size_t n, const struct caller *who)
{
    (void)who;
    return command_new(argv, n);
}

static struct answer run_cp(char **argv, size_t n, const struct caller *who)
{
    (void)who;
    return command_cp(argv, n);
}

static struct answer run_resize(char **argv, size_t n, const struct caller *who)
{
    (void)who;
    return command_resize(argv, n);
}

static struct answer run_ls(char **argv, size_t n, const struct caller *who)
{
    (void)who;
    if (!plain_words(argv, &n) || n > 1)
        return answer_error(422, "usage: ls [NAME|PATTERN]");
    return (struct answer){200, json_pack("{s:o}", "vms", vms_list(n ? argv[0] : NULL))};
}

static struct answer run_rm(char **argv, size_t n, const struct caller *who)
{
    cleanup_json json_t *deleted = json_array();
    cleanup_buf struct buf problems = {0};

    (void)who;
    if (!plain_words(argv, &n) || !n)
        return answer_error(422, "usage: rm NAME...");
    for (size_t i = 0; i < n; i++) {
        cleanup_error struct error err = {0};
        if (vms_remove(argv[i], &err))
            json_array_append_new(deleted, json_string(argv[i]));
        else
            buf_printf(&problems, "%s%s", problems.len ? "; " : "", err.msg);
    }
    if (!problems.len)
        return (struct answer){200, json_pack("{s:O}", "deleted", deleted)};
    struct answer a = answer_error(422, problems.data);
    json_object_set(a.json, "deleted", deleted);
    return a;
}

static struct answer run_restart(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};

    (void)who;
    if (!plain_words(argv, &n) || n != 1)
        return answer_error(422, "usage: restart NAME");
    return record_or(vms_restart(argv[0], &err), &err);
}

static struct answer run_rename(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};

    (void)who;
    if (!plain_words(argv, &n) || n != 2)
        return answer_error(422, "usage: rename OLD NEW");
    return record_or(vms_rename(argv[0], argv[1], &err), &err);
}

static struct answer run_tag(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};
    size_t kept = 0;
    bool remove = false;

    (void)who;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(argv[i], "-d") == 0)
            remove = true;
        else if (strcmp(argv[i], "--json") != 0)
            keep_word(argv, &kept, i);
    }
    if (kept < 2)
        return answer_error(422, "usage: tag [-d] NAME TAG...");
    cleanup_json json_t *tags = json_array();
    for (size_t i = 1; i < kept; i++) {
        json_t *tag =
            argv[i][0] != '-' && *argv[i] && strlen(argv[i]) <= 64 ? json_string(argv[i]) : NULL;
        if (!tag)
            return answer_error(
                422, "tag: a tag is 1 to 64 characters and does not begin with a hyphen");
        json_array_append_new(tags, tag);
    }
    return record_or(vms_tag(argv[0], tags, remove, &err), &err);
}

static struct answer run_comment(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};

    (void)who;
    /* the text may begin with a hyphen */
    if (n && strcmp(argv[n - 1], "--json") == 0)
        n--;
    if (n != 2 || argv[0][0] == '-')
        return answer_error(422, "usage: comment NAME TEXT");
    if (strlen(argv[1]) > MAX_COMMENT)
        return answer_error(422, "comment: more than 200 bytes");
    cleanup_json json_t *changes = json_pack("{s:s}", "comment", argv[1]);
    if (!changes)
        return answer_error(422, "comment: not UTF-8");
    return record_or(vms_update(argv[0], changes, &err), &err);
}

static struct answer run_stat(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};

    (void)who;
    if (!plain_words(argv, &n) || n != 1)
        return answer_error(422, "usage: stat NAME");
    return record_or(vms_stat(argv[0], &err), &err);
}

static struct answer run_share_port(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};

    (void)who;
    if (!plain_words(argv, &n) || n != 2)
        return answer_error(422, "usage: share port NAME PORT");
    char *end;
    long port = strtol(argv[1], &end, 10);
    if (*end || end == argv[1] || port < 1 || port > 65535)
        return answer_error(422, "share port: the port must be from 1 to 65535");
    cleanup_json json_t *changes = json_pack("{s:i}", "port", (int)port);
    return record_or(vms_update(argv[0], changes, &err), &err);
}

static struct answer run_share_show(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};
    cleanup_free char *address = NULL;
    unsigned port;

    (void)who;
    if (!plain_words(argv, &n) || n != 1)
        return answer_error(422, "usage: share show NAME");
    if (!vms_route(argv[0], &address, &port, &err))
        return failed(&err);
    return (struct answer){
        200, json_pack("{s:s, s:i, s:b}", "vm_name", argv[0], "port", (int)port, "public", false)};
}

static json_t *key_list(const char *keys)
{
    cleanup_free char *copy = xstrdup(keys);
    char *save = NULL;
    json_t *list = json_array();

    for (char *line = strtok_r(copy, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        json_array_append_new(list, json_pack("{s:s}", "public_key", line));
    return list;
}

static struct answer run_key_list(char **argv, size_t n, const struct caller *who)
{
    (void)argv;
    (void)n;
    return (struct answer){200, json_pack("{s:o}", "ssh_keys", key_list(who->keys))};
}

static struct answer run_api_key(char **argv, size_t n, const struct caller *who)
{
    const char *vm = NULL;

    (void)who;
    for (size_t i = 0; i < n; i++) {
        if (text_starts(argv[i], "--vm="))
            vm = argv[i] + 5;
        else if (strcmp(argv[i], "--json") != 0)
            return answer_error(422, "usage: ssh-key generate-api-key [--vm=NAME]");
    }
    cleanup_error struct error err = {0};
    if (vm) {
        cleanup_json json_t *there = vms_record(vm, &err);
        if (!there)
            return failed(&err);
    }
    cleanup_json json_t *permissions = json_object();
    cleanup_free char *name_space =
        vm ? xasprintf("v0@%s.exe.xyz", vm) : xstrdup(TOKEN_LOBBY_NAMESPACE);
    cleanup_free char *token = token_short(permissions, name_space);
    return (struct answer){200, json_pack("{s:s}", "token", token)};
}

static struct answer run_short(char **argv, size_t n, const struct caller *who)
{
    cleanup_error struct error err = {0};
    cleanup_json json_t *permissions = NULL;

    if (!plain_words(argv, &n) || n > 1)
        return answer_error(422, "usage: exe0-to-exe1 [TOKEN]");
    if (n)
        permissions = token_check(argv[0], TOKEN_LOBBY_NAMESPACE, time(NULL), &err);
    else
        permissions = json_deep_copy(who->permissions);
    if (!permissions)
        return failed(&err);
    cleanup_free char *token = token_short(permissions, TOKEN_LOBBY_NAMESPACE);
    return (struct answer){200, json_pack("{s:s}", "token", token)};
}

static struct answer run_whoami(char **argv, size_t n, const struct caller *who)
{
    (void)argv;
    (void)n;
    return (struct answer){
        200, json_pack("{s:s, s:o}", "email", "you@localhost", "ssh_keys", key_list(who->keys))};
}

static run_fn run_help;

static const struct command {
    const char *name, *what;
    run_fn *run;
} commands[] = {
    {"new", "create a VM", run_new},
    {"cp", "copy a VM", run_cp},
    {"ls", "list VMs", run_ls},
    {"rm", "delete VMs", run_rm},
    {"restart", "stop a VM and start it again", run_restart},
    {"rename", "rename a VM", run_rename},
    {"tag", "tag a VM", run_tag},
    {"comment", "set a VM's comment", run_comment},
    {"stat", "what a VM is doing", run_stat},
    {"resize", "change a VM's size", run_resize},
    {"share port", "set the port that https:// reaches", run_share_port},
    {"share show", "show how a VM is shared", run_share_show},
    {"ssh-key list", "list the account's keys", run_key_list},
    {"ssh-key generate-api-key", "make a token", run_api_key},
    {"exe0-to-exe1", "make a short token of a long one", run_short},
    {"whoami", "who you are", run_whoami},
    {"help", "this list", run_help},
};
#define N_COMMANDS (sizeof commands / sizeof *commands)

static struct answer run_help(char **argv, size_t n, const struct caller *who)
{
    json_t *list = json_array();

    (void)argv;
    (void)n;
    (void)who;
    for (size_t i = 0; i < N_COMMANDS; i++)
        json_array_append_new(list, json_pack("{s:s, s:s}", "name", commands[i].name, "description",
                                              commands[i].what));
    return (struct answer){200, json_pack("{s:o}", "commands", list)};
}

const char *command_name(const struct words *w, size_t *skip)
{
    for (size_t i = 0; i < N_COMMANDS; i++) {
        const char *name = commands[i].name, *space = strchr(name, ' ');
        *skip = space ? 2 : 1;
        if (!space && w->n >= 1 && strcmp(w->v[0], name) == 0)
            return name;
        if (space && w->n >= 2 && strlen(w->v[0]) == (size_t)(space - name) &&
            strncmp(w->v[0], name, (size_t)(space - name)) == 0 && strcmp(w->v[1], space + 1) == 0)
            return name;
    }
    return NULL;
}

struct answer command_run(const char *name, const struct words *w, size_t skip,
                          const struct caller *who)
{
    for (size_t i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].run(w->v + skip, w->n - skip, who);
    }
    return answer_error(404, "no such command");
}
