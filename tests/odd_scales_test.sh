#!/bin/bash
# Odd scales in quantised files, end to end: valid ones change nothing and are counted in a line, others are refused on all ranks at once.
. tests/t.sh

# patch CASE: a copy of tests/golden/llama/CASE in $t_dir/model, in which `patch.py TENSOR OFFSET BYTE…` may change bytes
copy() { rm -rf "$t_dir/model" && cp -r "tests/golden/llama/$1" "$t_dir/model"; }
cat >"$t_dir/patch.py" <<'END'
"""patch.py FILE TENSOR OFFSET HEX: overwrites bytes of a tensor of a safetensors file"""
import json
import struct
import sys

file, tensor, offset, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), bytes.fromhex(sys.argv[4])
with open(file, "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    begin, end = json.loads(f.read(n))[tensor]["data_offsets"]
    assert begin + offset + len(new) <= end
    f.seek(8 + n + begin + offset)
    f.write(new)
END
patch() { python3 "$t_dir/patch.py" "$t_dir/model/model.safetensors" "$@"; }

# evaluate OPTIONS…: $t_dir/logits, what it says in $t_dir/stderr without the remark that a small machine's ranks share its CPUs
evaluate() {
    local status=0
    rm -f "$t_dir/logits"
    "$TANDEM" eval "$t_dir/model" --ids "$t_dir/model/ids.txt" --logits "$t_dir/logits" --threads 1 "$@" >"$t_dir/stdout" 2>"$t_dir/.stderr" || status=$?
    grep -v ' place: ' "$t_dir/.stderr" >"$t_dir/stderr"
    return $status
}

scale=model.layers.0.mlp.gate_proj.weight_scale
codes=model.layers.0.mlp.gate_proj.weight_packed

# NVFP4 [176, 80]: 5 scales and 40 bytes of codes a row. Block 2 of row 100 becomes one of zeros of either sign.
copy nvfp4-compressed
patch $codes $((100 * 40 + 16)) 0088800808000000
ok "a block of zeros" evaluate -n 1
ok "… says nothing" test ! -s "$t_dir/stderr"
cp "$t_dir/logits" "$t_dir/want"
for byte in 7f ff 00 01 b3; do
    patch $scale $((100 * 5 + 2)) $byte
    for n in 1 2 3; do
        ok "scale 0x$byte over zeros, $n ranks" evaluate -n $n
        ok "… changes nothing" cmp "$t_dir/want" "$t_dir/logits"
    done
    evaluate -n 1
    ok "… is counted in one line" test "$(grep -c 'odd scales, all of them valid: ' "$t_dir/stderr")$(wc -l <"$t_dir/stderr")" = 11
done
patch $scale $((100 * 5 + 2)) 7f
evaluate -n 1
contains "NaN is counted" "$(cat "$t_dir/stderr")" "1 are NaN, infinite or negative over blocks of zeros, 0 are zero, 0 the least of their type"

# refuse NAME SAYS: on 1 and 3 ranks, at once, the sentence once
refuse() {
    local n before
    for n in 1 3; do
        before=$SECONDS
        fails "$1, $n ranks" evaluate -n $n
        ok "… at once" test $((SECONDS - before)) -le 8
        ok "… in one sentence" test "$(grep -c "$2" "$t_dir/stderr")" = 1
        [ "$(grep -c "$2" "$t_dir/stderr")" = 1 ] || cat "$t_dir/stderr"
    done
}

copy nvfp4-compressed
patch $scale $((175 * 5 + 4)) 7f
refuse "NaN over other codes" "tensor $scale: row 175, block 4 (columns from 64 on): its scale is NaN"
copy nvfp4-compressed
patch $scale 0 90
refuse "a negative scale" "tensor $scale: row 0, block 0 (columns from 0 on): its scale is negative"
copy nvfp4-compressed
patch model.layers.0.self_attn.o_proj.weight_global_scale 0 00000080
refuse "a tensor scale of −0" "tensor model.layers.0.self_attn.o_proj.weight_global_scale: a tensor scale of -0"
copy mxfp4-compressed
patch model.layers.0.mlp.down_proj.weight_scale $((95 * 5 + 4)) ff
refuse "NaN of E8M0" "tensor model.layers.0.mlp.down_proj.weight_scale: row 95, block 4 (columns from 128 on): its scale is NaN"
copy fp8-blocks
patch model.layers.0.mlp.up_proj.weight_scale_inv 20 0000c07f
refuse "NaN of a block of 128 × 128" "tensor model.layers.0.mlp.up_proj.weight_scale_inv: row 256, block 1 (columns from 128 on): its scale is NaN"
copy fp8-blocks
patch model.layers.0.mlp.up_proj.weight_scale_inv 20 000080bf
refuse "a negative scale of a block of 128 × 128" "tensor model.layers.0.mlp.up_proj.weight_scale_inv: row 256, block 1 (columns from 128 on): its scale is negative"
copy fp8-channels
patch model.layers.0.self_attn.q_proj.weight 57 7f
refuse "a code that is NaN" "tensor model.layers.0.self_attn.q_proj.weight: row 1, block 0 (columns from 0 on): one of the 32 codes from here on is NaN"
copy int4-awq
patch model.layers.0.self_attn.v_proj.scales 0 007c
refuse "an infinite scale" "tensor model.layers.0.self_attn.v_proj.scales: row 0, block 0 (columns from 0 on): its scale is infinite or too large"

# Scales of inputs: all parts of a product want the same ones, and where nobody scales the input they are refused.
copy int8-modelopt-smooth
patch model.layers.0.self_attn.k_proj.pre_quant_scale 4 0040
refuse "scales of inputs that differ" "tensors model.layers.0.self_attn.q_proj.pre_quant_scale and model.layers.0.self_attn.k_proj.pre_quant_scale differ"
cat >"$t_dir/add.py" <<'END'
"""add.py FILE TENSOR N: adds a tensor of N F32 ones to a safetensors file"""
import json
import struct
import sys

file, tensor, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with open(file, "rb") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    header, data = json.loads(f.read(n)), f.read()
header[tensor] = {"dtype": "F32", "shape": [count], "data_offsets": [len(data), len(data) + 4 * count]}
head = json.dumps(header).encode()
head += b" " * (-len(head) % 8)
with open(file, "wb") as f:
    f.write(struct.pack("<Q", len(head)) + head + data + struct.pack("<f", 1) * count)
END
rm -rf "$t_dir/model" && cp -r tests/golden/families/qwen3_moe-nvfp4 "$t_dir/model"
expert=model.layers.0.mlp.experts.0.down_proj
columns=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["moe_intermediate_size"])' "$t_dir/model/config.json")
python3 "$t_dir/add.py" "$t_dir/model/model.safetensors" $expert.pre_quant_scale "$columns"
refuse "scales of an expert's inputs" "tensor $expert.pre_quant_scale: inputs that are scaled column by column are not supported here yet"
fails "quantize has no place for them" "$TANDEM" quantize tests/golden/llama/int8-modelopt-smooth "$t_dir/out" --format fp8
contains "… and says so" "$("$TANDEM" quantize tests/golden/llama/int8-modelopt-smooth "$t_dir/out" --format fp8 2>&1)" "pre_quant_scale: inputs are scaled column by column, for which the new file has no place"
t_end
