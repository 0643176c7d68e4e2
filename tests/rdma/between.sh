#!/bin/bash
# Two machines with RDMA in software, on the first of them: see tests/rdma.sh.
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. tests/t.sh
TANDEM=$(realpath "$TANDEM")
model=$BUILD/rdma/tiny.gguf
there() { ssh -n box2 "$@"; }
for ((i = 0; i < 30; i++)); do there true 2>"$t_dir/err" && break; sleep 0.5; done
[ $i -lt 30 ] || { t_fail "box2 does not answer: $(cat "$t_dir/err")"; t_end; }
seq 3 40 >"$t_dir/ids"
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/one.logits" --threads 1 >"$t_dir/one.out" || exit 1
hosts=(--hosts "box1,box2")
evaluates() { # NAME OPTION…
    local name=$1
    shift
    same_bytes "$name" "$t_dir/one" "$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 "${hosts[@]}" "$@"
}
packets() { cat "/sys/class/infiniband/rxe$1/ports/1/hw_counters/sent_pkts"; }

# --- what was decided ---

out=$("$TANDEM" run "$model" "${hosts[@]}" --dry-run 2>&1)
contains "RDMA by both rails" "$out" "link box1 - box2: RDMA, 2 rails, "
contains "by link-local addresses: there are no others" "$out" "rail 1: eth1 fe80::5054:ff:fe00:101 (rxe1:1, GID 0) - eth1 fe80::5054:ff:fe00:102 (rxe1:1, GID 0), MTU 9000"
contains "UCX is told the devices, and never TCP" "$out" "UCX_NET_DEVICES=rxe0:1,rxe1:1 UCX_TLS=rc,ud,posix,cma,self "
contains "and what carries bytes" "$out" "bytes between ranks: ucx, unless"

# --- the same bytes ---

before=$(packets 0)
evaluates "a rank each"
after=$(packets 0)
[ $((after - before)) -gt 300 ] && t_pass "by RDMA ($((after - before)) packets)" || t_fail "$((after - before)) packets by RDMA"
evaluates "a rank each, in halves" --overlap 2
evaluates "two ranks each" -n 4
evaluates "two ranks each, in halves, shared sums" -n 4 --overlap 2 --scatter 1
before=$(packets 0)
evaluates "by TCP where that is asked for" --backend tcp
after=$(packets 0)
[ "$before" = "$after" ] && t_pass "and then not by RDMA" || t_fail "$((after - before)) packets by RDMA with --backend tcp"

# --- both rails ---

# both_send NAME LEAST: packets by either since the last call.
declare -A sent=([0]=$(packets 0) [1]=$(packets 1))
both_send() {
    local port n
    for port in 0 1; do
        n=$(($(packets $port) - ${sent[$port]}))
        sent[$port]=$((n + ${sent[$port]}))
        [ $n -ge "$2" ] && t_pass "$1: by rxe$port ($n packets)" || t_fail "$1: $n packets by rxe$port"
    done
}
exchanges() { "$TANDEM" bench comm "${hosts[@]}" --min "$1" --max "$1" --blocks 1 --block-us 1 --peer none; }
ok "from which size on they pay is measured" exchanges 65536
both_send "for that" 100
# Whoever has decided that wants it used, on both machines. Over both the adapter of each reads the other's memory.
owners_wish() { export UCX_RNDV_THRESH=$1 && there "echo UCX_RNDV_THRESH=$1 >.ssh/environment"; }
owners_wish 32k
ok "large messages by both" exchanges 524288
both_send "large ones" 1000
owners_wish 512
evaluates "the same bytes by both"
both_send "a model" 100
no_wish() { unset UCX_RNDV_THRESH && there rm .ssh/environment; }
no_wish

# --- what ends a job ---

ms() { echo $(($(date +%s%N) / 1000000)); }
# starts: a job that goes on for long, until it has talked for a second.
starts() {
    local i
    : >"$t_dir/out"
    "$TANDEM" run "$model" "${hosts[@]}" --threads 1 -p hi --ignore-eos >"$t_dir/out" 2>"$t_dir/err" &
    job=$!
    for ((i = 0; i < 600; i++)); do { [ -s "$t_dir/out" ] || ! kill -0 $job 2>/dev/null; } && break; sleep 0.05; done
    sleep 1
}
# ended NAME PART WITHIN_MS SINCE: it ends, and tells why.
ended() {
    local name=$1 part=$2 within=$3 since=$4 took status=0
    while kill -0 $job 2>/dev/null && [ $(($(ms) - since)) -lt 30000 ]; do sleep 0.02; done
    took=$(($(ms) - since))
    kill -9 $job 2>/dev/null
    wait $job || status=$?
    if [ $status != 1 ] || [ $took -gt "$within" ]; then t_fail "$name: status $status after $took ms: $(tail -n 1 "$t_dir/err")"; else
        contains "$name ($took ms)" "$(tail -n 1 "$t_dir/err")" "$part"
    fi
}
starts
# A machine whose only processor spins takes its time to let ssh in: it says itself when it killed.
since=$(($(there 'date +%s%N; pkill -KILL -f "[t]andem rank"') / 1000000))
ended "a rank is killed" "host box2: rank 1 " 3000 "$since"
# What tests/rdma.sh does from outside. wires off|on WIRE…: both ends see it, and so does RDMA.
wires() {
    local wire state=$1
    shift
    for wire in "$@"; do printf '@1 set_link wire%s %s\n@2 set_link wire%s %s\n' "$wire" "$state" "$wire" "$state"; done
    [ "$state" = off ] || sleep 2
}
both_are_cut() {
    starts
    since=$(ms)
    wires off 0 1
    ended "$1" "host box2: nothing was heard of it at box1 for " 6000 "$since"
    wires on 0 1
}
both_are_cut "both cables are cut"
evaluates "and then it runs again"
starts
since=$(ms)
echo "@2 stop"
ended "a machine stands still" "host box2: nothing was heard of it at box1 for " 5000 "$since"
echo "@2 cont"
sleep 3
evaluates "and when it goes on, there is nothing left to disturb"
# Small messages go by the first alone: it goes on, or ends in time.
starts
wires off 1
sleep 3
so_far=$(stat -c %s "$t_dir/out")
sleep 3
if kill -0 $job 2>/dev/null; then
    [ "$(stat -c %s "$t_dir/out")" -gt "$so_far" ] && t_pass "the second cable is cut, and it goes on" || t_fail "the second cable is cut, and nothing happens"
    kill -TERM $job # a shell has its jobs ignore SIGINT
    wait $job
else
    ended "the second cable is cut" "rank " 10000 "$(ms)"
fi
wires on 1
owners_wish 512
both_are_cut "both cables are cut, of which both are in use"
starts
since=$(ms)
wires off 1
ended "the second one is, of which both are in use" "rank " 8000 "$since"
wires on 1
# UCX ends a process whose own port goes away.
starts
since=$(ms)
ip link set eth0 down
ended "a port goes down" "host box" 5000 "$since"
ip link set eth0 up
sleep 1
no_wish

# --- RDMA that does not work is told, and TCP never taken instead ---

refused() { # NAME PART
    out=$("$TANDEM" run "$model" "${hosts[@]}" --threads 1 -p hi --max-tokens 3 2>&1)
    contains "$1" "$? $out" "$2"
}
there tc qdisc add dev eth0 clsact "&&" tc filter add dev eth0 ingress protocol ipv6 u32 match ip6 dport 4791 0xffff action drop || t_fail "no filter"
refused "a firewall that drops RoCE" "RoCE is UDP to port 4791"
there tc qdisc del dev eth0 clsact
there mkdir /dev/away "&&" mv "/dev/infiniband/*" /dev/away
refused "no verbs devices" "/dev/infiniband/uverbs0 is not there (in a container"
there mv "/dev/away/*" /dev/infiniband
there rdma link delete rxe0 "&&" rdma link delete rxe1
refused "no RDMA there" "no RDMA between box1 and box2 (--backend tcp does without it)"
t_end
