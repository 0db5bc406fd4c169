/* exedev-vm: the login environment. The profiles of the test's home come after the system's own. */
#include "vm_client.h"

#include <time.h>

static struct want login(const char *script)
{
    static const char *argv[4];

    argv[0] = "sh";
    argv[1] = "-c";
    argv[2] = script;
    return (struct want){.argv = argv, .flags = VM_OPEN_LOGIN | VM_OPEN_NO_STDIN};
}

static void expect(struct vm *v, struct want w, const char *output)
{
    cleanup_result struct result r = {0};

    vm_run(v, w, &r);
    assert_false(r.failed);
    assert_string_equal(text(&r), output);
    assert_int_equal(r.status, 0);
}

static void profiles_in_their_order(void **state)
{
    (void)state;
    struct vm v;

    write_home(".profile", "echo noise; echo noise >&2; export P=1 ORDER=p; cat\n");
    write_home(".bashrc", "export RC=1 ORDER=${ORDER}r\n");
    write_home(".zprofile", "export Z=1 ORDER=${ORDER}z; umask 027; ulimit -n 500; unexported=1\n");
    vm_start(&v, (struct hello){0});
    expect(&v, login("echo $P$RC$Z $ORDER $unexported.; umask; ulimit -n; env | grep __exedev; :"),
           "111 prz .\n0027\n500\n");
    assert_int_equal(vm_close(&v), 0);
}

static void expect_home(struct vm *v, const char *script, const char *fmt)
{
    cleanup_free char *want = xasprintf("%s%s\n", fmt, test_home);

    expect(v, login(script), want);
}

static void bash_profile_instead_of_bashrc(void **state)
{
    (void)state;
    struct vm v;

    write_home(".bash_profile", "export A=profile\n");
    write_home(".bashrc", "export A=rc\n");
    vm_start(&v, (struct hello){0});
    expect_home(&v, "echo $A; echo $HOME", "profile\n");
    expect(&v, (struct want){.argv = SH("echo $A.")}, ".\n"); /* not asked for */
    struct want w = login("echo $A $B");
    w.env = ARGS("A=mine", "B=too");
    expect(&v, w, "mine too\n");
    assert_int_equal(vm_close(&v), 0);
}

static void a_bad_profile_stops_nothing(void **state)
{
    (void)state;
    static const char *const bad[] = {"export A=1; exit 3\n",
                                      "export A=1; false; if\n",
                                      "export A=1; set -eu; false; echo $nothing\n",
                                      "export A=1; exec true\n",
                                      "export A=1; readonly R=1; R=2; kill -9 $$\n",
                                      "export A=1; trap '' EXIT; exit 1\n",
                                      "export A=1; return 4\n"};

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct vm v;
        write_home(".profile", bad[i]);
        write_home(".bashrc", "export B=2\n");
        write_home(".zprofile", "export C=3\n");
        vm_start(&v, (struct hello){0});
        /* What came after the bad one is there in every case. */
        expect(&v, login("echo $B$C"), "23\n");
        assert_int_equal(vm_close(&v), 0);
    }
}

static void what_an_ending_profile_set_is_kept(void **state)
{
    (void)state;
    struct vm v;

    write_home(".profile", "export A=1; exit 3\n");
    write_home(".zprofile", "export C=$A; exit 0\n");
    vm_start(&v, (struct hello){0});
    expect(&v, login("echo $A$C"), "11\n");
    assert_int_equal(vm_close(&v), 0);
}

static void a_hanging_profile_holds_nobody_up(void **state)
{
    (void)state;
    struct vm v;
    struct got g = {0};

    write_home(".profile", "export A=1\n");
    write_home(".bashrc", "sleep 1000\n");
    write_home(".zprofile", "export C=3\n");
    vm_start(&v, (struct hello){0});
    uint32_t waits = vm_open(&v, login("echo $A$C"));
    /* Frames and commands that need no login environment go on. */
    expect(&v, (struct want){.argv = SH("echo now")}, "now\n");
    vm_send(&v, VM_PING, 0, 0, "12345678", 8);
    do
        assert_true(vm_recv(&v, &g, PATIENCE_MS));
    while (g.type != VM_PONG);
    cleanup_result struct result r = {0};
    vm_wait(&v, waits, &r);
    assert_string_equal(text(&r), "13\n");
    buf_reserve(&v.logs, 1)[0] = 0;
    assert_non_null(strstr(v.logs.data, ".bashrc takes too long"));
    got_free(&g);
    assert_int_equal(vm_close(&v), 0);
}

static void a_change_shows_at_the_next_command(void **state)
{
    (void)state;
    struct vm v;
    cleanup_free char *profile = home_path(".profile"), *other = home_path("other");

    vm_start(&v, (struct hello){0});
    expect(&v, login("echo $A."), ".\n");
    write_home(".profile", "export A=1\n"); /* made */
    expect(&v, login("echo $A."), "1.\n");
    write_home(".profile", "export A=2\n"); /* same size, same inode, perhaps the same tick */
    expect(&v, login("echo $A."), "2.\n");
    write_home(".profile", "export A=3\n");
    expect(&v, login("echo $A."), "3.\n");
    write_home("other", "export A=4\n"); /* put in its place */
    assert_int_equal(rename(other, profile), 0);
    expect(&v, login("echo $A."), "4.\n");
    assert_int_equal(unlink(profile), 0);
    expect(&v, login("echo $A."), ".\n");
    /* Not captured again when nothing changed. */
    write_home(".profile", "echo x >>\"$HOME/count\"\n");
    deadline_sleep(DEADLINE_NEVER, 100);
    for (int i = 0; i < 5; i++)
        expect(&v, login("sort -u <\"$HOME/count\""), "x\n");
    expect(&v, login("test $(wc -l <\"$HOME/count\") = 1 && echo once"), "once\n");
    assert_int_equal(vm_close(&v), 0);
}

static void a_profile_that_changes_profiles(void **state)
{
    (void)state;
    struct vm v;

    write_home(".profile", "export A=1; date +%N >\"$HOME/.zprofile.new\"; mv "
                           "\"$HOME/.zprofile.new\" \"$HOME/.zprofile\"\n");
    vm_start(&v, (struct hello){0});
    for (int i = 0; i < 3; i++)
        expect(&v, login("echo $A"), "1\n");
    assert_int_equal(vm_close(&v), 0);
}

static void nvm_only_when_asked(void **state)
{
    (void)state;
    struct vm v;
    cleanup_free char *dir = home_path(".nvm");

    mkdir(dir, 0700);
    write_home(".nvm/nvm.sh", "export NVM=here ARGS=$#\n");
    vm_start(&v, (struct hello){0});
    expect(&v, login("echo $NVM."), ".\n");
    struct want w = login("echo $NVM $ARGS");
    w.flags |= VM_OPEN_NVM;
    expect(&v, w, "here 0\n");
    write_home(".profile", "export NVM_DIR=$HOME/elsewhere\n");
    cleanup_free char *elsewhere = home_path("elsewhere");
    mkdir(elsewhere, 0700);
    write_home("elsewhere/nvm.sh", "export NVM=there ARGS=$#\n");
    expect(&v, w, "there 0\n");
    assert_int_equal(vm_close(&v), 0);
}

static void without_bash_or_any_shell(void **state)
{
    (void)state;
    struct vm v;
    cleanup_free char *bin = home_path("bin"), *sh = home_path("bin/sh"),
                      *path = xstrdup(getenv("PATH"));

    /* A folder that holds no bash, then one that holds no shell at all. */
    mkdir(bin, 0700);
    assert_int_equal(symlink("/bin/dash", sh), 0);
    write_home(".profile", "export A=1; if\n");
    write_home(".bashrc", "export B=2; exit 1\n");
    write_home(".zprofile", "export C=3\n");
    setenv("PATH", bin, 1);
    vm_start(&v, (struct hello){0});
    assert_false(v.flags & VM_HELLO_BASH);
    expect(&v, login("echo $B$C"), "23\n");
    assert_int_equal(vm_close(&v), 0);
    unlink(sh);
    vm_start(&v, (struct hello){0});
    setenv("PATH", path, 1);
    expect(&v, (struct want){.argv = ARGS("/bin/echo", "alone"), .flags = VM_OPEN_LOGIN},
           "alone\n");
    assert_int_equal(vm_close(&v), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_home, remove_home)
    const struct CMUnitTest tests[] = {
        TEST(profiles_in_their_order),           TEST(bash_profile_instead_of_bashrc),
        TEST(a_bad_profile_stops_nothing),       TEST(what_an_ending_profile_set_is_kept),
        TEST(a_hanging_profile_holds_nobody_up), TEST(a_change_shows_at_the_next_command),
        TEST(a_profile_that_changes_profiles),   TEST(nvm_only_when_asked),
        TEST(without_bash_or_any_shell),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
