#!/bin/bash
# What `make bench` runs: the kernels against plain reads, the exchange against MPICH, the whole against its peers.
# Figures of a shared machine move by a quarter from run to run; ratios within one run are what to quote.
set -u
cd "$(dirname "$0")/.." || exit 1
build=${BUILD:-build}
export TANDEM=${TANDEM:-$build/tandem}

section() { printf '\n=== %s\n' "$*"; }

section "matrix products: measured / plain reads, one thread and two; what rounded activations cost"
"$build/bench/matmul"
"$build/bench/matmul" cpu 11 2 | grep -v 'blocks of'
section "products of experts: measured / plain reads, and / the dense kernel"
"$build/bench/experts"
section "attention: measured / plain reads"
"$build/bench/attention"
if [ -x "$build/bench/exchange_mpi" ] && command -v mpiexec.hydra >/dev/null; then
    section "exchange of partial sums, two ranks: shared memory / MPICH"
    mpiexec.hydra -n 2 "$build/bench/exchange_mpi"
else
    section "exchange: MPICH is not installed (mpich, libmpich-dev), left out"
fi
section "exchange between two hosts (network namespaces): ours / MPICH"
bench/exchange_hosts.sh
section "the harness for CUDA kernels: millions a second"
"$build/bench/simt"
section "the emulated link: median / asked"
"$build/bench/link"
section "the demo model: tandem / peers"
model=$(tests/fetch_demo_model.sh) && python3 bench/compare.py "$model"
section "the demo model's shape in MXFP4: tandem / peers"
mxfp4=$(mktemp --suffix=.gguf) || exit 1
trap 'rm -f "$mxfp4"' EXIT
[ -n "$model" ] && python3 bench/mxfp4_model.py "$model" "$mxfp4" && python3 bench/compare.py "$mxfp4"
