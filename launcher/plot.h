/* Line charts as self-contained SVG: what `tandem bench comm --svg` and `tandem bench scale --svg` draw. */
#ifndef LAUNCHER_PLOT_H
#define LAUNCHER_PLOT_H

#include <stdbool.h>
#include <stdio.h>

#define PLOT_MAX_POINTS 64
#define PLOT_MAX_LINES 8

struct plot_line {
    const char *name;
    double x[PLOT_MAX_POINTS], y[PLOT_MAX_POINTS];
    int n;
    bool dashed; /* a bound or an ideal, not a measurement */
};

struct plot {
    const char *title, *x_label, *y_label;
    bool log_x, log_y;  /* powers of two on x, of ten on y; all values must be above zero */
    bool x_is_bytes;    /* ticks as 4 K, 1 M */
    const struct plot_line *lines[PLOT_MAX_LINES];
    int n_lines;
};

/* Charts one below the other in one picture. */
void launch_plot_svg(FILE *out, const char *title, const struct plot *plots, int n_plots);

#endif
