/* Duplex channels and login terminals against the real helper, over a socket on this machine. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "lib/channel.h"
#include "link_help.h"

static struct link *vm;

static int setup(void **state)
{
    (void)state;
    vm = local_link((struct link_options){.vm_name = "vm-c", .marker = "test-channel"});
    return link_connect(vm, deadline_in(20000), NULL, NULL) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    drop_link(vm);
    return 0;
}

/* What a host sees. */
struct host {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct buf got;
    int exits, gone, written, refused;
    int code;
    bool transport_closed;
};

static void on_data(const char *route, const char *session, const char *data, size_t n, void *arg)
{
    struct host *h = arg;

    assert_non_null(route);
    assert_non_null(session);
    assert_true(n <= 65536);
    pthread_mutex_lock(&h->lock);
    assert_int_equal(h->exits, 0);
    buf_put(&h->got, data, n);
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void on_exit_event(const char *route, const char *session, int code, bool transport_closed,
                          void *arg)
{
    struct host *h = arg;

    (void)route;
    (void)session;
    pthread_mutex_lock(&h->lock);
    h->exits++;
    h->code = code;
    h->transport_closed = transport_closed;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void on_gone(void *arg)
{
    struct host *h = arg;

    pthread_mutex_lock(&h->lock);
    h->gone++;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void on_written(const struct error *why, void *arg)
{
    struct host *h = arg;

    pthread_mutex_lock(&h->lock);
    if (why)
        h->refused++;
    else
        h->written++;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void host_init(struct host *h)
{
    *h = (struct host){.code = -2};
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->changed, NULL);
}

#define AWAIT(h, condition)                                                                        \
    do {                                                                                           \
        struct timespec until;                                                                     \
        clock_gettime(CLOCK_REALTIME, &until);                                                     \
        until.tv_sec += 20;                                                                        \
        pthread_mutex_lock(&(h)->lock);                                                            \
        while (!(condition) && pthread_cond_timedwait(&(h)->changed, &(h)->lock, &until) == 0)     \
            ;                                                                                      \
        bool held = (condition);                                                                   \
        pthread_mutex_unlock(&(h)->lock);                                                          \
        assert_true(held);                                                                         \
    } while (0)

static char *open_on(struct link *l, struct host *h, const char *route, const char *const *command,
                     struct error *err)
{
    return channel_open(l,
                        &(struct channel_request){.kind = CHANNEL_DUPLEX,
                                                  .route = route,
                                                  .command = command,
                                                  .events = {on_data, on_exit_event, on_gone},
                                                  .arg = h},
                        deadline_in(20000), NULL, err);
}

static void close_route(const char *route, const char *session)
{
    cleanup_free char *echoed = channel_close(route, deadline_in(10000));

    if (session)
        assert_string_equal(echoed, session);
    else
        assert_null(echoed);
}

static void bytes_go_both_ways_in_order(void **state)
{
    (void)state;
    static const char *const cat[] = {"cat", NULL};
    struct host h;
    cleanup_buf struct buf sent = {0};

    host_init(&h);
    cleanup_free char *session = open_on(vm, &h, "r1", cat, NULL);
    assert_non_null(session);
    channel_start("r1");
    for (int i = 0; i < 200; i++) {
        char part[3000];
        for (size_t k = 0; k < sizeof part; k++)
            part[k] = (char)(i + (int)k);
        buf_put(&sent, part, sizeof part);
        channel_write("r1", session, part, sizeof part, on_written, &h);
        AWAIT(&h, h.written + h.refused == i + 1);
    }
    AWAIT(&h, h.got.len == sent.len);
    assert_memory_equal(h.got.data, sent.data, sent.len);
    assert_int_equal(h.refused, 0);
    assert_true(channel_stop("r1", session, NULL));
    AWAIT(&h, h.exits == 1);
    assert_int_equal(h.code, -1);
    assert_false(h.transport_closed);
    close_route("r1", session);
    AWAIT(&h, h.gone == 1);
    buf_free(&h.got);
}

static void an_exit_code_comes_after_the_data(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "head -c 300000 /dev/zero; exit 9", NULL};
    struct host h;

    host_init(&h);
    cleanup_free char *session = open_on(vm, &h, "r2", argv, NULL);
    usleep(50000);
    assert_int_equal(h.got.len, 0); /* nothing before the host has bound the session */
    channel_start("r2");
    AWAIT(&h, h.exits == 1);
    assert_int_equal(h.got.len, 300000);
    assert_int_equal(h.code, 9);
    assert_false(h.transport_closed);
    close_route("r2", session);
    AWAIT(&h, h.gone == 1);
    assert_int_equal(h.exits, 1);
    buf_free(&h.got);
}

static void only_the_exact_pair_counts(void **state)
{
    (void)state;
    static const char *const cat[] = {"cat", NULL};
    struct host h, other;
    struct error err = {0};

    host_init(&h);
    host_init(&other);
    cleanup_free char *session = open_on(vm, &h, "r3", cat, NULL);
    channel_start("r3");
    channel_write("r3", "another session", "x", 1, on_written, &h);
    channel_write("another route", session, "x", 1, on_written, &h);
    channel_write(NULL, session, "x", 1, on_written, &h); /* no login terminal */
    AWAIT(&h, h.refused == 3);
    assert_false(channel_stop("r3", "another session", NULL));
    assert_null(open_on(vm, &other, "r3", cat, &err));
    assert_int_equal(err.code, ERR_EXISTS);
    AWAIT(&other, other.gone == 1);
    error_clear(&err);
    close_route("r3", session);
    assert_int_equal(h.exits, 0); /* closed: no event follows */
    channel_write("r3", session, "x", 1, on_written, &h);
    AWAIT(&h, h.refused == 4);
    assert_null(open_on(vm, &other, "r3", cat, &err)); /* nor is the route used again */
    error_clear(&err);
    assert_int_equal(h.got.len, 0);
    AWAIT(&h, h.gone == 1);
    AWAIT(&other, other.gone == 2);
}

static void a_close_before_the_open_wins(void **state)
{
    (void)state;
    static const char *const cat[] = {"cat", NULL};
    struct host h;
    struct error err = {0};

    host_init(&h);
    close_route("r4", NULL);
    assert_null(open_on(vm, &h, "r4", cat, &err));
    assert_int_equal(err.code, ERR_EXISTS);
    error_clear(&err);
    AWAIT(&h, h.gone == 1);
}

static void *open_slowly(void *arg)
{
    static const char *const cat[] = {"cat", NULL};
    static const char *const deaf[] = {"sh", "-c", "sleep 300", NULL};
    struct link *l = link_get(
        &(struct link_options){
            .vm_name = "vm-c", .host = "localhost", .local_argv = deaf, .marker = "deaf"},
        NULL);
    struct error err = {0};
    char *session = open_on(l, arg, "r5", cat, &err);
    intptr_t cancelled = !session && err.code == ERR_CANCELLED;

    error_clear(&err);
    drop_link(l);
    return (void *)cancelled;
}

static void a_close_during_the_open_ends_it(void **state)
{
    (void)state;
    struct host h;
    pthread_t thread;
    void *cancelled;

    host_init(&h);
    pthread_create(&thread, NULL, open_slowly, &h);
    usleep(100000);
    close_route("r5", NULL);
    pthread_join(thread, &cancelled);
    assert_non_null(cancelled);
    assert_int_equal(h.gone, 1);
}

static void a_broken_link_is_no_exit(void **state)
{
    (void)state;
    static const char *const argv[] = {"sh", "-c", "sleep 0.2; kill -KILL $PPID; sleep 60", NULL};
    struct link *l = local_link((struct link_options){.vm_name = "vm-c", .marker = "to-break"});
    struct host h;

    host_init(&h);
    cleanup_free char *session = open_on(l, &h, "r6", argv, NULL);
    assert_non_null(session);
    channel_start("r6");
    AWAIT(&h, h.exits == 1);
    assert_true(h.transport_closed);
    assert_int_equal(h.code, -1);
    close_route("r6", session);
    AWAIT(&h, h.gone == 1);
    drop_link(l);
}

static void a_program_that_does_not_read_fills_only_its_own_queue(void **state)
{
    (void)state;
    static const char *const argv[] = {"sleep", "300", NULL};
    static char part[200000];
    struct host h;

    host_init(&h);
    cleanup_free char *session = open_on(vm, &h, "r7", argv, NULL);
    channel_start("r7");
    for (int i = 0; i < 5; i++)
        channel_write("r7", session, part, sizeof part, on_written, &h);
    AWAIT(&h, h.refused >= 1); /* the queue is bounded, and says so */
    int written = h.written, refused = h.refused;
    assert_true(written < 5 && refused < 5);
    close_route("r7", session);
    AWAIT(&h, h.written + h.refused == 5); /* each write got its answer */
    AWAIT(&h, h.gone == 1);
}

static void a_login_runs_in_a_fresh_home(void **state)
{
    (void)state;
    static const char home[] = "/tmp/paperclip-adapter-login/0123abcd-0000-4000-8000-00000000ffff";
    static const char *const bad[] = {
        "/tmp/paperclip-adapter-login/../x",
        "/tmp/x",
        "",
        NULL,
        "/tmp/paperclip-adapter-login/0123ABCD-0000-4000-8000-00000000ffff",
        "/tmp/paperclip-adapter-login/0123abcd-0000-4000-8000-00000000ffff/x",
        "/tmp/paperclip-adapter-login/0123abcd-0000-4000-8000-00000000fff"};
    char folder[] = "/tmp/test-login-XXXXXX", path[64];
    struct host h;
    struct stat st;
    struct error err = {0};

    /* A stand-in for the CLI, found where the login environment looks. */
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/codex", folder);
    FILE *f = fopen(path, "w");
    fputs(
        "#!/bin/sh\nstty size; echo \"$# $* in $CODEX_HOME\"; ls -ld \"$CODEX_HOME\" | cut -c1-10\n"
        "tty >/dev/null && echo terminal; stty -echo; printf 'secret? '; read s; echo \"${#s} "
        "characters\"; exit 4\n",
        f);
    fclose(f);
    chmod(path, 0755);
    cleanup_free char *profile = xasprintf("%s/.profile", folder);
    f = fopen(profile, "w");
    fprintf(f, "PATH=%s:$PATH\n", folder);
    fclose(f);
    cleanup_free char *old = xstrdup(getenv("HOME"));
    setenv("HOME", folder, 1);
    struct link *l = local_link((struct link_options){.vm_name = "vm-c", .marker = "login"});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        host_init(&h);
        assert_null(
            channel_open(l,
                         &(struct channel_request){.kind = CHANNEL_LOGIN,
                                                   .route = "l0",
                                                   .login_key = "codex",
                                                   .session_home = bad[i],
                                                   .events = {on_data, on_exit_event, on_gone},
                                                   .arg = &h},
                         deadline_in(20000), NULL, &err));
        assert_int_equal(err.code, ERR_INVALID);
        error_clear(&err);
    }
    host_init(&h);
    struct channel_request req = {.kind = CHANNEL_LOGIN,
                                  .route = "l1",
                                  .login_key = "codex",
                                  .session_home = home,
                                  .events = {on_data, on_exit_event, on_gone},
                                  .arg = &h};
    cleanup_free char *session = channel_open(l, &req, deadline_in(20000), NULL, &err);
    if (!session)
        fail_msg("%s", err.msg);
    channel_start("l1");
    AWAIT(&h, h.got.len && strstr(h.got.data, "secret? "));
    assert_non_null(strstr(h.got.data, "30 120\r\n"));
    assert_non_null(strstr(h.got.data, "2 login --device-auth in "));
    assert_non_null(strstr(h.got.data, "drwx------\r\n"));
    assert_non_null(strstr(h.got.data, "terminal\r\n"));
    channel_write(NULL, session, "hunter2\n", 8, on_written, &h);
    AWAIT(&h, h.exits == 1);
    assert_int_equal(h.code, 4);
    assert_non_null(strstr(h.got.data, "7 characters"));
    assert_null(strstr(h.got.data, "hunter2"));
    assert_int_equal(stat(home, &st), 0); /* the host reads what the login left */
    close_route("l1", session);
    AWAIT(&h, h.gone == 1);
    assert_int_equal(stat(home, &st), -1);
    buf_free(&h.got);
    /* One that exists is somebody's: refused, and left alone. */
    assert_int_equal(mkdir(home, 0755), 0);
    host_init(&h);
    req.route = "l2";
    assert_null(channel_open(l, &req, deadline_in(20000), NULL, &err));
    assert_int_equal(err.code, ERR_UNSAFE);
    error_clear(&err);
    assert_int_equal(rmdir(home), 0);
    drop_link(l);
    setenv("HOME", old, 1);
    cleanup_free char *rm = xasprintf("rm -rf %s", folder);
    assert_int_equal(system(rm), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_go_both_ways_in_order),
        cmocka_unit_test(an_exit_code_comes_after_the_data),
        cmocka_unit_test(only_the_exact_pair_counts),
        cmocka_unit_test(a_close_before_the_open_wins),
        cmocka_unit_test(a_close_during_the_open_ends_it),
        cmocka_unit_test(a_broken_link_is_no_exit),
        cmocka_unit_test(a_program_that_does_not_read_fills_only_its_own_queue),
        cmocka_unit_test(a_login_runs_in_a_fresh_home),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
