#!/bin/bash
# Runs test programs and scripts one after another, each in its own process group under a deadline, and adds up their results.
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

out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
passed=0 failed=0 skipped=0
red='' plain=''
[ -t 1 ] && red=$'\e[31m' plain=$'\e[0m'

# sum PATTERN: adds up the numbers of cmocka's summary lines "[  PASSED  ] 3 test(s)."
sum() { sed -n "s/^\[  $1 *\] \([0-9][0-9]*\) test(s).*/\1/p" "$out" | awk '{ n += $1 } END { print n + 0 }'; }

for program in "$@"; do
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
    *) p=$(sum PASSED) f=$(sum FAILED) s=$(sum SKIPPED) ;;
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
    printf '%-32s %4d passed %3d failed %3d skipped %4d.%03d s  %s\n' "$name" "$p" "$f" "$s" $((ms / 1000)) $((ms % 1000)) "$verdict"
    [ -n "$why" ] && sed 's/^/    /' "$out"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
done

if [ $((passed + failed + skipped)) = 0 ]; then
    echo "no test was run" >&2
    failed=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
