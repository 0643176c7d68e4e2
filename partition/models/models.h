/* The families that are built in; each in a file of its own beside this one. */
#ifndef PARTITION_MODELS_MODELS_H
#define PARTITION_MODELS_MODELS_H

#include "partition/program.h"

extern const struct part_family part_family_llama, part_family_qwen3, part_family_qwen3_moe, part_family_mixtral, part_family_gpt_oss, part_family_glm4_moe, part_family_minimax_m2, part_family_qwen2_moe;

#endif
