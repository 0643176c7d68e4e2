#!/bin/bash
# The commands' contract: what they print where, and how they end (known-faults F13, F20, F23). test-deadline: 120
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"

TANDEM=$(realpath "$TANDEM")
model=${t_dir:?}/tiny.gguf
python3 tests/make_model.py "$model" --context 1024 || exit 1

# answers NAME STATUS STDOUT-PART STDERR-PART COMMAND…: "-" for a part: that stream is empty; "": anything. Logged lines are no part of a sentence.
answers() {
    local name=$1 status=0 want=$2 out=$3 err=$4 why='' text
    shift 4
    "$@" >"$t_dir/out" 2>"$t_dir/err" </dev/null || status=$?
    [ $status = "$want" ] || why="status $status"
    text=$(tr -d '\0' <"$t_dir/out")
    case $out in
    '') ;;
    -) [ -s "$t_dir/out" ] && why="$why, something on stdout" ;;
    *) case $text in *"$out"*) ;; *) why="$why, no '$out' on stdout" ;; esac ;;
    esac
    case $err in
    '') ;;
    -) [ -s "$t_dir/err" ] && why="$why, something on stderr" ;;
    *) case $(cat "$t_dir/err") in *"$err"*) ;; *) why="$why, no '$err' on stderr" ;; esac ;;
    esac
    if [ -z "$why" ]; then t_pass "$name"; else
        t_fail "$name: ${why#, }: $*"
        head -n 20 "$t_dir/out" "$t_dir/err" | cut -c 1-300 | sed 's/^/    /'
    fi
}
# refuses NAME STATUS PART COMMAND…: one sentence on stderr, nothing on stdout.
refuses() {
    local name=$1 status=$2 part=$3 n
    shift 3
    answers "$name" "$status" - "$part" "$@"
    n=$(grep -Evc '^[0-9:.]{15} ' "$t_dir/err")
    [ "$n" = 1 ] || t_fail "$name: $n lines instead of one sentence"
}
json() { python3 -c 'import json, sys; o = json.loads(sys.stdin.read()); assert eval(sys.argv[1]), o' "$1" <"$t_dir/out"; }

# --- help and misuse ---

answers "--version" 0 "tandem " - "$TANDEM" --version
answers "help" 0 "usage: tandem" - "$TANDEM" help
answers "--help" 0 "usage: tandem" - "$TANDEM" --help
answers "no command" 2 - "usage" "$TANDEM"
commands="run eval tokenize inspect topo"
if "$TANDEM" bench --help 2>/dev/null | grep -q usage; then commands="$commands bench"; else skip "bench" "not there yet"; fi
for c in $commands; do
    answers "help $c" 0 "usage: tandem $c" - "$TANDEM" help "$c"
    cp "$t_dir/out" "$t_dir/help"
    answers "$c --help" 0 "usage: tandem $c" - "$TANDEM" "$c" --help
    ok "$c --help says the same as help $c" cmp "$t_dir/out" "$t_dir/help"
    refuses "$c --frobnicate" 2 "--frobnicate" "$TANDEM" "$c" "$model" --frobnicate
    refuses "$c with two models" 2 "$model" "$TANDEM" "$c" "$model" "$model"
    [ "$c" = topo ] || refuses "$c without a model" 2 "MODEL" "$TANDEM" "$c"
    [ "$c" = tokenize ] || refuses "$c -n x" 2 "-n" "$TANDEM" "$c" "$model" -n x
done
refuses "no such command" 2 "frobnicate" "$TANDEM" frobnicate
refuses "no help for no such command" 2 "frobnicate" "$TANDEM" help frobnicate
refuses "a value too small" 2 "-n" "$TANDEM" run "$model" -n 0
refuses "a value out of a list" 2 "f32" "$TANDEM" run "$model" --kv f64
refuses "a missing value" 2 "--seed" "$TANDEM" run "$model" --seed
refuses "a split that does not match -n" 2 "3 shares" "$TANDEM" run "$model" -n 2 --split 1:2:3 -p hi
refuses "a split of nothing" 2 "--split" "$TANDEM" eval "$model" --split 0:0 --text "$model"
refuses "inspect on other hosts" 2 "tandem plan MODEL --hosts" "$TANDEM" inspect "$model" --hosts a,b
refuses "a described machine and hosts" 2 "--on is for machines that are described" "$TANDEM" plan "$model" --on gb10 --hosts a,b
refuses "a split of words" 2 "--split" "$TANDEM" inspect "$model" --split a:b
refuses "a binding that is none" 2 "moon" "$TANDEM" run "$model" --bind moon -p hi
refuses "-p and -f" 2 "-f" "$TANDEM" run "$model" -p a -f b
refuses "eval of nothing" 2 "--ids" "$TANDEM" eval "$model"
refuses "eval --text with --greedy" 2 "--greedy" "$TANDEM" eval "$model" --text "$model" --greedy 1
refuses "no such model" 1 "nowhere" "$TANDEM" run "$t_dir/nowhere" -p hi
head -c 5000 "$model" >"$t_dir/cut.gguf"
refuses "half a model" 1 "cut.gguf" "$TANDEM" run "$t_dir/cut.gguf" -p hi

# --- run: prompts, streams, ends ---

run() { "$TANDEM" run "$model" --ignore-eos --max-tokens 20 "$@"; }
printf 'Hi there' >"$t_dir/prompt"
answers "-p" 0 "" "--max-tokens reached" run -p 'Hi there'
cp "$t_dir/out" "$t_dir/answer"
same() { cmp "$t_dir/out" "$t_dir/answer"; }
answers "-f" 0 "" "20 new tokens" run -f "$t_dir/prompt"
ok "-f gives what -p gives" same
from_pipe() { run "$@" <"$t_dir/prompt"; }
answers "standard input" 0 "" "20 new tokens" from_pipe
ok "standard input gives what -p gives" same
answers "two ranks" 0 "" "20 new tokens" run -p 'Hi there' -n 2
ok "two ranks give what one gives" same
answers "a split without -n" 0 "" "20 new tokens" run -p 'Hi there' --split 1:0:3
ok "a split gives what one gives" same
refuses "-f without a file" 1 "nothing-here" run -f "$t_dir/nothing-here"
refuses "-f with a directory" 1 "$t_dir" run -f "$t_dir"
answers "an empty standard input" 0 - - run
answers "an empty standard input, two ranks" 0 - - run -n 2
closed_stdin() { run "$@" <&-; }
refuses "a closed standard input" 1 "standard input" closed_stdin
answers "--json" 0 '"ids":[' "" run -p hi --json
ok "--json is one object" json 'len(o["ids"]) == o["new_tokens"] == 20 and o["stopped"]'
answers "full context" 0 "" "context is full" "$TANDEM" run "$model" -p hi --ignore-eos --ctx 64
answers "more context than the model's" 0 "" "was made for 1024" run -p hi --ctx 2048
refuses "a prompt longer than the context" 1 "--ctx" run --ctx 16 -f "$t_dir/cut.gguf"
refuses "an empty prompt" 1 "empty" run --raw -p ''
answers "--dry-run" 0 "rank 1" "" run -n 2 --dry-run
ok "--dry-run tells the cut and the budget" grep -q 'MiB in all .* available .* MiB' "$t_dir/out"

# --- run, eval, bench: the ledger ---

answers "--ledger" 0 "" "decode: 19 steps, 19 tokens; slowest / mean" run -n 2 -p 'Hi there' --ledger
ok "--ledger gives the same answer" same
ok "--ledger has a line for each rank" [ "$(grep -Ec '^ +[01] ' "$t_dir/err")" = 8 ]
ok "--ledger is short" [ "$(wc -l <"$t_dir/err")" -le 40 ]
# What must hold for any ledger: LAYERS RANKS NEW-TOKENS WEIGHT-BYTES-A-TOKEN (0: replicas, more than that).
cat >"$t_dir/ledger.py" <<'EOF'
import json, sys
path, layers, n_ranks, n_new, weight_bytes = sys.argv[1], *map(int, sys.argv[2:6])
kinds = ["weights_ns", "attention_ns", "wire_ns", "waiting_ns", "host_ns"]
o = json.load(open(path))
ranks = o["ranks"]
assert [r["rank"] for r in ranks] == list(range(n_ranks)) and o["layers"] == layers
for r in ranks:
    p, d, s = r["prefill"], r["decode"], r["steps"]
    assert p["steps"] == 1 and p["tokens"] > 1 and d["steps"] == d["tokens"] == d["rows"] == n_new - 1, (p, d)
    assert r["steps_left_out"] == 0 and all(len(c) == n_new for c in s.values()) and r["read_bytes_per_s"] > 0
    assert s["start_ns"] == sorted(s["start_ns"]) and s["start_ns"][0] >= 0
    for x in (p, d):
        assert sum(x[k] for k in kinds) == x["step_ns"] == sum(v["ns"] for v in x["ops"].values()), x
        assert x["ops"].get("exchange", {"ns": 0})["ns"] == x["wire_ns"] + x["waiting_ns"], x
    for i in range(n_new):
        assert sum(s[k][i] for k in kinds) == s["duration_ns"][i]
    for k, total in [("duration_ns", "step_ns")] + [(k, k) for k in kinds + ["tokens", "weight_bytes", "sent_bytes", "received_bytes", "exchanges", "vectors"]]:
        assert sum(s[k]) == p[total] + d[total], k
    # two sums a layer; the embedding's rows and the samples
    many = n_ranks > 1
    assert d["sums"] == many * 2 * layers * d["steps"] and d["exchanges"] == many * (2 * layers + 2) * d["steps"], d
    assert p["exchanges"] == many * (2 * layers + 2) and d["vectors"] >= d["sums"]
    assert not many or d["wire_ns"] > 0
    assert d["stored_weight_bytes"] % d["steps"] == 0
    # the trace has no gaps inside of a step
    assert r["trace"] and all(m[1] >= 0 and m[2] + "_ns" in kinds for m in r["trace"])
    assert sum(m[1] for m in r["trace"]) == p["step_ns"] + d["step_ns"]
stored = sum(r["decode"]["stored_weight_bytes"] for r in ranks) // (n_new - 1)
assert (stored == o["weight_bytes_per_token"] == weight_bytes) if weight_bytes else stored > o["weight_bytes_per_token"], stored
assert sum(r["decode"]["sent_bytes"] for r in ranks) * (n_ranks - 1) == sum(r["decode"]["received_bytes"] for r in ranks)
if n_ranks > 1:
    b = o["balance"]["decode"]
    assert b["steps"] == n_new - 1 and 1 <= b["slowest_by_mean"] <= b["worst"] <= n_ranks and 0 <= b["slowest_rank"] < n_ranks, b
EOF
# Of 2 layers of width 64, 4 heads of 16, 2 KV heads, ffn 128; and the head, 259 rows of 64; in F32.
weight_bytes=$(((2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128) + 259 * 64) * 4))
ok "inspect tells the bytes of weights" grep -q "^$(awk "BEGIN { printf \"%.1f\", $weight_bytes / 1e6 }") MB of weights" <("$TANDEM" inspect "$model" -n 2)
for n in 1 2 3; do
    answers "--ledger=FILE.json, $n ranks" 0 "" "20 new tokens" run -n $n -p 'Hi there' --ledger="$t_dir/$n.json"
    ok "--ledger=FILE.json, $n ranks: the same answer" same
    ok "--ledger=FILE.json, $n ranks: its sums" python3 "$t_dir/ledger.py" "$t_dir/$n.json" 2 $n 20 "$([ $n = 3 ] && echo 0 || echo $weight_bytes)"
    answers "--ledger=FILE.svg, $n ranks" 0 "" "20 new tokens" run -n $n -p 'Hi there' --ledger="$t_dir/$n.svg"
    ok "--ledger=FILE.svg, $n ranks: XML, all ranks in it" python3 -c 'import sys, xml.etree.ElementTree as x
t = [e.text for e in x.parse(sys.argv[1]).iter("{http://www.w3.org/2000/svg}text")]
assert all(t.count(f"rank {r}") >= 4 for r in range(int(sys.argv[2]))) and "decode: the last 4 steps" in t, t' "$t_dir/$n.svg" $n
done
printf '1 2 3 4 5 6 7 8' >"$t_dir/ids"
answers "eval --ledger" 0 "[" "prefill: 1 step, 8 tokens" "$TANDEM" eval "$model" --ids "$t_dir/ids" -n 2 --ledger
answers "bench --ledger=FILE.json" 0 "decode of 4" - "$TANDEM" bench "$model" --prefill 8 --decode 4 --repeat 1 --ledger="$t_dir/bench.json"
ok "bench --ledger=FILE.json: warm-up and repetition" python3 -c 'import json, sys; d = json.load(open(sys.argv[1]))["ranks"][0]["decode"]; assert d["steps"] >= 8, d' "$t_dir/bench.json"
for c in run eval bench; do
    refuses "$c --ledger=FILE.txt" 2 ".svg" "$TANDEM" $c "$model" --ledger="$t_dir/ledger.txt"
    answers "help $c tells of --ledger" 0 "--ledger[=FILE.json|.svg]" - "$TANDEM" help $c
done
refuses "--ledger=" 2 "--ledger" run -p hi --ledger=
refuses "--ledger to nowhere" 1 "nowhere" run -p hi --ledger="$t_dir/nowhere/ledger.json"
refuses "--ledger to a directory" 1 "svg" run -p hi --ledger="$(mkdir "$t_dir/d.svg" && echo "$t_dir/d.svg")"
printf old >"$t_dir/old.json"
refuses "a job that fails" 1 "--ctx" run -n 2 --ctx 16 -f "$t_dir/cut.gguf" --ledger="$t_dir/old.json"
ok "a job that fails leaves an old ledger alone" [ "$(cat "$t_dir/old.json")" = old ]
refuses "a job that fails, without an old ledger" 1 "--ctx" run -n 2 --ctx 16 -f "$t_dir/cut.gguf" --ledger="$t_dir/new.json"
ok "a job that fails leaves no new ledger" [ ! -e "$t_dir/new.json" ]
answers "an old ledger is replaced" 0 "" "20 new tokens" run -p 'Hi there' --ledger="$t_dir/old.json"
ok "an old ledger is replaced by a whole one" python3 "$t_dir/ledger.py" "$t_dir/old.json" 2 1 20 "$weight_bytes"

# --- run: streams that are closed or full ---

# A reader that leaves: quietly, by SIGPIPE, and nothing stays.
mark=t$$-$RANDOM
for n in 1 2; do
    TANDEM_TEST_MARK=$mark "$TANDEM" run "$model" -n $n -p hi --ignore-eos 2>"$t_dir/err" | head -c 5 >"$t_dir/out"
    status=${PIPESTATUS[0]}
    sleep 0.2
    left=$(grep -lsz "^TANDEM_TEST_MARK=$mark\$" /proc/[0-9]*/environ)
    if [ "$status" = 141 ] && [ "$(stat -c %s "$t_dir/out")" = 5 ] && [ ! -s "$t_dir/err" ] && [ -z "$left" ]; then t_pass "run -n $n | head -c 5"; else
        t_fail "run -n $n | head -c 5: status $status, left '$left', said '$(cat "$t_dir/err")'"
    fi
done
closed_stdout() { "$@" >&-; }
full_stdout() { "$@" >/dev/full; }
for n in 1 2; do
    refuses "run -n $n >&-" 1 "standard output" closed_stdout run -n $n -p hi
    refuses "run -n $n >/dev/full" 1 "No space left" full_stdout run -n $n -p hi
done
for c in "--version" "help" "help run" "topo --help" "topo" "topo --json" "inspect $model" "run $model --dry-run"; do
    # shellcheck disable=SC2086
    refuses "$c >/dev/full" 1 "standard output" full_stdout "$TANDEM" $c
    # shellcheck disable=SC2086
    refuses "$c >&-" 1 "standard output" closed_stdout "$TANDEM" $c
done
all_closed() { run -n 2 -p hi <&- >&- 2>&-; }
answers "everything closed" 1 - - all_closed

# --- run: a bare environment ---

answers "env -i" 0 "" "20 new tokens" env -i "$TANDEM" run "$model" -n 2 -p hi --ignore-eos --max-tokens 20
answers "no HOME" 1 - "" env -u HOME "$TANDEM" run some/model -p hi
answers "env -i and a hub name" 1 - "some/model" env -i "$TANDEM" run some/model -p hi
no_directory() {
    mkdir "$t_dir/gone" && cd "$t_dir/gone" && rmdir "$t_dir/gone" || return 1
    local status=0
    "$@" || status=$?
    cd / && return $status
}
here=$PWD
answers "a removed working directory" 0 "" "20 new tokens" no_directory run -n 2 -p hi
cd "$here" || exit 1
# SIGCHLD and SIGPIPE ignored by whoever called: inherited by exec
ignoring() { env --ignore-signal=CHLD,PIPE "$TANDEM" run "$model" -n 2 -p hi --ignore-eos --max-tokens 20; }
answers "ignored signals" 0 "" "20 new tokens" ignoring
cpu=$(taskset -pc $$ | sed 's/.*: *\([0-9]*\).*/\1/')
answers "two ranks on one CPU: said in a line" 0 "" "2 ranks share 1 CPU" taskset -c "$cpu" "$TANDEM" run "$model" -n 2 -p hi --ignore-eos --max-tokens 20

# --- eval ---

echo "1 2 3 4 5 6 7" >"$t_dir/a.ids"
printf '200\n\t0 258\n' >"$t_dir/b.ids"
: >"$t_dir/empty.ids"
echo "1 2 999" >"$t_dir/range.ids"
echo "1 2 x3 4" >"$t_dir/word.ids"
echo "1 -2" >"$t_dir/minus.ids"
echo "1 99999999999999999999" >"$t_dir/huge.ids"
head -c 1000 "$model" >"$t_dir/binary.ids"
eval_() { "$TANDEM" eval "$model" "$@"; }
answers "eval a" 0 "perplexity" - eval_ --ids "$t_dir/a.ids" --logits "$t_dir/a.logits" --greedy 4
tail -n 1 "$t_dir/out" >"$t_dir/last" && mv "$t_dir/last" "$t_dir/out"
ok "eval's last line is the array of new ids" json 'isinstance(o, list) and len(o) == 4 and all(0 <= i < 259 for i in o)'
ok "logits have P + N rows" [ "$(stat -c %s "$t_dir/a.logits")" = $(((7 + 4) * 259 * 4)) ]
answers "eval b" 0 "perplexity" - eval_ --ids "$t_dir/b.ids" --logits "$t_dir/b.logits" --greedy 4
answers "eval a b" 0 "tokens 10" - eval_ --ids "$t_dir/a.ids" --ids "$t_dir/b.ids" --logits "$t_dir/ab.logits" --greedy 4 -n 2 --chunk 3
cat "$t_dir/a.logits" "$t_dir/b.logits" >"$t_dir/both.logits"
ok "together they give the bytes that they give alone" cmp "$t_dir/ab.logits" "$t_dir/both.logits"
answers "without --greedy the array is empty" 0 "[]" - eval_ --ids "$t_dir/a.ids"
from_fifo() { eval_ --ids <(cat "$t_dir/a.ids") --greedy 1; }
answers "ids from a pipe" 0 "perplexity" - from_fifo
answers "one id alone" 0 "nan" "" eval_ --ids <(echo 5)
refuses "an id out of range" 1 "999" eval_ --ids "$t_dir/range.ids"
refuses "a word" 1 "x3" eval_ --ids "$t_dir/word.ids"
refuses "a negative id" 1 "-2" eval_ --ids "$t_dir/minus.ids"
refuses "a huge id" 1 "99999999999999999999" eval_ --ids "$t_dir/huge.ids"
refuses "no ids" 1 "holds no token ids" eval_ --ids "$t_dir/empty.ids"
refuses "binary ids" 1 "binary.ids" eval_ --ids "$t_dir/binary.ids"
refuses "no such ids" 1 "nothing.ids" eval_ --ids "$t_dir/nothing.ids"
refuses "ids beyond --ctx" 1 "context" eval_ --ids "$t_dir/a.ids" --ctx 8 --greedy 4
refuses "logits to nowhere" 1 "/nowhere/x" eval_ --ids "$t_dir/a.ids" --logits /nowhere/x
refuses "logits to a full disk" 1 "No space left" eval_ --ids "$t_dir/a.ids" --logits /dev/full
refuses "a text that is too short" 1 "two windows" eval_ --text "$t_dir/a.ids"
head -c 700 "$0" >"$t_dir/text"
answers "--text" 0 "perplexity" "" eval_ --text "$t_dir/text" --ctx 256
ok "--text scores the second halves" grep -q 'tokens 512, scored 254' "$t_dir/out"
# Rows that nobody takes while the next requests are sent: both sides' sockets are full.
mapfile -t many < <(for _ in {1..40}; do printf '%s\n' --ids "$t_dir/many"; done)
seq 1 2000 | awk '{ print $1 % 259 }' >"$t_dir/many"
answers "requests beyond the sockets' buffers" 0 "tokens 80000" "" timeout 60 "$TANDEM" eval "$model" -n 2 "${many[@]}" --logits "$t_dir/many.logits" --ctx 2000

# --- tokenize, inspect, topo, bench ---

tokenize() { printf ' Hi\n\303\244 \n' | "$TANDEM" tokenize "$model"; }
answers "tokenize" 0 "[" - tokenize
ok "tokenize takes the text as it is" json 'o == [32, 72, 105, 10, 195, 164, 32, 10]'
back() { tokenize | "$TANDEM" tokenize "$model" --decode; }
answers "tokenize --decode" 0 " Hi" - back
ok "there and back" cmp "$t_dir/out" <(printf ' Hi\n\303\244 \n')
garbage() { echo "$1" | "$TANDEM" tokenize "$model" --decode; }
refuses "--decode of no array" 1 "array" garbage '{"a": 1}'
refuses "--decode of no JSON" 1 "stdin" garbage '[1, 2'
refuses "--decode of an id out of range" 1 "259" garbage '[1, 259]'
answers "inspect" 0 "model tiny: llama" "" "$TANDEM" inspect "$model" -n 3
ok "inspect tells family, format and the audit" grep -Pzq '(?s)F32 .*llama.*audit: .*owned once' "$t_dir/out"
answers "topo" 0 "rank 0" - "$TANDEM" topo "pack:2 core:4 pu:2" -n 4
answers "topo --json" 0 '"ranks"' - "$TANDEM" topo "pack:2 core:4 pu:2" -n 4 --threads 2 --json
ok "topo --json: a PU for each thread, whole cores first" json '[r["rank"] for r in o["ranks"]] == [0, 1, 2, 3] and all(len(r["pus"]) == 2 for r in o["ranks"]) and all(p % 2 == 0 for r in o["ranks"] for p in r["pus"])'
if command -v lstopo-no-graphics >/dev/null; then
    lstopo-no-graphics -i "pack:1 core:4 pu:2" --restrict 0x55 -f "$t_dir/r.xml" 2>/dev/null
    answers "topo: one hardware thread of each core" 0 '"ranks"' "" "$TANDEM" topo -n 4 --json "$t_dir/r.xml"
    ok "each rank gets its own" json 'sorted(p for r in o["ranks"] for p in r["pus"]) == [0, 2, 4, 6]'
    answers "topo: more ranks than CPUs" 0 "5 ranks share 4 CPUs" "" "$TANDEM" topo -n 5 "$t_dir/r.xml"
else
    skip "topo: one hardware thread of each core" "no lstopo here"
fi
answers "topo of a machine that is built in" 0 "rank 1: 5 threads on CPUs 15-19, NUMA 0, progress on CPU 14" "" "$TANDEM" topo gb10 -n 2 --threads 5
answers "topo of a description" 0 "gb10: 20 CPUs on 20 cores of 2 kinds" "" "$TANDEM" topo topologies/gb10.json
answers "topo --svg" 0 "</svg>" "" "$TANDEM" topo "pack:2 core:4 pu:2" -n 2 --svg
ok "topo --svg is XML" python3 -c 'import sys, xml.etree.ElementTree as t; t.parse(sys.argv[1])' "$t_dir/out"
refuses "topo --json --svg" 2 "not both" "$TANDEM" topo gb10 --json --svg
refuses "topo of a description that is none" 1 "is no key" "$TANDEM" topo tests/fuzz/seeds/base_json_fuzz/config.json
refuses "topo of garbage" 1 "" "$TANDEM" topo "$model"
if [[ $commands = *bench ]]; then
    answers "bench" 0 "{" "" "$TANDEM" bench "$model" --prefill 64 --decode 16 --repeat 2 --json
    ok "bench --json is one object with both speeds" json 'o["prefill_tok_s"] > 0 and o["decode_tok_s"] > 0'
fi

# --- memory (F20) ---

# A group of our own, where the machine lets us: v1 or v2.
group=
for root in /sys/fs/cgroup/memory /sys/fs/cgroup; do
    [ -f "$root/memory.limit_in_bytes" ] || grep -qw memory "$root/cgroup.subtree_control" 2>/dev/null || continue
    mkdir "$root/tandem-test-$$" 2>/dev/null && group=$root/tandem-test-$$ && break
done
limit() {
    if [ -f "$1/memory.limit_in_bytes" ]; then echo "$2" >"$1/memory.limit_in_bytes"; else echo "$2" >"$1/memory.max"; fi
}
# shellcheck disable=SC2016
within() { bash -c 'echo $$ >"$1/cgroup.procs" && shift && exec "$@"' - "$@"; }
if [ -n "$group" ] && limit "$group" 125829120 2>/dev/null; then
    trap 'rmdir "$group/inner" "$group" 2>/dev/null; rm -rf "$t_dir"' EXIT
    python3 tests/make_model.py "$t_dir/large.gguf" --hidden 1024 --heads 16 --kv-heads 4 --ffn 4096 --layers 4 --hollow
    refuses "a model that does not fit" 1 "would fit" within "$group" "$TANDEM" run "$t_dir/large.gguf" -n 2 -p hi
    fits() { sed -n 's/.*--ctx \([0-9]*\) would fit.*/\1/p' "$t_dir/err"; }
    refuses "a context that does not fit" 1 "--ctx" within "$group" "$TANDEM" run "$model" -p hi --ctx 1000000
    # A file's pages fill the group: they can be dropped, and count as free. They are charged to whoever reads them first: so out of the cache with them, once written.
    fit=$(fits)
    head -c 160000000 /dev/zero >"$t_dir/zeros"
    dd if="$t_dir/zeros" iflag=nocache count=0 conv=fdatasync 2>/dev/null >>"$t_dir/zeros"
    # shellcheck disable=SC2016
    answers "what is said to fit, fits, after a file has filled the group" 0 "" "20 new tokens" within "$group" bash -c 'cat "$1" >/dev/null && shift && "$@"' - "$t_dir/zeros" \
        "$TANDEM" run "$model" -p hi --ignore-eos --max-tokens 20 --ctx "$((${fit:-0} * 9 / 10))"
    filled() { awk '$1 == "cache" || $1 == "file" { exit $2 < 60000000 }' "$group/memory.stat"; }
    ok "the file filled the group" filled
    ok "that is most of it" [ "${fit:-0}" -gt 100000 ]
    if mkdir "$group/inner" 2>/dev/null; then
        refuses "a limit of the parent alone" 1 "would fit" within "$group/inner" "$TANDEM" run "$t_dir/large.gguf" -p hi
    else
        skip "a limit of the parent alone" "no group within a group here"
    fi
else
    skip "a model that does not fit a memory limit" "no memory group can be made here"
fi

t_end
