/* kernels/cuda in the harness as a backend of the table: `--device simt`. For finding faults in whole programs, not for speed.
 *
 * The first thread of a rank's pool does all the work, the others pass by: a launch is run by one thread. Values stay the host's; for the time of an op its arguments are copied to the
 * emulated device, into buffers that are exactly as large as the op may touch, and results back: so what a kernel reads beyond its rows, or leaves unwritten, is found. Packed weights
 * are copied once. A cache lies on the device alone: a block that nobody has written to is uninitialised memory there.
 * The host does what a GPU's backend would leave to it: the table of rotations (in double), and whatever makes a token of logits. */
#include <algorithm>

#include "base/tick.h"
#include "kernels/cuda/cuda.h"
#include "kernels/plugin.h"
#include "kernels/ref/ref.h"
#include "kernels/simt/engine.h"

using simt::finding;

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------------- */

static void must(int e, const char *op) {
    if (e != cudaSuccess)
        finding("%s: %s", op, cudaGetErrorString(e));
}

template <class T> static T *device_array(size_t n, const char *name) {
    void *p;
    must(cudaMalloc(&p, n * sizeof(T)), name);
    simt_name(p, name);
    return (T *)p;
}

enum direction { IN = 1, OUT = 2, IN_OUT = 3 };

/* Rows of width numbers, stride apart, of the host's for the time of an op (of vectors, so many such, vector_stride apart); what is between them is nobody's. NULL stays NULL. */
template <class T> class staged {
  public:
    T *d = nullptr;
    staged(const T *host_, size_t n_rows_, size_t width_, size_t stride_, direction way_, const char *name, size_t n_vectors_ = 1, size_t vector_stride_ = 0)
        : host((T *)(uintptr_t)host_), n_rows(n_rows_), width(width_), stride(stride_), n_vectors(n_vectors_), vector_stride(vector_stride_), way(way_) {
        if (!host || n_rows == 0 || width == 0)
            n_vectors = 0;
        if (n_vectors == 0)
            return;
        d = device_array<T>((n_vectors - 1) * vector_stride + (n_rows - 1) * stride + width, name);
        if (way & IN)
            each_row([&](size_t at) { must(cudaMemcpyAsync(d + at, host + at, width * sizeof(T), cudaMemcpyHostToDevice, nullptr), name); });
    }
    staged(const staged &) = delete;
    ~staged() {
        if (way & OUT)
            each_row([&](size_t at) { must(cudaMemcpyAsync(host + at, d + at, width * sizeof(T), cudaMemcpyDeviceToHost, nullptr), "copy"); });
        cudaDeviceSynchronize();
        if (d)
            cudaFree(d);
        base_tick();
    }

  private:
    T *host;
    size_t n_rows, width, stride, n_vectors, vector_stride;
    direction way;
    template <class Do> void each_row(Do what) {
        for (size_t v = 0; v < n_vectors; v++)
            for (size_t i = 0; i < n_rows; i++)
                what(v * vector_stride + i * stride);
    }
};

/* What stays on the device: packed matrices and caches, by where the host has them. */
static void *resident(const void *host, size_t bytes, bool with_values, const char *name) {
    static std::map<const void *, void *> held;
    void *&d = held[host];
    if (!d) {
        d = device_array<unsigned char>(bytes, name);
        if (with_values)
            must(cudaMemcpy(d, host, bytes, cudaMemcpyHostToDevice), name);
    }
    return d;
}

/* ---- matrices ----------------------------------------------------------------------------------------------------------------------------------------- */

static bool by_mma(const kern_matrix *m) { return m->activation == KERN_ACT_BF16; }
static size_t matrix_bytes(const kern_matrix *m) { return by_mma(m) ? cuda_mma_matrix_bytes(m) : cuda_matrix_bytes(m); }
static void matrix_pack(const kern_pack *args) {
    by_mma(args->matrix) ? cuda_mma_matrix_pack(args) : cuda_matrix_pack(args);
    base_tick();
}
static kern_matrix on_device(const kern_matrix *m) {
    kern_matrix copy = *m;
    copy.data = m->n_rows && m->columns.n_leaves ? resident(m->data, matrix_bytes(m), true, "weights") : nullptr;
    return copy;
}

static enum kern_activation activation(enum format format, bool accurate) {
    (void)format;
    return accurate ? KERN_ACT_F32 : KERN_ACT_BF16;
}

static size_t matmul_scratch_bytes(const kern_columns *, int) { return 0; } /* on the device, see matmul */
static void matmul_prepare(kern_queue, const kern_matmul *) {}

static void matmul(kern_queue q, const kern_matmul *args) {
    if (q.i_thread != 0)
        return;
    for (int p = 0; p < args->n_parts; p++) {
        const auto &part = args->parts[p];
        const kern_columns &c = part.matrix->columns;
        size_t n_tokens = (size_t)args->n_tokens, n_rows = (size_t)part.matrix->n_rows;
        if (n_tokens == 0 || n_rows == 0 || c.n_vectors == 0)
            continue;
        kern_matrix m = on_device(part.matrix);
        staged<float> x(args->x, n_tokens, (size_t)(c.end - c.begin), args->x_stride, IN, "x"), bias(part.bias, 1, n_rows, n_rows, IN, "bias");
        staged<float> y(part.y, n_tokens, n_rows, part.y_stride, OUT, "y", c.n_vectors, part.vector_stride);
        kern_matmul one = *args;
        one.n_parts = 1;
        one.x = x.d;
        one.parts[0] = part;
        one.parts[0].matrix = &m;
        one.parts[0].bias = bias.d;
        one.parts[0].y = y.d;
        if (by_mma(&m)) {
            one.scratch = device_array<unsigned char>(cuda_mma_scratch_bytes(&c, args->n_tokens), "prepared x");
            must(cuda_mma_prepare(&one, nullptr), "matmul");
            must(cuda_mma_matmul(&one, nullptr), "matmul");
            cudaDeviceSynchronize();
            cudaFree(one.scratch);
        } else {
            must(cuda_matmul(&one, nullptr), "matmul");
        }
    }
}

static void embed(kern_queue q, const kern_embed *args) {
    size_t width = (size_t)(args->table->columns.end - args->table->columns.begin);
    if (q.i_thread != 0 || args->n_tokens == 0)
        return;
    kern_matrix m = on_device(args->table);
    staged<int32_t> ids(args->ids, 1, (size_t)args->n_tokens, (size_t)args->n_tokens, IN, "ids");
    staged<float> y(args->y, (size_t)args->n_tokens, width, args->y_stride, OUT, "y");
    kern_embed one = *args;
    one.table = &m;
    one.ids = ids.d;
    one.y = y.d;
    must(by_mma(&m) ? cuda_mma_embed(&one, nullptr) : cuda_embed(&one, nullptr), "embed");
}

/* ---- attention ------------------------------------------------------------------------------------------------------------------------------------------ */

/* The batch's arrays on the device. */
struct staged_batch {
    staged<int32_t> position, run_begin, run_tokens, run_table, block_table;
    kern_batch d;
    int max_run_tokens = 0, n_partitions = 0;
    explicit staged_batch(const kern_batch &b)
        : position(b.position, 1, (size_t)b.n_tokens, 0, IN, "positions"), run_begin(b.run_begin, 1, (size_t)b.n_runs, 0, IN, "runs"),
          run_tokens(b.run_tokens, 1, (size_t)b.n_runs, 0, IN, "runs' tokens"), run_table(b.run_table, 1, (size_t)b.n_runs, 0, IN, "runs' tables"),
          block_table(b.block_table, n_tables(b), b.block_table_stride, b.block_table_stride, IN, "block table"), d(b) {
        d.position = position.d;
        d.run_begin = run_begin.d;
        d.run_tokens = run_tokens.d;
        d.run_table = run_table.d;
        d.block_table = block_table.d;
        for (int i = 0; i < b.n_runs; i++)
            max_run_tokens = std::max(max_run_tokens, b.run_tokens[i]);
        for (int i = 0; i < b.n_tokens; i++)
            n_partitions = std::max(n_partitions, b.position[i] / KERN_KV_PARTITION + 1);
    }
    static size_t n_tables(const kern_batch &b) { return b.n_runs ? (size_t)*std::max_element(b.run_table, b.run_table + b.n_runs) + 1 : 0; }
};

static kern_kv on_device(const kern_kv *kv) {
    kern_kv copy = *kv;
    copy.base = resident(kv->base, kv->n_blocks * kv->block_bytes, false, "cache");
    return copy;
}

static void kv_append(kern_queue q, const kern_kv_append *args) {
    size_t n = (size_t)args->batch->n_tokens, width = (size_t)(args->kv->n_kv_heads * args->kv->head_dim);
    if (q.i_thread != 0 || n == 0 || width == 0)
        return;
    staged_batch batch(*args->batch);
    kern_kv kv = on_device(args->kv);
    staged<float> k(args->k, n, width, args->k_stride, IN, "k"), v(args->v, n, width, args->v_stride, IN, "v");
    kern_kv_append one = {&batch.d, &kv, k.d, v.d, args->k_stride, args->v_stride};
    must(cuda_kv_append(&one, nullptr), "kv-append");
}

static void attention(kern_queue q, const kern_attention *args) {
    size_t n = (size_t)args->batch->n_tokens, width = (size_t)(args->n_heads * args->kv->head_dim);
    if (q.i_thread != 0 || n == 0 || width == 0)
        return;
    staged_batch batch(*args->batch);
    kern_kv kv = on_device(args->kv);
    staged<float> x(args->q, n, width, args->q_stride, IN, "q"), out(args->out, n, width, args->out_stride, OUT, "attended");
    staged<float> sinks(args->sinks, 1, (size_t)args->n_heads, 0, IN, "sinks");
    kern_attention one = *args;
    one.batch = &batch.d;
    one.kv = &kv;
    one.q = x.d;
    one.out = out.d;
    one.sinks = sinks.d;
    one.scratch = device_array<unsigned char>(
        cuda_attention_scratch_bytes(args->n_heads, args->kv->head_dim, args->batch->n_tokens, batch.max_run_tokens, batch.n_partitions) + 1, "partitions");
    must(cuda_attention(&one, batch.max_run_tokens, batch.n_partitions, nullptr), "attention");
    cudaDeviceSynchronize();
    cudaFree(one.scratch);
}

static size_t attention_scratch_bytes(int, int, int, int) { return 0; } /* on the device */

/* ---- small ops ------------------------------------------------------------------------------------------------------------------------------------------ */

static void norm(kern_queue q, const kern_norm *args) {
    size_t n = (size_t)args->n_tokens, width = (size_t)args->width;
    if (q.i_thread != 0 || n == 0 || width == 0)
        return;
    staged<float> x(args->x, n, width, args->x_stride, IN, "x"), weight(args->weight, 1, width, 0, IN, "norm's weights"), y(args->y, n, width, args->y_stride, OUT, "y");
    staged<float> squares(args->squares, 1, n, 0, IN, "squares");
    kern_norm one = *args;
    one.x = x.d;
    one.weight = weight.d;
    one.y = y.d;
    one.squares = squares.d;
    must(cuda_norm(&one, nullptr), "norm");
}

static void rope(kern_queue q, const kern_rope *args) {
    size_t n = (size_t)args->n_tokens, table = 2 * (size_t)args->n_frequencies;
    if (q.i_thread != 0 || n == 0 || args->n_heads == 0)
        return;
    staged<float> x(args->x, n, (size_t)(args->n_heads * args->head_dim), args->x_stride, IN_OUT, "x"), cos_sin(args->cos_sin, n, table, table, IN, "rotations");
    kern_rope one = *args;
    one.x = x.d;
    one.cos_sin = cos_sin.d;
    must(cuda_rope(&one, nullptr), "rope");
}

static void gate(kern_queue q, const kern_gate *args) {
    size_t n = (size_t)args->n_tokens, width = (size_t)args->width;
    if (q.i_thread != 0 || n == 0 || width == 0)
        return;
    staged<float> g(args->gate, n, width, args->gate_stride, IN, "gate"), up(args->up, n, width, args->up_stride, IN, "up"), y(args->y, n, width, args->y_stride, OUT, "y");
    kern_gate one = *args;
    one.gate = g.d;
    one.up = up.d;
    one.y = y.d;
    must(cuda_gate(&one, nullptr), "gate");
}

static void sum(kern_queue q, const kern_sum *args) {
    size_t n = (size_t)args->n_tokens, width = (size_t)args->width;
    if (q.i_thread != 0 || n == 0 || width == 0)
        return;
    staged<float> residual(args->residual, n, width, args->residual_stride, IN, "residual"), bias(args->bias, args->bias_stride ? n : 1, width, args->bias_stride, IN, "bias");
    staged<float> y(args->y, n, width, args->y_stride, OUT, "y");
    std::vector<std::unique_ptr<staged<float>>> vectors;
    kern_sum one = *args;
    for (int i = 0; i < args->n_vectors; i++) {
        vectors.push_back(std::make_unique<staged<float>>(args->vectors[i], n, width, args->vector_token_stride, IN, "vector"));
        one.vectors[i] = vectors.back()->d;
    }
    one.residual = residual.d;
    one.bias = bias.d;
    one.y = y.d;
    must(cuda_sum(&one, nullptr), "sum");
}

static void topk(kern_queue q, const kern_topk *args) {
    size_t n = (size_t)args->n_rows, k = (size_t)args->k;
    if (q.i_thread != 0 || n == 0 || k == 0) return;
    staged<float> logits(args->logits, n, (size_t)args->width, args->stride, IN, "logits");
    staged<kern_candidate> out(args->out, n, k, k, OUT, "candidates");
    kern_topk one = *args;
    one.logits = logits.d;
    one.out = out.d;
    must(cuda_topk(&one, nullptr), "top-k");
}

/* ---- the table ------------------------------------------------------------------------------------------------------------------------------------------ */

static bool probe(void) { return true; }

static bool supports(enum kern_op op, enum format format, enum kern_activation a, int head_dim) {
    switch (op) {
    case KERN_OP_MATMUL:
        return a == KERN_ACT_BF16 ? cuda_mma_supports(format) : a == KERN_ACT_F32 && format == FMT_BF16;
    case KERN_OP_EMBED:
        return cuda_mma_supports(format);
    case KERN_OP_ATTENTION:
        return cuda_attention_supports(format, head_dim);
    case KERN_OP_KV_APPEND:
        return cuda_attention_supports(format, 1);
    case KERN_OP_NORM:
    case KERN_OP_SQUARES:
    case KERN_OP_ROPE_TABLE:
    case KERN_OP_ROPE:
    case KERN_OP_GATE:
    case KERN_OP_SUM:
    case KERN_OP_TOPK:
    case KERN_OP_SAMPLE:
    case KERN_OP_LSE:
        return true;
    default:
        return false;
    }
}

static kern_backend table() {
    kern_backend b = {};
    b.name = "simt";
    b.variant = "emulated";
    b.probe = probe;
    b.supports = supports;
    b.activation = activation;
    b.matrix_bytes = matrix_bytes;
    b.matrix_pack = matrix_pack;
    b.matmul_scratch_bytes = matmul_scratch_bytes;
    b.attention_scratch_bytes = attention_scratch_bytes;
    b.matmul_prepare = matmul_prepare;
    b.matmul = matmul;
    b.embed = embed;
    b.kv_append = kv_append;
    b.attention = attention;
    b.norm = norm;
    b.rope = rope;
    b.gate = gate;
    b.sum = sum;
    b.squares = kern_ref.squares;
    b.rope_table = kern_ref.rope_table;
    b.topk = topk;
    b.sample = kern_ref.sample;
    b.lse = kern_ref.lse;
    return b;
}

extern "C" {
extern const struct kern_backend KERN_PLUGIN_SYMBOL;
const struct kern_backend KERN_PLUGIN_SYMBOL = table();
}
