#!/bin/bash
# The rules of placement, by a checker that shares nothing with the code: all captured, described and synthetic machines, 1 to 8 ranks, every --bind.
# test-deadline: 300
set -u
cd "$(dirname "$0")/.." || exit 1
TANDEM=${TANDEM:-${BUILD:-build}/tandem}
captured=${CAPTURED:-../shared/topologies}

if python3 -B tests/topologies_rules.py "$TANDEM" "$captured"; then passed=1 failed=0; else passed=0 failed=1; fi
skipped=0
if [ ! -d "$captured" ]; then
    echo "skipped: no captured machines in $captured"
    skipped=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
