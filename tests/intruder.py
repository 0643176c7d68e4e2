#!/usr/bin/env python3
"""What comes to a port that is open to a network: intruder.py HOW ADDRESS FIRST-PORT LAST-PORT SECONDS. Counts what it did on stdout.

scan     connects and closes                    slow     many connections, a byte a second on each
garbage  connects and sends noise, some of it long enough to be anything
claim    what looks like a rank's claim or a probe's packet, with a proof that is none; half of one; one and a half
udp      datagrams of noise and what looks like packets of ours"""
import os, random, socket, struct, sys, time

how, address, first, last, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
until = time.monotonic() + seconds
rng = random.Random(7)
ports = list(range(first, last + 1))
done = 0


def connect(port):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    s.settimeout(0.5)
    try:
        s.connect((address, port))
        return s
    except OSError:
        s.close()
        return None


def claim():
    head = b"tndmcl01" + struct.pack("<IIII", 1 + rng.randrange(3), 0, 2 + 2 * rng.randrange(2), 0) + rng.randbytes(24) + rng.randbytes(32)
    probe = b"tndmprb1" + bytes([4, 1, 0, 0]) + struct.pack("<HHQI", 0, 0, 1, 80) + bytes(20) + rng.randbytes(32)
    whole = rng.choice([head, probe])
    return rng.choice([whole, whole[: len(whole) // 2], whole + whole[:40]])


slow = []
while time.monotonic() < until:
    if how == "udp":
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for _ in range(200):
            magic = rng.choice([b"", b"tndmprb1", b"tndmbt01", b"tndmbt01" + bytes([1, 0, 0, 1])])
            try:
                s.sendto(magic + rng.randbytes(rng.choice([0, 8, 72, 120, 1400])), (address, rng.choice(ports)))
                done += 1
            except OSError:
                pass
        s.close()
        time.sleep(0.002)
        continue
    if how == "slow" and len(slow) >= 150:
        for s in slow:
            try:
                s.send(b"t")
            except OSError:
                pass
        slow = [s for s in slow[1:]] if rng.random() < 0.5 else slow
        time.sleep(1)
        continue
    s = connect(rng.choice(ports))
    if not s:
        time.sleep(0.001)
        continue
    done += 1
    try:
        if how == "slow":
            slow.append(s)
            s.send(b"t")
        elif how == "garbage":
            s.send(rng.randbytes(rng.choice([1, 31, 64, 80, 4096, 65536])))
        elif how == "claim":
            s.send(claim())
    except OSError:
        pass
    if how != "slow":
        s.close()
print(done)
sys.stdout.flush()
os._exit(0)
