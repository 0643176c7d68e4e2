/* Promise 1: the same bits, however the work is cut up. Ranks are threads of this process; models are random, made here.
 * What is compared: every row of logits by memcmp, every sampled token. test-deadline: 300 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "tests/t_job.h"
#include "tests/t_llama.h"

/* ---- sequences --------------------------------------------------------------------------------------------------------------------------------------- */

enum { N_SEQUENCES = 4, MAX_PROMPT = 300, CONTEXT = 160 };

/* A long prompt, a short one, one token, and two that are sampled with a temperature. */
static const struct {
    uint32_t n, max_new;
    float temperature;
} shapes[N_SEQUENCES] = {{70, 6, 0}, {13, 12, 0.8F}, {1, 5, 0}, {130, 8, 1.5F}};

static int32_t prompts[N_SEQUENCES][MAX_PROMPT];

static void make_prompt(int32_t *ids, int n, int vocab, uint64_t seed)
{
    struct base_rng r;
    base_rng_init(&r, seed);
    for (int i = 0; i < n; i++)
        ids[i] = (int32_t)base_rng_below(&r, (uint32_t)vocab);
    ids[0] = vocab - 1; /* the last row of the embedding */
}

static void make_sequences(struct t_sequence *s, int vocab)
{
    for (int i = 0; i < N_SEQUENCES; i++) {
        make_prompt(prompts[i], (int)shapes[i].n, vocab, 100 + (uint64_t)i);
        s[i] = (struct t_sequence){.ids = prompts[i], .n = shapes[i].n, .max_new = shapes[i].max_new, .temperature = shapes[i].temperature, .seed = 7 + (uint64_t)i};
    }
}

static void free_sequences(struct t_sequence *s, int n)
{
    for (int i = 0; i < n; i++)
        t_sequence_free(&s[i]);
}

/* got's rows begin want's (or are all of them). */
static void same_rows(const struct t_sequence *want, const struct t_sequence *got, int64_t vocab, const char *what)
{
    const size_t row_bytes = (size_t)vocab * sizeof(float);
    assert_true(got->n_rows <= want->n_rows);
    for (uint32_t row = 0; row < got->n_rows; row++) {
        const float *a = want->logits + row * (size_t)vocab, *b = got->logits + row * (size_t)vocab;
        if (memcmp(a, b, row_bytes) == 0)
            continue;
        int64_t at = 0;
        while (memcmp(&a[at], &b[at], sizeof *a) == 0)
            at++;
        fail_msg("%s: row %u of %u+%u, logit %lld: %.9g instead of %.9g", what, row, want->n, want->max_new, (long long)at, (double)b[at], (double)a[at]);
    }
}

static void same_sequence(const struct t_sequence *want, const struct t_sequence *got, int64_t vocab, const char *what)
{
    assert_int_equal(got->n_new, want->n_new);
    assert_int_equal(got->n_rows, want->n_rows);
    same_rows(want, got, vocab, what);
    for (uint32_t i = 0; i < want->n_new; i++)
        if (got->new_ids[i] != want->new_ids[i])
            fail_msg("%s: new token %u of %u+%u is %d instead of %d", what, i, want->n, want->max_new, got->new_ids[i], want->new_ids[i]);
}

/* A row's largest logit, the lowest id where several are. */
static int32_t best_of(const float *row, int64_t vocab)
{
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (row[i] > row[best])
            best = i;
    return best;
}

/* ---- ways to cut the work up --------------------------------------------------------------------------------------------------------------------------- */

static const struct cut {
    const char *name;
    int n_ranks;
    uint32_t shares[5]; /* all zero: equal */
} cuts[] = {{"1", 1, {0}}, {"2", 2, {0}}, {"3", 3, {0}}, {"4", 4, {0}}, {"5:3", 2, {5, 3}}, {"0:1", 2, {0, 1}}, {"1:0:2", 3, {1, 0, 2}}, {"5", 5, {0}}};
enum { N_CUTS = 7, N_CUTS_AND_5 = 8, N_CHUNKS = 4, N_SETTINGS = 4 };
static const int chunks[N_CHUNKS] = {512, 1, 7, 64};

static const struct setting {
    const char *name;
    bool accurate;
    enum format kv_format;
    enum part_moe moe;
} settings[N_SETTINGS] = {{"f32, cache F32", true, FMT_F32, PART_MOE_TENSOR}, {"auto, cache F16", false, FMT_F16, PART_MOE_TENSOR},
                           {"auto, cache F32", false, FMT_F32, PART_MOE_TENSOR}, {"f32, cache F16", true, FMT_F16, PART_MOE_TENSOR}};

struct way {
    const struct cut *cut;
    const struct setting *setting;
    int n_threads, chunk;
    bool batch;
};

static void run_way(const char *model, const struct way *w, struct t_sequence *s, int n)
{
    struct t_job_options o = {
        .model = model,
        .n_ranks = w->cut->n_ranks,
        .n_threads = w->n_threads,
        .chunk = w->chunk,
        .context = CONTEXT,
        .max_sequences = N_SEQUENCES,
        .accurate = w->setting->accurate,
        .kv_format = w->setting->kv_format,
        .moe = w->setting->moe,
    };
    for (int r = 0; r < w->cut->n_ranks; r++)
        if (w->cut->shares[r])
            o.shares = w->cut->shares;
    struct t_job *job = t_job_start(&o);
    if (w->batch)
        t_job_run(job, s, n);
    for (int i = 0; !w->batch && i < n; i++)
        t_job_run(job, &s[i], 1);
    t_job_stop(job);
}

static void check_way(const char *model, const char *name, int vocab, const struct way *w, const struct t_sequence *want)
{
    char what[256];
    struct t_sequence got[N_SEQUENCES];
    snprintf(what, sizeof what, "%s: %s, ranks %s, threads %d, chunk %d, %s", name, w->setting->name, w->cut->name, w->n_threads, w->chunk, w->batch ? "in a batch" : "alone");
    make_sequences(got, vocab);
    run_way(model, w, got, N_SEQUENCES);
    for (int i = 0; i < N_SEQUENCES; i++)
        same_sequence(&want[i], &got[i], vocab, what);
    free_sequences(got, N_SEQUENCES);
}

static void make_wanted(const char *model, int vocab, const struct setting *setting, struct t_sequence *want)
{
    make_sequences(want, vocab);
    run_way(model, &(struct way){.cut = &cuts[0], .setting = setting, .n_threads = 1, .chunk = 512}, want, N_SEQUENCES);
    for (int i = 0; i < N_SEQUENCES; i++) {
        assert_int_equal(want[i].n_rows, want[i].n + want[i].max_new);
        assert_int_equal(want[i].n_new, want[i].max_new);
        for (int64_t k = 0; k < (int64_t)want[i].n_rows * vocab; k++)
            assert_true(isfinite(want[i].logits[k])); /* NaNs would be the same too */
    }
}

/* ---- every model by every axis --------------------------------------------------------------------------------------------------------------------------- */

static const struct model {
    const char *name;
    struct t_llama m;
} models[] = {
    {"bf16, 6/3 heads, ffn 96", {.hidden = 96, .heads = 6, .kv = 3, .head_dim = 20, .ffn = 96, .vocab = 131, .format = FMT_BF16}},
    {"q8_0, 10/5 heads, ffn 352", {.hidden = 64, .heads = 10, .kv = 5, .head_dim = 16, .ffn = 352, .vocab = 257, .format = FMT_Q8_0}},
    {"q4_1, 16/8 heads, ffn 1536", {.hidden = 64, .heads = 16, .kv = 8, .head_dim = 12, .ffn = 1536, .vocab = 131, .format = FMT_Q4_1, .layers = 1}},
    {"f16, 7/1 heads, ffn 2880", {.hidden = 28, .heads = 7, .kv = 1, .head_dim = 18, .ffn = 2880, .vocab = 131, .format = FMT_F16, .layers = 1, .biases = true}},
    {"q8_0, 12/3 heads, ffn 2880", {.hidden = 32, .heads = 12, .kv = 3, .head_dim = 24, .ffn = 2880, .vocab = 97, .format = FMT_Q8_0, .layers = 1}},
    {"q4_1, 5/5 heads, ffn 96, tied", {.hidden = 96, .heads = 5, .kv = 5, .head_dim = 32, .ffn = 96, .vocab = 131, .format = FMT_Q4_1, .tied = true}},
    {"f32, 16/16 heads, ffn 1500", {.hidden = 32, .heads = 16, .kv = 16, .head_dim = 10, .ffn = 1500, .vocab = 31, .format = FMT_F32, .layers = 1}},
    {"bf16, 8/8 heads, ffn 352, biases", {.hidden = 40, .heads = 8, .kv = 8, .head_dim = 34, .ffn = 352, .vocab = 200, .format = FMT_BF16, .biases = true, .tied = true}},
};

/* Further formats of GGUF, two a model as files mix them: what is above said about the machinery, here each has a few cuts. Leaves of o and down fall inside blocks
 * (of 32, 64 and 256 columns) but in the last, whose leaves are made of whole super-blocks. */
static const struct model mixed_models[] = {
    {"q4_0 + q5_0, 6/3 heads of 16, ffn 352", {.hidden = 64, .heads = 6, .kv = 3, .head_dim = 16, .ffn = 352, .vocab = 131, .format = FMT_Q4_0, .mixed = true, .format_2 = FMT_Q5_0, .layers = 1}},
    {"mxfp4 + q5_1, 5/5 heads of 32, ffn 96", {.hidden = 64, .heads = 5, .kv = 5, .head_dim = 32, .ffn = 96, .vocab = 131, .format = FMT_MXFP4, .mixed = true, .format_2 = FMT_Q5_1, .layers = 1}},
    {"nvfp4, 8/4 heads of 24, ffn 320", {.hidden = 64, .heads = 8, .kv = 4, .head_dim = 24, .ffn = 320, .vocab = 131, .format = FMT_NVFP4, .layers = 1}},
    {"q4_k + q6_k, 16/8 heads of 16, ffn 768", {.hidden = 256, .heads = 16, .kv = 8, .head_dim = 16, .ffn = 768, .vocab = 67, .format = FMT_Q4_K, .mixed = true, .format_2 = FMT_Q6_K, .layers = 1}},
    {"q5_k, 8/2 heads of 32, ffn 3328", {.hidden = 256, .heads = 8, .kv = 2, .head_dim = 32, .ffn = 3328, .vocab = 67, .format = FMT_Q5_K, .layers = 1, .tied = true}},
};
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
enum { IS_SANITIZED = 1 }; /* three to thirty times slower */
#else
enum { IS_SANITIZED = 0 };
#endif
enum { N_RANDOM = IS_SANITIZED ? 2 : 10 };
enum { N_MODELS = sizeof models / sizeof *models };

static bool sensible(const struct model *m, const struct setting *s) { return kern_format(m->m.format)->quantised || s->accurate || s->kv_format == FMT_F16; }

static void check_all_ways(const struct model *m, const char *path, const struct setting *setting, const struct t_sequence *want)
{
    for (int i = 0; i < N_CUTS * N_CHUNKS * 2 * 2; i++) {
        const struct way w = {.cut = &cuts[i % N_CUTS], .setting = setting, .chunk = chunks[i / N_CUTS % N_CHUNKS], .n_threads = 1 + i / N_CUTS / N_CHUNKS % 2, .batch = i / N_CUTS / N_CHUNKS / 2};
        check_way(path, m->name, m->m.vocab, &w, want);
    }
}

/* One axis at a time, the settings taking turns; then some ways of all axes at once. */
static void check_some_ways(const struct model *m, const char *path, struct t_sequence want[N_SETTINGS][N_SEQUENCES], struct base_rng *r)
{
    int turn = (int)(m - models);
    for (int i = 1; i < N_CUTS + N_CHUNKS - 1 + 2 + N_RANDOM; i++) {
        struct way w = {.cut = &cuts[0], .chunk = 512, .n_threads = 1};
        const int i_chunk = i - (N_CUTS - 1), k = i_chunk - N_CHUNKS;
        if (i < N_CUTS)
            w.cut = &cuts[i];
        else if (i_chunk < N_CHUNKS)
            w.chunk = chunks[i_chunk];
        else if (k < 2) {
            w.n_threads = 1 + (k == 0);
            w.batch = k == 1;
        } else
            w = (struct way){.cut = &cuts[base_rng_below(r, N_CUTS)], .chunk = chunks[base_rng_below(r, N_CHUNKS)], .n_threads = 1 + (int)base_rng_below(r, 2), .batch = base_rng_below(r, 4)};
        do
            turn = (turn + 1) % N_SETTINGS;
        while (!sensible(m, &settings[turn]));
        w.setting = &settings[turn];
        if (!want[turn][0].logits)
            make_wanted(path, m->m.vocab, w.setting, want[turn]);
        check_way(path, m->name, m->m.vocab, &w, want[turn]);
    }
}

static void test_models(void **state)
{
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    for (int i = 0; i < N_MODELS; i++) {
        const struct model *m = &models[i];
        static struct t_sequence want[N_SETTINGS][N_SEQUENCES];
        memset(want, 0, sizeof want);
        const char *path = t_llama_write(&m->m, "model");
        if (!t_long())
            check_some_ways(m, path, want, &r);
        for (int k = 0; t_long() && k < N_SETTINGS; k++) {
            if (!sensible(m, &settings[k]))
                continue;
            make_wanted(path, m->m.vocab, &settings[k], want[k]);
            check_all_ways(m, path, &settings[k], want[k]);
        }
        for (int k = 0; k < N_SETTINGS; k++)
            free_sequences(want[k], N_SEQUENCES);
    }
}

static void check_few_ways_of(const struct setting *two, const char *path, const char *name, int vocab, int i)
{
    for (int k = 0; k < 2; k++) {
        struct t_sequence want[N_SEQUENCES];
        if (IS_SANITIZED && k == i % 2)
            continue;
        make_wanted(path, vocab, &two[k], want);
        for (int c = 1; c < N_CUTS; c++)
            if (t_long() || c % 2 == (k + i) % 2) {
                const struct way w = {.cut = &cuts[c], .setting = &two[k], .n_threads = 1 + c % 2, .chunk = chunks[c % N_CHUNKS], .batch = c % 3};
                check_way(path, name, vocab, &w, want);
            }
        free_sequences(want, N_SEQUENCES);
    }
}

static void check_few_ways(const char *path, const char *name, int vocab, int i) { check_few_ways_of(settings, path, name, vocab, i); }

static void test_mixed_models(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof mixed_models / sizeof *mixed_models; i++) {
        const struct model *m = &mixed_models[i];
        check_few_ways(t_llama_write(&m->m, "mixed"), m->name, m->m.vocab, (int)i);
    }
}

/* Matrices of several tensors, as tests/golden/make_quant.py writes them: cuts fall inside blocks of scales and packed words, along rows and along columns. */
static void test_quantised_models(void **state)
{
    (void)state;
    static const char *const cases[] = {"nvfp4-compressed", "nvfp4-modelopt", "nvfp4-w4a8-modelopt", "nvfp4-fused", "mxfp4-compressed", "fp8-blocks",  "fp8-blocks-e8m0",     "fp8-blocks-fused", "fp8-modelopt", "fp8-channels",
                                        "int4-groups",      "int4-channels",  "int8-groups", "int8-channels",    "int4-gptq",   "int4-channels-fused", "int8-gptq-v2",     "int4-awq",     "int8-embedding", "int4-tensor",
                                        "int4-modelopt", "int4-modelopt-awq", "int8-modelopt-smooth", "int4-gptq-act-order", "int8-actorder", "int4-actorder", "mxfp8-compressed", "mixed-compressed", "int4-gptq-128"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/golden/llama/%s", cases[i]);
        check_few_ways(path, cases[i], 97, (int)i);
    }
}

/* Caches in FP8, with scales of their own in each layer (tests/golden/make_kv_cache.py) and without. */
static void test_fp8_caches(void **state)
{
    (void)state;
    static const struct setting fp8[] = {{"f32, cache FP8", true, FMT_E4M3, PART_MOE_TENSOR}, {"auto, cache FP8", false, FMT_E4M3, PART_MOE_TENSOR}};
    static const char *const cases[] = {"modelopt", "modelopt-fused", "compressed", "plain"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/golden/kv_cache/%s", cases[i]);
        check_few_ways_of(fp8, path, cases[i], 97, (int)i);
    }
}

/* Whom a token shares its experts with, and in which place of a group it stands there, changes from way to way (tests/golden/make_families.py). */
static void test_experts(void **state)
{
    (void)state;
    static const struct setting modes[] = {{"tensor mode", false, FMT_F16, PART_MOE_TENSOR}, {"expert mode", false, FMT_F16, PART_MOE_EXPERT}};
    static const char *const cases[] = {"qwen3_moe-gguf-q4_0/model.gguf", "gpt_oss-mxfp4", "glm4_moe-groups", "minimax_m2-kv3"};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        snprintf(path, sizeof path, "tests/golden/families/%s", cases[i]);
        check_few_ways_of(modes, path, cases[i], 131, (int)i);
    }
}

/* The comparisons above would not see a temperature that does nothing. */
static void test_temperature_samples(void **state)
{
    (void)state;
    const char *path = t_llama_write(&models[0].m, "temperature");
    struct t_job *job = t_job_start(&(struct t_job_options){.model = path, .accurate = true});
    struct t_sequence s[3];
    int32_t ids[8];
    make_prompt(ids, 8, 131, 5);
    for (int i = 0; i < 3; i++)
        s[i] = (struct t_sequence){.ids = ids, .n = 8, .max_new = 24, .temperature = i ? 1 : 0, .seed = (uint64_t)i};
    t_job_run(job, s, 3);
    t_job_stop(job);
    assert_memory_not_equal(s[0].new_ids, s[1].new_ids, 24 * sizeof(int32_t));
    assert_memory_not_equal(s[1].new_ids, s[2].new_ids, 24 * sizeof(int32_t));
    for (uint32_t i = 0; i < 24; i++)
        assert_int_equal(s[0].new_ids[i], best_of(s[0].logits + (7 + i) * 131, 131));
    free_sequences(s, 3);
}

/* ---- what others got wrong (specs/known-faults.md) -------------------------------------------------------------------------------------------------------- */

static const struct way PLAIN = {.cut = &cuts[0], .setting = &settings[0], .n_threads = 1, .chunk = 512};

/* F10: nothing divides. */
static void test_nothing_divides(void **state)
{
    (void)state;
    static const int vocabularies[] = {131, 1003};
    for (int v = 0; v < 2; v++) {
        const struct t_llama m = {.hidden = 56, .heads = 7, .kv = 1, .head_dim = 8, .ffn = 352, .vocab = vocabularies[v], .format = FMT_BF16, .layers = 1};
        const char *path = t_llama_write(&m, "f10");
        struct t_sequence want[N_SEQUENCES];
        make_wanted(path, m.vocab, PLAIN.setting, want);
        for (int c = 1; c < N_CUTS_AND_5; c++) {
            struct way w = PLAIN;
            w.cut = &cuts[c];
            w.batch = c % 2;
            check_way(path, "F10", m.vocab, &w, want);
        }
        free_sequences(want, N_SEQUENCES);
    }
}

/* want of a model, and the same from others over several cuts. */
static void check_same_models(const char *first, const char *const *others, int n_others, int vocab)
{
    struct t_sequence want[N_SEQUENCES];
    make_wanted(first, vocab, PLAIN.setting, want);
    for (int k = 0; k < n_others; k++)
        for (int c = 0; c < N_CUTS; c++) {
            struct way w = PLAIN;
            w.cut = &cuts[c];
            w.batch = c % 2;
            check_way(others[k], others[k], vocab, &w, want);
        }
    free_sequences(want, N_SEQUENCES);
}

/* F11: every rank takes its own part of each part of a fused tensor. */
static void test_fused(void **state)
{
    (void)state;
    struct t_llama m = {.hidden = 48, .heads = 6, .kv = 3, .head_dim = 14, .ffn = 352, .vocab = 131, .format = FMT_BF16, .biases = true};
    const char *plain = t_llama_write(&m, "f11");
    m.fused = true;
    const char *fused = t_llama_write(&m, "f11-fused");
    check_same_models(plain, (const char *[]){plain, fused}, 2, m.vocab);
}

/* F11: a bias that is added once per rank shows. */
static void test_large_biases(void **state)
{
    (void)state;
    struct t_llama m = {.hidden = 48, .heads = 10, .kv = 5, .head_dim = 8, .ffn = 96, .vocab = 131, .format = FMT_BF16, .biases = true};
    const char *without = t_llama_write(&m, "f11-small");
    m.large_bias = 100;
    const char *with = t_llama_write(&m, "f11-large");
    check_same_models(with, &with, 1, m.vocab);
    struct t_sequence a[N_SEQUENCES], b[N_SEQUENCES];
    make_wanted(without, m.vocab, PLAIN.setting, a);
    make_wanted(with, m.vocab, PLAIN.setting, b);
    assert_memory_not_equal(a[0].logits, b[0].logits, (size_t)m.vocab * sizeof(float));
    free_sequences(a, N_SEQUENCES);
    free_sequences(b, N_SEQUENCES);
}

/* F21: of two equal largest logits the lowest id wins, wherever the two rows lie. */
static void test_ties(void **state)
{
    (void)state;
    struct t_llama m = {.hidden = 48, .heads = 6, .kv = 3, .head_dim = 8, .ffn = 96, .vocab = 131, .format = FMT_BF16};
    const char *path = t_llama_write(&m, "f21");
    struct t_sequence first[N_SEQUENCES];
    make_wanted(path, m.vocab, PLAIN.setting, first);
    const int32_t best = first[0].new_ids[0];
    free_sequences(first, N_SEQUENCES);
    const int twins[] = {0, best + 1, best - 1, m.vocab - 1};
    for (int i = 0; i < 4; i++) {
        if (twins[i] == best || twins[i] < 0 || twins[i] >= m.vocab)
            continue;
        m.twin = twins[i];
        m.twin_of = best;
        path = t_llama_write(&m, "f21-twin");
        for (int c = 0; c < N_CUTS_AND_5; c++) {
            struct way w = PLAIN;
            w.cut = &cuts[c];
            w.n_threads = 1 + c % 2;
            struct t_sequence s[N_SEQUENCES];
            make_sequences(s, m.vocab);
            run_way(path, &w, s, 1);
            const float *row = s[0].logits + (size_t)(s[0].n - 1) * (size_t)m.vocab;
            assert_memory_equal(&row[best], &row[twins[i]], sizeof *row);
            assert_int_equal(s[0].new_ids[0], best < twins[i] ? best : twins[i]);
            free_sequences(s, 1);
        }
    }
}

/* F21: copies of one sequence among others, where no two of them sit at the same place in a step. */
static void test_copies(void **state)
{
    (void)state;
    static const uint32_t lengths[] = {40, 9, 40, 40, 61, 40, 1, 40};
    enum { N = 8 };
    const struct t_llama m = {.hidden = 64, .heads = 6, .kv = 3, .head_dim = 16, .ffn = 352, .vocab = 131, .format = FMT_Q8_0};
    const char *path = t_llama_write(&m, "f21-copies");
    int32_t ids[2][64];
    make_prompt(ids[0], 64, m.vocab, 1);
    make_prompt(ids[1], 64, m.vocab, 2);
    for (int way = 0; way < 4; way++) {
        struct t_job *job = t_job_start(&(struct t_job_options){.model = path, .n_ranks = 1 + way % 2, .chunk = way / 2 ? 23 : 512, .max_sequences = N, .kv_format = FMT_F16});
        struct t_sequence s[N];
        for (int i = 0; i < N; i++)
            s[i] = (struct t_sequence){.ids = ids[lengths[i] != 40], .n = lengths[i], .max_new = 16};
        t_job_run(job, s, N);
        for (int i = 1; i < N; i++)
            if (lengths[i] == 40)
                same_sequence(&s[0], &s[i], m.vocab, "F21: a copy");
        free_sequences(s, N);
        t_job_stop(job);
    }
}

/* F22: every length alike, against one pass. */
static void test_lengths(void **state)
{
    (void)state;
    enum { LONGEST = 300, AT_ONCE = 8, VOCAB = 67 };
    const struct t_llama m = {.hidden = 32, .heads = 6, .kv = 3, .head_dim = 8, .ffn = 64, .vocab = VOCAB, .format = FMT_BF16};
    const char *path = t_llama_write(&m, "f22");
    int32_t ids[LONGEST];
    make_prompt(ids, LONGEST, VOCAB, 3);
    struct t_job_options o = {.model = path, .accurate = true, .context = LONGEST + 1, .max_sequences = AT_ONCE};
    struct t_job *job = t_job_start(&o);
    struct t_sequence want = {.ids = ids, .n = LONGEST, .max_new = 1, .leave_last = true};
    t_job_run(job, &want, 1);
    assert_int_equal(want.n_rows, LONGEST);
    t_job_stop(job);

    o.chunk = 64;
    o.n_ranks = 2;
    job = t_job_start(&o);
    struct t_sequence s[AT_ONCE];
    int n = 0;
    for (uint32_t length = 1; length <= LONGEST; length++) {
        const uint32_t in_block = length % KERN_KV_BLOCK;
        if (t_long() || length < 12 || in_block < 2 || in_block == KERN_KV_BLOCK - 1 || length == LONGEST || length % 23 == 0)
        {
            s[n] = (struct t_sequence){.ids = ids, .n = length, .max_new = 1, .leave_last = true};
            n++;
        }
        if (n < AT_ONCE && length < LONGEST)
            continue;
        t_job_run(job, s, n);
        for (int i = 0; i < n; i++) {
            assert_int_equal(s[i].n_rows, s[i].n);
            same_rows(&want, &s[i], VOCAB, "F22");
            assert_int_equal(s[i].new_ids[0], best_of(want.logits + (size_t)(s[i].n - 1) * VOCAB, VOCAB));
        }
        free_sequences(s, n);
        n = 0;
    }
    t_job_stop(job);

    /* a context that is as long as the prompt, or one longer */
    static const int contexts[] = {1, 31, 32, 33, 255, 256, 257};
    for (int i = 0; i < 14; i++) {
        const int length = contexts[i / 2], more = i % 2;
        o = (struct t_job_options){.model = path, .accurate = true, .context = length + more, .max_sequences = 1};
        job = t_job_start(&o);
        s[0] = (struct t_sequence){.ids = ids, .n = (uint32_t)length, .max_new = 5};
        t_job_run(job, s, 1);
        assert_int_equal(s[0].reason, RT_CONTEXT);
        assert_int_equal(s[0].n_new, 1 + more);
        assert_int_equal(s[0].n_rows, length + more);
        s[0].n_rows = (uint32_t)length;
        same_rows(&want, &s[0], VOCAB, "F22: full context");
        free_sequences(s, 1);
        t_job_stop(job);
    }
    t_sequence_free(&want);
}

/* F04: base 500000 and llama3 scaling by any spelling. */
static void test_rope_spellings(void **state)
{
    (void)state;
#define SCALING "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,\"original_max_position_embeddings\":64"
    static const char *const spellings[] = {
        "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"llama3\"," SCALING "}",
        "\"rope_theta\":500000,\"rope_scaling\":{\"type\":\"llama3\"," SCALING "}",
        "\"rope_parameters\":{\"rope_type\":\"llama3\",\"rope_theta\":500000.0," SCALING "}",
        "\"rope_scaling\":{\"type\":\"llama3\",\"rope_type\":\"llama3\"," SCALING "},\"rope_theta\":5e5",
    };
#undef SCALING
    struct t_llama m = {.hidden = 64, .heads = 6, .kv = 3, .head_dim = 32, .ffn = 96, .vocab = 131, .format = FMT_BF16};
    struct t_sequence s[6] = {0};
    int32_t ids[100];
    make_prompt(ids, 100, m.vocab, 4);
    for (int i = 0; i < 6; i++) { /* the fifth is a GGUF file, the last has no scaling */
        m.rope = i < 4 ? spellings[i] : "\"rope_theta\":500000.0";
        m.gguf = m.rope_llama3 = i == 4;
        const char *path = t_llama_write(&m, "f04");
        if (i == 5)
            path = t_llama_write(&m, "f04-plain");
        struct t_job *job = t_job_start(&(struct t_job_options){.model = path, .accurate = true});
        s[i] = (struct t_sequence){.ids = ids, .n = 100};
        t_job_run(job, &s[i], 1);
        t_job_stop(job);
    }
    for (int i = 1; i < 4; i++)
        same_sequence(&s[0], &s[i], m.vocab, spellings[i]);
    /* pairs instead of halves: the same frequencies, but a dot product adds in another order */
    double largest = 0;
    for (size_t i = 0; i < (size_t)100 * (size_t)m.vocab; i++) {
        const double difference = (double)s[4].logits[i] - (double)s[0].logits[i];
        largest = difference * difference > largest * largest ? difference : largest;
    }
    if (largest * largest > 1e-5 * 1e-5)
        fail_msg("GGUF: off by %g", largest);
    /* the scaling matters here */
    assert_memory_not_equal(s[0].logits + (size_t)99 * (size_t)m.vocab, s[5].logits + (size_t)99 * (size_t)m.vocab, (size_t)m.vocab * sizeof(float));
    free_sequences(s, 6);

    struct err e = {""};
    m.gguf = m.rope_llama3 = false;
    m.rope = "\"rope_theta\":500000.0,\"rope_scaling\":{\"rope_type\":\"foo\",\"factor\":2.0}";
    t_expect_err_contains(ST_UNSUPPORTED, t_job_refused(&(struct t_job_options){.model = t_llama_write(&m, "f04-foo")}, &e), &e, "foo");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_models), cmocka_unit_test(test_mixed_models), cmocka_unit_test(test_quantised_models), cmocka_unit_test(test_fp8_caches), cmocka_unit_test(test_experts), cmocka_unit_test(test_temperature_samples), cmocka_unit_test(test_nothing_divides), cmocka_unit_test(test_fused),
        cmocka_unit_test(test_large_biases), cmocka_unit_test(test_ties),           cmocka_unit_test(test_copies),          cmocka_unit_test(test_lengths),
        cmocka_unit_test(test_rope_spellings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
