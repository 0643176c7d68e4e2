#!/bin/bash
# Which interfaces face each other, on two hosts made of network namespaces: one cable, two in one subnet, two in subnets of their own, no address but link-local ones,
# packets of different sizes, and what a firewall makes of it.
# test-deadline: 120
# shellcheck disable=SC2154 # hosts, hosts_why: set by t_hosts.sh
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

probe=$BUILD/tests/launcher_probe_test
if [ ! -x "$probe" ]; then
    skip "probing two hosts" "$probe was not built"
    t_end
fi
if ! hosts_start 2; then
    skip "probing two hosts" "$hosts_why"
    t_end
fi
a=${hosts[0]} b=${hosts[1]}
run() { "$probe" hosts "$a" "$b" "$@" 2>&1; }
lacks() {
    case $2 in
    *"$3"*)
        t_fail "$1: '$3' not expected in:"
        printf '%s\n' "$2" | sed 's/^/    /'
        ;;
    *) t_pass "$1" ;;
    esac
}
# cable NAME-ON-A NAME-ON-B
cable() {
    ip link add "$1" netns "$a" type veth peer name "$2" netns "$b"
    ip -n "$a" link set "$1" up && ip -n "$b" link set "$2" up
    hosts_settle "$a.$1" "$b.$2"
}

# --- one cable ---

out=$(run)
contains "one cable: decision" "$out" "link $a - $b: TCP, 1 rail, 10 Gb/s, MTU 1500"
contains "one cable: rail" "$out" "rail 0: eth0 10.77.0.1 - eth0 10.77.0.2, MTU 1500"
contains "one cable: link-local works too" "$out" "faces: eth0 fe80::"
contains "one cable: ranks are told" "$out" "ranks of $b: UCX_NET_DEVICES=eth0 UCX_TLS=tcp,posix,cma,self"
contains "one cable: TCP goes through" "$out" "reach: reached"
contains "a fixed port" "$(run port=41001)" "reach: reached"

# --- sizes ---

ip -n "$a" link set eth0 mtu 9000
out=$(run no-reach)
contains "one end has MTU 9000: what gets through" "$out" "rail 0: eth0 10.77.0.1 - eth0 10.77.0.2, MTU 1500"
contains "one end has MTU 9000: warning" "$out" "on $b: sudo ip link set dev eth0 mtu 9000"
ip -n "$b" link set eth0 mtu 9000
out=$(run no-reach)
contains "both have MTU 9000" "$out" "1 rail, 10 Gb/s, MTU 9000"
lacks "both have MTU 9000: no warning" "$out" warning
# Something between the hosts that carries less: both interfaces believe in 9000, the way out of one does not.
ip -n "$a" route replace 10.77.0.0/24 dev eth0 src 10.77.0.1 mtu lock 1500
contains "what the kernel believes of the path is not asked" "$(run no-reach)" "MTU 9000"
ip -n "$a" link set eth0 mtu 1500 && ip -n "$b" link set eth0 mtu 1500

# --- two cables, one subnet ---

cable eth1 eth9
ip -n "$a" address add 10.77.0.11/24 dev eth1 && ip -n "$b" address add 10.77.0.12/24 dev eth9
out=$(run)
contains "two cables in one subnet: two rails" "$out" "2 rails"
contains "two cables in one subnet: the first by its scope" "$out" "told apart by their scopes"
contains "two cables in one subnet: matched by link" "$out" "faces: eth1 10.77.0.11 - eth9 10.77.0.12"
contains "two cables in one subnet: not crosswise" "$out" "does not face: eth0 10.77.0.1 - eth9 10.77.0.12"
for h in "$a" "$b"; do
    for r in 0 1; do contains "two cables in one subnet: $h's rail $r by its counter" "$out" "$h rail $r: proved"; done
done
contains "two cables in one subnet: TCP by scope" "$out" "reach: reached"
for n in "$a" "$b"; do ip netns exec "$n" sh -c 'for i in /proc/sys/net/ipv6/conf/eth*/disable_ipv6; do echo 1 >"$i"; done'; done
out=$(run)
contains "no IPv6: bound to their interfaces" "$out" "in one subnet, told apart by their interfaces"
for h in "$a" "$b"; do
    for r in 0 1; do contains "no IPv6: $h's rail $r by its counter" "$out" "$h rail $r: proved"; done
done

# --- two cables, two subnets ---

ip -n "$a" address flush dev eth1 && ip -n "$b" address flush dev eth9
ip -n "$a" address add 10.78.0.1/24 dev eth1 && ip -n "$b" address add 10.78.0.2/24 dev eth9
out=$(run)
contains "two subnets" "$out" "2 rails in subnets of their own"
contains "two subnets: NCCL knows both" "$out" "NCCL_SOCKET_IFNAME==eth0,eth1"
contains "two subnets: wishes" "$(run no-reach interfaces=10.78.0.0/24)" "rail 0: eth1 10.78.0.1 - eth9 10.78.0.2"
contains "two subnets: wishes that nothing fulfils" "$(run no-reach interfaces=10.79.0.0/24)" "error: decide: $a and $b have no network in common within 10.79.0.0/24"

# --- the same address at both ends, as bridges of containers have it ---

for n in "$a" "$b"; do ip -n "$n" link add docker0 type bridge && ip -n "$n" address add 172.17.0.1/16 dev docker0 && ip -n "$n" link set docker0 up; done
lacks "bridges of containers are not asked" "$(run no-reach)" "172.17.0.1 - "

# --- as unpacked: link-local only ---

for n in "$a" "$b"; do
    for i in eth0 eth1 eth9; do ip -n "$n" address flush dev $i 2>/dev/null; done
    ip netns exec "$n" sh -c 'for i in /proc/sys/net/ipv6/conf/eth*/disable_ipv6; do echo 0 >"$i"; done'
done
hosts_settle "$a.eth0" "$a.eth1" "$b.eth0" "$b.eth9"
out=$(run)
contains "link-local only" "$out" "IPv6 link-local, 2 rails told apart by their scopes"
contains "link-local only: TCP" "$out" "reach: reached"
contains "link-local only: family" "$out" "UCX_TCP_AF_PRIO=inet6"

# --- firewalls ---

ip -n "$a" address add 10.77.0.1/24 dev eth0 && ip -n "$b" address add 10.77.0.2/24 dev eth0
for n in "$a" "$b"; do ip netns exec "$n" sh -c 'for i in /proc/sys/net/ipv6/conf/eth*/disable_ipv6; do echo 1 >"$i"; done'; done
# deny PROTOCOL
deny() { hosts_rule -4 0 blackhole ipproto "$1" && hosts_rule -4 1 blackhole ipproto "$1"; }
if deny tcp; then
    out=$(run port=41001)
    contains "TCP is denied: from where to where" "$out" "$b (10.77.0.2, eth0) cannot reach $a (10.77.0.1, eth0) port 41001 by TCP: connection timed out"
    contains "TCP is denied: the rule" "$out" "on $a: sudo ufw allow from 10.77.0.2 to any port 41001 proto tcp"
    deny udp
    out=$(run)
    contains "UDP is denied: what was tried" "$out" "none answered (eth0 10.77.0.1 - eth0 10.77.0.2"
    contains "UDP is denied: the rule" "$out" "sudo ufw allow from 10.77.0.1"
else
    skip "firewalls" "this kernel has no rules by protocol"
fi
hosts_stop
t_end
