/* The product's kernels for AVX2, FMA and F16C: a tile is two halves of 8 rows, one lane per output row.
 * kernels/cpu/matmul_priv.h has the layout and the order of operations; sums of integers are exact, so that their order here is free. As for AVX-512, one token
 * has a function for each format, and more tokens share loops that read what a function for each format has decoded into the first-level cache.
 *
 * Sixteen registers hold one half tile's sums of 8 tokens and little else; the F32 accumulators wait in the first-level cache between segments.
 * int8: codes are unsigned, so vpmaddubsw takes them as they are, and its 16-bit sums are widened before they can overflow: with codes up to 15 every eighth
 * time (8·2·15·127), up to 31 every fourth, up to 63 every second. Bytes: vpmaddubsw of |w| and a·sign(w), widened each time. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/cpu/matmul_priv.h"
#include "kernels/cpu/ops_priv.h"

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")

enum { ROWS = KERN_TILE_ROWS, HALF = ROWS / 2, MAX_SUMS = 2 * CPU_GROUP, AHEAD_BYTES = 4096 };

INLINE int32_t load_i32(const uint8_t *p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}


INLINE __m128i load_64(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)(const void *)p); }
INLINE __m256i load_256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }
INLINE __m256 load_floats(const uint8_t *p) { return _mm256_loadu_ps((const float *)(const void *)p); }
INLINE __m256 load_halves(const uint8_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p)); }
INLINE __m256 load_bytes(const uint8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load_64(p))); }

INLINE void prefetch(const uint8_t *w, const size_t bytes) {
    for (size_t line = 0; line < bytes; line += 64) _mm_prefetch((const char *)w + AHEAD_BYTES + line, _MM_HINT_T0);
}

/* ---- out of half a tile: rows 8·i … 8·i + 7 ------------------------------------------------------------------------------------------------------- */

/* Codes of places 4·quad … 4·quad + 3, a byte each: [row][b]. E2M1 codes become twice their values, with the bias. */
INLINE __m256i codes_of(const enum format f, const uint8_t *w, int i, const unsigned quad) {
    w += 32 * i;
    if (cpu_is_int8(f)) return load_256(w + 64 * quad);
    __m256i u = load_256(w + 64 * (quad & 3));
    u = _mm256_and_si256(quad < 4 ? u : _mm256_srli_epi16(u, 4), _mm256_set1_epi8(15));
    if (cpu_is_e2m1(f)) {
        const __m128i values = _mm_setr_epi8(16, 17, 18, 19, 20, 22, 24, 28, 16, 15, 14, 13, 12, 10, 8, 4);
        return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), u);
    }
    if (cpu_high_bits(f) == 0) return u;
    /* Bits that leave their byte are masked away. */
    const unsigned from = cpu_high_bits(f) == 1 ? quad : 2 * (quad & 3);
    __m256i high = load_256(w + 256 + (cpu_high_bits(f) == 2 ? 64 * (quad >> 2) : 0));
    high = from < 4 ? _mm256_slli_epi16(high, (int)(4 - from)) : _mm256_srli_epi16(high, (int)(from - 4));
    return _mm256_or_si256(u, _mm256_and_si256(high, _mm256_set1_epi8(cpu_high_bits(f) == 1 ? 0x10 : 0x30)));
}

/* E4M3 without sign ÷ 256: as F16 of the same digits, no subnormal F32, which would be slow. */
INLINE __m256 load_e4m3(const uint8_t *p) { return _mm256_cvtph_ps(_mm_slli_epi16(_mm_cvtepu8_epi16(load_64(p)), 7)); }

/* dw of 8 rows. */
INLINE __m256 scale_of(const enum format f, const uint8_t *w, const uint8_t *head, int i, const int half) {
    const uint8_t *at = w + cpu_codes_bytes(f);
    if (f == FMT_FP8) return _mm256_mul_ps(load_floats(head + 32 * i), load_e4m3(at + 8 * i));
    if (cpu_is_joined(f)) return load_floats(head + 32 * i);
    switch (f) {
    case FMT_Q4_K:
    case FMT_Q5_K: return _mm256_mul_ps(load_halves(head + 16 * i), load_bytes(at + 8 * i));
    case FMT_Q6_K: return _mm256_mul_ps(load_halves(head + 16 * i), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load_64(at + 16 * half + 8 * i))));
    case FMT_MXFP4: {
        __m256i e = _mm256_cvtepu8_epi32(load_64(at + 8 * i)), bits = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23);
        __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
        return _mm256_castsi256_ps(_mm256_blendv_epi8(bits, _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e), tiny));
    }
    case FMT_NVFP4: return _mm256_mul_ps(load_e4m3(at + 16 * half + 8 * i), _mm256_set1_ps(128));
    default: return load_halves(at + 16 * i);
    }
}

/* m of 8 rows. */
INLINE __m256 min_of(const enum format f, const uint8_t *w, const uint8_t *head, int i) {
    const uint8_t *at = w + cpu_codes_bytes(f);
    if (cpu_is_joined(f)) return load_floats(head + 64 + 32 * i);
    return cpu_is_super(f) ? _mm256_mul_ps(load_halves(head + 32 + 16 * i), load_bytes(at + 16 + 8 * i)) : load_halves(at + 32 + 16 * i);
}

/* A tile out of which many tokens are served. */
struct decoded {
    uint8_t codes[8 * 64];
    __m256 d[2][2], m[2]; /* [half of the places][half of the rows] */
};

/* What many tokens need of a format. */
struct codec {
    enum format format;
    int bias_shift; /* of −128·Σq, to make it −bias·Σq */
    bool has_min;
    void (*codes)(const uint8_t *w, const uint8_t *head, struct decoded *to);
    void (*weights)(const uint8_t *w, const uint8_t *head, float *to); /* [place][row] */
};

/* ---- int8 ------------------------------------------------------------------------------------------------------------------------------------------ */

/* How many quads' products are added in 16 bits; 0: none, by signs. (The shared loops take 4, or 2 in blocks of 16: another width would be another eight kernels.) */
INLINE unsigned quads_in_16(const enum format f) { return cpu_is_int8(f) ? 0 : f == FMT_Q6_K ? 2 : cpu_high_bits(f) || cpu_is_e2m1(f) ? 4 : 8; }

/* Codes of a quad of half tile i: from a tile, or decoded. */
INLINE __m256i take(const enum format f, const bool is_decoded, const uint8_t *w, int i, const unsigned quad) {
    return is_decoded ? load_256(w + 64 * quad + 32 * i) : codes_of(f, w, i, quad);
}

/* dot[t] = Σ code·q of nt tokens over n quads from `begin` on; width: quads_in_16, and where it is 0, the bias is taken off. */
INLINE void dots_of(const enum format f, const bool is_decoded, const unsigned width, const int nt, const unsigned begin, const unsigned n, const uint8_t *w, int i,
                    const uint8_t *x, __m256i *dot) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i part[CPU_GROUP];
    UNROLL for (unsigned q = 0; q < n; q++) {
        __m256i u = take(f, is_decoded, w, i, begin + q), v = u;
        if (width == 0) v = _mm256_xor_si256(u, _mm256_set1_epi8(-128)), u = _mm256_abs_epi8(v);
        UNROLL for (int t = 0; t < nt; t++) {
            __m256i a = _mm256_set1_epi32(load_i32(x + 32 * t + 4 * (int)(begin + q)));
            if (width == 0) a = _mm256_sign_epi8(a, v);
            const __m256i two = _mm256_maddubs_epi16(u, a);
            part[t] = width == 0 || q % width == 0 ? two : _mm256_add_epi16(part[t], two);
            if (width == 0 || q % width == width - 1) {
                const __m256i four = _mm256_madd_epi16(part[t], ones);
                dot[t] = q < (width ? width : 1) ? four : _mm256_add_epi32(dot[t], four);
            }
        }
    }
}

/* One token, codes straight from the tile: acc of half tile i. */
INLINE void one_int8(const enum format f, int i, const uint8_t *w, const uint8_t *head, const uint8_t *x, __m256 *acc) {
    const int n_halves = cpu_halves(f);
    UNROLL for (int h = 0; h < n_halves; h++) {
        __m256i dot[1];
        dots_of(f, false, quads_in_16(f), 1, 4 * (unsigned)h, 8 / (unsigned)n_halves, w, i, x, dot);
        if (cpu_bias_log2(f) >= 0 && quads_in_16(f)) dot[0] = _mm256_add_epi32(dot[0], _mm256_set1_epi32(load_i32(x + 40 + 4 * h) >> (7 - cpu_bias_log2(f))));
        *acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[0]), _mm256_mul_ps(scale_of(f, w, head, i, h), _mm256_set1_ps(cpu_float_at(x + 32 + 4 * h))), *acc);
    }
    if (cpu_has_min(f)) *acc = _mm256_fmadd_ps(min_of(f, w, head, i), _mm256_set1_ps(cpu_float_at(x + 36)), *acc);
}

/* What the shared loops have to know of a format. */
struct many {
    unsigned width; /* as quads_in_16 */
    int n_halves;
    bool has_min; /* width 0: as the codec says */
};

INLINE void many_int8(const struct many kind, const struct codec *codec, const int nt, int i, const struct decoded *u, const uint8_t *x, __m256 *acc) {
    const __m128i shift = _mm_cvtsi32_si128(codec->bias_shift);
    UNROLL for (int h = 0; h < kind.n_halves; h++) {
        __m256i dot[CPU_GROUP];
        dots_of(FMT_COUNT, true, kind.width, nt, 4 * (unsigned)h, 8 / (unsigned)kind.n_halves, u->codes, i, x, dot);
        UNROLL for (int t = 0; t < nt; t++) {
            if (!kind.has_min && kind.width) /* the bias */
                dot[t] = _mm256_add_epi32(dot[t], _mm256_sra_epi32(_mm256_set1_epi32(load_i32(x + (40 + 4 * h) * nt + 4 * t)), shift));
            acc[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t]), _mm256_mul_ps(u->d[h][i], _mm256_set1_ps(cpu_float_at(x + (32 + 4 * h) * nt + 4 * t))), acc[t]);
        }
    }
    if (kind.width ? !kind.has_min : !codec->has_min) return;
    UNROLL for (int t = 0; t < nt; t++) acc[t] = _mm256_fmadd_ps(u->m[i], _mm256_set1_ps(cpu_float_at(x + 36 * nt + 4 * t)), acc[t]);
}

/* ---- F32 ------------------------------------------------------------------------------------------------------------------------------------------- */

/* Half tile i of those that are taken together: tile i / 2, half i % 2. */
INLINE const uint8_t *half_at(const uint8_t *w, size_t stride, int i, size_t half_bytes) {
    return w + (size_t)(i / 2) * stride + (size_t)(i % 2) * half_bytes;
}

INLINE __m256 load_plain(const enum format f, const uint8_t *w, size_t stride, int i, size_t place) {
    if (f == FMT_F32) return _mm256_loadu_ps((const float *)(const void *)(half_at(w, stride, i, 32) + 64 * place));
    const uint8_t *from = half_at(w, stride, i, 16) + 32 * place;
    if (f == FMT_F16) return load_halves(from);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)from)), 16));
}

/* acc[i][t] of half tiles [first, first + nh); d: of each half tile, or NULL. */
INLINE void plain_f32(const enum format f, const __m256 *d, const int nt, const int nh, int first, const uint8_t *w, size_t stride, const uint8_t *x, __m256 *acc) {
    __m256 sum[CPU_GROUP];
    UNROLL for (int j = 0; j < nh * nt; j++) sum[j] = acc[j];
    for (size_t quad = 0; quad < 8; quad++) {
        UNROLL for (size_t b = 0; b < 4; b++, x += 4 * nt) {
            __m256 wi[4];
            UNROLL for (int i = 0; i < nh; i++) {
                wi[i] = load_plain(f, w, stride, first + i, 4 * quad + b);
                if (d) wi[i] = _mm256_mul_ps(d[first + i], wi[i]);
            }
            UNROLL for (int t = 0; t < nt; t++) {
                __m256 xt = _mm256_set1_ps(cpu_float_at(x + 4 * t));
                UNROLL for (int i = 0; i < nh; i++) sum[i * nt + t] = _mm256_fmadd_ps(wi[i], xt, sum[i * nt + t]);
            }
        }
    }
    UNROLL for (int j = 0; j < nh * nt; j++) acc[j] = sum[j];
}

/* E4M3 becomes F16 of the same digits in the first-level cache, since conversion from there takes one operation, out of registers two. */
INLINE void fp8_to_halves(const int nr, const uint8_t *w, const uint8_t *head, size_t stride, uint8_t (*halves)[32 * ROWS * 2], __m256 *d) {
    for (int r = 0; r < nr; r++) {
        for (int i = 0; i < 2; i++) d[2 * r + i] = load_floats(head + (size_t)r * stride + 32 * i);
        for (size_t at = 0; at < sizeof halves[0]; at += 32) {
            const __m256i words = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(w + (size_t)r * stride + at / 2)));
            _mm256_store_si256((__m256i *)(void *)(halves[r] + at), _mm256_and_si256(_mm256_slli_epi16(words, 7), _mm256_set1_epi16((short)0xbf80)));
        }
    }
}

/* q of place 4·quad + b of 8 rows: byte b of each lane. */
INLINE __m256 numbers_of(const enum format f, const uint8_t *w, int i, const unsigned quad, const unsigned b) {
    const __m256i code = _mm256_and_si256(_mm256_srli_epi32(codes_of(f, w, i, quad), (int)(8 * b)), _mm256_set1_epi32(255));
    return _mm256_cvtepi32_ps(cpu_bias(f) ? _mm256_sub_epi32(code, _mm256_set1_epi32(cpu_bias(f))) : code);
}

/* A tile's numbers, [place][row]. */
INLINE void weights_of(const enum format f, const uint8_t *w, const uint8_t *head, float *to) {
    for (int i = 0; i < 2; i++) {
        const __m256 d[2] = {scale_of(f, w, head, i, 0), scale_of(f, w, head, i, cpu_halves(f) - 1)};
        const __m256 m = cpu_has_min(f) ? min_of(f, w, head, i) : _mm256_setzero_ps();
        UNROLL for (unsigned quad = 0; quad < 8; quad++) {
            UNROLL for (unsigned b = 0; b < 4; b++) {
                const __m256 q = numbers_of(f, w, i, quad, b), product = _mm256_mul_ps(d[quad / 4], q);
                /* with an F16 d, the product is exact */
                _mm256_store_ps(to + (4 * quad + b) * ROWS + HALF * i,
                                !cpu_has_min(f) ? product : cpu_is_joined(f) ? _mm256_add_ps(product, m) : _mm256_fmadd_ps(q, d[quad / 4], m));
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
    __m256 stack[CPU_STACK][MAX_SUMS]; /* [..][2·nr half tiles][nt] */
};

/* The sums of token t that the next vector goes into, of half tile h. */
INLINE float *sums_of(const struct walk *k, int t, int h) {
    const struct cpu_sums *to = &k->a->to;
    const size_t tile = (k->row + (size_t)(h / 2) * k->apart) / ROWS;
    return to->sums + tile * to->tile_stride + (size_t)to->token[t] * to->token_stride + k->i_vector * ROWS + (size_t)(h % 2) * HALF;
}

/* At the start of a leaf: they lie apart, and in the second-level cache at best. */
INLINE void prefetch_sums(const struct walk *k, const int nt, const int nr) {
    for (int t = 0; t < nt; t++)
        for (int r = 0; r < nr; r++) _mm_prefetch((const char *)sums_of(k, t, 2 * r), _MM_HINT_T0);
}

/* After leaf i has been stored on top of the stack. Once, not in each kernel: that would take half of the compiler's time. */
static __attribute__((noinline)) void end_leaf(struct walk *k, const struct kern_columns *c, uint32_t i_leaf, int nt, int nr) {
    const struct cpu_rows *a = k->a;
    for (int i = 0; i < 2 * nr * nt; i++) k->stack[k->depth][i] = _mm256_mul_ps(k->stack[k->depth][i], _mm256_set1_ps(a->matrix->scale));
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
            if (a->to.sums) {
                float *to = sums_of(k, t, h);
                _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_set1_ps(a->to.weight[t]), sum, _mm256_load_ps(to)));
                continue;
            }
            _mm256_maskstore_ps(a->y + k->i_vector * a->vector_stride + (size_t)t * a->y_stride + row, mask, sum);
        }
    }
    k->i_vector++;
}

enum kind { ONE_INT8, MANY_INT8, MANY_F32, PLAIN_F32 };

/* nt tokens × nr row tiles, the first at row, `apart` rows from one to the next; F32: nh half tiles at a time. kind, many, nt, nr and nh are constants wherever
 * this is inlined, and f where codec is NULL. */
INLINE void walk_tiles(const struct cpu_rows *a, size_t row, size_t apart, const enum kind kind, const struct many many, const enum format f,
                       const struct codec *codec, const int nt, const int nr, const int nh) {
    const struct kern_columns *c = &a->matrix->columns;
    const bool is_f32 = kind == MANY_F32 || kind == PLAIN_F32;
    const size_t tile_bytes = cpu_tile_bytes(f), head_bytes = cpu_head_bytes(f), row_tile_bytes = cpu_row_tile_bytes(f, a->matrix), stride = apart / ROWS * row_tile_bytes;
    const size_t record_bytes = (size_t)nt * cpu_token_bytes(is_f32 ? KERN_ACT_F32 : many.n_halves == 2 ? KERN_ACT_INT8_16 : KERN_ACT_INT8);
    const uint8_t *w = a->tiles + row / ROWS * row_tile_bytes, *x = a->x, *head = w;
    const unsigned head_log2 = cpu_head_log2(f, a->matrix);
    size_t i_head = SIZE_MAX;
    struct walk k;
    k.a = a, k.row = row, k.apart = apart, k.depth = 0, k.i_vector = 0;
    for (uint32_t i = 0; i < c->n_leaves; i++) {
        if (a->to.sums && c->emit[i]) prefetch_sums(&k, nt, nr);
        __m256 *acc = k.stack[k.depth];
        for (int j = 0; j < 2 * nr * nt; j++) acc[j] = _mm256_setzero_ps();
        for (uint32_t s = c->leaf_segment[i]; s < c->leaf_segment[i + 1]; s++, w += tile_bytes, x += record_bytes) {
            if (head_bytes && cpu_head_of(c, s, head_log2) != i_head) i_head = cpu_head_of(c, s, head_log2), head = w, w += head_bytes;
            if (!codec)
                for (int r = 0; r < nr; r++) prefetch(w + (size_t)r * stride, tile_bytes);
            if (kind == ONE_INT8)
                for (int h = 0; h < 2 * nr; h++) one_int8(f, h % 2, w + (size_t)(h / 2) * stride, head + (size_t)(h / 2) * stride, x, acc + h);
            else if (kind == MANY_INT8)
                for (int r = 0; r < nr; r++) {
                    struct decoded u;
                    codec->codes(w + (size_t)r * stride, head + (size_t)r * stride, &u);
                    for (int h = 0; h < 2; h++) many_int8(many, codec, nt, h, &u, x, acc + (2 * r + h) * nt);
                }
            else if (kind == PLAIN_F32 && f == FMT_FP8) {
                uint8_t halves[4][32 * ROWS * 2] __attribute__((aligned(32)));
                __m256 d[8];
                fp8_to_halves(nr, w, head, stride, halves, d);
                for (int h = 0; h < 2 * nr; h += nh) plain_f32(FMT_F16, d, nt, nh, h, halves[0], sizeof halves[0], x, acc + h * nt);
            } else if (kind == PLAIN_F32)
                for (int h = 0; h < 2 * nr; h += nh) plain_f32(f, NULL, nt, nh, h, w, stride, x, acc + h * nt);
            else {
                float numbers[4][32 * ROWS] __attribute__((aligned(32)));
                for (int r = 0; r < nr; r++) codec->weights(w + (size_t)r * stride, head + (size_t)r * stride, numbers[r]);
                for (int h = 0; h < 2 * nr; h += nh) plain_f32(FMT_F32, NULL, nt, nh, h, (const uint8_t *)numbers, sizeof numbers[0], x, acc + h * nt);
            }
        }
        end_leaf(&k, c, i, nt, nr);
    }
}

/* The rows are cut into nr runs of whole tiles that advance side by side: several streams read memory faster than one, and long chains of additions
 * overlap. What is left is done one by one. */
INLINE void walk_rows(const struct cpu_rows *a, const enum kind kind, const struct many many, const enum format f, const struct codec *codec, const int nt,
                      const int nr, const int nh) {
    size_t n_tiles = (a->n_rows + ROWS - 1) / ROWS, run = n_tiles / (size_t)nr * ROWS, row = 0;
    for (; row < run; row += ROWS) walk_tiles(a, row, run, kind, many, f, codec, nt, nr, nh);
    for (row = run * (size_t)nr; row < n_tiles * ROWS; row += ROWS) walk_tiles(a, row, ROWS, kind, many, f, codec, nt, 1, nh > 2 ? 2 : nh);
}

/* ---- instances ------------------------------------------------------------------------------------------------------------------------------------- */

/* Loops for any number of tokens. */
typedef void (*many_fn)(const struct cpu_rows *a, const struct codec *codec);
#define MANY_N(name, kind, many, nt, nr, nh)                                                                                  \
    static __attribute__((noinline)) void name##_##nt(const struct cpu_rows *a, const struct codec *codec) {                  \
        walk_rows(a, kind, many, codec->format, codec, nt, nr, nh);                                                           \
    }
#define MANY(name, kind, ...)                                                                                                 \
    static const struct many name##_is = {__VA_ARGS__};                                                                       \
    MANY_N(name, kind, name##_is, 1, 4, 4)                                                                                    \
    MANY_N(name, kind, name##_is, 2, 2, 4)                                                                                    \
    MANY_N(name, kind, name##_is, 3, 1, 2)                                                                                    \
    MANY_N(name, kind, name##_is, 4, 1, 2)                                                                                    \
    MANY_N(name, kind, name##_is, 5, 1, 1)                                                                                    \
    MANY_N(name, kind, name##_is, 6, 1, 1)                                                                                    \
    MANY_N(name, kind, name##_is, 7, 1, 1)                                                                                    \
    MANY_N(name, kind, name##_is, 8, 1, 1)                                                                                    \
    static const many_fn name[CPU_GROUP + 1] = {NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8};
MANY(many_biased, MANY_INT8, 4, 1, false)
MANY(many_with_min, MANY_INT8, 4, 1, true)
MANY(many_by_16, MANY_INT8, 2, 2, false)
MANY(many_bytes, MANY_INT8, 0, 1, false)
MANY(many_numbers, MANY_F32, 0, 1, false)

#define INT8(format)                                                                                                                                   \
    static void codes_##format(const uint8_t *w, const uint8_t *head, struct decoded *to) {                                                            \
        prefetch(w, cpu_tile_bytes(FMT_##format));                                                                                                     \
        for (int i = 0; i < 2; i++) {                                                                                                                  \
            UNROLL for (unsigned quad = 0; quad < 8; quad++)                                                                                           \
                _mm256_storeu_si256((__m256i *)(void *)(to->codes + 64 * quad + 32 * i), codes_of(FMT_##format, w, i, quad));                          \
            UNROLL for (int h = 0; h < cpu_halves(FMT_##format); h++) to->d[h][i] = scale_of(FMT_##format, w, head, i, h);                             \
            if (cpu_has_min(FMT_##format)) to->m[i] = min_of(FMT_##format, w, head, i);                                                                \
        }                                                                                                                                              \
    }                                                                                                                                                  \
    static __attribute__((noinline)) void one_##format(const struct cpu_rows *a) {                                                                     \
        walk_rows(a, ONE_INT8, (struct many){0, cpu_halves(FMT_##format), false}, FMT_##format, NULL, 1, 4, 1);                                        \
    }                                                                                                                                                  \
    static void int8_##format(const struct cpu_rows *a) {                                                                                              \
        const many_fn *many = quads_in_16(FMT_##format) == 0 ? many_bytes : cpu_halves(FMT_##format) == 2 ? many_by_16                                 \
                              : cpu_has_min(FMT_##format) ? many_with_min : many_biased;                                                               \
        const struct codec codec = {FMT_##format, 7 - cpu_bias_log2(FMT_##format), cpu_has_min(FMT_##format), codes_##format, NULL};                   \
        if (a->n_tokens == 1)                                                                                                                          \
            one_##format(a);                                                                                                                           \
        else                                                                                                                                           \
            many[a->n_tokens](a, &codec);                                                                                                              \
    }
CPU_INT8(INT8)

#define NUMBERS(format)                                                                                                                                \
    static void weights_##format(const uint8_t *w, const uint8_t *head, float *to) {                                                                   \
        prefetch(w, cpu_tile_bytes(FMT_##format));                                                                                                     \
        weights_of(FMT_##format, w, head, to);                                                                                                         \
    }                                                                                                                                                  \
    static void f32_##format(const struct cpu_rows *a) {                                                                                               \
        const struct codec codec = {FMT_##format, 0, false, NULL, weights_##format};                                                                   \
        many_numbers[a->n_tokens](a, &codec);                                                                                                          \
    }
CPU_QUANTISED(NUMBERS)

#define PLAIN_N(format, nt, nr, nh)                                                                                                                    \
    static __attribute__((noinline)) void f32_##format##_##nt(const struct cpu_rows *a) {                                                              \
        walk_rows(a, PLAIN_F32, (struct many){0, 1, false}, FMT_##format, NULL, nt, nr, nh);                                                           \
    }
#define PLAIN(format)                                                                                                                                  \
    PLAIN_N(format, 1, 4, 4)                                                                                                                           \
    PLAIN_N(format, 2, 2, 4)                                                                                                                           \
    PLAIN_N(format, 3, 1, 2) PLAIN_N(format, 4, 1, 2) PLAIN_N(format, 5, 1, 1) PLAIN_N(format, 6, 1, 1) PLAIN_N(format, 7, 1, 1) PLAIN_N(format, 8, 1, 1) \
    static void f32_##format(const struct cpu_rows *a) {                                                                                               \
        static const cpu_rows_fn by_tokens[CPU_GROUP + 1] = {NULL,                                                                                     \
                                                             f32_##format##_1,                                                                         \
                                                             f32_##format##_2,                                                                         \
                                                             f32_##format##_3,                                                                         \
                                                             f32_##format##_4,                                                                         \
                                                             f32_##format##_5,                                                                         \
                                                             f32_##format##_6,                                                                         \
                                                             f32_##format##_7,                                                                         \
                                                             f32_##format##_8};                                                                        \
        by_tokens[a->n_tokens](a);                                                                                                                     \
    }
CPU_PLAIN(PLAIN)

/* ---- quantising activations (see matmul_portable.c for the corner cases) ------------------------------------------------------------------------ */

static struct cpu_scale quantise(const float *x, size_t n, int8_t *q) {
    int8_t whole[32];
    float padded[32] = {0};
    if (n == 16) x = memcpy(padded, x, 16 * sizeof *x);
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
        memset(q, 0, n);
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
    _mm256_storeu_si256((__m256i *)(void *)(n == 16 ? whole : q), _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
    if (n == 16) memcpy(q, whole, 16);
    return (struct cpu_scale){d, d * (float)sum, -128 * sum};
}

const struct cpu_matmul cpu_matmul_avx2 = {
    .int8 = {CPU_INT8(CPU_INT8_ENTRY)},
    .f32 = {CPU_QUANTISED(CPU_F32_ENTRY) CPU_PLAIN(CPU_F32_ENTRY)},
    .quantise = quantise,
    .fold = cpu_fold_avx2,
};
