#!/bin/bash
# Life between hosts: a wire that is cut, for one direction or both, in every phase of a job, with ssh beside it or over it; a host that is only slow; and the next command, at once.
# With LONG=1 every case, also more moments of the start, and ten minutes in which nothing may be reported. test-deadline: 900
# shellcheck disable=SC2154 # hosts, hosts_why: set by t_hosts.sh
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

if ! hosts_start 2; then
    skip "life between hosts" "$hosts_why"
    t_end
fi
TANDEM=$(realpath "$TANDEM")
h0=${hosts[0]} h1=${hosts[1]}
model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 --context 400000 || exit 1
seq 3 40 >"$t_dir/ids"
python3 -c 'print(*(3 + i * 7 % 200 for i in range(60000)))' >"$t_dir/many"
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/one.logits" --threads 1 >"$t_dir/out" || exit 1


run_here=() # what runs the command: nothing, or a namespace
start() { # COMMAND WORD…
    : >"$t_dir/out"
    "${run_here[@]}" "$TANDEM" "$@" --hosts "$hosts_list" --threads 1 >"$t_dir/out" 2>"$t_dir/err" </dev/null &
    job=$!
}
# A chat whose user has said nothing yet.
start_chat() {
    : >"$t_dir/out"
    python3 -c 'import os, subprocess, sys
master, slave = os.openpty()
sys.exit(subprocess.run(sys.argv[1:], stdin=slave).returncode)' "${run_here[@]}" "$TANDEM" run "$model" --hosts "$hosts_list" --threads 1 >"$t_dir/out" 2>"$t_dir/err" &
    job=$!
}
# What has to be true before the cut.
talks() { [ -s "$t_dir/out" ]; }
steps() { [ -n "$(of 1)" ] && [ "$(awk '{print $14 + $15}' "/proc/$(of 1)/stat" 2>/dev/null || echo 0)" -gt 40 ]; } # CPU time, in 10 ms
waits() { [ -n "$(of 1)" ] && sleep 0.7; }
goes_on() { talks && sleep 0.5; } # packets have told a step
after() { sleep "$1"; }
# ends NAME PART UNTIL CUT…: waits until, cuts, and expects the command's end within 4 s, with that in its sentence, and nothing left anywhere.
within=4000 gone=150 # ms; tries of nothing_left
ends() {
    local name=$1 part=$2 until=$3 status=0 since took i
    shift 3
    for ((i = 0; i < 1000; i++)); do { $until || ! kill -0 $job 2>/dev/null; } && break; sleep 0.01; done
    since=$(ms)
    "$@" || { t_fail "$name: $* did not work"; kill -9 $job; return; }
    while kill -0 $job 2>/dev/null && [ $(($(ms) - since)) -lt $((within + 5000)) ]; do sleep 0.01; done
    took=$(($(ms) - since))
    kill -9 $job 2>/dev/null && part="an end within $((within / 1000 + 5)) s"
    wait $job || status=$?
    if [ $status != 1 ] || [ $took -gt $within ]; then
        t_fail "$name: status $status, $took ms: $(cat "$t_dir/err")"
    elif ! nothing_left $gone; then # also the side that nobody can reach ends by itself; it may take as long as the command
        t_fail "$name: left $(left | while read -r p; do tr '\0' ' ' <"/proc/$p/cmdline" | cut -c 1-100; done)"
        left | xargs -r kill -9
    else
        contains "$name ($took ms)" "$(tail -n 1 "$t_dir/err")" "$part"
    fi
}
again() {
    if "${run_here[@]}" "$TANDEM" eval "$model" --hosts "$hosts_list" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 >"$t_dir/out" 2>"$t_dir/err"; then
        ok "and then it runs again, the same bits" cmp "$t_dir/one.logits" "$t_dir/logits"
    else
        t_fail "and then it runs again: $(cat "$t_dir/err")"
    fi
}
unplug() { hosts_link 1 down; }
# The kernel takes up to a second to tell. Between a cut and plug the cut has been told.
plug() {
    local i
    hosts_link 1 up
    for ((i = 0; i < 200; i++)); do
        [ "$(host 0 cat /sys/class/net/eth0/operstate)$(host 1 cat /sys/class/net/eth0/operstate)" = upup ] && break
        sleep 0.02
    done
    meet_anew
}
# A search for the other that began without the wire may still fail: No route to host
meet_anew() {
    local i
    for i in 0 1; do ip -n "${hosts[i]}" neigh flush dev eth0; done
}
# deaf I: what comes in there is dropped in silence.
deaf() { hosts_rule -4 "$1" blackhole && hosts_rule -6 "$1" blackhole; }
hear() {
    hosts_no_rule -4 "$1"
    hosts_no_rule -6 "$1"
}
deaf_both() { deaf 0 && deaf 1; }
hear_both() {
    ok "the link was up all the time" [ "$(host 0 cat /sys/class/net/eth0/operstate)$(host 1 cat /sys/class/net/eth0/operstate)" = upup ]
    hear 0
    hear 1
    meet_anew
}
# lost I J: host I is lost, as host J says, with its rank, that one's step and the last that was heard of it.
lost() { grep -Eq "^tandem run: host ${hosts[$1]}: nothing was heard of it at ${hosts[$2]} for [23]\.[0-9] s \(eth0 10\.77\.0\.$(($2 + 1)) - eth0 10\.77\.0\.$(($1 + 1))\); its rank $1 was at step [1-9]" "$t_dir/err"; }
either_lost() { lost 0 1 || lost 1 0; }

# --- the wire is cut; ssh goes beside it ---

decode=(run "$model" -p hi --ctx 400000 --ignore-eos --max-tokens 300000)
start eval "$model" --ids "$t_dir/many" --ctx 70000 --chunk 4096
ends "cut in prefill" "nothing was heard of it at " steps unplug
plug
again
start_chat
ends "cut while idle" "nothing was heard of it at " waits unplug
plug
for i in ${LONG:+0} 1; do
    start "${decode[@]}"
    ends "packets to host $i are dropped" "(eth0 10.77.0." talks deaf "$i"
    hear "$i"
done
start "${decode[@]}"
ends "packets are dropped both ways" "(eth0 10.77.0." goes_on deaf_both
ok "one of the two is named, with its rank, step and silence" either_lost
hear_both
again
moments=${LONG:+"0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.5"}
for t in ${moments:-0.3}; do
    start "${decode[@]}"
    ends "cut $t s after the start" "$h1" "after $t" unplug
    plug
    [ -n "${LONG-}" ] || continue
    start "${decode[@]}"
    ends "packets are dropped $t s after the start" "$h1" "after $t" deaf 0
    hear 0
done
again

# --- a short one is none ---

start "${decode[@]}"
for ((i = 0; i < 1000; i++)); do talks && break; sleep 0.01; done
unplug
sleep 1
plug
sleep 1.5 # 2.5 s after the cut it would have been told
before=$(stat -c %s "$t_dir/out")
for ((i = 0; i < 150; i++)); do { [ "$(stat -c %s "$t_dir/out")" -gt "$before" ] || ! kill -0 $job 2>/dev/null; } && break; sleep 0.01; done
if kill -0 $job 2>/dev/null && [ "$(stat -c %s "$t_dir/out")" -gt "$before" ]; then t_pass "a second without the wire is survived"; else t_fail "a second without the wire is not survived: $(cat "$t_dir/err")"; fi
kill -9 $job
wait $job 2>/dev/null
ok "who kills the command kills the job" nothing_left 150

# --- half open: the other host has lost all that it knew ---

kill_rank() { kill -SEGV "$(of "$1")"; }
reset() {
    unplug
    until [ "$(host 0 cat /sys/class/net/eth0/operstate)" != up ]; do sleep 0.02; done
    ip netns pids "$h1" | xargs -r kill -9
    plug
}
start "${decode[@]}"
ends "the other host starts anew" "host $h1: " talks reset
again

# --- ssh over the wire: the launcher is on the first host ---

ip netns exec "$h1" tests/t_wire_ssh.py --serve 10.77.0.2 >"$t_dir/serving" 2>&1 &
until grep -q serving "$t_dir/serving" || ! kill -0 $!; do sleep 0.02; done
beside=$TANDEM_SSH
TANDEM_SSH=$(realpath tests/t_wire_ssh.py)
run_here=(ip netns exec "$h0")
again
start "${decode[@]}" --port 41000 -n 4 # a port for each rank is tried, and both ends go on with the same one
ends "with fixed ports, a rank that dies" "host $h1: rank 3 " talks kill_rank 3
start "${decode[@]}"
ends "cut in decode, and ssh with it" "host $h1: nothing was heard of it at $h0 for 2." talks unplug
plug
start "${decode[@]}"
ends "packets are dropped both ways, and ssh's with them" "host $h1: " goes_on deaf_both
ok "the other host is named, with its rank, step and silence" lost 1 0
hear_both
# The launcher is on one of the hosts: ssh is only what started the other's agent.
talk=(run "$model" -p hi --ignore-eos --max-tokens 30 --seed 1)
"$TANDEM" "${talk[@]}" --threads 1 >"$t_dir/alone" 2>"$t_dir/err"
start "${talk[@]}" --link 10gbit,8ms # seven exchanges a token: some two seconds, however fast the machine is
for ((i = 0; i < 1000; i++)); do talks && break; sleep 0.01; done
ok "ssh is killed" pkill -KILL -P $job -f t_wire_ssh
status=0
wait $job || status=$?
if [ $status != 0 ] || ! cmp -s "$t_dir/alone" "$t_dir/out"; then t_fail "a job without its ssh: status $status: $(cat "$t_dir/err")"; else t_pass "a job goes on without its ssh, and says the same"; fi
ok "one line tells of it" test "$(grep -vc "prompt tokens" "$t_dir/err")" = 1
contains "and names the host" "$(cat "$t_dir/err")" "host $h1: the ssh connection to it has ended; the job goes on without it"
ok "nothing is left of it" nothing_left
start "${decode[@]}"
for ((i = 0; i < 1000; i++)); do talks && break; sleep 0.01; done
pkill -KILL -P $job -f t_wire_ssh
for ((i = 0; i < 300; i++)); do grep -q "has ended" "$t_dir/err" && break; sleep 0.01; done
ends "without ssh, a rank that dies" "host $h1: rank 1 " talks kill_rank 1
# A second call that takes longer than the command, and kills the agent all the same.
printf '#!/bin/sh\n[ ! -e %q ] || sleep 1.5\nexec %q "$@"\n' "$t_dir/is_slow" "$TANDEM_SSH" >"$t_dir/slow_ssh"
chmod +x "$t_dir/slow_ssh"
stop_slowly() { touch "$t_dir/is_slow" && kill -STOP "$(agent_of 1)"; }
TANDEM_SSH=$t_dir/slow_ssh start "${decode[@]}"
ends "an agent is stopped, and ssh is slow" "; its rank 1 was at step " talks stop_slowly
again
if [ -n "${LONG-}" ]; then
    start_chat
    ends "cut while idle, and ssh with it" "host $h1: " waits unplug
    plug
    start "${decode[@]}"
    ends "the other host hears nothing, ssh neither" "host $h1: " talks deaf 1
    hear 1
    # Until a host is reached by ssh 10 s hold, while it looks at its copy of the bundle 15, until its agent's first word 20; an agent that was just started hears only what comes that way, and ends after 30.
    within=21000 gone=1700
    for t in $moments; do
        start "${decode[@]}"
        ends "cut $t s after the start, and ssh with it" "$h1" "after $t" unplug
        plug
    done
    within=4000 gone=150
fi
again
TANDEM_SSH=$beside
run_here=()

# --- slow is not dead ---

hobble() { # RANK SECONDS: it gets a fifth of its time, for so long at most, but no longer than a second after that was told
    local pid until told=''
    pid=$(of "$1")
    until=$(($(ms) + $2 * 1000))
    while [ "$(ms)" -lt $until ] && kill -STOP "$pid" 2>/dev/null; do
        sleep 0.04
        kill -CONT "$pid"
        sleep 0.01
        [ -n "$told" ] || ! grep -q "is slow" "$t_dir/err" || { told=1 until=$(($(ms) + 1000)); }
    done
}
python3 -c 'print("hi " * 20000)' >"$t_dir/long"
start run "$model" -f "$t_dir/long" --ctx 70000 --chunk 256 --ledger="$t_dir/ledger.json"
for ((i = 0; i < 1000; i++)); do steps && break; sleep 0.01; done
hobble 1 13
if ! kill -0 $job 2>/dev/null; then t_fail "a slow host: $(cat "$t_dir/err")"; else
    ok "a slow host is told once" test "$(grep -c "is slow" "$t_dir/err")" = 1
    contains "a slow host is named, with a factor" "$(cat "$t_dir/err")" "host $h1 is slow: for 8 s it has worked "
    ok "nothing else is told" test "$(wc -l <"$t_dir/err")" = 1
fi
kill -TERM $job
wait $job 2>/dev/null
ok "the ledger says who waits for whom" python3 -c 'import json, sys
l = json.load(open(sys.argv[1]))
waits = [r["prefill"]["waiting_ns"] / r["prefill"]["step_ns"] for r in l["ranks"]]
assert waits[0] > 0.4 and waits[1] < 0.3 and l["balance"]["prefill"]["slowest_rank"] == 1, (waits, l["balance"])' "$t_dir/ledger.json"

# --- a push that takes longer than agents without a launcher live: who is there already hears of it ---

if [ -n "${LONG-}" ]; then
    cat >"$t_dir/slow.py" <<'PY'
import os, sys, time
sent = 0
while data := os.read(0, 16384):
    os.write(1, data)
    sent += len(data)
    if sent > 65536:
        time.sleep(len(data) / 300000)
PY
    # shellcheck disable=SC2016 # for the shell in there
    printf '#!/bin/bash\ncase "$*" in *%s*) python3 %q | %q "$@"; exit $? ;; esac\nexec %q "$@"\n' "${hosts[0]}" "$t_dir/slow.py" "$TANDEM_SSH" "$TANDEM_SSH" >"$t_dir/slow_ssh"
    chmod +x "$t_dir/slow_ssh"
    # shellcheck disable=SC2016
    ok "a slow push to one of two hosts" env TANDEM_REMOTE_DIR="$t_dir/new" T_WITHIN='mkdir -p "$TANDEM_REMOTE_DIR"; mount -t tmpfs -o mode=0700,size=256m tmpfs "$TANDEM_REMOTE_DIR"' "$TANDEM" eval "$model" --hosts "$hosts_list" --ssh "$t_dir/slow_ssh" --ids "$t_dir/ids"
fi

# --- ten minutes of two hosts, two ranks each, on whatever CPUs there are ---

if [ -n "${LONG-}" ]; then
    start "${decode[@]}" -n 4
    since=$(ms)
    while [ $(($(ms) - since)) -lt 600000 ] && kill -0 $job 2>/dev/null; do sleep 1; done
    if kill -0 $job 2>/dev/null || grep -q "tokens" "$t_dir/err"; then t_pass "ten minutes: it lives"; else t_fail "ten minutes: $(cat "$t_dir/err")"; fi
    ok "ten minutes: no false alarm" test "$(grep -vc "prompt tokens" "$t_dir/err")" = 0
    kill -TERM $job 2>/dev/null
    wait $job 2>/dev/null
fi
hosts_stop
t_end
