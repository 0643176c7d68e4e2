#!/bin/bash
# Runs test programs and scripts, each in its own process group under a deadline, and adds up their results: first those that only compute, as many at once as there are CPUs (four at
# most), then the others one after another, for they measure time, or want several CPUs.
# usage: tests/run.sh PROGRAM|SCRIPT…     The last line is "N passed, N failed, N skipped".
#
# A program fails when it leaves with a status, misses its deadline, ran no test, or logged a warning that it did not declare.
# A source may ask for a longer deadline with the words "test-deadline: SECONDS".
# Environment: LONG=1 (long tests), TEST_DEADLINE_S, TANDEM_DEMO_MODEL (fetched into the cache where unset), TANDEM_TEST_SEED.
set -u
export LC_ALL=C
cd "$(dirname "$0")/.." || exit 1

long=${LONG:-0}
default_s=${TEST_DEADLINE_S:-$([ "$long" = 1 ] && echo 900 || echo 60)}

if [ -z "${TANDEM_DEMO_MODEL:-}" ]; then
    if TANDEM_DEMO_MODEL=$(tests/fetch_demo_model.sh); then export TANDEM_DEMO_MODEL; else
        unset TANDEM_DEMO_MODEL
        echo "no demo model: tests that need it are skipped" >&2
    fi
fi

dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
passed=0 failed=0 skipped=0
red='' plain=''
[ -t 1 ] && red=$'\e[31m' plain=$'\e[0m'

only_computes() {
    case ${1##*/} in
    comm_sim_test | kernels_* | partition_* | runtime_* | text_* | golden_* | kv_cache_* | odd_scales_* | plan_* | quantize_* | smaller_* | synth_*) return 0 ;;
    esac
    return 1
}

# sum FILE PATTERN: adds up the numbers of cmocka's summary lines "[  PASSED  ] 3 test(s)."
sum() { sed -n "s/^\[  $2 *\] \([0-9][0-9]*\) test(s).*/\1/p" "$1" | awk '{ n += $1 } END { print n + 0 }'; }

# check PROGRAM FILE: runs it; its verdict goes to FILE, its numbers to FILE.sum.
check() {
    local program=$1 out=$2.out name source asked_s deadline_s start status ms p f s why verdict command
    name=$(basename "$program")
    case $program in
    *.sh) source=$program command=(bash "$program") ;;
    *) source=tests/$name.c command=("$program") ;;
    esac
    asked_s=$(sed -n 's/.*test-deadline: \([0-9][0-9]*\).*/\1/p' "$source" 2>/dev/null | head -n 1)
    deadline_s=$default_s
    [ -n "$asked_s" ] && [ "$asked_s" -gt "$deadline_s" ] && deadline_s=$asked_s

    start=$(date +%s%N)
    timeout --kill-after=5 "$deadline_s" "${command[@]}" >"$out" 2>&1 </dev/null
    status=$?
    ms=$((($(date +%s%N) - start) / 1000000))

    case $program in
    *.sh)
        read -r p f s < <(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed, \([0-9]*\) skipped$/\1 \2 \3/p' "$out" | tail -n 1)
        p=${p:-0} f=${f:-0} s=${s:-0}
        ;;
    *) p=$(sum "$out" PASSED) f=$(sum "$out" FAILED) s=$(sum "$out" SKIPPED) ;;
    esac
    why=
    if [ $status = 124 ] || [ $status = 137 ]; then
        why="missed its deadline of $deadline_s s"
    elif [ $status != 0 ]; then
        why="status $status"
    elif [ $((p + f + s)) = 0 ]; then
        why="ran no test"
    elif grep -Eq '^[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6} [^ ]+ (launcher|rank [0-9]+) (warn|error) ' "$out" && ! grep -q '^t: warnings declared' "$out"; then
        why="logged a warning that it did not declare"
    fi
    [ -n "$why" ] && [ "$f" = 0 ] && f=1
    [ "$f" != 0 ] && [ -z "$why" ] && why="status 0 although tests failed"

    verdict=ok
    [ -n "$why" ] && verdict="${red}FAILED: $why$plain"
    {
        printf '%-32s %4d passed %3d failed %3d skipped %4d.%03d s  %s\n' "$name" "$p" "$f" "$s" $((ms / 1000)) $((ms % 1000)) "$verdict"
        [ -n "$why" ] && sed 's/^/    /' "$out"
    } >"$2"
    echo "$p $f $s" >"$2.now"
    mv "$2.now" "$2.sum" # whole, as soon as it is there
}

# tell FILE: the verdict of one that has ended.
tell() {
    local p=0 f=1 s=0 # of one that could not even say
    cat "$1"
    read -r p f s <"$1.sum"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

n_jobs=$(nproc)
[ "$n_jobs" -le 4 ] || n_jobs=4
n=0 told=0 running=0
for program in "$@"; do
    only_computes "$program" || continue
    [ $running -lt "$n_jobs" ] || { wait -n; running=$((running - 1)); }
    n=$((n + 1)) running=$((running + 1))
    check "$program" "$dir/$n" &
    while [ -e "$dir/$((told + 1)).sum" ]; do told=$((told + 1)) && tell "$dir/$told"; done
done
wait
while [ $told -lt $n ]; do told=$((told + 1)) && tell "$dir/$told"; done
for program in "$@"; do
    only_computes "$program" && continue
    n=$((n + 1))
    check "$program" "$dir/$n"
    tell "$dir/$n"
done

if [ $((passed + failed + skipped)) = 0 ]; then
    echo "no test was run" >&2
    failed=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
