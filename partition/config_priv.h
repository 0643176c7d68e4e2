/* What config.c, families.c and rope.c share: one reading of one configuration. A family's reader fills `c` from JSON or from GGUF keys; what all families have in common is helped along. */
#ifndef PARTITION_CONFIG_PRIV_H
#define PARTITION_CONFIG_PRIV_H

#include "partition/config.h"

#define CONFIG_MAX_SIZE (1 << 24) /* hidden, heads, intermediate sizes: no model comes near, and products of two fit 64 bits */

struct config_reader {
    const struct checkpoint *ck;
    struct arena *arena;
    struct model_config *c;
    struct err *e;
    const char *where;        /* config.json's path, or the GGUF file's: for errors */
    const json_t *root;       /* hub: config.json, or the part of it that describes the text model */
    const char *architecture; /* GGUF: the keys' prefix */
    bool tie_flag, tie_flagged;
    int n_more_layers; /* behind the last: for several tokens at once, which nobody here uses */
};

struct config_family {
    const char *name;
    const char *hub_types[4];         /* model_type */
    const char *hub_architectures[4]; /* architectures[0], where model_type is absent; where both are there, both must be known */
    const char *gguf_architectures[4];
    enum st (*hub)(struct config_reader *r);
    enum st (*gguf)(struct config_reader *r); /* NULL: no such files */
    /* After head_dim is final. */
    enum st (*rope_hub)(struct config_reader *r);
    enum st (*rope_gguf)(struct config_reader *r);
};
/* ST_UNSUPPORTED names the family that is not known, and those that are. */
enum st config_family_hub(const struct config_reader *r, const struct config_family **family);
enum st config_family_gguf(struct config_reader *r, const struct config_family **family);

/* GGUF keys "ARCHITECTURE.suffix": ST_NOT_FOUND where absent; wrong type or range is ST_INVALID. A list with one number per layer is taken where all are equal. */
enum st config_gguf_i64(const struct config_reader *r, const char *suffix, int64_t min, int64_t max, int64_t *value);
enum st config_gguf_f64(const struct config_reader *r, const char *suffix, double *value);
/* A key by its whole name. */
bool config_gguf_string(const struct config_reader *r, const char *key, struct gguf_string *value);

/* c->head_dim must be known. Fill c->rope: what is said, and the frequencies that follow from it. */
enum st config_rope_hub(const struct config_reader *r, double default_theta, double default_share);
enum st config_rope_gguf(const struct config_reader *r, bool interleaved);

#endif
