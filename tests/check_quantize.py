#!/usr/bin/env python3
"""Compares what `tandem quantize` wrote with compressed-tensors, and loads it in transformers (tests/readers_test.sh, by `make test-long`).
usage: check_quantize.py IN OUT      IN: a safetensors directory of F32, F16 or BF16; OUT: its quantised form
needs: what tests/golden/make_quant.py needs

1. The tensors that are not quantised are IN's, byte by byte; the others are those of compressed-tensors' own compressor when it is given the weights in F32, byte by byte. What it makes
   of the weights in their own type (BF16 quotients are rounded to BF16 before they are rounded to the format) is counted beside.
2. transformers loads OUT with compressed-tensors and dequantises it; its weights are compared with code · scale in F32.

IN and OUT may be GGUF files too (needs: gguf==0.19.0): then every tensor of OUT is IN's, or what the gguf package makes of it in Q8_0, byte by byte, and every key but file_type is IN's."""
import glob
import json
import os
import sys

import torch
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "golden"))
from make_quant import compressed_tensors, read_compressed_tensors  # noqa: E402


def tensors_of(directory):
    all_of_them = {}
    for f in sorted(glob.glob(os.path.join(directory, "*.safetensors"))):
        all_of_them.update(load_file(f))
    return all_of_them


def raw(t):
    return t.contiguous().view(torch.uint8)


def compress(w, scheme, form):
    return compressed_tensors(w, {"format": form, "scale": w.dtype}, scheme)[0]


def check_gguf():
    import gguf

    a, b = gguf.GGUFReader(sys.argv[1]), gguf.GGUFReader(sys.argv[2])
    for key, field in a.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.file_type", "general.quantization_version"):
            assert [bytes(x) for x in field.parts] == [bytes(x) for x in b.fields[key].parts], key
    theirs, same, left = {t.name: t for t in b.tensors}, 0, 0
    for t in a.tensors:
        out = theirs.pop(t.name)
        if out.tensor_type == t.tensor_type and bytes(t.data) == bytes(out.data):
            left += 1
            continue
        assert out.tensor_type == gguf.GGMLQuantizationType.Q8_0, t.name
        values = gguf.quants.dequantize(t.data, t.tensor_type)
        assert bytes(gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)) == bytes(out.data), t.name
        same += 1
    assert not theirs
    print(f"GGUF: {same} tensors equal to the gguf package's Q8_0, {left} as they were; {len(a.fields)} keys")


if os.path.isfile(sys.argv[2]):
    check_gguf()
    sys.exit()
source, result = tensors_of(sys.argv[1]), tensors_of(sys.argv[2])
with open(os.path.join(sys.argv[2], "config.json")) as f:
    config = QuantizationConfig(**json.load(f)["quantization_config"])
scheme, form = config.config_groups["group_0"], config.format
same = n_left = n_bytes = own_differ = own_bytes = 0
dequantised = {}
for name, w in source.items():
    module = name.rsplit(".", 1)[0]
    parts = {p: result[f"{module}.{p}"] for p in ("weight_packed", "weight_scale", "weight_global_scale") if f"{module}.{p}" in result}
    if not parts or not name.endswith(".weight"):
        assert w.dtype == result[name].dtype and torch.equal(raw(w), raw(result[name])), f"{name} has changed"
        n_left += 1
        continue
    if f"{module}.weight" in result:
        parts["weight"] = result[f"{module}.weight"]
    theirs, own = compress(w.float(), scheme, form), compress(w, scheme, form)
    assert sorted(theirs) == sorted(parts), (name, sorted(theirs), sorted(parts))
    for p, t in theirs.items():
        assert t.dtype == parts[p].dtype and t.shape == parts[p].shape, (name, p, t.dtype, t.shape, parts[p].dtype, parts[p].shape)
        assert torch.equal(raw(t), raw(parts[p])), f"{name}: {p} differs from compressed-tensors'"
        n_bytes += raw(t).numel()
        if own[p].dtype == t.dtype:
            own_differ += (raw(own[p]) != raw(t)).sum().item()
            own_bytes += raw(t).numel()
    dequantised[name] = read_compressed_tensors(parts, scheme.weights, w.shape)
    same += 1
print(f"{form}: {same} matrices, {n_bytes} bytes equal to compressed-tensors' from F32; {n_left} tensors as they were")
print(f"given the weights as {next(iter(source.values())).dtype}, compressed-tensors writes {own_differ} of {own_bytes} bytes otherwise ({100 * own_differ / max(own_bytes, 1):.2f} %)")

model, info = AutoModelForCausalLM.from_pretrained(sys.argv[2], dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False), output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
loaded = {n: p for n, p in model.named_parameters()}
with torch.no_grad():
    model(torch.arange(16).unsqueeze(0))  # compressed-tensors decompresses at the latest here
    loaded = {n: p for n, p in model.named_parameters()}
    worst = 0.0
    for name, v in dequantised.items():
        d = (loaded[name].float() - v).abs().max() / v.abs().max()
        worst = max(worst, d.item())
print(f"transformers loads it; its {len(dequantised)} dequantised matrices differ from code · scale by at most {worst:.2e} of the largest weight")
