#include "lib/expiry.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/lease_private.h"

bool expiry_parse(const char *text, int64_t *unix_seconds, struct error *err)
{
    struct tm t = {0};
    int used = 0, zone = 0, zh, zm;
    char sign;

    bool ok = sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d%n", &t.tm_year, &t.tm_mon, &t.tm_mday,
                     &t.tm_hour, &t.tm_min, &t.tm_sec, &used) == 6 &&
              used == 19 && t.tm_year >= 1970 && t.tm_mon >= 1 && t.tm_mon <= 12 &&
              t.tm_mday >= 1 && t.tm_mday <= 31 && t.tm_hour >= 0 && t.tm_hour <= 23 &&
              t.tm_min >= 0 && t.tm_min <= 59 && t.tm_sec >= 0 && t.tm_sec <= 60;
    const char *rest = ok ? text + used : "";
    if (ok && *rest == '.') {
        size_t digits = strspn(rest + 1, "0123456789");
        ok = digits > 0;
        rest += 1 + digits;
    }
    if (ok && strcmp(rest, "Z") == 0)
        zone = 0;
    else if (ok && strlen(rest) == 6 && sscanf(rest, "%c%2d:%2d", &sign, &zh, &zm) == 3 &&
             (sign == '+' || sign == '-') && zh >= 0 && zh <= 23 && zm >= 0 && zm <= 59)
        zone = (sign == '-' ? -1 : 1) * (zh * 3600 + zm * 60);
    else
        ok = false;
    if (!ok) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, text, strlen(text), 60);
        return error_set(err, ERR_INVALID, "'%s' is no ISO 8601 time (2026-01-31T12:00:00Z)",
                         shown.data ? shown.data : "");
    }
    t.tm_year -= 1900;
    t.tm_mon -= 1;
    *unix_seconds = (int64_t)timegm(&t) - zone;
    return true;
}

char *expiry_text(int64_t unix_seconds)
{
    time_t at = (time_t)unix_seconds;
    struct tm t;
    char text[40];

    gmtime_r(&at, &t);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S.000Z", &t);
    return xstrdup(text);
}

static bool timer(struct link *l, const char *verb, const char *epoch, struct buf *out, int *status,
                  struct deadline d, struct cancel *cancel, struct error *err)
{
    const char *argv[] = {"timer", verb, epoch, NULL};

    return guest_builtin(l, argv, out, status, d, cancel, err) ||
           error_prefix(err, "expiry timer: %s", verb);
}

static bool refused(const struct buf *out, const char *verb, int status, struct error *err)
{
    cleanup_buf struct buf shown = {0};

    text_visible(&shown, out->data ? out->data : "", out->len, 300);
    return error_set(err, ERR_UNSUPPORTED, "the VM could not %s an expiry timer (status %d)%s%s",
                     verb, status, shown.len ? ": " : "", shown.len ? shown.data : "");
}

/* The VM's clock may be another: how many seconds it is ahead of ours. */
static bool clock_ahead(struct link *l, int64_t *ahead, struct deadline d, struct cancel *cancel,
                        struct error *err)
{
    cleanup_buf struct buf out = {0};

    if (!guest_run(l, (const char *[]){"date", "+%s", NULL}, &out, d, cancel, err))
        return false;
    int64_t there = out.len ? strtoll(out.data, NULL, 10) : 0;
    if (there <= 0)
        return error_set(err, ERR_UNSUPPORTED, "the VM does not tell its time");
    *ahead = there - (int64_t)time(NULL);
    return true;
}

bool expiry_read(struct link *l, int64_t *armed, bool *expired, struct deadline d,
                 struct cancel *cancel, struct error *err)
{
    cleanup_buf struct buf out = {0}, mark = {0};
    int64_t ahead = 0;
    int status;

    *armed = 0;
    *expired = false;
    if (!timer(l, "read", NULL, &out, &status, d, cancel, err) ||
        !guest_run(l,
                   (const char *[]){
                       "sh", "-c", "cat \"/var/tmp/exedev-expired-$(id -u)\" 2>/dev/null; :", NULL},
                   &mark, d, cancel, err))
        return false;
    *expired = mark.len >= 7 && memcmp(mark.data, "expired", 7) == 0;
    int64_t at = status == 0 && out.len ? strtoll(out.data, NULL, 10) : 0;
    if (at > 0 && clock_ahead(l, &ahead, d, cancel, err))
        *armed = at - ahead;
    return at == 0 || *armed > 0;
}

bool expiry_arm(struct link *l, int64_t at, int64_t *armed, struct deadline d,
                struct cancel *cancel, struct error *err)
{
    cleanup_buf struct buf out = {0}, back = {0};
    int64_t ahead = 0;
    int status;

    *armed = 0;
    if (at <= (int64_t)time(NULL))
        return error_set(err, ERR_INVALID, "the expiry lies in the past");
    if (!clock_ahead(l, &ahead, d, cancel, err))
        return false;
    cleanup_free char *epoch = xasprintf("%lld", (long long)at + ahead);
    if (!timer(l, "arm", epoch, &out, &status, d, cancel, err))
        return false;
    if (status != 0)
        return refused(&out, "arm", status, err);
    if (!timer(l, "read", NULL, &back, &status, d, cancel, err))
        return false;
    if (status != 0 || !back.len || strtoll(back.data, NULL, 10) != at + ahead)
        return error_set(err, ERR_UNSUPPORTED, "the VM took an expiry timer and does not show it");
    *armed = at;
    return true;
}
