#!/bin/bash
# What nvcc made of the kernels, as PTX: every wrapper of kernels/simt/on_gpu.h is the instruction that it says, on the architectures that have it; weights are read by 16 bytes;
# nothing is read through the cache for constants (.nc), which would not see what another kernel writes meanwhile; no descriptor of tensors is needed (cp.async.bulk.tensor).
# And what ptxas said of registers: a block of as many threads as the kernel's launch bounds allow, which each kernel has, finds room in the 65,536 of a multiprocessor.
# usage: tests/check_ptx.sh DIR LOGS    DIR: the files that nvcc left there with --keep: NAME.compute_ARCH.ptx; LOGS: ptxas' words, NAME.cu.gpu.o.log
set -u
dir=$1 logs=$2 passed=0 failed=0

# check WANTED FILE PATTERN: WANTED is yes or no
check() {
    local found=no
    grep -qE -e "$3" "$dir/$2" && found=yes
    if [ "$found" = "$1" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "check_ptx: $2: $3: wanted $1, found $found" >&2
    fi
}

scaled='mma\.sync\.aligned\.kind::'
for arch in 80 90 120a 121a; do
    file=self_test.compute_$arch.ptx
    check yes "$file" 'mma\.sync\.aligned\.m16n8k16\.row\.col\.f32\.bf16\.bf16\.f32 '
    check yes "$file" 'cvt\.rn\.bf16x2\.f32 '
    check yes "$file" 'cp\.async\.cg\.shared\.global \[.*\], \[.*\], 16;'
    check yes "$file" 'cp\.async\.commit_group;'
    check yes "$file" 'cp\.async\.wait_group 0;'
    check yes "$file" 'ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16 '
    check yes "$file" 'ldmatrix\.sync\.aligned\.m8n8\.x4\.trans\.shared\.b16 '
    check yes "$file" 'cvt\.rn\.f16\.f32 '
    check yes "$file" 'cvt\.f32\.f16 '
    check yes "$file" 'ld\.acquire\.sys\.global\.b128 '
    check yes "$file" 'st\.release\.sys\.global\.b128 '
    check yes "$file" 'ld\.acquire\.sys\.global\.v4\.u32 '
    check yes "$file" 'st\.release\.sys\.global\.v4\.u32 '
    check yes "$file" 'mbarrier\.init\.shared::cta\.b64 '
    check yes "$file" 'mbarrier\.arrive\.shared::cta\.b64 '
    wanted=yes
    [ $arch = 80 ] && wanted=no
    check $wanted "$file" 'griddepcontrol\.launch_dependents;'
    check $wanted "$file" 'griddepcontrol\.wait;'
    check $wanted "$file" 'mbarrier\.inval\.shared::cta\.b64 ' # sm_80 has it, but not what comes before
    check $wanted "$file" 'mbarrier\.arrive\.expect_tx\.shared::cta\.b64 '
    check $wanted "$file" 'mbarrier\.try_wait\.parity\.shared::cta\.b64 '
    check $wanted "$file" 'fence\.mbarrier_init\.release\.cluster;'
    check $wanted "$file" 'fence\.proxy\.async;'
    check $wanted "$file" 'cp\.async\.bulk\.shared::cluster\.global\.mbarrier::complete_tx::bytes '
    check $wanted "$file" 'cp\.async\.bulk\.global\.shared::cta\.bulk_group '
    check $wanted "$file" 'cp\.async\.bulk\.commit_group;'
    check $wanted "$file" 'cp\.async\.bulk\.wait_group 0;'
    check $wanted "$file" 'cp\.async\.bulk\.wait_group\.read 0;'
    case $arch in
    80) check no "$file" '\.e4m3' ;;
    *) check yes "$file" 'mma\.sync\.aligned\.m16n8k32\.row\.col\.f32\.e4m3\.e4m3\.f32 ' ;;
    esac
    case $arch in
    80 | 90) check no "$file" "$scaled" ;;
    *)
        check yes "$file" "${scaled}mxf8f6f4\.block_scale\.scale_vec::1X\.m16n8k32\.row\.col\.f32\.e4m3\.e4m3\.f32\.ue8m0 .*, \{3,1\}, .*, \{2,3\};"
        check yes "$file" "${scaled}mxf4\.block_scale\.scale_vec::2X\.m16n8k64\.row\.col\.f32\.e2m1\.e2m1\.f32\.ue8m0 .*, \{2,1\}, .*, \{0,1\};"
        check yes "$file" "${scaled}mxf4nvf4\.block_scale\.scale_vec::4X\.m16n8k64\.row\.col\.f32\.e2m1\.e2m1\.f32\.ue4m3 .*, \{0,1\}, .*, \{0,2\};"
        ;;
    esac
done
for path in "$dir"/*.ptx; do
    check no "${path##*/}" 'ld\.global[a-z0-9.:]*\.nc|cp\.async\.bulk\.tensor'
done
for file in matmul mma_matmul attention; do
    check yes $file.compute_121a.ptx 'ld\.global\.v4\.u32'
done

# registers NAME: a line "ok|failed KERNEL …" for each kernel and architecture. A thread gets registers by eights, a block threads by warps.
registers() {
    awk -v name="$1" -v dir="$dir" '
        /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = substr(part[4], 4) }
        / Used [0-9]+ registers/ {
            used = $0; sub(/.* Used /, "", used); used = int((used + 7) / 8) * 8
            ptx = dir "/" name ".compute_" arch ".ptx"; threads = 0; mine = 0
            while ((getline line < ptx) > 0) {
                if (line ~ /\.entry /) mine = index(line, " " kernel "(") > 0
                if (mine && line ~ /^\.maxntid /) { sub(/^\.maxntid /, "", line); split(line, n, /, */); threads = n[1] * (n[2] ? n[2] : 1) * (n[3] ? n[3] : 1) }
            }
            close(ptx)
            wanted = int((threads + 31) / 32) * 32 * used
            print (threads && wanted <= 65536 ? "ok" : "failed"), kernel, "for sm_" arch ":", threads ? threads " threads of " used " registers" : "no launch bounds"
        }' "$logs/$1.cu.gpu.o.log"
}
for log in "$logs"/*.cu.gpu.o.log; do
    name=${log##*/}
    while read -r result what; do
        if [ "$result" = ok ]; then
            passed=$((passed + 1))
        else
            failed=$((failed + 1))
            echo "check_ptx: $what" >&2
        fi
    done < <(registers "${name%.cu.gpu.o.log}")
done

echo "$passed passed, $failed failed, 0 skipped"
[ $failed = 0 ]
