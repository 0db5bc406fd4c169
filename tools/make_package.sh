#!/bin/sh
# make_package.sh STAMP PACKAGE_JSON MANIFEST_JS PROGRAM STRIP SOURCE_ROOT
# Puts the npm package together in the folder of STAMP, as Paperclip installs it.
set -eu
stamp=$1 package_json=$2 manifest=$3 program=$4 strip=$5 root=$6
out=$(dirname "$stamp")/paperclip-plugin-exe-dev
mkdir -p "$out/dist"

# Renamed into place: a running worker keeps the file it was started from, and nobody ever sees half a file.
put() { # MODE FROM TO
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
    mv -f "$3.new" "$3"
}

"$strip" -o "$out/dist/exedev.stripped" "$program"
put 755 "$out/dist/exedev.stripped" "$out/dist/exedev"
rm "$out/dist/exedev.stripped"
put 644 "$manifest" "$out/dist/manifest.js"
put 644 "$root/npm/worker.js" "$out/dist/worker.js"
put 644 "$root/npm/README.md" "$out/README.md"
put 644 "$root/LICENSE" "$out/LICENSE"
# Last: whoever watches the folder for a new version finds all of it.
put 644 "$package_json" "$out/package.json"
touch "$stamp"
