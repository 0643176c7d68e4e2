/* The product's kernels for AVX2, FMA and F16C: a tile is two halves of 8 rows, one lane per output row.
 * kernels/cpu/matmul_priv.h has the layout and the order of operations; sums of integers are exact, so that their order here is free.
 *
 * Sixteen registers hold one half tile's sums of 8 tokens and little else; the F32 accumulators wait in the first-level cache between segments.
 * Q4_1 × int8: a nibble is unsigned, so vpmaddubsw takes it as it is, and 16 products of at most 15·127 fit in 16 bits: one widening a segment.
 * Q8_0 × int8: vpmaddubsw of |w| and a·sign(w): two products of at most 128·127 fit in 16 bits. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = KERN_TILE_ROWS, HALF = ROWS / 2, MAX_SUMS = 2 * CPU_GROUP, AHEAD_BYTES = 4096 };

INLINE int32_t load_i32(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

INLINE float load_f32(const uint8_t *p) {
    float v;
    memcpy(&v, p, 4);
    return v;
}

INLINE __m256i load_256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
INLINE __m256 load_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)); }

/* ---- one segment, int8 activations -------------------------------------------------------------------------------------------------------------- */

/* acc[t] of half tile i_half. */
INLINE void segment_int8(const enum format f, const int nt, int i_half, const uint8_t *w, const uint8_t *x, __m256 *acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i dot[CPU_GROUP]; /* Q4_1: 16 bits, Q8_0: 32 bits */
    UNROLL for (int t = 0; t < nt; t++) dot[t] = _mm256_setzero_si256();
    UNROLL for (int quad = 0; quad < 8; quad++) {
        if (f == FMT_Q4_1) {
            __m256i u = load_256(w + 64 * (quad & 3) + 32 * i_half);
            u = _mm256_and_si256(quad < 4 ? u : _mm256_srli_epi16(u, 4), _mm256_set1_epi8(15));
            UNROLL for (int t = 0; t < nt; t++) dot[t] =
                _mm256_add_epi16(dot[t], _mm256_maddubs_epi16(u, _mm256_set1_epi32(load_i32(x + 32 * t + 4 * quad))));
        } else {
            __m256i v = _mm256_xor_si256(load_256(w + 64 * quad + 32 * i_half), _mm256_set1_epi8(-128)), u = _mm256_abs_epi8(v);
            UNROLL for (int t = 0; t < nt; t++) {
                __m256i a = _mm256_sign_epi8(_mm256_set1_epi32(load_i32(x + 32 * t + 4 * quad)), v);
                dot[t] = _mm256_add_epi32(dot[t], _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), ones));
            }
        }
    }
    const __m256 d = load_halves(w + (f == FMT_Q8_0 ? 512 : 256) + 16 * i_half);
    UNROLL for (int t = 0; t < nt; t++) {
        if (f == FMT_Q4_1) dot[t] = _mm256_madd_epi16(dot[t], ones);
        acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_mul_ps(d, _mm256_set1_ps(load_f32(x + 32 * nt + 4 * t))), acc[t]);
    }
    if (f == FMT_Q4_1) {
        const __m256 m = load_halves(w + 288 + 16 * i_half);
        UNROLL for (int t = 0; t < nt; t++) acc[t] = _mm256_fmadd_ps(m, _mm256_set1_ps(load_f32(x + 36 * nt + 4 * t)), acc[t]);
    }
}

/* ---- one segment, F32 activations --------------------------------------------------------------------------------------------------------------- */

/* Half tile i of those that are taken together: tile i / 2, half i % 2. */
INLINE const uint8_t *half_at(const uint8_t *w, size_t stride, int i, size_t half_bytes) {
    return w + (size_t)(i / 2) * stride + (size_t)(i % 2) * half_bytes;
}

/* Column b (0…3) of quad 4·part + quad of half tile i. */
INLINE __m256 weights(const enum format f, const uint8_t *w, size_t stride, int i, const int part, int quad, const int b, __m256 d, __m256 m) {
    if (f == FMT_Q4_1) {
        __m256i u = load_256(half_at(w, stride, i, 32) + 64 * quad);
        u = _mm256_and_si256(_mm256_srli_epi32(u, 8 * b + 4 * part), _mm256_set1_epi32(15));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(u), d, m);
    }
    if (f == FMT_Q8_0) {
        __m256i u = load_256(half_at(w, stride, i, 32) + 64 * (4 * part + quad));
        u = _mm256_sub_epi32(_mm256_and_si256(_mm256_srli_epi32(u, 8 * b), _mm256_set1_epi32(255)), _mm256_set1_epi32(128));
        return _mm256_mul_ps(d, _mm256_cvtepi32_ps(u));
    }
    size_t column = (size_t)(16 * part + 4 * quad + b);
    if (f == FMT_F32) return _mm256_loadu_ps((const float *)(const void *)(half_at(w, stride, i, 32) + 64 * column));
    const uint8_t *from = half_at(w, stride, i, 16) + 32 * column;
    if (f == FMT_F16) return load_halves(from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)), 16));
}

/* acc[i][t] of half tiles [first, first + nh). */
INLINE void segment_f32(const enum format f, const int nt, const int nh, int first, const uint8_t *w, size_t stride, const uint8_t *x, __m256 *acc) {
    __m256 sum[CPU_GROUP], d[4], m[4];
    UNROLL for (int j = 0; j < nh * nt; j++) sum[j] = acc[j];
    UNROLL for (int i = 0; i < nh; i++) {
        d[i] = m[i] = _mm256_setzero_ps();
        if (f == FMT_Q4_1 || f == FMT_Q8_0) d[i] = load_halves(half_at(w, stride, first + i, 16) + (f == FMT_Q4_1 ? 256 : 512));
        if (f == FMT_Q4_1) m[i] = load_halves(half_at(w, stride, first + i, 16) + 288);
    }
    UNROLL for (int part = 0; part < 2; part++) { /* unrolled, so that shifts are by constants */
        for (int quad = 0; quad < 4; quad++) {
            UNROLL for (int b = 0; b < 4; b++) {
                __m256 wi[4];
                UNROLL for (int i = 0; i < nh; i++) wi[i] = weights(f, w, stride, first + i, part, quad, b, d[i], m[i]);
                UNROLL for (int t = 0; t < nt; t++) {
                    __m256 xt = _mm256_set1_ps(load_f32(x + 4 * t));
                    UNROLL for (int i = 0; i < nh; i++) sum[i * nt + t] = _mm256_fmadd_ps(wi[i], xt, sum[i * nt + t]);
                }
                x += 4 * nt;
            }
        }
    }
    UNROLL for (int j = 0; j < nh * nt; j++) acc[j] = sum[j];
}

/* ---- whole row tiles ---------------------------------------------------------------------------------------------------------------------------- */

struct walk {
    const struct cpu_rows *a;
    size_t row, apart; /* the first row of the first of nr tiles, and rows from one tile to the next */
    int depth;
    uint32_t i_vector;
    __m256 stack[CPU_STACK][MAX_SUMS]; /* [..][2·nr half tiles][nt] */
};

/* After leaf i has been stored on top of the stack. */
static void end_leaf(struct walk *k, const struct kern_columns *c, uint32_t i_leaf, int nt, int nr) {
    const struct cpu_rows *a = k->a;
    k->depth++;
    for (int n = c->n_folds[i_leaf]; n > 0; n--, k->depth--)
        for (int i = 0; i < 2 * nr * nt; i++) k->stack[k->depth - 2][i] = _mm256_add_ps(k->stack[k->depth - 2][i], k->stack[k->depth - 1][i]);
    if (!c->emit[i_leaf]) return;
    k->depth--;
    for (int h = 0; h < 2 * nr; h++) {
        size_t row = k->row + (size_t)(h / 2) * k->apart + (size_t)(h % 2) * HALF;
        int n = row >= a->n_rows ? 0 : a->n_rows - row < HALF ? (int)(a->n_rows - row) : HALF;
        __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        for (int t = 0; t < nt && n > 0; t++) {
            __m256 sum = k->stack[k->depth][h * nt + t];
            if (a->bias) sum = _mm256_add_ps(sum, _mm256_maskload_ps(a->bias + row, mask));
            _mm256_maskstore_ps(a->y + k->i_vector * a->vector_stride + (size_t)t * a->y_stride + row, mask, sum);
        }
    }
    k->i_vector++;
}

/* nt tokens × nr row tiles, the first at row, `apart` rows from one to the next; F32: nh half tiles at a time. nt, nr, nh, f and is_int8 are constants wherever this is inlined. */
INLINE void walk_tiles(const struct cpu_rows *a, size_t row, size_t apart, const int nt, const int nr, const int nh, const enum format f,
                       const bool is_int8) {
    const struct kern_columns *c = a->columns;
    const size_t tile_bytes = cpu_tile_bytes(f), row_tile_bytes = tile_bytes * c->n_segments, stride = apart / ROWS * row_tile_bytes;
    const size_t record_bytes = (size_t)nt * (is_int8 ? CPU_INT8_BYTES : CPU_F32_BYTES);
    const uint8_t *w = a->tiles + row / ROWS * row_tile_bytes, *x = a->x;
    struct walk k;
    k.a = a, k.row = row, k.apart = apart, k.depth = 0, k.i_vector = 0;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        __m256 *acc = k.stack[k.depth];
        for (int j = 0; j < 2 * nr * nt; j++) acc[j] = _mm256_setzero_ps();
        for (uint32_t n = c->leaf_segment[i + 1] - c->leaf_segment[i]; n > 0; n--, w += tile_bytes, x += record_bytes) {
            for (int r = 0; r < nr; r++)
                for (size_t line = 0; line < tile_bytes; line += 64)
                    _mm_prefetch((const char *)w + (size_t)r * stride + AHEAD_BYTES + line, _MM_HINT_T0);
            if (is_int8) {
                for (int h = 0; h < 2 * nr; h++) segment_int8(f, nt, h % 2, w + (size_t)(h / 2) * stride, x, acc + h * nt);
            } else {
                for (int h = 0; h < 2 * nr; h += nh) segment_f32(f, nt, nh, h, w, stride, x, acc + h * nt);
            }
        }
        end_leaf(&k, c, i, nt, nr);
    }
}

/* The rows are cut into nr runs of whole tiles that advance side by side: several streams read memory faster than one, and long chains of additions
 * overlap. What is left is done one by one. */
#define ROWS_N(act, format, nt, nr, nh, is_int8)                                                                                                     \
    static __attribute__((noinline)) void act##_##format##_##nt(const struct cpu_rows *a) {                                                          \
        size_t n_tiles = (a->n_rows + ROWS - 1) / ROWS, run = n_tiles / nr * ROWS, row = 0;                                                          \
        for (; row < run; row += ROWS) walk_tiles(a, row, run, nt, nr, nh, FMT_##format, is_int8);                                                   \
        for (row = run * nr; row < n_tiles * ROWS; row += ROWS) walk_tiles(a, row, ROWS, nt, 1, nh > 2 ? 2 : nh, FMT_##format, is_int8);             \
    }
#define INT8_N(format, nt, nr) ROWS_N(int8, format, nt, nr, 1, true)
#define F32_N(format, nt, nr, nh) ROWS_N(f32, format, nt, nr, nh, false)
#define INT8(format)                                                                                                                                 \
    INT8_N(format, 1, 4)                                                                                                                             \
    INT8_N(format, 2, 2)                                                                                                                             \
    INT8_N(format, 3, 1) INT8_N(format, 4, 1) INT8_N(format, 5, 1) INT8_N(format, 6, 1) INT8_N(format, 7, 1) INT8_N(format, 8, 1)                    \
        BY_TOKENS(int8, format)
#define F32(format)                                                                                                                                  \
    F32_N(format, 1, 4, 4)                                                                                                                           \
    F32_N(format, 2, 2, 4)                                                                                                                           \
    F32_N(format, 3, 1, 2) F32_N(format, 4, 1, 2) F32_N(format, 5, 1, 1) F32_N(format, 6, 1, 1) F32_N(format, 7, 1, 1) F32_N(format, 8, 1, 1)        \
        BY_TOKENS(f32, format)

INT8(Q4_1)
INT8(Q8_0)
F32(Q4_1)
F32(Q8_0)
F32(F16)
F32(BF16)
F32(F32)

/* ---- quantising activations (see matmul_portable.c for the corner cases) ------------------------------------------------------------------------ */

static struct cpu_scale quantise(const float *x, int n, int8_t *q) {
    float padded[32] = {0};
    if (n < 32) x = memcpy(padded, x, (size_t)n * sizeof *x);
    __m256 v[4];
    __m256i top = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        top = _mm256_max_epu32(top, _mm256_and_si256(_mm256_castps_si256(v[i]), _mm256_set1_epi32(0x7fffffff)));
    }
    __m128i top4 = _mm_max_epu32(_mm256_castsi256_si128(top), _mm256_extracti128_si256(top, 1));
    top4 = _mm_max_epu32(top4, _mm_shuffle_epi32(top4, 0x4e));
    top4 = _mm_max_epu32(top4, _mm_shuffle_epi32(top4, 0xb1));
    uint32_t amax_bits = (uint32_t)_mm_cvtsi128_si32(top4);
    float amax;
    memcpy(&amax, &amax_bits, 4);
    float d = amax / 127.0f;
    if (amax_bits >= 0x7f800000 || d == 0.0f) {
        memset(q, 0, 32);
        return amax_bits >= 0x7f800000 ? (struct cpu_scale){NAN, NAN, 0} : (struct cpu_scale){0, 0, 0};
    }
    __m256i qi[4];
    for (int i = 0; i < 4; i++) {
        qi[i] = _mm256_cvtps_epi32(_mm256_div_ps(v[i], _mm256_set1_ps(d)));
        qi[i] = _mm256_max_epi32(_mm256_min_epi32(qi[i], _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
    }
    __m256i sum8 = _mm256_add_epi32(_mm256_add_epi32(qi[0], qi[1]), _mm256_add_epi32(qi[2], qi[3]));
    __m128i sum4 = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
    sum4 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0x4e));
    sum4 = _mm_add_epi32(sum4, _mm_shuffle_epi32(sum4, 0xb1));
    int32_t sum = _mm_cvtsi128_si32(sum4);
    /* Packing works within halves of 128 bits; the permutation puts the groups of four in order. */
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(qi[0], qi[1]), _mm256_packs_epi32(qi[2], qi[3]));
    _mm256_storeu_si256((__m256i *)(void *)q, _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_avx2 = {
    .int8 = {[FMT_Q4_1] = int8_Q4_1, [FMT_Q8_0] = int8_Q8_0},
    .f32 = {[FMT_Q4_1] = f32_Q4_1, [FMT_Q8_0] = f32_Q8_0, [FMT_F16] = f32_F16, [FMT_BF16] = f32_BF16, [FMT_F32] = f32_F32},
    .quantise = quantise,
};
