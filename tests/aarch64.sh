#!/bin/bash
# The build for Arm ($TANDEM_OTHER, by `make test-aarch64`), emulated, against this machine's: the same bits, whatever the processor, on one rank and on two. test-deadline: 120
# The emulator knows nothing of Arm's memory order: a missing barrier is not found here. It cannot start what a program starts, so mpiexec starts the ranks.
# Hosts of Arm, launched from here with the bundle for them, get as far as that.
. tests/t.sh

if ! command -v qemu-aarch64-static >/dev/null; then
    skip "the Arm build" "no qemu-aarch64-static"
    t_end
fi
other=(qemu-aarch64-static -cpu max -L "${TANDEM_OTHER%/*}/sysroot" "$TANDEM_OTHER")

fails "it has UCX" grep -q "this build has no UCX" "$TANDEM_OTHER"
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

# --- launched from here ---

# What stands in for ssh: hosts whose names begin with arm are emulated, but for their shell. Where ranks would start (the agent executes itself) the emulator's part ends.
cat >"$t_dir/ssh" <<'END'
#!/bin/bash
while :; do case ${1-} in -x | -T | -q) shift ;; -o | -p | -l) shift 2 ;; *) break ;; esac; done
[[ $1 != arm* ]] || export BASH_ENV=$T_ARM
shift
words="$*"
eval "exec bash -c ${words#exec /bin/sh -c }"
END
cat >"$t_dir/arm" <<END
uname() { echo aarch64; }
exec() {
    case \$1 in
    */bin/tandem) builtin exec qemu-aarch64-static -cpu max -L "$(realpath "${TANDEM_OTHER%/*}/sysroot")" -E "LD_LIBRARY_PATH=\$LD_LIBRARY_PATH" -U LD_LIBRARY_PATH "\$@" ;;
    *) builtin exec "\$@" ;;
    esac
}
END
chmod 755 "$t_dir/ssh"
export T_ARM=$t_dir/arm TANDEM_SSH=$t_dir/ssh TANDEM_REMOTE_DIR=$t_dir/remote
contains "the bundle of Arm is sent there" "$("$TANDEM" host-check --hosts arm1 2>&1)" '"machine": "aarch64"'
contains "once" "$("$TANDEM" host-check --hosts arm1 2>&1)" "arm1: pushed 0: "
out=$("$TANDEM" run "$model" --hosts arm1,arm2 --dry-run 2>&1)
contains "two hosts of Arm meet" "$? $out" "0 model "
contains "and try their ports" "$out" "tried: arm2 reaches arm1 by TCP"
out=$("$TANDEM" run "$model" --hosts arm1,x1 --dry-run 2>&1)
contains "a mixed job is refused" "$? $out" "1 tandem run: --hosts: arm1 is aarch64, and x1 is $(uname -m); the hosts of one job must have one architecture"
mkdir "$t_dir/alone"
cp "$TANDEM" "$t_dir/alone/"
contains "without a bundle, what to do" "$("$t_dir/alone/tandem" host-check --hosts arm1 2>&1)" "arm1: is aarch64, and this Tandem is $(uname -m): 'make bundle ARCH=aarch64', where it was built, makes what such hosts need"
t_end
