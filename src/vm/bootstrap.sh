# shellcheck shell=sh
# What exedev has the VM's shell run, PROTOCOL.vm section 6. Joined into one line at build time, so that
# csh takes it; no single quote, so that it can stand in one; no backslash, which fish reads inside
# single quotes. Every line ends where a space may follow.
b=@BUILD@;
n=exedev-vm-$b;
k=@KEY@;
f() { echo "EXEDEV-VM FAIL $*"; exit 1; };
own() { [ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ]; };
# The quick way: it is there, nobody else made it, and it is what its name says.
go() {
  own "$1" && [ -f "$1/$n" ] && [ ! -L "$1/$n" ] && [ -O "$1/$n" ] &&
  [ "$("$1/$n" --build 2>/dev/null)" = "$b" ] && exec "$1/$n" serve $k;
};
c=; [ -z "$HOME" ] || c="$HOME/.cache/exedev";
r=; [ -z "$XDG_RUNTIME_DIR" ] || r="$XDG_RUNTIME_DIR/exedev";
go "$c"; go "$r";
t="/tmp/exedev-$(id -u)";
go "$t";
# The commands are to have the login's own mask.
u=$(umask);
umask 077;
# An empty file is a script that succeeds, wherever files may be executed.
ok() {
  [ -n "$1" ] || return 1;
  mkdir "$1" 2>/dev/null;
  own "$1" && chmod 700 "$1" 2>/dev/null || return 1;
  p="$1/.try.$$";
  (: > "$p") 2>/dev/null && chmod 700 "$p" && "$p" 2>/dev/null;
  s=$?; rm -f "$p"; return $s;
};
[ -z "$c" ] || mkdir "$HOME/.cache" 2>/dev/null;
if ok "$c"; then d=$c; elif ok "$r"; then d=$r; elif ok "$t"; then d=$t;
else f "no folder of this user is writable and may hold programs (tried $c $r $t)"; fi;
m=$(uname -m);
case $m in
x86_64|amd64) s=@X86_64@;;
aarch64|arm64) s=@ARM64@;;
*) f "there is no helper for the machine $m, only for x86_64 and aarch64";;
esac;
echo "EXEDEV-VM NEED $m $d";
p="$d/.up.$$";
(head -c $s > "$p") 2>/dev/null;
g=$(wc -c < "$p") || g=0;
[ $g -eq $s ] || { rm -f "$p"; f "$d took $g of the $s bytes of the helper (is the disk full?)"; };
chmod 700 "$p";
[ "$("$p" --build 2>/dev/null)" = "$b" ] || { rm -f "$p"; f "the helper does not run in $d"; };
find "$d" -name "exedev-vm-*" -mtime +30 -exec rm -f {} + 2>/dev/null;
mv -f "$p" "$d/$n" && umask "$u" && exec "$d/$n" serve $k;
f "cannot put the helper at $d/$n"
