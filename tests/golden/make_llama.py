#!/usr/bin/env python3
"""Writes tests/golden/llama/CASE/: tiny random Llama models and what Hugging Face transformers makes of them.

usage: make_llama.py [CASE…]        all of them without a name; one thread, so the same bytes each time
needs: transformers==5.23.0 torch==2.15.0 gguf==0.19.0 safetensors numpy

A case holds config.json and *.safetensors, or model.gguf; ids.txt; greedy.txt (what follows it greedily, as `tandem eval` prints it); logits.f32, little-endian, a row after each
id, those of greedy.txt included. Safetensors are read back by from_pretrained from the very directory, so that our config.json means to transformers what it should. GGUF files are
written as llama.cpp's convert_hf_to_gguf.py does it (rows of q and k permuted, llama3 scaling as rope_freqs.weight), and judged by transformers over what the gguf package dequantises.

What makes the cases hard: weights uniform ±√(3/in), norms and biases random, no greedy choice closer than 1e-3 of its row's spread (else the next seed), KV heads 1, 3, 5 and 8, a
head_dim unlike hidden ÷ heads, sizes that no power of two divides, a prompt past a partition of 256 keys, llama3 scaling whose original context is so short that its three bands all
are in use within the prompt.
"""
import json
import os
import shutil
import sys
import zlib

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "llama")
N_GREEDY = 8
MIN_MARGIN = 1e-3
Q = gguf.GGMLQuantizationType

# Wavelengths below 16 tokens stay, those above 64 are slowed by 8, those between get a bit of both.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

CASES = {
    # hub spelling without scaling; head_dim 20 where hidden ÷ heads is 8
    "kv3-bf16": dict(hidden=48, heads=6, kv=3, head_dim=20, ffn=96, vocab=131, theta=500000.0, dtype="bf16", spelling="hub"),
    # every bias, three shards, transformers 5's spelling
    "kv5-f16-biases-v5": dict(hidden=40, heads=10, kv=5, head_dim=12, ffn=352, vocab=131, theta=10000.0, scaling=LLAMA3, dtype="f16", spelling="v5", attention_bias=True,
                              mlp_bias=True, shards=3),
    # 7 heads over one KV head, tied, odd ffn; `type` instead of `rope_type`; 300 ids
    "kv1-f32-tied-linear": dict(hidden=28, heads=7, kv=1, head_dim=10, ffn=50, vocab=131, layers=1, theta=10000.0, scaling={"type": "linear", "factor": 4.0}, dtype="f32",
                                spelling="hub", tied=True, n_ids=300),
    "kv8-bf16-llama3": dict(hidden=48, heads=16, kv=8, head_dim=10, ffn=176, vocab=259, theta=500000.0, scaling=LLAMA3, dtype="bf16", spelling="hub", shards=2, mlp_bias=True),
    "mha-f32-linear-v5": dict(hidden=30, heads=5, kv=5, head_dim=6, ffn=33, vocab=151, theta=25000.0, scaling={"rope_type": "linear", "factor": 2.5}, dtype="f32", spelling="v5",
                              attention_bias=True),
    # GGUF: rows of 32 columns at least
    "gguf-q8_0-kv3": dict(hidden=96, heads=6, kv=3, head_dim=32, ffn=96, vocab=131, theta=500000.0, scaling=LLAMA3, gguf=Q.Q8_0),
    "gguf-q4_1-kv5": dict(hidden=160, heads=10, kv=5, head_dim=16, ffn=96, vocab=131, theta=10000.0, gguf=Q.Q4_1),
    "gguf-q8_0-q4_1-tied": dict(hidden=64, heads=8, kv=1, head_dim=24, ffn=352, vocab=131, theta=10000.0, scaling={"rope_type": "linear", "factor": 4.0}, gguf=Q.Q4_1, tied=True,
                                gguf_embedding=Q.Q8_0),
    # Further formats. gguf 0.19 cannot quantise K-quants and NVFP4: their blocks are random codes (see random_blocks). Rows that 256 does not divide fall back, as
    # llama.cpp's quantiser has it; the first is the mixture of "Q4_K_M".
    "gguf-q4_k-q6_k-q5_0": dict(hidden=256, heads=8, kv=4, head_dim=16, ffn=256, vocab=97, layers=1, theta=10000.0, gguf=Q.Q4_K,
                                gguf_other={"v_proj": Q.Q6_K, "down_proj": Q.Q6_K, "lm_head": Q.Q6_K, "o_proj": Q.Q5_0}, n_ids=16),
    "gguf-q5_k-q5_1": dict(hidden=256, heads=4, kv=2, head_dim=24, ffn=256, vocab=97, layers=1, theta=10000.0, gguf=Q.Q5_K, gguf_other={"o_proj": Q.Q5_1}, tied=True, n_ids=16),
    "gguf-q6_k": dict(hidden=256, heads=8, kv=2, head_dim=32, ffn=256, vocab=97, layers=1, theta=10000.0, gguf=Q.Q6_K, tied=True, n_ids=16),
    "gguf-q4_0": dict(hidden=64, heads=4, kv=2, head_dim=16, ffn=96, vocab=97, theta=10000.0, gguf=Q.Q4_0, n_ids=24),
    "gguf-q5_0": dict(hidden=64, heads=4, kv=1, head_dim=32, ffn=96, vocab=97, theta=10000.0, gguf=Q.Q5_0, n_ids=24),
    "gguf-q5_1": dict(hidden=96, heads=6, kv=3, head_dim=16, ffn=160, vocab=97, theta=10000.0, gguf=Q.Q5_1, n_ids=24),
    "gguf-mxfp4": dict(hidden=64, heads=4, kv=4, head_dim=24, ffn=96, vocab=97, theta=10000.0, gguf=Q.MXFP4, n_ids=24),
    "gguf-nvfp4": dict(hidden=64, heads=8, kv=4, head_dim=24, ffn=192, vocab=97, theta=10000.0, gguf=Q.NVFP4, n_ids=24),
    # a tensor scale beside each matrix, as llama.cpp's converter writes them for ModelOpt's checkpoints
    "gguf-nvfp4-scales": dict(hidden=64, heads=8, kv=4, head_dim=24, ffn=192, vocab=97, layers=1, theta=10000.0, gguf=Q.NVFP4, gguf_scales=True, n_ids=24),
    "gguf-f16-kv8-biases": dict(hidden=64, heads=8, kv=8, head_dim=12, ffn=96, vocab=133, layers=1, theta=500000.0, scaling=LLAMA3, gguf=Q.F16, attention_bias=True),
}


# ---- the model ---------------------------------------------------------------------------------------------------------------------------------------


def config_of(c):
    scaling = c.get("scaling")
    parameters = {"rope_type": "default", **(scaling or {}), "rope_theta": c["theta"]}
    if "type" in parameters:
        parameters["rope_type"] = parameters.pop("type")
    config = LlamaConfig(hidden_size=c["hidden"], num_hidden_layers=c.get("layers", 2), num_attention_heads=c["heads"], num_key_value_heads=c["kv"], head_dim=c["head_dim"],
                         intermediate_size=c["ffn"], vocab_size=c["vocab"], rms_norm_eps=1e-5, max_position_embeddings=512, rope_parameters=parameters,
                         attention_bias=c.get("attention_bias", False), mlp_bias=c.get("mlp_bias", False), tie_word_embeddings=c.get("tied", False), bos_token_id=1, eos_token_id=2)
    config._attn_implementation = "eager"
    return config


def randomise(model, c, seed):
    """Values that BF16 holds (or F16, where that is how they are stored), so that storing loses nothing."""
    g = torch.Generator().manual_seed(seed)
    stored = DTYPES.get(c.get("dtype"), torch.bfloat16)
    stored = torch.bfloat16 if stored == torch.float32 else stored
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                low, high = 0.5, 1.5
            elif name.endswith("bias"):
                low, high = -0.5, 0.5
            elif "embed_tokens" in name and not c.get("tied"):
                low, high = -1.0, 1.0
            else:
                high = (3 / p.shape[-1]) ** 0.5
                low = -high
            p.copy_((torch.rand(p.shape, generator=g) * (high - low) + low).to(stored).float())


def run(model, ids):
    """Greedily on from ids: (new ids, logits after every id, smallest margin of a choice over the spread of its row)."""
    new, margin = [], 1e9
    with torch.no_grad():
        for _ in range(N_GREEDY):
            row = model(torch.tensor([ids + new])).logits[0, -1]
            best = torch.topk(row, 2).values
            margin = min(margin, float((best[0] - best[1]) / row.std()))
            new.append(int(row.argmax()))
        return new, model(torch.tensor([ids + new])).logits[0].float().numpy(), margin


# ---- safetensors -------------------------------------------------------------------------------------------------------------------------------------


def spell(c, config):
    """config.json as files on the hub have it, or as transformers 5 writes it."""
    if c["spelling"] == "v5":
        d = config.to_dict()
        d["dtype"] = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[c["dtype"]]
    else:
        d = {"attention_bias": c.get("attention_bias", False), "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "head_dim": c["head_dim"], "hidden_act": "silu",
             "hidden_size": c["hidden"], "initializer_range": 0.02, "intermediate_size": c["ffn"], "max_position_embeddings": 512, "mlp_bias": c.get("mlp_bias", False),
             "num_attention_heads": c["heads"], "num_hidden_layers": c.get("layers", 2), "num_key_value_heads": c["kv"], "pretraining_tp": 1, "rms_norm_eps": 1e-05,
             "rope_scaling": c.get("scaling"), "rope_theta": c["theta"], "tie_word_embeddings": c.get("tied", False),
             "torch_dtype": {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}[c["dtype"]], "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": c["vocab"]}
    d["architectures"] = ["LlamaForCausalLM"]
    d["model_type"] = "llama"
    return d


def save_safetensors(model, c, directory):
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(spell(c, model.config), f, indent=2, sort_keys=True)
        f.write("\n")
    tensors = {n: p.detach().to(DTYPES[c["dtype"]]).contiguous() for n, p in model.named_parameters()}
    n_shards = c.get("shards", 1)
    if n_shards == 1:
        save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
        return
    names = sorted(tensors, key=lambda n: hash_order(n))
    index = {"metadata": {"total_size": sum(t.numel() * t.element_size() for t in tensors.values())}, "weight_map": {}}
    for i in range(n_shards):
        file = f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors"
        mine = names[i::n_shards]
        save_file({n: tensors[n] for n in mine}, os.path.join(directory, file), metadata={"format": "pt"})
        index["weight_map"].update({n: file for n in mine})
    with open(os.path.join(directory, "model.safetensors.index.json"), "w") as f:
        json.dump(index, f, indent=2, sort_keys=True)
        f.write("\n")


def hash_order(name):
    """Layers mixed over the shards, the same way each time."""
    return sum(ord(ch) * (i + 1) for i, ch in enumerate(name)) % 97, name


# ---- GGUF --------------------------------------------------------------------------------------------------------------------------------------------

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
         "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(name):
    module, what = name.rsplit(".", 1)
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{what}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[module] + "." + what


def permute(w, n_heads):
    """llama.cpp, convert_hf_to_gguf.py, LlamaModel.permute: halves → pairs."""
    return w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def unpermute(w, n_heads):
    return w.reshape(n_heads, w.shape[0] // n_heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def rope_freqs(c):
    """llama.cpp, convert_hf_to_gguf.py, LlamaModel.generate_extra_tensors."""
    s, dim = c["scaling"], c["head_dim"]
    freqs = 1.0 / (c["theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    low, high, old = s["low_freq_factor"], s["high_freq_factor"], s["original_max_position_embeddings"]
    factors = []
    for f in freqs:
        wave = 2 * np.pi / f
        if wave < old / high:
            factors.append(1.0)
        elif wave > old / low:
            factors.append(s["factor"])
        else:
            smooth = (old / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / s["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def random_blocks(kind, shape, high, g):
    """Random codes under scales that make numbers between about ±high: for formats that the gguf package reads only."""
    columns, size = gguf.GGML_QUANT_SIZES[kind]
    n = shape[0] * shape[1] // columns
    blocks = g.integers(0, 256, (n, size), dtype=np.uint8)
    scale = g.uniform(0.5, 1, (n, 1)) * high
    f16 = lambda x: x.astype(np.float16).view(np.uint8)
    if kind == Q.NVFP4:  # E4M3: 8 codes for a factor of 2; the largest of E2M1 is 6
        blocks[:, :4] = np.clip(np.round(8 * (7 + np.log2(high / 6))) - g.integers(0, 8, (n, 4)), 1, 126).astype(np.uint8)
    elif kind == Q.Q6_K:  # 6-bit codes less 32, int8 scales
        blocks[:, 208:] = f16(scale / (127 * 32) * 1.5)
    else:  # 6-bit scales of 32 in the mean, and as large minima
        blocks[:, :2] = f16(scale / (16 if kind == Q.Q5_K else 8) / 32)
        blocks[:, 2:4] = f16(scale / 32)
    return blocks.reshape(shape[0], -1)


def save_gguf(model, c, path, seed):
    """Returns the weights as a reader of the file has them."""
    w = gguf.GGUFWriter(path, "llama")
    w.add_name("tiny")
    w.add_block_count(c.get("layers", 2))
    w.add_context_length(512)
    w.add_embedding_length(c["hidden"])
    w.add_feed_forward_length(c["ffn"])
    w.add_head_count(c["heads"])
    w.add_head_count_kv(c["kv"])
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(c["vocab"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_rope_dimension_count(c["head_dim"])
    w.add_rope_freq_base(c["theta"])
    scaling = c.get("scaling") or {}
    if scaling.get("rope_type") == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling["factor"])
    if scaling.get("rope_type") == "llama3":
        w.add_tensor("rope_freqs.weight", rope_freqs(c))
    read = {}
    g = np.random.default_rng(seed)
    for name, p in model.named_parameters():
        x = p.detach().numpy()
        heads = c["heads"] if "q_proj" in name else c["kv"] if "k_proj" in name else 0
        x = permute(x, heads) if heads else x
        kind = Q.F32 if x.ndim == 1 else c.get("gguf_embedding", c["gguf"]) if "embed" in name else c["gguf"]
        if x.ndim == 2:
            kind = next((other for part, other in c.get("gguf_other", {}).items() if part in name), kind)
        x = np.ascontiguousarray(x, dtype=np.float32)
        if kind == Q.F32:
            w.add_tensor(gguf_name(name), x)
        elif kind == Q.F16:
            w.add_tensor(gguf_name(name), x.astype(np.float16))
            x = x.astype(np.float16).astype(np.float32)
        else:
            stored = random_blocks(kind, x.shape, np.abs(x).max(), g) if kind in (Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.NVFP4) else gguf.quants.quantize(x, kind)
            w.add_tensor(gguf_name(name), stored, raw_dtype=kind)
            x = gguf.quants.dequantize(stored, kind).reshape(x.shape)
            if c.get("gguf_scales"):
                scale = g.uniform(0.7, 1.4, 1).astype(np.float32)
                w.add_tensor(gguf_name(name).replace(".weight", ".scale"), scale)
                x = x * scale
        read[name] = torch.from_numpy(np.ascontiguousarray(unpermute(x, heads) if heads else x))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return read


# ---- all of it ---------------------------------------------------------------------------------------------------------------------------------------


def make(name):
    c = CASES[name]
    directory = os.path.join(HERE, name)
    for attempt in range(100):
        seed = zlib.crc32(name.encode()) + attempt
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        model = LlamaForCausalLM(config_of(c)).float().eval()
        randomise(model, c, seed)
        if "gguf" in c:
            read = save_gguf(model, c, os.path.join(directory, "model.gguf"), seed)
            model.load_state_dict(read, strict=False)
            model.tie_weights()
        else:
            save_safetensors(model, c, directory)
            model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        ids = torch.randint(0, c["vocab"], (c.get("n_ids", 40),), generator=torch.Generator().manual_seed(seed)).tolist()
        ids[0], ids[-1] = c["vocab"] - 1, 0  # the first and the last row of the embedding
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
        os.chmod(os.path.join(directory, file), 0o644)  # safetensors writes for its owner alone
    size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))
    print(f"{name}: seed {seed}, logits' standard deviation {logits.std():.3f}, least margin {margin:.4f}, {size // 1024} KB")


torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
