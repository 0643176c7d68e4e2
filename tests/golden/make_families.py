#!/usr/bin/env python3
"""Writes tests/golden/families/CASE/: tiny random models of every family but Llama (make_llama.py), and what Hugging Face transformers makes of them.

usage: make_families.py [CASE…]     all of them without a name; one thread, so the same bytes each time
needs: as make_quant.py

A case holds what make_llama.py's do. Safetensors are written by transformers (save_pretrained undoes its own fusing of experts, so the names are the hub's) and read back by it from the
very directory; their config.json is transformers 5's, or with "hub" is spelled as publishers have it. Quantised ones are written by make_quant.py's writers (compressed-tensors' own
compressors among them), and transformers runs on what they hold by definition. MXFP4 blocks of GPT-OSS are random codes, dequantised by transformers' own reader.
GGUF files are written as llama.cpp's convert_hf_to_gguf.py does it.

What makes the cases hard, beside what make_llama.py says: numbers of experts that nothing divides, more experts than groups of expert mode, correction biases that change the choice,
windows shorter than the prompt, sinks, YaRN whose ramp lies inside the head, dense layers between; the last chosen and the first not chosen expert are never closer than 1e-4.
"""
import json
import os
import shutil
import sys
import tempfile
import zlib

import gguf
import numpy as np
import torch
import transformers
import make_quant
from make_llama import MIN_MARGIN, N_GREEDY, permute, run, unpermute
from safetensors.torch import load_file, save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "families")
MIN_ROUTER_MARGIN = 1e-4
Q = gguf.GGMLQuantizationType
YARN = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 4.0, "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 64}

BASE = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=20, intermediate_size=96, vocab_size=131, rms_norm_eps=1e-5,
            max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)  # fmt: skip
GPT_OSS = dict(BASE, hidden_size=96, head_dim=16, intermediate_size=64, num_local_experts=5, num_experts_per_tok=2, sliding_window=8, num_hidden_layers=3, swiglu_limit=1.5)
GPT_OSS_ROPE = dict(YARN, rope_theta=150000.0)

CASES = {
    "qwen3-kv3": dict(family="Qwen3", config=BASE, theta=1000000.0, hub=True),
    "qwen3-gguf-q8_0": dict(family="Qwen3", config=dict(BASE, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=24), theta=1000000.0, gguf=("qwen3", Q.Q8_0)),
    # a dense layer between
    "qwen3_moe-e7": dict(family="Qwen3Moe", config=dict(BASE, num_hidden_layers=3, num_experts=7, num_experts_per_tok=3, moe_intermediate_size=66, mlp_only_layers=[1], norm_topk_prob=True),
                         theta=1000000.0, hub=True),
    # more experts than groups; 13 units over 12 leaves
    "qwen3_moe-e40": dict(family="Qwen3Moe", config=dict(BASE, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, num_experts=40, num_experts_per_tok=4,
                                                         moe_intermediate_size=26, norm_topk_prob=False), theta=10000.0),
    "qwen3_moe-gguf-q4_0": dict(family="Qwen3Moe", config=dict(BASE, hidden_size=64, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=96, norm_topk_prob=True), theta=1000000.0,
                                gguf=("qwen3moe", Q.Q4_0)),
    # as transformers 5 holds them: one tensor for all experts, gate before up
    "qwen3_moe-fused": dict(family="Qwen3Moe", config=dict(BASE, num_hidden_layers=1, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=40, norm_topk_prob=True), theta=10000.0,
                            fused=True),
    "mixtral-e8": dict(family="Mixtral", config=dict(BASE, num_local_experts=8, num_experts_per_tok=2, intermediate_size=72), theta=1000000.0, hub=True),
    "mixtral-gguf-q5_0": dict(family="Mixtral", config=dict(BASE, hidden_size=64, num_local_experts=4, num_experts_per_tok=2, head_dim=16), theta=1000000.0, gguf=("llama", Q.Q5_0)),
    "gpt_oss-bf16": dict(family="GptOss", config=GPT_OSS, rope=GPT_OSS_ROPE, n_ids=60),
    "gpt_oss-mxfp4": dict(family="GptOss", config=GPT_OSS, rope=GPT_OSS_ROPE, n_ids=60, mxfp4=True, hub=True),
    "gpt_oss-gguf-mxfp4": dict(family="GptOss", config=dict(GPT_OSS, swiglu_limit=7.0), rope=GPT_OSS_ROPE, n_ids=60, gguf=("gpt-oss", Q.MXFP4)),
    "glm4_moe-groups": dict(family="Glm4Moe", config=dict(BASE, num_hidden_layers=3, first_k_dense_replace=1, n_routed_experts=6, num_experts_per_tok=2, moe_intermediate_size=40, n_group=3,
                                                          topk_group=2, n_shared_experts=1, routed_scaling_factor=2.5, attention_bias=True, use_qk_norm=True, num_mtp_layers=0),
                            theta=1000000.0, share=0.5, hub=True),
    "glm4_moe-plain": dict(family="Glm4Moe", config=dict(BASE, num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=5, num_experts_per_tok=3, moe_intermediate_size=52, n_group=1,
                                                         topk_group=1, n_shared_experts=1, routed_scaling_factor=1.0, use_qk_norm=False, num_mtp_layers=0), theta=10000.0, share=0.5),
    # a shared expert of another size with a gate; and two that are one of twice the size, without
    "qwen2_moe-gate": dict(family="Qwen2Moe", config=dict({k: v for k, v in BASE.items() if k != "head_dim"}, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=40,
                                                          shared_expert_intermediate_size=104, mlp_only_layers=[1], num_hidden_layers=3), theta=1000000.0, hub=True),
    "glm4_moe-shared2": dict(family="Glm4Moe", config=dict(BASE, num_hidden_layers=1, first_k_dense_replace=0, n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=44, n_group=1,
                                                           topk_group=1, n_shared_experts=2, use_qk_norm=True, num_mtp_layers=0), theta=10000.0, share=0.5, hub=True),
    "minimax_m2-kv3": dict(family="MiniMaxM2", config=dict(BASE, num_local_experts=7, num_experts_per_tok=3, intermediate_size=44), theta=5000000.0, share=0.5, hub=True),
    # leaves that cut the groups of one KV head
    "minimax_m2-kv1": dict(family="MiniMaxM2", config=dict(BASE, num_hidden_layers=1, num_attention_heads=10, num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=2,
                                                           intermediate_size=40), theta=5000000.0, share=0.5),
    "qwen3_moe-nvfp4": dict(family="Qwen3Moe", config=dict(BASE, hidden_size=64, head_dim=16, num_experts=6, num_experts_per_tok=2, moe_intermediate_size=80, norm_topk_prob=True),
                            theta=1000000.0, hub=True, quant=dict(method="ct", preset="NVFP4", format="nvfp4-pack-quantized", ignore=["lm_head", "re:.*mlp.gate$"])),
    "glm4_moe-fp8": dict(family="Glm4Moe", config=dict(BASE, first_k_dense_replace=1, n_routed_experts=5, num_experts_per_tok=2, moe_intermediate_size=52, n_group=1, topk_group=1,
                                                       n_shared_experts=1, routed_scaling_factor=1.5, use_qk_norm=True, num_mtp_layers=0),
                         theta=1000000.0, share=0.5, hub=True,
                         quant=dict(method="ct", preset="FP8_DYNAMIC", format="float-quantized", scale=torch.bfloat16, ignore=["lm_head", "re:.*mlp.gate$"])),
    # blocks of 128 that are partial both ways
    "minimax_m2-fp8": dict(family="MiniMaxM2", config=dict(BASE, num_hidden_layers=1, hidden_size=144, head_dim=24, num_local_experts=4, num_experts_per_tok=2, intermediate_size=136),
                           theta=5000000.0, share=0.5, hub=True, quant=dict(method="fp8-blocks", ignore=["lm_head", "re:.*block_sparse_moe.gate$"])),
    "mixtral-awq": dict(family="Mixtral", config=dict(BASE, num_hidden_layers=1, hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_local_experts=4,
                                                      num_experts_per_tok=2, intermediate_size=128),
                        theta=1000000.0, hub=True, quant=dict(method="awq", bits=4, group=64, ignore=["lm_head", "re:.*block_sparse_moe.gate$"])),
}  # fmt: skip


# ---- the model ---------------------------------------------------------------------------------------------------------------------------------------


def config_of(c):
    rope = dict(c["rope"]) if "rope" in c else {"rope_type": "default", "rope_theta": c["theta"]}
    if "share" in c:
        rope["partial_rotary_factor"] = c["share"]
    config = getattr(transformers, c["family"] + "Config")(rope_parameters=rope, **c["config"])
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    return config


def randomise(model, seed):
    """Values that BF16 holds, so that storing loses nothing."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if "correction" in n)]:
            transposed = type(model).__name__ == "GptOssForCausalLM" and "experts" in name
            if "norm" in name:
                low, high = 0.5, 1.5
            elif "correction" in name:
                low, high = -0.3, 0.3
            elif "bias" in name or "sinks" in name:
                low, high = -0.5, 0.5
            elif "embed_tokens" in name:
                low, high = -1.0, 1.0
            else:
                high = (3 / p.shape[-2 if transposed else -1]) ** 0.5
                low = -high
            p.copy_((torch.rand(p.shape, generator=g) * (high - low) + low).bfloat16().float())


def router_margins(model, ids):
    """The least distance between the last chosen expert's score and the next one's."""
    least, hooks = [1e9], []

    def look(module, inputs, output):
        logits = output[0] if isinstance(output, tuple) else output
        scores = logits.float()
        if hasattr(module, "e_score_correction_bias"):
            scores = scores.sigmoid() + module.e_score_correction_bias
        best = torch.sort(scores, -1, descending=True).values
        if best.shape[-1] > module.top_k:
            least[0] = min(least[0], float((best[..., module.top_k - 1] - best[..., module.top_k]).min()))

    for _, module in model.named_modules():
        if hasattr(module, "top_k") and "Router" in type(module).__name__:
            hooks.append(module.register_forward_hook(look))
    with torch.no_grad():
        model(torch.tensor([ids]))
    for h in hooks:
        h.remove()
    return least[0]


# ---- safetensors -------------------------------------------------------------------------------------------------------------------------------------


def spell_as_hub(path):
    """Keys as publishers have them."""
    with open(path) as f:
        d = json.load(f)
    rope = d.pop("rope_parameters")
    d["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        d["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    if d["model_type"] == "minimax_m2":
        d["rotary_dim"] = int(d.pop("partial_rotary_factor") * d["head_dim"])
    d["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    d["torch_dtype"] = d.pop("dtype")
    if d["model_type"] in ("qwen2_moe", "qwen3_moe") and "num_local_experts" in d:
        d["num_experts"] = d.pop("num_local_experts")
    with open(path, "w") as f:
        json.dump(d, f, indent=2, sort_keys=True)
        f.write("\n")


def save_safetensors(model, c, directory):
    model.to(torch.bfloat16).save_pretrained(directory)
    if c.get("fused"):
        save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    if os.path.exists(os.path.join(directory, "generation_config.json")):
        os.remove(os.path.join(directory, "generation_config.json"))
    if c.get("hub"):
        spell_as_hub(os.path.join(directory, "config.json"))


def save_mxfp4(model, c, directory, seed):
    """Experts as GPT-OSS's files have them: blocks of 32 codes along the input, one scale each. Returns what transformers makes of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    save_safetensors(model, c, directory)
    path = os.path.join(directory, "model.safetensors")
    tensors = load_file(path)
    g = torch.Generator().manual_seed(seed)
    read = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        n_experts, n_in, n_out = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (n_experts, n_out, n_in // 32, 16), generator=g, dtype=torch.uint8)
        scales = torch.randint(0, 3, (n_experts, n_out, n_in // 32), generator=g).to(torch.uint8) + 122
        tensors[name + "_blocks"], tensors[name + "_scales"] = blocks, scales
        read[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).float()
        assert read[name].shape == (n_experts, n_in, n_out)
    save_file(tensors, path, metadata={"format": "pt"})
    with open(os.path.join(directory, "config.json")) as f:
        d = json.load(f)
    d["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]}
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(d, f, indent=2, sort_keys=True)
        f.write("\n")
    return read


def save_quantised(model, c, directory):
    """Returns the model as a reader of the files has it."""
    q = c["quant"]
    kind = type(model)
    save_safetensors(model, c, directory)
    path = os.path.join(directory, "model.safetensors")
    stored, values = {}, {}
    for name, w in load_file(path).items():
        module = name.rsplit(".", 1)[0]
        if w.ndim != 2 or "embed_tokens" in name or make_quant.ignored(q, module):
            stored[name], values[name] = w, w.float()
            continue
        if q["method"] == "ct":
            parts, values[name] = make_quant.compressed_tensors(w.float(), q, make_quant.scheme_of(q))
        else:
            parts, values[name] = make_quant.WRITERS[q["method"]](w.float(), q)
        stored.update({f"{module}.{n}": t.contiguous() for n, t in parts.items()})
    with tempfile.TemporaryDirectory() as plain:
        shutil.copy(os.path.join(directory, "config.json"), plain)
        save_file({n: v.contiguous() for n, v in values.items()}, os.path.join(plain, "model.safetensors"), metadata={"format": "pt"})
        read = kind.from_pretrained(plain, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
    save_file(stored, path, metadata={"format": "pt"})
    with open(os.path.join(directory, "config.json")) as f:
        d = json.load(f)
    d["quantization_config"] = make_quant.quantization_config(q)
    if q["method"] != "ct":
        d["quantization_config"]["modules_to_not_convert"] = ["gate", "lm_head"]
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(d, f, indent=2, sort_keys=True)
        f.write("\n")
    return read


# ---- GGUF --------------------------------------------------------------------------------------------------------------------------------------------

NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
         "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate": "ffn_gate_inp",
         "mlp.router": "ffn_gate_inp"}  # fmt: skip


def gguf_tensors(model, architecture):
    """(name, numbers) as the converter writes them."""
    for name, p in model.named_parameters():
        x = p.detach().numpy()
        module, what = name.rsplit(".", 1)
        if not module.startswith("model.layers."):
            yield {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[module] + "." + what, x
            continue
        _, _, layer, rest = module.split(".", 3)
        at = f"blk.{layer}."
        if rest == "post_attention_layernorm":
            yield at + ("post_attention_norm" if architecture == "gpt-oss" else "ffn_norm") + ".weight", x
        elif what == "sinks":
            yield at + "attn_sinks.weight", x
        elif "experts" in rest and architecture == "gpt-oss":
            suffix = ".bias" if what.endswith("bias") else ".weight"
            if suffix == ".weight":
                x = x.swapaxes(1, 2)
            if what.startswith("gate_up"):
                yield at + "ffn_gate_exps" + suffix, x[:, ::2]
                yield at + "ffn_up_exps" + suffix, x[:, 1::2]
            else:
                yield at + "ffn_down_exps" + suffix, x
        elif "experts" in rest and what == "gate_up_proj":
            half = x.shape[1] // 2
            yield at + "ffn_gate_exps.weight", x[:, :half]
            yield at + "ffn_up_exps.weight", x[:, half:]
        elif "experts" in rest:
            yield at + "ffn_down_exps.weight", x
        else:
            yield at + NAMES[rest] + "." + what, x


def save_gguf(model, c, path):
    """Writes the file and puts what a reader of it has back into the model."""
    architecture, kind = c["gguf"]
    d = model.config
    w = gguf.GGUFWriter(path, architecture)
    w.add_name("tiny")
    w.add_block_count(d.num_hidden_layers)
    w.add_context_length(512)
    w.add_embedding_length(d.hidden_size)
    w.add_feed_forward_length(d.intermediate_size)
    w.add_head_count(d.num_attention_heads)
    w.add_head_count_kv(d.num_key_value_heads)
    w.add_layer_norm_rms_eps(d.rms_norm_eps)
    w.add_vocab_size(d.vocab_size)
    w.add_key_length(d.head_dim)
    w.add_value_length(d.head_dim)
    w.add_rope_dimension_count(d.head_dim)
    w.add_rope_freq_base(d.rope_parameters["rope_theta"])
    if d.rope_parameters["rope_type"] == "yarn":
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(d.rope_parameters["factor"])
        w.add_rope_scaling_orig_ctx_len(d.rope_parameters["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_beta_fast(d.rope_parameters["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(d.rope_parameters["beta_slow"])
    if architecture != "qwen3":
        w.add_expert_count(d.num_local_experts)
        w.add_expert_used_count(d.num_experts_per_tok)
        w.add_expert_feed_forward_length(getattr(d, "moe_intermediate_size", d.intermediate_size))
    if architecture == "gpt-oss":
        w.add_sliding_window(d.sliding_window)
    read = {}
    for name, x in gguf_tensors(model, architecture):
        heads = 0 if architecture != "llama" else d.num_attention_heads if "attn_q." in name else d.num_key_value_heads if "attn_k." in name else 0
        x = np.ascontiguousarray(permute(x, heads) if heads else x, dtype=np.float32)
        if x.ndim == 1 or name.endswith(".bias") or "ffn_gate_inp" in name:
            w.add_tensor(name, x)
        else:
            this = kind if kind != Q.MXFP4 or "exps" in name else Q.Q8_0
            stored = gguf.quants.quantize(x, this)
            w.add_tensor(name, stored, raw_dtype=this)
            x = gguf.quants.dequantize(stored, this).reshape(x.shape)
        read[name] = unpermute(x, heads) if heads else x
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()

    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(np.ascontiguousarray(put_back(name, read, architecture))))


def put_back(name, read, architecture):
    """A parameter of the model out of the file's tensors: the reverse of gguf_tensors."""
    module, what = name.rsplit(".", 1)
    if not module.startswith("model.layers."):
        return read[{"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[module] + "." + what]
    _, _, layer, rest = module.split(".", 3)
    at = f"blk.{layer}."
    if rest == "post_attention_layernorm":
        return read[at + ("post_attention_norm" if architecture == "gpt-oss" else "ffn_norm") + ".weight"]
    if what == "sinks":
        return read[at + "attn_sinks.weight"]
    if "experts" not in rest:
        return read[at + NAMES[rest] + "." + what]
    suffix = ".bias" if what.endswith("bias") else ".weight"
    if not what.startswith("gate_up"):
        x = read[at + "ffn_down_exps" + suffix]
    else:
        gate, up = read[at + "ffn_gate_exps" + suffix], read[at + "ffn_up_exps" + suffix]
        x = np.stack([gate, up], 2).reshape(gate.shape[0], -1, *gate.shape[2:]) if architecture == "gpt-oss" else np.concatenate([gate, up], 1)
    return x.swapaxes(1, 2) if architecture == "gpt-oss" and suffix == ".weight" else x


# ---- all of it ---------------------------------------------------------------------------------------------------------------------------------------


def make(name):
    c = CASES[name]
    directory = os.path.join(HERE, name)
    kind = getattr(transformers, c["family"] + "ForCausalLM")
    for attempt in range(200):
        seed = zlib.crc32(name.encode()) + attempt
        shutil.rmtree(directory, ignore_errors=True)
        os.makedirs(directory)
        model = kind(config_of(c)).float().eval()
        randomise(model, seed)
        if "gguf" in c:
            save_gguf(model, c, os.path.join(directory, "model.gguf"))
        elif "quant" in c:
            model = save_quantised(model, c, directory)
        elif c.get("mxfp4"):
            read = save_mxfp4(model, c, directory, seed)
            plain = load_file(os.path.join(directory, "model.safetensors"))
            model = kind(config_of(c)).float().eval()  # anew: what was saved has its rope frequencies in BF16 as well
            model.load_state_dict({**{n: t.float() for n, t in plain.items() if not n.endswith(("_blocks", "_scales"))}, **read})
        else:
            save_safetensors(model, c, directory)
            model = kind.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager").eval()
        vocab = c["config"]["vocab_size"]
        ids = torch.randint(0, vocab, (c.get("n_ids", 40),), generator=torch.Generator().manual_seed(seed)).tolist()
        ids[0], ids[-1] = vocab - 1, 0  # the first and the last row of the embedding
        new, logits, margin = run(model, ids)
        if margin > MIN_MARGIN and router_margins(model, ids + new) > MIN_ROUTER_MARGIN:
            break
    else:
        sys.exit(f"{name}: no seed with margins above {MIN_MARGIN} and {MIN_ROUTER_MARGIN}")
    logits.astype("<f4").tofile(os.path.join(directory, "logits.f32"))
    with open(os.path.join(directory, "ids.txt"), "w") as f:
        f.write(" ".join(map(str, ids)) + "\n")
    with open(os.path.join(directory, "greedy.txt"), "w") as f:
        f.write(json.dumps(new) + "\n")
    assert len(new) == N_GREEDY
    for file in os.listdir(directory):
        os.chmod(os.path.join(directory, file), 0o644)
    size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory))
    print(f"{name}: seed {seed}, logits' standard deviation {logits.std():.3f}, least margin {margin:.4f}, {size // 1024} KB", flush=True)


torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
if __name__ == "__main__":
    for case in sys.argv[1:] or CASES:
        make(case)
