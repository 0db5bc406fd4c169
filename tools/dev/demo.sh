# shellcheck shell=bash
# ./dev demo: the main job on this project's own source, on a local lobby.
source tools/dev/build.sh

demo_dir=$(mktemp -d)
demo_lobby=
demo_end() {
    if [ -n "$demo_lobby" ] && kill "$demo_lobby" 2>/dev/null; then wait "$demo_lobby" || true; fi
    rm -rf "$demo_dir"
}
trap demo_end EXIT

demo_step() { # TEXT COMMAND...
    local text=$1 start
    shift
    start=$(date +%s%N)
    set +e
    (set -e; "$@")
    local status=$?
    set -e
    [ "$status" = 0 ] || die "the demo failed at: $text"
    demo_say "$start" "$text"
}

demo_say() { # START TEXT
    printf '\033[32m%8.2f s\033[0m  %s\n' "$(echo "($(date +%s%N) - $1) / 1000000000" | bc -l)" "$2"
}

demo_start_lobby() {
    ssh-keygen -q -t ed25519 -N '' -C demo -f "$demo_dir/key"
    build/exedev-lobby --json --token demo-token --authorized-key "$demo_dir/key.pub" 2>"$demo_dir/lobby.log" &
    demo_lobby=$!
    for _ in $(seq 100); do
        grep -q '"listening"' "$demo_dir/lobby.log" && break
        kill -0 "$demo_lobby" 2>/dev/null || { cat "$demo_dir/lobby.log" >&2; return 1; }
        sleep 0.05
    done
    read -r url port < <(python3 -c '
import json, sys
for line in open(sys.argv[1]):
    e = json.loads(line)
    if e["event"] == "listening":
        print(e["url"], e["sshPort"])' "$demo_dir/lobby.log")
    # The settings that make this lobby the exe.dev of the calls below, and a state folder of their own.
    export EXEDEV_API_URL=$url EXEDEV_SSH_PORT=$port EXE_API_KEY=demo-token
    export EXEDEV_SSH_IDENTITY_FILE=$demo_dir/key EXEDEV_STATE_DIR=$demo_dir/state EXEDEV_SETUP_SCRIPT=none
    export XDG_CONFIG_HOME=$demo_dir/config
}

demo_source() { # this tree and the two static libraries, as somebody would check them out
    mkdir "$demo_dir/src"
    if git rev-parse --git-dir >/dev/null 2>&1; then git ls-files -z; else find . -name .git -prune -o -name 'build*' -prune -o -type f -print0; fi |
        tar --null -T - -cf - | tar -xf - -C "$demo_dir/src"
    mkdir "$demo_dir/src/deps"
    cp -r "$DEPS_PREFIX/include" "$DEPS_PREFIX/lib" "$demo_dir/src/deps/"
}

demo_nothing_left() {
    local vms
    vms=$("$exedev" ls --json)
    [ "$vms" = "[]" ] || { echo "VMs are left: $vms" >&2; return 1; }
    ! pgrep -a -P "$demo_lobby" || { echo "the lobby still runs these" >&2; return 1; }
}

exedev=$PWD/build/exedev
say "the main job, on this project's own source"
start=$(date +%s%N)
demo_start_lobby
demo_say "$start" "start a lobby: exe.dev on this machine"
demo_step "validate the settings" "$exedev" validate
demo_step "probe: a VM is made, tried, deleted" "$exedev" probe
demo_step "lay out this project's source" demo_source
cd "$demo_dir/src" || exit
# shellcheck disable=SC2016 # the VM's shell expands these
demo_step "a fresh VM: move the source in, compile it there, bring the program back, delete the VM" \
    "$exedev" run --pull out/exedev -- sh -euc '
        sed -i "s|^prefix=.*|prefix=$PWD/deps|" deps/lib/pkgconfig/*.pc
        meson setup out --pkg-config-path "$PWD/deps/lib/pkgconfig" >out.log || { tail -20 out.log; exit 1; }
        ninja -C out exedev'
demo_step "run the program that the VM compiled, on this machine" ./out/exedev version
cd "$DEV_ROOT" || exit
demo_step "nothing is left: no VM, no process" demo_nothing_left
kill "$demo_lobby" && wait "$demo_lobby" || true
demo_lobby=
say "done; next: exedev help, and README.md"
