#!/bin/sh
# compile.sh x86_64|arm64 OUT ARG...: the static helper, as small as it gets, hardened as far as a
# static program can be.
set -eu
machine=$1 out=$2
shift 2
set -- -std=gnu17 -D_GNU_SOURCE -Os -fPIE -Wall -Wextra -Werror -Wshadow -Wvla -Wstrict-prototypes \
    -Wmissing-prototypes -Wwrite-strings -Wformat=2 -Wno-missing-field-initializers \
    -fstack-protector-strong -fstack-clash-protection -ffunction-sections -fdata-sections \
    -Wl,--gc-sections,-z,relro,-z,now,-z,noexecstack -s "$@" -o "$out"
case $machine in
x86_64)
    # musl-gcc knows no -static-pie: its start file and what the linker needs are named by hand.
    lib=/usr/lib/x86_64-linux-musl
    exec musl-gcc -nostartfiles -Wl,-static,-pie,--no-dynamic-linker,-z,text \
        $lib/rcrt1.o $lib/crti.o "$@" $lib/crtn.o
    ;;
arm64)
    exec aarch64-linux-gnu-gcc -static-pie -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2 "$@"
    ;;
esac
