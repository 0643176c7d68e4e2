#!/usr/bin/env python3
"""Tandem against llama.cpp and ik_llama.cpp on one model: rounds in turn (A B C A B C …), medians, ratios round by round.

usage: compare.py MODEL.gguf [--rounds N] [--prefill N] [--decode N] [--threads 1,2]
TANDEM names our binary (build/tandem); peers are those that `make bench-peers` built, a missing one is left out and said so.
Every program is started anew in each round: a machine that changes its speed changes it for all of them.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

CACHE = Path(os.environ.get("TANDEM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem")


def tandem(model, threads, prefill, decode):
    out = subprocess.run([os.environ.get("TANDEM", "build/tandem"), "bench", model, "--threads", str(threads), "--prefill", str(prefill), "--decode", str(decode), "--repeat", "3", "--json"],
                         check=True, capture_output=True, text=True).stdout
    result = json.loads(out)
    return result["prefill_tok_s"], result["decode_tok_s"], result["read_share"]


def peer(program, extra):
    def run(model, threads, prefill, decode):
        out = subprocess.run([program, "-m", model, "-p", str(prefill), "-n", str(decode), "-t", str(threads), "-r", "3", "-o", "json", *extra], check=True, capture_output=True, text=True).stdout
        rows = json.loads(out)
        return next(r["avg_ts"] for r in rows if r["n_prompt"]), next(r["avg_ts"] for r in rows if not r["n_prompt"]), None
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--decode", type=int, default=64)
    parser.add_argument("--threads", default="1,2")
    a = parser.parse_args()
    programs = {"tandem": tandem}
    for name, extra in (("llama.cpp", []), ("ik_llama.cpp", ["-fa", "1"])):
        path = CACHE / "peers" / name / "bin" / "llama-bench"
        if path.exists():
            programs[name] = peer(str(path), extra)
        else:
            print(f"{name} is not built: `make bench-peers` does it", file=sys.stderr)
    print(f"{'threads':>7}  {'program':12} {'prefill':>9} {'decode':>9}   tandem / it: prefill  decode   (medians of {a.rounds} rounds, tok/s)")
    for threads in map(int, a.threads.split(",")):
        seen = {name: [] for name in programs}
        for _ in range(a.rounds):
            for name, run in programs.items():
                seen[name].append(run(a.model, threads, a.prefill, a.decode))
        for name, rows in seen.items():
            prefill, decode = (statistics.median(r[k] for r in rows) for k in (0, 1))
            ratios = [statistics.median(ours[k] / its[k] for ours, its in zip(seen["tandem"], rows)) for k in (0, 1)]
            print(f"{threads:>7}  {name:12} {prefill:9.1f} {decode:9.1f}   {'' if name == 'tandem' else f'{ratios[0]:20.2f} {ratios[1]:7.2f}'}")
        print(f"{threads:>7}  tandem's decode reads {statistics.median(r[2] for r in seen['tandem']):.2f} of what plain reads reach in the same run", flush=True)


if __name__ == "__main__":
    main()
