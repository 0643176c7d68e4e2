/* Programs: what a model computes, as plain data. A family's builder writes the unsharded programs; part_shard rewrites them for one rank; runtime walks them.
 *
 * A model is a set of named programs (main: tokens → hidden states; head: logit rows → logits, candidates, scores) over one set of weights, values and caches.
 * Steps are flat lists over values and weights given by index. Shapes are explicit in two symbols, tokens (T) and logit rows (R), with planned maxima.
 * What may be cut is declared: a *dimension* (heads, ffn, vocabulary) has leaves in the order of sums, and a weight's or value's *axis* says how it follows a dimension.
 * Nothing here knows threads, clocks or kernels; of kernels/ only the table of formats is read. Everything lives in the model's arena; freed as a whole. */
#ifndef PARTITION_PROGRAM_H
#define PARTITION_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/arena.h"
#include "partition/checkpoint.h"
#include "partition/config.h"
#include "partition/expert_map.h"
#include "partition/order.h"
#include "partition/quant.h"

/* ---- what may be cut ------------------------------------------------------------------------------------------------------------------------------ */

#define PART_MAX_DIMS 8
#define PART_MAX_VALUES 64 /* sets of them are words of bits */
#define PART_WHOLE (-1)

struct part_dim {
    const char *name; /* "heads" */
    struct order_leaves leaves;
};

/* An axis follows units [u0, u1) of dimension dim as elements [⌊u0/group⌋·scale, ⌈u1/group⌉·scale); an empty range stays empty. dim PART_WHOLE: never cut.
 * group > 1 (key/value heads under query heads): a group that a cut divides is a declared replica on both sides. */
struct part_axis {
    int dim;
    uint32_t scale, group;
    uint64_t size; /* elements of the whole axis */
};

struct part_range {
    uint64_t begin, end;
};

/* ---- weights -------------------------------------------------------------------------------------------------------------------------------------- */

enum part_weight_kind {
    PART_MATRIX, /* [rows, columns], kept in the backend's packed layout */
    PART_VECTOR  /* [rows], kept as F32 */
};

/* Where a rank's bytes of one tensor lie: count[0] × count[1] runs of run_bytes, strides in bytes. For a plain matrix count[0] = rows; where rows lie next to each other in the file
 * (quant_source.transposed) count[0] counts columns. count[1] is 1 unless only every other number is wanted (quant_view.step of transposed ones). A cut may fall inside a stored block,
 * a scale block or a packed word: both ranks read it. */
struct part_slice {
    uint32_t file;
    uint64_t offset;
    uint64_t count[2], stride[2];
    uint64_t run_bytes;
    uint64_t first_row;    /* of the matrix, fused ones whole: what the first element covers from, a multiple of the source's row_unit */
    uint64_t first_column; /* likewise, of its column_unit (a format's block) */
};

/* Where a rank keeps its part of a weight. */
enum part_home {
    PART_IN_MEMORY,
    PART_ON_DISK, /* an embedding whose rows are read from their file when they are wanted */
    PART_IN_BOTH  /* likewise, and it is the head too */
};

struct part_weight {
    const char *name; /* the tensor's name in the checkpoint, with "[3]" for a plane, "[0::2]" for every other row, "[a:b]" for rows a to b where it is a part of one */
    const struct ck_tensor *tensor;      /* what holds the numbers, or the codes: sources[0] of its scheme */
    const struct quant_scheme *scheme;   /* of which tensors it is put together, and to which format */
    enum part_weight_kind kind;
    enum part_home home;
    uint64_t first_row; /* of the tensor: where this weight's rows start (fused tensors) */
    struct part_axis row_axis, column_axis;
    int leaf_dim;        /* the dimension whose leaves the product's sums are taken over; PART_WHOLE: one leaf. As column_axis's where ranks cut the columns */
    bool leaves_apart;   /* the leaves' sums are not added by the product itself: an expert's, which are weighted first */
    bool exact;          /* never packed for quantised activations: a router's, an embedding's */
    int owner_dim;       /* expert mode: the rank that has unit owner_unit of this dimension holds the weight, the others nothing of it. PART_WHOLE: no such owner */
    uint64_t owner_unit;

    /* this rank's part, set by part_shard (for the unsharded model: all) */
    struct part_range rows, columns; /* of the weight */
    struct part_slice slices[QUANT_MAX_SOURCES]; /* of each of the scheme's sources */
    uint64_t slice_bytes; /* of all of them */
};

/* ---- values --------------------------------------------------------------------------------------------------------------------------------------- */

enum part_rows {
    PART_TOKENS,
    PART_SLOTS, /* a token's place at one of its experts: top_k rows for each token, one more where a shared expert is stacked (part_model.n_stacked) */
    PART_LOGIT_ROWS
};

struct part_value {
    const char *name;
    enum part_rows rows;
    struct part_axis axis; /* width of the whole */
    bool partial;          /* [n_vectors] partial sums of dimension sum_dim; with more than one rank it lives in the exchange's send buffer */
    int follows;           /* partial: the value behind whose vectors it lies there, and with which it travels; PART_NONE: it is the first */
    int sum_dim;
    uint32_t element_bytes; /* 4, or the size of a record */

    uint64_t width; /* this rank's */
    uint32_t n_vectors; /* this rank's; 1 unless partial */
    uint64_t offset; /* bytes into the step arena, 64-aligned; values that never live together may share */
};

/* ---- caches --------------------------------------------------------------------------------------------------------------------------------------- */

enum part_cache_kind { PART_CACHE_PAGED /* keys and values by blocks of tokens; window, latent, compressed, recurrent follow as kinds of their own */ };

struct part_cache {
    enum part_cache_kind kind;
    int layer;
    uint32_t head_dim;
    uint32_t n_kv_heads; /* this rank's */
    const char *module;  /* the attention's name in the checkpoint, beside which scales of an FP8 cache may stand; NULL: they never do */
    float k_scale, v_scale; /* 1, unless the plan is for a cache in E4M3 and the checkpoint has others (cache.h); then they come from these: */
    const struct ck_tensor *k_scale_tensor, *v_scale_tensor;
};

/* ---- steps ---------------------------------------------------------------------------------------------------------------------------------------- */

enum part_op {
    PART_EMBED,      /* out[0][T, hidden] = rows of weight[0] by token id; zeroes where the row belongs to another rank */
    PART_ROPE_TABLE, /* out[0][T, rotary_dim] = cos, sin of positions */
    PART_NORM,       /* out[0] = rmsnorm(in[0]) · weight[0]; with n_heads: of each head by itself; with in[1]: of all heads together, whose squares that is */
    PART_SQUARES,    /* out[0][T, 2 a query head] = Σ x² of each head of in[0], then of the key/value head of in[1] whose first query head it is (else 0) */
    PART_LINEAR,     /* out[i] = in[0] · weight[i]ᵀ (+ bias[i]), i < n_parts; where the columns follow a dimension the result is partial */
    PART_ROPE,       /* in[0] rotated in place by the table in[1]; n_heads heads */
    PART_ATTENTION,  /* appends k = in[1], v = in[2] to cache, out[0] = attention of q = in[0]; bias[0]: sinks, one score a head */
    PART_GATE,       /* out[0] = silu(in[0]) · in[1], or what config.gate says */
    PART_ROW_GATE,   /* out[0] = in[0] = in[0] · sigmoid(in[1]), one number for each token */
    PART_COLUMN_SCALE, /* out[0] = in[0] = in[0] · weight[0], one number for each column */
    PART_ROUTE,      /* out[0] = experts and weights of each token by the logits in[0]; bias[0]: added for the choice alone. Sorts the tokens by local experts */
    PART_EXPERTS_IN, /* out[i][S, ffn] = in[0][token of the slot] · (weight[i] + e)ᵀ (+ bias[i] + e), i < n_parts, of the experts e that in[1] routes to */
    PART_EXPERTS_OUT, /* out[0] = Σ over a token's slots of weight · (in[0][slot] · (weight[0] + e)ᵀ), partial: by leaves, or by groups of experts (expert mode: + bias[0] + e) */
    PART_EXPERTS_BIAS, /* out[0][T] = Σ over a token's experts by in[0] of weight · (bias[0] + e): tensor mode, once after the tree */
    PART_EXCHANGE,   /* in[0] of every rank goes to every rank, and in[1], if there is one, behind it: mode says what for */
    PART_SUM,        /* out[0] = in[0] + (tree over the vectors of in[1] + bias[0], or + in[2] if there is one); after an exchange: over all ranks' vectors */
    PART_SELECT,     /* out[0][t] = the row of in[0] that the owner of token t's id sent (one rank: in[0] itself is already right and the step is left out) */
    PART_PICK,       /* out[0][R, hidden] = rows of in[0] by the step's logit rows */
    PART_SAMPLE,     /* out[0] = this rank's best candidate per logit row */
    PART_SCORE       /* out[0] = per logit row: (max, sum) of this rank's vocabulary slices, and the target's logit where it is here */
};

enum part_exchange { PART_EXCHANGE_TREE, PART_EXCHANGE_SELECT, PART_EXCHANGE_SAMPLE, PART_EXCHANGE_SCORE, PART_EXCHANGE_LOGITS, PART_EXCHANGE_SQUARES };

#define PART_MAX_PARTS 4
#define PART_MAX_EXPERT_PARTS 2
#define PART_NONE (-1)
#define PART_SAMPLE_BYTES 16 /* double value, int32 id, float logit */
#define PART_ROUTE_BYTES 8   /* int32 expert, float weight */

struct part_step {
    enum part_op op;
    enum part_exchange exchange; /* PART_EXCHANGE only */
    int16_t layer;               /* −1: none */
    int16_t n_parts;             /* LINEAR, EXPERTS_IN */
    int16_t in[3], out[PART_MAX_PARTS];
    int32_t weight[PART_MAX_PARTS], bias[PART_MAX_PARTS]; /* 10,000 layers, or experts of some dozen, are more than 32,767 */
    int16_t dim;                 /* EXCHANGE, SUM, SELECT: the dimension whose leaves are summed or selected from */
    int16_t group;               /* EXCHANGE: which group of ranks (0: the tensor group) */
    int16_t cache;               /* ATTENTION */
    bool of_keys;                /* NORM with squares: of keys, not queries */
    float eps, scale;
    uint32_t n_heads;            /* ROPE, ATTENTION, NORM of heads: this rank's */
    uint32_t window;             /* ATTENTION: positions that a token sees; 0: all */
    uint32_t n_experts;          /* ROUTE: routed ones; EXPERTS: matrices that follow weight[i], the shared one last; this rank's are [expert_first, expert_end) of them */
    uint32_t expert_first, expert_end;
    uint32_t q_first, kv_first, head_group; /* ATTENTION: global numbers of this rank's first heads; query heads per KV head */
};

struct part_program {
    const char *name;
    struct part_step *steps;
    int n_steps, capacity;
};

/* ---- the whole ------------------------------------------------------------------------------------------------------------------------------------ */

enum part_moe {
    PART_MOE_TENSOR, /* --moe tp */
    PART_MOE_EXPERT  /* --moe ep */
};

/* What a user chose that changes the unsharded program; both matter to models with experts alone. */
struct part_model_options {
    enum part_moe moe;
    const char *expert_map; /* path; expert mode alone. NULL: experts stand in their own order */
};

struct part_model {
    struct arena arena;
    struct model_config config;
    const struct checkpoint *ck;
    enum part_moe moe;
    bool scales_input; /* while it is built: the next product's input has been scaled as its matrix asks (struct quant_scheme.input_scale) */
    const struct expert_map *expert_map; /* NULL: none */
    int rank, n_ranks; /* 0 of 1: unsharded */

    struct part_dim dims[PART_MAX_DIMS];
    int n_dims;
    int dim_heads, dim_ffn, dim_vocab; /* indexes; −1: the family has none */
    int dim_expert_ffn, dim_experts;   /* tensor mode cuts every expert along the first, expert mode deals out whole ones by the second (else −1) */
    int dim_shared_ffn;                /* what a shared expert is cut along: the experts' own dimension where it is of their size */
    int n_stacked;                     /* experts that steps go over: the routed ones, in tensor mode behind them a shared one that is of their size and has no gate */

    struct part_weight *weights;
    int n_weights, weights_capacity;
    struct part_value *values;
    int n_values, values_capacity;
    struct part_cache *caches;
    int n_caches, caches_capacity;

    struct part_program main, head;
    int value_hidden; /* what main leaves for head: [T, hidden] */
    int value_logits; /* [R, vocabulary share] */
    int value_samples, value_scores;
};

/* ---- building (families) -------------------------------------------------------------------------------------------------------------------------- */

struct part_family {
    const char *name; /* as model_config.family */
    enum st (*build)(struct part_model *m, struct err *e); /* arena, config and ck are set */
};
const struct part_family *const *part_families(void); /* NULL-terminated */

/* Reads the configuration, finds the family, builds and checks the unsharded programs. ck must outlive the model. options NULL: as they
 * are when nobody chooses. */
enum st part_model_create(const struct checkpoint *ck, const struct part_model_options *options, struct part_model **m, struct err *e);
void part_model_destroy(struct part_model *m);

int part_add_dim(struct part_model *m, const char *name, const struct order_leaves *leaves);
int part_add_value(struct part_model *m, const char *name, enum part_rows rows, struct part_axis axis);
int part_add_partial(struct part_model *m, const char *name, uint64_t width, int sum_dim);
int part_add_cache(struct part_model *m, int layer, uint32_t n_kv_heads, uint32_t head_dim);
/* A matrix [rows, columns] or vector [rows] from tensor. Its shape and format are checked: ST_INVALID or ST_UNSUPPORTED names it. tensor_rows is what the whole tensor must have:
 * rows.size, or more where it holds several weights one after another (fused) and this one begins at first_row. Of a quantised matrix tensor holds the codes; what else it needs is
 * found by their names (quant.h). */
enum st part_add_weight(struct part_model *m, enum part_weight_kind kind, const struct ck_tensor *tensor, uint64_t first_row, uint64_t tensor_rows, struct part_axis rows,
                        struct part_axis columns, int32_t *index, struct err *e);
/* The same of a view of the tensor (quant.h): of one expert of a fused tensor, of every other row. The view has view_rows rows, of which these begin at first_row;
 * the tensor's dimensions are [planes, view_rows · step, columns], transposed [planes, columns, view_rows · step], of a vector [planes, view_rows · step]. */
enum st part_add_view(struct part_model *m, enum part_weight_kind kind, const struct ck_tensor *tensor, const struct quant_view *view, uint64_t first_row, uint64_t view_rows,
                      struct part_axis rows, struct part_axis columns, int32_t *index, struct err *e);
/* Where the bytes of w->rows and w->columns lie (shard.c). */
void part_weight_slice(struct part_weight *w);
/* Of all tensors of an unsharded weight; of those that it shares with others, its part of the rows. */
uint64_t part_weight_stored_bytes(const struct part_weight *w);
struct part_step *part_add_step(struct part_model *m, struct part_program *p, enum part_op op, int layer);

/* Rows of a value for each token of a step (or logit row). */
static inline uint64_t part_rows_per_token(const struct part_model *m, enum part_rows rows)
{
    return rows == PART_SLOTS ? (uint64_t)(m->config.moe.top_k + m->n_stacked - m->config.moe.n_experts) : 1;
}

static inline struct part_axis part_axis_whole(uint64_t size) { return (struct part_axis){PART_WHOLE, 1, 1, size}; }
static inline struct part_axis part_axis_cut(int dim, uint32_t scale, uint32_t group, uint64_t size) { return (struct part_axis){dim, scale, group, size}; }

/* ---- printing and checking ------------------------------------------------------------------------------------------------------------------------ */

const char *part_op_name(enum part_op op);
/* One line a step: "12 layer 3 linear q,k,v <- h  [T,576]x…". */
void part_program_print(const struct part_model *m, const struct part_program *p, FILE *out);
/* Walks both programs: every operand that a step needs is there and no other, indexes in range, values written before they are read, partial values summed before they are used,
 * shapes agree. ST_INVALID names the step. */
enum st part_model_check(const struct part_model *m, struct err *e);

#endif
