#!/bin/bash
# Kernels on the GPU of this machine: instructions, each kernel against ref, whole programs against Hugging Face transformers. Then, where NVIDIA's compute-sanitizer is (SANITIZE=0: without), its
# word on the kernels' tests: accesses out of bounds, uninitialised reads, races, barriers.
# usage: tests/gpu.sh BUILD    after `make gpu`; exit status 77 where there is no GPU
set -u
gpu=$1/gpu
"$1/cuda_self_test" || exit $?
status=0
tests='kernels_cuda_simt_test kernels_mma_simt_test kernels_attention_simt_test'
for test in $tests; do "$gpu/tests/$test" || status=1; done
BUILD=$gpu TANDEM=$gpu/tandem tests/run.sh tests/simt_eval_test.sh || status=1
[ "${SANITIZE:-1}" = 1 ] && command -v compute-sanitizer >/dev/null || exit $status
for test in $tests; do
    for tool in memcheck initcheck racecheck synccheck; do
        log=$gpu/$test.$tool
        if compute-sanitizer --tool $tool --error-exitcode 5 "$gpu/tests/$test" >"$log" 2>&1; then
            echo "$test, $tool: $(grep -o '[A-Z]* SUMMARY: .*' "$log" | tail -n 1)"
        else
            echo "$test, $tool: exit status $?, see $log" >&2
            status=1
            grep '=====' "$log" | head -n 30 >&2
        fi
    done
done
exit $status
