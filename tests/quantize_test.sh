#!/bin/bash
# tandem quantize: what it writes is read back and means the same; whatever goes wrong leaves nothing behind. test-deadline: 180
# shellcheck source=tests/t.sh disable=SC1091
. "$(dirname "$0")/t.sh"

hub=${t_dir:?}/hub gguf=$t_dir/tiny.gguf
python3 tests/make_model.py "$hub" --hub --llama3 --hidden 256 --heads 4 --kv-heads 2 --ffn 768 --context 512 || exit 1
python3 tests/make_model.py "$gguf" --hidden 256 --ffn 512 --type Q4_K || exit 1
for i in $(seq 0 17); do echo $((i * 14 % 259)) $((i * i % 259)) 7 $((250 - i)); done | tr '\n' ' ' >"$t_dir/ids"
printf 'Ten: 10 words, <|im_start|> \303\251\n' >"$t_dir/text"

quantize() { "$TANDEM" quantize "$@"; }
logits() { "$TANDEM" eval "$1" --ids "$t_dir/ids" --logits "$2" --activations f32 "${@:3}" >"$t_dir/said" 2>&1 || sed 's/^/    /' "$t_dir/said"; }
# near NAME A B LIMIT: root mean square of the logits' difference, in standard deviations
near() { ok "$1" "$BUILD/tests/compare_logits" rms "$2" "$3" "$4"; }
# refuses NAME STATUS PART COMMAND…: one sentence on stderr, and nothing of $t_dir/no* is left
refuses() {
    local name=$1 want=$2 part=$3 status=0
    shift 3
    "$@" >"$t_dir/out" 2>"$t_dir/err" || status=$?
    if [ $status != "$want" ] || [ "$(wc -l <"$t_dir/err")" != 1 ] || [ -s "$t_dir/out" ] || ! grep -qF -e "$part" "$t_dir/err"; then
        t_fail "$name (status $status): '$part' expected"
        cat "$t_dir/out" "$t_dir/err"
    elif compgen -G "$t_dir/no*" >/dev/null; then
        t_fail "$name: something is left: $(ls -d "$t_dir"/no*)"
        rm -rf "$t_dir"/no*
    else
        t_pass "$name"
    fi
}

# --- what is written means the same ---

logits "$hub" "$t_dir/hub.logits"
logits "$gguf" "$t_dir/gguf.logits"
for format in nvfp4:0.8 mxfp4:0.8 fp8:0.2 q8_0:0.05; do
    limit=${format#*:} format=${format%:*}
    ok "safetensors to $format" quantize "$hub" "$t_dir/hub.$format" --format "$format" --threads 1
    logits "$t_dir/hub.$format" "$t_dir/logits"
    near "safetensors to $format: logits" "$t_dir/logits" "$t_dir/hub.logits" "$limit"
    logits "$t_dir/hub.$format" "$t_dir/more" -n 2
    ok "safetensors to $format: the same bits on two ranks" cmp "$t_dir/logits" "$t_dir/more"
    ok "safetensors to $format: tokens" diff <("$TANDEM" tokenize "$hub" --special <"$t_dir/text") <("$TANDEM" tokenize "$t_dir/hub.$format" --special <"$t_dir/text")
    ok "$format on three threads" quantize "$hub" "$t_dir/three.$format" --format "$format" --threads 3
    ok "$format on three threads: the same bytes" diff -r "$t_dir/hub.$format" "$t_dir/three.$format"

    ok "GGUF to $format" quantize "$gguf" "$t_dir/gguf.$format" --format "$format"
    logits "$t_dir/gguf.$format" "$t_dir/logits"
    near "GGUF to $format: logits" "$t_dir/logits" "$t_dir/gguf.logits" "$limit"
    ok "GGUF to $format: tokens" diff <("$TANDEM" tokenize "$gguf" --special <"$t_dir/text") <("$TANDEM" tokenize "$t_dir/gguf.$format" --special <"$t_dir/text")
done
contains "inspect names the scheme" "$("$TANDEM" inspect "$t_dir/hub.nvfp4" 2>&1)" "14 matrices are NVFP4 of compressed-tensors"
contains "inspect counts Q8_0" "$("$TANDEM" inspect "$t_dir/hub.q8_0" 2>&1)" "Q8_0         14 tensors"
ok "files beside the weights are copied" cmp "$hub/tokenizer.json" "$t_dir/hub.fp8/tokenizer.json"
ok "config.json keeps what it said" python3 -c 'import json, sys
a, b = (json.load(open(f"{d}/config.json")) for d in sys.argv[1:])
q = b.pop("quantization_config")
assert a == b and q["quant_method"] == "compressed-tensors" and q["ignore"] == ["lm_head"], (a, b, q)' "$hub" "$t_dir/hub.fp8"
ok "GGUF keys are kept" python3 -c 'import sys
a, b = (open(f, "rb").read() for f in sys.argv[1:])
for key in (b"tokenizer.ggml.merges", b"tokenizer.chat_template", b"llama.rope.freq_base", b"general.name"):
    i, j = a.index(key), b.index(key)
    assert a[i:i + len(key) + 8] == b[j:j + len(key) + 8], key
assert b.count(b"general.file_type") == 1' "$gguf" "$t_dir/gguf.q8_0"
ok "Q8_0 again changes no tensor" quantize "$t_dir/gguf.q8_0" "$t_dir/again.q8_0" --format q8_0
ok "Q8_0 again: the same bytes" cmp "$t_dir/gguf.q8_0" "$t_dir/again.q8_0"

# --- shards ---

ok "shards of 1 MB" quantize "$hub" "$t_dir/shards" --format fp8 --shard-size 1
[ -f "$t_dir/shards/model.safetensors.index.json" ] && [ -f "$t_dir/shards/model-00001-of-00002.safetensors" ] && t_pass "shards and their index" || t_fail "shards and their index: $(ls "$t_dir/shards")"
logits "$t_dir/shards" "$t_dir/logits"
logits "$t_dir/hub.fp8" "$t_dir/more"
ok "shards: the same logits" cmp "$t_dir/logits" "$t_dir/more"
python3 - "$hub" "$t_dir/split" <<'PYTHON'
import json, os, shutil, struct, sys
source, out = sys.argv[1:]
os.makedirs(out)
for f in os.listdir(source):
    if f != "model.safetensors":
        shutil.copy(os.path.join(source, f), out)
b = open(os.path.join(source, "model.safetensors"), "rb").read()
n = struct.unpack("<Q", b[:8])[0]
header = json.loads(b[8 : 8 + n])
names = [k for k in header if k != "__metadata__"]
weight_map = {}
for i in range(2):
    file, part, data = f"model-0000{i + 1}-of-00002.safetensors", {}, b""
    for name in names[i::2]:
        begin, end = header[name]["data_offsets"]
        part[name] = {**header[name], "data_offsets": [len(data), len(data) + end - begin]}
        data += b[8 + n + begin : 8 + n + end]
        weight_map[name] = file
    head = json.dumps(part).encode()
    open(os.path.join(out, file), "wb").write(struct.pack("<Q", len(head)) + head + data)
json.dump({"metadata": {}, "weight_map": weight_map}, open(os.path.join(out, "model.safetensors.index.json"), "w"))
PYTHON
ok "from shards" quantize "$t_dir/split" "$t_dir/unsplit" --format fp8
logits "$t_dir/unsplit" "$t_dir/logits"
ok "from shards: the same logits" cmp "$t_dir/logits" "$t_dir/more"

# --- patterns ---

said=$(quantize "$hub" "$t_dir/some" --format nvfp4 --ignore '*.1.self_attn.*' --ignore 're:.*layers\.0\.mlp\.(gate|up)_proj$' --ignore model.layers.0.self_attn.o_proj 2>&1)
contains "patterns" "$said" "7 matrices were left as they are by --ignore"
contains "patterns: what is left" "$("$TANDEM" inspect "$t_dir/some" 2>&1)" "7 matrices are NVFP4"
ok "patterns: named in config.json" grep -q '"model.layers.1.self_attn.q_proj"' "$t_dir/some/config.json"
logits "$t_dir/some" "$t_dir/logits"
near "patterns: logits" "$t_dir/logits" "$t_dir/hub.logits" 0.7
ok "a tied or missing lm_head may be named" quantize "$gguf" "$t_dir/head" --format fp8 --ignore lm_head
ok "GGUF patterns" quantize "$gguf" "$t_dir/left.gguf" --format q8_0 --ignore 'blk.*.ffn_*'
contains "GGUF patterns: left as they were" "$("$TANDEM" inspect "$t_dir/left.gguf" 2>&1)" "Q4_K"
refuses "a pattern that matches nothing" 1 "matches no module" quantize "$hub" "$t_dir/no" --format fp8 --ignore 'model.layer.0.*'
refuses "a pattern that is none" 1 "re:(" quantize "$hub" "$t_dir/no" --format fp8 --ignore 're:('

# --- a hub name ---

cache=$t_dir/cache/models--some--tiny
mkdir -p "$cache/refs" "$cache/snapshots" && printf 0123 >"$cache/refs/main" && ln -s "$hub" "$cache/snapshots/0123"
ok "from the hub's cache" env HF_HUB_CACHE="$t_dir/cache" "$TANDEM" quantize some/tiny "$t_dir/cached" --format fp8
ok "from the hub's cache: the same bytes" diff -r "$t_dir/hub.fp8" "$t_dir/cached"

# --- misuse ---

ok "help quantize says the same as quantize --help" diff <("$TANDEM" help quantize) <(quantize --help)
contains "help" "$(quantize --help)" "usage: tandem quantize IN OUT"

refuses "unknown format" 2 "--format takes one of nvfp4, mxfp4, fp8, q8_0" quantize "$hub" "$t_dir/no" --format fp9
refuses "no format" 2 "which --format?" quantize "$hub" "$t_dir/no"
refuses "no OUT" 2 "where to (OUT)" quantize "$hub" --format fp8
refuses "no IN" 2 "which MODEL" quantize --format fp8
refuses "a third path" 2 "third" quantize "$hub" "$t_dir/no" third --format fp8
refuses "an unknown option" 2 "--frobnicate" quantize "$hub" "$t_dir/no" --frobnicate

# --- from what is quantised already ---

# again NAME CASE FORMAT LIMIT OPTIONS…: of the golden models (make_quant.py); the logits of what comes out against those of what went in
again() {
    local model=tests/golden/llama/$2 name="$1" format=$3 limit=$4
    shift 4
    rm -rf "$t_dir/again"
    said=$(quantize "$model" "$t_dir/again" --format "$format" "$@" 2>&1)
    contains "$name: says so" "$said" "matrices were quantised already"
    for side in "$model" "$t_dir/again"; do
        "$TANDEM" eval "$side" --ids "$model/ids.txt" --logits "$t_dir/logits.$(basename "$side")" --activations f32 >"$t_dir/said" 2>&1 || sed 's/^/    /' "$t_dir/said"
    done
    near "$name: logits" "$t_dir/logits.again" "$t_dir/logits.$(basename "$model")" "$limit"
}
again "MXFP4 again is the same" mxfp4-compressed mxfp4 0
again "NVFP4 of fused matrices" nvfp4-fused nvfp4 1e-6
again "FP8 in blocks to a scale a row" fp8-blocks fp8 0.1
again "GPTQ with act-order, one matrix encoded" int4-gptq-act-order fp8 0.05 --ignore 're:.*mlp.*' --ignore 're:.*[qvo]_proj' --ignore 're:.*layers\.1.*'
again "zero points of compressed-tensors, actorder" int8-actorder fp8 0.1
again "AWQ" int4-awq nvfp4 0.3
again "head and embedding become F32" int8-embedding fp8 0.1
again "modules in several formats" mixed-compressed nvfp4 0.4

ok "hf_quant_config.json is not left beside" quantize tests/golden/llama/nvfp4-modelopt "$t_dir/from_modelopt" --format fp8
[ ! -e "$t_dir/from_modelopt/hf_quant_config.json" ] && t_pass "only one of the two says what is quantised" || t_fail "only one of the two says what is quantised"

# --- what cannot be ---

refuses "no such IN" 1 "No such file" quantize "$t_dir/missing" "$t_dir/no" --format fp8
mkdir "$t_dir/empty"
refuses "an IN without weights" 1 "no *.safetensors" quantize "$t_dir/empty" "$t_dir/no" --format fp8
refuses "OUT exists" 1 "exists already" quantize "$hub" "$t_dir/empty" --format fp8
refuses "OUT is a file that exists" 1 "exists already" quantize "$hub" "$gguf" --format q8_0
refuses "OUT is IN" 1 "the checkpoint itself" quantize "$hub" "$hub/" --format fp8
refuses "OUT is IN, a file" 1 "the checkpoint itself" quantize "$gguf" "$gguf" --format q8_0
refuses "OUT below nothing" 1 "No such file" quantize "$hub" "$t_dir/nowhere/out" --format fp8
cp -r "$hub" "$t_dir/bare"
rm "$t_dir/bare/tokenizer.json"
refuses "a GGUF wants a tokenizer" 1 "tokenizer.json is missing" quantize "$t_dir/bare" "$t_dir/no" --format q8_0
refuses "nothing fits" 1 "no matrix of it would be quantised" quantize "$hub" "$t_dir/no" --format fp8 --ignore '*'
cp -r "$hub" "$t_dir/nan"
python3 - "$t_dir/nan/model.safetensors" <<'PYTHON'
import json, struct, sys
with open(sys.argv[1], "r+b") as f:
    n = struct.unpack("<Q", f.read(8))[0]
    t = json.loads(f.read(n))["model.layers.1.mlp.up_proj.weight"]
    f.seek(8 + n + t["data_offsets"][0] + 2 * (5 * t["shape"][1] + 9))
    f.write(b"\xc0\x7f")
PYTHON
for format in nvfp4 mxfp4 fp8 q8_0; do
    refuses "a weight that is no number, $format" 1 "model.layers.1.mlp.up_proj.weight, row 5: a weight is NaN" quantize "$t_dir/nan" "$t_dir/no" --format $format
done
cp -r "$hub" "$t_dir/cut"
truncate -s -1000 "$t_dir/cut/model.safetensors"
refuses "IN is cut off" 1 "cut off" quantize "$t_dir/cut" "$t_dir/no" --format fp8

# --- no room, and an end in the middle ---

limited() { (ulimit -f "$1" && shift && "$@"); }
refuses "a limit on the size of files" 1 "no room for model.safetensors" limited 1000 quantize "$hub" "$t_dir/no" --format fp8
cp -r "$hub" "$t_dir/beside"
head -c 6000000 /dev/zero >"$t_dir/beside/notes.txt"
refuses "a limit that only a file beside meets" 1 "cannot write notes.txt" limited 5000 quantize "$t_dir/beside" "$t_dir/no" --format fp8
mkdir "$t_dir/small"
if mount -t tmpfs -o size=1m none "$t_dir/small" 2>/dev/null; then
    refuses "a full disk" 1 "no room for model.safetensors" quantize "$hub" "$t_dir/small/out" --format fp8
    [ -z "$(ls -A "$t_dir/small")" ] && t_pass "a full disk: nothing is left" || t_fail "a full disk: nothing is left"
    umount "$t_dir/small"
else
    skip "a full disk" "no right to mount"
fi

python3 tests/make_model.py "$t_dir/large.gguf" --hollow --layers 16 --hidden 1024 --ffn 4096 || exit 1
# begun NAME SIGNAL: quantises the large model, and sends the signal when it is at work
begun() {
    "$TANDEM" quantize "$t_dir/large.gguf" "$t_dir/killed" --format q8_0 --threads 1 >"$t_dir/out" 2>"$t_dir/err" &
    local pid=$! tries=0
    until [ -s "$t_dir/killed.partial/model.gguf" ] || [ $((tries += 1)) -gt 1000 ]; do sleep 0.01; done
    kill "-$2" $pid
    wait $pid 2>/dev/null
    status=$?
    [ $status -gt 128 ] && [ ! -e "$t_dir/killed" ] && t_pass "$1" || t_fail "$1: status $status, $(ls -d "$t_dir"/killed*)"
}
begun "terminated: no OUT" TERM
[ ! -e "$t_dir/killed.partial" ] && t_pass "terminated: nothing is left" || t_fail "terminated: nothing is left"
contains "terminated: it says so" "$(cat "$t_dir/err")" "interrupted; nothing was kept"
begun "killed: no OUT" KILL
[ -e "$t_dir/killed.partial" ] && t_pass "killed: remains under another name" || t_fail "killed: remains under another name"
ok "killed: the next run cleans up" quantize "$gguf" "$t_dir/killed" --format q8_0
ok "killed: the next run's OUT is whole" cmp "$t_dir/killed" "$t_dir/gguf.q8_0"
[ ! -e "$t_dir/killed.partial" ] && t_pass "killed: nothing remains" || t_fail "killed: nothing remains"
mkdir "$t_dir/busy.partial"
(
    flock 9
    "$TANDEM" quantize "$gguf" "$t_dir/busy" --format q8_0 >"$t_dir/out" 2>"$t_dir/err"
    echo $? >"$t_dir/status"
) 9<"$t_dir/busy.partial"
contains "two at once: the second is refused" "$(cat "$t_dir/status" "$t_dir/err")" "being written by another process"

t_end
