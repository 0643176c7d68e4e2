#!/bin/bash
# tests/golden/llama/CASE (see make_llama.py): our logits against those of Hugging Face transformers.
. tests/t.sh

golden=tests/golden/llama
. tests/t_golden.sh

for dir in tests/golden/llama/*/; do
    case=$(basename "$dir")
    if evaluate "$case" "$case" --activations f32; then
        compare "$case" "$case" max $accurate
        ok "$case: greedy ids" diff "$t_dir/greedy" "${dir}greedy.txt"
    fi
    if evaluate "$case on 3 ranks" "$case" --activations f32 -n 3 --threads 1; then
        compare "$case on 3 ranks" "$case" max $accurate
        ok "$case on 3 ranks: greedy ids" diff "$t_dir/greedy" "${dir}greedy.txt"
    fi
    case $case in
    gguf-q* | gguf-mxfp4 | gguf-nvfp4 | nvfp4-* | mxfp4-* | fp8-* | int?-*)
        # the prompt alone: a rounded activation may choose another token, and all after it would differ
        if evaluate "$case, int8" "$case" --activations auto; then
            n=$(wc -w <"${dir}ids.txt")
            vocab=$(($(stat -c %s "${dir}logits.f32") / 4 / (n + $(wc -w <"${dir}greedy.txt"))))
            head -c $((n * vocab * 4)) "$t_dir/logits" >"$t_dir/got"
            head -c $((n * vocab * 4)) "${dir}logits.f32" >"$t_dir/want"
            if said=$("$BUILD/tests/compare_logits" rms "$t_dir/got" "$t_dir/want" $rounded); then
                t_pass "$case, int8: $said"
            else
                t_fail "$case, int8: $said"
            fi
        fi
        ;;
    esac
done

# Every type is called by its name, also where a row of it holds no whole block (128 columns) and those that are not known yet.
inspect() { "$TANDEM" inspect "$t_dir/model.gguf" --tensors -n 2 2>&1; }
for type in Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q4_K Q5_K Q6_K MXFP4 NVFP4; do
    python3 tests/make_model.py "$t_dir/model.gguf" --layers 1 --hidden 256 --heads 4 --kv-heads 2 --ffn 320 --type $type
    said=$(inspect)
    contains "inspect names $type" "$said" " $type "
    contains "audit of $type over 2 ranks" "$said" "audit: "
done
python3 tests/make_model.py "$t_dir/model.gguf" --layers 1 --hidden 256 --heads 4 --kv-heads 2 --ffn 256 --type Q2_K
contains "Q2_K is refused by name" "$("$TANDEM" eval "$t_dir/model.gguf" --ids tests/golden/llama/gguf-q4_0/ids.txt 2>&1)" "Q2_K is not supported yet"
t_end
