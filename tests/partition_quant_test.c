/* Which tensors make a matrix, by names, types and shapes; what is refused, and how; what the configuration says, and what is told where it is wrong. Headers only: data are holes. */
#include "partition/quant.h"

#include "base/json.h"
#include "partition/plan.h"
#include "tests/t_ck.h"

/* ---- a small llama of which one matrix, down [64, 128], is stored as a case has it ---------------------------------------------------------------------- */

#define MAX_PARTS_OF_CASE 6
#define MODULE "model.layers.0.mlp.down_proj."

struct part_of {
    const char *what, *dtype;
    int n_dims;
    uint64_t dims[4];
    const void *data;
};

static uint64_t bytes_of(const char *dtype, int n_dims, const uint64_t *dims)
{
    uint64_t n = strstr(dtype, "64") ? 8 : strstr(dtype, "32") ? 4 : strstr(dtype, "16") ? 2 : 1;
    for (int d = 0; d < n_dims; d++)
        n *= dims[d];
    return n;
}

static void add(struct t_tensor *t, size_t *n, const char *name, const char *dtype, int n_dims, const uint64_t *dims, const void *data)
{
    t[*n] = (struct t_tensor){.name = name, .dtype = dtype, .n_dims = n_dims, .data = data, .bytes = bytes_of(dtype, n_dims, dims)};
    memcpy(t[*n].dims, dims, (size_t)n_dims * sizeof *dims);
    ++*n;
}

static const char *write_model(const char *config, const struct part_of *parts)
{
    static const struct {
        const char *name;
        uint64_t rows, columns;
    } plain[] = {{"model.embed_tokens.weight", 40, 64},
                 {"lm_head.weight", 40, 64},
                 {"model.norm.weight", 64, 0},
                 {"model.layers.0.input_layernorm.weight", 64, 0},
                 {"model.layers.0.post_attention_layernorm.weight", 64, 0},
                 {"model.layers.0.self_attn.q_proj.weight", 64, 64},
                 {"model.layers.0.self_attn.k_proj.weight", 32, 64},
                 {"model.layers.0.self_attn.v_proj.weight", 32, 64},
                 {"model.layers.0.self_attn.o_proj.weight", 64, 64},
                 {"model.layers.0.mlp.gate_proj.weight", 128, 64},
                 {"model.layers.0.mlp.up_proj.weight", 128, 64}};
    static char names[MAX_PARTS_OF_CASE][96];
    struct t_tensor t[32];
    size_t n = 0;
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        add(t, &n, plain[i].name, "BF16", plain[i].columns ? 2 : 1, (const uint64_t[]){plain[i].rows, plain[i].columns}, NULL);
    t[1].data = memset(malloc(t[1].bytes), 1, t[1].bytes); /* else the head would be taken for a copy of the embedding */
    for (int i = 0; i < MAX_PARTS_OF_CASE && parts[i].what; i++) {
        snprintf(names[i], sizeof names[i], MODULE "%s", parts[i].what);
        add(t, &n, names[i], parts[i].dtype, parts[i].n_dims, parts[i].dims, parts[i].data);
    }
    char text[4096];
    const char *dir = t_path("model");
    mkdir(dir, 0755);
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"hidden_size\":64,\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"head_dim\":32,\"intermediate_size\":128,"
             "\"vocab_size\":40,\"rms_norm_eps\":1e-05,\"tie_word_embeddings\":false%s}",
             config);
    t_write_text(t_path("model/config.json"), text);
    t_safetensors(t_path("model/model.safetensors"), t, n, NULL);
    free((void *)(uintptr_t)t[1].data);
    return dir;
}

#define PARTS(...) ((const struct part_of[MAX_PARTS_OF_CASE + 1]){__VA_ARGS__})
#define T(what, dtype, ...) {what, dtype, (int)(sizeof((const uint64_t[]){__VA_ARGS__}) / 8), {__VA_ARGS__}, NULL}
#define ONE(what, dtype) {what, dtype, 0, {0}, NULL}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------------------------ */

static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    (void)s, (void)m;
    return (w->rows.end - w->rows.begin) * (w->columns.end - w->columns.begin);
}
static uint64_t kv_bytes(const struct part_sizes *s, const struct part_cache *c)
{
    (void)s;
    return c->head_dim;
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
static const struct part_sizes sizes = {.matrix_bytes = matrix_bytes, .kv_block_bytes = kv_bytes, .scratch_bytes = scratch_bytes, .comm_bytes = comm_bytes, .kv_block_tokens = 16};

/* ---- what is read ------------------------------------------------------------------------------------------------------------------------------------------ */

static const struct good {
    const char *name;
    enum format format;
    uint32_t scale_columns, n_sources;
    struct part_of parts[MAX_PARTS_OF_CASE + 1];
} goods[] = {
    {"NVFP4 of ModelOpt", FMT_NVFP4, 0, 3, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), ONE("input_scale", "F32"), ONE("k_scale", "F32")}},
    {"NVFP4 of ModelOpt", FMT_NVFP4, 0, 3, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 4), ONE("weight_scale_2", "F32")}},
    {"NVFP4 of ModelOpt", FMT_NVFP4, 0, 3, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), T("pre_quant_scale", "BF16", 128)}},
    {"NVFP4 of compressed-tensors", FMT_NVFP4, 0, 3, {T("weight_packed", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), T("weight_global_scale", "F32", 1), T("input_global_scale", "F32", 1)}},
    {"MXFP4 of compressed-tensors", FMT_MXFP4, 0, 2, {T("weight_packed", "U8", 64, 64), T("weight_scale", "U8", 64, 4)}},
    {"MXFP4 of compressed-tensors", FMT_MXFP4, 0, 2, {T("weight_packed", "U8", 64, 64), T("weight_scale", "F8_E8M0", 64, 4)}},
    {"MXFP4 of ModelOpt", FMT_MXFP4, 0, 2, {T("weight", "U8", 64, 64), T("weight_scale", "U8", 64, 4)}},
    {"MXFP4 of DeepSeek", FMT_MXFP4, 0, 2, {T("weight", "I8", 64, 64), T("scale", "F8_E8M0", 64, 4)}},
    {"FP8 in blocks of 128 × 128", FMT_FP8, 128, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale_inv", "F32", 1, 1)}},
    {"FP8 in blocks of 128 × 128", FMT_FP8, 128, 2, {T("weight", "F8_E4M3", 64, 128), T("scale", "F8_E8M0", 1, 1)}},
    {"FP8 in blocks of 128 × 128", FMT_FP8, 128, 2, {{"weight", "F8_E4M3", 2, {64, 128}, NULL}, {"weight_scale_inv", "BF16", 4, {1, 1, 1, 1}, NULL}}},
    {"FP8 with one scale", FMT_FP8, 128, 2, {T("weight", "F8_E4M3", 64, 128), ONE("weight_scale", "F32"), ONE("input_scale", "F32")}},
    {"FP8 with one scale", FMT_FP8, 128, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "BF16", 1)}},
    {"FP8 with a scale for each row", FMT_FP8, 128, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "F16", 64, 1)}},
    {"FP8 with scales for groups of columns", FMT_FP8, 64, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "F32", 64, 2)}},
    {"MXFP8", FMT_FP8, 32, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "U8", 64, 4)}},
    {"MXFP8", FMT_FP8, 32, 2, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "F8_E8M0", 64, 4)}},
    {"INT4, packed", FMT_INT4, 32, 2, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 4), T("weight_shape", "I64", 2)}},
    {"INT4 with zero points, packed", FMT_INT4_ZERO, 64, 3, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 2), T("weight_zero_point", "I32", 8, 2), T("weight_shape", "I64", 2)}},
    {"INT4 with zero points, packed", FMT_INT4_ZERO, 64, 3, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 2), T("weight_zero_point", "I8", 64, 2)}},
    {"INT4 with zero points, packed", FMT_INT4_ZERO, 128, 3, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 1), T("weight_zero_point", "I8", 1)}},
    {"INT4 of ModelOpt", FMT_INT4, 32, 2, {T("weight", "U8", 32, 128), T("weight_scale", "F32", 64, 4)}},
    {"INT4 of ModelOpt", FMT_INT4, 128, 2, {T("weight", "U8", 32, 128), T("weight_scale", "BF16", 64, 1)}},
    {"INT8, packed", FMT_INT8, 128, 2, {T("weight_packed", "I32", 64, 32), T("weight_scale", "F32", 64, 1), T("weight_shape", "I64", 2)}},
    {"INT8", FMT_INT8, 128, 2, {T("weight", "I8", 64, 128), T("weight_scale", "F32", 64)}},
    {"INT8 with zero points", FMT_INT8_ZERO, 128, 3, {T("weight", "I8", 64, 128), T("weight_scale", "F32", 64, 1), T("weight_zero_point", "I8", 64, 1)}},
    {"INT4 of GPTQ", FMT_INT4_ZERO, 32, 3, {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 8), T("scales", "F16", 4, 64)}},
    {"INT8 of GPTQ", FMT_INT8_ZERO, 128, 3, {T("qweight", "I32", 32, 64), T("qzeros", "I32", 1, 16), T("scales", "F16", 1, 64), T("g_idx", "I32", 128)}},
    {"INT4 of AWQ", FMT_INT4_ZERO, 64, 3, {T("qweight", "I32", 128, 8), T("qzeros", "I32", 2, 8), T("scales", "F16", 2, 64)}},
};

/* One number of one slice of a rank's plan is wrong: the digest sees it, and the auditor refuses it. */
static void tamper(struct part_plan *plan, int rank, int i_weight, uint32_t k)
{
    struct part_slice *s = &plan->ranks[rank]->weights[i_weight].slices[k];
    const struct digest before = part_plan_digest(plan);
    for (int i = 0; i < 8; i++) {
        const struct part_slice kept = *s;
        struct part_audit a;
        struct err e = {""};
        switch (i) {
        case 0: s->file++; break;
        case 1: s->offset += plan->whole->weights[i_weight].scheme->sources[k].element_bytes; break;
        case 2: s->offset--; break;
        case 3: s->count[0]++; break;
        case 4: s->stride[0]++; break;
        case 5: s->run_bytes++; break;
        case 6: s->first_row++; break;
        default: s->first_column++; break;
        }
        const struct digest now = part_plan_digest(plan);
        if (memcmp(&now, &before, sizeof now) == 0 || part_audit_plan(plan, &a, &e) == ST_OK)
            fail_msg("%s, rank %d, source %d: change %d is not seen", plan->whole->weights[i_weight].scheme->name, rank, (int)k, i);
        assert_non_null(strstr(e.text, MODULE));
        *s = kept;
    }
}

static void schemes_by_tensors(void **state)
{
    (void)state;
    t_declare_warnings(); /* no configuration speaks of these */
    for (size_t i = 0; i < sizeof goods / sizeof *goods; i++) {
        const struct good *g = &goods[i];
        struct checkpoint *ck;
        struct part_model *m;
        struct err e = {""};
        T_OK(ck_open(write_model("", g->parts), &ck, &e), &e);
        T_OK(part_model_create(ck, NULL, &m, &e), &e);
        const struct part_weight *down = NULL;
        for (int k = 0; k < m->n_weights; k++)
            if (strstr(m->weights[k].name, MODULE))
                down = &m->weights[k];
        assert_non_null(down);
        assert_string_equal(down->scheme->name, g->name);
        assert_int_equal(down->scheme->format, g->format);
        assert_int_equal(down->scheme->scale_columns, g->scale_columns);
        assert_int_equal(down->scheme->n_sources, g->n_sources);
        static const uint32_t shares[][4] = {{1}, {1, 1}, {5, 3}, {1, 1, 1}, {0, 2, 1}, {1, 2, 3, 4}};
        static const int ranks[] = {1, 2, 2, 3, 3, 4};
        for (int k = 0; k < 6; k++) {
            const struct part_plan_options o = {.n_ranks = ranks[k], .shares = shares[k], .max_tokens = 8, .max_rows = 4, .context = 64, .max_sequences = 1};
            struct part_plan *plan;
            struct part_audit a;
            T_OK(part_plan_create(m, &o, &sizes, &plan, &e), &e);
            T_OK(part_audit_plan(plan, &a, &e), &e);
            assert_int_equal(a.owned_bytes + a.unused_bytes, a.checkpoint_bytes);
            assert_int_equal(a.n_unused, 0);
            for (uint32_t j = 0; k == 2 && j < g->n_sources; j++) {
                tamper(plan, 0, (int)(down - m->weights), j);
                tamper(plan, 1, (int)(down - m->weights), j);
            }
            part_plan_destroy(plan);
        }
        part_model_destroy(m);
        ck_close(ck);
    }
}

/* ---- what is refused ----------------------------------------------------------------------------------------------------------------------------------------- */

static const struct bad {
    const char *says;
    enum st st;
    struct part_of parts[MAX_PARTS_OF_CASE + 1];
} bads[] = {
    {"down_proj.weight_scale is missing beside model.layers.0.mlp.down_proj.weight", ST_INVALID, {T("weight", "U8", 64, 64)}},
    {"down_proj.weight_scale_2 is missing", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8)}},
    {"down_proj.weight_global_scale is missing", ST_INVALID, {T("weight_packed", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8)}},
    {"weight_scale_inv (or scale, or weight_scale) is missing", ST_INVALID, {T("weight", "F8_E4M3", 64, 128)}},
    {"down_proj.weight_scale is missing", ST_INVALID, {T("weight", "I8", 64, 128)}},
    {"down_proj.scale is F32 where F8_E8M0 is expected", ST_INVALID, {T("weight", "I8", 64, 64), T("scale", "F32", 64, 4)}},
    {"down_proj.scale has shape [64, 2], a matrix [64, 128] asks for [64, 4]", ST_INVALID, {T("weight", "I8", 64, 64), T("scale", "F8_E8M0", 64, 2)}},
    {"down_proj.weight_scale is missing", ST_INVALID, {T("weight_packed", "I32", 64, 16)}},
    {"down_proj.scales is missing", ST_INVALID, {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 8)}},
    {"down_proj.qzeros is missing", ST_INVALID, {T("qweight", "I32", 16, 64), T("scales", "F16", 4, 64)}},
    {"two conventions at once", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), ONE("weight_global_scale", "F32")}},
    {"two conventions at once", ST_INVALID, {T("weight", "F8_E4M3", 64, 128), T("weight_scale_inv", "F32", 1, 1), ONE("weight_scale", "F32")}},
    {"two conventions at once", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_packed", "U8", 64, 64), T("weight_scale", "U8", 64, 4)}},
    {"two conventions at once", ST_INVALID, {T("weight_packed", "U8", 64, 64), T("weight_scale", "U8", 64, 4), ONE("weight_scale_2", "F32")}},
    {"two conventions at once", ST_INVALID, {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 8), T("scales", "F16", 4, 64), T("weight_scale", "F16", 4, 64)}},
    {"weight_scale is F64 where F8_E4M3 (NVFP4), U8 or F8_E8M0 (MXFP4), or F32, BF16 or F16 (INT4) is expected", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F64", 64, 8)}},
    {"weight_scale_2 is BF16 where F32 is expected", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "BF16")}},
    {"weight_scale_2 has shape [2], a matrix [64, 128] asks for one number", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), T("weight_scale_2", "F32", 2)}},
    {"weight_scale has shape [64, 2], a matrix [64, 128] asks for [64, 8]", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 2), ONE("weight_scale_2", "F32")}},
    {"weight has shape [64, 128], a matrix [64, 128] asks for [64, 64]", ST_INVALID, {T("weight", "U8", 64, 128), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32")}},
    {"weight_scale has shape [64, 8], a matrix [64, 128] asks for [64, 4]", ST_INVALID, {T("weight_packed", "U8", 64, 64), T("weight_scale", "U8", 64, 8)}},
    {"weight_scale_inv has shape [64, 1], a matrix [64, 128] asks for [1, 1]", ST_INVALID, {T("weight", "F8_E4M3", 64, 128), T("weight_scale_inv", "F32", 64, 1)}},
    {"weight_scale_inv is I32 where F32, BF16, F16 or F8_E8M0 is expected", ST_INVALID, {T("weight", "F8_E4M3", 64, 128), T("weight_scale_inv", "I32", 1, 1)}},
    {"weight_scale has shape [64, 2], a matrix [64, 128] asks for [64, 4]", ST_INVALID, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "U8", 64, 2)}},
    {"groups of 16 columns are not supported", ST_UNSUPPORTED, {T("weight", "F8_E4M3", 64, 128), T("weight_scale", "F32", 64, 8)}},
    {"weight has shape [128, 64], a matrix [64, 128] asks for [64, 128]", ST_INVALID, {T("weight", "F8_E4M3", 128, 64), ONE("weight_scale", "F32")}},
    {"3 scales a row do not divide 128 columns evenly", ST_INVALID, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 3)}},
    {"groups of 16 columns are not supported: multiples of 32 are", ST_UNSUPPORTED, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 8)}},
    {"packed numbers of 3 bits are not supported: 4 and 8 are", ST_UNSUPPORTED, {T("weight_packed", "I32", 64, 12), T("weight_scale", "BF16", 64, 1)}},
    {"weight_packed has shape [64, 17]", ST_INVALID, {T("weight_packed", "I32", 64, 17), T("weight_scale", "BF16", 64, 1)}},
    {"weight_packed is F32 where U8 or I32 is expected", ST_INVALID, {T("weight_packed", "F32", 64, 16), T("weight_scale", "BF16", 64, 1)}},
    {"weight_zero_point has shape [64, 1], a matrix [64, 128] asks for [8, 1]", ST_INVALID, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 1), T("weight_zero_point", "I32", 64, 1)}},
    {"weight_zero_point is U8 where I32 or I8 is expected", ST_INVALID, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 1), T("weight_zero_point", "U8", 64, 1)}},
    {"weight_zero_point is I32 where one I8 is expected", ST_INVALID, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 1), T("weight_zero_point", "I32", 1)}},
    {"weight_zero_point has shape [64, 2]", ST_INVALID, {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 1), T("weight_zero_point", "I8", 64, 2)}},
    {"weight_zero_point has shape [64, 2]", ST_INVALID, {T("weight", "I8", 64, 128), T("weight_scale", "F32", 64, 1), T("weight_zero_point", "I8", 64, 2)}},
    {"qweight has shape [16, 63]", ST_INVALID, {T("qweight", "I32", 16, 63), T("qzeros", "I32", 4, 8), T("scales", "F16", 4, 64)}},
    {"qzeros has shape [4, 9]", ST_INVALID, {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 9), T("scales", "F16", 4, 64)}},
    {"AWQ of 8 bits is not supported", ST_UNSUPPORTED, {T("qweight", "I32", 128, 16), T("qzeros", "I32", 4, 16), T("scales", "F16", 4, 64)}},
    {"g_idx has shape [64]", ST_INVALID, {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 8), T("scales", "F16", 4, 64), T("g_idx", "I32", 64)}},
    {"two conventions at once", ST_INVALID, {T("weight", "U8", 32, 128), T("weight_scale", "F32", 64, 1), ONE("weight_scale_2", "F32")}},
    {"asks for [32, 128]", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F32", 64, 1)}},
    {"no known scheme has a tensor 'what'", ST_UNSUPPORTED, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), ONE("what", "F32")}},
    {"pre_quant_scale: one plain number for each of 128 columns", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), T("pre_quant_scale", "BF16", 64)}},
    {"pre_quant_scale: one plain number for each of 128 columns", ST_INVALID, {T("weight", "U8", 64, 64), T("weight_scale", "F8_E4M3", 64, 8), ONE("weight_scale_2", "F32"), T("pre_quant_scale", "I8", 128)}},
    {"type I64 is not supported yet", ST_UNSUPPORTED, {T("weight", "I64", 64, 128)}},
    {"type F8_E5M2 is not supported yet", ST_UNSUPPORTED, {T("weight", "F8_E5M2", 64, 128)}},
};

static void refusals_by_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bads / sizeof *bads; i++) {
        struct checkpoint *ck;
        struct part_model *m;
        struct err e = {""};
        T_OK(ck_open(write_model("", bads[i].parts), &ck, &e), &e);
        t_expect_err_contains(bads[i].st, part_model_create(ck, NULL, &m, &e), &e, bads[i].says);
        assert_non_null(strstr(e.text, MODULE));
        ck_close(ck);
    }
}

/* ---- experts that share a tensor (their numbers: runtime_load_test) --------------------------------------------------------------------------------------------- */

static void views_that_do_not_fit(void **state)
{
    (void)state;
    enum { E = 2, ROWS = 4, COLUMNS = 64 };
    const struct quant_view every_other = {.plane = 1, .n_planes = E, .phase = 1, .step = 2}, plane = {.plane = 1, .n_planes = E};
    static const struct part_of good[] = {T("e_blocks", "U8", E, 2 * ROWS, 2, 16), T("e_scales", "U8", E, 2 * ROWS, 2)};
    const struct {
        const char *says;
        enum st st;
        struct part_of parts[2];
        const struct quant_view *view;
        uint64_t columns;
    } cases[] = {
        {NULL, ST_OK, {good[0], good[1]}, &every_other, COLUMNS},
        {NULL, ST_OK, {good[0], T("e_scales", "F8_E8M0", E, 2 * ROWS, 2)}, &every_other, COLUMNS},
        {"e_scales is missing beside e_blocks", ST_INVALID, {good[0], T("f_scales", "U8", E, 2 * ROWS, 2)}, &every_other, COLUMNS},
        {"e_blocks is I32 where U8 is expected", ST_INVALID, {T("e_blocks", "I32", E, 2 * ROWS, 2, 16), good[1]}, &every_other, COLUMNS},
        {"e_scales is F8_E4M3 where U8 or F8_E8M0 is expected", ST_INVALID, {good[0], T("e_scales", "F8_E4M3", E, 2 * ROWS, 2)}, &every_other, COLUMNS},
        {"e_blocks has shape [2, 8, 2, 16], a matrix [4, 64] asks for [experts, rows, columns / 32, 16]", ST_INVALID, {good[0], good[1]}, &plane, COLUMNS},
        {"e_scales has shape [2, 8, 1], a matrix [4, 64] asks for [experts, rows, columns / 32]", ST_INVALID, {good[0], T("e_scales", "U8", E, 2 * ROWS, 1)}, &every_other, COLUMNS},
        {"48 columns are no multiple of the group of 32", ST_INVALID, {good[0], good[1]}, &every_other, 48},
        {"several matrices in one tensor are not supported in this format yet", ST_UNSUPPORTED, {T("e.weight", "F8_E4M3", E, ROWS, COLUMNS), T("e.weight_scale", "F32", E)}, &plane, COLUMNS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct t_tensor t[2];
        size_t n = 0;
        struct checkpoint *ck;
        struct arena arena = {0};
        const struct quant_scheme *s;
        struct err e = {""};
        for (int k = 0; k < 2; k++)
            add(t, &n, cases[i].parts[k].what, cases[i].parts[k].dtype, cases[i].parts[k].n_dims, cases[i].parts[k].dims, NULL);
        t_safetensors(t_path("e.safetensors"), t, n, NULL);
        T_OK(ck_open(t_path("e.safetensors"), &ck, &e), &e);
        T_OK(base_arena_init(&arena, "test", 0, &e), &e);
        const enum st st = quant_scheme_of(ck, NULL, quant_codes(ck, "e"), ROWS, cases[i].columns, cases[i].view, &arena, &s, &e);
        if (cases[i].says)
            t_expect_err_contains(cases[i].st, st, &e, cases[i].says);
        else {
            T_OK(st, &e);
            const struct quant_source *x = &s->sources[0]; /* rows of 32 bytes: the fourth odd one of the second plane is the last */
            assert_int_equal(x->offset + (ROWS - 1) * x->row_stride + 32, x->tensor->bytes);
            assert_string_equal(s->name, "MXFP4 of GPT-OSS");
        }
        base_arena_release(&arena);
        ck_close(ck);
    }
}

/* ---- act-order -------------------------------------------------------------------------------------------------------------------------------------------------- */

static void orders_of_columns(void **state)
{
    (void)state;
    t_declare_warnings();
    static int32_t usual[128], reversed[128], beyond[128], negative[128];
    for (int i = 0; i < 128; i++) {
        usual[i] = beyond[i] = negative[i] = i / 32;
        reversed[i] = 3 - i / 32;
    }
    beyond[7] = 4;
    negative[127] = -1;
    const struct {
        const int32_t *order;
        const char *says; /* NULL: is read */
    } cases[] = {{usual, NULL}, {reversed, NULL}, {beyond, "g_idx: column 7 is of group 4, and there are 4"}, {negative, "g_idx: column 127 is of group -1, and there are 4"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int packed = 0; packed < 2; packed++) {
            struct checkpoint *ck;
            struct part_model *m;
            struct err e = {""};
            struct part_of gptq[MAX_PARTS_OF_CASE + 1] = {T("qweight", "I32", 16, 64), T("qzeros", "I32", 4, 8), T("scales", "F16", 4, 64), {"g_idx", "I32", 1, {128}, cases[i].order}};
            struct part_of ct[MAX_PARTS_OF_CASE + 1] = {T("weight_packed", "I32", 64, 16), T("weight_scale", "BF16", 64, 4), {"weight_g_idx", "I32", 1, {128}, cases[i].order}};
            T_OK(ck_open(write_model("", packed ? ct : gptq), &ck, &e), &e);
            const enum st st = part_model_create(ck, NULL, &m, &e);
            if (cases[i].says)
                t_expect_err_contains(ST_INVALID, st, &e, cases[i].says);
            else {
                T_OK(st, &e);
                const struct part_weight *down = NULL;
                for (int k = 0; k < m->n_weights; k++)
                    if (strstr(m->weights[k].name, MODULE))
                        down = &m->weights[k];
                assert_non_null(down);
                const struct quant_scheme *s = down->scheme;
                assert_true((s->group_of != NULL) == (cases[i].order == reversed));
                assert_true(s->sources[1].all_columns == (s->group_of != NULL) && !s->sources[0].all_columns);
                struct part_plan *plan;
                struct part_audit audit;
                T_OK(part_plan_create(m, &(struct part_plan_options){.n_ranks = 2, .max_tokens = 4, .max_rows = 1, .context = 32, .max_sequences = 1}, &sizes, &plan, &e), &e);
                T_OK(part_audit_plan(plan, &audit, &e), &e);
                assert_int_equal(audit.n_beside, s->group_of ? 0 : 1);
                if (s->group_of) { /* another order is another plan */
                    const struct digest before = part_plan_digest(plan);
                    ((struct quant_scheme *)(uintptr_t)s)->group_hash++;
                    const struct digest after = part_plan_digest(plan);
                    assert_memory_not_equal(&before, &after, sizeof before);
                }
                part_plan_destroy(plan);
                part_model_destroy(m);
            }
            ck_close(ck);
        }
}

/* ---- configurations --------------------------------------------------------------------------------------------------------------------------------------------- */

static enum st read_config(const char *text, struct arena *arena, struct quant **q, struct checkpoint **ck, struct err *e)
{
    T_OK(ck_open(write_model("", PARTS(T("weight", "BF16", 64, 128))), ck, e), e);
    T_OK(base_arena_init(arena, "test", 0, e), e);
    json_t *root;
    T_OK(base_json_parse("test", text, strlen(text), &root, e), e);
    const enum st st = quant_read(*ck, root, arena, q, e);
    json_decref(root);
    return st;
}

static void refused_config(const char *text, enum st st, const char *says)
{
    struct arena arena = {0};
    struct quant *q;
    struct checkpoint *ck;
    struct err e = {""};
    t_expect_err_contains(st, read_config(text, &arena, &q, &ck, &e), &e, says);
    base_arena_release(&arena);
    ck_close(ck);
}

static void configurations_by_name(void **state)
{
    (void)state;
#define Q(text) "{\"quantization_config\":" text "}"
    refused_config(Q("7"), ST_INVALID, "quantization_config is not an object");
    refused_config(Q("{}"), ST_UNSUPPORTED, "quant_method '(none)' is not supported yet; known: compressed-tensors, modelopt, modelopt_fp4, fp8, fbgemm_fp8, gptq, awq, mxfp4");
    refused_config(Q("{\"quant_method\":\"bitsandbytes\"}"), ST_UNSUPPORTED, "quant_method 'bitsandbytes' is not supported yet");
    refused_config(Q("{\"quant_method\":3}"), ST_INVALID, "quant_method");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"format\":\"marlin-24\"}"), ST_UNSUPPORTED, "format 'marlin-24' is not supported yet; known: dense");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{\"targets\":[\"Linear\"],\"format\":\"mxfp6-quantized\"}}}"), ST_UNSUPPORTED,
                   "config_groups.a: format 'mxfp6-quantized'");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"config_groups\":[]}"), ST_INVALID, "config_groups is not an object");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":7}}"), ST_INVALID, "config_groups.a is not an object");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{\"targets\":\"Linear\"}}}"), ST_INVALID, "targets is not a list");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"config_groups\":{\"a\":{\"weights\":{\"num_bits\":\"4\"}}}}"), ST_INVALID, "num_bits");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"ignore\":[3]}"), ST_INVALID, "ignore: entry 0");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"sparsity_config\":{\"format\":\"sparse-24-bitmask\"}}"), ST_UNSUPPORTED, "sparse-24-bitmask");
    refused_config(Q("{\"quant_method\":\"compressed-tensors\",\"transform_config\":{\"config_groups\":{\"u\":{}}}}"), ST_UNSUPPORTED, "rotated weights");
    refused_config(Q("{\"quant_method\":\"fp8\",\"weight_block_size\":[64,128]}"), ST_UNSUPPORTED, "weight_block_size");
    refused_config(Q("{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}"), ST_UNSUPPORTED, "e5m2");
    refused_config(Q("{\"quant_method\":\"gptq\",\"checkpoint_format\":\"marlin\"}"), ST_UNSUPPORTED, "checkpoint_format 'marlin' is not supported; known: gptq, gptq_v2");
    refused_config(Q("{\"quant_method\":\"awq\",\"version\":\"gemv\"}"), ST_UNSUPPORTED, "version 'gemv'");
    refused_config(Q("{\"quant_method\":\"modelopt\",\"quant_algo\":4}"), ST_INVALID, "quant_algo");
    refused_config(Q("{\"quant_method\":\"modelopt\",\"quant_algo\":\"W4A8_AWQ\"}"), ST_UNSUPPORTED, "quant_algo 'W4A8_AWQ' is not supported yet; known: FP8, ");
    refused_config(Q("{\"quant_method\":\"modelopt\",\"quant_algo\":\"MIXED_PRECISION\",\"quantized_layers\":{\"a\":{\"quant_algo\":\"NVFP4\"},\"b\":{\"quant_algo\":\"W4A8_AWQ\"}}}"), ST_UNSUPPORTED,
                   "quant_algo 'W4A8_AWQ' is not supported yet");
    refused_config(Q("{\"quant_method\":\"modelopt\",\"quantized_layers\":[]}"), ST_INVALID, "quantized_layers is not an object");
#undef Q
}

static void lists_decide_by_module(void **state)
{
    (void)state;
    t_declare_warnings(); /* of a pattern that is none */
    static const char text[] = "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"ignore\":[\"lm_head\",\"re:.*\\\\.layers\\\\.[0-2]\\\\.mlp\\\\..*\","
                               "\"model.layers.3.self_attn.q_proj\",\"model.layers.3.self_attn.k_proj\",\"model.layers.3.self_attn.v_proj\",\"model.layers.4.mlp.gate_up_proj\",\"*layers.5.*proj\","
                               "\"layers.6.self_attn\",\"re:(\",\"re:(a+)+$\",\"re:down\"],\"config_groups\":{\"a\":{\"targets\":[\"Linear\"],\"weights\":{\"num_bits\":8,\"type\":\"float\"}},"
                               "\"b\":{\"targets\":[\"Embedding\"],\"weights\":null}}}}";
    static const struct {
        const char *module;
        bool quantised;
    } cases[] = {{"lm_head", false},
                 {"model.embed_tokens", false},
                 {"model.layers.0.mlp.up_proj", false},
                 {"model.layers.2.mlp.gate_up_proj", false},
                 {"model.layers.3.mlp.up_proj", true},
                 {"model.layers.0.self_attn.q_proj", true},
                 {"model.layers.3.self_attn.k_proj", false},
                 {"model.layers.3.self_attn.o_proj", true},
                 {"model.layers.3.self_attn.qkv_proj", false}, /* fused from three that are listed */
                 {"model.layers.4.mlp.gate_proj", false},      /* a part of one that is listed */
                 {"model.layers.4.mlp.down_proj", true},
                 {"model.layers.5.mlp.down_proj", false},
                 {"model.layers.55.mlp.down_proj", true},
                 {"model.layers.6.self_attn.q_proj", false},
                 {"model.layers.6.mlp.down_proj", true}, /* "re:down" begins at the beginning */
                 {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b", true}};
    struct arena arena = {0};
    struct quant *q;
    struct checkpoint *ck;
    struct err e = {""};
    T_OK(read_config(text, &arena, &q, &ck, &e), &e);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (quant_expects(q, cases[i].module) != cases[i].quantised)
            fail_msg("%s", cases[i].module);
    base_arena_release(&arena);
    ck_close(ck);
}

/* ---- contradictions ------------------------------------------------------------------------------------------------------------------------------------------------ */

struct told {
    const char *config;
    const struct part_of *parts;
};

static void build(void *arg)
{
    const struct told *t = arg;
    struct checkpoint *ck;
    struct part_model *m;
    struct err e = {""};
    if (ck_open(write_model(t->config, t->parts), &ck, &e) != ST_OK || part_model_create(ck, NULL, &m, &e) != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        return;
    }
    part_model_destroy(m);
    ck_close(ck);
}

static int count_of(const char *text, const char *part)
{
    int n = 0;
    for (const char *at = strstr(text, part); at; at = strstr(at + 1, part))
        n++;
    return n;
}

static void tensors_decide(void **state)
{
    (void)state;
    t_declare_warnings();
#define DOWN(parts) "\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\"," parts
    const struct part_of *fp8 = PARTS(T("weight", "F8_E4M3", 64, 128), ONE("weight_scale", "F32")), *plain = PARTS(T("weight", "BF16", 64, 128));
    const struct {
        struct told told;
        const char *says;
        int n_lines;
    } cases[] = {
        {{"", plain}, "", 0},
        {{"", fp8}, "1 matrices that should be stored plainly are quantised (model.layers.0.mlp.down_proj); the tensors decide", 1},
        {{",\"quantization_config\":{" DOWN("\"config_groups\":{\"a\":{\"targets\":[\"re:.*down_proj\"],\"weights\":{\"num_bits\":8,\"type\":\"float\"}}}") "}", fp8}, "", 0},
        {{",\"quantization_config\":{" DOWN("\"config_groups\":{\"a\":{\"targets\":[\"re:.*(up|down)_proj\"],\"weights\":{\"num_bits\":8,\"type\":\"float\"}}}") "}", fp8},
         "1 matrices that should be quantised are stored plainly (model.layers.0.mlp.up_proj); the tensors decide", 1},
        {{",\"quantization_config\":{" DOWN("\"config_groups\":{\"a\":{\"targets\":[\"re:.*down_proj\"],\"weights\":{\"num_bits\":4,\"type\":\"int\"}}}") "}", fp8},
         "1 matrices are quantised otherwise than it says (model.layers.0.mlp.down_proj); the tensors decide", 1},
        {{",\"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":\"MIXED_PRECISION\",\"quantized_layers\":{\"model.layers.0.mlp.down_proj\":{\"quant_algo\":\"FP8\"}}}", fp8}, "", 0},
        {{",\"expert_dtype\":\"fp4\",\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[\"down_proj\"]}", fp8}, "6 matrices that should be quantised are stored plainly", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *said = t_in_child(build, (void *)(uintptr_t)&cases[i].told, 0);
        if (!strstr(said, cases[i].says) || count_of(said, "the tensors decide") != cases[i].n_lines)
            fail_msg("case %zu says: %s", i, said);
    }
#undef DOWN
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schemes_by_tensors), cmocka_unit_test(refusals_by_name), cmocka_unit_test(views_that_do_not_fit), cmocka_unit_test(orders_of_columns), cmocka_unit_test(configurations_by_name), cmocka_unit_test(lists_decide_by_module), cmocka_unit_test(tensors_decide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
