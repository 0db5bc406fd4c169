#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/name.h"
#include "lib/state.h"

static char dir[] = "/tmp/exedev-state-XXXXXX";

#define ACCOUNT (char *)"0123456789abcdef0123456789abcdef"

static struct journal_entry entry(const char *name, enum journal_state s)
{
    return (struct journal_entry){.name = (char *)name,
                                  .account = ACCOUNT,
                                  .kind = (char *)"lease",
                                  .env_id = (char *)"e-1",
                                  .run_id = (char *)"r-1",
                                  .state = s};
}

static void note(const char *name, enum journal_state s)
{
    struct journal_entry e = entry(name, s);
    cleanup_error struct error err = {0};

    if (!journal_write(&e, &err))
        fail_msg("%s", err.msg);
}

static const struct journal_entry *find(const struct journal *j, const char *name)
{
    for (size_t i = 0; i < j->n; i++)
        if (!strcmp(j->list[i].name, name))
            return &j->list[i];
    return NULL;
}

static void the_folder_is_private(void **state)
{
    (void)state;
    cleanup_free char *path = state_dir(NULL);
    struct stat st;
    assert_non_null(path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
    assert_int_equal(chmod(path, 0755), 0);
    free(path);
    path = state_dir(NULL);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0700);
}

static void a_strangers_folder_is_refused(void **state)
{
    (void)state;
    cleanup_free char *link = xasprintf("%s-link", dir);
    cleanup_error struct error err = {0};
    assert_int_equal(symlink("/tmp", link), 0);
    setenv("EXEDEV_STATE_DIR", link, 1);
    char *path = state_dir(&err);
    setenv("EXEDEV_STATE_DIR", "relative", 1);
    char *relative = state_dir(NULL);
    setenv("EXEDEV_STATE_DIR", dir, 1);
    unlink(link);
    assert_null(path);
    assert_null(relative);
    assert_int_equal(err.code, ERR_UNSAFE);
}

static void known_hosts_of_pins_are_files_of_their_own(void **state)
{
    (void)state;
    cleanup_free char *plain = state_known_hosts(NULL, NULL),
                      *a = state_known_hosts("h ssh-ed25519 AAA", NULL);
    cleanup_free char *b = state_known_hosts("h ssh-ed25519 BBB", NULL);
    cleanup_buf struct buf text = {0};
    assert_true(text_ends(plain, "/known_hosts"));
    assert_string_not_equal(a, b);
    assert_true(io_read_file(a, 1000, &text, NULL));
    assert_string_equal(text.data, "h ssh-ed25519 AAA\n");
}

static void a_lock_is_held_by_one(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_fd int a = state_lock("a.lock", 0, NULL);
    assert_true(a >= 0);
    assert_int_equal(state_lock("a.lock", 20, &err), -1);
    assert_int_equal(err.code, ERR_TIMEOUT);
    close(steal_fd(&a));
    a = state_lock("a.lock", 0, NULL);
    assert_true(a >= 0);
}

static void a_lock_dies_with_its_holder(void **state)
{
    (void)state;
    int p[2];
    assert_int_equal(pipe(p), 0);
    pid_t pid = fork();
    if (!pid) {
        int fd = state_lock("b.lock", 0, NULL);
        if (write(p[1], fd >= 0 ? "y" : "n", 1) == 1)
            pause();
        _exit(1);
    }
    char c;
    assert_int_equal(read(p[0], &c, 1), 1);
    assert_int_equal(c, 'y');
    assert_int_equal(state_lock("b.lock", 0, NULL), -1);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    cleanup_fd int fd = state_lock("b.lock", 5000, NULL);
    assert_true(fd >= 0);
    close(p[0]);
    close(p[1]);
}

static void the_last_word_about_a_vm_counts(void **state)
{
    (void)state;
    cleanup_journal struct journal j = {0};
    note("one", JOURNAL_INTENT);
    note("two", JOURNAL_INTENT);
    note("one", JOURNAL_LIVE);
    note("two", JOURNAL_GONE);
    assert_true(journal_read(ACCOUNT, &j, NULL));
    const struct journal_entry *e = find(&j, "one");
    assert_non_null(e);
    assert_int_equal(e->state, JOURNAL_LIVE);
    assert_string_equal(e->env_id, "e-1");
    assert_string_equal(e->run_id, "r-1");
    assert_true(e->owner_alive);
    assert_true(e->owner_is_us);
    assert_null(find(&j, "two"));
    cleanup_journal struct journal other = {0};
    assert_true(journal_read("another account", &other, NULL));
    assert_int_equal(other.n, 0);
}

static void a_dead_owner_is_known_to_be_dead(void **state)
{
    (void)state;
    pid_t pid = fork();
    if (!pid) {
        note("orphan", JOURNAL_INTENT);
        kill(getpid(), SIGKILL);
    }
    for (int reaped = 0; reaped < 2; reaped++) {
        siginfo_t info;
        assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | (reaped ? 0 : WNOWAIT)), 0);
        cleanup_journal struct journal j = {0};
        assert_true(journal_read(ACCOUNT, &j, NULL));
        const struct journal_entry *e = find(&j, "orphan");
        assert_non_null(e);
        assert_false(e->owner_alive);
    }
    note("orphan", JOURNAL_GONE);
}

static void append(const char *text)
{
    cleanup_free char *path = state_path("journal", NULL);
    cleanup_fd int fd = open(path, O_WRONLY | O_APPEND);

    assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
}

static void a_torn_line_costs_nothing_else(void **state)
{
    (void)state;
    cleanup_journal struct journal j = {0};
    note("before", JOURNAL_DOOMED);
    append("{\"vm\":\"torn\",\"account\":\"0123");
    note("after", JOURNAL_DOOMED);
    append("garbage\n\n[1]\n{\"vm\":\"x\",\"account\":\"y\",\"state\":\"dancing\"}\n");
    assert_true(journal_read(ACCOUNT, &j, NULL));
    assert_non_null(find(&j, "before"));
    assert_non_null(find(&j, "after"));
    assert_null(find(&j, "torn"));
    note("before", JOURNAL_GONE);
    note("after", JOURNAL_GONE);
}

static void compaction_keeps_what_is_there(void **state)
{
    (void)state;
    cleanup_journal struct journal j = {0};
    cleanup_free char *path = state_path("journal", NULL);
    struct stat st;
    note("keeper", JOURNAL_RETAINED);
    for (int i = 0; i < 1000 && !(stat(path, &st) == 0 && st.st_size > 66000); i++) {
        cleanup_free char *name = xasprintf("gone-a%d", i);
        note(name, JOURNAL_INTENT);
    }
    for (int i = 0; i < 1000; i++) {
        cleanup_free char *name = xasprintf("gone-a%d", i);
        note(name, JOURNAL_GONE);
        if (stat(path, &st) == 0 && st.st_size < 40000)
            break;
    }
    assert_true(st.st_size < 66000);
    assert_true(journal_read(ACCOUNT, &j, NULL));
    assert_non_null(find(&j, "keeper"));
    assert_int_equal(find(&j, "keeper")->state, JOURNAL_RETAINED);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

static void *many_notes(void *arg)
{
    for (int i = 0; i < 20; i++) {
        cleanup_free char *name = xasprintf("t%d-n%da", (int)(intptr_t)arg, i);
        note(name, JOURNAL_LIVE);
    }
    return NULL;
}

static void many_writers_lose_no_line(void **state)
{
    (void)state;
    pthread_t t[3];
    cleanup_journal struct journal j = {0};
    pid_t pid = fork();
    if (!pid) {
        many_notes((void *)9);
        _exit(0);
    }
    for (int i = 0; i < 3; i++)
        pthread_create(&t[i], NULL, many_notes, (void *)(intptr_t)i);
    for (int i = 0; i < 3; i++)
        pthread_join(t[i], NULL);
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    assert_true(journal_read(ACCOUNT, &j, NULL));
    int found = 0;
    for (size_t i = 0; i < j.n; i++)
        found += j.list[i].name[0] == 't' && strstr(j.list[i].name, "-n") != NULL;
    assert_int_equal(found, 80);
}

static void a_claim_is_for_one(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_fd int a = journal_claim(ACCOUNT, "vm-x", NULL),
                   b = journal_claim(ACCOUNT, "vm-x", &err);
    cleanup_fd int c = journal_claim(ACCOUNT, "vm-y", NULL);
    assert_true(a >= 0);
    assert_int_equal(b, -1);
    assert_int_equal(err.code, ERR_NONE);
    assert_true(c >= 0);
}

static void a_name_used_again_is_another_vm(void **state)
{
    (void)state;
    cleanup_journal struct journal j = {0};
    note("again", JOURNAL_LIVE);
    note("again", JOURNAL_GONE);
    note("again", JOURNAL_INTENT);
    assert_true(journal_read(ACCOUNT, &j, NULL));
    assert_int_equal(find(&j, "again")->since, find(&j, "again")->at);
    assert_int_equal(find(&j, "again")->state, JOURNAL_INTENT);
}

static void prefixes(void **state)
{
    static const struct {
        const char *in, *out;
    } cases[] = {{"My Agents!!", "my-agents"},
                 {"--x--", "x"},
                 {"", "paperclip"},
                 {"\xc3\xa9\xc3\xa9", "paperclip"},
                 {"abcdefghijklmnopqrstuvw-xyz", "abcdefghijklmnopqrstuvw"},
                 {"a_b.c", "a-b-c"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cleanup_free char *p = name_prefix(cases[i].in);
        assert_string_equal(p, cases[i].out);
    }
    cleanup_free char *none = name_prefix(NULL);
    assert_string_equal(none, "paperclip");
}

static void lease_names(void **state)
{
    (void)state;
    cleanup_free char *a = name_lease("paperclip", "0B9C3A52-7B1E", "AB-cd-EF-12-34");
    cleanup_free char *digits = name_lease("p", "e", "12345678-99"),
                      *few = name_lease("p", "e", "7");
    cleanup_free char *none = name_lease("p", "", NULL), *odd = name_lease("p", "--", "\xc3\xa9");
    assert_string_equal(a, "paperclip-0b9c3a52-abcdef12");
    assert_string_equal(digits, "p-e-r1234567");
    assert_string_equal(few, "p-e-r7");
    assert_true(text_starts(none, "p-env-"));
    assert_int_equal(strlen(none), 6 + 8);
    assert_true(text_is_vm_name(a) && text_is_vm_name(digits) && text_is_vm_name(few) &&
                text_is_vm_name(none) && text_is_vm_name(odd));
}

static void every_random_name_is_legal_and_new(void **state)
{
    (void)state;
    for (int i = 0; i < 200; i++) {
        cleanup_free char *a = name_probe("abcdefghijklmnopqrstuvwx"),
                          *b = name_probe("abcdefghijklmnopqrstuvwx");
        assert_true(text_is_vm_name(a));
        assert_true(strlen(a) <= 63);
        assert_string_not_equal(a, b);
        assert_non_null(strstr(a, "-probe-"));
    }
}

static void marks_come_back_whole(void **state)
{
    (void)state;
    cleanup_free char *c = mark_comment("for [exedev x] tests", "lease",
                                        "0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d", "run_1");
    cleanup_mark struct mark m = {0}, none = {0};
    assert_true(text_starts(c, "for [exedev x] tests [exedev lease env="));
    assert_true(mark_parse(c, &m));
    assert_string_equal(m.kind, "lease");
    assert_string_equal(m.env_id, "0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d");
    assert_true(mark_matches(&m, "0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d", "run_1"));
    assert_false(mark_matches(&m, "0b9c3a52-7b1e-4b0f-9d6a-2c8e5f7a1b3d", "run_2"));
    assert_false(mark_matches(&m, NULL, "run_1"));
    assert_false(mark_parse("just a comment", &none));
    assert_false(mark_parse(NULL, &none));
    assert_false(mark_parse("[exedev lease", &none));
}

static void comments_hold_200_bytes_and_whole_characters(void **state)
{
    (void)state;
    cleanup_buf struct buf text = {0};
    char id[200];
    for (int i = 0; i < 90; i++)
        buf_puts(&text, "\xe2\x82\xac");
    memset(id, 'a', sizeof id);
    id[199] = '\0';
    cleanup_free char *c = mark_comment(text.data, "lease", id, id);
    cleanup_mark struct mark m = {0};
    assert_true(strlen(c) <= 200);
    assert_true(text_is_utf8(c, strlen(c)));
    assert_true(mark_parse(c, &m));
    assert_true(mark_matches(&m, id, id));
}

static void ids_cannot_break_out_of_a_mark(void **state)
{
    (void)state;
    cleanup_free char *c = mark_comment(NULL, "lease", "a] [exedev lease env=evil", "x y='\n");
    cleanup_mark struct mark m = {0};
    assert_true(mark_parse(c, &m));
    assert_string_equal(m.env_id, "aexedevleaseenvevil");
    assert_null(strpbrk(c, "\n'"));
}

static int set_up(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    return setenv("EXEDEV_STATE_DIR", dir, 1);
}

static int tear_down(void **state)
{
    (void)state;
    cleanup_free char *cmd = xasprintf("rm -r %s", dir);
    return system(cmd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_folder_is_private),
        cmocka_unit_test(a_strangers_folder_is_refused),
        cmocka_unit_test(known_hosts_of_pins_are_files_of_their_own),
        cmocka_unit_test(a_lock_is_held_by_one),
        cmocka_unit_test(a_lock_dies_with_its_holder),
        cmocka_unit_test(the_last_word_about_a_vm_counts),
        cmocka_unit_test(a_dead_owner_is_known_to_be_dead),
        cmocka_unit_test(a_torn_line_costs_nothing_else),
        cmocka_unit_test(compaction_keeps_what_is_there),
        cmocka_unit_test(many_writers_lose_no_line),
        cmocka_unit_test(a_claim_is_for_one),
        cmocka_unit_test(a_name_used_again_is_another_vm),
        cmocka_unit_test(prefixes),
        cmocka_unit_test(lease_names),
        cmocka_unit_test(every_random_name_is_legal_and_new),
        cmocka_unit_test(marks_come_back_whole),
        cmocka_unit_test(comments_hold_200_bytes_and_whole_characters),
        cmocka_unit_test(ids_cannot_break_out_of_a_mark),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
