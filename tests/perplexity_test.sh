#!/bin/bash
# The real model on real prose: perplexity at the default within 1 % of --activations f32, the same on one, two and three ranks, and (make test-long, whole text) within 1 % of llama.cpp's.
# test-deadline: 600
. tests/t.sh

# 16.7748: `llama-perplexity -m MODEL -f TEXT -c 512` of llama-cpp-python 0.3.36 on the text with this digest, all 33 windows (make bench-peers builds it).
DIGEST=ba4872e9c67d27956b4d05379078deabe3fb5a42c9478542b500617da1600a3a
LLAMA_CPP=16.7748

if [ -z "${TANDEM_DEMO_MODEL:-}" ]; then
    skip "perplexity" "no demo model"
    t_end
fi
tests/make_prose.sh >"$t_dir/all.txt" || exit 1
# two windows of 512 tokens are the least
if [ -n "${LONG:-}" ]; then cp "$t_dir/all.txt" "$t_dir/text"; else head -c 5600 "$t_dir/all.txt" >"$t_dir/text"; fi

perplexity() { "$TANDEM" eval "$TANDEM_DEMO_MODEL" --text "$t_dir/text" "$@" 2>/dev/null | sed -n 's/^perplexity //p'; }
near() { awk -v a="$1" -v b="$2" 'BEGIN { d = a / b - 1; exit !(a > 1 && b > 1 && d < 0.01 && d > -0.01) }'; }

accurate=$(perplexity --activations f32)
fast=$(perplexity)
echo "f32 $accurate, auto $fast"
ok "int8 activations within 1 % of f32" near "$fast" "$accurate"
for n in 2 3; do
    other=$(perplexity -n $n)
    ok "the same number on $n ranks ($other)" test "$other" = "$fast"
done
if [ -z "${LONG:-}" ]; then
    skip "against llama.cpp" "make test-long"
elif [ "$(tests/make_prose.sh --digest)" != "$DIGEST" ]; then
    skip "against llama.cpp" "this machine's licences are worded differently"
else
    ok "f32 within 1 % of llama.cpp" near "$accurate" "$LLAMA_CPP"
    ok "auto within 1 % of llama.cpp" near "$fast" "$LLAMA_CPP"
fi
t_end
