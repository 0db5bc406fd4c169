/* The bootstrap line under every shell that is here, with the helper as exedev carries it; and the
 * expiry timer. */
#include "vm_client.h"

#include <dirent.h>

#include "vm/blob.h"

static void fill(struct buf *out, const char *key)
{
    cleanup_free char *x86 = xasprintf("%zu", exedev_vm_x86_64_size),
                      *arm = xasprintf("%zu", exedev_vm_arm64_size);
    const char *const pairs[][2] = {
        {"@BUILD@", exedev_vm_build}, {"@X86_64@", x86}, {"@ARM64@", arm}, {"@KEY@", key}};

    buf_puts(out, "exec sh -c '");
    for (const char *at = exedev_vm_bootstrap; *at;) {
        size_t i = 0;
        while (i < 4 && strncmp(at, pairs[i][0], strlen(pairs[i][0])) != 0)
            i++;
        if (i < 4) {
            buf_puts(out, pairs[i][1]);
            at += strlen(pairs[i][0]);
        } else {
            buf_putc(out, *at++);
        }
    }
    buf_puts(out, "'");
}

struct boot {
    pid_t pid;
    int in, out;
    struct buf said;
};

static void start(struct boot *b, const char *shell, const char *key)
{
    struct buf line = {0};
    int in[2], out[2];

    *b = (struct boot){0};
    fill(&line, key);
    assert_int_equal(pipe2(in, O_CLOEXEC), 0);
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    b->pid = fork();
    if (b->pid == 0) {
        dup2(in[0], 0);
        dup2(out[1], 1);
        execlp(shell, shell, "-c", line.data, NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    b->in = in[1];
    b->out = out[0];
    buf_free(&line);
}

/* Reads until `what` was said or the end; true: it was. */
static bool says(struct boot *b, const char *what, size_t n)
{
    for (;;) {
        if (b->said.len && memmem(b->said.data, b->said.len, what, n))
            return true;
        struct pollfd p = {.fd = b->out, .events = POLLIN};
        assert_int_equal(poll(&p, 1, PATIENCE_MS), 1);
        ssize_t got = read(b->out, buf_reserve(&b->said, 4096), 4096);
        if (got <= 0)
            return false;
        b->said.len += (size_t)got;
        b->said.data[b->said.len] = 0;
    }
}

static bool greets(struct boot *b)
{
    return says(b, VM_MAGIC, VM_MAGIC_LEN);
}

static bool needs(struct boot *b)
{
    return says(b, "\n", 1) && strstr(b->said.data, "EXEDEV-VM NEED ");
}

static void upload(struct boot *b, size_t less)
{
    bool arm = strstr(b->said.data, "NEED aarch64") != NULL;
    const unsigned char *p = arm ? exedev_vm_arm64 : exedev_vm_x86_64;
    size_t n = arm ? exedev_vm_arm64_size : exedev_vm_x86_64_size;

    assert_true(io_write_all(b->in, p, n - less, deadline_in(PATIENCE_MS), NULL));
}

static void stop(struct boot *b)
{
    close(b->in);
    waitpid(b->pid, NULL, 0);
    close(b->out);
    buf_free(&b->said);
}

static void check_folder(const char *path)
{
    struct stat st;
    cleanup_dir DIR *d = opendir(path);
    unsigned helpers = 0;

    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    for (struct dirent *e; (e = readdir(d));) {
        if (!strncmp(e->d_name, "exedev-vm-", 10))
            helpers++;
        else
            assert_true(!strcmp(e->d_name, ".") ||
                        !strcmp(e->d_name, "..")); /* nothing half done */
    }
    assert_int_equal(helpers, 1);
}

static bool there(const char *program)
{
    cleanup_free char *cmd = xasprintf("command -v %s >/dev/null 2>&1", program);

    return system(cmd) == 0;
}

static void under_every_shell(void **state)
{
    (void)state;
    static const char *const shells[] = {"sh",   "dash", "bash", "zsh", "fish",
                                         "tcsh", "ksh",  "mksh", "yash"};
    unsigned tried = 0;

    for (size_t i = 0; i < sizeof shells / sizeof *shells; i++) {
        struct boot b;
        if (!there(shells[i]))
            continue;
        tried++;
        cleanup_free char *folder = home_path(".cache/exedev");
        cleanup_free char *clear = xasprintf("rm -rf '%s'", folder);
        assert_int_equal(system(clear), 0);
        start(&b, shells[i], "");
        assert_true(needs(&b));
        upload(&b, 0);
        assert_true(greets(&b));
        stop(&b);
        check_folder(folder);
        start(&b, shells[i], "");
        assert_true(greets(&b));
        assert_null(strstr(b.said.data, "NEED")); /* it is there now */
        stop(&b);
    }
    assert_true(tried >= 3);
}

static void with_busybox_alone(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *bin = home_path("bin"), *path = xstrdup(getenv("PATH"));
    cleanup_free char *install = xasprintf("mkdir '%s' && busybox --install -s '%s'", bin, bin);

    if (!there("busybox"))
        skip();
    assert_int_equal(system(install), 0);
    setenv("PATH", bin, 1);
    start(&b, "sh", "");
    setenv("PATH", path, 1);
    assert_true(needs(&b));
    upload(&b, 0);
    assert_true(greets(&b));
    stop(&b);
}

static void a_damaged_helper_is_replaced(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *name = xasprintf(".cache/exedev/exedev-vm-%s", exedev_vm_build),
                      *file = home_path(name);

    start(&b, "sh", "");
    assert_true(needs(&b));
    upload(&b, 0);
    assert_true(greets(&b));
    stop(&b);
    unlink(file);
    write_home(name, "#!/bin/sh\necho something else\n");
    chmod(file, 0700);
    start(&b, "sh", "");
    assert_true(needs(&b));
    upload(&b, 0);
    assert_true(greets(&b));
    stop(&b);
}

static void an_upload_that_breaks_off(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *folder = home_path(".cache/exedev");

    start(&b, "sh", "");
    assert_true(needs(&b));
    upload(&b, 10);
    close(b.in);
    b.in = open("/dev/null", O_RDONLY);
    assert_false(greets(&b));
    assert_non_null(strstr(b.said.data, "EXEDEV-VM FAIL "));
    stop(&b);
    assert_int_equal(rmdir(folder), 0); /* nothing was left in it */
}

static void a_folder_of_somebody_else_is_passed_over(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *cache = home_path(".cache"), *folder = home_path(".cache/exedev"),
                      *run = home_path("run"), *second = home_path("run/exedev");

    mkdir(cache, 0700);
    mkdir(run, 0700);
    if (geteuid() == 0) {
        mkdir(folder, 0777);
        assert_int_equal(chown(folder, 65534, 65534), 0);
    } else {
        assert_int_equal(symlink("/tmp", folder), 0);
    }
    setenv("XDG_RUNTIME_DIR", run, 1);
    start(&b, "sh", "");
    unsetenv("XDG_RUNTIME_DIR");
    assert_true(needs(&b));
    assert_non_null(strstr(b.said.data, second));
    upload(&b, 0);
    assert_true(greets(&b));
    /* The helper itself comes to the same answer. */
    assert_true(says(&b, second, strlen(second)));
    stop(&b);
    check_folder(second);
}

static void an_unknown_machine(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *uname = home_path("uname"), *old = xstrdup(getenv("PATH"));
    cleanup_free char *path = xasprintf("%s:%s", test_home, old);

    write_home("uname", "#!/bin/sh\necho vax\n");
    chmod(uname, 0700);
    setenv("PATH", path, 1);
    start(&b, "sh", "");
    setenv("PATH", old, 1);
    assert_false(greets(&b));
    assert_non_null(strstr(b.said.data, "EXEDEV-VM FAIL there is no helper for the machine vax"));
    stop(&b);
}

static void a_key_makes_it_durable(void **state)
{
    (void)state;
    struct boot b;
    cleanup_free char *sock = home_path(".cache/exedev/s-some-key.sock");

    start(&b, "sh", "some-key");
    assert_true(needs(&b));
    upload(&b, 0);
    assert_true(greets(&b));
    assert_int_equal(access(sock, F_OK), 0);
    stop(&b);
    for (struct deadline d = deadline_in(PATIENCE_MS); access(sock, F_OK) == 0;
         deadline_sleep(d, 10))
        assert_false(deadline_passed(d));
}

/* ---- timer ---- */

static void timer(struct vm *v, const char *const *argv, struct result *r)
{
    result_free(r);
    vm_run(v, (struct want){.kind = VM_KIND_BUILTIN, .argv = argv, .marker = "lease-t"}, r);
    assert_false(r->failed);
}

static pid_t timer_pid(void)
{
    cleanup_free char *path = home_path(".cache/exedev/timer");
    cleanup_buf struct buf b = {0};
    long long epoch;
    int pid = 0;

    assert_true(io_read_file(path, 100, &b, NULL));
    assert_int_equal(sscanf(b.data, "%lld %d", &epoch, &pid), 2);
    return pid;
}

static void the_timer_outlives_everybody(void **state)
{
    (void)state;
    struct vm v;
    struct got g = {0};
    cleanup_result struct result r = {0};
    cleanup_buf struct buf env = {0}, ask = {0};

    vm_start(&v, (struct hello){0});
    timer(&v, ARGS("timer", "read"), &r);
    assert_int_equal(r.status, 1);
    timer(&v, ARGS("timer", "arm", "1000"), &r);
    assert_int_equal(r.status, 2);
    timer(&v, ARGS("timer", "arm", "4000000000x"), &r);
    assert_int_equal(r.status, 2);
    timer(&v, ARGS("timer"), &r);
    assert_int_equal(r.status, 64);
    timer(&v, ARGS("timer", "arm", "4000000000"), &r);
    assert_int_equal(r.status, 0);
    assert_string_equal(text(&r), "4000000000\n");
    pid_t first = timer_pid();
    timer(&v, ARGS("timer", "arm", "4000000001"), &r); /* in its place */
    assert_int_equal(r.status, 0);
    assert_true(gone(first));
    pid_t pid = timer_pid();
    cleanup_free char *environ_path = xasprintf("/proc/%d/environ", (int)pid);
    assert_true(io_read_file(environ_path, 1 << 20, &env, NULL));
    assert_null(memmem(env.data, env.len, "EXEDEV_", 7));
    buf_put_u32(&ask, VM_ENDALL_MARKER);
    buf_put_str(&ask, "lease-t", 7);
    vm_send(&v, VM_ENDALL, 0, 0, ask.data, ask.len);
    assert_true(vm_recv(&v, &g, PATIENCE_MS));
    assert_int_equal(g.type, VM_ENDED);
    got_free(&g);
    assert_int_equal(vm_close(&v), 0);
    vm_start(&v, (struct hello){0});
    timer(&v, ARGS("timer", "read"), &r);
    assert_string_equal(text(&r), "4000000001\n");
    timer(&v, ARGS("timer", "disarm"), &r);
    assert_int_equal(r.status, 0);
    assert_true(gone(pid));
    timer(&v, ARGS("timer", "read"), &r);
    assert_int_equal(r.status, 1);
    /* Only a live process counts as armed, not what a file says. */
    timer(&v, ARGS("timer", "arm", "4000000000"), &r);
    pid = timer_pid();
    kill(pid, SIGKILL);
    assert_true(gone(pid));
    timer(&v, ARGS("timer", "read"), &r);
    assert_int_equal(r.status, 1);
    assert_int_equal(r.out[1].len, 0);
    assert_int_equal(vm_close(&v), 0);
}

static void the_timer_marks_and_powers_off(void **state)
{
    (void)state;
    struct vm v;
    cleanup_result struct result r = {0};
    cleanup_free char *off = home_path("poweroff"), *asked = home_path("asked"),
                      *mark = home_path(".cache/exedev/expired");
    cleanup_free char *script =
        xasprintf("#!/bin/sh\necho \"$0\" >'%s.new'; mv '%s.new' '%s'\n", asked, asked, asked);
    cleanup_free char *path = xasprintf("PATH=%s:/usr/bin:/bin", test_home);
    cleanup_free char *epoch = xasprintf("%lld", (long long)time(NULL) + 2);
    cleanup_free char *shared = xasprintf("/var/tmp/exedev-expired-%u", (unsigned)geteuid());

    /* Only this one is ever asked: it says yes, and the next is a minute away. */
    write_home("poweroff", script);
    chmod(off, 0700);
    vm_start(&v, (struct hello){0});
    vm_run(&v,
           (struct want){
               .kind = VM_KIND_BUILTIN, .argv = ARGS("timer", "arm", epoch), .env = ARGS(path)},
           &r);
    assert_int_equal(r.status, 0);
    for (struct deadline d = deadline_in(PATIENCE_MS); access(asked, F_OK) < 0;
         deadline_sleep(d, 20))
        assert_false(deadline_passed(d));
    cleanup_buf struct buf b = {0};
    cleanup_free char *want = xasprintf("expired %s\n", epoch);
    assert_true(io_read_file(mark, 100, &b, NULL));
    assert_string_equal(b.data, want);
    b.len = 0;
    assert_true(io_read_file(shared, 100, &b, NULL));
    assert_string_equal(b.data, want);
    unlink(shared);
    timer(&v, ARGS("timer", "disarm"), &r);
    assert_int_equal(r.status, 0);
    assert_int_equal(vm_close(&v), 0);
}

/* Also after a test that failed: a timer left armed would power off the machine that runs the
 * tests. */
static int remove_timer_and_home(void **state)
{
    cleanup_free char *path = home_path(".cache/exedev/timer");
    cleanup_buf struct buf b = {0};
    long long epoch;
    int pid = 0;

    if (io_read_file(path, 100, &b, NULL) && b.len &&
        sscanf(b.data, "%lld %d", &epoch, &pid) == 2 && pid > 1) {
        cleanup_free char *name = xasprintf("/proc/%d/cmdline", pid);
        b.len = 0;
        if (io_read_file(name, 4096, &b, NULL) && memmem(b.data, b.len, "timer-wait", 10))
            kill(pid, SIGKILL);
    }
    return remove_home(state);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_timer_and_home)
    const struct CMUnitTest tests[] = {
        TEST(under_every_shell),
        TEST(with_busybox_alone),
        TEST(a_damaged_helper_is_replaced),
        TEST(an_upload_that_breaks_off),
        TEST(a_folder_of_somebody_else_is_passed_over),
        TEST(an_unknown_machine),
        TEST(a_key_makes_it_durable),
        TEST(the_timer_outlives_everybody),
        TEST(the_timer_marks_and_powers_off),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
