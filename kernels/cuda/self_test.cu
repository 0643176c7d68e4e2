/* See self_test.h. A matrix instruction is given a number of its own in every place (so far as its format has them), and in scale registers that do not count NaN. */
#include "kernels/cuda/self_test.h"
#include "kernels/cuda/math.h"

/* ---- formats: a code for each i, and what it means ---------------------------------------------------------------------------------------------------- */

struct bf16 {
    static __device__ uint32_t code(uint32_t i) { return bits_of_float((float)(i % 13) - 6) >> 16; }
    static __device__ float value(uint32_t code) { return cuda_bf16(code); }
};
struct e4m3 { /* ±0.5 … 2 */
    static __device__ uint32_t code(uint32_t i) { return 0x30 + i % 17 + (i % 3 == 0 ? 0x80 : 0); }
    static __device__ float value(uint32_t code) { return cuda_e4m3(code); }
};
struct e2m1 { /* all */
    static __device__ uint32_t code(uint32_t i) { return i % 16; }
    static __device__ float value(uint32_t code) { return cuda_e2m1(code); }
};
struct ue4m3 { /* 0.5 … 2, by halves of a power */
    static __device__ uint32_t code(uint32_t i) { return 0x30 + 4 * (i % 5); }
    static __device__ float value(uint32_t code) { return cuda_e4m3(code); }
};
struct ue8m0 { /* 0.5 … 2 */
    static __device__ uint32_t code(uint32_t i) { return 126 + i % 3; }
    static __device__ float value(uint32_t code) { return float_of_bits(code << 23); }
};

/* ---- instructions ---------------------------------------------------------------------------------------------------------------------------------------- */

struct selectors {
    int byte_a, thread_a, byte_b, thread_b;
};
struct with_bf16 {
    typedef bf16 number;
    typedef ue8m0 scale;
    enum { per_register = 2, scale_columns = 16, is_scaled = false };
    static __device__ selectors choice() { return {0, 0, 0, 0}; }
    static __device__ void run(float *d, const uint32_t *a, const uint32_t *b, const float *c, uint32_t, uint32_t) { mma_m16n8k16_bf16(d, a, b, c); }
};
struct with_e4m3 {
    typedef e4m3 number;
    typedef ue8m0 scale;
    enum { per_register = 4, scale_columns = 32, is_scaled = false };
    static __device__ selectors choice() { return {0, 0, 0, 0}; }
    static __device__ void run(float *d, const uint32_t *a, const uint32_t *b, const float *c, uint32_t, uint32_t) { mma_m16n8k32_e4m3(d, a, b, c); }
};
template <int byte_a, int thread_a, int byte_b, int thread_b> struct with_mxf8 {
    typedef e4m3 number;
    typedef ue8m0 scale;
    enum { per_register = 4, scale_columns = 32, is_scaled = true };
    static __device__ selectors choice() { return {byte_a, thread_a, byte_b, thread_b}; }
    static __device__ void run(float *d, const uint32_t *a, const uint32_t *b, const float *c, uint32_t scale_a, uint32_t scale_b) {
        mma_m16n8k32_mxf8<byte_a, thread_a, byte_b, thread_b>(d, a, b, c, scale_a, scale_b);
    }
};
template <int byte_a, int thread_a, int byte_b, int thread_b> struct with_mxf4 {
    typedef e2m1 number;
    typedef ue8m0 scale;
    enum { per_register = 8, scale_columns = 32, is_scaled = true };
    static __device__ selectors choice() { return {byte_a, thread_a, byte_b, thread_b}; }
    static __device__ void run(float *d, const uint32_t *a, const uint32_t *b, const float *c, uint32_t scale_a, uint32_t scale_b) {
        mma_m16n8k64_mxf4<byte_a, thread_a, byte_b, thread_b>(d, a, b, c, scale_a, scale_b);
    }
};
template <int thread_a, int thread_b> struct with_nvf4 {
    typedef e2m1 number;
    typedef ue4m3 scale;
    enum { per_register = 8, scale_columns = 16, is_scaled = true };
    static __device__ selectors choice() { return {0, thread_a, 0, thread_b}; }
    static __device__ void run(float *d, const uint32_t *a, const uint32_t *b, const float *c, uint32_t scale_a, uint32_t scale_b) {
        mma_m16n8k64_nvf4<0, thread_a, 0, thread_b>(d, a, b, c, scale_a, scale_b);
    }
};

template <class M> __global__ void __launch_bounds__(32) check_mma(global<uint32_t> bad) {
    typedef typename M::number number;
    typedef typename M::scale scale;
    constexpr uint32_t e = M::per_register, width = 8 * e, every = M::scale_columns;
    /* numbers and scales of a's rows and of b's columns */
    auto at_a = [](uint32_t row, uint32_t k) { return number::code(row * 5 + k * 3); };
    auto at_b = [](uint32_t column, uint32_t k) { return number::code(column * 7 + k); };
    auto scale_a = [](uint32_t row, uint32_t i) { return scale::code(row * 2 + i); };
    auto scale_b = [](uint32_t column, uint32_t i) { return scale::code(column + 2 * i); };

    uint32_t lane = threadIdx.x, g = lane / 4, q = lane % 4, a[4] = {}, b[2] = {}, sa = ~0u, sb = ~0u;
    for (uint32_t j = 0; j < e; j++) {
        for (uint32_t i = 0; i < 4; i++)
            a[i] |= at_a(g + (i & 1) * 8, e * q + (i >> 1) * 4 * e + j) << (32 / e * j);
        for (uint32_t i = 0; i < 2; i++)
            b[i] |= at_b(g, e * q + i * 4 * e + j) << (32 / e * j);
    }
    const selectors s = M::choice();
    for (uint32_t i = 0; i < width / every; i++) {
        uint32_t shift_a = 8 * ((uint32_t)s.byte_a + i), shift_b = 8 * ((uint32_t)s.byte_b + i);
        if (q / 2 == (uint32_t)s.thread_a)
            sa = (sa & ~(0xffu << shift_a)) | scale_a(g + q % 2 * 8, i) << shift_a;
        if (q == (uint32_t)s.thread_b)
            sb = (sb & ~(0xffu << shift_b)) | scale_b(g, i) << shift_b;
    }
    const float c[4] = {1, -2, 3, -4};
    float d[4];
    M::run(d, a, b, c, sa, sb);

    uint32_t n_bad = 0;
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t row = g + (i >> 1) * 8, column = 2 * q + (i & 1);
        float sum = c[i];
        for (uint32_t k = 0; k < width; k++) {
            float term = mul_rn(number::value(at_a(row, k)), number::value(at_b(column, k)));
            if (M::is_scaled)
                term = mul_rn(term, mul_rn(scale::value(scale_a(row, k / every)), scale::value(scale_b(column, k / every))));
            sum = add_rn(sum, term);
        }
        n_bad += d[i] != sum;
    }
    bad.store(lane, n_bad);
}
template <class M> static int launch_mma(uint32_t *bad, void *stream) { return SIMT_LAUNCH(check_mma<M>, 1, 32, 0, stream, bad); }

/* ---- copies and ldmatrix -------------------------------------------------------------------------------------------------------------------------------- */

/* On success *in is for release(), which waits for what uses it. */
template <class T, size_t n> static int upload(T **in, const T (&numbers)[n]) {
    int e = cudaMalloc((void **)in, sizeof numbers);
    return e != cudaSuccess ? e : cudaMemcpy(*in, numbers, sizeof numbers, cudaMemcpyHostToDevice);
}
static void release(void *in, void *stream) {
    cudaStreamSynchronize((cudaStream_t)stream);
    cudaFree(in);
}

/* Every number of four matrices is told apart; they come by cp.async, rows 48 bytes apart. */
__global__ void __launch_bounds__(32) check_ldmatrix(global<const uint16_t> in, global<uint32_t> bad) {
    constexpr uint32_t STRIDE = 24;
    SIMT_SHARED(uint16_t, rows, 32 * STRIDE);
    const uint32_t lane = threadIdx.x, g = lane / 4, k = 2 * (lane % 4);
    rows.copy_async16(lane * STRIDE, in, lane * 8);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
    uint32_t r[4], transposed[4], n_bad = 0;
    rows.ldmatrix(r, lane * STRIDE);
    rows.ldmatrix_transposed(transposed, lane * STRIDE);
    auto at = [](uint32_t matrix, uint32_t row, uint32_t column) { return (matrix * 8 + row) * 8 + column; };
    for (uint32_t j = 0; j < 4; j++) {
        n_bad += r[j] != (at(j, g, k) | at(j, g, k + 1) << 16);
        n_bad += transposed[j] != (at(j, k, g) | at(j, k + 1, g) << 16);
    }
    bad.store(lane, n_bad);
}
static int launch_ldmatrix(uint32_t *bad, void *stream) {
    uint16_t numbers[256], *in = nullptr;
    for (uint32_t i = 0; i < 256; i++)
        numbers[i] = (uint16_t)i;
    int e = upload(&in, numbers);
    if (e == cudaSuccess)
        e = SIMT_LAUNCH(check_ldmatrix, 1, 32, 0, stream, in, bad);
    release(in, stream);
    return e;
}

/* Two rounds through one mbarrier: numbers come by a bulk copy, every lane adds one to its own, another bulk copy takes them back. */
__global__ void __launch_bounds__(32) check_bulk(global<uint32_t> numbers, global<uint32_t> bad) {
    SIMT_SHARED(uint32_t, stage, 32);
    SIMT_SHARED(mbarrier, full, 1);
    const uint32_t lane = threadIdx.x;
    uint32_t n_bad = 0;
    if (lane == 0) {
        mbarrier_init(full, 0, 32);
        fence_mbarrier_init();
    }
    __syncthreads();
    for (uint32_t round = 0; round < 2; round++) {
        if (lane == 0) {
            mbarrier_arrive_expect(full, 0, 128);
            stage.copy_bulk(0, numbers, 32 * round, 128, full, 0);
        } else {
            mbarrier_arrive(full, 0);
        }
        mbarrier_wait(full, 0, round);
        uint32_t x = stage.load(lane);
        n_bad += x != 32 * round + lane;
        stage.store(lane, x + 1);
        fence_proxy_async();
        __syncthreads();
        if (lane == 0) {
            stage.copy_bulk_out(0, numbers, 32 * round, 128);
            copy_bulk_commit();
            copy_bulk_wait_read<0>();
        }
        __syncthreads();
    }
    if (lane == 0) {
        copy_bulk_wait<0>();
        mbarrier_invalidate(full, 0);
    }
    __syncthreads();
    for (uint32_t i = lane; i < 64; i += 32)
        n_bad += numbers.load(i) != i + 1;
    bad.store(lane, n_bad);
}
static int launch_bulk(uint32_t *bad, void *stream) {
    uint32_t numbers[64], *in = nullptr;
    for (uint32_t i = 0; i < 64; i++)
        numbers[i] = i;
    int e = upload(&in, numbers);
    if (e == cudaSuccess)
        e = SIMT_LAUNCH(check_bulk, 1, 32, 0, stream, in, bad);
    release(in, stream);
    return e;
}

/* ---- 16 bytes of the system's scope ---------------------------------------------------------------------------------------------------------------------- */

/* Words stand where a vector of them would have them, whichever of the two stores them and loads them. */
__global__ void __launch_bounds__(32) check_wide(global<uint32_t> words, global<uint32_t> bad) {
    const uint32_t mine = 4 * threadIdx.x, others = mine ^ 4;
    auto n_wrong = [=](uint4 v, uint32_t first) { return (uint32_t)(v.x != first) + (v.y != first + 1) + (v.z != first + 2) + (v.w != first + 3); };
    uint32_t n_bad = 0;
    words.store_release_b128(mine, uint4{mine, mine + 1, mine + 2, mine + 3});
    __syncwarp();
    n_bad += n_wrong(words.load_acquire_b128(others), others) + n_wrong(words.load_acquire_v4(others), others) +
             n_wrong(words.load_as<uint4>(others), others);
    __syncwarp();
    words.store_release_v4(mine, uint4{mine + 100, mine + 101, mine + 102, mine + 103});
    __syncwarp();
    n_bad += n_wrong(words.load_acquire_b128(others), others + 100) + n_wrong(words.load_acquire_v4(others), others + 100);
    bad.store(threadIdx.x, n_bad);
}
static int launch_wide(uint32_t *bad, void *stream) {
    uint32_t numbers[128] = {}, *words = nullptr;
    int e = upload(&words, numbers);
    if (e == cudaSuccess) e = SIMT_LAUNCH(check_wide, 1, 32, 0, stream, words, bad);
    release(words, stream);
    return e;
}

/* ---- dependent launches ------------------------------------------------------------------------------------------------------------------------------------ */

/* Lets the next begin and writes late; that one reads what is written, wherever it stands by then. */
__global__ void __launch_bounds__(32) writes_late(global<uint32_t> numbers, uint32_t n_rounds) {
    launch_dependents();
    uint32_t x = threadIdx.x;
    for (uint32_t i = 0; i < n_rounds; i++) x = __shfl_xor_sync(0xffffffffu, x, 1);
    numbers.store(32 * blockIdx.x + threadIdx.x, 32 * blockIdx.x + x);
}
__global__ void __launch_bounds__(32) check_dependent(global<const uint32_t> numbers, uint32_t n_blocks, global<uint32_t> bad) {
    uint32_t n_bad = 0;
    wait_for_primary();
    for (uint32_t b = 0; b < n_blocks; b++) n_bad += numbers.load(32 * b + threadIdx.x) != 32 * b + threadIdx.x;
    bad.store(threadIdx.x, n_bad);
}
static int launch_dependent(uint32_t *bad, void *stream) {
    constexpr uint32_t N_BLOCKS = 4, N_ROUNDS = 1000; /* even: everybody's own number again */
    uint32_t numbers[32 * N_BLOCKS] = {}, *in = nullptr;
    int e = upload(&in, numbers);
    if (e == cudaSuccess) e = SIMT_LAUNCH(writes_late, N_BLOCKS, 32, 0, stream, in, N_ROUNDS);
    if (e == cudaSuccess) e = SIMT_LAUNCH_DEPENDENT(check_dependent, 1, 32, 0, stream, in, N_BLOCKS, bad);
    release(in, stream);
    return e;
}

/* ---- conversions ------------------------------------------------------------------------------------------------------------------------------------- */

/* Ties, subnormals, what rounds up to infinity, NaN; by distance to both neighbours, not by adding to the bits. */
__global__ void __launch_bounds__(32) check_bf16x2(global<uint32_t> bad) {
    const uint32_t lane = threadIdx.x, cases[16] = {0x3f800000, 0x3f808000, 0x3f818000, 0x3f808001, 0x3f807fff, 0xbf818000, 0x00008000, 0x00018000,
                                                    0x007fffff, 0x7f7f7fff, 0x7f7f8000, 0x7f800000, 0xff800000, 0x80000000, 0x7f800001, 0xffc00000};
    uint32_t x = 0;
    for (uint32_t i = 0; i < 16; i++)
        x = i == lane % 16 ? cases[i] : x;
    uint32_t below = x & 0xffff0000u, above = below + 0x10000u, rest = x & 0xffffu;
    bool up = rest > 0x8000u || (rest == 0x8000u && (above & 0x10000u) == 0);
    uint32_t want = (x & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : (up ? above : below) >> 16;
    uint32_t both = lane < 16 ? bf16x2_rn(float_of_bits(x), 1.0f) : bf16x2_rn(1.0f, float_of_bits(x));
    bad.store(lane, both != (lane < 16 ? 0x3f800000u | want : want << 16 | 0x3f80u));
}
static int launch_bf16x2(uint32_t *bad, void *stream) { return SIMT_LAUNCH(check_bf16x2, 1, 32, 0, stream, bad); }

/* Back and forth for all 65,536 halves; between two neighbours the nearer one, the even one in the middle. */
__global__ void __launch_bounds__(32) check_f16(global<uint32_t> bad) {
    uint32_t n_bad = 0;
    for (uint32_t h = threadIdx.x; h < 0x10000; h += 32) {
        uint32_t size = h & 0x7fff;
        float x = float_of_f16(h);
        if (size > 0x7c00) {
            n_bad += x == x || f16_rn(x) != 0x7fff;
            continue;
        }
        n_bad += f16_rn(x) != h;
        if (size >= 0x7bff)
            continue;
        float next = float_of_f16(h + 1), middle = mul_rn(add_rn(x, next), 0.5f), inside = float_of_bits(bits_of_float(middle) - 1), outside = float_of_bits(bits_of_float(middle) + 1);
        n_bad += f16_rn(middle) != h + (h & 1);
        n_bad += f16_rn(inside) != h || f16_rn(outside) != h + 1;
    }
    bad.store(threadIdx.x, n_bad);
}
static int launch_f16(uint32_t *bad, void *stream) { return SIMT_LAUNCH(check_f16, 1, 32, 0, stream, bad); }

const struct cuda_self_test cuda_self_tests[] = {
    {"cvt.rn.bf16x2", 80, launch_bf16x2},
    {"cvt.rn.f16 and back", 80, launch_f16},
    {"cp.async and ldmatrix", 80, launch_ldmatrix},
    {"cp.async.bulk and mbarrier", 90, launch_bulk},
    {"ld.acquire and st.release of 16 bytes", 80, launch_wide},
    {"griddepcontrol", 90, launch_dependent},
    {"mma m16n8k16 bf16", 80, launch_mma<with_bf16>},
    {"mma m16n8k32 e4m3", 89, launch_mma<with_e4m3>},
    {"mma m16n8k32 mxf8", 120, launch_mma<with_mxf8<0, 0, 0, 0>>},
    {"mma m16n8k32 mxf8, other lanes and bytes", 120, launch_mma<with_mxf8<3, 1, 2, 3>>},
    {"mma m16n8k64 mxf4", 120, launch_mma<with_mxf4<0, 0, 0, 0>>},
    {"mma m16n8k64 mxf4, other lanes and bytes", 120, launch_mma<with_mxf4<2, 1, 0, 1>>},
    {"mma m16n8k64 nvf4", 120, launch_mma<with_nvf4<0, 0>>},
    {"mma m16n8k64 nvf4, other lanes", 120, launch_mma<with_nvf4<1, 2>>},
    {nullptr, 0, nullptr},
};
