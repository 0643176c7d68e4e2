#!/bin/bash
# --head and --embedding: what a publisher left in plain numbers is rounded while it is loaded, or stays in its file. Same bits on any number of ranks; what it costs is told.
. tests/t.sh

hub=$t_dir/hub
python3 tests/make_model.py "$hub" --hub --hidden 96 --heads 4 --kv-heads 2 --ffn 160 || exit 1
echo "5 250 3 9 100 17 200 1 2 3 4" >"$t_dir/ids"
ids=$t_dir/ids

# logits NAME MODEL OPTIONS…
logits() {
    local to=$t_dir/$1 model=$2
    shift 2
    rm -f "$to"
    "$TANDEM" eval "$model" --ids "$ids" --logits "$to" "$@" >"$t_dir/stdout" 2>"$t_dir/stderr" || { t_fail "eval $*" && sed 's/^/    /' "$t_dir/stderr"; }
}

logits stored "$hub"
for ranks in 1 2 3; do
    logits disk "$hub" --embedding disk -n $ranks --threads 2
    ok "an embedding on disk gives the bits of one in memory, $ranks ranks" cmp -s "$t_dir/stored" "$t_dir/disk"
done
for option in "--head fp8" "--embedding fp8" "--head fp8 --embedding fp8" "--head fp8 --embedding disk"; do
    logits one "$hub" $option --activations f32
    said=$(cat "$t_dir/stderr")
    logits three "$hub" $option --activations f32 -n 3 --threads 1
    ok "$option: the same bits on 3 ranks" cmp -s "$t_dir/one" "$t_dir/three"
    cmp -s "$t_dir/one" "$t_dir/stored" && t_fail "$option changes nothing"
    deviation=$(sed -n 's/.*rounded to FP8.* is \([0-9.]*\) %.*/\1/p' <<<"$said")
    ok "$option: the deviation is told (${deviation//$'\n'/, } %)" awk "BEGIN { split(\"${deviation//$'\n'/ }\", d, \" \"); exit !(d[1] > 1 && d[1] < 4) }"
done

# ---- what the budget says, what changes nothing, what is refused
contains "the budget says what stays in the file" "$("$TANDEM" run "$hub" --embedding disk --prompt x --dry-run 2>&1)" "model.embed_tokens.weight: 0.0 MiB stay in the file"
weights() { "$TANDEM" run "$1" --prompt x --dry-run "${@:2}" 2>&1 | awk '$1 == "all" { print $2 }'; }
python3 tests/make_model.py "$t_dir/wide.gguf" --hidden 512 --heads 16 --ffn 32 --layers 1 || exit 1
ok "rows on disk take no memory" awk "BEGIN { exit !($(weights "$t_dir/wide.gguf") - $(weights "$t_dir/wide.gguf" --embedding disk) > 0.4) }"
ok "a head in FP8 takes a quarter of one in F32" awk "BEGIN { exit !($(weights "$t_dir/wide.gguf") - $(weights "$t_dir/wide.gguf" --head fp8) > 0.3) }"
python3 tests/make_model.py "$t_dir/q8.gguf" --type Q8_0 || exit 1
contains "a quantised head stays as it is" "$("$TANDEM" eval "$t_dir/q8.gguf" --ids "$t_dir/ids" --head fp8 2>&1)" "output.weight is stored as Q8_0 already: --head fp8 changes nothing"
logits stored "$t_dir/q8.gguf"
logits disk "$t_dir/q8.gguf" --embedding disk -n 2
ok "rows of blocks are read from disk too" cmp -s "$t_dir/stored" "$t_dir/disk"
scales=tests/golden/llama/gguf-nvfp4-scales/model.gguf
ids=${scales%/*}/ids.txt
logits stored "$scales"
logits disk "$scales" --embedding disk -n 2
ok "rows on disk are multiplied with their tensor's scale" cmp -s "$t_dir/stored" "$t_dir/disk"
contains "an embedding of several tensors" "$("$TANDEM" eval tests/golden/llama/int8-embedding --ids tests/golden/llama/int8-embedding/ids.txt --embedding disk 2>&1)" \
    "model.embed_tokens.weight is stored as INT8 with zero points: --embedding disk is for one tensor"
python3 - "$hub/model.safetensors" <<'END' || exit 1
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    at = 8 + n + json.loads(f.read(n))["lm_head.weight"]["data_offsets"][0]
    f.seek(at + 2 * (96 * 200 + 7))
    f.write(b"\xc0\x7f")
END
for ranks in 1 2; do
    contains "NaN is not rounded, $ranks ranks" "$("$TANDEM" eval "$hub" --ids "$t_dir/ids" --head fp8 -n $ranks 2>&1)" "tensor lm_head.weight: row 200 holds NaN or infinity, which is not rounded to FP8"
done

# ---- a file that is cut off while rows are read from it
cut() {
    python3 tests/make_model.py "$1" --hidden 96 --heads 4 --context 16384 || return
    "$TANDEM" run "$1" --embedding disk -p x --ignore-eos --raw --threads 1 "${@:2}" >"$1.out" 2>"$1.err" &
    local pid=$!
    for _ in $(seq 200); do
        [ -s "$1.out" ] && break
        sleep 0.05
    done
    truncate -s 2000 "$1"
    wait $pid && t_fail "a file that is cut off"
    contains "a file that is cut off (${*:2})" "$(cat "$1.err")" "token_embd.weight cannot be read"
}
cut "$t_dir/cut1.gguf"
cut "$t_dir/cut2.gguf" -n 2
t_end
