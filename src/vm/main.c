/* exedev-vm: runs commands on a VM for exedev, which uploads and starts it (PROTOCOL.vm). */
#include <stdio.h>
#include <string.h>

#include "vm/vm.h"
#include "vm_build.h"

extern const char exedev_vm_id[];
const char exedev_vm_id[] = VM_BUILD;

int main(int argc, char **argv)
{
    if (argc == 2 && !strcmp(argv[1], "--build")) {
        puts(exedev_vm_id);
        return fflush(stdout) ? 1 : 0;
    }
    if (argc >= 2 && argc <= 3 && !strcmp(argv[1], "serve"))
        return serve_main(argc, argv);
    if (argc == 4 && !strcmp(argv[1], "env-dump"))
        return env_dump_main(argc, argv);
    if (argc == 4 && !strcmp(argv[1], "timer-wait"))
        return timer_wait_main(argc, argv);
    fputs(
        "usage: exedev-vm serve [KEY] | --build\n"
        "The part of exedev that runs on a VM; exedev starts it and speaks PROTOCOL.vm with it.\n",
        stderr);
    return 64; /* EX_USAGE */
}
