#include "lib/setup.h"

#include <string.h>

#include "base/alloc.h"
#include "base/buf.h"
#include "base/cleanup.h"

/* How both scripts begin. `state` is written last and whole, so that a reader never sees half of
 * it.
 */
#define BEGIN                                                                                      \
    "#!/bin/sh\n"                                                                                  \
    "d=" SETUP_DIR "\n"                                                                            \
    "umask 022\n"                                                                                  \
    "mkdir -p $d\n"                                                                                \
    "put() { echo \"$1\" >$d/state.new && mv $d/state.new $d/state; }\n"                           \
    "put running\n"

/* Runs as the login user at first boot, with passwordless sudo where the image has it. It must hold
 * no backslash-n: exe.dev turns that into a newline. */
static const char builtin[] = BEGIN
    "good() { node -e 'const [a, b] = process.versions.node.split(\".\").map(Number);\n"
    "  process.exit(a > %lld || (a == %lld && b >= %d) ? 0 : 1)' 2>/dev/null; }\n"
    "as_root() { if [ \"$(id -u)\" = 0 ]; then \"$@\"; else sudo -n \"$@\"; fi; }\n"
    "install_node() {\n"
    "  export DEBIAN_FRONTEND=noninteractive\n"
    "  command -v apt-get >/dev/null || { echo 'no apt-get: this image cannot get Node.js from "
    "NodeSource'; "
    "return 1; }\n"
    "  command -v curl >/dev/null || { as_root apt-get -q update && as_root apt-get -q install -y "
    "curl "
    "ca-certificates; } || return 1\n"
    "  curl -fsSL --retry 3 -o $d/nodesource.sh https://deb.nodesource.com/setup_%lld.x || return "
    "1\n"
    "  as_root env DEBIAN_FRONTEND=noninteractive bash $d/nodesource.sh &&\n"
    "    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y nodejs && good\n"
    "}\n"
    "if good; then echo \"node $(node --version) is here already\" >$d/log\n"
    "else install_node >$d/log 2>&1; fi\n"
    "put \"done $?\"\n";

/* A configured script that is waited for, recorded in the same way. It keeps its own first line,
 * and its text is not touched: it travels as a here-document. */
static char *recorded(const char *script)
{
    cleanup_buf struct buf b = {0};
    cleanup_free char *end = xstrdup("EXEDEV_END");

    while (strstr(script, end)) {
        char *longer = xasprintf("%s_", end);
        free(end);
        end = longer;
    }
    buf_printf(&b,
               BEGIN "cat >$d/script <<'%s'\n%s\n%s\n"
                     "chmod +x $d/script\n",
               end, script, end);
    buf_puts(&b, strncmp(script, "#!", 2) == 0 ? "$d/script" : "sh $d/script");
    buf_puts(&b, " >$d/log 2>&1\nput \"done $?\"\n");
    return buf_steal(&b);
}

char *setup_script(const struct config *c)
{
    if (c->setup_script && !strcmp(c->setup_script, "none"))
        return NULL;
    if (c->setup_script)
        return c->wait_for_setup ? recorded(c->setup_script) : xstrdup(c->setup_script);
    long long major = c->node_major;
    /* Paperclip needs 24.11 of the 24 series. */
    return xasprintf(builtin, major, major, major == 24 ? 11 : 0, major);
}
