/* Plans and their auditor: every cut of awkward models is accepted and its bytes add up; a plan that was tampered with is refused, naming tensor or step; a header the size of
 * Llama 405B plans from its headers alone. */
#include "partition/plan.h"

#include <string.h>

#include "base/clock.h"
#include "runtime/settings.h"
#include "tests/t.h"
#include "tests/t_ck.h"
#include "tests/t_llama.h"

static struct checkpoint *ck;
static struct part_model *whole;

static void open_model(const char *path)
{
    struct err e = {""};
    T_OK(ck_open(path, &ck, &e), &e);
    T_OK(part_model_create(ck, NULL, &whole, &e), &e);
}

static void close_model(void)
{
    part_model_destroy(whole);
    ck_close(ck);
}

static const char *carrier; /* of what plan_for plans */

static struct part_plan *plan_for(int n_ranks, const uint32_t *shares)
{
    struct err e = {""};
    const struct rt_settings settings = {.overlap_tokens = 2, .scatter_bytes = 1, .kv_format = FMT_F16, .chunk = 64, .context = 256, .max_sequences = 1, .n_threads = 1};
    const struct kern_backend *backend;
    struct rt_sizes sizes;
    struct part_plan *plan;
    T_OK(kern_select("ref", &backend, &e), &e);
    rt_sizes_init(&sizes, &settings, backend, carrier);
    const struct part_plan_options options = rt_plan_options(&settings, n_ranks, shares);
    T_OK(part_plan_create(whole, &options, &sizes.base, &plan, &e), &e);
    return plan;
}

/* ---- every cut ---------------------------------------------------------------------------------------------------------------------------------------- */

static const struct split {
    int n;
    uint32_t shares[5];
} splits[] = {{1, {1}}, {2, {1, 1}}, {3, {1, 1, 1}}, {4, {1, 1, 1, 1}}, {5, {1, 1, 1, 1, 1}}, {2, {5, 3}}, {2, {0, 1}}, {3, {1, 0, 2}}, {5, {3, 1, 0, 2, 5}}};

static void every_cut_is_accepted(void **state)
{
    (void)state;
    const struct t_llama models[] = {
        {.hidden = 64, .heads = 7, .kv = 1, .head_dim = 16, .ffn = 352, .vocab = 131, .format = FMT_BF16, .biases = true, .seed = 1},
        {.hidden = 64, .heads = 15, .kv = 5, .head_dim = 24, .ffn = 96, .vocab = 1003, .format = FMT_F32, .tied = true, .seed = 2},
        {.hidden = 96, .heads = 9, .kv = 3, .head_dim = 32, .ffn = 2880, .vocab = 20, .format = FMT_Q8_0, .gguf = true, .seed = 3},
        {.hidden = 64, .heads = 8, .kv = 8, .head_dim = 8, .ffn = 1536, .vocab = 131, .format = FMT_BF16, .fused = true, .seed = 4},
        {.hidden = 64, .heads = 32, .kv = 32, .head_dim = 8, .ffn = 704, .vocab = 33, .format = FMT_BF16, .fused = true, .biases = true, .seed = 6},
        {.hidden = 96, .heads = 4, .kv = 2, .head_dim = 48, .ffn = 160, .vocab = 131, .format = FMT_Q8_0, .gguf = true, .seed = 7}, /* cuts inside blocks */
        {.hidden = 256, .heads = 16, .kv = 8, .head_dim = 16, .ffn = 768, .vocab = 67, .format = FMT_Q4_K, .mixed = true, .format_2 = FMT_Q6_K, .seed = 8}, /* inside super-blocks */
        {.hidden = 256, .heads = 8, .kv = 2, .head_dim = 32, .ffn = 3328, .vocab = 67, .format = FMT_Q5_K, .layers = 1, .seed = 9},                            /* ffn: between them */
        {.hidden = 64, .heads = 8, .kv = 4, .head_dim = 24, .ffn = 320, .vocab = 67, .format = FMT_NVFP4, .seed = 10},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char name[16];
        snprintf(name, sizeof name, "m%zu", i);
        open_model(t_llama_write(&models[i], name));
        struct digest seen[sizeof splits / sizeof *splits];
        for (size_t k = 0; k < sizeof splits / sizeof *splits; k++) {
            struct part_plan *plan = plan_for(splits[k].n, splits[k].shares), *again = plan_for(splits[k].n, splits[k].shares);
            struct part_audit a;
            struct err e = {""};
            T_OK(part_audit_plan(plan, &a, &e), &e);
            assert_int_equal(a.owned_bytes + a.unused_bytes, a.checkpoint_bytes);
            assert_int_equal(a.n_exchanges, splits[k].n == 1 ? 0 : 2 * whole->config.n_layers + 1);
            uint64_t held = 0;
            for (int r = 0; r < splits[k].n; r++) {
                const struct part_budget *b = &plan->budget[r];
                assert_int_equal(b->total, b->weights + b->kv + b->activations + b->comm + b->scratch);
                for (int w = 0; w < whole->n_weights; w++)
                    held += plan->ranks[r]->weights[w].slice_bytes;
            }
            assert_int_equal(held, a.owned_bytes + a.replica_bytes);
            assert_memory_equal(&plan->digest, &again->digest, sizeof plan->digest);
            for (size_t j = 0; j < k; j++)
                assert_memory_not_equal(&plan->digest, &seen[j], sizeof seen[j]);
            seen[k] = plan->digest;
            part_plan_destroy(plan);
            part_plan_destroy(again);
        }
        close_model();
    }
}

/* ---- tampering ------------------------------------------------------------------------------------------------------------------------------------------- */

static int find(const char *part)
{
    for (int i = 0; i < whole->n_weights; i++)
        if (strstr(whole->weights[i].name, part))
            return i;
    fail_msg("no weight %s", part);
    return -1;
}

static struct part_weight *weight(struct part_plan *p, int rank, const char *part) { return &p->ranks[rank]->weights[find(part)]; }

static struct part_step *step(struct part_plan *p, int rank, enum part_op op)
{
    for (int i = 0; i < p->ranks[rank]->main.n_steps; i++)
        if (p->ranks[rank]->main.steps[i].op == op)
            return &p->ranks[rank]->main.steps[i];
    fail_msg("no step %s", part_op_name(op));
    return NULL;
}

static void shift_rows(struct part_plan *p) { weight(p, 1, "gate_proj")->rows.begin++; }
static void overlap_rows(struct part_plan *p) { weight(p, 1, "gate_proj")->rows.begin--; }
static void drop_last_row(struct part_plan *p) { weight(p, 1, "up_proj")->rows.end--; }
static void rows_past_the_end(struct part_plan *p) { weight(p, 1, "up_proj")->rows.end++; }
static void rows_backwards(struct part_plan *p) { weight(p, 0, "q_proj.weight")->rows.begin = weight(p, 0, "q_proj.weight")->rows.end + 1; }
static void shift_columns(struct part_plan *p) { weight(p, 1, "down_proj")->columns.begin++; }
static void overlap_columns(struct part_plan *p) { weight(p, 1, "down_proj")->columns.begin--; }
static void cut_a_whole_axis(struct part_plan *p) { weight(p, 1, "down_proj")->rows.end--; }
static void cut_a_norm(struct part_plan *p) { weight(p, 0, "input_layernorm")->rows.begin = 1; }
static void slice_elsewhere(struct part_plan *p) { weight(p, 1, "o_proj.weight")->slices[0].offset += 1 << 20; }
static void slice_before(struct part_plan *p) { weight(p, 0, "o_proj.weight")->slices[0].offset -= 2; }
static void slice_of_another_file(struct part_plan *p) { weight(p, 1, "v_proj.weight")->slices[0].file++; }
static void slice_too_short(struct part_plan *p) { weight(p, 1, "v_proj.weight")->slices[0].count[0]--; }
static void slice_too_narrow(struct part_plan *p) { weight(p, 0, "down_proj")->slices[0].run_bytes -= 2; }
static void slice_with_another_stride(struct part_plan *p) { weight(p, 0, "down_proj")->slices[0].stride[0] -= 2; }
static void rank_0s_rows_twice(struct part_plan *p) { weight(p, 1, "gate_proj")->slices[0] = weight(p, 0, "gate_proj")->slices[0]; }
static void head_rows_missing(struct part_plan *p) { weight(p, 1, "embed_tokens")->rows.begin += 3; }
static void wrong_vectors(struct part_plan *p) { p->ranks[1]->values[step(p, 1, PART_SUM)->in[1]].n_vectors++; }
static void wrong_node(struct part_plan *p) { p->cut.dims[whole->dim_ffn].node_lo[1][0]++; }
static void leaf_missing(struct part_plan *p) { p->cut.dims[whole->dim_ffn].node_hi[1][p->cut.dims[whole->dim_ffn].n_vectors[1] - 1]--; }
static void other_exchange(struct part_plan *p) { step(p, 1, PART_EXCHANGE)->exchange = PART_EXCHANGE_TREE; }
static void other_value(struct part_plan *p) { step(p, 1, PART_EXCHANGE)->in[0]++; }
static void other_dimension(struct part_plan *p) { step(p, 1, PART_SUM)->dim ^= 1; }
static void other_group(struct part_plan *p) { step(p, 1, PART_EXCHANGE)->group = 1; }
static void step_missing(struct part_plan *p) { p->ranks[1]->main.n_steps--; }
static void swap_in(struct part_plan *p, int first_rank, int last_rank, enum part_op op)
{
    for (int r = first_rank; r <= last_rank; r++) {
        struct part_step *s = step(p, r, op), kept = *s;
        *s = s[1];
        s[1] = kept;
    }
}
static void drop_in_all(struct part_plan *p, enum part_op op)
{
    for (int r = 0; r < p->options.n_ranks; r++) {
        struct part_program *main = &p->ranks[r]->main;
        struct part_step *s = step(p, r, op);
        memmove(s, s + 1, (size_t)(main->steps + main->n_steps - s - 1) * sizeof *s);
        main->n_steps--;
    }
}
static void no_rotation(struct part_plan *p) { drop_in_all(p, PART_ROPE); }
static void no_exchange(struct part_plan *p) { drop_in_all(p, PART_EXCHANGE); }
static void no_select(struct part_plan *p) { drop_in_all(p, PART_SELECT); }
static void sum_before_exchange(struct part_plan *p)
{
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < p->ranks[r]->main.n_steps; i++)
            if (p->ranks[r]->main.steps[i].op == PART_SUM) {
                struct part_step *s = &p->ranks[r]->main.steps[i], kept = *s;
                *s = s[-1];
                s[-1] = kept;
                break;
            }
}
static void select_too_late(struct part_plan *p) { swap_in(p, 0, 1, PART_SELECT); }
static void other_norm_in_all(struct part_plan *p)
{
    for (int r = 0; r < 2; r++)
        step(p, r, PART_NORM)->weight[0] = find("layers.1.input_layernorm");
}
static void other_scale_in_all(struct part_plan *p)
{
    for (int r = 0; r < 2; r++)
        step(p, r, PART_ATTENTION)->scale *= 2;
}
static void other_bias(struct part_plan *p) { step(p, 1, PART_SUM)->bias[0] = find("input_layernorm"); }
static void scores_unsent(struct part_plan *p)
{
    for (int r = 0; r < 2; r++)
        for (int i = 0; i < p->ranks[r]->head.n_steps; i++)
            if (p->ranks[r]->head.steps[i].exchange == PART_EXCHANGE_SCORE && p->ranks[r]->head.steps[i].op == PART_EXCHANGE) {
                struct part_program *head = &p->ranks[r]->head;
                memmove(&head->steps[i], &head->steps[i + 1], (size_t)(head->n_steps - i - 1) * sizeof *head->steps);
                head->n_steps--;
                break;
            }
}
static void another_tensor(struct part_plan *p) { weight(p, 1, "up_proj")->tensor = weight(p, 1, "gate_proj")->tensor; }
static void replica_undeclared(struct part_plan *p)
{
    weight(p, 1, "k_proj")->rows.begin -= 16;
    weight(p, 1, "k_proj")->slices[0].offset -= weight(p, 1, "k_proj")->slices[0].stride[0] * 16;
    weight(p, 1, "k_proj")->slices[0].count[0] += 16;
    weight(p, 1, "k_proj")->slice_bytes = weight(p, 1, "k_proj")->slices[0].count[0] * weight(p, 1, "k_proj")->slices[0].run_bytes;
}
static void slice_of_neighbour_columns(struct part_plan *p) { weight(p, 1, "down_proj")->slices[0].offset = weight(p, 0, "down_proj")->slices[0].offset; }
static void counted_twice(struct part_plan *p) { weight(p, 1, "down_proj")->slices[0].count[1] = 2; }
static void bytes_miscounted(struct part_plan *p) { weight(p, 1, "down_proj")->slice_bytes--; }
static void wide_value(struct part_plan *p) { p->ranks[1]->values[step(p, 1, PART_GATE)->in[0]].width++; }
static void heads_of_rank_0(struct part_plan *p) { step(p, 1, PART_ATTENTION)->q_first = 0; }
static void cache_too_large(struct part_plan *p) { p->ranks[1]->caches[1].n_kv_heads++; }
static void cache_of_another_layer(struct part_plan *p) { p->ranks[1]->caches[1].layer = 0; }
static void values_share_bytes(struct part_plan *p) { p->ranks[0]->values[step(p, 0, PART_GATE)->in[1]].offset = p->ranks[0]->values[step(p, 0, PART_GATE)->in[0]].offset; }
static void hidden_overwritten(struct part_plan *p) { p->ranks[1]->values[p->ranks[1]->value_logits].offset = p->ranks[1]->values[p->ranks[1]->value_hidden].offset; }
static void value_outside(struct part_plan *p) { p->ranks[1]->values[p->ranks[1]->value_hidden].offset = p->budget[1].activations; }
static void budget_too_small(struct part_plan *p) { p->budget[1].total -= 64; }
static void leaves_twice(struct part_plan *p) { p->cut.dims[whole->dim_vocab].lo[1]--; }
static void order_of_steps(struct part_plan *p)
{
    struct part_step *s = step(p, 1, PART_EXCHANGE), kept = *s;
    *s = s[1];
    s[1] = kept;
}

static void tampering_is_refused(void **state)
{
    (void)state;
    static const struct {
        void (*tamper)(struct part_plan *p);
        const char *says;
    } faults[] = {
        {shift_rows, "gate_proj"},      {overlap_rows, "gate_proj"},        {drop_last_row, "up_proj"},       {rows_past_the_end, "up_proj"},       {rows_backwards, "q_proj"},
        {shift_columns, "down_proj"},   {overlap_columns, "down_proj"},     {cut_a_whole_axis, "down_proj"},  {cut_a_norm, "input_layernorm"},      {slice_elsewhere, "o_proj"},
        {slice_before, "o_proj"},       {slice_of_another_file, "v_proj"},  {slice_too_short, "v_proj"},      {slice_too_narrow, "down_proj"},      {slice_with_another_stride, "down_proj"},
        {rank_0s_rows_twice, "gate_proj"}, {head_rows_missing, "embed_tokens"}, {wrong_vectors, "rank 1"},    {wrong_node, "dimension ffn"},        {leaf_missing, "dimension ffn"},
        {other_exchange, "step"},       {other_value, "step"},              {other_dimension, "step"},        {other_group, "step"},                {step_missing, "steps"},
        {order_of_steps, "step"},
        {no_rotation, "rope"},          {no_exchange, "embed"},             {no_select, "reads x"},           {sum_before_exchange, "sum"},         {select_too_late, "a select"},
        {other_norm_in_all, "norm"},    {other_scale_in_all, "attention"},  {other_bias, "sum"},              {scores_unsent, "scores"},            {another_tensor, "up_proj"},
        {replica_undeclared, "k_proj"}, {slice_of_neighbour_columns, "down_proj"}, {counted_twice, "down_proj"}, {bytes_miscounted, "down_proj"},   {wide_value, "value gate"},
        {heads_of_rank_0, "attention"}, {cache_too_large, "layer 1"},       {cache_of_another_layer, "layer 1"}, {values_share_bytes, "gate"},      {hidden_overwritten, "x"},
        {value_outside, "value x"},     {budget_too_small, "budget"},       {leaves_twice, "vocabulary"},
    };
    const struct t_llama model = {.hidden = 64, .heads = 8, .kv = 4, .head_dim = 16, .ffn = 352, .vocab = 131, .format = FMT_BF16, .tied = true, .seed = 5};
    open_model(t_llama_write(&model, "tampered"));
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct part_plan *plan = plan_for(2, NULL);
        struct part_audit a;
        struct err e = {""};
        T_OK(part_audit_plan(plan, &a, &e), &e);
        faults[i].tamper(plan);
        const enum st st = part_audit_plan(plan, &a, &e);
        if (st != ST_INVALID || !strstr(e.text, faults[i].says))
            fail_msg("fault %zu (wants \"%s\") gave %s: %s", i, faults[i].says, st_name(st), e.text);
        part_plan_destroy(plan);
    }
    close_model();
}

/* ---- size ------------------------------------------------------------------------------------------------------------------------------------------------ */

static struct t_tensor tensors[1200];
static char names[1200][80];
static size_t n_tensors;

static void add(const char *name, uint64_t rows, uint64_t columns)
{
    snprintf(names[n_tensors], sizeof names[0], "%s", name);
    tensors[n_tensors] = (struct t_tensor){names[n_tensors], "BF16", columns ? 2 : 1, {rows, columns}, NULL, 2 * rows * (columns ? columns : 1)};
    n_tensors++;
}

/* The shape of Llama 3.1 405B; the tensors are holes of a sparse file. The time is told, and only a hang fails: a shared machine is no stopwatch. */
static void plans_405b(void **state)
{
    (void)state;
    add("model.embed_tokens.weight", 128256, 16384);
    add("model.norm.weight", 16384, 0);
    add("lm_head.weight", 128256, 16384);
    static const struct {
        const char *name;
        uint64_t rows, columns;
    } parts[] = {{"input_layernorm", 16384, 0},      {"post_attention_layernorm", 16384, 0}, {"self_attn.q_proj", 16384, 16384}, {"self_attn.k_proj", 1024, 16384}, {"self_attn.v_proj", 1024, 16384},
                 {"self_attn.o_proj", 16384, 16384}, {"mlp.gate_proj", 53248, 16384},        {"mlp.up_proj", 53248, 16384},      {"mlp.down_proj", 16384, 53248}};
    for (int layer = 0; layer < 126; layer++)
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            char name[80];
            snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, parts[k].name);
            add(name, parts[k].rows, parts[k].columns);
        }
    assert_int_equal(mkdir(t_path("405b"), 0777), 0);
    t_write_text(t_path("405b/config.json"), "{\"model_type\":\"llama\",\"architectures\":[\"LlamaForCausalLM\"],\"num_hidden_layers\":126,\"hidden_size\":16384,"
                                             "\"num_attention_heads\":128,\"num_key_value_heads\":8,\"head_dim\":128,\"intermediate_size\":53248,\"vocab_size\":128256,"
                                             "\"max_position_embeddings\":131072,\"rms_norm_eps\":1e-5,\"rope_theta\":500000.0,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\","
                                             "\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
                                             "\"original_max_position_embeddings\":8192}}");
    /* as on the hub: 191 files of about six tensors, and an index */
    struct t_bytes index = {0};
    t_put_text(&index, "{\"metadata\":{},\"weight_map\":{");
    for (size_t file = 0; file < 191; file++) {
        const size_t from = file * n_tensors / 191, to = (file + 1) * n_tensors / 191;
        char path[64], line[256];
        snprintf(path, sizeof path, "model-%05zu-of-00191.safetensors", file + 1);
        t_safetensors(t_path("405b/%s", path), tensors + from, to - from, NULL);
        for (size_t i = from; i < to; i++) {
            snprintf(line, sizeof line, "%s\"%s\":\"%s\"", i ? "," : "", names[i], path);
            t_put_text(&index, line);
        }
    }
    t_put(&index, "}}", 3);
    t_write_text(t_path("405b/model.safetensors.index.json"), (const char *)index.data);
    t_bytes_free(&index);
    const uint64_t start = base_now_ns(base_clock_real());
    struct err e = {""};
    T_OK(ck_open(t_path("405b"), &ck, &e), &e);
    const uint64_t opened = base_now_ns(base_clock_real());
    T_OK(part_model_create(ck, NULL, &whole, &e), &e);
    const uint64_t built = base_now_ns(base_clock_real());
    struct part_plan *plan = plan_for(2, NULL);
    const uint64_t planned = base_now_ns(base_clock_real());
    struct part_audit a;
    T_OK(part_audit_plan(plan, &a, &e), &e);
    const uint64_t audited = base_now_ns(base_clock_real());
    printf("405B-shaped headers (191 files): opened in %.1f ms, built in %.1f ms, planned for two ranks in %.1f ms, audited in %.1f ms; %.1f ms in all\n", (double)(opened - start) / 1e6,
           (double)(built - opened) / 1e6, (double)(planned - built) / 1e6, (double)(audited - planned) / 1e6, (double)(audited - start) / 1e6);
    assert_true(planned - start < 5 * BASE_NS_PER_S);
    assert_int_equal(a.owned_bytes, a.checkpoint_bytes);
    assert_true(a.owned_bytes > 811000000000ull && a.owned_bytes < 812000000000ull); /* 405.85 billion numbers */
    part_plan_destroy(plan);
    close_model();
}

/* NVFP4's tensor scale beside a weight in a GGUF file: a source of the matrix like any other, and every rank's replica. */
static void a_scale_of_a_tensor_is_owned(void **state)
{
    (void)state;
    const struct t_llama m = {.hidden = 64, .heads = 4, .kv = 2, .head_dim = 16, .ffn = 64, .vocab = 67, .format = FMT_NVFP4, .layers = 1, .scale = 0.25F};
    open_model(t_llama_write(&m, "scaled"));
    const struct part_weight *q = &whole->weights[find("attn_q.weight")];
    assert_int_equal(q->scheme->n_sources, 2);
    assert_string_equal(q->scheme->sources[1].tensor->name, "blk.0.attn_q.scale");
    struct part_plan *plan = plan_for(2, NULL);
    struct part_audit a;
    struct err e = {""};
    T_OK(part_audit_plan(plan, &a, &e), &e);
    assert_int_equal(a.owned_bytes, a.checkpoint_bytes);
    assert_int_equal(a.n_unused, 0);
    assert_true(a.replica_bytes >= sizeof(float));
    plan->ranks[1]->weights[find("attn_q.weight")].slices[1].offset += 4;
    t_expect_err_contains(ST_INVALID, part_audit_plan(plan, &a, &e), &e, "would read outside tensor blk.0.attn_q.scale");
    part_plan_destroy(plan);
    close_model();
}

/* Over sockets a rank has places of its own for what all others send, and one for what it sends of a half. */
static void exchanges_take_what_their_carrier_takes(void **state)
{
    (void)state;
    static const char *const carriers[] = {NULL, "tcp", "shm+tcp"};
    static const uint64_t least[] = {4, 3 * 3 + 1, 3 * 3 + 1 + 4}; /* of the largest exchange */
    const struct t_llama m = {.hidden = 4096, .heads = 8, .kv = 8, .head_dim = 8, .ffn = 352, .vocab = 131, .layers = 1, .format = FMT_BF16, .seed = 11};
    open_model(t_llama_write(&m, "wide"));
    for (size_t i = 0; i < 3; i++) {
        carrier = carriers[i];
        struct part_plan *plan = plan_for(3, (const uint32_t[]){1, 1, 1});
        for (int r = 0; r < 3; r++) {
            assert_true(plan->budget[r].comm >= least[i] * plan->max_exchange_bytes);
            assert_true(plan->budget[r].comm <= least[i] * plan->max_exchange_bytes * 6 / 5 + (5u << 20));
        }
        part_plan_destroy(plan);
    }
    carrier = NULL;
    close_model();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_cut_is_accepted), cmocka_unit_test(tampering_is_refused), cmocka_unit_test(plans_405b),
                                       cmocka_unit_test(a_scale_of_a_tensor_is_owned), cmocka_unit_test(exchanges_take_what_their_carrier_takes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
