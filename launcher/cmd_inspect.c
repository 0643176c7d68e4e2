/* tandem inspect: what a checkpoint holds, and what each rank would hold of it. Headers, and the few small tensors that are read while planning. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/commands.h"
#include "launcher/setup.h"
#include "partition/cache.h"

struct inspect_values {
    bool tensors, program;
};

static const struct option inspect_options[] = {
    {"--tensors", NULL, OPT_FLAG, offsetof(struct inspect_values, tensors), NULL, "list every tensor", 0, 0, NULL},
    {"--program", NULL, OPT_FLAG, offsetof(struct inspect_values, program), NULL, "list the steps of rank 0's programs", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

struct tally {
    const char *name;
    size_t n;
    uint64_t bytes;
};

static const char *type_name(const struct ck_tensor *t) { return t->unsupported ? t->unsupported : kern_format(t->format)->name; }

enum { MAX_TALLIES = 64 };

/* Finds or adds the name; where there are too many of them, the last ones are not counted. */
static void count(struct tally tallies[MAX_TALLIES], int *n, const char *name, uint64_t bytes)
{
    int k = 0;
    while (k < *n && strcmp(tallies[k].name, name))
        k++;
    if (k == MAX_TALLIES)
        return;
    if (k == *n)
        tallies[(*n)++] = (struct tally){name, 0, 0};
    tallies[k].n++;
    tallies[k].bytes += bytes;
}

static void print_formats(const struct checkpoint *ck)
{
    struct tally tallies[MAX_TALLIES];
    int n = 0;
    for (size_t i = 0; i < ck_n_tensors(ck); i++)
        count(tallies, &n, type_name(ck_tensor_at(ck, i)), ck_tensor_at(ck, i)->bytes);
    for (int k = 0; k < n; k++)
        printf("  %-8s %6zu tensors %14.1f MiB\n", tallies[k].name, tallies[k].n, (double)tallies[k].bytes / 1048576.0);
}

/* Matrices that are put together from several tensors. */
static void print_schemes(const struct part_model *whole)
{
    struct tally tallies[MAX_TALLIES];
    int n = 0;
    for (int i = 0; i < whole->n_weights; i++)
        if (whole->weights[i].scheme->name)
            count(tallies, &n, whole->weights[i].scheme->name, part_weight_stored_bytes(&whole->weights[i]));
    for (int k = 0; k < n; k++)
        printf("  %zu matrices are %s: %.1f MiB with their scales\n", tallies[k].n, tallies[k].name, (double)tallies[k].bytes / 1048576.0);
}

/* What is said about a cache in FP8, whatever the plan's is. */
static enum st print_cache(const struct part_model *whole, struct err *e)
{
    int n[2] = {0, 0};
    for (int i = 0; i < whole->n_caches; i++)
        for (int of_values = 0; of_values < 2; of_values++) {
            const struct ck_tensor *t;
            const enum st st = part_cache_find_scale(whole->ck, whole->caches[i].module, of_values, &t, e);
            if (st)
                return st;
            n[of_values] += t != NULL;
        }
    if (whole->config.fp8_cache || n[0] || n[1])
        printf("  key/value cache in FP8: %s; scales of keys in %d layers of %d, of values in %d\n", whole->config.fp8_cache ? "declared" : "not declared", n[0], whole->n_caches, n[1]);
    return ST_OK;
}

static void print_tensors(const struct checkpoint *ck)
{
    for (size_t i = 0; i < ck_n_tensors(ck); i++) {
        const struct ck_tensor *t = ck_tensor_at(ck, i);
        printf("  %-48s %-6s [", t->name, type_name(t));
        for (int d = 0; d < t->n_dims; d++)
            printf("%s%" PRIu64, d ? "," : "", t->dims[d]);
        printf("] file %u at %" PRIu64 ", %" PRIu64 " bytes\n", t->file, t->offset, t->bytes);
    }
}

static enum st print_audit(const struct launch_setup *s, struct err *e)
{
    struct part_audit a;
    const enum st st = part_audit_plan(s->plan, &a, e);
    if (st)
        return st;
    printf("audit: %" PRIu64 " bytes in the checkpoint = %" PRIu64 " owned once + %" PRIu64 " unused; %" PRIu64 " bytes of declared replicas; %d exchanges a step\n", a.checkpoint_bytes,
           a.owned_bytes, a.unused_bytes, a.replica_bytes, a.n_exchanges);
    for (int i = 0; i < a.n_unused && i < 64; i++)
        printf("  unused: %s\n", a.unused[i]);
    if (a.n_beside)
        printf("  unused: %d scales of activations and caches, and shapes, beside quantised matrices (%s is the first)\n", a.n_beside, a.beside);
    return ST_OK;
}

int cmd_inspect(int argc, char **argv)
{
    struct launch_options shared = LAUNCH_OPTIONS_DEFAULT;
    struct inspect_values v = {0};
    const struct option_group groups[] = {{"Options", inspect_options, &v}, launch_option_group(&shared)};
    const char *model;
    int status;
    if (launch_parse("inspect", "tandem inspect MODEL [-n N] [OPTIONS]", "Family, sizes and formats of a checkpoint, and what each rank would hold of it.", groups, 2, argc, argv, &model, 0,
                     &status))
        return status;
    struct err e = {""};
    unsetenv("TANDEM_HOSTS"); /* nobody is asked */
    if (shared.hosts || shared.hostfile) {
        err_set(&e, ST_INVALID, "--hosts: inspect reads files of this machine; -n says for how many ranks, and tandem plan MODEL --hosts asks hosts what fits");
        return launch_misuse("inspect", &e);
    }
    if (launch_options_check(&shared, &e))
        return launch_misuse("inspect", &e);
    /* the files first: they are worth seeing even where no builder knows the model */
    struct checkpoint *ck = NULL;
    enum st st = ck_open(model, &ck, &e);
    if (!st) {
        uint64_t bytes = 0;
        for (size_t i = 0; i < ck_n_tensors(ck); i++)
            bytes += ck_tensor_at(ck, i)->bytes;
        printf("%s: %s, %zu files, %zu tensors, %.1f MiB\n", ck_path(ck), ck_kind_of(ck) == CK_GGUF ? "GGUF" : "safetensors", ck_n_files(ck), ck_n_tensors(ck), (double)bytes / 1048576.0);
        print_formats(ck);
        if (v.tensors)
            print_tensors(ck);
    }
    ck_close(ck);
    struct launch_setup *s = NULL;
    const struct launch_needs needs = {.max_sequences = 1};
    if (!st)
        st = launch_setup_create(model, &shared, &needs, &s, &e);
    if (!st) {
        print_schemes(s->whole);
        st = print_cache(s->whole, &e);
    }
    if (!st) {
        launch_print_plan(s, stdout);
        printf("%.1f MB of weights are read for a token\n", (double)s->plan->weight_bytes_per_token / 1e6);
        for (int d = 0; d < s->whole->n_dims; d++) {
            printf("%s: %u leaves, vectors per rank", s->whole->dims[d].name, s->whole->dims[d].leaves.n);
            for (int r = 0; r < s->n_ranks; r++)
                printf(" %u", s->plan->cut.dims[d].n_vectors[r]);
            printf("%s\n", s->whole->dims[d].leaves.kind == ORDER_VOCABULARY ? " (a select, never a sum)" : "");
        }
        st = print_audit(s, &e);
        if (v.program) {
            part_program_print(s->plan->ranks[0], &s->plan->ranks[0]->main, stdout);
            part_program_print(s->plan->ranks[0], &s->plan->ranks[0]->head, stdout);
        }
    }
    if (!st)
        st = launch_flush_stdout(&e);
    launch_setup_destroy(s);
    return st ? launch_fail("inspect", &e) : 0;
}
