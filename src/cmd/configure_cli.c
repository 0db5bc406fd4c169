/* exedev configure --cli: the two essentials, the rest on demand, then the same checks as the form.
 */
#include "cmd/configure_cli.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/edit.h"
#include "cmd/interrupt.h"
#include "cmd/terminal.h"
#include "lib/lease.h"
#include "lib/redact.h"
#include "lib/token.h"

#define FILE_MAX 65536

/* "~/x" as a shell would have it: at a prompt nobody expands it. */
static char *full_path(const char *path)
{
    cleanup_free char *home = text_starts(path, "~/") ? config_home() : NULL;

    return home ? xasprintf("%s/%s", home, path + 2) : xstrdup(path);
}

static char *read_text(const char *path, struct error *err)
{
    cleanup_free char *full = full_path(path);
    cleanup_secret_buf struct buf text = {0};

    if (!io_read_file(full, FILE_MAX, &text, err))
        return NULL;
    if (!text.len || memchr(text.data, 0, text.len)) {
        error_set(err, ERR_INVALID, "%s %s", full, text.len ? "is no text file" : "is empty");
        return NULL;
    }
    return buf_steal(&text);
}

static void complain(struct error *err)
{
    redact_error(err);
    printf("  That does not work: %s\n", err->msg);
    error_clear(err);
}

static void wipe(char *text)
{
    if (text)
        explicit_bzero(text, strlen(text));
    free(text);
}

static void tell_token(const char *text)
{
    cleanup_token struct token token = {0};
    cleanup_error struct error err = {0};
    cleanup_buf struct buf words = {0};
    cleanup_free char *trimmed = text_trim(text);

    if (token_parse(trimmed, &token, &err))
        token_describe(&token, time(NULL), &words);
    explicit_bzero(trimmed, strlen(trimmed));
    if (words.len)
        printf("%s%s", words.data, words.data[words.len - 1] == '\n' ? "" : "\n");
}

/* False only at the end of input. */
static bool ask_token(struct configfile *cf, const char *name, struct error *err)
{
    const struct config_field *field = config_field_find("apiKey");
    bool stored = configfile_has_secret(cf, name, "apiKey");

    printf("\n%s\n  %s\n", field->title, field->text);
    for (;;) {
        cleanup_error struct error why = {0};
        char *text =
            terminal_secret(stored ? "Token (not shown; Enter keeps the stored one, - forgets it): "
                                   : "Token (not shown; Enter: none): ",
                            false, err);
        if (!text)
            return false;
        if (strcmp(text, "-") == 0)
            configfile_set_secret(cf, name, "apiKey", NULL);
        else if (*text && !edit_put(cf, name, "apiKey", text, &why)) {
            wipe(text);
            complain(&why);
            continue;
        } else if (*text)
            tell_token(text);
        wipe(text);
        return true;
    }
}

static bool ask_key(struct configfile *cf, const char *name, struct error *err)
{
    const struct config_field *field = config_field_find("sshPrivateKey");
    bool stored = configfile_has_secret(cf, name, "sshPrivateKey");

    printf("\n%s\n  %s\n", field->title, field->text);
    for (;;) {
        cleanup_error struct error why = {0};
        cleanup_free char *answer = terminal_line(
            stored ? "Key file, or `paste` (Enter keeps the stored one, - forgets it): "
                   : "Key file, or `paste` (Enter: none): ",
            err);
        if (!answer)
            return false;
        if (!*answer)
            return true;
        if (strcmp(answer, "-") == 0) {
            configfile_set_secret(cf, name, "sshPrivateKey", NULL);
            return true;
        }
        bool paste = strcmp(answer, "paste") == 0;
        char *text =
            paste ? terminal_secret("Paste the key (not shown), to its END line: ", true, err)
                  : read_text(answer, &why);
        if (!text && paste)
            return false;
        bool ok = text && edit_put(cf, name, "sshPrivateKey", text, &why);
        wipe(text);
        if (ok)
            return true;
        complain(&why);
    }
}

static bool ask_secret(struct configfile *cf, const char *name, const struct config_field *f,
                       struct error *err)
{
    cleanup_free char *prompt =
        xasprintf("  %s (not shown; Enter: no change, - forgets it): ", f->title);

    for (;;) {
        cleanup_error struct error why = {0};
        char *text = terminal_secret(prompt, false, err);
        if (!text)
            return false;
        bool ok = true;
        if (strcmp(text, "-") == 0)
            configfile_set_secret(cf, name, f->key, NULL);
        else if (*text)
            ok = edit_put(cf, name, f->key, text, &why);
        wipe(text);
        if (ok)
            return true;
        complain(&why);
    }
}

static bool ask_field(struct configfile *cf, const char *name, const struct config_field *f,
                      struct error *err)
{
    printf("\n%s (%s)\n  %s\n", f->title, f->key, f->text);
    if (f->secret)
        return ask_secret(cf, name, f, err);
    if (f->type == FIELD_MAP) {
        printf("  One variable at a time: exedev config set %s.NAME VALUE\n", f->key);
        return true;
    }
    for (;;) {
        cleanup_error struct error why = {0};
        const json_t *now = json_object_get(json_object_get(cf->environments, name), f->key);
        cleanup_free char *text = now ? edit_text(now) : xstrdup(f->fallback ? f->fallback : "");
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, text, strlen(text), 60);
        cleanup_free char *prompt =
            xasprintf("  %s%s[%s] ", f->multiline ? "@FILE reads it from a file " : "",
                      f->type == FIELD_FLAG ? "yes or no " : "", shown.len ? shown.data : "");
        cleanup_free char *line = terminal_line(prompt, err);
        if (!line)
            return false;
        if (!*line)
            return true;
        if (strcmp(line, "-") == 0) {
            json_object_del(json_object_get(cf->environments, name), f->key);
            return true;
        }
        cleanup_free char *from_file =
            f->multiline && line[0] == '@' ? read_text(line + 1, &why) : NULL;
        if (!why.code && edit_put(cf, name, f->key, from_file ? from_file : line, &why))
            return true;
        complain(&why);
    }
}

static void tell_unknown(const struct configfile *cf, const char *name)
{
    cleanup_buf struct buf keys = {0};
    const char *key;
    json_t *value;

    json_object_foreach (json_object_get(cf->environments, name), key, value) {
        if (config_field_find(key))
            continue;
        buf_puts(&keys, keys.len ? ", " : "");
        text_visible(&keys, key, strlen(key), 60);
    }
    if (keys.len)
        printf("Settings that this exedev does not know, kept as they are: %s\n", keys.data);
}

static bool ask_rest(struct configfile *cf, const char *name, struct error *err)
{
    const struct config_field *f = config_fields;

    if (!terminal_yes("\nLook at the other settings?", false, err))
        return err->code == ERR_NONE;
    puts("Enter leaves a setting as it is, - forgets it.");
    for (; f->key; f++) {
        const char *group = f->group;
        bool seen = !group;
        for (const struct config_field *g = config_fields; g < f && !seen; g++)
            seen = g->group && strcmp(g->group, group) == 0;
        if (seen)
            continue;
        cleanup_free char *question = xasprintf("\n%s?", group);
        bool yes = terminal_yes(question, false, err);
        if (err->code)
            return false;
        for (const struct config_field *g = f; yes && g->key; g++) {
            if (g->group && strcmp(g->group, group) == 0 && !ask_field(cf, name, g, err))
                return false;
        }
    }
    return true;
}

/* How many errors there are; -1 when that could not be found out. */
static int validate(const struct configfile *cf, const char *name)
{
    cleanup_error struct error err = {0};
    cleanup_problems struct problems p = {0};
    cleanup_json json_t *raw = configfile_raw(cf, name, &err);

    if (!raw) {
        complain(&err);
        return -1;
    }
    puts("\nChecking...");
    cleanup_json json_t *normalised = config_validate(raw, 0, &p);
    for (size_t i = 0; i < p.n; i++)
        printf("  %-8s %s\n", p.list[i].warning ? "warning" : "error", p.list[i].text);
    size_t errors = problems_errors(&p);
    puts(errors ? "  Not valid yet." : "  Valid.");
    return (int)errors;
}

static void show_step(const char *step, const char *text, long long ms, bool ok, void *arg)
{
    cleanup_free char *took = text_duration_ms(ms), *safe = redact(text);

    (void)arg;
    printf("  %s %-12s %s (%s)\n", ok ? "ok  " : "FAIL", step, safe, took);
    fflush(stdout);
}

static int test(const struct configfile *cf, const char *name)
{
    cleanup_error struct error err = {0};
    cleanup_json json_t *raw = configfile_raw(cf, name, &err);
    cleanup_config struct config *config = raw ? config_load(raw, &err) : NULL;
    struct probe_result result = {0};

    if (!config) {
        complain(&err);
        return EXIT_USAGE;
    }
    puts("Testing (Ctrl-C cancels; the VM is deleted either way)...");
    struct cancel *cancel = cancel_new();
    interrupts_block();
    pthread_t interrupts = interrupts_start(cancel, NULL);
    lease_probe(config, show_step, NULL, cancel, &result);
    interrupts_stop(interrupts);
    cleanup_free char *summary = redact(result.summary ? result.summary : "");
    printf("%s\n", summary);
    bool ok = result.ok;
    probe_result_free(&result);
    cancel_unref(cancel);
    return ok ? EXIT_OK : EXIT_FAILED;
}

/* The environment to work on, made when there is none of that name. */
static char *choose(struct configfile *cf, const char *asked, struct error *err)
{
    const char *there = asked ? asked : configfile_default(cf);

    if (there && json_object_get(cf->environments, there))
        return xstrdup(there);
    for (;;) {
        cleanup_error struct error why = {0};
        cleanup_free char *name =
            there ? xstrdup(there) : terminal_line("A name for this set of settings [main]: ", err);
        if (!name)
            return NULL;
        if (configfile_add(cf, *name ? name : "main", &why))
            return xstrdup(*name ? name : "main");
        if (there) {
            error_move(err, &why);
            return NULL;
        }
        complain(&why);
    }
}

int configure_cli(struct configfile *cf, const char *environment)
{
    cleanup_error struct error err = {0};

    if (!isatty(0) || !isatty(1))
        return cmd_fail(
            EXIT_USAGE,
            "--cli asks questions and needs a terminal: use `exedev config set` in scripts");
    cleanup_free char *name = choose(cf, environment, &err);
    if (!name)
        return cmd_fail_err(&err);
    printf("Environment: %s\n", name);
    tell_unknown(cf, name);
    if (!ask_token(cf, name, &err) || !ask_key(cf, name, &err) || !ask_rest(cf, name, &err))
        return cmd_fail_err(&err);
    int errors = validate(cf, name);
    bool save = terminal_yes(errors ? "\nSave all the same?" : "\nSave?", !errors, &err);
    if (err.code)
        return cmd_fail_err(&err);
    if (!save) {
        puts("Nothing was saved.");
        return errors ? EXIT_FAILED : EXIT_OK;
    }
    if (!configfile_save(cf, &err))
        return cmd_fail_err(&err);
    printf("Saved to %s, secrets in %s.\n", cf->path,
           configfile_keyring_works() ? "the desktop keyring" : cf->secrets_path);
    if (errors)
        return EXIT_FAILED;
    bool go =
        terminal_yes("\nTest the connection now? It makes a real VM and deletes it.", false, &err);
    return go ? test(cf, name) : EXIT_OK;
}
