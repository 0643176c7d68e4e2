/* Mixtral: Llama's attention, experts chosen by softmax whose weights are made to add up to 1. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"block_sparse_moe.gate", "ffn_gate_inp"}, .experts = "block_sparse_moe.experts", .gate = "w1", .up = "w3", .down = "w2",
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_mixtral = {.name = "mixtral", .build = build};
