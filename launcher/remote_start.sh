#!/bin/sh
# What runs on another host until Tandem itself does: POSIX shell, coreutils and tar. Built into the binary (launcher/remote.c), which sends it through ssh's stdin with these variables before it:
#   nonce          no noise of start-up files has it; each line that is ours begins with tandem-$nonce
#   mode           start: have the bundle, become the agent ("$@" are its words); kill: the agent $pid of that nonce ($of)
#   bundles        that can be sent: MACHINE:HASH:BYTES, of the bundle and of its archive, with blanks between
#   folder         where bundles lie; empty: /var/tmp/tandem-UID, and where nothing may be executed there, the user's cache
# Said: hello MACHINE GLIBC | have FOLDER | need FOLDER, then the archive is read from stdin | go PID | killed, gone | error KIND DETAIL…
# shellcheck disable=SC2154

say() { printf '\ntandem-%s %s\n' "$nonce" "$*"; }
fail() {
    say error "$@"
    exit 1
}

# Names a process only where it still is the one that was started as this nonce.
if [ "$mode" = kill ]; then
    if tr '\000' '\n' 2>/dev/null <"/proc/$pid/environ" | grep -qx "TANDEM_REMOTE=$of" && kill -KILL "$pid" 2>/dev/null; then
        say killed
    else
        say gone
    fi
    exit 0
fi

mask=$(umask)
umask 077
# "glibc 2.36"; ldd's first line ends with the version. Nothing: another C library.
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null)
case $glibc in
"glibc "*) glibc=${glibc#glibc } ;;
*) glibc=$(ldd --version 2>&1 | sed -n '1s/.*[Gg][Ll][Ii][Bb][Cc].* \([0-9][0-9.]*\)$/\1/p') ;;
esac
machine=$(uname -m)
say hello "$machine" "${glibc:-none}"
for bundle in $bundles; do
    case $bundle in "$machine":*) bytes=${bundle##*:} hash=${bundle#*:} ;; esac
done
[ -n "${hash-}" ] || exit 1
hash=${hash%:*}
for tool in tar head mv ls; do command -v $tool >/dev/null 2>&1 || fail tool $tool; done

# A folder that is ours alone: 0 yes, 1 cannot be made; anything else that lies there is refused.
private() {
    mkdir -p "${1%/*}" 2>/dev/null
    mkdir -m 700 "$1" 2>/dev/null
    [ -d "$1" ] || [ -h "$1" ] || return 1
    # shellcheck disable=SC2012 # its permissions, not its name
    seen=$(LC_ALL=C ls -ldn "$1" 2>/dev/null | { read -r bits _ owner _; printf '%s %s' "$bits" "$owner"; })
    case $seen in
    drwx------*" $(id -u)") return 0 ;;
    l*) fail link "$1" ;;
    *) fail foreign "$1" "$seen" ;;
    esac
}

# A mount without the right to execute is seen by trying.
executable() {
    try=$1/.try.$$.$nonce
    # shellcheck disable=SC2016
    printf '#!/bin/sh\nexit 42\n' 2>/dev/null >"$try" || { rm -f "$try"; return 1; }
    chmod 700 "$try"
    "$try" >/dev/null 2>&1 </dev/null
    tried=$?
    rm -f "$try"
    [ $tried = 42 ]
}

verify() {
    [ -f "$1/MANIFEST" ] || return 1
    if command -v b2sum >/dev/null 2>&1; then
        [ "$(b2sum -l 256 <"$1/MANIFEST" | cut -c 1-64)" = "$hash" ] && (cd "$1" && b2sum -c MANIFEST)
    else
        LD_LIBRARY_PATH=$1/lib:$1/lib/ucx "$1/bin/tandem" bundle-check "$1" "$hash"
    fi >/dev/null 2>&1 </dev/null
}

choose() {
    why='readonly'
    for candidate in "$@"; do
        case $candidate in *:*) continue ;; esac
        private "$candidate" || continue
        if [ ! -w "$candidate" ]; then continue; fi
        if executable "$candidate"; then
            folder=$candidate
            return
        fi
        df_left=$(df -Pk "$candidate" 2>/dev/null | { read -r _; read -r _ _ _ left _; printf '%s' "$left"; })
        case $df_left in 0) fail full "$candidate" ;; esac
        why=noexec
    done
    fail $why "$@"
}
if [ -n "$folder" ]; then
    choose "$folder"
else
    choose "/var/tmp/tandem-$(id -u)" "${XDG_CACHE_HOME:-${HOME:-/nowhere}/.cache}/tandem-bundles"
fi

place=$folder/$hash
if verify "$place"; then
    say have "$folder"
else
    new=$folder/.new.$$.$nonce
    trap 'rm -rf "$new"; exit 1' HUP INT TERM PIPE
    mkdir "$new" 2>/dev/null || fail full "$folder"
    say need "$folder"
    problem=$(head -c "$bytes" | (cd "$new" && LC_ALL=C tar xof - 2>&1))
    if ! verify "$new"; then
        rm -rf "$new"
        case $problem in
        *"No space left"* | *"quota exceeded"*) fail full "$folder" ;;
        *) fail damaged "$folder" "$(printf '%s' "$problem" | head -n 1)" ;;
        esac
    fi
    # Another push may have come first; then its bundle stays. What is there and wrong goes away.
    if ! verify "$place"; then
        [ -e "$place" ] && mv -T "$place" "$folder/.old.$$.$nonce" 2>/dev/null
        mv -T "$new" "$place" 2>/dev/null
        verify "$place" || fail damaged "$folder" "cannot be renamed into place"
    fi
    rm -rf "$new" "$folder/.old.$$.$nonce"
    trap - HUP INT TERM PIPE
    # What nobody has started for two months goes, and what an interrupted push left.
    find "$folder" -mindepth 1 -maxdepth 1 \( -mtime +60 -o -name '.[no]*' -mtime +1 \) ! -name "$hash" -exec rm -rf {} + 2>/dev/null </dev/null
    say have "$folder"
fi
touch "$place" 2>/dev/null

LD_LIBRARY_PATH=$place/lib:$place/lib/ucx${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
UCX_MODULE_DIR=$place/lib/ucx
TANDEM_REMOTE=$nonce
export LD_LIBRARY_PATH UCX_MODULE_DIR TANDEM_REMOTE
umask "$mask"
say go $$
exec "$place/bin/tandem" "$@"
