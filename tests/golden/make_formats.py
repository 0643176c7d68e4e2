#!/usr/bin/env python3
"""Makes tests/golden/formats.h: blocks of each GGUF format and what the `gguf` package says they hold.

usage: make_formats.py > formats.h
needs: gguf==0.19.0 numpy==2.4.6
"""
import gguf
import numpy as np

rng = np.random.default_rng(20240607)
Q = gguf.GGMLQuantizationType
TYPES = [Q.Q8_0, Q.Q4_1, Q.BF16, Q.F16, Q.Q4_0, Q.Q5_0, Q.Q5_1, Q.MXFP4, Q.NVFP4, Q.Q4_K, Q.Q5_K, Q.Q6_K]
# Where a block keeps its F16 numbers, and (first, count, values) of other scales worth trying. Other bytes are random bits.
HALVES = {Q.Q4_1: (0, 2), Q.Q5_1: (0, 2), Q.Q4_K: (0, 2), Q.Q5_K: (0, 2), Q.Q6_K: (208,), Q.MXFP4: (), Q.NVFP4: ()}
SCALES = {
    Q.MXFP4: (0, 1, [0, 1, 2, 3, 100, 127, 200, 252, 253, 254, 255]),
    Q.NVFP4: (0, 4, [0x00, 0x01, 0x07, 0x08, 0x0F, 0x38, 0x7E, 0x7F, 0x80, 0x81, 0xB8, 0xFF]),
}


def blocks(kind, n_columns):
    """Honest blocks where the package can quantise, and for quantised formats some whose codes and scales are random bits (finite ones)."""
    x = (rng.standard_normal((1, n_columns)) * 10.0 ** rng.integers(-3, 3)).astype(np.float32)
    if kind == Q.F16:
        return x.astype(np.float16).view(np.uint8)
    if kind == Q.BF16:
        return gguf.quants.quantize(x, kind)
    block_columns, size = gguf.GGML_QUANT_SIZES[kind]
    first, count, values = SCALES.get(kind, (0, 0, []))
    random = rng.integers(0, 256, (len(values) // count if values else 2, size), dtype=np.uint8)
    for at in HALVES.get(kind, (0,)):
        random[:, at : at + 2] = rng.uniform(-2, 2, (len(random), 1)).astype(np.float16).view(np.uint8)
    if values:
        random[:, first : first + count] = np.array(values, dtype=np.uint8).reshape(-1, count)
    try:
        stored = gguf.quants.quantize(x, kind).reshape(1, -1)
    except (NotImplementedError, gguf.quants.QuantError):
        return random.reshape(1, -1)
    return np.concatenate([stored, random.reshape(1, -1)], axis=1)


print("/* Made by tests/golden/make_formats.py with the gguf package; not to be edited. */")
print("#include <stdint.h>")
names = []
for kind in TYPES:
    data = blocks(kind, 64)
    values = data.view(np.float16).astype(np.float32) if kind == Q.F16 else gguf.quants.dequantize(data, kind)
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
for kind in Q:
    print(f'    {{{int(kind)}, "{kind.name}"}},')
print("};")
