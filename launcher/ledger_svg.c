/* A ledger as a picture: bars of what a step takes on average, then lanes of the last steps, all ranks on one clock, so that one sees who waits for whom.
 *
 * Self-contained: no script, no font but the viewer's. Text is set where its width is known to fit: 7 px a character at 12 px are more than any usual font takes. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/ledger_priv.h"

#define WIDTH 1200
#define LEFT 76
#define RIGHT 24
#define TOTALS 90 /* right of the bars: their sums */
#define LANE 26
#define GAP 6
#define CHAR_PX 7.0
#define MAX_STEPS 4   /* of one overview */
#define MIN_TICK_PX 90
#define NAMED_RANKS 8 /* with more, an overview has no tooltips: the file would be megabytes */

/* Told apart with any colour vision, and in grey. */
static const char *const colours[RT_LEDGER_KINDS] = {"#2b6cb0", "#38a169", "#ecc94b", "#e53e3e", "#a0aec0"};
static const char *const inks[RT_LEDGER_KINDS] = {"#fff", "#fff", "#222", "#fff", "#222"};
static const char *const about[RT_LEDGER_KINDS] = {"products with weights and the arithmetic between them", "attention, rope, append to the cache", "exchange, once all ranks had begun it",
                                                   "exchange, until the last rank began it", "sampling, scheduling, frames"};

static void put_escaped(FILE *out, const char *text, int max_chars)
{
    for (int n = 0; *text && n < max_chars; text++, n++) {
        const unsigned char c = (unsigned char)*text;
        if (c == '&' || c == '<' || c == '>' || c == '"')
            fprintf(out, "&#%d;", c);
        else
            fputc(c < ' ' || c > '~' ? '?' : c, out); /* bytes of a name may be cut anywhere */
    }
}

static const char *time_text(double ns, char text[24])
{
    if (ns >= 1e9)
        snprintf(text, 24, "%.2f s", ns / 1e9);
    else if (ns >= 1e5)
        snprintf(text, 24, "%.2f ms", ns / 1e6);
    else
        snprintf(text, 24, "%.1f us", ns / 1e3);
    return text;
}

static void heading(FILE *out, double y, const char *text) { fprintf(out, "<text x=\"%d\" y=\"%.0f\" class=\"h\">%s</text>\n", 16, y, text); }

static void rank_label(FILE *out, double y, int rank) { fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">rank %d</text>\n", LEFT - 10, y + LANE / 2.0 + 4, rank); }

/* ---- bars --------------------------------------------------------------------------------------------------------------------------------------------------- */

static void draw_bar(FILE *out, const struct rt_ledger_sum *s, int rank, double y, double px_per_ns)
{
    const double n = (double)s->n_steps;
    char text[24];
    double x = LEFT;
    rank_label(out, y, rank);
    for (int k = 0; k < RT_LEDGER_KINDS; k++) {
        const double ns = (double)s->kind_ns[k] / n, w = ns * px_per_ns, percent = 100 * (double)s->kind_ns[k] / (double)s->step_ns;
        if (s->kind_ns[k] == 0)
            continue;
        fprintf(out, "<g><title>rank %d, %s: %s a step, %.1f%%</title><rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" fill=\"%s\"/>", rank,
                rt_ledger_kind_name((enum rt_ledger_kind)k), time_text(ns, text), percent, x, y, w, LANE, colours[k]);
        char label[24];
        const int chars = snprintf(label, sizeof label, "%.0f%%", percent);
        if (chars * CHAR_PX + 6 < w)
            fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" fill=\"%s\">%s</text>", x + w / 2, y + LANE / 2.0 + 4, inks[k], label);
        fprintf(out, "</g>\n");
        x += w;
    }
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x + 8, y + LANE / 2.0 + 4, time_text((double)s->step_ns / n, text));
}

static double draw_bars(FILE *out, const struct launch_ledger *l, enum rt_ledger_phase phase, double y)
{
    const struct rt_ledger_sum *first = &l->reports[0].head->sums[phase];
    if (first->n_steps == 0)
        return y;
    const struct ledger_balance b = launch_ledger_balance(l, phase);
    char text[200];
    const double tokens = (double)first->n_tokens / (double)first->n_steps;
    int n = snprintf(text, sizeof text, "%s: mean of %llu step%s of %.4g token%s", launch_ledger_phase_name(phase), (unsigned long long)first->n_steps, first->n_steps == 1 ? "" : "s",
                     tokens, tokens == 1 ? "" : "s");
    if (l->n_ranks > 1 && b.n_steps)
        snprintf(text + n, sizeof text - (size_t)n, "; slowest / mean %.3f (rank %d, by its %s)", b.imbalance, b.slowest, rt_ledger_kind_name(b.kind));
    heading(out, y + 12, text);
    y += 22;
    double longest = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_sum *s = &l->reports[r].head->sums[phase];
        const double ns = s->n_steps ? (double)s->step_ns / (double)s->n_steps : 0;
        longest = ns > longest ? ns : longest;
    }
    for (int r = 0; r < l->n_ranks; r++, y += LANE + GAP)
        if (l->reports[r].head->sums[phase].step_ns)
            draw_bar(out, &l->reports[r].head->sums[phase], r, y, (WIDTH - LEFT - RIGHT - TOTALS) / longest);
    return y + 14;
}

/* ---- lanes --------------------------------------------------------------------------------------------------------------------------------------------------- */

/* Steps of one phase that all ranks have all marks of, one after another, the last ones. */
struct traced {
    const struct rt_ledger_step *steps[MAX_STEPS][COMM_MAX_RANKS];
    int n;
};

static const struct rt_ledger_step *traced_step(const struct rt_ledger_report *r, enum rt_ledger_phase phase, uint64_t step)
{
    for (uint32_t i = r->head->n_steps; i-- > 0 && r->steps[i].step >= step;)
        if (r->steps[i].step == step)
            return r->steps[i].phase == phase && rt_ledger_marks_of(r, &r->steps[i]) ? &r->steps[i] : NULL;
    return NULL;
}

static void find_traced(const struct launch_ledger *l, enum rt_ledger_phase phase, struct traced *t)
{
    t->n = 0;
    const struct rt_ledger_report *first = &l->reports[0];
    for (uint32_t i = first->head->n_steps; i-- > 0 && t->n < MAX_STEPS;) {
        const struct rt_ledger_step *s = &first->steps[i];
        if (s->phase != phase) {
            if (t->n)
                return;
            continue;
        }
        const struct rt_ledger_step *newer = t->n ? t->steps[t->n - 1][0] : NULL;
        if (newer && newer->start_ns - s->start_ns > 2 * s->duration_ns) /* there was nothing to do in between: the lanes would be empty */
            return;
        for (int r = 0; r < l->n_ranks; r++)
            if (!(t->steps[t->n][r] = traced_step(&l->reports[r], phase, s->step)))
                return;
        t->n++;
    }
}

struct window {
    double begin_ns, end_ns; /* as the ranks' clock has it, less zero_ns */
    uint64_t zero_ns;
    double px_per_ns;
};

static struct window window_of(uint64_t begin_ns, uint64_t end_ns)
{
    const double length = end_ns > begin_ns ? (double)(end_ns - begin_ns) : 1;
    return (struct window){.end_ns = length, .zero_ns = begin_ns, .px_per_ns = (WIDTH - LEFT - RIGHT) / length};
}

static double x_of(const struct window *w, uint64_t ns) { return LEFT + (double)(int64_t)(ns - w->zero_ns) * w->px_per_ns; }

/* One interval, cut to the window. False: outside. */
static bool place(const struct window *w, uint64_t start_ns, uint64_t end_ns, double *x0, double *x1)
{
    *x0 = fmax(x_of(w, start_ns), LEFT);
    *x1 = fmin(x_of(w, end_ns), WIDTH - RIGHT);
    return *x1 > *x0;
}

/* Neighbours of one kind are one piece: i … returned − 1. */
static uint32_t same_kind(const struct rt_ledger_mark *marks, uint32_t i, uint32_t n, uint64_t *end_ns)
{
    const uint8_t kind = marks[i].kind;
    for (; i < n && marks[i].kind == kind; i++)
        *end_ns = marks[i].start_ns + marks[i].duration_ns;
    return i;
}

enum detail { SHAPES, KINDS, OPS };

/* Nothing but shapes: one path a kind. */
static void draw_shapes(FILE *out, const struct window *w, const struct rt_ledger_mark *marks, uint32_t n, double y)
{
    for (int k = 0; k < RT_LEDGER_KINDS; k++) {
        bool is_open = false;
        for (uint32_t i = 0; i < n;) {
            uint64_t end_ns = 0;
            double x0, x1;
            const uint32_t next = same_kind(marks, i, n, &end_ns);
            if (marks[i].kind == k && place(w, marks[i].start_ns, end_ns, &x0, &x1)) {
                fprintf(out, "%sM%.2f %.1fH%.2fv%dH%.2fz", is_open ? "" : "<path d=\"", x0, y, x1, LANE, x0);
                is_open = true;
            }
            i = next;
        }
        if (is_open)
            fprintf(out, "\" fill=\"%s\"/>\n", colours[k]);
    }
}

static void draw_pieces(FILE *out, const struct window *w, const struct rt_ledger_mark *marks, uint32_t n, int rank, double y, enum detail detail)
{
    for (uint32_t i = 0; i < n;) {
        const struct rt_ledger_mark *m = &marks[i];
        uint64_t end_ns = m->start_ns + m->duration_ns;
        i = detail == KINDS ? same_kind(marks, i, n, &end_ns) : i + 1;
        double x0, x1;
        if (!place(w, m->start_ns, end_ns, &x0, &x1))
            continue;
        const char *kind = rt_ledger_kind_name((enum rt_ledger_kind)m->kind), *op = launch_ledger_op_name(m->op);
        char text[24], layer[24] = "";
        if (m->layer >= 0)
            snprintf(layer, sizeof layer, ", layer %d", m->layer);
        const bool is_named = detail == OPS && *op;
        fprintf(out, "<g><title>rank %d%s%s%s, %s: %s</title><rect x=\"%.2f\" y=\"%.1f\" width=\"%.2f\" height=\"%d\" fill=\"%s\"%s/>", rank, layer, is_named ? ", " : "", is_named ? op : "",
                kind, time_text((double)(end_ns - m->start_ns), text), x0, y, x1 - x0, LANE, colours[m->kind], detail == OPS && x1 - x0 > 4 ? " stroke=\"#fff\" stroke-width=\"0.6\"" : "");
        const char *label = detail == OPS && m->op != PART_EXCHANGE && *op ? op : kind;
        if (detail == OPS && (double)strlen(label) * CHAR_PX + 6 < x1 - x0)
            fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\" fill=\"%s\">%s</text>", (x0 + x1) / 2, y + LANE / 2.0 + 4, inks[m->kind], label);
        fprintf(out, "</g>\n");
    }
}

/* Where an exchange flies at last: on all ranks when the slowest begins it. */
static void draw_meetings(FILE *out, const struct window *w, const struct rt_ledger_mark *marks, uint32_t n, double y0, double y1)
{
    for (uint32_t i = 0; i < n; i++) {
        const double x = x_of(w, marks[i].start_ns);
        if (marks[i].kind == RT_LEDGER_WIRE && x > LEFT && x < WIDTH - RIGHT)
            fprintf(out, "<path d=\"M%.2f %.1fV%.1f\" class=\"m\"/>\n", x, y0, y1);
    }
}

static void draw_axis(FILE *out, const struct window *w, double y)
{
    const double least = MIN_TICK_PX / w->px_per_ns, power = pow(10, floor(log10(least)));
    const double step = least <= power ? power : least <= 2 * power ? 2 * power : least <= 5 * power ? 5 * power : 10 * power;
    fprintf(out, "<path d=\"M%d %.1fH%d\" class=\"a\"/>\n", LEFT, y, WIDTH - RIGHT);
    for (int i = 0; i * step <= w->end_ns * 1.0000001; i++) {
        const double x = LEFT + i * step * w->px_per_ns, to_edge = WIDTH - RIGHT - x;
        fprintf(out, "<path d=\"M%.1f %.1fv5\" class=\"a\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%.6g</text>\n", x, y, x, y + 18, to_edge < 24 ? "end" : "middle", i * step / 1e6);
    }
    fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">ms</text>\n", LEFT - 10, y + 18);
}

/* Steps newest first, as traced; draws those that lie in the window. Returns the height's end. */
static double draw_panel(FILE *out, const struct launch_ledger *l, const struct traced *t, int n_steps, const struct window *w, enum detail detail, double y)
{
    if (n_steps > 1) { /* their numbers, above the lanes, each where it fits */
        for (int i = n_steps; i-- > 0;) {
            const struct rt_ledger_step *s = t->steps[i][0];
            char text[32];
            const int chars = snprintf(text, sizeof text, "step %llu", (unsigned long long)s->step);
            const double x = fmax(x_of(w, s->start_ns), LEFT);
            if (chars * CHAR_PX < (double)s->duration_ns * w->px_per_ns && x + chars * CHAR_PX < WIDTH - RIGHT)
                fprintf(out, "<text x=\"%.1f\" y=\"%.1f\">%s</text>\n", x + 2, y + 10, text);
        }
        y += 16;
    }
    const double top = y;
    for (int r = 0; r < l->n_ranks; r++, y += LANE + GAP) {
        rank_label(out, y, r);
        fprintf(out, "<rect x=\"%d\" y=\"%.1f\" width=\"%d\" height=\"%d\" fill=\"#f4f4f4\"/>\n", LEFT, y, WIDTH - LEFT - RIGHT, LANE);
        for (int i = n_steps; i-- > 0;) {
            const struct rt_ledger_step *s = t->steps[i][r];
            const struct rt_ledger_mark *marks = rt_ledger_marks_of(&l->reports[r], s);
            if (detail == SHAPES)
                draw_shapes(out, w, marks, s->n_marks, y);
            else
                draw_pieces(out, w, marks, s->n_marks, r, y, detail);
            const double x = x_of(w, s->start_ns);
            if (n_steps > 1 && x >= LEFT - 0.5 && x <= WIDTH - RIGHT)
                fprintf(out, "<path d=\"M%.2f %.1fv%d\" class=\"s\"/>\n", x, y - 2, LANE + 4);
        }
    }
    if (l->n_ranks > 1 && detail == OPS) /* elsewhere they would cover what they point at */
        draw_meetings(out, w, rt_ledger_marks_of(&l->reports[0], t->steps[0][0]), t->steps[0][0]->n_marks, top - 3, y - GAP + 3);
    draw_axis(out, w, y);
    return y + 38;
}

/* The middle two layers of the last step, on all ranks. False: it has no more than that. */
static bool middle_layers(const struct launch_ledger *l, const struct traced *t, int *first_layer, struct window *w)
{
    int last = -1;
    const struct rt_ledger_mark *marks = rt_ledger_marks_of(&l->reports[0], t->steps[0][0]);
    for (uint32_t i = 0; i < t->steps[0][0]->n_marks; i++)
        last = marks[i].layer > last ? marks[i].layer : last;
    if (last < 4)
        return false;
    *first_layer = last / 2;
    uint64_t begin_ns = UINT64_MAX, end_ns = 0;
    for (int r = 0; r < l->n_ranks; r++) {
        const struct rt_ledger_step *s = t->steps[0][r];
        marks = rt_ledger_marks_of(&l->reports[r], s);
        for (uint32_t i = 0; i < s->n_marks; i++)
            if (marks[i].layer == *first_layer || marks[i].layer == *first_layer + 1) {
                const uint64_t end = marks[i].start_ns + marks[i].duration_ns;
                begin_ns = marks[i].start_ns < begin_ns ? marks[i].start_ns : begin_ns;
                end_ns = end > end_ns ? end : end_ns;
            }
    }
    *w = window_of(begin_ns, end_ns);
    return end_ns > begin_ns;
}

static struct window window_of_steps(const struct launch_ledger *l, const struct traced *t, int n_steps)
{
    uint64_t begin_ns = UINT64_MAX, end_ns = 0;
    for (int i = 0; i < n_steps; i++)
        for (int r = 0; r < l->n_ranks; r++) {
            const struct rt_ledger_step *s = t->steps[i][r];
            begin_ns = s->start_ns < begin_ns ? s->start_ns : begin_ns;
            end_ns = s->start_ns + s->duration_ns > end_ns ? s->start_ns + s->duration_ns : end_ns;
        }
    return window_of(begin_ns, end_ns);
}

static double draw_lanes(FILE *out, const struct launch_ledger *l, enum rt_ledger_phase phase, double y)
{
    static struct traced t; /* a page and more */
    if (l->reports[0].head->sums[phase].n_steps == 0)
        return y;
    find_traced(l, phase, &t);
    const char *name = launch_ledger_phase_name(phase);
    char text[120];
    if (t.n == 0) {
        snprintf(text, sizeof text, "%s: no step is traced as a whole, it has more parts than are kept", name);
        heading(out, y + 12, text);
        return y + 34;
    }
    if (t.n > 1) {
        snprintf(text, sizeof text, "%s: the last %d steps", name, t.n);
        heading(out, y + 12, text);
        const struct window w = window_of_steps(l, &t, t.n);
        y = draw_panel(out, l, &t, t.n, &w, SHAPES, y + 20);
    }
    int layer = 0;
    struct window zoom;
    const bool has_zoom = middle_layers(l, &t, &layer, &zoom);
    snprintf(text, sizeof text, "%s: step %llu", name, (unsigned long long)t.steps[0][0]->step);
    heading(out, y + 12, text);
    const struct window w = window_of_steps(l, &t, 1);
    y = draw_panel(out, l, &t, 1, &w, !has_zoom ? OPS : l->n_ranks <= NAMED_RANKS ? KINDS : SHAPES, y + 22);
    if (has_zoom) {
        snprintf(text, sizeof text, "%s: layers %d and %d of this step", name, layer, layer + 1);
        heading(out, y + 12, text);
        y = draw_panel(out, l, &t, 1, &zoom, OPS, y + 22);
    }
    return y + 8;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------------------------------------ */

static double draw_top(FILE *out, const struct launch_ledger *l, const struct launch_setup *s)
{
    double measured = 0;
    for (int r = 0; r < l->n_ranks; r++)
        measured += (double)l->reports[r].head->read_bytes_per_s / 1e9;
    fprintf(out, "<text x=\"16\" y=\"30\" class=\"t\">Ledger of ");
    put_escaped(out, s->whole->config.name, 60);
    fprintf(out, ": %d rank%s x %d thread%s</text>\n", l->n_ranks, l->n_ranks == 1 ? "" : "s", s->settings.n_threads, s->settings.n_threads == 1 ? "" : "s");
    fprintf(out, "<text x=\"16\" y=\"50\">%s/%s; memory read by all ranks at once: %.2f GB/s", s->backend->name, s->backend->variant, measured);
    const struct ledger_link link = launch_ledger_link(l);
    char text[64];
    if (link.was_there)
        fprintf(out, "; emulated link%s: %s", link.was_late ? ", limited by this machine" : "", launch_ledger_rates(&link, text));
    fprintf(out, "</text>\n");
    for (int k = 0; k < RT_LEDGER_KINDS; k++) {
        const int x = 16 + k * 120;
        fprintf(out, "<g><title>%s</title><rect x=\"%d\" y=\"64\" width=\"14\" height=\"14\" fill=\"%s\"/><text x=\"%d\" y=\"76\">%s</text></g>\n", about[k], x, colours[k], x + 20,
                rt_ledger_kind_name((enum rt_ledger_kind)k));
    }
    if (l->n_ranks > 1)
        fprintf(out, "<path d=\"M%d 62v18\" class=\"m\"/><text x=\"%d\" y=\"76\">all ranks have begun an exchange</text>\n", 24 + RT_LEDGER_KINDS * 120, 32 + RT_LEDGER_KINDS * 120);
    return 100;
}

void launch_ledger_svg(const struct launch_ledger *l, const struct launch_setup *s, FILE *out)
{
    char *body = NULL;
    size_t bytes = 0;
    FILE *f = open_memstream(&body, &bytes); /* the height is known at the end */
    if (!f)
        return;
    double y = draw_top(f, l, s);
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        y = draw_bars(f, l, (enum rt_ledger_phase)p, y);
    y += 6;
    for (int p = 0; p < RT_LEDGER_PHASES; p++)
        y = draw_lanes(f, l, (enum rt_ledger_phase)p, y);
    fclose(f);
    fprintf(out,
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%.0f\" viewBox=\"0 0 %d %.0f\" font-family=\"sans-serif\" font-size=\"12\">\n"
            "<style>.t{font-size:18px;font-weight:bold}.h{font-size:13px;font-weight:bold}.a{stroke:#888;fill:none}.s{stroke:#000;stroke-width:1.5}.m{stroke:#000;stroke-width:1;stroke-dasharray:3 2}"
            "</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
            WIDTH, y, WIDTH, y);
    if (body)
        fwrite(body, 1, bytes, out);
    fputs("</svg>\n", out);
    free(body);
}
