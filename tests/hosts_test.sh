#!/bin/bash
# Several hosts, one command: network namespaces on one wire are the hosts. The same bytes as one rank, every death and silence told by name and in time, nothing left. test-deadline: 180
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

if ! hosts_start 2; then
    skip "several hosts" "$hosts_why"
    t_end
fi
TANDEM=$(realpath "$TANDEM")
h0=${hosts[0]} h1=${hosts[1]}
model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 --context 400000 || exit 1
seq 3 40 >"$t_dir/ids"
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/one.logits" --threads 1 >"$t_dir/one.out" || exit 1

# --- the same bytes ---

same() {
    local name=$1
    shift
    rm -f "$t_dir/logits"
    if ! "$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 "$@" >"$t_dir/out" 2>"$t_dir/err"; then
        t_fail "$name: $(cat "$t_dir/err")"
    elif ! cmp -s "$t_dir/one.logits" "$t_dir/logits" || ! cmp -s "$t_dir/one.out" "$t_dir/out"; then
        t_fail "$name: other bytes"
    else
        t_pass "$name"
    fi
}
same "two hosts, a rank each" --hosts "$hosts_list"
same "two hosts, two ranks each" --hosts "$hosts_list" -n 4
same "two hosts, two ranks each, in halves" --hosts "$hosts_list" -n 4 --overlap 2
same "two hosts, two ranks each, shared sums in halves" --hosts "$hosts_list" -n 4 --overlap 2 --scatter 1
same "two hosts, two ranks each, without memory in common" --hosts "$hosts_list" -n 4 --backend tcp
if "$TANDEM" bench comm --backend ucx --min 8 --max 8 --blocks 1 --peer none >"$t_dir/out" 2>&1; then
    same "two hosts, two ranks each, by UCX, in halves" --hosts "$hosts_list" -n 4 --backend shm+ucx --overlap 2
    # shellcheck disable=SC2016 # for the shell in there
    T_WITHIN='case $T_HOST in *h1) export NCCL_SOCKET_IFNAME=eth7 ;; esac' same "two hosts, one of them with a wish of its own" --hosts "$hosts_list"
    contains "which is told of" "$(cat "$t_dir/err")" "NCCL_SOCKET_IFNAME=eth7 is set on this host and stays; "
    same "two hosts, two ranks each, by UCX, shared sums" --hosts "$hosts_list" -n 4 --backend shm+ucx --scatter 1
    # shellcheck disable=SC2016 # for the shell in there
    T_WITHIN='case $T_HOST in *h1) export UCX_RNDV_THRESH=64k ;; esac' same "two hosts, of which one's owner has decided how UCX sends" --hosts "$hosts_list" --backend ucx
else
    skip "two hosts, two ranks each, by UCX, in halves" "$(tail -n 1 "$t_dir/out")"
fi
# Messages of 29 KB, of which 12 get through at once. What is sent a second time comes from pages that may have been written again since: the other side has it, and throws it away.
retransmitted() { host "$1" awk '/^Tcp:/ && NR > 1 { print $13; exit }' <(host "$1" grep '^Tcp:' /proc/net/snmp); }
if host 0 tc qdisc add dev eth0 root tbf rate 100mbit burst 4k limit 8k 2>"$t_dir/err" && host 1 tc qdisc add dev eth0 root tbf rate 100mbit burst 4k limit 8k; then
    same "two hosts, a wire that loses packets" --hosts "$hosts_list"
    same "two hosts, a wire that loses packets, in halves" --hosts "$hosts_list" --overlap 2
    n_lost=$(($(retransmitted 0) + $(retransmitted 1)))
    [ "$n_lost" -gt 0 ] && t_pass "packets were lost ($n_lost)" || t_fail "no packet was lost"
else
    skip "a wire that loses packets" "$(cat "$t_dir/err")"
fi
for h in 0 1; do host $h tc qdisc del dev eth0 root 2>/dev/null; done
same "two hosts, three ranks, uneven" --hosts "$hosts_list" --split 3:1:2
same "two hosts, three ranks, uneven, shared sums" --hosts "$hosts_list" --split 3:1:2 --scatter 1
same "one other host, one rank" --hosts "$h1"
ok "plan" sh -c "\"$TANDEM\" plan llama-3.1-8b --hosts $hosts_list -n 3 --ctx 1024 --json >\"$t_dir/out\""
free=$(awk '/^MemAvailable/ { print $2 * 1024 }' /proc/meminfo)
ok "plan: a rank more on the first host, each with its part of what is free there" python3 -c 'import json, sys
p, free = json.load(open(sys.argv[1])), float(sys.argv[2])
assert p["ranks"] == 3 and len(p["weights_bytes"]) == 3 and 0.3 * free < p["available_bytes"][0] < 0.6 * free, p' "$t_dir/out" "$free"
ok "bench scale" "$TANDEM" bench scale "$model" --hosts "$hosts_list" -n 2,3 --threads 1 --prefill 16 --decode 4
"$TANDEM" bench "$model" --hosts "$hosts_list" --threads 1 --prefill 16 --decode 4 --repeat 2 --json >"$t_dir/bench.json" 2>"$t_dir/err"
ok "bench" python3 -c 'import json,sys; b=json.load(open(sys.argv[1])); assert sys.argv[2] == "0" and b["ranks"] == 2 and len(b["prefill_samples"]) == len(b["decode_samples"]) == 2 and b["prefill_tok_s"] > 0 and b["decode_tok_s"] > 0 and b["read_bytes_s"] > 0, (sys.argv[2], b)' "$t_dir/bench.json" $?
# Every token of the prompt chooses as many experts in every layer; which, is the same for any number of ranks.
experts=tests/golden/families/qwen3_moe-e40
for how in 'tp' 'ep -n 3'; do
    "$TANDEM" eval $experts --ids $experts/ids.txt --moe "${how:0:2}" --threads 1 --expert-stats "$t_dir/one.json" >"$t_dir/out" 2>&1
    # shellcheck disable=SC2086 # words
    ok "experts are counted on two hosts: $how" "$TANDEM" eval $experts --ids $experts/ids.txt --moe $how --threads 1 --expert-stats "$t_dir/experts.json" --hosts "$hosts_list"
    ok "as on one, $how" cmp "$t_dir/one.json" "$t_dir/experts.json"
    ok "all of them, $how" python3 -c 'import json,sys; s=json.load(open(sys.argv[1])); n=int(sys.argv[2]) * s["chosen_for_a_token"]; assert s["counts"] and all(len(c) == 40 and sum(c) == n for c in s["counts"]), s' \
        "$t_dir/experts.json" "$(wc -w <$experts/ids.txt)"
done
printf '# the pair\n%s\n%s # the other\n' "$h0" "$h1" >"$t_dir/hostfile"
same "a host file" --hostfile "$t_dir/hostfile"
TANDEM_HOSTS=$hosts_list same "TANDEM_HOSTS"
same "the launcher's own host" --hosts localhost
TANDEM_SSH=/bin/false same "the launcher's own host, by its user" --hosts "$(id -un)@localhost"
ok "a relative path is the same file there" env -C "$t_dir" "$TANDEM" run tiny.gguf --hosts "$hosts_list" --threads 1 -p hi --max-tokens 3
out=$("$TANDEM" run "$model" --hosts "$hosts_list" --dry-run 2>&1)
contains "--dry-run tells hosts" "$out" "host $h0 (by ssh, "
contains "--dry-run tells addresses" "$out" "ranks 1-1, reached at 10.77.0.2"
contains "ranks of one host share memory" "$("$TANDEM" run "$model" --hosts "$hosts_list" -n 3 --dry-run 2>&1)" "bytes between ranks: shm+tcp"
contains "--dry-run tells the decision" "$out" "rail 0: eth0 10.77.0.1 - eth0 10.77.0.2, MTU 1500"
"$TANDEM" run "$model" --hosts "$hosts_list" --threads 1 -p hi --max-tokens 5 --ledger="$t_dir/l.json" >"$t_dir/out" 2>"$t_dir/err"
ok "the ledger of both hosts" python3 -c 'import json,sys; assert len(json.load(open(sys.argv[1]))["ranks"]) == 2' "$t_dir/l.json"

# --- bench comm ---

"$TANDEM" bench comm --hosts "$hosts_list" -n 4 --min 64 --max 4096 --blocks 1 --block-us 1 --json >"$t_dir/comm.json" 2>"$t_dir/err"
ok "bench comm of two hosts" python3 -c 'import json,sys; r=json.load(open(sys.argv[1]))["runs"]; assert len(r) == 1 and r[0]["backend"] == "shm+tcp" and r[0]["ranks"] == 4 and [s["bytes"] for s in r[0]["sizes"]] == [64 << i for i in range(7)] and all(s["us"] > 0 and s["ideal_us"] > 0 for s in r[0]["sizes"]), r' "$t_dir/comm.json"
ok "its chart has the wire" sh -c "\"$TANDEM\" bench comm --hosts $hosts_list --min 64 --max 128 --blocks 1 --block-us 1 --peer none --svg | grep -q 'the wire, 10 Gb/s'"
out=$("$TANDEM" bench comm --hosts "$hosts_list" --peer tuned 2>&1)
contains "MPICH is told the link, and nothing else" "$? $out" "2 tandem bench comm: --peer tuned: between hosts"

# --- topo ---

out=$("$TANDEM" topo --hosts "$hosts_list" -n 4 --threads 1 2>&1)
contains "topo of two hosts" "$out" "host $h1 (by ssh, "
contains "topo of two hosts: each draws its own ranks" "$out" "rank 3: 1 thread on CPU"
contains "topo of two hosts: the way between them" "$out" "rail 0: eth0 10.77.0.1 - eth0 10.77.0.2, MTU 1500"
TANDEM_HOSTS=$hosts_list "$TANDEM" topo --json >"$t_dir/topo.json" 2>"$t_dir/err"
ok "topo of two hosts as JSON" python3 -c 'import json,sys; h=json.load(open(sys.argv[1]))["hosts"]; assert [x["address"] for x in h] == ["10.77.0.1", "10.77.0.2"] and [x["ranks"][0]["rank"] for x in h] == [0, 1] and h[0]["machine"]["cpus"] > 0, h' "$t_dir/topo.json"
ok "topo leaves nothing" nothing_left
contains "topo of hosts and a machine" "$("$TANDEM" topo gb10 --hosts "$hosts_list" 2>&1)" "tandem topo: gb10, or hosts: not both"
contains "topo of hosts as a picture" "$("$TANDEM" topo --hosts "$hosts_list" --svg 2>&1)" "tandem topo: --svg: a picture has one machine"

# --- what cannot work ---

misuse() {
    local name=$1 part=$2
    shift 2
    out=$("$TANDEM" run "$model" -p hi "$@" 2>&1)
    contains "$name" "$? $out" "$part"
}
misuse "a name that is none" "2 tandem run: " --hosts 'a;b'
misuse "a host twice" "2 tandem run: --hosts: $h0 is there twice" --hosts "$h0,$h0"
misuse "fewer ranks than hosts" "2 tandem run: -n 1: fewer ranks than the 2 hosts" --hosts "$hosts_list" -n 1
misuse "hosts twice" "2 tandem run: --hosts and --hostfile exclude each other" --hosts a --hostfile b
misuse "a host that nobody knows" "1 tandem run: " --hosts "$h0,nowhere"

# --- the model, which is not the same everywhere ---

mkdir "$t_dir/its own" "$t_dir/plain"
cp "$model" "$t_dir/its own/m.gguf"
cp "$model" "$t_dir/plain/m.gguf"
python3 tests/make_model.py "$t_dir/other.gguf" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 4 || exit 1
# model_there NAME WITHIN PART WORD…: as the other host sees it through a mount of its own.
model_there() {
    local name=$1 within=$2 part=$3
    shift 3
    out=$(T_WITHIN="[ \"\$(hostname)\" != $h1 ] || $within" "$@" -p hi --hosts "$hosts_list" --threads 1 --max-tokens 3 2>&1)
    contains "$name" "$? $out" "$part"
    ok "$name: nothing is left" nothing_left
}
model_there "a model that the other host lacks" "mount -t tmpfs tmpfs '$t_dir/plain'" \
    "1 tandem run: host $h1: $t_dir/plain/m.gguf: No such file or directory; this host has it, and there this mends it: rsync -aL --mkpath $t_dir/plain/m.gguf $h1:$t_dir/plain/m.gguf" \
    "$TANDEM" run "$t_dir/plain/m.gguf"
model_there "a model that the other host has another of" "mount --bind '$t_dir/other.gguf' '$t_dir/its own/m.gguf'" \
    "1 tandem run: host $h1: $t_dir/its own/m.gguf is not the model that $h0 has: headers or sizes differ; on $h0 this mends it: rsync -aL --mkpath '$t_dir/its own/m.gguf' '$h1:$t_dir/its own/m.gguf'" \
    ip netns exec "$h0" "$TANDEM" run "$t_dir/its own/m.gguf"
hub=$t_dir/hub/models--some--one
mkdir -p "$hub/refs" "$hub/snapshots" && printf abc >"$hub/refs/main" && cp -r "$(dirname "$(find tests/golden/llama -name config.json | sort | head -n 1)")" "$hub/snapshots/abc"
hosts_list="$h0,$(id -un)@$h1" model_there "a folder that the other host lacks" "mount -t tmpfs tmpfs '$hub/snapshots/abc'" "rsync -aL --mkpath $hub/snapshots/abc/ $(id -un)@$h1:$hub/snapshots/abc" \
    "$TANDEM" run "$hub/snapshots/abc" --dry-run
HF_HUB_CACHE=$t_dir/hub model_there "a name of the hub that the other host lacks" "mount -t tmpfs tmpfs '$t_dir/hub'" "; this host has it, and there this mends it: rsync -a --mkpath $hub/ $h1:$hub" \
    "$TANDEM" run some/one --dry-run
model_there "--dry-run tells it as well" "mount -t tmpfs tmpfs '$t_dir/plain'" "rsync -aL --mkpath $t_dir/plain/m.gguf $h1:" "$TANDEM" run "$t_dir/plain/m.gguf" --dry-run

# --- where Tandem is put without TANDEM_REMOTE_DIR: each host has a /var/tmp and a home of its own, and the second one's /var/tmp lets no program run ---

case $t_dir in
/var/tmp/*) skip "the usual folders" "this test's own folder is in /var/tmp" ;;
*)
    for h in "$h0" "$h1"; do mkdir -p "$t_dir/$h/tmp" "$t_dir/$h/home"; done
    # shellcheck disable=SC2016 # for the shell in there
    own='
mount --bind "$d/$T_HOST/tmp" /var/tmp && export HOME="$d/$T_HOST/home" && unset XDG_CACHE_HOME || exit 255
case $T_HOST in *h1) mount -o remount,bind,noexec /var/tmp || exit 255 ;; esac'
    remote=$TANDEM_REMOTE_DIR usual=tandem-$(id -u) cache=.cache/tandem-bundles
    export d=$t_dir
    unset TANDEM_REMOTE_DIR
    T_WITHIN=$own same "two hosts, Tandem in the usual folders" --hosts "$hosts_list"
    ok "in /var/tmp" [ -x "$(echo "$t_dir/$h0/tmp/$usual"/*/bin/tandem)" ]
    ok "and not below ~" [ ! -e "$t_dir/$h0/home/$cache" ]
    ok "below ~ where /var/tmp lets no program run" [ -x "$(echo "$t_dir/$h1/home/$cache"/*/bin/tandem)" ]
    ok "and nothing in /var/tmp" [ -z "$(ls -A "$t_dir/$h1/tmp/$usual")" ]
    ok "both ours alone" [ "$(stat -c %a "$t_dir/$h0/tmp/$usual" "$t_dir/$h1/home/$cache" | tr '\n' ' ')" = "700 700 " ]
    out=$(T_WITHIN=$own "$TANDEM" host-check --hosts "$hosts_list" 2>&1)
    contains "sent once: $h0" "$out" "$h0: pushed 0: "
    contains "sent once: $h1" "$out" "$h1: pushed 0: "
    # shellcheck disable=SC2016
    out=$(T_WITHIN=$own'; mount --bind "$HOME" "$HOME" && mount -o remount,bind,noexec "$HOME" || exit 255' "$TANDEM" run "$model" -p hi --hosts "$h1" 2>&1)
    contains "neither lets a program run" "$? $out" \
        "1 tandem run: $h1: lets no program run in /var/tmp/$usual $t_dir/$h1/home/$cache (mounted noexec): set TANDEM_REMOTE_DIR to a folder there where programs may run"
    export TANDEM_REMOTE_DIR=$remote
    export -n d
    ;;
esac

# --- death and silence ---

run_here=() # what runs the command: nothing, or a namespace
# dies NAME LIMIT_MS PART COMMAND…: a job that talks, the command, and then the end of the job.
dies() {
    local name=$1 limit=$2 part=$3 job status=0 took i
    shift 3
    : >"$t_dir/out" # the last one's
    "${run_here[@]}" "$TANDEM" run "$model" --hosts "$hosts_list" -n "${n:-2}" --threads 1 --ctx 400000 -p hi --ignore-eos >"$t_dir/out" 2>"$t_dir/err" &
    job=$!
    for ((i = 0; i < 3000; i++)); do { [ -s "$t_dir/out" ] || ! kill -0 $job 2>/dev/null; } && break; sleep 0.01; done
    since=$(ms)
    if ! "$@"; then
        t_fail "$name: $* did not work: $(cat "$t_dir/err")"
        kill -9 $job
        return
    fi
    wait $job || status=$?
    took=$(($(ms) - since))
    if [ $status = 0 ]; then
        t_fail "$name: status 0"
    elif [ $took -gt "$limit" ]; then
        t_fail "$name: took $took ms: $(cat "$t_dir/err")"
    elif ! nothing_left; then
        t_fail "$name: left $(left | while read -r p; do tr '\0' ' ' <"/proc/$p/cmdline" | cut -c 1-100; done)"
        left | xargs -r kill -9
    else
        contains "$name" "$(cat "$t_dir/err")" "$part"
    fi
}
kill_rank() { kill "-$2" "$(of "$1")"; }
kill_agent() { kill "-$2" "$(agent_of "$1")"; }

n=4 dies "an agent of two ranks is killed" 1000 "host $h1: " kill_agent 1 KILL
contains "and its ranks are named" "$(cat "$t_dir/err")" "; ranks 2-3 were there, last heard of "
n=4 dies "one of two ranks on the other host is killed" 1000 "host $h1: rank 3 " kill_rank 3 KILL
n=4 dies "one of two ranks on this host crashes" 1000 "host $h0: rank 1 " kill_rank 1 SEGV
dies "a rank on the other host is killed" 1000 "host $h1: rank 1 " kill_rank 1 KILL
dies "rank 0 crashes" 1000 "host $h0: rank 0 " kill_rank 0 SEGV
dies "an agent is killed" 1000 "host $h1: " kill_agent 1 KILL
contains "and its rank is named" "$(cat "$t_dir/err")" "; rank 1 was there, last heard of "
dies "a rank is stopped" 6000 "host $h1: rank 1 " kill_rank 1 STOP
dies "an agent is stopped" 4000 "host $h1: " kill_agent 1 STOP
contains "with its rank and step" "$(cat "$t_dir/err")" "; its rank 1 was at step "
# One thread held by a debugger, while the process as such runs: a deadlock, as it looks from outside.
holder=''
hold() {
    : >"$t_dir/held"
    python3 tests/hold.py "$1" >"$t_dir/held" 2>&1 &
    holder=$!
    until [ -s "$t_dir/held" ]; do sleep 0.01; done
    grep -qx held "$t_dir/held"
}
hold_rank() { hold "$(of "$1")" && since=$(ms); } # not before: a debugger starts slowly
sleep 30 &
sleeper=$!
if hold $sleeper; then
    kill "$holder"
    typed=$(id -un)@$h1
    hosts_list=$h0,$typed dies "a thread of a rank hangs" 6000 "host $typed: rank 1 (pid " hold_rank 1
    contains "frozen, it is called" "$(cat "$t_dir/err")" ") is frozen: it gave no sign of life for 4."
else
    skip "a thread of a rank hangs" "no debugger may attach here: $(cat "$t_dir/held")"
fi
kill "$holder" $sleeper 2>/dev/null
dies "the wire is cut" 4000 " (eth0 10.77.0." hosts_link 1 down
hosts_link 1 up
ok "and then it runs again" "$TANDEM" run "$model" --hosts "$hosts_list" --threads 1 -p hi --max-tokens 3

# --- the same, where the launcher is on the first host, and reaches the other one's agent directly ---

run_here=(ip netns exec "$h0")
dies "directly: a rank is killed" 1000 "host $h1: rank 1 " kill_rank 1 KILL
dies "directly: an agent is killed" 1000 "host $h1: " kill_agent 1 KILL
dies "directly: an agent is stopped" 4000 "host $h1: " kill_agent 1 STOP
dies "directly: our own agent is killed" 1000 "host $h0: " kill_agent 0 KILL

t_end
