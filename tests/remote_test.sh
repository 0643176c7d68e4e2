#!/bin/bash
# Starting on other hosts: what is sent, what is refused in which words, and that nothing is left behind. Programs that stand in for ssh run the words here; two network namespaces
# where they can be made. test-deadline: 120
# shellcheck source=tests/t.sh disable=SC1091,SC2154 # $hosts and so on
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091,SC2154
. tests/t_hosts.sh

TANDEM=$(realpath "$TANDEM")
d=${t_dir:?}
cache="$d/it's a \"cache\" \$HOME \\ here"
export TANDEM_REMOTE_DIR=$cache TANDEM_SSH=$d/ssh

# program NAME: a stand-in for ssh; the body comes on stdin, and $host and $words are set.
program() {
    {
        cat <<'HEAD'
#!/bin/sh
while :; do case ${1-} in -x | -T | -q) shift ;; -o | -p | -l) shift 2 ;; *) break ;; esac; done
host=$1
shift
words="$*"
HEAD
        cat
    } >"$d/$1"
    chmod 755 "$d/$1"
}
program ssh <<<'exec /bin/sh -c "$words"'

# check NAME STATUS OUT-PART ERR-PART ARGUMENT…: host-check; parts may be empty.
check() {
    local name=$1 want=$2 out=$3 err=$4 status=0 why=''
    shift 4
    "$TANDEM" host-check "$@" >"$d/out" 2>"$d/err" </dev/null || status=$?
    [ $status = "$want" ] || why="status $status"
    [ -z "$out" ] || grep -qF -- "$out" "$d/out" || why="$why; no '$out' on stdout"
    [ -z "$err" ] || grep -qF -- "$err" "$d/err" || why="$why; no '$err' on stderr"
    [ "$want" = 0 ] || [ "$(wc -l <"$d/err")" = 1 ] || why="$why; not one sentence"
    if [ -z "$why" ]; then t_pass "$name"; else
        t_fail "$name: $why"
        head -n 5 "$d/out" "$d/err" | cut -c 1-400 | sed 's/^/    /'
    fi
}
seconds() { awk -v a="$1" -v b="$(date +%s.%N)" 'BEGIN { printf "%.2f", b - a }'; }
takes_less() { # NAME LIMIT SINCE
    local s
    s=$(seconds "$3")
    ok "$1 ($s s)" awk -v s="$s" -v l="$2" 'BEGIN { exit !(s < l) }'
}
gone() { # NAME PID: within a second
    local i
    for ((i = 0; i < 50; i++)); do
        if ! kill -0 "$2" 2>/dev/null || grep -q '^State:.Z' "/proc/$2/status" 2>/dev/null; then
            t_pass "$1"
            return
        fi
        sleep 0.02
    done
    t_fail "$1: $2 is still there: $(tr '\0' ' ' <"/proc/$2/cmdline")"
    kill -9 "$2"
}
remote_pid() { sed -n 's/.*"pid": \([0-9]*\)}.*/\1/p' "$d/out" | head -n 1; }
# open_one HOLD-MS: one that stays, in the background; $launcher and $pid are the two processes, $d/out is what host-check says.
open_one() {
    : >"$d/out"
    "$TANDEM" host-check --hosts b --echo x --hold-ms "$1" >"$d/out" 2>&1 &
    launcher=$!
    until grep -q 'echo: x' "$d/out" || ! kill -0 $launcher 2>/dev/null; do sleep 0.02; done
    pid=$(remote_pid)
}
leftovers() { find "$cache" -mindepth 1 -maxdepth 1 -name '.*'; }

# --- the bundle, and sending it ---

ok "what would be sent" "$TANDEM" host-check --bundle --mpi
"$TANDEM" host-check --bundle >"$d/bundle"
if "$TANDEM" bench comm --backend ucx --min 8 --max 8 --blocks 1 --peer none >"$d/has_ucx" 2>&1; then contains "UCX's RDMA module is sent" "$(cat "$d/bundle")" "lib/ucx/libuct_ib"; fi
for library in libhwloc libsodium libpcre2-8; do contains "$library is sent" "$(cat "$d/bundle")" "lib/$library"; done
ok "glibc and rdma-core are not" sh -c "! grep -Eq 'lib/(libc|libm|ld-linux|libibverbs|libmlx5|librdmacm)[.-]' '$d/bundle'"
bytes=$(du -bL "$TANDEM" | cut -f 1)

check "a first start sends it" 0 'b: pushed ' '' --hosts b --echo 'one "two" $three'
pushed=$(sed -n 's/^b: pushed \([0-9]*\):.*/\1/p' "$d/out")
ok "all of it ($pushed bytes)" test "$pushed" -gt "$bytes"
contains "and there and back go any words" "$(cat "$d/out")" 'echo: one "two" $three'
contains "it is this build" "$(cat "$d/out")" "\"build\": \"$("$TANDEM" --version | sed 's/.*(build \(.*\))/\1/')"
check "a second start sends nothing" 0 'b: pushed 0:' '' --hosts b
place=$(echo "$cache"/*/)
ok "only we may look" test "$(stat -c %a "$cache" "$place" "$place/bin/tandem" "$place/MANIFEST" | sort -u | tr '\n' ' ')" = "600 700 "
ok "nothing else is left" test -z "$(leftovers)"

open_one 700
cp "/proc/$pid/maps" "$d/maps"
for library in libhwloc libsodium libpcre2-8; do
    ok "it runs with the $library that was sent" sh -c "grep -q '${place##*here/}lib/$library' '$d/maps' && ! grep $library '$d/maps' | grep -qv '${place##*here/}lib/'"
done
wait

# --- a copy that is not what was sent ---

flip() { printf '\377\376\375' | dd of="$1" bs=1 seek="${2:-20000}" conv=notrunc status=none; }
flip "$place/lib/$(basename "$(find "$place/lib" -name 'libsodium*')")"
check "a changed library is noticed and replaced" 0 "b: pushed $pushed:" '' --hosts b
check "once" 0 'b: pushed 0:' '' --hosts b
: >"$place/MANIFEST"
check "an empty list likewise" 0 "b: pushed $pushed:" '' --hosts b
flip "$place/bin/tandem" 0
check "a broken program likewise" 0 "b: pushed $pushed:" '' --hosts b
rm -f "$place"/lib/libhwloc*
check "a missing one likewise" 0 "b: pushed $pushed:" '' --hosts b
mkdir "$d/bin"
for tool in sh uname getconf id mkdir ls rm chmod cut head tar mv tr touch cat sed df find printf dirname; do ln -s "$(command -v $tool)" "$d/bin/$tool"; done
program ssh_without <<<"PATH=$d/bin exec /bin/sh -c \"\$words\""
check "without b2sum the program checks itself" 0 'b: pushed 0:' '' --hosts b --ssh "$d/ssh_without"
flip "$place/lib/$(basename "$(find "$place/lib" -name 'libsodium*')")"
check "and sees the same" 0 "b: pushed $pushed:" '' --hosts b --ssh "$d/ssh_without"
ok "nothing is left of all that" test -z "$(leftovers)"

# --- many at once ---

rm -rf "$cache"
for i in 1 2 3 4 5; do "$TANDEM" host-check --hosts "b$i,c$i" >"$d/race.$i" 2>&1 & done
wait
ok "ten starts that race" test "$(cat "$d"/race.* | grep -c '"build"')" = 10
check "leave one good copy" 0 'b: pushed 0:' '' --hosts b
ok "and nothing else" test "$(find "$cache" -mindepth 1 -maxdepth 1 | wc -l)" = 1
program ssh_slow <<<'sleep 1; exec /bin/sh -c "$words"'
start=$(date +%s.%N)
check "eight hosts that take a second each" 0 'h: pushed 0' '' --hosts a,b,c,d,e,f,g,h --ssh "$d/ssh_slow"
takes_less "take little more than one" 4 "$start"

# --- noise ---

program ssh_noisy <<'END'
i=0
while [ $i -lt 300 ]; do echo "Welcome to $host! tandem- ☺ line $i"; i=$((i + 1)); done
printf 'and one without an end: \033[31m'
echo "a warning of some start-up file" >&2
exec /bin/sh -c "$words"
END
check "noise before the first word is skipped" 0 'b: pushed 0: {' '' --hosts b --ssh "$d/ssh_noisy"
ok "and not shown" sh -c "! grep -Eq 'Welcome|warning' '$d/out' '$d/err'"
program ssh_endless <<<'exec yes "Welcome to the machine"'
start=$(date +%s.%N)
check "noise without an end is refused" 1 '' 'b: its start-up files print without an end' --hosts b --ssh "$d/ssh_endless"
takes_less "soon" 3 "$start"
program ssh_echo <<<'exec cat'
check "an echo is no answer" 1 '' 'b: no answer' --hosts b --ssh "$d/ssh_echo" --connect-ms 500
program ssh_garbage <<<'head -c 100000 /dev/urandom; exit 3'
check "nor is garbage" 1 '' 'left with status 3 before anything ran there' --hosts b --ssh "$d/ssh_garbage"
program ssh_late <<<'(sleep 0.5; echo "told later" >&2) & exec /bin/sh -c "$words"'
check "stderr of a running one passes, with its name" 0 'b: held' 'u@b: told later' --hosts u@b --ssh "$d/ssh_late" --hold-ms 1000

# --- ssh that fails ---

check "no such program" 1 '' 'b: cannot run' --hosts b --ssh "$d/nothing_there"
program ssh_hangs <<<'echo $$ >"${0%/*}/hangs.pid"; echo "motd: hello" ; exec sleep 60'
start=$(date +%s.%N)
check "one that hangs" 1 '' 'b: no answer through' --hosts b --ssh "$d/ssh_hangs" --connect-ms 1000
contains "and what it said" "$(cat "$d/err")" 'motd: hello'
takes_less "has its deadline" 3 "$start"
gone "and is not left" "$(cat "$d/hangs.pid")"
refused() { # NAME WHAT-SSH-SAYS PART
    program ssh_refused <<<"echo '$2' >&2; exit 255"
    check "$1" 1 '' "$3" --hosts me@b --ssh "$d/ssh_refused"
}
refused "not let in" 'me@b: Permission denied (publickey,password).' 'ssh-copy-id me@b'
refused "an unknown key" 'Host key verification failed.' "'ssh me@b true'"
refused "an unknown name" 'ssh: Could not resolve hostname b: Name or service not known' 'no host of that name'
refused "no server" 'ssh: connect to host b port 22: Connection refused' 'openssh-server'
refused "no way" 'ssh: connect to host b port 22: No route to host' 'cable'
refused "no answer" 'ssh: connect to host b port 22: Connection timed out' 'is it on'
refused "something new" 'kex_exchange_identification: read: odd' 'left with status 255 before anything ran there; the last that came: kex_exchange'
program ssh_short <<<'dd bs=65536 count=20 2>/dev/null | /bin/sh -c "$words"'
rm -rf "$cache"
check "cut off while sending" 1 "" "b: got something else than what was sent" --hosts b --ssh "$d/ssh_short"
ok "nothing half is left" test -z "$(find "$cache" -mindepth 1)"
check "and the next one sends all" 0 "b: pushed $pushed:" '' --hosts b

# --- hosts that will not do ---

for name in uname getconf; do printf '#!/bin/sh\necho "$SAY"\n' >"$d/$name" && chmod 755 "$d/$name"; done
mkdir "$d/arch" "$d/glibc" "$d/musl"
mv "$d/uname" "$d/arch/uname"
cp "$d/getconf" "$d/glibc/getconf"
mv "$d/getconf" "$d/musl/getconf"
cp "$d/glibc/getconf" "$d/musl/ldd"
program ssh_arch <<<"export SAY=mips64 PATH=$d/arch:\$PATH; exec /bin/sh -c \"\$words\""
program ssh_old <<<"export SAY='glibc 2.17' PATH=$d/glibc:\$PATH; exec /bin/sh -c \"\$words\""
program ssh_musl <<<"export SAY='musl libc (x86_64)' PATH=$d/musl:\$PATH; exec /bin/sh -c \"\$words\""
check "another architecture" 1 '' "b: is mips64, and this Tandem is $(uname -m): 'make bundle ARCH=mips64'" --hosts b --ssh "$d/ssh_arch"
check "an old glibc" 1 '' 'b: has glibc 2.17, and this binary with its libraries needs 2.' --hosts b --ssh "$d/ssh_old"
check "another C library" 1 '' 'not glibc' --hosts b --ssh "$d/ssh_musl"
rm "$d/bin/tar"
check "no tar" 1 '' "b: has no program 'tar'" --hosts b --ssh "$d/ssh_without"
chmod 755 "$cache"
check "a cache that others may read" 1 '' 'is not ours alone' --hosts b
chmod 700 "$cache"
mkdir -m 700 "$d/elsewhere"
ln -s "$d/elsewhere" "$d/link"
check "a cache that is a link" 1 '' 'symbolic link' --hosts b --folder "$d/link"
ok "nothing went there" test -z "$(ls -A "$d/elsewhere")"
if [ "$(id -u)" = 0 ]; then
    mkdir -m 700 "$d/foreign"
    chown 12345 "$d/foreign"
    check "a cache of somebody else" 1 '' 'is not ours alone' --hosts b --folder "$d/foreign"
    ok "nothing went there either" test -z "$(ls -A "$d/foreign")"
else
    skip "a cache of somebody else" "needs root"
fi
mkdir "$d/mount"
if unshare --mount mount -t tmpfs tmpfs "$d/mount" 2>/dev/null; then
    mounted() { # NAME OPTIONS
        cat <<END
export D='$d/mount' W="\$words"
exec unshare --mount sh -c 'mount -t tmpfs -o $1 tmpfs "\$D" && exec /bin/sh -c "\$W"'
END
    }
    program ssh_noexec < <(mounted noexec)
    program ssh_full < <(mounted size=4m)
    program ssh_ro < <(mounted ro)
    check "no right to execute" 1 '' 'b: lets no program run in' --hosts b --ssh "$d/ssh_noexec" --folder "$d/mount/cache"
    check "a full disk" 1 '' 'b: has no space left in' --hosts b --ssh "$d/ssh_full" --folder "$d/mount/cache"
    check "a disk that is read only" 1 '' 'b: lets nothing be written to' --hosts b --ssh "$d/ssh_ro" --folder "$d/mount/cache"
else
    skip "mounts that will not do" "needs the right to mount"
fi

# --- names ---

for name in 'a;b' '-oProxyCommand=x' 'u@-x' 'a b' '$(x)' 'a`x`' 'u@' '@b' '' 'a/b' "a'b" 'a&' 'a|b' $'a\nb'; do
    check "no host: '${name//$'\n'/ }'" 2 '' "is no host" --hosts "good,$name"
done
program ssh_told <<<'exec /bin/sh -c "$words"'
sed -i '2i printf "%s\\n" "$@" >"${0%/*}/told"' "$d/ssh_told"
check "a user" 0 'me@b: pushed 0' '' --hosts me@b --ssh "$d/ssh_told"
ok "never asks a question" grep -qx BatchMode=yes "$d/told"
ok "goes by -l" sh -c "grep -A 1 -x -e -l '$d/told' | grep -qx me"
ok "only the options that were agreed upon come before the host" awk '/^-[xTq]$/ { next } /^-[opl]$/ { getline; next } { exit !($0 == "b") }' "$d/told"

# --- the end ---

open_one 30000
kill -9 $launcher
wait $launcher 2>/dev/null
gone "the launcher's death ends what runs there" "$pid"
open_one 1000
kill -STOP "$pid"
wait
contains "one that was stopped is killed by a second call" "$(cat "$d/out")" 'b: did not leave and was killed'
gone "and is gone" "$pid"
open_one 5000
kill -9 "$pid"
start=$(date +%s.%N)
wait
contains "its death is seen" "$(cat "$d/out")" 'b: ended'
takes_less "at once" 2 "$start"

# --- two hosts ---

if hosts_start 2; then
    inside() { ip netns exec "${hosts[0]}" "$@"; }
    inside "$TANDEM" host-check --hosts "$hosts_list" >"$d/out" 2>"$d/err"
    contains "a host knows itself by its name" "$(cat "$d/out")" "${hosts[0]}: this host"
    contains "and goes to the other" "$(cat "$d/out")" "${hosts[1]}: pushed 0: {\"host\": \"${hosts[1]}\""
    for name in localhost 127.0.0.1 127.0.0.99 ::1 10.77.0.1 "nobody-${hosts[0]}" "$(id -un)@10.77.0.1"; do
        inside "$TANDEM" host-check --hosts "$name" >"$d/out" 2>"$d/err"
        contains "$name is this host" "$(cat "$d/out")" "$name: this host"
    done
    start=$(date +%s.%N)
    inside "$TANDEM" host-check --hosts nobody.example >"$d/out" 2>"$d/err"
    contains "a name that nobody knows" "$(cat "$d/err")" "no host of that name is known"
    takes_less "is no long wait" 6 "$start"
    inside "$TANDEM" host-check --hosts 10.77.0.2 >"$d/out" 2>"$d/err"
    contains "an address of the other is not this host" "$(cat "$d/err")" "10.77.0.2: no host of that name"
    check "a launcher that is neither" 0 "${hosts[1]}: pushed 0" '' --hosts "$hosts_list" --echo x
    contains "reaches both" "$(cat "$d/out")" "${hosts[0]}: echo: x"
    hosts_stop
    ok "nothing is left of the hosts" sh -c "! ip netns list | grep -q '$hosts_prefix'"
else
    skip "two hosts" "$hosts_why"
fi

t_end
