#!/bin/bash
# Fixed ports, and what a firewall makes of them: between two hosts made of network namespaces, with the real command. test-deadline: 120
# shellcheck disable=SC2154 # hosts, hosts_why: set by t_hosts.sh
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

if ! hosts_start 2; then
    skip "ports of several hosts" "$hosts_why"
    t_end
fi
TANDEM=$(realpath "$TANDEM")
h0=${hosts[0]} h1=${hosts[1]}
model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 || exit 1
seq 3 20 >"$t_dir/ids"
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/one.logits" --threads 1 >"$t_dir/out" || exit 1

# begin FILE OPTION…: a command, beside others; its stderr goes to that file of $t_dir.
begin() {
    local file=$1 since status=0
    shift
    since=$(ms)
    "$TANDEM" run "$model" --hosts "$hosts_list" -p hi --max-tokens 3 --threads 1 "$@" >"$t_dir/$file.out" 2>"$t_dir/$file" || status=$?
    echo "$status $(($(ms) - since))" >"$t_dir/$file.took"
}
# refused NAME PART OPTION…: the command fails with that sentence within 10 s, and it is one sentence. Without options: the one that has begun, and ended, as err.
refused() {
    local name=$1 part=$2 took status
    shift 2
    [ $# = 0 ] || begin err "$@"
    read -r status took <"$t_dir/err.took"
    if [ $status != 1 ]; then
        t_fail "$name: status $status: $(cat "$t_dir/err")"
    elif [ $took -gt 10000 ]; then
        t_fail "$name: took $took ms"
    elif [ "$(grep -vc "^waiting for host " "$t_dir/err")" != 1 ]; then
        t_fail "$name: not one sentence: $(cat "$t_dir/err")"
    else
        contains "$name" "$(cat "$t_dir/err")" "$part"
    fi
}
works() {
    local name=$1
    shift
    rm -f "$t_dir/logits"
    if ! "$TANDEM" eval "$model" --hosts "$hosts_list" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 "$@" >"$t_dir/out" 2>"$t_dir/err"; then
        t_fail "$name: $(cat "$t_dir/err")"
    else
        ok "$name" cmp "$t_dir/one.logits" "$t_dir/logits"
    fi
}

# --- fixed ports ---

works "fixed ports" --port 41000
works "fixed ports, again at once" --port 41000
works "fixed ports, two ranks each" --port 41000 -n 4
works "fixed ports on one host" --hosts "$h0" -n 2 --backend tcp --port 41000
out=$("$TANDEM" run "$model" --hosts "$hosts_list" -n 4 --port 41000 --dry-run 2>&1)
contains "--dry-run tells the ports" "$out" "tried: $h1 reaches $h0 by TCP at ports 41000-41001"
out=$("$TANDEM" run "$model" --hosts "$hosts_list" --port 65500 --dry-run 2>&1)
contains "no room for all ranks" "$? $out" "2 tandem run: --port 65500: at most 65471"
out=$("$TANDEM" run "$model" --hosts localhost,127.0.0.1 --port 41000 -p hi 2>&1)
contains "one machine twice" "$? $out" "--port 41000: localhost and 127.0.0.1 are the same machine, and cannot both have it"
# shellcheck disable=SC2016
ip netns exec "$h0" python3 -c 'import socket, time
s = socket.create_server(("10.77.0.1", 41001))
print("there", flush=True)
time.sleep(60)' >"$t_dir/taken" &
taken=$!
until grep -q there "$t_dir/taken"; do sleep 0.02; done
refused "a port that is taken" "$h0 cannot open 10.77.0.1 (eth0) port 41001: Address already in use; take another one by --port" --port 41000 -n 4
kill $taken
wait $taken 2>/dev/null

# --- firewalls ---

if hosts_rule -4 0 blackhole ipproto tcp dport 41000 && hosts_rule -4 0 blackhole ipproto tcp dport 42001; then
    hosts_rule -4 0 blackhole ipproto tcp dport 43001
    begin several --port 42000 -n 4 &
    works "a port that nobody needs may be closed" --port 43000
    refused "TCP is dropped" "$h1 (10.77.0.2, eth0) cannot reach $h0 (10.77.0.1, eth0) port 41000 by TCP: connection timed out" --port 41000
    contains "TCP is dropped: who is waited for" "$(cat "$t_dir/err")" "waiting for host $h1 to reach the others' ports"
    contains "TCP is dropped: the rule for ufw" "$(cat "$t_dir/err")" "on $h0: sudo ufw allow from 10.77.0.2 to any port 41000 proto tcp"
    contains "TCP is dropped: the rule for nftables" "$(cat "$t_dir/err")" "sudo nft insert rule inet filter input ip saddr 10.77.0.2 tcp dport 41000 accept"
    wait $!
    mv "$t_dir/several" "$t_dir/err"
    mv "$t_dir/several.took" "$t_dir/err.took"
    refused "one of several ports is closed" "port 42001 by TCP: connection timed out; a firewall? on $h0: sudo ufw allow from 10.77.0.2 to any port 42000:42001 proto tcp"
    for i in 1 2 3; do hosts_no_rule -4 0; done
    # Only who forwards packets tells the sender (ICMP) that it does not want them.
    ip netns exec "$h0" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit'
    hosts_rule -4 0 prohibit ipproto tcp
    refused "TCP is refused" "$h1 (10.77.0.2, eth0) cannot reach $h0 (10.77.0.1, eth0) port 41000 by TCP: No route to host; a firewall? on $h0: sudo ufw allow from 10.77.0.2" --port 41000
    refused "TCP is refused, any port" "with --port the port stays the same" --seed 1
    hosts_no_rule -4 0
    works "and then it runs again" --port 41000
    for n in "$h0" "$h1"; do ip netns exec "$n" sh -c 'echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6'; done
    hosts_rule -4 1 blackhole ipproto udp
    refused "UDP is dropped" "of 1 pairs of addresses that UDP port 41000 was tried between, none answered" --port 41000
    contains "UDP is dropped: the rule" "$(cat "$t_dir/err")" "on $h1: sudo ufw allow from 10.77.0.1 to any port 41000 proto udp"
    hosts_no_rule -4 1
else
    skip "firewalls" "this kernel has no rules by protocol"
fi
hosts_stop
t_end
