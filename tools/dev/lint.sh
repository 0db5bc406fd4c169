# shellcheck shell=bash
# ./dev lint; test.sh sources it too.
lint() {
    need clang-format clang-tidy cppcheck shellcheck mandoc
    local c h src
    mapfile -t c < <(git ls-files '*.c')
    mapfile -t h < <(git ls-files '*.h')
    mapfile -t src < <(git ls-files 'src/*.c')
    say "clang-format"
    clang-format --dry-run -Werror "${c[@]}" "${h[@]}"
    say "cppcheck" # which does not know __attribute__((cleanup)): AddressSanitizer looks for leaks
    cppcheck --quiet --std=c11 --enable=warning,portability --inline-suppr --error-exitcode=1 -j2 -Isrc \
        --suppress=resourceLeak --suppress=missingIncludeSystem --suppress=unknownMacro --suppress=internalAstError \
        "${src[@]}"
    say "clang-tidy"
    printf '%s\0' "${src[@]}" | grep -zv '^src/vm/' | xargs -0 -P2 -n8 clang-tidy --quiet -p build 2>/dev/null
    say "shell scripts"
    shellcheck -x -S warning dev .ci/run tools/*.sh tools/dev/*.sh
    say "scripts in JavaScript"
    for f in $(git ls-files '*.mjs' '*.js'); do node --check "$f"; done
    say "docs/capabilities.md"
    node tools/gen_capabilities.mjs --check
    say "docs/settings.md"
    tools/gen_config.py page src/schema/config.json | diff docs/settings.md - ||
        die "docs/settings.md is old: tools/gen_config.py page src/schema/config.json >docs/settings.md"
    say "manual pages"
    if [ -d build/man ]; then mandoc -T lint -W warning build/man/*.[17]; fi
}

if [ "${cmd:-}" = lint ]; then
    source tools/dev/build.sh
    lint
fi
