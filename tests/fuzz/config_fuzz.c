/* Configurations: a GGUF file as it is, or, where the input begins with '{', a config.json beside tensors that fit a small llama. A NUL begins generation_config.json. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "partition/config.h"
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char tensors[] = "{\"model.embed_tokens.weight\":{\"dtype\":\"F16\",\"shape\":[5,8],\"data_offsets\":[0,80]},"
                              "\"model.layers.0.self_attn.q_proj.weight\":{\"dtype\":\"F16\",\"shape\":[8,8],\"data_offsets\":[80,208]},"
                              "\"model.layers.0.self_attn.k_proj.weight\":{\"dtype\":\"F16\",\"shape\":[4,8],\"data_offsets\":[208,272]},"
                              "\"model.layers.0.mlp.gate_proj.bias\":{\"dtype\":\"F16\",\"shape\":[8],\"data_offsets\":[272,288]},"
                              "\"lm_head.weight\":{\"dtype\":\"F16\",\"shape\":[5,8],\"data_offsets\":[288,368]}}";

static void check_config(const struct model_config *c) {
    BASE_ASSERT(c->family && c->name && c->rope.frequency);
    BASE_ASSERT(c->n_layers > 0 && c->hidden > 0 && c->n_heads > 0 && c->n_kv_heads > 0 && c->n_heads % c->n_kv_heads == 0 && c->head_dim > 0 &&
                c->ffn > 0 && c->vocab > 0);
    BASE_ASSERT((int64_t)c->n_heads * c->head_dim <= INT32_MAX);
    BASE_ASSERT(c->norm_eps > 0 && c->attention_scale > 0 && isfinite(c->attention_scale));
    BASE_ASSERT(c->rope.rotary_dim >= 2 && c->rope.rotary_dim % 2 == 0 && c->rope.rotary_dim <= c->head_dim);
    for (int i = 0; i < c->rope.rotary_dim / 2; i++) BASE_ASSERT(isfinite(c->rope.frequency[i]));
    BASE_ASSERT(c->opening_token >= -1 && c->opening_token < c->vocab && c->n_ends >= 0 && c->n_ends <= 16);
    for (int i = 0; i < c->n_ends; i++) BASE_ASSERT(c->ends[i] >= 0 && c->ends[i] < c->vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static bool quiet;
    if (!quiet) base_log_init("error");
    quiet = true;

    struct checkpoint *ck;
    unsigned char image[8 + sizeof tensors - 1 + 368];
    if (bytes && data[0] == '{') {
        memset(image, 0, sizeof image);
        image[0] = (sizeof tensors - 1) & 255;
        image[1] = (sizeof tensors - 1) >> 8;
        memcpy(image + 8, tensors, sizeof tensors - 1);
        if (!fuzz_open(CK_SAFETENSORS, image, sizeof image, &ck)) abort();
        const uint8_t *second = memchr(data, 0, bytes);
        size_t first_bytes = second ? (size_t)(second - data) : bytes;
        if (ck_put_json(ck, "config.json", (const char *)data, first_bytes, NULL) != ST_OK ||
            (second && ck_put_json(ck, "generation_config.json", (const char *)second + 1, bytes - first_bytes - 1, NULL) != ST_OK)) {
            ck_close(ck);
            return 0;
        }
    } else if (!fuzz_open(CK_GGUF, data, bytes, &ck)) {
        return 0;
    }
    struct arena arena;
    struct model_config c;
    struct err e = {0};
    BASE_ASSERT(base_arena_init(&arena, "fuzz", 0, NULL) == ST_OK);
    enum st st = part_config_read(ck, &arena, &c, &e);
    if (st == ST_OK)
        check_config(&c);
    else
        BASE_ASSERT(e.text[0]);
    base_arena_release(&arena);
    ck_close(ck);
    return 0;
}
