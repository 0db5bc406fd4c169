/* Shared by form.c (state and saving) and form_actions.c (what asks the outside world). */
#ifndef LIB_FORM_INTERNAL_H
#define LIB_FORM_INTERNAL_H

#include <pthread.h>

#include "lib/cancel.h"
#include "lib/form.h"

struct form {
    pthread_mutex_t lock; /* of all below; never held while something outside is asked */
    pthread_cond_t job_over;
    struct configfile cf;
    long generation; /* of what the page was given: another tab's save makes the old one stale */
    struct cancel *test; /* the test under way */
    int jobs;
    long long idle_ms;
    struct form_server *server;
};

/* The raw settings a request means: its "settings", with the stored secrets of its "from" where it
 * brings none and has not "cleared" them. Wipe with form_drop_raw. */
json_t *form_raw(struct form *f, const json_t *in, struct error *err);
void form_drop_raw(json_t **raw);
#define cleanup_raw __attribute__((cleanup(form_drop_raw)))

form_handler_fn form_validate, form_token, form_test, form_cancel_test, form_vms, form_delete_vm;

#endif
