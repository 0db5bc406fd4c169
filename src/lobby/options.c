#include "lobby/options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "lobby/fault.h"
#include "lobby/listen.h"
#include "version.h"

static const char usage[] =
    "usage: exedev-lobby [options]\n"
    "\n"
    "exe.dev on one machine: the API at POST /exec, VMs that are sandboxes with an sshd each.\n"
    "Without options it makes a token and an SSH key of its own and prints how to use them.\n"
    "\n"
    "  --listen ADDR:PORT     the API (127.0.0.1 and a free port)\n"
    "  --tls-cert FILE --tls-key FILE   serve it over HTTPS; also for --proxy\n"
    "  --token TOKEN          accept this bearer token for every command (repeats)\n"
    "  --authorized-key FILE  register these public SSH keys: they log in to VMs, and sign exe0\n"
    "                         tokens (repeats)\n"
    "  --ssh-port PORT        of every VM's sshd (2222, or a free one)\n"
    "  --max-vms N            quota (50)\n"
    "  --max-sessions N       MaxSessions of the VMs' sshd (10)\n"
    "  --state DIR            keep VMs there: they stay when the lobby ends, and are found again\n"
    "  --disk overlay|plain   VMs' disks: changes over this machine's system folders, or\n"
    "                         read-only system folders (overlay where it can be)\n"
    "  --proxy ADDR:PORT      HTTPS and WebSockets to VMs' ports; also on every VM's address\n"
    "  --proxy-port PORT      on every VM's address, to 127.0.0.1:PORT (3000 to 9999; repeats)\n"
    "  --hide-tags            records without tags and comment\n"
    "  --relay                stand between clients and sshd, for ssh: faults at run time\n"
    "  --fault SPEC           go wrong on request (repeats)\n"
    "  --json                 events on stderr as JSON lines\n"
    "  --help, --version\n"
    "\n";

enum {
    OPT_LISTEN = 256,
    OPT_CERT,
    OPT_KEY,
    OPT_TOKEN,
    OPT_AUTHORIZED,
    OPT_SSH_PORT,
    OPT_MAX_VMS,
    OPT_MAX_SESSIONS,
    OPT_STATE,
    OPT_DISK,
    OPT_PROXY,
    OPT_PROXY_PORT,
    OPT_HIDE_TAGS,
    OPT_RELAY,
    OPT_FAULT,
    OPT_JSON,
    OPT_HELP,
    OPT_VERSION
};

static const struct option longs[] = {
    {"listen", 1, NULL, OPT_LISTEN},
    {"tls-cert", 1, NULL, OPT_CERT},
    {"tls-key", 1, NULL, OPT_KEY},
    {"token", 1, NULL, OPT_TOKEN},
    {"authorized-key", 1, NULL, OPT_AUTHORIZED},
    {"ssh-port", 1, NULL, OPT_SSH_PORT},
    {"max-vms", 1, NULL, OPT_MAX_VMS},
    {"max-sessions", 1, NULL, OPT_MAX_SESSIONS},
    {"state", 1, NULL, OPT_STATE},
    {"disk", 1, NULL, OPT_DISK},
    {"proxy", 1, NULL, OPT_PROXY},
    {"proxy-port", 1, NULL, OPT_PROXY_PORT},
    {"hide-tags", 0, NULL, OPT_HIDE_TAGS},
    {"relay", 0, NULL, OPT_RELAY},
    {"fault", 1, NULL, OPT_FAULT},
    {"json", 0, NULL, OPT_JSON},
    {"help", 0, NULL, OPT_HELP},
    {"version", 0, NULL, OPT_VERSION},
    {NULL, 0, NULL, 0},
};

static bool number(const char *name, const char *text, unsigned least, unsigned most, unsigned *out,
                   struct error *err)
{
    char *end;
    unsigned long n = strtoul(text, &end, 10);

    if (text[0] < '0' || text[0] > '9' || *end || n < least || n > most)
        return error_set(err, ERR_INVALID, "--%s \"%s\": expected a number from %u to %u", name,
                         text, least, most);
    *out = (unsigned)n;
    return true;
}

static void set(char **to, const char *value)
{
    free(*to);
    *to = xstrdup(value);
}

static bool take_token(struct options *o, char *value, struct error *err)
{
    if (!*value || strpbrk(value, " \t\r\n"))
        return error_set(err, ERR_INVALID, "--token: empty, or holds white space");
    json_array_append_new(o->tokens, json_string(value));
    /* out of sight of ps(1) */
    memset(value, 'x', strlen(value));
    return true;
}

static bool take_disk(struct options *o, const char *value, struct error *err)
{
    if (strcmp(value, "overlay") == 0)
        o->disk = DISK_OVERLAY;
    else if (strcmp(value, "plain") == 0)
        o->disk = DISK_PLAIN;
    else
        return error_set(err, ERR_INVALID, "--disk \"%s\": expected overlay or plain", value);
    return true;
}

static bool take(struct options *o, int opt, char *value, struct error *err)
{
    unsigned n = 0;

    switch (opt) {
    case OPT_LISTEN:
        return listen_parse(value, &o->listen, err);
    case OPT_PROXY:
        o->want_proxy = true;
        return listen_parse(value, &o->proxy, err);
    case OPT_PROXY_PORT:
        if (!number("proxy-port", value, 3000, 9999, &n, err))
            return false;
        json_array_append_new(o->proxy_ports, json_integer(n));
        return true;
    case OPT_CERT:
        set(&o->tls_cert, value);
        return true;
    case OPT_KEY:
        set(&o->tls_key, value);
        return true;
    case OPT_TOKEN:
        return take_token(o, value, err);
    case OPT_AUTHORIZED:
        json_array_append_new(o->key_files, json_string(value));
        return true;
    case OPT_SSH_PORT:
        return number("ssh-port", value, 1, 65535, &o->ssh_port, err);
    case OPT_MAX_VMS:
        return number("max-vms", value, 0, 10000, &o->max_vms, err);
    case OPT_MAX_SESSIONS:
        return number("max-sessions", value, 1, 10000, &o->max_sessions, err);
    case OPT_STATE:
        set(&o->state, value);
        return *value || error_set(err, ERR_INVALID, "--state: no folder");
    case OPT_DISK:
        return take_disk(o, value, err);
    case OPT_HIDE_TAGS:
        o->hide_tags = true;
        return true;
    case OPT_RELAY:
        o->relay = true;
        return true;
    case OPT_FAULT:
        json_array_append_new(o->faults, json_string(value));
        return true;
    case OPT_JSON:
        o->json = true;
        return true;
    case OPT_HELP:
        printf("%s%s", usage, fault_help);
        o->done = true;
        return true;
    case OPT_VERSION:
        puts("exedev-lobby " EXEDEV_VERSION);
        o->done = true;
        return true;
    default:
        return error_set(err, ERR_INVALID, "see exedev-lobby --help");
    }
}

bool options_parse(struct options *o, int argc, char **argv, struct error *err)
{
    int opt;

    *o = (struct options){.max_vms = 50, .max_sessions = 10};
    o->key_files = json_array();
    o->tokens = json_array();
    o->faults = json_array();
    o->proxy_ports = json_array();
    listen_parse("127.0.0.1:0", &o->listen, NULL);
    while (!o->done && (opt = getopt_long(argc, argv, "", longs, NULL)) != -1) {
        if (!take(o, opt, optarg, err))
            return false;
    }
    if (optind < argc && !o->done)
        return error_set(err, ERR_INVALID, "\"%s\": no such argument; see exedev-lobby --help",
                         argv[optind]);
    if (!o->tls_cert != !o->tls_key)
        return error_set(err, ERR_INVALID, "--tls-cert and --tls-key belong together");
    if (json_array_size(o->proxy_ports) && !o->want_proxy)
        return error_set(err, ERR_INVALID, "--proxy-port belongs to --proxy");
    if (json_array_size(o->proxy_ports) > 64)
        return error_set(err, ERR_INVALID, "more than 64 times --proxy-port");
    if (o->state && o->relay)
        return error_set(err, ERR_INVALID,
                         "--relay ends with the lobby, VMs in --state do not: use one of them");
    return true;
}
