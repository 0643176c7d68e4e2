#!/bin/bash
# `tandem plan`: what fits where, by the planner that a run uses. test-deadline: 180
. tests/t.sh

# refuses NAME STATUS PART ARGUMENTS…
refuses() {
    local name=$1 want=$2 part=$3 status=0 said
    shift 3
    said=$("$TANDEM" plan "$@" 2>&1) || status=$?
    if [ $status = "$want" ] && [ "$(printf '%s\n' "$said" | wc -l)" = 1 ]; then t_pass "$name"; else t_fail "$name: status $status: $said"; fi
    contains "$name: says why" "$said" "$part"
}
# asks NAME EXPRESSION ARGUMENTS…: a Python expression over the JSON, which is called p
asks() {
    local name=$1 expression=$2
    shift 2
    if "$TANDEM" plan "$@" --json >"$t_dir/json" 2>"$t_dir/.err" && python3 -c "
import json, sys
p = json.load(open(sys.argv[1]))
sys.exit(not ($expression))" "$t_dir/json"; then t_pass "$name"; else
        t_fail "$name: $expression"
        head -c 2000 "$t_dir/.err" "$t_dir/json"
    fi
}

export TMPDIR=$t_dir
refuses "no machine" 2 "--on which MACHINE" llama-3.1-8b
refuses "no model" 2 "MODEL" --on gb10
refuses "a model that is not there" 1 "llama-9" llama-9 --on gb10
refuses "an unknown machine" 1 "gb11" llama-3.1-8b --on gb11
refuses "too many boxes" 1 "1 to " llama-3.1-8b --on 99xgb10
refuses "no boxes" 1 "1 to " llama-3.1-8b --on 0xgb10
refuses "a format that it is not made in" 1 "not made in mxfp4" llama-3.1-8b --format mxfp4 --on gb10
refuses "a split of another number of ranks" 1 "3 shares" llama-3.1-8b --on 2xgb10 --split 1:1:1
refuses "a split that is none" 2 "whole numbers" llama-3.1-8b --on 2xgb10 --split 1:x
printf '{"format":1,"name":"x","title":"x","processors":{"source":"x","cores":[{"pus":"0-1","package":0,"numa":0}]}}' >"$t_dir/x.json"
refuses "a machine whose memory nobody knows" 1 "how much memory" llama-3.1-8b --on "$t_dir/x.json"

# 109.1 GiB a box of weights: 401.65 e9 x 0.5625 + 8.41 e9 bytes over two
asks "405B in NVFP4 on two Sparks: its weights" 'len(p["weights_bytes"]) == 2 and all(abs(w / 2**30 - 109.1) < 0.1 for w in p["weights_bytes"])' llama-3.1-405b --format nvfp4 --on 2xgb10
asks "... are beyond what can be taken in safety" 'p["fits"] is False and p["max_context"] == 0 and p["would_fit"] == ["--on 3xgb10"]' llama-3.1-405b --format nvfp4 --on 2xgb10
asks "every size is a whole number" 'all(isinstance(x, int) for k, v in p.items() if k.endswith("_bytes") for x in v) and p["context"] == 8192' llama-3.1-405b --format nvfp4 --on 2xgb10
parts='["matrix_bytes", "vector_bytes", "embedding_bytes", "head_bytes", "kv_bytes", "state_bytes", "activation_bytes", "scratch_bytes", "exchange_bytes", "library_bytes", "reserve_bytes"]'
asks "the kinds add up" "all(sum(p[k][r] for k in $parts) == p['total_bytes'][r] for r in range(2))" llama-3.1-70b --on 2xgb10
asks "the weights add up" 'all(p["weights_bytes"][r] == sum(p[k][r] for k in ["matrix_bytes", "vector_bytes", "embedding_bytes", "head_bytes"]) for r in range(2))' llama-3.1-70b --on 2xgb10 --split 5:3
asks "exchanges of a token" 'p["token"]["exchanges"] == 2 * 126 + 2 and p["token"]["sent_bytes"][0] == 4 * 16384 * 253 + 16' llama-3.1-405b --format nvfp4 --on 2xgb10
# Two ranks read together at most 5 % more than one: routers, and scale blocks that a cut divides, are read by both.
for model in mixtral-8x7b qwen3-30b-a3b "qwen3-235b-a22b --format nvfp4" gpt-oss-20b gpt-oss-120b "glm-4.7 --format nvfp4" "minimax-m2 --format nvfp4" "qwen3-30b-a3b --format fp8" llama-3.1-405b; do
    # shellcheck disable=SC2086 # an option too
    asks "$model: bytes that two ranks read" '1 <= sum(p["token"]["read_bytes"]) / p["token"]["weight_bytes"] <= 1.05' $model --on 2xgb10
done
asks "experts dealt out: as many bytes" '1 <= sum(p["token"]["read_bytes"]) / p["token"]["weight_bytes"] <= 1.05' gpt-oss-120b --on 2xgb10 --moe ep
asks "which mode reads less where it counts" '0.5 <= p["busiest_share_of_experts"]["tp"] < 0.53 and 0.6 < p["busiest_share_of_experts"]["ep"] < 0.7' gpt-oss-120b --on 2xgb10
asks "a smaller head and no embedding" 'abs(p["head_bytes"][0] / 2**30 - 1.04) < 0.01 and p["embedding_bytes"][0] < 2**24' llama-3.1-405b --format nvfp4 --on 2xgb10 --head fp8 --embedding disk
asks "... are advised where that is enough" '"--embedding disk" in p["would_fit"]' llama-3.1-405b --format nvfp4 --on 3xgb10 --ctx 336000
asks "one box exchanges nothing" 'p["fits"] and p["token"]["exchanges"] == 0 and p["exchange_bytes"] == [0] and p["ranks"] == 1' llama-3.1-8b --on rtx5090
asks "8B in BF16: bytes of a token" 'p["token"]["weight_bytes"] == 2 * (8030261248 - 128256 * 4096 - 65 * 4096)' llama-3.1-8b --on rtx5090
asks "the cache of a token" 'p["token"]["cache_bytes"] == [2 * 2 * 1024 * 32 * 8192] and p["kv"] == "F16"' llama-3.1-8b --on rtx5090
asks "a batch has that many caches" 'p["batch"] == 4 and 4 * 2**30 <= p["kv_bytes"][0] < 4.02 * 2**30' llama-3.1-8b --on rtx5090 --batch 4

# The largest context is the largest: it fits, and a block more does not.
largest() { "$TANDEM" plan "$@" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["max_context"])'; }
n=$(largest llama-3.1-8b --on rtx5090 --batch 3)
asks "the largest context fits" "p['fits'] and p['max_context'] == $n" llama-3.1-8b --on rtx5090 --batch 3 --ctx "$n"
asks "more does not" "not p['fits'] and '--ctx $n' in p['would_fit']" llama-3.1-8b --on rtx5090 --batch 3 --ctx $((n + 64))
asks "advice fits" 'p["fits"]' llama-3.1-70b --format nvfp4 --on 2xrtx5090
asks "formats are tried" '"--format nvfp4" in p["would_fit"] and not p["fits"]' llama-3.1-70b --on gb10
contains "as text" "$("$TANDEM" plan llama-3.1-405b --format nvfp4 --on 2xgb10)" "matrices in NVFP4          105.205   105.205"
# A signal ends it between two tries, by that signal as shells expect, with nothing said of what would fit.
"$TANDEM" plan glm-4.7 --on gb10 >"$t_dir/out" 2>"$t_dir/.err" &
pid=$!
until [ -n "$(find "$t_dir" -name 'tandem-plan-*')" ] || [ -z "$(jobs -r)" ]; do :; done
kill -TERM $pid
wait $pid
ok "SIGTERM while it plans" test $? = 143 -a ! -s "$t_dir/out"
contains "... is told" "$(cat "$t_dir/.err")" "interrupted"
[ -z "$(find "$t_dir" -name 'tandem-plan-*')" ] && t_pass "no temporary files are left" || t_fail "temporary files are left"

# A real model is planned for as it would be run.
model=${TANDEM_DEMO_MODEL:-}
if [ -n "$model" ]; then
    weights=$("$TANDEM" inspect "$model" | awk '$1 == "all" { print $2 }')
    asks "the demo model's weights are inspect's" "abs(p['weights_bytes'][0] / 2**20 - $weights) < 0.1 and p['fits']" "$model" --on vm
else
    skip "the demo model" "there is none"
fi
t_end
