/* The product's kernels for AVX-512 with VNNI: one lane per output row, so a tile is one register wide; tokens × row tiles are separate accumulators.
 * kernels/cpu/matmul_priv.h has the layout and the order of operations.
 *
 * int8: a segment's weights are unpacked once into 8 registers of u8 and meet the tokens by vpdpbusd with the activation's 4 bytes broadcast from memory:
 * 8 vpdpbusd, a conversion and 2–3 multiplications a token. F32: a column's 16 weights are dequantised once and meet the tokens by one FMA each; since a
 * column depends on the one before, several row tiles are taken at once. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = KERN_TILE_ROWS };
/* Weights come from memory once: fetched this far ahead. */
enum { AHEAD_BYTES = 4096 };

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

INLINE __m512 load_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }

/* ---- one segment, int8 activations -------------------------------------------------------------------------------------------------------------- */

INLINE void segment_int8(const enum format f, const int nt, const int nr, const uint8_t *w, size_t stride, const uint8_t *x, __m512 *acc) {
    const __m512i low = _mm512_set1_epi8(15);
    __m512i dot[16];
    UNROLL for (int t = 0; t < nt; t++) {
        __m512i start = f == FMT_Q8_0 ? _mm512_set1_epi32(load_i32(x + 40 * nt + 4 * t)) : _mm512_setzero_si512();
        UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = start;
    }
    UNROLL for (int quad = 0; quad < 8; quad++) {
        __m512i u[4];
        UNROLL for (int r = 0; r < nr; r++) {
            if (f == FMT_Q8_0) {
                u[r] = _mm512_loadu_si512(w + (size_t)r * stride + 64 * quad);
            } else {
                u[r] = _mm512_loadu_si512(w + (size_t)r * stride + 64 * (quad & 3));
                u[r] = _mm512_and_si512(quad < 4 ? u[r] : _mm512_srli_epi16(u[r], 4), low);
            }
        }
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i a = _mm512_set1_epi32(load_i32(x + 32 * t + 4 * quad));
            UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = _mm512_dpbusd_epi32(dot[r * nt + t], u[r], a);
        }
    }
    __m512 d[4], m[4];
    UNROLL for (int r = 0; r < nr; r++) {
        d[r] = load_halves(w + (size_t)r * stride + (f == FMT_Q8_0 ? 512 : 256));
        if (f == FMT_Q4_1) m[r] = load_halves(w + (size_t)r * stride + 288);
    }
    UNROLL for (int t = 0; t < nt; t++) {
        __m512 dx = _mm512_set1_ps(load_f32(x + 32 * nt + 4 * t)), sx = _mm512_set1_ps(load_f32(x + 36 * nt + 4 * t));
        UNROLL for (int r = 0; r < nr; r++) {
            __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r * nt + t]), _mm512_mul_ps(d[r], dx), acc[r * nt + t]);
            acc[r * nt + t] = f == FMT_Q4_1 ? _mm512_fmadd_ps(m[r], sx, sum) : sum;
        }
    }
}

/* ---- one segment, F32 activations --------------------------------------------------------------------------------------------------------------- */

/* acc[r][t] += w[r] · x[t] of one column. */
INLINE void column(const int nt, const int nr, const __m512 *w, const uint8_t *x, __m512 *acc) {
    UNROLL for (int t = 0; t < nt; t++) {
        __m512 xt = _mm512_set1_ps(load_f32(x + 4 * t));
        UNROLL for (int r = 0; r < nr; r++) acc[r * nt + t] = _mm512_fmadd_ps(w[r], xt, acc[r * nt + t]);
    }
}

INLINE void segment_f32(const enum format f, const int nt, const int nr, const uint8_t *w, size_t stride, const uint8_t *x, __m512 *acc) {
    __m512 wr[4], d[4], m[4];
    switch (f) {
    case FMT_Q4_1: {
        const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        UNROLL for (int r = 0; r < nr; r++) {
            d[r] = load_halves(w + (size_t)r * stride + 256);
            m[r] = load_halves(w + (size_t)r * stride + 288);
        }
        UNROLL for (unsigned half = 0; half < 2; half++) { /* unrolled, so that shifts are by constants: one operation instead of two */
            for (int quad = 0; quad < 4; quad++) {
                UNROLL for (unsigned b = 0; b < 4; b++) {
                    UNROLL for (int r = 0; r < nr; r++) {
                        /* The permutation looks at the low four bits of its index only. */
                        __m512i u = _mm512_srli_epi32(_mm512_loadu_si512(w + (size_t)r * stride + 64 * quad), 8 * b + 4 * half);
                        wr[r] = _mm512_fmadd_ps(_mm512_permutexvar_ps(u, numbers), d[r], m[r]);
                    }
                    column(nt, nr, wr, x, acc);
                    x += 4 * nt;
                }
            }
        }
        break;
    }
    case FMT_Q8_0:
        UNROLL for (int r = 0; r < nr; r++) d[r] = load_halves(w + (size_t)r * stride + 512);
        for (int quad = 0; quad < 8; quad++) {
            UNROLL for (unsigned b = 0; b < 4; b++) {
                UNROLL for (int r = 0; r < nr; r++) {
                    __m512i u = _mm512_loadu_si512(w + (size_t)r * stride + 64 * quad);
                    u = _mm512_sub_epi32(_mm512_and_si512(_mm512_srli_epi32(u, 8 * b), _mm512_set1_epi32(255)), _mm512_set1_epi32(128));
                    wr[r] = _mm512_mul_ps(d[r], _mm512_cvtepi32_ps(u));
                }
                column(nt, nr, wr, x, acc);
                x += 4 * nt;
            }
        }
        break;
    default:
        for (int quad = 0; quad < 8; quad++) {
            UNROLL for (int b = 0; b < 4; b++) {
                UNROLL for (int r = 0; r < nr; r++) {
                    const uint8_t *from = w + (size_t)r * stride + (size_t)(4 * quad + b) * (f == FMT_F32 ? 64 : 32);
                    if (f == FMT_F32)
                        wr[r] = _mm512_loadu_ps(from);
                    else if (f == FMT_F16)
                        wr[r] = load_halves(from);
                    else
                        wr[r] = _mm512_castsi512_ps(
                            _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from)), 16));
                }
                column(nt, nr, wr, x, acc);
                x += 4 * nt;
            }
        }
    }
}

/* ---- whole row tiles ---------------------------------------------------------------------------------------------------------------------------- */

struct walk {
    const struct cpu_rows *a;
    size_t row, apart; /* the first row of the first of nr tiles, and rows from one tile to the next */
    int depth;
    uint32_t i_vector;
    __m512 stack[CPU_STACK][16]; /* [..][nr·nt] */
};

/* After leaf i has been stored on top of the stack. */
static void end_leaf(struct walk *k, const struct kern_columns *c, uint32_t i_leaf, int nt, int nr) {
    const struct cpu_rows *a = k->a;
    k->depth++;
    for (int n = c->n_folds[i_leaf]; n > 0; n--, k->depth--)
        for (int i = 0; i < nr * nt; i++) k->stack[k->depth - 2][i] = _mm512_add_ps(k->stack[k->depth - 2][i], k->stack[k->depth - 1][i]);
    if (!c->emit[i_leaf]) return;
    k->depth--;
    for (int r = 0; r < nr; r++) {
        size_t row = k->row + (size_t)r * k->apart;
        __mmask16 mask = a->n_rows - row >= ROWS ? 0xffff : (__mmask16)((1u << (a->n_rows - row)) - 1);
        for (int t = 0; t < nt; t++) {
            __m512 sum = k->stack[k->depth][r * nt + t];
            if (a->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, a->bias + row));
            _mm512_mask_storeu_ps(a->y + k->i_vector * a->vector_stride + (size_t)t * a->y_stride + row, mask, sum);
        }
    }
    k->i_vector++;
}

/* nt tokens × nr row tiles, the first at row, `apart` rows from one to the next. nt, nr, f and is_int8 are constants wherever this is inlined. */
INLINE void walk_tiles(const struct cpu_rows *a, size_t row, size_t apart, const int nt, const int nr, const enum format f, const bool is_int8) {
    const struct kern_columns *c = a->columns;
    const size_t tile_bytes = cpu_tile_bytes(f), row_tile_bytes = tile_bytes * c->n_segments, stride = apart / ROWS * row_tile_bytes;
    const size_t record_bytes = (size_t)nt * (is_int8 ? CPU_INT8_BYTES : CPU_F32_BYTES);
    const uint8_t *w = a->tiles + row / ROWS * row_tile_bytes, *x = a->x;
    struct walk k;
    k.a = a, k.row = row, k.apart = apart, k.depth = 0, k.i_vector = 0;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        /* Sixteen integer sums leave no room for as many accumulators: those wait in the first-level cache. */
        __m512 in_registers[16], *acc = is_int8 && nr * nt > 8 ? k.stack[k.depth] : in_registers;
        _Pragma("GCC unroll 16") for (int j = 0; j < nr * nt; j++) acc[j] = _mm512_setzero_ps();
        for (uint32_t n = c->leaf_segment[i + 1] - c->leaf_segment[i]; n > 0; n--, w += tile_bytes, x += record_bytes) {
            for (int r = 0; r < nr; r++)
                for (size_t line = 0; line < tile_bytes; line += 64)
                    _mm_prefetch((const char *)w + (size_t)r * stride + AHEAD_BYTES + line, _MM_HINT_T0);
            if (is_int8) {
                segment_int8(f, nt, nr, w, stride, x, acc);
                if (acc != in_registers) __asm__ volatile("" ::: "memory"); /* else the compiler keeps them in registers, and spills sums */
            } else
                segment_f32(f, nt, nr, w, stride, x, acc);
        }
        _Pragma("GCC unroll 16") for (int j = 0; j < nr * nt; j++) k.stack[k.depth][j] = acc[j];
        end_leaf(&k, c, i, nt, nr);
    }
}

/* The rows are cut into nr runs of whole tiles that advance side by side: several streams read memory a third faster than one, and long chains of additions
 * overlap. What is left is done one by one. */
#define ROWS_N(act, format, nt, nr, is_int8)                                                                                                         \
    static __attribute__((noinline)) void act##_##format##_##nt(const struct cpu_rows *a) {                                                          \
        size_t n_tiles = (a->n_rows + ROWS - 1) / ROWS, run = n_tiles / nr * ROWS, row = 0;                                                          \
        for (; row < run; row += ROWS) walk_tiles(a, row, run, nt, nr, FMT_##format, is_int8);                                                       \
        row = run * nr;                                                                                                                              \
        if (nr > 2 && n_tiles % nr >= 2) walk_tiles(a, row, ROWS, nt, 2, FMT_##format, is_int8), row += 2 * ROWS;                                    \
        for (; row < n_tiles * ROWS; row += ROWS) walk_tiles(a, row, ROWS, nt, 1, FMT_##format, is_int8);                                            \
    }
#define INT8_N(format, nt, nr) ROWS_N(int8, format, nt, nr, true)
#define F32_N(format, nt, nr) ROWS_N(f32, format, nt, nr, false)
#define INT8(format)                                                                                                                                 \
    INT8_N(format, 1, 4)                                                                                                                             \
    INT8_N(format, 2, 4)                                                                                                                             \
    INT8_N(format, 3, 2) INT8_N(format, 4, 2) INT8_N(format, 5, 2) INT8_N(format, 6, 2) INT8_N(format, 7, 2) INT8_N(format, 8, 2)                    \
        BY_TOKENS(int8, format)
#define F32(format)                                                                                                                                  \
    F32_N(format, 1, 4)                                                                                                                              \
    F32_N(format, 2, 4)                                                                                                                              \
    F32_N(format, 3, 2) F32_N(format, 4, 2) F32_N(format, 5, 2) F32_N(format, 6, 2) F32_N(format, 7, 2) F32_N(format, 8, 2) BY_TOKENS(f32, format)

INT8(Q4_1)
INT8(Q8_0)
F32(Q4_1)
F32(Q8_0)
F32(F16)
F32(BF16)
F32(F32)

/* ---- quantising activations (see matmul_portable.c for the corner cases) ------------------------------------------------------------------------ */

static struct cpu_scale quantise(const float *x, int n, int8_t *q) {
    const __mmask16 lo_mask = n >= 16 ? 0xffff : (__mmask16)((1u << n) - 1), hi_mask = n <= 16 ? 0 : (__mmask16)((1u << (n - 16)) - 1);
    const __m512 lo = _mm512_maskz_loadu_ps(lo_mask, x), hi = _mm512_maskz_loadu_ps(hi_mask, x + 16);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), most = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127);
    uint32_t amax_bits = _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(lo), magnitude), _mm512_and_si512(_mm512_castps_si512(hi), magnitude)));
    float amax;
    memcpy(&amax, &amax_bits, 4);
    float d = amax / 127.0f;
    if (amax_bits >= 0x7f800000 || d == 0.0f) {
        memset(q, 0, 32);
        return amax_bits >= 0x7f800000 ? (struct cpu_scale){NAN, NAN, 0} : (struct cpu_scale){0, 0, 0};
    }
    __m512i lo_q = _mm512_cvtps_epi32(_mm512_div_ps(lo, _mm512_set1_ps(d))), hi_q = _mm512_cvtps_epi32(_mm512_div_ps(hi, _mm512_set1_ps(d)));
    lo_q = _mm512_max_epi32(_mm512_min_epi32(lo_q, most), least);
    hi_q = _mm512_max_epi32(_mm512_min_epi32(hi_q, most), least);
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(lo_q));
    _mm_storeu_si128((__m128i *)(void *)(q + 16), _mm512_cvtepi32_epi8(hi_q));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(lo_q, hi_q));
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_avx512 = {
    .int8 = {[FMT_Q4_1] = int8_Q4_1, [FMT_Q8_0] = int8_Q8_0},
    .f32 = {[FMT_Q4_1] = f32_Q4_1, [FMT_Q8_0] = f32_Q8_0, [FMT_F16] = f32_F16, [FMT_BF16] = f32_BF16, [FMT_F32] = f32_F32},
    .quantise = quantise,
};
