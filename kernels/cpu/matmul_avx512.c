/* The product's kernels for AVX-512 with VNNI: one lane per output row, so a tile is one register wide; tokens × row tiles are separate accumulators.
 * kernels/cpu/matmul_priv.h has the layout and the order of operations.
 *
 * One token (decode) and full groups of them (prefill) have a function for each format that takes codes from a tile to vpdpbusd in registers. For what lies
 * between, and for the accurate setting, a function for each format writes a tile's codes and scales (int8) or its numbers (F32) to the first-level cache, and
 * loops that know nothing of formats multiply from there: a quarter slower, and not another fifteen kernels for each format.
 *
 * int8: a token's 4 bytes are broadcast from memory and meet the codes of 16 rows by vpdpbusd: 8 of them, a conversion and 2–3 multiplications a token. F32:
 * a place's 16 weights meet the tokens by one FMA each; since a place depends on the one before, several row tiles are taken at once. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"
#include "kernels/cpu/ops_priv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = KERN_TILE_ROWS, MAX_TILES = 4 };
/* Weights come from memory once: fetched this far ahead. */
enum { AHEAD_BYTES = 4096 };

INLINE int32_t load_i32(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}


INLINE __m128i load_128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
INLINE __m512 load_halves(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p)); }
INLINE __m512 load_bytes(const uint8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_128(p))); }

INLINE void prefetch(const uint8_t *w, const size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) _mm_prefetch((const char *)w + AHEAD_BYTES + line, _MM_HINT_T0);
}

/* ---- out of a tile -------------------------------------------------------------------------------------------------------------------------------- */

/* Codes of places 4·quad … 4·quad + 3, a byte each: [row][b]. E2M1 codes become twice their values, with the bias. */
INLINE __m512i codes_of(const enum format f, const uint8_t *w, const unsigned quad) {
    if (cpu_is_int8(f)) return _mm512_loadu_si512(w + 64 * quad);
    __m512i u = _mm512_loadu_si512(w + 64 * (quad & 3));
    u = _mm512_and_si512(quad < 4 ? u : _mm512_srli_epi16(u, 4), _mm512_set1_epi8(15));
    if (cpu_is_e2m1(f)) {
        const __m128i values = _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4);
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(values), u);
    }
    if (cpu_high_bits(f) == 0) return u;
    /* Bits that leave their byte are masked away. */
    const unsigned from = cpu_high_bits(f) == 1 ? quad : 2 * (quad & 3);
    __m512i high = _mm512_loadu_si512(w + 256 + (cpu_high_bits(f) == 2 ? 64 * (quad >> 2) : 0));
    high = from < 4 ? _mm512_slli_epi16(high, 4 - from) : _mm512_srli_epi16(high, from - 4);
    return _mm512_ternarylogic_epi32(u, high, _mm512_set1_epi8(cpu_high_bits(f) == 1 ? 0x10 : 0x30), 0xf8); /* u | (high & mask) */
}

/* E4M3 without sign ÷ 256: as F16 of the same digits, no subnormal F32, which would be slow. */
INLINE __m512 load_e4m3(const uint8_t *p) { return _mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load_128(p)), 7)); }

/* dw of 16 rows. */
INLINE __m512 scale_of(const enum format f, const uint8_t *w, const uint8_t *head, const int half) {
    const uint8_t *at = w + cpu_codes_bytes(f);
    if (f == FMT_FP8) return _mm512_mul_ps(_mm512_loadu_ps(head), load_e4m3(at));
    if (cpu_is_joined(f)) return _mm512_loadu_ps(head);
    switch (f) {
    case FMT_Q4_K:
    case FMT_Q5_K: return _mm512_mul_ps(load_halves(head), load_bytes(at));
    case FMT_Q6_K: return _mm512_mul_ps(load_halves(head), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(at + 16 * half))));
    case FMT_MXFP4: {
        __m512i e = _mm512_cvtepu8_epi32(load_128(at)), bits = _mm512_slli_epi32(_mm512_sub_epi32(e, _mm512_set1_epi32(1)), 23);
        __mmask16 tiny = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
        return _mm512_castsi512_ps(_mm512_mask_sllv_epi32(bits, tiny, _mm512_set1_epi32(0x00200000), e));
    }
    case FMT_NVFP4: return _mm512_mul_ps(load_e4m3(at + 16 * half), _mm512_set1_ps(128));
    default: return load_halves(at);
    }
}

/* m of 16 rows. */
INLINE __m512 min_of(const enum format f, const uint8_t *w, const uint8_t *head) {
    const uint8_t *at = w + cpu_codes_bytes(f);
    if (cpu_is_joined(f)) return _mm512_loadu_ps(head + 64);
    return cpu_is_super(f) ? _mm512_mul_ps(load_halves(head + 32), load_bytes(at + 16)) : load_halves(at + 32);
}

/* ---- a walk over segments and leaves, whatever is multiplied -------------------------------------------------------------------------------------- */

struct walk {
    const struct cpu_rows *a;
    size_t row, apart; /* the first row of the first of nr tiles, and rows from one tile to the next */
    int depth;
    uint32_t i_vector;
    __m512 stack[CPU_STACK][16]; /* [..][nr·nt] */
};

/* Rows that there are of 16 from `row` on. */
INLINE __mmask16 mask_of(const struct cpu_rows *a, size_t row) {
    return a->n_rows - row >= ROWS ? 0xffff : (__mmask16)((1u << (a->n_rows - row)) - 1);
}

/* The sums of token t that the next vector goes into: of the first of the row tiles. */
INLINE float *sums_of(const struct walk *k, int t) {
    const struct cpu_sums *to = &k->a->to;
    return to->sums + k->row / ROWS * to->tile_stride + (size_t)to->token[t] * to->token_stride + k->i_vector * ROWS;
}

/* At the start of a leaf: they lie apart, and in the second-level cache at best. */
INLINE void prefetch_sums(const struct walk *k, const int nt, const int nr) {
    const size_t apart = k->apart / ROWS * k->a->to.tile_stride;
    for (int t = 0; t < nt; t++)
        for (int r = 0; r < nr; r++) _mm_prefetch((const char *)(sums_of(k, t) + (size_t)r * apart), _MM_HINT_T0);
}

/* The vector on top of the stack, weighted. */
INLINE void add_to_sums(const struct walk *k, int nt, int nr) {
    const struct cpu_rows *a = k->a;
    const size_t apart = k->apart / ROWS * a->to.tile_stride;
    for (int t = 0; t < nt; t++) {
        const __m512 weight = _mm512_set1_ps(a->to.weight[t]);
        float *to = sums_of(k, t);
        for (int r = 0; r < nr; r++, to += apart) {
            const size_t row = k->row + (size_t)r * k->apart;
            __m512 sum = k->stack[k->depth][r * nt + t];
            if (a->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask_of(a, row), a->bias + row));
            _mm512_store_ps(to, _mm512_fmadd_ps(weight, sum, _mm512_load_ps(to)));
        }
    }
}

/* After leaf i times the scale has been stored on top of the stack. Once, not in each kernel: that would take half of the compiler's time. */
static __attribute__((noinline)) void end_leaf(struct walk *k, const struct kern_columns *c, uint32_t i_leaf, int nt, int nr) {
    const struct cpu_rows *a = k->a;
    k->depth++;
    for (int n = c->n_folds[i_leaf]; n > 0; n--, k->depth--)
        for (int i = 0; i < nr * nt; i++) k->stack[k->depth - 2][i] = _mm512_add_ps(k->stack[k->depth - 2][i], k->stack[k->depth - 1][i]);
    if (!c->emit[i_leaf]) return;
    k->depth--;
    if (a->to.sums) {
        add_to_sums(k, nt, nr);
        k->i_vector++;
        return;
    }
    for (int r = 0; r < nr; r++) {
        size_t row = k->row + (size_t)r * k->apart;
        __mmask16 mask = mask_of(a, row);
        for (int t = 0; t < nt; t++) {
            __m512 sum = k->stack[k->depth][r * nt + t];
            if (a->bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, a->bias + row));
            _mm512_mask_storeu_ps(a->y + k->i_vector * a->vector_stride + (size_t)t * a->y_stride + row, mask, sum);
        }
    }
    k->i_vector++;
}

/* A tile out of which many tokens are served. */
struct decoded {
    uint8_t codes[8 * 64];
    __m512 d[2], m;
};

/* What many tokens need of a format. */
struct codec {
    enum format format;
    int bias_shift; /* of −128·Σq, to make it −bias·Σq; above 7: no bias */
    void (*codes)(const uint8_t *w, const uint8_t *head, struct decoded *to);
    void (*weights)(const uint8_t *w, const uint8_t *head, float *to); /* [place][row] */
};

/* One segment of nr row tiles, the first at w, the others stride bytes apart, times nt tokens. */
enum kind { DIRECT_INT8, DIRECT_F32, MANY_INT8, MANY_INT8_MIN, MANY_INT8_16, MANY_F32, PLAIN_F32 };
INLINE void segment(const enum kind kind, const enum format f, const struct codec *codec, const int nt, const int nr, const uint8_t *w, const uint8_t *head,
                    size_t stride, const uint8_t *x, __m512 *acc);

/* nt tokens × nr row tiles, the first at row, `apart` rows from one to the next. kind, nt and nr are constants wherever this is inlined, and f where
 * codec is NULL. */
INLINE void walk_tiles(const struct cpu_rows *a, size_t row, size_t apart, const enum kind kind, const enum format f, const struct codec *codec, const int nt,
                       const int nr) {
    const struct kern_columns *c = &a->matrix->columns;
    const bool is_f32 = kind == DIRECT_F32 || kind == MANY_F32 || kind == PLAIN_F32;
    const bool is_16 = kind == MANY_INT8_16 || (kind == DIRECT_INT8 && cpu_halves(f) == 2);
    const size_t tile_bytes = cpu_tile_bytes(f), head_bytes = cpu_head_bytes(f), row_tile_bytes = cpu_row_tile_bytes(f, a->matrix), stride = apart / ROWS * row_tile_bytes;
    const size_t record_bytes = (size_t)nt * cpu_token_bytes(is_f32 ? KERN_ACT_F32 : is_16 ? KERN_ACT_INT8_16 : KERN_ACT_INT8);
    const uint8_t *w = a->tiles + row / ROWS * row_tile_bytes, *x = a->x, *head = w;
    const unsigned head_log2 = cpu_head_log2(f, a->matrix);
    size_t i_head = SIZE_MAX;
    struct walk k;
    k.a = a, k.row = row, k.apart = apart, k.depth = 0, k.i_vector = 0;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        if (a->to.sums && c->emit[i]) prefetch_sums(&k, nt, nr);
        /* Sixteen integer sums leave no room for as many accumulators: those wait in the first-level cache. */
        __m512 in_registers[16], *acc = !is_f32 && nr * nt > 8 ? k.stack[k.depth] : in_registers;
        _Pragma("GCC unroll 16") for (int j = 0; j < nr * nt; j++) acc[j] = _mm512_setzero_ps();
        for (uint32_t s = c->leaf_segment[i]; s < c->leaf_segment[i + 1]; s++, w += tile_bytes, x += record_bytes) {
            if (head_bytes && cpu_head_of(c, s, head_log2) != i_head) i_head = cpu_head_of(c, s, head_log2), head = w, w += head_bytes;
            if (!codec)
                for (int r = 0; r < nr; r++) prefetch(w + (size_t)r * stride, tile_bytes);
            segment(kind, f, codec, nt, nr, w, head, stride, x, acc);
            if (acc != in_registers) __asm__ volatile("" ::: "memory"); /* else the compiler keeps them in registers, and spills sums */
        }
        _Pragma("GCC unroll 16") for (int j = 0; j < nr * nt; j++) k.stack[k.depth][j] = _mm512_mul_ps(acc[j], _mm512_set1_ps(a->matrix->scale));
        end_leaf(&k, c, i, nt, nr);
    }
}

/* The rows are cut into nr runs of whole tiles that advance side by side: several streams read memory a third faster than one, and long chains of additions
 * overlap. What is left is done one by one. */
INLINE void walk_rows(const struct cpu_rows *a, const enum kind kind, const enum format f, const struct codec *codec, const int nt, const int nr) {
    size_t n_tiles = (a->n_rows + ROWS - 1) / ROWS, run = n_tiles / (size_t)nr * ROWS, row = 0;
    for (; row < run; row += ROWS) walk_tiles(a, row, run, kind, f, codec, nt, nr);
    row = run * (size_t)nr;
    if (nr > 2 && n_tiles % (size_t)nr >= 2) walk_tiles(a, row, ROWS, kind, f, codec, nt, 2), row += 2 * ROWS;
    for (; row < n_tiles * ROWS; row += ROWS) walk_tiles(a, row, ROWS, kind, f, codec, nt, 1);
}

/* ---- int8 ------------------------------------------------------------------------------------------------------------------------------------------ */

/* Codes straight from the tile. */
INLINE void direct_int8(const enum format f, const int nt, const int nr, const uint8_t *w, const uint8_t *head, size_t stride, const uint8_t *x, __m512 *acc) {
    const int n_halves = cpu_halves(f), n_quads = 8 / n_halves;
    UNROLL for (int h = 0; h < n_halves; h++) {
        __m512i dot[16];
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i start = _mm512_setzero_si512();
            if (cpu_bias_log2(f) >= 0) start = _mm512_srai_epi32(_mm512_set1_epi32(load_i32(x + (40 + 4 * h) * nt + 4 * t)), 7 - (unsigned)cpu_bias_log2(f));
            UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = start;
        }
        UNROLL for (int q = 0; q < n_quads; q++) {
            const int quad = 4 * h + q;
            __m512i c[MAX_TILES];
            UNROLL for (int r = 0; r < nr; r++) c[r] = codes_of(f, w + (size_t)r * stride, (unsigned)quad);
            UNROLL for (int t = 0; t < nt; t++) {
                __m512i a = _mm512_set1_epi32(load_i32(x + 32 * t + 4 * quad));
                UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = _mm512_dpbusd_epi32(dot[r * nt + t], c[r], a);
            }
        }
        __m512 dw[MAX_TILES], mw[MAX_TILES];
        UNROLL for (int r = 0; r < nr; r++) {
            dw[r] = scale_of(f, w + (size_t)r * stride, head + (size_t)r * stride, h);
            if (cpu_has_min(f)) mw[r] = min_of(f, w + (size_t)r * stride, head + (size_t)r * stride);
        }
        UNROLL for (int t = 0; t < nt; t++) {
            __m512 d = _mm512_set1_ps(cpu_float_at(x + (32 + 4 * h) * nt + 4 * t)), d_sum = _mm512_set1_ps(cpu_float_at(x + 36 * nt + 4 * t));
            UNROLL for (int r = 0; r < nr; r++) {
                __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r * nt + t]), _mm512_mul_ps(dw[r], d), acc[r * nt + t]);
                acc[r * nt + t] = cpu_has_min(f) ? _mm512_fmadd_ps(mw[r], d_sum, sum) : sum;
            }
        }
    }
}

INLINE void many_int8(const enum kind kind, const struct codec *codec, const int nt, const int nr, const uint8_t *w, const uint8_t *head, size_t stride,
                      const uint8_t *x, __m512 *acc) {
    const int n_halves = kind == MANY_INT8_16 ? 2 : 1, n_quads = 8 / n_halves;
    struct decoded u[MAX_TILES];
    for (int r = 0; r < nr; r++) codec->codes(w + (size_t)r * stride, head + (size_t)r * stride, &u[r]);
    const bool biased = codec->bias_shift <= 7; /* where there is a minimum; without one always */
    const __m128i shift = _mm_cvtsi32_si128(codec->bias_shift);
    UNROLL for (int h = 0; h < n_halves; h++) {
        __m512i dot[16];
        UNROLL for (int t = 0; t < nt; t++) {
            __m512i start = kind == MANY_INT8_MIN && !biased ? _mm512_setzero_si512() : _mm512_sra_epi32(_mm512_set1_epi32(load_i32(x + (40 + 4 * h) * nt + 4 * t)), shift);
            UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = start;
        }
        UNROLL for (int q = 0; q < n_quads; q++) {
            const int quad = 4 * h + q;
            __m512i c[MAX_TILES];
            UNROLL for (int r = 0; r < nr; r++) c[r] = _mm512_loadu_si512(u[r].codes + 64 * quad);
            UNROLL for (int t = 0; t < nt; t++) {
                __m512i a = _mm512_set1_epi32(load_i32(x + 32 * t + 4 * quad));
                UNROLL for (int r = 0; r < nr; r++) dot[r * nt + t] = _mm512_dpbusd_epi32(dot[r * nt + t], c[r], a);
            }
        }
        UNROLL for (int t = 0; t < nt; t++) {
            __m512 d = _mm512_set1_ps(cpu_float_at(x + (32 + 4 * h) * nt + 4 * t)), d_sum = _mm512_set1_ps(cpu_float_at(x + 36 * nt + 4 * t));
            UNROLL for (int r = 0; r < nr; r++) {
                __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r * nt + t]), _mm512_mul_ps(u[r].d[h], d), acc[r * nt + t]);
                acc[r * nt + t] = kind == MANY_INT8_MIN ? _mm512_fmadd_ps(u[r].m, d_sum, sum) : sum;
            }
        }
    }
}

/* ---- F32 ------------------------------------------------------------------------------------------------------------------------------------------- */

/* 16 plain weights. */
INLINE __m512 load_plain(const enum format f, const uint8_t *w, size_t place) {
    const uint8_t *from = w + place * (f == FMT_F32 ? 64 : 32);
    if (f == FMT_F32) return _mm512_loadu_ps(from);
    if (f == FMT_F16) return load_halves(from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)from)), 16));
}

/* d: of each tile, or NULL. */
INLINE void plain_f32(const enum format f, const __m512 *d, const int nt, const int nr, const uint8_t *w, size_t stride, const uint8_t *x, __m512 *acc) {
    for (size_t quad = 0; quad < 8; quad++) {
        UNROLL for (size_t b = 0; b < 4; b++, x += 4 * nt) {
            __m512 wr[MAX_TILES];
            UNROLL for (int r = 0; r < nr; r++) {
                wr[r] = load_plain(f, w + (size_t)r * stride, 4 * quad + b);
                if (d) wr[r] = _mm512_mul_ps(d[r], wr[r]);
            }
            UNROLL for (int t = 0; t < nt; t++) {
                __m512 xt = _mm512_set1_ps(cpu_float_at(x + 4 * t));
                UNROLL for (int r = 0; r < nr; r++) acc[r * nt + t] = _mm512_fmadd_ps(wr[r], xt, acc[r * nt + t]);
            }
        }
    }
}

/* E4M3 becomes F16 of the same digits in the first-level cache, since conversion from there takes one operation, out of registers two. */
INLINE void fp8_f32(const int nt, const int nr, const uint8_t *w, const uint8_t *head, size_t stride, const uint8_t *x, __m512 *acc) {
    uint8_t halves[MAX_TILES][32 * ROWS * 2] __attribute__((aligned(64)));
    __m512 d[MAX_TILES];
    UNROLL for (int r = 0; r < nr; r++) {
        d[r] = _mm512_loadu_ps(head + (size_t)r * stride);
        for (size_t at = 0; at < sizeof halves[0]; at += 64) {
            const __m512i words = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(w + (size_t)r * stride + at / 2)));
            _mm512_store_si512(halves[r] + at, _mm512_and_si512(_mm512_slli_epi16(words, 7), _mm512_set1_epi16((short)0xbf80)));
        }
    }
    plain_f32(FMT_F16, d, nt, nr, halves[0], sizeof halves[0], x, acc);
}

INLINE void many_f32(const struct codec *codec, const int nt, const int nr, const uint8_t *w, const uint8_t *head, size_t stride, const uint8_t *x, __m512 *acc) {
    float numbers[MAX_TILES][32 * ROWS] __attribute__((aligned(64)));
    for (int r = 0; r < nr; r++) codec->weights(w + (size_t)r * stride, head + (size_t)r * stride, numbers[r]);
    plain_f32(FMT_F32, NULL, nt, nr, (const uint8_t *)numbers, sizeof numbers[0], x, acc);
}

/* q of place 4·quad + b: byte b of each lane. */
INLINE __m512 numbers_of(const enum format f, const uint8_t *w, const unsigned quad, const unsigned b) {
    if (cpu_codes_bytes(f) == 256) { /* a nibble: out of a table by the lowest 4 bits */
        const __m128i counted = _mm_sub_epi8(_mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), _mm_set1_epi8((char)cpu_bias(f)));
        const __m128i q = cpu_is_e2m1(f) ? load_128((const uint8_t *)cpu_e2m1_doubled) : counted;
        const __m512i u = _mm512_loadu_si512(w + 64 * (quad & 3));
        return _mm512_permutexvar_ps(_mm512_srli_epi32(u, 8 * b + (quad < 4 ? 0 : 4)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)));
    }
    const __m512i u = codes_of(f, w, quad), code = b == 3 ? _mm512_srli_epi32(u, 24) : _mm512_and_si512(_mm512_srli_epi32(u, 8 * b), _mm512_set1_epi32(255));
    return _mm512_cvtepi32_ps(cpu_bias(f) ? _mm512_sub_epi32(code, _mm512_set1_epi32(cpu_bias(f))) : code);
}

/* A weight of value dw·q or dw·q + m; with an F16 d, dw·q is exact. */
INLINE __m512 weight_of(const enum format f, __m512 q, __m512 dw, __m512 m) {
    if (cpu_has_min(f) && !cpu_is_joined(f)) return _mm512_fmadd_ps(q, dw, m);
    return cpu_has_min(f) ? _mm512_add_ps(_mm512_mul_ps(q, dw), m) : _mm512_mul_ps(q, dw);
}

/* One token, numbers straight from the tile; of formats without high bits, whose quads are all alike. */
INLINE void direct_f32(const enum format f, const int nr, const uint8_t *w, const uint8_t *head, size_t stride, const uint8_t *x, __m512 *acc) {
    __m512 d[MAX_TILES][2], m[MAX_TILES];
    UNROLL for (int r = 0; r < nr; r++) {
        UNROLL for (int h = 0; h < cpu_halves(f); h++) d[r][h] = scale_of(f, w + (size_t)r * stride, head + (size_t)r * stride, h);
        m[r] = cpu_has_min(f) ? min_of(f, w + (size_t)r * stride, head + (size_t)r * stride) : _mm512_setzero_ps();
    }
    UNROLL for (int h = 0; h < 2; h++)
        for (unsigned q = 0; q < 4; q++) {
            UNROLL for (unsigned b = 0; b < 4; b++, x += 4) {
                const __m512 xt = _mm512_set1_ps(cpu_float_at(x));
                UNROLL for (int r = 0; r < nr; r++) {
                    const __m512 number = numbers_of(f, w + (size_t)r * stride, 4 * (unsigned)h + q, b);
                    acc[r] = _mm512_fmadd_ps(weight_of(f, number, d[r][cpu_halves(f) == 2 ? h : 0], m[r]), xt, acc[r]);
                }
            }
        }
}

/* A tile's numbers, [place][row]. */
INLINE void weights_of(const enum format f, const uint8_t *w, const uint8_t *head, float *to) {
    const __m512 d[2] = {scale_of(f, w, head, 0), scale_of(f, w, head, cpu_halves(f) - 1)}, m = cpu_has_min(f) ? min_of(f, w, head) : _mm512_setzero_ps();
    UNROLL for (unsigned i = 0; i < 8; i++) {
        UNROLL for (unsigned b = 0; b < 4; b++, to += ROWS) {
            _mm512_store_ps(to, weight_of(f, numbers_of(f, w, i, b), d[i / 4], m));
        }
    }
}

/* ---- instances ------------------------------------------------------------------------------------------------------------------------------------- */

INLINE void segment(const enum kind kind, const enum format f, const struct codec *codec, const int nt, const int nr, const uint8_t *w, const uint8_t *head,
                    size_t stride, const uint8_t *x, __m512 *acc) {
    if (kind == DIRECT_INT8) direct_int8(f, nt, nr, w, head, stride, x, acc);
    else if (kind == DIRECT_F32) direct_f32(f, nr, w, head, stride, x, acc);
    else if (kind == PLAIN_F32 && f == FMT_FP8) fp8_f32(nt, nr, w, head, stride, x, acc);
    else if (kind == PLAIN_F32) plain_f32(f, NULL, nt, nr, w, stride, x, acc);
    else if (kind == MANY_F32) many_f32(codec, nt, nr, w, head, stride, x, acc);
    else many_int8(kind, codec, nt, nr, w, head, stride, x, acc);
}

/* Loops for any number of tokens: for one or two, four row tiles side by side, else two. */
typedef void (*many_fn)(const struct cpu_rows *a, const struct codec *codec);
#define MANY_N(name, kind, nt, nr)                                                                                            \
    static __attribute__((noinline)) void name##_##nt(const struct cpu_rows *a, const struct codec *codec) {                  \
        walk_rows(a, kind, codec->format, codec, nt, nr);                                                                     \
    }
#define MANY(name, kind)                                                                                                      \
    MANY_N(name, kind, 1, 4)                                                                                                  \
    MANY_N(name, kind, 2, 4)                                                                                                  \
    MANY_N(name, kind, 3, 2)                                                                                                  \
    MANY_N(name, kind, 4, 2)                                                                                                  \
    MANY_N(name, kind, 5, 2)                                                                                                  \
    MANY_N(name, kind, 6, 2)                                                                                                  \
    MANY_N(name, kind, 7, 2)                                                                                                  \
    MANY_N(name, kind, 8, 2)                                                                                                  \
    static const many_fn name[CPU_GROUP + 1] = {NULL,     name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8};
MANY(many_biased, MANY_INT8)
MANY(many_with_min, MANY_INT8_MIN)
MANY(many_by_16, MANY_INT8_16)
MANY(many_numbers, MANY_F32)

#define INT8(format)                                                                                                                                  \
    static void codes_##format(const uint8_t *w, const uint8_t *head, struct decoded *to) {                                                           \
        prefetch(w, cpu_tile_bytes(FMT_##format));                                                                                                    \
        UNROLL for (unsigned quad = 0; quad < 8; quad++) _mm512_storeu_si512(to->codes + 64 * quad, codes_of(FMT_##format, w, quad));                 \
        UNROLL for (int h = 0; h < cpu_halves(FMT_##format); h++) to->d[h] = scale_of(FMT_##format, w, head, h);                                      \
        if (cpu_has_min(FMT_##format)) to->m = min_of(FMT_##format, w, head);                                                                         \
    }                                                                                                                                                 \
    static __attribute__((noinline)) void one_##format(const struct cpu_rows *a) { walk_rows(a, DIRECT_INT8, FMT_##format, NULL, 1, 4); }             \
    static __attribute__((noinline)) void eight_##format(const struct cpu_rows *a) { walk_rows(a, DIRECT_INT8, FMT_##format, NULL, 8, 2); }           \
    static void int8_##format(const struct cpu_rows *a) {                                                                                             \
        const struct codec codec = {FMT_##format, 7 - cpu_bias_log2(FMT_##format), codes_##format, NULL};                                             \
        const many_fn *many = cpu_halves(FMT_##format) == 2 ? many_by_16 : cpu_has_min(FMT_##format) ? many_with_min : many_biased;                   \
        if (a->n_tokens == 1)                                                                                                                         \
            one_##format(a);                                                                                                                          \
        else if (a->n_tokens == CPU_GROUP)                                                                                                            \
            eight_##format(a);                                                                                                                        \
        else                                                                                                                                          \
            many[a->n_tokens](a, &codec);                                                                                                             \
    }
CPU_INT8(INT8)

#define NUMBERS(format)                                                                                                                               \
    static void weights_##format(const uint8_t *w, const uint8_t *head, float *to) {                                                                  \
        prefetch(w, cpu_tile_bytes(FMT_##format));                                                                                                    \
        weights_of(FMT_##format, w, head, to);                                                                                                        \
    }                                                                                                                                                 \
    static __attribute__((noinline)) void one_f32_##format(const struct cpu_rows *a) { walk_rows(a, DIRECT_F32, FMT_##format, NULL, 1, 4); }          \
    static void f32_##format(const struct cpu_rows *a) {                                                                                              \
        const struct codec codec = {FMT_##format, 0, NULL, weights_##format};                                                                         \
        if (a->n_tokens == 1 && cpu_high_bits(FMT_##format) == 0)                                                                                     \
            one_f32_##format(a);                                                                                                                      \
        else                                                                                                                                          \
            many_numbers[a->n_tokens](a, &codec);                                                                                                     \
    }
CPU_QUANTISED(NUMBERS)

#define PLAIN_N(format, nt, nr) \
    static __attribute__((noinline)) void f32_##format##_##nt(const struct cpu_rows *a) { walk_rows(a, PLAIN_F32, FMT_##format, NULL, nt, nr); }
#define PLAIN(format)                                                                                                                                 \
    PLAIN_N(format, 1, 4)                                                                                                                             \
    PLAIN_N(format, 2, 4)                                                                                                                             \
    PLAIN_N(format, 3, 2) PLAIN_N(format, 4, 2) PLAIN_N(format, 5, 2) PLAIN_N(format, 6, 2) PLAIN_N(format, 7, 2) PLAIN_N(format, 8, 2)               \
    static void f32_##format(const struct cpu_rows *a) {                                                                                              \
        static const cpu_rows_fn by_tokens[CPU_GROUP + 1] = {NULL,                                                                                    \
                                                             f32_##format##_1,                                                                        \
                                                             f32_##format##_2,                                                                        \
                                                             f32_##format##_3,                                                                        \
                                                             f32_##format##_4,                                                                        \
                                                             f32_##format##_5,                                                                        \
                                                             f32_##format##_6,                                                                        \
                                                             f32_##format##_7,                                                                        \
                                                             f32_##format##_8};                                                                       \
        by_tokens[a->n_tokens](a);                                                                                                                    \
    }
CPU_PLAIN(PLAIN)

/* ---- quantising activations (see matmul_portable.c for the corner cases) ------------------------------------------------------------------------ */

static struct cpu_scale quantise(const float *x, size_t n, int8_t *q) {
    const __mmask16 hi_mask = n == 32 ? 0xffff : 0;
    const __m512 lo = _mm512_loadu_ps(x), hi = _mm512_maskz_loadu_ps(hi_mask, x + 16);
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff), most = _mm512_set1_epi32(127), least = _mm512_set1_epi32(-127);
    uint32_t amax_bits = _mm512_reduce_max_epu32(
        _mm512_max_epu32(_mm512_and_si512(_mm512_castps_si512(lo), magnitude), _mm512_and_si512(_mm512_castps_si512(hi), magnitude)));
    float amax;
    memcpy(&amax, &amax_bits, 4);
    float d = amax / 127.0f;
    if (amax_bits >= 0x7f800000 || d == 0.0f) {
        memset(q, 0, n);
        return amax_bits >= 0x7f800000 ? (struct cpu_scale){NAN, NAN, 0} : (struct cpu_scale){0, 0, 0};
    }
    __m512i lo_q = _mm512_cvtps_epi32(_mm512_div_ps(lo, _mm512_set1_ps(d))), hi_q = _mm512_cvtps_epi32(_mm512_div_ps(hi, _mm512_set1_ps(d)));
    lo_q = _mm512_max_epi32(_mm512_min_epi32(lo_q, most), least);
    hi_q = _mm512_max_epi32(_mm512_min_epi32(hi_q, most), least);
    _mm_storeu_si128((__m128i *)(void *)q, _mm512_cvtepi32_epi8(lo_q));
    if (n == 32) _mm_storeu_si128((__m128i *)(void *)(q + 16), _mm512_cvtepi32_epi8(hi_q));
    int32_t sum = _mm512_reduce_add_epi32(_mm512_add_epi32(lo_q, hi_q));
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_avx512 = {
    .int8 = {CPU_INT8(CPU_INT8_ENTRY)},
    .f32 = {CPU_QUANTISED(CPU_F32_ENTRY) CPU_PLAIN(CPU_F32_ENTRY)},
    .quantise = quantise,
    .fold = cpu_fold_avx512,
};
