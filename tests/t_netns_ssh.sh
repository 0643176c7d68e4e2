#!/bin/sh
# Called like ssh: t_netns_ssh.sh [-x|-T|-q|-o K=V|-p N|-l USER]… HOST WORD…
# Runs the words, joined by blanks, by `/bin/sh -c` in the network namespace HOST, with a host name, System V IPC and a /dev/shm of its own. stdin, stdout, stderr and the exit status
# pass through; what T_WITHIN says is done there first. Each step is an exec, so that who kills this program kills what runs there.
while :; do
    case ${1-} in
    -x | -T | -q) shift ;;
    -o | -p | -l) shift 2 ;;
    *) break ;;
    esac
done
host=${1:?} && host=${host#*@}
shift
if [ ! -e "/run/netns/$host" ]; then
    echo "ssh: Could not resolve hostname $host: Name or service not known" >&2
    exit 255
fi
export T_HOST="$host" T_WORDS="$*"
# shellcheck disable=SC2016 # for the shell in there
exec ip netns exec "$host" unshare --uts --ipc --mount /bin/sh -c '
hostname "$T_HOST" && mount -t tmpfs -o mode=1777,size=256m tmpfs /dev/shm || exit 255
words=$T_WORDS
eval "${T_WITHIN-}"
unset T_HOST T_WORDS T_WITHIN
exec /bin/sh -c "$words"'
