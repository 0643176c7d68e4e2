/* What decoder families have in common: x += attention(norm(x)); x += feed-forward(norm(x)), one head at the end. A family's file says which blocks stand in which order and what is
 * special about them; the tensors that are there decide which biases and norms exist, whatever the flags say.
 *
 * decoder_begin (dimensions, values, embedding) → for each layer decoder_attention, then decoder_ffn or decoder_experts → decoder_head. */
#ifndef PARTITION_MODELS_DECODER_H
#define PARTITION_MODELS_DECODER_H

#include "partition/program.h"

/* A module's name in both spellings (NULL: it has none in that one), inside a layer ("model.layers.N." and "blk.N." stand before it) or outside. */
struct names {
    const char *hub, *gguf;
};

/* How a family spells its experts. Of each layer they may be tensors of their own (experts.E.gate_proj), or planes of one tensor for all of them: gate and up apart, one behind the other
 * ([E, 2·ffn, hidden]), or row by row; the last also with the input dimension first (GPT-OSS). GGUF has planes. */
struct expert_names {
    struct names router;
    struct names correction;        /* whole names, of what is added to the scores for the choice alone */
    const char *experts;            /* "mlp.experts": their modules are below it */
    const char *gate, *up, *down;   /* "gate_proj" */
    const char *shared;             /* "mlp.shared_experts", spelled like one of the others; NULL: the family has none */
    struct names shared_gate;       /* one number for each token, by which it is multiplied; none */
    bool interleaved;               /* a tensor for gate and up: row by row */
    bool input_first;               /* plain numbers of all experts: [E, in, out] */
};

struct decoder {
    /* what is special about the family */
    enum { NO_HEAD_NORMS, HEAD_NORMS, HEAD_NORMS_IF_ANY } head_norms; /* q and k of each head are normed before they are rotated; the last: in a model that has such tensors */
    bool all_norms;  /* q and k are normed over all heads together: one exchange more */
    bool sinks;      /* attention has one more score for each head */
    struct names ffn_norm; /* of what goes into the feed-forward block; none: the usual one */
    const struct expert_names *experts; /* NULL: it has none; a layer has them where its router or the first of them is there */

    /* values, made by decoder_begin; of a kind of layer that the model does not have they are nothing */
    int x, h, rope, q, k, v, a, attention_part, gate, up, y, ffn_part, picked, normed, logits, samples, scores;
    int squares, router, routes, expert_gate, expert_up, expert_y, expert_part, expert_bias;
    int shared_gate, shared_up, shared_y, shared_part, shared_weight; /* of a shared expert that is not stacked with the others (part_model.n_stacked) */
    int32_t embedding; /* the weight */
    bool qkv_bias[3], o_bias, gate_up_bias[2], down_bias;
};

/* The tensor of a module ("weight": of its numbers or codes, or "bias"), NULL where it is not there. layer −1: outside the layers. full receives its name either way. */
const struct ck_tensor *decoder_find(const struct part_model *m, int layer, struct names n, const char *what, char full[128]);
bool decoder_has(const struct part_model *m, int layer, struct names n, const char *what);
/* What one layer has, all must have. */
bool decoder_in_any_layer(const struct part_model *m, struct names n, const char *what);
/* part_add_weight of a tensor that has to be there: ST_NOT_FOUND names it. */
enum st decoder_add(struct part_model *m, enum part_weight_kind kind, int layer, struct names n, const char *what, struct part_axis rows, struct part_axis columns, int32_t *index,
                    struct err *e);

enum st decoder_begin(struct part_model *m, struct decoder *d, struct err *e);
enum st decoder_attention(struct part_model *m, int layer, const struct decoder *d, struct err *e);
enum st decoder_ffn(struct part_model *m, int layer, const struct decoder *d, struct err *e);
enum st decoder_head(struct part_model *m, const struct decoder *d, struct err *e);

bool decoder_has_experts(const struct part_model *m, int layer, const struct decoder *d);
/* experts.c. The feed-forward block of a layer with experts; values and dimensions of such layers. */
void decoder_begin_experts(struct part_model *m, struct decoder *d);
enum st decoder_experts(struct part_model *m, int layer, const struct decoder *d, struct err *e);
enum st decoder_norm(struct part_model *m, struct part_program *p, int layer, int in, int out, struct names n, struct err *e);

/* All of it: an attention block and a feed-forward block in each layer. */
enum st decoder_build(struct part_model *m, struct decoder *d, struct err *e);

#endif
