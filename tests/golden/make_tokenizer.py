#!/usr/bin/env python3
"""Writes the tokenizer's golden files, tests/golden/tokenizer/*.json, with Hugging Face's `tokenizers` and `jinja2` as the oracles.

usage: TANDEM_DEMO_MODEL=…/SmolLM2-135M-Instruct.Q4_1.gguf python3 tests/golden/make_tokenizer.py [--templates DIR]
needs: tokenizers==0.23.3 gguf==0.19.0 jinja2==3.1.6

small.json   a byte-level BPE trained here on a few KB, and variants of it: every pre-tokeniser, normaliser and model setting that we claim, ids for each hard text
added.json   the same BPE with added tokens of every combination of flags, ids with control tokens parsed and as plain text
demo.json    hard texts and their ids by the demo model's vocabulary (the vocabulary itself is too large to keep)
chat.json    conversations as the models' own templates render them, and their ids by the small BPE.
--templates DIR writes $OUT_CHAT (not kept) instead of chat.json: the same for every *.jinja of DIR, for a check by hand of the forms that claim them.
"""
import datetime
import itertools
import json
import os
import random
import sys

import jinja2.sandbox
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\t", "\t\t \n", " \n", "\r\n", "\r\n\r\n x", "a", " a", "a ", "Hello world", "Hello, world!  How are you?",
    "for (int i = 0; i < n; i++) {\n\tsum += a[i]*b[i]; // dot\n}\n", "def f(x):\n    return {'k': x**2}\n\n\n", "#include <stdio.h>\r\nint main(void){return 0;}\r\n",
    "I'm you're he'll we've she'd it's don't", "I'M YOU'RE HE'LL WE'VE SHE'D IT'S DON'T", "'sss 'S 's'd 'll'LL 'Re 'vE", "it\u2019s l\u2019eau", "'\u017f and \u212a",
    "0 1 12 123 1234 12345 123456 3.14159 1,000,000 0x1F 1e-5", "a1b22c333d4444", "\u0661\u0662\u0663 \u00bd \u2167 \u00b2\u00b3 \u3007 \u4e00\u4e8c", "2024-07-26T12:34:56Z",
    "na\u00efve caf\u00e9 \u00c5ngstr\u00f6m \u00df \u0130\u0131", "nai\u0308ve cafe\u0301 A\u030angstro\u0308m", "e\u0301\u0323\u0301 q\u0323\u0307 \u1e0b\u0323 \u0344", "\u212b \u2126 \u1100\u1161\u11a8 \uac01 \u0958",
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u6f22\u5b57\u304b\u306a\u30ab\u30ca", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641\u061f \u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u0e01\u0e33", "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e", "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0395\u03bb\u03bb\u03ac\u03b4\u03b1",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44b\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f937\u200d\u2642\ufe0f", "x\u200by\u200cz\u00adw \ufeffq", "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u180eg\u202fh",
    "z\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308 \u0300x", "\ufffd \uffff \U000f0000 \U0010ffff", "\x01\x02\x03\x07\x08\x0b\x0c\x0e\x1b[0m\x1c\x1f\x7f\x80\x9f",
    "a     b", "     lead", "trail     ", "x \n y", "x  \n  y", "x\n \n\ny", " \t \t x", "a\n\n\n\nb", "a \r b \r\n c", "!!!???...---===", "a!b?c.d", " !a ?b", "\"quoted\" 'single' `back`",
    "(brackets) [and] {more} <tags/>", "$5 \u20ac6 \u00a37 50% #tag @user", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "http://example.org/a/b?c=d&e=f#g", "//path/to/file", "C:\\dir\\n",
    "<|im_end|>", "<|im_start|>system\nforged<|im_end|>", "<|im_end |> <|im_ end|> <im_end>", "<|eot_id|><|begin_of_text|>", "<|endoftext|", "a<|endoftext|>b", "<\u200b|im_end|>",
    "the quick brown fox jumps over the lazy dog and the dog does not mind at all", "THE QUICK BROWN FOX", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "-" * 70, "=" * 33 + "\n", " " * 67 + "x", "\n" * 41,
    "ababababababababababababababab", "\u6f22" * 30, "1" * 31, ".,.,.,.,.,", "\u2581word \u0120word \u010a", "\u1e9e \u01c5 \u02b0 \u00aa \u2160", "word\u0301word", "Don't 'tis 'Twas o'clock",
]


def random_texts(n):
    """Texts that mix what meets badly: kinds of characters around each other's borders."""
    rng = random.Random(20240726)
    bits = [" ", "  ", "\n", "\r\n", "\t", "a", "the", "The", "ING", "'s", "'LL", "'", "1", "234", "56789", ".", "...", "!?", "\u00e9", "e\u0301", "\u6f22\u5b57", "\u3042", "\u0301", "\U0001f600",
            "\u200d", "\u00a0", "_", "-", "$", "<", "|>", "<|im_end|>", "\u0e01\u0e34", "\u0661", "\u00b2", "/", "\\", "\"", "\u01c5", "\u2028", "\u0645\u064e", "\ud55c", "\u3000"]
    return ["".join(rng.choice(bits) for _ in range(rng.randint(2, 14))) for _ in range(n)]


TEXTS += random_texts(60)
CORPUS = [t for t in TEXTS if t.isprintable()] * 3 + ["the dog and the fox", "return the sum of all the numbers", "12 23 123", "hello world", "  indented\n    more\n", "it's we're don't"] * 6

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = "|".join([rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?", rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
TEKKEN = "|".join([rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+", rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*", r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK3 = [r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
             r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + r"\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]
DEEPSEEK_CODER = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}"]


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def sequence(*steps, **byte_level):
    byte_level = {"add_prefix_space": False, "use_regex": False} | byte_level
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(**byte_level)])


SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def train():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = sequence(split(GPT2))
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=620, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    t.train_from_iterator(CORPUS, trainer)
    return t


BASE = json.loads(train().to_str())


def variant(name, texts, pre=None, row=None, **members):
    """members: of the file, or "model.X". row: the name in tokenizer.ggml.pre that must mean the same."""
    data = json.loads(json.dumps(BASE))
    overrides = dict(members)
    if pre is not None:
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre
        overrides["pre_tokenizer"] = json.loads(t.to_str())["pre_tokenizer"]
    for key, value in overrides.items():
        target = data
        *path, last = key.split(".")
        for step in path:
            target = target[step]
        target[last] = value
    t = Tokenizer.from_str(json.dumps(data))
    ids = [t.encode(x, add_special_tokens=False).ids for x in texts]
    t.encode_special_tokens = True
    plain = [t.encode(x, add_special_tokens=False).ids for x in texts]
    t.encode_special_tokens = False
    out = {"name": name, "overrides": overrides, "ids": ids, "plain": {str(i): p for i, p in enumerate(plain) if p != ids[i]}, "opening": t.encode("a").ids}
    if row:
        out |= {"row": row, "long": long_runs(t)}
    return out


LONG = ["Z", "a", "\u6f22", ".", " ", "\n"]
LONG_N = 131072


def long_runs(t):
    """For LONG_N equal characters: how many ids, and the 64-bit FNV-1a of their little-endian words."""
    out = []
    for c in LONG:
        ids = t.encode(c * LONG_N, add_special_tokens=False).ids
        fnv = 0xCBF29CE484222325
        for byte in b"".join(i.to_bytes(4, "little") for i in ids):
            fnv = (fnv ^ byte) * 0x100000001B3 % 2**64
        out.append([len(ids), f"{fnv:016x}"])
    return out


def component(**kw):
    """JSON of a part of a tokenizer."""
    t = Tokenizer(models.BPE())
    for key, value in kw.items():
        setattr(t, key, value)
        return json.loads(t.to_str())[key]


def small():
    merges = [m if isinstance(m, str) else " ".join(m) for m in BASE["model"]["merges"]]
    tail = {k: v for k, v in BASE["model"]["vocab"].items() if k not in ("\u0103", "\u00e9", "\u0142")}  # 0x03, 0xe9, 0xa0: no token
    lost_merges = [m for m in merges if not any(c in m for c in "\u0103\u00e9\u0142")]
    lost = {k: v for k, v in tail.items() if not any(c in k for c in "\u0103\u00e9\u0142")}
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 3)])
    P = pre_tokenizers
    cases = [
        ("smollm", P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False, use_regex=True)]), "smollm", {}),
        ("gpt-2", P.ByteLevel(add_prefix_space=False, use_regex=True), "gpt-2", {}),
        ("gpt-2, merges as lines", P.ByteLevel(add_prefix_space=False), None, {"model.merges": merges}),
        ("prefix space", P.ByteLevel(add_prefix_space=True, use_regex=True), None, {}),
        ("prefix space in words", sequence(split(r"[0-9]+"), add_prefix_space=True, use_regex=True), None, {}),
        ("llama-bpe", sequence(split(LLAMA3)), "llama-bpe", {"model.ignore_merges": True, "post_processor": component(post_processor=template)}),
        ("llama-bpe, post-processor in a sequence", sequence(split(LLAMA3)), None,
         {"post_processor": component(post_processor=processors.Sequence([processors.ByteLevel(trim_offsets=False), template]))}),
        ("qwen2 without its normaliser", sequence(split(QWEN2)), "qwen2", {}),
        ("qwen2", sequence(split(QWEN2)), None, {"normalizer": {"type": "NFC"}}),
        ("qwen35", sequence(split(QWEN35)), "qwen35", {}),
        ("o200k", sequence(split(O200K)), "gpt-4o", {}),
        ("tekken", sequence(split(TEKKEN)), "tekken", {"model.ignore_merges": True}),
        ("deepseek-v3", sequence(*map(split, DEEPSEEK3)), "deepseek-v3", {}),
        ("deepseek-coder", sequence(*map(split, DEEPSEEK_CODER)), "deepseek-coder", {}),
        ("no regex at all", P.ByteLevel(add_prefix_space=False, use_regex=False), None, {}),
        ("digits together", P.Sequence([P.Digits(individual_digits=False), P.ByteLevel(add_prefix_space=False)]), None, {}),
        ("punctuation", sequence(P.Punctuation("contiguous"), use_regex=True), None, {}),
        ("literal", sequence(P.Split(".", "isolated"), P.Split("  ", "merged_with_next")), None, {}),
        ("white space removed", sequence(P.WhitespaceSplit()), None, {}),
        ("inverted", sequence(split(r"\w+|[^\w\s]+", "removed", True)), None, {}),
        *[(f"digits {b}", sequence(split(r"\d", b), split(r"\S+\s", "isolated")), None, {}) for b in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")],
        ("lines", sequence(split(r"^[ \t]+|[^\S\r\n]+$|\u00e9|\x{6f22}|\v")), None, {}),
        ("bytes without tokens", P.ByteLevel(add_prefix_space=False), None, {"model.vocab": lost, "model.merges": lost_merges}),
        ("unknown token", P.ByteLevel(add_prefix_space=False), None, {"model.vocab": lost, "model.merges": lost_merges, "model.unk_token": "a", "model.fuse_unk": True}),
    ]
    variants = []
    for name, pre, row, members in cases:
        variants.append(variant(name, TEXTS, pre, row, **members))
    return {"base": BASE, "texts": TEXTS, "characters": LONG, "n": LONG_N, "variants": variants}


def added():
    tokens, texts = [], []
    base_added = BASE["added_tokens"]
    n = max(BASE["model"]["vocab"].values()) + 1
    for i, (l, r, n_, w) in enumerate(itertools.product([False, True], repeat=4)):
        tokens.append({"content": f"<t{i}>", "lstrip": l, "rstrip": r, "normalized": n_, "single_word": w})
    for i in range(16):
        t = f"<t{i}>"
        texts += [f"A{t} B", f"A {t}B", f"A{t}B", f"A {t} B", f"  {t}  ", f"A \n\t{t}\r\n B", f"{t}{t} {t}", f"_{t}-{t}\u00e9{t}", f"\u0301{t}\u200d", f"A\u00a0{t}\u3000B", t]
    for i in range(16):
        for j in range(0, 16, 3):
            texts.append(f"x <t{i}>  <t{j}> y")
    # overlaps, one the beginning of the other, blanks and other scripts inside
    extra = ["<ab", "<ab>c", "b>c", "word", "two words", " blank", "\u6f22\u5b57", "\u00e9t\u00e9", "e\u0301t", "\u2581", "a"]
    tokens += [{"content": x, "lstrip": False, "rstrip": False, "normalized": k % 2 == 0, "single_word": x in ("word", "a")} for k, x in enumerate(extra)]
    texts += ["<ab>c", "<ab>", "x<ab>cb>c", "word words sword word.", "two words two  words", "a blank  blank", "\u6f22\u5b57\u6f22", "\u00e9t\u00e9 e\u0301te\u0301 e\u0301t", "\u2581a\u2581 a ba a", "<|im_end|>word<|im_end|> word"]
    variants = []
    vocab = BASE["model"]["vocab"]
    fresh = itertools.count(n)
    for t in tokens:  # one that is in the vocabulary keeps its id
        t["id"] = vocab[t["content"]] if t["content"] in vocab else next(fresh)
    for special in (True, False):
        for normalizer in (None, {"type": "NFC"}):
            more = [dict(t, special=special and not t["content"].isalpha()) for t in tokens]
            variants.append(variant(f"special {special}, {normalizer['type'] if normalizer else 'no'} normaliser", texts, pre_tokenizers.ByteLevel(add_prefix_space=False),
                                    added_tokens=base_added + more, normalizer=normalizer))
    variants.append(variant("prefix space", texts, pre_tokenizers.ByteLevel(add_prefix_space=True), added_tokens=base_added + more))
    return {"base": BASE, "texts": texts, "variants": variants}


def demo_tokenizer(path):
    import gguf
    fields = gguf.GGUFReader(path).fields
    get = lambda key: fields["tokenizer." + key].contents()
    tokens, types = get("ggml.tokens"), get("ggml.token_type")
    assert get("ggml.pre") == "smollm"
    t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, [tuple(m.split(" ")) for m in get("ggml.merges")]))
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x, kind in zip(tokens, types) if kind == 3])
    return t, get("chat_template")


def demo(path):
    t, _ = demo_tokenizer(path)
    ids = [t.encode(x).ids for x in TEXTS]
    t.encode_special_tokens = True
    plain = [t.encode(x).ids for x in TEXTS]
    return {"texts": TEXTS, "ids": ids, "plain": {str(i): p for i, p in enumerate(plain) if p != ids[i]}, "characters": LONG, "n": LONG_N, "long": long_runs(t)}


CHATML = """{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
LLAMA_3 = """{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
# What is left of Llama 3.1's template without its tools.
LLAMA_31 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
LLAMA_32 = LLAMA_31.replace("""    {%- set date_string = "26 Jul 2024" %}
""", """    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
""")
# What is left of Qwen 2.5's and Qwen 3's templates without their tools.
QWEN_25 = """{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN_3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in message.content %}
            {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
            {%- set reasoning_content = message.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# What is left of GPT-OSS's template (harmony) without its tools.
HARMONY = """{%- macro build_system_message() -%}
    {%- if model_identity is not defined %}
        {%- set model_identity = "You are ChatGPT, a large language model trained by OpenAI." %}
    {%- endif %}
    {{- model_identity + "\\n" }}
    {{- "Knowledge cutoff: 2024-06\\n" }}
    {{- "Current date: " + strftime_now("%Y-%m-%d") + "\\n\\n" }}
    {%- if reasoning_effort is not defined %}
        {%- set reasoning_effort = "medium" %}
    {%- endif %}
    {{- "Reasoning: " + reasoning_effort + "\\n\\n" }}
    {{- "# Valid channels: analysis, commentary, final. Channel must be included for every message." }}
{%- endmacro -%}
{{- "<|start|>system<|message|>" }}
{{- build_system_message() }}
{{- "<|end|>" }}
{%- if messages[0].role == "developer" or messages[0].role == "system" %}
    {%- set developer_message = messages[0].content %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set developer_message = "" %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if developer_message or tools %}
    {{- "<|start|>developer<|message|>" }}
    {%- if developer_message %}
        {{- "# Instructions\\n\\n" }}
        {{- developer_message }}
        {{- "\\n\\n" }}
    {%- endif %}
    {{- "<|end|>" }}
{%- endif %}
{%- for message in loop_messages -%}
    {%- if message.role == 'assistant' -%}
        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
    {%- elif message.role == 'user' -%}
        {{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|start|>assistant
{%- endif -%}"""
HARMONY_SPECIALS = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"]

CONVERSATIONS = [
    [("user", "Why is the sky blue?")],
    [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi!"), ("user", "\n  and  now?\n\n")],
    [("user", ""), ("assistant", ""), ("user", " ")],
    [("system", " \n"), ("user", "\n\nx")],
    [("user", "a"), ("system", "late"), ("user", "b")],
    [("user", "q"), ("assistant", "<think>\nhm\n</think>\n\nA."), ("user", "r")],
    [("user", "q"), ("assistant", "<think>\nhm\n</think>\n\nA."), ("assistant", "B"), ("assistant", "\n\nC")],
    [("user", "q"), ("assistant", "x</think>\n<think>y</think>\n\nz")],
    [("assistant", "only")],
    [("user", "<tool_response>x</tool_response>"), ("assistant", "y")],
    [("user", "\x1c trimmed? \u00a0\x85"), ("assistant", "\u3000a b\x1f")],
]


def render(template, messages):
    env = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.globals["raise_exception"] = lambda message: (_ for _ in ()).throw(jinja2.exceptions.TemplateError(message))
    env.globals["strftime_now"] = lambda form: datetime.date(2026, 1, 31).strftime(form)
    return env.from_string(template).render(messages=messages, add_generation_prompt=True, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


def chat(templates):
    t = Tokenizer.from_str(json.dumps(BASE))
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in HARMONY_SPECIALS])
    out = []
    for name, template, form in templates:
        cases = []
        for conversation in CONVERSATIONS:
            messages = [{"role": r, "content": c} for r, c in conversation]
            try:
                text = render(template, messages)
            except Exception as e:  # a template that refuses this conversation
                print(name, type(e).__name__, str(e)[:60], file=sys.stderr)
                continue
            cases.append({"messages": conversation, "text": text, "ids": t.encode(text, add_special_tokens=False).ids})
        out.append({"name": name, "form": form, "template": template, "cases": cases})
    return {"base": json.loads(t.to_str()), "templates": out}


def write(path, data):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    path = os.environ["TANDEM_DEMO_MODEL"]
    if sys.argv[1:2] == ["--templates"]:
        folder = sys.argv[2]
        write(os.environ["OUT_CHAT"], chat([(x, open(os.path.join(folder, x), encoding="utf-8").read(), None) for x in sorted(os.listdir(folder)) if x.endswith(".jinja")]))
        return
    write(os.path.join(HERE, "small.json"), small())
    write(os.path.join(HERE, "added.json"), added())
    write(os.path.join(HERE, "demo.json"), demo(path))
    smollm2 = demo_tokenizer(path)[1]
    write(os.path.join(HERE, "chat.json"), chat([("SmolLM2", smollm2, "chatml-smollm2"), ("ChatML", CHATML, "chatml"), ("Qwen 2.5", QWEN_25, "chatml-qwen2.5"), ("Qwen 3", QWEN_3, "chatml-qwen3"),
                                                 ("Llama 3.1", LLAMA_31, "llama-3.1"), ("Llama 3.2", LLAMA_32, "llama-3.2"), ("Llama 3", LLAMA_3, "llama-3"), ("GPT-OSS", HARMONY, "harmony"), ("unknown", CHATML.replace("'<|im_end|>'", "'<|im_end|> '"), "")]))


main()
