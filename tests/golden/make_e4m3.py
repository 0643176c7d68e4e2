#!/usr/bin/env python3
"""Makes tests/golden/e4m3.h: what PyTorch makes of F32 numbers in float8_e4m3fn.

usage: make_e4m3.py > e4m3.h
needs: torch==2.15.0 numpy

All 65,536 patterns of F16 and of BF16, each as runs (first pattern, code of all up to the next run), and random F32 numbers, half of them beside the middle of two codes. Numbers are
clamped to ±448 before the cast, as NVIDIA's satfinite conversion and the quantisers of checkpoints do; the bare cast makes NaN of what lies above 464.
"""
import numpy as np
import torch


def codes(x):
    return torch.clamp(x.float(), -448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()


def print_runs(name, dtype):
    c = codes(torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype))
    first = [0] + [i for i in range(1, 65536) if c[i] != c[i - 1]]
    print(f"\nstatic const struct {{\n    uint32_t first;\n    uint8_t code;\n}} golden_e4m3_{name}[] = {{")
    for i in range(0, len(first), 8):
        print("    " + ", ".join(f"{{0x{f:04x}, 0x{c[f]:02x}}}" for f in first[i : i + 8]) + ",")
    print("};")


print("/* Made by tests/golden/make_e4m3.py with PyTorch; not to be edited. */\n#include <stdint.h>")
print_runs("f16", torch.float16)
print_runs("bf16", torch.bfloat16)

rng = np.random.default_rng(20240815)
values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
middles = ((values[:-1] + values[1:]) / 2).astype(np.float32)
beside = rng.choice(middles, 200).view(np.uint32) + rng.integers(-1, 2, 200).astype(np.uint32)
free = np.concatenate([(rng.standard_normal(200) * 10.0 ** rng.integers(-4, 3, 200)).astype(np.float32).view(np.uint32), rng.integers(0, 2**32, 200, dtype=np.uint32)])
bits = np.concatenate([beside ^ (rng.integers(0, 2, 200).astype(np.uint32) << 31), free, np.array([0x7F800001, 0xFFC00000, 0x7F800000, 0xFF800000, 1], dtype=np.uint32)])
made = codes(torch.from_numpy(bits.view(np.int32)).view(torch.float32))
print("\nstatic const struct {\n    uint32_t bits;\n    uint8_t code;\n} golden_e4m3_f32[] = {")
for i in range(0, bits.size, 6):
    print("    " + ", ".join(f"{{0x{b:08x}, 0x{c:02x}}}" for b, c in zip(bits[i : i + 6], made[i : i + 6])) + ",")
print("};")
decoded = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).float().view(torch.int32).numpy().view(np.uint32)
print("\nstatic const uint32_t golden_e4m3_values[256] = {")
for i in range(0, 256, 8):
    print("    " + ", ".join(f"0x{b:08x}" for b in decoded[i : i + 8]) + ",")
print("};")
