#include <ctype.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/api_internal.h"
#include "lib/redact.h"

#define WORDS_MAX 600

static bool says(const char *text, const char *const *words, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strcasestr(text, words[i]))
            return true;
    return false;
}
#define SAYS(text, ...)                                                                            \
    says(text, (const char *const[]){__VA_ARGS__},                                                 \
         sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *))

/* {"error": "..."}, {"error": {"message": "..."}}, {"message": "..."}, else the text itself. */
static char *server_words(const struct buf *body, const char *const *more, size_t n)
{
    cleanup_buf struct buf copy = {0}, shown = {0};

    buf_put(&copy, body->data, body->len);
    cleanup_json json_t *o = body->len ? json_parse(copy.data, copy.len, NULL) : NULL;
    const json_t *error = json_object_get(o, "error");
    const char *words = json_is_object(error) ? json_str(error, "message") : json_str(o, "error");
    if (!words)
        words = json_str(o, "message");
    if (!words && json_is_string(o))
        words = json_string_value(o);
    cleanup_free char *raw =
        words ? xstrdup(words)
              : xstrndup(body->data ? body->data : "", body->len < 8192 ? body->len : 8192);
    /* Redacted before anything is cut or escaped, or half a secret could slip through. */
    cleanup_free char *clean = redact_with(raw, more, n);
    cleanup_free char *trimmed = text_trim(clean);
    text_visible(&shown, trimmed, strlen(trimmed), WORDS_MAX);
    return shown.data ? buf_steal(&shown) : xstrdup("");
}

static bool explain_fault(const struct api_answer *a, const char *url, const char *what,
                          struct error *err)
{
    cleanup_free char *why = redact(a->why ? a->why : "no reason given");

    switch (a->fault) {
    case API_STOPPED:
        return error_set(err, ERR_CANCELLED, "%s was given up because this program is ending",
                         what);
    case API_ANSWER_TOO_LARGE:
        return error_set(
            err, ERR_TOO_LARGE,
            "%s: the answer from %s is over 8 MiB and was refused; check that apiUrl is the API",
            what, url);
    case API_LATE:
        return error_set(err, ERR_TIMEOUT, "%s timed out: %s did not answer in time (%s)", what,
                         url, why);
    case API_LOST:
        return error_set(
            err, ERR_NETWORK,
            "%s: network fault, the connection to %s broke before the answer was complete (%s)",
            what, url, why);
    default:
        break;
    }
    if (SAYS(why, "certificate", "SSL", "TLS"))
        return error_set(err, ERR_NETWORK,
                         "%s: no trusted connection to %s: %s. If a company proxy or a server of "
                         "your own signs its "
                         "certificates itself, name its CA in caFile",
                         what, url, why);
    return error_set(err, strstr(why, "timed out") ? ERR_TIMEOUT : ERR_NETWORK,
                     "%s: network fault, %s cannot be reached: %s. Check the machine's connection, "
                     "apiUrl and httpsProxy",
                     what, url, why);
}

static const char *advice_422(const char *words, enum error_code *code)
{
    if (SAYS(words, "already exists", "already taken", "taken", "in use", "not available",
             "already have")) {
        *code = ERR_EXISTS;
        return "The name is taken; use another one";
    }
    if (SAYS(words, "quota", "limit", "too many", "maximum", "upgrade", "plan")) {
        *code = ERR_REFUSED;
        return "The account's plan is used up: delete VMs (`exedev ls`, `exedev gc`), ask for less "
               "cpu, memory or "
               "disk, or get a larger plan";
    }
    if (SAYS(words, "no such", "not found", "does not exist", "doesn't exist", "unknown vm")) {
        *code = ERR_NOT_FOUND;
        return "There is no such VM in this account; `exedev ls` lists them";
    }
    *code = ERR_REFUSED;
    return "The command ran and failed; correct the setting it names";
}

static char *advice(int status, const char *word, const char *words, const struct api_answer *a,
                    enum error_code *code)
{
    switch (status) {
    case 400:
        *code = ERR_INVALID;
        return xstrdup(
            "The server could not read the command; check the settings for text it may not take");
    case 401:
        *code = ERR_AUTH;
        return xstrdup("The API key is wrong, expired, or signed by an SSH key that the account "
                       "does not have: check apiKey with "
                       "`exedev token inspect`, make a new one with `exedev token mint`");
    case 403:
        *code = ERR_FORBIDDEN;
        return xasprintf("The API key may not run `%s`: make one that lists it, such as with "
                         "`exedev token mint --cmds "
                         "new,ls,rm,cp,restart,tag,comment`",
                         word);
    case 404:
        *code = ERR_UNSUPPORTED;
        return xasprintf("The server knows no command `%s`: check that apiUrl is "
                         "https://exe.dev/exec or a server that works alike",
                         word);
    case 405:
        *code = ERR_PROTOCOL;
        return xstrdup("This address takes no commands: check apiUrl");
    case 413:
        *code = ERR_TOO_LARGE;
        return xstrdup(
            "The command is over 64 KiB: shorten setupScript, prompt or the environment variables");
    case 422:
        return xstrdup(advice_422(words, code));
    case 429: {
        *code = ERR_RATE_LIMIT;
        cleanup_free char *wait =
            a->retry_after_ms > 0 ? text_duration_ms(a->retry_after_ms) : NULL;
        return xasprintf("The rate limit of the API key is reached: %s%s; fewer calls at once "
                         "help, other keys have limits of "
                         "their own",
                         wait ? "try again in " : "try again later", wait ? wait : "");
    }
    case 504:
        *code = ERR_UNAVAILABLE;
        return xstrdup("service unavailable: the command took exe.dev more than 30 s, and may have "
                       "been done all the same");
    default:
        break;
    }
    if (status >= 500) {
        *code = ERR_UNAVAILABLE;
        return xstrdup("service unavailable: the fault is on the server's side; try again later");
    }
    *code = ERR_PROTOCOL;
    if (status >= 300 && status < 400)
        return xasprintf("Redirects are not followed, because the API key would go along%s%s: set "
                         "apiUrl to the final address",
                         a->location ? "; this one leads to " : "", a->location ? a->location : "");
    return xstrdup("This is no answer of exe.dev's API: check apiUrl");
}

bool api_explain(const struct api_answer *a, const char *url, const char *word, const char *shown,
                 const char *const *more, size_t n, struct error *err)
{
    enum error_code code = ERR_INTERNAL;
    cleanup_free char *what = xasprintf("exe.dev command `%s`", shown);

    if (a->fault != API_ANSWERED) {
        explain_fault(a, url, what, err);
        redact_error(err);
        return false;
    }
    cleanup_free char *words = server_words(&a->body, more, n);
    cleanup_free char *do_this = advice(a->status, word, words, a, &code);
    error_set(err, code, "%s failed with HTTP status %d%s%s%s. %s", what, a->status,
              *words ? ": \"" : "", words, *words ? "\"" : "", do_this);
    if (err)
        err->status = a->status;
    redact_error(err);
    return false;
}
