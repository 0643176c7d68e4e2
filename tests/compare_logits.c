/* compare_logits max|rms GOT WANT LIMIT: two files of little-endian F32. Prints how far they are apart, in standard deviations of WANT, and succeeds where the largest difference
 * (max) or the root of the mean square (rms) is at most LIMIT. Other sizes, or a number that is not finite, fail. Used by tests/golden_*_test.sh. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static float *read_floats(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rbe");
    if (!f || fseek(f, 0, SEEK_END)) {
        perror(path);
        exit(2);
    }
    const long bytes = ftell(f);
    rewind(f);
    float *x = malloc(bytes > 0 ? (size_t)bytes : 1);
    if (!x || bytes <= 0 || bytes % (long)sizeof *x || fread(x, 1, (size_t)bytes, f) != (size_t)bytes) {
        fprintf(stderr, "%s: %ld bytes are no floats\n", path, bytes);
        exit(2);
    }
    fclose(f);
    *n = (size_t)bytes / sizeof *x;
    return x;
}

int main(int argc, char **argv)
{
    if (argc != 5 || (strcmp(argv[1], "max") != 0 && strcmp(argv[1], "rms") != 0)) {
        fprintf(stderr, "usage: compare_logits max|rms GOT WANT LIMIT\n");
        return 2;
    }
    size_t n, n_want;
    float *got = read_floats(argv[2], &n), *want = read_floats(argv[3], &n_want);
    const double limit = strtod(argv[4], NULL);
    if (n != n_want) {
        printf("%zu numbers instead of %zu\n", n, n_want);
        return 1;
    }
    double sum = 0, squares = 0, largest = 0, error = 0;
    for (size_t i = 0; i < n; i++)
        sum += want[i];
    for (size_t i = 0; i < n; i++) {
        const double difference = fabs((double)got[i] - want[i]), deviation = want[i] - sum / (double)n;
        if (!isfinite(difference)) {
            printf("number %zu is %g instead of %g\n", i, (double)got[i], (double)want[i]);
            return 1;
        }
        largest = difference > largest ? difference : largest;
        error += difference * difference;
        squares += deviation * deviation;
    }
    const double spread = sqrt(squares / (double)n), max = largest / spread, rms = sqrt(error / (double)n) / spread;
    printf("max %.2e, rms %.2e of a standard deviation of %.3f\n", max, rms, spread);
    free(got);
    free(want);
    return (strcmp(argv[1], "max") == 0 ? max : rms) <= limit ? 0 : 1;
}
