/* The provider's config: raw JSON of any shape in, a checked struct out. behaviour.md, "Config",
 * has the rules; src/schema/config.json is the one list of fields. Thread-safe; a parsed config is
 * never changed again and may be read by any number of threads. */
#ifndef LIB_CONFIG_H
#define LIB_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "base/json.h"
#include "lib/problems.h"

/* Strings are NULL when absent. The table generated from the schema (config_fields.h) names every
 * member: a field that the schema gains and this struct lacks does not compile. */
struct config {
    /* secret; wiped by config_free, known to redact while the config lives */
    char *api_key;         /* the setting, else EXE_API_KEY, else a token file */
    char *ssh_private_key; /* PEM text as it came (not healed: key_load does that) */
    char *registry_auth;

    char *ssh_user;
    char *ssh_identity_file; /* absolute; NULL when ssh_private_key is there */
    int64_t ssh_port;
    char *strict_host_key_checking; /* "accept-new", "yes", "no" */
    char *ssh_agent_socket;
    char *ssh_known_hosts; /* pinned lines; strict_host_key_checking is "yes" then */
    char *ssh_config_file;
    int64_t connections_per_ten_seconds; /* to one address, all our processes together */

    int64_t cpu; /* 0: not set */
    char *memory;
    char *disk;

    char *source_vm;
    char *image;
    char *command;
    char *comment;
    char *prompt;
    char *setup_script; /* NULL: the built-in one (setup.h); "none": no script */
    bool wait_for_setup;
    int64_t node_major;
    json_t *env;          /* object of strings: `env` with `envText` merged over it */
    json_t *integrations; /* array of strings */
    json_t *tags;         /* array of strings */
    char *env_text;
    char *name_prefix;          /* normalised, never empty */
    int64_t expires_in_minutes; /* 0: no expiry */

    char *api_url; /* normalised: ends in /exec (a query may follow) */
    char *https_proxy;
    char *ca_file;
    int64_t timeout_ms;
    bool reuse_lease;
    int64_t keep_alive_seconds;
    int64_t heartbeat_seconds; /* a silent VM is given up after three */
    int64_t kill_grace_ms;
    int64_t output_cap;                       /* escaped characters of stdout and stderr together */
    int64_t sync_max_entries, sync_max_bytes; /* of one transfer out of a VM */
    bool source_nvm;
    bool durable_commands;
    int64_t durable_seconds; /* how long a durable command waits for its worker */

    /* Where api_key came from, for messages: NULL, "apiKey", "EXE_API_KEY" or the file's path. */
    char *api_key_source;
};

/* Never NULL: a field in error has its default, and the problem is in p. Looks for the API key in
 * the environment and the token files when the config has none; none anywhere is no problem here
 * (api_new refuses it). */
struct config *config_parse(const json_t *raw, struct problems *p);
/* As config_parse, for callers that only go on with a good config: NULL and every problem in err.
 */
struct config *config_load(const json_t *raw, struct error *err);
void config_free(struct config *c);
static inline void cleanup_config_fn(struct config **c)
{
    config_free(*c);
}
#define cleanup_config __attribute__((cleanup(cleanup_config_fn)))

enum {
    CONFIG_OFFLINE = 1, /* start no program (ssh-keygen): the private key's form is checked only */
};

/* Everything environmentValidateConfig says: errors and warnings go to p. Returns the normalised
 * config (every field, null where absent; unknown keys as they came; no API key that was not in
 * raw), or NULL when there is an error. Reads token, key and the files named. Takes at most 10 s.
 */
json_t *config_validate(const json_t *raw, unsigned flags, struct problems *p);

/* Is text a bare UUID, the id of a company secret that the host has not resolved yet? */
bool config_is_secret_id(const char *text);
/* Home folder of this user: HOME, else the password database; NULL when neither knows. Owned. */
char *config_home(void);
/* A name for the account a config talks to: hash of API URL and key, 32 hex digits; owned. It does
 * not let the key be found. */
char *config_account_id(const struct config *c);

/* One field of the schema, for forms, command-line flags and listings. */
enum field_type { FIELD_STRING, FIELD_INTEGER, FIELD_LIST, FIELD_MAP, FIELD_FLAG };
struct config_field {
    const char *key;  /* "sshPort" */
    const char *flag; /* "ssh-port", for a command line */
    const char *title;
    const char *group; /* NULL: one of the essential fields */
    const char *text;  /* the description */
    enum field_type type;
    bool secret;
    bool multiline;
    int64_t min, max;     /* FIELD_INTEGER */
    const char *fallback; /* the default as text; NULL: absent */
    size_t offset;        /* in struct config */
};
extern const struct config_field config_fields[]; /* key NULL ends */
const struct config_field *config_field_find(const char *key);

#endif
