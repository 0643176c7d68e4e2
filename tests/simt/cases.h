/* Tiny kernels for the harness's own test: some with one planted fault each, some right. */
#ifndef TESTS_SIMT_CASES_H
#define TESTS_SIMT_CASES_H

#ifdef __cplusplus
extern "C" {
#endif

struct simt_case {
    const char *name;
    void (*run)(void *unused);
    /* How the line begins, after "tandem simt: ", or several ways with | between; NULL: none is expected. "uninitialised local": when simt_compares_bits. */
    const char *finding;
    const char *also; /* what else it says: both accesses' places, by the marks in the source; may be NULL */
};
extern const struct simt_case simt_cases[]; /* until name is NULL */

/* What a seed may bring, or not: each adds to the uint32_t n how often it was seen. For runs without checks, which would find it before it happens. */
void simt_count_torn_v4(void *n);
void simt_count_torn_b128(void *n);
void simt_count_overlaps(void *n);
void simt_count_overlaps_not_allowed(void *n);

#ifdef __cplusplus
}
#endif
#endif
