/* How a link gets connected, and closed. It has a thread of its own from the
 * first caller that needs the connection until it is down: it connects, then reads. Callers wait
 * for it. */
#include "lib/link.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "base/alloc.h"
#include "base/log.h"
#include "lib/link_private.h"
#include "lib/pace.h"
#include "lib/state.h"

#define FRESH_MS 90000
#define BOOT_MS 60000
#define STACK_SIZE (192u << 10)

static atomic_uint connections;

/* ---- small things ---- */

const char *link_label(const struct link *l)
{
    return l->vm_name ? l->vm_name : l->host;
}

void link_cond_init(pthread_cond_t *c)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

bool link_wait(pthread_cond_t *c, pthread_mutex_t *m, struct deadline d)
{
    if (d.at_ms == INT64_MAX) {
        pthread_cond_wait(c, m);
        return true;
    }
    struct timespec ts = deadline_timespec(d);
    return pthread_cond_timedwait(c, m, &ts) == 0;
}

void link_wake_fn(void *link)
{
    struct link *l = link;

    pthread_mutex_lock(&l->lock);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

unsigned link_connections_opened(void)
{
    return connections;
}

bool link_is_up(struct link *l)
{
    pthread_mutex_lock(&l->lock);
    bool up = l->state == LINK_UP && !l->closing;
    pthread_mutex_unlock(&l->lock);
    return up;
}

struct link_facts link_facts(struct link *l)
{
    pthread_mutex_lock(&l->lock);
    struct link_facts f = {.home = l->home,
                           .user = l->remote_user,
                           .has_bash = l->facts & VM_HELLO_BASH,
                           .is_root = l->facts & VM_HELLO_ROOT};
    pthread_mutex_unlock(&l->lock);
    return f;
}

/* ---- connecting: on the link's thread ---- */

static bool one_attempt(struct link *l, struct deadline d, struct error *err)
{
    struct connection c;

    if (!l->local_argv) {
        cleanup_free char *dir = state_dir(err);
        if (!dir || !pace_wait(dir, l->host, l->pace_burst, d, l->stop, err))
            return false;
    }
    if (!connection_start(l, &c, err))
        return false;
    connections++;
    if (!link_boot(l, &c, deadline_min(d, deadline_in(BOOT_MS)), l->stop, err)) {
        connection_end(&c, 0);
        return false;
    }
    l->conn = c;
    return true;
}

static bool may_heal(const struct error *err)
{
    return err->code == ERR_NETWORK || err->code == ERR_TIMEOUT || err->code == ERR_UNAVAILABLE;
}

/* A VM that was just made gets time until its sshd answers. */
static bool establish(struct link *l, struct error *err)
{
    struct deadline end = deadline_in(FRESH_MS);
    int pause = 200;

    for (;;) {
        if (one_attempt(l, end, err))
            break;
        if (!l->fresh || !may_heal(err) || deadline_left(end) <= pause || cancel_fired(l->stop))
            return false;
        log_debug("VM %s does not answer yet: %s", link_label(l), err->msg);
        struct pollfd p = {.fd = cancel_fd(l->stop), .events = POLLIN};
        poll(&p, 1, pause);
        if (cancel_fired(l->stop))
            return error_set(err, ERR_CANCELLED, "connecting to VM %s was cancelled",
                             link_label(l));
        error_clear(err);
        pause = pause < 1500 ? pause * 3 / 2 : 2000;
    }
    l->fresh = false;
    return true;
}

/* Lock held; gives it up while it works. */
static bool connect_once(struct link *l, struct error *err)
{
    cancel_unref(l->stop);
    l->stop = cancel_new();
    l->orphaned = false;
    bool ok = !l->closing ||
              error_set(err, ERR_CANCELLED, "VM %s: the connection was closed", link_label(l));
    pthread_mutex_unlock(&l->lock);
    ok = ok && establish(l, err);
    pthread_mutex_lock(&l->lock);
    l->attempts++;
    if (!ok) {
        error_copy(&l->failure, err);
        pthread_cond_broadcast(&l->changed);
        return false;
    }
    buf_free(&l->out);
    l->out_at = 0;
    l->bye = false;
    l->idle_since = now_ms();
    l->state = LINK_UP;
    bool found = l->facts & VM_HELLO_FOUND;
    if (l->resuming && !found) {
        cleanup_error struct error why = {0};
        error_set(
            &why, ERR_NETWORK,
            "VM %s: network: the connection broke, and the VM no longer knows the command (was it "
            "restarted?)",
            link_label(l));
        link_break_streams(l, true, &why);
    } else if (found) {
        link_send_resume(l);
    }
    l->resuming = false;
    pthread_cond_broadcast(&l->changed);
    return true;
}

/* Lock held. Connects again for the durable streams, for as long as the helper keeps them. */
static bool reconnect(struct link *l, struct error *err)
{
    struct deadline end = deadline_in(l->keep_ms);
    int pause = 100;

    for (;;) {
        if (connect_once(l, err))
            return true;
        if (!may_heal(err) || l->closing || deadline_passed(end) || !link_has_durable(l))
            return false;
        log_info("%s; trying again", err->msg);
        error_clear(err);
        link_wait(&l->changed, &l->lock, deadline_min(end, deadline_in(pause)));
        pause = pause < 4000 ? pause * 2 : 5000;
    }
}

static void went_down(struct link *l, const struct error *why)
{
    struct connection c = l->conn;

    l->conn = (struct connection){.fd = -1, .err_fd = -1, .pinned_fd = -1, .child = {-1, -1}};
    l->state = LINK_CONNECTING;
    l->end_answered = l->end_asked;
    l->end_left = UINT32_MAX;
    error_copy(&l->failure, why);
    bool keep = l->durable && why->code == ERR_NETWORK && !l->closing;
    link_break_streams(l, !keep, why);
    l->resuming = keep && link_has_durable(l);
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    if (why->code != ERR_CANCELLED)
        log_warn("%s", why->msg);
    connection_end(&c, l->bye ? 200 : 0);
    pthread_mutex_lock(&l->lock);
}

static void *link_main(void *arg)
{
    struct link *l = arg;
    cleanup_error struct error err = {0};

    prctl(PR_SET_NAME, "link");
    pthread_mutex_lock(&l->lock);
    bool up = connect_once(l, &err);
    while (up) {
        if (!l->waiters && l->closing)
            link_start_close(l, 0);
        pthread_mutex_unlock(&l->lock);
        link_serve(l, &err);
        pthread_mutex_lock(&l->lock);
        went_down(l, &err);
        if (!l->resuming)
            break;
        error_clear(&err);
        up = reconnect(l, &err);
    }
    if (l->resuming) {
        l->resuming = false;
        link_break_streams(l, true, &err);
    }
    l->state = LINK_DOWN;
    l->thread = false;
    l->closing = false;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    link_unref(l);
    return NULL;
}

static bool start_thread(struct link *l, struct error *err)
{
    pthread_attr_t attr;
    pthread_t thread;
    sigset_t all, old;

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, STACK_SIZE);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all); /* signals belong to the main thread */
    pthread_sigmask(SIG_SETMASK, &all, &old);
    link_ref(l);
    int sys = pthread_create(&thread, &attr, link_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    if (sys) {
        l->refs--; /* the caller has one */
        return error_sys(err, sys, "start a thread for VM %s", link_label(l));
    }
    l->thread = true;
    l->state = LINK_CONNECTING;
    return true;
}

/* ---- waiting for it: on callers' threads ---- */

static bool wait_attempt(struct link *l, struct deadline d, struct cancel *cancel,
                         struct error *err)
{
    unsigned before = l->attempts;

    if (!l->thread && !start_thread(l, err))
        return false;
    l->waiters++;
    while (l->state != LINK_UP && l->attempts == before && l->thread && !cancel_fired(cancel) &&
           !deadline_passed(d))
        link_wait(&l->changed, &l->lock, d);
    l->waiters--;
    bool given_up = l->state != LINK_UP && l->attempts == before && l->thread;
    if (given_up && !l->waiters && !l->resuming && l->stop) {
        l->orphaned = true; /* nobody wants it any more */
        cancel_fire(l->stop);
    }
    if (l->state == LINK_UP)
        return true;
    if (l->attempts != before && !l->orphaned) {
        error_copy(err, &l->failure);
        return false;
    }
    if (cancel_fired(cancel))
        return error_set(err, ERR_CANCELLED, "connecting to VM %s was cancelled", link_label(l));
    if (!l->thread || l->orphaned)
        return true; /* an old connection's, or an attempt that others gave up: once more */
    return error_set(err, ERR_TIMEOUT, "VM %s: connecting timed out%s%s", link_label(l),
                     l->failure.msg ? "; before that: " : "", l->failure.msg ? l->failure.msg : "");
}

bool link_wait_up(struct link *l, struct deadline d, struct cancel *cancel, struct error *err)
{
    bool ok = true;

    pthread_mutex_lock(&l->lock);
    while (ok && (l->state != LINK_UP || l->closing)) {
        if (cancel_fired(cancel))
            ok = error_set(err, ERR_CANCELLED, "connecting to VM %s was cancelled", link_label(l));
        else if (deadline_passed(d))
            ok = error_set(err, ERR_TIMEOUT, "VM %s: connecting timed out", link_label(l));
        else if (l->thread && l->closing)
            link_wait(&l->changed, &l->lock, d); /* it goes down first */
        else
            ok = wait_attempt(l, d, cancel, err);
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

bool link_connect(struct link *l, struct deadline d, struct cancel *cancel, struct error *err)
{
    int watch = cancel_watch(cancel, link_wake_fn, l);
    bool ok = link_wait_up(l, d, cancel, err);

    cancel_unwatch(cancel, watch);
    return ok;
}

/* ---- ending ---- */

bool link_end_all(struct link *l, struct deadline d, struct error *err)
{
    cleanup_buf struct buf b = {0};
    bool ok;

    if (!link_wait_up(l, d, NULL, err))
        return false;
    buf_put_u32(&b, VM_ENDALL_MARKER);
    buf_put_str(&b, l->marker ? l->marker : "", l->marker ? strlen(l->marker) : 0);
    pthread_mutex_lock(&l->lock);
    /* One at a time: answers carry no number. */
    while (l->end_asked != l->end_answered && !deadline_passed(d))
        link_wait(&l->changed, &l->lock, d);
    if (l->state != LINK_UP || l->end_asked != l->end_answered) {
        ok = error_set(err, ERR_TIMEOUT, "VM %s: ending its processes timed out", link_label(l));
    } else {
        unsigned mine = ++l->end_asked;
        link_send(l, VM_ENDALL, 0, 0, b.data, b.len);
        while (l->end_answered != mine && !deadline_passed(d))
            link_wait(&l->changed, &l->lock, d);
        if (l->end_answered != mine)
            ok =
                error_set(err, ERR_TIMEOUT, "VM %s: ending its processes timed out", link_label(l));
        else if (l->state != LINK_UP)
            ok = error_set(
                err, ERR_NETWORK,
                "VM %s: network: the connection broke while its processes were being ended",
                link_label(l));
        else if (l->end_left)
            ok = error_set(err, ERR_DOUBT, "VM %s: %u processes of ours could not be ended",
                           link_label(l), l->end_left);
        else
            ok = true;
    }
    pthread_mutex_unlock(&l->lock);
    return ok;
}

static void start_close(struct link *l, int ms)
{
    pthread_mutex_lock(&l->lock);
    if (l->thread) {
        if (l->state == LINK_UP)
            link_start_close(l, ms);
        l->closing = true;
        if (l->stop)
            cancel_fire(l->stop);
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
}

static void await_down(struct link *l, struct deadline d)
{
    pthread_mutex_lock(&l->lock);
    while (l->thread && !deadline_passed(d))
        link_wait(&l->changed, &l->lock, d);
    pthread_mutex_unlock(&l->lock);
}

void link_close(struct link *l)
{
    int ms = l->grace_ms + 1500; /* the helper ends what runs, with its grace, before it answers */

    start_close(l, ms);
    await_down(l, deadline_in(ms + 1000));
}

void link_close_all(int ms)
{
    struct deadline d = deadline_in(ms);
    size_t n;
    struct link **all = link_all(&n);

    for (size_t i = 0; i < n; i++)
        start_close(all[i], ms * 3 / 4);
    for (size_t i = 0; i < n; i++) {
        await_down(all[i], d);
        link_unref(all[i]);
    }
    free(all);
}
