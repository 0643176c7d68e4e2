#include "tests/t_llama.h"

#include <math.h>

#include "base/hash.h"
#include "base/rng.h"
#include "tests/t_ck.h"

enum { MAX_TENSORS = 512 };

struct writer {
    const struct t_llama *m;
    bool gguf;
    struct t_tensor tensors[MAX_TENSORS];
    enum format formats[MAX_TENSORS];
    size_t n;
};

static bool is_gguf(const struct t_llama *m) { return m->gguf || kern_format(m->format)->quantised; }

static enum format format_of(const struct t_llama *m, const char *hub)
{
    return m->mixed && (strstr(hub, "v_proj") || strstr(hub, "down_proj") || strstr(hub, "lm_head")) ? m->format_2 : m->format;
}

/* ---- values ---------------------------------------------------------------------------------------------------------------------------------------- */

static void put_f16(unsigned char *at, float x)
{
    const uint16_t h = kern_f32_to_f16(x);
    memcpy(at, &h, sizeof h);
}

/* A block of random codes whose scales make numbers between −high and high, about evenly. */
static void fill_block(enum format f, struct base_rng *r, float high, unsigned char *out)
{
    const struct format_info *info = kern_format(f);
    const bool super = info->super_block > 0;
    const float scale = base_rng_uniform(r, 0.5F, 1), most = f == FMT_Q6_K || f == FMT_Q5_K || f == FMT_Q5_0 || f == FMT_Q5_1 ? 16 : 8;
    for (uint32_t k = 0; k < info->block_bytes; k++)
        out[k] = (unsigned char)base_rng_below(r, 256);
    if (f == FMT_MXFP4) { /* the largest code is 6 */
        out[0] = (unsigned char)(127 + (int)floorf(log2f(scale * high / 6)));
        return;
    }
    if (f == FMT_NVFP4) {
        for (int k = 0; k < 4; k++) /* E4M3: 8 steps for a factor of 2, 2^(k / 8 − 7) and a bit less */
            out[k] = (unsigned char)((int)(8 * (7 + log2f(high / 6))) - (int)base_rng_below(r, 8));
        return;
    }
    if (f == FMT_Q6_K) { /* sc up to 127 either way, codes up to 32 */
        put_f16(out + 208, scale * high / (127 * 32) * 1.5F);
        return;
    }
    put_f16(out, scale * high / most / (super ? 32 : 1)); /* sc about 32 */
    if (info->has_minimum)
        put_f16(out + 2, scale * high / (super ? 32 : -1));
}

/* All are numbers that BF16 holds. */
static void fill(enum format f, struct base_rng *r, float low, float high, size_t n, unsigned char *out)
{
    const struct format_info *info = kern_format(f);
    for (size_t i = 0; i < n; i += info->block_columns, out += info->block_bytes) {
        if (f == FMT_Q8_0) {
            put_f16(out, high / 127 * base_rng_uniform(r, 0.5F, 1));
            for (int k = 0; k < 32; k++)
                out[2 + k] = (unsigned char)((int)base_rng_below(r, 255) - 127);
            continue;
        }
        if (f == FMT_Q4_1) {
            const float scale = base_rng_uniform(r, 0.5F, 1);
            put_f16(out, scale * (high - low) / 15);
            put_f16(out + 2, scale * low);
            for (int k = 0; k < 16; k++)
                out[4 + k] = (unsigned char)base_rng_below(r, 256);
            continue;
        }
        if (info->quantised) {
            fill_block(f, r, high, out);
            continue;
        }
        const uint16_t b = kern_f32_to_bf16(base_rng_uniform(r, low, high));
        const float x = kern_bf16_to_f32(b);
        if (f == FMT_BF16)
            memcpy(out, &b, sizeof b);
        else if (f == FMT_F16)
            put_f16(out, x);
        else
            memcpy(out, &x, sizeof x);
    }
}

/* [rows, columns] of the tensor that hub files call name; columns 1: a vector. */
static unsigned char *make(const struct writer *w, const char *name, enum format f, uint64_t rows, uint64_t columns)
{
    const size_t bytes = rows * kern_format_row_bytes(f, columns);
    unsigned char *data = malloc(bytes);
    assert_non_null(data);
    struct base_rng r;
    base_rng_init(&r, base_hash64(name, strlen(name), w->m->seed));
    float low = -0.5F, high = 0.5F;
    if (strstr(name, "norm"))
        low = 0.5F, high = 1.5F;
    else if (columns > 1)
        high = strstr(name, "embed") ? 1 : sqrtf(3 / (float)columns), low = -high;
    if (strstr(name, ".bias") && w->m->large_bias != 0 && (strstr(name, "o_proj") || strstr(name, "down_proj")))
        low = high = w->m->large_bias;
    fill(f, &r, low, high, rows * columns, data);
    return data;
}

/* ---- tensors ----------------------------------------------------------------------------------------------------------------------------------------- */

static const char *keep_name(const char *name)
{
    char *copy = strdup(name);
    assert_non_null(copy);
    return copy;
}

static void add_data(struct writer *w, const char *name, enum format f, uint64_t rows, uint64_t columns, const void *data)
{
    assert_true(w->n < MAX_TENSORS);
    w->formats[w->n] = f;
    w->tensors[w->n++] = (struct t_tensor){
        .name = keep_name(name),
        .dtype = kern_format(f)->safetensors,
        .n_dims = columns > 1 ? 2 : 1,
        .dims = {rows, columns},
        .data = data,
        .bytes = rows * kern_format_row_bytes(f, columns),
    };
}

/* Rows of each head from halves to pairs, as llama.cpp's converter does. */
static unsigned char *permute(unsigned char *data, uint64_t rows, int heads, size_t row_bytes)
{
    unsigned char *out = malloc(rows * row_bytes);
    assert_non_null(out);
    const uint64_t per_head = rows / (uint64_t)heads, half = per_head / 2;
    for (uint64_t row = 0; row < rows; row++) {
        const uint64_t head = row / per_head, i = row % per_head;
        memcpy(out + (head * per_head + (i % half) * 2 + i / half) * row_bytes, data + row * row_bytes, row_bytes);
    }
    free(data);
    return out;
}

/* what: "weight" or "bias"; heads > 0: q or k. */
static void add(struct writer *w, const char *hub, const char *gguf, const char *what, uint64_t rows, uint64_t columns, int heads)
{
    char name[128], other[128];
    snprintf(name, sizeof name, "%s.%s", hub, what);
    snprintf(other, sizeof other, "%s.%s", gguf, what);
    const enum format f = columns == 1 && w->gguf ? FMT_F32 : format_of(w->m, hub);
    unsigned char *data = make(w, name, f, rows, columns);
    if (w->gguf && heads)
        data = permute(data, rows, heads, kern_format_row_bytes(f, columns));
    add_data(w, w->gguf ? other : name, f, rows, columns, data);
}

struct part {
    const char *hub, *gguf;
    uint64_t rows;
    int heads;
};

/* Parts side by side, or one above the other in one tensor. */
static void add_parts(struct writer *w, int layer, const char *fused, const struct part *parts, int n, uint64_t columns, bool biased)
{
    char hub[64], gguf[64];
    const size_t first = w->n;
    for (int k = 0; k < 2 * n; k++) { /* weights, then biases */
        const struct part *p = &parts[k % n];
        snprintf(hub, sizeof hub, "model.layers.%d.%s", layer, p->hub);
        snprintf(gguf, sizeof gguf, "blk.%d.%s", layer, p->gguf);
        if (k < n || biased)
            add(w, hub, gguf, k < n ? "weight" : "bias", p->rows, k < n ? columns : 1, p->heads);
    }
    if (!w->m->fused || n == 1)
        return;
    struct writer joined = {.m = w->m};
    for (int k = 0; k < (biased ? 2 : 1); k++) {
        struct t_bytes b = {0};
        uint64_t rows = 0;
        for (int i = 0; i < n; i++) {
            struct t_tensor *t = &w->tensors[first + (size_t)(k * n + i)];
            t_put(&b, t->data, t->bytes);
            rows += t->dims[0];
            free((void *)(uintptr_t)t->data);
            free((void *)(uintptr_t)t->name);
        }
        snprintf(hub, sizeof hub, "model.layers.%d.%s.%s", layer, fused, k ? "bias" : "weight");
        add_data(&joined, hub, w->m->format, rows, k ? 1 : columns, b.data);
    }
    w->n = first;
    for (size_t i = 0; i < joined.n; i++, w->n++) {
        w->tensors[w->n] = joined.tensors[i];
        w->formats[w->n] = joined.formats[i];
    }
}

static void add_all(struct writer *w)
{
    const struct t_llama *m = w->m;
    const uint64_t hidden = (uint64_t)m->hidden, ffn = (uint64_t)m->ffn, q = (uint64_t)(m->heads * m->head_dim), kv = (uint64_t)(m->kv * m->head_dim);
    char hub[64], gguf[64];
    add(w, "model.embed_tokens", "token_embd", "weight", (uint64_t)m->vocab, hidden, 0);
    for (int layer = 0; layer < (m->layers ? m->layers : 2); layer++) {
        const struct part qkv[] = {{"self_attn.q_proj", "attn_q", q, m->heads}, {"self_attn.k_proj", "attn_k", kv, m->kv}, {"self_attn.v_proj", "attn_v", kv, 0}};
        const struct part o[] = {{"self_attn.o_proj", "attn_output", hidden, 0}}, down[] = {{"mlp.down_proj", "ffn_down", hidden, 0}};
        const struct part gate_up[] = {{"mlp.gate_proj", "ffn_gate", ffn, 0}, {"mlp.up_proj", "ffn_up", ffn, 0}};
        static const char *const norms[][2] = {{"input_layernorm", "attn_norm"}, {"post_attention_layernorm", "ffn_norm"}};
        for (int i = 0; i < 2; i++) {
            snprintf(hub, sizeof hub, "model.layers.%d.%s", layer, norms[i][0]);
            snprintf(gguf, sizeof gguf, "blk.%d.%s", layer, norms[i][1]);
            add(w, hub, gguf, "weight", hidden, 1, 0);
        }
        add_parts(w, layer, "self_attn.qkv_proj", qkv, 3, hidden, m->biases);
        add_parts(w, layer, NULL, o, 1, q, m->biases);
        add_parts(w, layer, "mlp.gate_up_proj", gate_up, 2, hidden, m->biases);
        add_parts(w, layer, NULL, down, 1, ffn, m->biases);
    }
    add(w, "model.norm", "output_norm", "weight", hidden, 1, 0);
    if (m->tied)
        return;
    add(w, "lm_head", "output", "weight", (uint64_t)m->vocab, hidden, 0);
    const size_t row_bytes = kern_format_row_bytes(format_of(m, "lm_head"), hidden);
    unsigned char *head = (unsigned char *)(uintptr_t)w->tensors[w->n - 1].data;
    if (m->twin != m->twin_of)
        memcpy(head + (size_t)m->twin * row_bytes, head + (size_t)m->twin_of * row_bytes, row_bytes);
}

/* ---- files --------------------------------------------------------------------------------------------------------------------------------------------- */

/* base 500000, factor 8, low 1, high 4, original context 64: as LLAMA3 in tests/golden/make_llama.py */
static void rope_freqs(const struct t_llama *m, float *out)
{
    for (int i = 0; i < m->head_dim / 2; i++) {
        const double wave = 6.283185307179586476925 * pow(500000, 2.0 * i / m->head_dim), smooth = (64 / wave - 1) / 3;
        out[i] = (float)(wave < 16 ? 1 : wave > 64 ? 8 : 1 / ((1 - smooth) / 8 + smooth));
    }
}

static const char *write_gguf(struct writer *w, const char *name)
{
    const struct t_llama *m = w->m;
    static struct t_gguf g; /* large */
    float freqs[256];
    t_gguf_str(&g, "general.architecture", "llama");
    t_gguf_u32(&g, "llama.block_count", m->layers ? (uint32_t)m->layers : 2);
    t_gguf_u32(&g, "llama.context_length", 4096);
    t_gguf_u32(&g, "llama.embedding_length", (uint32_t)m->hidden);
    t_gguf_u32(&g, "llama.feed_forward_length", (uint32_t)m->ffn);
    t_gguf_u32(&g, "llama.attention.head_count", (uint32_t)m->heads);
    t_gguf_u32(&g, "llama.attention.head_count_kv", (uint32_t)m->kv);
    t_gguf_u32(&g, "llama.attention.key_length", (uint32_t)m->head_dim);
    t_gguf_u32(&g, "llama.attention.value_length", (uint32_t)m->head_dim);
    t_gguf_u32(&g, "llama.rope.dimension_count", (uint32_t)m->head_dim);
    t_gguf_f32(&g, "llama.rope.freq_base", m->rope_llama3 ? 500000 : 10000);
    t_gguf_f32(&g, "llama.attention.layer_norm_rms_epsilon", 1e-5F);
    if (m->rope_llama3) {
        assert_true(m->head_dim <= 512);
        rope_freqs(m, freqs);
        const uint64_t n_freqs = (uint64_t)m->head_dim / 2;
        t_gguf_tensor(&g, "rope_freqs.weight", T_GGML_F32, 1, &n_freqs, freqs, n_freqs * sizeof(float));
    }
    for (size_t i = 0; i < w->n; i++) {
        const struct t_tensor *t = &w->tensors[i];
        t_gguf_tensor(&g, t->name, (uint32_t)kern_format(w->formats[i])->gguf_type, t->n_dims, t->dims, t->data, t->bytes);
    }
    if (m->scale != 0)
        t_gguf_tensor(&g, "blk.0.attn_q.scale", T_GGML_F32, 1, (const uint64_t[]){1}, &m->scale, sizeof m->scale);
    const char *path = t_path("%s.gguf", name);
    t_gguf_write(&g, path);
    return path;
}

static const char *write_safetensors(struct writer *w, const char *name)
{
    const struct t_llama *m = w->m;
    const char *dir = t_path("%s", name);
    char text[2048];
    mkdir(dir, 0755);
    const char *biases = m->biases ? "true" : "false";
    snprintf(text, sizeof text,
             "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":%d,\"num_hidden_layers\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,"
             "\"head_dim\":%d,\"intermediate_size\":%d,\"vocab_size\":%d,\"max_position_embeddings\":4096,\"rms_norm_eps\":1e-05,\"hidden_act\":\"silu\",\"attention_bias\":%s,"
             "\"mlp_bias\":%s,\"tie_word_embeddings\":%s,%s}",
             m->hidden, m->layers ? m->layers : 2, m->heads, m->kv, m->head_dim, m->ffn, m->vocab, biases, biases, m->tied ? "true" : "false",
             m->rope ? m->rope : "\"rope_theta\":10000.0");
    t_write_text(t_path("%s/config.json", name), text);
    t_safetensors(t_path("%s/model.safetensors", name), w->tensors, w->n, NULL);
    return dir;
}

const char *t_llama_write(const struct t_llama *m, const char *name)
{
    static struct writer w;
    w = (struct writer){.m = m, .gguf = is_gguf(m)};
    assert_false(w.gguf && m->fused);
    add_all(&w);
    const char *path = w.gguf ? write_gguf(&w, name) : write_safetensors(&w, name);
    for (size_t i = 0; i < w.n; i++) {
        free((void *)(uintptr_t)w.tensors[i].data);
        free((void *)(uintptr_t)w.tensors[i].name);
    }
    return path;
}
