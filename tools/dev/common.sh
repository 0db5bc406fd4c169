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
        libmicrohttpd-dev libcmocka-dev openssh-client openssh-server bubblewrap
}
