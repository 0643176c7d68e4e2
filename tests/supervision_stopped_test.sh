#!/bin/bash
# Who is stopped or frozen, be it a rank, the agent or the launcher, ends the job within 6 s; who is paused by its user does not (DESIGN promise 3).
# The jobs run beside each other, since each takes some seconds. test-deadline: 90
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_supervision.sh disable=SC1091
. "$(dirname "$0")/t_supervision.sh"

declare -A pids marks
# keep NAME CONDITION: from now on this job is looked at from the background, until CONDITION holds of it; others start meanwhile.
keep() {
    pids[$1]=$pid marks[$1]=$mark
    mv "$t_dir/out" "$t_dir/out.$1"
    mv "$t_dir/err" "$t_dir/err.$1"
    {
        local start end=60000
        start=$(ms)
        for ((i = 0; i < 200; i++)); do
            if "$2"; then
                end=$(($(ms) - start))
                break
            fi
            sleep 0.05
        done
        echo $end >"$t_dir/took.$1"
    } &
    pids[wait_$1]=$!
}
# back NAME: after its condition held; $since is such that the time until now is what it took.
back() {
    pid=${pids[$1]} mark=${marks[$1]}
    wait "${pids[wait_$1]}"
    took=$(cat "$t_dir/took.$1")
    since=$(($(ms) - took))
    cp "$t_dir/err.$1" "$t_dir/err"
}
only_launcher() { [ "$(processes)" = "$pid" ]; }

run_job 2
kill -STOP "$(process_of 'rank --rank 1')"
keep rank gone
run_job 2
kill -STOP "$(process_of agent)"
keep agent gone
run_job 2
kill -STOP "$pid"
keep launcher only_launcher
# As shells with job control start it: where nobody could continue it, the kernel heeds no Ctrl-Z, and nor do we.
as=(python3 -c 'import os, sys; os.setpgid(0, 0); os.execvp(sys.argv[1], sys.argv[1:])')
run_job 2
kill -TSTP "$pid"
keep paused true
as=(setsid)
run_job 2
kill -TSTP "$pid"
keep orphan true
as=()

# One thread held by a debugger, while the process as such runs: what a deadlock looks like from outside.
run_job 2
python3 tests/hold.py "$(process_of 'rank --rank 1')" >"$t_dir/held" 2>&1 &
holder=$!
held() { [ -s "$t_dir/held" ]; }
wait_for held
keep frozen gone

for who in rank agent; do
    back $who
    ends "$who stopped" 6000 "$who" "stopped"
done

back frozen
if [ "$(cat "$t_dir/held")" = held ]; then
    ends "a rank whose main thread hangs" 6000 "rank 1" "frozen" "step"
else
    kill -9 "$pid"
    skip "a rank whose main thread hangs" "no debugger may attach here: $(cat "$t_dir/held")"
fi
kill "$holder" 2>/dev/null

back launcher
if [ "$took" -le 6000 ]; then t_pass "the ranks of a stopped launcher are gone in time"; else t_fail "the ranks of a stopped launcher: $took ms"; fi
since=$(ms)
kill -CONT "$pid"
wait_for gone
cp "$t_dir/err.launcher" "$t_dir/err"
ends "launcher stopped, and continued after its ranks were killed" 1500 "launcher" "stopped"

state() { sed 's/.*) //' "/proc/$pid/stat" | cut -c1; }
back orphan
if [ "$(state)" != T ]; then t_pass "Ctrl-Z where nobody could continue it stops nothing"; else t_fail "Ctrl-Z stopped a launcher that nobody could continue"; fi
kill -INT "$pid"
wait_for gone

# Long past the time after which silence would be death.
back paused
if [ "$(state)" = T ]; then t_pass "a job that its user paused stands still"; else t_fail "Ctrl-Z: state $(state)"; fi
before=$(stat -c %s "$t_dir/out.paused")
kill -CONT "$pid"
grew() { [ "$(stat -c %s "$t_dir/out.paused")" -gt $((before + 200)) ]; }
ok "a job that its user paused (Ctrl-Z) goes on" wait_for grew
kill -INT "$pid"
wait_for gone
wait "$pid"
status=$?
if [ $status = 130 ]; then t_pass "Ctrl-C: status 130, as shells expect"; else t_fail "Ctrl-C: status $status"; fi
contains "Ctrl-C: the ranks stopped in peace" "$(cat "$t_dir/err.paused")" "interrupted"
since=$(ms)
nothing_left "nothing is left of it"

t_end
