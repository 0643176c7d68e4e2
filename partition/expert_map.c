/* Reading and making expert maps. Greedy where the best is not worth its time: a few hundred experts, at most 32 groups. */
#include "partition/expert_map.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "partition/config.h"
#include "partition/order.h"

#define MAX_FILE_BYTES (64u << 20)

/* ---- reading ------------------------------------------------------------------------------------------------------------------------------------------ */

static enum st read_layer(const char *path, const json_t *list, int layer, int n_experts, struct arena *arena, const uint16_t **out, struct err *e)
{
    *out = NULL;
    if (!json_is_array(list))
        return err_set(e, ST_INVALID, "%s: layers[%d] is no list of experts", path, layer);
    if (json_array_size(list) == 0)
        return ST_OK;
    uint16_t *at = base_arena_array(arena, (size_t)n_experts, sizeof *at);
    bool *seen = base_arena_array(arena, (size_t)n_experts, sizeof *seen);
    if (!at || !seen)
        return err_set(e, ST_NO_MEMORY, "%s: no memory for %d experts", path, n_experts);
    memset(seen, 0, (size_t)n_experts * sizeof *seen);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *one = json_array_get(list, i);
        const json_int_t expert = json_is_integer(one) ? json_integer_value(one) : -1;
        if (expert < 0 || expert >= n_experts)
            return err_set(e, ST_INVALID, "%s: layers[%d][%zu] is none of %d experts", path, layer, i, n_experts);
        if (seen[expert])
            return err_set(e, ST_INVALID, "%s: layers[%d] has expert %" JSON_INTEGER_FORMAT " twice", path, layer, expert);
        seen[expert] = true;
        at[i] = (uint16_t)expert;
    }
    for (int k = 0; k < n_experts; k++)
        if (!seen[k])
            return err_set(e, ST_INVALID, "%s: layers[%d] forgets expert %d", path, layer, k);
    *out = at;
    return ST_OK;
}

static int by_number(const void *a, const void *b) { return (int)*(const uint16_t *)a - (int)*(const uint16_t *)b; }

/* Whatever order the file has inside a group, sums take the ascending one. */
static void sort_groups(uint16_t *at, int n_experts)
{
    struct order_leaves groups;
    order_experts((uint32_t)n_experts, &groups);
    for (uint32_t g = 0; g < groups.n; g++)
        qsort(at + order_leaf_begin(&groups, g), (size_t)(groups.end[g] - order_leaf_begin(&groups, g)), sizeof *at, by_number);
}

enum st expert_map_take(const json_t *root, const char *path, int n_layers, int n_experts, struct arena *arena, struct expert_map *map, struct err *e)
{
    enum st st = ST_OK;
    const json_t *layers = json_object_get(root, "layers");
    struct expert_map m = {.n_layers = n_layers, .n_experts = n_experts, .at = base_arena_array(arena, (size_t)n_layers, sizeof *m.at)};
    if (!m.at)
        st = err_set(e, ST_NO_MEMORY, "%s: no memory for %d layers", path, n_layers);
    else if (!json_is_array(layers))
        st = err_set(e, ST_INVALID, "%s: no list of layers in it", path);
    else if (json_array_size(layers) != (size_t)n_layers)
        st = err_set(e, ST_INVALID, "%s: %zu layers, but the model has %d", path, json_array_size(layers), n_layers);
    for (int layer = 0; layer < n_layers && !st; layer++) {
        st = read_layer(path, json_array_get(layers, (size_t)layer), layer, n_experts, arena, &m.at[layer], e);
        if (!st && m.at[layer])
            sort_groups((uint16_t *)(uintptr_t)m.at[layer], n_experts);
    }
    if (!st)
        *map = m;
    return st;
}

enum st expert_map_read(const char *path, int n_layers, int n_experts, struct arena *arena, struct expert_map *map, struct err *e)
{
    json_t *root;
    enum st st = base_json_load(path, MAX_FILE_BYTES, &root, e);
    if (st)
        return st;
    st = expert_map_take(root, path, n_layers, n_experts, arena, map, e);
    json_decref(root);
    return st;
}

/* ---- making ------------------------------------------------------------------------------------------------------------------------------------------- */

struct wanted {
    uint64_t count;
    int expert;
};

static int most_first(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    return x->count != y->count ? (x->count < y->count ? 1 : -1) : x->expert - y->expert;
}

struct bin {
    uint64_t count;
    int n, size;
};

void expert_map_balance(const uint64_t *counts, int n_experts, uint16_t *at)
{
    struct order_leaves groups;
    order_experts((uint32_t)n_experts, &groups);
    struct wanted wanted[CONFIG_MAX_EXPERTS];
    int group_of[CONFIG_MAX_EXPERTS];
    BASE_ASSERT(n_experts > 0 && n_experts <= CONFIG_MAX_EXPERTS);
    struct bin bins[ORDER_MAX_LEAVES] = {{0, 0, 0}};
    uint64_t total = 0;
    for (int i = 0; i < n_experts; i++) {
        wanted[i] = (struct wanted){counts[i], i};
        total += counts[i];
    }
    qsort(wanted, (size_t)n_experts, sizeof *wanted, most_first);
    for (uint32_t g = 0; g < groups.n; g++)
        bins[g].size = (int)(groups.end[g] - order_leaf_begin(&groups, g));
    for (int i = 0; i < n_experts; i++) {
        uint32_t least = groups.n;
        for (uint32_t g = 0; g < groups.n; g++)
            if (bins[g].n < bins[g].size && (least == groups.n || bins[g].count < bins[least].count))
                least = g;
        bins[least].n++;
        bins[least].count += wanted[i].count;
        group_of[wanted[i].expert] = (int)least;
    }

    /* Groups of equal size may change places: each place takes the one that brings the sum so far nearest to its share. */
    bool placed[ORDER_MAX_LEAVES] = {false};
    uint64_t so_far = 0;
    for (uint32_t place = 0; place < groups.n; place++) {
        const double share = (double)total * (double)groups.end[place] / n_experts;
        uint32_t best = groups.n;
        double best_off = 0;
        for (uint32_t g = 0; g < groups.n; g++) {
            const double off = (double)(so_far + bins[g].count) - share, distance = off < 0 ? -off : off;
            if (!placed[g] && bins[g].size == bins[place].size && (best == groups.n || distance < best_off)) {
                best = g;
                best_off = distance;
            }
        }
        placed[best] = true;
        so_far += bins[best].count;
        uint64_t to = order_leaf_begin(&groups, place);
        for (int i = 0; i < n_experts; i++)
            if (group_of[i] == (int)best)
                at[to++] = (uint16_t)i;
    }
}
