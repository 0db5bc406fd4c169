/* Messages, colours, questions, the pager. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "cmd/cmd.h"
#include "lib/redact.h"

int cmd_fail(int status, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    cleanup_free char *text = xvasprintf(fmt, ap);
    va_end(ap);
    cleanup_free char *clean = redact(text);
    fprintf(stderr, "exedev %s: %s\n", cmd_name, clean);
    return status;
}

static int status_of(const struct error *err)
{
    switch (err->code) {
    case ERR_INVALID:
        return EXIT_USAGE;
    case ERR_NETWORK:
    case ERR_AUTH:
    case ERR_HOST_KEY:
    case ERR_UNREGISTERED:
        return EXIT_TRANSPORT;
    default:
        return EXIT_FAILED;
    }
}

int cmd_fail_err(const struct error *err)
{
    return cmd_fail(status_of(err), "%s", err->msg ? err->msg : "failed for an unknown reason");
}

bool cmd_color(int fd)
{
    const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

    return isatty(fd) && !(no && *no) && term && strcmp(term, "dumb") != 0;
}

bool cmd_confirm(const char *question)
{
    char line[16];

    if (!isatty(STDIN_FILENO) || !isatty(STDERR_FILENO))
        return false;
    fprintf(stderr, "%s [y/N] ", question);
    return fgets(line, sizeof line, stdin) && (line[0] == 'y' || line[0] == 'Y');
}

void cmd_print_json(const json_t *value)
{
    cleanup_buf struct buf out = {0};

    json_write(&out, value);
    buf_putc(&out, '\n');
    fwrite(out.data, 1, out.len, stdout);
    fflush(stdout);
}

static FILE *pager;
static int real_stdout = -1;

void cmd_pager(void)
{
    const char *program = getenv("PAGER");

    if (pager || !isatty(STDOUT_FILENO) || (program && (!*program || strcmp(program, "cat") == 0)))
        return;
    fflush(stdout);
    setenv("LESS", "FRX", 0);
    pager = popen(program ? program : "less", "we");
    if (!pager)
        return;
    real_stdout = dup(STDOUT_FILENO);
    dup2(fileno(pager), STDOUT_FILENO);
}

void cmd_pager_end(void)
{
    if (!pager)
        return;
    fflush(stdout);
    dup2(real_stdout, STDOUT_FILENO);
    close(steal_fd(&real_stdout));
    pclose(pager);
    pager = NULL;
}

static void log_line(enum log_level level, const char *text, void *arg)
{
    (void)arg;
    cleanup_free char *clean = redact(text);
    fprintf(stderr, "exedev: %s: %s\n", log_level_name(level), clean);
}

void cmd_log_to_stderr(void)
{
    const char *debug = getenv("EXEDEV_DEBUG");

    log_set_sink(log_line, NULL, debug && *debug ? LOG_LEVEL_DEBUG : LOG_LEVEL_WARN);
}
