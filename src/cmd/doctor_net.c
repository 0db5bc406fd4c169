#include "cmd/doctor_net.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/alloc.h"
#include "base/cleanup.h"

#define SKEW_SECONDS 60 /* a token's exp and nbf are whole seconds; a minute is worth a word */

struct seen {
    time_t date;
};

static size_t take_header(char *data, size_t size, size_t n, void *arg)
{
    struct seen *seen = arg;
    size_t len = size * n;

    if (len > 5 && len < 100 && strncasecmp(data, "date:", 5) == 0) {
        cleanup_free char *value = xstrndup(data + 5, len - 5);
        seen->date = curl_getdate(value, NULL);
    }
    return len;
}

static size_t drop(char *data, size_t size, size_t n, void *arg)
{
    (void)data;
    (void)arg;
    return size * n;
}

bool doctor_net(const struct config *cfg, doctor_say_fn *say, void *arg)
{
    struct seen seen = {.date = -1};
    char why[CURL_ERROR_SIZE] = "";
    double dns = 0, connected = 0, tls = 0;
    long status = 0;

    curl_global_init(CURL_GLOBAL_DEFAULT);
    CURL *curl = curl_easy_init();
    if (!curl)
        return false;
    curl_easy_setopt(curl, CURLOPT_URL, cfg->api_url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_NOBODY, 1L); /* HEAD: the API says 405, and that is an answer */
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, 15L);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, why);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, take_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, &seen);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, drop);
    if (cfg->https_proxy)
        curl_easy_setopt(curl, CURLOPT_PROXY, cfg->https_proxy);
    if (cfg->ca_file)
        curl_easy_setopt(curl, CURLOPT_CAINFO, cfg->ca_file);
    time_t before = time(NULL);
    CURLcode code = curl_easy_perform(curl);
    curl_easy_getinfo(curl, CURLINFO_NAMELOOKUP_TIME, &dns);
    curl_easy_getinfo(curl, CURLINFO_CONNECT_TIME, &connected);
    curl_easy_getinfo(curl, CURLINFO_APPCONNECT_TIME, &tls);
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_cleanup(curl);

    cleanup_free char *text = NULL;
    if (code == CURLE_COULDNT_RESOLVE_HOST || code == CURLE_COULDNT_RESOLVE_PROXY) {
        text = xasprintf("the name in %s cannot be resolved (%s): check this machine's DNS",
                         cfg->api_url, why);
        say(DOCTOR_FAILURE, "dns", text, arg);
    } else if (code == CURLE_PEER_FAILED_VERIFICATION || code == CURLE_SSL_CACERT_BADFILE) {
        text = xasprintf(
            "%s: the server's certificate is not trusted (%s): check the clock, caFile and the "
            "ca-certificates package",
            cfg->api_url, why);
        say(DOCTOR_FAILURE, "api", text, arg);
    } else if (code != CURLE_OK) {
        text =
            xasprintf("%s cannot be reached (%s): check the network, the firewall and httpsProxy",
                      cfg->api_url, *why ? why : curl_easy_strerror(code));
        say(DOCTOR_FAILURE, "api", text, arg);
    } else {
        text = xasprintf("%s answers (status %ld; DNS %.0f ms, connected %.0f ms%s)", cfg->api_url,
                         status, dns * 1000, (tls > 0 ? tls : connected) * 1000,
                         tls > 0 ? ", TLS good" : "");
        say(DOCTOR_OK, "api", text, arg);
    }
    if (code != CURLE_OK)
        return false;
    if (seen.date < 0)
        return true;
    long skew = labs((long)(seen.date - before));
    cleanup_free char *clock =
        xasprintf(skew > SKEW_SECONDS
                      ? "this clock is %ld s off the server's: tokens expire by it; set the time "
                        "(timedatectl set-ntp true)"
                      : "within %ld s of the server's",
                  skew);
    say(skew > SKEW_SECONDS ? DOCTOR_WARNING : DOCTOR_OK, "clock", clock, arg);
    return true;
}
