/* A VM as the lobby describes it, whatever shape that comes in (exe-dev.md, "A record"). A plain
 * value with owned members. */
#ifndef LIB_RECORD_H
#define LIB_RECORD_H

#include <stdbool.h>
#include <stddef.h>

#include "base/error.h"
#include "base/json.h"

struct record {
    char *vm_name;   /* never NULL in a good record, a legal VM name */
    char *ssh_host;  /* never NULL: the host to dial, checked (text_is_host) */
    char *ssh_user;  /* whom the server says to log in as: its ssh_user, else what stands before
                        the last '@' of ssh_dest; wins over the configured user. NULL: none */
    char *ssh_dest;  /* as the server wrote it, else the host; never NULL */
    char *https_url; /* NULL: not told */
    char *status;    /* "running"; NULL: not told */
    char *region;
    char *region_display;
    json_t *tags;  /* array of strings; NULL: the server lists none (not: the VM has none) */
    char *comment; /* NULL: not listed */
    bool unsafe;   /* only in lists: its address must not be used (ssh_host is then empty) */
};

void record_clear(struct record *r);
#define cleanup_record __attribute__((cleanup(record_clear)))

struct records {
    struct record *list;
    size_t n;
};
void records_clear(struct records *r);
#define cleanup_records __attribute__((cleanup(records_clear)))

/* Finds the record in an answer to new, cp, restart: `vm`, then `data`, then its own fields, four
 * levels deep. `name` is what we asked for, used where the record has none. ERR_NOT_FOUND when
 * there is none; ERR_UNSAFE when a host, user or name holds what it may not, ERR_PROTOCOL when it
 * is another VM's. */
bool record_from_answer(const json_t *answer, const char *name, struct record *out,
                        struct error *err);
/* Reads an answer to ls: {"vms": [...]}, a bare array, one object. Entries that are no records are
 * skipped. */
bool records_from_ls(const json_t *answer, struct records *out, struct error *err);
/* By name or destination; NULL when none. Borrowed. */
const struct record *records_find(const struct records *r, const char *name);
void record_copy(struct record *dst, const struct record *src);
/* Does the record list tags, and this one is not (or is) among them? */
enum record_tag { RECORD_TAG_YES, RECORD_TAG_NO, RECORD_TAG_UNTOLD };
enum record_tag record_has_tag(const struct record *r, const char *tag);
/* False, too, when the status says nothing known. */
bool record_is_stopped(const struct record *r);

#endif
