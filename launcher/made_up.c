#include "launcher/made_up.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/pool.h"
#include "launcher/commands.h"
#include "launcher/interrupt.h"
#include "runtime/synthesise.h"

static enum st write_text(const struct launch_out_dir *dir, const char *name, const char *text, struct err *e)
{
    return text ? launch_out_dir_write(dir, name, text, strlen(text), e) : ST_OK;
}

static enum st write_beside(const struct synth_plan *plan, bool with_tokenizer, const struct launch_out_dir *dir, struct err *e)
{
    char *tokenizer = NULL, *tokenizer_config = NULL;
    enum st st = with_tokenizer ? synth_tokenizer(plan->shape.vocab, &tokenizer, &tokenizer_config, e) : ST_OK;
    if (st)
        return st;
    const char *const files[][2] = {{"config.json", plan->config},      {"hf_quant_config.json", plan->quant_config},    {"model.safetensors.index.json", plan->index},
                                    {"tokenizer.json", tokenizer}, {"tokenizer_config.json", tokenizer_config}};
    for (size_t i = 0; !st && i < sizeof files / sizeof *files; i++)
        st = write_text(dir, files[i][0], files[i][1], e);
    free(tokenizer);
    free(tokenizer_config);
    return st;
}

enum st launch_made_up_write(const struct synth_plan *plan, const struct launch_made_up *options, const struct launch_out_dir *dir, struct err *e)
{
    struct base_pool *pool;
    const struct base_pool_options po = {.n_threads = options->n_threads ? options->n_threads : launch_allowed_cpus(), .spin_us = 0};
    enum st st = base_pool_create(&po, &pool, e);
    if (st)
        return st;
    const struct rt_synthesise_options so = {.pool = pool, .dir = dir->fd, .headers_only = options->headers_only, .go_on = options->go_on, .arg = options->arg};
    st = rt_synthesise(plan, &so, e);
    base_pool_destroy(pool);
    return st ? st : write_beside(plan, !options->without_tokenizer, dir, e);
}

static bool not_interrupted(void *arg, const char *tensor, uint64_t done_bytes)
{
    (void)arg;
    (void)tensor;
    (void)done_bytes;
    return !launch_interrupted();
}

enum st launch_made_up_temporary(const struct synth_options *options, char **path, struct err *e)
{
    const char *tmp = getenv("TMPDIR");
    char *base, *out = NULL;
    if (asprintf(&base, "%s/tandem-plan-XXXXXX", tmp && *tmp ? tmp : "/tmp") < 0)
        return err_set(e, ST_NO_MEMORY, "no memory for a path");
    struct synth_plan *plan = NULL;
    struct launch_out_dir dir = {.fd = -1};
    const struct launch_made_up m = {.headers_only = true, .without_tokenizer = true, .n_threads = 1, .go_on = not_interrupted};
    enum st st = mkdtemp(base) ? ST_OK : err_set(e, ST_IO, "%s: %s", base, strerror(errno));
    if (!st && asprintf(&out, "%s/%s", base, options->preset->name) < 0)
        st = err_set(e, ST_NO_MEMORY, "no memory for a path");
    if (!st)
        st = synth_plan_create(options, &plan, e);
    if (!st)
        st = launch_out_dir_open(&dir, out, e);
    if (!st)
        st = launch_made_up_write(plan, &m, &dir, e);
    if (!st)
        st = launch_out_dir_keep(&dir, NULL, e);
    launch_out_dir_close(&dir);
    synth_plan_destroy(plan);
    if (st) {
        (void)rmdir(base);
        free(out);
    } else
        *path = out;
    free(base);
    return st;
}

void launch_made_up_remove(char *path)
{
    if (!path)
        return;
    launch_out_dir_remove(path);
    char *slash = strrchr(path, '/');
    *slash = 0;
    (void)rmdir(path);
    free(path);
}

void launch_made_up_print_presets(FILE *out)
{
    fputs("\nPresets:\n", out);
    for (const struct preset *p = presets; p->name; p++) {
        fprintf(out, "  %-17s", p->name);
        for (int f = 0; f < PRESET_FORMATS; f++)
            if (p->formats >> f & 1)
                fprintf(out, " %s%s", preset_format_names[f], f == (int)p->published ? "*" : "");
        fputc('\n', out);
    }
    fputs("  *: as it is published\n", out);
}
