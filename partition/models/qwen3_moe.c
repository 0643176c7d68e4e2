/* Qwen3-MoE: Qwen3's attention; every layer has experts, chosen by softmax, but for those that are listed as dense (mlp_only_layers: the router is not there). */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"mlp.gate", "ffn_gate_inp"}, .experts = "mlp.experts", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.head_norms = HEAD_NORMS, .experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_qwen3_moe = {.name = "qwen3_moe", .build = build};
