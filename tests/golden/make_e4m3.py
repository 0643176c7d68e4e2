#!/usr/bin/env python3
"""Makes tests/golden/e4m3.h: the F32 bits of every code of E4M3, as PyTorch converts them.

usage: make_e4m3.py > e4m3.h
needs: torch==2.15.0
"""
import torch

codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
bits = [int(b) & 0xFFFFFFFF for b in codes.to(torch.float32).view(torch.int32)]
print("/* Made by tests/golden/make_e4m3.py with PyTorch; not to be edited. */")
print("#include <stdint.h>\n\nstatic const uint32_t golden_e4m3[256] = {")
for i in range(0, 256, 8):
    print("    " + ", ".join(f"0x{b:08x}" for b in bits[i : i + 8]) + ",")
print("};")
