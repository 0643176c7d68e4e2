/* What a checkpoint says about a key/value cache in FP8, under all spellings; which scales are read, when, and which are refused; that the auditor knows. */
#include "partition/cache.h"

#include <math.h>

#include "base/json.h"
#include "partition/checkpoint_priv.h"
#include "partition/plan.h"
#include "tests/t_ck.h"

/* ---- a small llama with scales beside its attention -------------------------------------------------------------------------------------------------- */

enum { N_LAYERS = 2, MAX_SCALES = 6 };

struct scale {
    int layer;
    const char *name, *dtype;
    int n_dims;
    uint64_t dims[3];
    float value;
};

#define SCALES(...) ((const struct scale[MAX_SCALES + 1]){__VA_ARGS__})

static const char *write_model(const struct scale *scales)
{
    static const struct {
        const char *name;
        uint64_t rows, columns;
    } in_layer[] = {{"input_layernorm", 48, 0},   {"post_attention_layernorm", 48, 0}, {"self_attn.q_proj", 48, 48}, {"self_attn.k_proj", 16, 48}, {"self_attn.v_proj", 16, 48},
                    {"self_attn.o_proj", 48, 48}, {"mlp.gate_proj", 64, 48},           {"mlp.up_proj", 64, 48},      {"mlp.down_proj", 48, 64}};
    static char names[64][96];
    static float values[MAX_SCALES];
    struct t_tensor t[64];
    size_t n = 0;
    unsigned char head[40 * 48 * 2];
    memset(head, 1, sizeof head); /* else it would be taken for a copy of the embedding */
    t[n++] = (struct t_tensor){.name = "model.embed_tokens.weight", .dtype = "BF16", .n_dims = 2, .dims = {40, 48}, .bytes = sizeof head};
    t[n++] = (struct t_tensor){.name = "lm_head.weight", .dtype = "BF16", .n_dims = 2, .dims = {40, 48}, .bytes = sizeof head, .data = head};
    t[n++] = (struct t_tensor){.name = "model.norm.weight", .dtype = "BF16", .n_dims = 1, .dims = {48}, .bytes = 96};
    for (int layer = 0; layer < N_LAYERS; layer++)
        for (size_t i = 0; i < sizeof in_layer / sizeof *in_layer; i++) {
            snprintf(names[n], sizeof names[n], "model.layers.%d.%s.weight", layer, in_layer[i].name);
            const uint64_t columns = in_layer[i].columns;
            t[n] = (struct t_tensor){.name = names[n], .dtype = "BF16", .n_dims = columns ? 2 : 1, .dims = {in_layer[i].rows, columns}, .bytes = in_layer[i].rows * (columns ? columns : 1) * 2};
            n++;
        }
    for (int i = 0; i < MAX_SCALES && scales[i].name; i++) {
        const struct scale *s = &scales[i];
        snprintf(names[n], sizeof names[n], "model.layers.%d.self_attn.%s", s->layer, s->name);
        uint64_t bytes = strcmp(s->dtype, "F32") == 0 ? 4 : strcmp(s->dtype, "BF16") == 0 ? 2 : 1;
        for (int d = 0; d < s->n_dims; d++)
            bytes *= s->dims[d];
        values[i] = s->value;
        t[n] = (struct t_tensor){.name = names[n], .dtype = s->dtype, .n_dims = s->n_dims, .bytes = bytes};
        memcpy(t[n].dims, s->dims, sizeof s->dims);
        t[n].data = bytes == 4 ? (const char *)&values[i] : bytes == 2 ? (const char *)&values[i] + 2 : NULL; /* BF16: the upper half */
        n++;
    }
    const char *dir = t_path("model");
    mkdir(dir, 0755);
    t_write_text(t_path("model/config.json"), "{\"model_type\":\"llama\",\"hidden_size\":48,\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":8,"
                                              "\"intermediate_size\":64,\"vocab_size\":40,\"rms_norm_eps\":1e-05,\"tie_word_embeddings\":false}");
    t_safetensors(t_path("model/model.safetensors"), t, n, NULL);
    return dir;
}

static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    (void)s, (void)m;
    return (w->rows.end - w->rows.begin) * (w->columns.end - w->columns.begin);
}
static uint64_t kv_bytes(const struct part_sizes *s, const struct part_cache *c)
{
    return (uint64_t)c->head_dim * kern_format(s->kv_format)->block_bytes;
}
static uint64_t scratch_bytes(const struct part_sizes *s, const struct part_model *m)
{
    (void)s, (void)m;
    return 64;
}
static uint64_t comm_bytes(const struct part_sizes *s, int n_ranks, uint64_t bytes)
{
    (void)s, (void)n_ranks;
    return bytes;
}

static const struct part_plan_options one_rank = {.n_ranks = 1, .max_tokens = 8, .max_rows = 4, .context = 64, .max_sequences = 1};

static enum st make_plan(const struct scale *scales, enum format format, int n_ranks, struct checkpoint **ck, struct part_model **m, struct part_plan **plan, struct err *e)
{
    const struct part_sizes sizes = {
        .matrix_bytes = matrix_bytes, .kv_block_bytes = kv_bytes, .scratch_bytes = scratch_bytes, .comm_bytes = comm_bytes, .kv_block_tokens = 16, .kv_format = format};
    struct part_plan_options o = one_rank;
    o.n_ranks = n_ranks;
    T_OK(ck_open(write_model(scales), ck, e), e);
    T_OK(part_model_create(*ck, NULL, m, e), e);
    return part_plan_create(*m, &o, &sizes, plan, e);
}

static void close_all(struct checkpoint *ck, struct part_model *m, struct part_plan *plan)
{
    part_plan_destroy(plan);
    part_model_destroy(m);
    ck_close(ck);
}

/* ---- scales that are read ------------------------------------------------------------------------------------------------------------------------------ */

#define S(layer, name, value) {layer, name, "F32", 0, {0}, value}

static const struct {
    const char *name;
    struct scale scales[MAX_SCALES];
    float k[N_LAYERS], v[N_LAYERS];
    uint64_t bytes;
} goods[] = {
    {"none", {{0}}, {1, 1}, {1, 1}, 0},
    {"ModelOpt", {S(0, "k_proj.k_scale", 0.5F), S(0, "v_proj.v_scale", 0.25F), S(1, "k_proj.k_scale", 2), S(1, "v_proj.v_scale", 3.7F)}, {0.5F, 2}, {0.25F, 3.7F}, 16},
    {"ModelOpt, fused", {S(0, "qkv_proj.k_scale", 0.5F), S(0, "qkv_proj.v_scale", 0.25F), S(1, "qkv_proj.k_scale", 2), S(1, "qkv_proj.v_scale", 4)}, {0.5F, 2}, {0.25F, 4}, 16},
    {"compressed-tensors, BF16, one number in one dimension or two",
     {{0, "k_scale", "BF16", 1, {1}, 0.5F}, {0, "v_scale", "BF16", 2, {1, 1}, 0.25F}, S(1, "k_scale", 1), S(1, "v_scale", 8)},
     {0.5F, 1},
     {0.25F, 8},
     12},
    {"AutoFP8: one for both", {S(0, "kv_scale", 0.5F), S(1, "kv_scale", 7)}, {0.5F, 7}, {0.5F, 7}, 8},
};

static void scales_are_read(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof goods / sizeof *goods; i++)
        for (int n_ranks = 1; n_ranks <= 3; n_ranks++) {
            struct checkpoint *ck;
            struct part_model *m;
            struct part_plan *plan;
            struct part_audit audit;
            struct err e = {""};
            T_OK(make_plan(goods[i].scales, FMT_E4M3, n_ranks, &ck, &m, &plan, &e), &e);
            for (int r = 0; r < n_ranks; r++)
                for (int layer = 0; layer < N_LAYERS; layer++) {
                    const struct part_cache *c = &plan->ranks[r]->caches[layer];
                    if (c->k_scale != goods[i].k[layer] || c->v_scale != goods[i].v[layer])
                        fail_msg("%s: layer %d of rank %d has %g and %g", goods[i].name, layer, r, (double)c->k_scale, (double)c->v_scale);
                }
            T_OK(part_audit_plan(plan, &audit, &e), &e);
            assert_int_equal(audit.unused_bytes, 0);
            assert_int_equal(audit.n_beside, 0);
            assert_int_equal(audit.owned_bytes, audit.checkpoint_bytes);
            /* replicas: of norms and the like, and of scales */
            close_all(ck, m, plan);
            T_OK(make_plan(goods[0].scales, FMT_E4M3, n_ranks, &ck, &m, &plan, &e), &e);
            struct part_audit without;
            T_OK(part_audit_plan(plan, &without, &e), &e);
            assert_int_equal(audit.replica_bytes - without.replica_bytes, goods[i].bytes * (uint64_t)(n_ranks - 1));
            close_all(ck, m, plan);
        }
}

/* Ranks that had other scales would not agree on the plan; a rank that has them is seen by the auditor. */
static void scales_are_in_the_digest(void **state)
{
    (void)state;
    struct checkpoint *ck;
    struct part_model *m;
    struct part_plan *plan;
    struct part_audit audit;
    struct err e = {""};
    T_OK(make_plan(goods[1].scales, FMT_E4M3, 2, &ck, &m, &plan, &e), &e);
    const struct digest before = part_plan_digest(plan);
    plan->ranks[1]->caches[1].v_scale *= 2;
    const struct digest after = part_plan_digest(plan);
    assert_memory_not_equal(&before, &after, sizeof before);
    t_expect_err_contains(ST_INVALID, part_audit_plan(plan, &audit, &e), &e, "layer 1: the cache of rank 1 has scales of 2 and 7.4, that of rank 0 2 and 3.7");
    close_all(ck, m, plan);
}

static const struct {
    const char *says;
    enum st st;
    struct scale scales[MAX_SCALES];
} bads[] = {
    {"tensor model.layers.1.self_attn.v_proj.v_scale is -0.5: a scale of keys or values is a positive number", ST_INVALID, {S(1, "v_proj.v_scale", -0.5F)}},
    {"tensor model.layers.0.self_attn.k_proj.k_scale is 0:", ST_INVALID, {S(0, "k_proj.k_scale", 0)}},
    {"tensor model.layers.0.self_attn.k_proj.k_scale is -0:", ST_INVALID, {S(0, "k_proj.k_scale", -0.0F)}},
    {"tensor model.layers.0.self_attn.k_scale is nan:", ST_INVALID, {S(0, "k_scale", NAN)}},
    {"tensor model.layers.0.self_attn.k_scale is inf:", ST_INVALID, {{0, "k_scale", "BF16", 0, {0}, INFINITY}}},
    {"tensor model.layers.0.self_attn.k_scale is 9.99995e-41:", ST_INVALID, {S(0, "k_scale", 1e-40F)}},
    {"tensor model.layers.0.self_attn.v_scale is 1e+35", ST_INVALID, {S(0, "v_scale", 1e35F)}},
    {"tensor model.layers.1.self_attn.k_scale has 2 numbers: one scale for all keys or values of a layer is supported; --kv f16 does without", ST_INVALID, {{1, "k_scale", "F32", 1, {2}, 1}}},
    {"tensor model.layers.1.self_attn.qkv_proj.v_scale has 6 numbers", ST_INVALID, {{1, "qkv_proj.v_scale", "F32", 3, {1, 2, 3}, 1}}},
    {"tensor model.layers.1.self_attn.k_scale has 0 numbers", ST_INVALID, {{1, "k_scale", "F32", 1, {0}, 1}}},
    {"tensor model.layers.1.self_attn.k_scale is F8_E8M0, which is not supported", ST_UNSUPPORTED, {{1, "k_scale", "F8_E8M0", 0, {0}, 1}}},
    {"tensors model.layers.0.self_attn.v_proj.v_scale and model.layers.0.self_attn.v_scale: two scales for one cache", ST_INVALID, {S(0, "v_proj.v_scale", 1), S(0, "v_scale", 1)}},
    {"tensors model.layers.0.self_attn.k_scale and model.layers.0.self_attn.kv_scale: two scales", ST_INVALID, {S(0, "k_scale", 1), S(0, "v_scale", 1), S(0, "kv_scale", 1)}},
};

static void scales_are_refused(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        struct checkpoint *ck;
        struct part_model *m;
        struct part_plan *plan = NULL;
        struct err e = {""};
        t_expect_err_contains(bads[i].st, make_plan(bads[i].scales, FMT_E4M3, 2, &ck, &m, &plan, &e), &e, bads[i].says);
        close_all(ck, m, plan);
        /* another cache does not look at them: they stand beside */
        struct part_audit audit;
        T_OK(make_plan(bads[i].scales, FMT_F16, 2, &ck, &m, &plan, &e), &e);
        T_OK(part_audit_plan(plan, &audit, &e), &e);
        assert_true(audit.n_beside > 0 && plan->ranks[1]->caches[0].k_scale == 1 && plan->ranks[1]->caches[1].v_scale == 1);
        close_all(ck, m, plan);
    }
}

/* Some layers only: told in a line. */
static void some_layers(void **state)
{
    (void)state;
    t_declare_warnings();
    struct checkpoint *ck;
    struct part_model *m;
    struct part_plan *plan;
    struct err e = {""};
    T_OK(make_plan(SCALES(S(1, "k_scale", 0.5F), S(1, "v_scale", 0.25F)), FMT_E4M3, 1, &ck, &m, &plan, &e), &e);
    const struct part_cache *c = plan->ranks[0]->caches;
    assert_true(c[0].k_scale == 1 && c[0].v_scale == 1 && c[1].k_scale == 0.5F && c[1].v_scale == 0.25F);
    close_all(ck, m, plan);
}

/* ---- what is declared ----------------------------------------------------------------------------------------------------------------------------------- */

static enum st declared(const char *config, const char *beside, bool *fp8, struct err *e)
{
    struct checkpoint *ck;
    static const unsigned char empty[10] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    json_t *root;
    T_OK(ck_open_memory(CK_SAFETENSORS, empty, sizeof empty, &ck, e), e);
    if (beside)
        T_OK(ck_put_json(ck, "hf_quant_config.json", beside, strlen(beside), e), e);
    T_OK(base_json_parse("config.json", config, strlen(config), &root, e), e);
    const enum st st = part_cache_declared(ck, root, fp8, e);
    json_decref(root);
    ck_close(ck);
    return st;
}

#define Q(text) "{\"quantization_config\":{" text "}}"
#define SCHEME(text) Q("\"kv_cache_scheme\":" text)
#define BESIDE(text) "{\"quantization\":{" text "}}"

static const struct {
    const char *config, *beside;
    bool fp8;
} says[] = {
    {"{}", NULL, false},
    {"{\"quantization_config\":null}", NULL, false},
    {Q(""), BESIDE(""), false},
    {SCHEME("null"), NULL, false},
    {SCHEME("{\"num_bits\":8,\"type\":\"float\",\"dynamic\":false}"), NULL, true},
    {SCHEME("{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"tensor\",\"symmetric\":true,\"group_size\":null}"), NULL, true},
    {"{\"compression_config\":{\"kv_cache_scheme\":{\"num_bits\":8,\"type\":\"float\",\"dynamic\":null}}}", NULL, true},
    {Q("\"kv_cache_quant_algo\":\"FP8\""), NULL, true},
    {Q("\"kv_cache_quant_algo\":null"), NULL, false},
    {"{}", BESIDE("\"quant_algo\":\"NVFP4\",\"kv_cache_quant_algo\":\"FP8\""), true},
    {"{}", BESIDE("\"kv_cache_quant_algo\":null"), false},
    {"{}", "[]", false},
    {SCHEME("null"), BESIDE("\"kv_cache_quant_algo\":\"FP8\""), true},
    /* told in a line */
    {SCHEME("{\"num_bits\":8}"), NULL, false},
    {SCHEME("{\"num_bits\":8,\"type\":\"int\"}"), NULL, false},
    {SCHEME("{\"num_bits\":4,\"type\":\"float\"}"), NULL, false},
    {SCHEME("{\"num_bits\":8,\"type\":\"float\",\"dynamic\":true}"), NULL, false},
    {SCHEME("{\"num_bits\":8,\"type\":\"float\",\"dynamic\":\"local\"}"), NULL, false},
    {"{}", BESIDE("\"kv_cache_quant_algo\":\"NVFP4\""), false},
};

static void declarations(void **state)
{
    (void)state;
    t_declare_warnings();
    for (size_t i = 0; i < sizeof says / sizeof *says; i++) {
        bool fp8 = !says[i].fp8;
        struct err e = {""};
        T_OK(declared(says[i].config, says[i].beside, &fp8, &e), &e);
        if (fp8 != says[i].fp8)
            fail_msg("%s and %s", says[i].config, says[i].beside ? says[i].beside : "nothing beside it");
    }
    bool fp8;
    struct err e = {""};
    t_expect_err_contains(ST_INVALID, declared(SCHEME("7"), NULL, &fp8, &e), &e, "quantization_config: kv_cache_scheme is not an object");
    t_expect_err_contains(ST_INVALID, declared(SCHEME("{\"num_bits\":\"8\"}"), NULL, &fp8, &e), &e, "num_bits");
    t_expect_err_contains(ST_INVALID, declared(SCHEME("{\"num_bits\":8,\"type\":8}"), NULL, &fp8, &e), &e, "type");
    t_expect_err_contains(ST_INVALID, declared("{}", BESIDE("\"kv_cache_quant_algo\":8"), &fp8, &e), &e, "hf_quant_config.json: quantization: kv_cache_quant_algo");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scales_are_read), cmocka_unit_test(scales_are_in_the_digest), cmocka_unit_test(scales_are_refused),
        cmocka_unit_test(some_layers),     cmocka_unit_test(declarations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
