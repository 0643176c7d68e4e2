#!/bin/bash
# A hundred times (LONG=1; few otherwise): one process of a job, drawn by a seed, is killed, crashes or is stopped, at a moment drawn by the same seed. The command has returned within
# 1 s (6 s where it was stopped), non-zero, with the right words, and nothing is left. TANDEM_TEST_SEED repeats one draw. test-deadline: 1500
# shellcheck source=tests/t.sh disable=SC1091,SC2154,SC2034
. "$(dirname "$0")/t.sh"
# shellcheck source=tests/t_supervision.sh disable=SC1091
. "$(dirname "$0")/t_supervision.sh"

python3 tests/make_model.py "$t_dir/large.gguf" --hidden 1024 --heads 16 --kv-heads 4 --ffn 4096 --layers 4 --hollow || exit 1
head -c 60000 /dev/zero | tr '\0' 'a' >"$t_dir/prompt"

first=${TANDEM_TEST_SEED:-1} last=${TANDEM_TEST_SEED:-$([ -n "${LONG:-}" ] && echo 100 || echo 3)}
only_launcher() { [ "$(processes)" = "$pid" ]; }

# victim_pid: of whoever was drawn, once it is there.
find_victim() {
    if [ "$victim" = launcher ]; then echo "$pid"; elif [ "$victim" = agent ]; then process_of agent; else process_of "rank --rank ${victim#rank }"; fi
}
victim_is_there() { find_victim >"$t_dir/victim"; }

for ((seed = first; seed <= last; seed++)); do
    RANDOM=$seed
    victims=(launcher agent "rank 0" "rank 1" "rank 2")
    signals=(KILL SEGV STOP)
    phases=(start load prefill decode shutdown)
    victim=${victims[RANDOM % 5]} signal=${signals[RANDOM % 3]} phase=${phases[RANDOM % 5]} late=$(printf '0.%03d' $((RANDOM % 80)))
    name="seed $seed: SIG$signal to the $victim $late s into $phase"
    case $phase in
    start) launch 3 "$model" --threads 1 --ctx 400000 ;;
    load) launch 3 "$t_dir/large.gguf" --threads 1 ;;
    prefill)
        prompt=(-f "$t_dir/prompt")
        launch 3 "$model" --threads 1 --ctx 400000
        prompt=(-p hi)
        ;;
    decode) launch 3 "$model" --threads 1 --ctx 400000 && wait_for talks ;;
    shutdown) launch 3 "$model" --threads 1 --ctx 400000 --max-tokens 20 ;;
    esac
    wait_for victim_is_there
    if [ "$victim" = launcher ] && [ "$signal" = STOP ]; then wait_for process_of agent >/dev/null; fi # without one, it is only late
    if [ "$phase" = shutdown ]; then # twenty tokens after the first come soon, and then the end
        until [ -s "$t_dir/out" ] || gone; do :; done
        late=0.0${late#0.}
    fi
    sleep "$late"
    since=$(ms)
    if ! kill "-$signal" "$(cat "$t_dir/victim")" 2>/dev/null; then # it had left already, in peace
        if [ "$phase" != shutdown ]; then t_fail "$name: it is gone"; fi
        wait "$pid"
        since=$(ms)
        nothing_left "$name (too late)"
        continue
    fi
    limit=1000
    [ "$signal" = STOP ] && limit=6000
    if [ "$victim" = launcher ] && [ "$signal" = STOP ]; then
        end=$((since + 6500))
        until only_launcher || [ "$(ms)" -gt $end ]; do sleep 0.02; done
        took=$(($(ms) - since))
        [ $took -le 6000 ] || t_fail "$name: its ranks lived for $took ms"
        since=$(ms)
        kill -CONT "$pid"
        limit=1000
    fi
    if [ "$phase" = shutdown ]; then # it may have won the race
        wait_for gone || kill -9 "$pid"
        took=$(($(ms) - since))
        wait "$pid"
        if [ $took -gt $limit ]; then t_fail "$name: took $took ms"; else nothing_left "$name" $((limit + 1500)); fi
        continue
    fi
    words=("$victim")
    [ "$victim" = launcher ] && words=()
    ends "$name" $limit "${words[@]}"
done

t_end
