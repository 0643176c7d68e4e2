/* The fuzzers of checkpoints, configurations, plans, quantised matrices and conversions in `make test`: a fixed number of mutations of their seeds, from a printed seed. `make fuzz` runs them for longer, and sanitized.
 *
 * test-deadline: 120 */
#include <dirent.h>

#include "base/rng.h"
#include "tests/t.h"

#define LLVMFuzzerTestOneInput safetensors_one
#include "tests/fuzz/safetensors_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput gguf_one
#include "tests/fuzz/gguf_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput config_one
#include "tests/fuzz/config_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput plan_one
#include "tests/fuzz/plan_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput quant_one
#include "tests/fuzz/quant_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput convert_one
#include "tests/fuzz/convert_fuzz.c"
#undef LLVMFuzzerTestOneInput
#define LLVMFuzzerTestOneInput map_one
#include "tests/fuzz/expert_map_fuzz.c"
#undef LLVMFuzzerTestOneInput

enum { MAX_BYTES = 16384, MAX_SEEDS = 32 };

struct input {
    const unsigned char *data;
    size_t bytes;
};

static void once(int (*one)(const uint8_t *, size_t), const unsigned char *data, size_t bytes) {
    unsigned char *exact = malloc(bytes ? bytes : 1); /* a sanitizer sees the first byte that is read too far */
    assert_non_null(exact);
    if (bytes) memcpy(exact, data, bytes);
    one(exact, bytes);
    free(exact);
}

/* Bits, bytes, absurd lengths, a digit for another, parts moved, an end cut off. */
static size_t mutate(struct base_rng *rng, unsigned char *data, size_t bytes) {
    static const uint64_t absurd[] = {
        0, 1, 9, 0x7f, 0xff, 0xffff, 0x7fffffff, 0xffffffff, UINT64_C(1) << 42, UINT64_C(1) << 62, UINT64_C(1) << 63, UINT64_MAX};
    for (uint32_t n = 1 + base_rng_below(rng, 4); n && bytes; n--) {
        size_t at = base_rng_below(rng, (uint32_t)bytes), from = base_rng_below(rng, (uint32_t)bytes);
        size_t width = (size_t)1 << base_rng_below(rng, 4), room = bytes - (at > from ? at : from);
        uint64_t value = absurd[base_rng_below(rng, sizeof absurd / sizeof absurd[0])];
        switch (base_rng_below(rng, 6)) {
        case 0: data[at] ^= (unsigned char)(1u << base_rng_below(rng, 8)); break;
        case 1: data[at] = (unsigned char)('0' + base_rng_below(rng, 10)); break;
        case 2:
        case 3: memcpy(data + at, &value, width < bytes - at ? width : bytes - at); break;
        case 4: memmove(data + at, data + from, room < 24 ? room : 24); break;
        default:
            if (base_rng_below(rng, 4) == 0) bytes = at;
        }
    }
    return bytes;
}

static void run_some(int (*one)(const uint8_t *, size_t), const char *name, uint64_t seed, int n_mutations) {
    struct input seeds[MAX_SEEDS];
    uint32_t n_seeds = 0;
    char path[512];
    snprintf(path, sizeof path, "tests/fuzz/seeds/%s", name);
    struct dirent **entries;
    int n = scandir(path, &entries, NULL, alphasort);
    assert_true(n > 0); /* run from the root, as tests/run.sh does */
    for (int i = 0; i < n; i++) {
        if (entries[i]->d_name[0] != '.' && n_seeds < MAX_SEEDS) {
            snprintf(path, sizeof path, "tests/fuzz/seeds/%s/%s", name, entries[i]->d_name);
            struct input *s = &seeds[n_seeds++];
            s->data = (const unsigned char *)t_read_file(path, &s->bytes);
            assert_true(s->bytes <= MAX_BYTES);
        }
        free(entries[i]);
    }
    free(entries);

    struct base_rng rng;
    base_rng_init(&rng, seed);
    static unsigned char data[MAX_BYTES];
    for (uint32_t i = 0; i < n_seeds; i++)
        for (size_t cut = 0; cut <= seeds[i].bytes; cut += seeds[i].bytes > 8000 && cut + 31 <= seeds[i].bytes ? 31 : 1) once(one, seeds[i].data, cut);
    for (int i = 0; i < n_mutations; i++) {
        const struct input *s = &seeds[base_rng_below(&rng, n_seeds)];
        memcpy(data, s->data, s->bytes);
        once(one, data, mutate(&rng, data, s->bytes));
    }
}

static void run(int (*one)(const uint8_t *, size_t), const char *name, uint64_t seed) { run_some(one, name, seed, t_long() ? 1000000 : 10000); }

static void safetensors(void **state) {
    (void)state;
    run(safetensors_one, "safetensors_fuzz", t_seed());
}
static void gguf(void **state) {
    (void)state;
    run(gguf_one, "gguf_fuzz", t_seed());
}
static void config(void **state) {
    (void)state;
    run(config_one, "config_fuzz", t_seed());
}

static void quantised(void **state) {
    (void)state;
    run(quant_one, "quant_fuzz", t_seed());
}

static void conversions(void **state) {
    (void)state;
    run_some(convert_one, "convert_fuzz", t_seed(), t_long() ? 100000 : 1500); /* four plans each */
}

static void expert_maps(void **state) {
    (void)state;
    run_some(map_one, "expert_map_fuzz", t_seed(), t_long() ? 1000000 : 20000);
}

/* Needs no seeds: eight bytes are enough to make a model of. */
static void plan(void **state) {
    (void)state;
    uint64_t n = t_seed();
    for (int i = 0; i < (t_long() ? 100000 : 1000); i++, n++) plan_one((const uint8_t *)&n, sizeof n);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(safetensors), cmocka_unit_test(gguf), cmocka_unit_test(config), cmocka_unit_test(plan), cmocka_unit_test(quantised),
                                       cmocka_unit_test(conversions), cmocka_unit_test(expert_maps)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
