/* Lost answers and what ls says afterwards. */
#include "api_world.h"

/* 500, 502, 503, 504, a reset, a cut, garbage, 1 GB and a late answer: the VM is looked for, found,
 * and `new` went out once. */
static void found_after(enum act act, int status, const char *body)
{
    const struct step steps[] = {{"new ", act, status, body}, {"ls", ANSWER, .body = THERE}};
    struct world w = begin(steps, 2, act == HANG || act == DRIP ? ",\"timeoutMs\":300" : "");
    cleanup_error struct error err = {0};
    cleanup_record struct record r = {0};

    if (!create(&w, &r, &err))
        fail_msg("%s", err.msg);
    assert_string_equal(r.vm_name, "vm-a");
    assert_int_equal(err.code, ERR_NONE);
    assert_int_equal(double_requests(w.server, "new "), 1);
    end(&w);
}

static void doubt_after_500(void **state)
{
    (void)state;
    found_after(ANSWER, 500, "oops");
}

static void doubt_after_502(void **state)
{
    (void)state;
    found_after(ANSWER, 502, "");
}

static void doubt_after_503(void **state)
{
    (void)state;
    found_after(ANSWER, 503, "");
}

static void doubt_after_504(void **state)
{
    (void)state;
    found_after(ANSWER, 504, "");
}

static void doubt_after_a_reset(void **state)
{
    (void)state;
    found_after(RESET, 0, NULL);
}

static void doubt_after_a_cut_answer(void **state)
{
    (void)state;
    found_after(CUT, 200, RECORD);
}

static void doubt_after_garbage(void **state)
{
    (void)state;
    found_after(ANSWER, 200, "<html>hello");
}

static void doubt_after_an_answer_without_record(void **state)
{
    (void)state;
    found_after(ANSWER, 200, "{\"ok\":true}");
}

static void doubt_after_truncated_json(void **state)
{
    (void)state;
    found_after(ANSWER, 200, "{\"vm_name\":\"vm-");
}

static void doubt_after_a_hang(void **state)
{
    (void)state;
    found_after(HANG, 0, NULL);
}

static void doubt_after_a_drip(void **state)
{
    (void)state;
    found_after(DRIP, 0, NULL);
}

static void doubt_after_1_gb(void **state)
{
    (void)state;
    found_after(HUGE_BODY, 0, NULL);
}

static void surely_absent_is_tried_again(void **state)
{
    BEGIN("", {"new ", RESET}, {"new ", ANSWER, .body = RECORD},
          {"ls", ANSWER, .body = GONE, .forever = true});
    assert_true(create(&w, &r, &err));
    assert_int_equal(double_requests(w.server, "new "), 2);
    end(&w);
}

/* The first attempt came through after all. */
static void taken_by_our_own_first_attempt(void **state)
{
    BEGIN("", {"new ", RESET}, {"ls", ANSWER, .body = GONE}, {"ls", ANSWER, .body = GONE},
          {"new ", ANSWER, 422, "{\"error\":\"already exists\"}"},
          {"ls", ANSWER, .body = THERE, .forever = true});
    assert_true(create(&w, &r, &err));
    end(&w);
}

static void doubt_that_cannot_be_resolved_says_so(void **state)
{
    BEGIN("", {"new ", RESET}, {"ls", ANSWER, 403, "no"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_DOUBT, "could not be found out");
    says(&err, ERR_DOUBT, "may not run `ls`");
    end(&w);
}

static void another_runs_vm_is_not_taken_for_ours(void **state)
{
    BEGIN(
        "", {"new ", RESET},
        {"ls", ANSWER,
         .body =
             "{\"vms\":[{\"vm_name\":\"vm-a\",\"comment\":\"[exedev lease env=e run=other]\"}]}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_EXISTS, "another VM");
    end(&w);
}

static void an_address_that_is_an_option_is_deleted(void **state)
{
    BEGIN("", {"new ", ANSWER, .body = "{\"vm_name\":\"vm-a\",\"ssh_host\":\"-oProxyCommand=x\"}"},
          {"rm ", ANSWER, .body = "{}"}, {"ls", ANSWER, .body = GONE, .forever = true});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_UNSAFE, "not used");
    assert_int_equal(double_requests(w.server, "rm 'vm-a'"), 1);
    end(&w);
}

static void ls_is_repeated_until_it_works(void **state)
{
    BEGIN("", {"ls", ANSWER, 503, ""}, {"ls", RESET}, {"ls", ANSWER, .body = THERE});
    cleanup_records struct records all = {0};
    assert_true(api_ls(w.api, NULL, deadline_in(20000), &all, &err));
    assert_int_equal(all.n, 1);
    assert_int_equal(err.code, ERR_NONE);
    end(&w);
}

static void ls_that_stays_broken_is_no_empty_list(void **state)
{
    BEGIN("", {"ls", ANSWER, 200, "garbage", .forever = true});
    cleanup_records struct records all = {0};
    assert_false(api_ls(w.api, "vm-a", deadline_in(9000), &all, &err));
    says(&err, ERR_PROTOCOL, "not valid JSON");
    end(&w);
}

static void ls_of_what_is_not_there_is_empty(void **state)
{
    BEGIN("", {"ls", ANSWER, 422, "{\"error\":\"no such VM\"}", .forever = true});
    cleanup_records struct records all = {0};
    assert_true(api_ls(w.api, "vm-a", deadline_in(9000), &all, &err));
    assert_int_equal(all.n, 0);
    assert_false(api_find(w.api, "vm-a", deadline_in(9000), &r, &err));
    says(&err, ERR_NOT_FOUND, "vm-a");
    end(&w);
}

static void rm_is_believed_only_when_ls_shows_it(void **state)
{
    BEGIN("", {"rm ", ANSWER, .body = "{}"}, {"ls", ANSWER, .body = THERE},
          {"ls", ANSWER, .body = THERE}, {"ls", ANSWER, .body = GONE});
    assert_true(api_rm(w.api, "vm-a", deadline_in(20000), &err));
    assert_int_equal(double_requests(w.server, "ls"), 3);
    end(&w);
}

static void rm_whose_answer_is_lost_is_looked_into(void **state)
{
    BEGIN("", {"rm ", RESET, .forever = true}, {"ls", ANSWER, .body = GONE});
    assert_true(api_rm(w.api, "vm-a", deadline_in(20000), &err));
    end(&w);
}

static void rm_of_what_is_gone_is_success(void **state)
{
    BEGIN("", {"rm ", ANSWER, 422, "{\"error\":\"no such VM\"}"}, {"ls", ANSWER, .body = GONE});
    assert_true(api_rm(w.api, "vm-a", deadline_in(20000), &err));
    end(&w);
}

static void rm_that_ls_does_not_confirm_fails(void **state)
{
    BEGIN("", {"rm ", ANSWER, .body = "{}", .forever = true},
          {"ls", ANSWER, .body = THERE, .forever = true});
    assert_false(api_rm(w.api, "vm-a", deadline_in(1500), &err));
    assert_non_null(strstr(err.msg, "still runs and is billed"));
    end(&w);
}

static void rm_without_json_is_fine(void **state)
{
    BEGIN("", {"rm ", ANSWER, .body = "deleted vm-a\n"}, {"ls", ANSWER, .body = "{\"vms\":null}"});
    assert_true(api_rm(w.api, "vm-a", deadline_in(20000), &err));
    end(&w);
}

static void restart_finds_the_record(void **state)
{
    BEGIN("", {"restart 'vm-a'", ANSWER, .body = "ok"}, {"ls", ANSWER, .body = THERE});
    assert_true(api_restart(w.api, "vm-a", deadline_in(20000), &r, &err));
    assert_string_equal(r.ssh_host, "vm-a.exe.xyz");
    end(&w);
}

static void a_dead_kept_connection_repeats_no_new(void **state)
{
    BEGIN("", {"ls", ANSWER_CLOSE, .body = GONE}, {"new ", ANSWER, .body = RECORD});
    cleanup_records struct records a = {0};
    assert_true(api_ls(w.api, NULL, deadline_in(9000), &a, &err));
    assert_true(create(&w, &r, &err));
    assert_int_equal(double_requests(w.server, "new "), 1);
    end(&w);
}

int main(void)
{
    setenv("EXEDEV_SETTLE_MS", "100", 1);
    unsetenv("http_proxy");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(doubt_after_500),
        cmocka_unit_test(doubt_after_502),
        cmocka_unit_test(doubt_after_503),
        cmocka_unit_test(doubt_after_504),
        cmocka_unit_test(doubt_after_a_reset),
        cmocka_unit_test(doubt_after_a_cut_answer),
        cmocka_unit_test(doubt_after_garbage),
        cmocka_unit_test(doubt_after_an_answer_without_record),
        cmocka_unit_test(doubt_after_truncated_json),
        cmocka_unit_test(doubt_after_a_hang),
        cmocka_unit_test(doubt_after_a_drip),
        cmocka_unit_test(doubt_after_1_gb),
        cmocka_unit_test(surely_absent_is_tried_again),
        cmocka_unit_test(taken_by_our_own_first_attempt),
        cmocka_unit_test(doubt_that_cannot_be_resolved_says_so),
        cmocka_unit_test(another_runs_vm_is_not_taken_for_ours),
        cmocka_unit_test(an_address_that_is_an_option_is_deleted),
        cmocka_unit_test(ls_is_repeated_until_it_works),
        cmocka_unit_test(ls_that_stays_broken_is_no_empty_list),
        cmocka_unit_test(ls_of_what_is_not_there_is_empty),
        cmocka_unit_test(rm_is_believed_only_when_ls_shows_it),
        cmocka_unit_test(rm_whose_answer_is_lost_is_looked_into),
        cmocka_unit_test(rm_of_what_is_gone_is_success),
        cmocka_unit_test(rm_that_ls_does_not_confirm_fails),
        cmocka_unit_test(rm_without_json_is_fine),
        cmocka_unit_test(restart_finds_the_record),
        cmocka_unit_test(a_dead_kept_connection_repeats_no_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
