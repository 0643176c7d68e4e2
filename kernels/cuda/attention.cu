/* Attention over the paged cache, in ref's order to the bit (kernels/ref/attention.c spells it out).
 *
 * A row is a query head of a token. A block takes rows that read one head of one sequence's cache: it brings 32 keys and values at a time into shared memory, each read, and widened to
 * F32, once for all its rows. A warp holds ROWS rows: its lanes are the keys while scores are made, and the dimensions lane, lane + 32 … while values are added.
 * Decode: a block a partition of 256 positions, whose maxima, sums and accumulators meet in memory, where a second kernel merges them. Prefill: a block walks all partitions and merges
 * them itself. Both do the same operations in the same order. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/kv.h"

constexpr uint32_t WARPS = 8, KEYS = KERN_KV_BLOCK, PARTITION = KERN_KV_PARTITION, MAX_DIM = 256;

struct attention_args {
    cuda_batch batch;
    global<const float> q, sinks;
    global<float> out, scratch; /* scratch: [row][partition][dim + 2], row = token · n_heads + head */
    size_t q_stride, out_stride;
    uint32_t n_heads, q_first, kv_first, group, n_kv_heads, dim, window, n_partitions;
    float scale;
    enum format format; /* of the cache */
    void *cache;
};

static __device__ float minus_infinity() { return float_of_bits(0xff800000u); }

template <int dims> struct partial {
    float max, sum, acc[dims]; /* acc of dimensions lane, lane + 32 …; while a partition runs, sum is that of the lane's own keys */
};

template <int dims> static __device__ void merge(partial<dims> &total, const partial<dims> &p) {
    float max = p.max > total.max ? p.max : total.max, a = cuda_expf(add_rn(total.max, -max)), b = cuda_expf(add_rn(p.max, -max));
    total.max = max;
    total.sum = fma_rn(total.sum, a, mul_rn(p.sum, b));
    SIMT_UNROLL for (int i = 0; i < dims; i++)
        total.acc[i] = fma_rn(total.acc[i], a, mul_rn(p.acc[i], b));
}

/* The last partition's total, with its sink, into out. */
template <int dims> static __device__ void finish(const attention_args &a, partial<dims> total, uint32_t token, uint32_t head, uint32_t lane) {
    if (a.sinks.p) {
        partial<dims> sink = {};
        sink.max = a.sinks.load(head);
        sink.sum = 1;
        merge(total, sink);
    }
    SIMT_UNROLL for (int i = 0; i < dims; i++) {
        uint32_t d = lane + 32 * (uint32_t)i;
        if (d < a.dim)
            a.out.store(token * a.out_stride + (size_t)head * a.dim + d, div_rn(total.acc[i], total.sum));
    }
}

/* Keys [from, to) of 32 against one row whose scaled query is q[0 … dim). */
template <int dims>
static __device__ void add_keys(partial<dims> &p, shared<float> q, shared<float> keys, shared<float> values, uint32_t dim, uint32_t from, uint32_t to, uint32_t lane) {
    bool visible = lane >= from && lane < to;
    float score = 0;
    for (uint32_t d = 0; d < dim && visible; d++)
        score = fma_rn(q.load(d), keys.load(d * KEYS + lane), score);
    float max = visible && score > p.max ? score : p.max;
    for (int w = 16; w; w /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, max, w);
        max = other > max ? other : max;
    }
    float rescale = cuda_expf(add_rn(p.max, -max)), weight = visible ? cuda_expf(add_rn(score, -max)) : 0.0f;
    p.max = max;
    p.sum = fma_rn(p.sum, rescale, weight);
    SIMT_UNROLL for (int i = 0; i < dims; i++)
        p.acc[i] = mul_rn(p.acc[i], rescale);
    for (uint32_t j = from; j < to; j++) {
        float w = __shfl_sync(0xffffffffu, weight, (int)j);
        SIMT_UNROLL for (int i = 0; i < dims; i++) {
            uint32_t d = lane + 32 * (uint32_t)i;
            if (d < dim)
                p.acc[i] = fma_rn(w, values.load(j * dim + d), p.acc[i]);
        }
    }
}

/* 16 bytes of the cache, as F32, into shared memory */
static __device__ void widen(uint4 v, cuda_f32, shared<float> to, uint32_t i) { to.store_as(i, v); }
template <class half> static __device__ void widen(uint4 v, half, shared<float> to, uint32_t i) {
    const uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
    SIMT_UNROLL for (uint32_t k = 0; k < 4; k += 2)
        to.store_as(i + 2 * k, float4{half::load((uint16_t)pairs[k]), half::load((uint16_t)(pairs[k] >> 16)), half::load((uint16_t)pairs[k + 1]), half::load((uint16_t)(pairs[k + 1] >> 16))});
}

/* Keys [from, to) of a block and their values; a whole block by 16 bytes a thread. Others are never touched: nobody may have written them. */
template <class number> static __device__ void bring(const attention_args &a, size_t at_keys, size_t at_values, shared<float> keys, shared<float> values, uint32_t from, uint32_t to) {
    typedef typename number::stored stored;
    const global<const stored> cache = (const stored *)a.cache;
    constexpr uint32_t wide = 16 / sizeof(stored);
    if (from == 0 && to == KEYS) {
        for (uint32_t i = threadIdx.x * wide; i < a.dim * KEYS; i += WARPS * 32 * wide) {
            widen(cache.template load_as<uint4>(at_keys + i), number(), keys, i);
            widen(cache.template load_as<uint4>(at_values + i), number(), values, i);
        }
        return;
    }
    for (uint32_t i = threadIdx.x; i < a.dim * KEYS; i += WARPS * 32)
        if (i % KEYS >= from && i % KEYS < to)
            keys.store(i, number::load(cache.load(at_keys + i)));
    for (uint32_t i = from * a.dim + threadIdx.x; i < to * a.dim; i += WARPS * 32)
        values.store(i, number::load(cache.load(at_values + i)));
}

/* grid: tiles of rows, run · n_kv_heads + head of the cache, partitions (decode) or 1 */
/* The 1: ptxas is to think of registers before blocks; for sm_90 it spills otherwise. */
template <int dims, int ROWS, bool is_split> __global__ void __launch_bounds__(WARPS * 32, 1) attention(attention_args a) {
    SIMT_SHARED_DYNAMIC(float, dynamic); /* queries [WARPS · ROWS][dim], then keys [dim][32], then values [32][dim] */
    const shared<float> keys = dynamic.at(WARPS * ROWS * a.dim), values = keys.at(a.dim * KEYS);
    uint32_t lane = threadIdx.x % 32, run = blockIdx.y / a.n_kv_heads, kv_head = blockIdx.y % a.n_kv_heads;

    /* ---- the rows of this block: heads [head_lo, head_hi) of the run's tokens */
    uint32_t group_lo = (kv_head + a.kv_first) * a.group, group_hi = group_lo + a.group;
    uint32_t head_lo = group_lo > a.q_first ? group_lo - a.q_first : 0, head_hi = group_hi - a.q_first < a.n_heads ? group_hi - a.q_first : a.n_heads;
    if (group_hi <= a.q_first || head_lo >= head_hi)
        return;
    uint32_t n_heads = head_hi - head_lo, run_begin = (uint32_t)a.batch.run_begin.load(run), n_rows = (uint32_t)a.batch.run_tokens.load(run) * n_heads;
    uint32_t tile = blockIdx.x * WARPS * ROWS, first_row = tile + threadIdx.x / 32 * ROWS;
    if (tile >= n_rows)
        return;
    uint32_t last = tile + WARPS * ROWS < n_rows ? tile + WARPS * ROWS : n_rows;

    /* ---- their queries, and the keys that each of them sees: [seen_from, seen_to) */
    for (uint32_t i = threadIdx.x; i < (last - tile) * a.dim; i += WARPS * 32) {
        uint32_t row = tile + i / a.dim, token = run_begin + row / n_heads, head = head_lo + row % n_heads;
        dynamic.store(i, mul_rn(a.q.load(token * a.q_stride + (size_t)head * a.dim + i % a.dim), a.scale));
    }
    uint32_t seen_from[ROWS], seen_to[ROWS];
    SIMT_UNROLL for (int r = 0; r < ROWS; r++) {
        uint32_t row = first_row + (uint32_t)r;
        seen_to[r] = row < n_rows ? (uint32_t)a.batch.position.load(run_begin + row / n_heads) + 1 : 0;
        seen_from[r] = a.window && seen_to[r] > a.window ? seen_to[r] - a.window : 0;
    }
    /* positions ascend by one: the first row sees from the earliest key on, the last one up to the latest */
    uint32_t block_to = (uint32_t)a.batch.position.load(run_begin + (last - 1) / n_heads) + 1, block_from = (uint32_t)a.batch.position.load(run_begin + tile / n_heads) + 1;
    block_from = a.window && block_from > a.window ? block_from - a.window : 0;

    /* ---- partitions */
    partial<dims> total[ROWS];
    uint32_t begin = is_split ? blockIdx.z * PARTITION : block_from / PARTITION * PARTITION, end = is_split ? begin + PARTITION : block_to;
    for (; begin < end; begin += PARTITION) {
        partial<dims> p[ROWS] = {};
        SIMT_UNROLL for (int r = 0; r < ROWS; r++)
            p[r].max = minus_infinity();
        for (uint32_t at = begin; at < begin + PARTITION && at < block_to; at += KEYS) {
            if (at + KEYS <= block_from)
                continue;
            size_t at_keys = cuda_block_at(a.batch, run, at / KEYS, a.n_kv_heads, a.dim) + (size_t)kv_head * a.dim * KEYS, at_values = at_keys + (size_t)a.n_kv_heads * a.dim * KEYS;
            uint32_t from = block_from > at ? block_from - at : 0, to = block_to - at < KEYS ? block_to - at : KEYS;
            __syncthreads(); /* the keys before are no longer read */
            if (a.format == FMT_F32)
                bring<cuda_f32>(a, at_keys, at_values, keys, values, from, to);
            else if (a.format == FMT_F16)
                bring<cuda_f16>(a, at_keys, at_values, keys, values, from, to);
            else
                bring<cuda_bf16_number>(a, at_keys, at_values, keys, values, from, to);
            __syncthreads();
            SIMT_UNROLL for (int r = 0; r < ROWS; r++)
                if (at + KEYS > seen_from[r] && at < seen_to[r])
                    add_keys(p[r], dynamic.at((first_row - tile + (uint32_t)r) * a.dim), keys, values, a.dim, seen_from[r] > at ? seen_from[r] - at : 0,
                                     seen_to[r] - at < KEYS ? seen_to[r] - at : KEYS, lane);
        }
        SIMT_UNROLL for (int r = 0; r < ROWS; r++) {
            if (begin + PARTITION <= seen_from[r] || begin >= seen_to[r])
                continue;
            for (int w = 16; w; w /= 2)
                p[r].sum = add_rn(p[r].sum, __shfl_down_sync(0xffffffffu, p[r].sum, (unsigned)w));
            p[r].sum = __shfl_sync(0xffffffffu, p[r].sum, 0);
            if (is_split) {
                uint32_t row = first_row + (uint32_t)r, token = run_begin + row / n_heads, head = head_lo + row % n_heads;
                size_t to = (((size_t)token * a.n_heads + head) * a.n_partitions + begin / PARTITION) * (a.dim + 2);
                if (lane == 0) {
                    a.scratch.store(to, p[r].max);
                    a.scratch.store(to + 1, p[r].sum);
                }
                SIMT_UNROLL for (int i = 0; i < dims; i++)
                    if (lane + 32 * (uint32_t)i < a.dim)
                        a.scratch.store(to + 2 + lane + 32 * (uint32_t)i, p[r].acc[i]);
            } else if (begin == seen_from[r] / PARTITION * PARTITION) {
                total[r] = p[r];
            } else {
                merge(total[r], p[r]);
            }
        }
    }
    SIMT_UNROLL for (int r = 0; r < ROWS; r++) {
        uint32_t row = first_row + (uint32_t)r;
        if (!is_split && row < n_rows)
            finish(a, total[r], run_begin + row / n_heads, head_lo + row % n_heads, lane);
    }
}

/* A warp a row: what the partitions left, from the first to the last. */
template <int dims> __global__ void __launch_bounds__(WARPS * 32) merge_partitions(attention_args a) {
    uint32_t lane = threadIdx.x % 32, row = blockIdx.x * WARPS + threadIdx.x / 32, token = row / a.n_heads;
    if (token >= a.batch.n_tokens)
        return;
    uint32_t seen_to = (uint32_t)a.batch.position.load(token) + 1, seen_from = a.window && seen_to > a.window ? seen_to - a.window : 0;
    partial<dims> total;
    for (uint32_t i = seen_from / PARTITION; i * PARTITION < seen_to; i++) {
        size_t from = ((size_t)row * a.n_partitions + i) * (a.dim + 2);
        partial<dims> p = {a.scratch.load(from), a.scratch.load(from + 1), {}};
        SIMT_UNROLL for (int k = 0; k < dims; k++)
            if (lane + 32 * (uint32_t)k < a.dim)
                p.acc[k] = a.scratch.load(from + 2 + lane + 32 * (uint32_t)k);
        if (i == seen_from / PARTITION)
            total = p;
        else
            merge(total, p);
    }
    finish(a, total, token, row % a.n_heads, lane);
}

/* ---- launches --------------------------------------------------------------------------------------------------------------------------------------------- */

bool cuda_attention_supports(enum format cache, int head_dim) {
    return (cache == FMT_F32 || cache == FMT_F16 || cache == FMT_BF16) && head_dim >= 1 && head_dim <= (int)MAX_DIM;
}

size_t cuda_attention_scratch_bytes(int n_heads, int head_dim, int n_tokens, int max_run_tokens, int n_partitions) {
    if (max_run_tokens > CUDA_ATTENTION_SPLIT)
        return 0;
    return (size_t)n_tokens * (size_t)n_heads * (size_t)n_partitions * (size_t)(head_dim + 2) * sizeof(float);
}

template <int dims, int ROWS, bool is_split> static int launch(const attention_args &a, uint32_t max_run_tokens, void *stream) {
    uint32_t max_rows = max_run_tokens * (a.group < a.n_heads ? a.group : a.n_heads);
    dim3 grid((max_rows + WARPS * ROWS - 1) / (WARPS * ROWS), a.batch.n_runs * a.n_kv_heads, is_split ? a.n_partitions : 1);
    size_t bytes = (WARPS * ROWS + 2 * KEYS) * a.dim * sizeof(float);
    int e = cudaFuncSetAttribute((const void *)attention<dims, ROWS, is_split>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess)
        return e;
    e = SIMT_LAUNCH((attention<dims, ROWS, is_split>), grid, WARPS * 32, bytes, stream, a);
    if (e != cudaSuccess || !is_split)
        return e;
    return SIMT_LAUNCH(merge_partitions<dims>, (a.batch.n_tokens * a.n_heads + WARPS - 1) / WARPS, WARPS * 32, 0, stream, a);
}

template <int dims> static int launch_for(const attention_args &a, int max_run_tokens, void *stream) {
    return max_run_tokens <= CUDA_ATTENTION_SPLIT ? launch<dims, 1, true>(a, (uint32_t)max_run_tokens, stream) : launch<dims, 2, false>(a, (uint32_t)max_run_tokens, stream);
}

int cuda_attention(const struct kern_attention *args, int max_run_tokens, int n_partitions, void *stream) {
    const struct kern_kv *kv = args->kv;
    if (!cuda_attention_supports(kv->format, kv->head_dim))
        return cudaErrorInvalidValue;
    if (args->batch->n_tokens == 0 || args->n_heads == 0)
        return cudaSuccess;
    attention_args a;
    a.batch = cuda_batch_of(args->batch);
    a.q = args->q;
    a.sinks = args->sinks;
    a.out = args->out;
    a.scratch = (float *)args->scratch;
    a.q_stride = args->q_stride;
    a.out_stride = args->out_stride;
    a.n_heads = (uint32_t)args->n_heads;
    a.q_first = (uint32_t)args->q_first;
    a.kv_first = (uint32_t)args->kv_first;
    a.group = (uint32_t)args->group;
    a.n_kv_heads = (uint32_t)kv->n_kv_heads;
    a.dim = (uint32_t)kv->head_dim;
    a.window = (uint32_t)args->window;
    a.n_partitions = (uint32_t)n_partitions;
    a.scale = args->scale;
    a.format = kv->format;
    a.cache = kv->base;
    return kv->head_dim <= 128 ? launch_for<4>(a, max_run_tokens, stream) : launch_for<8>(a, max_run_tokens, stream);
}
