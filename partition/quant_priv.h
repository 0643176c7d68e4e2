/* What quant.c (tensors) asks of quant_config.c (what the configuration says). */
#ifndef PARTITION_QUANT_PRIV_H
#define PARTITION_QUANT_PRIV_H

#include "partition/quant.h"

#define CK_MAX_MODULE 1056 /* the longest name of a tensor, and what is put behind it */

/* checkpoint_format "gptq_v2": zero points are stored as they are. */
bool quant_is_gptq_v2(const struct quant *q);

/* Compares what the tensors have decided with what the configuration says; contradictions are counted until quant_report. */
void quant_note(struct quant *q, const char *module, const struct quant_scheme *s);

#endif
