#!/usr/bin/env python3
"""A GGUF file with its layers' matrices in MXFP4: what compare.py measures MXFP4 with, since nobody publishes a small dense model in it.

usage: mxfp4_model.py IN.gguf OUT.gguf
Codes are random and all scales equal: products take as long as those of real weights. Head, embedding and norms stay as they are, and so does what is said of the model."""
import random
import struct
import sys

MXFP4, BLOCK, BLOCK_BYTES, SCALE = 39, 32, 17, 120  # a scale of 2^-7: weights near 0.02
# ggml's types: numbers and bytes of a block
SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144), 13: (256, 176), 14: (256, 210), 30: (1, 2), 39: (32, 17)}
VALUES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a key's value
STRING, ARRAY = 8, 9


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def number(self, code):
        (x,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize(code)
        return x

    def string(self):
        n = self.number("Q")
        self.at += n
        return self.data[self.at - n:self.at]

    def value(self, kind):
        """The number where it is one."""
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            kind, n = self.number("I"), self.number("Q")
            for _ in range(n):
                self.value(kind)
        else:
            self.at += VALUES[kind]
            return int.from_bytes(self.data[self.at - VALUES[kind]:self.at], "little")
        return None


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__.split("\n")[2])
    with open(sys.argv[1], "rb") as f:
        r = Reader(f.read())
    r.at = 8
    n_tensors, n_keys = r.number("Q"), r.number("Q")
    alignment = 32
    for _ in range(n_keys):
        key, value = r.string(), r.value(r.number("I"))
        if key == b"general.alignment":
            alignment = value
    head = r.data[:r.at]  # as it is
    tensors = [(r.string(), [r.number("Q") for _ in range(r.number("I"))], r.number("I"), r.number("Q")) for _ in range(n_tensors)]
    begin = -(-r.at // alignment) * alignment
    random.seed(1)
    infos, parts, offset = b"", [], 0
    for name, dims, kind, at in tensors:
        n = 1
        for d in dims:
            n *= d
        if name.startswith(b"blk.") and len(dims) == 2 and dims[0] % BLOCK == 0:
            kind, data = MXFP4, bytearray(random.randbytes(n // BLOCK * BLOCK_BYTES))
            data[::BLOCK_BYTES] = bytes([SCALE]) * (n // BLOCK)
        else:
            size = SIZES[kind]
            data = r.data[begin + at:begin + at + n // size[0] * size[1]]
        infos += struct.pack("<Q", len(name)) + name + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
        data = bytes(data) + bytes(-len(data) % alignment)
        offset += len(data)
        parts.append(data)
    with open(sys.argv[2], "wb") as f:
        f.write(head + infos)
        f.write(bytes(-f.tell() % alignment))
        f.writelines(parts)


if __name__ == "__main__":
    main()
