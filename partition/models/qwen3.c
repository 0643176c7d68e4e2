/* Qwen3: Llama's blocks, with a norm over each head's query and key before they are rotated. */
#include "partition/models/decoder.h"
#include "partition/models/models.h"

static enum st build(struct part_model *m, struct err *e)
{
    struct decoder d = {.head_norms = HEAD_NORMS};
    return decoder_build(m, &d, e);
}

const struct part_family part_family_qwen3 = {.name = "qwen3", .build = build};
