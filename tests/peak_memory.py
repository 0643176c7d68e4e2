#!/usr/bin/env python3
"""Runs a tandem command and tells, as JSON, the most memory that its ranks held at once: anonymous pages of each, and shared pages once.

usage: peak_memory.py OUT.json COMMAND…    The command's output is its own; so is the exit status.
Ranks are the processes `tandem rank`; where there are none, the command is the only rank. Asked of /proc every 50 ms.
"""
import json
import os
import subprocess
import sys
import time


def children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as f:
            return [int(x) for x in f.read().split()]
    except OSError:
        return []


def family(pid):
    out = [pid]
    for child in children(pid):
        out += family(child)
    return out


def look(pid):
    """(whether it is a rank, RssAnon, RssShmem in bytes), None for one that has gone."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            is_rank = f.read().split(b"\0")[1:2] == [b"rank"]
        with open(f"/proc/{pid}/status", encoding="ascii") as f:
            fields = dict(line.split(":", 1) for line in f)
        return is_rank, *(1024 * int(fields[k].split()[0]) for k in ("RssAnon", "RssShmem"))
    except (OSError, KeyError):
        return None


def main():
    process = subprocess.Popen(sys.argv[2:])
    peak = {"bytes": 0, "anonymous": 0, "shared": 0, "ranks": 0}
    while process.poll() is None:
        seen = [x for x in map(look, family(process.pid)) if x]
        ranks = [x for x in seen if x[0]] or seen[:1]
        anonymous, shared = sum(x[1] for x in ranks), max((x[2] for x in ranks), default=0)
        if anonymous + shared > peak["bytes"]:
            peak = {"bytes": anonymous + shared, "anonymous": anonymous, "shared": shared, "ranks": len(ranks)}
        time.sleep(0.05)
    with open(sys.argv[1], "w", encoding="ascii") as f:
        json.dump(peak, f)
    sys.exit(process.returncode)


main()
