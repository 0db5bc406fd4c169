/* The connection's side of a form_stream, for form_server.c. */
#ifndef LIB_FORM_STREAM_H
#define LIB_FORM_STREAM_H

#include "lib/form_server.h"

struct MHD_Response;
/* Takes over the connection's reference. */
struct MHD_Response *form_stream_response(struct form_stream *s);

#endif
