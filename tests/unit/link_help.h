/* The real helper behind a link, over a socket on this machine: for tests of what goes over one. */
#ifndef TESTS_LINK_HELP_H
#define TESTS_LINK_HELP_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "lib/link.h"

/* Of this host, with the options that are given; not yet connected. End with drop_link. */
static struct link *local_link(struct link_options options)
{
    static char *helper;

    if (!helper) {
        char *self = realpath("/proc/self/exe", NULL);
        *strrchr(self, '/') = 0;
        helper = xasprintf("%s/../../exedev-vm", self);
        free(self);
    }
    const char *const argv[] = {helper, "serve", NULL};
    options.host = "localhost";
    options.local_argv = argv;
    struct link *l = link_get(&options, NULL);
    assert_non_null(l);
    return l;
}

static void drop_link(struct link *l)
{
    link_close(l);
    link_unref(l);
}

#endif
