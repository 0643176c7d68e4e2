#!/bin/bash
# Uninitialised locals of kernels: the same program with locals that begin as a pattern and with locals that begin as zeroes leaves the same bits, launch for launch; planted ones are found. Compares $BUILD/tests with $BUILD/zero: both are to be of the same sources (T="%simt_test kernels_locals_test" where not all is built).
. tests/t.sh

[ -x "$BUILD/zero/tandem" ] || {
    skip "uninitialised locals" "this build has no kernels whose locals begin as zeroes"
    t_end
}

# ---- planted faults and right kernels under every seed, and kernels/cuda against ref
# shellcheck disable=SC2154 # t_dir is t.sh's
for test in kernels_simt_test kernels_cuda_simt_test kernels_mma_simt_test kernels_attention_simt_test; do
    export TANDEM_SIMT_BITS=$t_dir/$test
    ok "$test with a pattern" "$BUILD/tests/$test"
    ok "$test with zeroes" "$BUILD/zero/$test"
done

# ---- whole programs
export TANDEM_SIMT_BITS=$t_dir/bits
# logits FOLDER NAME CASE OPTIONS…: by the binary of that folder, of 12 tokens and two more
logits() {
    local dir=tests/golden/llama/$3
    cut -d' ' -f1-12 "$dir/ids.txt" | head -n 1 >"$t_dir/ids"
    "$BUILD/$1/tandem" eval "$dir" --ids "$t_dir/ids" --greedy 2 --device simt --logits "$t_dir/$2" "${@:4}" 2>&1
}
both() {
    rm -f "$TANDEM_SIMT_BITS"
    ok "$* with a pattern" logits . pattern "$@"
    ok "$* with zeroes" logits zero zeroes "$@"
    ok "$*: the same logits" cmp "$t_dir/pattern" "$t_dir/zeroes"
}
both kv3-bf16 --activations f32 --kv f16
both kv3-bf16 --kv bf16 --chunk 5
both nvfp4-modelopt --chunk 12

# ---- what differs is told, and ends the program: here the tokens go in other chunks
said=$(logits zero zeroes nvfp4-modelopt --chunk 5) && status=0 || status=$?
ok "exit status 4 (here $status)" [ "$status" = 4 ]
contains "a launch that left other bits" "$said" "tandem simt: uninitialised local: kernel embed, launch 1,"
TANDEM_SIMT_BITS=$t_dir/none/bits
said=$(logits . pattern nvfp4-modelopt) && status=0 || status=$?
ok "exit status 2 (here $status)" [ "$status" = 2 ]
contains "a file that cannot be written" "$said" "TANDEM_SIMT_BITS=$t_dir/none/bits: cannot be"
t_end
