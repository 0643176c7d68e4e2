#!/bin/bash
# tests/golden/families/CASE (see make_families.py): our logits against those of Hugging Face transformers, and the same bytes for every number of ranks, in both modes.
# TANDEM_TABLE=FILE: what was seen goes there as the table of docs/families.md.
. tests/t.sh
golden=tests/golden/families
. tests/t_golden.sh
accurate=2e-5 # what F32 and another order of sums make of them

table 'family, case' 'stored as' mode 'largest difference ÷ std' 'the same bytes on'

for dir in "$golden"/*/; do
    case=$(basename "$dir")
    modes='tp'
    case $case in
    qwen3-*) ;; # no experts
    *) modes='tp ep' ;;
    esac
    for mode in $modes; do
        evaluate "$case, $mode" "$case" --activations f32 --moe "$mode" || continue
        compare "$case, $mode" "$case" max $accurate
        stored=${case##*-}
        case $stored in e[0-9]* | kv[0-9]* | groups | plain | fused | gate | shared2) stored=bf16 ;; esac
        row '| %s | %s | %s | %s |' "$case" "${stored^^}" "$mode" "$(sed 's/^max \([^,]*\),.*/\1/' <<<"$said")"
        agree=''
        ok "$case, $mode: greedy ids" diff "$t_dir/greedy" "${dir}greedy.txt"
        mv "$t_dir/logits" "$t_dir/one"
        for ranks in '-n 2' '-n 3' '--split 1:0:4:2'; do
            # shellcheck disable=SC2086 # two words
            evaluate "$case, $mode, $ranks" "$case" --activations f32 --moe "$mode" $ranks --threads 1 --chunk 7 &&
                ok "$case, $mode, $ranks: the same bytes" cmp "$t_dir/one" "$t_dir/logits"
            cmp -s "$t_dir/one" "$t_dir/logits" && agree+=${agree:+, }${ranks#-n }
        done
        row ' %s |\n' "${agree//--split /}"
        case $case in
        *q4_0 | *mxfp4 | *nvfp4 | *awq) # rounded activations: the same bytes too
            evaluate "$case, $mode, int8" "$case" --moe "$mode" && mv "$t_dir/logits" "$t_dir/one"
            evaluate "$case, $mode, int8, 3 ranks" "$case" --moe "$mode" -n 3 --threads 2 --chunk 5 &&
                ok "$case, $mode, int8, 3 ranks: the same bytes" cmp "$t_dir/one" "$t_dir/logits"
            ;;
        esac
    done
done
# Experts stand as a map made from what was chosen says: right as without, and the same bytes for every number of ranks.
case=qwen3_moe-e40
if evaluate "$case, statistics" "$case" --activations f32 --expert-stats "$t_dir/map.json"; then
    evaluate "$case, a map" "$case" --activations f32 --moe ep --expert-map "$t_dir/map.json" && compare "$case, a map" "$case" max $accurate
    mv "$t_dir/logits" "$t_dir/one"
    evaluate "$case, a map, 3 ranks" "$case" --activations f32 --moe ep --expert-map "$t_dir/map.json" -n 3 --threads 1 &&
        ok "$case, a map, 3 ranks: the same bytes" cmp "$t_dir/one" "$t_dir/logits"
fi
sed 's/"layers":\[\[[0-9]*,/"layers":[[/' "$t_dir/map.json" >"$t_dir/short.json"
contains "a map that forgets an expert" "$("$TANDEM" eval $golden/$case --ids $golden/$case/ids.txt --moe ep --expert-map "$t_dir/short.json" 2>&1)" 'forgets expert'
contains "a map for tensor mode" "$("$TANDEM" eval $golden/$case --ids $golden/$case/ids.txt --expert-map "$t_dir/map.json" 2>&1)" 'goes with --moe ep'
contains "statistics that nobody can write" "$("$TANDEM" eval $golden/$case --ids $golden/$case/ids.txt --expert-stats "$t_dir/no/x.json" 2>&1)" 'x.json: No such file'
contains "statistics of a dense model" "$("$TANDEM" eval $golden/qwen3-kv3 --ids $golden/qwen3-kv3/ids.txt --expert-stats "$t_dir/x.json" 2>&1)" 'has no experts'

# The ledger's count of experts: of one token top_k of each layer and no others, in either mode and on two ranks together. Bytes are those of these matrices.
for how in '--moe tp' '--moe ep' '--moe tp -n 2' '--moe ep -n 2'; do
    # shellcheck disable=SC2086 # words
    "$TANDEM" eval $golden/qwen3_moe-e7 --ids $golden/qwen3_moe-e7/ids.txt --greedy 6 --activations f32 --threads 1 $how --ledger="$t_dir/ledger.json" >/dev/null 2>"$t_dir/stderr" || sed 's/^/    /' "$t_dir/stderr"
    ok "the ledger counts experts: $how" python3 - "$t_dir/ledger.json" "$how" <<'PYTHON'
import json, sys
ranks = json.load(open(sys.argv[1]))["ranks"]
decodes = [r["decode"] for r in ranks]
steps, layers, top_k, hidden, ffn = decodes[0]["steps"], 2, 3, 48, 66
assert all(d["expert_layers"] == layers * steps for d in decodes), decodes
touched = [d["experts_touched"] for d in decodes]
assert (sum(touched) if "ep" in sys.argv[2] else touched[0]) == top_k * layers * steps, touched
assert "ep" in sys.argv[2] or len(set(touched)) == 1, touched
# packed in tiles of 16 rows by 32 columns of BF16: gate and up [66, 48], down [48, 66]; cut in two, nothing is padded more
bytes_ = sum(d["expert_bytes"] for d in decodes)
exact = 3 * hidden * ffn * 2 * top_k * layers * steps
assert exact <= bytes_ <= 2.2 * exact, (bytes_, exact)
PYTHON
done
t_end
