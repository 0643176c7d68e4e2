#!/bin/bash
# Whoever dies, the job ends: at once, non-zero, with the name of the culprit, and nothing stays (known-faults F18, F19; DESIGN promise 3).
# test-deadline: 120
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"

# shellcheck source=tests/t_supervision.sh disable=SC1091
. "$(dirname "$0")/t_supervision.sh"
python3 tests/make_model.py "$t_dir/large.gguf" --hidden 1024 --heads 16 --kv-heads 4 --ffn 4096 --layers 4 --hollow || exit 1

# --- what the processes hold ---

run_job 3
leaks=
for p in $(processes); do
    [ "$p" = "$pid" ] && continue
    for fd in "/proc/$p/fd"/*; do
        case $(readlink "$fd") in
        "$t_dir/start" | "$t_dir/out") leaks="$leaks $p:$fd" ;;
        esac
    done
    grep -q /dev/shm "/proc/$p/maps" && leaks="$leaks $p:/dev/shm"
done
# rank 1 has no socket at all, rank 0 one: to the front end
sockets() { find "/proc/$(process_of "$1")/fd" -lname 'socket:*' | wc -l; }
[ "$(sockets 'rank --rank 0') $(sockets 'rank --rank 1') $(sockets agent)" = "1 0 1" ] || leaks="$leaks sockets"
if [ -z "$leaks" ]; then t_pass "ranks inherit nothing of the user's"; else t_fail "leaked:$leaks"; fi

# --- deaths ---

since=$(ms)
kill -9 "$(process_of 'rank --rank 2')"
ends "rank 2 of 3 killed" 1000 "rank 2" "signal 9" "at step"
for r in 0 1; do
    run_job 3
    since=$(ms)
    kill -9 "$(process_of "rank --rank $r")"
    ends "rank $r of 3 killed" 1000 "rank $r" "signal 9" "at step"
    run_job 2
    since=$(ms)
    kill -SEGV "$(process_of "rank --rank $r")"
    ends "rank $r of 2 crashed" 1000 "rank $r" "signal 11" "at step"
done

run_job 2
since=$(ms)
kill -9 "$(process_of agent)"
ends "agent killed" 1000 "agent" "signal 9"

run_job 2
since=$(ms)
kill -9 "$pid"
ends "launcher killed" 1000

run_job 2
since=$(ms)
kill -9 "$pid" "$(process_of agent)"
ends "launcher and agent killed together" 1000

run_job 2
since=$(ms)
kill -INT "$pid"
kill -INT "$pid"
ends "interrupted twice" 1000

run_job 2
since=$(ms)
kill -TERM "$pid"
ends "terminated" 1000

run_job 2
since=$(ms)
kill -TERM "$(process_of agent)"
ends "agent terminated" 1000 "agent"

run_job 3
kill -STOP "$(process_of agent)"
since=$(ms)
kill -9 "$pid"
ends "agent stopped, launcher killed" 1000

run_job 2
kill -STOP "$(process_of 'rank --rank 0')" "$(process_of agent)"
since=$(ms)
kill -INT "$pid"
ends "agent and a rank stopped, launcher interrupted" 1000

launch 1 "$model" --ctx 400000
wait_for talks
since=$(ms)
kill -TERM "$pid"
ends "one rank terminated" 1000

# --- before the first token ---

launch 2 "$t_dir/large.gguf" --threads 1
wait_for process_of "rank --rank 1" >"$t_dir/rank"
since=$(ms)
kill -9 "$(cat "$t_dir/rank")"
ends "rank 1 killed as soon as it is there" 1000 "rank 1" "signal 9" "at step 0"

loads() { # a rank with memory of its own, beyond what a start takes
    local kb
    kb=$(sed -n 's/^RssAnon:[^0-9]*\([0-9]*\).*/\1/p' "/proc/$(process_of 'rank --rank 0')/status" 2>/dev/null)
    [ "${kb:-0}" -gt 20000 ]
}
launch 2 "$t_dir/large.gguf" --threads 1
wait_for loads
since=$(ms)
kill -9 "$(process_of 'rank --rank 1')"
ends "rank 1 killed while it loads" 1000 "rank 1" "signal 9" "at step 0"
launch 2 "$t_dir/large.gguf" --threads 1
wait_for loads
since=$(ms)
kill -9 "$pid"
ends "launcher killed while the ranks load" 1000

# --- a terminal that waits for a line ---

mark=t$$-chat
cat >"$t_dir/chat.py" <<'PY'
import os, pty, signal, subprocess, sys, time
tandem, model, mark = sys.argv[1:]
text = b""
def seen(what):
    global text
    while what not in text:
        text += os.read(fd, 4096)
    text = text[text.index(what) + len(what):]
pid, fd = pty.fork()
if pid == 0:
    os.environ["TANDEM_TEST_MARK"] = mark
    os.execv(tandem, ["tandem", "run", model, "-n", "2", "--max-tokens", "5"])
seen(b"> ")
os.write(fd, b"hello\n")
seen(b"stopped: ")
seen(b"> ")
rank = subprocess.run(f"grep -lsz '^TANDEM_TEST_MARK={mark}$' /proc/[0-9]*/environ | cut -d/ -f3 | while read p; do tr '\\0' ' ' </proc/$p/cmdline | grep -q '^tandem rank --rank 1' && echo $p; done", shell=True, capture_output=True, text=True).stdout
start = time.monotonic()
os.kill(int(rank), signal.SIGKILL)
try:
    while True:
        more = os.read(fd, 4096)
        if not more: break
        text += more
except OSError:
    pass
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
took = time.monotonic() - start
print(f"status {status} after {took:.3f} s: {text.decode(errors='replace').strip()}")
sys.exit(0 if status == 1 and took < 1 and b"rank 1" in text and b"signal 9" in text else 1)
PY
if python3 -c 'import os; os.openpty()' 2>"$t_dir/pty"; then
    ok "a rank dies while a chat waits for its user" timeout 10 python3 "$t_dir/chat.py" "$TANDEM" "$model" "$mark"
    since=$(ms)
    nothing_left "nothing is left of that chat"
else # no devpts is mounted, as in a bare chroot
    skip "a rank dies while a chat waits for its user" "no terminal can be had here: $(tail -n 1 "$t_dir/pty")"
    skip "nothing is left of that chat" "there was none"
fi

# --- stopped ---

# A rank that is stopped and goes on is late, not dead; one that stays stopped ends the job. Nobody waits here for its 5 s: other tests run meanwhile.
run_job 2
rank0=$(process_of 'rank --rank 0')
kill -STOP "$rank0"
sleep 0.3
kill -CONT "$rank0"
sleep 0.1
before=$(stat -c %s "$t_dir/out")
grew() { [ "$(stat -c %s "$t_dir/out")" -gt "$before" ]; }
ok "a rank that was stopped for a moment goes on" wait_for grew
cp "$t_dir/out" "$t_dir/out.stopped"
kill -STOP "$(process_of 'rank --rank 1')"
stopped_pid=$pid stopped_mark=$mark
mv "$t_dir/err" "$t_dir/err.stopped" # the job still writes there

# --- little room ---

cpu=$(taskset -pc $$ | sed 's/.*: *\([0-9]*\).*/\1/')
ok "four ranks on one CPU make progress" timeout 20 taskset -c "$cpu" "$TANDEM" run "$model" -n 4 --threads 1 -p hi --ignore-eos --max-tokens 50

if unshare -rm true 2>/dev/null; then
    # shellcheck disable=SC2016
    ok "a /dev/shm of 64 KB that is wiped in between" timeout 20 unshare -rm bash -c \
        'mount -t tmpfs -o size=64k none /dev/shm && touch /dev/shm/theirs && { "$1" run "$2" -n 3 -p hi --ignore-eos --max-tokens 1000 & sleep 0.2; ls /dev/shm; rm -f /dev/shm/*; wait $!; }' \
        - "$TANDEM" "$model"
else
    skip "a /dev/shm of 64 KB that is wiped in between" "no mount namespaces here"
fi

# 20 times everything killed at some moment of its life, and a start after it.
since=$(ms)
for i in {1..20}; do
    launch 3 "$model" --threads 1 --ctx 400000
    sleep "0.0$((i % 10))$((i % 7))"
    processes | xargs -r kill -9 2>/dev/null
    wait "$pid"
    wait_for none_left || break
done
since=$(ms)
nothing_left "20 times everything killed"
ok "and then it runs" timeout 20 "$TANDEM" run "$model" -n 3 -p hi --ignore-eos --max-tokens 5

pid=$stopped_pid mark=$stopped_mark
mv "$t_dir/err.stopped" "$t_dir/err"
wait_for gone
since=$(ms)
ends "a rank that stays stopped" 1000 "rank 1" "stopped" "step"

t_end
