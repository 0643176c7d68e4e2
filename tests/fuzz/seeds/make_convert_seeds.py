#!/usr/bin/env python3
"""Writes seeds/convert_fuzz: a whole llama of one layer, hidden size 32, in safetensors (plain, and quantised in several ways) and in GGUF. Standard library only."""
import json
import math
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "convert_fuzz")
SHAPES = {"model.embed_tokens": (4, 32), "model.norm": (32,), "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32),
          "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32), "mlp.gate_proj": (32, 32), "mlp.up_proj": (32, 32), "mlp.down_proj": (32, 32)}  # fmt: skip
GGUF = dict(zip(SHAPES, ("token_embd", "output_norm", "attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")))

BYTES = {"F16": 2, "I32": 4, "F32": 4, "I64": 8, "U8": 1, "F8_E4M3": 1}


def tensors(name, shape, quantised):
    """What a module has, of types and shapes that fit each other."""
    o, i = (shape + (1,))[:2]
    if not quantised or len(shape) < 2 or "embed" in name:
        return {"weight": ("F16", shape)}
    if name.endswith("q_proj"):
        return {"weight_packed": ("I32", (o, i // 8)), "weight_scale": ("F16", (o, 1)), "weight_shape": ("I64", (2,))}
    if name.endswith("k_proj"):
        return {"qweight": ("I32", (i // 8, o)), "qzeros": ("I32", (1, o // 8)), "scales": ("F16", (1, o)), "g_idx": ("I32", (i,))}
    if name.endswith("v_proj"):
        return {"qweight": ("I32", (i, o // 8)), "qzeros": ("I32", (1, o // 8)), "scales": ("F16", (1, o))}
    if name.startswith("mlp"):
        return {"weight": ("U8", (o, i // 2)), "weight_scale": ("U8", (o, i // 32))}
    return {"weight": ("F8_E4M3", shape), "weight_scale": ("F32", (o, 1))}


def write(file, quantised):
    header, at = {}, 0
    for name, shape in SHAPES.items():
        full = name if name.startswith("model.") else "model.layers.0." + name
        for what, (dtype, dims) in tensors(name, shape, quantised).items():
            n = BYTES[dtype] * math.prod(dims)
            header[f"{full}.{what}"] = {"dtype": dtype, "shape": dims, "data_offsets": [at, at + n]}
            at += n
    head = json.dumps(header, separators=(",", ":")).encode()
    data = bytearray(at)
    for name, t in header.items():
        if name.endswith("weight_shape"):
            data[slice(*t["data_offsets"])] = struct.pack("<2q", *SHAPES["self_attn.q_proj"])
    with open(os.path.join(HERE, file), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)


write("llama.safetensors", False)
write("quantised.safetensors", True)

text = lambda s: struct.pack("<Q", len(s)) + s.encode()
u32 = lambda key, v: text(key) + struct.pack("<II", 4, v)
pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama"), text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
pairs += [u32("llama." + k, v) for k, v in (("block_count", 1), ("embedding_length", 32), ("feed_forward_length", 32), ("attention.head_count", 2), ("attention.head_count_kv", 1),
                                            ("rope.dimension_count", 16))]  # fmt: skip
described, at = b"", 0
for name, shape in SHAPES.items():
    kind, n = (8, shape[0] * 34) if len(shape) > 1 else (0, shape[0] * 4)
    full = GGUF[name] if name.startswith("model.") else "blk.0." + GGUF[name]
    described += text(full + ".weight") + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", d) for d in reversed(shape)) + struct.pack("<IQ", kind, at)
    at = (at + n + 31) // 32 * 32
head = b"GGUF" + struct.pack("<IQQ", 3, len(SHAPES), len(pairs)) + b"".join(pairs) + described
with open(os.path.join(HERE, "llama.gguf"), "wb") as f:
    f.write(head + bytes(-len(head) % 32) + bytes(at))
