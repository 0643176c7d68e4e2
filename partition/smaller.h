/* What a publisher left in plain numbers, made smaller by whoever runs the model: a head or an embedding rounded to FP8 while it is loaded, an embedding whose rows stay in their file.
 *
 * part_model_create → part_model_make_smaller → plans. Equal on every rank: it is part of the plan's digest, and whole rows are rounded, which no cut divides. */
#ifndef PARTITION_SMALLER_H
#define PARTITION_SMALLER_H

#include "partition/program.h"

enum part_embedding { PART_EMBEDDING_STORED, PART_EMBEDDING_FP8, PART_EMBEDDING_DISK };
extern const char *const part_embedding_names[]; /* as they are typed; NULL-terminated */

struct part_smaller {
    bool head_fp8;
    enum part_embedding embedding;
};

/* What is quantised already stays as it is, which a line says. A head that is the embedding too is one matrix: both are rounded, unless the embedding is read from its file. ST_UNSUPPORTED:
 * an embedding of several tensors cannot stay in its file. */
enum st part_model_make_smaller(struct part_model *m, const struct part_smaller *s, struct err *e);

#endif
