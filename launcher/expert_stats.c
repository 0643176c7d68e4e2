#include "launcher/expert_stats.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "partition/expert_map.h"
#include "runtime/protocol.h"

enum st launch_expert_stats_check(const char *path, struct err *e)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return err_set(e, ST_IO, "--expert-stats %s: %s", path, strerror(errno));
    close(fd);
    return ST_OK;
}

enum st launch_expert_stats_take(struct launch_expert_stats *s, const void *payload, size_t bytes, struct err *e)
{
    struct rt_experts_head head;
    if (bytes < sizeof head)
        return err_set(e, ST_INVALID, "%zu bytes tell which experts were chosen", bytes);
    memcpy(&head, payload, sizeof head);
    const uint64_t n = (uint64_t)head.n_layers * head.n_experts;
    if (head.n_experts == 0 || head.n_experts > CONFIG_MAX_EXPERTS || bytes - sizeof head != n * sizeof *s->counts)
        return err_set(e, ST_INVALID, "%zu bytes tell which of %u experts in %u layers were chosen", bytes, head.n_experts, head.n_layers);
    free(s->counts);
    *s = (struct launch_expert_stats){.n_layers = (int)head.n_layers, .n_experts = (int)head.n_experts, .counts = malloc(bytes - sizeof head)};
    if (!s->counts)
        return err_set(e, ST_NO_MEMORY, "no memory to count experts");
    memcpy(s->counts, (const unsigned char *)payload + sizeof head, bytes - sizeof head);
    return ST_OK;
}

static uint64_t sum_of(const uint64_t *counts, int n)
{
    uint64_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += counts[i];
    return sum;
}

/* A layer in which nobody chose has no experts: of others every token chooses some. */
static json_t *layer_of(const struct launch_expert_stats *s, int layer, const uint16_t *at)
{
    const uint64_t *counts = s->counts + (size_t)layer * (size_t)s->n_experts;
    const int n = sum_of(counts, s->n_experts) ? s->n_experts : 0;
    json_t *list = json_array();
    for (int i = 0; i < n; i++)
        json_array_append_new(list, json_integer((json_int_t)(at ? at[i] : counts[i])));
    return list;
}

enum st launch_expert_stats_write(const struct launch_expert_stats *s, const struct launch_setup *setup, const char *path, struct err *e)
{
    if (!s->counts)
        return err_set(e, ST_INVALID, "--expert-stats: %s has no experts", setup->model);
    uint16_t *at = malloc((size_t)s->n_experts * sizeof *at);
    json_t *root = json_object(), *counts = json_array(), *layers = json_array();
    if (!at || !root || !counts || !layers)
        return err_set(e, ST_NO_MEMORY, "no memory for %s", path);
    for (int layer = 0; layer < s->n_layers; layer++) {
        expert_map_balance(s->counts + (size_t)layer * (size_t)s->n_experts, s->n_experts, at);
        json_array_append_new(counts, layer_of(s, layer, NULL));
        json_array_append_new(layers, layer_of(s, layer, at));
    }
    free(at);
    json_object_set_new(root, "model", json_string(setup->whole->config.name));
    json_object_set_new(root, "experts", json_integer(s->n_experts));
    json_object_set_new(root, "chosen_for_a_token", json_integer(setup->whole->config.moe.top_k));
    json_object_set_new(root, "counts", counts);
    json_object_set_new(root, "layers", layers);
    const bool bad = json_dump_file(root, path, JSON_COMPACT) != 0;
    const int error = errno;
    json_decref(root);
    return bad ? err_set(e, ST_IO, "--expert-stats %s: %s", path, strerror(error)) : ST_OK;
}

void launch_expert_stats_release(struct launch_expert_stats *s)
{
    free(s->counts);
    s->counts = NULL;
}
