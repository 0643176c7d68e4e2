#!/usr/bin/env python3
"""Writes more cases to tests/golden/llama/CASE/ (see make_llama.py): quantised safetensors checkpoints, and what Hugging Face transformers makes of them.

usage: make_quant.py [CASE…]
needs: what make_llama.py needs, compressed-tensors==0.20.0, and what modelopt_export.py needs

The formats of compressed-tensors are written by its own compressors, its configuration by its own classes; ModelOpt quantises and exports whole models itself; the layouts of block FP8,
GPTQ and AWQ, and of ModelOpt where it has fused what transformers has not, are written by the functions below, from their producers' public code. Each is read back here by its definition in F32 (value = code · block scale · tensor scale; compressed-tensors itself dequantises NVFP4 in
BF16, which must agree to BF16's rounding), and transformers runs on that.

What makes them hard: sizes that the blocks of 64 and 128 do not divide, cuts inside blocks and words, some modules left alone (by patterns, by wildcards, by name), an FP8 head.
"""
import json
import os
import re
import shutil
import sys
import zlib

import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme, QuantizationStatus, preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
import modelopt_export
from make_llama import HERE, MIN_MARGIN, config_of, randomise, run, spell
from modelopt_export import unpack_pairs
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

F8 = torch.float8_e4m3fn


def int_args(**more):
    return QuantizationArgs(num_bits=more.pop("bits", 4), type="int", **more)


SMALL = dict(layers=1, vocab=97, theta=10000.0, dtype="bf16", spelling="hub", n_ids=24)
CASES = {
    "nvfp4-compressed": dict(SMALL, layers=2, hidden=80, heads=8, kv=4, head_dim=24, ffn=176, method="ct", preset="NVFP4", format="nvfp4-pack-quantized",
                             ignore=["lm_head", "re:.*layers\\.1\\.self_attn.*"]),
    "nvfp4-modelopt": dict(SMALL, layers=2, hidden=96, heads=6, kv=3, head_dim=16, ffn=208, method="modelopt", config="NVFP4_DEFAULT_CFG", kv_config="FP8_KV_CFG", modern=False,
                           ignore=["model.layers.0.mlp.down_proj", "*layers.1.self_attn*proj*"]),
    # scales of 32 columns
    "nvfp4-w4a8-modelopt": dict(SMALL, hidden=96, heads=6, kv=3, head_dim=16, ffn=160, method="modelopt", config="W4A8_NVFP4_FP8_CFG"),
    "mxfp4-modelopt": dict(SMALL, hidden=96, heads=4, kv=4, head_dim=24, ffn=160, method="modelopt", config="MXFP4_DEFAULT_CFG"),
    "int4-modelopt": dict(SMALL, hidden=128, heads=4, kv=2, head_dim=32, ffn=256, method="modelopt", config="INT4_BLOCKWISE_WEIGHT_ONLY_CFG"),
    # inputs scaled column by column: of o and down (the others' are in the norms), and of all
    "int4-modelopt-awq": dict(SMALL, hidden=128, heads=4, kv=2, head_dim=32, ffn=256, method="modelopt", config="INT4_AWQ_CFG"),
    "int8-modelopt-smooth": dict(SMALL, hidden=56, heads=7, kv=1, head_dim=10, ffn=100, method="modelopt", config="INT8_SMOOTHQUANT_CFG"),
    "int8-modelopt": dict(SMALL, hidden=56, heads=7, kv=1, head_dim=10, ffn=100, method="modelopt", config="INT8_WEIGHT_ONLY_CFG"),
    "fp8-blocks-modelopt": dict(SMALL, hidden=256, heads=8, kv=4, head_dim=32, ffn=128, method="modelopt", config="FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG"),
    "mxfp4-compressed": dict(SMALL, hidden=96, heads=4, kv=4, head_dim=24, ffn=160, method="ct", preset="MXFP4", format="mxfp4-pack-quantized", ignore=["lm_head"]),
    "mxfp8-compressed": dict(SMALL, hidden=96, heads=4, kv=4, head_dim=24, ffn=160, method="ct", preset="MXFP8", format="mxfp8-quantized", ignore=["lm_head"]),
    # each kind of module in a format of its own
    "mixed-compressed": dict(SMALL, layers=2, hidden=96, heads=4, kv=2, head_dim=24, ffn=192, method="ct", format="mixed-precision", ignore=["lm_head", "re:.*layers\\.0\\.mlp\\.up_proj$"],
                             groups=[("re:.*self_attn.*", dict(preset="FP8_DYNAMIC", format="float-quantized", scale=torch.bfloat16)),
                                     ("re:.*down_proj$", dict(preset="NVFP4A16", format="nvfp4-pack-quantized")),
                                     ("re:.*(gate|up)_proj$", dict(format="pack-quantized", scale=torch.bfloat16, weights=int_args(strategy="group", group_size=32)))]),
    # blocks of 128 that are partial both ways, the rows of k and v less than one
    "fp8-blocks": dict(SMALL, hidden=144, heads=6, kv=3, head_dim=24, ffn=272, method="fp8-blocks", ignore=["lm_head"]),
    "fp8-blocks-e8m0": dict(SMALL, hidden=160, heads=10, kv=5, head_dim=16, ffn=136, method="fp8-blocks-e8m0", ignore=["lm_head"]),
    # q, k, v and gate, up as one tensor each: blocks, words of zero points and the one scale that their parts share
    "fp8-blocks-fused": dict(SMALL, hidden=72, heads=6, kv=3, head_dim=20, ffn=100, method="fp8-blocks", ignore=["lm_head"], fused=True),
    "int4-channels-fused": dict(SMALL, hidden=60, heads=6, kv=3, head_dim=18, ffn=76, method="ct", format="pack-quantized", scale=torch.bfloat16,
                                weights=int_args(strategy="channel", symmetric=False), ignore=["lm_head"], fused=True),
    "nvfp4-fused": dict(SMALL, hidden=64, heads=4, kv=2, head_dim=20, ffn=112, method="modelopt-nvfp4", ignore=["lm_head"], fused=True),
    "fp8-modelopt": dict(SMALL, hidden=40, heads=5, kv=5, head_dim=14, ffn=72, method="modelopt", config="FP8_DEFAULT_CFG", kv_config="FP8_KV_CFG",
                         ignore=["model.layers.0.self_attn.o_proj"]),
    "fp8-channels": dict(SMALL, hidden=56, heads=7, kv=1, head_dim=10, ffn=100, method="ct", preset="FP8_DYNAMIC", format="float-quantized", scale=torch.bfloat16,
                         ignore=["re:.*down_proj$"]),
    "int4-groups": dict(SMALL, hidden=96, heads=8, kv=2, head_dim=24, ffn=160, method="ct", format="pack-quantized", scale=torch.bfloat16,
                        weights=int_args(strategy="group", group_size=32, symmetric=False), ignore=["lm_head"]),
    "int4-channels": dict(SMALL, hidden=72, heads=6, kv=3, head_dim=20, ffn=104, method="ct", format="pack-quantized", scale=torch.float32, weights=int_args(strategy="channel"),
                          ignore=["lm_head", "model.layers.0.self_attn.q_proj"]),
    "int4-tensor": dict(SMALL, hidden=40, heads=4, kv=2, head_dim=10, ffn=52, method="ct", format="pack-quantized", scale=torch.float32,
                        weights=int_args(strategy="tensor", symmetric=False), ignore=["lm_head"]),
    "int8-channels": dict(SMALL, hidden=40, heads=4, kv=2, head_dim=18, ffn=100, method="ct", preset="INT8", format="int-quantized", scale=torch.bfloat16, ignore=["lm_head"]),
    # head and embedding too
    "int8-embedding": dict(SMALL, hidden=40, heads=4, kv=4, head_dim=10, ffn=52, method="ct", format="int-quantized", scale=torch.float32,
                           weights=int_args(bits=8, strategy="channel", symmetric=False), ignore=[], targets=["Linear", "Embedding"]),
    "int8-groups": dict(SMALL, hidden=64, heads=4, kv=2, head_dim=32, ffn=192, method="ct", format="pack-quantized", scale=torch.float16,
                        weights=int_args(bits=8, strategy="group", group_size=64, symmetric=False), ignore=["lm_head"]),
    "int4-gptq": dict(SMALL, hidden=64, heads=4, kv=2, head_dim=24, ffn=160, method="gptq", bits=4, group=32),
    # groups of columns that lie anywhere: q, k and v each have an order of their own
    "int4-gptq-act-order": dict(SMALL, layers=2, hidden=64, heads=4, kv=2, head_dim=24, ffn=160, method="gptq", bits=4, group=32, act_order=True),
    "int8-actorder": dict(SMALL, hidden=128, heads=4, kv=4, head_dim=24, ffn=192, method="ct", format="pack-quantized", scale=torch.bfloat16, act_order=True,
                          weights=int_args(bits=8, strategy="group", group_size=32, symmetric=False), ignore=["lm_head"]),
    "int4-actorder": dict(SMALL, hidden=64, heads=4, kv=2, head_dim=24, ffn=96, method="ct", format="pack-quantized", scale=torch.bfloat16, act_order=True,
                          weights=int_args(strategy="group", group_size=32), ignore=["lm_head"]),
    "int8-gptq-v2": dict(SMALL, hidden=80, heads=5, kv=5, head_dim=20, ffn=72, method="gptq", bits=8, group=-1, v2=True),
    "int4-awq": dict(SMALL, hidden=128, heads=8, kv=4, head_dim=16, ffn=192, method="awq", bits=4, group=64),
    # what most published files have: groups of 128, which leaves divide
    "int4-awq-128": dict(SMALL, hidden=128, heads=8, kv=4, head_dim=16, ffn=256, method="awq", bits=4, group=128),
    "int4-gptq-128": dict(SMALL, hidden=128, heads=4, kv=2, head_dim=32, ffn=384, method="gptq", bits=4, group=128),
    "int4-groups-128": dict(SMALL, hidden=128, heads=8, kv=2, head_dim=16, ffn=384, method="ct", format="pack-quantized", scale=torch.bfloat16,
                            weights=int_args(strategy="group", group_size=128), ignore=["lm_head"]),
}


# ---- what each producer writes, and how it is read: functions from a weight to (tensors, values) --------------------------------------------------------


def groups_of(w, size):
    return w.reshape(w.shape[0], -1, size)


def unpack_words(words, bits):
    """The numbers of int32 words along the last axis, the first in the lowest bits."""
    shifts = torch.arange(0, 32, bits)
    return ((words.long() & 0xFFFFFFFF).unsqueeze(-1) >> shifts & (1 << bits) - 1).reshape(*words.shape[:-1], -1)


def pack_words(numbers, bits):
    numbers = numbers.long().reshape(*numbers.shape[:-1], -1, 32 // bits)
    words = (numbers << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def order_of(w):
    """Columns by weight, as act-order takes them: GPTQ would by its Hessian, and any order will do here. And the place of each column in it."""
    order = torch.argsort(w.norm(dim=0), descending=True)
    return order, torch.argsort(order)


def compressed_tensors_in_order(w, c, scheme):
    """actorder: groups are made in that order and stored in the columns' own places again, as compressed-tensors did while it wrote weight_g_idx."""
    order, place = order_of(w)
    tensors, values = compressed_tensors(w[:, order], dict(c, act_order=False), scheme)
    bits = scheme.weights.num_bits
    tensors["weight_packed"] = pack_words(unpack_words(tensors["weight_packed"], bits)[:, : w.shape[1]][:, place], bits)
    tensors["weight_g_idx"] = (place // scheme.weights.group_size).int()
    return tensors, values[:, place]


def compressed_tensors(w, c, scheme):
    args = scheme.weights
    if c.get("act_order"):
        return compressed_tensors_in_order(w, c, scheme)
    state = {"weight": w}
    if args.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(w.min(), w.max())
    if args.strategy in ("group", "tensor_group"):
        view = groups_of(w, args.group_size)
    elif args.strategy == "channel":
        view = w.reshape(w.shape[0], 1, -1)
    else:
        view = w.reshape(1, 1, -1)
    scale, zero = calculate_qparams(view.amin(-1), view.amax(-1), args, global_scale=state.get("weight_global_scale"))
    state["weight_scale"] = scale.reshape(-1) if args.strategy == "tensor" else scale
    if args.strategy != "tensor_group":
        state["weight_scale"] = state["weight_scale"].to(c.get("scale", torch.float32))
    if not args.symmetric:
        state["weight_zero_point"] = zero.to(torch.int8).reshape(state["weight_scale"].shape)
    compressor = BaseCompressor.get_value_from_registry(c["format"])
    tensors = {n: t.detach() for n, t in compressor.compress(state, scheme).items()}
    values = read_compressed_tensors(tensors, args, w.shape)
    theirs = compressor.decompress(tensors, scheme)["weight"].float()
    assert (theirs - values).abs().max() < values.abs().max() / 200, "compressed-tensors reads another weight"
    return tensors, values


def read_compressed_tensors(t, args, shape):
    s = t["weight_scale"]
    if s.dtype == torch.uint8:
        s = torch.exp2(s.float() - 127)
    if args.num_bits == 4 and args.type == "float":
        scale = s.float() / t.get("weight_global_scale", 1)
        codes = unpack_pairs(t["weight_packed"])
    else:
        scale = s.float()
        if args.type == "float":
            codes = t["weight"].float()
        else:
            packed = "weight_packed" in t
            codes = unpack_words(t["weight_packed"], args.num_bits)[:, : shape[1]].float() if packed else t["weight"].float()
            if "weight_zero_point" in t:
                zero = t["weight_zero_point"]
                if packed and zero.dtype == torch.int32:
                    zero = unpack_words(zero.T, args.num_bits).T[: shape[0]].float()
                else:
                    zero = zero.float().reshape(-1, zero.shape[-1]) + (1 << args.num_bits - 1) * packed
            else:
                zero = torch.tensor([[float(1 << args.num_bits - 1)]]) if packed else torch.zeros(1, 1)
            codes = (codes.reshape(shape[0], zero.shape[-1], -1) - zero.unsqueeze(-1)).reshape(shape)
    if scale.ndim == 1:
        return codes * scale
    return (codes.reshape(shape[0], scale.shape[-1], -1) * scale.unsqueeze(-1)).reshape(shape)


def round_e2m1(x):
    """To the nearest, ties to the even code."""
    middle = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    a = x.abs().unsqueeze(-1)
    up = torch.where(torch.arange(7) % 2 == 0, a > middle, a >= middle)
    return up.sum(-1) | torch.where(x < 0, 8, 0)


def modelopt_nvfp4(w, c):
    tensor_scale = w.abs().max() / (6 * 448)
    scale = (groups_of(w, 16).abs().amax(-1) / 6 / tensor_scale).clamp(2**-9, 448).to(F8)
    codes = round_e2m1(groups_of(w, 16) / (scale.float() * tensor_scale).unsqueeze(-1)).reshape(w.shape).to(torch.uint8)
    tensors = {"weight": codes[:, 0::2] | codes[:, 1::2] << 4, "weight_scale": scale, "weight_scale_2": tensor_scale, "input_scale": torch.tensor(0.0125)}
    return tensors, (groups_of(unpack_pairs(tensors["weight"]), 16) * scale.float().unsqueeze(-1) * tensor_scale).reshape(w.shape)


def fp8_blocks(w, c, e8m0=False):
    rows, columns = w.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 128) * 128)
    padded[:rows, :columns] = w
    scale = padded.reshape(padded.shape[0] // 128, 128, -1, 128).abs().amax((1, 3)) / 448
    if e8m0:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    each = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:rows, :columns]
    codes = (w / each).to(F8)
    stored = {"scale": scale.to(torch.float8_e8m0fnu)} if e8m0 else {"weight_scale_inv": scale}
    return {"weight": codes, **stored}, codes.float() * each


def asymmetric(w, bits, group):
    """Codes and zero points of 0 … 2^bits − 1, F16 scales; [out, groups, group] and [out, groups]."""
    g = groups_of(w, w.shape[1] if group == -1 else group)
    low, high = g.amin(-1).clamp(max=0), g.amax(-1).clamp(min=0)
    scale = ((high - low) / ((1 << bits) - 1)).half()
    zero = (-low / scale.float()).round().clamp(0, (1 << bits) - 1)
    codes = ((g / scale.float().unsqueeze(-1)).round() + zero.unsqueeze(-1)).clamp(0, (1 << bits) - 1)
    return codes, scale, zero, ((codes - zero.unsqueeze(-1)) * scale.float().unsqueeze(-1)).reshape(w.shape)


def gptq(w, c):
    bits, columns = c["bits"], w.shape[1]
    order, place = order_of(w) if c.get("act_order") else (torch.arange(columns), torch.arange(columns))
    codes, scale, zero, values = asymmetric(w[:, order], bits, c["group"])
    stored_zero = zero if c.get("v2") else (zero - 1) % (1 << bits)
    group = columns if c["group"] == -1 else c["group"]
    tensors = {"qweight": pack_words(codes.reshape(w.shape)[:, place], bits).T, "qzeros": pack_words(stored_zero.T, bits), "scales": scale.T, "g_idx": (place // group).int()}
    return tensors, values[:, place]


def awq(w, c):
    codes, scale, zero, values = asymmetric(w, 4, c["group"])
    order = lambda x: x.reshape(x.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(x.shape)
    return {"qweight": pack_words(order(codes.reshape(w.shape).T), 4), "qzeros": pack_words(order(zero.T), 4), "scales": scale.T}, values


WRITERS = {"modelopt-nvfp4": modelopt_nvfp4, "fp8-blocks": fp8_blocks, "fp8-blocks-e8m0": lambda w, c: fp8_blocks(w, c, True), "gptq": gptq, "awq": awq}


# ---- configurations ----------------------------------------------------------------------------------------------------------------------------------


FUSIONS = {"self_attn.qkv_proj": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"], "mlp.gate_up_proj": ["mlp.gate_proj", "mlp.up_proj"]}


def scheme_of(c):
    if "preset" in c:
        return preset_name_to_scheme(c["preset"], ["Linear"])
    return QuantizationScheme(targets=c.get("targets", ["Linear"]), weights=c["weights"])


def quantization_config(c):
    if "groups" in c:
        groups = {f"group_{i}": scheme_of(dict(g, targets=[pattern])).model_copy(update={"targets": [pattern], "format": g["format"]}) for i, (pattern, g) in enumerate(c["groups"])}
        q = QuantizationConfig(config_groups=groups, format=c["format"], ignore=c["ignore"], quantization_status=QuantizationStatus.COMPRESSED)
        return json.loads(q.model_dump_json())
    if c["method"] == "ct":
        q = QuantizationConfig(config_groups={"group_0": scheme_of(c)}, format=c["format"], ignore=c["ignore"], quantization_status=QuantizationStatus.COMPRESSED)
        return json.loads(q.model_dump_json())
    if c["method"].startswith("fp8-blocks"):
        return {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    if c["method"] == "gptq":
        return {"quant_method": "gptq", "bits": c["bits"], "group_size": c["group"], "sym": False, "desc_act": bool(c.get("act_order")), "checkpoint_format": "gptq_v2" if c.get("v2") else "gptq"}
    if c["method"] == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": c["group"], "zero_point": True, "version": "gemm", "modules_to_not_convert": None}
    return None


def ignored(c, module):
    for p in c.get("ignore", ["lm_head"]):
        if p.startswith("re:"):
            if re.match(p[3:], module):
                return True
        elif re.fullmatch(re.escape(p).replace(r"\*", ".*"), module):
            return True
    return False


def save(model, c, directory):
    """Returns the weights as a reader of the files has them."""
    if c["method"] == "modelopt":
        return modelopt_export.export(model, directory, c["config"], c.get("ignore", ()), c.get("kv_config"), c.get("modern", True))
    d = spell(c, model.config)
    q = quantization_config(c)
    if q:
        d["quantization_config"] = q
    else:
        with open(os.path.join(directory, "hf_quant_config.json"), "w") as f:
            json.dump({"producer": {"name": "modelopt", "version": "0.40.0"},
                       "quantization": {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": c["ignore"]}}, f, indent=2)
            f.write("\n")
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(d, f, indent=2, sort_keys=True)
        f.write("\n")
    tensors, values = {}, {}
    weights = {n: p.detach() for n, p in model.named_parameters()}
    for fused, parts in FUSIONS.items() if c.get("fused") else ():
        for layer in range(c["layers"]):
            names = [f"model.layers.{layer}.{part}.weight" for part in parts]
            together = torch.cat([weights.pop(n) for n in names])
            weights[f"model.layers.{layer}.{fused}.weight"] = together
    for name, w in weights.items():
        module, what = name.rsplit(".", 1)
        if w.ndim != 2 or ("embed_tokens" in name and "targets" not in c) or ignored(c, module):
            tensors[name] = w.to(torch.bfloat16).contiguous()
            values[name] = w
            continue
        own = next((g for pattern, g in c.get("groups", ()) if re.match(pattern[3:], module)), c)
        parts, values[name] = compressed_tensors(w, own, scheme_of(own)) if c["method"] == "ct" else WRITERS[c["method"]](w, c)
        tensors.update({f"{module}.{n}": t.contiguous() for n, t in parts.items()})
    for fused, parts in FUSIONS.items() if c.get("fused") else ():
        for layer in range(c["layers"]):
            names = [f"model.layers.{layer}.{part}.weight" for part in parts]
            rows = [dict(model.named_parameters())[n].shape[0] for n in names]
            values.update(zip(names, values.pop(f"model.layers.{layer}.{fused}.weight").split(rows)))
    save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    return values


def make(name):
    c = CASES[name]
    directory = os.path.join(HERE, name)
    for attempt in range(100):
        seed = zlib.crc32(name.encode()) + attempt
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        model = LlamaForCausalLM(config_of(c)).float().eval()
        randomise(model, c, seed)
        model.load_state_dict(save(model, c, directory), strict=False)
        ids = torch.randint(0, c["vocab"], (c["n_ids"],), generator=torch.Generator().manual_seed(seed)).tolist()
        ids[0], ids[-1] = c["vocab"] - 1, 0
        new, logits, margin = run(model, ids)
        if margin > MIN_MARGIN:
            break
    else:
        sys.exit(f"{name}: no seed with a margin above {MIN_MARGIN}")
    logits.astype("<f4").tofile(os.path.join(directory, "logits.f32"))
    with open(os.path.join(directory, "ids.txt"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    with open(os.path.join(directory, "greedy.txt"), "w") as f:
        f.write(json.dumps(new) + "\n")
    for file in os.listdir(directory):
        os.chmod(os.path.join(directory, file), 0o644)
    size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))
    print(f"{name}: seed {seed}, logits' standard deviation {logits.std():.3f}, least margin {margin:.4f}, {size // 1024} KB")


if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
