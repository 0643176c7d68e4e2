/* Tiny kernels for the harness's own test: some with one planted fault each, some right. */
#ifndef TESTS_SIMT_CASES_H
#define TESTS_SIMT_CASES_H

#ifdef __cplusplus
extern "C" {
#endif

struct simt_case {
    const char *name;
    void (*run)(void *unused);
    const char *finding; /* how the line begins, after "tandem simt: ", or several ways with | between; NULL: none is expected */
    const char *also;    /* what else it says: both accesses' places, by the marks in the source; may be NULL */
};
extern const struct simt_case simt_cases[]; /* until name is NULL */

#ifdef __cplusplus
}
#endif
#endif
