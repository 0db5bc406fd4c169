#!/bin/sh
# build-id.sh OUT VERSION FILE...: a header with the hash that names this build of the helper.
set -eu
out=$1 version=$2
shift 2
here=$(dirname "$0")
id=$({ echo "$version"; cat "$@" "$here/compile.sh" "$here/bootstrap.sh"; } | sha256sum | cut -c1-32)
echo "#define VM_BUILD \"$id\"" > "$out"
