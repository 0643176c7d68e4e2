/* Mixtures of experts in programs and plans: the golden models (tests/golden/families) in both modes, cut in every way, audited; steps with a fault are named; tensors that are not there
 * or do not fit are refused in one sentence. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/rng.h"
#include "partition/expert_load.h"
#include "partition/plan.h"
#include "tests/t.h"
#include "tests/t_ck.h"

#define FAMILIES "tests/golden/families"

static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    (void)s, (void)m;
    return (w->rows.end - w->rows.begin) * (w->columns.end - w->columns.begin) * 4;
}
static uint64_t kv_block_bytes(const struct part_sizes *s, const struct part_cache *c) { return 8ull * s->kv_block_tokens * c->n_kv_heads * c->head_dim; }
static uint64_t scratch_bytes(const struct part_sizes *s, const struct part_model *m) { return (void)s, (void)m, 4096; }
static uint64_t comm_bytes(const struct part_sizes *s, int n_ranks, uint64_t most) { return (void)s, (uint64_t)n_ranks * most; }
static const struct part_sizes sizes = {
    .matrix_bytes = matrix_bytes, .kv_block_bytes = kv_block_bytes, .scratch_bytes = scratch_bytes, .comm_bytes = comm_bytes, .kv_block_tokens = 16};
static const struct part_plan_options usual = {.n_ranks = 2, .max_tokens = 16, .max_rows = 4, .context = 128, .max_sequences = 1};

static struct checkpoint *ck;

static struct part_model *open_model(const char *path, enum part_moe moe)
{
    struct part_model *m;
    struct err e = {""};
    T_OK(ck_open(path, &ck, &e), &e);
    T_OK(part_model_create(ck, &(struct part_model_options){.moe = moe}, &m, &e), &e);
    return m;
}

static void close_model(struct part_model *m)
{
    part_model_destroy(m);
    ck_close(ck);
}

/* ---- plans ---- */

static void audit_all_cuts(struct part_model *m, const char *name)
{
    static const uint32_t uneven[4] = {1, 0, 4, 2};
    for (int n = 1; n <= 5; n++) {
        struct part_plan_options o = usual;
        struct part_plan *plan;
        struct part_audit a;
        struct err e = {""};
        o.n_ranks = n == 5 ? 4 : n;
        o.shares = n == 5 ? uneven : NULL;
        T_OK(part_plan_create(m, &o, &sizes, &plan, &e), &e);
        if (part_audit_plan(plan, &a, &e) != ST_OK)
            fail_msg("%s, %d ranks: %s", name, o.n_ranks, e.text);
        if (a.owned_bytes + a.unused_bytes != a.checkpoint_bytes || a.unused_bytes != 0)
            fail_msg("%s, %d ranks: %llu bytes are unused", name, o.n_ranks, (unsigned long long)a.unused_bytes);
        /* attention, experts, and where all heads are normed together one more; the embedding's select */
        const int n_more = strncmp(name, "minimax", 7) == 0;
        if (n > 1 && a.n_exchanges != m->config.n_layers * (2 + n_more) + 1)
            fail_msg("%s, %d ranks: %d exchanges a step in %d layers", name, o.n_ranks, a.n_exchanges, m->config.n_layers);
        part_plan_destroy(plan);
    }
}

static void every_family_in_both_modes(void **state)
{
    (void)state;
    DIR *dir = opendir(FAMILIES);
    assert_non_null(dir);
    int n = 0;
    for (struct dirent *d; (d = readdir(dir));) {
        char path[512];
        struct stat st;
        if (d->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, FAMILIES "/%s/model.gguf", d->d_name);
        if (stat(path, &st) != 0)
            snprintf(path, sizeof path, FAMILIES "/%s", d->d_name);
        for (int moe = 0; moe < 2; moe++, n++) {
            struct part_model *m = open_model(path, (enum part_moe)moe);
            audit_all_cuts(m, d->d_name);
            close_model(m);
        }
    }
    closedir(dir);
    assert_true(n >= 20);
}

/* Expert mode: a rank has all rows and columns of its experts and nothing of the others'; tensor mode: a part of each. */
static void who_holds_what(void **state)
{
    (void)state;
    for (int moe = 0; moe < 2; moe++) {
        struct part_model *m = open_model(FAMILIES "/qwen3_moe-e7", (enum part_moe)moe);
        struct part_plan *plan;
        struct err e = {""};
        T_OK(part_plan_create(m, &usual, &sizes, &plan, &e), &e);
        int held = 0;
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < m->n_weights; i++) {
                const struct part_weight *w = &plan->ranks[r]->weights[i];
                if (!strstr(w->name, ".experts."))
                    continue;
                const bool whole = w->rows.end - w->rows.begin == w->row_axis.size && w->columns.end - w->columns.begin == w->column_axis.size, nothing = w->slice_bytes == 0;
                assert_true(moe ? whole != nothing : !whole && !nothing);
                held += !nothing;
            }
        const int n_experts = 7 * 3 * 2; /* matrices, layers with experts */
        assert_int_equal(held, moe ? n_experts : 2 * n_experts);
        /* of seven experts, three for a token */
        uint64_t all = 0, dense = 0;
        for (int i = 0; i < m->n_weights; i++)
            if (m->weights[i].kind == PART_MATRIX && i > 0)
                *(strstr(m->weights[i].name, ".experts.") ? &all : &dense) += part_weight_stored_bytes(&m->weights[i]);
        assert_true(plan->weight_bytes_per_token == dense + all * 3 / 7);
        part_plan_destroy(plan);
        close_model(m);
    }
}

/* ---- faults ---- */

static struct part_step *step(struct part_model *m, enum part_op op)
{
    for (int i = 0; i < m->main.n_steps; i++)
        if (m->main.steps[i].op == op)
            return &m->main.steps[i];
    fail_msg("no such step");
    return NULL;
}

static void route_of_more(struct part_model *m) { step(m, PART_ROUTE)->n_experts++; }
static void route_to_logits(struct part_model *m) { m->values[step(m, PART_ROUTE)->out[0]].element_bytes = 4; }
static void correction_of_another(struct part_model *m) { step(m, PART_ROUTE)->bias[0] = step(m, PART_NORM)->weight[0]; }
static void no_routes(struct part_model *m) { step(m, PART_EXPERTS_IN)->in[1] = step(m, PART_EXPERTS_IN)->in[0]; }
static void beyond_the_last(struct part_model *m) { step(m, PART_EXPERTS_IN)->weight[0] = m->n_weights - 1; }
static void more_experts(struct part_model *m) { step(m, PART_EXPERTS_OUT)->expert_end++; }
static void fewer_experts(struct part_model *m) { step(m, PART_EXPERTS_OUT)->n_experts--; }
static void slots_for_tokens(struct part_model *m) { step(m, PART_EXPERTS_IN)->in[0] = step(m, PART_EXPERTS_OUT)->in[0]; }
static void tokens_for_slots(struct part_model *m) { step(m, PART_EXPERTS_OUT)->in[0] = step(m, PART_NORM)->out[0]; }
static void one_leaf(struct part_model *m) { m->weights[step(m, PART_EXPERTS_OUT)->weight[0] + 1].leaf_dim = PART_WHOLE; }
static void leaves_added(struct part_model *m) { m->weights[step(m, PART_EXPERTS_OUT)->weight[0]].leaves_apart ^= true; }
static void narrow_expert(struct part_model *m) { m->weights[step(m, PART_EXPERTS_IN)->weight[1] + 2].rows.end--; }
static void short_expert(struct part_model *m) { m->weights[step(m, PART_EXPERTS_OUT)->weight[0] + 2].rows.end--; }
static void sum_over_another(struct part_model *m) { m->values[step(m, PART_EXPERTS_OUT)->out[0]].sum_dim = m->dim_heads; }
static void partial_unsummed(struct part_model *m) { step(m, PART_GATE)->in[0] = step(m, PART_EXPERTS_OUT)->out[0]; }

static void a_wrong_step_is_named(void **state)
{
    (void)state;
    static const struct {
        void (*change)(struct part_model *m);
        const char *says;
    } faults[] = {
        {route_of_more, "(route)"}, {route_to_logits, "does not hold routes"}, {correction_of_another, "does not fit the router"}, {no_routes, "holds no routes"}, {beyond_the_last, "experts that do not exist"},
        {more_experts, "(experts-out): has"}, {fewer_experts, "(experts-out): has"}, {slots_for_tokens, "(experts-in)"}, {tokens_for_slots, "(experts-out)"}, {one_leaf, "other leaves"},
        {leaves_added, "other leaves"}, {narrow_expert, "does not fit its output"}, {short_expert, "does not fit its output"}, {sum_over_another, "(experts-out)"}, {partial_unsummed, "(gate)"},
    };
    for (int moe = 0; moe < 2; moe++)
        for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
            struct part_model *m = open_model(FAMILIES "/mixtral-e8", (enum part_moe)moe);
            struct err e = {""};
            T_OK(part_model_check(m, &e), &e);
            faults[i].change(m);
            const enum st st = part_model_check(m, &e);
            if (st != ST_INVALID || !strstr(e.text, faults[i].says) || !strstr(e.text, "step"))
                fail_msg("fault %zu (wants \"%s\") gave %s: %s", i, faults[i].says, st_name(st), e.text);
            close_model(m);
        }
}

/* What a rank would do otherwise than the plan says. */
static void expert_of_another(struct part_plan *p) { p->ranks[1]->weights[p->ranks[1]->n_weights - 4].owner_unit--; }
static void expert_held_twice(struct part_plan *p)
{
    for (int i = 0; i < p->whole->n_weights; i++)
        if (p->whole->weights[i].owner_dim != PART_WHOLE && p->ranks[0]->weights[i].slice_bytes) {
            p->ranks[1]->weights[i].rows = p->ranks[0]->weights[i].rows;
            return;
        }
}
static void range_of_another(struct part_plan *p) { step(p->ranks[1], PART_EXPERTS_OUT)->expert_first--; }
static void follower_left_behind(struct part_plan *p)
{
    for (int i = 0; i < p->ranks[0]->main.n_steps; i++)
        for (int r = 0; r < 2; r++)
            if (p->ranks[r]->main.steps[i].op == PART_EXCHANGE)
                p->ranks[r]->main.steps[i].in[1] = PART_NONE;
}

static void an_auditor_sees_it(void **state)
{
    (void)state;
    static const struct {
        void (*change)(struct part_plan *p);
        const char *says;
    } faults[] = {{expert_of_another, "another part of it"}, {expert_held_twice, "the expert is another's"}, {range_of_another, "(experts-out)"}, {follower_left_behind, "sums what was not exchanged"}};
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct part_model *m = open_model(FAMILIES "/glm4_moe-groups", PART_MOE_EXPERT);
        struct part_plan *plan;
        struct part_audit a;
        struct err e = {""};
        T_OK(part_plan_create(m, &usual, &sizes, &plan, &e), &e);
        T_OK(part_audit_plan(plan, &a, &e), &e);
        faults[i].change(plan);
        t_expect_err_contains(ST_INVALID, part_audit_plan(plan, &a, &e), &e, faults[i].says);
        part_plan_destroy(plan);
        close_model(m);
    }
}

/* ---- tensors ---- */

enum { HIDDEN = 32, HEADS = 2, FFN = 32, VOCAB = 32, EXPERTS = 3 };
static float numbers[4096];
static struct t_tensor tensors[64];
static char names[64][96];
static size_t n_tensors;
static int n_more; /* experts that the configuration does not count */

static void add(const char *name, uint64_t rows, uint64_t columns)
{
    snprintf(names[n_tensors], sizeof names[n_tensors], "%s", name);
    tensors[n_tensors] = (struct t_tensor){names[n_tensors], "F32", columns ? 2 : 1, {rows, columns}, numbers, 4 * rows * (columns ? columns : 1)};
    n_tensors++;
}

/* A layer of Qwen3-MoE, but for the tensor called `without`; one called `odd` has a row too many. */
static enum st build(const char *without, const char *odd, struct err *e)
{
    static const char *const parts[] = {"gate_proj", "up_proj", "down_proj"};
    n_tensors = 0;
    add("model.embed_tokens.weight", VOCAB, HIDDEN);
    add("model.norm.weight", HIDDEN, 0);
    add("lm_head.weight", VOCAB, HIDDEN);
    add("model.layers.0.input_layernorm.weight", HIDDEN, 0);
    add("model.layers.0.post_attention_layernorm.weight", HIDDEN, 0);
    for (int k = 0; k < 4; k++) {
        char name[96];
        snprintf(name, sizeof name, "model.layers.0.self_attn.%c_proj.weight", "qkvo"[k]);
        add(name, HIDDEN, HIDDEN);
    }
    add("model.layers.0.self_attn.q_norm.weight", HIDDEN / HEADS, 0);
    add("model.layers.0.self_attn.k_norm.weight", HIDDEN / HEADS, 0);
    add("model.layers.0.mlp.gate.weight", EXPERTS, HIDDEN);
    for (int i = 0; i < EXPERTS + n_more; i++)
        for (int k = 0; k < 3; k++) {
            char name[96];
            snprintf(name, sizeof name, "model.layers.0.mlp.experts.%d.%s.weight", i, parts[k]);
            add(name, k < 2 ? FFN : HIDDEN, k < 2 ? HIDDEN : FFN);
        }
    for (size_t i = 0; i < n_tensors; i++) {
        if (odd && strcmp(names[i], odd) == 0) {
            tensors[i].dims[0]++;
            tensors[i].bytes += 4 * (tensors[i].n_dims > 1 ? tensors[i].dims[1] : 1);
        }
        if (without && strcmp(names[i], without) == 0)
            snprintf(names[i], sizeof names[i], "other");
    }
    mkdir(t_path("model"), 0755);
    t_write_text(t_path("model/config.json"), "{\"model_type\":\"qwen3_moe\",\"num_hidden_layers\":1,\"hidden_size\":32,\"num_attention_heads\":2,\"num_key_value_heads\":2,\"head_dim\":16,"
                                              "\"intermediate_size\":32,\"moe_intermediate_size\":32,\"num_experts\":3,\"num_experts_per_tok\":2,\"vocab_size\":32,\"rms_norm_eps\":1e-5}");
    t_safetensors(t_path("model/model.safetensors"), tensors, n_tensors, NULL);
    struct part_model *m;
    T_OK(ck_open(t_path("model"), &ck, e), e);
    const enum st st = part_model_create(ck, NULL, &m, e);
    if (!st)
        part_model_destroy(m);
    ck_close(ck);
    return st;
}

static void what_is_missing_or_does_not_fit(void **state)
{
    (void)state;
    struct err e = {""};
    T_OK(build(NULL, NULL, &e), &e);
    t_expect_err_contains(ST_NOT_FOUND, build("model.layers.0.mlp.experts.1.up_proj.weight", NULL, &e), &e, "tensor model.layers.0.mlp.experts.1.up_proj.weight is missing");
    t_expect_err_contains(ST_NOT_FOUND, build("model.layers.0.mlp.experts.2.down_proj.weight", NULL, &e), &e, "experts.2.down_proj.weight is missing");
    t_expect_err_contains(ST_NOT_FOUND, build("model.layers.0.mlp.gate.weight", NULL, &e), &e, "mlp.gate.weight is missing");
    t_expect_err_contains(ST_NOT_FOUND, build("model.layers.0.self_attn.k_norm.weight", NULL, &e), &e, "k_norm.weight is missing");
    n_more = 1;
    t_expect_err_contains(ST_INVALID, build(NULL, NULL, &e), &e, "experts.3.down_proj.weight is there, but the configuration has 3 experts");
    n_more = 0;
    t_expect_err_contains(ST_INVALID, build(NULL, "model.layers.0.mlp.gate.weight", &e), &e, "mlp.gate.weight has shape [4, 32]");
    t_expect_err_contains(ST_INVALID, build(NULL, "model.layers.0.mlp.experts.0.gate_proj.weight", &e), &e, "experts.0.gate_proj.weight has shape [33, 32]");
}

/* ---- maps ---- */

static enum st read_map(const char *text, int n_layers, int n_experts, struct expert_map *map, struct err *e)
{
    static struct arena arena;
    base_arena_release(&arena);
    T_OK(base_arena_init(&arena, "map", 0, e), e);
    t_write_text(t_path("map.json"), text);
    return expert_map_read(t_path("map.json"), n_layers, n_experts, &arena, map, e);
}

static void maps_are_checked(void **state)
{
    (void)state;
    struct expert_map map;
    struct err e = {""};
    T_OK(read_map("{\"layers\":[[2,0,1],[]],\"counts\":7}", 2, 3, &map, &e), &e);
    assert_true(map.at[0][0] == 2 && map.at[0][1] == 0 && map.at[0][2] == 1 && map.at[1] == NULL); /* groups of one: as they stand */
    const struct {
        const char *text, *says;
    } bad[] = {
        {"{}", "no list of layers"}, {"{\"layers\":7}", "no list of layers"}, {"{\"layers\":[[0,1,2]]}", "1 layers, but the model has 2"}, {"{\"layers\":[[0,1,2],3]}", "layers[1] is no list"},
        {"{\"layers\":[[0,1],[]]}", "layers[0] forgets expert 2"}, {"{\"layers\":[[0,1,1],[]]}", "layers[0] has expert 1 twice"}, {"{\"layers\":[[0,1,3],[]]}", "layers[0][2] is none of 3"},
        {"{\"layers\":[[0,1,2,0],[]]}", "has expert 0 twice"}, {"{\"layers\":[[0,1,\"2\"],[]]}", "layers[0][2] is none of 3"}, {"{\"layers\":[[0,1,-1],[]]}", "is none of 3"}, {"[", "map.json:1"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        t_expect_err_contains(ST_INVALID, read_map(bad[i].text, 2, 3, &map, &e), &e, bad[i].says);

    T_OK(ck_open(FAMILIES "/qwen3_moe-e7", &ck, &e), &e);
    struct part_model *m;
    t_write_text(t_path("map.json"), "{\"layers\":[[0,1,2,3,4,5,6],[],[6,5,4,3,2,1,0]]}");
    t_expect_err_contains(ST_INVALID, part_model_create(ck, &(struct part_model_options){PART_MOE_TENSOR, t_path("map.json")}, &m, &e), &e, "goes with --moe ep");
    T_OK(part_model_create(ck, &(struct part_model_options){PART_MOE_EXPERT, t_path("map.json")}, &m, &e), &e);
    audit_all_cuts(m, "qwen3_moe-e7 with a map");
    part_model_destroy(m);
    t_write_text(t_path("map.json"), "{\"layers\":[[0,1,2,3,4,5,6],[],[]]}");
    t_expect_err_contains(ST_INVALID, part_model_create(ck, &(struct part_model_options){PART_MOE_EXPERT, t_path("map.json")}, &m, &e), &e, "no experts in layer 2");
    ck_close(ck);
    T_OK(ck_open(FAMILIES "/qwen3-kv3", &ck, &e), &e);
    t_expect_err_contains(ST_INVALID, part_model_create(ck, &(struct part_model_options){PART_MOE_EXPERT, t_path("map.json")}, &m, &e), &e, "has no experts");
    ck_close(ck);
}

/* Counts as uneven as real ones (falling like 1 / n, in any order): with its map the busiest of two to four ranks has at most 15 % more than the mean, where groups are large enough. */
static void maps_balance(void **state)
{
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const int numbers_of[] = {8, 40, 64, 128, 160};
    for (size_t k = 0; k < sizeof numbers_of / sizeof *numbers_of; k++) {
        const int n = numbers_of[k];
        uint64_t counts[160], total = 0;
        uint16_t at[160];
        bool seen[160] = {false};
        for (int i = 0; i < n; i++) {
            const int j = (int)base_rng_below(&r, (uint32_t)i + 1);
            counts[i] = counts[j];
            counts[j] = 100000u / (uint64_t)(i + 8);
        }
        expert_map_balance(counts, n, at);
        struct order_leaves groups;
        order_experts((uint32_t)n, &groups);
        for (int i = 0; i < n; i++) {
            assert_true(at[i] < n && !seen[at[i]]);
            seen[at[i]] = true;
            total += counts[i];
        }
        for (uint32_t g = 0; g < groups.n; g++)
            for (uint64_t p = order_leaf_begin(&groups, g) + 1; p < groups.end[g]; p++)
                assert_true(at[p - 1] < at[p]);
        for (uint32_t n_ranks = 2; n_ranks <= 4; n_ranks++) {
            const uint32_t shares[] = {1, 1, 1, 1};
            uint32_t lo[4], hi[4];
            order_cut(groups.n, shares, n_ranks, lo, hi);
            for (uint32_t rank = 0; rank < n_ranks; rank++) {
                uint64_t mine = 0;
                for (uint64_t p = order_leaf_begin(&groups, lo[rank]); p < groups.end[hi[rank] - 1]; p++)
                    mine += counts[at[p]];
                const double ratio = (double)mine * n_ranks / (double)total, size = (double)(groups.end[hi[rank] - 1] - order_leaf_begin(&groups, lo[rank])) * n_ranks / n;
                if (n >= 40 && ratio > 1.15 * (size > 1 ? size : 1))
                    fail_msg("%d experts, rank %u of %u has %.3f of the mean", n, rank, n_ranks, ratio);
            }
        }
    }
}

/* Against counting every way to choose. */
static void the_fullest_rank(void **state)
{
    (void)state;
    static const uint32_t held[3] = {5, 2, 4};
    enum { N = 11 };
    for (int k = 1; k <= 6; k++) {
        double sum = 0, ways = 0;
        for (uint32_t chosen = 0; chosen < 1u << N; chosen++) {
            if (__builtin_popcount(chosen) != k)
                continue;
            int most = 0, at = 0;
            for (int r = 0; r < 3; at += (int)held[r++]) {
                const int here = __builtin_popcount(chosen >> at & ((1u << held[r]) - 1));
                most = here > most ? here : most;
            }
            sum += most;
            ways++;
        }
        const double expected = expert_load_fullest(held, 3, k);
        if (!(expected > sum / ways - 1e-9 && expected < sum / ways + 1e-9))
            fail_msg("%d of %d: %.9f at the fullest, counted %.9f", k, N, expected, sum / ways);
    }
    assert_true(expert_load_fullest((const uint32_t[]){2048, 2048}, 2, 64) < 64 && expert_load_fullest((const uint32_t[]){4096, 0}, 2, 64) == 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_family_in_both_modes), cmocka_unit_test(who_holds_what),                   cmocka_unit_test(a_wrong_step_is_named),
        cmocka_unit_test(an_auditor_sees_it),         cmocka_unit_test(what_is_missing_or_does_not_fit),
        cmocka_unit_test(maps_are_checked),           cmocka_unit_test(maps_balance),
        cmocka_unit_test(the_fullest_rank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
