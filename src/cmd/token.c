/* exedev token: explain an exe.dev token, make one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "lib/config.h"
#include "lib/config_value.h"
#include "lib/redact.h"
#include "lib/secret.h"
#include "lib/token.h"

CMD(token);

#define MINT_MS 120000 /* somebody may have to touch a hardware key */
#define CMDS_DEFAULT "new,ls,rm,cp,restart,tag,comment,whoami"

/* What of the provider works with which command. */
static const struct {
    const char *command, *needed_for;
    bool always;
} uses[] = {
    {"new", "to make VMs", true},
    {"ls", "to find them again", true},
    {"rm", "to delete them: without it VMs are left behind, and billed", true},
    {"cp", "to copy a VM (sourceVm) and for templates", false},
    {"restart", "to wake a stopped VM (reuseLease)", false},
    {"tag", "to mark copies as ours", false},
    {"comment", "to mark copies as ours", false},
};

/* The token from a file, standard input, or the settings at hand. */
static char *token_from(const char *operand, struct error *err)
{
    cleanup_secret_buf struct buf text = {0};

    if (!operand) {
        cleanup_json json_t *raw = cmd_settings();
        cleanup_problems struct problems p = {0};
        cleanup_config struct config *c = raw ? config_parse(raw, &p) : NULL;
        if (c && c->api_key)
            return secret_dup(c->api_key);
        error_set(err, ERR_INVALID,
                  "there is no token in the settings: name a file that holds one, or - for "
                  "standard input");
        return NULL;
    }
    if (text_starts(operand, "exe0.") || text_starts(operand, "exe1.")) {
        fprintf(stderr, "exedev token: a token on the command line can be seen by every user of "
                        "this machine, and stays in "
                        "the shell's history; next time use a file, or - and standard input\n");
        return secret_dup(operand);
    }
    if (strcmp(operand, "-")
            ? !io_read_file(operand, TOKEN_MAX + 2, &text, err)
            : !io_read_fd(STDIN_FILENO, "standard input", TOKEN_MAX + 2, &text, err))
        return NULL;
    cleanup_secret char *raw = secret_dupn(text.data ? text.data : "", text.len);
    cleanup_free char *trimmed = value_trim(raw);
    char *token = secret_dup(trimmed);
    explicit_bzero(trimmed, strlen(trimmed));
    return token;
}

static bool usable(const struct token *t, int64_t now)
{
    bool ok = t->kind != TOKEN_EXE0 ||
              (!strcmp(t->scope, "v0@exe.dev") && (!t->exp || t->exp > now) && t->nbf <= now);

    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++)
        ok = ok && (!uses[i].always || token_allows(t, uses[i].command));
    return ok;
}

static void print_json(const struct token *t, bool ok)
{
    static const char *const kinds[] = {"exe0", "exe1", "other"};
    cleanup_json json_t *o =
        json_pack("{s:s, s:b, s:s?, s:s?, s:s?}", "kind", kinds[t->kind], "usable", ok, "scope",
                  t->scope, "keyType", t->key_type, "fingerprint", t->fingerprint);
    json_t *lacks = json_array();

    json_object_set_new(o, "exp", t->exp ? json_integer(t->exp) : json_null());
    json_object_set_new(o, "nbf", t->nbf ? json_integer(t->nbf) : json_null());
    json_object_set_new(o, "cmds", t->cmds ? json_incref(t->cmds) : json_null());
    for (size_t i = 0; i < sizeof uses / sizeof *uses; i++)
        if (!token_allows(t, uses[i].command))
            json_array_append_new(lacks, json_string(uses[i].command));
    json_object_set_new(o, "lacks", lacks);
    cmd_print_json(o);
}

static void print(const struct token *t, int64_t now, bool ok)
{
    cleanup_buf struct buf text = {0};

    token_describe(t, now, &text);
    fputs(text.data, stdout);
    for (size_t i = 0; i < sizeof uses / sizeof *uses && t->kind == TOKEN_EXE0; i++)
        if (!token_allows(t, uses[i].command))
            printf("lacks:      %s, %s%s\n", uses[i].command,
                   uses[i].always ? "needed " : "only needed ", uses[i].needed_for);
    if (!ok)
        printf("This token cannot serve as apiKey; `exedev token mint` makes one that can.\n");
}

static int inspect(int argc, char **argv)
{
    bool json = false;
    const struct cmd_option options[] = {
        {"json", 0, NULL, "print what it says as JSON", OPT_FLAG, &json},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "inspect [options] [FILE]",
        .about = "Explains an exe.dev token: what it opens, which commands it allows, when it is "
                 "valid, which key signed it, "
                 "and what this program lacks with it. Reads the token from FILE, from standard "
                 "input (-), or from the "
                 "settings. Calls nobody; whether the signature counts only exe.dev can say.",
        .examples = "  exedev token inspect\n  exedev token inspect - <token.txt",
        .settings = true,
        .max = 1,
    };
    int i = cmd_parse(argc, argv, options, &usage);
    cleanup_error struct error err = {0};
    cleanup_token struct token t = {0};
    cleanup_secret char *text = token_from(argv[i], &err);
    int64_t now = time(NULL);

    if (!text)
        return cmd_fail(EXIT_USAGE, "%s", err.msg);
    if (!token_parse(text, &t, &err))
        return cmd_fail(EXIT_FAILED, "%s", err.msg);
    bool ok = usable(&t, now);
    if (json)
        print_json(&t, ok);
    else
        print(&t, now, ok);
    return ok ? EXIT_OK : EXIT_FAILED;
}

/* The key that signs: --key, --agent, the settings' key, else OpenSSH's usual places. */
struct chosen {
    struct token_signer signer;
    struct config *config;
    struct key *key;
    struct buf public_key;
    char *path;
};

static void chosen_clear(struct chosen *c)
{
    key_free(c->key);
    config_free(c->config);
    buf_free(&c->public_key);
    free(c->path);
}

static bool from_settings(struct chosen *c, struct error *err)
{
    static const char *const usual[] = {"id_ed25519", "id_ecdsa", "id_rsa"};
    cleanup_json json_t *raw = cmd_settings();
    cleanup_problems struct problems p = {0};
    cleanup_free char *home = config_home();

    if (!raw)
        return error_set(err, ERR_INVALID, "the settings cannot be read");
    c->config = config_parse(raw, &p);
    if (c->config->ssh_private_key) {
        c->key = key_load(c->config->ssh_private_key, err);
        c->signer.key = c->key;
        return c->key != NULL;
    }
    if ((c->signer.key_file = c->config->ssh_identity_file))
        return true;
    for (size_t i = 0; home && i < sizeof usual / sizeof *usual; i++) {
        c->path = xasprintf("%s/.ssh/%s", home, usual[i]);
        if (!access(c->path, R_OK)) {
            c->signer.key_file = c->path;
            return true;
        }
        free(steal_ptr(c->path));
    }
    return error_set(err, ERR_INVALID,
                     "there is no SSH key to sign with: name one with --key FILE, or --agent "
                     "--public-key FILE; it must be "
                     "registered with the exe.dev account");
}

static bool choose(struct chosen *c, const char *key, bool agent, const char *public_key,
                   struct error *err)
{
    if (agent) {
        c->signer.agent_socket = getenv("SSH_AUTH_SOCK");
        if (!c->signer.agent_socket || !*c->signer.agent_socket)
            return error_set(err, ERR_INVALID,
                             "SSH_AUTH_SOCK is not set: there is no SSH agent to sign with");
        if (!public_key)
            return error_set(
                err, ERR_INVALID,
                "--agent needs --public-key FILE, to know which of the agent's keys to use");
        if (!io_read_file(public_key, 65536, &c->public_key, err))
            return false;
        buf_puts(&c->public_key, "\n");
        c->signer.public_key = c->public_key.data;
        return true;
    }
    c->signer.key_file = key;
    return key || from_settings(c, err);
}

static json_t *commands_of(const char *text)
{
    cleanup_json json_t *whole = json_string(text);

    return value_list(whole, "cmds", NULL);
}

static int mint(int argc, char **argv)
{
    const char *cmds = NULL, *exp = "30d", *nbf = NULL, *vm = NULL, *key = NULL, *public_key = NULL,
               *output = NULL;
    bool agent = false;
    const struct cmd_option options[] = {
        {"cmds", 0, "LIST", "commands it allows, separated by commas (default " CMDS_DEFAULT ")",
         OPT_STRING, &cmds},
        {"exp", 0, "SPAN", "how long it is valid: 30d, 12h, 45m, or never (default 30d)",
         OPT_STRING, &exp},
        {"nbf", 0, "SPAN", "from when on it is valid, counted from now (default: at once)",
         OPT_STRING, &nbf},
        {"vm", 0, "NAME", "a token for this VM's HTTPS proxy instead of the API", OPT_STRING, &vm},
        {"key", 'i', "FILE", "sign with this private key", OPT_STRING, &key},
        {"agent", 0, NULL, "sign with a key in the SSH agent; needs --public-key", OPT_FLAG,
         &agent},
        {"public-key", 0, "FILE", "which of the agent's keys", OPT_STRING, &public_key},
        {"output", 'o', "FILE", "write it to FILE (mode 600) instead of standard output",
         OPT_STRING, &output},
        {0},
    };
    static const struct cmd_usage usage = {
        .synopsis = "mint [options]",
        .about = "Makes an exe.dev token by signing its permissions with an SSH key that is "
                 "registered with the account "
                 "(`ssh-keygen -Y sign`). Nobody is called, and exe.dev keeps no list: to take a "
                 "token back, remove the key "
                 "from the account.",
        .examples = "  exedev token mint --exp 90d --output ~/.config/exedev/token\n"
                    "  exedev token mint --cmds new,ls,rm --key ~/.ssh/id_ed25519\n"
                    "  exedev token mint --vm bloggy --exp 1h",
        .settings = true,
    };
    cmd_parse(argc, argv, options, &usage);
    cleanup_error struct error err = {0};
    __attribute__((cleanup(chosen_clear))) struct chosen c = {0};
    cleanup_buf struct buf payload = {0};
    int64_t now = time(NULL), from = 0, until = 0;

    if (vm && cmds)
        return cmd_fail(EXIT_USAGE,
                        "--cmds is for tokens of the API; one for a VM's HTTPS proxy has none");
    if (nbf && !token_duration(nbf, &from, &err))
        return cmd_fail(EXIT_USAGE, "--nbf: %s", err.msg);
    if (strcmp(exp, "never") != 0 && !token_duration(exp, &until, &err))
        return cmd_fail(EXIT_USAGE, "--exp: %s, or never", err.msg);
    from = from ? now + from : 0;
    until = until ? (from ? from : now) + until : 0;
    cleanup_json json_t *list = vm ? NULL : commands_of(cmds ? cmds : CMDS_DEFAULT);
    if (list && !json_array_size(list))
        return cmd_fail(EXIT_USAGE, "--cmds names no command");
    if (!token_payload(list, from, until, NULL, &payload, &err))
        return cmd_fail(EXIT_USAGE, "%s", err.msg);
    if (!choose(&c, key, agent, public_key, &err))
        return cmd_fail(EXIT_USAGE, "%s", err.msg);
    cleanup_secret char *token = token_mint(&c.signer, vm, &payload, deadline_in(MINT_MS), &err);
    if (!token)
        return cmd_fail(EXIT_FAILED, "%s", err.msg);
    if (!output) {
        printf("%s\n", token);
        return EXIT_OK;
    }
    cleanup_secret_buf struct buf line = {0};
    buf_printf(&line, "%s\n", token);
    if (!io_write_file(output, 0600, line.data, line.len, &err))
        return cmd_fail(EXIT_FAILED, "%s", err.msg);
    fprintf(stderr, "The token is in %s.\n", output);
    return EXIT_OK;
}

int cmd_token(int argc, char **argv)
{
    static const struct cmd_option none[] = {{0}};
    static const struct cmd_usage usage = {
        .synopsis = "inspect|mint [options]",
        .about = "Explains an exe.dev token (inspect), or makes one from an SSH key (mint). "
                 "`exedev token mint --help` lists "
                 "the options of each.",
        .examples = "  exedev token inspect\n  exedev token mint --cmds new,ls,rm --exp 30d",
        .min = 1,
        .max = -1,
    };

    int (*verb)(int, char **) = argc < 2                      ? NULL
                                : !strcmp(argv[1], "inspect") ? inspect
                                : !strcmp(argv[1], "mint")    ? mint
                                                              : NULL;
    if (verb) {
        argv[1] = argv[0]; /* messages and help name the subcommand */
        return verb(argc - 1, argv + 1);
    }
    int i = cmd_parse(argc, argv, none, &usage);
    return cmd_fail(EXIT_USAGE, "'%s' is neither inspect nor mint", argv[i]);
}
