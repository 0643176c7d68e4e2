#!/usr/bin/env python3
"""Writes tests/golden/experts/: the same experts in every layout that keeps several in one tensor.

    mxfp4/model.safetensors   GPT-OSS as published: blocks [E, 2I, H/32, 16] with gate and up row by row, scales, biases
    bf16/model.safetensors    what transformers' own loader makes of these blocks: [E, H, 2I] and [E, I, H], input dimension first
    mxfp4.gguf                [E, I, H] for gate, up and down each, converted by the gguf package

All values are exact in BF16, so that the three must agree to the bit. Needs torch, transformers, safetensors, gguf:  make_experts.py [OUT]
"""
import pathlib
import sys

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

EXPERTS, HIDDEN, FFN = 3, 64, 96
PREFIX = "model.layers.0.mlp.experts."


def main():
    out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "experts")
    random = np.random.default_rng(7)
    published, dequantised = {}, {}
    for name, rows, columns in (("gate_up_proj", 2 * FFN, HIDDEN), ("down_proj", HIDDEN, FFN)):
        blocks = torch.from_numpy(random.integers(0, 256, (EXPERTS, rows, columns // 32, 16), dtype=np.uint8))
        scales = torch.from_numpy(random.integers(118, 126, (EXPERTS, rows, columns // 32), dtype=np.uint8))
        bias = torch.from_numpy(random.standard_normal((EXPERTS, rows)).astype(np.float32)).to(torch.bfloat16)
        published |= {PREFIX + name + "_blocks": blocks, PREFIX + name + "_scales": scales, PREFIX + name + "_bias": bias}
        numbers = convert_moe_packed_tensors(blocks, scales)
        assert numbers.shape == (EXPERTS, columns, rows) and numbers.dtype == torch.bfloat16
        dequantised |= {PREFIX + name: numbers.contiguous(), PREFIX + name + "_bias": bias}
    for directory, tensors in (("mxfp4", published), ("bf16", dequantised)):
        (out / directory).mkdir(parents=True, exist_ok=True)
        save_file(tensors, out / directory / "model.safetensors", metadata={"format": "pt"})
        (out / directory / "config.json").write_text('{"model_type": "gpt_oss"}\n')

    gate_up = dequantised[PREFIX + "gate_up_proj"].float().numpy().transpose(0, 2, 1)
    down = dequantised[PREFIX + "down_proj"].float().numpy().transpose(0, 2, 1)
    writer = gguf.GGUFWriter(out / "mxfp4.gguf", "gpt-oss")
    for name, numbers in (("gate", gate_up[:, 0::2]), ("up", gate_up[:, 1::2]), ("down", down)):
        numbers = np.ascontiguousarray(numbers)
        coded = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.MXFP4)
        assert np.array_equal(gguf.quants.dequantize(coded, gguf.GGMLQuantizationType.MXFP4), numbers)
        writer.add_tensor(f"blk.0.ffn_{name}_exps.weight", coded, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
