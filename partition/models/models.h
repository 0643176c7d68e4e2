/* The families that are built in; each in a file of its own beside this one. */
#ifndef PARTITION_MODELS_MODELS_H
#define PARTITION_MODELS_MODELS_H

#include "partition/program.h"

extern const struct part_family part_family_llama, part_family_qwen3;

#endif
