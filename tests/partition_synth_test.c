/* Presets and the lists of tensors made of them: against the models' published sizes, and against what transformers saves (tests/golden/make_presets.py). */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/log.h"
#include "partition/synth.h"
#include "tests/t.h"

static struct synth_plan *make(const char *name, enum preset_format format, int n_layers, int n_experts)
{
    const struct synth_options o = {.preset = preset_find(name), .format = format, .n_layers = n_layers, .n_experts = n_experts, .max_file_bytes = 5000000000u};
    struct synth_plan *p = NULL;
    struct err e = {""};
    assert_non_null(o.preset);
    T_OK(synth_plan_create(&o, &p, &e), &e);
    return p;
}

static const struct out_tensor *find(const struct synth_plan *p, const char *name)
{
    for (size_t i = 0; i < p->n_targets; i++)
        if (strcmp(p->targets[i].name, name) == 0)
            return &p->targets[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* Billions of weights of the whole models, as their publishers and transformers count them; the same however they are stored. */
static void totals(void **state)
{
    (void)state;
    static const struct {
        const char *name, *billions;
    } models[] = {{"llama-3.1-8b", "8.030"},     {"llama-3.1-70b", "70.554"},    {"llama-3.1-405b", "405.853"}, {"mixtral-8x7b", "46.703"}, {"qwen3-30b-a3b", "30.532"},
                  {"qwen3-235b-a22b", "235.094"}, {"gpt-oss-20b", "20.915"}, {"gpt-oss-120b", "116.829"},   {"glm-4.7", "352.798"},     {"minimax-m2", "228.690"}};
    int n = 0;
    for (const struct preset *s = presets; s->name; s++, n++)
        assert_string_equal(s->name, models[n].name);
    assert_int_equal(n, sizeof models / sizeof *models);
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        struct synth_plan *p = make(models[i].name, preset_find(models[i].name)->published, 0, 0);
        char billions[32];
        snprintf(billions, sizeof billions, "%.3f", (double)p->n_weights / 1e9);
        assert_string_equal(billions, models[i].billions);
        synth_plan_destroy(p);
    }
    struct synth_plan *bf16 = make("gpt-oss-20b", PRESET_BF16, 0, 0), *mxfp4 = make("gpt-oss-20b", PRESET_MXFP4, 0, 0);
    assert_true(bf16->n_weights == mxfp4->n_weights && bf16->bytes > 2 * mxfp4->bytes);
    synth_plan_destroy(bf16);
    synth_plan_destroy(mxfp4);
}

/* 405B in NVFP4 as it is published: linear layers in 4.5 bit, embedding and head in BF16. */
static void bytes_of_405b(void **state)
{
    (void)state;
    struct synth_plan *p = make("llama-3.1-405b", PRESET_NVFP4, 0, 0);
    uint64_t bytes = 0;
    for (size_t i = 0; i < p->n_targets; i++)
        bytes += p->targets[i].bytes;
    assert_in_range(bytes, UINT64_C(234300000000), UINT64_C(234400000000));
    assert_true(p->n_files > 40 && p->index != NULL);
    synth_plan_destroy(p);
}

static void names_and_shapes(void **state)
{
    (void)state;
    json_t *root = NULL;
    struct err e = {""};
    T_OK(base_json_load("tests/golden/presets.json", 1 << 20, &root, &e), &e);
    const uint64_t vocab = (uint64_t)json_integer_value(json_object_get(root, "vocab"));
    const json_t *list = json_object_get(root, "presets");
    for (const struct preset *s = presets; s->name; s++) {
        const json_t *entry = json_object_get(list, s->name), *tensors = json_object_get(entry, "tensors");
        assert_non_null(entry);
        struct synth_plan *p = make(s->name, PRESET_BF16, (int)json_integer_value(json_object_get(entry, "layers")), (int)json_integer_value(json_object_get(entry, "experts")));
        for (size_t i = 0; i < p->n_targets; i++) {
            const struct out_tensor *t = &p->targets[i];
            const json_t *shape = json_object_get(tensors, t->name);
            if (!shape || (int)json_array_size(shape) != t->n_dims)
                fail_msg("%s: transformers has no %s of %d dimensions", s->name, t->name, t->n_dims);
            for (int d = 0; d < t->n_dims; d++) {
                const uint64_t size = (uint64_t)json_integer_value(json_array_get(shape, (size_t)d));
                if (size != t->dims[d] && !(size == vocab && t->dims[d] == (uint64_t)s->vocab))
                    fail_msg("%s: %s: dimension %d is %llu, transformers' is %llu", s->name, t->name, d, (unsigned long long)t->dims[d], (unsigned long long)size);
            }
        }
        assert_int_equal(p->n_targets, json_object_size(tensors));
        synth_plan_destroy(p);
    }
    json_decref(root);
}

static void is(const struct synth_plan *p, const char *name, const char *dtype, int n_dims, uint64_t a, uint64_t b)
{
    const struct out_tensor *t = find(p, name);
    assert_string_equal(t->dtype, dtype);
    assert_int_equal(t->n_dims, n_dims);
    assert_true(n_dims < 1 || t->dims[0] == a);
    assert_true(n_dims < 2 || t->dims[1] == b);
}

static void quantised_spellings(void **state)
{
    (void)state;
    struct synth_plan *p = make("llama-3.1-8b", PRESET_NVFP4, 1, 0);
    is(p, "model.layers.0.mlp.down_proj.weight", "U8", 2, 4096, 7168);
    is(p, "model.layers.0.mlp.down_proj.weight_scale", "F8_E4M3", 2, 4096, 896);
    is(p, "model.layers.0.mlp.down_proj.weight_scale_2", "F32", 0, 0, 0);
    is(p, "model.layers.0.mlp.down_proj.input_scale", "F32", 0, 0, 0);
    is(p, "model.layers.0.self_attn.k_proj.k_scale", "F32", 0, 0, 0);
    is(p, "lm_head.weight", "BF16", 2, 128256, 4096);
    assert_non_null(strstr(p->quant_config, "\"quant_algo\": \"NVFP4\""));
    assert_null(p->index);
    synth_plan_destroy(p);

    p = make("llama-3.1-8b", PRESET_FP8, 1, 0);
    is(p, "model.layers.0.mlp.up_proj.weight", "F8_E4M3", 2, 14336, 4096);
    is(p, "model.layers.0.mlp.up_proj.weight_scale", "F32", 0, 0, 0);
    synth_plan_destroy(p);

    p = make("minimax-m2", PRESET_FP8, 1, 2);
    is(p, "model.layers.0.block_sparse_moe.experts.1.w2.weight", "F8_E4M3", 2, 3072, 1536);
    is(p, "model.layers.0.block_sparse_moe.experts.1.w2.weight_scale_inv", "F32", 2, 24, 12);
    is(p, "model.layers.0.block_sparse_moe.gate.weight", "BF16", 2, 2, 3072);
    is(p, "model.layers.0.block_sparse_moe.e_score_correction_bias", "F32", 1, 2, 0);
    assert_non_null(strstr(p->config, "\"quant_method\": \"fp8\""));
    assert_non_null(strstr(p->config, "model.layers.0.block_sparse_moe.gate"));
    assert_null(p->quant_config);
    synth_plan_destroy(p);

    p = make("glm-4.7", PRESET_FP8, 4, 2);
    is(p, "model.layers.3.mlp.shared_experts.down_proj.weight_scale", "BF16", 2, 5120, 1);
    is(p, "model.layers.2.mlp.gate_proj.weight", "F8_E4M3", 2, 12288, 5120);
    assert_non_null(strstr(p->config, "compressed-tensors"));
    synth_plan_destroy(p);

    p = make("gpt-oss-20b", PRESET_MXFP4, 2, 3);
    is(p, "model.layers.1.mlp.experts.gate_up_proj_blocks", "U8", 4, 3, 5760);
    is(p, "model.layers.1.mlp.experts.down_proj_scales", "U8", 3, 3, 2880);
    is(p, "model.layers.1.self_attn.q_proj.weight", "BF16", 2, 4096, 2880);
    assert_non_null(strstr(p->config, "\"sliding_attention\",\n    \"full_attention\"\n"));
    synth_plan_destroy(p);
}

static void refusals(void **state)
{
    (void)state;
    static const struct {
        struct synth_options o;
        const char *name, *part;
    } cases[] = {
        {{.format = PRESET_MXFP4}, "llama-3.1-8b", "not made in mxfp4"}, {{.format = PRESET_NVFP4}, "gpt-oss-20b", "its own format is mxfp4"},
        {{.n_layers = 33}, "llama-3.1-8b", "has 32 layers, not 33"},     {{.n_experts = 2}, "llama-3.1-8b", "has no experts"},
        {{.n_experts = 9}, "mixtral-8x7b", "has 8 experts, not 9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct synth_options o = cases[i].o;
        o.preset = preset_find(cases[i].name);
        struct synth_plan *p = NULL;
        struct err e = {""};
        t_expect_err_contains(ST_INVALID, synth_plan_create(&o, &p, &e), &e, cases[i].part);
        assert_null(p);
    }
    assert_null(preset_find("llama-3.1-8B"));
}

int main(void)
{
    base_log_init(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(totals), cmocka_unit_test(bytes_of_405b), cmocka_unit_test(names_and_shapes), cmocka_unit_test(quantised_spellings), cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
