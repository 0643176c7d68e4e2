/* The harness for CUDA kernels: every planted fault is found, whatever the seed; right kernels raise no alarm; what fails on demand fails as CUDA documents it. */
#include "tests/t.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/self_test.h"
#include "kernels/ref/ref.h"
#include "kernels/simt/runtime.h"
#include "kernels/simt/simt_host.h"
#include "tests/simt/cases.h"
#include "tests/t_simt.h"

/* One of the beginnings "a|b". */
static bool begins(const char *line, const char *beginnings) {
    if (strncmp(line, "tandem simt: ", 13) != 0)
        return false;
    for (line += 13;; beginnings++) {
        size_t n = strcspn(beginnings, "|");
        if (strncmp(line, beginnings, n) == 0)
            return true;
        beginnings += n;
        if (!*beginnings)
            return false;
    }
}

static void planted_faults_and_right_kernels(void **state) {
    (void)state;
    uint64_t n_seeds = t_long() ? 1000 : 100;
    for (const struct simt_case *c = simt_cases; c->name; c++) {
        double begin = seconds();
        bool is_wrong = c->finding && (simt_compares_bits() || strncmp(c->finding, "uninitialised local", 19) != 0);
        for (uint64_t seed = 1; seed <= n_seeds; seed++) {
            const char *line = simt_catch(c->run, NULL, seed);
            if (!is_wrong && line) fail_msg("%s: an alarm where nothing is wrong: %s", c->name, line);
            if (is_wrong && !line) fail_msg("%s: not found with seed %d", c->name, (int)seed);
            if (is_wrong && (!begins(line, c->finding) || !strstr(line, c->also))) fail_msg("%s: with seed %d: %s", c->name, (int)seed, line);
            if (is_wrong && seed == 1) print_message("%s\n", line);
        }
        print_message("%-44s %d seeds, %.2f ms each\n", c->name, (int)n_seeds, 1e3 * (seconds() - begin) / (double)n_seeds);
    }
}

/* How often it happens with these seeds. */
static uint32_t count_unchecked(void (*count)(void *)) {
    uint32_t n = 0;
    simt_set_check(0);
    for (uint64_t seed = 1; seed <= 50; seed++) assert_null(simt_catch(count, &n, seed));
    simt_set_check(1);
    return n;
}

/* The faults are found whatever happens; what they may do is acted out, too. */
static void acted_out(void **state) {
    (void)state;
    assert_true(count_unchecked(simt_count_torn_v4) > 0);
    assert_int_equal(count_unchecked(simt_count_torn_b128), 0);
    assert_true(count_unchecked(simt_count_overlaps) > 0);
    assert_int_equal(count_unchecked(simt_count_overlaps_not_allowed), 0);
}

static void refused_calls(void **state) {
    (void)state;
    void *p, *q;
    int value;
    assert_int_equal(simt_set_device("tiny"), 0);
    assert_int_equal(simt_set_device("h100"), -1);
    assert_int_equal(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0), cudaSuccess);
    assert_int_equal(value, 101376);
    assert_int_equal(cudaMalloc(&p, 12 << 20), cudaSuccess);
    assert_int_equal(cudaMalloc(&q, 5 << 20), cudaErrorMemoryAllocation);
    assert_null(q);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaSuccess);
    assert_int_equal(cudaFree(p), cudaErrorInvalidValue);
    struct kern_norm wide = {NULL, NULL, NULL, 0, 0, 1, 25001, 1e-5f, NULL, 0};
    assert_int_equal(cuda_norm(&wide, NULL), cudaErrorInvalidValue);
    assert_int_equal(simt_set_device("gb10"), 0);
    assert_int_equal(cudaFuncSetAttribute((const void *)&value, cudaFuncAttributeMaxDynamicSharedMemorySize, 101377), cudaErrorInvalidValue);
    (void)cudaGetLastError();
}

/* A fault on the device is for ever, whatever is asked; work behind it does not run. Too little memory is not. */
static void faults_case(void *unused) {
    (void)unused;
    const struct cuda_self_test *test = cuda_self_tests;
    uint32_t *bad, got[32];
    void *p;
    cudaStream_t s, other;
    cudaEvent_t event, another;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    cudaGraphExecUpdateResultInfo info;
    enum cudaStreamCaptureStatus status;
    size_t free_bytes, all_bytes;
    int value;
    simt_fail_allocation(2);
    assert_int_equal(cudaMalloc((void **)&bad, sizeof got), cudaSuccess);
    assert_int_equal(cudaMalloc(&p, 4), cudaErrorMemoryAllocation);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    assert_int_equal(cudaMalloc(&p, 4), cudaSuccess);
    assert_int_equal(cudaStreamCreate(&s), cudaSuccess);
    assert_int_equal(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal), cudaSuccess);
    assert_int_equal(test->launch(bad, s), cudaSuccess);
    assert_int_equal(cudaStreamEndCapture(s, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    simt_fail_launch(2);
    for (int i = 0; i < 3; i++) assert_int_equal(test->launch(bad, s), cudaSuccess); /* nothing has run yet */
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
    assert_string_equal(cudaGetErrorString(cudaErrorIllegalAddress), "an illegal memory access was encountered");
    for (int i = 0; i < 2; i++) assert_int_equal(cudaGetLastError(), cudaErrorIllegalAddress);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorIllegalAddress);
    assert_int_equal(test->launch(bad, s), cudaErrorIllegalAddress);
    assert_int_equal(cudaMemcpy(got, bad, sizeof got, cudaMemcpyDeviceToHost), cudaErrorIllegalAddress);
    assert_int_equal(cudaMalloc(&p, 4), cudaErrorIllegalAddress);
    assert_int_equal(cudaFree(bad), cudaErrorIllegalAddress);
    const int later[] = {
        cudaDeviceSynchronize(),
        cudaGetDeviceCount(&value),
        cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 0),
        cudaMemGetInfo(&free_bytes, &all_bytes),
        cudaHostAlloc(&p, 4, 0),
        cudaFreeHost(p),
        cudaMemcpyAsync(bad, got, 4, cudaMemcpyHostToDevice, s),
        cudaMemset(bad, 0, 4),
        cudaMemsetAsync(bad, 0, 4, s),
        cudaFuncSetAttribute((const void *)&value, cudaFuncAttributeMaxDynamicSharedMemorySize, 0),
        cudaStreamCreate(&other),
        cudaStreamQuery(s),
        cudaStreamSynchronize(NULL),
        cudaStreamWaitEvent(s, event, 0),
        cudaEventCreateWithFlags(&another, 0),
        cudaEventRecord(event, s),
        cudaEventQuery(event),
        cudaEventSynchronize(event),
        cudaEventDestroy(event),
        cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal),
        cudaStreamIsCapturing(s, &status),
        cudaStreamEndCapture(s, &graph),
        cudaGraphExecUpdate(exec, graph, &info),
        cudaGraphLaunch(exec, s),
        cudaGraphInstantiate(&exec, graph, 0),
        cudaGraphExecDestroy(exec),
        cudaGraphDestroy(graph),
        cudaStreamDestroy(s),
    };
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (later[i] != cudaErrorIllegalAddress) fail_msg("call %d after a fault returns %d", (int)i, later[i]);
}

static void faults_on_demand(void **state) {
    (void)state;
    assert_null(simt_catch(faults_case, NULL, 1));
    void *p;
    assert_int_equal(cudaMalloc(&p, 4), cudaSuccess); /* another context */
    assert_int_equal(cudaFree(p), cudaSuccess);
}

static void exits(void *unused) {
    simt_cases[0].run(unused);
    cudaDeviceSynchronize();
}

/* Without somebody to catch it a finding ends the program with status 4. */
static void status_4(void **state) {
    (void)state;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        exits(NULL);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(planted_faults_and_right_kernels),
        cmocka_unit_test(acted_out),
        cmocka_unit_test(refused_calls),
        cmocka_unit_test(faults_on_demand),
        cmocka_unit_test(status_4),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
