/* GPT-OSS: attention with sinks, every other layer in a window; experts with biases, chosen before the softmax, a clamped gate; gate and up of an expert row by row in one tensor,
 * in BF16 with the input dimension first. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static const struct expert_names names = {
    .router = {"mlp.router", "ffn_gate_inp"}, .experts = "mlp.experts", .gate = "gate_proj", .up = "up_proj", .down = "down_proj", .interleaved = true, .input_first = true,
};

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.sinks = true, .ffn_norm = {"post_attention_layernorm", "post_attention_norm"}, .experts = &names};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_gpt_oss = {.name = "gpt_oss", .build = build};
