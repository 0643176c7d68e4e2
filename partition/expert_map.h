/* Expert mode: which experts stand together in a group. By default experts stand in their own order; a map gives each layer an order of its own, so that groups (and with them ranks)
 * have equally much to do. Inside a group experts stay in ascending order, since that is the order of their sum.
 *
 * A map is a JSON file, as `tandem eval --expert-stats` writes it: {"layers": [[expert, expert, …], …], …}, a layer without experts an empty list; other members are not read. */
#ifndef PARTITION_EXPERT_MAP_H
#define PARTITION_EXPERT_MAP_H

#include <stdint.h>

#include "base/arena.h"
#include "base/json.h"

struct expert_map {
    int n_layers, n_experts;
    const uint16_t **at; /* [n_layers][n_experts] the expert at each position; NULL: a layer without experts */
};

/* ST_IO, or ST_INVALID with one sentence: no such list, a layer too many or too few, an expert that is missing or there twice. */
enum st expert_map_read(const char *path, int n_layers, int n_experts, struct arena *arena, struct expert_map *map, struct err *e);

/* The same of JSON that was read; where names it in errors. */
enum st expert_map_take(const json_t *root, const char *where, int n_layers, int n_experts, struct arena *arena, struct expert_map *map, struct err *e);

/* The order of one layer by how often each expert was chosen: groups as equal as can be (the most wanted expert first, to the group with the least so far), and the groups in an order of
 * which every beginning has its share, because a rank owns consecutive ones. Groups as order_experts has them. at: [n_experts], at most CONFIG_MAX_EXPERTS. */
void expert_map_balance(const uint64_t *counts, int n_experts, uint16_t *at);

#endif
