# shellcheck shell=bash
# ./dev package: the npm package as a .tgz in build/
source tools/dev/build.sh
need_node
(cd build && npm pack --silent --pack-destination . ./npm/paperclip-plugin-exe-dev >npm-pack.out) || die "npm pack failed"
say "build/$(tail -1 build/npm-pack.out)"
rm build/npm-pack.out
