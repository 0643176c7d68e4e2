#!/bin/bash
# `tandem tokenize`: text to ids and back, as a user types it.
. tests/t.sh

# same NAME WANT COMMAND…: what the command writes, to the byte
same() {
    local name=$1 want=$2
    shift 2
    "$@" >"$t_dir/got" 2>"$t_dir/.err"
    if printf '%b' "$want" | cmp -s - "$t_dir/got"; then t_pass "$name"; else
        t_fail "$name"
        head -c 300 "$t_dir/got" "$t_dir/.err"
    fi
}
# misuse NAME PART ARGUMENTS…: exit 2 and one line that says why
misuse() {
    local name=$1 part=$2 status=0 said
    shift 2
    said=$("$TANDEM" tokenize "$@" 2>&1 </dev/null) || status=$?
    if [ $status = 2 ] && [ "$(printf '%s\n' "$said" | wc -l)" = 1 ]; then t_pass "$name: exit 2, one line"; else t_fail "$name: status $status: $said"; fi
    contains "$name says why" "$said" "$part"
}

misuse "no model" MODEL
misuse "unknown option" --nonsense x --nonsense
misuse "two models" x a x
misuse "bos while decoding" --bos m --bos --decode
ok "--help" "$TANDEM" tokenize --help
fails "a model that is not there" "$TANDEM" tokenize "$t_dir/none.gguf"

model=${TANDEM_DEMO_MODEL:-}
if [ -z "$model" ]; then
    skip "ids of the demo model" "no demo model"
    t_end
fi
tok() { printf '%b' "$1" | "$TANDEM" tokenize "$model" "${@:2}"; }
same "text" '[19556,905,216,33,34,35]\n' tok 'Hello world 123'
same "nothing is trimmed" '[216,197,198]\n' tok ' \t\n'
same "an empty text" '[]\n' tok ''
same "control tokens are text" '[44,108,306,79,486,108,46]\n' tok '<|im_end|>'
same "--special" '[2,198]\n' tok '<|im_end|>\n' --special
same "--bos where none is added" '[19556]\n' tok Hello --bos
same "--decode" 'Hello world' tok '[19556,905]' --decode
same "--decode hides control tokens" 'Hello' tok '[1,19556,2]' --decode
same "--decode --special" '<|im_start|>Hello<|im_end|>' tok '[1, 19556, 2]' --decode --special
# refuses ARRAY: exit 1, nothing on stdout
refuses() {
    local status=0
    tok "$1" --decode >"$t_dir/got" 2>"$t_dir/.err" || status=$?
    if [ $status = 1 ] && [ ! -s "$t_dir/got" ]; then t_pass "--decode refuses $1"; else t_fail "--decode refuses $1 (status $status)"; fi
}
for bad in '[49152]' '[-1]' '["a"]' '[1.5]' '{}' 'x' '[1' '[19556,99999999999]'; do refuses "$bad"; done
head -c 131072 /dev/zero | tr '\0' Z >"$t_dir/long"
# shellcheck disable=SC2016
ok "128 KiB of one character there and back under a small stack" bash -c 'ulimit -s 256; "$1" tokenize "$2" <"$3" >"$3.ids" && "$1" tokenize "$2" --decode <"$3.ids" | cmp - "$3"' - "$TANDEM" "$model" "$t_dir/long"
t_end
