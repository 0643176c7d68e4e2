/* Plans of conversions: a GGUF, or safetensors beside a config.json of a small llama, into each format. What is planned reads back: the headers open, hold the targets where the plan
 * says, and nothing else. The first byte's top bits choose patterns. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "partition/convert.h"
#include "tests/fuzz/ck_fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static const char convert_config[] = "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":32,\"intermediate_size\":32,\"num_hidden_layers\":1,"
                                     "\"num_attention_heads\":2,\"num_key_value_heads\":1,\"vocab_size\":4,\"rms_norm_eps\":1e-5,\"rope_theta\":10000.0}";

static void convert_check_file(const struct convert_plan *p, size_t i_file)
{
    const struct out_file *f = &p->files[i_file];
    BASE_ASSERT(f->head_bytes <= f->bytes);
    unsigned char *image = calloc(1, f->bytes);
    BASE_ASSERT(image != NULL);
    memcpy(image, f->head, f->head_bytes);
    struct checkpoint *ck = NULL;
    struct err e = {""};
    const enum st st = ck_open_memory(p->gguf ? CK_GGUF : CK_SAFETENSORS, image, f->bytes, &ck, &e);
    if (st != ST_OK) {
        fprintf(stderr, "%s\n", e.text);
        abort();
    }
    size_t n = 0;
    for (size_t i = 0; i < p->n_targets; i++) {
        const struct out_tensor *t = &p->targets[i];
        if (t->file != i_file)
            continue;
        const struct ck_tensor *read = ck_find(ck, t->name);
        BASE_ASSERT(read && read->offset == t->offset && read->bytes == t->bytes && read->n_dims == t->n_dims);
        BASE_ASSERT(memcmp(read->dims, t->dims, (size_t)t->n_dims * sizeof *t->dims) == 0);
        n++;
    }
    BASE_ASSERT(n == ck_n_tensors(ck));
    ck_close(ck);
    free(image);
}

static void convert_check(const struct checkpoint *ck, struct convert_plan *p, uint64_t max_file_bytes)
{
    struct err e = {""};
    size_t n_targets = 0;
    for (size_t i = 0; i < p->n_items; i++) {
        const struct convert_item *item = &p->items[i];
        BASE_ASSERT(item->first_target == n_targets && item->n_targets >= 1);
        n_targets += item->n_targets;
        if (item->source && item->source->bytes && (item->as != CONVERT_COPY || item->head_rows))
            BASE_ASSERT(item->rows && item->columns && item->source->bytes % item->rows == 0 && item->rows % (item->head_rows ? item->head_rows : 1) == 0);
    }
    BASE_ASSERT(n_targets == p->n_targets && (p->gguf || p->config) && p->n_items <= ck_n_tensors(ck) + 1);
    BASE_ASSERT(convert_plan_layout(p, max_file_bytes, &e) == ST_OK);
    BASE_ASSERT(p->n_files == 1 || p->index);
    for (size_t i = 0; i < p->n_files; i++)
        convert_check_file(p, i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static bool quiet;
    if (!quiet)
        base_log_init("error");
    quiet = true;
    const bool gguf = bytes && data[0] == 'G';
    struct checkpoint *ck;
    if (!fuzz_open(gguf ? CK_GGUF : CK_SAFETENSORS, data, bytes, &ck))
        return 0;
    if (!gguf)
        BASE_ASSERT(ck_put_json(ck, "config.json", convert_config, sizeof convert_config - 1, NULL) == ST_OK);
    static const char *const ignore[] = {"*down*", "re:.*\\.k_proj$"};
    for (int format = 0; format < CONVERT_FORMATS; format++) {
        const struct convert_options o = {.format = (enum convert_format)format, .ignore = ignore, .n_ignore = bytes > 9 ? data[9] % 3 : 0};
        struct convert_plan *p = NULL;
        struct err e = {""};
        if (convert_plan_create(ck, &o, &p, &e) != ST_OK) {
            BASE_ASSERT(e.text[0]);
            continue;
        }
        convert_check(ck, p, 1 + bytes * 97 % 3000);
        convert_plan_destroy(p);
    }
    ck_close(ck);
    return 0;
}
