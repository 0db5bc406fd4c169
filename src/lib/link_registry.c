/* The links of the process: found by what they connect to, made from options that were checked. */
#include <errno.h>
#include <fcntl.h>
#include <openssl/sha.h>
#include <string.h>
#include <sys/eventfd.h>

#include "base/alloc.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/key.h"
#include "lib/link_private.h"

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct link *registry;

static char *copy(const char *s)
{
    return s && *s ? xstrdup(s) : NULL;
}

/* The same key read twice lies in two memfds: links are told apart by its digest. */
static bool open_key(const struct key *key, int *fd, char *digest, struct error *err)
{
    cleanup_secret_buf struct buf b = {0};
    unsigned char sum[SHA256_DIGEST_LENGTH];

    if (!io_read_file(key_path(key), 1 << 16, &b, err))
        return false;
    *fd = open(key_path(key), O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return error_sys(err, errno, "open the private key's memory file");
    SHA256((unsigned char *)b.data, b.len, sum);
    io_hex(sum, sizeof sum, digest);
    return true;
}

static bool check(const struct link_options *o, struct error *err)
{
    cleanup_buf struct buf shown = {0};

    if (!o->host || !text_is_host(o->host)) {
        text_visible(&shown, o->host ? o->host : "", o->host ? strlen(o->host) : 0, 80);
        return error_set(err, ERR_INVALID, "\"%s\" is no host name that may be given to ssh",
                         shown.len ? shown.data : "");
    }
    if (o->user && *o->user && !text_is_user(o->user)) {
        text_visible(&shown, o->user, strlen(o->user), 80);
        return error_set(err, ERR_INVALID, "\"%s\" is no user name that may be given to ssh",
                         shown.data);
    }
    if (o->port < 0 || o->port > 65535)
        return error_set(err, ERR_INVALID, "sshPort %d is not between 1 and 65535", o->port);
    if (o->strict && *o->strict && strcmp(o->strict, "accept-new") != 0 &&
        strcmp(o->strict, "yes") != 0 && strcmp(o->strict, "no") != 0)
        return error_set(err, ERR_INVALID, "strictHostKeyChecking must be accept-new, yes or no");
    return true;
}

static char *identify(const struct link_options *o, const char *digest)
{
    struct buf b = {0};
    const char *const parts[] = {o->host,
                                 o->user,
                                 digest,
                                 o->key ? NULL : o->identity_file,
                                 o->key ? NULL : o->agent_socket,
                                 o->strict,
                                 o->known_hosts,
                                 o->ssh_config_file,
                                 o->marker};

    buf_printf(&b, "%d %d %d", o->port ? o->port : 22, o->durable, o->local_argv != NULL);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *s = parts[i] ? parts[i] : "";
        buf_printf(&b, "\x1f%zu:%s", strlen(s), s);
    }
    for (size_t i = 0; o->local_argv && o->local_argv[i]; i++)
        buf_printf(&b, "\x1f%s", o->local_argv[i]);
    return buf_steal(&b);
}

static char **copy_words(const char *const *words)
{
    size_t n = 0;

    if (!words)
        return NULL;
    while (words[n])
        n++;
    char **list = xcalloc(n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++)
        list[i] = xstrdup(words[i]);
    return list;
}

static struct link *make(const struct link_options *o, char *id, int key_fd)
{
    struct link *l = xcalloc(1, sizeof *l);
    unsigned char random[16];
    char session[33];

    io_random(random, sizeof random);
    io_hex(random, sizeof random, session);
    l->refs = 1;
    l->id = id;
    l->key_fd = key_fd;
    l->vm_name = copy(o->vm_name);
    l->host = copy(o->host);
    l->user = copy(o->user);
    l->identity_file = copy(o->identity_file);
    l->agent_socket = copy(o->agent_socket);
    l->strict = copy(o->strict);
    l->known_hosts = copy(o->known_hosts);
    l->ssh_config_file = copy(o->ssh_config_file);
    l->marker = copy(o->marker);
    l->session = xstrdup(session);
    l->local_argv = copy_words(o->local_argv);
    l->port = o->port ? o->port : 22;
    l->keep_alive_seconds = o->keep_alive_seconds;
    l->heartbeat_ms = o->heartbeat_ms ? o->heartbeat_ms : 15000;
    l->dead_ms = o->dead_ms ? o->dead_ms : 3 * l->heartbeat_ms;
    l->grace_ms = o->kill_grace_ms ? o->kill_grace_ms : 250;
    l->pace_burst = o->pace_burst;
    l->durable = o->durable;
    l->keep_ms = o->durable_keep_ms ? o->durable_keep_ms : 600000;
    l->fresh = o->fresh;
    l->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    l->conn = (struct connection){.fd = -1, .err_fd = -1, .pinned_fd = -1, .child = {-1, -1}};
    pthread_mutex_init(&l->lock, NULL);
    link_cond_init(&l->changed);
    l->idle_since = now_ms();
    return l;
}

static void destroy(struct link *l)
{
    char *strings[] = {l->id,         l->vm_name,       l->host,
                       l->user,       l->identity_file, l->agent_socket,
                       l->strict,     l->known_hosts,   l->ssh_config_file,
                       l->marker,     l->session,       l->home,
                       l->remote_user};

    for (size_t i = 0; i < sizeof strings / sizeof *strings; i++)
        free(strings[i]);
    for (size_t i = 0; i < sizeof l->old_facts / sizeof *l->old_facts; i++)
        free(l->old_facts[i]);
    for (size_t i = 0; l->local_argv && l->local_argv[i]; i++)
        free(l->local_argv[i]);
    free(l->local_argv);
    if (l->key_fd >= 0)
        close(l->key_fd);
    if (l->wake >= 0)
        close(l->wake);
    buf_free(&l->out);
    error_clear(&l->failure);
    cancel_unref(l->stop);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l);
}

struct link *link_get(const struct link_options *o, struct error *err)
{
    char digest[2 * SHA256_DIGEST_LENGTH + 1] = "";
    cleanup_fd int key_fd = -1;

    if (!check(o, err) || (o->key && !open_key(o->key, &key_fd, digest, err)))
        return NULL;
    cleanup_free char *id = identify(o, digest);
    pthread_mutex_lock(&registry_lock);
    struct link *l = registry;
    while (l && strcmp(l->id, id) != 0)
        l = l->next;
    if (!l) {
        l = make(o, steal_ptr(id), steal_fd(&key_fd));
        l->registered = true;
        l->next = registry;
        registry = l;
    } else {
        l->fresh = l->fresh || o->fresh;
        l->refs++;
    }
    pthread_mutex_unlock(&registry_lock);
    return l;
}

struct link *link_ref(struct link *l)
{
    l->refs++;
    return l;
}

/* The registry holds no reference of its own: the last one, the thread's included, takes the link
 * out of it. So a connected link stays until it is closed or idle for too long. */
void link_unref(struct link *l)
{
    if (!l)
        return;
    pthread_mutex_lock(&registry_lock);
    bool last = --l->refs == 0;
    if (last && l->registered) {
        struct link **at = &registry;
        while (*at != l)
            at = &(*at)->next;
        *at = l->next;
    }
    pthread_mutex_unlock(&registry_lock);
    if (last)
        destroy(l);
}

struct link **link_all(size_t *n)
{
    struct link **all = NULL;

    *n = 0;
    pthread_mutex_lock(&registry_lock);
    for (struct link *l = registry; l; l = l->next) {
        all = xreallocarray(all, *n + 1, sizeof(struct link *));
        all[(*n)++] = link_ref(l);
    }
    pthread_mutex_unlock(&registry_lock);
    return all;
}
