# shellcheck shell=bash
# Two hosts (or more) on one machine: network namespaces on one wire. `. tests/t_hosts.sh` after t.sh; needs root, iproute2 and the right to make namespaces.
#   hosts_start N        makes them, or returns 1 with the reason in $hosts_why. Each has an eth0 with 10.77.0.I/24, I = 1…N, and knows all names.
#   ${hosts[0]} …        their names, which are also the namespaces'; $hosts_list: with commas between
#   host I COMMAND…      runs it on host I (from 0)
#   hosts_link I up|down
#   hosts_settle NAME.DEVICE…   until each has its link-local address, which it gets as soon as the kernel has seen the other end
#   hosts_rule -4|-6 I VERB WHAT…   what comes in there is dropped (blackhole) or refused (prohibit); hosts_no_rule -4|-6 I: no longer
#   left                 agents and ranks of ours, a process id a line; nothing_left [TRIES]: soon there is none, by so many looks 20 ms apart
#   of RANK              process ids of that rank of $model; agent_of I: of host I's agent
#   ms                   milliseconds, to measure with
#   hosts_stop           also at exit, and when this script is killed
# TANDEM_SSH is set to tests/t_netns_ssh.sh, which goes to a host by its name, or by user@name; TANDEM_REMOTE_DIR, unless it is set, to a folder of this test.

hosts=() hosts_list='' hosts_why='' hosts_warden=''

# Removes what hosts_start made. By names: also what an earlier step could not finish.
hosts_remove() {
    local i pid
    for ((i = 0; i < $2; i++)); do
        for pid in $(ip netns pids "$1h$i" 2>/dev/null); do kill -KILL "$pid" 2>/dev/null; done
        ip netns del "$1h$i" 2>/dev/null
        rm -rf "/etc/netns/$1h$i"
    done
    ip link del "$1br" 2>/dev/null
    rmdir /etc/netns 2>/dev/null
    return 0
}

hosts_stop() {
    [ -n "$hosts_warden" ] || return 0
    hosts_remove "$hosts_prefix" "${#hosts[@]}"
    kill "$hosts_warden" 2>/dev/null
    wait "$hosts_warden" 2>/dev/null
    hosts_warden=''
}

hosts_start() {
    local n=$1 i j name waited
    hosts_why=''
    [ "$(id -u)" = 0 ] || hosts_why="needs root"
    command -v ip >/dev/null || hosts_why="needs iproute2"
    # Short: an interface's name has 15 characters at most.
    hosts_prefix=td$(($$ % 100000))
    [ -z "$hosts_why" ] && { ip netns add "${hosts_prefix}h0" 2>/dev/null || hosts_why="cannot make a network namespace"; }
    [ -z "$hosts_why" ] || return 1

    hosts=()
    for ((i = 0; i < n; i++)); do hosts+=("${hosts_prefix}h$i"); done
    # shellcheck disable=SC2034 # the test's
    hosts_list=$(IFS=,; echo "${hosts[*]}")
    # Cleans up when we are killed: in a session of its own, so that it is not.
    setsid bash -c "set -u; $(declare -f hosts_remove); while kill -0 $$; do sleep 0.3; done; hosts_remove $hosts_prefix $n" </dev/null >/dev/null 2>&1 &
    hosts_warden=$!
    # shellcheck disable=SC2154 # of t.sh
    trap 'hosts_stop; rm -rf "${t_dir:?}"' EXIT

    {
        ip link add "${hosts_prefix}br" type bridge 2>/dev/null || [ "$n" = 2 ]
    } || hosts_why="cannot make a bridge"
    for ((i = 0; i < n; i++)); do
        name=${hosts[i]}
        [ "$i" = 0 ] || ip netns add "$name" || hosts_why="cannot make a network namespace"
        # Link-local addresses are there at once: nobody else could claim them on this wire.
        ip netns exec "$name" sh -c 'for i in all default; do echo 0 >"/proc/sys/net/ipv6/conf/$i/accept_dad"; done'
        mkdir -p "/etc/netns/$name"
        {
            printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "nobody-$name"
            for ((j = 0; j < n; j++)); do printf '10.77.0.%d %s\n' $((j + 1)) "${hosts[j]}"; done
        } >"/etc/netns/$name/hosts"
    done
    if [ "$n" = 2 ]; then
        ip link add eth0 netns "${hosts[0]}" type veth peer name eth0 netns "${hosts[1]}" 2>/dev/null || hosts_why="cannot make a veth pair"
        ip link del "${hosts_prefix}br" 2>/dev/null
    else
        for ((i = 0; i < n; i++)); do
            ip link add eth0 netns "${hosts[i]}" type veth peer name "${hosts_prefix}v$i" 2>/dev/null &&
                ip link set "${hosts_prefix}v$i" master "${hosts_prefix}br" up || hosts_why="cannot make a veth pair"
        done
        ip link set "${hosts_prefix}br" up
    fi
    for ((i = 0; i < n; i++)); do
        ip -n "${hosts[i]}" address add "10.77.0.$((i + 1))/24" dev eth0 && ip -n "${hosts[i]}" link set lo up && ip -n "${hosts[i]}" link set eth0 up ||
            hosts_why="cannot set an address"
    done
    [ -z "$hosts_why" ] || { hosts_stop; return 1; }
    for ((i = 0; i < n; i++)); do
        waited=0
        until [ "$(ip netns exec "${hosts[i]}" cat /sys/class/net/eth0/operstate)" = up ]; do
            waited=$((waited + 1))
            [ $waited -lt 100 ] || { hosts_why="eth0 of ${hosts[i]} does not come up"; hosts_stop; return 1; }
            sleep 0.05
        done
    done
    hosts_settle "${hosts[@]/%/.eth0}"
    TANDEM_SSH=$(realpath tests/t_netns_ssh.sh)
    : "${TANDEM_REMOTE_DIR:=${t_dir:?}/remote}"
    export TANDEM_SSH TANDEM_REMOTE_DIR
}

host() {
    local name=${hosts[$1]}
    shift
    ip netns exec "$name" "$@"
}

hosts_settle() {
    local i dev
    for dev in "$@"; do
        for ((i = 0; i < 100; i++)); do
            [ -z "$(ip -n "${dev%.*}" -6 address show dev "${dev#*.}" scope link -tentative)" ] || break
            sleep 0.02
        done
    done
}

hosts_link() { ip -n "${hosts[$1]}" link set eth0 "$2"; }

# Rules are asked before the table of our own addresses, once that has moved behind them.
hosts_rule() {
    local family=$1 name=${hosts[$2]} verb=$3
    shift 3
    ip "$family" -n "$name" rule add pref 100 lookup local 2>/dev/null
    ip "$family" -n "$name" rule del pref 0 lookup local 2>/dev/null
    ip "$family" -n "$name" rule add pref 10 iif eth0 "$@" "$verb" 2>/dev/null
}
hosts_no_rule() { ip "$1" -n "${hosts[$2]}" rule del pref 10; }

# Others may run beside us.
left() {
    local p
    for p in $(grep -lsz "^TANDEM_REMOTE_DIR=$TANDEM_REMOTE_DIR\$" /proc/[0-9]*/environ | cut -d/ -f3); do
        case $({ tr '\0' ' ' <"/proc/$p/cmdline"; } 2>/dev/null) in *"tandem agent --host "* | "tandem rank "*) echo "$p" ;; esac
    done
}
nothing_left() {
    local i
    for ((i = 0; i < ${1:-200}; i++)); do
        [ -z "$(left)" ] && return 0
        sleep 0.02
    done
    return 1
}
# shellcheck disable=SC2154 # model: the test's
of() { pgrep -f "tandem rank --rank $1 .*$model"; }
# The youngest: what came before it only leads there
agent_of() { for p in $(ip netns pids "${hosts[$1]}"); do case $(tr '\0' ' ' <"/proc/$p/cmdline") in *"tandem agent --host "*) echo "$p" ;; esac; done | tail -n 1; }
ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }
