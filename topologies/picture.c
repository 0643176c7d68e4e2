/* A machine and who sits where, as a picture: packages, NUMA nodes, shared caches, cores and hardware threads as boxes in boxes, ranks as colours. One self-contained SVG.
 *
 * The one idea: the cores are sorted by the levels above them, the coarsest first, so that every box is a range of cores. lay() measures a range, or draws it at a point; a box is as
 * wide as its content or its title, whichever is wider, and letters are counted wider than they are in any common font: no text leaves its box. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "topologies/topo_priv.h"

#define N_LEVELS 3
#define GAP 6.0
#define PAD 7.0
#define TITLE 17.0        /* height of a box's title */
#define PU_HEIGHT 31.0
#define CORE_PAD 2.5
#define CORES_PER_ROW 16
#define MARGIN 14.0
#define CONTENT_WIDTH 1180.0
#define LEAST_WIDTH 720.0
#define EM 0.66           /* width of a letter in its size */
#define SMALL 11.0
#define BIG 17.0
#define LEGEND_LINE 20.0
#define MAX_LEGEND 64     /* lines; more ranks are counted only */

struct spot {
    int core;
    int key[N_LEVELS]; /* numbers of its domains, the coarsest level first */
};

struct picture {
    FILE *f;
    const struct topo_machine *m;
    const struct topo_placement *p;
    struct topo_use *uses;
    int n_uses;
    struct spot *spots;
    int level[N_LEVELS]; /* 0 package, 1 NUMA node, 2 shared cache */
    double pu_width;
    bool failed;
};

struct size {
    double w, h;
};

/* --- Letters and colours ------------------------------------------------------------------------------------------------------ */

static double text_width(const char *text, double size) { return (double)strlen(text) * size * EM; }

/* Text at its left or in its middle, cut to fit into width; all that is not plain ASCII becomes '?'. */
static void put_text(struct picture *p, double x, double y, double width, double size, const char *anchor, const char *colour, const char *text) {
    size_t n = strlen(text), room = (size_t)fmax(0, width / (size * EM));
    fprintf(p->f, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.0f\" text-anchor=\"%s\" fill=\"%s\">", x, y, size, anchor, colour);
    for (size_t i = 0; i < n; i++) {
        if (n > room && i + 2 >= room) {
            fputs("..", p->f);
            break;
        }
        unsigned char c = (unsigned char)text[i];
        if (c == '&') fputs("&amp;", p->f);
        else if (c == '<') fputs("&lt;", p->f);
        else if (c == '>') fputs("&gt;", p->f);
        else fputc(c < ' ' || c > '~' ? '?' : c, p->f);
    }
    fputs("</text>\n", p->f);
}

static void put_box(struct picture *p, double x, double y, double w, double h, double radius, const char *style) {
    fprintf(p->f, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"%.0f\" %s/>\n", x, y, w, h, radius, style);
}

/* A colour for each rank on which black letters can be read: eight that differ for most eyes, then hues by the golden angle. */
static const char *rank_colour(int rank, char text[32]) {
    static const char *const first[] = {"#8ecae6", "#ffb703", "#90be6d", "#f28482", "#cdb4db", "#f9e076", "#4fb3a9", "#d4a373"};
    if (rank < (int)(sizeof first / sizeof *first)) return first[rank];
    snprintf(text, 32, "hsl(%d,%d%%,%d%%)", (int)fmod(rank * 137.508, 360), 55 + rank % 3 * 12, 68 + rank % 2 * 9);
    return text;
}

/* --- Boxes -------------------------------------------------------------------------------------------------------------------- */

static void use_label(const struct topo_use *u, char text[32]) {
    snprintf(text, 32, u->progress ? "p%d" : u->n_ranks > 1 ? "r%d+" : "r%d", u->rank);
}

static void draw_pu(struct picture *p, int os_index, bool allowed, double x, double y) {
    char number[32], label[32], colour[32], style[160];
    const struct topo_use *use = topo_find_use(p->uses, p->n_uses, os_index);
    if (!allowed)
        snprintf(style, sizeof style, "fill=\"url(#no)\" stroke=\"#bbb\"");
    else if (!use)
        snprintf(style, sizeof style, "fill=\"#fff\" stroke=\"#999\"");
    else if (use->progress)
        snprintf(style, sizeof style, "fill=\"#fff\" stroke=\"%s\" stroke-width=\"3\"", rank_colour(use->rank, colour));
    else
        snprintf(style, sizeof style, "fill=\"%s\" stroke=\"#555\"", rank_colour(use->rank, colour));
    bool thick = allowed && use && use->progress;
    put_box(p, x + thick, y + thick, p->pu_width - 2 * thick, PU_HEIGHT - 2 * thick, 2, style);
    snprintf(number, sizeof number, "%d", os_index);
    put_text(p, x + p->pu_width / 2, y + (use ? 13 : 19), p->pu_width, SMALL, "middle", allowed ? "#111" : "#999", number);
    if (!use) return;
    use_label(use, label);
    put_text(p, x + p->pu_width / 2, y + 26, p->pu_width, SMALL - 1, "middle", "#333", label);
}

static struct size core_size(const struct picture *p, const struct topo_core *c) {
    return (struct size){c->n_pus * p->pu_width + (c->n_pus - 1) * 1.0 + 2 * CORE_PAD, PU_HEIGHT + 2 * CORE_PAD};
}

static void draw_core(struct picture *p, const struct topo_core *c, double x, double y) {
    struct size s = core_size(p, c);
    put_box(p, x, y, s.w, s.h, 3, c->kind ? "fill=\"#dde3ea\" stroke=\"#555\" stroke-dasharray=\"3 2\"" : "fill=\"#f7f7f7\" stroke=\"#333\"");
    for (int k = 0; k < c->n_pus; k++) {
        const struct topo_pu *pu = &p->m->pus[c->first_pu + k];
        draw_pu(p, pu->os_index, pu->allowed, x + CORE_PAD + k * (p->pu_width + 1), y + CORE_PAD);
    }
}

static void title_of(const struct picture *p, int level, int number, char text[96]) {
    uint64_t bytes = level == 2 && p->m->l3_bytes ? p->m->l3_bytes[number] : 0;
    if (level == 0)
        snprintf(text, 96, "package %d", number);
    else if (level == 1)
        snprintf(text, 96, "NUMA %d", p->m->numa_os[number]);
    else if (bytes >= 1 << 20)
        snprintf(text, 96, "L3 %d, %.4g MiB", number, (double)bytes / (1 << 20));
    else if (bytes)
        snprintf(text, 96, "L3 %d, %.4g KiB", number, (double)bytes / 1024);
    else
        snprintf(text, 96, "L3 %d", number);
}

/* Cores [begin, end) of one innermost box in rows; another kind begins a new row. */
static struct size lay_cores(struct picture *p, int begin, int end, double width, double x, double y, bool draw) {
    struct size all = {0, 0};
    double at = 0, row = 0;
    int in_row = 0, per_row = CORES_PER_ROW;
    for (int i = begin; i < end; i++) {
        const struct topo_core *c = &p->m->cores[p->spots[i].core];
        struct size s = core_size(p, c);
        bool other = i > begin && c->kind != p->m->cores[p->spots[i - 1].core].kind;
        if (i == begin || other) { /* rows of equal length */
            int n = 1;
            while (i + n < end && p->m->cores[p->spots[i + n].core].kind == c->kind) n++;
            int most = (int)((width + GAP) / (s.w + GAP));
            if (most > CORES_PER_ROW) most = CORES_PER_ROW;
            if (most < 1) most = 1;
            int n_rows = (n + most - 1) / most;
            per_row = (n + n_rows - 1) / n_rows;
        }
        if (in_row && (other || in_row >= per_row || at + s.w > width)) {
            row = all.h + GAP;
            at = 0;
            in_row = 0;
        }
        if (draw) draw_core(p, c, x + at, y + row);
        at += s.w;
        if (at > all.w) all.w = at;
        if (row + s.h > all.h) all.h = row + s.h;
        at += GAP;
        in_row++;
    }
    return all;
}

static struct size lay(struct picture *p, int begin, int end, int depth, double width, double x, double y, bool draw);

/* The box (or, where the level is not known, no box) around one domain. */
static struct size lay_domain(struct picture *p, int begin, int end, int depth, double width, double x, double y, bool draw) {
    static const char *const styles[N_LEVELS] = {"fill=\"#f1efe7\" stroke=\"#6b6651\"", "fill=\"#e6efe6\" stroke=\"#5b7a5b\"", "fill=\"#f6e9ee\" stroke=\"#8a5a6c\""};
    int number = p->spots[begin].key[depth];
    if (number < 0) return lay(p, begin, end, depth + 1, width, x, y, draw);
    char title[96];
    title_of(p, p->level[depth], number, title);
    struct size inner = lay(p, begin, end, depth + 1, width - 2 * PAD, 0, 0, false);
    struct size outer = {fmax(inner.w, text_width(title, SMALL)) + 2 * PAD, inner.h + TITLE + PAD};
    if (!draw) return outer;
    put_box(p, x, y, outer.w, outer.h, 4, styles[p->level[depth]]);
    put_text(p, x + PAD, y + 13, outer.w - 2 * PAD, SMALL, "start", "#333", title);
    lay(p, begin, end, depth + 1, width - 2 * PAD, x + PAD, y + TITLE, true);
    return outer;
}

/* What is inside of the levels above depth, in rows no wider than width where a single child allows that. */
static struct size lay(struct picture *p, int begin, int end, int depth, double width, double x, double y, bool draw) {
    if (depth == N_LEVELS) return lay_cores(p, begin, end, width, x, y, draw);
    int n = 0;
    for (int i = begin; i < end; i++) n += i == begin || p->spots[i].key[depth] != p->spots[i - 1].key[depth];
    int *from = malloc(((size_t)n + 1) * sizeof *from);
    struct size *sizes = malloc((size_t)n * sizeof *sizes), all = {0, 0};
    if (!from || !sizes) {
        p->failed = true;
        goto out;
    }
    n = 0;
    for (int i = begin; i < end; i++)
        if (i == begin || p->spots[i].key[depth] != p->spots[i - 1].key[depth]) from[n++] = i;
    from[n] = end;
    double widest = 1;
    for (int c = 0; c < n; c++) {
        sizes[c] = lay_domain(p, from[c], from[c + 1], depth, width, 0, 0, false);
        widest = fmax(widest, sizes[c].w);
    }
    int most = (int)((width + GAP) / (widest + GAP));
    if (most < 1) most = 1;
    int n_rows = (n + most - 1) / most, per_row = (n + n_rows - 1) / n_rows;
    double row = 0;
    for (int c = 0; c < n; c++) {
        if (c % per_row == 0) row = c ? all.h + GAP : 0;
        double at = c % per_row * (widest + GAP); /* columns */
        if (draw) lay_domain(p, from[c], from[c + 1], depth, width, x + at, y + row, true);
        all.w = fmax(all.w, at + sizes[c].w);
        all.h = fmax(all.h, row + sizes[c].h);
    }
out:
    free(sizes);
    free(from);
    return all;
}

/* CPUs without a place: offline, or hidden by a cgroup. */
static struct size lay_absent(struct picture *p, double width, double x, double y, bool draw) {
    static const char title[] = "offline or hidden";
    if (!p->m->n_absent) return (struct size){0, 0};
    int per_row = (int)((width - 2 * PAD) / (p->pu_width + 2));
    if (per_row < 1) per_row = 1;
    int n_columns = p->m->n_absent < per_row ? p->m->n_absent : per_row, n_rows = (p->m->n_absent + per_row - 1) / per_row;
    struct size s = {fmax(n_columns * (p->pu_width + 2), text_width(title, SMALL)) + 2 * PAD, TITLE + n_rows * (PU_HEIGHT + 2) + PAD};
    if (!draw) return s;
    put_box(p, x, y, s.w, s.h, 4, "fill=\"#fafafa\" stroke=\"#bbb\" stroke-dasharray=\"4 3\"");
    put_text(p, x + PAD, y + 13, s.w - 2 * PAD, SMALL, "start", "#777", title);
    for (int i = 0; i < p->m->n_absent; i++)
        draw_pu(p, p->m->absent[i], false, x + PAD + i % per_row * (p->pu_width + 2), y + TITLE + (double)(i / per_row) * (PU_HEIGHT + 2));
    return s;
}

/* --- Title and legend --------------------------------------------------------------------------------------------------------- */

/* Swatch and text; returns where the next one begins. */
static double put_key(struct picture *p, double x, double y, const char *style, const char *text) {
    put_box(p, x, y, 22, 14, 2, style);
    put_text(p, x + 28, y + 11, text_width(text, SMALL) + 1, SMALL, "start", "#222", text);
    return x + 28 + text_width(text, SMALL) + 16;
}

static char *describe_rank(const struct topo_placement *p, int r) {
    char *text = NULL;
    size_t bytes;
    const struct topo_seat *s = &p->seats[r];
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return NULL;
    fprintf(f, "rank %d: %d thread%s", r, s->n_threads, s->n_threads == 1 ? "" : "s");
    if (s->n_numa) fputs(", NUMA ", f);
    topo_print_list(f, s->numa, s->n_numa);
    if (s->progress_pu >= 0) fprintf(f, ", progress on CPU %d", s->progress_pu);
    fprintf(f, ", CPU%s ", s->n_threads == 1 ? "" : "s");
    topo_print_list(f, s->pus, s->n_threads);
    if (!p->bound) fputs(" (not bound)", f);
    if (fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

static int legend_lines(const struct topo_placement *p) { return !p ? 0 : p->n_ranks <= MAX_LEGEND ? p->n_ranks : MAX_LEGEND + 1; }

/* Returns where the boxes begin. */
static double draw_head(struct picture *p, double width, double y) {
    char *facts = NULL;
    size_t bytes;
    FILE *f = open_memstream(&facts, &bytes);
    if (f) topo_print_facts(f, p->m);
    if (!f || fclose(f)) p->failed = true;
    put_text(p, MARGIN, y + 16, width, BIG, "start", "#111", p->m->name);
    put_text(p, MARGIN, y + 36, width, SMALL, "start", "#444", facts ? facts : "");
    free(facts);
    y += 48;
    for (int i = 0; i < legend_lines(p->p); i++) {
        char colour[32], style[96], more[64];
        if (i == MAX_LEGEND) {
            snprintf(more, sizeof more, "and %d more ranks", p->p->n_ranks - MAX_LEGEND);
            put_text(p, MARGIN, y + 11, width, SMALL, "start", "#444", more);
        } else {
            char *text = describe_rank(p->p, i);
            if (!text) p->failed = true;
            snprintf(style, sizeof style, "fill=\"%s\" stroke=\"#555\"", rank_colour(i, colour));
            put_box(p, MARGIN, y, 22, 14, 2, style);
            put_text(p, MARGIN + 28, y + 11, width - 28, SMALL, "start", "#222", text ? text : "");
            free(text);
        }
        y += LEGEND_LINE;
    }
    double x = MARGIN;
    if (p->m->n_kinds > 1) {
        x = put_key(p, x, y, "fill=\"#f7f7f7\" stroke=\"#333\"", "fast core");
        x = put_key(p, x, y, "fill=\"#dde3ea\" stroke=\"#555\" stroke-dasharray=\"3 2\"", "slower core");
    }
    x = put_key(p, x, y, "fill=\"#fff\" stroke=\"#999\"", "free");
    bool any_progress = false;
    for (int r = 0; p->p && r < p->p->n_ranks; r++) any_progress |= p->p->seats[r].progress_pu >= 0;
    if (any_progress) x = put_key(p, x, y, "fill=\"#fff\" stroke=\"#8ecae6\" stroke-width=\"3\"", "pN: progress thread of rank N");
    if (p->m->n_allowed < p->m->n_pus || p->m->n_absent) put_key(p, x, y, "fill=\"url(#no)\" stroke=\"#bbb\"", "not allowed, or offline");
    y += LEGEND_LINE;
    if (p->p && p->p->note[0]) {
        put_text(p, MARGIN, y + 11, width, SMALL, "start", "#a00", p->p->note);
        y += LEGEND_LINE;
    }
    return y + 4;
}

static int compare_spots(const void *pa, const void *pb) {
    const struct spot *a = pa, *b = pb;
    for (int i = 0; i < N_LEVELS; i++)
        if (a->key[i] != b->key[i]) return a->key[i] < b->key[i] ? -1 : 1;
    return a->core < b->core ? -1 : a->core > b->core;
}

/* Sorts the cores into p->spots and finds how wide a hardware thread has to be. */
static bool prepare(struct picture *p) {
    const struct topo_machine *m = p->m;
    const int count[N_LEVELS] = {m->n_packages, m->n_numa, m->n_l3};
    for (int i = 0; i < N_LEVELS; i++) p->level[i] = i;
    for (int i = 1; i < N_LEVELS; i++)
        for (int k = i; k > 0 && count[p->level[k]] < count[p->level[k - 1]]; k--) {
            int swap = p->level[k];
            p->level[k] = p->level[k - 1];
            p->level[k - 1] = swap;
        }
    p->spots = calloc((size_t)m->n_cores, sizeof *p->spots);
    if (!p->spots) return false;
    size_t n_letters = 2;
    char text[32];
    for (int i = 0; i < m->n_cores; i++) {
        const struct topo_core *c = &m->cores[i];
        const int number[N_LEVELS] = {c->package, c->numa, c->l3};
        p->spots[i].core = i;
        for (int k = 0; k < N_LEVELS; k++) p->spots[i].key[k] = number[p->level[k]];
    }
    for (int i = 0; i < m->n_pus + m->n_absent; i++) {
        size_t n = (size_t)snprintf(text, sizeof text, "%d", i < m->n_pus ? m->pus[i].os_index : m->absent[i - m->n_pus]);
        if (n > n_letters) n_letters = n;
    }
    for (int i = 0; i < p->n_uses; i++) {
        use_label(&p->uses[i], text);
        if (strlen(text) > n_letters) n_letters = strlen(text);
    }
    p->pu_width = ceil((double)n_letters * SMALL * EM) + 8;
    qsort(p->spots, (size_t)m->n_cores, sizeof *p->spots, compare_spots);
    return true;
}

char *topo_draw_svg(const struct topo_machine *m, const struct topo_placement *placement) {
    char *text = NULL;
    size_t bytes = 0;
    struct picture p = {.m = m, .p = placement};
    p.f = open_memstream(&text, &bytes);
    if (!p.f) return NULL;
    p.uses = topo_list_uses(placement, &p.n_uses);
    if (prepare(&p)) {
        struct size boxes = lay(&p, 0, m->n_cores, 0, CONTENT_WIDTH, 0, 0, false);
        double width = fmax(boxes.w, LEAST_WIDTH);
        struct size absent = lay_absent(&p, width, 0, 0, false);
        bool has_note = placement && placement->note[0];
        double head = MARGIN + 48 + (legend_lines(placement) + 1 + has_note) * LEGEND_LINE + 4;
        double height = head + boxes.h + (absent.h > 0 ? GAP + absent.h : 0) + MARGIN;
        fprintf(p.f,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" viewBox=\"0 0 %.0f %.0f\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n"
                "<defs><pattern id=\"no\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\">"
                "<rect width=\"6\" height=\"6\" fill=\"#f2f2f2\"/><line x1=\"0\" y1=\"0\" x2=\"0\" y2=\"6\" stroke=\"#ccc\" stroke-width=\"2\"/></pattern></defs>\n",
                width + 2 * MARGIN, height, width + 2 * MARGIN, height);
        put_box(&p, 0, 0, width + 2 * MARGIN, height, 0, "fill=\"#fff\"");
        double y = draw_head(&p, width, MARGIN);
        lay(&p, 0, m->n_cores, 0, CONTENT_WIDTH, MARGIN, y, true);
        lay_absent(&p, width, MARGIN, y + boxes.h + GAP, true);
        fputs("</svg>\n", p.f);
    } else {
        p.failed = true;
    }
    bool failed = ferror(p.f) != 0;
    if (fclose(p.f) || failed || p.failed) {
        free(text);
        text = NULL;
    }
    free(p.spots);
    free(p.uses);
    return text;
}
