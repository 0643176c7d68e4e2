#!/usr/bin/env python3
"""Writes tests/golden/presets.json: names and shapes of the tensors that Hugging Face's transformers saves for each preset of `tandem synth`, built from the config.json that synth writes.

usage: TANDEM=build/tandem python3 tests/golden/make_presets.py
needs: transformers==5.23.0 torch safetensors

Layers and experts are cut down by synth's own options; the vocabulary is cut down here (to VOCAB), because only its axis would grow. Memory: 2 GB.
"""
import json
import os
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

HERE = os.path.dirname(os.path.abspath(__file__))
VOCAB = 1024
PRESETS = {  # layers, experts
    "llama-3.1-8b": (2, 0), "llama-3.1-70b": (2, 0), "llama-3.1-405b": (2, 0), "mixtral-8x7b": (2, 2), "qwen3-30b-a3b": (2, 2), "qwen3-235b-a22b": (2, 2),
    "gpt-oss-20b": (2, 2), "gpt-oss-120b": (2, 2), "glm-4.7": (4, 2), "minimax-m2": (2, 2),
}


def shapes(name, layers, experts, tandem):
    with tempfile.TemporaryDirectory() as folder:
        made = os.path.join(folder, "made")
        cut = ["--layers", str(layers)] + (["--experts", str(experts)] if experts else [])
        subprocess.run([tandem, "synth", "--like", name, "--format", "bf16", "--headers-only", *cut, made], check=True, stdout=subprocess.DEVNULL)
        config = AutoConfig.from_pretrained(made)
        config.vocab_size = VOCAB
        config.bos_token_id = config.eos_token_id = None
        if not experts:  # saved under the names that they have; too large to be made
            with torch.device("meta"):
                state = AutoModelForCausalLM.from_config(config).state_dict()
            return {k: list(v.shape) for k, v in state.items()}
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(os.path.join(folder, "saved"), max_shard_size="100GB")
        with safe_open(os.path.join(folder, "saved", "model.safetensors"), "pt") as f:
            return {k: f.get_slice(k).get_shape() for k in f.keys()}


def main():
    tandem = os.environ.get("TANDEM", "build/tandem")
    out = {"vocab": VOCAB, "presets": {}}
    for name, (layers, experts) in PRESETS.items():
        out["presets"][name] = {"layers": layers, "experts": experts, "tensors": shapes(name, layers, experts, tandem)}
        print(name, len(out["presets"][name]["tensors"]), file=sys.stderr)
    with open(os.path.join(HERE, "presets.json"), "w", encoding="utf-8") as f:
        f.write("{\"vocab\":%d,\"presets\":{\n" % VOCAB)
        f.write(",\n".join(json.dumps(k) + ":" + json.dumps(v, sort_keys=True, separators=(",", ":")) for k, v in out["presets"].items()))
        f.write("\n}}\n")


main()
