/* VM names and the mark that says a VM is ours (behaviour.md, "Naming", "Our mark"). Results are
 * owned. */
#ifndef LIB_NAME_H
#define LIB_NAME_H

#include <stdbool.h>

#define MARK_TAG "exedev"

/* Any text -> a legal prefix, "paperclip" where nothing is left. NULL too. */
char *name_prefix(const char *text);
/* PREFIX-ENV-RUN; an empty or NULL id gives "env" / a random part. Always a legal VM name. */
char *name_lease(const char *prefix, const char *env_id, const char *run_id);
/* The same with another random last part: when the name is a stranger's. */
char *name_lease_other(const char *prefix, const char *env_id);
char *name_probe(const char *prefix);
/* Template and setup VMs: PREFIX-KIND-RANDOM. */
char *name_random(const char *prefix, const char *kind);

/* "TEXT [exedev env=ENV run=RUN]", at most 200 bytes: the operator's text gives way, cut between
 * characters; ids are cleaned to letters, digits, '.', '_', '-' and at most 64 bytes. kind:
 * "lease", "probe", "template", ... */
char *mark_comment(const char *text, const char *kind, const char *env_id, const char *run_id);
struct mark {
    char *kind, *env_id, *run_id;
};
void mark_clear(struct mark *m);
#define cleanup_mark __attribute__((cleanup(mark_clear)))
/* False: no mark in it. */
bool mark_parse(const char *comment, struct mark *out);
/* Does the mark name exactly these ids (as mark_comment would have written them)? */
bool mark_matches(const struct mark *m, const char *env_id, const char *run_id);

#endif
