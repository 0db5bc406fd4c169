#include "cmd/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/deadline.h"
#include "base/json.h"
#include "base/text.h"
#include "cmd/cmd.h"

struct progress {
    bool quiet, json, terminal, color, shown;
    char *step, *text;
    int64_t since, last;
};

struct progress *progress_new(bool quiet, bool json)
{
    struct progress *p = xcalloc(1, sizeof *p);

    p->quiet = quiet;
    p->json = json;
    p->terminal = !quiet && !json && isatty(STDERR_FILENO);
    p->color = cmd_color(STDERR_FILENO);
    return p;
}

void progress_free(struct progress *p)
{
    if (!p)
        return;
    progress_quiet(p);
    free(p->step);
    free(p->text);
    free(p);
}

static size_t columns(void)
{
    struct winsize ws;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) == 0 && ws.ws_col ? ws.ws_col : 80;
}

void progress_quiet(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
}

/* A line that wraps could not be taken off again. */
static void show(struct progress *p, const char *line)
{
    size_t n = strlen(line), width = columns();

    if (n >= width)
        n = width - 1;
    progress_quiet(p);
    fprintf(stderr, "%.*s", (int)n, line);
    fflush(stderr);
    p->shown = true;
}

void progress_begin(struct progress *p, const char *step, const char *text)
{
    free(p->step);
    free(p->text);
    p->step = xstrdup(step);
    p->text = xstrdup(text);
    p->since = now_ms();
    if (!p->terminal)
        return;
    cleanup_free char *line = xasprintf("          %-9s %s ...", step, text);
    show(p, line);
}

void progress_step(struct progress *p, const char *step, const char *text, long long ms, bool ok)
{
    if (p->quiet)
        return;
    if (p->json) {
        cleanup_json json_t *line = json_pack("{s:s, s:s, s:I, s:b}", "step", step, "text", text,
                                              "ms", (json_int_t)ms, "ok", ok);
        cleanup_buf struct buf out = {0};
        json_write(&out, line);
        fprintf(stderr, "%s\n", out.data);
        return;
    }
    progress_quiet(p);
    fprintf(stderr, "%s%7.2f s%s %-9s %s\n", p->color ? (ok ? "\033[32m" : "\033[31m") : "",
            (double)ms / 1000, p->color ? "\033[0m" : "", step, text);
}

/* As much as fits into the width, from the percentage on. */
static char *fit(const char *step, int percent, const char *bytes, const char *rate,
                 const char *left, int width)
{
    enum { MOST = 24, LEAST = 8 };
    static const char bar[] = "########################";
    cleanup_free char *text = xasprintf("%3d%%  %s  %s/s  %s left", percent, bytes, rate, left),
                      *shorter = xasprintf("%d%%  %s/s  %s left", percent, rate, left);
    int head = (int)strlen("          123456789 [] "), room = width - 1 - head - (int)strlen(text);

    if (room >= LEAST) {
        room = room < MOST ? room : MOST;
        int full = percent * room / 100;
        return xasprintf("          %-9s [%.*s%*s] %s", step, full, bar, room - full, "", text);
    }
    if (width > (int)(strlen(step) + 1 + strlen(text)))
        return xasprintf("%s %s", step, text);
    if (width > (int)strlen(shorter))
        return steal_ptr(shorter);
    return xasprintf("%d%%", percent);
}

char *progress_amount(uint64_t files, uint64_t bytes)
{
    cleanup_free char *size = text_bytes(bytes);

    return xasprintf("%llu file%s, %s", (unsigned long long)files, files == 1 ? "" : "s", size);
}

void progress_transfer(uint64_t moved, uint64_t done, uint64_t total, void *arg)
{
    struct progress *p = arg;
    int64_t now = now_ms(), took = now - p->since;

    if (!p->terminal || !p->step || !done || now - p->last < 100)
        return;
    p->last = now;
    cleanup_free char *bytes = text_bytes(moved), *line = NULL;
    cleanup_free char *rate = text_bytes(took ? moved * 1000 / (uint64_t)took : 0);
    if (total && done <= total) {
        cleanup_free char *left =
            text_duration_ms((int64_t)((double)took * (double)(total - done) / (double)done));
        int percent = (int)((double)done * 100 / (double)total);
        line = fit(p->step, percent, bytes, rate, left, (int)columns());
    } else {
        line = xasprintf("          %-9s %s  %s/s", p->step, bytes, rate);
    }
    show(p, line);
}
