/* Models from headers, and the checker of programs: fused names, biases and tied heads are found; a tensor that is missing, of another shape or of an unknown type is named; a step
 * with a wrong operand, width or order is refused by name. Fault rows F10, F11. */
#include <string.h>

#include "partition/plan.h"
#include "tests/t.h"
#include "tests/t_ck.h"

enum { LAYERS = 2, HIDDEN = 64, HEADS = 6, KV = 3, DIM = 8, FFN = 352, VOCAB = 131, MAX_TENSORS = 64 };

static struct t_tensor tensors[MAX_TENSORS];
static char names[MAX_TENSORS][80];
static size_t n_tensors;
static float first_of_head[VOCAB * HIDDEN] = {1}; /* else it would be taken for a copy of the embedding: both are holes */

static void add(const char *name, uint64_t rows, uint64_t columns)
{
    assert_true(n_tensors < MAX_TENSORS);
    snprintf(names[n_tensors], sizeof names[0], "%s", name);
    tensors[n_tensors] = (struct t_tensor){names[n_tensors], "F32", columns ? 2 : 1, {rows, columns}, NULL, 4 * rows * (columns ? columns : 1)};
    n_tensors++;
}

static void add_layer(int layer, const char *name, uint64_t rows, uint64_t columns)
{
    char full[80];
    snprintf(full, sizeof full, "model.layers.%d.%s", layer, name);
    add(full, rows, columns);
}

static void base_model(void)
{
    n_tensors = 0;
    add("model.embed_tokens.weight", VOCAB, HIDDEN);
    add("model.norm.weight", HIDDEN, 0);
    add("lm_head.weight", VOCAB, HIDDEN);
    tensors[2].data = first_of_head;
    for (int i = 0; i < LAYERS; i++) {
        add_layer(i, "input_layernorm.weight", HIDDEN, 0);
        add_layer(i, "post_attention_layernorm.weight", HIDDEN, 0);
        add_layer(i, "self_attn.q_proj.weight", HEADS * DIM, HIDDEN);
        add_layer(i, "self_attn.k_proj.weight", KV * DIM, HIDDEN);
        add_layer(i, "self_attn.v_proj.weight", KV * DIM, HIDDEN);
        add_layer(i, "self_attn.o_proj.weight", HIDDEN, HEADS * DIM);
        add_layer(i, "mlp.gate_proj.weight", FFN, HIDDEN);
        add_layer(i, "mlp.up_proj.weight", FFN, HIDDEN);
        add_layer(i, "mlp.down_proj.weight", HIDDEN, FFN);
    }
}

static struct t_tensor *tensor(const char *name)
{
    for (size_t i = 0; i < n_tensors; i++)
        if (strcmp(names[i], name) == 0)
            return &tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void remove_tensor(const char *name)
{
    const size_t i = (size_t)(tensor(name) - tensors);
    n_tensors--;
    if (i == n_tensors)
        return;
    tensors[i] = tensors[n_tensors];
    memcpy(names[i], names[n_tensors], sizeof names[i]);
    tensors[i].name = names[i];
}

static void reshape(const char *name, int n_dims, uint64_t rows, uint64_t columns)
{
    struct t_tensor *t = tensor(name);
    t->n_dims = n_dims;
    t->dims[0] = rows;
    t->dims[1] = columns;
    t->bytes = 4 * rows * (n_dims > 1 ? columns : 1);
}

static struct checkpoint *ck;

static enum st create_model(struct part_model **m, struct err *e)
{
    char text[512];
    snprintf(text, sizeof text,
             "{\"model_type\":\"llama\",\"num_hidden_layers\":%d,\"hidden_size\":%d,\"num_attention_heads\":%d,\"num_key_value_heads\":%d,\"head_dim\":%d,\"intermediate_size\":%d,"
             "\"vocab_size\":%d,\"rms_norm_eps\":1e-05,\"max_position_embeddings\":4096}",
             LAYERS, HIDDEN, HEADS, KV, DIM, FFN, VOCAB);
    mkdir(t_path("model"), 0755);
    t_write_text(t_path("model/config.json"), text);
    t_safetensors(t_path("model/model.safetensors"), tensors, n_tensors, NULL);
    T_OK(ck_open(t_path("model"), &ck, e), e);
    return part_model_create(ck, NULL, m, e);
}

/* ---- plans ---------------------------------------------------------------------------------------------------------------------------------------------- */

static uint64_t matrix_bytes(const struct part_sizes *s, const struct part_model *m, const struct part_weight *w)
{
    (void)s, (void)m;
    return (w->rows.end - w->rows.begin) * (w->columns.end - w->columns.begin) * 4;
}
static uint64_t kv_block_bytes(const struct part_sizes *s, const struct part_cache *c) { return 8ull * s->kv_block_tokens * c->n_kv_heads * c->head_dim; }
static uint64_t scratch_bytes(const struct part_sizes *s, const struct part_model *m)
{
    (void)s, (void)m;
    return 4096;
}
static uint64_t comm_bytes(const struct part_sizes *s, int n_ranks, uint64_t max_exchange_bytes)
{
    (void)s;
    return (uint64_t)n_ranks * max_exchange_bytes;
}
static const struct part_sizes sizes = {
    .matrix_bytes = matrix_bytes, .kv_block_bytes = kv_block_bytes, .scratch_bytes = scratch_bytes, .comm_bytes = comm_bytes, .kv_block_tokens = 16};
static const struct part_plan_options usual = {.n_ranks = 2, .max_tokens = 16, .max_rows = 4, .context = 128, .max_sequences = 1};

/* Builds the tensors as they stand, plans for one to three ranks, audits; returns the last audit. */
static struct part_audit accept(void)
{
    struct part_model *m;
    struct part_audit a = {0};
    struct err e = {""};
    T_OK(create_model(&m, &e), &e);
    for (int n = 1; n <= 3; n++) {
        struct part_plan_options o = usual;
        o.n_ranks = n;
        struct part_plan *plan;
        T_OK(part_plan_create(m, &o, &sizes, &plan, &e), &e);
        T_OK(part_audit_plan(plan, &a, &e), &e);
        part_plan_destroy(plan);
    }
    part_model_destroy(m);
    return a;
}

static void finds_every_spelling(void **state)
{
    (void)state;
    t_declare_warnings(); /* the flags of the configuration say nothing of these biases */
    base_model();
    assert_int_equal(accept().unused_bytes, 0);
    ck_close(ck);

    remove_tensor("lm_head.weight"); /* tied */
    assert_int_equal(accept().unused_bytes, 0);
    ck_close(ck);

    for (int i = 0; i < LAYERS; i++) {
        static const char *const apart[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"};
        for (size_t k = 0; k < 5; k++) {
            char name[80];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, apart[k]);
            remove_tensor(name);
        }
        add_layer(i, "self_attn.qkv_proj.weight", (HEADS + 2 * KV) * DIM, HIDDEN);
        add_layer(i, "mlp.gate_up_proj.weight", 2 * FFN, HIDDEN);
    }
    assert_int_equal(accept().unused_bytes, 0);
    ck_close(ck);

    for (int i = 0; i < LAYERS; i++) { /* a fused bias, and biases apart although the weights are fused */
        add_layer(i, "self_attn.qkv_proj.bias", (HEADS + 2 * KV) * DIM, 0);
        add_layer(i, "mlp.gate_proj.bias", FFN, 0);
        add_layer(i, "mlp.up_proj.bias", FFN, 0);
        add_layer(i, "mlp.down_proj.bias", HIDDEN, 0);
        add_layer(i, "self_attn.o_proj.bias", HIDDEN, 0);
    }
    assert_int_equal(accept().unused_bytes, 0);
    ck_close(ck);
}

static void names_what_nobody_uses(void **state)
{
    (void)state;
    base_model();
    add("vision_tower.patch.weight", 5, 7);
    add_layer(0, "self_attn.rotary_emb.inv_freq", 4, 0);
    tensor("vision_tower.patch.weight")->dtype = "I32"; /* of no use and of no known type: no reason to refuse the model */
    const struct part_audit a = accept();
    assert_int_equal(a.n_unused, 2);
    assert_string_equal(a.unused[0], "model.layers.0.self_attn.rotary_emb.inv_freq");
    assert_string_equal(a.unused[1], "vision_tower.patch.weight");
    assert_int_equal(a.unused_bytes, 4 * 35 + 4 * 4);
    ck_close(ck);
}

/* ---- checkpoints that do not fit ---------------------------------------------------------------------------------------------------------------------------- */

static void no_down(void) { remove_tensor("model.layers.1.mlp.down_proj.weight"); }
static void no_v(void) { remove_tensor("model.layers.1.self_attn.v_proj.weight"); }
static void no_norm(void) { remove_tensor("model.norm.weight"); }
static void fewer_rows(void) { reshape("model.layers.0.mlp.up_proj.weight", 2, FFN - 1, HIDDEN); }
static void more_rows(void) { reshape("model.layers.1.self_attn.o_proj.weight", 2, HIDDEN + 1, HEADS * DIM); }
static void other_columns(void) { reshape("model.layers.1.mlp.down_proj.weight", 2, HIDDEN, FFN + 32); }
static void norm_as_matrix(void) { reshape("model.norm.weight", 2, HIDDEN, 1); }
static void matrix_as_vector(void) { reshape("model.layers.0.self_attn.o_proj.weight", 1, HIDDEN, 0); }
static void longest_numbers(void)
{
    struct t_tensor *t = tensor("model.layers.0.self_attn.o_proj.weight");
    t->n_dims = 4;
    t->dims[0] = t->dims[1] = t->dims[2] = INT64_MAX;
    t->dims[3] = t->bytes = 0;
}
static void integers(void) { tensor("model.layers.0.mlp.gate_proj.weight")->dtype = "I32"; }
static void half_a_bias(void)
{
    t_declare_warnings();
    add_layer(0, "self_attn.k_proj.bias", KV * DIM, 0);
}
static void fused_too_long(void)
{
    for (int i = 0; i < LAYERS; i++) {
        char name[80];
        snprintf(name, sizeof name, "model.layers.%d.mlp.gate_proj.weight", i);
        remove_tensor(name);
        snprintf(name, sizeof name, "model.layers.%d.mlp.up_proj.weight", i);
        remove_tensor(name);
        add_layer(i, "mlp.gate_up_proj.weight", 2 * FFN + 1, HIDDEN);
    }
}

static void a_tensor_that_does_not_fit_is_named(void **state)
{
    (void)state;
    static const struct {
        void (*change)(void);
        enum st st;
        const char *says;
    } faults[] = {
        {no_down, ST_NOT_FOUND, "model.layers.1.mlp.down_proj.weight is missing"},
        {no_v, ST_NOT_FOUND, "model.layers.1.self_attn.v_proj.weight is missing"},
        {no_norm, ST_NOT_FOUND, "model.norm.weight is missing"},
        {fewer_rows, ST_INVALID, "model.layers.0.mlp.up_proj.weight has shape [351, 64], the configuration asks for [352, 64]"},
        {more_rows, ST_INVALID, "model.layers.1.self_attn.o_proj.weight has shape [65, 48]"},
        {other_columns, ST_INVALID, "model.layers.1.mlp.down_proj.weight has shape [64, 384]"},
        {norm_as_matrix, ST_INVALID, "model.norm.weight has shape [64, 1], the configuration asks for [64]"},
        {matrix_as_vector, ST_INVALID, "model.layers.0.self_attn.o_proj.weight has shape [64], the configuration asks for [64, 48]"},
        {longest_numbers, ST_INVALID, "[9223372036854775807, 9223372036854775807, 9223372036854775807, 0]"},
        {integers, ST_UNSUPPORTED, "model.layers.0.mlp.gate_proj.weight: type I32 is not supported"},
        {half_a_bias, ST_NOT_FOUND, "model.layers.1.self_attn.k_proj.bias is missing"},
        {fused_too_long, ST_INVALID, "model.layers.0.mlp.gate_up_proj.weight has shape [705, 64], the configuration asks for [704, 64]"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct part_model *m;
        struct err e = {""};
        base_model();
        faults[i].change();
        const enum st st = create_model(&m, &e);
        t_expect_err_contains(faults[i].st, st, &e, faults[i].says);
        ck_close(ck);
    }
}

/* ---- programs that are wrong ---------------------------------------------------------------------------------------------------------------------------------- */

static struct part_step *nth(struct part_program *p, enum part_op op, int n)
{
    for (int i = 0; i < p->n_steps; i++)
        if (p->steps[i].op == op && n-- == 0)
            return &p->steps[i];
    fail_msg("no such step");
    return NULL;
}
static struct part_step *step(struct part_model *m, enum part_op op) { return nth(&m->main, op, 0); }

static void read_too_early(struct part_model *m) { step(m, PART_NORM)->in[0] = step(m, PART_GATE)->out[0]; }
static void rope_before_table(struct part_model *m) { step(m, PART_ROPE_TABLE)->out[0] = step(m, PART_GATE)->in[0]; }
static void value_out_of_range(struct part_model *m) { step(m, PART_GATE)->in[1] = (int16_t)m->n_values; }
static void value_negative(struct part_model *m) { step(m, PART_GATE)->in[1] = -2; }
static void output_out_of_range(struct part_model *m) { step(m, PART_GATE)->out[0] = (int16_t)m->n_values; }
static void input_missing(struct part_model *m) { step(m, PART_ATTENTION)->in[2] = PART_NONE; }
static void input_too_many(struct part_model *m) { step(m, PART_NORM)->in[1] = 0; }
static void inputs_too_many(struct part_model *m) { step(m, PART_NORM)->in[2] = 0; }
static void output_missing(struct part_model *m) { step(m, PART_LINEAR)->out[2] = PART_NONE; }
static void weight_missing(struct part_model *m) { step(m, PART_NORM)->weight[0] = PART_NONE; }
static void weight_out_of_range(struct part_model *m) { step(m, PART_LINEAR)->weight[1] = m->n_weights; }
static void bias_out_of_range(struct part_model *m) { step(m, PART_LINEAR)->bias[1] = m->n_weights; }
static void bias_of_a_gate(struct part_model *m) { step(m, PART_GATE)->bias[0] = step(m, PART_NORM)->weight[0]; }
static void bias_in_every_rank(struct part_model *m) { nth(&m->main, PART_LINEAR, 1)->bias[0] = step(m, PART_NORM)->weight[0]; }
static void matrix_as_bias(struct part_model *m) { step(m, PART_SUM)->bias[0] = step(m, PART_LINEAR)->weight[0]; }
static void vector_as_matrix(struct part_model *m) { step(m, PART_LINEAR)->weight[0] = step(m, PART_NORM)->weight[0]; }
static void too_many_parts(struct part_model *m) { step(m, PART_LINEAR)->n_parts = PART_MAX_PARTS + 1; }
static void no_parts(struct part_model *m) { step(m, PART_LINEAR)->n_parts = 0; }
static void unknown_step(struct part_model *m) { step(m, PART_GATE)->op = (enum part_op)77; }
static void dimension_missing(struct part_model *m) { step(m, PART_SUM)->dim = PART_NONE; }
static void dimension_out_of_range(struct part_model *m) { step(m, PART_SUM)->dim = (int16_t)m->n_dims; }
static void dimension_of_another(struct part_model *m) { step(m, PART_SUM)->dim = (int16_t)m->dim_ffn; }
static void cache_missing(struct part_model *m) { step(m, PART_ATTENTION)->cache = PART_NONE; }
static void cache_out_of_range(struct part_model *m) { step(m, PART_ATTENTION)->cache = (int16_t)m->n_caches; }
static void narrow_value(struct part_model *m) { m->values[step(m, PART_GATE)->in[0]].width--; }
static void narrow_query(struct part_model *m) { step(m, PART_ATTENTION)->n_heads--; }
static void heads_elsewhere(struct part_model *m) { step(m, PART_ATTENTION)->q_first = 2; }
static void head_numbers_overflow(struct part_model *m) { step(m, PART_ATTENTION)->q_first = UINT32_MAX - 1; }
static void no_group(struct part_model *m) { step(m, PART_ATTENTION)->head_group = 0; }
static void rope_of_more_heads(struct part_model *m) { step(m, PART_ROPE)->n_heads++; }
static void rope_elsewhere(struct part_model *m) { step(m, PART_ROPE)->out[0] = step(m, PART_ATTENTION)->out[0]; }
static void partial_used_unsummed(struct part_model *m) { nth(&m->main, PART_NORM, 1)->in[0] = step(m, PART_SUM)->in[1]; }
static void sum_of_no_partial(struct part_model *m) { step(m, PART_SUM)->in[1] = step(m, PART_SUM)->in[0]; }
static void rows_for_tokens(struct part_model *m) { nth(&m->head, PART_NORM, 0)->in[0] = (int16_t)m->value_hidden; }
static void candidates_too_small(struct part_model *m) { m->values[m->value_samples].element_bytes = 4; }
static void exchange_alone(struct part_model *m)
{
    struct part_step *s = step(m, PART_SUM);
    const int16_t value = s->in[1];
    *s = (struct part_step){.op = PART_EXCHANGE, .layer = s->layer, .n_parts = 1, .in = {value, -1, -1}, .out = {-1, -1, -1, -1}, .weight = {-1, -1, -1, -1}, .bias = {-1, -1, -1, -1}, .dim = s->dim, .cache = -1};
}

static void a_wrong_step_is_named(void **state)
{
    (void)state;
    static const struct {
        void (*change)(struct part_model *m);
        const char *says;
    } faults[] = {
        {read_too_early, "reads y before it is written"}, {rope_before_table, "width differs"}, {value_out_of_range, "reads value"}, {value_negative, "reads value -2"}, {output_out_of_range, "writes value"},
        {input_missing, "number 2 is missing"}, {input_too_many, "squares of heads"}, {inputs_too_many, "one too many"}, {output_missing, "number 2 is missing"}, {weight_missing, "(norm)"}, {weight_out_of_range, "weight that does not exist"},
        {bias_out_of_range, "weight that does not exist"}, {bias_of_a_gate, "no use for a bias"}, {bias_in_every_rank, "its bias does not fit"}, {matrix_as_bias, "a bias is a vector"},
        {vector_as_matrix, "a matrix where a vector"}, {too_many_parts, "has 5 parts"}, {no_parts, "has 0 parts"}, {unknown_step, "no known kind (77)"}, {dimension_missing, "dimension that does not exist"},
        {dimension_out_of_range, "dimension that does not exist"}, {dimension_of_another, "(sum): operands"}, {cache_missing, "cache"}, {cache_out_of_range, "cache"}, {narrow_value, "gate_proj"},
        {narrow_query, "query width"}, {heads_elsewhere, "KV head is not here"}, {head_numbers_overflow, "KV head is not here"}, {no_group, "no heads to a group"}, {rope_of_more_heads, "(rope)"},
        {rope_elsewhere, "(rope)"}, {partial_used_unsummed, "before its parts are summed"}, {sum_of_no_partial, "(sum)"}, {rows_for_tokens, "rows of another kind"}, {candidates_too_small, "samples"},
        {exchange_alone, "nobody to exchange with"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct part_model *m;
        struct err e = {""};
        base_model();
        T_OK(create_model(&m, &e), &e);
        T_OK(part_model_check(m, &e), &e);
        faults[i].change(m);
        const enum st st = part_model_check(m, &e);
        if (st != ST_INVALID || !strstr(e.text, faults[i].says) || !strstr(e.text, "step"))
            fail_msg("fault %zu (wants \"%s\") gave %s: %s", i, faults[i].says, st_name(st), e.text);
        part_model_destroy(m);
        ck_close(ck);
    }
}

/* ---- options and digests -------------------------------------------------------------------------------------------------------------------------------------- */

static void absurd_options_are_refused(void **state)
{
    (void)state;
    struct part_model *m;
    struct part_plan *plan;
    struct err e = {""};
    base_model();
    T_OK(create_model(&m, &e), &e);
    const uint32_t nothing[2] = {0, 0};
#define REFUSED(says, ...)                                                                                                                                                                   \
    do {                                                                                                                                                                                     \
        struct part_plan_options o = usual;                                                                                                                                                  \
        __VA_ARGS__;                                                                                                                                                                         \
        t_expect_err_contains(ST_INVALID, part_plan_create(m, &o, &sizes, &plan, &e), &e, says);                                                                                             \
    } while (0)
    REFUSED("0 ranks", o.n_ranks = 0);
    REFUSED("-1 ranks", o.n_ranks = -1);
    REFUSED("65 ranks", o.n_ranks = 65);
    REFUSED("every share is zero", o.shares = nothing);
    REFUSED("tokens of one step: 0", o.max_tokens = 0);
    REFUSED("tokens of one step: 2147483647", o.max_tokens = INT32_MAX);
    REFUSED("logit rows", o.max_rows = -5);
    REFUSED("tokens of one sequence", o.context = INT64_MAX);
    REFUSED("sequences at once", o.max_sequences = INT32_MAX);
    REFUSED("KV pool: -1", o.kv_tokens = -1);
    REFUSED("can be counted", o.kv_tokens = INT64_C(1) << 60);
    part_model_destroy(m);
    ck_close(ck);
}

/* Whatever a rank would compute, read or send otherwise is in the digest. */
static void the_digest_sees_every_field(void **state)
{
    (void)state;
    struct part_model *m;
    struct part_plan *plan;
    struct err e = {""};
    base_model();
    T_OK(create_model(&m, &e), &e);
    T_OK(part_plan_create(m, &usual, &sizes, &plan, &e), &e);
    const struct digest before = part_plan_digest(plan);
    assert_memory_equal(&before, &plan->digest, sizeof before);
#define SEES(field)                                                                                                                                                                          \
    do {                                                                                                                                                                                     \
        const __typeof__(field) kept = (field);                                                                                                                                              \
        (field)++;                                                                                                                                                                           \
        const struct digest now = part_plan_digest(plan);                                                                                                                                    \
        if (memcmp(&now, &before, sizeof now) == 0)                                                                                                                                          \
            fail_msg("the digest does not see %s", #field);                                                                                                                                  \
        (field) = kept;                                                                                                                                                                      \
    } while (0)
    struct part_plan_options *o = &plan->options;
    SEES(o->max_tokens); SEES(o->max_rows); SEES(o->context); SEES(o->max_sequences); SEES(o->kv_tokens); SEES(plan->n_kv_blocks); SEES(plan->max_exchange_bytes);
    struct part_dim_cut *c = &plan->cut.dims[m->dim_vocab];
    SEES(c->lo[1]); SEES(c->hi[0]); SEES(m->dims[m->dim_ffn].leaves.end[3]);
    c = &plan->cut.dims[m->dim_ffn];
    SEES(c->n_vectors[0]); SEES(c->node_lo[1][0]); SEES(c->node_hi[0][0]);
    struct model_config *config = &m->config;
    SEES(config->norm_eps); SEES(config->attention_scale); SEES(config->embedding_scale); SEES(config->head_dim); SEES(config->vocab); SEES(config->rope.attention_factor); SEES(config->moe.top_k); SEES(config->moe.scale); SEES(config->moe.k_groups); SEES(config->gate_limit);
    SEES(((double *)(uintptr_t)config->rope.frequency)[1]);
    struct part_model *rank = plan->ranks[1];
    struct part_weight *w = &rank->weights[5];
    SEES(w->first_row); SEES(*(unsigned *)&w->home); SEES(w->rows.begin); SEES(w->rows.end); SEES(w->columns.begin); SEES(w->columns.end); SEES(w->slice_bytes); SEES(w->leaf_dim); SEES(w->owner_dim); SEES(w->owner_unit); SEES(w->slices[0].file); SEES(w->slices[0].offset);
    for (int i = 0; i < 2; i++) {
        SEES(w->slices[0].count[i]);
        SEES(w->slices[0].stride[i]);
    }
    SEES(w->slices[0].run_bytes); SEES(w->slices[0].first_column);
    struct part_value *v = &rank->values[3];
    SEES(v->width); SEES(v->n_vectors); SEES(v->offset); SEES(v->element_bytes); SEES(v->sum_dim); SEES(v->follows);
    struct part_cache *cache = &rank->caches[1];
    SEES(cache->layer); SEES(cache->head_dim); SEES(cache->n_kv_heads);
    struct part_step *s = step(rank, PART_ATTENTION);
    SEES(s->layer); SEES(s->n_parts); SEES(s->in[2]); SEES(s->out[0]); SEES(s->weight[3]); SEES(s->bias[3]); SEES(s->dim); SEES(s->group); SEES(s->cache); SEES(s->eps); SEES(s->scale);
    SEES(s->n_heads); SEES(s->window); SEES(s->n_experts); SEES(s->expert_first); SEES(s->expert_end); SEES(s->q_first); SEES(s->kv_first); SEES(s->head_group); SEES(*(unsigned *)&s->exchange);
    const struct digest after = part_plan_digest(plan);
    assert_memory_equal(&before, &after, sizeof before);
    part_plan_destroy(plan);
    part_model_destroy(m);
    ck_close(ck);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(finds_every_spelling),   cmocka_unit_test(names_what_nobody_uses),     cmocka_unit_test(a_tensor_that_does_not_fit_is_named),
        cmocka_unit_test(a_wrong_step_is_named), cmocka_unit_test(absurd_options_are_refused), cmocka_unit_test(the_digest_sees_every_field),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
