#!/usr/bin/env python3
"""One table: the demo model in every format, as somebody else's quantiser (compressed-tensors, ModelOpt) writes them where it has them, and what Tandem makes of each. By hand, not by `make test`.
usage: make_formats_table.py MODEL.gguf TEXT WORKDIR [--tandem build/tandem] [--threads T] [--only NAME]…
needs: what tests/golden/make_quant.py needs

MODEL.gguf is dequantised by transformers and rounded to BF16: that is the source of all others; ModelOpt exports a whole model itself; the layouts of DeepSeek, GPTQ and AWQ are make_quant.py's, by
rounding to the nearest. Perplexities are `tandem eval --text TEXT`; MB a token: `tandem inspect`; tokens per second: `tandem bench`'s decode, on one rank; same bits: the logits of TEXT's first ids
on one rank and on two, compared byte by byte, for both settings of --activations. Directories that WORKDIR holds already are taken as they are. Rows end in " |", for docs/formats.md."""
import argparse
import json
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "golden"))
p = argparse.ArgumentParser()
p.add_argument("model")
p.add_argument("text")
p.add_argument("work")
p.add_argument("--tandem", default="build/tandem")
p.add_argument("--threads", type=int, default=1)
p.add_argument("--only", action="append", metavar="NAME")
a = p.parse_args()

import torch  # noqa: E402
import modelopt_export  # noqa: E402
from make_quant import WRITERS, compressed_tensors, int_args, quantization_config, scheme_of  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

PACKED = dict(method="ct", format="pack-quantized", scale=torch.bfloat16)
FORMATS = {
    "BF16": None,
    "FP8, a scale a row": dict(method="ct", preset="FP8_DYNAMIC", format="float-quantized"),
    "FP8, one scale (ModelOpt)": dict(method="modelopt", config="FP8_DEFAULT_CFG"),
    "FP8, a scale a row (ModelOpt)": dict(method="modelopt", config="FP8_PER_CHANNEL_PER_TOKEN_CFG"),
    "FP8, blocks of 128 × 128": dict(method="fp8-blocks"),
    "FP8, blocks, E8M0 scales": dict(method="fp8-blocks-e8m0"),
    "NVFP4": dict(method="ct", preset="NVFP4A16", format="nvfp4-pack-quantized"),
    "NVFP4 (ModelOpt)": dict(method="modelopt", config="NVFP4_DEFAULT_CFG"),
    "NVFP4, scales for 32 (ModelOpt)": dict(method="modelopt", config="W4A8_NVFP4_FP8_CFG"),
    "MXFP4": dict(method="ct", preset="MXFP4A16", format="mxfp4-pack-quantized"),
    "MXFP4 (ModelOpt)": dict(method="modelopt", config="MXFP4_DEFAULT_CFG"),
    "MXFP8": dict(method="ct", preset="MXFP8", format="mxfp8-quantized"),
    "INT4, a scale a row": dict(PACKED, weights=int_args(strategy="channel")),
    "INT4, groups of 64": dict(PACKED, weights=int_args(strategy="group", group_size=64)),
    "INT4, groups of 32, zero points": dict(PACKED, weights=int_args(strategy="group", group_size=32, symmetric=False)),
    "INT8, packed, groups of 64": dict(PACKED, weights=int_args(bits=8, strategy="group", group_size=64)),
    "INT8, a scale a row": dict(method="ct", preset="INT8", format="int-quantized", scale=torch.bfloat16),
    "INT8, a scale a row, zero points": dict(method="ct", format="int-quantized", scale=torch.bfloat16, weights=int_args(bits=8, strategy="channel", symmetric=False)),
    "INT8, a scale a row (ModelOpt)": dict(method="modelopt", config="INT8_WEIGHT_ONLY_CFG"),
    "INT8, SmoothQuant (ModelOpt)": dict(method="modelopt", config="INT8_SMOOTHQUANT_CFG"),
    "GPTQ, 4 bits, groups of 32": dict(method="gptq", bits=4, group=32),
    "GPTQ, 8 bits, groups of 32": dict(method="gptq", bits=8, group=32),
    "GPTQ, act-order": dict(method="gptq", bits=4, group=32, act_order=True),
    "AWQ, groups of 64": dict(method="awq", bits=4, group=64),
}


def make_source(directory):
    folder, file = os.path.split(os.path.abspath(a.model))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = {k: v for k, v in model.config.to_dict().items() if k not in ("quantization_config", "dtype")}
    os.makedirs(directory)
    AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(directory)
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(dict(config, architectures=["LlamaForCausalLM"], torch_dtype="bfloat16"), f, indent=2)
    save_file({n: w.detach().to(torch.bfloat16).contiguous() for n, w in model.named_parameters()}, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})


def make_by_modelopt(directory, source, c):
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    modelopt_export.export(model, directory, c["config"], n_ids=64)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)


def make(directory, source, c):
    if c["method"] == "modelopt":
        return make_by_modelopt(directory, source, c)
    os.makedirs(directory)
    for file in os.listdir(source):
        if not file.endswith(".safetensors") and file != "config.json":
            os.link(os.path.join(source, file), os.path.join(directory, file))
    tensors = {}
    for name, w in load_file(os.path.join(source, "model.safetensors")).items():
        module, what = name.rsplit(".", 1)
        if w.ndim != 2 or "embed" in name or "lm_head" in name:
            tensors[name] = w
            continue
        parts = compressed_tensors(w.float(), c, scheme_of(c)) if c["method"] == "ct" else WRITERS[c["method"]](w.float(), c)
        tensors.update({f"{module}.{n}": t.contiguous() for n, t in parts[0].items()})
    save_file(tensors, os.path.join(directory, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(source, "config.json")) as f:
        config = json.load(f)
    config["quantization_config"] = quantization_config(dict(c, ignore=["lm_head"]))
    with open(os.path.join(directory, "config.json"), "w") as f:
        json.dump(config, f, indent=2)


def tandem(*args):
    run = subprocess.run([a.tandem, *args], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"tandem {' '.join(args)}: {run.stderr}")
    return run.stdout + run.stderr


def number(pattern, text):
    found = re.search(pattern, text)
    return float(found.group(1)) if found else float("nan")


def same_bits(directory):
    ids, files = os.path.join(a.work, "ids"), [os.path.join(a.work, f"logits{n}") for n in (1, 2)]
    for activations in ("f32", "auto"):
        for n, file in zip((1, 2), files):
            tandem("eval", directory, "--ids", ids, "--logits", file, "--activations", activations, "-n", str(n), "--threads", "1")
        with open(files[0], "rb") as x, open(files[1], "rb") as y:
            if x.read() != y.read():
                return "NO"
    return "yes"


os.makedirs(a.work, exist_ok=True)
source = os.path.join(a.work, "BF16")
if not os.path.exists(source):
    make_source(source)
with open(a.text) as f:
    ids = AutoTokenizer.from_pretrained(source)(f.read(2000)).input_ids[:64]
with open(os.path.join(a.work, "ids"), "w") as f:
    f.write(" ".join(map(str, ids)))

def measure(name, directory):
    size = sum(os.path.getsize(os.path.join(directory, f)) for f in os.listdir(directory) if f.endswith(".safetensors")) / 1e6
    per_token = number(r"([\d.]+) MB of weights are read", tandem("inspect", directory))
    threads = ("--threads", str(a.threads))
    accurate, fast = (number(r"perplexity ([\d.]+)", tandem("eval", directory, "--text", a.text, "--activations", s, *threads)) for s in ("f32", "auto"))
    two = number(r"perplexity ([\d.]+)", tandem("eval", directory, "--text", a.text, "-n", "2", "--threads", "1"))
    speed = number(r"decode of[^:]*: ([\d.]+) tok/s", tandem("bench", directory, *threads))
    return f"| {name} | {size:.1f} | {per_token:.1f} | {accurate:.4f} | {fast:.4f} | {100 * (fast / accurate - 1):+.2f} % | {two:.4f} | {same_bits(directory)} | {speed:.1f} |"


print("| format | MB | MB a token | perplexity, `f32` | default | deviation | default, 2 ranks | same bits | tokens/s |\n|---|---|---|---|---|---|---|---|---|")
for name, c in FORMATS.items():
    directory = os.path.join(a.work, re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-"))
    if a.only and name not in a.only:
        continue
    if not os.path.exists(directory):
        make(directory, source, c)
    print(measure(name, directory), flush=True)
