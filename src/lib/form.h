/* The settings form: what `exedev configure` shows in a browser. One form per process. */
#ifndef LIB_FORM_H
#define LIB_FORM_H

#include "base/error.h"
#include "lib/configfile.h"
#include "lib/form_server.h"

struct form;
/* Takes over what cf holds. The server runs when it returns. */
struct form *form_start(struct configfile *cf, long long idle_ms, struct error *err);
struct form_server *form_http(struct form *f);
/* Cancels a test under way and waits until its VM is deleted. */
void form_free(struct form *f);

#endif
