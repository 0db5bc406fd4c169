# shellcheck shell=bash
# ./dev test: what CI runs.
need clang libclang-rt-14-dev qemu-user-static busybox-static dash fish tcsh zsh rsync # what unit tests try the helper with
source tools/dev/build.sh
source tools/dev/lint.sh

unit() { # BUILD-FOLDER
    meson test -C "$1" --suite unit --print-errorlogs --no-rebuild
}

sanitized() {
    need clang libclang-rt-14-dev
    build_in build-asan -Db_sanitize=address,undefined -Dbuildtype=debugoptimized -Db_lundef=false
    ninja -C build-asan
    ASAN_OPTIONS=detect_leaks=1:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 unit build-asan
}

end_to_end() {
    need_node_modules
    need curl rsync strace gdb valgrind qemu-user-static chromium busybox-static dbus gnome-keyring libsecret-tools
    node --test --test-concurrency=2 --test-timeout=400000 tests/e2e/*.test.mjs
}

step "unit tests" unit build
step "unit tests under AddressSanitizer and UBSan" sanitized
step "end-to-end tests" end_to_end
step "linters" lint
if [ "${EXEDEV_E2E:-}" = 1 ]; then
    step "the real Paperclip" ./dev e2e
fi
say "all passed in $SECONDS s"
