#!/bin/bash
# tests/golden/llama/CASE (see make_llama.py): our logits against those of Hugging Face transformers, and the same bytes for every number of ranks.
# TANDEM_TABLE=FILE: what was seen goes there as the table of docs/formats.md. It takes all cuts, as LONG=1 does; without, same_bits_test has them.
. tests/t.sh

golden=tests/golden/llama
. tests/t_golden.sh

table case 'accurate: largest difference ÷ std' 'the same bytes on' 'default: rms ÷ std' 'the same bytes on'
ways=('-n 3')
[ -n "${TANDEM_TABLE:-}" ] || [ "${LONG:-0}" = 1 ] && ways=('-n 2' '-n 3' '-n 4' '--split 5:3' '--split 1:0:4:2')

# same_bytes NAME CASE OPTIONS…: $t_dir/one is what one rank says; $agree: the numbers of ranks that say the same
same_bytes() {
    local name=$1 case=$2 way
    shift 2
    agree=''
    for way in "${ways[@]}"; do
        # shellcheck disable=SC2086 # two words
        evaluate "$name, $way" "$case" "$@" $way --threads 1 --chunk 7 && ok "$name, $way: the same bytes" cmp "$t_dir/one" "$t_dir/logits"
        cmp -s "$t_dir/one" "$t_dir/logits" && agree+=${agree:+, }${way#-n }
    done
    agree=${agree//--split /}
}

for dir in tests/golden/llama/*/; do
    case=$(basename "$dir")
    evaluate "$case" "$case" --activations f32 || continue
    compare "$case" "$case" max $accurate
    row '| %s | %s' "$case" "$(sed 's/^max \([^,]*\),.*/\1/' <<<"$said")"
    ok "$case: greedy ids" diff "$t_dir/greedy" "${dir}greedy.txt"
    mv "$t_dir/logits" "$t_dir/one"
    same_bytes "$case" "$case" --activations f32
    row ' | %s' "$agree"
    case $case in
    gguf-q* | gguf-mxfp4 | gguf-nvfp4* | nvfp4-* | mxfp4-* | mxfp8-* | mixed-* | fp8-* | int?-*)
        # the prompt alone: a rounded activation may choose another token, and all after it would differ
        evaluate "$case, default" "$case" --activations auto || continue
        n=$(wc -w <"${dir}ids.txt")
        vocab=$(($(stat -c %s "${dir}logits.f32") / 4 / (n + $(wc -w <"${dir}greedy.txt"))))
        mv "$t_dir/logits" "$t_dir/one"
        head -c $((n * vocab * 4)) "$t_dir/one" >"$t_dir/got"
        head -c $((n * vocab * 4)) "${dir}logits.f32" >"$t_dir/want"
        if said=$("$BUILD/tests/compare_logits" rms "$t_dir/got" "$t_dir/want" $rounded); then
            t_pass "$case, default: $said"
        else
            t_fail "$case, default: $said"
        fi
        row ' | %s' "$(sed 's/.*rms \([^ ]*\) .*/\1/' <<<"$said")"
        [ ${#ways[@]} = 1 ] || same_bytes "$case, default" "$case" --activations auto
        row ' | %s |\n' "$agree"
        ;;
    *) row ' | | |\n' ;;
    esac
done

# DeepSeek V4's spelling of MXFP4: the same bytes under other names and types are the same numbers. Its config speaks of FP8 blocks, and of experts elsewhere: the tensors decide.
cp -r tests/golden/llama/mxfp4-compressed "$t_dir/v4"
python3 - "$t_dir/v4" <<'END' || exit 1
import json, os, struct, sys
path = os.path.join(sys.argv[1], "model.safetensors")
with open(path, "rb") as f:
    header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    data = f.read()
for old, new, dtype in ((".weight_packed", ".weight", "I8"), (".weight_scale", ".scale", "F8_E8M0")):
    for name in [n for n in header if n.endswith(old)]:
        header[name[:-len(old)] + new] = dict(header.pop(name), dtype=dtype)
text = json.dumps(header).encode()
with open(path, "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text + data)
with open(os.path.join(sys.argv[1], "config.json")) as f:
    config = json.load(f)
config["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}
with open(os.path.join(sys.argv[1], "config.json"), "w") as f:
    json.dump(config, f)
END
cp -r tests/golden/llama/mxfp4-compressed "$t_dir"
golden=$t_dir
for setting in f32 auto; do
    evaluate "DeepSeek V4's MXFP4, $setting" v4 --activations $setting -n 2 --threads 1 && mv "$t_dir/logits" "$t_dir/one"
    evaluate "MXFP4, $setting" mxfp4-compressed --activations $setting && ok "DeepSeek V4's MXFP4, $setting: the same bytes" cmp "$t_dir/one" "$t_dir/logits"
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
