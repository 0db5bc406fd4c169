/* The bytes of a stream: PROTOCOL.vm section 2. */
#ifndef VM_CHANNEL_H
#define VM_CHANNEL_H

#include "vm/vm.h"

void out_watch(struct session *s, struct out *o);
/* Closes our end; says EOF unless that was said. */
void out_eof(struct session *s, struct out *o);
void out_close(struct session *s, struct out *o);
/* Everything that has to be sent was? */
bool out_done(struct session *s, struct out *o);
/* From here only what is in the pipe at this moment counts. */
void out_linger_over(struct session *s, struct out *o);
/* Writes what waits for the command; closes its stdin when that was asked for. */
void in_push(struct session *s, struct stream *st);
void in_close(struct session *s, struct stream *st);
/* For a client that came back: from that byte on, with no credit. */
void out_rewind(struct session *s, struct out *o, uint64_t at);
void stream_restarted(struct session *s, struct stream *st);

#endif
