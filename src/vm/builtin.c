/* Built-ins: programs of our own that run as a process of their own. */
#include <stddef.h>
#include <string.h>

#include "tree/tree.h"
#include "vm/vm.h"

static const struct builtin builtins[] = {
    {"files-in", tree_in_main},
    {"files-out", tree_out_main},
    {"timer", timer_main},
};

const struct builtin *builtin_find(const char *name)
{
    for (size_t i = 0; i < sizeof builtins / sizeof *builtins; i++) {
        if (!strcmp(builtins[i].name, name))
            return &builtins[i];
    }
    return NULL;
}
