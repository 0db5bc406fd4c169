/* The leases this process knows: the table of their states, their connections, the calls at work on
 * them. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/json.h"
#include "base/log.h"
#include "base/text.h"
#include "lib/key.h"
#include "lib/lease_private.h"
#include "lib/secret.h"

#define NEVER_MS 1000000000

static const char *const state_names[] = {"being created", "live", "being released", "in doubt",
                                          "gone"};

/* Which state may follow which. A lease that another worker made enters as live. */
static const bool follows[5][5] = {
    [LEASE_CREATING] =
        {[LEASE_LIVE] = true, [LEASE_CLOSING] = true, [LEASE_DOUBTFUL] = true, [LEASE_GONE] = true},
    [LEASE_LIVE] = {[LEASE_LIVE] = true, [LEASE_CLOSING] = true, [LEASE_GONE] = true},
    /* released and kept, or not confirmed, or gone; and a second release may join in */
    [LEASE_CLOSING] =
        {[LEASE_LIVE] = true, [LEASE_CLOSING] = true, [LEASE_DOUBTFUL] = true, [LEASE_GONE] = true},
    /* resume may find it well and alive after all */
    [LEASE_DOUBTFUL] =
        {[LEASE_LIVE] = true, [LEASE_CLOSING] = true, [LEASE_DOUBTFUL] = true, [LEASE_GONE] = true},
};

struct active {
    struct link *link;
    struct cancel *cancel;
    struct active *next;
};

/* One key may serve hundreds of leases: it is held once per text. */
struct held_key {
    char *text; /* secret */
    struct key *key;
    unsigned users;
    struct held_key *next;
};

struct lease {
    char *id;
    enum lease_state state;
    char *via; /* how `link` was made: its options in one string */
    struct held_key *key;
    struct link *link;
    struct active *active;
    struct lease *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t quieter = PTHREAD_COND_INITIALIZER;
static struct lease *table;
static struct held_key *keys;

/* ---- keys (the lock is held) ---- */

static void key_drop(struct held_key *h)
{
    if (!h || --h->users > 0)
        return;
    for (struct held_key **p = &keys; *p; p = &(*p)->next) {
        if (*p == h) {
            *p = h->next;
            break;
        }
    }
    key_free(h->key);
    secret_free(h->text);
    free(h);
}

static struct held_key *key_hold(const char *text, struct error *err)
{
    for (struct held_key *h = keys; h; h = h->next) {
        if (strcmp(h->text, text) == 0) {
            h->users++;
            return h;
        }
    }
    struct key *k = key_load(text, err);
    if (!k)
        return NULL;
    struct held_key *h = xcalloc(1, sizeof *h);
    *h = (struct held_key){.text = secret_dup(text), .key = k, .users = 1, .next = keys};
    keys = h;
    return h;
}

/* ---- states (the lock is held where a lease is passed) ---- */

static struct lease *find(const char *id)
{
    for (struct lease *l = table; l; l = l->next)
        if (strcmp(l->id, id) == 0)
            return l;
    return NULL;
}

static struct lease *add(const char *id, enum lease_state state)
{
    struct lease *l = xcalloc(1, sizeof *l);

    l->id = xstrdup(id);
    l->state = state;
    l->next = table;
    table = l;
    return l;
}

/* A lease that is gone leaves once its last call has; *drop gets its link, to be dropped without
 * the lock. */
static void settle(struct lease *l, struct link **drop)
{
    if (l->state != LEASE_GONE || l->active)
        return;
    for (struct lease **p = &table; *p; p = &(*p)->next) {
        if (*p == l) {
            *p = l->next;
            break;
        }
    }
    *drop = l->link;
    key_drop(l->key);
    free(l->via);
    free(l->id);
    free(l);
}

bool lease_enter(const char *id, enum lease_state to, struct error *err)
{
    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    enum lease_state had = l ? l->state : to;
    bool ok =
        !l || ((l->state == LEASE_GONE || l->state == LEASE_DOUBTFUL) && to == LEASE_CREATING);
    if (!l)
        add(id, to);
    else if (ok)
        l->state = to;
    pthread_mutex_unlock(&lock);
    return ok || error_set(err, ERR_EXISTS, "lease %s is %s in this worker", id, state_names[had]);
}

bool lease_move(const char *id, enum lease_state to, struct error *err)
{
    struct link *drop = NULL;

    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    if (!l && to != LEASE_GONE)
        l = add(id, LEASE_LIVE);
    enum lease_state had = l ? l->state : LEASE_GONE;
    bool ok = !l || had == to || follows[had][to];
    if (l && ok) {
        l->state = to;
        settle(l, &drop);
    }
    pthread_mutex_unlock(&lock);
    if (drop) {
        link_close(drop);
        link_unref(drop);
    }
    return ok || error_set(err, ERR_INTERNAL, "lease %s is %s and cannot become %s", id,
                           state_names[had], state_names[to]);
}

bool lease_is_held(const char *id)
{
    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    bool held = l && l->state != LEASE_GONE && l->state != LEASE_DOUBTFUL;
    pthread_mutex_unlock(&lock);
    return held;
}

/* ---- addresses and links ---- */

void lease_address_clear(struct lease_address *a)
{
    free(a->host);
    free(a->user);
    *a = (struct lease_address){0};
}

void address_from_record(const struct config *cfg, const struct record *r,
                         struct lease_address *out)
{
    const char *user = r->ssh_user ? r->ssh_user : cfg->ssh_user;

    *out = (struct lease_address){xstrdup(r->ssh_host), user ? xstrdup(user) : NULL};
}

void address_from_metadata(const struct config *cfg, const char *id, const json_t *metadata,
                           struct lease_address *out)
{
    const char *host = json_str(metadata, "sshHost");
    const char *login = json_str(metadata, "sshLogin");
    const char *dest = json_str(metadata, "sshDest");

    *out = (struct lease_address){.guessed = !(host && *host) && !(dest && *dest)};
    if (host && *host) {
        out->host = xstrdup(host);
        out->user = login && *login ? xstrdup(login) : NULL;
    } else if (dest && *dest) {
        const char *at = strrchr(dest, '@');
        out->host = xstrdup(at ? at + 1 : dest);
        out->user = at && at > dest ? xstrndup(dest, (size_t)(at - dest)) : NULL;
    } else {
        out->host = xasprintf("%s.exe.xyz", id);
    }
    if (!out->user && cfg->ssh_user)
        out->user = xstrdup(cfg->ssh_user);
}

/* Everything that decides which connection it is, but the key, in one string to compare. */
static char *via_text(const struct config *cfg, const struct lease_address *a)
{
    return xasprintf("%s\n%s\n%lld\n%s\n%s\n%s\n%s\n%s\n%lld %lld %lld %lld %d %lld", a->host,
                     a->user ? a->user : "", (long long)cfg->ssh_port,
                     cfg->ssh_identity_file ? cfg->ssh_identity_file : "",
                     cfg->ssh_agent_socket ? cfg->ssh_agent_socket : "",
                     cfg->strict_host_key_checking ? cfg->strict_host_key_checking : "",
                     cfg->ssh_known_hosts ? cfg->ssh_known_hosts : "",
                     cfg->ssh_config_file ? cfg->ssh_config_file : "",
                     (long long)cfg->keep_alive_seconds, (long long)cfg->heartbeat_seconds,
                     (long long)cfg->kill_grace_ms, (long long)cfg->connections_per_ten_seconds,
                     cfg->durable_commands, (long long)cfg->durable_seconds);
}

static struct link *make_link(const struct config *cfg, const char *id,
                              const struct lease_address *a, bool fresh, struct key *key,
                              struct error *err)
{
    struct link_options o = {
        .vm_name = id,
        .host = a->host,
        .user = a->user,
        .port = (int)cfg->ssh_port,
        .key = key,
        .identity_file = cfg->ssh_identity_file,
        .agent_socket = cfg->ssh_agent_socket,
        .strict = cfg->strict_host_key_checking,
        .known_hosts = cfg->ssh_known_hosts,
        .ssh_config_file = cfg->ssh_config_file,
        .keep_alive_seconds = (int)cfg->keep_alive_seconds,
        .heartbeat_ms = (int)(cfg->heartbeat_seconds * 1000),
        .dead_ms = (int)(cfg->heartbeat_seconds * 3000),
        .kill_grace_ms =
            cfg->kill_grace_ms ? (int)cfg->kill_grace_ms : 1, /* 0 is the link's default */
        .pace_burst = (int)cfg->connections_per_ten_seconds,
        .marker = id,
        .durable = cfg->durable_commands,
        .durable_keep_ms = (int)(cfg->durable_seconds * 1000),
        .fresh = fresh,
    };
    return link_get(&o, err);
}

/* The lock is held; a new reference. *old gets a link that was replaced. */
static struct link *link_of(struct lease *l, const struct config *cfg,
                            const struct lease_address *a, bool fresh, struct link **old,
                            struct error *err)
{
    cleanup_free char *via = via_text(cfg, a);
    const char *pem = cfg->ssh_private_key;
    bool same_key = pem ? l->key && strcmp(l->key->text, pem) == 0 : !l->key;

    /* What this process has entered it knows better than a guess from the name. */
    if (l->link && !fresh && (a->guessed || (same_key && strcmp(l->via, via) == 0)))
        return link_ref(l->link);
    struct held_key *key = pem ? key_hold(pem, err) : NULL;
    if (pem && !key)
        return NULL;
    struct link *made = make_link(cfg, l->id, a, fresh, key ? key->key : NULL, err);
    if (!made) {
        key_drop(key);
        return NULL;
    }
    *old = l->link;
    key_drop(l->key);
    free(l->via);
    l->link = made;
    l->key = key;
    l->via = steal_ptr(via);
    return link_ref(made);
}

struct link *lease_connect_to(const struct config *cfg, const char *id,
                              const struct lease_address *a, bool fresh, struct error *err)
{
    struct link *old = NULL;

    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    if (!l)
        l = add(id, LEASE_LIVE);
    struct link *link = link_of(l, cfg, a, fresh, &old, err);
    pthread_mutex_unlock(&lock);
    link_unref(old);
    return link;
}

/* ---- active work ---- */

static void add_active(struct lease *l, struct link *link, struct cancel *cancel)
{
    struct active *a = xcalloc(1, sizeof *a);

    *a = (struct active){link, cancel ? cancel_ref(cancel) : NULL, l->active};
    l->active = a;
}

static bool takes_work(const struct lease *l, struct error *err)
{
    return l->state == LEASE_CREATING || l->state == LEASE_LIVE ||
           error_set(err, ERR_CANCELLED, "lease %s is %s: it takes no more work", l->id,
                     state_names[l->state]);
}

struct link *lease_link(const struct config *cfg, const char *id, const json_t *metadata,
                        struct cancel *cancel, struct error *err)
{
    cleanup_address struct lease_address a = {0};
    struct link *old = NULL, *link = NULL;

    if (!text_is_vm_name(id)) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, id, strlen(id), 80);
        error_set(err, ERR_UNSAFE, "lease id '%s' is no VM name", shown.data ? shown.data : "");
        return NULL;
    }
    address_from_metadata(cfg, id, metadata, &a);
    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    if (!l)
        l = add(id, LEASE_LIVE);
    if (takes_work(l, err) && (link = link_of(l, cfg, &a, false, &old, err)))
        add_active(l, link, cancel);
    pthread_mutex_unlock(&lock);
    link_unref(old);
    return link;
}

struct link *lease_link_known(const char *id, struct cancel *cancel, struct error *err)
{
    struct link *link = NULL;

    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    if (!l || !l->link) {
        cleanup_buf struct buf shown = {0};
        text_visible(&shown, id, strlen(id), 80);
        error_set(
            err, ERR_NOT_FOUND,
            "this worker has no connection to lease %s: run a command on it, or resume it, first",
            shown.data ? shown.data : "");
    } else if (takes_work(l, err)) {
        link = link_ref(l->link);
        add_active(l, link, cancel);
    }
    pthread_mutex_unlock(&lock);
    return link;
}

void lease_link_done(struct link *link, struct cancel *cancel)
{
    struct link *drop = NULL;

    if (!link)
        return;
    pthread_mutex_lock(&lock);
    for (struct lease *l = table; l; l = l->next) {
        struct active **p = &l->active;
        while (*p && ((*p)->link != link || (*p)->cancel != cancel))
            p = &(*p)->next;
        if (!*p)
            continue;
        struct active *gone = *p;
        *p = gone->next;
        cancel_unref(gone->cancel);
        free(gone);
        if (!l->active)
            pthread_cond_broadcast(&quieter);
        settle(l, &drop);
        break;
    }
    pthread_mutex_unlock(&lock);
    link_unref(link);
    if (drop) {
        link_close(drop);
        link_unref(drop);
    }
}

bool lease_drain(const char *id, bool cancel_active, struct deadline patience, struct deadline d)
{
    bool told = false;

    pthread_mutex_lock(&lock);
    struct lease *l;
    /* Calls that ended may have taken the lease out of the table: it is looked for each time. */
    while ((l = find(id)) && l->active) {
        if (!told && (cancel_active || deadline_passed(patience))) {
            told = true;
            for (struct active *a = l->active; a; a = a->next)
                if (a->cancel)
                    cancel_fire(a->cancel);
            continue;
        }
        if (deadline_passed(d))
            break;
        struct deadline until = told ? d : deadline_min(patience, d);
        struct timespec ts = deadline_timespec(deadline_min(until, deadline_in(NEVER_MS)));
        pthread_cond_clockwait(&quieter, &lock, CLOCK_MONOTONIC, &ts);
    }
    bool quiet = !l || !l->active;
    pthread_mutex_unlock(&lock);
    return quiet;
}

void lease_hang_up(const char *id)
{
    pthread_mutex_lock(&lock);
    struct lease *l = find(id);
    struct link *link = l && l->link ? link_ref(l->link) : NULL;
    pthread_mutex_unlock(&lock);
    if (link) {
        link_close(link);
        link_unref(link);
    }
}

void lease_shutdown(int ms)
{
    link_close_all(ms);
}
