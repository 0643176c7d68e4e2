#!/bin/bash
# Whole programs on CUDA kernels, emulated, all detectors on: logits against Hugging Face transformers under each model of how a matrix instruction adds up, the same bits on one rank and two, in
# chunks and whole, in batches and alone, and with activations in F32 those of the CPU's kernels. And what --device says where it cannot.
. tests/t.sh

golden=tests/golden/llama
. tests/t_golden.sh
[ -f "$BUILD/libtandem-simt.so" ] || {
    skip "CUDA kernels, emulated" "this build has none"
    t_end
}

# shellcheck disable=SC2154 # t_dir is t.sh's
# near NAME CASE: the prompt's logits, whose root mean square may differ by 2 %
near() {
    local dir=$golden/$2
    evaluate "$1" "$2" --device simt "${@:3}" || return
    head -c "$(($(wc -w <"$dir/ids.txt") * $(stat -c %s "$dir/logits.f32") / $(cat "$dir/ids.txt" "$dir/greedy.txt" | wc -w)))" "$dir/logits.f32" >"$t_dir/want"
    head -c "$(stat -c %s "$t_dir/want")" "$t_dir/logits" >"$t_dir/got"
    if said=$("$BUILD/tests/compare_logits" rms "$t_dir/got" "$t_dir/want" 0.02); then t_pass "$1: $said"; else t_fail "$1: $said"; fi
}

# logits OUT CASE OPTIONS…: of the prompt's first 20 tokens and two more
logits() {
    local out=$1 dir=$golden/$2
    shift 2
    cut -d' ' -f1-20 "$dir/ids.txt" | head -n 1 >"$t_dir/ids"
    "$TANDEM" eval "$dir" --ids "$t_dir/ids" --greedy 2 --logits "$out" "$@" 2>&1
}
same() { ok "$1" cmp "$t_dir/$2" "$t_dir/$3"; }

for model in exact truncating permuted; do
    TANDEM_SIMT_MMA=$model near "NVFP4, $model" nvfp4-modelopt
done
cp "$t_dir/logits" "$t_dir/whole"
TANDEM_SIMT_MMA=permuted near "NVFP4 in chunks of 7, permuted" nvfp4-modelopt --chunk 7
same "NVFP4, permuted: the same bits in chunks" whole logits
near "NVFP4 on 2 ranks" nvfp4-modelopt -n 2 --threads 1
cp "$t_dir/logits" "$t_dir/two"
near "NVFP4 on 1 rank, another schedule" nvfp4-modelopt
same "NVFP4: the same bits on 2 ranks" two logits

# batch OUT CASE OPTIONS…: two sequences in mixed steps; alone OUT CASE OPTIONS…: one after the other
sequences() {
    cut -d' ' -f1-9 "$golden/$1/ids.txt" | head -n 1 >"$t_dir/a"
    cut -d' ' -f5-18 "$golden/$1/ids.txt" | head -n 1 >"$t_dir/b"
}
batch() {
    sequences "$2"
    "$TANDEM" eval "$golden/$2" --ids "$t_dir/a" --ids "$t_dir/b" --greedy 2 --logits "$1" --device simt "${@:3}"
}
alone() {
    sequences "$2"
    : >"$1"
    for ids in a b; do
        "$TANDEM" eval "$golden/$2" --ids "$t_dir/$ids" --greedy 2 --logits "$t_dir/logits" --device simt "${@:3}" || return
        cat "$t_dir/logits" >>"$1"
    done
}
for case in nvfp4-modelopt kv3-bf16; do
    ok "$case, two sequences at once" batch "$t_dir/both" "$case" --chunk 6
    ok "$case, each alone" alone "$t_dir/each" "$case"
    same "$case: the same bits in a batch" both each
    for seed in 2 ${LONG:+$(seq 3 20)}; do
        TANDEM_SIMT_SEED=$seed ok "$case, schedule $seed" batch "$t_dir/other" "$case"
        same "$case: the same bits in another schedule" both other
    done
done

# ---- caches of every format that attention has; eval's own is F32
for kv in f32 f16 bf16; do
    near "BF16, cache in ${kv^^}" kv3-bf16 --kv $kv
    cp "$t_dir/logits" "$t_dir/whole"
    near "the same in chunks of 5" kv3-bf16 --kv $kv --chunk 5
    same "cache in ${kv^^}: the same bits in chunks" whole logits
done

ok "BF16 on 1 rank" logits "$t_dir/one" kv8-bf16-llama3 --device simt --kv f16
ok "BF16 on 2 ranks" logits "$t_dir/two" kv8-bf16-llama3 --device simt --kv f16 -n 2 --threads 1 --split 5:3
same "BF16: the same bits on 2 ranks" one two
ok "activations in F32" logits "$t_dir/simt" kv3-bf16 --device simt --activations f32
ok "activations in F32, on the CPU" logits "$t_dir/cpu" kv3-bf16 --device cpu --activations f32
same "activations in F32: the bits of the CPU's kernels" simt cpu

# ---- what is missing is named
contains "a format without kernels" "$(logits /dev/null int4-gptq --device simt)" "has no matmul of INT4"
contains "NVFP4 with activations in F32" "$(logits /dev/null nvfp4-modelopt --device simt --activations f32)" "has no matmul of NVFP4 with activations in F32"
contains "a cache without kernels" "$(logits /dev/null kv3-bf16 --device simt --kv fp8)" "with a cache in E4M3"

# ---- a GPU: a driver that says there is one
if ldconfig -p 2>/dev/null | grep -q 'libcuda\.so\.1'; then
    skip "no GPU" "there may be one"
else
    contains "no GPU" "$(logits /dev/null kv3-bf16 --device cuda)" "--device cuda: there is no GPU here"
fi
cat >"$t_dir/driver.c" <<'C'
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGetCount(int *n) { return *n = 1, 0; }
int cuDeviceGet(int *device, int i) { return *device = i, 0; }
int cuDeviceGetName(char *name, int bytes, int device) { return bytes < 3 ? 1 : (name[0] = 'G', name[1] = (char)('0' + device), name[2] = 0, 0); }
C
# shellcheck disable=SC2086 # CC may be several words
ok "a driver" ${CC:-gcc} -shared -fPIC -o "$t_dir/libcuda.so.1" "$t_dir/driver.c"
export LD_LIBRARY_PATH=$t_dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
contains "a GPU whose backend has not every step" "$(logits /dev/null kv3-bf16)" "G0 is not used: its backend has no embed of BF16 yet, the first step of kv3-bf16; running on the CPU"
contains "the same, by name" "$(logits /dev/null kv3-bf16 --device cuda)" "--device cuda: the backend has no embed of BF16 yet"
t_end
