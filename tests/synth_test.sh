#!/bin/bash
# `tandem synth`: what it refuses, headers without matrices, and with LONG=1 a model with made-up numbers that runs.
. tests/t.sh

# refuses NAME STATUS PART ARGUMENTS…: one line that says why, and nothing is left
refuses() {
    local name=$1 want=$2 part=$3 status=0 said
    shift 3
    said=$("$TANDEM" synth "$@" 2>&1) || status=$?
    if [ $status = "$want" ] && [ "$(printf '%s\n' "$said" | wc -l)" = 1 ]; then t_pass "$name"; else t_fail "$name: status $status: $said"; fi
    contains "$name: says why" "$said" "$part"
}

out=$t_dir/out
refuses "no preset" 2 "--like which PRESET" "$out"
refuses "an unknown preset" 2 "llama-9" --like llama-9 "$out"
refuses "no OUT" 2 "where to" --like llama-3.1-8b
refuses "a format that it is not made in" 1 "its own format is mxfp4" --like gpt-oss-20b --format nvfp4 "$out"
refuses "too many layers" 1 "has 32 layers" --like llama-3.1-8b --layers 33 "$out"
refuses "experts of a dense model" 1 "has no experts" --like llama-3.1-8b --experts 2 "$out"
refuses "a directory that is not there" 1 "cannot make" --like llama-3.1-8b --headers-only "$t_dir/none/out"
[ ! -e "$out" ] && [ ! -e "$out.partial" ] && t_pass "nothing is left" || t_fail "nothing is left"
contains "--help lists presets" "$("$TANDEM" synth --help)" "llama-3.1-405b"

# The whole 405B: its headers, what holds the numbers being holes.
ok "headers of 405B in NVFP4" "$TANDEM" synth --like llama-3.1-405b --format nvfp4 --headers-only "$out"
refuses "OUT exists" 1 "exists already" --like llama-3.1-8b --headers-only "$out"
size=$(du -s --apparent-size -B 1000000 "$out" | cut -f1) used=$(du -s -B 1000000 "$out" | cut -f1)
if [ "$size" -gt 234000 ] && [ "$used" -lt 100 ]; then t_pass "234 GB by name, under 100 MB on the disk"; else t_fail "sizes: $size, $used MB"; fi
said=$("$TANDEM" inspect "$out" -n 2 --split 5:3 2>&1)
contains "inspect reads it" "$said" "882 matrices are NVFP4 of ModelOpt"
contains "every byte is owned" "$said" "audit: 234339868544 bytes in the checkpoint = 234339865016 owned once + 3528 unused"
for like in qwen3-235b-a22b gpt-oss-120b glm-4.7 minimax-m2 mixtral-8x7b; do
    ok "headers of $like" "$TANDEM" synth --like $like --layers 4 --headers-only "$t_dir/$like"
    contains "inspect lists $like" "$("$TANDEM" inspect "$t_dir/$like" 2>&1)" "safetensors"
done
rm -rf "$out"

if [ "${LONG:-0}" = 1 ]; then
    for format in bf16 fp8 nvfp4; do
        ok "8B's width in $format" "$TANDEM" synth --like llama-3.1-8b --layers 1 --format $format --seed 3 "$out"
        one=$("$TANDEM" run "$out" -p "What is it?" --max-tokens 8 --ctx 64 2>/dev/null)
        two=$("$TANDEM" run "$out" -n 2 -p "What is it?" --max-tokens 8 --ctx 64 2>/dev/null)
        if [ -n "$one" ] && [ "$one" = "$two" ]; then t_pass "the same words at 1 and 2 ranks in $format"; else t_fail "'$one' and '$two'"; fi
        rm -rf "$out"
    done
else
    skip "made-up numbers that run" "a long test"
fi
t_end
