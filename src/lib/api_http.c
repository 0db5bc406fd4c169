#include "lib/api_internal.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/redact.h"
#include "lib/secret.h"

#define HANDLES_IDLE 4 /* kept with their connections */
#define HANDLES_MAX 32 /* requests at once, to one account */
#define IDLE_KEEP_MS 60000

struct handle {
    CURL *curl;
    struct handle *next;
};

struct api_http {
    char *id; /* what two configs must agree on; secret */
    char *url;
    char *header; /* "Authorization: Bearer ..."; secret */
    char *key;    /* secret; known to redact as long as we are here */
    char *proxy;
    char *ca_file;
    int64_t timeout_ms;
    int users;
    int64_t unused_since;
    struct handle *idle;
    int idle_n, busy_n;
    struct api_http *next;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t handle_free;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct api_http *all;
static atomic_bool cancelled;

/* On first use only: OpenSSL's tables are most of what an idle worker would hold. */
static void start(void)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&handle_free, &attr);
    pthread_condattr_destroy(&attr);
    curl_global_init(CURL_GLOBAL_DEFAULT);
}

bool api_cancelled(void)
{
    return atomic_load(&cancelled);
}

void api_cancel_all(void)
{
    atomic_store(&cancelled, true);
}

bool api_sleep(struct deadline d, int64_t ms)
{
    struct deadline until = deadline_min(d, deadline_in(ms));

    while (!api_cancelled() && !deadline_passed(until))
        deadline_sleep(until, 50);
    return !api_cancelled();
}

static void http_free(struct api_http *h)
{
    while (h->idle) {
        struct handle *next = h->idle->next;
        curl_easy_cleanup(h->idle->curl);
        free(h->idle);
        h->idle = next;
    }
    redact_remove(h->key);
    secret_free(h->id);
    secret_free(h->header);
    secret_free(h->key);
    free(h->url);
    free(h->proxy);
    free(h->ca_file);
    free(h);
}

/* Accounts nobody has used for a while, and their tokens, are forgotten. Lock held. */
static void forget_old(void)
{
    for (struct api_http **at = &all; *at;) {
        struct api_http *h = *at;
        if (!h->users && now_ms() - h->unused_since > IDLE_KEEP_MS) {
            *at = h->next;
            http_free(h);
        } else {
            at = &h->next;
        }
    }
}

struct api_http *http_get(const struct config *c)
{
    cleanup_secret_buf struct buf id = {0}, header = {0};

    buf_printf(&id, "%s\n%s\n%s\n%s\n%lld", c->api_url, c->api_key,
               c->https_proxy ? c->https_proxy : "", c->ca_file ? c->ca_file : "",
               (long long)c->timeout_ms);
    pthread_mutex_lock(&lock);
    forget_old();
    struct api_http *h = all;
    while (h && strcmp(h->id, id.data) != 0)
        h = h->next;
    if (!h) {
        buf_printf(&header, "Authorization: Bearer %s", c->api_key);
        h = xcalloc(1, sizeof *h);
        h->id = secret_dup(id.data);
        h->header = secret_dup(header.data);
        h->key = secret_dup(c->api_key);
        redact_add(h->key);
        h->url = xstrdup(c->api_url);
        h->proxy = c->https_proxy ? xstrdup(c->https_proxy) : NULL;
        h->ca_file = c->ca_file ? xstrdup(c->ca_file) : NULL;
        h->timeout_ms = c->timeout_ms;
        h->next = all;
        all = h;
    }
    h->users++;
    pthread_mutex_unlock(&lock);
    return h;
}

void http_put(struct api_http *h)
{
    if (!h)
        return;
    pthread_mutex_lock(&lock);
    h->users--;
    h->unused_since = now_ms();
    forget_old();
    pthread_mutex_unlock(&lock);
}

const char *http_url(const struct api_http *h)
{
    return h->url;
}

void api_answer_clear(struct api_answer *a)
{
    buf_free(&a->body);
    free(a->why);
    free(a->location);
    *a = (struct api_answer){0};
}

/* NULL when none came free by d. */
static struct handle *handle_take(struct api_http *h, struct deadline d)
{
    struct handle *one = NULL;
    struct timespec at = deadline_timespec(d);

    pthread_mutex_lock(&lock);
    while (h->busy_n >= HANDLES_MAX && !deadline_passed(d))
        if (pthread_cond_timedwait(&handle_free, &lock, &at))
            break;
    if (h->busy_n < HANDLES_MAX) {
        h->busy_n++;
        if ((one = h->idle)) {
            h->idle = one->next;
            h->idle_n--;
        }
        pthread_mutex_unlock(&lock);
        if (!one) {
            one = xcalloc(1, sizeof *one);
            one->curl = curl_easy_init();
        }
        return one;
    }
    pthread_mutex_unlock(&lock);
    return NULL;
}

static void handle_give(struct api_http *h, struct handle *one)
{
    pthread_mutex_lock(&lock);
    h->busy_n--;
    if (h->idle_n < HANDLES_IDLE && one->curl) {
        one->next = h->idle;
        h->idle = one;
        h->idle_n++;
        one = NULL;
    }
    pthread_cond_signal(&handle_free);
    pthread_mutex_unlock(&lock);
    if (one) {
        curl_easy_cleanup(one->curl);
        free(one);
    }
}

struct reading {
    struct buf *body;
    bool too_large;
};

static size_t on_body(char *p, size_t size, size_t n, void *arg)
{
    struct reading *r = arg;

    if (r->body->len + size * n > API_ANSWER_MAX) {
        r->too_large = true;
        return 0;
    }
    buf_put(r->body, p, size * n);
    return size * n;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d)
{
    (void)arg, (void)a, (void)b, (void)c, (void)d;
    return api_cancelled();
}

/* Debian's folder is built in; other distributions keep theirs elsewhere. */
static const char *ca_file(void)
{
    static const char *const places[] = {
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    };
    const char *named = getenv("SSL_CERT_FILE");

    if (named && *named)
        return named;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (!access(places[i], R_OK))
            return places[i];
    return NULL;
}

static void set_options(const struct api_http *h, CURL *c, bool fresh, int64_t ms)
{
    const char *ca = h->ca_file ? h->ca_file : ca_file();

    /* Options go, the connections kept alive stay. */
    curl_easy_reset(c);
    curl_easy_setopt(c, CURLOPT_URL, h->url);
    curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(c, CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_2TLS);
    curl_easy_setopt(c, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 0L);
    curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(c, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(c, CURLOPT_XFERINFOFUNCTION, on_progress);
    curl_easy_setopt(c, CURLOPT_TIMEOUT_MS, (long)ms);
    curl_easy_setopt(c, CURLOPT_CONNECTTIMEOUT_MS, (long)(ms < 15000 ? ms : 15000));
    curl_easy_setopt(c, CURLOPT_MAXAGE_CONN, 50L);
    curl_easy_setopt(c, CURLOPT_USERAGENT, "exedev");
    /* libcurl repeats a POST by itself when a kept-alive connection turns out to be dead; a command
     * that must not be repeated goes on a new one, where it never does. */
    curl_easy_setopt(c, CURLOPT_FRESH_CONNECT, fresh ? 1L : 0L);
    if (h->proxy)
        curl_easy_setopt(c, CURLOPT_PROXY, h->proxy);
    if (ca)
        curl_easy_setopt(c, CURLOPT_CAINFO, ca);
    if (h->ca_file)
        curl_easy_setopt(c, CURLOPT_CAPATH, NULL);
}

static enum api_fault fault_of(CURL *c, CURLcode code, const struct reading *r)
{
    curl_off_t began = 0;
    long sent = 0;

    if (r->too_large)
        return API_ANSWER_TOO_LARGE;
    if (code == CURLE_ABORTED_BY_CALLBACK)
        return API_STOPPED;
    curl_easy_getinfo(c, CURLINFO_PRETRANSFER_TIME_T, &began);
    curl_easy_getinfo(c, CURLINFO_REQUEST_SIZE, &sent);
    if (!began && !sent)
        return API_NOT_SENT;
    return code == CURLE_OPERATION_TIMEDOUT ? API_LATE : API_LOST;
}

static void read_answer(CURL *c, struct api_answer *out)
{
    long status = 0;
    curl_off_t wait = 0;
    struct curl_header *header;
    char *location = NULL;

    curl_easy_getinfo(c, CURLINFO_RESPONSE_CODE, &status);
    out->status = (int)status;
    if (!curl_easy_header(c, "Retry-After", 0, CURLH_HEADER, -1, &header) &&
        !curl_easy_getinfo(c, CURLINFO_RETRY_AFTER, &wait))
        out->retry_after_ms = wait < 86400 ? wait * 1000 : 86400000;
    if (status >= 300 && status < 400 && !curl_easy_getinfo(c, CURLINFO_REDIRECT_URL, &location) &&
        location)
        out->location = xstrdup(location);
}

void http_post(struct api_http *h, const char *line, bool fresh, struct deadline d,
               struct api_answer *out)
{
    int64_t ms = h->timeout_ms < API_REQUEST_MS ? h->timeout_ms : API_REQUEST_MS;
    char why[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;

    *out = (struct api_answer){.retry_after_ms = -1};
    pthread_once(&once, start);
    struct handle *one = handle_take(h, d);
    ms = deadline_left(d) < ms ? deadline_left(d) : ms;
    if (!one || !one->curl || ms <= 0 || api_cancelled()) {
        out->fault = api_cancelled() ? API_STOPPED : API_NOT_SENT;
        out->why = xstrdup(one ? "timed out before the request could be sent"
                               : "timed out waiting for the requests under way before it");
        if (one)
            handle_give(h, one);
        return;
    }
    CURL *c = one->curl;
    struct reading reading = {.body = &out->body};
    set_options(h, c, fresh, ms);
    headers = curl_slist_append(headers, h->header);
    headers = curl_slist_append(headers, "Content-Type: text/plain; charset=utf-8");
    headers = curl_slist_append(headers, "Accept: application/json");
    headers = curl_slist_append(headers, "Expect:"); /* no waiting for a 100 Continue */
    curl_easy_setopt(c, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(c, CURLOPT_POSTFIELDSIZE, (long)strlen(line));
    curl_easy_setopt(c, CURLOPT_POSTFIELDS, line);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &reading);
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, why);

    CURLcode code = curl_easy_perform(c);
    if (code == CURLE_OK) {
        read_answer(c, out);
    } else {
        out->fault = fault_of(c, code, &reading);
        out->why = xstrdup(*why ? why : curl_easy_strerror(code));
    }
    curl_easy_setopt(c, CURLOPT_ERRORBUFFER, NULL);
    for (struct curl_slist *s = headers; s; s = s->next)
        explicit_bzero(s->data, strlen(s->data));
    curl_slist_free_all(headers);
    handle_give(h, one);
}
