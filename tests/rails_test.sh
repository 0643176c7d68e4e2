#!/bin/bash
# Two hosts with two cables in one subnet: ranks' connections leave by both (the interfaces' counters prove it), from a size on that was measured and is remembered. test-deadline: 90
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

if ! hosts_start 2; then
    skip "two cables" "$hosts_why"
    t_end
fi
TANDEM=$(realpath "$TANDEM")
h0=${hosts[0]} h1=${hosts[1]}
export XDG_CACHE_HOME=$t_dir/cache TANDEM_LOG=warn,comm=debug
ip link add eth1 netns "$h0" type veth peer name eth1 netns "$h1" || exit 1
for i in 0 1; do
    ip -n "${hosts[i]}" address add "10.77.0.1$i/24" dev eth1 && ip -n "${hosts[i]}" link set eth1 up || exit 1
done
hosts_settle "$h0.eth1" "$h1.eth1"
# Slow enough that the cables decide and not the processors, so that two of them are faster.
for h in "$h0" "$h1"; do
    for dev in eth0 eth1; do
        if ! tc -n "$h" qdisc add dev $dev root tbf rate 400mbit burst 128kb latency 100ms 2>/dev/null; then
            skip "two cables" "this kernel does not shape traffic (tbf)"
            t_end
        fi
    done
done

sent() { host "$1" cat "/sys/class/net/$2/statistics/tx_bytes"; }
# measured NAME: a run of bench comm, what it says in $t_dir/out
measured() {
    ok "$1" sh -c "\"$TANDEM\" bench comm --hosts $hosts_list --min 1048576 --max 1048576 --blocks 1 --block-us 1 --peer none --json >$t_dir/out 2>$t_dir/err"
}
is_divided() { python3 -c 'import json,sys; r=json.load(open(sys.argv[1]))["runs"][0]; assert 32768 <= r["divided_from_bytes"] <= 1048576, r' "$t_dir/out"; }
was_measured() { grep -q "us undivided" "$t_dir/err"; }

declare -A before
for i in 0 1; do for dev in eth0 eth1; do before[$i$dev]=$(sent $i $dev); done; done
measured "an exchange over both"
ok "large messages are divided" is_divided
ok "that was measured" was_measured
for i in 0 1; do
    first=$(sent $i eth0) second=$(sent $i eth1)
    first=$((first - ${before[${i}eth0]})) second=$((second - ${before[${i}eth1]}))
    # Undivided ones, for comparison, are among them.
    if [ "$second" -gt 3000000 ] && [ $((4 * second)) -gt "$first" ]; then t_pass "host $i sends by both"; else t_fail "host $i sent $first bytes by eth0, $second by eth1"; fi
done

file=$(echo "$XDG_CACHE_HOME"/tandem/exchange-*)
ok "a file remembers it" grep -q "^tandem-exchange 1 .* tcp 2 2 hosts, $h0 first, [0-9a-f]\{16\}\$" "$file"
measured "the next one"
ok "divides as well" is_divided
fails "and did not measure" was_measured
echo rubbish >"$file"
measured "one after the file was spoilt"
ok "is measured anew" was_measured
ok "and the file is replaced" grep -q "^tandem-exchange 1 .* tcp 2 2 hosts, $h0 first" "$file"

python3 tests/make_model.py "$t_dir/tiny.gguf" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 || exit 1
seq 3 200 >"$t_dir/ids"
"$TANDEM" eval "$t_dir/tiny.gguf" --ids "$t_dir/ids" --logits "$t_dir/one" --threads 1 >/dev/null || exit 1
ok "a model runs over both" "$TANDEM" eval "$t_dir/tiny.gguf" --ids "$t_dir/ids" --logits "$t_dir/two" --threads 1 --hosts "$hosts_list"
ok "with the bits of one rank" cmp "$t_dir/one" "$t_dir/two"

# --- what is sent by the second does not leave by it (soon enough): it is no rail, then ---

tc -n "$h0" qdisc replace dev eth1 root tbf rate 1mbit burst 4kb latency 100ms
ok "a rail that cannot be proved" sh -c "\"$TANDEM\" eval \"$t_dir/tiny.gguf\" --ids \"$t_dir/ids\" --logits \"$t_dir/two\" --threads 1 --hosts $hosts_list >\"$t_dir/out\" 2>\"$t_dir/err\""
contains "is told of, and not used" "$(cat "$t_dir/err")" "this rail is not used (eth1 - eth1)"
ok "the bits are the same by the other" cmp "$t_dir/one" "$t_dir/two"
tc -n "$h0" qdisc replace dev eth1 root tbf rate 400mbit burst 128kb latency 100ms

# --- the second cable is cut: packets of life take the first, so it is the ranks that notice ---

"$TANDEM" bench comm --hosts "$hosts_list" --min 1048576 --max 1048576 --blocks 200 --block-us 1000000 --peer none >"$t_dir/out" 2>"$t_dir/err" &
job=$!
earlier=$(sent 0 eth1)
for ((i = 0; i < 1000; i++)); do [ "$(sent 0 eth1)" -gt $((earlier + 4000000)) ] && break; sleep 0.01; done
since=$(ms)
ip -n "$h1" link set eth1 down
status=0
wait $job || status=$?
took=$(($(ms) - since))
if [ $status = 0 ] || [ $took -gt 5000 ]; then t_fail "a cut of the second cable: status $status after $took ms: $(cat "$t_dir/err")"; else
    contains "a cut of the second cable ends the job, by name" "$(cat "$t_dir/err")" "the connection to rank "
    echo "  ($took ms: $(tail -n 1 "$t_dir/err"))"
fi
ok "nothing is left" nothing_left
t_end
