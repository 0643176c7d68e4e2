/* Numbers that are made up: their scale in every format, the same bytes for any number of threads, layers and files. */
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "kernels/formats.h"
#include "partition/plan.h"
#include "runtime/synthesise.h"
#include "tests/t.h"

/* A small model with a family of each spelling: the family's tables are the real ones. */
static struct preset small(const char *like, enum preset_fp8 fp8)
{
    struct preset s = *preset_find(like);
    s.n_layers = 2;
    s.hidden = 320;
    s.n_heads = 4;
    s.n_kv_heads = 2;
    s.head_dim = 64;
    s.ffn = s.ffn ? 512 : 0;
    s.vocab = 1000;
    s.n_dense = s.n_dense ? 1 : 0;
    s.n_experts = s.n_experts ? 3 : 0;
    s.expert_ffn = s.expert_ffn ? 192 : 0;
    s.fp8 = fp8;
    return s;
}

struct made {
    struct synth_plan *plan;
    const char *dir;
};

static struct made make(const struct preset *shape, enum preset_format format, int n_layers, uint64_t seed, int n_threads, bool headers_only, uint64_t max_file_bytes)
{
    static int n;
    struct made m = {NULL, t_path("%d", n++)};
    struct err e = {""};
    const struct synth_options o = {.preset = shape, .format = format, .n_layers = n_layers, .seed = seed, .max_file_bytes = max_file_bytes};
    T_OK(synth_plan_create(&o, &m.plan, &e), &e);
    assert_int_equal(mkdir(m.dir, 0755), 0);
    const int dir = open(m.dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(dir >= 0);
    struct base_pool *pool;
    T_OK(base_pool_create(&(struct base_pool_options){.n_threads = n_threads}, &pool, &e), &e);
    T_OK(rt_synthesise(m.plan, &(struct rt_synthesise_options){.pool = pool, .dir = dir, .headers_only = headers_only}, &e), &e);
    base_pool_destroy(pool);
    close(dir);
    t_write_text(t_path("%s/config.json", m.dir + strlen(t_dir()) + 1), m.plan->config);
    if (m.plan->quant_config)
        t_write_text(t_path("%s/hf_quant_config.json", m.dir + strlen(t_dir()) + 1), m.plan->quant_config);
    if (m.plan->index)
        t_write_text(t_path("%s/model.safetensors.index.json", m.dir + strlen(t_dir()) + 1), m.plan->index);
    return m;
}

static void *tensor_bytes(const struct checkpoint *ck, const char *name, size_t *bytes)
{
    const struct ck_tensor *t = ck_find(ck, name);
    void *data = NULL;
    struct err e = {""};
    if (!t)
        fail_msg("no tensor %s", name);
    T_OK(ck_read_bytes(ck, t, 1 << 24, &data, &e), &e);
    *bytes = (size_t)t->bytes;
    return data;
}

static struct checkpoint *open_made(const struct made *m)
{
    struct checkpoint *ck = NULL;
    struct err e = {""};
    T_OK(ck_open(m->dir, &ck, &e), &e);
    return ck;
}

/* Whole directories are the same, byte by byte. */
static void expect_same_tensors(const struct made *a, const struct made *b)
{
    struct checkpoint *x = open_made(a), *y = open_made(b);
    for (size_t i = 0; i < ck_n_tensors(x); i++) {
        const char *name = ck_tensor_at(x, i)->name;
        size_t n = 0, k = 0;
        void *p = tensor_bytes(x, name, &n), *q = tensor_bytes(y, name, &k);
        assert_int_equal(n, k);
        assert_memory_equal(p, q, n);
        free(p);
        free(q);
    }
    ck_close(x);
    ck_close(y);
}

static void release(struct made *m) { synth_plan_destroy(m->plan); }

static void same_bytes(void **state)
{
    (void)state;
    static const struct {
        const char *like;
        enum preset_format format;
        enum preset_fp8 fp8;
    } all[] = {{"llama-3.1-8b", PRESET_BF16, 0},          {"llama-3.1-8b", PRESET_NVFP4, 0}, {"llama-3.1-8b", PRESET_FP8, PRESET_FP8_TENSOR}, {"glm-4.7", PRESET_FP8, PRESET_FP8_ROW},
               {"minimax-m2", PRESET_FP8, PRESET_FP8_BLOCK}, {"gpt-oss-20b", PRESET_MXFP4, 0},  {"gpt-oss-20b", PRESET_BF16, 0}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct preset shape = small(all[i].like, all[i].fp8);
        struct made one = make(&shape, all[i].format, 1, 7, 1, false, 1 << 30), many = make(&shape, all[i].format, 2, 7, 3, false, 500000), other = make(&shape, all[i].format, 1, 8, 2, false, 1 << 30);
        assert_true(many.plan->n_files > 1);
        expect_same_tensors(&one, &many); /* those of the first layer, and what lies outside of layers */
        struct checkpoint *x = open_made(&one), *y = open_made(&other);
        size_t n = 0;
        void *p = tensor_bytes(x, "lm_head.weight", &n), *q = tensor_bytes(y, "lm_head.weight", &n);
        assert_memory_not_equal(p, q, n); /* another seed */
        free(p);
        free(q);
        ck_close(x);
        ck_close(y);
        release(&one);
        release(&many);
        release(&other);
    }
}

/* ---- scale -------------------------------------------------------------------------------------------------------------------------------------------------- */

static void check_moments(const char *what, const double *x, size_t n, double std, double tolerance)
{
    double sum = 0, squares = 0, most = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    for (size_t i = 0; i < n; i++) {
        squares += (x[i] - sum / (double)n) * (x[i] - sum / (double)n);
        most = fabs(x[i]) > most ? fabs(x[i]) : most;
    }
    const double got = sqrt(squares / (double)n);
    if (fabs(sum / (double)n) > 4 * std / sqrt((double)n) || fabs(got / std - 1) > tolerance || most > 1.25 * 3.46 * std)
        fail_msg("%s: mean %g, deviation %g, at most %g (expected 0, %g)", what, sum / (double)n, got, most, std);
}

static double e2m1(unsigned code)
{
    static const double magnitudes[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    return code & 8 ? -magnitudes[code & 7] : magnitudes[code & 7];
}

static double e4m3(uint8_t code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double a = exponent ? ldexp(8 + mantissa, exponent - 10) : ldexp(mantissa, -9);
    return code & 0x80 ? -a : a;
}

/* The matrix [rows, columns] of a module as the formats' definitions say. */
static double *decode(const struct checkpoint *ck, enum preset_format format, enum preset_fp8 fp8, const char *module, size_t rows, size_t columns)
{
    char name[128];
    size_t n = 0;
    double *x = malloc(rows * columns * sizeof *x);
    snprintf(name, sizeof name, format == PRESET_MXFP4 ? "%s_blocks" : "%s.weight", module);
    uint8_t *codes = tensor_bytes(ck, name, &n);
    snprintf(name, sizeof name, format == PRESET_MXFP4 ? "%s_scales" : format == PRESET_FP8 && fp8 == PRESET_FP8_BLOCK ? "%s.weight_scale_inv" : "%s.weight_scale", module);
    uint8_t *scales = format == PRESET_BF16 ? NULL : tensor_bytes(ck, name, &n);
    float tensor_scale = 1;
    if (format == PRESET_NVFP4) {
        snprintf(name, sizeof name, "%s.weight_scale_2", module);
        float *scale = tensor_bytes(ck, name, &n);
        tensor_scale = *scale;
        free(scale);
    }
    for (size_t i = 0; i < rows * columns; i++) {
        const size_t row = i / columns, column = i % columns;
        const unsigned nibble = codes[i / 2] >> (i % 2 ? 4 : 0) & 15;
        if (format == PRESET_BF16)
            x[i] = (double)kern_bf16_to_f32(((const uint16_t *)(const void *)codes)[i]);
        else if (format == PRESET_NVFP4)
            x[i] = e2m1(nibble) * e4m3(scales[i / 16]) * (double)tensor_scale;
        else if (format == PRESET_MXFP4)
            x[i] = ldexp(e2m1(nibble), scales[i / 32] - 127);
        else if (fp8 == PRESET_FP8_ROW)
            x[i] = e4m3(codes[i]) * (double)kern_bf16_to_f32(((const uint16_t *)(const void *)scales)[row]);
        else
            x[i] = e4m3(codes[i]) * (double)((const float *)(const void *)scales)[fp8 == PRESET_FP8_BLOCK ? row / 128 * ((columns + 127) / 128) + column / 128 : 0];
    }
    free(codes);
    free(scales);
    return x;
}

static void scales(void **state)
{
    (void)state;
    static const struct {
        const char *like, *module;
        enum preset_format format;
        enum preset_fp8 fp8;
        size_t rows, columns, in;
        double tolerance; /* a block's factor is 0.75 to 1.25, and six blocks are few */
    } all[] = {
        {"llama-3.1-8b", "model.layers.1.mlp.down_proj", PRESET_BF16, 0, 320, 512, 512, 0.04},
        {"llama-3.1-8b", "model.layers.1.mlp.down_proj", PRESET_NVFP4, 0, 320, 512, 512, 0.04},
        {"llama-3.1-8b", "model.layers.0.mlp.up_proj", PRESET_FP8, PRESET_FP8_TENSOR, 512, 320, 320, 0.04},
        {"glm-4.7", "model.layers.1.mlp.experts.2.down_proj", PRESET_FP8, PRESET_FP8_ROW, 320, 192, 192, 0.04},
        {"minimax-m2", "model.layers.0.block_sparse_moe.experts.1.w1", PRESET_FP8, PRESET_FP8_BLOCK, 192, 320, 320, 0.2},
        {"gpt-oss-20b", "model.layers.0.mlp.experts.gate_up_proj", PRESET_MXFP4, 0, 3 * 384, 320, 320, 0.04},
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const struct preset shape = small(all[i].like, all[i].fp8);
        struct made m = make(&shape, all[i].format, 2, 3, 2, false, 1 << 30);
        struct checkpoint *ck = open_made(&m);
        double *x = decode(ck, all[i].format, all[i].fp8, all[i].module, all[i].rows, all[i].columns);
        check_moments(all[i].module, x, all[i].rows * all[i].columns, 1 / sqrt((double)all[i].in), all[i].tolerance);
        free(x);
        size_t n = 0;
        uint16_t *norm = tensor_bytes(ck, "model.layers.1.input_layernorm.weight", &n);
        double near_one[320];
        for (size_t k = 0; k < 320; k++)
            near_one[k] = (double)kern_bf16_to_f32(norm[k]);
        double sum = 0;
        for (size_t k = 0; k < 320; k++) {
            assert_true(near_one[k] > 0.8 && near_one[k] < 1.2);
            sum += near_one[k];
        }
        assert_true(fabs(sum / 320 - 1) < 0.02);
        free(norm);
        ck_close(ck);
        release(&m);
    }
}

/* ---- headers only ------------------------------------------------------------------------------------------------------------------------------------------- */

/* The same headers and sizes; matrices are zero but for the first row of embedding and head, which the planner compares; what the planner reads is there. */
static void headers_only(void **state)
{
    (void)state;
    const struct preset shape = small("llama-3.1-8b", PRESET_FP8_TENSOR);
    struct made whole = make(&shape, PRESET_NVFP4, 2, 5, 1, false, 1 << 30), bare = make(&shape, PRESET_NVFP4, 2, 5, 1, true, 1 << 30);
    struct checkpoint *x = open_made(&whole), *y = open_made(&bare);
    const struct digest a = ck_digest(x), b = ck_digest(y);
    assert_memory_equal(&a, &b, sizeof a);
    for (size_t i = 0; i < ck_n_tensors(x); i++) {
        const struct ck_tensor *t = ck_tensor_at(x, i);
        size_t n = 0;
        uint8_t *p = tensor_bytes(x, t->name, &n), *q = tensor_bytes(y, t->name, &n);
        const bool matrix = t->n_dims == 2, table = strcmp(t->name, "lm_head.weight") == 0 || strcmp(t->name, "model.embed_tokens.weight") == 0;
        const size_t same = !matrix ? strstr(t->name, "weight_scale_2") ? 0 : n : table ? 2 * 320 : 0;
        assert_memory_equal(p, q, same);
        for (size_t k = same; k < n; k++)
            assert_int_equal(q[k], 0);
        free(p);
        free(q);
    }
    ck_close(x);

    struct part_model *m = NULL;
    struct err e = {""};
    T_OK(part_model_create(y, NULL, &m, &e), &e);
    assert_false(m->config.tied_head);
    assert_true(m->config.fp8_cache);
    part_model_destroy(m);
    ck_close(y);
    release(&whole);
    release(&bare);
}

static bool stop(void *arg, const char *tensor, uint64_t done_bytes)
{
    (void)tensor;
    (void)done_bytes;
    return ++*(int *)arg < 3;
}

static void interrupted(void **state)
{
    (void)state;
    const struct preset shape = small("llama-3.1-8b", PRESET_FP8_TENSOR);
    struct synth_plan *plan = NULL;
    struct err e = {""};
    T_OK(synth_plan_create(&(struct synth_options){.preset = &shape, .max_file_bytes = 1 << 30}, &plan, &e), &e);
    assert_int_equal(mkdir(t_path("stopped"), 0755), 0);
    const int dir = open(t_path("stopped"), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    struct base_pool *pool;
    T_OK(base_pool_create(&(struct base_pool_options){.n_threads = 1}, &pool, &e), &e);
    int n = 0;
    const struct rt_synthesise_options o = {.pool = pool, .dir = dir, .go_on = stop, .arg = &n};
    t_expect_err_contains(ST_CANCELLED, rt_synthesise(plan, &o, &e), &e, "interrupted");
    assert_int_equal(n, 3);
    t_expect_err_contains(ST_IO, rt_synthesise(plan, &o, &e), &e, "model.safetensors"); /* it is there already */
    base_pool_destroy(pool);
    close(dir);
    synth_plan_destroy(plan);
}

int main(void)
{
    base_log_init(NULL);
    const struct CMUnitTest tests[] = {cmocka_unit_test(same_bytes), cmocka_unit_test(scales), cmocka_unit_test(headers_only), cmocka_unit_test(interrupted)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
