/* What synth.c asks of synth_config.c, which describes the checkpoint. */
#ifndef PARTITION_SYNTH_PRIV_H
#define PARTITION_SYNTH_PRIV_H

#include "partition/synth.h"

/* ModelOpt's spelling: NVFP4, and FP8 with a scale a tensor. */
bool synth_is_modelopt(const struct synth_plan *p);

/* Fills config and quant_config. */
enum st synth_config(struct synth_plan *p, struct err *e);

#endif
