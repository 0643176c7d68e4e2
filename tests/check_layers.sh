#!/bin/bash
# The floors of the house: which room may include what. Includes are written from the root, so that this needs no compiler.
#   base < topologies, kernels, comm (never each other) < partition < runtime < launcher
# partition and launcher know of kernels only the formats; the launcher meets the ranks by their command line.
set -euo pipefail
export LC_ALL=C
cd "$(dirname "$0")/.."

rooms=()
for room in base topologies kernels comm partition runtime launcher; do [ -d "$room" ] && rooms+=("$room"); done

# shellcheck disable=SC2016  # the dollars are awk's
find "${rooms[@]}" \( -name '*.c' -o -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inc' \) -print0 | sort -z | xargs -0 awk '
BEGIN {
    may["base"] = " base "
    may["topologies"] = " base topologies "
    may["kernels"] = " base kernels "
    may["comm"] = " base comm "
    may["partition"] = " base topologies partition "
    may["runtime"] = " base topologies kernels comm partition runtime "
    may["launcher"] = " base topologies comm partition runtime launcher "
}
function bad(why) { printf "%s:%d: %s: %s\n", FILENAME, FNR, why, $0; n_bad++ }
FNR == 1 { n_files++; room = FILENAME; sub("/.*", "", room) }
/^[ \t]*#[ \t]*include[ \t]*"/ {
    target = $0
    sub(/^[^"]*"/, "", target)
    sub(/".*/, "", target)
    n_includes++
    if (target !~ "/" || target ~ /\.\.\//) { bad("an include is written from the root of the tree"); next }
    if ((getline line < target) < 0) { bad("no such file"); next }
    close(target)
    of = target
    sub("/.*", "", of)
    if (index(may[room], " " of " ")) next
    if (target == "kernels/formats.h" && (room == "partition" || room == "launcher")) next
    bad(room " may not include this")
}
END {
    if (n_bad) exit 1
    printf "check-layers: %d includes in %d files keep to the floors\n", n_includes, n_files
}'
