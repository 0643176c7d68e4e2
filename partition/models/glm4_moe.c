/* GLM-4.5 to 4.7: half of each head rotates, a norm of heads where the checkpoint has one; first layers dense, then experts chosen by sigmoid and a correction, and a shared one.
 * The layer behind the last (multi-token prediction) is not used. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"mlp.gate", NULL}, .correction = {"mlp.gate.e_score_correction_bias", NULL}, .experts = "mlp.experts", .gate = "gate_proj", .up = "up_proj", .down = "down_proj",
    .shared = "mlp.shared_experts",
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.head_norms = HEAD_NORMS_IF_ANY, .experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_glm4_moe = {.name = "glm4_moe", .build = build};
