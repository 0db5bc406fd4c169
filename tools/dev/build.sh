# ./dev build
need_build
[ -f build/build.ninja ] || meson setup build -Dwerror=true >/dev/null
ninja -C build "$@"
