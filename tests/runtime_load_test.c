/* Loading in the smallest steps (one tile of 16 rows) gives the same bytes as in large ones, for every kind of checkpoint and cut: blocks of scales are read again where they go across two
 * steps, words of zero points and transposed tensors are entered in the middle. The golden models fit into one step, so this is where more than one is seen. */
#include "runtime/load.h"

#include <stdlib.h>
#include <string.h>

#include "partition/plan.h"
#include "runtime/settings.h"
#include "tests/t.h"

/* load.c once more, with a bounce buffer of one tile. */
enum st load_in_tiles(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct base_pool *pool, struct arena *data, struct arena *small,
                      rt_progress_fn progress, void *context, struct rt_weights *weights, struct err *e);
#define BOUNCE_BYTES 64 /* less than a tile of any of them; enough for a number */
void close_in_tiles(struct rt_weights *weights);
#define rt_weights_load load_in_tiles
#define rt_weights_close close_in_tiles
#include "runtime/load.c"
#undef rt_weights_load
#undef rt_weights_close

struct loaded {
    struct arena data, small;
    struct rt_weights w;
    uint64_t done, total; /* as progress has told */
};

static void told(void *context, uint64_t done, uint64_t total)
{
    struct loaded *l = context;
    l->done = done > l->done ? done : l->done;
    l->total = total;
}

typedef enum st (*load_fn)(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct base_pool *pool, struct arena *data, struct arena *small,
                           rt_progress_fn progress, void *context, struct rt_weights *weights, struct err *e);

static void load_by(load_fn fn, const struct part_model *m, struct loaded *l)
{
    struct err e = {""};
    const struct kern_backend *ref;
    struct base_pool *pool;
    memset(l, 0, sizeof *l);
    T_OK(kern_select("ref", &ref, &e), &e);
    T_OK(base_pool_create(&(struct base_pool_options){.n_threads = 1}, &pool, &e), &e);
    T_OK(base_arena_init(&l->data, "weights", 0, &e), &e);
    T_OK(base_arena_init(&l->small, "small", 0, &e), &e);
    T_OK(fn(m, ref, false, pool, &l->data, &l->small, told, l, &l->w, &e), &e);
    base_pool_destroy(pool);
    /* what is told is what the plan says, whatever is read twice */
    uint64_t bytes = 0;
    for (int i = 0; i < m->n_weights; i++)
        bytes += m->weights[i].slice_bytes;
    assert_int_equal(l->total, bytes);
    assert_int_equal(l->done, bytes);
    assert_int_equal(l->w.bytes_read, bytes);
}

static void release(struct loaded *l)
{
    base_arena_release(&l->data);
    base_arena_release(&l->small);
}

static void check(const char *name, const struct part_model *m)
{
    struct loaded large, tiny;
    const struct kern_backend *ref;
    struct err e = {""};
    T_OK(kern_select("ref", &ref, &e), &e);
    load_by(rt_weights_load, m, &large);
    load_by(load_in_tiles, m, &tiny);
    for (int i = 0; i < m->n_weights; i++) {
        const struct kern_matrix *a = &large.w.items[i].matrix, *b = &tiny.w.items[i].matrix;
        if (m->weights[i].kind == PART_VECTOR) {
            assert_memory_equal(large.w.items[i].vector, tiny.w.items[i].vector, (m->weights[i].rows.end - m->weights[i].rows.begin) * sizeof(float));
            continue;
        }
        assert_true(a->scale == b->scale);
        if (ref->matrix_bytes(a) && memcmp(a->data, b->data, ref->matrix_bytes(a)) != 0)
            fail_msg("%s: rank %d: %s differs", name, m->rank, m->weights[i].name);
    }
    release(&large);
    release(&tiny);
}

static void steps_of_any_size(void **state)
{
    (void)state;
    static const char *const cases[] = {"nvfp4-compressed", "nvfp4-fused",         "mxfp4-compressed", "fp8-blocks", "fp8-blocks-e8m0", "fp8-blocks-fused", "fp8-channels", "int4-groups",
                                        "int4-channels",    "int4-channels-fused", "int8-groups",      "int8-channels", "int4-gptq",     "int8-gptq-v2",     "int4-awq",     "int4-gptq-act-order", "int8-actorder", "mxfp8-compressed", "int4-awq-128", "int4-groups-128", "gguf-nvfp4-scales/model.gguf"};
    static const uint32_t splits[][3] = {{1}, {5, 3}, {0, 2, 1}};
    struct err e = {""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        struct checkpoint *ck;
        struct part_model *whole;
        snprintf(path, sizeof path, "tests/golden/llama/%s", cases[i]);
        T_OK(ck_open(path, &ck, &e), &e);
        T_OK(part_model_create(ck, NULL, &whole, &e), &e);
        for (int n = 1; n <= 3; n++) {
            struct part_cut cut;
            T_OK(part_cut_init(whole, n, splits[n - 1], &cut, &e), &e);
            for (int r = 0; r < n; r++) {
                struct part_model *m;
                T_OK(part_shard(whole, &cut, r, &m, &e), &e);
                check(cases[i], m);
                part_model_destroy(m);
            }
        }
        part_model_destroy(whole);
        ck_close(ck);
    }
}

/* ---- experts: several matrices in one tensor ------------------------------------------------------------------------------------------------------------ */

enum { EXPERTS = 3, HIDDEN = 64, FFN = 96 };
enum layout { GPT_OSS_MXFP4, GPT_OSS_BF16, GGUF_MXFP4, LAYOUTS };
#define GOLDEN "tests/golden/experts/" /* make_experts.py: transformers' and gguf's, equal numbers */

/* The number of expert e: kind 0 gate [FFN, HIDDEN], 1 up, 2 down [HIDDEN, FFN], as transformers has dequantised it. */
static float *gate_up, *down, *gate_up_bias, *down_bias;
static float number(int kind, int e, uint64_t row, uint64_t column)
{
    return kind < 2 ? gate_up[((uint64_t)e * HIDDEN + column) * 2 * FFN + 2 * row + (uint64_t)kind] : down[((uint64_t)e * FFN + column) * HIDDEN + row];
}

static void add_linear(struct part_model *m, enum layout layout, int e, const int *kinds, int n_kinds, struct part_axis rows, struct part_axis columns, int in, const int *out)
{
    static const char *const gguf[] = {"blk.0.ffn_gate_exps", "blk.0.ffn_up_exps", "blk.0.ffn_down_exps"};
    static const char *const hub[] = {"model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"};
    struct part_step *s = part_add_step(m, &m->main, PART_LINEAR, 0);
    struct err err = {""};
    s->n_parts = (int16_t)n_kinds;
    s->in[0] = (int16_t)in;
    for (int k = 0; k < n_kinds; k++) {
        const bool turns = layout != GGUF_MXFP4 && kinds[k] < 2;
        struct quant_view v = {.plane = (uint64_t)e, .n_planes = EXPERTS, .phase = turns ? (uint64_t)kinds[k] : 0, .step = turns ? 2 : 1, .transposed = layout == GPT_OSS_BF16};
        const char *module = (layout == GGUF_MXFP4 ? gguf : hub)[kinds[k]];
        s->out[k] = (int16_t)out[k];
        T_OK(part_add_view(m, PART_MATRIX, quant_codes(m->ck, module), &v, 0, rows.size, rows, columns, &s->weight[k], &err), &err);
        char bias[128];
        snprintf(bias, sizeof bias, "%s_bias", module);
        if (turns) /* a partial product takes its bias after the sum */
            T_OK(part_add_view(m, PART_VECTOR, ck_find(m->ck, bias), &v, 0, rows.size, rows, part_axis_whole(1), &s->bias[k], &err), &err);
    }
}

/* All experts, one after another; a table of angles stands in for an embedding. */
static struct part_model *experts_model(const struct checkpoint *ck, enum layout layout)
{
    static const double frequencies[HIDDEN / 2];
    struct part_model *m = calloc(1, sizeof *m);
    struct order_leaves leaves;
    struct err e = {""};
    T_OK(base_arena_init(&m->arena, "experts", 0, &e), &e);
    m->ck = ck;
    m->n_ranks = 1;
    m->config = (struct model_config){.family = "test", .n_heads = 1, .n_kv_heads = 1, .rope = {.rotary_dim = HIDDEN, .frequency = frequencies}};
    m->dim_heads = m->dim_vocab = m->value_logits = m->value_samples = m->value_scores = -1;
    m->main.name = "main";
    m->head.name = "head";
    order_columns(FFN, false, &leaves);
    m->dim_ffn = part_add_dim(m, "ffn", &leaves);
    const struct part_axis hidden = part_axis_whole(HIDDEN), ffn = part_axis_cut(m->dim_ffn, 1, 1, FFN);
    const int x = part_add_value(m, "x", PART_TOKENS, hidden), g[] = {part_add_value(m, "gate", PART_TOKENS, ffn), part_add_value(m, "up", PART_TOKENS, ffn)};
    const int part = part_add_partial(m, "part", HIDDEN, m->dim_ffn);
    m->value_hidden = x;
    part_add_step(m, &m->main, PART_ROPE_TABLE, -1)->out[0] = (int16_t)x;
    for (int i = 0; i < EXPERTS; i++) {
        add_linear(m, layout, i, (const int[]){0, 1}, 2, ffn, hidden, x, g);
        struct part_step *s = part_add_step(m, &m->main, PART_GATE, 0);
        s->in[0] = s->out[0] = (int16_t)g[0];
        s->in[1] = (int16_t)g[1];
        add_linear(m, layout, i, (const int[]){2}, 1, hidden, ffn, g[0], &part);
        s = part_add_step(m, &m->main, PART_SUM, 0);
        s->in[0] = s->out[0] = (int16_t)x;
        s->in[1] = (int16_t)part;
        s->dim = (int16_t)m->dim_ffn;
        if (layout != GGUF_MXFP4)
            T_OK(part_add_view(m, PART_VECTOR, ck_find(ck, "model.layers.0.mlp.experts.down_proj_bias"), &(struct quant_view){.plane = (uint64_t)i, .n_planes = EXPERTS}, 0, hidden.size, hidden,
                               part_axis_whole(1), &s->bias[0], &e), &e);
    }
    for (int i = 0; i < m->n_weights; i++) {
        m->weights[i].rows = (struct part_range){0, m->weights[i].row_axis.size};
        m->weights[i].columns = (struct part_range){0, m->weights[i].column_axis.size};
    }
    T_OK(part_model_check(m, &e), &e);
    return m;
}

/* What a rank has loaded are the numbers of its rows and columns. */
static void check_experts(const struct part_model *m, bool biased)
{
    struct loaded l;
    load_by(rt_weights_load, m, &l);
    for (int i = 0, e = 0, kind = 0; i < m->n_weights; i++) {
        const struct part_weight *w = &m->weights[i];
        if (w->kind == PART_VECTOR) { /* gate's and up's behind their matrices, down's last */
            const int of = biased && kind == 0 ? 2 : kind - 1;
            for (uint64_t r = w->rows.begin; r < w->rows.end; r++)
                assert_true(l.w.items[i].vector[r - w->rows.begin] == (of < 2 ? gate_up_bias[(uint64_t)e * 2 * FFN + 2 * r + (uint64_t)of] : down_bias[(uint64_t)(e - 1) * HIDDEN + r]));
            continue;
        }
        const struct kern_matrix *a = &l.w.items[i].matrix;
        const struct format_info *f = kern_format(a->format);
        const uint64_t first = w->columns.begin / f->block_columns * f->block_columns, n_blocks = (w->columns.end - first + f->block_columns - 1) / f->block_columns;
        for (uint64_t r = w->rows.begin; r < w->rows.end && w->slice_bytes; r++) {
            float row[FFN];
            kern_format_dequantise(a->format, (const unsigned char *)a->data + (r - w->rows.begin) * n_blocks * f->block_bytes, n_blocks * f->block_columns, row);
            for (uint64_t c = w->columns.begin; c < w->columns.end; c++)
                if (row[c - first] != number(kind, e, r, c))
                    fail_msg("%s: row %" PRIu64 ", column %" PRIu64 ": %g, not %g", w->name, r, c, (double)row[c - first], (double)number(kind, e, r, c));
        }
        e += kind == 2;
        kind = (kind + 1) % 3;
    }
    release(&l);
}

static float *numbers_of(const struct checkpoint *ck, const char *name)
{
    char full[128];
    float *values;
    struct err e = {""};
    snprintf(full, sizeof full, "model.layers.0.mlp.experts.%s", name);
    T_OK(ck_read_f32(ck, ck_find(ck, full), EXPERTS * 2 * FFN * HIDDEN, &values, &e), &e);
    return values;
}

/* Every layout and cut: the auditor agrees, steps of any size give the same, and the numbers are those of the golden file. */
static void experts_of_one_tensor(void **state)
{
    (void)state;
    static const char *const paths[LAYOUTS] = {[GPT_OSS_MXFP4] = GOLDEN "mxfp4", [GPT_OSS_BF16] = GOLDEN "bf16", [GGUF_MXFP4] = GOLDEN "mxfp4.gguf"};
    static const uint32_t splits[][3] = {{1}, {2, 1}, {0, 2, 1}};
    struct err e = {""};
    struct checkpoint *ck;
    const struct kern_backend *ref;
    T_OK(kern_select("ref", &ref, &e), &e);
    T_OK(ck_open(paths[GPT_OSS_BF16], &ck, &e), &e);
    gate_up = numbers_of(ck, "gate_up_proj");
    down = numbers_of(ck, "down_proj");
    gate_up_bias = numbers_of(ck, "gate_up_proj_bias");
    down_bias = numbers_of(ck, "down_proj_bias");
    ck_close(ck);
    for (enum layout layout = 0; layout < LAYOUTS; layout++) {
        T_OK(ck_open(paths[layout], &ck, &e), &e);
        struct part_model *whole = experts_model(ck, layout);
        for (int n = 1; n <= 3; n++) {
            const struct rt_settings settings = {.chunk = 1, .context = 32, .max_sequences = 1, .kv_format = FMT_F32, .n_threads = 1};
            const struct part_plan_options options = rt_plan_options(&settings, n, splits[n - 1]);
            struct rt_sizes sizes;
            struct part_plan *plan;
            struct part_audit audit;
            rt_sizes_init(&sizes, &settings, ref, NULL);
            T_OK(part_plan_create(whole, &options, &sizes.base, &plan, &e), &e);
            T_OK(part_audit_plan(plan, &audit, &e), &e);
            assert_int_equal(audit.owned_bytes, audit.checkpoint_bytes);
            for (int r = 0; r < n; r++) {
                check(paths[layout], plan->ranks[r]);
                check_experts(plan->ranks[r], layout != GGUF_MXFP4);
            }
            part_plan_destroy(plan);
        }
        part_model_destroy(whole);
        ck_close(ck);
    }
    free(gate_up);
    free(down);
    free(gate_up_bias);
    free(down_bias);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(steps_of_any_size), cmocka_unit_test(experts_of_one_tensor)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
