/* bench-link: the library's commands on one VM, timed from inside. Reads one order a line, answers
 * each with one line of JSON, so that bench/latency.mjs can take turns with other programs.
 *
 *   bench-link HOST PORT USER KEYFILE
 *     run N            N times `true`, one after the other: microseconds of each
 *     many N           N times `true` at once: microseconds from the first start to the last end
 *     out BYTES        that much output: microseconds
 *     in BYTES         that much stdin: microseconds
 *     stat             resident KiB, CPU microseconds of this process and of ssh, connections
 * opened leases N         opens N more links to the same sshd, and keeps them */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "lib/command.h"

static struct link_options options;
static struct link *vm;

static long long now_us(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "bench-link: %s: %s\n", what, why ? why : "?");
    exit(1);
}

static void run(const struct command_spec *spec)
{
    struct command_result res;
    struct error err = {0};

    if (!command_run(vm, spec, NULL, &res, &err))
        fail("run", err.msg);
    if (res.exit_code != 0)
        fail("run", res.err.data);
    command_result_free(&res);
}

static const char *const true_argv[] = {"true", NULL};

static void run_true(void)
{
    run(&(struct command_spec){
        .argv = true_argv, .login_env = true, .text = true, .collect = true});
}

static void order_run(long n)
{
    printf("[");
    for (long i = 0; i < n; i++) {
        long long from = now_us();
        run_true();
        printf("%s%lld", i ? "," : "", now_us() - from);
    }
    printf("]\n");
}

static void *many_thread(void *arg)
{
    (void)arg;
    run_true();
    return NULL;
}

static void order_many(long n)
{
    pthread_t *threads = xcalloc((size_t)n, sizeof *threads);
    pthread_attr_t attr;
    long long from = now_us();

    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    for (long i = 0; i < n; i++) {
        if (pthread_create(&threads[i], &attr, many_thread, NULL))
            fail("many", "cannot start a thread");
    }
    for (long i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    printf("%lld\n", now_us() - from);
    free(threads);
}

static bool drop(int channel, const char *data, size_t len, void *arg)
{
    (void)channel;
    (void)data;
    *(unsigned long long *)arg += len;
    return true;
}

static void order_out(const char *bytes)
{
    unsigned long long got = 0;
    const char *const argv[] = {"head", "-c", bytes, "/dev/zero", NULL};
    long long from = now_us();

    run(&(struct command_spec){
        .argv = argv, .login_env = true, .text = true, .output = drop, .arg = &got});
    if (got != strtoull(bytes, NULL, 10))
        fail("out", "not all of it came");
    printf("%lld\n", now_us() - from);
}

static ssize_t zeros(char *buf, size_t max, struct cancel *stop, void *arg)
{
    unsigned long long *left = arg;
    size_t n = *left < max ? (size_t)*left : max;

    (void)stop;
    memset(buf, 0, n);
    *left -= n;
    return (ssize_t)n;
}

static void order_in(const char *bytes)
{
    unsigned long long left = strtoull(bytes, NULL, 10);
    static const char *const argv[] = {"sh", "-c", "cat >/dev/null", NULL};
    long long from = now_us();

    run(&(struct command_spec){.argv = argv, .login_env = true, .input = zeros, .arg = &left});
    printf("%lld\n", now_us() - from);
}

static long long cpu_us(int who)
{
    struct rusage u;

    getrusage(who, &u);
    return (u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000000LL + u.ru_utime.tv_usec +
           u.ru_stime.tv_usec;
}

static void order_stat(void)
{
    char line[256];
    long rss = 0, private = 0, value;
    FILE *f = fopen("/proc/self/smaps_rollup", "r");

    while (f && fgets(line, sizeof line, f)) {
        if (sscanf(line, "Rss: %ld", &value) == 1)
            rss = value;
        else if (sscanf(line, "Private_Clean: %ld", &value) == 1 ||
                 sscanf(line, "Private_Dirty: %ld", &value) == 1)
        private += value;
    }
    if (f)
        fclose(f);
    printf("{\"rssKiB\":%ld,\"privateKiB\":%ld,\"cpuUs\":%lld,\"connections\":%u}\n", rss, private,
           cpu_us(RUSAGE_SELF), link_connections_opened());
}

static void order_leases(long n)
{
    static unsigned made;

    for (long i = 0; i < n; i++) {
        struct error err = {0};
        char marker[32];
        struct link_options o = options;
        snprintf(marker, sizeof marker, "bench-%u", made++);
        o.marker = marker;
        struct link *l = link_get(&o, &err);
        if (!l || !link_connect(l, deadline_in(60000), NULL, &err))
            fail("leases", err.msg);
    }
    printf("%ld\n", n);
}

static void warn(enum log_level level, const char *text, void *arg)
{
    (void)arg;
    fprintf(stderr, "bench-link: %s: %s\n", log_level_name(level), text);
}

int main(int argc, char **argv)
{
    struct error err = {0};
    char *line = NULL;
    size_t size = 0;

    if (argc != 5) {
        fputs("usage: bench-link HOST PORT USER KEYFILE\n", stderr);
        return 2;
    }
    log_set_sink(warn, NULL, LOG_LEVEL_WARN);
    options = (struct link_options){.vm_name = "bench",
                                    .host = argv[1],
                                    .port = atoi(argv[2]),
                                    .user = argv[3],
                                    .identity_file = argv[4],
                                    .strict = "no",
                                    .marker = "bench"};
    vm = link_get(&options, &err);
    if (!vm || !link_connect(vm, deadline_in(30000), NULL, &err))
        fail("connect", err.msg);
    run_true(); /* the login environment is captured by the first command */
    puts("\"ready\"");
    fflush(stdout);
    while (getline(&line, &size, stdin) > 0) {
        char word[16] = "", value[32] = "";
        if (sscanf(line, "%15s %31s", word, value) < 1)
            continue;
        if (!strcmp(word, "run"))
            order_run(atol(value));
        else if (!strcmp(word, "many"))
            order_many(atol(value));
        else if (!strcmp(word, "out"))
            order_out(value);
        else if (!strcmp(word, "in"))
            order_in(value);
        else if (!strcmp(word, "stat"))
            order_stat();
        else if (!strcmp(word, "leases"))
            order_leases(atol(value));
        else
            fail("unknown order", word);
        fflush(stdout);
    }
    free(line);
    link_close_all(3000);
    return 0;
}
