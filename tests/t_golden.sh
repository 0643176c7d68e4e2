# shellcheck shell=bash disable=SC2034,SC2154
# What tests against golden models share: a case is a folder below $golden with a model, ids.txt, greedy.txt and logits.f32 (tests/golden/make_*.py). Sourced after t.sh.

accurate=1e-3 # of the logits' standard deviation, the largest difference
rounded=0.04  # root mean square, where activations are rounded to 8 bits: what they are chosen by

# eval NAME CASE OPTIONS…: leaves $t_dir/logits and $t_dir/greedy
evaluate() {
    local name=$1 dir=$golden/$2/ model
    shift 2
    model=$dir
    [ -f "${dir}model.gguf" ] && model=${dir}model.gguf
    rm -f "$t_dir/logits" "$t_dir/greedy"
    if ! "$TANDEM" eval "$model" --ids "${dir}ids.txt" --greedy "$(wc -w <"${dir}greedy.txt")" --logits "$t_dir/logits" "$@" >"$t_dir/stdout" 2>"$t_dir/stderr"; then
        t_fail "$name"
        sed 's/^/    /' "$t_dir/stderr"
        return 1
    fi
    # a warning is as bad as an error, for these files contradict nothing; but a small machine may say that ranks share its CPUs, and one with a GPU why it is not used
    if grep -Ev ' (place|device): ' "$t_dir/stderr" | grep -q .; then
        t_fail "$name says:"
        sed 's/^/    /' "$t_dir/stderr"
        return 1
    fi
    tail -n 1 "$t_dir/stdout" >"$t_dir/greedy"
}

# compare NAME CASE max|rms LIMIT
compare() {
    if said=$("$BUILD/tests/compare_logits" "$3" "$t_dir/logits" "$golden/$2/logits.f32" "$4"); then
        t_pass "$1: $said"
    else
        t_fail "$1: $said"
    fi
}

# table HEAD…: begins the table of what was seen, where TANDEM_TABLE=FILE asks for one; row FORMAT VALUES… goes on.
table() {
    [ -n "${TANDEM_TABLE:-}" ] || return 0
    printf '| %s ' "$@" >"$TANDEM_TABLE"
    printf '|\n' >>"$TANDEM_TABLE"
    printf '|---%.0s' "$@" >>"$TANDEM_TABLE"
    printf '|\n' >>"$TANDEM_TABLE"
}
# shellcheck disable=SC2059 # a format is what it is
row() { [ -z "${TANDEM_TABLE:-}" ] || printf "$@" >>"$TANDEM_TABLE"; }
