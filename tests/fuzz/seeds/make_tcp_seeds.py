"""Writes the seeds of tcp_fuzz beside itself: python3 tests/fuzz/seeds/make_tcp_seeds.py

Four bytes that say how (see tcp_fuzz.c), then frames as a peer sends them (see comm/tcp_priv.h)."""

import os
import struct

HERE = os.path.dirname(os.path.abspath(__file__))
EXCHANGE, EVENT, READ, BYE = 0x3158434D, 0x3156454D, 0x3144524D, 0x3145594D


def frame(kind, number=0, payload=b"", step=0, n_events=0, token_hash=0, sent_ns=0, events_read=0):
    head = struct.pack("<IIQQQIIQQQ", kind, 0, number, len(payload), step, n_events, token_hash, sent_ns, events_read, 0)
    return head + payload


def data(n):
    return bytes(i * 7 % 256 for i in range(n))


def write(name, rank, due, piece, stream, hangs_up=False, scatters=False):
    os.makedirs(os.path.join(HERE, "tcp_fuzz"), exist_ok=True)
    with open(os.path.join(HERE, "tcp_fuzz", name), "wb") as f:
        f.write(bytes([rank | hangs_up << 1 | scatters << 3, due[0], due[1], piece]) + stream)


two = frame(EXCHANGE, 1, data(160), step=1, n_events=2) + frame(EXCHANGE, 2, data(64), step=2)
events = frame(EVENT, 0, data(100)) + frame(EVENT, 1) + frame(EVENT, 2, data(3000))
write("two_exchanges", 0, (10, 4), 0, two)
write("two_exchanges_in_pieces", 1, (10, 4), 3, two)
write("events_between", 1, (10, 4), 0, events + frame(EXCHANGE, 1, data(160)) + frame(EVENT, 3, data(9)) + frame(EXCHANGE, 2, data(64)))
write("events_in_pieces", 1, (10, 4), 5, events + frame(EXCHANGE, 1, data(160)) + frame(EXCHANGE, 2, data(64)))
write("credits", 0, (10, 4), 0, frame(READ, events_read=0) + frame(EXCHANGE, 1, data(160), events_read=128) + frame(READ, events_read=200))
write("says_bye", 0, (10, 4), 0, frame(EXCHANGE, 1, data(160)) + frame(BYE), hangs_up=True)
write("blames", 1, (10, 4), 0, frame(BYE, 2, n_events=1))
write("scattered", 1, (14, 6), 7, frame(EXCHANGE, 1, data(384), step=1) + frame(EXCHANGE, 2, data(128)), scatters=True)
write("empty", 0, (0, 0), 1, frame(EXCHANGE, 1) + frame(EXCHANGE, 2))
write("wrong_size", 0, (10, 4), 0, frame(EXCHANGE, 1, data(159)))
write("cut_off", 1, (255, 4), 0, frame(EXCHANGE, 1, data(4080))[:2000], hangs_up=True)
write("full_size", 0, (255, 255), 100, frame(EXCHANGE, 1, data(4080)) + frame(EXCHANGE, 2, data(4080)))
