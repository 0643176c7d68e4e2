/* Llama: x += o(attention(rope(q), rope(k), v)); x += down(silu(gate) · up), RMSNorm before each, one head at the end. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.head_norms = NO_HEAD_NORMS};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_llama = {.name = "llama", .build = build};
