/* The key/value cache in FP8 as checkpoints speak of it: whether they were made for one, and the scales that they bring along.
 *
 * part_cache_declared (with the configuration) → part_cache_find_scale, part_cache_read_scales (while planning, only for a cache in E4M3). One thread.
 * Spellings: ModelOpt's MODULE.k_proj.k_scale and MODULE.v_proj.v_scale (fused: MODULE.qkv_proj.k_scale, .v_scale), compressed-tensors' MODULE.k_scale and MODULE.v_scale, and
 * AutoFP8's MODULE.kv_scale for both; MODULE is the attention. A stored number is value / scale. */
#ifndef PARTITION_CACHE_H
#define PARTITION_CACHE_H

#include "partition/program.h"

/* config: the parsed config.json. *fp8: quantization_config.kv_cache_scheme is 8 bits, float and not dynamic, or kv_cache_quant_algo (there or in hf_quant_config.json) is FP8. Another
 * declared precision is told in a line and not taken. ST_INVALID names a malformed key. */
enum st part_cache_declared(const struct checkpoint *ck, const json_t *config, bool *fp8, struct err *e);

/* The tensor with the scale of an attention's keys or values; *tensor is NULL where there is none. Two spellings at once: ST_INVALID names both. module NULL: none. */
enum st part_cache_find_scale(const struct checkpoint *ck, const char *module, bool of_values, const struct ck_tensor **tensor, struct err *e);

/* Sets the scales and their tensors in all caches of m. Not one number, or none that is positive and of a sensible size: ST_INVALID names the tensor. */
enum st part_cache_read_scales(struct part_model *m, struct err *e);

#endif
