# shellcheck shell=bash
# ./dev build [ninja arguments]; also sourced by the other commands.
source tools/dev/deps.sh

build_in() { # FOLDER MESON-OPTION...: configures when new, or when it was made with other libraries
    local dir=$1
    shift
    if [ ! -f "$dir/build.ninja" ]; then
        meson setup "$dir" -Dwerror=true --pkg-config-path "$DEPS_PREFIX/lib/pkgconfig" "$@" >/dev/null ||
            { tail -20 "$dir/meson-logs/meson-log.txt" >&2; die "meson setup failed"; }
    elif [ "$(cat "$dir/.deps" 2>/dev/null)" != "$DEPS_PREFIX" ]; then
        meson setup "$dir" --reconfigure -Dwerror=true --pkg-config-path "$DEPS_PREFIX/lib/pkgconfig" "$@" >/dev/null
    fi
    echo "$DEPS_PREFIX" >"$dir/.deps"
}

need_build
need_deps
build_in build
if [ "${cmd:-}" = build ]; then ninja -C build "$@"; else ninja -C build --quiet; fi
