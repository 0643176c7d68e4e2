/* MiniMax-M2: query and key are normed over all heads together (so ranks exchange sums of squares), half of each head rotates; every layer has experts, chosen by sigmoid and a correction. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"block_sparse_moe.gate", NULL}, .correction = {"block_sparse_moe.e_score_correction_bias", NULL}, .experts = "block_sparse_moe.experts", .gate = "w1", .up = "w3", .down = "w2",
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.all_norms = true, .experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_minimax_m2 = {.name = "minimax_m2", .build = build};
