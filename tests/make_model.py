#!/usr/bin/env python3
"""A tiny Llama in a GGUF file, for tests of the commands: random weights, a tokenizer of single bytes, ChatML. Standard library only.
usage: make_model.py OUT [--seed S] [--layers N] [--hidden N] [--heads N] [--kv-heads N] [--ffn N] [--context N] [--hollow] [--type Q4_K] [--hub]
--hollow: the tensors are a hole of the file (zeros), so that a large model costs no disk.
--type: how matrices are stored whose rows it divides, the others in Q8_0 or F32; random codes under scales of a sensible size.
--hub: OUT is a directory instead, with config.json, model.safetensors in BF16 and tokenizer.json (another model: rope pairs halves of a head)."""
import argparse
import json
import math
import os
import random
import struct

p = argparse.ArgumentParser()
p.add_argument("out")
for name, default in (("seed", 1), ("layers", 2), ("hidden", 64), ("heads", 4), ("kv-heads", 2), ("ffn", 128), ("context", 4096)):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--hollow", action="store_true")
p.add_argument("--type", default="F32")
p.add_argument("--hub", action="store_true")
p.add_argument("--llama3", action="store_true", help="--hub: with Llama 3's rope scaling")
a = p.parse_args()
rng = random.Random(a.seed)

U32, F32, STRING, ARRAY = 4, 6, 8, 9
pairs, tensors = [], []


def text(s):
    b = s.encode()
    return struct.pack("<Q", len(b)) + b


def u32(key, value):
    pairs.append(text(key) + struct.pack("<II", U32, value))


def f32(key, value):
    pairs.append(text(key) + struct.pack("<If", F32, value))


def string(key, value):
    pairs.append(text(key) + struct.pack("<I", STRING) + text(value))


def array(key, kind, items):
    pack = (lambda x: text(x)) if kind == STRING else (lambda x: struct.pack("<I", x))
    pairs.append(text(key) + struct.pack("<IIQ", ARRAY, kind, len(items)) + b"".join(map(pack, items)))


# GPT-2's spelling of the 256 bytes, then the control tokens.
printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
spelled, extra = {b: chr(b) for b in printable}, 256
for b in range(256):
    if b not in spelled:
        spelled[b], extra = chr(extra), extra + 1
tokens = [spelled[b] for b in range(256)] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

string("general.architecture", "llama")
string("general.name", "tiny")
u32("llama.block_count", a.layers)
u32("llama.context_length", a.context)
u32("llama.embedding_length", a.hidden)
u32("llama.feed_forward_length", a.ffn)
u32("llama.attention.head_count", a.heads)
u32("llama.attention.head_count_kv", a.kv_heads)
u32("llama.rope.dimension_count", a.hidden // a.heads)
f32("llama.rope.freq_base", 10000.0)
f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
string("tokenizer.ggml.model", "gpt2")
string("tokenizer.ggml.pre", "smollm")
array("tokenizer.ggml.tokens", STRING, tokens)
array("tokenizer.ggml.token_type", U32, [1] * 256 + [3] * 3)
array("tokenizer.ggml.merges", STRING, [])
u32("tokenizer.ggml.bos_token_id", 257)
u32("tokenizer.ggml.eos_token_id", 258)
string("tokenizer.chat_template", "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
       "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


# name: (ggml's number, columns and bytes of a block)
TYPES = {"F32": (0, 1, 4), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q4_K": (12, 256, 144),
         "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36)}  # fmt: skip


def tensor(name, *dims):
    """dims outermost first"""
    wanted = [a.type, "Q8_0", "F32"] if len(dims) > 1 and a.type != "F32" else ["F32"]
    tensors.append((name, dims, next(t for t in wanted if dims[-1] % TYPES[t][1] == 0)))


def n_bytes(dims, kind):
    n = 1
    for d in dims:
        n *= d
    return n // TYPES[kind][1] * TYPES[kind][2]


def block(kind, high):
    """Numbers between about ±high."""
    b = bytearray(rng.randbytes(TYPES[kind][2]))
    scale = high * rng.uniform(0.5, 1)
    if kind == "MXFP4":
        b[0] = 127 + math.floor(math.log2(scale / 6))
    elif kind == "NVFP4":
        b[:4] = [max(1, round(8 * (7 + math.log2(high / 6))) - rng.randrange(8)) for _ in range(4)]
    elif kind == "Q6_K":
        b[208:] = struct.pack("<e", scale / (127 * 32) * 1.5)
    elif kind == "Q8_0":
        b[:2] = struct.pack("<e", scale / 127)
    else:
        codes, group = 16 if kind.startswith("Q5") else 8, 32 if kind.endswith("_K") else 1
        b[:2] = struct.pack("<e", scale / codes / group)
        if kind not in ("Q4_0", "Q5_0"):
            b[2:4] = struct.pack("<e", scale / group if group > 1 else -scale)
    return bytes(b)


kv = a.hidden // a.heads * a.kv_heads
tensor("token_embd.weight", len(tokens), a.hidden)
tensor("output.weight", len(tokens), a.hidden)
tensor("output_norm.weight", a.hidden)
for i in range(a.layers):
    b = f"blk.{i}."
    tensor(b + "attn_norm.weight", a.hidden)
    tensor(b + "ffn_norm.weight", a.hidden)
    tensor(b + "attn_q.weight", a.hidden, a.hidden)
    tensor(b + "attn_k.weight", kv, a.hidden)
    tensor(b + "attn_v.weight", kv, a.hidden)
    tensor(b + "attn_output.weight", a.hidden, a.hidden)
    tensor(b + "ffn_gate.weight", a.ffn, a.hidden)
    tensor(b + "ffn_up.weight", a.ffn, a.hidden)
    tensor(b + "ffn_down.weight", a.hidden, a.ffn)

if a.hub:
    spelled_so = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                  "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
                  "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip
    os.makedirs(a.out)
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dims, _ in tensors:
        parts = name.split(".")
        hub = ".".join((["model.layers", parts[1]] if parts[0] == "blk" else []) + [spelled_so[parts[-2]], "weight"])
        high = 3**0.5 / dims[-1] ** 0.5 if len(dims) > 1 else 0
        numbers = [rng.uniform(-high, high) if high else rng.uniform(0.5, 1.5) for _ in range(math.prod(dims))]
        b = b"".join(struct.pack("<f", x)[2:] for x in numbers)
        header[hub] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [len(data), len(data) + len(b)]}
        data += b
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with open(os.path.join(a.out, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + data)
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": a.context // 8}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": a.hidden, "intermediate_size": a.ffn, "num_hidden_layers": a.layers,
              "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads, "vocab_size": len(tokens), "max_position_embeddings": a.context, "rms_norm_eps": 1e-5,
              "rope_theta": 10000.0, "rope_scaling": scaling if a.llama3 else None, "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16",
              "bos_token_id": 257, "eos_token_id": 258}  # fmt: skip
    added = [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i in range(256, 259)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {"version": "1.0", "added_tokens": added, "normalizer": None,
                 "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]}, "post_processor": None,
                 "decoder": byte_level, "model": {"type": "BPE", "vocab": {t: i for i, t in enumerate(tokens)}, "merges": []}}  # fmt: skip
    settings = {"bos_token": tokens[257], "eos_token": tokens[258], "chat_template": "{{ messages[0]['content'] }}"}
    for name, what in (("config", config), ("tokenizer", tokenizer), ("tokenizer_config", settings)):
        with open(os.path.join(a.out, name + ".json"), "w") as f:
            json.dump(what, f)
    raise SystemExit

with open(a.out, "wb") as f:
    described, at = b"", 0
    for name, dims, kind in tensors:
        described += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims)) + struct.pack("<IQ", TYPES[kind][0], at)
        at = (at + n_bytes(dims, kind) + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + described
    f.write(head + bytes(-len(head) % 32))
    if a.hollow:
        f.truncate(f.tell() + at)
    else:
        for name, dims, kind in tensors:
            n = dims[0] * (dims[1] if len(dims) > 1 else 1)
            if kind == "F32":
                values = [rng.gauss(0, 1) * dims[-1] ** -0.5 for _ in range(n)] if len(dims) > 1 else [1.0] * n
                f.write(struct.pack(f"<{n}f", *values))
            else:
                f.write(b"".join(block(kind, (3 / dims[-1]) ** 0.5) for _ in range(n // TYPES[kind][1])))
            f.write(bytes(-f.tell() % 32))
