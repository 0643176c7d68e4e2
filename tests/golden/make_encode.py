#!/usr/bin/env python3
"""Writes tests/golden/encode.h: F32 rows, and what compressed-tensors' own compressors and the gguf package make of them.
usage: make_encode.py      needs: torch, compressed-tensors==0.20.0, gguf==0.19.0
Rows: ordinary weights, wide ranges within a group, exact ties, zeros and negative zeros, subnormal numbers, one large outlier."""
import os

import gguf
import numpy as np
import torch
from compressed_tensors.compressors.base import BaseCompressor
from compressed_tensors.quantization import preset_name_to_scheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

COLUMNS = 64
rng = np.random.default_rng(20)


def rows():
    ties = np.array([0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -0.25, -0.75, -1.25, -1.75, -2.5, -3.5, -5, 6], np.float32)
    halves = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, *[k + 0.5 for k in range(24)]], np.float32)
    yield rng.standard_normal(COLUMNS) * 0.02
    yield rng.standard_normal(COLUMNS) * np.exp(rng.uniform(-12, 4, COLUMNS))
    yield np.tile(ties, 4) * 2.0**-3
    yield np.concatenate([halves, -halves])
    yield np.zeros(COLUMNS)
    yield np.where(np.arange(COLUMNS) % 3 == 0, -0.0, np.where(np.arange(COLUMNS) < 32, 0.0, rng.standard_normal(COLUMNS) * 1e-6))
    yield rng.standard_normal(COLUMNS) * 1e-41
    yield np.where(np.arange(COLUMNS) == 17, 4.0, rng.standard_normal(COLUMNS) * 0.01)
    for mantissa in (1.7499999, 1.75, 1.7500001, 1.9999999):
        yield np.concatenate([rng.uniform(-1, 1, 31), [mantissa], rng.uniform(-1, 1, 31) * 2.0**-7, [-mantissa * 2.0**-7]])
    for _ in range(4):
        yield (rng.integers(-448, 449, COLUMNS) + rng.choice([0, 0.5, 0.25], COLUMNS)) * 2.0**-9


def compressed(x, preset, form, group):
    scheme = preset_name_to_scheme(preset, ["Linear"])
    state = {"weight": x}
    if preset == "NVFP4":
        state["weight_global_scale"] = generate_gparam(x.min(), x.max())
    view = x.reshape(x.shape[0], -1, group) if group else x.reshape(x.shape[0], 1, -1)
    state["weight_scale"], _ = calculate_qparams(view.amin(-1), view.amax(-1), scheme.weights, global_scale=state.get("weight_global_scale"))
    return BaseCompressor.get_value_from_registry(form).compress(state, scheme)


def emit(f, name, array):
    array = np.ascontiguousarray(array)
    kind = {1: "unsigned char", 4: "uint32_t"}[array.itemsize]
    flat = array.reshape(-1).view({1: np.uint8, 4: np.uint32}[array.itemsize])
    f.write(f"static const {kind} golden_encode_{name}[] = {{\n")
    for i in range(0, flat.size, 16):
        f.write("    " + " ".join(f"0x{v:0{2 * array.itemsize}x}," for v in flat[i : i + 16]) + "\n")
    f.write("};\n")


x = np.stack([np.asarray(r, np.float32) for r in rows()])
t = torch.from_numpy(x.copy())
raw = lambda a: a.contiguous().view(torch.uint8).numpy()
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "encode.h"), "w") as f:
    f.write("/* Written by make_encode.py: F32 rows (as bits), and their bytes by compressed-tensors 0.20.0 and gguf 0.19.0. */\n")
    f.write(f"#define GOLDEN_ENCODE_ROWS {x.shape[0]}\n#define GOLDEN_ENCODE_COLUMNS {COLUMNS}\n")
    emit(f, "input", x)
    c = compressed(t, "NVFP4", "nvfp4-pack-quantized", 16)
    emit(f, "nvfp4_codes", raw(c["weight_packed"]))
    emit(f, "nvfp4_scales", raw(c["weight_scale"]))
    emit(f, "nvfp4_global", c["weight_global_scale"].numpy())
    # The same rows one at a time: global scales of all sizes.
    each = [compressed(t[i : i + 1], "NVFP4", "nvfp4-pack-quantized", 16) for i in range(x.shape[0])]
    emit(f, "nvfp4_each_codes", np.concatenate([raw(e["weight_packed"]) for e in each]))
    emit(f, "nvfp4_each_scales", np.concatenate([raw(e["weight_scale"]) for e in each]))
    emit(f, "nvfp4_each_global", np.concatenate([e["weight_global_scale"].numpy() for e in each]))
    c = compressed(t, "MXFP4", "mxfp4-pack-quantized", 32)
    emit(f, "mxfp4_codes", raw(c["weight_packed"]))
    emit(f, "mxfp4_scales", raw(c["weight_scale"]))
    c = compressed(t, "FP8_DYNAMIC", "float-quantized", 0)
    emit(f, "fp8_codes", raw(c["weight"]))
    emit(f, "fp8_scales", c["weight_scale"].numpy())
    emit(f, "q8_0", gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0))
    # Every F32 that matters to E4M3: each value, the middles between neighbours, and a step to either side of them.
    e4m3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    points = np.concatenate([e4m3, (e4m3[1:] + e4m3[:-1]) / 2]).astype(np.float32)
    points = np.concatenate([points, np.nextafter(points, np.float32(1e9)), np.nextafter(points, np.float32(0))])
    points = np.clip(np.concatenate([points, -points]), -448, 448)
    emit(f, "e4m3_input", points)
    emit(f, "e4m3", raw(torch.from_numpy(points.copy()).to(torch.float8_e4m3fn)))
