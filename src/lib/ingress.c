#include "lib/ingress.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/text.h"
#include "lib/secret.h"
#include "lib/token.h"

#define MINT_MS 10000

void ingress_clear(struct ingress *i)
{
    free(i->url);
    secret_free(i->header);
    free(i->generation);
    *i = (struct ingress){0};
}

/* The host compares what a URL parser makes of it with what it asked for. */
static bool path_ok(const char *path)
{
    static const char plain[] =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@/";
    return path[0] == '/' && path[strspn(path, plain)] == '\0' && !strstr(path, "/.");
}

/* HOST of https://HOST[:PORT][/...]; a port of its own is the proxy's main one and gives way. */
static char *host_of(const char *url)
{
    if (!url || strncasecmp(url, "https://", 8) != 0)
        return NULL;
    const char *from = url + 8;
    size_t n = *from == '[' ? strcspn(from, "]") + 1 : strcspn(from, ":/?#");
    cleanup_free char *host = xstrndup(from, n);
    return text_is_host(host) ? steal_ptr(host) : NULL;
}

bool ingress_open(const struct config *cfg, const char *vm, const char *https_url, int64_t port,
                  const char *path, struct ingress *out, struct error *err)
{
    unsigned char nonce[8];

    *out = (struct ingress){0};
    if (!text_is_vm_name(vm))
        return error_set(err, ERR_UNSAFE, "the lease id is no VM name");
    if (port != 443 && (port < 3000 || port > 9999))
        return error_set(
            err, ERR_INVALID,
            "port %lld of a VM cannot be reached through exe.dev's proxy: it passes 3000 to 9999",
            (long long)port);
    if (!path_ok(path))
        return error_set(
            err, ERR_INVALID,
            "the path must begin with a slash and hold no character that a URL would rewrite");
    cleanup_free char *host = https_url ? host_of(https_url) : xasprintf("%s.exe.xyz", vm);
    if (!host)
        return error_set(err, ERR_UNSAFE, "VM %s has an HTTPS address that is none", vm);
    cleanup_secret char *token = token_mint_vm(cfg, vm, INGRESS_SECONDS, deadline_in(MINT_MS), err);
    if (!token)
        return error_prefix(err, "make a token for the HTTPS proxy of VM %s", vm);
    out->url = port == 443 ? xasprintf("wss://%s%s", host, path)
                           : xasprintf("wss://%s:%lld%s", host, (long long)port, path);
    cleanup_secret_buf struct buf value = {0};
    buf_printf(&value, "Bearer %s", token);
    out->header = secret_dup(value.data);
    char hex[2 * sizeof nonce + 1];
    io_random(nonce, sizeof nonce);
    io_hex(nonce, sizeof nonce, hex);
    out->generation = xstrdup(hex);
    return true;
}
