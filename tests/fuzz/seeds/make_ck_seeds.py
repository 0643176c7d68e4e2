"""Writes the seeds of safetensors_fuzz, gguf_fuzz, config_fuzz and quant_fuzz beside itself: python3 tests/fuzz/seeds/make_ck_seeds.py"""

import json
import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))


def write(fuzzer, name, data):
    os.makedirs(os.path.join(HERE, fuzzer), exist_ok=True)
    with open(os.path.join(HERE, fuzzer, name), "wb") as f:
        f.write(data)


def safetensors(header, n_data, padding=b""):
    header = json.dumps(header, separators=(",", ":")).encode() + padding
    return struct.pack("<Q", len(header)) + header + bytes(n_data)


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


KINDS = {"u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "bool": (7, "B"), "u64": (10, "Q"), "i64": (11, "q"),
         "f64": (12, "d")}  # fmt: skip


def pair(key, kind, value):
    if kind == "string":
        return string(key) + struct.pack("<I", 8) + string(value)
    if kind == "strings":
        return string(key) + struct.pack("<IIQ", 9, 8, len(value)) + b"".join(string(v) for v in value)
    if kind.endswith("[]"):
        number, code = KINDS[kind[:-2]]
        return string(key) + struct.pack("<IIQ", 9, number, len(value)) + struct.pack(f"<{len(value)}{code}", *value)
    number, code = KINDS[kind]
    return string(key) + struct.pack("<I" + code, number, value)


def gguf(pairs, tensors, alignment=32, version=3):
    """tensors: (name, type, dims outermost first, data)"""
    descriptions, data = b"", b""
    for name, kind, dims, content in tensors:
        descriptions += string(name) + struct.pack("<I", len(dims)) + b"".join(struct.pack("<Q", d) for d in reversed(dims)) + struct.pack("<IQ", kind, len(data))
        data += content + bytes(-len(content) % alignment)
    header = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pair(*p) for p in pairs) + descriptions
    return header + bytes(-len(header) % alignment) + data


F32, Q4_1, Q8_0, Q6_K = 0, 3, 8, 14

write("safetensors_fuzz", "two.safetensors", safetensors({"__metadata__": {"format": "pt"}, "b": entry("F32", [2, 3], 0, 24), "a": entry("BF16", [2], 24, 28)}, 28))
write("safetensors_fuzz", "odd.safetensors", safetensors({"__metadata__": {}, "s": entry("F32", [], 0, 4), "q": entry("F8_E4M3", [1, 1, 1, 1, 3], 4, 7), "z": entry("F16", [0, 9], 7, 7),
                                                         "p": entry("F4", [4], 7, 9)}, 9, b"   "))  # fmt: skip
write("safetensors_fuzz", "overlap.safetensors", safetensors({"k": entry("F32", [1], 0, 4), "v": entry("F32", [1], 0, 4)}, 4))
write("safetensors_fuzz", "wrap.safetensors", safetensors({"a": entry("U8", [6148914691236517205, 3, 3], 0, 1)}, 1))

KEYS = [("general.architecture", "string", "llama"), ("general.alignment", "u32", 64), ("a", "u8", 1), ("b", "i8", -1), ("c", "u16", 2), ("d", "i16", -2), ("e", "i32", -3), ("f", "f32", 0.5),
        ("g", "bool", 1), ("h", "u64", 9), ("i", "i64", -9), ("j", "f64", 1.5), ("tokens", "strings", ["a", "", "bc"]), ("types", "i32[]", [1, -2]), ("scores", "f32[]", [0.5]),
        ("flags", "bool[]", [0, 1]), ("none", "u64[]", [])]  # fmt: skip
write("gguf_fuzz", "kinds.gguf", gguf(KEYS, [("w", Q8_0, [2, 32], bytes(68)), ("n", F32, [4], bytes(16)), ("k", Q6_K, [1, 256], bytes(210))], 64))
write("gguf_fuzz", "plain.gguf", gguf([("general.architecture", "string", "llama")], [("w", F32, [3, 2], bytes(24)), ("v", F32, [3, 2], bytes(24))], version=2))
# every format that is read, two rows of the least that they can hold, and one that is not
TYPES = {"Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24), "Q8_0": (8, 32, 34), "Q2_K": (10, 256, 84), "Q4_K": (12, 256, 144), "Q5_K": (13, 256, 176),
         "Q6_K": (14, 256, 210), "BF16": (30, 1, 2), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36)}  # fmt: skip
write("gguf_fuzz", "types.gguf", gguf([("general.architecture", "string", "llama")], [(name, kind, [2, columns], bytes(range(size)) * 2) for name, (kind, columns, size) in TYPES.items()]))
PART = [("split.no", "u16", 0), ("split.count", "u16", 2), ("split.tensors.count", "i32", 2)]
write("gguf_fuzz", "joined.gguf", gguf(PART, [("w", Q4_1, [1, 1, 2, 32], bytes(40))]) + gguf([("split.no", "u16", 1)], []))

LLAMA = [("general.architecture", "string", "llama"), ("general.name", "string", "x"), ("llama.block_count", "u32", 1), ("llama.embedding_length", "u32", 8),
         ("llama.attention.head_count", "u32", 2), ("llama.attention.head_count_kv", "u32", 1), ("llama.feed_forward_length", "u32", 8), ("llama.context_length", "u32", 64),
         ("llama.attention.layer_norm_rms_epsilon", "f32", 1e-5), ("llama.rope.freq_base", "f32", 5e5), ("tokenizer.ggml.eos_token_id", "u32", 2),
         ("tokenizer.ggml.bos_token_id", "u32", 1)]  # fmt: skip
TENSORS = [("token_embd.weight", F32, [5, 8], bytes(160)), ("blk.0.attn_q.weight", F32, [8, 8], bytes(256)), ("blk.0.attn_k.weight", F32, [4, 8], bytes(128))]
ROPE = [("llama.rope.dimension_count", "u32", 4), ("llama.rope.scaling.type", "string", "linear"), ("llama.rope.scaling.factor", "f32", 2), ("llama.attention.key_length", "u32", 4)]
write("config_fuzz", "plain.gguf", gguf(LLAMA, TENSORS))
write("config_fuzz", "rope.gguf", gguf(LLAMA + ROPE, TENSORS + [("rope_freqs.weight", F32, [2], struct.pack("<ff", 1, 8)), ("output.weight", F32, [5, 8], bytes(160))]))

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 8,
          "vocab_size": 5, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
write("config_fuzz", "scaling.json", json.dumps(CONFIG | {"rope_scaling": LLAMA3}).encode() + b'\0{"eos_token_id":[2,3]}')
write("config_fuzz", "parameters.json", json.dumps(CONFIG | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2}}).encode())

GROUPS = {"config_groups": {"a": {"targets": ["Linear", "re:.*[ab]$"], "format": "float-quantized", "weights": {"num_bits": 4, "type": "int", "group_size": 32}}}, "ignore": ["lm_head", "*x*", "re:y+$"]}
write("config_fuzz", "groups.json", json.dumps(CONFIG | {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"} | GROUPS}).encode())


write("config_fuzz", "cache.json", json.dumps(CONFIG | {"quantization_config": {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}}).encode())


def quantised(name, config, tensors):
    """A config.json, a NUL, and a safetensors file of small numbers: codes and scales that make sense in every type."""
    header, at = {}, 0
    for tensor, dtype, *shape in tensors:
        size = {"F32": 4, "I32": 4, "I64": 8, "F16": 2, "BF16": 2}.get(dtype, 1)
        for d in shape:
            size *= d
        header[tensor] = entry(dtype, shape, at, at + size)
        at += size
    data = bytes((i * 37 + i // 7) % 64 for i in range(at))
    if any("g_idx" in tensor for tensor in header):
        data = bytes(at)
    write("quant_fuzz", name, json.dumps({"quantization_config": config}).encode() + b"\0" + safetensors(header, 0) + data)


quantised("nvfp4", {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["b*"]},
          [("a.weight", "U8", 3, 40), ("a.weight_scale", "F8_E4M3", 3, 5), ("a.weight_scale_2", "F32"), ("a.input_scale", "F32"),
           ("b.weight_packed", "U8", 3, 40), ("b.weight_scale", "F8_E4M3", 3, 5), ("b.weight_global_scale", "F32", 1)])  # fmt: skip
quantised("modelopt", {"quant_method": "modelopt", "quant_algo": "w4a16_awq"},
          [("c.weight", "U8", 3, 64), ("c.weight_scale", "F32", 6, 2), ("c.pre_quant_scale", "BF16", 64),
           ("d.weight", "U8", 3, 48), ("d.weight_scale", "F8_E4M3", 3, 3), ("d.weight_scale_2", "F32")])  # fmt: skip
quantised("mxfp4", {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"} | GROUPS, [("a.weight_packed", "U8", 3, 48), ("a.weight_scale", "U8", 3, 3)])
quantised("fp8", {"quant_method": "fp8", "weight_block_size": [128, 128]},
          [("a.weight", "F8_E4M3", 3, 136), ("a.weight_scale_inv", "F32", 1, 2), ("b.weight", "F8_E4M3", 3, 136), ("b.scale", "F8_E8M0", 1, 2),
           ("c.weight", "F8_E4M3", 2, 40), ("c.weight_scale", "BF16", 2, 1), ("d.weight", "F8_E4M3", 2, 40), ("d.weight_scale", "F32")])  # fmt: skip
quantised("int", {"quant_method": "compressed-tensors", "format": "pack-quantized"} | GROUPS,
          [("a.weight_packed", "I32", 9, 8), ("a.weight_scale", "BF16", 9, 2), ("a.weight_zero_point", "I32", 2, 2), ("a.weight_shape", "I64", 2),
           ("b.weight", "I8", 3, 40), ("b.weight_scale", "F32", 3, 1), ("b.weight_zero_point", "I8", 3, 1)])  # fmt: skip
quantised("gptq", {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": "gptq"},
          [("a.qweight", "I32", 8, 8), ("a.qzeros", "I32", 2, 1), ("a.scales", "F16", 2, 8), ("b.qweight", "I32", 10, 4), ("b.qzeros", "I32", 1, 1), ("b.scales", "F16", 1, 4), ("b.g_idx", "I32", 40)])
quantised("act_order", {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True},
          [("a.qweight", "I32", 8, 8), ("a.qzeros", "I32", 2, 1), ("a.scales", "F16", 2, 8), ("a.g_idx", "I32", 64),
           ("b.weight_packed", "I32", 2, 8), ("b.weight_scale", "BF16", 2, 2), ("b.weight_g_idx", "I32", 64)])  # fmt: skip
quantised("awq", {"quant_method": "awq", "version": "gemm"}, [("a.qweight", "I32", 64, 2), ("a.qzeros", "I32", 2, 2), ("a.scales", "F16", 2, 16)])
quantised("experts", {"quant_method": "fp8"}, [("e_blocks", "U8", 2, 6, 2, 16), ("e_scales", "U8", 2, 6, 2), ("e_bias", "BF16", 2, 6), ("f", "BF16", 2, 4, 6)])
quantised("cache", {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}},
          [("a.weight", "BF16", 2, 4), ("a.k_proj.k_scale", "BF16", 1), ("a.v_scale", "BF16")])  # fmt: skip
