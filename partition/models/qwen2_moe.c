/* Qwen2-MoE: Llama's attention with biases of query, key and value; experts chosen by softmax, and a shared one of another size, multiplied by a gate of its own. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"mlp.gate", NULL}, .experts = "mlp.experts", .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .shared = "mlp.shared_expert", .shared_gate = {"mlp.shared_expert_gate", NULL},
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_qwen2_moe = {.name = "qwen2_moe", .build = build};
