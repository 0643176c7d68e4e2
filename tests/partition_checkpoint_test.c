/* Checkpoints: what is there comes back as it was written, and hostile or damaged files are refused with the reason. Fault rows F01, F02, F03. */
#include "partition/checkpoint.h"

#include <time.h>

#include "base/log.h"
#include "partition/checkpoint_priv.h"
#include "tests/t.h"
#include "tests/t_ck.h"

/* Opening path fails with this code and a sentence that contains all of the parts. */
static void refused_at(const char *path, enum st want, const char *const *parts, int line) {
    struct err e = {0};
    struct checkpoint *ck = NULL;
    enum st st = ck_open(path, &ck, &e);
    if (st == ST_OK) ck_close(ck);
    for (int i = 0; parts[i]; i++) t_expect_err_at(want, st, &e, parts[i], __FILE__, line);
}
#define REFUSED(path, want, ...) refused_at(path, want, (const char *const[]){__VA_ARGS__, NULL}, __LINE__)

static struct checkpoint *opened(const char *path) {
    struct err e = {0};
    struct checkpoint *ck = NULL;
    T_OK(ck_open(path, &ck, &e), &e);
    return ck;
}

static const char *new_dir(const char *name) {
    const char *path = t_path("%s", name);
    assert_int_equal(mkdir(path, 0755), 0);
    return path;
}
static const char *in(const char *dir, const char *name) { return t_path("%s/%s", strrchr(dir, '/') + 1, name); }

/* ---- safetensors ---- */

static const float four[4] = {1, 2, 3, 4}, six[6] = {1, -2, 3, -4, 5, -6};
static const uint16_t bf16[2] = {0x3f80, 0xc000}; /* 1, −2 */

static void safetensors_round_trip(void **state) {
    (void)state;
    const char *dir = new_dir("round");
    const struct t_tensor tensors[] = {{"b", "F32", 2, {2, 3}, six, sizeof six}, {"a", "BF16", 1, {2}, bf16, sizeof bf16},
                                       {"scale", "F32", 0, {0}, four, 4},        {"ids", "I64", 1, {1}, six, 8},
                                       {"q", "F8_E4M3", 2, {2, 2}, four, 4},     {"packed", "F4", 2, {2, 2}, four, 2},
                                       {"none", "F16", 2, {0, 7}, NULL, 0},      {"conv", "F16", 5, {1, 1, 1, 1, 2}, four, 4}};
    /* Odd header lengths: data begin at odd places. An empty __metadata__ is legal. */
    for (int spaces = 0; spaces < 9; spaces++) {
        t_safetensors(in(dir, "model.safetensors"), tensors, 8, &(struct t_safetensors_options){spaces & 1 ? "{}" : "{\"format\":\"pt\"}", spaces});
        struct checkpoint *ck = opened(dir);
        assert_int_equal(ck_kind_of(ck), CK_SAFETENSORS);
        assert_int_equal(ck_n_tensors(ck), 8);
        assert_int_equal(ck_n_files(ck), 1);
        for (size_t i = 1; i < 8; i++) assert_true(strcmp(ck_tensor_at(ck, i - 1)->name, ck_tensor_at(ck, i)->name) < 0);
        const struct ck_tensor *b = ck_find(ck, "b"), *a = ck_find(ck, "a"), *scale = ck_find(ck, "scale");
        assert_int_equal(b->format, FMT_F32);
        assert_null(b->unsupported);
        assert_int_equal(b->n_dims, 2);
        assert_int_equal(b->dims[0], 2);
        assert_int_equal(b->dims[1], 3);
        assert_int_equal(b->bytes, 24);
        assert_int_equal(a->offset, b->offset + 24);
        assert_int_equal(scale->n_dims, 0);
        assert_string_equal(ck_find(ck, "ids")->unsupported, "I64");
        assert_string_equal(ck_find(ck, "q")->unsupported, "F8_E4M3");
        assert_string_equal(ck_find(ck, "packed")->unsupported, "F4");
        assert_non_null(strstr(ck_find(ck, "conv")->unsupported, "F16 of 5 dimensions [1, 1, 1, 1, 2]"));
        assert_int_equal(ck_find(ck, "none")->bytes, 0);
        assert_null(ck_find(ck, "c"));
        assert_null(ck_find(ck, ""));

        struct err e = {0};
        float *values;
        T_OK(ck_read_f32(ck, b, 6, &values, &e), &e);
        assert_memory_equal(values, six, sizeof six);
        free(values);
        T_OK(ck_read_f32(ck, a, 6, &values, &e), &e);
        assert_true(values[0] == 1 && values[1] == -2);
        free(values);
        T_OK(ck_read_f32(ck, scale, 1, &values, &e), &e);
        assert_true(values[0] == 1);
        free(values);
        t_expect_err_contains(ST_INVALID, ck_read_f32(ck, b, 5, &values, &e), &e, "6 elements where at most 5");
        t_expect_err_contains(ST_UNSUPPORTED, ck_read_f32(ck, ck_find(ck, "q"), 5, &values, &e), &e, "F8_E4M3");
        ck_close(ck);
    }
    /* A file by its name means the same; what is beside it is found. */
    t_write_text(in(dir, "config.json"), "{\"a\": 1}");
    struct checkpoint *ck = opened(in(dir, "model.safetensors"));
    const json_t *root = NULL, *again = NULL;
    T_OK(ck_json(ck, "config.json", &root, NULL), NULL);
    assert_int_equal(json_integer_value(json_object_get(root, "a")), 1);
    T_OK(ck_json(ck, "config.json", &again, NULL), NULL);
    assert_ptr_equal(root, again);
    T_OK(ck_json(ck, "tokenizer.json", &root, NULL), NULL);
    assert_null(root);
    struct err e = {0};
    t_write_text(in(dir, "generation_config.json"), "{\"a\": ");
    t_expect_err_contains(ST_INVALID, ck_json(ck, "generation_config.json", &root, &e), &e, "generation_config.json:1:");
    t_write_text(in(dir, "tokenizer_config.json"), "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n");
    t_expect_err_contains(ST_INVALID, ck_json(ck, "tokenizer_config.json", &root, &e), &e, "git lfs pull");
    ck_close(ck);
}

static void digest_and_same_bytes(void **state) {
    (void)state;
    const char *dir = new_dir("same");
    struct t_tensor tensors[] = {{"a", "F32", 2, {3, 1 << 20}, NULL, 12 << 20}, {"b", "F32", 2, {3, 1 << 20}, NULL, 12 << 20}};
    t_safetensors(in(dir, "model.safetensors"), tensors, 2, NULL);
    struct checkpoint *ck = opened(dir);
    bool same = false;
    T_OK(ck_same_bytes(ck, ck_find(ck, "a"), ck_find(ck, "b"), &same, NULL), NULL);
    assert_true(same);
    /* The last byte of a. */
    int fd = open(in(dir, "model.safetensors"), O_WRONLY);
    t_pwrite(fd, "x", 1, ck_find(ck, "b")->offset - 1);
    T_OK(ck_same_bytes(ck, ck_find(ck, "a"), ck_find(ck, "b"), &same, NULL), NULL);
    assert_false(same);

    struct checkpoint *other = opened(dir);
    struct digest d = ck_digest(ck), d2 = ck_digest(other);
    assert_memory_equal(&d, &d2, sizeof d); /* of headers, not of data */
    ck_close(other);

    struct err e = {0};
    assert_int_equal(ftruncate(fd, 1000), 0);
    close(fd);
    t_expect_err_contains(ST_IO, ck_same_bytes(ck, ck_find(ck, "a"), ck_find(ck, "b"), &same, &e), &e, "size has changed");
    ck_close(ck);

    tensors[1].name = "c";
    t_safetensors(in(dir, "model.safetensors"), tensors, 2, NULL);
    ck = opened(dir);
    d2 = ck_digest(ck);
    assert_memory_not_equal(&d, &d2, sizeof d);
    ck_close(ck);
}

/* A safetensors file from its header's text and so many bytes of data. */
static const char *raw_safetensors(const char *header, size_t header_bytes, size_t data_bytes) {
    static int n;
    const char *path = t_path("raw%d.safetensors", n++);
    struct t_bytes b = {0};
    t_put_le(&b, header_bytes, 8);
    t_put(&b, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) t_put_le(&b, i, 1);
    t_write_file(path, b.data, b.n);
    t_bytes_free(&b);
    return path;
}
#define RAW(header, data_bytes) raw_safetensors(header, sizeof(header) - 1, data_bytes)

static void safetensors_hostile(void **state) {
    (void)state;
    /* F02 */
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}\0\0\0", 4), ST_INVALID, "NUL", "spaces");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8),
            ST_INVALID, "duplicate", "\"a\"");
    REFUSED(RAW("{\"k\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},\"v\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4),
            ST_INVALID, "tensors k and v lie on the same bytes");
    REFUSED(RAW("{\"k\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]},\"v\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[2,6]}}", 6),
            ST_INVALID, "tensors k and v lie on the same bytes");
    const char *pointer = t_path("lfs.safetensors");
    t_write_text(
        pointer,
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n");
    REFUSED(pointer, ST_INVALID, "Git LFS pointer", "git lfs pull");
    struct checkpoint *ck = opened(RAW("{\"__metadata__\":{},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}} ", 4));
    assert_int_equal(ck_find(ck, "a")->offset % 2, 1);
    ck_close(ck);
    ck = opened(RAW("{\"__metadata__\":null}", 0));
    assert_int_equal(ck_n_tensors(ck), 0);
    ck_close(ck);

    /* lengths */
    const char *path = t_path("short.safetensors");
    t_write_file(path, "1234567", 7);
    REFUSED(path, ST_INVALID, "too short");
    t_write_file(path, "", 0);
    REFUSED(path, ST_INVALID, "too short");
    t_write_file(path, "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    REFUSED(path, ST_INVALID, "18446744073709551615", "at most 100000000");
    t_write_file(path, "\x01\xe1\xf5\x05\0\0\0\0{}", 10); /* 100000001 */
    REFUSED(path, ST_INVALID, "100000001");
    t_write_file(path, "\x03\0\0\0\0\0\0\0{}", 10);
    REFUSED(path, ST_INVALID, "declares a header of 3 bytes", "cut off");

    /* JSON of the wrong shape */
    REFUSED(RAW(" {}", 0), ST_INVALID, "does not begin with '{'");
    REFUSED(RAW("[]", 0), ST_INVALID, "does not begin with '{'");
    REFUSED(RAW("", 0), ST_INVALID, "does not begin with '{'");
    REFUSED(RAW("{\"a\":", 0), ST_INVALID, "raw");
    REFUSED(RAW("{} x", 0), ST_INVALID, "raw");
    REFUSED(RAW("{\"a\":1}", 0), ST_INVALID, "tensor a: not an object");
    REFUSED(RAW("{\"__metadata__\":1}", 0), ST_INVALID, "__metadata__");
    REFUSED(RAW("{\"\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), ST_INVALID, "name");
    REFUSED(RAW("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4), ST_INVALID, "tensor a: dtype");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4), ST_INVALID, "tensor a: shape");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4), ST_INVALID, "tensor a: data_offsets");
    REFUSED(RAW("{\"a\":{\"dtype\":\"Q7\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4), ST_UNSUPPORTED, "tensor a", "'Q7'");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4), ST_INVALID, "tensor a: dimension 0");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.0],\"data_offsets\":[0,4]}}", 4), ST_INVALID, "tensor a: dimension 0");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,4]}}", 4), ST_INVALID, "raw");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4), ST_INVALID, "tensor a: data_offsets");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4), ST_INVALID, "tensor a: data_offsets");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,3]}}", 4), ST_INVALID, "takes 4 bytes, data_offsets span 3");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2), ST_INVALID, "product");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4), ST_INVALID, "tensor a ends at byte 8", "the file has 4");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8), ST_INVALID, "before tensor a, belong to no tensor");
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 6), ST_INVALID, "the last 2 bytes belong to no tensor");
    /* Products that wrap to the true size: 2^62 · 4 + 1 · …; 4 bytes · 2^62 = 2^64 ≡ 0; 3 · 0xAAAAAAAAAAAAAAAB = 2^65 + 1 */
    REFUSED(RAW("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0), ST_INVALID, "tensor a: the product");
    REFUSED(RAW("{\"a\":{\"dtype\":\"U8\",\"shape\":[6148914691236517205,3,3],\"data_offsets\":[0,1]}}", 1), ST_INVALID, "tensor a: the product");
    REFUSED(RAW("{\"a\":{\"dtype\":\"U8\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0), ST_INVALID, "tensor a: the product");
    REFUSED(RAW("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1), ST_INVALID, "17 dimensions");
    ck = opened(RAW("{\"a\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807,9223372036854775807,9,9,9],\"data_offsets\":[0,0]}}", 0));
    assert_non_null(ck_find(ck, "a")->unsupported);
    ck_close(ck);
}

static void safetensors_sets(void **state) {
    (void)state;
    const char *dir = new_dir("set");
    const struct t_tensor a = {"a", "F32", 1, {4}, four, 16}, b = {"b", "F32", 1, {6}, six, 24};
    const char *one = in(dir, "model-00001-of-00002.safetensors"), *two = in(dir, "model-00002-of-00002.safetensors"),
               *index = in(dir, "model.safetensors.index.json");
    t_safetensors(one, &a, 1, NULL);
    t_safetensors(two, &b, 1, NULL);
    const char *good = "{\"metadata\":{},\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00002-of-00002.safetensors\"}}";
    for (int with_index = 0; with_index < 2; with_index++) {
        if (with_index) t_write_text(index, good);
        for (int by_part = 0; by_part < 2; by_part++) {
            struct checkpoint *ck = opened(by_part ? two : dir);
            assert_int_equal(ck_n_files(ck), 2);
            assert_string_equal(ck_file_path(ck, ck_find(ck, "b")->file), two);
            struct err e = {0};
            float *values;
            T_OK(ck_read_f32(ck, ck_find(ck, "b"), 6, &values, &e), &e);
            assert_memory_equal(values, six, sizeof six);
            free(values);
            assert_string_equal(ck_path(ck), dir);
            ck_close(ck);
        }
    }
    /* The index against the files. */
    t_write_text(index, "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\",\"b\":\"model-00001-of-00002.safetensors\"}}");
    REFUSED(dir, ST_INVALID, "tensor b should be in model-00001-of-00002.safetensors, but is not there");
    t_write_text(index, "{\"weight_map\":{\"a\":\"model-00002-of-00002.safetensors\",\"b\":\"model-00001-of-00002.safetensors\"}}");
    REFUSED(dir, ST_INVALID, "should be in model-0000", ", but is in model-0000");
    t_write_text(index, "{\"weight_map\":{\"a\":\"../a.safetensors\"}}");
    REFUSED(dir, ST_INVALID, "weight_map.a");
    t_write_text(index, "{\"weight_map\":{\"a\":7}}");
    REFUSED(dir, ST_INVALID, "weight_map.a");
    t_write_text(index, "{\"weight_map\":{}}");
    REFUSED(dir, ST_INVALID, "weight_map is missing or empty");
    t_write_text(index, "[]");
    REFUSED(dir, ST_INVALID, "weight_map is missing or empty");
    t_write_text(index, "{\"weight_map\":{\"a\":\"model-00001-of-00002.safetensors\"}}");
    struct checkpoint *ck = opened(dir); /* one file is not named at all: not part of the model */
    assert_int_equal(ck_n_tensors(ck), 1);
    ck_close(ck);

    t_write_text(index, good);
    assert_int_equal(unlink(two), 0);
    REFUSED(dir, ST_NOT_FOUND, "model-00002-of-00002.safetensors", "named by model.safetensors.index.json");
    assert_int_equal(unlink(index), 0);
    REFUSED(dir, ST_NOT_FOUND, "part 2 of 2 is missing");
    t_safetensors(two, &a, 1, NULL);
    REFUSED(dir, ST_INVALID, "tensor a is there twice");
    assert_int_equal(rename(one, in(dir, "other.safetensors")), 0);
    REFUSED(dir, ST_INVALID, "several *.safetensors");
    /* The usual name wins over all others. */
    t_safetensors(in(dir, "model.safetensors"), &b, 1, NULL);
    ck = opened(dir);
    assert_non_null(ck_find(ck, "b"));
    assert_int_equal(ck_n_tensors(ck), 1);
    ck_close(ck);
}

/* A 405B-shaped set: about 1100 tensors in 191 files, of holes. */
static void large_header_is_fast(void **state) {
    (void)state;
    const char *dir = new_dir("large");
    static const struct {
        const char *name;
        uint64_t rows, columns;
    } parts[] = {{"self_attn.q_proj", 16384, 16384}, {"self_attn.k_proj", 1024, 16384}, {"self_attn.v_proj", 1024, 16384},
                 {"self_attn.o_proj", 16384, 16384}, {"mlp.gate_proj", 53248, 16384},   {"mlp.up_proj", 53248, 16384},
                 {"mlp.down_proj", 16384, 53248},    {"input_layernorm", 16384, 1},     {"post_attention_layernorm", 16384, 1}};
    struct t_bytes index = {0};
    t_put_text(&index, "{\"weight_map\":{");
    static struct t_tensor tensors[1134];
    static char names[1134][80];
    for (int i = 0; i < 1134; i++) {
        snprintf(names[i], sizeof names[i], "model.layers.%d.%s.weight", i / 9, parts[i % 9].name);
        bool vector = parts[i % 9].columns == 1;
        tensors[i] = (struct t_tensor){
            names[i], "BF16", vector ? 1 : 2, {parts[i % 9].rows, parts[i % 9].columns}, NULL, 2 * parts[i % 9].rows * parts[i % 9].columns};
    }
    for (int f = 0; f < 191; f++) {
        int begin = 1134 * f / 191, end = 1134 * (f + 1) / 191;
        char file[64], line[256];
        snprintf(file, sizeof file, "model-%05d-of-00191.safetensors", f + 1);
        t_safetensors(in(dir, file), tensors + begin, (size_t)(end - begin), NULL);
        for (int i = begin; i < end; i++) {
            snprintf(line, sizeof line, "%s\"%s\":\"%s\"", i ? "," : "", names[i], file);
            t_put_text(&index, line);
        }
    }
    t_put_text(&index, "}}");
    t_write_file(in(dir, "model.safetensors.index.json"), index.data, index.n);
    t_bytes_free(&index);
    double best_ms = 1e9;
    for (int i = 0; i < 5; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &a);
        struct checkpoint *ck = opened(dir);
        clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &b);
        assert_int_equal(ck_n_tensors(ck), 1134);
        assert_int_equal(ck_n_files(ck), 191);
        ck_close(ck);
        double ms = (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
        if (ms < best_ms) best_ms = ms;
    }
    printf("1134 tensors in 191 files: opened in %.2f ms\n", best_ms);
    assert_true(best_ms < 50); /* 4 ms on the machine it was written on; slow ones and sanitizers get room */
}

/* ---- GGUF ---- */

static struct t_gguf g; /* large, and one at a time */

static const char *gguf_small(const char *name, uint32_t alignment, uint32_t version) {
    static const char *const tokens[] = {"a", "", "longer token"};
    static const int32_t types[] = {1, -2, 3};
    static const float scores[] = {0.5f, -1.5f};
    static unsigned char q8[2 * 34];
    q8[1] = 0x3c; /* d = 1 */
    q8[34 + 1] = 0x40;
    q8[2] = 5;
    q8[34 + 2] = 0xff;
    g.alignment = alignment;
    g.version = version;
    t_gguf_str(&g, "general.architecture", "llama");
    if (alignment) t_gguf_u32(&g, "general.alignment", alignment);
    t_gguf_number(&g, "n.u8", T_U8, 200);
    t_gguf_number(&g, "n.i8", T_I8, 0x80);
    t_gguf_number(&g, "n.u16", T_U16, 65535);
    t_gguf_number(&g, "n.i16", T_I16, 0xffff);
    t_gguf_number(&g, "n.u64", T_U64, UINT64_MAX);
    t_gguf_number(&g, "n.i64", T_I64, (uint64_t)-5);
    t_gguf_f32(&g, "n.f32", 1e-5f);
    t_gguf_number(&g, "n.f64", T_F64, 0x3ff8000000000000);
    t_gguf_number(&g, "n.yes", T_BOOL, 1);
    t_gguf_strings(&g, "a.tokens", tokens, 3);
    t_gguf_array(&g, "a.types", T_I32, types, 3, 4);
    t_gguf_array(&g, "a.scores", T_F32, scores, 2, 4);
    t_gguf_array(&g, "a.empty", T_U64, NULL, 0, 8);
    t_gguf_tensor(&g, "w", T_GGML_Q8_0, 2, (const uint64_t[]){2, 32}, q8, sizeof q8);
    t_gguf_tensor(&g, "norm", T_GGML_F32, 1, (const uint64_t[]){4}, four, sizeof four);
    t_gguf_tensor(&g, "k", T_GGML_Q2_K, 2, (const uint64_t[]){3, 256}, NULL, 252);
    for (int f = 0; f < FMT_FP8; f++) { /* every format that GGUF has */
        const struct format_info *info = kern_format((enum format)f);
        const char *tensor = info->name;
        t_gguf_tensor(&g, tensor, (uint32_t)info->gguf_type, 2, (const uint64_t[]){2, 512}, NULL, 2 * 512 / info->block_columns * info->block_bytes);
    }
    t_gguf_tensor(&g, "cube", T_GGML_F32, 3, (const uint64_t[]){1, 2, 3}, six, sizeof six);
    const char *path = t_path("%s", name);
    t_gguf_write(&g, path);
    return path;
}

static void gguf_round_trip(void **state) {
    (void)state;
    static const uint32_t alignments[] = {0, 1, 8, 64, 4096};
    for (int i = 0; i < 10; i++) {
        struct checkpoint *ck = opened(gguf_small("small.gguf", alignments[i / 2], i % 2 ? 2 : 3));
        assert_int_equal(ck_kind_of(ck), CK_GGUF);
        assert_int_equal(ck_n_tensors(ck), 4 + FMT_FP8);
        for (int f = 0; f < FMT_FP8; f++) {
            const struct ck_tensor *t = ck_find(ck, kern_format((enum format)f)->name);
            assert_true(t && !t->unsupported && t->format == (enum format)f && t->dims[1] == 512 && t->bytes == 2 * kern_format_row_bytes((enum format)f, 512));
        }
        struct gguf_value v;
        assert_true(ck_gguf_get(ck, "general.architecture", &v) && v.kind == GGUF_STRING && v.string.bytes == 5 &&
                    memcmp(v.string.data, "llama", 5) == 0);
        assert_true(ck_gguf_get(ck, "n.u8", &v) && v.kind == GGUF_UINT && v.u == 200);
        assert_true(ck_gguf_get(ck, "n.i8", &v) && v.kind == GGUF_INT && v.i == -128);
        assert_true(ck_gguf_get(ck, "n.u16", &v) && v.kind == GGUF_UINT && v.u == 65535);
        assert_true(ck_gguf_get(ck, "n.i16", &v) && v.kind == GGUF_INT && v.i == -1);
        assert_true(ck_gguf_get(ck, "n.u64", &v) && v.kind == GGUF_UINT && v.u == UINT64_MAX);
        assert_true(ck_gguf_get(ck, "n.i64", &v) && v.kind == GGUF_INT && v.i == -5);
        assert_true(ck_gguf_get(ck, "n.f32", &v) && v.kind == GGUF_FLOAT && v.f == (double)1e-5f);
        assert_true(ck_gguf_get(ck, "n.f64", &v) && v.kind == GGUF_FLOAT && v.f == 1.5);
        assert_true(ck_gguf_get(ck, "n.yes", &v) && v.kind == GGUF_BOOL && v.b);
        assert_false(ck_gguf_get(ck, "n.no", &v));
        assert_true(ck_gguf_get(ck, "a.tokens", &v) && v.kind == GGUF_ARRAY && v.array.element == GGUF_STRING && v.array.n == 3);
        assert_int_equal(ck_gguf_array_string(ck, &v, 1).bytes, 0);
        struct gguf_string s = ck_gguf_array_string(ck, &v, 2);
        assert_true(s.bytes == 12 && memcmp(s.data, "longer token", 12) == 0);
        assert_true(ck_gguf_get(ck, "a.types", &v) && v.array.element == GGUF_INT && ck_gguf_array_int(ck, &v, 1) == -2);
        assert_true(ck_gguf_get(ck, "a.scores", &v) && v.array.element == GGUF_FLOAT && ck_gguf_array_float(ck, &v, 1) == -1.5);
        assert_true(ck_gguf_get(ck, "a.empty", &v) && v.array.n == 0);

        const struct ck_tensor *w = ck_find(ck, "w"), *cube = ck_find(ck, "cube");
        assert_true(w->format == FMT_Q8_0 && w->dims[0] == 2 && w->dims[1] == 32 && w->bytes == 68);
        assert_true(cube->n_dims == 3 && cube->dims[0] == 1 && cube->dims[1] == 2 && cube->dims[2] == 3);
        assert_string_equal(ck_find(ck, "k")->unsupported, "Q2_K");
        assert_int_equal(ck_find(ck, "k")->bytes, 252);
        struct err e = {0};
        float *values;
        T_OK(ck_read_f32(ck, w, 64, &values, &e), &e);
        assert_true(values[0] == 5 && values[1] == 0 && values[32] == -2);
        free(values);
        T_OK(ck_read_f32(ck, cube, 6, &values, &e), &e);
        assert_memory_equal(values, six, sizeof six);
        free(values);
        const json_t *root = (const json_t *)&e;
        T_OK(ck_json(ck, "config.json", &root, &e), &e);
        assert_null(root);
        ck_close(ck);
    }
    /* A name without .gguf is known by its magic. */
    const char *bare = t_path("blob-of-a-cache");
    assert_int_equal(rename(t_path("small.gguf"), bare), 0);
    ck_close(opened(bare));
    t_write_text(bare, "hello");
    REFUSED(bare, ST_INVALID, "neither a GGUF file nor a directory");
}

/* A header longer than the first megabyte that is read, with tokens across its edge. */
static void gguf_long_header(void **state) {
    (void)state;
    enum { N = 150000 };
    static char text[N][24];
    static const char *tokens[N];
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "token%d", i);
        tokens[i] = text[i];
    }
    t_gguf_strings(&g, "tokens", tokens, N);
    t_gguf_str(&g, "last", "one");
    t_gguf_tensor(&g, "t", T_GGML_F32, 1, (const uint64_t[]){4}, four, sizeof four);
    const char *path = t_path("long.gguf");
    t_gguf_write(&g, path);
    struct checkpoint *ck = opened(path);
    struct gguf_value v;
    assert_true(ck_gguf_get(ck, "tokens", &v) && v.array.n == N);
    for (uint64_t i = 0; i < N; i += 7) {
        struct gguf_string s = ck_gguf_array_string(ck, &v, i);
        assert_true(s.bytes == strlen(tokens[i]) && memcmp(s.data, tokens[i], s.bytes) == 0);
    }
    float *values;
    T_OK(ck_read_f32(ck, ck_find(ck, "t"), 4, &values, NULL), NULL);
    assert_memory_equal(values, four, sizeof four);
    free(values);
    ck_close(ck);
}

/* A hostile description, once in a file of about 100 bytes and once in one that has all the data anybody could want. */
static void hostile_tensor_at(uint32_t type, int n_dims, const uint64_t *dims, uint64_t offset, const char *part, int line) {
    for (int whole = 0; whole < 2; whole++) {
        if (whole) t_gguf_tensor(&g, "data", T_GGML_F32, 1, (const uint64_t[]){1 << 16}, NULL, 4 << 16);
        t_gguf_describe(&g, "bad", type, n_dims, dims, offset);
        const char *path = t_path("bad.gguf");
        g.places[1].data = NULL; /* nothing of its own: it is only described */
        t_gguf_write(&g, path);
        refused_at(path, ST_INVALID, (const char *const[]){"bad.gguf", "tensor bad", part, NULL}, line);
    }
}
#define HOSTILE(type, n_dims, offset, part, ...) hostile_tensor_at(type, n_dims, (const uint64_t[]){__VA_ARGS__}, offset, part, __LINE__)

/* F01 */
static void gguf_hostile_tensors(void **state) {
    (void)state;
    HOSTILE(T_GGML_F32, 1, 0, "dimension 0 is 0", 0);
    HOSTILE(T_GGML_F32, 4, 0, "dimension 1 is 0", 1, 1, 0, 4);
    HOSTILE(T_GGML_Q8_0, 2, 0, "dimension 0 is 0", 32, 0);
    HOSTILE(T_GGML_F32, 1, 0, "ends behind the end", UINT64_C(1) << 42);
    HOSTILE(T_GGML_F32, 1, 0, "product", UINT64_C(1) << 62);
    HOSTILE(T_GGML_F32, 1, 0, "product", UINT64_MAX);
    HOSTILE(T_GGML_Q8_0, 1, 0, "ends behind the end", UINT64_C(1) << 63);
    HOSTILE(T_GGML_F32, 2, 0, "product", UINT64_C(1) << 42, UINT64_C(1) << 42);
    HOSTILE(T_GGML_F32, 2, 0, "product", 4, UINT64_C(1) << 60);                                      /* bytes wrap to 0 */
    HOSTILE(T_GGML_F32, 3, 0, "product", 3, UINT64_C(0xaaaaaaaaaaaaaaab), 1);                        /* elements wrap to 1: 4 bytes */
    HOSTILE(T_GGML_F32, 4, 0, "product", UINT64_C(1) << 32, UINT64_C(1) << 32, 3, UINT64_C(1) << 0); /* … to 0 */
    HOSTILE(T_GGML_F32, 2, 0, "product", UINT64_C(0x8000000000000001), 2);                           /* … to 2: the true size of a vector of 2 */
    HOSTILE(T_GGML_F32, 9, 0, "9 dimensions", 1, 1, 1, 1, 1, 1, 1, 1, 1);
    HOSTILE(T_GGML_F32, 5, 0, "5 dimensions", 1, 1, 1, 1, 1);
    HOSTILE(T_GGML_Q8_0, 2, 0, "33 columns", 2, 33);
    HOSTILE(T_GGML_Q6_K, 1, 0, "128 columns", 128);
    HOSTILE(T_GGML_F32, 1, 4, "no multiple of the alignment", 1);
    HOSTILE(T_GGML_F32, 1, UINT64_MAX - 31, "ends behind the end", 1);
    HOSTILE(T_GGML_F32, 1, UINT64_C(1) << 40, "ends behind the end", 1);

    /* types */
    const char *path = t_path("type.gguf");
    for (uint32_t type = 4; type < 1u << 31; type = type == 4 ? 36 : type == 36 ? 4000 : UINT32_C(1) << 31) {
        t_gguf_describe(&g, "bad", type, 1, (const uint64_t[]){1}, 0);
        g.data_bytes = 64;
        t_gguf_write(&g, path);
        REFUSED(path, ST_UNSUPPORTED, "tensor bad", "type ");
    }
    /* the same bytes, or the same name, twice */
    t_gguf_describe(&g, "k", T_GGML_F32, 1, (const uint64_t[]){8}, 0);
    t_gguf_describe(&g, "v", T_GGML_F32, 1, (const uint64_t[]){8}, 0);
    g.data_bytes = 64;
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "tensors k and v lie on the same bytes");
    t_gguf_tensor(&g, "k", T_GGML_F32, 1, (const uint64_t[]){4}, four, 16);
    t_gguf_tensor(&g, "k", T_GGML_F32, 1, (const uint64_t[]){4}, four, 16);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "tensor k is there twice");
    t_gguf_describe(&g, "", T_GGML_F32, 1, (const uint64_t[]){8}, 0);
    g.data_bytes = 64;
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "tensor name has a length of 0");
    t_gguf_describe(&g, "a\nb", T_GGML_F32, 1, (const uint64_t[]){8}, 0);
    g.data_bytes = 64;
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "control character");
}

static void gguf_hostile_keys(void **state) {
    (void)state;
    static const struct {
        uint32_t kind;
        uint64_t value;
        const char *part;
    } alignments[] = {{T_U32, 0, "general.alignment is 0"},
                      {T_U32, 12, "general.alignment is 12"},
                      {T_U64, 32, "general.alignment has value type 10"},
                      {T_F32, 32, "general.alignment has value type 6"},
                      {T_I32, 32, "general.alignment has value type 5"}};
    const char *path = t_path("key.gguf");
    for (size_t i = 0; i < sizeof alignments / sizeof alignments[0]; i++)
        for (int whole = 0; whole < 2; whole++) {
            t_gguf_number(&g, "general.alignment", alignments[i].kind, alignments[i].value);
            if (whole) t_gguf_tensor(&g, "t", T_GGML_F32, 1, (const uint64_t[]){4}, four, sizeof four);
            t_gguf_write(&g, path);
            REFUSED(path, ST_INVALID, "key.gguf", alignments[i].part);
        }
    t_gguf_str(&g, "general.alignment", "32");
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "general.alignment has value type 8");

    /* a key length of 2^63, in a small file and in a whole one */
    for (int whole = 0; whole < 2; whole++)
        for (int i = 0; i < 4; i++) {
            static const uint64_t lengths[] = {UINT64_C(1) << 63, UINT64_MAX, 0, 65536};
            t_put_le(&g.pairs, lengths[i], 8);
            t_put_text(&g.pairs, "abcdefgh");
            g.n_pairs++;
            if (whole) t_gguf_tensor(&g, "t", T_GGML_F32, 1, (const uint64_t[]){1 << 18}, NULL, 1 << 20);
            t_gguf_write(&g, path);
            char part[64];
            snprintf(part, sizeof part, "key has a length of %" PRIu64 " bytes", lengths[i]);
            REFUSED(path, ST_INVALID, part, "key.gguf:24:");
        }
    /* a string that ends behind the file */
    t_gguf_key(&g, "s", T_STRING);
    t_put_le(&g.pairs, UINT64_C(1) << 63, 8);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "string of 9223372036854775808 bytes, but the file ends");
    /* arrays: of absurd length, of arrays, of no kind */
    for (int i = 0; i < 3; i++) {
        static const uint64_t counts[] = {UINT64_C(1) << 62, UINT64_MAX, 1 << 20};
        for (int kind = 0; kind < 2; kind++) {
            t_gguf_key(&g, "list", T_ARRAY);
            t_put_le(&g.pairs, kind ? T_STRING : T_U32, 4);
            t_put_le(&g.pairs, counts[i], 8);
            t_gguf_write(&g, path);
            REFUSED(path, ST_INVALID, "key list", "longer than the file");
        }
    }
    t_gguf_array(&g, "list", T_ARRAY, "\0\0\0\0\0\0\0\0\0\0\0\0", 1, 12);
    t_gguf_write(&g, path);
    REFUSED(path, ST_UNSUPPORTED, "key list", "arrays in arrays");
    t_gguf_array(&g, "list", 13, "\0\0\0\0", 1, 4);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "key list", "type 13");
    t_gguf_key(&g, "value", 77);
    t_put_le(&g.pairs, 0, 8);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "key value", "type 77");
    t_gguf_number(&g, "flag", T_BOOL, 2);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "flag is neither true nor false");
    t_gguf_u32(&g, "twice", 1);
    t_gguf_u32(&g, "twice", 1);
    t_gguf_write(&g, path);
    REFUSED(path, ST_INVALID, "key twice is there twice");

    /* the first 24 bytes */
    t_write_text(path, "GGML");
    REFUSED(path, ST_INVALID, "not a GGUF file");
    t_write_text(path, "");
    REFUSED(path, ST_INVALID, "GGUF magic", "ends at 0");
    t_write_file(path, "GGUF\0\0\0\3\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 24);
    REFUSED(path, ST_UNSUPPORTED, "big-endian");
    for (uint32_t version = 1; version < 5; version += 3) {
        t_gguf_u32(&g, "a", 1);
        g.version = version;
        t_gguf_write(&g, path);
        REFUSED(path, ST_UNSUPPORTED, "version");
    }
    for (int i = 0; i < 2; i++) {
        t_gguf_u32(&g, "a", 1);
        *(i ? &g.n_tensors : &g.n_pairs) = UINT64_C(1) << 60;
        struct t_bytes b = {0};
        t_put_text(&b, "GGUF");
        t_put_le(&b, 3, 4);
        t_put_le(&b, g.n_tensors, 8);
        t_put_le(&b, g.n_pairs, 8);
        t_put(&b, g.pairs.data, g.pairs.n);
        t_write_file(path, b.data, b.n);
        t_bytes_free(&b);
        t_bytes_free(&g.pairs);
        memset(&g, 0, sizeof g);
        REFUSED(path, ST_INVALID, "declares", "more than a file of");
    }
    t_write_text(
        path,
        "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n");
    REFUSED(path, ST_INVALID, "git lfs pull");
}

/* Cut off anywhere, a file is refused; no cut crashes. */
static void gguf_cut_off(void **state) {
    (void)state;
    const char *path = gguf_small("cut.gguf", 0, 3);
    size_t n;
    const char *whole = t_read_file(path, &n);
    for (size_t cut = 0; cut < n; cut += cut < 600 ? 1 : 13) {
        struct checkpoint *ck = NULL;
        struct err e = {0};
        unsigned char *copy = malloc(cut ? cut : 1); /* exact: a sanitizer sees the first byte that is read too far */
        memcpy(copy, whole, cut);
        enum st st = ck_open_memory(CK_GGUF, copy, cut, &ck, &e);
        if (st == ST_OK) {
            assert_true(n - cut < 32); /* only the padding behind the last tensor */
            ck_close(ck);
        } else {
            assert_int_equal(st, ST_INVALID);
            assert_non_null(strstr(e.text, "memory"));
        }
        free(copy);
    }
}

/* F03. Part i of n with its own tensors; keys count from 0, names from 1. */
static const char *part_of(const char *dir, const char *prefix, unsigned i, unsigned n, uint64_t n_tensors) {
    char name[64];
    snprintf(name, sizeof name, "%s-%05u-of-%05u.gguf", prefix, i + 1, n);
    if (i == 0) {
        t_gguf_str(&g, "general.architecture", "llama");
        t_gguf_u32(&g, "first", 1);
    }
    t_gguf_number(&g, "split.no", T_U16, i);
    t_gguf_number(&g, "split.count", T_U16, n);
    t_gguf_number(&g, "split.tensors.count", T_I32, n_tensors);
    static const char *const names[] = {"a", "b", "c"};
    t_gguf_tensor(&g, names[i], T_GGML_F32, 1, (const uint64_t[]){i ? 6 : 4}, i ? six : four, i ? sizeof six : sizeof four);
    const char *path = in(dir, name);
    t_gguf_write(&g, path);
    return path;
}

static void gguf_split(void **state) {
    (void)state;
    const char *dir = new_dir("split");
    const char *one = part_of(dir, "x", 0, 3, 3), *two = part_of(dir, "x", 1, 3, 3), *three = part_of(dir, "x", 2, 3, 3);
    t_write_text(in(dir, "mmproj-x.gguf"), "a projector");
    const char *ways[] = {one, two, three, dir};
    struct digest first = {0};
    for (int i = 0; i < 4; i++) {
        struct checkpoint *ck = opened(ways[i]);
        assert_int_equal(ck_n_files(ck), 3);
        assert_int_equal(ck_n_tensors(ck), 3);
        struct gguf_value v;
        assert_true(ck_gguf_get(ck, "first", &v)); /* the first part's keys, whichever was opened */
        assert_true(ck_gguf_get(ck, "split.no", &v) && v.u == 0);
        assert_string_equal(ck_file_path(ck, ck_find(ck, "b")->file), two);
        assert_string_equal(ck_file_path(ck, 2), three);
        float *values;
        T_OK(ck_read_f32(ck, ck_find(ck, "b"), 6, &values, NULL), NULL);
        assert_memory_equal(values, six, sizeof six);
        free(values);
        struct digest d = ck_digest(ck);
        if (i) assert_memory_equal(&d, &first, sizeof d);
        first = d;
        ck_close(ck);
    }
    /* joined by cat, under any name */
    size_t n1, n2;
    const char *data1 = t_read_file(one, &n1), *data2 = t_read_file(two, &n2);
    struct t_bytes b = {0};
    t_put(&b, data1, n1);
    t_put(&b, data2, n2);
    const char *joined = t_path("joined.gguf");
    t_write_file(joined, b.data, b.n);
    REFUSED(joined, ST_INVALID, "joined by cat", "llama-gguf-split --merge");
    t_write_file(one, b.data, b.n);
    REFUSED(one, ST_INVALID, "joined by cat");
    REFUSED(two, ST_INVALID, "joined by cat");
    t_write_file(one, data1, n1);
    t_bytes_free(&b);

    /* names against keys */
    const char *odd = t_path("odd.gguf");
    t_write_file(odd, data2, n2);
    REFUSED(odd, ST_INVALID, "part 2 of 3", "-00002-of-00003.gguf");
    t_write_file(three, data2, n2);
    REFUSED(one, ST_INVALID, "by its name part 3 of 3, by its keys part 2 of 3");
    part_of(dir, "x", 2, 3, 4);
    part_of(dir, "x", 0, 3, 4);
    REFUSED(two, ST_INVALID, "split.tensors.count is 4", "3 tensors");

    /* missing ones */
    assert_int_equal(unlink(two), 0);
    REFUSED(dir, ST_NOT_FOUND, "part 2 of 3 is missing", "x-00002-of-00003.gguf");
    REFUSED(three, ST_NOT_FOUND, "part 2 of 3 is missing", "x-00002-of-00003.gguf");
    REFUSED(two, ST_NOT_FOUND, "x-00002-of-00003.gguf");
    assert_int_equal(unlink(one), 0);
    REFUSED(dir, ST_NOT_FOUND, "part 2 of 3 is missing"); /* looked for from the last to the first */

    /* a whole file whose name looks like a part */
    t_gguf_str(&g, "general.architecture", "llama");
    t_gguf_tensor(&g, "a", T_GGML_F32, 1, (const uint64_t[]){4}, four, 16);
    const char *whole_dir = new_dir("whole"), *whole = in(whole_dir, "x-00001-of-00013.gguf");
    t_gguf_write(&g, whole);
    ck_close(opened(whole));
    ck_close(opened(whole_dir));
    t_gguf_tensor(&g, "a", T_GGML_F32, 1, (const uint64_t[]){4}, four, 16);
    t_gguf_write(&g, in(whole_dir, "y.gguf"));
    REFUSED(whole_dir, ST_INVALID, "several models", "y.gguf");

    /* split keys that are nonsense */
    t_gguf_number(&g, "split.count", T_U16, 2);
    t_gguf_write(&g, odd);
    REFUSED(odd, ST_INVALID, "split.no is missing");
    t_gguf_number(&g, "split.count", T_U16, 2);
    t_gguf_number(&g, "split.no", T_U16, 2);
    t_gguf_write(&g, odd);
    REFUSED(odd, ST_INVALID, "split.no is not below it");
    t_gguf_str(&g, "split.count", "2");
    t_gguf_write(&g, odd);
    REFUSED(odd, ST_INVALID, "split.count is not a count");
}

/* ---- where things are ---- */

static void hub_names(void **state) {
    (void)state;
    const char *home = new_dir("home");
    unsetenv("HF_HUB_CACHE");
    unsetenv("HUGGINGFACE_HUB_CACHE");
    unsetenv("HF_HOME");
    unsetenv("XDG_CACHE_HOME");
    setenv("HOME", home, 1);
    REFUSED("org/model", ST_NOT_FOUND, "not in the Hugging Face cache", "/home/.cache/huggingface/hub", "hf download org/model");
    REFUSED("../model", ST_NOT_FOUND, "No such file");
    REFUSED("org/..", ST_NOT_FOUND, "No such file");
    REFUSED("/nowhere/at/all", ST_NOT_FOUND, "No such file");

    static const struct {
        const char *variable, *value, *below;
    } roots[] = {{"HOME", "home", "/.cache/huggingface/hub"},
                 {"XDG_CACHE_HOME", "xdg", "/huggingface/hub"},
                 {"HF_HOME", "hfhome", "/hub"},
                 {"HF_HUB_CACHE", "hub", ""}};
    for (size_t i = 0; i < 4; i++) {
        const char *root = t_path("%s%s", roots[i].value, roots[i].below);
        char command[1024];
        snprintf(command, sizeof command, "mkdir -p '%s/models--org--model/refs' '%s/models--org--model/snapshots/abc%zu'", root, root, i);
        assert_int_equal(system(command), 0);
        setenv(roots[i].variable, t_path("%s", roots[i].value), 1);
        const char *repo = t_path("%s%s/models--org--model", roots[i].value, roots[i].below);
        const struct t_tensor a = {"a", "F32", 1, {4}, four, 16};
        snprintf(command, sizeof command, "%s/snapshots/abc%zu/model.safetensors", repo, i);
        t_safetensors(command, &a, 1, NULL);
        ck_close(opened("org/model")); /* one snapshot, no ref */
        snprintf(command, sizeof command, "%s/refs/main", repo);
        char commit[16];
        snprintf(commit, sizeof commit, "abc%zu\n", i);
        t_write_text(command, commit);
        struct checkpoint *ck = opened("org/model");
        snprintf(command, sizeof command, "%s/snapshots/abc%zu", repo, i);
        assert_string_equal(ck_path(ck), command);
        ck_close(ck);
        snprintf(command, sizeof command, "%s/refs/main", repo);
        t_write_text(command, "def\n");
        REFUSED("org/model", ST_NOT_FOUND, "commit def", "hf download org/model");
        t_write_text(command, "../../..");
        REFUSED("org/model", ST_INVALID, "holds no commit");
        REFUSED("org/other", ST_NOT_FOUND, "not in the Hugging Face cache", root);
    }
}

static void other_paths(void **state) {
    (void)state;
    const char *dir = new_dir("empty");
    REFUSED(dir, ST_NOT_FOUND, "no *.safetensors and no *.gguf");
    t_write_text(in(dir, "pytorch_model.bin"), "x");
    REFUSED(dir, ST_NOT_FOUND, "convert them to safetensors");
    assert_int_equal(mkfifo(in(dir, "model.safetensors"), 0600), 0); /* must not hang */
    REFUSED(dir, ST_INVALID, "not a regular file");
    REFUSED("", ST_NOT_FOUND, "No such file");
}

static void demo_model(void **state) {
    (void)state;
    const char *path = t_demo_model();
    if (!path) skip();
    struct checkpoint *ck = opened(path);
    assert_int_equal(ck_n_tensors(ck), 272);
    const struct ck_tensor *t = ck_find(ck, "token_embd.weight");
    assert_true(t && t->dims[0] == 49152 && t->dims[1] == 576);
    struct gguf_value v;
    assert_true(ck_gguf_get(ck, "tokenizer.ggml.tokens", &v) && v.array.n == 49152);
    struct gguf_string s = ck_gguf_array_string(ck, &v, 2);
    assert_true(s.bytes == strlen("<|im_end|>") && memcmp(s.data, "<|im_end|>", s.bytes) == 0);
    float *values;
    struct err e = {0};
    T_OK(ck_read_f32(ck, ck_find(ck, "output_norm.weight"), 576, &values, &e), &e);
    free(values);
    ck_close(ck);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(safetensors_round_trip),
        cmocka_unit_test(digest_and_same_bytes),
        cmocka_unit_test(safetensors_hostile),
        cmocka_unit_test(safetensors_sets),
        cmocka_unit_test(large_header_is_fast),
        cmocka_unit_test(gguf_round_trip),
        cmocka_unit_test(gguf_long_header),
        cmocka_unit_test(gguf_hostile_tensors),
        cmocka_unit_test(gguf_hostile_keys),
        cmocka_unit_test(gguf_cut_off),
        cmocka_unit_test(gguf_split),
        cmocka_unit_test(hub_names),
        cmocka_unit_test(other_paths),
        cmocka_unit_test(demo_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
