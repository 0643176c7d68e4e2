#include "launcher/ledger_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- where it goes -------------------------------------------------------------------------------------------------------------------------------------- */

static bool ends_in(const char *path, const char *suffix)
{
    const size_t n = strlen(path), n_suffix = strlen(suffix);
    return n > n_suffix && strcmp(path + n - n_suffix, suffix) == 0;
}

enum st launch_ledger_check(const char *value, struct err *e)
{
    if (!value || !*value || ends_in(value, ".json") || ends_in(value, ".svg"))
        return ST_OK;
    return err_set(e, ST_INVALID, "--ledger=%s: the file's name must end in .json or .svg", value);
}

enum st launch_ledger_open(const char *value, struct launch_ledger **ledger, struct err *e)
{
    *ledger = NULL;
    if (!value)
        return ST_OK;
    struct launch_ledger *l = calloc(1, sizeof *l);
    if (!l)
        return err_set(e, ST_NO_MEMORY, "no memory for the ledger");
    l->path = value;
    l->fd = -1;
    if (*value) {
        l->fd = open(value, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        l->is_new = l->fd >= 0;
        if (l->fd < 0 && errno == EEXIST)
            l->fd = open(value, O_WRONLY | O_CLOEXEC);
        if (l->fd < 0) {
            err_set(e, ST_IO, "--ledger=%s: %s", value, strerror(errno));
            free(l);
            return ST_IO;
        }
    }
    *ledger = l;
    return ST_OK;
}

void launch_ledger_close(struct launch_ledger *l)
{
    if (!l)
        return;
    for (int r = 0; r < COMM_MAX_RANKS; r++)
        free(l->data[r]);
    if (l->fd >= 0)
        close(l->fd);
    if (l->is_new && !l->is_written)
        unlink(l->path);
    free(l);
}

enum st launch_ledger_add(struct launch_ledger *l, const void *payload, size_t bytes, struct err *e)
{
    if (!l)
        return ST_OK;
    void *data = malloc(bytes + 1);
    if (!data)
        return err_set(e, ST_NO_MEMORY, "no memory for a ledger of %zu bytes", bytes);
    memcpy(data, payload, bytes);
    struct rt_ledger_report report;
    enum st st = rt_ledger_unpack(data, bytes, &report, e);
    if (!st && (l->reports[report.head->rank].head || (l->n_reports && (int)report.head->n_ranks != l->n_ranks)))
        st = err_set(e, ST_INVALID, "a second ledger of rank %u", report.head->rank);
    if (st) {
        free(data);
        return st;
    }
    l->n_ranks = (int)report.head->n_ranks;
    l->n_reports++;
    l->data[report.head->rank] = data;
    l->reports[report.head->rank] = report;
    return ST_OK;
}

enum st launch_ledger_write(struct launch_ledger *l, const struct launch_setup *s, struct err *e)
{
    if (!l || l->n_reports == 0 || l->n_reports < l->n_ranks)
        return ST_OK;
    if (l->fd < 0) {
        launch_ledger_text(l, s, stderr);
        return ST_OK;
    }
    l->is_written = true;
    FILE *f = fdopen(l->fd, "w");
    if (!f)
        return err_set(e, ST_NO_MEMORY, "no memory for the ledger");
    l->fd = -1;
    enum st st = ftruncate(fileno(f), 0) && errno != EINVAL ? ST_IO : ST_OK; /* EINVAL: a pipe, a device */
    if (!st && ends_in(l->path, ".json"))
        st = launch_ledger_json(l, s, f, e);
    else if (!st)
        launch_ledger_svg(l, s, f);
    const bool is_bad = ferror(f) != 0;
    if (fclose(f) || is_bad || st == ST_IO)
        return err_set(e, ST_IO, "--ledger=%s: %s", l->path, strerror(errno));
    return st;
}

/* ---- what it says ------------------------------------------------------------------------------------------------------------------------------------------ */

const char *launch_ledger_phase_name(enum rt_ledger_phase phase) { return phase == RT_LEDGER_PREFILL ? "prefill" : "decode"; }

const char *launch_ledger_op_name(int op) { return op == RT_LEDGER_NO_OP ? "" : part_op_name((enum part_op)op); }

double launch_ledger_rate(const struct rt_ledger_sum *sum)
{
    const uint64_t ns = sum->op_ns[PART_LINEAR] + sum->op_ns[PART_EXPERTS_IN] + sum->op_ns[PART_EXPERTS_OUT];
    return ns ? (double)sum->bytes.weights * 1e9 / (double)ns : 0;
}

/* Not the wire either: it is as long for all, and in steps in halves a peer that is late counts as wire. */
static uint64_t working_ns(const struct rt_ledger_step *s) { return s->duration_ns - s->kind_ns[RT_LEDGER_WAIT] - s->kind_ns[RT_LEDGER_WIRE]; }

/* Ranks walk the same steps; but how many of them each still has in its ring is its own affair. */
static const struct rt_ledger_step *find_step(const struct rt_ledger_report *r, uint64_t step)
{
    if (r->head->n_steps == 0 || step < r->steps[0].step)
        return NULL;
    uint32_t lo = 0, hi = r->head->n_steps;
    while (hi - lo > 1) {
        const uint32_t middle = lo + (hi - lo) / 2;
        if (r->steps[middle].step <= step)
            lo = middle;
        else
            hi = middle;
    }
    return r->steps[lo].step == step ? &r->steps[lo] : NULL;
}

struct ledger_balance launch_ledger_balance(const struct launch_ledger *l, enum rt_ledger_phase phase)
{
    struct ledger_balance b = {.imbalance = 1, .worst = 1};
    double sum_ratios = 0, worked[COMM_MAX_RANKS] = {0}, kinds[COMM_MAX_RANKS][RT_LEDGER_KINDS] = {{0}};
    for (uint32_t i = 0; i < l->reports[0].head->n_steps; i++) {
        const struct rt_ledger_step *at[COMM_MAX_RANKS] = {&l->reports[0].steps[i]};
        if (at[0]->phase != phase)
            continue;
        int n = 1;
        while (n < l->n_ranks && (at[n] = find_step(&l->reports[n], at[0]->step)) != NULL)
            n++;
        if (n < l->n_ranks)
            continue;
        double slowest = 0, mean = 0;
        for (int r = 0; r < n; r++) {
            const double ns = (double)working_ns(at[r]);
            slowest = ns > slowest ? ns : slowest;
            mean += ns / n;
            worked[r] += ns;
            for (int k = 0; k < RT_LEDGER_KINDS; k++)
                kinds[r][k] += (double)at[r]->kind_ns[k];
        }
        const double ratio = mean > 0 ? slowest / mean : 1;
        sum_ratios += ratio;
        b.worst = ratio > b.worst ? ratio : b.worst;
        b.n_steps++;
    }
    if (b.n_steps == 0)
        return b;
    b.imbalance = sum_ratios / (double)b.n_steps;
    for (int r = 1; r < l->n_ranks; r++)
        if (worked[r] > worked[b.slowest])
            b.slowest = r;
    for (int k = 0; k < RT_LEDGER_KINDS; k++) {
        double mean = 0;
        for (int r = 0; r < l->n_ranks; r++)
            mean += kinds[r][k] / l->n_ranks;
        const double excess = (kinds[b.slowest][k] - mean) / (double)b.n_steps;
        if (k != RT_LEDGER_WAIT && k != RT_LEDGER_WIRE && excess > b.excess_ns) {
            b.excess_ns = excess;
            b.kind = (enum rt_ledger_kind)k;
        }
    }
    return b;
}

struct ledger_link launch_ledger_link(const struct launch_ledger *l)
{
    struct ledger_link link = {0};
    double bytes = 0, link_ns = 0, late_ns = 0, n = 0, n_late = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_head *h = l->reports[r].head;
        link.was_there |= h->has_link != 0;
        bytes += (double)h->link_bytes;
        link_ns += (double)h->link_ns;
        late_ns += (double)h->link_late_ns;
        n += (double)h->link_exchanges;
        n_late += (double)h->link_n_late;
    }
    link.was_there &= n > 0 && link_ns > 0;
    if (!link.was_there)
        return link;
    link.link_gb_s = bytes / link_ns;
    link.seen_gb_s = bytes / (link_ns + late_ns);
    link.was_late = late_ns > link_ns / 100;
    link.late_share = n_late / n;
    return link;
}

const char *launch_ledger_rates(const struct ledger_link *link, char text[64])
{
    const double unit = link->link_gb_s >= 0.1 ? 1 : link->link_gb_s >= 1e-4 ? 1e3 : 1e6;
    const char *name = unit == 1 ? "GB/s" : unit == 1e3 ? "MB/s" : "KB/s";
    if (link->was_late)
        snprintf(text, 64, "%.3g of %.3g %s", link->seen_gb_s * unit, link->link_gb_s * unit, name);
    else
        snprintf(text, 64, "%.3g %s", link->seen_gb_s * unit, name);
    return text;
}

/* ---- as text ----------------------------------------------------------------------------------------------------------------------------------------------- */

static const char *bytes_text(double bytes, char text[24])
{
    if (bytes >= 1e8)
        snprintf(text, 24, "%.0f MB", bytes / 1e6);
    else if (bytes >= 1e5)
        snprintf(text, 24, "%.2f MB", bytes / 1e6);
    else if (bytes >= 1e3)
        snprintf(text, 24, "%.2f KB", bytes / 1e3);
    else
        snprintf(text, 24, "%.0f B", bytes);
    return text;
}

/* More than memory gives comes from a cache. */
static const char *share_text(double rate, double measured, char text[24])
{
    if (measured <= 0)
        return "-";
    if (rate > measured)
        return "from cache";
    snprintf(text, 24, "%.0f%%", 100 * rate / measured);
    return text;
}

static const char *plural(double n) { return n == 1 ? "" : "s"; }

static void print_times(const struct launch_ledger *l, enum rt_ledger_phase phase, FILE *out)
{
    fprintf(out, "  rank   ms a step");
    for (int k = 0; k < RT_LEDGER_KINDS; k++)
        fprintf(out, " %11s     %%", rt_ledger_kind_name((enum rt_ledger_kind)k));
    fprintf(out, "   (us, %% of the step)\n");
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_sum *s = &l->reports[r].head->sums[phase];
        const double n = s->n_steps ? (double)s->n_steps : 1, total = s->step_ns ? (double)s->step_ns : 1;
        fprintf(out, "  %4d  %10.3f", r, (double)s->step_ns / n / 1e6);
        for (int k = 0; k < RT_LEDGER_KINDS; k++)
            fprintf(out, " %11.1f %5.1f", (double)s->kind_ns[k] / n / 1e3, 100 * (double)s->kind_ns[k] / total);
        fputc('\n', out);
    }
}

static void print_bytes(const struct launch_ledger *l, enum rt_ledger_phase phase, FILE *out)
{
    fprintf(out, "  rank  weights a step  in products  of measured  in the step  cache a step%s\n", l->n_ranks > 1 ? "  sent a step    received" : "");
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_head *h = l->reports[r].head;
        const struct rt_ledger_sum *s = &h->sums[phase];
        const double n = s->n_steps ? (double)s->n_steps : 1, rate = launch_ledger_rate(s), measured = (double)h->read_bytes_per_s;
        const double in_step = s->step_ns ? (double)s->bytes.weights * 1e9 / (double)s->step_ns : 0;
        char text[4][24], rate_text[32];
        snprintf(rate_text, sizeof rate_text, "%.2f GB/s", rate / 1e9);
        fprintf(out, "  %4d  %14s  %11s  %11s  %11s  %12s", r, bytes_text((double)s->bytes.weights / n, text[0]), rate_text, share_text(rate, measured, text[1]),
                share_text(in_step, measured, text[2]), bytes_text((double)s->bytes.cache / n, text[3]));
        if (l->n_ranks > 1)
            fprintf(out, "  %11s  %10s", bytes_text((double)s->bytes.sent / n, text[0]), bytes_text((double)s->bytes.received / n, text[1]));
        fputc('\n', out);
    }
}

/* How many experts had a token, and how much more of their bytes than the mean the busiest rank read. */
static void print_experts(const struct launch_ledger *l, enum rt_ledger_phase phase, const struct launch_setup *setup, FILE *out)
{
    const struct moe_config *moe = &setup->whole->config.moe;
    double touched = 0, all = 0, most = 0;
    const double n_layers = (double)l->reports[0].head->sums[phase].n_expert_layers, n_steps = (double)l->reports[0].head->sums[phase].n_steps;
    int busiest = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_sum *s = &l->reports[r].head->sums[phase];
        touched = setup->settings.model.moe == PART_MOE_EXPERT ? touched + (double)s->n_touched : (double)s->n_touched; /* else every rank has its part of all */
        all += (double)s->bytes.experts;
        busiest = (double)s->bytes.experts > most ? r : busiest;
        most = (double)s->bytes.experts > most ? (double)s->bytes.experts : most;
    }
    if (n_layers == 0 || all == 0)
        return;
    char text[24];
    const double mean = all / l->n_ranks;
    fprintf(out, "  experts: %.4g of %d%s had a token, in the mean over layers and steps (%d for each token); their weights: %s a step", touched / n_layers, moe->n_experts,
            setup->whole->n_stacked > moe->n_experts ? " + 1" : "", moe->top_k, bytes_text(all / n_steps, text));
    if (l->n_ranks > 1)
        fprintf(out, "; rank %d reads most, %.3f of the mean", busiest, most / mean);
    fputc('\n', out);
}

static void print_exchanges(const struct launch_ledger *l, enum rt_ledger_phase phase, FILE *out)
{
    const struct rt_ledger_sum *first = &l->reports[0].head->sums[phase];
    if (first->n_exchanges == 0)
        return;
    double vectors = 0, bytes = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        vectors += (double)l->reports[r].head->sums[phase].n_vectors;
        bytes += (double)l->reports[r].head->sums[phase].bytes.sent;
    }
    char text[24];
    const double n = (double)first->n_exchanges, steps = (double)first->n_steps;
    fprintf(out, "  %.4g exchanges a step, %.4g of them sums of %.4g vectors of all ranks together; %s an exchange\n", n / steps, (double)first->n_sums / steps,
            first->n_sums ? vectors / (double)first->n_sums : 0.0, bytes_text(bytes / n, text));
}

void launch_ledger_text(const struct launch_ledger *l, const struct launch_setup *s, FILE *out)
{
    fprintf(out, "ledger: %s, %d rank%s x %d thread%s, %s/%s; memory read by all ranks at once:", s->whole->config.name, l->n_ranks, plural(l->n_ranks), s->settings.n_threads,
            plural(s->settings.n_threads), s->backend->name, s->backend->variant);
    double all = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        all += (double)l->reports[r].head->read_bytes_per_s / 1e9;
        if (l->n_ranks <= 4)
            fprintf(out, "%s %.2f", r ? " +" : "", (double)l->reports[r].head->read_bytes_per_s / 1e9);
    }
    if (l->n_ranks > 4)
        fprintf(out, " %.2f", all);
    fprintf(out, " GB/s\n");
    for (int p = 0; p < RT_LEDGER_PHASES; p++) {
        const enum rt_ledger_phase phase = (enum rt_ledger_phase)p;
        const struct rt_ledger_sum *sum = &l->reports[0].head->sums[p];
        if (sum->n_steps == 0)
            continue;
        fprintf(out, "%s: %" PRIu64 " step%s, %" PRIu64 " token%s", launch_ledger_phase_name(phase), sum->n_steps, plural((double)sum->n_steps), sum->n_tokens, plural((double)sum->n_tokens));
        const struct ledger_balance b = launch_ledger_balance(l, phase);
        if (l->n_ranks > 1 && b.n_steps)
            fprintf(out, "; slowest / mean %.3f; slowest: rank %d, by its %s (%.1f us a step more than the mean)", b.imbalance, b.slowest, rt_ledger_kind_name(b.kind), b.excess_ns / 1e3);
        fputc('\n', out);
        print_times(l, phase, out);
        print_bytes(l, phase, out);
        print_experts(l, phase, s, out);
        print_exchanges(l, phase, out);
    }
    const struct ledger_link link = launch_ledger_link(l);
    char text[64];
    if (link.was_there && link.was_late)
        fprintf(out, "link: limited by this machine: %s, late in %.0f%% of the exchanges\n", launch_ledger_rates(&link, text), 100 * link.late_share);
    else if (link.was_there)
        fprintf(out, "link: %s, as the emulated link gives them\n", launch_ledger_rates(&link, text));
}
