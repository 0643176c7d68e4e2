# shellcheck shell=bash
# Helpers for tests written as scripts: `. tests/t.sh` first, t_end last. They run from the root of the tree;
# $TANDEM is the binary, $BUILD the folder in which it was built.
#   ok NAME COMMAND…      passes when the command succeeds
#   fails NAME COMMAND…   passes when it does not (and was not killed by a signal)
#   contains NAME TEXT PART
#   skip NAME WHY
#   same_bytes NAME ONE COMMAND…  passes when the command, which writes its logits to $t_dir/logits, gives the bytes of ONE.logits and prints ONE.out
#   has BACKEND           whether ranks can be joined by it here, in this build; why not is in $t_dir/out
# $t_dir is a directory that is removed at the end.

set -u
export LC_ALL=C
: "${BUILD:=build}" "${TANDEM:=$BUILD/tandem}"
t_passed=0 t_failed=0 t_skipped=0
t_dir=$(mktemp -d "${TMPDIR:-/tmp}/tandem-test-XXXXXX") || exit 1
trap 'rm -rf "$t_dir"' EXIT

t_pass() { t_passed=$((t_passed + 1)); echo "ok      $1"; }
t_fail() { t_failed=$((t_failed + 1)); echo "FAILED  $1"; }
skip() { t_skipped=$((t_skipped + 1)); echo "skipped $1: $2"; }

ok() {
    local name=$1 status=0
    shift
    "$@" >"$t_dir/.out" 2>&1 || status=$?
    if [ $status = 0 ]; then t_pass "$name"; else
        t_fail "$name (status $status): $*"
        sed 's/^/    /' "$t_dir/.out"
    fi
}

fails() {
    local name=$1 status=0
    shift
    "$@" >"$t_dir/.out" 2>&1 || status=$?
    if [ $status != 0 ] && [ $status -lt 126 ]; then t_pass "$name"; else
        t_fail "$name (status $status): $*"
        sed 's/^/    /' "$t_dir/.out"
    fi
}

contains() {
    case $2 in
    *"$3"*) t_pass "$1" ;;
    *)
        t_fail "$1: '$3' expected in:"
        printf '%s\n' "$2" | sed 's/^/    /'
        ;;
    esac
}

same_bytes() {
    local name=$1 one=$2
    shift 2
    rm -f "$t_dir/logits"
    if ! "$@" >"$t_dir/out" 2>"$t_dir/err"; then
        t_fail "$name: status $?: $(cat "$t_dir/err")"
    elif ! cmp -s "$one.logits" "$t_dir/logits"; then
        t_fail "$name: other logits"
    elif ! cmp -s "$one.out" "$t_dir/out"; then
        t_fail "$name: other output: $(cat "$t_dir/out")"
    else
        t_pass "$name"
    fi
}

has() { "$TANDEM" bench comm --backend "$1" --min 8 --max 8 --blocks 1 --peer none >"$t_dir/out" 2>&1; }

t_end() {
    echo "$t_passed passed, $t_failed failed, $t_skipped skipped"
    [ $t_failed = 0 ]
    exit
}
