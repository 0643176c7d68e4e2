/* Products by matrix instructions: 16 rows of weights are one operand, 8 tokens the other; and rows of such a matrix.
 *
 * Columns are taken in steps of 16, anchored at column 0 of the tensor (so a scale of NVFP4 belongs to one step), and four steps are a chunk; a leaf has whole chunks of its own, filled
 * up with zeroes. A block takes 16 rows, a warp of it one leaf. Its accumulators, up to 32 a thread (64 tokens), run through the leaf's steps in order, and nobody else adds to
 * them: the bits depend neither on the number of tokens nor on who holds the other leaves. The leaves' sums meet in shared memory and are folded there as struct kern_columns says.
 *
 * Both operands lie in memory as the instruction's registers (mma.cpp has the layout), so that each is loaded by 16 bytes a lane:
 *   weights  [row tile][chunk] BF16:  [step][lane][4] registers, 2,048 bytes
 *                              NVFP4: [lane][step] 8 codes, byte i for register i, 512 bytes; then [row g][2: row g, row g + 8][step] scales, 64 bytes
 *   x        [token tile][chunk][half][lane][step of the half][2] registers, 1,024 bytes: a token's part of a half is 64 bytes on end, and tokens that are not there are not read */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/leaves.h"
#include "kernels/cuda/math.h"

constexpr uint32_t ROWS = 16, TOKENS = 8, STEP = 16, CHUNK_STEPS = 4, CHUNK = STEP * CHUNK_STEPS;
constexpr uint32_t SUMS_STRIDE = 20; /* of a token's 16 sums in shared memory: then the lanes of a warp hit all banks alike */

struct chunks : cuda_leaves {
    uint32_t first_chunk[CUDA_MMA_LEAVES + 1];
    int32_t first_column[CUDA_MMA_LEAVES]; /* of the leaf's first step, from the first local one on: up to 15 before begin */
};

static chunks chunks_of(const struct kern_columns *c) {
    chunks l = {};
    cuda_leaves_of(c, &l);
    for (uint32_t i = 0; i < l.n; i++) {
        l.first_column[i] = (int32_t)l.begin[i] - (int32_t)((c->begin + l.begin[i]) % STEP);
        uint32_t n_columns = l.begin[i + 1] - (uint32_t)l.first_column[i];
        l.first_chunk[i + 1] = l.first_chunk[i] + (n_columns + CHUNK - 1) / CHUNK;
    }
    return l;
}
static uint32_t n_chunks_of(const chunks &l) { return l.first_chunk[l.n]; }

/* ---- x ---------------------------------------------------------------------------------------------------------------------------------------------------- */

/* A block a chunk of 8 tokens, a thread the two steps that one lane loads together. */
__global__ void __launch_bounds__(64) mma_prepare(global<const float> x, size_t x_stride, global<uint32_t> prepared, uint32_t n_tokens, chunks l) {
    uint32_t half = threadIdx.x / 32, lane = threadIdx.x % 32, q = lane % 4, chunk = blockIdx.x, token = blockIdx.y * TOKENS + lane / 4, leaf = 0;
    if (token >= n_tokens)
        return;
    while (chunk >= l.first_chunk[leaf + 1])
        leaf++;
    int32_t begin = (int32_t)l.begin[leaf], end = (int32_t)l.begin[leaf + 1];
    auto at = [&](int32_t column) { return column >= begin && column < end ? x.load(token * x_stride + (size_t)column) : 0.0f; };
    uint32_t pairs[4];
    for (uint32_t i = 0; i < 4; i++) { /* step, then low and high columns */
        uint32_t step = (chunk - l.first_chunk[leaf]) * CHUNK_STEPS + half * 2 + i / 2;
        int32_t column = l.first_column[leaf] + (int32_t)(step * STEP + i % 2 * 8 + 2 * q);
        pairs[i] = bf16x2_rn(at(column), at(column + 1));
    }
    size_t to = (((size_t)blockIdx.y * gridDim.x + chunk) * 2 + half) * 32 + lane;
    prepared.store_as<uint4>(to * 4, {pairs[0], pairs[1], pairs[2], pairs[3]});
}

size_t cuda_mma_scratch_bytes(const struct kern_columns *columns, int n_tokens) {
    return (size_t)((uint32_t)n_tokens + TOKENS - 1) / TOKENS * n_chunks_of(chunks_of(columns)) * TOKENS * CHUNK * sizeof(uint16_t);
}

static bool is_right(const struct kern_matmul *args) {
    for (int p = 0; p < args->n_parts; p++) {
        const struct kern_matrix *m = args->parts[p].matrix;
        if (!cuda_mma_supports(m->format) || m->n_rows > UINT32_MAX - ROWS || m->columns.n_leaves > CUDA_MMA_LEAVES || m->columns.order)
            return false;
    }
    return true;
}

int cuda_mma_prepare(const struct kern_matmul *args, void *stream) {
    if (!is_right(args))
        return cudaErrorInvalidValue;
    if (args->n_parts == 0 || args->n_tokens == 0 || args->parts[0].matrix->columns.n_leaves == 0)
        return cudaSuccess;
    chunks l = chunks_of(&args->parts[0].matrix->columns);
    dim3 grid(n_chunks_of(l), ((uint32_t)args->n_tokens + TOKENS - 1) / TOKENS);
    return SIMT_LAUNCH(mma_prepare, grid, 64, 0, stream, args->x, args->x_stride, (uint32_t *)args->scratch, (uint32_t)args->n_tokens, l);
}

/* ---- weights ------------------------------------------------------------------------------------------------------------------------------------------------ */

static size_t chunk_bytes(enum format f) { return f == FMT_BF16 ? 2048 : 576; }

bool cuda_mma_supports(enum format f) { return f == FMT_BF16 || f == FMT_NVFP4; }

size_t cuda_mma_matrix_bytes(const struct kern_matrix *m) {
    return (size_t)((m->n_rows + ROWS - 1) / ROWS) * n_chunks_of(chunks_of(&m->columns)) * chunk_bytes(m->format);
}

/* Row r, column k of a step, in operand a: of the lane's register i the (k mod 2)-th number. */
static __host__ __device__ uint32_t lane_of(uint32_t r, uint32_t k) { return r % 8 * 4 + k % 8 / 2; }
static __host__ __device__ uint32_t register_of(uint32_t r, uint32_t k) { return r / 8 + k / 8 * 2; }

static void pack_bf16(uint16_t number, uint32_t r, uint32_t step, uint32_t k, uint16_t *chunk) {
    chunk[((step * 32 + lane_of(r, k)) * 4 + register_of(r, k)) * 2 + k % 2] = number;
}

/* The scale of 0x7f is 0, its top bit is nothing; −0 is 0, as `ref` has it. */
static void pack_nvfp4(uint8_t code, uint8_t scale, uint32_t r, uint32_t step, uint32_t k, uint8_t *chunk) {
    chunk[lane_of(r, k) * 16 + step * 4 + register_of(r, k)] |= (uint8_t)((code == 8 ? 0 : code) << (4 * (k % 2)));
    chunk[512 + (r % 8 * 2 + r / 8) * 4 + step] = (scale & 0x7f) == 0x7f ? 0 : scale & 0x7f;
}

void cuda_mma_matrix_pack(const struct kern_pack *args) {
    const struct kern_matrix *m = args->matrix;
    const struct format_info *info = kern_format(m->format);
    chunks l = chunks_of(&m->columns);
    size_t each = chunk_bytes(m->format);
    for (uint64_t n = 0; n < args->n_rows; n++) {
        const auto *src = (const unsigned char *)args->src + n * args->row_stride_bytes;
        uint32_t r = (uint32_t)((args->row_begin + n) % ROWS);
        unsigned char *tile = (unsigned char *)m->data + (args->row_begin + n) / ROWS * n_chunks_of(l) * each;
        if (r == 0)
            memset(tile, 0, n_chunks_of(l) * each);
        for (uint32_t leaf = 0; leaf < l.n; leaf++)
            for (uint32_t c = l.begin[leaf]; c < l.begin[leaf + 1]; c++) {
                uint32_t in_leaf = c - (uint32_t)l.first_column[leaf], step = in_leaf / STEP % CHUNK_STEPS, k = in_leaf % STEP;
                unsigned char *chunk = tile + (l.first_chunk[leaf] + in_leaf / CHUNK) * each;
                size_t from = (size_t)(m->columns.begin + c - args->first_column), at = from % info->block_columns;
                const unsigned char *block = src + from / info->block_columns * info->block_bytes;
                if (m->format == FMT_BF16) {
                    uint16_t number;
                    memcpy(&number, block, sizeof number);
                    pack_bf16(number, r, step, k, (uint16_t *)(void *)chunk);
                } else {
                    uint8_t both = block[4 + at / 16 * 8 + at % 8];
                    pack_nvfp4(at % 16 < 8 ? both & 15 : both >> 4, block[at / 16], r, step, k, chunk);
                }
            }
    }
}

/* ---- the product -------------------------------------------------------------------------------------------------------------------------------------------- */

/* A chunk of weights, as it comes from memory, and one step of it as operand. */
struct bf16_chunk {
    uint4 steps[CHUNK_STEPS];
    __device__ void load(global<const uint32_t> w, size_t chunk, uint32_t lane) {
        SIMT_UNROLL for (uint32_t s = 0; s < CHUNK_STEPS; s++)
            steps[s] = w.load_as<uint4>(((chunk * CHUNK_STEPS + s) * 32 + lane) * 4);
    }
    __device__ void operand(uint32_t s, uint32_t a[4]) const {
        a[0] = steps[s].x;
        a[1] = steps[s].y;
        a[2] = steps[s].z;
        a[3] = steps[s].w;
    }
};
struct nvfp4_chunk {
    uint32_t codes[CHUNK_STEPS];
    uint2 scales; /* of rows g and g + 8, a byte a step */
    __device__ void load(global<const uint32_t> w, size_t chunk, uint32_t lane) {
        uint4 v = w.load_as<uint4>(chunk * 144 + lane * 4);
        codes[0] = v.x;
        codes[1] = v.y;
        codes[2] = v.z;
        codes[3] = v.w;
        scales = w.load_as<uint2>(chunk * 144 + 128 + lane / 4 * 2);
    }
    /* code · scale has at most 6 significant bits: BF16 holds it */
    __device__ void operand(uint32_t s, uint32_t a[4]) const {
        float scale[2] = {cuda_e4m3(scales.x >> (8 * s) & 0xff), cuda_e4m3(scales.y >> (8 * s) & 0xff)};
        SIMT_UNROLL for (uint32_t i = 0; i < 4; i++) {
            uint32_t pair = codes[s] >> (8 * i);
            float low = mul_rn(cuda_e2m1(pair & 15), scale[i % 2]), high = mul_rn(cuda_e2m1(pair >> 4 & 15), scale[i % 2]);
            a[i] = (bits_of_float(high) & 0xffff0000u) | bits_of_float(low) >> 16;
        }
    }
};

template <class weights, int tiles>
__global__ void __launch_bounds__(CUDA_MMA_LEAVES * 32)
    mma_matmul(global<const uint32_t> w, global<const uint32_t> x, global<const float> bias, global<float> y, size_t y_stride, size_t vector_stride, uint32_t n_rows,
               uint32_t n_tokens, float scale, chunks l) {
    constexpr uint32_t tokens_here = tiles * TOKENS;
    SIMT_SHARED_DYNAMIC(float, sums); /* [leaf][token][row], rows SUMS_STRIDE apart */
    uint32_t lane = threadIdx.x % 32, g = lane / 4, q = lane % 4, leaf = threadIdx.x / 32, first_token = blockIdx.y * tokens_here, n_chunks = l.first_chunk[l.n];
    float acc[tiles][4] = {};

    /* ---- the leaf's sums */
    for (uint32_t chunk = l.first_chunk[leaf]; chunk < l.first_chunk[leaf + 1]; chunk++) {
        weights v;
        v.load(w, (size_t)blockIdx.x * n_chunks + chunk, lane);
        SIMT_UNROLL for (uint32_t half = 0; half < 2; half++) {
            uint32_t a[2][4];
            v.operand(half * 2, a[0]);
            v.operand(half * 2 + 1, a[1]);
            SIMT_UNROLL for (uint32_t n = 0; n < tiles; n++) {
                size_t at = (((size_t)(first_token / TOKENS + n) * n_chunks + chunk) * 2 + half) * 32 + lane;
                uint4 b = {0, 0, 0, 0};
                if (first_token + n * TOKENS + g < n_tokens)
                    b = x.load_as<uint4>(at * 4);
                const uint32_t first[2] = {b.x, b.y}, second[2] = {b.z, b.w};
                mma_m16n8k16_bf16(acc[n], a[0], first, acc[n]);
                mma_m16n8k16_bf16(acc[n], a[1], second, acc[n]);
            }
        }
    }
    SIMT_UNROLL for (uint32_t n = 0; n < tiles; n++)
        SIMT_UNROLL for (uint32_t i = 0; i < 4; i++)
            sums.store((leaf * tokens_here + n * TOKENS + 2 * q + i % 2) * SUMS_STRIDE + g + i / 2 * 8, mul_rn(acc[n][i], scale));
    __syncthreads();

    /* ---- fold: a thread a row of a token */
    for (uint32_t i = threadIdx.x; i < tokens_here * ROWS; i += blockDim.x) {
        uint32_t token = first_token + i / ROWS, row = blockIdx.x * ROWS + i % ROWS;
        if (token < n_tokens && row < n_rows)
            cuda_fold(l, sums.at(i / ROWS * SUMS_STRIDE + i % ROWS), tokens_here * SUMS_STRIDE, [&](uint32_t vector, float sum) {
                y.store(vector * vector_stride + token * y_stride + row, bias.p ? add_rn(sum, bias.load(row)) : sum);
            });
    }
}

template <class weights, int tiles> static int launch(const struct kern_matmul *args, const kern_matmul::kern_matmul_part *part, const chunks &l, void *stream) {
    const struct kern_matrix *m = part->matrix;
    uint32_t n_tokens = (uint32_t)args->n_tokens;
    dim3 grid((uint32_t)((m->n_rows + ROWS - 1) / ROWS), (n_tokens + tiles * TOKENS - 1) / (tiles * TOKENS));
    size_t bytes = l.n * tiles * TOKENS * SUMS_STRIDE * sizeof(float);
    int e = cudaFuncSetAttribute((const void *)mma_matmul<weights, tiles>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
    if (e != cudaSuccess)
        return e;
    return SIMT_LAUNCH((mma_matmul<weights, tiles>), grid, l.n * 32, bytes, stream, (const uint32_t *)m->data, (const uint32_t *)args->scratch, part->bias, part->y,
                       part->y_stride, part->vector_stride, (uint32_t)m->n_rows, n_tokens, m->scale, l);
}

template <class weights> static int launch_for(const struct kern_matmul *args, const kern_matmul::kern_matmul_part *part, const chunks &l, void *stream) {
    return args->n_tokens > 32   ? launch<weights, 8>(args, part, l, stream)
           : args->n_tokens > 16 ? launch<weights, 4>(args, part, l, stream)
           : args->n_tokens > 8  ? launch<weights, 2>(args, part, l, stream)
                                 : launch<weights, 1>(args, part, l, stream);
}

int cuda_mma_matmul(const struct kern_matmul *args, void *stream) {
    if (!is_right(args))
        return cudaErrorInvalidValue;
    for (int p = 0; p < args->n_parts; p++) {
        const auto *part = &args->parts[p];
        chunks l = chunks_of(&part->matrix->columns);
        if (args->n_tokens == 0 || part->matrix->n_rows == 0 || l.n == 0)
            continue;
        int e = part->matrix->format == FMT_BF16 ? launch_for<bf16_chunk>(args, part, l, stream) : launch_for<nvfp4_chunk>(args, part, l, stream);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------------------------------------------- */

template <bool is_bf16>
__global__ void __launch_bounds__(CUDA_EMBED_THREADS)
    mma_embed(global<const unsigned char> table, global<const int32_t> ids, global<float> y, uint64_t row_begin, uint32_t n_rows, size_t y_stride, float table_scale, float scale,
              chunks l) {
    cuda_embed_column(l, ids, y, row_begin, n_rows, y_stride, table_scale, scale, [&](uint32_t row, uint32_t leaf, uint32_t c) {
        uint32_t r = row % ROWS, in_leaf = c - (uint32_t)l.first_column[leaf], step = in_leaf / STEP % CHUNK_STEPS, k = in_leaf % STEP;
        uint32_t lane = lane_of(r, k), i = register_of(r, k);
        const global<const unsigned char> chunk = table.at(((size_t)row / ROWS * l.first_chunk[l.n] + l.first_chunk[leaf] + in_leaf / CHUNK) * (is_bf16 ? 2048 : 576));
        if (is_bf16)
            return cuda_bf16(chunk.load_as<uint16_t>((((step * 32 + lane) * 4 + i) * 2 + k % 2) * 2));
        return mul_rn(cuda_e2m1(chunk.load(lane * 16 + step * 4 + i) >> (4 * (k % 2)) & 15u), cuda_e4m3(chunk.load(512 + (r % 8 * 2 + r / 8) * 4 + step)));
    });
}

int cuda_mma_embed(const struct kern_embed *args, void *stream) {
    const struct kern_matrix *m = args->table;
    if (!cuda_mma_supports(m->format) || m->n_rows > UINT32_MAX - ROWS || m->columns.n_leaves > CUDA_MMA_LEAVES || m->columns.order)
        return cudaErrorInvalidValue;
    chunks l = chunks_of(&m->columns);
    if (args->n_tokens == 0 || l.n == 0)
        return cudaSuccess;
    return SIMT_LAUNCH((m->format == FMT_BF16 ? mma_embed<true> : mma_embed<false>), cuda_embed_grid(l, args->n_tokens), CUDA_EMBED_THREADS, 0, stream, (const unsigned char *)m->data, args->ids, args->y, args->row_begin,
                       (uint32_t)m->n_rows, args->y_stride, m->scale, args->scale, l);
}
