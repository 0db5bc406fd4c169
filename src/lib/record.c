#include "lib/record.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"

#define DEPTH 4

void record_clear(struct record *r)
{
    free(r->vm_name);
    free(r->ssh_host);
    free(r->ssh_user);
    free(r->ssh_dest);
    free(r->https_url);
    free(r->status);
    free(r->region);
    free(r->region_display);
    json_decref(r->tags);
    free(r->comment);
    *r = (struct record){0};
}

void records_clear(struct records *r)
{
    for (size_t i = 0; i < r->n; i++)
        record_clear(&r->list[i]);
    free(r->list);
    *r = (struct records){0};
}

static char *dup_or_null(const char *s)
{
    return s ? xstrdup(s) : NULL;
}

void record_copy(struct record *dst, const struct record *src)
{
    *dst = (struct record){
        .vm_name = dup_or_null(src->vm_name),
        .ssh_host = dup_or_null(src->ssh_host),
        .ssh_user = dup_or_null(src->ssh_user),
        .ssh_dest = dup_or_null(src->ssh_dest),
        .https_url = dup_or_null(src->https_url),
        .status = dup_or_null(src->status),
        .region = dup_or_null(src->region),
        .region_display = dup_or_null(src->region_display),
        .tags = json_deep_copy(src->tags),
        .comment = dup_or_null(src->comment),
        .unsafe = src->unsafe,
    };
}

/* The first of the member's spellings that holds a text; NULL when none does. */
static const char *text_of(const json_t *o, const char *a, const char *b, const char *c)
{
    const char *const keys[] = {a, b, c};

    for (size_t i = 0; i < 3; i++) {
        const char *s = keys[i] ? json_str(o, keys[i]) : NULL;
        if (s && *s)
            return s;
    }
    return NULL;
}

static const char *name_of(const json_t *o)
{
    return text_of(o, "vm_name", "vmName", "name");
}

static const char *dest_of(const json_t *o)
{
    const char *dest = text_of(o, "ssh_dest", "sshDest", NULL);

    return dest ? dest : text_of(o, "ssh_host", "sshHost", NULL);
}

static const json_t *find_object(const json_t *v, int depth)
{
    const json_t *found;

    if (depth > DEPTH)
        return NULL;
    if (json_is_array(v))
        return json_array_size(v) == 1 ? find_object(json_array_get(v, 0), depth + 1) : NULL;
    if (!json_is_object(v))
        return NULL;
    if ((found = find_object(json_object_get(v, "vm"), depth + 1)) ||
        (found = find_object(json_object_get(v, "data"), depth + 1)))
        return found;
    return name_of(v) || dest_of(v) ? v : NULL;
}

/* What the text says where no name is given: "vm+bloggy@vm.exe.xyz" and "bloggy.exe.xyz" are both
 * bloggy. */
static char *name_from_dest(const char *dest)
{
    const char *at = strrchr(dest, '@');

    if (text_starts(dest, "vm+") && at)
        return xstrndup(dest + 3, (size_t)(at - dest - 3));
    const char *host = at ? at + 1 : dest;
    return xstrndup(host, strcspn(host, "."));
}

static void read_tags(struct record *r, const json_t *v)
{
    size_t i;
    json_t *tag;

    if (!json_is_array(v))
        return;
    r->tags = json_array();
    json_array_foreach ((json_t *)v, i, tag) {
        const char *s = json_is_object(tag) ? json_str(tag, "name") : json_string_value(tag);
        if (s)
            json_array_append_new(r->tags, json_string(s));
    }
}

static char *plain_text(const char *s)
{
    cleanup_buf struct buf b = {0};

    if (!s)
        return NULL;
    text_visible(&b, s, strlen(s), 500);
    return b.data ? buf_steal(&b) : xstrdup("");
}

static void refused(struct error *err, const char *what, const char *value)
{
    cleanup_buf struct buf b = {0};

    text_visible(&b, value, strlen(value), 80);
    error_set(err, ERR_UNSAFE,
              "exe.dev's answer names the %s `%s`, which holds what it may not: it is not used",
              what, b.data ? b.data : "");
}

static bool fill_address(struct record *r, const json_t *o, struct error *err)
{
    const char *host = text_of(o, "ssh_host", "sshHost", NULL);
    const char *user = text_of(o, "ssh_user", "sshUser", NULL);
    const char *dest = dest_of(o);
    const char *at = dest ? strrchr(dest, '@') : NULL;

    r->ssh_dest = dest ? plain_text(dest) : xasprintf("%s.exe.xyz", r->vm_name);
    r->ssh_host = host ? xstrdup(host) : dest ? xstrdup(at ? at + 1 : dest) : xstrdup(r->ssh_dest);
    r->ssh_user = user ? xstrdup(user) : at ? xstrndup(dest, (size_t)(at - dest)) : NULL;
    if (!text_is_host(r->ssh_host)) {
        refused(err, "SSH host", r->ssh_host);
        return false;
    }
    if (r->ssh_user && !text_is_user(r->ssh_user)) {
        refused(err, "SSH user", r->ssh_user);
        return false;
    }
    return true;
}

/* False with err when it must not be used; the name is filled in even then, where it is legal. */
static bool fill(struct record *r, const json_t *o, const char *asked, struct error *err)
{
    const char *name = name_of(o), *dest = dest_of(o);
    const char *url = text_of(o, "https_url", "httpsUrl", NULL);

    r->vm_name = name ? xstrdup(name) : asked ? xstrdup(asked) : name_from_dest(dest);
    if (!text_is_vm_name(r->vm_name)) {
        refused(err, "VM", r->vm_name);
        free(steal_ptr(r->vm_name));
        return false;
    }
    if (!fill_address(r, o, err))
        return false;
    if (url && (text_starts(url, "https://") || text_starts(url, "http://")))
        r->https_url = plain_text(url);
    r->status = plain_text(text_of(o, "status", "state", NULL));
    r->region = plain_text(text_of(o, "region", NULL, NULL));
    r->region_display = plain_text(text_of(o, "region_display", "regionDisplay", NULL));
    r->comment = plain_text(json_str(o, "comment"));
    read_tags(r, json_object_get(o, "tags"));
    return true;
}

bool record_from_answer(const json_t *answer, const char *name, struct record *out,
                        struct error *err)
{
    const json_t *o = find_object(answer, 0);

    *out = (struct record){0};
    if (!o)
        return error_set(err, ERR_NOT_FOUND, "exe.dev's answer holds no VM record");
    if (!fill(out, o, name, err)) {
        record_clear(out);
        return false;
    }
    if (name && strcmp(out->vm_name, name) != 0) {
        error_set(err, ERR_PROTOCOL, "exe.dev answered about the VM %s where %s was asked for",
                  out->vm_name, name);
        record_clear(out);
        return false;
    }
    return true;
}

/* The list in an answer to ls: NULL when there is none. *empty: it is there as null (Go writes an
 * empty list so). */
static const json_t *find_list(const json_t *v, int depth, bool *empty)
{
    static const char *const keys[] = {"vms", "data"};

    if (json_is_array(v))
        return v;
    for (size_t i = 0; depth < DEPTH && json_is_object(v) && i < 2; i++) {
        const json_t *inner = json_object_get(v, keys[i]);
        if (!i && json_is_null(inner))
            *empty = true;
        const json_t *found = find_list(inner, depth + 1, empty);
        if (found)
            return found;
    }
    return NULL;
}

static void list_add(struct records *out, const json_t *entry)
{
    const json_t *o = find_object(entry, 1);
    struct record r = {0};

    if (!o)
        return;
    if (!fill(&r, o, NULL, NULL)) {
        if (!r.vm_name) {
            record_clear(&r);
            return;
        }
        /* It is there all the same: who asks "is it gone?" must not hear yes. */
        free(r.ssh_host);
        r.ssh_host = xstrdup("");
        r.unsafe = true;
    }
    out->list = xreallocarray(out->list, out->n + 1, sizeof *out->list);
    out->list[out->n++] = r;
}

bool records_from_ls(const json_t *answer, struct records *out, struct error *err)
{
    bool empty = false;
    const json_t *list = find_list(answer, 0, &empty), *entry;
    size_t i;

    *out = (struct records){0};
    if (list) {
        json_array_foreach ((json_t *)list, i, entry) {
            list_add(out, entry);
        }
        return true;
    }
    if (empty)
        return true;
    list_add(out, answer);
    if (!out->n)
        return error_set(err, ERR_PROTOCOL, "exe.dev's answer to ls is no list of VMs");
    return true;
}

const struct record *records_find(const struct records *r, const char *name)
{
    cleanup_free char *full = xasprintf("%s.exe.xyz", name);

    for (size_t i = 0; i < r->n; i++)
        if (!strcmp(r->list[i].vm_name, name))
            return &r->list[i];
    for (size_t i = 0; i < r->n; i++) {
        const char *dest = r->list[i].ssh_dest;
        if (dest && (!strcmp(dest, name) || !strcmp(dest, full)))
            return &r->list[i];
    }
    return NULL;
}

enum record_tag record_has_tag(const struct record *r, const char *tag)
{
    size_t i;
    json_t *v;

    if (!r->tags)
        return RECORD_TAG_UNTOLD;
    json_array_foreach (r->tags, i, v) {
        if (!strcmp(json_string_value(v), tag))
            return RECORD_TAG_YES;
    }
    return RECORD_TAG_NO;
}

bool record_is_stopped(const struct record *r)
{
    static const char *const words[] = {"stopped", "stopping", "off",    "down",     "halted",
                                        "exited",  "paused",   "failed", "shutdown", "suspended"};

    for (size_t i = 0; r->status && i < sizeof words / sizeof *words; i++) {
        if (!strcasecmp(r->status, words[i]))
            return true;
    }
    return false;
}
