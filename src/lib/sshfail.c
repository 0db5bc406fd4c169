#include "lib/sshfail.h"

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"

/* exe-dev.md, "SSH to a VM". */
static const char *const onboarding[] = {
    "Please complete registration by running: ssh exe.dev",
    "Please enter your email address:",
};

bool sshfail_onboarding(const char *text, size_t n)
{
    for (size_t i = 0; i < sizeof onboarding / sizeof *onboarding; i++) {
        if (memmem(text, n, onboarding[i], strlen(onboarding[i])))
            return true;
    }
    return false;
}

/* The first line that has `what`, made safe to show; NULL when none has. */
static char *line_with(const char *text, const char *what)
{
    const char *at = strstr(text, what);
    struct buf b = {0};

    if (!at)
        return NULL;
    const char *from = at;
    while (from > text && from[-1] != '\n')
        from--;
    size_t n = strcspn(from, "\r\n");
    while (n && from[n - 1] == '.')
        n--;
    text_visible(&b, from, n, 300);
    return buf_steal(&b);
}

char *sshfail_last_line(const char *text)
{
    size_t n = text ? strlen(text) : 0;
    struct buf b = {0};

    while (n && strchr(". \t\r\n", text[n - 1]))
        n--;
    size_t from = n;
    while (from && text[from - 1] != '\n')
        from--;
    text_visible(&b, text ? text + from : "", n - from, 300);
    return buf_steal(&b);
}

/* What a line of ssh's own says, and what that means. In this order: the cause before its effect.
 */
static const struct rule {
    const char *text;
    enum error_code code;
    const char *what, *remedy;
} rules[] = {
    {"REMOTE HOST IDENTIFICATION HAS CHANGED", ERR_HOST_KEY,
     "the host key is not the one known for this host",
     "Either the host was rebuilt or somebody sits in between. Compare its fingerprint with the "
     "published one; then remove its line from known_hosts in the state folder, or correct "
     "sshKnownHosts"},
    {"host key is known for", ERR_HOST_KEY, "the host key is not known, and checking is strict",
     "Put the host's key into sshKnownHosts, or set strictHostKeyChecking to accept-new"},
    {"Host key verification failed", ERR_HOST_KEY, "the host key could not be verified",
     "Compare the host's fingerprint with the published one, and correct sshKnownHosts or the "
     "state "
     "folder's known_hosts"},
    {"invalid format", ERR_AUTH, "the private key is in a format that this OpenSSH cannot read",
     "Convert it (ssh-keygen -p -f KEY rewrites a key in OpenSSH's own format) and set it again"},
    {"error in libcrypto", ERR_AUTH,
     "the private key is damaged or in a format that this OpenSSH cannot read",
     "Paste the whole key again, from BEGIN to END"},
    {"UNPROTECTED PRIVATE KEY FILE", ERR_AUTH, "the private key file can be read by others",
     "chmod 600 the file"},
    {"incorrect passphrase", ERR_AUTH, "the private key has a passphrase",
     "Use a key without one, or an agent (sshAgentSocket)"},
    {"Too many authentication failures", ERR_AUTH,
     "the server saw too many keys that it does not know",
     "Set sshPrivateKey or sshIdentityFile, so that only that key is offered"},
    {"Permission denied (", ERR_AUTH, "the server refused the login (permission denied)", NULL},
    {"no matching ", ERR_UNSUPPORTED, "ssh and the server have no algorithm in common",
     "Update openssh-client here"},
    {"ad configuration option", ERR_INVALID, "ssh does not understand its configuration",
     "Correct the file named in sshConfigFile"},
    {"Can't open user config file", ERR_INVALID, "the file named in sshConfigFile cannot be read",
     "Correct sshConfigFile"},
    {"Could not resolve hostname", ERR_NETWORK, "network: the host name does not resolve (yet)",
     "A new VM's name can take some seconds; else check the name and this machine's DNS"},
    {"Connection refused", ERR_NETWORK, "network: nothing answers on that port",
     "Is the VM running, and sshPort right?"},
    {"No route to host", ERR_NETWORK, "network: no route to the host",
     "Check this machine's network and the VM's region"},
    {"Network is unreachable", ERR_NETWORK, "network: unreachable", "Check this machine's network"},
    {"onnection timed out", ERR_NETWORK, "network: connecting timed out",
     "exe.dev drops connections silently for some minutes after too many new ones; wait, or check "
     "the "
     "network"},
    {"Operation timed out", ERR_NETWORK, "network: connecting timed out",
     "Wait, or check the network"},
    {", not responding", ERR_NETWORK, "network: the server timed out (it has stopped answering)",
     "Try again"},
    {"onnection reset", ERR_NETWORK, "network: connection reset", "Try again"},
    {"Connection closed by", ERR_NETWORK, "network: the server closed the connection at once",
     "The VM may still be starting; try again"},
    {"closed by remote host", ERR_NETWORK, "network: the server closed the connection",
     "Try again"},
    {"kex_exchange_identification", ERR_NETWORK, "network: what answers does not speak SSH (yet)",
     "The VM may still be starting; check sshPort"},
    {"Broken pipe", ERR_NETWORK, "network: connection reset (broken pipe)", "Try again"},
    {"open failed", ERR_UNAVAILABLE, "the server opened no session (service unavailable)",
     "It may be at its session limit (MaxSessions); close other sessions to the VM"},
};

static const struct rule *rule_for(const char *text)
{
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        if (strstr(text, rules[i].text))
            return &rules[i];
    }
    return NULL;
}

bool sshfail_explain(const struct sshfail *f, struct error *err)
{
    const char *errors = f->errors ? f->errors : "", *chatter = f->chatter ? f->chatter : "";
    cleanup_free char *where = f->user ? xasprintf("ssh %s@%s port %d", f->user, f->host, f->port)
                                       : xasprintf("ssh %s port %d", f->host, f->port);

    if (sshfail_onboarding(chatter, strlen(chatter)) || sshfail_onboarding(errors, strlen(errors)))
        return error_set(
            err, ERR_UNREGISTERED,
            "VM %s (%s): this SSH key is not registered with the exe.dev account. Register "
            "it: run `ssh exe.dev` with this key once, or add it there with `ssh-key add`",
            f->vm, where);
    const struct rule *r = rule_for(errors);
    if (r) {
        cleanup_free char *line = line_with(errors, r->text);
        const char *remedy = r->remedy;
        if (!remedy)
            remedy = f->has_key
                         ? "Register the configured key's public half with the exe.dev account "
                           "(`ssh exe.dev`), and check sshUser"
                         : "Set sshPrivateKey to a key that is registered with the exe.dev "
                           "account; without one ssh offers the worker user's own keys";
        return error_set(err, r->code, "VM %s (%s): %s. ssh said: %s. %s%s", f->vm, where, r->what,
                         line, remedy, text_ends(remedy, "?") ? "" : ".");
    }
    cleanup_free char *said = sshfail_last_line(*errors ? errors : chatter);
    if (f->status != -1 && WIFSIGNALED(f->status))
        return error_set(
            err, ERR_NETWORK,
            "VM %s (%s): network: the ssh process was killed by signal %d (%s). Try again", f->vm,
            where, WTERMSIG(f->status), strsignal(WTERMSIG(f->status)));
    int code = f->status != -1 && WIFEXITED(f->status) ? WEXITSTATUS(f->status) : -1;
    if (code == 255 || code == -1)
        return error_set(err, ERR_NETWORK,
                         "VM %s (%s): network: the connection ended%s%s. Try again", f->vm, where,
                         *said ? "; last words: " : "", said);
    return error_set(
        err, ERR_UNSUPPORTED,
        "VM %s (%s): the login works, but our helper could not be started there (status "
        "%d)%s%s. It needs /bin/sh and a folder where programs may run",
        f->vm, where, code, *said ? "; last words: " : "", said);
}
