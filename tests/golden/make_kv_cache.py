#!/usr/bin/env python3
"""Writes tests/golden/kv_cache/CASE/: checkpoints that declare a key/value cache in FP8, and what Hugging Face transformers makes of them when keys and values go through E4M3.

usage: make_kv_cache.py [CASE…]
needs: what make_quant.py needs

Files as in make_llama.py; logits.f32 is of an attention whose keys (after rope) and values are x → E4M3(x / scale) · scale, the cast being PyTorch's, clamped to ±448 before. No
number stands closer to the middle of two codes than MIN_DISTANCE of their distance (else the next seed): rounding errors in front of the cast then change no code.
"""
import json
import os
import shutil
import sys
import zlib

import numpy as np
import torch
import transformers.models.llama.modeling_llama as modeling
from make_llama import MIN_MARGIN, config_of, randomise, run, save_safetensors
from make_quant import save
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kv_cache")
F8 = torch.float8_e4m3fn
MIN_DISTANCE = 2e-5
SMALL = dict(layers=2, vocab=97, theta=10000.0, dtype="bf16", spelling="hub", n_ids=24, ignore=["lm_head"])

# scales: (keys, values) a layer; 0.007 clips some of them, with 0.75 some are subnormal
CASES = {
    "modelopt": dict(SMALL, hidden=96, heads=6, kv=3, head_dim=16, ffn=80, method="modelopt-nvfp4", names=("k_proj.k_scale", "v_proj.v_scale"), scales=[(0.007, 0.75), (0.61, 0.0093)]),
    "modelopt-fused": dict(SMALL, hidden=48, heads=4, kv=2, head_dim=20, ffn=80, method="modelopt-nvfp4", fused=True, names=("qkv_proj.k_scale", "qkv_proj.v_scale"),
                           scales=[(0.02, 0.0077), (0.3, 1.7)]),
    "compressed": dict(SMALL, hidden=56, heads=7, kv=1, head_dim=10, ffn=100, method="ct", preset="FP8_DYNAMIC", format="float-quantized", scale=torch.bfloat16,
                       names=("k_scale", "v_scale"), scales=[(0.0625, 0.0082), (0.75, 0.0117)], scale_dtype=torch.bfloat16),
    # nothing is declared and there are no scales: --kv fp8 by hand; past a partition of 256 keys
    "plain": dict(SMALL, layers=1, hidden=36, heads=6, kv=2, head_dim=6, ffn=64, n_ids=290, scales=[(1, 1)]),
}

eager = modeling.eager_attention_forward


def through_e4m3(x, scale, distances):
    y = x / scale
    exponent = torch.floor(torch.log2(y.abs().clamp(min=2**-6)))
    units = (y.abs() / 2 ** (exponent - 3)).double()
    distances.append(float(((units % 1) - 0.5).abs()[y.abs() < 440].min()))
    return torch.clamp(y, -448, 448).to(F8).float() * scale


def set_scales(c, directory):
    """Adds or replaces the scales of a written checkpoint; returns them as a reader has them."""
    scales = torch.tensor(c["scales"], dtype=c.get("scale_dtype", torch.float32))
    file = os.path.join(directory, "model.safetensors")
    tensors = {n: t for n, t in load_file(file).items() if not n.endswith((".k_scale", ".v_scale"))}
    for layer in range(c["layers"]) if "names" in c else ():
        for i, name in enumerate(c["names"]):
            shape = [] if i else [1]  # both are found
            tensors[f"model.layers.{layer}.self_attn.{name}"] = scales[layer, i].reshape(shape).clone()
    save_file(tensors, file, metadata={"format": "pt"})
    if c.get("method") == "ct":
        with open(os.path.join(directory, "config.json")) as f:
            config = json.load(f)
        config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False, "group_size": None}
        with open(os.path.join(directory, "config.json"), "w") as f:
            json.dump(config, f, indent=2, sort_keys=True)
            f.write("\n")
    return scales.float()


def make(name):
    c = CASES[name]
    directory = os.path.join(HERE, name)
    for attempt in range(100):
        seed = zlib.crc32(name.encode()) + attempt
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        model = LlamaForCausalLM(config_of(c)).float().eval()
        randomise(model, c, seed)
        if "method" in c:
            model.load_state_dict(save(model, c, directory), strict=False)
        else:
            save_safetensors(model, c, directory)
        scales, distances = set_scales(c, directory), []

        def attention(module, query, key, value, *rest, **more):
            k, v = (through_e4m3(x, s, distances) for x, s in zip((key, value), scales[module.layer_idx]))
            return eager(module, query, k, v, *rest, **more)

        ids = torch.randint(0, c["vocab"], (c["n_ids"],), generator=torch.Generator().manual_seed(seed)).tolist()
        ids[0], ids[-1] = c["vocab"] - 1, 0
        with torch.no_grad():
            exact = model(torch.tensor([ids])).logits[0].numpy()
        modeling.eager_attention_forward = attention
        new, logits, margin = run(model, ids)
        modeling.eager_attention_forward = eager
        if margin > MIN_MARGIN and min(distances) > MIN_DISTANCE:
            break
    else:
        sys.exit(f"{name}: no seed with margins above {MIN_MARGIN} and {MIN_DISTANCE}")
    logits.astype("<f4").tofile(os.path.join(directory, "logits.f32"))
    with open(os.path.join(directory, "ids.txt"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    with open(os.path.join(directory, "greedy.txt"), "w") as f:
        f.write(json.dumps(new) + "\n")
    for file in os.listdir(directory):
        os.chmod(os.path.join(directory, file), 0o644)
    moved = np.abs(logits[: len(ids)] - exact).max() / logits.std()
    print(f"{name}: seed {seed}, least margin {margin:.4f}, least distance {min(distances):.6f}, moved by up to {moved:.3f} of the standard deviation")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
