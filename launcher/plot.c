#include "launcher/plot.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 860, HEIGHT = 400, LEFT = 76, RIGHT = 190, TOP = 44, BOTTOM = 52, HEAD = 40 };

static const char *const colours[PLOT_MAX_LINES] = {"#0b6e99", "#d9480f", "#2b8a3e", "#862e9c", "#c2255c", "#5c940d", "#495057", "#e67700"};

static void escape(FILE *out, const char *text)
{
    for (; *text; text++)
        if (*text == '<')
            fputs("&lt;", out);
        else if (*text == '>')
            fputs("&gt;", out);
        else if (*text == '&')
            fputs("&amp;", out);
        else if (*text == '"')
            fputs("&quot;", out);
        else
            fputc(*text, out);
}

struct axis {
    double low, high; /* in the axis' own measure: logarithms, or values */
    bool is_log;
    double begin, end; /* in pixels */
};

static double measure(const struct axis *a, double value) { return a->is_log ? log2(value) : value; }
static double place(const struct axis *a, double value) { return a->begin + (measure(a, value) - a->low) / (a->high - a->low) * (a->end - a->begin); }

static void span(struct axis *a, const struct plot *p, bool is_x)
{
    double low = HUGE_VAL, high = -HUGE_VAL;
    for (int i = 0; i < p->n_lines; i++)
        for (int k = 0; k < p->lines[i]->n; k++) {
            const double v = is_x ? p->lines[i]->x[k] : p->lines[i]->y[k];
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
    if (low > high)
        low = 1, high = 2;
    if (a->is_log) {
        a->low = is_x ? log2(low) : floor(log10(low)) * log2(10);
        a->high = is_x ? log2(high) : ceil(log10(high)) * log2(10);
    } else {
        a->low = is_x ? low : 0;
        a->high = is_x ? high : high * 1.08;
    }
    if (a->high <= a->low)
        a->high = a->low + 1;
}

static void label(char text[32], double v, bool bytes)
{
    if (bytes && v >= 1048576)
        snprintf(text, 32, "%g M", v / 1048576);
    else if (bytes && v >= 1024)
        snprintf(text, 32, "%g K", v / 1024);
    else
        snprintf(text, 32, "%.4g", v);
}

static void tick(FILE *out, const struct axis *x, const struct axis *y, bool is_x, double v, bool bytes)
{
    char text[32];
    label(text, v, bytes);
    if (is_x)
        fprintf(out, "<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", place(x, v), y->begin, place(x, v), y->end,
                place(x, v), y->begin + 18, text);
    else
        fprintf(out, "<line class=\"g\" x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\"/><text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", x->begin, place(y, v), x->end, place(y, v),
                x->begin - 8, place(y, v) + 4, text);
}

/* 1, 2 or 5 times a power of ten: about six of them. */
static double nice_step(double range)
{
    const double raw = range / 6, power = pow(10, floor(log10(raw)));
    return raw / power > 5 ? 10 * power : raw / power > 2 ? 5 * power : raw / power > 1 ? 2 * power : power;
}

static void ticks(FILE *out, const struct plot *p, const struct axis *x, const struct axis *y, bool is_x)
{
    const struct axis *a = is_x ? x : y;
    if (a->is_log && is_x) {
        const int n = (int)(a->high - a->low + 0.5), every = n / 11 + 1;
        for (int i = 0; i <= n; i += every)
            tick(out, x, y, true, exp2(a->low + i), p->x_is_bytes);
    } else if (a->is_log) {
        for (double v = exp2(a->low); v <= exp2(a->high) * 1.001; v *= 10)
            tick(out, x, y, false, v, false);
    } else {
        double step = nice_step(a->high - a->low);
        if (is_x && step < 1)
            step = 1;
        for (double v = ceil(a->low / step) * step; v <= a->high * (1 + 1e-9); v += step)
            tick(out, x, y, is_x, v, is_x && p->x_is_bytes);
    }
}

static void draw(FILE *out, const struct plot *p, double top)
{
    struct axis x = {.is_log = p->log_x, .begin = LEFT, .end = WIDTH - RIGHT}, y = {.is_log = p->log_y, .begin = top + HEIGHT - BOTTOM, .end = top + TOP};
    span(&x, p, true);
    span(&y, p, false);
    fprintf(out, "<text class=\"h\" x=\"%d\" y=\"%.1f\">", LEFT, top + 24);
    escape(out, p->title);
    fputs("</text>\n", out);
    ticks(out, p, &x, &y, true);
    ticks(out, p, &x, &y, false);
    fprintf(out, "<rect class=\"f\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"/>\n", x.begin, y.end, x.end - x.begin, y.begin - y.end);
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">", (x.begin + x.end) / 2, y.begin + 38);
    escape(out, p->x_label);
    fprintf(out, "</text>\n<text transform=\"translate(18 %.1f) rotate(-90)\" text-anchor=\"middle\">", (y.begin + y.end) / 2);
    escape(out, p->y_label);
    fputs("</text>\n", out);
    for (int i = 0; i < p->n_lines; i++) {
        const struct plot_line *l = p->lines[i];
        fprintf(out, "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"2\"%s points=\"", colours[i], l->dashed ? " stroke-dasharray=\"6 4\"" : "");
        for (int k = 0; k < l->n; k++)
            fprintf(out, "%.1f,%.1f ", place(&x, l->x[k]), place(&y, l->y[k]));
        fputs("\"/>\n", out);
        for (int k = 0; k < l->n && !l->dashed; k++) {
            fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"><title>", place(&x, l->x[k]), place(&y, l->y[k]), colours[i]);
            escape(out, l->name);
            fprintf(out, ": %.6g at %.6g</title></circle>\n", l->y[k], l->x[k]);
        }
        fprintf(out, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" stroke-width=\"3\"%s/><text x=\"%.1f\" y=\"%.1f\">", x.end + 12, y.end + 10 + 20 * i, x.end + 32,
                y.end + 10 + 20 * i, colours[i], l->dashed ? " stroke-dasharray=\"6 4\"" : "", x.end + 38, y.end + 14 + 20 * i);
        escape(out, l->name);
        fputs("</text>\n", out);
    }
}

void launch_plot_svg(FILE *out, const char *title, const struct plot *plots, int n_plots)
{
    const int height = HEAD + n_plots * HEIGHT;
    fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\" font-size=\"12\">\n", WIDTH, height, WIDTH, height);
    fputs("<style>.g{stroke:#dee2e6}.f{fill:none;stroke:#868e96}.h{font-size:14px;font-weight:bold}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n", out);
    fprintf(out, "<text x=\"%d\" y=\"26\" font-size=\"16\" font-weight=\"bold\">", LEFT);
    escape(out, title);
    fputs("</text>\n", out);
    for (int i = 0; i < n_plots; i++)
        draw(out, &plots[i], HEAD + i * HEIGHT);
    fputs("</svg>\n", out);
}
