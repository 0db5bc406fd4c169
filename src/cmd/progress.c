#include "cmd/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

void progress_quiet(struct progress *p)
{
    if (p->shown)
        fputs("\r\033[K", stderr);
    p->shown = false;
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
    progress_quiet(p);
    fprintf(stderr, "          %-8s %s ...", step, text);
    fflush(stderr);
    p->shown = true;
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
    fprintf(stderr, "%s%7.2f s%s %-8s %s\n", p->color ? (ok ? "\033[32m" : "\033[31m") : "",
            (double)ms / 1000, p->color ? "\033[0m" : "", step, text);
}

void progress_transfer(uint64_t done, uint64_t total, void *arg)
{
    struct progress *p = arg;
    int64_t now = now_ms(), took = now - p->since;

    if (!p->terminal || !p->step || now - p->last < 100)
        return;
    p->last = now;
    cleanup_free char *bytes = text_bytes(done);
    cleanup_free char *rate = text_bytes(took ? done * 1000 / (uint64_t)took : 0);
    progress_quiet(p);
    fprintf(stderr, "          %-8s ", p->step);
    if (total && done <= total) {
        enum { WIDTH = 24 };
        int full = (int)(done * WIDTH / total);
        cleanup_free char *left = text_duration_ms(
            done ? (int64_t)((double)took * (double)(total - done) / (double)done) : 0);
        fprintf(stderr, "[%.*s%*s] ", full, "########################", WIDTH - full, "");
        fprintf(stderr, "%3d%%  %s  %s/s  %s left", (int)(done * 100 / total), bytes, rate, left);
    } else {
        fprintf(stderr, "%s  %s/s", bytes, rate);
    }
    fflush(stderr);
    p->shown = true;
}
