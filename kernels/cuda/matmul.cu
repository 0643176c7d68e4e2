/* Products with BF16 weights by plain fused multiply-adds, in the order of leaves; and rows of such a matrix.
 *
 * Weights lie in pieces of 8 columns: leaf after leaf, piece after piece (a leaf's last one filled up with zeroes), in a piece all rows (filled up to a multiple of 32), in a row 8
 * numbers: lanes of a warp that hold neighbouring rows read 512 bytes on end.
 *
 * A block takes 32 rows, a warp of it one leaf, a lane one row: a lane's sum runs through its leaf's columns in order, and nobody else adds to it, so the bits are
 * those of `ref` for any number of tokens. Weights come as 16 bytes a lane, 512 a warp, each read once for up to TOKENS tokens. x comes as one number a lane and
 * goes round by shuffles. The leaves' sums meet in shared memory, where the first warp folds them as struct kern_columns says. */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/leaves.h"
#include "kernels/cuda/math.h"

constexpr int ROWS = 32, PIECE = 8, TOKENS = 4;

struct leaves : cuda_leaves {
    uint32_t first_piece[KERN_MAX_LEAVES];
};

template <int n_tokens>
__global__ void __launch_bounds__(KERN_MAX_LEAVES * 32)
    matmul(global<const uint16_t> w, global<const float> x, size_t x_stride, global<const float> bias, global<float> y, size_t y_stride, size_t vector_stride, uint32_t n_rows,
           uint32_t padded_rows, leaves l) {
    SIMT_SHARED_DYNAMIC(float, sums); /* [leaves][n_tokens][ROWS] */
    uint32_t lane = threadIdx.x % 32, leaf = threadIdx.x / 32, row = blockIdx.x * ROWS + lane;
    float acc[n_tokens] = {};

    /* ---- the leaf's sums */
    size_t piece = l.first_piece[leaf];
    for (uint32_t c = l.begin[leaf]; c < l.begin[leaf + 1]; c += 32) {
        uint32_t n = l.begin[leaf + 1] - c < 32 ? l.begin[leaf + 1] - c : 32;
        float mine[n_tokens];
        for (int t = 0; t < n_tokens; t++)
            mine[t] = lane < n ? x.load((size_t)t * x_stride + c + lane) : 0.0f;
        for (uint32_t k = 0; k < n; k += PIECE, piece++) {
            uint4 v = w.load_as<uint4>((piece * padded_rows + row) * PIECE);
            uint32_t pairs[4] = {v.x, v.y, v.z, v.w};
            SIMT_UNROLL for (uint32_t i = 0; i < PIECE; i++) {
                float weight = cuda_bf16(i % 2 ? pairs[i / 2] >> 16 : pairs[i / 2] & 0xffffu);
                for (int t = 0; t < n_tokens; t++) {
                    float other = __shfl_sync(0xffffffffu, mine[t], (int)(k + i));
                    acc[t] = k + i < n ? fma_rn(weight, other, acc[t]) : acc[t];
                }
            }
        }
    }
    for (int t = 0; t < n_tokens; t++)
        sums.store((leaf * n_tokens + (uint32_t)t) * ROWS + lane, acc[t]);
    __syncthreads();

    if (leaf != 0 || row >= n_rows)
        return;
    for (uint32_t t = 0; t < n_tokens; t++)
        cuda_fold(l, sums.at(t * ROWS + lane), n_tokens * ROWS, [&](uint32_t vector, float sum) {
            y.store(vector * vector_stride + t * y_stride + row, bias.p ? add_rn(sum, bias.load(row)) : sum);
        });
}

static uint32_t padded(uint64_t n_rows) { return (uint32_t)((n_rows + ROWS - 1) / ROWS * ROWS); }

static leaves leaves_of(const struct kern_columns *c, uint32_t *n_pieces) {
    leaves l = {};
    cuda_leaves_of(c, &l);
    *n_pieces = 0;
    for (uint32_t i = 0; i < l.n; i++) {
        l.first_piece[i] = *n_pieces;
        *n_pieces += (l.begin[i + 1] - l.begin[i] + PIECE - 1) / PIECE;
    }
    return l;
}

size_t cuda_matrix_bytes(const struct kern_matrix *m) {
    uint32_t n_pieces;
    leaves_of(&m->columns, &n_pieces);
    return (size_t)n_pieces * padded(m->n_rows) * PIECE * sizeof(uint16_t);
}

void cuda_matrix_pack(const struct kern_pack *args) {
    const struct kern_matrix *m = args->matrix;
    uint32_t n_pieces;
    leaves l = leaves_of(&m->columns, &n_pieces);
    size_t rows_there = padded(m->n_rows), row = (size_t)args->row_begin, end = row + (size_t)args->n_rows;
    auto *packed = (uint16_t *)m->data;
    size_t to_fill = end == m->n_rows ? rows_there : end; /* whoever has the last row has what follows it */
    for (size_t piece = 0; piece < n_pieces; piece++)
        memset(packed + (piece * rows_there + row) * PIECE, 0, (to_fill - row) * PIECE * sizeof *packed);
    for (size_t r = row; r < end; r++) {
        const auto *src = (const unsigned char *)args->src + (r - row) * args->row_stride_bytes + (m->columns.begin - args->first_column) * sizeof *packed;
        for (uint32_t i = 0; i < l.n; i++)
            for (size_t c = l.begin[i]; c < l.begin[i + 1]; c++) {
                size_t in_leaf = c - l.begin[i];
                memcpy(&packed[((l.first_piece[i] + in_leaf / PIECE) * rows_there + r) * PIECE + in_leaf % PIECE], src + c * sizeof *packed, sizeof *packed);
            }
    }
}

template <int n_tokens> static int launch(const struct kern_matmul *args, const kern_matmul::kern_matmul_part *part, const leaves &l, int t, void *stream) {
    const struct kern_matrix *m = part->matrix;
    uint32_t rows_there = padded(m->n_rows);
    return SIMT_LAUNCH(matmul<n_tokens>, rows_there / ROWS, l.n * 32, l.n * n_tokens * ROWS * sizeof(float), stream, (const uint16_t *)m->data,
                       args->x + (size_t)t * args->x_stride, args->x_stride, part->bias, part->y + (size_t)t * part->y_stride, part->y_stride, part->vector_stride,
                       (uint32_t)m->n_rows, rows_there, l);
}

int cuda_matmul(const struct kern_matmul *args, void *stream) {
    for (int p = 0; p < args->n_parts; p++) {
        const auto *part = &args->parts[p];
        const struct kern_matrix *m = part->matrix;
        uint32_t n_pieces;
        if (m->format != FMT_BF16 || m->n_rows > UINT32_MAX - ROWS || m->columns.order)
            return cudaErrorInvalidValue;
        leaves l = leaves_of(&m->columns, &n_pieces);
        if (m->n_rows == 0 || l.n == 0)
            continue;
        for (int t = 0; t < args->n_tokens; t += TOKENS) {
            int n = args->n_tokens - t, e = n >= 4   ? launch<4>(args, part, l, t, stream)
                                            : n == 3 ? launch<3>(args, part, l, t, stream)
                                            : n == 2 ? launch<2>(args, part, l, t, stream)
                                                     : launch<1>(args, part, l, t, stream);
            if (e != cudaSuccess)
                return e;
        }
    }
    return cudaSuccess;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(CUDA_EMBED_THREADS)
    embed(global<const uint16_t> table, global<const int32_t> ids, global<float> y, uint64_t row_begin, uint32_t n_rows, uint32_t padded_rows, size_t y_stride, float table_scale,
          float scale, leaves l) {
    cuda_embed_column(l, ids, y, row_begin, n_rows, y_stride, table_scale, scale, [&](uint32_t row, uint32_t leaf, uint32_t c) {
        uint32_t in_leaf = c - l.begin[leaf];
        size_t piece = l.first_piece[leaf] + in_leaf / PIECE;
        return cuda_bf16(table.load((piece * padded_rows + row) * PIECE + in_leaf % PIECE));
    });
}

int cuda_embed(const struct kern_embed *args, void *stream) {
    const struct kern_matrix *m = args->table;
    uint32_t n_pieces;
    if (m->format != FMT_BF16 || m->n_rows > UINT32_MAX - ROWS || m->columns.order)
        return cudaErrorInvalidValue;
    leaves l = leaves_of(&m->columns, &n_pieces);
    if (args->n_tokens == 0 || l.n == 0)
        return cudaSuccess;
    return SIMT_LAUNCH(embed, cuda_embed_grid(l, args->n_tokens), CUDA_EMBED_THREADS, 0, stream, (const uint16_t *)m->data, args->ids, args->y, args->row_begin, (uint32_t)m->n_rows, padded(m->n_rows), args->y_stride,
                       m->scale, args->scale, l);
}
