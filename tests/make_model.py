#!/usr/bin/env python3
"""A tiny Llama in a GGUF file, for tests of the commands: random weights, a tokenizer of single bytes, ChatML. Standard library only.
usage: make_model.py OUT [--seed S] [--layers N] [--hidden N] [--heads N] [--kv-heads N] [--ffn N] [--context N] [--hollow]
--hollow: the tensors are a hole of the file (zeros), so that a large model costs no disk."""
import argparse
import random
import struct

p = argparse.ArgumentParser()
p.add_argument("out")
for name, default in (("seed", 1), ("layers", 2), ("hidden", 64), ("heads", 4), ("kv-heads", 2), ("ffn", 128), ("context", 4096)):
    p.add_argument("--" + name, type=int, default=default)
p.add_argument("--hollow", action="store_true")
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


def tensor(name, *dims):
    """dims outermost first; F32"""
    tensors.append((name, dims))


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

with open(a.out, "wb") as f:
    described, at = b"", 0
    for name, dims in tensors:
        described += text(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims)) + struct.pack("<IQ", 0, at)
        n = 4
        for d in dims:
            n *= d
        at = (at + n + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + described
    f.write(head + bytes(-len(head) % 32))
    if a.hollow:
        f.truncate(f.tell() + at)
    else:
        for name, dims in tensors:
            n = dims[0] * (dims[1] if len(dims) > 1 else 1)
            values = [rng.gauss(0, 1) * dims[-1] ** -0.5 for _ in range(n)] if len(dims) > 1 else [1.0] * n
            f.write(struct.pack(f"<{n}f", *values))
            f.write(bytes(-f.tell() % 32))
