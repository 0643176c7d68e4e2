/* Everything that is decided before a rank starts. */
#include "launcher/setup.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "launcher/commands.h"
#include "launcher/foreign.h"
#include "launcher/link.h"
#include "runtime/bandwidth.h"
#include "runtime/device.h"

#define DEFAULT_CONTEXT 8192
#define DEFAULT_CHUNK 512

const char *const launch_activation_choices[] = {"f32", "auto", NULL};
static const char *const device_choices[] = {[RT_DEVICE_AUTO] = "auto", [RT_DEVICE_CPU] = "cpu", [RT_DEVICE_CUDA] = "cuda", [RT_DEVICE_SIMT] = "simt", NULL};
const char *const launch_moe_choices[] = {[PART_MOE_TENSOR] = "tp", [PART_MOE_EXPERT] = "ep", NULL};
const char *const launch_kv_choices[] = {"f32", "f16", "bf16", [LAUNCH_KV_FP8] = "fp8", [LAUNCH_KV_AUTO] = "auto", NULL};
const char *const launch_head_choices[] = {"stored", "fp8", NULL};
static const enum format kv_formats[LAUNCH_KV_AUTO] = {FMT_F32, FMT_F16, FMT_BF16, [LAUNCH_KV_FP8] = FMT_E4M3};

static const struct option shared_options[] = {
    {"-n", "--ranks", OPT_INT, offsetof(struct launch_options, n_ranks), "RANKS", "ranks (default 1, or as many as --split has shares)", 1, ORDER_MAX_RANKS, NULL},
    {"--threads", NULL, OPT_INT, offsetof(struct launch_options, n_threads), "T", "threads of each rank (default: allowed CPUs / ranks, at least 1)", 1, 1024, NULL},
    {"--split", NULL, OPT_STR, offsetof(struct launch_options, split), "A:B...", "shares of the ranks (default equal; zero allowed)", 0, 0, NULL},
    {"--device", NULL, OPT_ENUM, offsetof(struct launch_options, device), "auto|cpu|cuda|simt", "what computes (default auto: a GPU where there is one whose kernels have every step, else cpu; simt: CUDA kernels emulated and checked, see docs/simt.md)", 0, 0, device_choices},
    {"--activations", NULL, OPT_ENUM, offsetof(struct launch_options, activations), "f32|auto", "f32: dequantise and multiply in F32, the accurate setting (default auto)", 0, 0, launch_activation_choices},
    {"--moe", NULL, OPT_ENUM, offsetof(struct launch_options, moe), "tp|ep", "experts: tp cuts each of them over the ranks, ep deals out whole ones (default tp; the bits of the two differ)", 0, 0, launch_moe_choices},
    {"--expert-map", NULL, OPT_STR, offsetof(struct launch_options, expert_map), "FILE", "with --moe ep: which experts stand together (tandem eval --expert-stats makes one; the same path on every host)", 0, 0, NULL},
    {"--kv", NULL, OPT_ENUM, offsetof(struct launch_options, kv), "f32|f16|bf16|fp8|auto", "format of the key/value cache (auto: f32 with --activations f32 and in eval, else fp8 where the model declares it, else f16)", 0, 0, launch_kv_choices},
    {"--head", NULL, OPT_ENUM, offsetof(struct launch_options, head), "stored|fp8", "fp8: round a head in plain numbers to FP8 while it is loaded (default stored)", 0, 0, launch_head_choices},
    {"--embedding", NULL, OPT_ENUM, offsetof(struct launch_options, embedding), "stored|fp8|disk", "likewise; disk: read its rows from the file when they are wanted", 0, 0, part_embedding_names},
    {"--chunk", NULL, OPT_INT, offsetof(struct launch_options, chunk), "N", "tokens of one step (default 512)", 1, 65536, NULL},
    {"--ctx", NULL, OPT_INT, offsetof(struct launch_options, context), "N", "tokens of one sequence (default: what the command needs, or the model's maximum up to 8192)", 1, 16777216, NULL},
    {"--overlap", NULL, OPT_INT, offsetof(struct launch_options, overlap), "N", "compute steps of so many tokens and more in two halves, while the other one's sums are on their way: between hosts, and over tcp, ucx and mpi (default 128; 0: never)", 0, 65536, NULL},
    {"--scatter", NULL, OPT_INT, offsetof(struct launch_options, scatter), "BYTES", "three ranks and more share sums of which one sends so many: each adds those of some tokens and sends the others the result; between hosts, over tcp and ucx, and with --link (default 262144; 0: never)", 0, (int64_t)1 << 40, NULL},
    {"--bind", NULL, OPT_STR, offsetof(struct launch_options, bind), "core|l3|numa|package|none|LIST", "where ranks are bound (default: by the machine's topology)", 0, 0, NULL},
    {"--link", NULL, OPT_STR, offsetof(struct launch_options, link), "RATE,DELAY|PRESET", "emulate a link between local ranks: 200gbit,2.5us[,jitter=500ns], cx7, cx7-one-rail, 10gbe, wifi", 0, 0, NULL},
    {"--backend", NULL, OPT_STR, offsetof(struct launch_options, backend), "shm|tcp|ucx|mpi", "what carries the bytes between ranks (default: the best that fits)", 0, 0, NULL},
    {"--hosts", NULL, OPT_STR, offsetof(struct launch_options, hosts), "A,B...", "run on these hosts, one rank each unless -n says more (user@host allowed; or TANDEM_HOSTS)", 0, 0, NULL},
    {"--hostfile", NULL, OPT_STR, offsetof(struct launch_options, hostfile), "FILE", "the same, a name a line", 0, 0, NULL},
    {"--port", NULL, OPT_INT, offsetof(struct launch_options, port), "P", "fix our ports: rank R listens at P + R by TCP, UDP at P, beyond two hosts P + 1 and on as well (default: any)", 1, 65535, NULL},
    {"--ssh", NULL, OPT_STR, offsetof(struct launch_options, ssh), "PROGRAM", "instead of ssh, called like it (or TANDEM_SSH)", 0, 0, NULL},
    {NULL, NULL, OPT_FLAG, 0, NULL, NULL, 0, 0, NULL},
};

struct option_group launch_option_group(struct launch_options *values)
{
    return (struct option_group){.title = "Ranks and numbers", .options = shared_options, .values = values};
}

enum st launch_parse_split(const char *text, uint32_t *shares, int *n, struct err *e)
{
    int count = 0;
    uint64_t total = 0;
    for (const char *at = text;; at++) {
        char *end;
        const unsigned long share = *at >= '0' && *at <= '9' ? strtoul(at, &end, 10) : ULONG_MAX;
        if (share > 1000000 || count == ORDER_MAX_RANKS || (*end && *end != ':'))
            return err_set(e, ST_INVALID, "--split %s: wants up to %d whole numbers with colons between, like 5:3", text, ORDER_MAX_RANKS);
        shares[count++] = (uint32_t)share;
        total += share;
        at = end;
        if (!*at)
            break;
    }
    if (total == 0)
        return err_set(e, ST_INVALID, "--split %s: at least one share must not be zero", text);
    *n = count;
    return ST_OK;
}

/* Names with blanks, commas or line ends between; what follows a '#' in a line is not read. */
static enum st read_hostfile(const char *path, char **list, struct err *e)
{
    char *text;
    size_t bytes;
    const enum st st = launch_read_all(path, 1 << 20, &text, &bytes, e);
    if (st)
        return st;
    size_t n = 0;
    bool comment = false;
    for (size_t i = 0; i < bytes; i++) {
        comment = text[i] == '#' || (comment && text[i] != '\n');
        const bool gap = comment || strchr(" \t\r\n,", text[i]);
        if (!gap)
            text[n++] = text[i];
        else if (n > 0 && text[n - 1] != ',')
            text[n++] = ',';
    }
    while (n > 0 && text[n - 1] == ',')
        n--;
    text[n] = 0;
    *list = text;
    return n ? ST_OK : (free(text), err_set(e, ST_INVALID, "--hostfile %s: no names in it", path));
}

/* Before ranks are counted: hosts say how many there are at least. */
static enum st read_hosts(const struct launch_options *o, struct launch_setup *s, struct err *e)
{
    char *own = NULL;
    const char *list = o->hosts ? o->hosts : o->hostfile || launch_foreign() ? NULL : getenv("TANDEM_HOSTS");
    int n = (int)o->n_ranks;
    uint32_t shares[ORDER_MAX_RANKS];
    enum st st = ST_OK;
    if (o->hosts && o->hostfile)
        return err_set(e, ST_INVALID, "--hosts and --hostfile exclude each other");
    if (launch_foreign() && (o->hosts || o->hostfile))
        return err_set(e, ST_INVALID, "--hosts and --hostfile: whoever started these ranks has chosen their hosts");
    if (o->hostfile)
        st = read_hostfile(o->hostfile, &own, e);
    if (!st && o->split && !n)
        st = launch_parse_split(o->split, shares, &n, e);
    if (!st && (own || (list && *list)))
        st = launch_hosts_parse(own ? own : list, o->ssh, n, &s->hosts, e);
    free(own);
    return st;
}

static enum st count_ranks(const struct launch_options *o, struct launch_setup *s, struct err *e)
{
    const struct launch_foreign *f = launch_foreign();
    const enum st hosts = read_hosts(o, s, e);
    if (hosts)
        return hosts;
    s->n_ranks = o->n_ranks ? (int)o->n_ranks : f ? f->n_ranks : s->hosts ? s->hosts->n : 1;
    if (f && s->n_ranks != f->n_ranks)
        return err_set(e, ST_INVALID, "-n %d, but %d ranks were started", s->n_ranks, f->n_ranks);
    if (!o->split)
        return ST_OK;
    int n;
    const enum st st = launch_parse_split(o->split, s->shares, &n, e);
    if (st)
        return st;
    if ((o->n_ranks && o->n_ranks != n) || (f && f->n_ranks != n))
        return err_set(e, ST_INVALID, "--split %s has %d shares, -n says %d ranks", o->split, n, s->n_ranks);
    s->n_ranks = n;
    s->has_shares = true;
    return ST_OK;
}

static enum st read_wire(const struct launch_options *o, struct launch_setup *s, struct err *e)
{
    s->backend_name = o->backend;
    bool known = !o->backend;
    for (const struct comm_backend *const *b = comm_backends(); *b && !known; b++)
        known = strcmp((*b)->capabilities.name, o->backend) == 0;
    if (!known)
        return err_set(e, ST_INVALID, "--backend %s: shm, tcp, ucx and mpi are known, and across hosts shm+tcp and shm+ucx", o->backend);
    if (o->port > 65535 - COMM_MAX_RANKS)
        return err_set(e, ST_INVALID, "--port %" PRId64 ": at most %d, so that there is one for each rank", o->port, 65535 - COMM_MAX_RANKS);
    s->port = (int)o->port;
    if (s->port && s->backend_name && (strcmp(s->backend_name, "ucx") == 0 || strcmp(s->backend_name, "mpi") == 0))
        LOG_WARNING("setup", "--port %d: sockets that --backend %s opens by itself do not heed it, they take any port", s->port, s->backend_name);
    if (s->hosts) {
        s->hosts->port = s->port;
        s->hosts->transport = o->backend && (strcmp(o->backend, "tcp") == 0 || strcmp(o->backend, "shm+tcp") == 0) ? LAUNCH_TCP : LAUNCH_ANY_TRANSPORT;
    }
    s->has_link = o->link != NULL;
    return o->link ? launch_link_parse(o->link, &s->link, e) : ST_OK;
}

enum st launch_options_check(const struct launch_options *options, struct err *e)
{
    struct launch_setup s = {0};
    enum topo_bind bind;
    const char *list;
    enum st st = count_ranks(options, &s, e);
    if (!st)
        st = read_wire(options, &s, e);
    launch_hosts_destroy(s.hosts);
    return st || !options->bind ? st : topo_bind_parse(options->bind, &bind, &list, e);
}

static enum st place(const struct launch_options *o, struct launch_setup *s, struct err *e)
{
    s->bind = o->bind;
    if (s->hosts)
        return ST_OK; /* by the agents */
    const struct launch_foreign *f = launch_foreign();
    struct topo_place_options options = {.n_ranks = f ? f->n_local : s->n_ranks, .n_threads = (int)o->n_threads, .bind = TOPO_BIND_AUTO};
    enum st st = ST_OK;
    if (o->bind)
        st = topo_bind_parse(o->bind, &options.bind, &options.list, e);
    if (!st)
        st = topo_machine_open(NULL, &s->machine, e);
    if (!st)
        st = topo_place(s->machine, &options, &s->placement, e);
    if (!st && s->placement->note[0])
        LOG_WARNING("place", "%s", s->placement->note);
    return st;
}

void launch_choose(const struct launch_options *o, const struct launch_needs *needs, const struct model_config *config, struct rt_settings *t)
{
    const int64_t most = config->max_context;
    t->accurate = o->activations == 0;
    t->kv_format = o->kv != LAUNCH_KV_AUTO ? kv_formats[o->kv] : t->accurate || needs->accurate_cache ? FMT_F32 : config->fp8_cache ? FMT_E4M3 : FMT_F16;
    t->smaller = (struct part_smaller){.head_fp8 = o->head, .embedding = (enum part_embedding)o->embedding};
    t->context = o->context ? o->context : needs->context ? needs->context : most && most < DEFAULT_CONTEXT ? most : DEFAULT_CONTEXT;
    t->chunk = (int)(o->chunk ? o->chunk : DEFAULT_CHUNK);
    const int64_t useful = t->context * needs->max_sequences; /* no step can have more tokens */
    t->chunk = t->chunk > useful ? (int)useful : t->chunk;
    t->overlap_tokens = (int)o->overlap;
    t->scatter_bytes = o->scatter;
    t->max_sequences = needs->max_sequences;
    t->ledger = needs->ledger;
    t->expert_stats = needs->expert_stats;
}

void launch_warn_of_context(const struct model_config *config, int64_t context)
{
    if (config->max_context && context > config->max_context)
        LOG_WARNING("setup", "a context of %" PRId64 " tokens: %s was made for %" PRId64, context, config->name, config->max_context);
}

static void choose(const struct launch_options *o, const struct launch_needs *needs, struct launch_setup *s)
{
    struct rt_settings *t = &s->settings;
    launch_choose(o, needs, &s->whole->config, t);
    launch_warn_of_context(&s->whole->config, t->context);
    t->n_threads = s->hosts ? (int)o->n_threads : s->placement->seats[launch_foreign() ? launch_foreign()->i_local : 0].n_threads;
    t->spin_us = s->placement && s->placement->oversubscribed ? 0 : 50;
}

enum st launch_setup_create(const char *model, const struct launch_options *options, const struct launch_needs *needs, struct launch_setup **out, struct err *e)
{
    struct launch_setup *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_NO_MEMORY, "no memory");
    s->model = s->model_path = model;
    enum st st = count_ranks(options, s, e);
    if (!st)
        st = read_wire(options, s, e);
    if (!st)
        st = ck_open(model, &s->ck, e);
    s->settings.model = (struct part_model_options){.moe = (enum part_moe)options->moe, .expert_map = options->expert_map};
    if (!st && options->expert_map && s->hosts && !(s->settings.model.expert_map = s->expert_map = realpath(options->expert_map, NULL)))
        st = err_set(e, ST_IO, "--expert-map %s: %s", options->expert_map, strerror(errno));
    if (!st)
        st = part_model_create(s->ck, &s->settings.model, &s->whole, e);
    if (!st && s->hosts) {
        char path[PATH_MAX];
        s->model_path = realpath(model, path) ? strdup(path) : model; /* a hub name stays one */
        s->hosts->with_mpi = s->backend_name && strcmp(s->backend_name, "mpi") == 0;
    }
    if (!st)
        st = place(options, s, e);
    if (!st) {
        choose(options, needs, s);
        st = part_model_make_smaller(s->whole, &s->settings.smaller, e);
    }
    if (!st)
        st = rt_device_choose((enum rt_device)options->device, s->whole, &s->settings, e);
    if (!st)
        st = kern_select(s->settings.device, &s->backend, e);
    if (!st)
        st = rt_device_check(s->backend, s->whole, &s->settings, e);
    if (!st) {
        struct rt_sizes sizes;
        rt_sizes_init(&sizes, &s->settings, s->backend, s->backend_name ? s->backend_name : launch_hosts_carrier(s->hosts ? s->hosts->n : 1, s->n_ranks, false));
        const struct part_plan_options plan = rt_plan_options(&s->settings, s->n_ranks, s->has_shares ? s->shares : NULL);
        st = part_plan_create(s->whole, &plan, &sizes.base, &s->plan, e);
    }
    if (!st)
        st = topo_memory_available(NULL, &s->available_bytes, s->available_what, e);
    if (st) {
        launch_setup_destroy(s);
        return st;
    }
    s->exchange_bytes = s->plan->max_exchange_bytes;
    if (s->n_ranks == 1 && (s->has_link || s->backend_name))
        LOG_INFORM("setup", "one rank exchanges nothing: --link and --backend have no meaning here");
    for (int r = 0; r < s->n_ranks; r++)
        s->total_bytes += s->plan->budget[r].total + launch_reserve_bytes(s->whole, s->n_ranks) + (s->settings.ledger ? rt_bandwidth_bytes(s->n_ranks) : 0);
    *out = s;
    return ST_OK;
}

enum st launch_setup_create_bare(const struct launch_options *options, uint64_t exchange_bytes, const char *exchanges, struct launch_setup **out, struct err *e)
{
    struct launch_setup *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ST_NO_MEMORY, "no memory");
    s->model = s->model_path = "none";
    s->exchanges = exchanges;
    s->exchange_bytes = exchange_bytes;
    enum st st = count_ranks(options, s, e);
    if (!st)
        st = read_wire(options, s, e);
    if (!st)
        st = place(options, s, e);
    if (st) {
        launch_setup_destroy(s);
        return st;
    }
    s->settings = (struct rt_settings){.kv_format = FMT_F32, .chunk = 1, .context = 1, .max_sequences = 1, .n_threads = s->placement ? s->placement->seats[0].n_threads : (int)options->n_threads, .scatter_bytes = options->scatter};
    s->settings.spin_us = s->placement && s->placement->oversubscribed ? 0 : 50;
    *out = s;
    return ST_OK;
}

void launch_setup_destroy(struct launch_setup *s)
{
    if (!s)
        return;
    if (s->model_path != s->model)
        free((char *)(uintptr_t)s->model_path);
    free(s->expert_map);
    launch_hosts_destroy(s->hosts);
    part_plan_destroy(s->plan);
    topo_placement_free(s->placement);
    topo_machine_close(s->machine);
    part_model_destroy(s->whole);
    ck_close(s->ck);
    free(s);
}

static double mib(uint64_t bytes) { return (double)bytes / 1048576.0; }

enum st launch_check_budget(const struct launch_setup *s, struct err *e)
{
    return launch_check_host_budget(s, NULL, 0, s->n_ranks, s->available_bytes, s->available_what, e);
}

enum st launch_check_host_budget(const struct launch_setup *s, const char *host, int first_rank, int n_ranks, uint64_t available, const char *what, struct err *e)
{
    uint64_t kv = 0, weights = 0, total = 0;
    for (int r = first_rank; r < first_rank + n_ranks; r++) {
        kv += s->plan->budget[r].kv;
        weights += s->plan->budget[r].weights;
        total += s->plan->budget[r].total + launch_reserve_bytes(s->whole, s->n_ranks);
    }
    if (total <= available)
        return ST_OK;
    const uint64_t fixed = total - kv;
    const int64_t tokens = (int64_t)s->plan->n_kv_blocks * KERN_KV_BLOCK;
    const int64_t fits = fixed < available ? (int64_t)((double)(available - fixed) / ((double)kv / (double)tokens)) / s->settings.max_sequences / KERN_KV_BLOCK * KERN_KV_BLOCK : 0;
    char would[160];
    if (fits >= KERN_KV_BLOCK)
        snprintf(would, sizeof would, "--ctx %" PRId64 " would fit", fits - KERN_KV_BLOCK > 0 ? fits - KERN_KV_BLOCK : fits);
    else
        snprintf(would, sizeof would, "the weights alone take %.1f MiB: a smaller or more strongly quantised model, a smaller --chunk, or another host would fit", mib(weights));
    return err_set(e, ST_NO_MEMORY, "%s needs %.1f MiB on %s%s, %.1f MiB are available (%s); %s", s->whole->config.name, mib(total), host ? "host " : "this host", host ? host : "", mib(available),
                   what, would);
}

void launch_print_plan(const struct launch_setup *s, FILE *out)
{
    const struct model_config *c = &s->whole->config;
    fprintf(out, "model %s: %s, %d layers, hidden %d, %d heads / %d KV / %d, ffn %d, vocabulary %" PRId64 "\n", c->name, c->family, c->n_layers, c->hidden, c->n_heads, c->n_kv_heads,
            c->head_dim, c->ffn, c->vocab);
    fprintf(out, "kernels %s/%s, activations %s, cache %s, chunk %d, context %" PRId64 ", %d sequences\n", s->backend->name, s->backend->variant, s->settings.accurate ? "f32" : "auto",
            kern_format(s->settings.kv_format)->name, s->settings.chunk, s->settings.context, s->settings.max_sequences);
    for (int i = 0; s->hosts && i < s->hosts->n; i++)
        launch_hosts_print_host(&s->hosts->h[i], out);
    if (s->hosts)
        launch_hosts_print(s->hosts, out);
    char *drawing = s->placement ? topo_draw_text(s->machine, s->placement) : NULL;
    if (drawing)
        fputs(drawing, out);
    free(drawing);
    part_plan_print(s->plan, out);
    for (int i = 0; i < s->whole->n_weights; i++)
        if (s->whole->weights[i].home != PART_IN_MEMORY)
            fprintf(out, "%s: %.1f MiB stay in the file, rows are read when they are wanted%s\n", s->whole->weights[i].name, mib(part_weight_stored_bytes(&s->whole->weights[i])),
                    s->whole->weights[i].home == PART_IN_BOTH ? " (the head keeps it in memory)" : "");
    fprintf(out, "%.1f MiB in all with %.0f MiB of reserve a rank; available %.1f MiB (%s)\n", mib(s->total_bytes), mib(launch_reserve_bytes(s->whole, s->n_ranks)), mib(s->available_bytes), s->available_what);
}
