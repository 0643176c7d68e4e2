/* Loading in the smallest steps (one tile of 16 rows) gives the same bytes as in large ones, for every kind of checkpoint and cut: blocks of scales are read again where they go across two
 * steps, words of zero points and transposed tensors are entered in the middle. The golden models fit into one step, so this is where more than one is seen. */
#include "runtime/load.h"

#include <stdlib.h>
#include <string.h>

#include "tests/t.h"

/* load.c once more, with a bounce buffer of one tile. */
enum st load_in_tiles(const struct part_model *m, const struct kern_backend *backend, bool accurate, struct base_pool *pool, struct arena *data, struct arena *small,
                      rt_progress_fn progress, void *context, struct rt_weights *weights, struct err *e);
#define BOUNCE_BYTES 64 /* less than a tile of any of them; enough for a number */
#define rt_weights_load load_in_tiles
#include "runtime/load.c"
#undef rt_weights_load

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
                                        "int4-channels",    "int4-channels-fused", "int8-groups",      "int8-channels", "int4-gptq",     "int8-gptq-v2",     "int4-awq",     "gguf-nvfp4-scales/model.gguf"};
    static const uint32_t splits[][3] = {{1}, {5, 3}, {0, 2, 1}};
    struct err e = {""};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char path[128];
        struct checkpoint *ck;
        struct part_model *whole;
        snprintf(path, sizeof path, "tests/golden/llama/%s", cases[i]);
        T_OK(ck_open(path, &ck, &e), &e);
        T_OK(part_model_create(ck, &whole, &e), &e);
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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(steps_of_any_size)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
