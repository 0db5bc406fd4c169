/* The helper as `exedev` carries it: the binaries for both machines, the hash that names them, and
 * the line of shell that starts one at the far end (PROTOCOL.vm section 6). Constants; no state. */
#ifndef VM_BLOB_H
#define VM_BLOB_H

#include <stddef.h>

extern const unsigned char exedev_vm_x86_64[];
extern const size_t exedev_vm_x86_64_size;
extern const unsigned char exedev_vm_arm64[];
extern const size_t exedev_vm_arm64_size;

/* Hexadecimal, 32 digits: what the helper answers to --build. */
extern const char exedev_vm_build[];

/* bootstrap.sh without its comments, as one string of POSIX sh with no single quote in it. Replace
 * every
 *   @BUILD@    exedev_vm_build
 *   @X86_64@   exedev_vm_x86_64_size in decimal
 *   @ARM64@    exedev_vm_arm64_size in decimal
 *   @KEY@      the durable session's key, or nothing
 * and send as the remote command   exec sh -c 'THE STRING'   which any login shell understands. */
extern const char exedev_vm_bootstrap[];

#endif
