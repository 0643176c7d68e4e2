#!/bin/bash
# Layers of large models at their real width, made up: the same bits at 1 and 2 ranks, memory as budgeted, bytes of a token as planned for the whole model.
# A long test: 12 GB of disk in $TMPDIR, 16 GB of memory, some minutes for each. test-deadline: 3600
. tests/t.sh

if [ "${LONG:-0}" != 1 ]; then
    skip "real widths" "a long test"
    t_end
fi
disk=$(df --output=avail -B 1000000000 "$t_dir" | tail -1) memory=$(awk '/^MemAvailable/ { print int($2 / 1000000) }' /proc/meminfo)
if [ "$disk" -lt 14 ] || [ "$memory" -lt 16 ]; then
    skip "real widths" "14 GB of disk and 16 GB of memory are wanted; there are $disk and $memory"
    t_end
fi

# near NAME MEASURED EXPECTED: within 1 %
near() {
    if python3 -c 'import sys; a, b = map(float, sys.argv[1:]); sys.exit(abs(a / b - 1) > 0.01)' "$2" "$3"; then t_pass "$1: $2, expected $3"; else t_fail "$1: $2, expected $3"; fi
}

model=$t_dir/model
settings=(--kv fp8 --chunk 128 --ctx 160)
python3 -c 'print(*((7919 * i + 13) % 32000 for i in range(128)))' >"$t_dir/ids"

# made LIKE FORMAT LAYERS: false where this build does not know the family yet
made() {
    local said
    "$TANDEM" synth --like "$1" --format "$2" --layers "$3" --headers-only "$model" >/dev/null 2>&1
    said=$("$TANDEM" inspect "$model" 2>&1)
    rm -rf "$model"
    case $said in *"is not supported yet"*)
        skip "$1" "its family is not known yet"
        return 1
        ;;
    esac
    ok "$1: $3 layers in $2" "$TANDEM" synth --like "$1" --format "$2" --layers "$3" --seed 1 "$model"
}

same_at_1_and_2() {
    local n budget
    for n in 1 2; do
        # without its reserve, which is for code and stacks, and for what nobody counted
        budget=$("$TANDEM" inspect "$model" -n $n "${settings[@]}" | sed -n 's/^\([0-9.]*\) MiB in all with \([0-9.]*\) MiB of reserve a rank.*/\1 \2/p' | awk -v n=$n '{ print $1 - n * $2 }')
        ok "$1: runs at $n ranks" python3 tests/peak_memory.py "$t_dir/peak" "$TANDEM" eval "$model" --ids "$t_dir/ids" --greedy 2 --logits "$t_dir/logits$n" -n $n "${settings[@]}"
        near "$1: memory at $n ranks, MiB" "$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["bytes"] / 2**20)' "$t_dir/peak")" "$budget"
    done
    ok "$1: the same logits at 1 and 2 ranks" cmp "$t_dir/logits1" "$t_dir/logits2"
    [ "$(wc -c <"$t_dir/logits1")" -gt 10000000 ] && t_pass "$1: logits are there" || t_fail "$1: logits are there"
}

# A decode step reads each layer's and the head's weights once: what two layers and the head took stands for all 126.
if made llama-3.1-405b nvfp4 2; then
    same_at_1_and_2 llama-3.1-405b
    "$TANDEM" run "$model" -n 2 --raw -p "one two three" --max-tokens 4 --ledger="$t_dir/ledger.json" "${settings[@]}" >/dev/null 2>&1
    whole=$("$TANDEM" plan llama-3.1-405b --format nvfp4 --on 2xgb10 --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["token"]["weight_bytes"])')
    scaled=$(python3 - "$t_dir/ledger.json" <<'PYTHON'
import json, sys
steps = [r["steps"] for r in json.load(open(sys.argv[1]))["ranks"]]
last = [i for i, decode in enumerate(steps[0]["decode"]) if decode][-1]
read, head = sum(s["stored_weight_bytes"][last] for s in steps), 2 * 128256 * 16384
print((read - head) * 126 // 2 + head)
PYTHON
    )
    near "llama-3.1-405b: bytes of weights that a decoded token reads" "$scaled" "$whole"
fi
rm -rf "$model"

# The first three layers of GLM have no experts.
for row in "gpt-oss-120b mxfp4 1" "qwen3-235b-a22b nvfp4 1" "glm-4.7 nvfp4 4" "minimax-m2 fp8 1"; do
    read -r like format layers <<<"$row"
    made "$like" "$format" "$layers" && same_at_1_and_2 "$like"
    rm -rf "$model"
done
t_end
