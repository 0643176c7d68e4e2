#!/bin/bash
# Steps in two halves, one computed while the other's sums are on their way (runtime/overlap.c), and sums that ranks share (sums.c): the bytes of whole steps on one rank. test-deadline: 180
# shellcheck source=tests/t.sh disable=SC1091,SC2154
. "$(dirname "$0")/t.sh"

# sequences COUNT…: ids in files, and their options in ids.
sequences() {
    ids=()
    local n
    for n in "$@"; do
        seq 3 $((n + 2)) >"$t_dir/ids$n"
        ids+=(--ids "$t_dir/ids$n")
    done
}
# same NAME MODEL ARGUMENTS…: with these, the logits and the text of one rank with the arguments in `both`.
same() {
    local name=$1 model=$2 one=$t_dir/one
    shift 2
    "$TANDEM" eval "$model" "${ids[@]}" --logits "$one.logits" "${both[@]}" --threads 1 >"$one.out" 2>"$t_dir/err" || t_fail "$name: one rank: $(tail -n 1 "$t_dir/err")"
    same_bytes "$name" "$one" "$TANDEM" eval "$model" "${ids[@]}" --logits "$t_dir/logits" "${both[@]}" --backend "$backend" --ledger="$t_dir/ledger.json" "$@"
}
# exchanges: a rank's, by the ledger, of all prompts' steps.
exchanges() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["ranks"][0]["prefill"]["exchanges"])' "$t_dir/ledger.json"; }

backend=tcp
tiny=$t_dir/tiny.gguf
python3 tests/make_model.py "$tiny" --hidden 192 --heads 6 --kv-heads 3 --ffn 352 --layers 3 || exit 1

# A step of all tokens is cut at 48 or 64: inside a sequence, or between two; in steps of 32 the cut falls elsewhere each time; 4 are too few for whole tiles.
both=(--greedy 3)
sequences 90
same "a sequence" "$tiny" -n 2 --threads 2 --overlap 0
whole=$(exchanges)
same "a sequence in halves" "$tiny" -n 2 --threads 2 --overlap 16
halves=$(exchanges)
# the embedding's exchange, two for each layer; the head's stay as they are
if [ "$((halves - whole))" -ge 6 ]; then t_pass "they are exchanged in halves ($whole, $halves)"; else t_fail "$whole exchanges, and $halves in halves"; fi
same "a sequence in halves, with the default of --overlap" "$tiny" -n 3 --threads 1
[ "$(exchanges)" = "$whole" ] && t_pass "90 tokens are too few for the default" || t_fail "$(exchanges) exchanges with the default"
sequences 33 64 1 17
same "four sequences" "$tiny" -n 2 --threads 2 --overlap 2
same "four sequences, three ranks of which one has nothing" "$tiny" --split 3:0:1 --threads 1 --overlap 2
for chunk in 4 32 37; do
    same "four sequences in steps of $chunk" "$tiny" -n 2 --threads 1 --overlap 2 --chunk $chunk
done
for backend in ucx mpi; do
    if has $backend; then
        same "four sequences over $backend" "$tiny" -n 2 --threads 1 --overlap 2
    else
        skip "four sequences over $backend" "$(tail -n 1 "$t_dir/out")"
    fi
done
backend=tcp
same "four sequences over an emulated link" "$tiny" -n 2 --threads 1 --overlap 2 --link 10gbit,20us,jitter=50us

# Shared sums: each rank sends and gets less, in one exchange more for each sum. Ranks with two vectors, or none, shares without a token, and steps of few tokens.
received() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["ranks"][0]["prefill"]["received_bytes"])' "$t_dir/ledger.json"; }
same "three ranks" "$tiny" -n 3 --threads 2 --overlap 0 --scatter 0
whole=$(exchanges) whole_bytes=$(received)
same "three ranks, shared sums" "$tiny" -n 3 --threads 2 --overlap 0 --scatter 1
if [ "$(exchanges)" -ge "$((whole + 6))" ] && [ "$(received)" -lt "$((whole_bytes * 3 / 4))" ]; then t_pass "they are shared ($whole exchanges, $(exchanges); $whole_bytes bytes, $(received))"; else t_fail "not shared: $whole exchanges, $(exchanges); $whole_bytes bytes, $(received)"; fi
same "three ranks, shared sums in halves" "$tiny" -n 3 --threads 1 --overlap 2 --scatter 1
same "two ranks have nothing to share" "$tiny" -n 2 --threads 1 --overlap 2 --scatter 1
same "three ranks of which one has nothing, shared sums in halves" "$tiny" --split 3:0:1 --threads 1 --overlap 2 --scatter 1
same "four ranks of which one has most, shared sums in steps of 5" "$tiny" --split 5:1:1:1 --threads 1 --overlap 2 --scatter 1 --chunk 5
same "shared sums over an emulated link" "$tiny" -n 3 --threads 1 --overlap 2 --scatter 1 --link 10gbit,20us,jitter=50us
backend=shm
same "shared sums over an emulated link, by shared memory" "$tiny" -n 3 --threads 2 --scatter 1 --link 1gbit,20us
for backend in ucx mpi; do
    if has $backend; then
        same "shared sums over $backend" "$tiny" -n 3 --threads 1 --overlap 2 --scatter 1
    else
        skip "shared sums over $backend" "$(tail -n 1 "$t_dir/out")"
    fi
done
backend=tcp

# Everything else that a program may have: a norm over all heads in between, experts with and without shared ones, in both modes, sinks and windows, an embedding from the disk.
sequences 21 8
for setting in f32 auto; do
    both=(--activations "$setting")
    same "a norm over all heads, $setting" tests/golden/families/minimax_m2-kv3 -n 3 --threads 1 --overlap 2
    same "shared experts, $setting" tests/golden/families/glm4_moe-shared2 -n 2 --threads 2 --overlap 2
    same "sinks, windows, interleaved experts, $setting" tests/golden/families/gpt_oss-mxfp4 --split 5:3 --threads 1 --overlap 2
    both=(--activations "$setting" --moe ep)
    same "whole experts, $setting" tests/golden/families/qwen3_moe-e7 -n 2 --threads 1 --overlap 2
    same "whole experts, shared sums, $setting" tests/golden/families/qwen3_moe-e7 -n 3 --threads 1 --overlap 2 --scatter 1
    both=(--activations "$setting")
    same "shared experts, shared sums, $setting" tests/golden/families/glm4_moe-shared2 -n 3 --threads 1 --overlap 2 --scatter 1
    same "biases after the tree, shared sums, $setting" tests/golden/families/gpt_oss-mxfp4 --split 3:3:2 --threads 2 --overlap 0 --scatter 1
done
both=(--embedding disk)
same "an embedding from the disk" tests/golden/llama/kv5-f16-biases-v5 -n 2 --threads 1 --overlap 2
t_end
