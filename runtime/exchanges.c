#include "runtime/exchanges.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/tick.h"
#include "comm/comm.h"
#include "comm/mpi.h"
#include "kernels/kernels.h"
#include "runtime/wire.h"

#define WAIT_NS (60 * BASE_NS_PER_S)
#define IN_PLACE_BYTES 65536 /* larger ones go in pieces, through a copy */
#define MAX_BLOCKS 200
#define MAX_OPS 4096 /* timed one by one in a block */
#define N_WARM 3     /* come before them: who did something else meanwhile finds its caches cold, and the others not yet there */
#define N_ROUNDS 3   /* of calibration: the first operations of all take far longer than those that follow */

void rt_exchanges_print(const struct rt_exchanges *x, char text[128])
{
    snprintf(text, 128, "%" PRId64 ":%" PRId64 ":%" PRId64 ":%" PRId64 ":%d", x->min_bytes, x->max_bytes, x->block_us, x->n_blocks, x->beside_mpi);
}

enum st rt_exchanges_parse(const char *text, struct rt_exchanges *x, struct err *e)
{
    int beside, end = 0;
    if (sscanf(text, "%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%" SCNd64 ":%d%n", &x->min_bytes, &x->max_bytes, &x->block_us, &x->n_blocks, &beside, &end) != 5 || text[end] || x->min_bytes < 4 ||
        x->max_bytes < x->min_bytes || x->max_bytes > INT64_C(1) << 32 || x->block_us < 1 || x->n_blocks < 1 || x->n_blocks > MAX_BLOCKS)
        return err_set(e, ST_INVALID, "--exchanges %s: not what `tandem bench comm` says", text);
    x->beside_mpi = beside;
    return ST_OK;
}

struct bench {
    struct rt_exchanges x;
    const struct rt_rank_options *o;
    const struct kern_backend *kernels;
    size_t divided_from;     /* bytes; SIZE_MAX: never */
    struct comm *ours, *mpi; /* the same one where MPI is the backend; mpi NULL: not compared */
    float *input, *output;   /* [max_bytes] each */
    uint32_t n_vectors[COMM_MAX_RANKS];
    uint64_t n_operations;
};

/* ---- one operation ---------------------------------------------------------------------------------------------------------------------------------- */

/* Floats, a line at a time, as a kernel leaves them. */
static void produce(float *to, size_t n, float value)
{
    float line[16];
    for (int i = 0; i < 16; i++)
        line[i] = value;
    size_t i = 0;
    for (; i + 16 <= n; i += 16)
        memcpy(to + i, line, sizeof line);
    memcpy(to + i, line, (n - i) * sizeof *to);
}

static void add(void *context, size_t offset, size_t bytes, const void *const *vectors, int n_vectors)
{
    const struct bench *b = context;
    struct kern_sum args = {.n_vectors = n_vectors, .n_leaves = (uint32_t)n_vectors, .y = b->output + offset / sizeof(float), .n_tokens = 1, .width = (int)(bytes / sizeof(float))};
    for (int i = 0; i < n_vectors; i++) {
        args.vectors[i] = vectors[i];
        args.vector_lo[i] = (uint8_t)i;
        args.vector_hi[i] = (uint8_t)(i + 1);
    }
    b->kernels->sum((struct kern_queue){0, 1}, &args);
}

struct timing {
    uint64_t call_ns, whole_ns;
};

static enum st operate(struct bench *b, bool mpi, size_t bytes, struct timing *t, struct err *e)
{
    const size_t n = bytes / sizeof(float);
    const float value = (float)(b->n_operations++ % 1000 + (uint64_t)b->o->rank);
    const uint64_t start = base_now_ns(base_clock_real());
    float *in = mpi || bytes > IN_PLACE_BYTES ? b->input : comm_send_buffer(b->ours);
    produce(in, n, value);
    const uint64_t called = base_now_ns(base_clock_real());
    enum st st;
    if (mpi)
        st = comm_mpi_allreduce(b->mpi, in, b->output, n, e);
    else {
        const struct comm_exchange_add x = {.send = in, .vector_bytes = bytes, .n_vectors = b->n_vectors, .add = add, .context = b,
                                            .sum = b->o->settings.scatter_bytes ? b->output : NULL, .scatter_bytes = (size_t)b->o->settings.scatter_bytes};
        const struct comm_header header = {.step = b->n_operations};
        st = comm_exchange_and_add(b->ours, &x, &header, called + WAIT_NS, e);
    }
    const uint64_t end = base_now_ns(base_clock_real());
    base_tick();
    t->call_ns = end - called;
    t->whole_ns = end - start;
    const float sum = (value - (float)b->o->rank) * (float)b->o->n_ranks + (float)(b->o->n_ranks * (b->o->n_ranks - 1) / 2);
    if (!st && (b->output[0] != sum || b->output[n - 1] != sum))
        st = err_set(e, ST_MISMATCH, "%s: a sum of %g instead of %g after %zu bytes", mpi ? "MPI_Allreduce" : "exchange", (double)b->output[n - 1], (double)sum, bytes);
    return st;
}

/* ---- blocks ----------------------------------------------------------------------------------------------------------------------------------------- */

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

struct block {
    double call_us, whole_us, least_us;
};

/* Median and least of n operations. */
static enum st run_block(struct bench *b, bool mpi, size_t bytes, int n, struct block *out, struct err *e)
{
    static double calls[MAX_OPS], wholes[MAX_OPS];
    enum st st = comm_barrier(b->ours, base_now_ns(base_clock_real()) + WAIT_NS, e);
    for (int i = -N_WARM; i < n && !st; i++) {
        struct timing t;
        st = operate(b, mpi, bytes, &t, e);
        if (i < 0)
            continue;
        calls[i] = (double)t.call_ns / 1e3;
        wholes[i] = (double)t.whole_ns / 1e3;
    }
    if (st)
        return st;
    out->call_us = median(calls, n);
    out->least_us = calls[0];
    out->whole_us = median(wholes, n);
    return ST_OK;
}

/* As many operations as fill a block, alike on all ranks: rank 0 finds out. */
static enum st calibrate(struct bench *b, bool mpi, size_t bytes, int *n, struct err *e)
{
    enum st st = ST_OK;
    *n = 5;
    for (int i = 0; i < N_ROUNDS && !st; i++) {
        struct block warm;
        st = run_block(b, mpi, bytes, *n, &warm, e);
        if (st)
            break;
        const double fits = (double)b->x.block_us / (warm.whole_us > 0.05 ? warm.whole_us : 0.05);
        int32_t count = fits > MAX_OPS ? MAX_OPS : fits < 3 ? 3 : (int32_t)fits;
        st = comm_broadcast(b->ours, 0, &count, sizeof count, base_now_ns(base_clock_real()) + WAIT_NS, e);
        *n = count;
    }
    return st;
}

static enum st measure_size(struct bench *b, size_t bytes, json_t *sizes, struct err *e)
{
    double call[2][MAX_BLOCKS], whole[2][MAX_BLOCKS], least[2] = {1e300, 1e300}, ratio[MAX_BLOCKS];
    const int n_kinds = b->mpi ? 2 : 1, n_blocks = (int)b->x.n_blocks;
    int n_ops[2];
    enum st st = ST_OK;
    for (int kind = 0; kind < n_kinds && !st; kind++)
        st = calibrate(b, kind, bytes, &n_ops[kind], e);
    for (int i = 0; i < n_blocks && !st; i++) {
        for (int k = 0; k < n_kinds && !st; k++) {
            const int kind = (i + k) % n_kinds; /* who comes first takes turns */
            struct block block;
            st = run_block(b, kind, bytes, n_ops[kind], &block, e);
            if (st)
                break;
            call[kind][i] = block.call_us;
            whole[kind][i] = block.whole_us;
            least[kind] = block.least_us < least[kind] ? block.least_us : least[kind];
        }
        if (!st && b->mpi)
            ratio[i] = call[0][i] / call[1][i];
    }
    if (st)
        return st;
    json_t *o = json_pack("{s:I, s:f, s:f, s:f}", "bytes", (json_int_t)bytes, "us", median(call[0], n_blocks), "us_whole", median(whole[0], n_blocks), "us_least", least[0]);
    if (b->mpi) {
        json_object_set_new(o, "mpi_us", json_real(median(call[1], n_blocks)));
        json_object_set_new(o, "mpi_us_whole", json_real(median(whole[1], n_blocks)));
        json_object_set_new(o, "ratio", json_real(median(ratio, n_blocks)));
        json_object_set_new(o, "mpi_us_least", json_real(least[1]));
        json_object_set_new(o, "ratio_least", json_real(least[0] / least[1]));
    }
    json_array_append_new(sizes, o);
    return ST_OK;
}

/* ---- a rank ----------------------------------------------------------------------------------------------------------------------------------------- */

static float *vector(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static enum st open_all(struct bench *b, size_t max_bytes, struct err *e)
{
    const struct rt_rank_options *o = b->o;
    enum st st = kern_select(NULL, &b->kernels, e);
    b->input = vector((size_t)b->x.max_bytes);
    b->output = vector((size_t)b->x.max_bytes);
    if (!st && (!b->input || !b->output))
        st = err_set(e, ST_NO_MEMORY, "no memory for vectors of %" PRId64 " bytes", b->x.max_bytes);
    struct comm_setup setup = rt_wire_setup(o, max_bytes, NULL);
    if (!st)
        st = comm_open(&setup, &b->ours, e);
    if (!st)
        st = rt_wire_meet(b->ours, o, b->kernels, (struct comm_identity){.build_id = NULL}, base_now_ns(base_clock_real()) + WAIT_NS, &b->divided_from, e);
    if (st || !b->x.beside_mpi)
        return st;
    setup.link = NULL;
    setup.backend = "mpi";
    setup.max_bytes = 64;
    if (strcmp(comm_query(b->ours)->name, "mpi") == 0 && !o->link)
        b->mpi = b->ours;
    else
        st = comm_open(&setup, &b->mpi, e);
    return st;
}

static json_t *describe(const struct bench *b)
{
    json_t *o = json_pack("{s:s, s:i}", "backend", comm_query(b->ours)->name, "ranks", b->o->n_ranks);
    if (b->divided_from != SIZE_MAX)
        json_object_set_new(o, "divided_from_bytes", json_integer((json_int_t)b->divided_from));
    if (b->mpi)
        json_object_set_new(o, "mpi", json_string(comm_mpi_version()));
    if (b->o->link) {
        struct comm_link_totals t;
        comm_link_query(b->ours, &t);
        char text[128];
        comm_link_print(b->o->link, text);
        json_object_set_new(o, "link",
                            json_pack("{s:s, s:f, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "asked", text, "bits_per_s", b->o->link->bits_per_s, "delay_ns", (json_int_t)b->o->link->delay_ns,
                                      "exchanges", (json_int_t)t.n_exchanges, "bytes", (json_int_t)t.bytes, "link_ns", (json_int_t)t.link_ns, "held_ns", (json_int_t)t.held_ns, "late_ns",
                                      (json_int_t)t.late_ns, "late", (json_int_t)t.n_late));
    }
    return o;
}

enum st rt_exchanges_run(const char *what, const struct rt_rank_options *o, size_t max_bytes, struct err *e)
{
    struct bench b = {.o = o, .divided_from = SIZE_MAX};
    struct rt_vitals *vitals = o->vitals ? &o->vitals[o->rank] : NULL;
    if (vitals)
        base_tick_at = &vitals->tick;
    json_t *sizes = json_array(), *all = NULL;
    enum st st = rt_exchanges_parse(what, &b.x, e);
    for (int r = 0; r < o->n_ranks; r++)
        b.n_vectors[r] = 1;
    rt_vitals_wait(vitals, RT_WAITS_BLINDLY);
    if (!st)
        st = open_all(&b, max_bytes, e);
    rt_vitals_wait(vitals, 0);
    for (int64_t bytes = b.x.min_bytes; bytes <= b.x.max_bytes && !st; bytes *= 2)
        st = measure_size(&b, (size_t)bytes, sizes, e);
    if (!st && o->rank == 0) {
        all = describe(&b);
        json_object_set(all, "sizes", sizes);
        char *text = json_dumps(all, JSON_COMPACT);
        st = text ? rt_frame_send(o->front_fd, RT_EXCHANGES, text, strlen(text), e) : err_set(e, ST_NO_MEMORY, "no memory for the results");
        free(text);
    }
    if (!st) /* nobody leaves while others still measure */
        st = comm_barrier(b.ours, base_now_ns(base_clock_real()) + WAIT_NS, e);
    if (st && e)
        rt_vitals_fail(vitals, st, e);
    json_decref(all);
    json_decref(sizes);
    if (b.mpi != b.ours)
        comm_close(b.mpi);
    comm_close(b.ours);
    if (b.input)
        munmap(b.input, (size_t)b.x.max_bytes);
    if (b.output)
        munmap(b.output, (size_t)b.x.max_bytes);
    return st;
}
