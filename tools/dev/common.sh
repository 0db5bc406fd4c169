# shellcheck shell=bash
# Sourced by dev: steps that say what they do, and packages.

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'dev: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
        die "installing needs root or sudo: run as root, or install by hand: $*"
    fi
}

# need PACKAGE...: installs what of Debian's packages is not there yet.
need() {
    local missing=()
    for p in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
    done
    [ ${#missing[@]} = 0 ] && return 0
    say "installing: ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends \
        "${missing[@]}" >/dev/null || die "apt-get could not install: ${missing[*]}"
}

need_build() {
    need gcc libc6-dev make meson ninja-build pkg-config musl-tools gcc-aarch64-linux-gnu \
        libc6-dev-arm64-cross libjansson-dev libssl-dev libnghttp2-dev zlib1g-dev \
        libmicrohttpd-dev libcmocka-dev go-md2man python3 bc procps openssh-client openssh-server bubblewrap
}

# need_node: a Node of 22.15 or later on PATH (the worker's shim replaces itself from there on); what
# is too old is used to fetch npm's own `node` package into the user's cache.
need_node() {
    local want='const [a, b] = process.versions.node.split(".").map(Number); process.exit(a > 22 || (a == 22 && b >= 15) ? 0 : 1)'
    local cache=${XDG_CACHE_HOME:-${HOME:-$DEV_ROOT/build-deps}/.cache}/exedev-build/node-24
    if command -v node >/dev/null && node -e "$want"; then
        command -v npm >/dev/null || need npm
        return 0
    fi
    if [ ! -x "$cache/node_modules/node/bin/node" ]; then
        command -v npm >/dev/null || need nodejs npm
        say "fetching Node 24 from npm, once for this machine"
        mkdir -p "$cache"
        (cd "$cache" && npm install --no-audit --no-fund --no-save --prefix "$cache" node@24 >/dev/null 2>&1) ||
            die "npm could not install node@24"
        # Where install scripts are held back the package's own step has not put the binary in place.
        [ -x "$cache/node_modules/node/bin/node" ] ||
            (cd "$cache/node_modules/node" && node installArchSpecificPackage.js >/dev/null 2>&1) || true
        if [ ! -x "$cache/node_modules/node/bin/node" ]; then
            local arch
            arch=$(node -p 'process.arch')
            (cd "$cache" && npm install --no-audit --no-fund --no-save --prefix "$cache" "node-linux-$arch@24" >/dev/null 2>&1)
            mkdir -p "$cache/node_modules/node/bin"
            ln -sf "../../node-linux-$arch/bin/node" "$cache/node_modules/node/bin/node"
        fi
        "$cache/node_modules/node/bin/node" -e "$want" || die "npm's node@24 does not run here"
    fi
    export PATH="$cache/node_modules/node/bin:$PATH"
}

# The JavaScript that the tests use, by the lock file in tests/e2e.
need_node_modules() {
    need_node
    local dir=tests/e2e
    if ! cmp -s $dir/package-lock.json $dir/node_modules/.installed-lock 2>/dev/null; then
        say "npm: what the end-to-end tests use"
        (cd $dir && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) || die "npm ci failed in $dir"
        cp $dir/package-lock.json $dir/node_modules/.installed-lock
    fi
}

# step NAME COMMAND...: runs it, says how long it took; the first failure ends all.
step() {
    local name=$1 start=$SECONDS
    shift
    say "$name"
    # Not `"$@" || die`: that would switch `set -e` off in all that runs below it.
    set +e
    (set -e; "$@")
    local status=$?
    set -e
    [ "$status" = 0 ] || die "$name failed"
    printf '   (%s: %d s)\n' "$name" $((SECONDS - start))
}
