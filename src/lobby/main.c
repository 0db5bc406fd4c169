/* exedev-lobby: exe.dev on one machine. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/spawn.h"
#include "base/text.h"
#include "lobby/disk.h"
#include "lobby/event.h"
#include "lobby/fault.h"
#include "lobby/http.h"
#include "lobby/listen.h"
#include "lobby/options.h"
#include "lobby/proxy.h"
#include "lobby/tls.h"
#include "lobby/token.h"
#include "lobby/vms.h"

#define FOLDER "exedev-lobby."

struct lobby {
    struct options o;
    char *base;
    int lock;
    char *keys;                /* registered public keys, a line each */
    char *own_token, *own_key; /* files that we made, NULL when given */
    char *cert, *key;          /* PEM */
    char *url, *control, *proxy, *ca;
};

static int take_lock(const char *base)
{
    cleanup_free char *path = xasprintf("%s/lock", base);
    cleanup_fd int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
        return -1;
    return steal_fd(&fd);
}

/* For a folder that remove_stale of another lobby may look at: the lock is held before it can be
 * seen, else the folder would be taken for a dead one's in the moment between. */
static int make_lock(const char *base)
{
    cleanup_free char *hidden = xasprintf("%s/lock.new", base), *path = xasprintf("%s/lock", base);
    cleanup_fd int fd = open(hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0 || rename(hidden, path) < 0)
        return -1;
    return steal_fd(&fd);
}

/* A lobby that was killed could not clean up. Its folder is ours to remove: same owner, lock free.
 */
static void remove_stale(const char *temp)
{
    cleanup_dir DIR *dir = opendir(temp);

    for (struct dirent *e; dir && (e = readdir(dir));) {
        struct stat st;
        if (!text_starts(e->d_name, FOLDER) ||
            fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISDIR(st.st_mode) ||
            st.st_uid != geteuid())
            continue;
        cleanup_free char *path = xasprintf("%s/%s", temp, e->d_name);
        cleanup_free char *lock = xasprintf("%s/lock", path);
        if (access(lock, F_OK) < 0) /* being made this moment */
            continue;
        cleanup_fd int fd = take_lock(path);
        if (fd >= 0)
            disk_remove(path, NULL);
    }
}

static bool make_base(struct lobby *l, struct error *err)
{
    const char *temp = getenv("TMPDIR");

    if (l->o.state) {
        if (!io_mkdirs(l->o.state, 0711, err))
            return error_prefix(err, "--state");
        l->base = realpath(l->o.state, NULL);
    } else {
        temp = temp && temp[0] == '/' ? temp : "/tmp";
        remove_stale(temp);
        l->base = xasprintf("%s/" FOLDER "XXXXXX", temp);
        if (!mkdtemp(l->base)) {
            free(steal_ptr(l->base));
            return error_sys(err, errno, "make a folder in %s", temp);
        }
        /* the VMs' user passes through, when we are root */
        chmod(l->base, 0711);
    }
    if (!l->base)
        return error_sys(err, errno, "--state %s", l->o.state);
    /* mount(2) would take them for the ends of its options */
    if (strpbrk(l->base, ":,\\\""))
        return error_set(err, ERR_INVALID,
                         "%s: a folder for VMs must not have any of : , \\ \" in its path",
                         l->base);
    l->lock = l->o.state ? take_lock(l->base) : make_lock(l->base);
    if (l->lock < 0)
        return error_set(err, ERR_EXISTS, "%s is in use by another exedev-lobby", l->base);
    return true;
}

/* Lines of an authorized_keys or .pub file; options before the type are not for us. */
static bool add_keys(struct buf *keys, const char *path, struct error *err)
{
    cleanup_buf struct buf text = {0};
    char *save = NULL;
    unsigned found = 0;

    if (!io_read_file(path, 1 << 20, &text, err))
        return error_prefix(err, "--authorized-key");
    for (char *line = text.data ? strtok_r(text.data, "\r\n", &save) : NULL; line;
         line = strtok_r(NULL, "\r\n", &save)) {
        cleanup_free char *key = text_trim(line);
        if (!*key || *key == '#')
            continue;
        if (strstr(key, "PRIVATE KEY"))
            return error_set(err, ERR_INVALID,
                             "--authorized-key %s: a private key; give its .pub file", path);
        if (!text_starts(key, "ssh-") && !text_starts(key, "ecdsa-") && !text_starts(key, "sk-"))
            return error_set(err, ERR_INVALID, "--authorized-key %s: not a public key: \"%.40s\"",
                             path, key);
        buf_printf(keys, "%s\n", key);
        found++;
    }
    return found || error_set(err, ERR_INVALID, "--authorized-key %s: no key in it", path);
}

static bool own_key(struct lobby *l, struct buf *keys, struct error *err)
{
    cleanup_free char *public = xasprintf("%s/id_ed25519.pub", l->base);
    cleanup_buf struct buf out = {0}, problems = {0};
    int status = 0;

    l->own_key = xasprintf("%s/id_ed25519", l->base);
    const char *argv[] = {"ssh-keygen", "-q",           "-t", "ed25519",  "-N", "",
                          "-C",         "exedev-lobby", "-f", l->own_key, NULL};
    if (access(l->own_key, F_OK) < 0) {
        if (!spawn_run(argv, NULL, 0, &out, &problems, 4096, deadline_in(20000), &status, err))
            return false;
        if (status)
            return error_set(err, ERR_SYSTEM, "make the key %s: ssh-keygen failed: %s", l->own_key,
                             problems.data ? problems.data : "");
    }
    return add_keys(keys, public, err);
}

static bool own_token(struct lobby *l, struct error *err)
{
    unsigned char r[16];
    char hex[2 * sizeof r + 1];
    cleanup_buf struct buf have = {0};

    l->own_token = xasprintf("%s/token", l->base);
    if (io_read_file(l->own_token, TOKEN_MAX, &have, NULL) && have.len) {
        cleanup_free char *token = text_trim(have.data);
        token_add_plain(token);
        return true;
    }
    io_random(r, sizeof r);
    io_hex(r, sizeof r, hex);
    token_add_plain(hex);
    return disk_put(l->own_token, 0600, (uid_t)-1, hex, strlen(hex), err);
}

static bool set_up_access(struct lobby *l, struct error *err)
{
    cleanup_buf struct buf keys = {0};
    json_t *value;
    size_t i;

    json_array_foreach (l->o.key_files, i, value) {
        if (!add_keys(&keys, json_string_value(value), err))
            return false;
    }
    json_array_foreach (l->o.tokens, i, value)
        token_add_plain(json_string_value(value));
    if (!keys.len && !own_key(l, &keys, err))
        return false;
    /* with keys alone, tokens signed by them will do */
    if (!json_array_size(l->o.tokens) && !json_array_size(l->o.key_files) && !own_token(l, err))
        return false;
    buf_putc(&keys, 0);
    l->keys = buf_steal(&keys);
    return token_setup(l->keys, l->base, err);
}

/* 2222 unless something listens there on all addresses. */
static unsigned choose_ssh_port(unsigned wanted)
{
    struct sockaddr_in at;

    if (wanted)
        return wanted;
    listen_parse("127.77.77.77:2222", &at, NULL);
    for (int i = 0; i < 2; i++) {
        cleanup_fd int fd = listen_tcp(&at, NULL);
        if (fd >= 0)
            return ntohs(at.sin_port);
        at.sin_port = 0;
    }
    return 2222;
}

static bool read_pem(const char *path, char **out, struct error *err)
{
    cleanup_buf struct buf text = {0};

    if (!path)
        return true;
    if (!io_read_file(path, 1 << 20, &text, err))
        return false;
    buf_putc(&text, 0);
    *out = buf_steal(&text);
    return true;
}

static void announce(const struct lobby *l, const struct sandbox_host *h, unsigned port,
                     const char *note)
{
    json_t *line = json_pack("{s:s, s:s, s:i, s:s, s:s, s:s}", "url", l->url, "control", l->control,
                             "sshPort", (int)port, "hostKey", h->host_key_line, "disk",
                             h->disk == DISK_OVERLAY ? "overlay" : "plain", "dir", l->base);

    if (l->own_token)
        json_object_set_new(line, "tokenFile", json_string(l->own_token));
    if (l->own_key)
        json_object_set_new(line, "keyFile", json_string(l->own_key));
    if (l->proxy) {
        json_object_set_new(line, "proxy", json_string(l->proxy));
        json_object_set_new(line, "caFile", json_string(l->ca));
    }
    if (note)
        json_object_set_new(line, "note", json_string(note));
    event_emit("listening", line);
    if (l->o.json)
        return;
    printf("EXEDEV_API_URL=%s EXEDEV_SSH_PORT=%u", l->url, port);
    if (l->own_token)
        printf(" EXEDEV_API_KEY_FILE=%s", l->own_token);
    if (l->own_key)
        printf(" EXEDEV_SSH_KEY_FILE=%s", l->own_key);
    putchar('\n');
    fflush(stdout);
}

static bool start(struct lobby *l, struct error *err)
{
    struct sandbox_host h = {.outlive = l->o.state != NULL};
    cleanup_free char *note = NULL;
    json_t *value;
    size_t i;

    json_array_foreach (l->o.faults, i, value) {
        if (!fault_add(json_string_value(value), err))
            return false;
    }
    if (l->o.state && fault_needs_relay())
        return error_set(err, ERR_INVALID,
                         "ssh:burst and ssh:freeze end with the lobby, VMs in --state do not");
    if (!make_base(l, err) || !set_up_access(l, err) || !read_pem(l->o.tls_cert, &l->cert, err) ||
        !read_pem(l->o.tls_key, &l->key, err))
        return false;
    h.base = xstrdup(l->base);
    if (!sandbox_host_setup(&h, l->o.disk, &note, err))
        return false;
    struct vms_options vo = {.host = h,
                             .port = choose_ssh_port(l->o.ssh_port),
                             .max_vms = l->o.max_vms,
                             .max_sessions = l->o.max_sessions,
                             .keys = l->keys,
                             .list_tags = !l->o.hide_tags,
                             .relay = l->o.relay || fault_needs_relay()};
    struct http_options ho = {
        .listen = l->o.listen, .cert = l->cert, .key = l->key, .keys = l->keys};
    if (l->o.want_proxy) {
        l->ca = l->o.tls_cert ? realpath(l->o.tls_cert, NULL) : xasprintf("%s/ca.pem", l->base);
        if (!tls_setup(l->cert, l->key, l->ca, err) ||
            !proxy_start(l->o.proxy, l->o.proxy_ports, &l->proxy, err))
            return false;
    }
    if (!vms_start(&vo, err) || !http_start(&ho, &l->url, &l->control, err))
        return false;
    announce(l, &h, vo.port, note);
    vms_report();
    return true;
}

/* Ends this process without unwinding what other threads still use. */
static _Noreturn void leave(struct lobby *l, int status)
{
    if (l->base && !l->o.state && l->lock >= 0)
        disk_remove(l->base, NULL);
    fflush(NULL);
    _exit(status);
}

int main(int argc, char **argv)
{
    static struct lobby l = {.lock = -1};
    cleanup_error struct error err = {0};
    sigset_t stop;
    int sig;

    if (argc > 1 && strcmp(argv[1], SANDBOX_ENTER) == 0)
        return sandbox_enter(argc, argv);
    if (!options_parse(&l.o, argc, argv, &err)) {
        fprintf(stderr, "exedev-lobby: %s\n", err.msg);
        return 2;
    }
    if (l.o.done)
        return 0;
    event_set_json(l.o.json);
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    sigaddset(&stop, SIGHUP);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
    if (!start(&l, &err)) {
        fprintf(stderr, "exedev-lobby: %s\n", err.msg);
        leave(&l, err.code == ERR_UNSUPPORTED ? SANDBOX_FORBIDDEN
                  : err.code == ERR_INVALID   ? 2
                                              : 1);
    }
    sigwait(&stop, &sig);
    event_emit("stopping", NULL);
    http_stop();
    proxy_stop();
    vms_stop();
    event_emit("stopped", NULL);
    leave(&l, 0);
}
