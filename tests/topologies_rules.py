#!/usr/bin/env python3
"""Checks what `tandem topo` answers by the rules of placement, with a reader of machines of its own (no hwloc, no code of Tandem).

usage: topologies_rules.py TANDEM [CAPTURED]     CAPTURED: a directory of hwloc XML files; skipped where it is not there.
The last line is "N machines, N placements, N pictures".
"""
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor

TANDEM = sys.argv[1]
CAPTURED = sys.argv[2] if len(sys.argv) > 2 else "../shared/topologies"
LONG = os.environ.get("LONG") == "1"

# What is known of the kinds of CPUs, from elsewhere than the code: sets of fast PUs; all others are slow.
FAST = {
    "nvidia-dgx-gb10.xml": set(range(5, 10)) | set(range(15, 20)),
    "20em64t-hybrid-1p6c2t+2ca4co1t.xml": set(range(12)),
    "fakeheterocpunuma.xml": set(range(12, 24)),
}
SYNTHETIC = ["pu:1", "core:2 pu:1", "core:1 pu:2", "pack:1 core:4 pu:2", "pack:2 core:4 pu:2", "pack:2 numa:2 l3:2 core:4 pu:1", "pack:1 l3:4 core:6 pu:2",
             "numa:8 core:2 pu:2", "numa:2 pu:6", "pack:4 core:1 pu:2", "pack:1 core:1 pu:4", "pack:8 core:16 pu:1", "pack:3 l3:2 core:3 pu:2", "numa:8 l3:2 core:8 pu:1"]


class Machine:
    """pus: OS index -> dict of core, package, numa (OS index), l3, kind (0 fast), all hashable; None: no such level."""

    def __init__(self, name, source):
        self.name, self.source, self.pus = name, source, {}

    def cores(self):
        found = {}
        for pu, where in self.pus.items():
            found.setdefault(where["core"], []).append(pu)
        return found


def cpuset(text):
    value = 0
    for word in text.split(","):
        value = value << 32 | int(word or "0", 16)
    return value


def read_xml(path):
    name = os.path.basename(path)
    m = Machine(name, path)
    tree = ET.parse(path)
    allowed = cpuset(tree.find("object").get("allowed_cpuset"))
    domains = {"Package": [], "NUMANode": [], "L3Cache": [], "L2Cache": []}
    for o in tree.iter("object"):
        if o.get("type") in domains and cpuset(o.get("cpuset", "")):
            domains[o.get("type")].append((cpuset(o.get("cpuset")), int(o.get("os_index", -1)), len(domains[o.get("type")]), o.get("subtype")))

    def walk(o, core):
        kind = o.get("type")
        if kind == "Core":
            core = ("core", o.get("gp_index"))
        if kind == "PU":
            pu = int(o.get("os_index"))
            if allowed >> pu & 1:
                def domain(level, index=2):
                    above = sorted((d for d in domains[level] if d[0] >> pu & 1 and d[3] != "GPUMemory"), key=lambda d: bin(d[0]).count("1"))
                    return above[0][index] if above else None
                m.pus[pu] = {"core": core or ("pu", pu), "package": domain("Package"), "numa": domain("NUMANode", 1), "l3": domain("L3Cache"),
                             "kind": 0 if pu in FAST.get(name, {pu}) else 1}
        for child in o.findall("object"):
            walk(child, core)

    walk(tree.find("object"), None)
    return m


def read_synthetic(text):
    m = Machine(text, text)
    levels = [(k, int(v)) for k, v in (part.split(":") for part in text.split())]

    def walk(depth, where, path):
        if depth == len(levels):
            pu = len(m.pus)
            m.pus[pu] = {"core": where.get("core", ("pu", pu)), "package": where.get("pack"), "numa": where.get("numa", 0), "l3": where.get("l3"), "kind": 0}
            return
        kind, n = levels[depth]
        for i in range(n):
            below = dict(where)
            below[kind] = counters[kind] = counters.get(kind, -1) + 1
            walk(depth + 1, below, path + [i])

    counters = {}
    walk(0, {}, [])
    return m


def cpu_list(text):
    out = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        out += range(int(first), int(last or first) + 1)
    return out


def read_description(path, name):
    m = Machine(name, name)
    for run in json.load(open(path))["processors"]["cores"]:
        for i, pu in enumerate(cpu_list(run["pus"])):
            for thread in [pu] + [cpu_list(s)[i] for s in run.get("siblings", [])]:
                m.pus[thread] = {"core": ("core", pu), "package": run.get("package"), "numa": run.get("numa"), "l3": run.get("l3"), "kind": run.get("kind", 0)}
    return m


def check(m, n_ranks, n_threads, bind, answer):
    """Raises AssertionError with the rule that is broken."""
    ranks, pus = answer["ranks"], m.pus
    assert [r["rank"] for r in ranks] == list(range(n_ranks)), "ranks in order"
    want = n_threads or max(1, len(pus) // n_ranks)
    use, cores = {}, m.cores()
    for r in ranks:
        assert len(r["pus"]) == want, f"{want} threads for each rank"
        for pu in r["pus"]:
            assert pu in pus, f"CPU {pu} is allowed"
            use[pu] = use.get(pu, 0) + 1
    total = n_ranks * want
    level = bind if bind in ("l3", "numa", "package") else None
    assert answer["bound"] == (bind != "none"), "bound, but for --bind none"
    assert answer["oversubscribed"] == (total > len(pus) or max(use.values()) > 1), "oversubscribed is told"
    if answer["oversubscribed"]:
        assert answer["note"], "why it is oversubscribed is told"
    for r in ranks:  # nodes of the CPUs, no more and no less
        assert r["numa"] == sorted({pus[p]["numa"] for p in r["pus"]} - {None}), "nodes of memory"

    if not level:
        counts = [use.get(p, 0) for p in pus]
        assert max(counts) - min(counts) <= 1, "CPUs carry equal numbers of threads"
        if total <= len(pus):
            def keys(chosen):
                return sorted((i, pus[group[0]]["kind"]) for group in chosen for i in range(len(group)))
            used = {}
            for p in use:
                used.setdefault(pus[p]["core"], []).append(p)
            assert keys(used.values()) == keys(cores.values())[:total], "whole cores before siblings, fast kinds before slow ones"
            for r in ranks:
                kinds = [pus[p]["kind"] for p in r["pus"]]
                assert kinds == sorted(kinds), "a rank's fast cores first"
    else:
        for r in ranks:
            assert len({pus[p][level] for p in r["pus"]}) == 1, f"each rank in one {level}"

    # One domain for each rank where there are enough: machines whose domains are all alike.
    fast_cores = {c: g for c, g in cores.items() if pus[g[0]]["kind"] == 0}
    for name in ("package", "numa", "l3"):
        sizes = {}
        for group in fast_cores.values():
            sizes[pus[group[0]][name]] = sizes.get(pus[group[0]][name], 0) + 1
        if level or None in sizes or len(set(sizes.values())) != 1 or len({len(g) for g in cores.values()}) != 1:
            continue
        each = next(iter(sizes.values()))
        if want <= each and n_ranks <= len(sizes):
            homes = []
            for r in ranks:
                inside = {pus[p][name] for p in r["pus"]}
                assert len(inside) == 1, f"a rank that fits into one {name} is not spread"
                assert all(pus[p]["kind"] == 0 for p in r["pus"]), "and sits on fast cores"
                homes += inside
            assert len(set(homes)) == n_ranks, f"each rank has a {name} of its own"

    # Progress: whole cores that nobody else uses, near; none only where there is none.
    busy = {pus[p]["core"] for p in use}
    own = {}
    for r in ranks:
        p = r["progress"]
        if p is None:
            continue
        assert not answer["oversubscribed"] and p in pus, "a progress core is an allowed one to spare"
        assert pus[p]["core"] not in busy and pus[p]["core"] not in own, "a progress core is nobody else's"
        own[pus[p]["core"]] = r
        assert pus[p]["numa"] in {pus[x]["numa"] for x in r["pus"]}, "a progress core is on the rank's node"
        if level:
            assert pus[p][level] in {pus[x][level] for x in r["pus"]}, f"a progress core is in the rank's {level}"
    spare = [g for c, g in cores.items() if c not in busy and c not in own]
    for r in ranks:
        if answer["oversubscribed"] or total + len(own) >= len(pus):
            continue
        for group in spare:
            near = all(pus[group[0]][n] in {pus[x][n] for x in r["pus"]} for n in ["numa"] + ([level] if level else []))
            if near:
                assert r["progress"] is not None, f"rank {r['rank']} could have the core of CPU {group[0]}"
                close = pus[group[0]]["l3"] in {pus[x]["l3"] for x in r["pus"]} and pus[group[0]]["package"] in {pus[x]["package"] for x in r["pus"]}
                if close:
                    assert pus[r["progress"]]["kind"] <= pus[group[0]]["kind"], "the faster core is taken"


def check_picture(m, text):
    """Well-formed, on its own, every CPU there, boxes nested, no letter outside of its box."""
    root = ET.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    assert root.tag == svg + "svg"
    width, height = float(root.get("width")), float(root.get("height"))
    assert "href" not in text and "url(http" not in text, "self-contained"
    rects, numbers = [], []
    for r in root.findall(svg + "rect"):
        x, y, w, h = (float(r.get(k)) for k in ("x", "y", "width", "height"))
        assert w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width + 0.1 and y + h <= height + 0.1, "boxes lie on the page"
        rects.append((x, y, x + w, y + h))
    for i, a in enumerate(rects[:700]):
        for b in rects[i + 1:700]:
            apart = a[2] <= b[0] + 0.2 or b[2] <= a[0] + 0.2 or a[3] <= b[1] + 0.2 or b[3] <= a[1] + 0.2
            inside = all(p <= q + 0.2 for p, q in zip((a[0], a[1], b[2], b[3]), (b[0], b[1], a[2], a[3])))
            assert apart or inside, f"boxes lie in or beside each other: {a} {b}"
    for t in root.findall(svg + "text"):
        x, y, size, content = float(t.get("x")), float(t.get("y")), float(t.get("font-size")), t.text or ""
        w = 0.64 * size * len(content)
        left = x - w / 2 if t.get("text-anchor") == "middle" else x
        box = min((r for r in rects if r[0] <= x <= r[2] and r[1] <= y <= r[3]), key=lambda r: (r[2] - r[0]) * (r[3] - r[1]))
        assert left >= box[0] - 0.1 and left + w <= box[2] + 0.1, f"'{content}' fits into its box"
        assert y - 0.75 * size >= box[1] - 0.1 and y + 0.2 * size <= box[3] + 0.1, f"'{content}' fits into its box"
        numbers.append(content)
    for pu in m.pus:
        assert str(pu) in numbers, f"CPU {pu} is drawn"


def run(m, args):
    done = subprocess.run([TANDEM, "topo", *args, m.source], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


def try_placement(job):
    m, n_ranks, n_threads, bind = job
    args = ["-n", str(n_ranks), "--json"] + (["--threads", str(n_threads)] if n_threads else []) + (["--bind", bind] if bind else [])
    try:
        check(m, n_ranks, n_threads, bind, json.loads(run(m, args)))
    except (AssertionError, ValueError, KeyError) as e:
        return f"{m.source}: {' '.join(args)}: {e}"
    return None


def try_picture(job):
    m, n_ranks, n_threads = job
    args = ["-n", str(n_ranks), "--svg"] + (["--threads", str(n_threads)] if n_threads else [])
    try:
        check_picture(m, run(m, args))
    except (AssertionError, ValueError, ET.ParseError) as e:
        return f"{m.source}: {' '.join(args)}: {e}"
    return None


def main():
    machines = [read_synthetic(s) for s in SYNTHETIC]
    machines += [read_description(f"topologies/{name}.json", name) for name in ("gb10", "rtx5090", "vm")]
    if os.path.isdir(CAPTURED):
        machines += [read_xml(os.path.join(CAPTURED, f)) for f in sorted(os.listdir(CAPTURED)) if f.endswith(".xml")]
    placements, pictures = [], []
    for m in machines:
        for n_ranks in range(1, 9):
            for n_threads in (0, 1, 2, 3, 5, 8, 13) if LONG else (0, 1, 3, 5):
                placements.append((m, n_ranks, n_threads, None))
        for bind in ("core", "l3", "numa", "package", "none"):
            for n_ranks in range(1, 9) if LONG else (1, 2, 5):
                for n_threads in (0, 1, 2, 3, 5, 8) if LONG else (0, 2):
                    if bind in ("l3", "package") and all(p[bind] is None for p in m.pus.values()):
                        continue  # one domain by definition
                    placements.append((m, n_ranks, n_threads, bind))
        pictures += [(m, 1, 0), (m, 2, 1), (m, 8, 0)]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        wrong = [w for w in list(pool.map(try_placement, placements)) + list(pool.map(try_picture, pictures)) if w]
    for w in wrong[:20]:
        print(w)
    print(f"{len(machines)} machines, {len(placements)} placements, {len(pictures)} pictures, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
