/* Command lines: options, help, suggestions. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "cmd/cmd.h"
#include "cmd/settings.h"

#define HELP_WIDTH 80

const char *cmd_name = "exedev";

/* Edits between two words (Levenshtein), rows of one word at a time. */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(b);
    cleanup_free size_t *row = xcalloc(n + 1, sizeof *row);

    for (size_t j = 0; j <= n; j++)
        row[j] = j;
    for (size_t i = 1; a[i - 1]; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[n];
}

const char *cmd_nearest(const char *word, const char *const *names)
{
    const char *best = NULL;
    size_t least = strlen(word) > 4 ? 4 : 3; /* one less edit is allowed */

    if (strlen(word) > 100)
        return NULL;
    for (; *names; names++) {
        size_t d = distance(word, *names);
        if (d < least) {
            least = d;
            best = *names;
        }
    }
    return best;
}

static void print_option(char letter, const char *name, const char *arg, const char *help)
{
    cleanup_buf struct buf left = {0};

    if (letter)
        buf_printf(&left, "  -%c, ", letter);
    else
        buf_puts(&left, "      ");
    buf_printf(&left, "--%s%s%s", name, arg ? " " : "", arg ? arg : "");
    if (left.len < 30)
        printf("%-30s%s\n", left.data, help);
    else
        printf("%s\n%30s%s\n", left.data, "", help);
}

/* Words are parted by one space or newline each. */
static void print_paragraph(const char *text)
{
    int column = 0;

    while (*text) {
        int n = (int)strcspn(text, " \n");
        bool wrap = column && column + 1 + n > HELP_WIDTH;
        printf("%s%.*s", wrap ? "\n" : column ? " " : "", n, text);
        column = wrap || !column ? n : column + 1 + n;
        text += n + (text[n] != 0);
    }
}

static void print_help(const struct cmd_option *options, const struct cmd_usage *usage)
{
    printf("usage: exedev %s %s\n\n", cmd_name, usage->synopsis);
    print_paragraph(usage->about);
    printf("\n\nOptions:\n");
    for (const struct cmd_option *o = options; o->name; o++) {
        if (o->help)
            print_option(o->letter, o->name, o->arg, o->help);
    }
    print_option('h', "help", NULL, "show this");
    if (usage->settings) {
        printf("\nSettings (all of them: exedev help settings):\n");
        print_option('E', "environment", "NAME", "use this one of the saved environments");
        print_option(0, "set", "KEY=VALUE", "set any setting for this call");
        print_option(0, "api-key-file", "FILE", "read the exe.dev token from FILE");
        print_option(0, "ssh-key-file", "FILE", "read the SSH private key from FILE");
    }
    if (usage->examples)
        printf("\nExamples:\n%s\n", usage->examples);
    printf("\nMore: man exedev-%s\n", cmd_name);
}

/* For shell completion (src/cmd/completion.c): every option, one a line. */
static void print_names(const struct cmd_option *options, const struct cmd_usage *usage)
{
    for (const struct cmd_option *o = options; o->name; o++) {
        if (o->help)
            printf("--%s%s\t%s\n", o->name, o->arg ? "=" : "", o->help);
    }
    printf("--help\tshow this\n");
    if (usage->settings)
        settings_print_names();
}

static void usage_error(const char *fmt, ...) __attribute__((format(printf, 1, 2), noreturn));
static void usage_error(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    fprintf(stderr, "exedev %s: %s\nTry `exedev %s --help`.\n", cmd_name, text, cmd_name);
    exit(EXIT_USAGE);
}

static void unknown_option(const char *shown, const char *name, const struct cmd_option *options,
                           const struct cmd_usage *usage) __attribute__((noreturn));
static void unknown_option(const char *shown, const char *name, const struct cmd_option *options,
                           const struct cmd_usage *usage)
{
    cleanup_free const char **names = NULL;
    int n = 0;

    for (const struct cmd_option *o = options; o->name; o++) {
        names = xreallocarray(names, (size_t)n + 1, sizeof *names);
        names[n++] = o->name;
    }
    if (usage->settings)
        settings_add_names(&names, &n);
    names = xreallocarray(names, (size_t)n + 2, sizeof *names);
    names[n] = "help";
    names[n + 1] = NULL;
    const char *near = cmd_nearest(name, names);
    if (near)
        usage_error("unknown option %s; did you mean --%s?", shown, near);
    usage_error("unknown option %s", shown);
}

static void store(const struct cmd_option *o, const char *value)
{
    switch (o->type) {
    case OPT_FLAG:
        *(bool *)o->value = true;
        return;
    case OPT_STRING:
        *(const char **)o->value = value;
        return;
    case OPT_INT: {
        char *end;
        errno = 0;
        long long v = strtoll(value, &end, 10);
        if (errno || end == value || *end)
            usage_error("--%s wants a whole number, not '%s'", o->name, value);
        *(long long *)o->value = v;
        return;
    }
    case OPT_LIST: {
        struct cmd_list *list = o->value;
        list->items = xreallocarray(list->items, (size_t)list->n + 2, sizeof *list->items);
        list->items[list->n++] = value;
        list->items[list->n] = NULL;
        return;
    }
    }
}

/* "-x", "-xVALUE", "-x VALUE", "-xyz" of flags. */
static void parse_letters(int argc, char **argv, int *i, const struct cmd_option *options,
                          const struct cmd_usage *usage)
{
    for (const char *at = argv[*i] + 1; *at; at++) {
        const struct cmd_option *o = options;
        if (*at == 'h') {
            print_help(options, usage);
            exit(EXIT_OK);
        }
        bool environment = usage->settings && *at == 'E';
        while (!environment && o->name && o->letter != *at)
            o++;
        if (!environment && !o->name) {
            char shown[3] = {'-', *at, 0};
            unknown_option(shown, shown + 1, options, usage);
        }
        if (!environment && o->type == OPT_FLAG) {
            store(o, NULL);
            continue;
        }
        const char *value = at[1] ? at + 1 : *i + 1 < argc ? argv[++*i] : NULL;
        if (!value)
            usage_error("-%c wants a value", *at);
        if (environment)
            settings_option("environment", value);
        else
            store(o, value);
        return;
    }
}

static void parse_name(int argc, char **argv, int *i, const struct cmd_option *options,
                       const struct cmd_usage *usage)
{
    const char *arg = argv[*i] + 2, *eq = strchr(arg, '=');
    cleanup_free char *name = eq ? xstrndup(arg, (size_t)(eq - arg)) : xstrdup(arg);
    const struct cmd_option *o = options;

    if (strcmp(name, "help") == 0) {
        print_help(options, usage);
        exit(EXIT_OK);
    }
    if (strcmp(name, "help-options") == 0) {
        print_names(options, usage);
        exit(EXIT_OK);
    }
    while (o->name && strcmp(o->name, name) != 0)
        o++;
    bool setting = !o->name && usage->settings && settings_is_option(name);
    if (!o->name && !setting)
        unknown_option(argv[*i], name, options, usage);
    if (o->name && o->type == OPT_FLAG) {
        if (eq)
            usage_error("--%s takes no value", name);
        store(o, NULL);
        return;
    }
    const char *value = eq ? eq + 1 : NULL;
    if (setting && !eq && settings_is_flag(name))
        value = "true";
    if (!value && *i + 1 < argc)
        value = argv[++*i];
    if (!value)
        usage_error("--%s wants a value", name);
    if (setting) {
        cleanup_free char *why = settings_option(name, value);
        if (why)
            usage_error("%s", why);
    } else {
        store(o, value);
    }
}

int cmd_parse(int argc, char **argv, const struct cmd_option *options,
              const struct cmd_usage *usage)
{
    cleanup_free char **operands = xcalloc((size_t)argc, sizeof *operands);
    bool literal = false;
    int n = 0;

    cmd_name = argv[0];
    for (int i = 1; i < argc; i++) {
        /* In `exec -- VM -- COMMAND` the second one is ours, too. */
        if (strcmp(argv[i], "--") == 0 && (!literal || (n > 0 && n + 1 == usage->command))) {
            literal = true;
        } else if (literal || argv[i][0] != '-' || !argv[i][1]) {
            operands[n++] = argv[i];
            literal = literal || n == usage->command;
        } else if (argv[i][1] == '-') {
            parse_name(argc, argv, &i, options, usage);
        } else {
            parse_letters(argc, argv, &i, options, usage);
        }
    }
    if (n < usage->min)
        usage_error("something is missing: exedev %s %s", cmd_name, usage->synopsis);
    if (usage->max >= 0 && n > usage->max)
        usage_error("'%s' is one argument too many", operands[usage->max]);
    memcpy(argv + argc - n, operands, (size_t)n * sizeof *operands);
    return argc - n;
}
