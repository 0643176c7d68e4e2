#!/usr/bin/env python3
"""Writes seeds/convert_fuzz: a whole llama of one layer, hidden size 32, in safetensors and in GGUF. Standard library only."""
import json
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "convert_fuzz")
SHAPES = {"model.embed_tokens": (4, 32), "model.norm": (32,), "input_layernorm": (32,), "post_attention_layernorm": (32,), "self_attn.q_proj": (32, 32), "self_attn.k_proj": (16, 32),
          "self_attn.v_proj": (16, 32), "self_attn.o_proj": (32, 32), "mlp.gate_proj": (32, 32), "mlp.up_proj": (32, 32), "mlp.down_proj": (32, 32)}  # fmt: skip
GGUF = dict(zip(SHAPES, ("token_embd", "output_norm", "attn_norm", "ffn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")))

header, at = {}, 0
for name, shape in SHAPES.items():
    n = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    full = name if name.startswith("model.") else "model.layers.0." + name
    header[full + ".weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + n]}
    at += n
# F16 of small shapes: the data are most of a file, so only the descriptions are kept apart from zeros.
head = json.dumps(header, separators=(",", ":")).encode()
with open(os.path.join(HERE, "llama.safetensors"), "wb") as f:
    f.write(struct.pack("<Q", len(head)) + head + bytes(at))

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
