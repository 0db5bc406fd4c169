/* sudo, as far as a sandbox with one user can: "root" is that user under another number, by a user
 * name space. It owns all that the VM may change. */
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOGIN_USER "exedev"
#define SECURE_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

extern char **environ;

struct sudo {
    const char *user, *dir;
    bool keep_env, login, shell, background, nothing;
    const char *keep_list;
};

static bool put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);

    if (fd < 0)
        return false;
    bool ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
    close(fd);
    return ok;
}

/* Where name spaces are used up the command runs as it is: better than not at all. */
static void become_root(void)
{
    char map[64];
    unsigned uid = getuid(), gid = getgid();

    if (uid == 0 || unshare(CLONE_NEWUSER) < 0)
        return;
    put("/proc/self/setgroups", "deny");
    snprintf(map, sizeof map, "0 %u 1", uid);
    put("/proc/self/uid_map", map);
    snprintf(map, sizeof map, "0 %u 1", gid);
    put("/proc/self/gid_map", map);
}

static bool in_list(const char *list, const char *name, size_t n)
{
    while (list && *list) {
        size_t len = strcspn(list, ",");
        if (len == n && strncmp(list, name, n) == 0)
            return true;
        list += len + (list[len] == ',');
    }
    return false;
}

static void reset_env(const struct sudo *s)
{
    static const char keep[] = "TERM,LANG,LANGUAGE,COLORTERM,DISPLAY,XAUTHORITY,LS_COLORS,TZ";
    char **old = environ;
    static char *none[] = {NULL};

    environ = none;
    for (; *old; old++) {
        size_t n = strcspn(*old, "=");
        if (in_list(keep, *old, n) || strncmp(*old, "LC_", 3) == 0 ||
            in_list(s->keep_list, *old, n))
            putenv(*old);
    }
}

static void set_env(const struct sudo *s, bool root, int argc, char **argv)
{
    char number[16];
    const char *caller = getenv("USER");
    char *was = strdup(caller ? caller : LOGIN_USER);

    if (!s->keep_env)
        reset_env(s);
    setenv("PATH", SECURE_PATH, 1);
    if (!s->keep_env || s->login) {
        setenv("HOME", root ? "/root" : "/home/" LOGIN_USER, 1);
        setenv("SHELL", "/bin/bash", 1);
    }
    setenv("USER", root ? "root" : LOGIN_USER, 1);
    setenv("LOGNAME", root ? "root" : LOGIN_USER, 1);
    setenv("SUDO_USER", was, 1);
    snprintf(number, sizeof number, "%u", getuid());
    setenv("SUDO_UID", number, 1);
    snprintf(number, sizeof number, "%u", getgid());
    setenv("SUDO_GID", number, 1);
    size_t n = 1;
    for (int i = 0; i < argc; i++)
        n += strlen(argv[i]) + 1;
    char *line = calloc(1, n);
    for (int i = 0; line && i < argc; i++) {
        strcat(line, i ? " " : "");
        strcat(line, argv[i]);
    }
    setenv("SUDO_COMMAND", line && *line ? line : "/bin/bash", 1);
    free(line);
    free(was);
}

static int usage(const char *what)
{
    fprintf(stderr, "sudo: %s: not an option that the VM's sudo knows\n", what);
    return 1;
}

/* Reads options from argv[i] on. Returns the index of the first word after them, or -1. */
static int options(struct sudo *s, int i, int argc, char **argv, bool *ended)
{
    static const char takes[] = "ughpCTrtDR"; /* sudo(8)'s short options with a value */

    for (; i < argc && argv[i][0] == '-' && argv[i][1]; i++) {
        const char *a = argv[i];
        if (strcmp(a, "--") == 0) {
            *ended = true;
            return i + 1;
        }
        if (a[1] == '-') {
            const char *eq = strchr(a, '='), *value = eq ? eq + 1 : NULL;
            size_t n = eq ? (size_t)(eq - a) : strlen(a);
#define IS(word) (n == sizeof(word) - 1 && strncmp(a, word, n) == 0)
            if (IS("--preserve-env")) {
                s->keep_list = value;
                s->keep_env = !value;
            } else if (IS("--user") || IS("--group") || IS("--chdir") || IS("--prompt") ||
                       IS("--host")) {
                if (!value && !(value = argv[++i]))
                    return usage(a), -1;
                if (IS("--user"))
                    s->user = value;
                else if (IS("--chdir"))
                    s->dir = value;
            } else if (IS("--login")) {
                s->login = true;
            } else if (IS("--shell")) {
                s->shell = true;
            } else if (IS("--background")) {
                s->background = true;
            } else if (IS("--validate") || IS("--reset-timestamp") || IS("--remove-timestamp")) {
                s->nothing = true;
            } else if (!IS("--non-interactive") && !IS("--stdin") && !IS("--set-home") &&
                       !IS("--askpass") && !IS("--preserve-groups") && !IS("--no-update")) {
                return usage(a), -1;
            }
#undef IS
            continue;
        }
        for (const char *c = a + 1; *c; c++) {
            if (strchr(takes, *c)) {
                const char *value = c[1] ? c + 1 : argv[++i];
                if (!value)
                    return usage(a), -1;
                if (*c == 'u')
                    s->user = value;
                else if (*c == 'D')
                    s->dir = value;
                break;
            }
            if (*c == 'E')
                s->keep_env = true;
            else if (*c == 'i')
                s->login = true;
            else if (*c == 's')
                s->shell = true;
            else if (*c == 'b')
                s->background = true;
            else if (*c == 'v' || *c == 'k' || *c == 'K')
                s->nothing = true;
            else if (!strchr("nHSAPBN", *c))
                return usage(a), -1;
        }
    }
    return i;
}

static bool is_assignment(const char *s)
{
    size_t n = strcspn(s, "=");

    if (!n || !s[n] || (s[0] >= '0' && s[0] <= '9'))
        return false;
    return strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == n;
}

/* sudo -s COMMAND and -i COMMAND hand the words to the shell, everything special escaped. */
static char *join(int argc, char **argv)
{
    size_t n = 1;

    for (int i = 0; i < argc; i++)
        n += 2 * strlen(argv[i]) + 1;
    char *out = malloc(n), *at = out;
    for (int i = 0; out && i < argc; i++) {
        if (i)
            *at++ = ' ';
        for (const char *c = argv[i]; *c; c++) {
            bool plain = (*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') ||
                         (*c >= '0' && *c <= '9') || strchr("_-$", *c) || (*c & 0x80);
            if (!plain)
                *at++ = '\\';
            *at++ = *c;
        }
    }
    if (out)
        *at = 0;
    return out;
}

int guest_sudo(int argc, char **argv)
{
    struct sudo s = {.user = "root"};
    char **vars = calloc((size_t)argc + 1, sizeof *vars);
    int at = 1, vars_n = 0;
    bool ended = false;
    char number[16];

    /* assignments may stand between options, and before "--" */
    for (int before = 0; vars && !ended && at != before;) {
        before = at;
        if ((at = options(&s, at, argc, argv, &ended)) < 0)
            return 1; /* the process ends: NOLINT(clang-analyzer-unix.Malloc) */
        while (!ended && at < argc && is_assignment(argv[at]))
            vars[vars_n++] = argv[at++];
    }
    snprintf(number, sizeof number, "#%u", getuid());
    bool root = strcmp(s.user, "root") == 0 || strcmp(s.user, "#0") == 0;
    if (!root && strcmp(s.user, LOGIN_USER) != 0 && strcmp(s.user, number) != 0) {
        fprintf(stderr,
                "sudo: this VM is a sandbox with the users " LOGIN_USER " and root only: "
                "it cannot run a command as %s\n",
                s.user);
        return 1;
    }
    if (s.nothing && at >= argc)
        return 0;
    if (at >= argc && !s.login && !s.shell) {
        fprintf(stderr, "usage: sudo [-nEHiSsb] [-u USER] [-D DIR] [VAR=VALUE] [--] COMMAND\n");
        return 1;
    }
    set_env(&s, root, argc - at, argv + at);
    for (int i = 0; i < vars_n; i++)
        putenv(vars[i]);
    if (root)
        become_root();
    if (s.login)
        s.dir = root ? "/root" : "/home/" LOGIN_USER;
    if (s.dir && chdir(s.dir) < 0) {
        fprintf(stderr, "sudo: unable to change directory to %s: %s\n", s.dir, strerror(errno));
        return 1;
    }
    if (s.background && fork() > 0)
        return 0;
    if (s.login || s.shell) {
        char *line = at < argc ? join(argc - at, argv + at) : NULL;
        execl("/bin/bash", s.login ? "-bash" : "bash", line ? "-c" : NULL, line, (char *)NULL);
    } else {
        execvp(argv[at], argv + at);
    }
    int why = errno; /* the process ends: NOLINT(clang-analyzer-unix.Malloc) */
    fprintf(stderr, "sudo: %s: %s\n", at < argc ? argv[at] : "/bin/bash",
            why == ENOENT ? "command not found" : strerror(why));
    return why == ENOENT ? 1 : 126;
}
