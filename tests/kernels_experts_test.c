/* Conformance of the experts' products, by every backend, to the bit: gate and up are kern_matmul's of the gathered rows; down is put together by hand from ref's
 * vectors of each expert, by leaves (tensor mode) and by groups (expert mode), whole and cut over ranks, whose vectors kern_sum puts together again. Formats differ
 * from expert to expert; some experts have no tokens, some tokens no expert. */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref.h"
#include "tests/t_kernels.h"
#include "tests/t_matrix.h"

enum { MAX_EXPERTS = 8, MAX_TOKENS = 70, MAX_SLOTS = MAX_TOKENS * MAX_EXPERTS, N_ROWS = 50, GAP = 3, FILL = 0x5a };

#define FOR_BACKENDS(b)                                                  \
    for (const struct kern_backend *const *b = kern_backends(); *b; b++) \
        if (t_kernels_on(*b))

/* ---- a layer of experts, and who goes to whom ------------------------------------------------------------------------------------------------------ */

/* Token t goes to k of the experts that `used` marks. */
struct routes {
    const char *name;
    int n_experts, n_tokens, k;
    unsigned used; /* bit e: expert e */
    int n_idle;    /* the last tokens have none here */
};
static const struct routes all_routes[] = {
    {"one token", 8, 1, 3, 0xf6, 0},         {"two tokens", 8, 2, 2, 0xff, 0},     {"all to one", 5, 9, 1, 0x04, 0},
    {"many tokens", 7, MAX_TOKENS, 2, 0x5f, 0}, {"some have none", 6, 12, 3, 0x3d, 5}, {"nobody has any", 3, 5, 0, 0x07, 5},
    {"no experts", 0, 4, 0, 0, 4},           {"no tokens", 4, 0, 2, 0x0f, 0},
};
enum { N_ROUTES = sizeof all_routes / sizeof all_routes[0] };

struct expert {
    enum format format;
    enum kern_activation activation;
    unsigned char *rows;
    float *bias;
};

struct layer {
    const struct shape *shape;
    const struct routes *routes;
    struct expert experts[MAX_EXPERTS];
    struct kern_slots slots;
    int32_t begin[MAX_EXPERTS + 1], token[MAX_SLOTS];
    float weight[MAX_SLOTS];
};

static void route_tokens(struct base_rng *r, struct layer *l) {
    bool goes[MAX_TOKENS][MAX_EXPERTS] = {{false}};
    for (int t = 0; t < l->routes->n_tokens - l->routes->n_idle; t++)
        for (int n = 0; n < l->routes->k;) {
            uint32_t e = base_rng_below(r, (uint32_t)l->routes->n_experts);
            n += (l->routes->used >> e & 1) && !goes[t][e];
            goes[t][e] |= l->routes->used >> e & 1;
        }
    int n = 0;
    for (int e = 0; e < l->routes->n_experts; e++) {
        l->begin[e] = n;
        for (int t = 0; t < l->routes->n_tokens; t++)
            if (goes[t][e]) {
                l->weight[n] = base_rng_uniform(r, 0.01f, 1);
                l->token[n++] = t;
            }
    }
    l->begin[l->routes->n_experts] = n;
    l->slots = (struct kern_slots){l->routes->n_experts, l->begin, l->token, l->weight};
}

/* Expert e has the (first + e)th of all pairs of format and activation that the shape allows. Returns how many those are. */
static int layer_open(struct layer *l, struct base_rng *r, const struct shape *s, const struct routes *routes, int first) {
    *l = (struct layer){.shape = s, .routes = routes};
    struct expert all[FMT_COUNT * 3];
    int n = 0;
    for (int f = 0; f < FMT_COUNT; f++)
        for (int a = 0; a < 3; a++)
            if (stored_bytes((enum format)f, s->n_columns) && kern_ref.supports(KERN_OP_EXPERTS_OUT, (enum format)f, (enum kern_activation)a, 0))
                all[n++] = (struct expert){(enum format)f, (enum kern_activation)a, NULL, NULL};
    for (int e = 0; e < routes->n_experts; e++) {
        l->experts[e] = all[(first + e) % n];
        l->experts[e].rows = make_rows(r, l->experts[e].format, N_ROWS, s->n_columns, s->scale_columns);
        l->experts[e].bias = make_floats(r, N_ROWS);
    }
    route_tokens(r, l);
    return n;
}

static void layer_close(struct layer *l) {
    for (int e = 0; e < l->routes->n_experts; e++) {
        free(l->experts[e].rows);
        free(l->experts[e].bias);
    }
}

/* Leaves [leaf_lo, leaf_hi) of expert e. */
static void expert_open(struct kern_matrix *m, const struct kern_backend *b, const struct layer *l, int e, uint32_t leaf_lo, uint32_t leaf_hi, uint64_t n_rows) {
    matrix_open(m, b, l->experts[e].format, l->experts[e].activation, l->shape, leaf_lo, leaf_hi, l->experts[e].rows, n_rows);
}

static void emit_each_leaf(struct kern_columns *c) {
    memset(c->n_folds, 0, sizeof c->n_folds);
    memset(c->emit, 1, sizeof c->emit);
    c->n_vectors = c->n_leaves;
}

static void expect_same(const struct kern_backend *b, const struct layer *l, const char *what, int row, int n_threads, const float *got, const float *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (memcmp(got + i, want + i, sizeof *got) != 0)
            fail_msg("%s by %s/%s, %s, %s, %d threads: row %d, column %d: %.9g, expected %.9g", what, b->name, b->variant, l->shape->name, l->routes->name, n_threads, row,
                     (int)i, (double)got[i], (double)want[i]);
}

/* n rows of `width`, guarded, with gaps between them. */
static float *output_open(size_t n, size_t width) {
    float *y = t_guard_alloc(n * (width + GAP) * sizeof *y);
    memset(y, FILL, n * (width + GAP) * sizeof *y);
    return y;
}

static void output_check(const float *y, size_t n, size_t width) {
    t_guard_check(y);
    for (size_t i = 0; i < n; i++)
        for (size_t byte = 0; byte < GAP * sizeof *y; byte++)
            assert_int_equal(((const unsigned char *)(y + i * (width + GAP) + width))[byte], FILL);
}

/* ---- gate and up ------------------------------------------------------------------------------------------------------------------------------------ */

/* Two matrices of each expert, the second one lower and without a bias; the kinds of activation of all of them meet in one scratch. */
static void check_in(const struct kern_backend *b, const struct layer *l, const struct layer *second, const float *x, int n_threads) {
    enum { LOWER = 17 };
    const struct routes *routes = l->routes;
    size_t stride = l->shape->n_columns + 1, n_slots = (size_t)l->begin[routes->n_experts];
    struct kern_matrix matrices[2][MAX_EXPERTS] = {0};
    const struct kern_matrix *pointers[2][MAX_EXPERTS];
    const float *bias[MAX_EXPERTS];
    for (int e = 0; e < routes->n_experts; e++) {
        expert_open(&matrices[0][e], b, l, e, 0, 1, N_ROWS);
        expert_open(&matrices[1][e], b, second, e, 0, 1, LOWER);
        bias[e] = l->experts[e].bias;
        for (int p = 0; p < 2; p++) /* nobody touches who has no tokens */
            pointers[p][e] = l->begin[e + 1] > l->begin[e] ? &matrices[p][e] : NULL;
    }
    float *y = output_open(n_slots, N_ROWS), *y2 = output_open(n_slots, LOWER);
    struct kern_experts_in args = {.slots = &l->slots, .x = x, .x_stride = stride, .n_tokens = routes->n_tokens, .n_parts = 2,
                                   .parts = {{pointers[0], bias, y, N_ROWS + GAP}, {pointers[1], NULL, y2, LOWER + GAP}}};
    args.scratch = t_guard_alloc(routes->n_experts ? b->experts_scratch_bytes(&matrices[0][0].columns, (int)n_slots, routes->n_tokens, 0, n_threads) : 0);
    for (int i = n_threads - 1; i >= 0; i--)
        b->experts_in_prepare((struct kern_queue){i, n_threads}, &args);
    for (int i = n_threads - 1; i >= 0; i--)
        b->experts_in((struct kern_queue){i, n_threads}, &args);
    t_guard_free(args.scratch);
    output_check(y, n_slots, N_ROWS);
    output_check(y2, n_slots, LOWER);
    /* ---- the same by products of the gathered rows */
    for (int e = 0; e < routes->n_experts; e++) {
        int first = l->begin[e], n = l->begin[e + 1] - first;
        float *gathered = malloc((size_t)(n + 1) * stride * sizeof *gathered);
        for (int i = 0; i < n; i++)
            memcpy(gathered + (size_t)i * stride, x + (size_t)l->token[first + i] * stride, stride * sizeof *gathered);
        float *want = product(b, &matrices[0][e], gathered, stride, n, bias[e], 1), *want2 = product(b, &matrices[1][e], gathered, stride, n, NULL, 1);
        for (int i = 0; i < n; i++) {
            expect_same(b, l, "gate", first + i, n_threads, y + (size_t)(first + i) * (N_ROWS + GAP), want + (size_t)i * N_ROWS, N_ROWS);
            expect_same(b, l, "up", first + i, n_threads, y2 + (size_t)(first + i) * (LOWER + GAP), want2 + (size_t)i * LOWER, LOWER);
        }
        t_guard_free(want);
        t_guard_free(want2);
        free(gathered);
        matrix_close(&matrices[0][e]);
        matrix_close(&matrices[1][e]);
    }
    t_guard_free(y);
    t_guard_free(y2);
}

static void experts_in(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    struct shape shapes[] = {one_leaf("512 columns", 512), one_leaf("90 columns", 90)};
    shapes[0].scale_columns = 128;
    shapes[1].scale = 0.37f;
    for (size_t i = 0; i < 2; i++) {
        int n_kinds = 1;
        for (int first = 0, round = 0; first < n_kinds || round < N_ROUTES; round++) {
            struct layer l, second;
            const struct routes *routes = &all_routes[round % N_ROUTES];
            n_kinds = layer_open(&l, &r, &shapes[i], routes, first);
            layer_open(&second, &r, &shapes[i], routes, first + 5);
            float *x = make_floats(&r, (size_t)routes->n_tokens * (shapes[i].n_columns + 1));
            FOR_BACKENDS(b)
                for (int n_threads = 1; n_threads <= (*b == &kern_ref ? 1 : 3); n_threads++)
                    check_in(*b, &l, &second, x, n_threads);
            free(x);
            layer_close(&l);
            layer_close(&second);
            first += routes->n_experts;
        }
    }
}

/* ---- down, by hand ---------------------------------------------------------------------------------------------------------------------------------- */

/* sums [n_sums][n_tokens][N_ROWS] before they are folded; groups: sum_of of each expert in expert mode, NULL in tensor mode. */
static float *sums_by_hand(const struct layer *l, const float *x, const uint8_t *sum_of, int n_sums) {
    size_t stride = l->shape->n_columns, n_tokens = (size_t)l->routes->n_tokens;
    float *sums = calloc((size_t)n_sums * n_tokens * N_ROWS + 1, sizeof *sums);
    for (int e = 0; e < l->routes->n_experts; e++) {
        struct kern_matrix m;
        expert_open(&m, &kern_ref, l, e, 0, l->shape->n_leaves, N_ROWS);
        if (!sum_of)
            emit_each_leaf(&m.columns);
        size_t first = (size_t)l->begin[e], n = (size_t)l->begin[e + 1] - first;
        float *vectors = product(&kern_ref, &m, x + first * stride, stride, (int)n, sum_of ? l->experts[e].bias : NULL, 1);
        for (size_t v = 0; v < m.columns.n_vectors; v++)
            for (size_t i = 0; i < n; i++)
                for (size_t row = 0; row < N_ROWS; row++) {
                    float *to = &sums[(((sum_of ? sum_of[e] : 0) + v) * n_tokens + (size_t)l->token[first + i]) * N_ROWS + row];
                    *to = fmaf(l->weight[first + i], vectors[(v * n + i) * N_ROWS + row], *to);
                }
        t_guard_free(vectors);
        matrix_close(&m);
    }
    return sums;
}

static float tree_value(const float *sums, size_t apart, uint32_t a, uint32_t b) {
    if (b - a == 1)
        return sums[a * apart];
    uint32_t m = a + (b - a + 1) / 2;
    float left = tree_value(sums, apart, a, m), right = tree_value(sums, apart, m, b);
    return left + right;
}

/* ---- down, by a backend ----------------------------------------------------------------------------------------------------------------------------- */

/* One rank: sums lo … hi − 1 of n_sums, which are leaves, or the groups of sum_of. Its vectors go to *sum; returns their memory. */
static float *rank_out(const struct kern_backend *b, const struct layer *l, const float *x, const uint8_t *sum_of, uint32_t lo, uint32_t hi, uint32_t n_sums,
                       int n_threads, struct kern_sum *sum) {
    /* ---- local experts and columns */
    int e_lo = 0, e_hi = l->routes->n_experts;
    uint8_t local_sum_of[MAX_EXPERTS] = {0}, n_folds[KERN_MAX_LEAVES], emit[KERN_MAX_LEAVES];
    for (; sum_of && e_lo < e_hi && sum_of[e_lo] < lo; e_lo++) {}
    for (; sum_of && e_hi > e_lo && sum_of[e_hi - 1] >= hi; e_hi--) {}
    struct kern_matrix matrices[MAX_EXPERTS];
    const struct kern_matrix *pointers[MAX_EXPERTS] = {0};
    const float *bias[MAX_EXPERTS] = {0};
    struct kern_columns columns = {0};
    int32_t begin[MAX_EXPERTS + 1] = {0}, base = l->begin[e_lo];
    for (int e = e_lo; e < e_hi; e++) {
        int i = e - e_lo;
        expert_open(&matrices[i], b, l, e, sum_of ? 0 : lo, sum_of ? l->shape->n_leaves : hi, N_ROWS);
        if (!sum_of)
            emit_each_leaf(&matrices[i].columns);
        columns = matrices[i].columns;
        bias[i] = l->experts[e].bias;
        begin[i + 1] = l->begin[e + 1] - base;
        pointers[i] = begin[i + 1] > begin[i] ? &matrices[i] : NULL;
        local_sum_of[i] = sum_of ? (uint8_t)(sum_of[e] - lo) : 0;
    }
    struct kern_slots slots = {e_hi - e_lo, begin, l->token + base, l->weight + base};
    /* ---- x of local slots and columns, outputs */
    size_t stride = l->shape->n_columns, width = (size_t)(columns.end - columns.begin), n_slots = (size_t)begin[e_hi - e_lo], n_tokens = (size_t)l->routes->n_tokens;
    float *local = malloc((n_slots * (width + 1) + 1) * sizeof *local);
    for (size_t i = 0; i < n_slots; i++)
        memcpy(local + i * (width + 1), x + ((size_t)base + i) * stride + columns.begin, width * sizeof *local);
    uint32_t n_vectors = kern_folds_init(lo, hi, n_sums, n_folds, emit);
    float *y = output_open(n_vectors * n_tokens, N_ROWS);
    /* ---- run */
    struct kern_experts_out args = {.slots = &slots, .x = local, .x_stride = width + 1, .matrix = pointers, .bias = sum_of ? bias : NULL, .sum_of = sum_of ? local_sum_of : NULL,
                                    .n_sums = (int)(hi - lo), .n_folds = n_folds, .emit = emit, .n_tokens = (int)n_tokens, .n_rows = N_ROWS, .y = y,
                                    .y_stride = N_ROWS + GAP, .vector_stride = n_tokens * (N_ROWS + GAP)};
    args.scratch = t_guard_alloc(b->experts_scratch_bytes(&columns, (int)n_slots, (int)n_tokens, args.n_sums, n_threads));
    for (int i = n_threads - 1; i >= 0; i--)
        b->experts_out_prepare((struct kern_queue){i, n_threads}, &args);
    for (int i = n_threads - 1; i >= 0; i--)
        b->experts_out((struct kern_queue){i, n_threads}, &args);
    t_guard_free(args.scratch);
    output_check(y, n_vectors * n_tokens, N_ROWS);
    for (int i = 0; i < slots.n_experts; i++)
        matrix_close(&matrices[i]);
    free(local);
    /* ---- which sums its vectors cover */
    uint32_t from = lo, i_vector = 0;
    for (uint32_t i = lo; i < hi; i++)
        if (emit[i - lo]) {
            sum->vectors[sum->n_vectors] = y + i_vector++ * args.vector_stride;
            sum->vector_lo[sum->n_vectors] = (uint8_t)from;
            sum->vector_hi[sum->n_vectors++] = (uint8_t)(from = i + 1);
        }
    assert_int_equal(i_vector, n_vectors);
    assert_int_equal(from, hi);
    return y;
}

/* One to four ranks, evenly and not, some without any sum: the tree over all of them is the one by hand. */
static void check_out(const struct kern_backend *b, const struct layer *l, const float *x, const uint8_t *sum_of, uint32_t n, const float *by_hand) {
    const uint32_t cuts[][5] = {{0, n}, {0, n / 2, n}, {0, n * 5 / 8, n}, {0, n / 3, 2 * n / 3, n}, {0, 0, n, n}, {0, n / 4, n / 2, 3 * n / 4, n}};
    static const int n_ranks[] = {1, 2, 2, 3, 3, 4};
    size_t n_tokens = (size_t)l->routes->n_tokens;
    for (size_t i = 0; i < sizeof n_ranks / sizeof n_ranks[0]; i++) {
        if (b == &kern_ref && i != 0 && i != 3) /* slow */
            continue;
        for (int n_threads = 1; n_threads <= (i == 0 && b != &kern_ref ? 3 : 1); n_threads++) {
            struct kern_sum sum = {.n_leaves = n, .n_tokens = (int)n_tokens, .width = N_ROWS, .vector_token_stride = N_ROWS + GAP, .y_stride = N_ROWS};
            float *vectors[4];
            for (int rank = 0; rank < n_ranks[i]; rank++)
                vectors[rank] = rank_out(b, l, x, sum_of, cuts[i][rank], cuts[i][rank + 1], n, n_threads, &sum);
            sum.y = t_guard_alloc(n_tokens * N_ROWS * sizeof(float));
            b->sum((struct kern_queue){0, 1}, &sum);
            for (size_t t = 0; t < n_tokens; t++) {
                float want[N_ROWS];
                for (size_t row = 0; row < N_ROWS; row++)
                    want[row] = tree_value(by_hand + t * N_ROWS + row, n_tokens * N_ROWS, 0, n);
                expect_same(b, l, sum_of ? "down by groups" : "down by leaves", (int)t, n_threads, sum.y + t * N_ROWS, want, N_ROWS);
            }
            t_guard_free(sum.y);
            for (int rank = 0; rank < n_ranks[i]; rank++)
                t_guard_free(vectors[rank]);
        }
    }
}

static void check_all(bool by_groups) {
    struct base_rng r;
    base_rng_init(&r, t_seed());
    /* the last: whose sums for 70 tokens leave the cpu room for two row tiles at a time */
    struct shape shapes[] = {by_units("512 columns", 512), by_units("331 columns", 331), by_heads("32 heads of 7", 32, 7)};
    shapes[0].scale_columns = 128;
    shapes[1].scale = 0.37f;
    for (size_t i = 0; i < 3; i++) {
        int n_kinds = 1;
        for (int first = 0, round = 0; first < n_kinds || round < N_ROUTES; round++) {
            struct layer l;
            const struct routes *routes = &all_routes[round % N_ROUTES];
            n_kinds = layer_open(&l, &r, &shapes[i], routes, first);
            /* as many groups as experts, or three, of unequal size; the last ones may have no slots */
            uint8_t sum_of[MAX_EXPERTS];
            uint32_t n_groups = round % 2 && routes->n_experts > 3 ? 3 : routes->n_experts ? (uint32_t)routes->n_experts : 1, n = by_groups ? n_groups : shapes[i].n_leaves;
            for (int e = 0; e < routes->n_experts; e++)
                for (uint32_t g = 0; g < n_groups; g++)
                    if ((uint32_t)e >= g * (uint32_t)routes->n_experts / n_groups)
                        sum_of[e] = (uint8_t)g;
            float *x = make_floats(&r, (size_t)l.begin[routes->n_experts] * shapes[i].n_columns), *by_hand = sums_by_hand(&l, x, by_groups ? sum_of : NULL, (int)n);
            FOR_BACKENDS(b) check_out(*b, &l, x, by_groups ? sum_of : NULL, n, by_hand);
            free(x);
            free(by_hand);
            layer_close(&l);
            first += routes->n_experts;
        }
    }
}

static void experts_out_by_leaves(void **state) { (void)state, check_all(false); }
static void experts_out_by_groups(void **state) { (void)state, check_all(true); }

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(experts_in), cmocka_unit_test(experts_out_by_leaves), cmocka_unit_test(experts_out_by_groups)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
