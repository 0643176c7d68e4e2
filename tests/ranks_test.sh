#!/bin/bash
# Ranks over every backend, over an emulated link, and started by somebody else's mpiexec: the same bytes as one rank, and nothing else on stdout. test-deadline: 120
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. "$(dirname "$0")/t.sh"

model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 || exit 1
seq 3 40 >"$t_dir/ids"
one=$t_dir/one
"$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$one.logits" --threads 1 >"$one.out" || exit 1

# same NAME ARGUMENTS…: an eval with these gives the bytes of one rank.
same() {
    local name=$1
    shift
    same_bytes "$name" "$one" "$@" eval "$model" --ids "$t_dir/ids" --greedy 5 --logits "$t_dir/logits" --threads 1 "${more[@]}"
}

for backend in shm tcp ucx mpi; do
    if ! has $backend; then
        skip "ranks over $backend" "$(tail -n 1 "$t_dir/out")"
        continue
    fi
    for n in 2 3; do
        more=(-n "$n" --backend "$backend")
        same "$n ranks over $backend" "$TANDEM"
    done
done
# The first to leave must not be taken for lost by one to whom the end is still on its way.
for i in 1 2 3 4 5 6; do
    more=(-n 4 --backend tcp)
    same "four ranks leave in peace, time $i" "$TANDEM"
done
more=(-n 2 --link "10gbit,20us,jitter=5us")
same "an emulated link" "$TANDEM"
more=(-n 3 --backend tcp --link wifi)
same "a preset of a link, over tcp" "$TANDEM"
more=(--split 3:0:1 --backend tcp)
same "an uneven split with an empty share, over tcp" "$TANDEM"

if command -v mpiexec.hydra >/dev/null; then
    for backend in shm tcp mpi; do
        has $backend || continue
        more=(--backend "$backend")
        same "two ranks that mpiexec.hydra started, over $backend" mpiexec.hydra -n 2 "$TANDEM" rank
    done
    more=()
    TANDEM_HOSTS=nobody.invalid same "TANDEM_HOSTS means nothing under mpiexec" mpiexec.hydra -n 2 "$TANDEM" rank
    same "three ranks that mpiexec.hydra started" mpiexec.hydra -n 3 "$TANDEM" rank
    more=(-n 3)
    out=$(mpiexec.hydra -n 2 "$TANDEM" rank eval "$model" --ids "$t_dir/ids" -n 3 2>&1)
    contains "-n that contradicts mpiexec" "$out" "-n 3, but 2 ranks were started"
    contains "--hosts under mpiexec" "$(mpiexec.hydra -n 2 "$TANDEM" rank eval "$model" --ids "$t_dir/ids" --hosts localhost 2>&1)" "whoever started these ranks has chosen their hosts"
    # A rank dies: whoever started the ranks ends the job.
    : >"$t_dir/out" # the last one's
    mpiexec.hydra -n 2 "$TANDEM" rank run "$model" --threads 1 -p hi --ignore-eos --max-tokens 1000000 --ctx 2000000 >"$t_dir/out" 2>"$t_dir/err" &
    job=$!
    for ((i = 0; i < 1000; i++)); do [ -s "$t_dir/out" ] && break; sleep 0.01; done
    victim=$(pgrep -n -f "tandem rank run $model")
    kill -9 "$victim"
    for ((i = 0; i < 300; i++)); do kill -0 $job 2>/dev/null || break; sleep 0.01; done
    wait $job
    status=$?
    if [ $status != 0 ] && [ $i -lt 300 ] && ! pgrep -f "tandem rank run $model" >/dev/null; then t_pass "a death under mpiexec"; else t_fail "a death under mpiexec: status $status after $((i * 10)) ms"; fi
else
    skip "ranks that mpiexec.hydra started" "no mpiexec.hydra"
fi

fails "an unknown backend" "$TANDEM" run "$model" -n 2 --backend pigeon -p hi
contains "an unknown backend is named" "$("$TANDEM" run "$model" -n 2 --backend pigeon -p hi 2>&1)" "shm, tcp, ucx and mpi are known"
"$TANDEM" run "$model" -n 2 --link cx8 -p hi >"$t_dir/out" 2>&1
status=$?
contains "an unknown link, and the known ones" "$status $(cat "$t_dir/out")" "2 tandem run: --link cx8: no preset has this name (cx7, cx7-one-rail, 10gbe, wifi)"
"$TANDEM" run "$model" -n 2 --link 5parsec -p hi >"$t_dir/out" 2>&1
contains "a link that makes no sense" "$? $(cat "$t_dir/out")" "2 tandem run: --link"

# --- bench comm ---

"$TANDEM" bench comm --peer none --max 4096 --blocks 2 --json >"$t_dir/comm.json"
# shellcheck disable=SC2016
ok "bench comm --json" python3 -c 'import json,sys; r=json.load(open(sys.argv[1]))["runs"]; s=r[0]["sizes"]; assert [x["bytes"] for x in s]==[8<<i for i in range(10)] and all(x["us"]>0 for x in s), r' "$t_dir/comm.json"
"$TANDEM" bench comm --peer none --max 4096 --blocks 2 --svg >"$t_dir/comm.svg"
ok "bench comm --svg" python3 -c 'import sys,xml.etree.ElementTree as t; t.parse(sys.argv[1])' "$t_dir/comm.svg"
out=$("$TANDEM" bench comm --peer none --max 65536 --blocks 3 --link 10gbit,50us)
contains "bench comm tells a link's effective figures" "$out" "asked 10 Gbit/s and 50.000 us, effective"
if has mpi; then
    out=$("$TANDEM" bench comm --max 64 --blocks 2)
    contains "bench comm beside MPICH" "$out" "tuned: UCX_TLS=posix,self"
else
    skip "bench comm beside MPICH" "no MPICH"
fi

# --- bench scale ---

scale() { "$TANDEM" bench scale "$model" -n 1,2 --rounds 1 --repeat 1 --prefill 32 --decode 4 "$@" 2>"$t_dir/err"; }
scale --link 10gbit,5us --json >"$t_dir/scale.json"
ok "bench scale --json" python3 -c 'import json,sys; c=json.load(open(sys.argv[1]))["counts"]; assert [x["ranks"] for x in c]==[1,2] and all(x["decode_tok_s"]>0 and x["prefill_tok_s"]>0 for x in c) and c[0]["decode_efficiency"]==1 and c[0]["decode_wire_share"]==0 and 0<c[1]["decode_wire_share"]<1 and "link" in c[1], c' "$t_dir/scale.json"
scale --svg >"$t_dir/scale.svg"
ok "bench scale --svg" python3 -c 'import sys,xml.etree.ElementTree as t; t.parse(sys.argv[1])' "$t_dir/scale.svg"
contains "bench scale" "$(scale)" "efficiency"
out=$("$TANDEM" bench scale "$model" -n 1,0 2>&1)
contains "bench scale: counts that make no sense" "$? $out" "2 tandem bench scale: -n 1,0: wants up to"

t_end
