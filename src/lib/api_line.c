#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"
#include "base/text.h"
#include "lib/api_internal.h"
#include "lib/redact.h"
#include "lib/secret.h"
#include "lib/setup.h"

static void flag(struct buf *b, const char *name, const char *value)
{
    if (!value)
        return;
    buf_printf(b, " --%s=", name);
    shell_quote(b, value);
}

static void flag_list(struct buf *b, const char *name, const json_t *list)
{
    size_t i;
    json_t *v;

    json_array_foreach ((json_t *)list, i, v) {
        flag(b, name, json_string_value(v));
    }
}

static void flag_size(struct buf *b, const struct config *c)
{
    if (c->cpu) {
        cleanup_free char *cpu = xasprintf("%lld", (long long)c->cpu);
        flag(b, "cpu", cpu);
    }
    flag(b, "memory", c->memory);
    flag(b, "disk", c->disk);
}

static const char *hide(const char *secret, bool shown)
{
    return secret && shown ? REDACTED : secret;
}

static void new_line(struct buf *b, const struct config *c, const struct api_create *what,
                     bool shown)
{
    const char *key;
    json_t *value;
    cleanup_free char *script = setup_script(c);

    buf_puts(b, "new --json --no-email");
    flag(b, "name", what->name);
    flag(b, "image", c->image);
    flag(b, "command", c->command);
    flag_size(b, c);
    flag(b, "comment", what->comment ? what->comment : c->comment);
    json_object_foreach (c->env, key, value) {
        cleanup_secret_buf struct buf pair = {0};
        buf_printf(&pair, "%s=%s", key, hide(json_string_value(value), shown));
        flag(b, "env", pair.data);
    }
    flag_list(b, "integration", c->integrations);
    flag(b, "tag", what->tag);
    flag_list(b, "tag", c->tags);
    /* The built-in script is no secret, but a screenful. */
    flag(b, "setup-script", !shown || !script ? script : c->setup_script ? REDACTED : "(built-in)");
    flag(b, "prompt", hide(c->prompt, shown));
    flag(b, "registry-auth", hide(c->registry_auth, shown));
}

static void cp_line(struct buf *b, const struct config *c, const struct api_create *what)
{
    buf_puts(b, "cp ");
    shell_quote(b, what->source ? what->source : c->source_vm);
    buf_putc(b, ' ');
    shell_quote(b, what->name);
    buf_puts(b, " --json");
    flag_size(b, c);
}

char *api_create_line(const struct config *c, const struct api_create *what, bool shown)
{
    cleanup_secret_buf struct buf b = {0};

    if (what->source || c->source_vm)
        cp_line(&b, c, what);
    else
        new_line(&b, c, what, shown);
    return shown ? xstrdup(b.data) : secret_dupn(b.data, b.len);
}
