# shellcheck shell=bash
# Sourced by build.sh. libcurl and libmicrohttpd as static libraries with only the parts we use, from
# the distribution's own (signed, patched) source packages: its ready-made libcurl.a wants Kerberos,
# LDAP and a dozen more that exist only as shared libraries, and exedev must start on a machine that
# has none of them. Built once, kept in the user's cache folder. Sets DEPS_PREFIX.

deps_sources() { # deb-src twins of the configured package sources, in a folder of our own
    local dir=$1 f codename
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mkdir -p "$dir/parts" "$dir/lists/partial"
    for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
        [ -f "$f" ] && { grep -E "^deb .*$codename" "$f" | sed 's/^deb /deb-src /' >>"$dir/parts/twin.list" || true; }
    done
    for f in /etc/apt/sources.list.d/*.sources; do
        [ -f "$f" ] && grep -q "$codename" "$f" &&
            sed -E 's/^Types:.*/Types: deb-src/' "$f" >"$dir/parts/$(basename "$f")"
    done
    return 0
}

deps_apt() {
    local dir=$1
    shift
    apt-get -q -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$dir/parts" \
        -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir" -o APT::Sandbox::User=root "$@"
}

deps_build() { # NAME CONFIGURE-OPTION...: builds and installs into DEPS_PREFIX
    local name=$1 src
    shift
    say "building $name (static), once for this machine"
    (cd "$DEPS_WORK" && deps_apt "$DEPS_WORK" source "$name" >"$DEPS_WORK/$name.log" 2>&1) ||
        { tail -5 "$DEPS_WORK/$name.log" >&2; die "could not get the source package $name"; }
    src=$(find "$DEPS_WORK" -maxdepth 1 -type d -name "$name-*" | head -1)
    # The patches touch inputs of autoconf; the generated files that ship are the right ones.
    find "$src" \( -name aclocal.m4 -o -name configure -o -name Makefile.in -o -name '*config.h*.in' \) -exec touch {} +
    (cd "$src" &&
        CFLAGS="-O2 -g -fPIC -fstack-protector-strong -D_FORTIFY_SOURCE=2" ./configure \
            --prefix="$DEPS_PREFIX" --disable-shared --enable-static --with-pic "$@" &&
        make -j"$(nproc)") >>"$DEPS_WORK/$name.log" 2>&1 ||
        { tail -20 "$DEPS_WORK/$name.log" >&2; die "could not build $name"; }
    (cd "$src" && make install >>"$DEPS_WORK/$name.log" 2>&1) ||
        { tail -20 "$DEPS_WORK/$name.log" >&2; die "could not install $name into $DEPS_PREFIX"; }
}

need_deps() {
    DEPS_PREFIX=${XDG_CACHE_HOME:-${HOME:-$DEV_ROOT/build-deps}/.cache}/exedev-build/deps-2
    export DEPS_PREFIX
    [ -f "$DEPS_PREFIX/.complete" ] && return 0
    need dpkg-dev ca-certificates
    DEPS_WORK=$(mktemp -d)
    trap 'rm -rf "$DEPS_WORK"' EXIT
    rm -rf "$DEPS_PREFIX"
    mkdir -p "$DEPS_PREFIX"
    deps_sources "$DEPS_WORK"
    deps_apt "$DEPS_WORK" update >"$DEPS_WORK/update.log" 2>&1 || tail -3 "$DEPS_WORK/update.log" >&2
    deps_build curl --with-openssl --with-nghttp2 --without-brotli --without-zstd --without-libidn2 \
        --without-libpsl --without-librtmp --without-libssh2 --without-gssapi --disable-ldap --disable-ldaps \
        --disable-ftp --disable-file --disable-dict --disable-telnet --disable-tftp --disable-rtsp \
        --disable-pop3 --disable-imap --disable-smb --disable-smtp --disable-gopher --disable-mqtt \
        --disable-manual --disable-cookies --disable-netrc --disable-ntlm --disable-alt-svc --disable-hsts \
        --with-ca-bundle=/etc/ssl/certs/ca-certificates.crt
    deps_build libmicrohttpd --disable-https --disable-doc --disable-examples --disable-curl
    touch "$DEPS_PREFIX/.complete"
    rm -rf "$DEPS_WORK"
    trap - EXIT
}
