/* The reference backend's table. */
#include "kernels/ref/ref.h"

static bool ref_probe(void) { return true; }

static bool ref_supports(enum kern_op op, enum format format, enum kern_activation activation, int head_dim) {
    switch (op) {
    case KERN_OP_MATMUL:
    case KERN_OP_EXPERTS_IN:
    case KERN_OP_EXPERTS_OUT:
        return format < FMT_COUNT && format != FMT_E4M3 && (activation == KERN_ACT_F32 || activation == kern_activation_for(format, false));
    case KERN_OP_EMBED:
        return format < FMT_COUNT && format != FMT_E4M3;
    case KERN_OP_ATTENTION:
        if (head_dim < 1 || head_dim > REF_MAX_HEAD_DIM)
            return false; /* else as for the cache */
        return kern_format(format)->block_columns == 1;
    case KERN_OP_KV_APPEND:
        return kern_format(format)->block_columns == 1;
    default:
        return op >= 0 && op < KERN_OP_COUNT;
    }
}

static size_t ref_attention_scratch_bytes(int n_heads, int head_dim, int n_tokens, int n_threads) {
    (void)n_heads, (void)head_dim, (void)n_tokens, (void)n_threads;
    return 0;
}

const struct kern_backend kern_ref = {
    .name = "ref",
    .variant = "scalar",
    .priority = 0,
    .probe = ref_probe,
    .supports = ref_supports,
    .matrix_bytes = ref_matrix_bytes,
    .matrix_pack = ref_matrix_pack,
    .matmul_scratch_bytes = ref_matmul_scratch_bytes,
    .attention_scratch_bytes = ref_attention_scratch_bytes,
    .matmul_prepare = ref_matmul_prepare,
    .matmul = ref_matmul,
    .embed = ref_embed,
    .kv_append = ref_kv_append,
    .attention = ref_attention,
    .norm = ref_norm,
    .squares = ref_squares,
    .rope_table = ref_rope_table,
    .rope = ref_rope,
    .gate = ref_gate,
    .row_gate = ref_row_gate,
    .column_scale = ref_column_scale,
    .sum = ref_sum,
    .topk = ref_topk,
    .sample = ref_sample,
    .lse = ref_lse,
    .route = ref_route,
    .experts_scratch_bytes = ref_experts_scratch_bytes,
    .experts_in_prepare = ref_experts_in_prepare,
    .experts_in = ref_experts_in,
    .experts_out_prepare = ref_experts_out_prepare,
    .experts_out = ref_experts_out,
    .experts_bias = ref_experts_bias,
};
