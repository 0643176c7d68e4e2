#!/bin/bash
# Who may join a job of several hosts: strangers at its ports, at start-up and in a run, disturb nothing and change no bit; nothing listens but at the decided addresses; the job's key is on
# no command line and in no environment. With LONG=1 each kind of stranger stays for longer. test-deadline: 180
# shellcheck disable=SC2154 # hosts, hosts_why: set by t_hosts.sh
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_hosts.sh disable=SC1091
. "$(dirname "$0")/t_hosts.sh"

# The third one is the strangers'.
if ! hosts_start 3; then
    skip "joining" "$hosts_why"
    t_end
fi
TANDEM=$(realpath "$TANDEM")
pair=${hosts[0]},${hosts[1]}
model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 --context 400000 || exit 1
seq 3 40 >"$t_dir/ids"
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/one.logits" --threads 1 >"$t_dir/out" || exit 1

intruders=()
# intrude HOST HOW SECONDS: at the ports of the first host's ranks and agent
intrude() {
    ip netns exec "${hosts[$1]}" python3 tests/intruder.py "$2" 10.77.0.1 41000 41001 "$3" >"$t_dir/did.$1.$2" 2>&1 &
    intruders+=($!)
}
intruders_go() {
    kill "${intruders[@]}" 2>/dev/null
    wait "${intruders[@]}" 2>/dev/null
    intruders=()
}
# n_lines: of the log, about strangers
n_lines() { grep -c "dropped" "$t_dir/err"; }
same() {
    local name=$1
    shift
    rm -f "$t_dir/logits"
    if ! "$TANDEM" eval "$model" --hosts "$pair" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 --port 41000 "$@" >"$t_dir/out" 2>"$t_dir/err"; then
        t_fail "$name: $(cat "$t_dir/err")"
    elif ! cmp -s "$t_dir/one.logits" "$t_dir/logits"; then
        t_fail "$name: other bits"
    elif [ "$(n_lines)" -gt 12 ]; then
        t_fail "$name: $(n_lines) lines of log: $(head -n 20 "$t_dir/err")"
    else
        t_pass "$name ($(n_lines) lines of log)"
    fi
}

# --- firewalls among three ---

three() { "$TANDEM" run "$model" --hosts "$hosts_list" -p hi --ignore-eos --max-tokens 300000 --ctx 400000 --threads 1 --port 41000 >"$t_dir/out" 2>"$t_dir/err"; }
if hosts_rule -4 0 blackhole ipproto udp && hosts_rule -6 0 blackhole ipproto udp; then
    three
    contains "UDP is dropped: the rule admits all ports" "$? $(cat "$t_dir/err")" "on ${hosts[1]}: sudo ufw allow from 10.77.0.1 to any port 41000:41001 proto udp"
    hosts_no_rule -4 0
    hosts_no_rule -6 0
    hosts_rule -4 0 blackhole ipproto udp dport 41001
    three
    contains "only one port is open: who is not heard" "$? $(cat "$t_dir/err")" "1 "
    contains "only one port is open: why" "$(cat "$t_dir/err")" "host ${hosts[2]}: nothing was ever heard of it at ${hosts[0]} (eth0 10.77.0.1 - eth0 10.77.0.3); a firewall? on ${hosts[0]}: sudo ufw allow from 10.77.0.3 to any port 41001 proto udp"
    hosts_no_rule -4 0
else
    skip "firewalls" "this kernel has no rules by protocol"
fi

# --- strangers while a job starts ---

rounds=${LONG:+5}
for how in scan slow garbage claim udp; do
    intrude 2 $how 60
    intrude 1 $how 60 # from where a rank lives
    sleep 0.3
    for ((i = 0; i < ${rounds:-1}; i++)); do same "start-up: $how" -n 4; done
    intruders_go
done
for how in scan slow garbage claim udp; do intrude 2 $how 60; done
same "start-up: all at once"
intruders_go

# --- and in a run ---

"$TANDEM" run "$model" --hosts "$pair" --threads 1 --ctx 400000 -p hi --ignore-eos --max-tokens 100000 --port 41000 --seed 1 >"$t_dir/run" 2>"$t_dir/run.err" &
job=$!
until [ -s "$t_dir/run" ] || ! kill -0 $job 2>/dev/null; do sleep 0.02; done
ranks=$(pgrep -f "tandem rank --rank [01] .*$model")
for how in scan slow garbage claim udp; do intrude 2 $how ${LONG:+4}${LONG:-2}; done
# Meanwhile: what listens, and where.
for i in 0 1; do
    open=$(host "$i" ss -Hltun | awk '{print $5}' | grep -v "^10\.77\.0\.$((i + 1)):4100[0-9]\$" | tr '\n' ' ')
    if [ -z "${open// /}" ]; then t_pass "host $i listens only at decided addresses"; else t_fail "host $i listens at $open"; fi
done
for pid in "${intruders[@]}"; do wait "$pid"; done
intruders=()
before=$(wc -c <"$t_dir/run")
sleep 0.5
if ! kill -0 $job 2>/dev/null; then
    t_fail "a run among strangers: $(cat "$t_dir/run.err")"
elif [ "$(pgrep -f "tandem rank --rank [01] .*$model")" != "$ranks" ]; then
    t_fail "a run among strangers: other ranks"
elif [ "$(wc -c <"$t_dir/run")" -le "$before" ]; then
    t_fail "a run among strangers stands still"
else
    t_pass "a run among strangers goes on (udp: $(cat "$t_dir/did.2.udp") datagrams)"
fi
kill -TERM $job
wait $job
"$TANDEM" run "$model" --threads 1 --ctx 400000 -p hi --ignore-eos --max-tokens 3000 --seed 1 >"$t_dir/alone" 2>"$t_dir/err"
n=$(stat -c %s "$t_dir/alone")
[ "$(stat -c %s "$t_dir/run")" -gt "$n" ] || n=$(stat -c %s "$t_dir/run")
ok "and says the same as one rank" cmp -n $((n - 1)) "$t_dir/alone" "$t_dir/run"

# --- the key ---

# Random numbers of the job's key that the test knows, and a sign that they were asked for.
cat >"$t_dir/known.c" <<'END'
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>
void randombytes_buf(void *buf, const size_t size);
void randombytes_buf(void *buf, const size_t size)
{
    if (size != 32) {
        if (getrandom(buf, size, 0) < 0) abort();
        return;
    }
    memcpy(buf, "KnownKnownKnownKnownKnownKnown32", 32);
    const int fd = open(getenv("T_ASKED"), O_WRONLY | O_CREAT, 0644);
    if (fd >= 0) close(fd);
}
END
# shellcheck disable=SC2086 # CC may be two words
if ${CC:-cc} -shared -fPIC -o "$t_dir/known.so" "$t_dir/known.c" 2>/dev/null; then
    T_ASKED=$t_dir/asked LD_PRELOAD=$t_dir/known.so "$TANDEM" run "$model" --hosts "$pair" -n 4 --threads 1 --ctx 400000 -p hi --ignore-eos --max-tokens 100000 >"$t_dir/run" 2>"$t_dir/err" &
    job=$!
    : >"$t_dir/seen"
    for ((i = 0; i < 60; i++)); do # from the start on
        cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ >>"$t_dir/seen" 2>/dev/null
        [ -s "$t_dir/run" ] && [ $i -gt 20 ] && break
        sleep 0.02
    done
    pgrep -f "tandem rank --rank [0-3] .*$model" >"$t_dir/ranks"
    kill -TERM $job
    wait $job
    ok "the key was drawn" test -e "$t_dir/asked"
    ok "ranks were looked at" test "$(wc -l <"$t_dir/ranks")" = 4
    ok "no command line and no environment has it" python3 - "$t_dir/seen" <<'END'
import base64, sys
seen, key = open(sys.argv[1], "rb").read(), b"KnownKnownKnownKnownKnownKnown32"
assert b"tandem\0rank\0--rank" in seen and b"--key-fd" in seen
for form in (key, key[:12], key.hex().encode(), key.hex().upper().encode(), base64.b64encode(key)[:40]):
    assert form not in seen, form
END
else
    skip "the key" "no compiler"
fi
hosts_stop
t_end
