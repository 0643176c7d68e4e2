"""NVIDIA ModelOpt quantises a model and exports it, all on the CPU: what its users publish, down to the names of the tensors.

needs: nvidia-modelopt==0.47.0 (and what it asks for that is not there already: omegaconf antlr4-python3-runtime==4.9.3 pydantic pulp nvidia-ml-py rich ninja scipy tqdm regex)
Of its configurations those that search for scales of FP4 want a GPU. One that is exported is read back by its definition (value = code · block scale · tensor scale), and must
lie close to the weights that went in: a wrong order of nibbles or a scale misunderstood would not. (AWQ moves scales of columns from weights into the norms before them; then the weights
that keep theirs are compared.)"""
import contextlib
import copy
import glob
import json
import os
import sys
import warnings

import torch

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MAX_RMS = 0.2  # of what 4 bits leave out, in parts of the weights


def unpack_pairs(codes):
    both = torch.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], -1).long()
    return E2M1[both & 7] * torch.where(both & 8 > 0, -1.0, 1.0)


def each(scale, shape):
    """A number for every weight, from one, one a row, groups of columns, or blocks of 128 × 128 as [n, 1, m, 1]."""
    if scale.ndim == 4:
        blocks = scale[:, 0, :, 0].float()
        return blocks.repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]
    scale = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    if scale.ndim == 2:
        return scale.repeat_interleave(shape[1] // scale.shape[1], 1)
    return scale.reshape(-1, 1) if scale.ndim else scale


def read(parts, shape):
    codes, scale = parts["weight"], parts["weight_scale"]
    if codes.dtype == torch.uint8 and scale.dtype == torch.float32:  # INT4: two rows in a byte
        codes = torch.stack([codes & 15, codes >> 4], 1).reshape(shape).int()
        codes = torch.where(codes > 7, codes - 16, codes)
    elif codes.dtype == torch.uint8:
        codes = unpack_pairs(codes)
    values = codes.float() * each(scale, shape) * parts.get("weight_scale_2", torch.tensor(1.0)).float()
    return values * parts["pre_quant_scale"].float() if "pre_quant_scale" in parts else values


def export(model, directory, config, ignore=(), kv=None, modern=True, n_ids=24):
    """Writes directory; returns the weights as a reader of the files has them. config: the name of one of ModelOpt's; ignore: its patterns; kv: "FP8_KV_CFG".
    modern: config.json has quantization_config; else hf_quant_config.json alone tells, as older files have it."""
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        import modelopt.torch.quantization as mtq
        from modelopt.torch.export import export_hf_checkpoint

        rules = copy.deepcopy(getattr(mtq, config))
        rules["quant_cfg"] += [{"quantizer_name": f"*{p.strip('*')}.*" if "*" not in p.strip("*") else p, "enable": False} for p in ignore]
        if kv:
            rules["quant_cfg"] += copy.deepcopy(getattr(mtq, kv))["quant_cfg"]
        given = {n: p.detach().float() for n, p in model.named_parameters()}
        ids = torch.randint(0, model.config.vocab_size, (2, n_ids), generator=torch.Generator().manual_seed(1))
        copied = copy.deepcopy(model).to(torch.bfloat16)
        copied.config.architectures = [type(model).__name__]
        copied = mtq.quantize(copied, rules, lambda m: m(ids))
        with torch.inference_mode():
            export_hf_checkpoint(copied, dtype=torch.bfloat16, export_dir=directory)
    keep = "config.json", "hf_quant_config.json"
    for file in glob.glob(os.path.join(directory, "*.json")):
        if os.path.basename(file) not in keep and "tokenizer" not in file:
            os.remove(file)
    path = os.path.join(directory, "config.json")
    with open(path) as f:
        written = json.load(f)
    if modern:
        os.remove(os.path.join(directory, "hf_quant_config.json"))
    else:
        del written["quantization_config"]
        with open(path, "w") as f:
            json.dump(written, f, indent=2)
            f.write("\n")
    return read_back(directory, given)


def read_back(directory, given):
    from safetensors.torch import load_file

    tensors = load_file(os.path.join(directory, "model.safetensors"))
    values, n = {}, 0
    moved = any(name.endswith("pre_quant_scale") for name in tensors)
    for name, w in given.items():
        if name not in tensors:
            continue  # tied
        module = name.rsplit(".", 1)[0]
        parts = {t[len(module) + 1 :]: x for t, x in tensors.items() if t.startswith(module + ".")}
        values[name] = read(parts, w.shape) if "weight_scale" in parts else parts[name[len(module) + 1 :]].float()
        n += "weight_scale" in parts
        if moved and "pre_quant_scale" not in parts:
            continue
        s = parts.get("pre_quant_scale", torch.tensor(1.0)).float() if name.endswith("weight") else 1  # what was rounded is w / s
        assert ((values[name] - w) / s).norm() < MAX_RMS * (w / s).norm(), f"{name} is read as something else"
    assert n, "nothing is quantised"
    return values
