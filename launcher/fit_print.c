/* What a fit says: rows of bytes by kind, a column a rank. One table of kinds feeds the text and the JSON. */
#include <inttypes.h>
#include <jansson.h>

#include "launcher/fit.h"
#include "partition/expert_load.h"

enum kind { MATRICES, VECTORS, EMBEDDING, HEAD, CACHE, STATE, ACTIVATIONS, SCRATCH, EXCHANGES, LIBRARY, RESERVE, TOTAL, N_KINDS };

/* In the order of the table; the total is the sum of those before it. */
static const struct {
    const char *label, *key; /* for people, for JSON */
} kinds[N_KINDS] = {
    [MATRICES] = {"matrices", "matrix_bytes"},
    [VECTORS] = {"norms and biases", "vector_bytes"},
    [EMBEDDING] = {"embedding", "embedding_bytes"},
    [HEAD] = {"head", "head_bytes"},
    [CACHE] = {"keys and values", "kv_bytes"},
    [STATE] = {"state", "state_bytes"},
    [ACTIVATIONS] = {"activations", "activation_bytes"},
    [SCRATCH] = {"scratch", "scratch_bytes"},
    [EXCHANGES] = {"exchange buffers", "exchange_bytes"},
    [LIBRARY] = {"accelerator's library", "library_bytes"},
    [RESERVE] = {"reserve", "reserve_bytes"},
    [TOTAL] = {"total", "total_bytes"},
};

static uint64_t of_kind(const struct launch_fit *f, int rank, enum kind kind)
{
    const struct part_budget *b = &f->plan->budget[rank];
    switch (kind) {
    case MATRICES: return b->weights - b->vectors - b->embedding - b->head;
    case VECTORS: return b->vectors;
    case EMBEDDING: return b->embedding;
    case HEAD: return b->head;
    case CACHE: return b->kv;
    case STATE: return 0; /* recurrent layers' state: no family that this build knows has any */
    case ACTIVATIONS: return b->activations;
    case SCRATCH: return b->scratch;
    case EXCHANGES: return b->comm;
    case LIBRARY: return f->machine->library_bytes;
    case RESERVE: return launch_reserve_bytes(f->plan->whole, f->machine->n_ranks);
    default: return f->total_bytes[rank];
    }
}

/* ---- text ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static double gib(uint64_t bytes) { return (double)bytes / 1073741824.0; }

static void print_row(const struct launch_fit *f, const char *label, const uint64_t *bytes, FILE *out)
{
    bool any = false;
    for (int r = 0; r < f->machine->n_ranks; r++)
        any = any || bytes[r];
    if (!any)
        return;
    fprintf(out, "  %-24s", label);
    for (int r = 0; r < f->machine->n_ranks; r++)
        fprintf(out, " %9.3f", gib(bytes[r]));
    fputc('\n', out);
}

static void print_matrices(const struct launch_fit *f, FILE *out)
{
    for (int format = 0; format < FMT_COUNT; format++) {
        char label[64];
        uint64_t bytes[ORDER_MAX_RANKS];
        snprintf(label, sizeof label, "matrices in %s", kern_format((enum format)format)->name);
        for (int r = 0; r < f->machine->n_ranks; r++)
            bytes[r] = f->plan->budget[r].matrices[format];
        print_row(f, label, bytes, out);
    }
}

/* NULL: numbers of no one format. */
static const char *format_of(const struct launch_fit *f, const struct part_model *whole, enum kind kind)
{
    if (kind == CACHE)
        return kern_format(f->settings.kv_format)->name;
    const int32_t w = kind == EMBEDDING ? part_embedding_weight(whole) : kind == HEAD ? part_head_weight(whole) : PART_NONE;
    return w == PART_NONE ? NULL : kern_format(whole->weights[w].scheme->format)->name;
}

static void print_rows(const struct launch_fit *f, const struct part_model *whole, FILE *out)
{
    fprintf(out, "  %-24s", "GiB");
    for (int r = 0; r < f->machine->n_ranks; r++)
        fprintf(out, "   rank %2d", r);
    fputc('\n', out);
    print_matrices(f, out);
    for (int kind = MATRICES + 1; kind < N_KINDS; kind++) {
        const char *format = format_of(f, whole, (enum kind)kind);
        char label[64];
        uint64_t bytes[ORDER_MAX_RANKS];
        if (format)
            snprintf(label, sizeof label, "%s in %s", kinds[kind].label, format);
        else
            snprintf(label, sizeof label, "%s", kinds[kind].label);
        for (int r = 0; r < f->machine->n_ranks; r++)
            bytes[r] = of_kind(f, r, (enum kind)kind);
        print_row(f, label, bytes, out);
    }
    uint64_t available[ORDER_MAX_RANKS];
    for (int r = 0; r < f->machine->n_ranks; r++)
        available[r] = f->machine->available_bytes;
    print_row(f, "available", available, out);
}

void launch_fit_print(const struct launch_fit *f, const struct part_model *whole, const struct launch_fit_advice *advice, int n_advice, FILE *out)
{
    const struct launch_fit_machine *m = f->machine;
    fprintf(out, "%s on %s (%s): %d rank%s, context %" PRId64 ", %d sequence%s, chunk %d\n", whole->config.name, m->on, m->title, m->n_ranks, m->n_ranks > 1 ? "s" : "", f->settings.context,
            f->settings.max_sequences, f->settings.max_sequences > 1 ? "s" : "", f->settings.chunk);
    print_rows(f, whole, out);
    int worst = 0;
    for (int r = 1; r < m->n_ranks; r++)
        worst = f->total_bytes[r] > f->total_bytes[worst] ? r : worst;
    if (f->fits)
        fprintf(out, "fits: rank %d, the fullest, leaves %.3f GiB of %s\n", worst, gib(m->available_bytes - f->total_bytes[worst]), m->memory);
    else {
        fprintf(out, "does not fit: rank %d, the fullest, lacks %.3f GiB of %s", worst, gib(f->total_bytes[worst] - m->available_bytes), m->memory);
        fprintf(out, m->memory_bytes ? " (the kernel counts %.3f GiB)\n" : "\n", gib(m->memory_bytes));
    }
    if (f->max_context)
        fprintf(out, "largest context that fits: %" PRId64 " tokens%s", f->max_context, f->settings.max_sequences > 1 ? " a sequence" : "");
    else
        fputs("largest context that fits: none", out);
    if (whole->config.max_context)
        fprintf(out, " (the model was made for %" PRId64 ")", whole->config.max_context);
    uint64_t cache = 0, sent = 0;
    for (int r = 0; r < m->n_ranks; r++) {
        cache += f->cache_bytes[r];
        sent = f->sent_bytes[r] > sent ? f->sent_bytes[r] : sent;
    }
    fprintf(out, "\na decoded token reads %.1f MB of weights and up to %.1f MB of keys and values, all ranks together", (double)f->plan->weight_bytes_per_token / 1e6, (double)cache / 1e6);
    if (f->n_exchanges)
        fprintf(out, "; %" PRIu64 " exchanges, in which a rank sends %.3f MB", f->n_exchanges, (double)sent / 1e6);
    fputc('\n', out);
    struct expert_load load;
    if (m->n_ranks > 1 && expert_load_of(f->plan, &load))
        fprintf(out, "experts: the busiest rank reads %.1f %% of a token's experts with --moe tp, and is expected to read %.1f %% with --moe ep, since how many of them stand with one rank is left to chance: %s is faster\n",
                100 * load.tensor, 100 * load.expert, load.tensor <= load.expert ? "tp" : "ep");
    for (int i = 0; i < n_advice; i++)
        fprintf(out, "%s %s\n", i ? "              " : "would fit with", advice[i].what);
    if (!f->fits && !n_advice)
        fputs("nothing that was tried would make it fit: fewer tokens, a cache in FP8, shorter chunks, other formats, more boxes\n", out);
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------------------------------------------------- */

static json_t *by_rank(const uint64_t *values, int n)
{
    json_t *list = json_array();
    for (int r = 0; r < n; r++)
        json_array_append_new(list, json_integer((json_int_t)values[r]));
    return list;
}

static json_t *by_format(const struct part_budget *b)
{
    json_t *formats = json_object();
    for (int i = 0; i < FMT_COUNT; i++)
        if (b->matrices[i])
            json_object_set_new(formats, kern_format((enum format)i)->name, json_integer((json_int_t)b->matrices[i]));
    return formats;
}

enum st launch_fit_print_json(const struct launch_fit *f, const struct part_model *whole, const struct launch_fit_advice *advice, int n_advice, FILE *out, struct err *e)
{
    const struct launch_fit_machine *m = f->machine;
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:I, s:i, s:i, s:s, s:b, s:I, s:I}", "model", whole->config.name, "family", whole->config.family, "on", m->on, "ranks", m->n_ranks, "context",
                          (json_int_t)f->settings.context, "batch", f->settings.max_sequences, "chunk", f->settings.chunk, "kv", kern_format(f->settings.kv_format)->name, "fits", f->fits,
                          "max_context", (json_int_t)f->max_context, "model_context", (json_int_t)whole->config.max_context);
    json_t *formats = json_array(), *would_fit = json_array();
    uint64_t bytes[ORDER_MAX_RANKS];
    for (int r = 0; r < m->n_ranks; r++) {
        bytes[r] = f->plan->budget[r].weights;
        json_array_append_new(formats, by_format(&f->plan->budget[r]));
    }
    json_object_set_new(o, "weights_bytes", by_rank(bytes, m->n_ranks));
    json_object_set_new(o, "matrix_bytes_by_format", formats);
    for (int kind = 0; kind < N_KINDS; kind++) {
        for (int r = 0; r < m->n_ranks; r++)
            bytes[r] = of_kind(f, r, (enum kind)kind);
        json_object_set_new(o, kinds[kind].key, by_rank(bytes, m->n_ranks));
    }
    uint64_t read[ORDER_MAX_RANKS];
    for (int r = 0; r < m->n_ranks; r++) {
        bytes[r] = m->available_bytes;
        read[r] = part_plan_token_bytes(f->plan, r);
    }
    json_object_set_new(o, "available_bytes", by_rank(bytes, m->n_ranks));
    json_object_set_new(o, "token", json_pack("{s:I, s:o, s:o, s:I, s:o}", "weight_bytes", (json_int_t)f->plan->weight_bytes_per_token, "read_bytes", by_rank(read, m->n_ranks), "cache_bytes", by_rank(f->cache_bytes, m->n_ranks), "exchanges",
                                              (json_int_t)f->n_exchanges, "sent_bytes", by_rank(f->sent_bytes, m->n_ranks)));
    struct expert_load load;
    if (expert_load_of(f->plan, &load))
        json_object_set_new(o, "busiest_share_of_experts", json_pack("{s:f, s:f}", "tp", load.tensor, "ep", load.expert));
    for (int i = 0; i < n_advice; i++)
        json_array_append_new(would_fit, json_string(advice[i].what));
    json_object_set_new(o, "would_fit", would_fit);
    const bool written = o && json_dumpf(o, out, JSON_INDENT(2)) == 0;
    json_decref(o);
    fputc('\n', out);
    return written ? ST_OK : err_set(e, ST_NO_MEMORY, "no memory for the JSON");
}
