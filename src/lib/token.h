/* exe.dev API tokens (exe-dev.md, "Tokens"): reading, explaining, making. Thread-safe. */
#ifndef LIB_TOKEN_H
#define LIB_TOKEN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/deadline.h"
#include "base/error.h"
#include "base/json.h"
#include "lib/key.h"

#define TOKEN_MAX 8192 /* bytes exe.dev takes */

enum token_kind {
    TOKEN_EXE0,  /* can be read */
    TOKEN_EXE1,  /* issued short form: opaque */
    TOKEN_OTHER, /* some other text: the server will judge */
};

struct token {
    enum token_kind kind;
    int64_t exp, nbf;  /* Unix seconds; 0: not given */
    json_t *cmds;      /* array of strings; NULL: the default commands */
    json_t *ctx;       /* NULL: none */
    char *key_type;    /* of the signing key, "ssh-ed25519"; exe0 only */
    char *fingerprint; /* "SHA256:..." of the signing key; exe0 only */
    char *scope;       /* the signature's namespace, "v0@exe.dev" or "v0@NAME.exe.xyz" */
};

void token_clear(struct token *t);
#define cleanup_token __attribute__((cleanup(token_clear)))

/* Reads an exe0 token strictly by the payload rules; ERR_INVALID says which rule it breaks. Other
 * kinds always succeed (a text that no header could carry does not). The signature is not verified:
 * that takes the account's keys. */
bool token_parse(const char *text, struct token *out, struct error *err);
/* May the token run this lobby command ("rm", "ssh-key list")? True where it cannot be read. */
bool token_allows(const struct token *t, const char *command);
/* Explains a token to a person, several lines. */
void token_describe(const struct token *t, int64_t now, struct buf *out);

/* A permissions payload; cmds may be NULL (default commands). */
bool token_payload(const json_t *cmds, int64_t nbf, int64_t exp, const json_t *ctx, struct buf *out,
                   struct error *err);

/* Who signs: exactly one of key, key_file and agent_socket (with public_key, the line of the
 * agent's key). */
struct token_signer {
    const struct key *key;
    const char *key_file;
    const char *agent_socket;
    const char *public_key;
};

/* Signs the payload through `ssh-keygen -Y sign`; vm NULL makes an API token, else one for that
 * VM's HTTPS proxy. The result is secret and owned (free with secret_free). */
char *token_mint(const struct token_signer *s, const char *vm, const struct buf *payload,
                 struct deadline d, struct error *err);
/* A short-lived token for the VM's proxy, from the config's private key or identity file. */
struct config;
char *token_mint_vm(const struct config *c, const char *vm, int64_t seconds, struct deadline d,
                    struct error *err);
/* "30d", "12h", "45m", "90" (seconds) -> seconds; ERR_INVALID. */
bool token_duration(const char *text, int64_t *seconds, struct error *err);

#endif
