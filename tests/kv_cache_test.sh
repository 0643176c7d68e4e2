#!/bin/bash
# --kv: which cache is chosen, what it takes, and logits over keys and values in FP8 against those of Hugging Face transformers (tests/golden/make_kv_cache.py).
. tests/t.sh

accurate=1e-3 # of the logits' standard deviation, the largest difference
golden=tests/golden/kv_cache

# ---- against transformers, on one rank and on three
for dir in $golden/*/; do
    case=$(basename "$dir")
    for n in 1 3; do
        rm -f "$t_dir/logits"
        ok "$case on $n" "$TANDEM" eval "$dir" --ids "${dir}ids.txt" --greedy 8 --logits "$t_dir/logits" --activations f32 --kv fp8 -n $n --threads 1
        ok "$case on $n: greedy ids" test "$(tail -n 1 "$t_dir/.out")" = "$(cat "${dir}greedy.txt")"
        if said=$("$BUILD/tests/compare_logits" max "$t_dir/logits" "${dir}logits.f32" $accurate); then t_pass "$case on $n: $said"; else t_fail "$case on $n: $said"; fi
    done
    # the comparison sees the rounding of keys and values
    "$TANDEM" eval "$dir" --ids "${dir}ids.txt" --greedy 8 --logits "$t_dir/logits" --activations f32 >"$t_dir/.out" 2>&1
    fails "$case: not with auto, which is F32 in eval" "$BUILD/tests/compare_logits" max "$t_dir/logits" "${dir}logits.f32" 0.02
done

# ---- what is chosen: `plan OPTIONS…` says "cache FORMAT" and the MiB of the pool
plan() { "$TANDEM" run "$@" --ctx 512 --dry-run 2>&1; }
cache_of() { plan "$@" | sed -n 's/.*, cache \([^,]*\),.*/\1/p'; }
chosen() {
    local name=$1 want=$2 got
    shift 2
    got=$(cache_of "$@")
    if [ "$got" = "$want" ]; then t_pass "$name"; else t_fail "$name: '$got' instead of $want"; fi
}
chosen "declared by ModelOpt" E4M3 $golden/modelopt
chosen "declared by compressed-tensors" E4M3 $golden/compressed -n 2
chosen "declared in config.json" E4M3 tests/golden/llama/fp8-modelopt
chosen "not declared" F16 $golden/plain
chosen "never with --activations f32" F32 $golden/modelopt --activations f32
chosen "but where it is asked for" E4M3 $golden/plain --activations f32 --kv fp8
chosen "another is obeyed too" BF16 $golden/modelopt --kv bf16
pool() { plan "$@" -n 2 | awk '$1 == "all" { print $3 }'; }
python3 tests/make_model.py "$t_dir/model.gguf" --layers 4 --hidden 256 --heads 8 --kv-heads 8 --ffn 256 || exit 1
ok "half of F16's bytes" test "$(pool "$t_dir/model.gguf" --kv f16 | sed 's/\.0$//')" = "$(awk -v x="$(pool "$t_dir/model.gguf" --kv fp8)" 'BEGIN { print 2 * x }')"
chosen "GGUF files declare nothing" F16 "$t_dir/model.gguf"
chosen "and can have it" E4M3 "$t_dir/model.gguf" --kv fp8

said=$("$TANDEM" inspect $golden/modelopt -n 3 2>&1)
contains "inspect: what is declared" "$said" "key/value cache in FP8: declared; scales of keys in 2 layers of 2, of values in 2"
contains "inspect: scales are read" "$said" "audit: "
case $said in *"scales of activations and caches"*"k_scale is the first"*) t_fail "inspect: scales of the cache are called unused" ;; *) t_pass "inspect: they are not unused" ;; esac
contains "inspect: not with another cache" "$("$TANDEM" inspect $golden/compressed --kv f16 2>&1)" "k_scale is the first"
case $("$TANDEM" inspect $golden/plain 2>&1) in *"cache in FP8"*) t_fail "inspect: nothing to tell" ;; *) t_pass "inspect: nothing to tell" ;; esac

# ---- a scale that is none: refused once for all ranks, and only where it would be read
cp -r $golden/modelopt "$t_dir/bad"
python3 - "$t_dir/bad/model.safetensors" <<'END'
import json
import struct
import sys

with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    begin, _ = json.loads(f.read(n))["model.layers.1.self_attn.v_proj.v_scale"]["data_offsets"]
    f.seek(8 + n + begin)
    f.write(struct.pack("<f", -0.25))
END
for n in 1 3; do
    evaluate() { "$TANDEM" eval "$t_dir/bad" --ids $golden/modelopt/ids.txt -n $n --threads 1 "$@"; }
    fails "a negative scale on $n" evaluate --kv fp8
    ok "… in one sentence" test "$(grep -c 'tensor model.layers.1.self_attn.v_proj.v_scale is -0.25: a scale of keys or values is a positive number' "$t_dir/.out")" = 1
    ok "… not with --kv f16, on $n" evaluate --kv f16
done
t_end
