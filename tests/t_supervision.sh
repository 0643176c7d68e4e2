# shellcheck shell=bash
# shellcheck disable=SC2154 # since, t_dir: set by who sources this
# Helpers for tests of supervision, after tests/t.sh: a job in the background, its processes, and how it ends.
# A job's processes are found by a mark in their environment. $model is a tiny model whose answers never end.

# bash tells of every job that was killed: that is not worth reading here.
exec 3>&2 2>"${t_dir:?}/noise"
trap 'grep -Ev "(Killed|Terminated|Segmentation fault) +\(" "$t_dir/noise" >&3; rm -rf "$t_dir"' EXIT

TANDEM=$(realpath "$TANDEM")
mkdir "$t_dir/home" "$t_dir/tmp" "$t_dir/cwd"
touch "$t_dir/start"
model=$t_dir/tiny.gguf
python3 tests/make_model.py "$model" --hidden 128 --heads 8 --ffn 512 --layers 4 --context 400000 --hollow || exit 1
ms() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# --- a job and its processes ---

prompt=(-p hi)
as=() # what starts the launcher, before env
# launch N ARGUMENTS…: in the background; $pid is the launcher. 9 is a descriptor that nobody but the launcher may have.
launch() {
    local n=$1
    shift
    mark=t$$-$RANDOM$RANDOM
    : >"$t_dir/out" # the last one's
    (
        cd "$t_dir/cwd" || exit 1
        exec "${as[@]}" env --default-signal=INT,QUIT TANDEM_TEST_MARK="$mark" HOME="$t_dir/home" XDG_RUNTIME_DIR="$t_dir/tmp" TMPDIR="$t_dir/tmp" \
            "$TANDEM" run -n "$n" "${prompt[@]}" --ignore-eos "$@"
    ) >"$t_dir/out" 2>"$t_dir/err" 9<"$t_dir/start" &
    pid=$!
}
# wait_for COMMAND…: until it succeeds, 10 s at most.
wait_for() {
    local end=$(($(ms) + 10000))
    until "$@"; do
        [ "$(ms)" -lt $end ] || return 1
        sleep 0.01
    done
}
talks() { [ -s "$t_dir/out" ]; }
# run_job N: a job that generates for longer than any test.
run_job() {
    launch "$1" "$model" --threads 1 --ctx 400000
    wait_for talks
}
processes() { grep -lsz "^TANDEM_TEST_MARK=$mark\$" /proc/[0-9]*/environ | cut -d/ -f3; }
none_left() { [ -z "$(processes)" ]; }
# process_of "agent" | "rank --rank 0"
process_of() {
    local p
    for p in $(processes); do
        case $({ tr '\0' ' ' <"/proc/$p/cmdline"; } 2>/dev/null) in
        "tandem $1 "*) echo "$p" && return 0 ;;
        esac
    done
    return 1
}
gone() { ! kill -0 "$pid" 2>/dev/null; }

# ends NAME LIMIT_MS PART…: the launcher ends within the time (from $since), non-zero, and says every PART; nothing is left.
ends() {
    local name=$1 limit=$2 status=0 took part text
    shift 2
    wait_for gone || kill -9 "$pid"
    took=$(($(ms) - since))
    wait "$pid" || status=$?
    text=$(cat "$t_dir/err")
    if [ $status = 0 ]; then
        t_fail "$name: status 0"
    elif [ $took -gt "$limit" ]; then
        t_fail "$name: took $took ms"
    else
        for part; do
            case $text in *"$part"*) ;; *)
                t_fail "$name: '$part' expected in: $text"
                return
                ;;
            esac
        done
        nothing_left "$name" $((limit + 1500))
    fi
}
# nothing_left NAME [LIMIT_MS, from $since]: a moment for the kernel, then no process, and no file of any kind.
nothing_left() {
    local files limit=${2:-2500}
    if ! wait_for none_left || [ $(($(ms) - since)) -gt "$limit" ]; then
        t_fail "$1: left after $(($(ms) - since)) ms: $(processes | while read -r p; do tr '\0' ' ' <"/proc/$p/cmdline" | cut -c 1-60; done)"
        processes | xargs -r kill -9
        return
    fi
    files=$(find "$t_dir/home" "$t_dir/tmp" "$t_dir/cwd" -mindepth 1)$(find /dev/shm /run -name '*tandem*' -newer "$t_dir/start" 2>/dev/null)$(grep tandem /proc/net/unix)
    if [ -n "$files" ]; then t_fail "$1: left $files"; else t_pass "$1"; fi
}
