#!/bin/bash
# The build for Arm ($TANDEM_OTHER, by `make test-aarch64`), emulated, against this machine's: the same bits, whatever the processor, on one rank and on two. test-deadline: 120
# The emulator knows nothing of Arm's memory order: a missing barrier is not found here. It cannot start what a program starts, so mpiexec starts the ranks.
. tests/t.sh

if ! command -v qemu-aarch64-static >/dev/null; then
    skip "the Arm build" "no qemu-aarch64-static"
    t_end
fi
other=(qemu-aarch64-static -cpu max -L "${TANDEM_OTHER%/*}/sysroot" "$TANDEM_OTHER")

contains "it is the same build" "$("${other[@]}" --version)" "$("$TANDEM" --version)"
for case in kv8-bf16-llama3 gguf-q8_0-q4_1-tied gguf-q4_k-q6_k-q5_0 gguf-nvfp4; do
    model=tests/golden/llama/$case
    [ -f "$model/model.gguf" ] && model=$model/model.gguf
    for activations in f32 auto; do
        arguments=(eval "$model" --ids "tests/golden/llama/$case/ids.txt" --greedy 6 --activations "$activations" --threads 1)
        ok "$case, $activations" "$TANDEM" "${arguments[@]}" --logits "$t_dir/want"
        ok "… on Arm" "${other[@]}" "${arguments[@]}" --logits "$t_dir/got"
        ok "the same bits" cmp "$t_dir/want" "$t_dir/got"
    done
    for backend in shm tcp; do
        rm -f "$t_dir/got"
        ok "$case on two ranks, over $backend" mpiexec.hydra -n 2 "${other[@]}" rank "${arguments[@]}" --backend "$backend" --logits "$t_dir/got"
        ok "the same bits" cmp "$t_dir/want" "$t_dir/got"
    done
done
t_end
