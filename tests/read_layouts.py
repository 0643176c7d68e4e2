#!/usr/bin/env python3
"""A quantised checkpoint as somebody else reads it, in plain F32: what Tandem's reader of layouts that tests/golden/make_quant.py writes itself is compared with (tests/readers_test.sh).
usage: read_layouts.py IN OUT [LLAMA_CPP]
needs: torch, safetensors, transformers; for AWQ compressed-tensors==0.20.0, else llama.cpp's sources (bench/peers.sh --sources) and gguf

GPTQ, pack-quantized and FP8 in blocks are dequantised by llama.cpp's conversion of checkpoints, AWQ is made pack-quantized by compressed-tensors' converter of AutoAWQ files first. transformers
itself has no code for GPTQ and AWQ: it asks packages that run on accelerators. Leaves with status 3 where a package is not installed."""
import json
import os
import sys

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError as e:
    print(e)
    sys.exit(3)


def by_llama_cpp(sources, config, tensors):
    sys.path[:0] = [sources, os.path.join(sources, "gguf-py")]
    try:
        from conversion.base import ModelBase
    except ImportError as e:
        print(e)
        sys.exit(3)
    model = object.__new__(type("Model", (ModelBase,), {}))  # no tokenizer, no file: only its tensors are wanted
    model.hparams, model.lazy, model._is_nvfp4, model._fp8_as_q8 = config, False, False, False
    model.model_tensors = {name: (lambda t=t: t) for name, t in tensors.items()}
    model.dequant_model()
    return {name: t() for name, t in model.model_tensors.items()}


def awq_as_packed(config, tensors):
    try:
        from compressed_tensors.entrypoints.convert.converters import AutoAWQConverter
    except ImportError as e:
        print(e)
        sys.exit(3)
    converter = AutoAWQConverter.from_autoawq_config(config["quantization_config"])
    tensors = converter.process(dict(tensors))
    return dict(config, quantization_config=json.loads(converter.update_config(None).model_dump_json())), tensors


def main():
    source, out, sources = sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else ""
    with open(os.path.join(source, "config.json")) as f:
        config = json.load(f)
    tensors = load_file(os.path.join(source, "model.safetensors"))
    if config["quantization_config"]["quant_method"] == "awq":
        config, tensors = awq_as_packed(config, tensors)
    plain = by_llama_cpp(sources, config, tensors)
    del config["quantization_config"]
    os.makedirs(out)
    with open(os.path.join(out, "config.json"), "w") as f:
        json.dump(dict(config, torch_dtype="float32"), f)
    save_file({name: t.float().contiguous() for name, t in plain.items()}, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})


main()
