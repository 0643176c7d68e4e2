/* tandem plan: does a model fit on machines that are described, or on hosts as they are now, where do the bytes go, and what would make it fit.
 *
 * The planner is asked as before a run, but for another machine. A preset's headers are made in a temporary directory, so that its plan is that of a real checkpoint. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/commands.h"
#include "launcher/fit.h"
#include "launcher/interrupt.h"
#include "launcher/made_up.h"

#define DEFAULT_CONTEXT 8192
#define MAX_ADVICE 16
#define MAX_MORE_BOXES 8 /* so far is tried */

struct plan_values {
    const char *on;
    int format; /* −1: as published */
    int64_t batch;
    bool json;
    struct launch_options shared;
};

#define SHARED(field) (offsetof(struct plan_values, shared) + offsetof(struct launch_options, field))
static const struct option options[] = {
    {"--on", NULL, OPT_STR, offsetof(struct plan_values, on), "MACHINE", "gb10, rtx5090, vm, a description's file, or several boxes: 2xgb10", 0, 0, NULL},
    {"--hosts", NULL, OPT_STR, SHARED(hosts), "A,B...", "instead: these hosts, and the memory that is free there now (user@host allowed; or TANDEM_HOSTS)", 0, 0, NULL},
    {"--hostfile", NULL, OPT_STR, SHARED(hostfile), "FILE", "the same, a name a line", 0, 0, NULL},
    {"-n", "--ranks", OPT_INT, SHARED(n_ranks), "RANKS", "ranks on those hosts (default one for each)", 1, ORDER_MAX_RANKS, NULL},
    {"--ssh", NULL, OPT_STR, SHARED(ssh), "PROGRAM", "instead of ssh, called like it (or TANDEM_SSH)", 0, 0, NULL},
    {"--format", NULL, OPT_ENUM, offsetof(struct plan_values, format), "bf16|fp8|nvfp4|mxfp4", "of a PRESET's matrices (default: as it is published)", 0, 0, preset_format_names},
    {"--ctx", NULL, OPT_INT, SHARED(context), "N", "tokens of one sequence (default 8192)", 1, 16777216, NULL},
    {"--batch", NULL, OPT_INT, offsetof(struct plan_values, batch), "N", "sequences at once (default 1)", 1, 65536, NULL},
    {"--kv", NULL, OPT_ENUM, SHARED(kv), "f32|f16|bf16|fp8|auto", "format of the key/value cache (auto: fp8 where the model declares it, else f16)", 0, 0, launch_kv_choices},
    {"--chunk", NULL, OPT_INT, SHARED(chunk), "N", "tokens of one step (default 512)", 1, 65536, NULL},
    {"--activations", NULL, OPT_ENUM, SHARED(activations), "f32|auto", "f32: the accurate setting (default auto)", 0, 0, launch_activation_choices},
    {"--moe", NULL, OPT_ENUM, SHARED(moe), "tp|ep", "experts: tp cuts each of them over the ranks, ep deals out whole ones (default tp)", 0, 0, launch_moe_choices},
    {"--head", NULL, OPT_ENUM, SHARED(head), "stored|fp8", "fp8: a head in plain numbers is rounded to FP8 (default stored)", 0, 0, launch_head_choices},
    {"--embedding", NULL, OPT_ENUM, SHARED(embedding), "stored|fp8|disk", "likewise; disk: its rows stay in the file", 0, 0, part_embedding_names},
    {"--split", NULL, OPT_STR, SHARED(split), "A:B...", "shares of the ranks (default equal)", 0, 0, NULL},
    {"--json", NULL, OPT_FLAG, offsetof(struct plan_values, json), NULL, "one JSON object; sizes are whole numbers of bytes, a number a rank", 0, 0, NULL},
    {0},
};

/* A model, or a preset's headers in one format. */
struct subject {
    char *temporary; /* NULL: the model is the user's */
    struct checkpoint *ck;
    struct part_model *whole;
};

static void close_subject(struct subject *s)
{
    part_model_destroy(s->whole);
    ck_close(s->ck);
    launch_made_up_remove(s->temporary);
    *s = (struct subject){NULL, NULL, NULL};
}

/* Where it comes from, and what is chosen before it is planned for. */
struct origin {
    const char *model;           /* NULL: of the preset */
    const struct preset *preset;
    enum preset_format format;
    struct part_model_options how;
    struct part_smaller smaller;
};

static enum st make_model(const struct origin *from, const struct checkpoint *ck, struct part_model **whole, struct err *e)
{
    enum st st = part_model_create(ck, &from->how, whole, e);
    if (!st)
        st = part_model_make_smaller(*whole, &from->smaller, e);
    return st;
}

static enum st open_subject(const struct origin *from, struct subject *s, struct err *e)
{
    *s = (struct subject){NULL, NULL, NULL};
    const struct synth_options o = {.preset = from->preset, .format = from->format, .max_file_bytes = 5000000000u};
    enum st st = from->preset ? launch_made_up_temporary(&o, &s->temporary, e) : ST_OK;
    if (!st)
        st = ck_open(s->temporary ? s->temporary : from->model, &s->ck, e);
    if (!st)
        st = make_model(from, s->ck, &s->whole, e);
    if (st)
        close_subject(s);
    return st;
}

static enum st not_interrupted(struct err *e)
{
    return launch_interrupted() ? err_set(e, ST_CANCELLED, "interrupted (%s)", strsignal(launch_interrupted())) : ST_OK;
}

/* ---- what would make it fit ----------------------------------------------------------------------------------------------------------------------------------- */

struct adviser {
    const struct plan_values *v;
    const struct launch_fit *f;
    struct launch_fit_advice list[MAX_ADVICE];
    int n;
    struct origin from;
};

/* Plans with other settings; what fits is advice. False too where such a plan is refused, or nobody waits for it any more. */
static bool would_fit(struct adviser *a, const struct part_model *whole, const struct launch_options *o, const struct launch_fit_machine *machine, const char *what)
{
    struct launch_fit *f;
    struct err ignored = {""};
    if (a->n == MAX_ADVICE || launch_interrupted() || launch_fit_create(whole, o, a->f->settings.max_sequences, machine, &f, &ignored))
        return false;
    const bool fits = f->fits;
    if (fits)
        snprintf(a->list[a->n++].what, sizeof a->list[0].what, "%s", what);
    launch_fit_destroy(f);
    return fits;
}

/* Planning costs a second for a model of tens of thousands of matrices: what cannot free as much as the fullest rank lacks is not planned for. */
static uint64_t lacking(const struct launch_fit *f, struct part_budget *fullest)
{
    uint64_t most = 0;
    for (int r = 0; r < f->machine->n_ranks; r++)
        if (f->total_bytes[r] > most) {
            most = f->total_bytes[r];
            *fullest = f->plan->budget[r];
        }
    return most > f->machine->available_bytes ? most - f->machine->available_bytes : 0;
}

/* Settings of the same model on the same machine, one by one and then together. */
static void try_settings(struct adviser *a, const struct part_model *whole)
{
    const struct launch_fit *f = a->f;
    struct launch_options o = a->v->shared;
    char what[96];
    if (f->max_context) {
        o.context = f->max_context;
        snprintf(what, sizeof what, "--ctx %" PRId64, o.context);
        would_fit(a, whole, &o, f->machine, what);
        o.context = a->v->shared.context;
    }
    struct part_budget full;
    const uint64_t lack = lacking(f, &full), of_chunk = full.activations + full.scratch + full.comm;
    const bool can_other_cache = f->settings.kv_format != FMT_E4M3 && !f->settings.accurate, can_shorter = f->settings.chunk > 64;
    const bool other_cache = can_other_cache && lack <= full.kv, shorter = can_shorter && lack <= of_chunk, together = can_other_cache && can_shorter && lack <= full.kv + of_chunk;
    if (other_cache) {
        o.kv = LAUNCH_KV_FP8;
        would_fit(a, whole, &o, f->machine, "--kv fp8");
        o.kv = a->v->shared.kv;
    }
    if (shorter) {
        o.chunk = 64;
        would_fit(a, whole, &o, f->machine, "--chunk 64");
    }
    if (together && !a->n) {
        o.kv = LAUNCH_KV_FP8;
        would_fit(a, whole, &o, f->machine, "--kv fp8 --chunk 64");
    }
}

/* The same settings and headers, another model of them. */
static bool would_fit_smaller(struct adviser *a, const struct checkpoint *ck, const struct origin *from, const char *what)
{
    struct part_model *whole = NULL;
    struct err ignored = {""};
    const bool fits = !launch_interrupted() && !make_model(from, ck, &whole, &ignored) && would_fit(a, whole, &a->v->shared, a->f->machine, what);
    part_model_destroy(whole);
    return fits;
}

/* What a publisher left in plain numbers: one of the two, then both. */
static void try_smaller(struct adviser *a, const struct checkpoint *ck)
{
    struct part_budget full;
    if (a->from.smaller.head_fp8 || a->from.smaller.embedding || lacking(a->f, &full) > full.head + full.embedding)
        return;
    struct origin head = a->from, embedding = a->from, both = a->from;
    head.smaller.head_fp8 = both.smaller.head_fp8 = true;
    embedding.smaller.embedding = both.smaller.embedding = PART_EMBEDDING_DISK;
    const bool one = would_fit_smaller(a, ck, &head, "--head fp8"), other = would_fit_smaller(a, ck, &embedding, "--embedding disk");
    if (!one && !other)
        would_fit_smaller(a, ck, &both, "--head fp8 --embedding disk");
}

/* Other headers. */
static void try_formats(struct adviser *a)
{
    for (int format = 0; format < PRESET_FORMATS && !launch_interrupted(); format++) {
        if (format == (int)a->from.format || !(a->from.preset->formats >> format & 1))
            continue;
        struct origin other = a->from;
        struct subject s;
        struct err ignored = {""};
        char what[96];
        other.format = (enum preset_format)format;
        snprintf(what, sizeof what, "--format %s", preset_format_names[format]);
        if (open_subject(&other, &s, &ignored))
            continue;
        would_fit(a, s.whole, &a->v->shared, a->f->machine, what);
        close_subject(&s);
    }
}

/* The first number of boxes that is enough. */
static void try_boxes(struct adviser *a, const struct part_model *whole)
{
    struct launch_fit_machine m = *a->f->machine;
    const int per_box = m.n_ranks / m.n_boxes;
    uint64_t matrices = 0; /* without what ranks may hold twice: so many bytes there are at least */
    for (int r = 0; r < m.n_ranks; r++)
        matrices += a->f->plan->budget[r].weights;
    matrices -= matrices / 8;
    const int least = (int)(matrices / m.available_bytes / (uint64_t)per_box);
    for (int n = m.n_boxes + 1 > least ? m.n_boxes + 1 : least; n <= MAX_MORE_BOXES && n * per_box <= ORDER_MAX_RANKS && !a->v->shared.split; n++) {
        launch_fit_machine_resize(&m, n);
        char what[160];
        snprintf(what, sizeof what, "--on %s", m.on);
        if (would_fit(a, whole, &a->v->shared, &m, what))
            return;
    }
}

/* ---- the command ------------------------------------------------------------------------------------------------------------------------------------------------ */

/* As many ranks as run would start there; each gets what the poorest host has for one. */
static void take_hosts(const struct launch_hosts *hosts, struct launch_fit_machine *m)
{
    const struct launch_hosts_entry *poorest = NULL;
    *m = (struct launch_fit_machine){.n_boxes = hosts->n, .memory = "what is free there"};
    for (int i = 0; i < hosts->n; i++) {
        const struct launch_hosts_entry *h = &hosts->h[i];
        const size_t at = strlen(m->on);
        snprintf(m->on + at, sizeof m->on - at, "%s%s", i ? "," : "", h->typed);
        m->n_ranks += h->n_ranks;
        if (h->n_ranks && (!poorest || h->info.available_bytes / (uint64_t)h->n_ranks < m->available_bytes)) {
            poorest = h;
            m->available_bytes = h->info.available_bytes / (uint64_t)h->n_ranks;
            m->n_threads = h->info.n_cpus / h->n_ranks < 1 ? 1 : h->info.n_cpus / h->n_ranks;
        }
    }
    if (poorest)
        snprintf(m->title, sizeof m->title, "a rank has least on %.80s", poorest->typed);
}

static enum st ask_hosts(const struct launch_options *o, struct launch_fit_machine *m, struct err *e)
{
    struct launch_setup *s = NULL;
    enum st st = launch_setup_create_bare(o, 0, NULL, &s, e);
    if (!st) {
        s->hosts->asks_only = true;
        st = launch_hosts_open(s->hosts, e);
    }
    if (!st)
        take_hosts(s->hosts, m);
    launch_setup_destroy(s);
    return st;
}

static enum st plan(const struct plan_values *v, const char *model, const struct preset *preset, struct err *e)
{
    struct launch_fit_machine machine;
    const struct origin from = {
        .model = model,
        .preset = preset,
        .format = !preset || v->format >= 0 ? (enum preset_format)v->format : preset->published,
        .how = {.moe = (enum part_moe)v->shared.moe},
        .smaller = {.head_fp8 = v->shared.head, .embedding = (enum part_embedding)v->shared.embedding},
    };
    struct subject s = {NULL, NULL, NULL};
    struct launch_fit *f = NULL;
    enum st st = v->on ? launch_fit_machine_read(v->on, &machine, e) : ask_hosts(&v->shared, &machine, e);
    if (!st)
        st = open_subject(&from, &s, e);
    if (!st)
        st = launch_fit_create(s.whole, &v->shared, (int)v->batch, &machine, &f, e);
    if (!st)
        launch_warn_of_context(&s.whole->config, f->settings.context);
    struct adviser a = {.v = v, .f = f, .from = from};
    if (!st && !f->fits) {
        try_settings(&a, s.whole);
        try_smaller(&a, s.ck);
        if (preset)
            try_formats(&a);
        if (v->on)
            try_boxes(&a, s.whole);
    }
    if (!st)
        st = not_interrupted(e);
    if (!st && v->json)
        st = launch_fit_print_json(f, s.whole, a.list, a.n, stdout, e);
    else if (!st)
        launch_fit_print(f, s.whole, a.list, a.n, stdout);
    launch_fit_destroy(f);
    close_subject(&s);
    return st ? st : launch_flush_stdout(e);
}

int cmd_plan(int argc, char **argv)
{
    struct plan_values v = {.format = -1, .batch = 1, .shared = LAUNCH_OPTIONS_DEFAULT};
    v.shared.context = DEFAULT_CONTEXT;
    struct err e = {""};
    const struct option_group group = {"Options", options, &v};
    if (base_options_wants_help(argc, argv)) {
        base_options_print_help(stdout, "tandem plan MODEL|PRESET --on MACHINE|--hosts A,B [OPTIONS]",
                                "Whether a model fits on machines that need not be here, where each byte goes, and what would make it fit. Only headers are read; a PRESET needs no files at all.", &group,
                                1);
        launch_made_up_print_presets(stdout);
        return launch_flush_stdout(&e) ? launch_fail("plan", &e) : 0;
    }
    const char *model;
    int status;
    if (launch_parse("plan", NULL, NULL, &group, 1, argc, argv, &model, 0, &status))
        return status;
    const struct preset *preset = access(model, F_OK) == 0 ? NULL : preset_find(model); /* a file of that name comes first */
    enum st st = ST_OK;
    const char *variable = getenv("TANDEM_HOSTS");
    const bool has_hosts = v.shared.hosts || v.shared.hostfile;
    if (v.on && (has_hosts || v.shared.n_ranks))
        st = err_set(&e, ST_INVALID, "--on is for machines that are described: --hosts, --hostfile and -n are for hosts that are there");
    else if (!v.on && !has_hosts && !(variable && *variable))
        st = err_set(&e, ST_INVALID, "--on which MACHINE? gb10, 2xgb10, rtx5090, vm, or a description's file; or --hosts, as they are now");
    else if (v.format >= 0 && !preset)
        st = err_set(&e, ST_INVALID, "--format is for presets; %s is stored as it is", model);
    else if (v.shared.split) {
        uint32_t shares[ORDER_MAX_RANKS];
        int n;
        st = launch_parse_split(v.shared.split, shares, &n, &e);
    }
    if (!st && !v.on)
        st = launch_options_check(&v.shared, &e);
    if (st)
        return launch_misuse("plan", &e);
    launch_interrupt_heed(); /* the temporary directory goes in any case */
    return plan(&v, model, preset, &e) ? launch_fail("plan", &e) : 0;
}
