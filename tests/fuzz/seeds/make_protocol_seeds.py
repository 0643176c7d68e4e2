"""Writes the seeds of protocol_fuzz beside itself: python3 tests/fuzz/seeds/make_protocol_seeds.py

A byte that says how (see protocol_fuzz.c), then frames as a front end sends them."""

import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
REQUEST, IDS, CANCEL, STOP, TOKEN = 1, 2, 3, 4, 17
LOGITS, SCORES, FEED_LAST = 1, 2, 4


def frame(kind, payload=b""):
    return struct.pack("<II", len(payload), kind) + payload


def request(number, n_prompt, max_new, flags=0, score_from=0, ends=(), temperature=0.5, seed=7):
    head = struct.pack("<6IfIQ", number, n_prompt, max_new, flags, score_from, len(ends), temperature, 0, seed)
    return frame(REQUEST, head + struct.pack("<16i", *ends, *[0] * (16 - len(ends))))


def ids(number, values):
    return frame(IDS, struct.pack(f"<II{len(values)}i", number, len(values), *values))


def cancel(number):
    return frame(CANCEL, struct.pack("<I", number))


def write(name, hangs_up, pieces, late, shape, stream):
    path = os.path.join(HERE, "protocol_fuzz")
    os.makedirs(path, exist_ok=True)
    with open(os.path.join(path, name), "wb") as f:
        f.write(bytes([hangs_up | pieces << 1 | late << 3 | shape << 4]) + stream)


write("one", 1, 0, 0, 13, request(1, 5, 4, ends=(3, 9)) + ids(1, [1, 2, 3]) + ids(1, [4, 5]) + frame(STOP))
write("three", 0, 0, 1, 15, b"".join(request(i, 10 + 9 * i, 6, flags=i) + ids(i, list(range(10 + 9 * i))) for i in range(3)) + cancel(1))
write("bytes", 1, 1, 0, 10, request(8, 40, 50, LOGITS | SCORES | FEED_LAST, 3) + ids(8, [63] * 40) + cancel(8) + cancel(9))
write("full", 0, 2, 1, 6, b"".join(request(i, 60, 40) for i in range(4)) + ids(0, [0] * 30) + ids(1, [5] * 60) + cancel(0) + ids(0, [1]))
write("tiny", 0, 0, 0, 0, request(1, 1, 1) + ids(1, [0]) + request(2, 1, 0xFFFFFFFF) + ids(2, [63]))
write("wrong", 1, 0, 0, 13, frame(TOKEN, b"12345678") + request(1, 200, 1) + request(1, 4, 1) + ids(1, [-1, 64, 0, 0]) + ids(2, [1]) + frame(REQUEST, b"short") + frame(77, b"?")
      + struct.pack("<II", 0x7FFFFFFF, IDS))  # fmt: skip
write("cut", 1, 3, 0, 9, request(1, 4, 1) + ids(1, [1, 2, 3, 4])[:-3])
