/* What decoder families have in common: x += attention(norm(x)); x += feed-forward(norm(x)), one head at the end. A family's file says which blocks stand in which order and what is
 * special about them; the tensors that are there decide which biases and norms exist, whatever the flags say.
 *
 * decoder_begin (dimensions, values, embedding) → for each layer decoder_attention, then decoder_ffn or decoder_experts → decoder_head. */
#ifndef PARTITION_MODELS_DECODER_H
#define PARTITION_MODELS_DECODER_H

#include "partition/program.h"

/* A module's name in both spellings, inside a layer ("model.layers.N." and "blk.N." stand before it) or outside. */
struct names {
    const char *hub, *gguf;
};

struct decoder {
    bool head_norms; /* q and k of each head are normed before they are rotated, where the tensors are there */

    /* values, made by decoder_begin */
    int x, h, rope, q, k, v, a, attention_part, gate, up, y, ffn_part, picked, normed, logits, samples, scores;
    int32_t embedding; /* the weight */
    bool qkv_bias[3], o_bias, gate_up_bias[2], down_bias;
};

/* The tensor of a module ("weight": of its numbers or codes, or "bias"), NULL where it is not there. layer −1: outside the layers. full receives its name either way. */
const struct ck_tensor *decoder_find(const struct part_model *m, int layer, struct names n, const char *what, char full[128]);
bool decoder_has(const struct part_model *m, int layer, struct names n, const char *what);
/* part_add_weight of a tensor that has to be there: ST_NOT_FOUND names it. */
enum st decoder_add(struct part_model *m, enum part_weight_kind kind, int layer, struct names n, const char *what, struct part_axis rows, struct part_axis columns, int32_t *index,
                    struct err *e);

enum st decoder_begin(struct part_model *m, struct decoder *d, struct err *e);
enum st decoder_attention(struct part_model *m, int layer, const struct decoder *d, struct err *e);
enum st decoder_ffn(struct part_model *m, int layer, const struct decoder *d, struct err *e);
enum st decoder_head(struct part_model *m, const struct decoder *d, struct err *e);

/* All of it, with the same two blocks in each layer. */
enum st decoder_build(struct part_model *m, struct decoder *d, struct err *e);

#endif
