# shellcheck shell=bash
# ./dev bench [worker|latency|files ...] [--quick]: prints tables; what docs/bench.md shows.
source tools/dev/build.sh
need_node
need rsync curl
benches=() options=()
for word in "$@"; do
    case $word in
        --*) options+=("$word") ;;
        *) benches+=("$word") ;;
    esac
done
if [ ${#benches[@]} = 0 ]; then
    for f in bench/*.mjs; do
        case $f in
            */common.mjs | */chart.mjs) ;;
            *) benches+=("$(basename "$f" .mjs)") ;;
        esac
    done
fi
for b in "${benches[@]}"; do
    [ -f "bench/$b.mjs" ] || die "there is no bench/$b.mjs"
    say "$b"
    node "bench/$b.mjs" "${options[@]}"
done
