/* The products of experts, by the letter: a slot at a time, each like a product of one token (kernels/ref/matmul.c).
 *
 * experts_out, for each output of a token: a sum starts as +0; for each of the token's slots, in order, each vector of the slot's product (with the bias) goes
 * into its sum: sum = fma(weight, vector, sum). Then the sums are pushed and folded as kern_experts_out says. */
#include <math.h>

#include "base/tick.h"
#include "kernels/ref/ref.h"
#include "kernels/tree.h"

size_t ref_experts_scratch_bytes(const struct kern_columns *columns, int n_slots, int n_tokens, int n_sums, int n_threads) {
    (void)n_tokens, (void)n_sums, (void)n_threads;
    return ref_matmul_scratch_bytes(columns, n_slots);
}

/* A slot's product as one of one token. */
static struct kern_matmul in_of_slot(const struct kern_experts_in *args, int expert, int slot) {
    const struct kern_columns *c = &args->parts[0].matrix[expert]->columns;
    struct kern_matmul one = {.x = args->x + (size_t)args->slots->token[slot] * args->x_stride, .n_tokens = 1, .n_parts = args->n_parts,
                              .scratch = (char *)args->scratch + (size_t)slot * ref_matmul_scratch_bytes(c, 1)};
    for (int p = 0; p < args->n_parts; p++) {
        const struct kern_experts_part *part = &args->parts[p];
        one.parts[p] = (struct kern_matmul_part){.matrix = part->matrix[expert], .bias = part->bias ? part->bias[expert] : NULL,
                                                 .y = part->y + (size_t)slot * part->y_stride};
    }
    return one;
}

static struct kern_matmul out_of_slot(const struct kern_experts_out *args, int expert, int slot) {
    const struct kern_columns *c = &args->matrix[expert]->columns;
    struct kern_matmul one = {.x = args->x + (size_t)slot * args->x_stride, .n_tokens = 1, .n_parts = 1,
                              .scratch = (char *)args->scratch + (size_t)slot * ref_matmul_scratch_bytes(c, 1)};
    one.parts[0] = (struct kern_matmul_part){.matrix = args->matrix[expert], .bias = args->bias ? args->bias[expert] : NULL, .vector_stride = 1};
    return one;
}

void ref_experts_in_prepare(struct kern_queue q, const struct kern_experts_in *args) {
    for (int e = 0; e < args->slots->n_experts; e++)
        for (int slot = args->slots->begin[e]; slot < args->slots->begin[e + 1]; slot++) {
            struct kern_matmul one = in_of_slot(args, e, slot);
            if (slot % q.n_threads == q.i_thread)
                ref_matmul_prepare((struct kern_queue){0, 1}, &one);
        }
}

void ref_experts_in(struct kern_queue q, const struct kern_experts_in *args) {
    for (int e = 0; e < args->slots->n_experts; e++)
        for (int slot = args->slots->begin[e]; slot < args->slots->begin[e + 1]; slot++) {
            struct kern_matmul one = in_of_slot(args, e, slot);
            ref_matmul(q, &one);
        }
}

void ref_experts_out_prepare(struct kern_queue q, const struct kern_experts_out *args) {
    for (int e = 0; e < args->slots->n_experts && args->n_sums; e++)
        for (int slot = args->slots->begin[e]; slot < args->slots->begin[e + 1]; slot++) {
            struct kern_matmul one = out_of_slot(args, e, slot);
            if (slot % q.n_threads == q.i_thread)
                ref_matmul_prepare((struct kern_queue){0, 1}, &one);
        }
}

/* Row `row` of token t. */
static void sum_of_token(const struct kern_experts_out *args, int t, int row) {
    float sum[KERN_MAX_LEAVES] = {0}, vector[KERN_MAX_LEAVES], stack[KERN_TREE_STACK];
    /* ---- the token's slots */
    for (int e = 0; e < args->slots->n_experts; e++)
        for (int slot = args->slots->begin[e]; slot < args->slots->begin[e + 1]; slot++) {
            if (args->slots->token[slot] != t)
                continue;
            struct kern_matmul one = out_of_slot(args, e, slot);
            ref_matmul_row(&one, &one.parts[0], (uint64_t)row, 0, 1, vector);
            for (uint32_t j = 0; j < args->matrix[e]->columns.n_vectors; j++) {
                float *to = &sum[(args->sum_of ? args->sum_of[e] : 0) + j];
                *to = fmaf(args->slots->weight[slot], vector[j], *to);
            }
        }
    /* ---- the fold */
    size_t i_vector = 0;
    int depth = 0;
    for (int i = 0; i < args->n_sums; i++) {
        stack[depth++] = sum[i];
        for (int f = 0; f < args->n_folds[i]; f++, depth--)
            stack[depth - 2] = stack[depth - 2] + stack[depth - 1];
        if (args->emit[i])
            args->y[i_vector++ * args->vector_stride + (size_t)t * args->y_stride + (size_t)row] = stack[--depth];
    }
}

void ref_experts_out(struct kern_queue q, const struct kern_experts_out *args) {
    REF_FOR_SHARE(int, row, args->n_rows, q)
        for (int t = 0; t < args->n_tokens && args->n_sums; t++) {
            sum_of_token(args, t, row);
            base_tick();
        }
}
