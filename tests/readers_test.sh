#!/bin/bash
# What others read: layouts that tests/golden/make_quant.py writes, by llama.cpp's and compressed-tensors' converters; what `tandem quantize` writes, by compressed-tensors, transformers and gguf.
# With LONG=1, and where their packages are: TANDEM_PYTHON (python3) is who has them. test-deadline: 1800
. tests/t.sh

if [ "${LONG:-0}" != 1 ]; then
    skip "others' readers" "LONG=1 asks them"
    t_end
fi
python=${TANDEM_PYTHON:-python3}

# ---- the same logits as from what somebody else dequantised, byte by byte; with act-order a sum has another order

# logits NAME MODEL
logits() { ok "$case: $1" "$TANDEM" eval "$2" --ids "$dir/ids.txt" --activations f32 --logits "$t_dir/$1"; }
llama_cpp=${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}/peers/llama.cpp/src
for case in int4-gptq int4-gptq-128 int4-gptq-act-order int8-gptq-v2 int4-awq int4-awq-128 int4-groups int4-groups-128 int8-groups int8-channels fp8-blocks fp8-channels fp8-modelopt; do
    dir=tests/golden/llama/$case status=0
    "$python" tests/read_layouts.py "$dir" "$t_dir/$case" "$llama_cpp" >"$t_dir/.out" 2>&1 || status=$?
    if [ $status = 3 ]; then
        skip "$case" "$(tail -n 1 "$t_dir/.out")"
        continue
    fi
    ok "$case: somebody else reads it" test $status = 0 || cat "$t_dir/.out"
    logits ours "$dir"
    logits theirs "$t_dir/$case"
    case $case in
    *act-order) ok "$case: the same numbers" "$BUILD/tests/compare_logits" max "$t_dir/ours" "$t_dir/theirs" 1e-5 ;;
    *) ok "$case: the same bytes" cmp "$t_dir/ours" "$t_dir/theirs" ;;
    esac
done

# ---- what is written

needs() { "$python" -c "import $1" 2>"$t_dir/.out"; }
python3 tests/make_model.py "$t_dir/hub" --hub --hidden 96 --heads 4 --kv-heads 2 --ffn 160 || exit 1
for format in nvfp4 mxfp4 fp8; do
    if ! needs "torch, transformers, compressed_tensors"; then
        skip "$format by compressed-tensors and transformers" "$(tail -n 1 "$t_dir/.out")"
        continue
    fi
    ok "quantize to $format" "$TANDEM" quantize "$t_dir/hub" "$t_dir/$format" --format $format
    ok "$format by compressed-tensors and transformers" "$python" tests/check_quantize.py "$t_dir/hub" "$t_dir/$format"
done
if needs "torch, transformers, compressed_tensors, gguf"; then
    python3 tests/make_model.py "$t_dir/in.gguf" --hidden 96 --heads 4 --kv-heads 2 --ffn 160 || exit 1
    ok "quantize to q8_0" "$TANDEM" quantize "$t_dir/in.gguf" "$t_dir/out.gguf" --format q8_0
    ok "q8_0 by gguf" "$python" tests/check_quantize.py "$t_dir/in.gguf" "$t_dir/out.gguf"
else
    skip "q8_0 by gguf" "$(tail -n 1 "$t_dir/.out")"
fi
t_end
