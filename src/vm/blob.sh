#!/bin/sh
# blob.sh OUT BOOTSTRAP X86_64 ARM64 HEADER: the assembly file behind blob.h.
set -eu
out=$1 bootstrap=$2 x86=$3 arm=$4 header=$5
line=$(sed -e '/^#/d' "$bootstrap" | tr -s ' \n' '  ')
case $line in
*"'"* | *\\*) echo "blob.sh: $bootstrap holds a single quote or a backslash" >&2; exit 1 ;;
esac
build=$(sed -n 's/^#define VM_BUILD "\(.*\)"$/\1/p' "$header")
object() {
    printf '.global %s\n.type %s, %%object\n.balign 16\n%s:\n' "$1" "$1" "$1"
}
binary() {
    object "$1"
    printf '.incbin "%s"\n%s_end:\n.size %s, . - %s\n' "$(realpath "$2")" "$1" "$1" "$1"
    object "$1_size"
    printf '.quad %s_end - %s\n.size %s_size, 8\n' "$1" "$1" "$1"
}
text() {
    object "$1"
    printf '.asciz "%s"\n.size %s, . - %s\n' "$(printf %s "$2" | sed 's/["\\]/\\&/g')" "$1" "$1"
}
{
    echo '.section .rodata'
    binary exedev_vm_x86_64 "$x86"
    binary exedev_vm_arm64 "$arm"
    text exedev_vm_build "$build"
    text exedev_vm_bootstrap "$line"
    echo '.section .note.GNU-stack,"",%progbits'
} > "$out"
