/* The table of model families: a family is one readable file that builds the unsharded programs. */
#include "partition/models/models.h"

const struct part_family *const *part_families(void)
{
    static const struct part_family *const families[] = {&part_family_llama,   &part_family_qwen3,   &part_family_qwen3_moe,
                                                         &part_family_mixtral, &part_family_gpt_oss, &part_family_glm4_moe,
                                                         &part_family_minimax_m2, &part_family_qwen2_moe, NULL};
    return families;
}
