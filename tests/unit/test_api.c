#include "api_world.h"

static void new_sends_the_command_as_typed(void **state)
{
    BEGIN(",\"cpu\":2,\"memory\":\"4GB\",\"image\":\"it's\",\"env\":{\"A\":\"x "
          "y\"},\"tags\":\"t1,t2\"",
          {"new ", ANSWER, .body = RECORD});
    assert_true(create(&w, &r, &err));
    assert_string_equal(r.ssh_host, "vm-a.exe.xyz");
    const char *q = double_request(w.server, 0);
    assert_true(text_starts(q, "POST /exec HTTP/1.1\r\n"));
    assert_non_null(strstr(q, "Authorization: Bearer " TOKEN "\r\n"));
    assert_non_null(strstr(q, "Content-Type: text/plain; charset=utf-8\r\n"));
    assert_string_equal(
        strstr(q, "\r\n\r\n") + 4,
        "new --json --no-email --name='vm-a' --image='it'\\''s' --cpu='2' --memory='4GB' "
        "--comment='[exedev lease env=e run=r]' --env='A=x y' --tag='exedev' --tag='t1' "
        "--tag='t2'");
    end(&w);
}

static void cp_sends_sizes_only(void **state)
{
    BEGIN(",\"sourceVm\":\"tmpl\",\"cpu\":2,\"image\":\"x\",\"env\":{\"A\":\"1\"}",
          {"cp ", ANSWER, .body = RECORD});
    assert_true(create(&w, &r, &err));
    assert_string_equal(strstr(double_request(w.server, 0), "\r\n\r\n") + 4,
                        "cp 'tmpl' 'vm-a' --json --cpu='2'");
    end(&w);
}

static void refuses_to_start_without_a_key(void **state)
{
    (void)state;
    struct config c = {.api_url = (char *)"https://exe.dev/exec"};
    cleanup_error struct error err = {0};
    assert_null(api_new(&c, &err));
    assert_non_null(strstr(err.msg, "EXE_API_KEY"));
}

static void names_in_disguise_are_never_sent(void **state)
{
    static const char *const bad[] = {"-rf", "a b", "a'b", "", "a\nb", "UPPER", "x-1"};
    BEGIN("", {NULL, ANSWER, .body = GONE, .forever = true});
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        error_clear(&err);
        assert_false(api_rm(w.api, bad[i], deadline_in(1000), &err));
        assert_int_equal(err.code, ERR_UNSAFE);
    }
    assert_int_equal(double_requests(w.server, ""), 0);
    end(&w);
}

static void status_400(void **state)
{
    BEGIN("", {"new ", ANSWER, 400, "{\"error\":\"unbalanced quote\"}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_INVALID, "HTTP status 400: \"unbalanced quote\"");
    assert_int_equal(err.status, 400);
    end(&w);
}

static void status_401(void **state)
{
    BEGIN("", {"new ", ANSWER, 401, "{\"error\":\"bad token " TOKEN "\"}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_AUTH, "exedev token inspect");
    says(&err, ERR_AUTH, "bad token [REDACTED]");
    end(&w);
}

static void status_403_names_the_command(void **state)
{
    BEGIN("", {"rm ", ANSWER, 403, "no"});
    assert_false(api_rm(w.api, "vm-a", deadline_in(9000), &err));
    says(&err, ERR_FORBIDDEN, "may not run `rm`");
    says(&err, ERR_FORBIDDEN, "vm-a could not be deleted");
    assert_int_equal(double_requests(w.server, ""), 1);
    end(&w);
}

static void status_404(void **state)
{
    BEGIN("", {"new ", ANSWER, 404, "{\"error\":{\"message\":\"unknown command\"}}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_UNSUPPORTED, "unknown command");
    says(&err, ERR_UNSUPPORTED, "check that apiUrl");
    end(&w);
}

static void status_413(void **state)
{
    BEGIN("", {"new ", ANSWER, 413, ""});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_TOO_LARGE, "64 KiB");
    end(&w);
}

static void status_422_quota(void **state)
{
    BEGIN("", {"new ", ANSWER, 422, "{\"error\":\"VM limit reached\"}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_REFUSED, "plan is used up");
    end(&w);
}

static void status_422_name_taken(void **state)
{
    BEGIN("", {"new ", ANSWER, 422, "{\"error\":\"name vm-a already exists\"}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_EXISTS, "The name is taken");
    assert_int_equal(double_requests(w.server, ""), 1);
    end(&w);
}

static void status_429_waits_and_repeats(void **state)
{
    BEGIN("", {"new ", ANSWER, 429, "slow", "Retry-After: 1\r\n"},
          {"new ", ANSWER, .body = RECORD});
    int64_t from = now_ms();
    assert_true(create(&w, &r, &err));
    assert_true(now_ms() - from >= 1000);
    end(&w);
}

static void status_429_with_a_long_wait_is_told(void **state)
{
    BEGIN("", {"new ", ANSWER, 429, "slow", "Retry-After: 600\r\n"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_RATE_LIMIT, "rate limit");
    says(&err, ERR_RATE_LIMIT, "10 min");
    end(&w);
}

static void other_answers_are_no_api(void **state)
{
    BEGIN("", {"ls", ANSWER, 302, "", "Location: http://evil.example/\r\n"},
          {"ls", ANSWER, 405, ""});
    cleanup_records struct records all = {0};
    assert_false(api_ls(w.api, NULL, deadline_in(9000), &all, &err));
    says(&err, ERR_PROTOCOL, "http://evil.example/");
    assert_false(api_ls(w.api, NULL, deadline_in(9000), &all, &err));
    says(&err, ERR_PROTOCOL, "takes no commands");
    end(&w);
}

static void a_strangers_vm_is_not_taken_for_ours(void **state)
{
    BEGIN("", {"new ", RESET},
          {"ls", ANSWER, .body = "{\"vms\":[{\"vm_name\":\"vm-a\",\"tags\":[\"prod\"]}]}"});
    assert_false(create(&w, &r, &err));
    says(&err, ERR_EXISTS, "another VM");
    end(&w);
}

static void refused_connections_are_tried_again_and_told(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    cleanup_record struct record r = {0};
    struct http_double *gone = double_start(NULL, 0);
    int port = double_port(gone);
    double_stop(gone);
    cleanup_config struct config *c = config_for(port, "");
    cleanup_api struct api *a = api_new(c, NULL);
    assert_false(api_create_vm(a, c, &vm_a, deadline_in(20000), &r, &err));
    says(&err, ERR_NETWORK, "network");
    says(&err, ERR_NETWORK, "apiUrl and httpsProxy");
}

static void tag_and_comment(void **state)
{
    BEGIN("", {"tag 'vm-a' 'exedev'", ANSWER, .body = ""},
          {"comment 'vm-a' 'it'\\''s'", ANSWER, .body = "{}"});
    assert_true(api_tag(w.api, "vm-a", "exedev", deadline_in(9000), &err));
    assert_true(api_comment(w.api, "vm-a", "it's", deadline_in(9000), &err));
    end(&w);
}

static void connections_are_kept_but_new_gets_its_own(void **state)
{
    BEGIN("", {"ls", ANSWER, .body = GONE, .forever = true}, {"new ", ANSWER, .body = RECORD});
    cleanup_records struct records a = {0}, b = {0};
    assert_true(api_ls(w.api, NULL, deadline_in(9000), &a, &err));
    assert_true(api_ls(w.api, NULL, deadline_in(9000), &b, &err));
    assert_int_equal(double_connections(w.server), 1);
    assert_true(create(&w, &r, &err));
    assert_int_equal(double_connections(w.server), 2);
    end(&w);
}

static void two_configs_of_one_account_share_a_connection(void **state)
{
    BEGIN("", {"ls", ANSWER, .body = GONE, .forever = true});
    cleanup_records struct records a = {0}, b = {0};
    cleanup_config struct config *c = config_for(double_port(w.server), ",\"cpu\":8");
    cleanup_api struct api *other = api_new(c, NULL);
    assert_true(api_ls(w.api, NULL, deadline_in(9000), &a, &err));
    assert_true(api_ls(other, NULL, deadline_in(9000), &b, &err));
    assert_int_equal(double_connections(w.server), 1);
    end(&w);
}

static void a_hang_ends_in_time(void **state)
{
    BEGIN(",\"timeoutMs\":200", {"ls", HANG, .forever = true});
    cleanup_records struct records all = {0};
    assert_false(api_ls(w.api, NULL, deadline_in(700), &all, &err));
    says(&err, ERR_TIMEOUT, "timed out");
    end(&w);
}

static void an_answer_over_8_mib_is_refused(void **state)
{
    BEGIN("", {"ls", HUGE_BODY, .forever = true});
    cleanup_records struct records all = {0};
    assert_false(api_ls(w.api, NULL, deadline_in(9000), &all, &err));
    says(&err, ERR_TOO_LARGE, "over 8 MiB");
    assert_int_equal(double_requests(w.server, "ls"), 1);
    end(&w);
}

static void a_command_over_64_kib_is_not_sent(void **state)
{
    BEGIN("", {NULL, ANSWER, .body = RECORD});
    cleanup_free char *big = xmalloc(70001);
    memset(big, 'x', 70000);
    big[70000] = '\0';
    json_object_set_new(w.config->env, "BIG", json_string(big));
    assert_false(create(&w, &r, &err));
    says(&err, ERR_TOO_LARGE, "65536");
    assert_int_equal(double_requests(w.server, ""), 0);
    end(&w);
}

static void nothing_secret_comes_back(void **state)
{
    BEGIN(",\"env\":{\"PW\":\"hunter22\",\"N\":\"7\"},\"prompt\":\"private "
          "words\",\"registryAuth\":\"me:pass99\"",
          {"new ", ANSWER, 422,
           "{\"error\":\"cannot parse --env='PW=hunter22' --env='N=7' --prompt='private words' for "
           "me:pass99, " TOKEN ", 7 times\"}"});
    assert_false(create(&w, &r, &err));
    assert_null(strstr(err.msg, "hunter22"));
    assert_null(strstr(err.msg, "private words"));
    assert_null(strstr(err.msg, "pass99"));
    assert_null(strstr(err.msg, "N=7"));
    says(&err, ERR_REFUSED, "--env='PW=[REDACTED]'");
    says(&err, ERR_REFUSED, "--prompt='[REDACTED]'");
    says(&err, ERR_REFUSED, "7 times");
    cleanup_free char *line = api_create_line(w.config, &vm_a, true);
    assert_non_null(strstr(line, "--registry-auth='[REDACTED]'"));
    end(&w);
}

static void server_words_cannot_play_with_the_terminal(void **state)
{
    BEGIN("", {"new ", ANSWER, 422, "{\"error\":\"a\\u001b[31m\\nb\"}"});
    assert_false(create(&w, &r, &err));
    assert_null(strchr(err.msg, 27));
    assert_null(strchr(err.msg, '\n'));
    end(&w);
}

struct caller {
    struct api *api;
    struct error err;
};

static void *call_ls(void *arg)
{
    struct caller *c = arg;
    cleanup_records struct records all = {0};

    api_ls(c->api, NULL, deadline_in(4000), &all, &c->err);
    return NULL;
}

static void many_callers_do_not_hammer_a_failing_service(void **state)
{
    enum { CALLERS = 200 };
    BEGIN("", {"ls", ANSWER, 503, "", .forever = true});
    pthread_t t[CALLERS];
    struct caller c[CALLERS] = {0};
    for (int i = 0; i < CALLERS; i++) {
        c[i].api = w.api;
        assert_int_equal(pthread_create(&t[i], NULL, call_ls, &c[i]), 0);
    }
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(t[i], NULL);
        assert_int_equal(c[i].err.code, ERR_UNAVAILABLE);
        assert_non_null(strstr(c[i].err.msg, "service unavailable"));
        error_clear(&c[i].err);
    }
    /* Without a breaker: 4 for each of them. */
    assert_true(double_requests(w.server, "ls") < CALLERS / 2);
    end(&w);
}

static void the_service_is_used_again_once_it_works(void **state)
{
    BEGIN("", {"ls", ANSWER, 503, ""}, {"ls", ANSWER, 503, ""}, {"ls", ANSWER, 503, ""},
          {"ls", ANSWER, 503, ""}, {"ls", ANSWER, 503, ""},
          {"ls", ANSWER, .body = GONE, .forever = true});
    cleanup_records struct records all = {0};
    assert_false(api_ls(w.api, NULL, deadline_in(9000), &all, NULL));
    assert_true(api_ls(w.api, NULL, deadline_in(9000), &all, &err));
    end(&w);
}

/* Last: there is no way back. */
static void cancelling_ends_calls_under_way(void **state)
{
    BEGIN("", {"ls", HANG, .forever = true});
    pthread_t t;
    struct caller c = {.api = w.api};
    assert_int_equal(pthread_create(&t, NULL, call_ls, &c), 0);
    while (!double_requests(w.server, "ls"))
        usleep(1000);
    api_cancel_all();
    pthread_join(t, NULL);
    assert_int_equal(c.err.code, ERR_CANCELLED);
    error_clear(&c.err);
    assert_false(create(&w, &r, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    assert_int_equal(double_requests(w.server, "new"), 0);
    end(&w);
}

int main(void)
{
    setenv("EXEDEV_SETTLE_MS", "100", 1);
    unsetenv("http_proxy");
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(new_sends_the_command_as_typed),
        cmocka_unit_test(cp_sends_sizes_only),
        cmocka_unit_test(refuses_to_start_without_a_key),
        cmocka_unit_test(names_in_disguise_are_never_sent),
        cmocka_unit_test(status_400),
        cmocka_unit_test(status_401),
        cmocka_unit_test(status_403_names_the_command),
        cmocka_unit_test(status_404),
        cmocka_unit_test(status_413),
        cmocka_unit_test(status_422_quota),
        cmocka_unit_test(status_422_name_taken),
        cmocka_unit_test(status_429_waits_and_repeats),
        cmocka_unit_test(status_429_with_a_long_wait_is_told),
        cmocka_unit_test(other_answers_are_no_api),
        cmocka_unit_test(a_strangers_vm_is_not_taken_for_ours),
        cmocka_unit_test(refused_connections_are_tried_again_and_told),
        cmocka_unit_test(tag_and_comment),
        cmocka_unit_test(connections_are_kept_but_new_gets_its_own),
        cmocka_unit_test(two_configs_of_one_account_share_a_connection),
        cmocka_unit_test(a_hang_ends_in_time),
        cmocka_unit_test(an_answer_over_8_mib_is_refused),
        cmocka_unit_test(a_command_over_64_kib_is_not_sent),
        cmocka_unit_test(nothing_secret_comes_back),
        cmocka_unit_test(server_words_cannot_play_with_the_terminal),
        cmocka_unit_test(many_callers_do_not_hammer_a_failing_service),
        cmocka_unit_test(the_service_is_used_again_once_it_works),
        cmocka_unit_test(cancelling_ends_calls_under_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
