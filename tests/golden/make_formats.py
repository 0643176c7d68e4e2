#!/usr/bin/env python3
"""Makes tests/golden/formats.h: blocks of each GGUF format and what the `gguf` package says they hold. Needs numpy and gguf.

usage: make_formats.py > formats.h
"""
import gguf
import numpy as np

rng = np.random.default_rng(20240607)
TYPES = [gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.BF16, gguf.GGMLQuantizationType.F16]


def blocks(kind, n_columns):
    """Honest blocks, and for quantised formats some whose codes and scales are random bits (finite ones)."""
    x = (rng.standard_normal((1, n_columns)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    if kind == gguf.GGMLQuantizationType.F16:
        return x.astype(np.float16).view(np.uint8)
    stored = gguf.quants.quantize(x, kind)
    if kind == gguf.GGMLQuantizationType.BF16:
        return stored
    size = gguf.GGML_QUANT_SIZES[kind][1]
    random = rng.integers(0, 256, (2, size), dtype=np.uint8)
    n_scales = 2 if kind == gguf.GGMLQuantizationType.Q4_1 else 1
    random[:, : 2 * n_scales] = rng.uniform(-2, 2, (2, n_scales)).astype(np.float16).view(np.uint8)
    return np.concatenate([stored.reshape(1, -1), random.reshape(1, -1)], axis=1)


print("/* Made by tests/golden/make_formats.py with the gguf package; not to be edited. */")
print("#include <stdint.h>")
names = []
for kind in TYPES:
    data = blocks(kind, 64)
    values = data.view(np.float16).astype(np.float32) if kind == gguf.GGMLQuantizationType.F16 else gguf.quants.dequantize(data, kind)
    bits = values.astype(np.float32).reshape(-1).view(np.uint32)
    name = kind.name
    names.append((name, int(kind), bits.size))
    print(f"\nstatic const uint8_t golden_{name}_blocks[] = {{")
    flat = data.reshape(-1)
    for i in range(0, flat.size, 24):
        print("    " + ", ".join(str(b) for b in flat[i : i + 24]) + ",")
    print(f"}};\nstatic const uint32_t golden_{name}_values[] = {{")
    for i in range(0, bits.size, 8):
        print("    " + ", ".join(f"0x{b:08x}" for b in bits[i : i + 8]) + ",")
    print("};")
print("\nstatic const struct {\n    uint32_t type;\n    uint32_t n_columns;\n    const uint8_t *blocks;\n    const uint32_t *values;\n} golden_formats[] = {")
for name, number, n in names:
    print(f"    {{{number}, {n}, golden_{name}_blocks, golden_{name}_values}},")
print("};")

print("\nstatic const struct {\n    uint32_t type;\n    const char *name;\n} golden_types[] = {")
for kind in gguf.GGMLQuantizationType:
    print(f'    {{{int(kind)}, "{kind.name}"}},')
print("};")
