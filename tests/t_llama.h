/* Random Llama checkpoints of any shape for tests. A tensor's values follow from seed and name alone, so that two spellings of one model hold the same numbers. */
#ifndef TESTS_T_LLAMA_H
#define TESTS_T_LLAMA_H

#include "kernels/formats.h"
#include "tests/t.h"

struct t_llama {
    int hidden, heads, kv, head_dim, ffn, vocab, layers; /* layers 0: 2 */
    enum format format; /* of the matrices */
    bool mixed;         /* v, down and the head are stored as format_2: files hold more than one type */
    enum format format_2;
    bool gguf;          /* a file, q and k with permuted rows; quantised formats always */
    bool tied, biases;
    bool fused;          /* qkv_proj and gate_up_proj */
    float scale;         /* GGUF, not 0: blk.0.attn_q.scale, as files with NVFP4 have it */
    float large_bias;    /* not 0: every element of the biases of o and down */
    const char *rope;    /* members of config.json; NULL: "rope_theta":10000.0 */
    bool rope_llama3;    /* GGUF: base 500000 and rope_freqs.weight, see rope_freqs in t_llama.c */
    int twin, twin_of;   /* twin ≠ twin_of: row twin of the head is a copy of row twin_of */
    uint64_t seed;
};

/* Writes NAME.gguf, or NAME/config.json and NAME/model.safetensors; what the ranks take as MODEL. */
const char *t_llama_write(const struct t_llama *m, const char *name);

#endif
