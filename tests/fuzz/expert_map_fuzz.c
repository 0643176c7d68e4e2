/* Expert maps: JSON of any kind for a model of three layers with five experts. What is taken is an order of all of them. */
#include <stdlib.h>

#include "base/status.h"
#include "partition/expert_map.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    enum { LAYERS = 3, EXPERTS = 5 };
    json_t *root;
    struct arena arena;
    struct expert_map map;
    struct err e = {""};
    if (base_json_parse("fuzz", (const char *)data, bytes, &root, &e) != ST_OK)
        return 0;
    BASE_ASSERT(base_arena_init(&arena, "fuzz", 0, NULL) == ST_OK);
    const enum st st = expert_map_take(root, "fuzz", LAYERS, EXPERTS, &arena, &map, &e);
    BASE_ASSERT(st == ST_OK || e.text[0]);
    for (int layer = 0; layer < LAYERS && !st; layer++) {
        unsigned seen = 0;
        for (int i = 0; map.at[layer] && i < EXPERTS; i++)
            seen |= 1u << map.at[layer][i];
        BASE_ASSERT(!map.at[layer] || seen == (1u << EXPERTS) - 1);
    }
    base_arena_release(&arena);
    json_decref(root);
    return 0;
}
