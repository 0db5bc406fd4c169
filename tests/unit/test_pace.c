#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/pace.h"

static char folder[] = "/tmp/test-pace-XXXXXX";

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[100];

    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

/* Addresses of the documentation range: nothing is sent to them. */

static void a_burst_passes_and_no_more(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};

    for (int i = 0; i < 4; i++)
        assert_true(pace_wait(folder, "192.0.2.1", 0, deadline_in(0), NULL, &err));
    assert_false(pace_wait(folder, "192.0.2.1", 0, deadline_in(50), NULL, &err));
    assert_int_equal(err.code, ERR_TIMEOUT);
    assert_non_null(strstr(err.msg, "192.0.2.1"));
    assert_true(pace_wait(folder, "192.0.2.2", 0, deadline_in(0), NULL, NULL));
}

static void processes_share_the_count(void **state)
{
    (void)state;
    int passed = 0;

    for (int i = 0; i < 6; i++) {
        pid_t pid = fork();
        int status;
        if (pid == 0)
            _exit(pace_wait(folder, "192.0.2.3", 3, deadline_in(0), NULL, NULL) ? 0 : 1);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        passed += status == 0;
    }
    assert_int_equal(passed, 3);
}

static void loopback_is_not_counted(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        assert_true(pace_wait(folder, "127.3.2.1", 0, deadline_in(0), NULL, NULL));
        assert_true(pace_wait(folder, "[::1]", 0, deadline_in(0), NULL, NULL));
    }
}

static void *fire_soon(void *arg)
{
    usleep(20000);
    cancel_fire(arg);
    return NULL;
}

static void waiting_can_be_cancelled(void **state)
{
    (void)state;
    cleanup_error struct error err = {0};
    struct cancel *c = cancel_new();
    pthread_t thread;

    assert_true(pace_wait(folder, "192.0.2.4", 1, deadline_in(0), NULL, NULL));
    pthread_create(&thread, NULL, fire_soon, c);
    assert_false(pace_wait(folder, "192.0.2.4", 1, deadline_in(60000), c, &err));
    assert_int_equal(err.code, ERR_CANCELLED);
    pthread_join(thread, NULL);
    cancel_unref(c);
}

static void damaged_counts_are_no_obstacle(void **state)
{
    (void)state;
    char path[100];

    assert_true(pace_wait(folder, "192.0.2.5", 1, deadline_in(0), NULL, NULL));
    snprintf(path, sizeof path, "%s/pace/192.0.2.5", folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int i = 0; i < 1000; i++)
        fputs("\x7f\xff\xff garbage", f);
    fclose(f);
    assert_true(pace_wait(folder, "192.0.2.5", 1, deadline_in(0), NULL, NULL));
    assert_false(pace_wait(folder, "192.0.2.5", 1, deadline_in(0), NULL, NULL));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_passes_and_no_more),
        cmocka_unit_test(processes_share_the_count),
        cmocka_unit_test(loopback_is_not_counted),
        cmocka_unit_test(waiting_can_be_cancelled),
        cmocka_unit_test(damaged_counts_are_no_obstacle),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
