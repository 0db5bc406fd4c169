/* Interactive setup and templates: a VM that a person enters, captured as a VM that leases are
 * copied from (the setting sourceVm). Under the same rules as leases: journal, mark, deadlines.
 * Thread-safe. */
#ifndef LIB_TEMPLATE_H
#define LIB_TEMPLATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "lib/cancel.h"
#include "lib/config.h"

struct setup_session {
    char *id;   /* the VM; NULL: missing */
    char *user; /* NULL: none named */
    char *host;
    int port;
    char *command;    /* the ssh line to paste */
    char *expires_at; /* ISO 8601, of a timer armed in the VM; NULL: none */
    json_t *metadata;
};
void setup_session_clear(struct setup_session *s);

struct setup_request {
    const char *environment_id, *session_id;
    const char *source;     /* a template; NULL: the config's sourceVm, else a fresh VM */
    const char *expires_at; /* ISO 8601 or NULL */
};
/* Makes the VM, waits until ssh answers. On failure it is deleted. */
bool template_setup_start(const struct config *cfg, const struct setup_request *req,
                          struct cancel *cancel, struct setup_session *out, struct error *err);
/* out->id NULL: the VM is not there (no error). */
bool template_setup_get(const struct config *cfg, const char *id, struct setup_session *out,
                        struct error *err);
/* Deletes the setup VM, never a template. *missing: it was gone already. */
bool template_setup_cancel(const struct config *cfg, const char *id, bool *missing,
                           struct error *err);

/* Copies the VM to a template VM; *ref is its name (owned). timeout_ms 0: the config's. */
bool template_capture(const struct config *cfg, const char *id, const char *environment_id,
                      const char *label, int64_t timeout_ms, struct cancel *cancel, char **ref,
                      struct error *err);
/* Deletes a template that carries our mark. *missing: it was gone already. */
bool template_delete(const struct config *cfg, const char *ref, bool *missing, struct error *err);

struct template_item {
    char *name, *environment_id, *label; /* may be NULL but for the name */
    int64_t since;                       /* Unix seconds; 0: unknown */
};
struct template_list {
    struct template_item *list;
    size_t n;
};
void template_list_clear(struct template_list *l);
bool template_ls(const struct config *cfg, struct template_list *out, struct error *err);

#endif
