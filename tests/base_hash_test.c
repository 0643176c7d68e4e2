#include <stdlib.h>
#include <string.h>

#include "base/hash.h"
#include "tests/t.h"

static void hex(const uint8_t *bytes, size_t n, char *text) {
    for (size_t i = 0; i < n; i++) sprintf(text + 2 * i, "%02x", bytes[i]);
}

static void known_answers(void **state) {
    (void)state;
    char text[33];
    struct digest d = base_hash("", 0);
    base_digest_hex(&d, text);
    assert_string_equal(text, "99aa06d3014798d86001c324468d497f"); /* `xxhsum -H128` of nothing */
    assert_true(base_hash64(NULL, 0, 0) == 0x2d06800538d394c2ull);
    assert_true(base_hash64("abc", 3, 1) != base_hash64("abc", 3, 2));
}

static void pieces_give_the_same_digest(void **state) {
    (void)state;
    uint8_t data[5000];
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)(i * 7 + i / 251);
    struct digest whole = base_hash(data, sizeof data);
    for (size_t piece = 1; piece < 700; piece = piece * 2 + 1) {
        struct base_hasher *h = base_hasher_create();
        for (size_t at = 0; at < sizeof data; at += piece) base_hasher_update(h, data + at, piece < sizeof data - at ? piece : sizeof data - at);
        struct digest once = base_hasher_final(h), twice = base_hasher_final(h);
        assert_memory_equal(&once, &whole, sizeof whole);
        assert_memory_equal(&twice, &whole, sizeof whole);
        base_hasher_destroy(h);
    }
}

static struct digest of_strings(const char *a, const char *b) {
    struct base_hasher *h = base_hasher_create();
    base_hasher_update_str(h, a);
    base_hasher_update_str(h, b);
    struct digest d = base_hasher_final(h);
    base_hasher_destroy(h);
    return d;
}
static void boundaries_between_strings_count(void **state) {
    (void)state;
    struct digest a = of_strings("ab", "c"), b = of_strings("a", "bc"), c = of_strings("ab", "c");
    assert_memory_not_equal(&a, &b, sizeof a);
    assert_memory_equal(&a, &c, sizeof a);
    struct base_hasher *h = base_hasher_create();
    base_hasher_update_u64(h, 0x0102030405060708u);
    struct digest d = base_hasher_final(h), want = base_hash("\x08\x07\x06\x05\x04\x03\x02\x01", 8);
    assert_memory_equal(&d, &want, sizeof d);
    base_hasher_destroy(h);
}

static void macs_depend_on_key_and_data(void **state) {
    (void)state;
    uint8_t key[32] = {0}, mac[32], other[32];
    T_OK(base_mac(key, "", 0, mac), NULL);
    T_OK(base_mac(key, NULL, 0, other), NULL);
    assert_memory_equal(mac, other, 32);
    T_OK(base_mac(key, "x", 1, other), NULL);
    assert_memory_not_equal(mac, other, 32);
    /* hashlib.blake2b(b"abc", digest_size=32, key=bytes(range(32))) */
    for (int i = 0; i < 32; i++) key[i] = (uint8_t)i;
    char text[65];
    T_OK(base_mac(key, "abc", 3, mac), NULL);
    hex(mac, 32, text);
    assert_string_equal(text, "d63a32d3e44738d7907f964316c241adaba0abfeabc32349677578a15a203f7f");
}

static void sha256_of_files(void **state) {
    (void)state;
    uint8_t sum[32];
    char text[65];
    struct err e = {0};
    const char *path = t_path("abc");
    t_write_text(path, "abc");
    T_OK(base_sha256_file(path, sum, &e), &e);
    hex(sum, 32, text);
    assert_string_equal(text, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    /* FIPS 180's long vector: a million times 'a' */
    char *million = malloc(1000000);
    assert_non_null(million);
    memset(million, 'a', 1000000);
    t_write_file(path, million, 1000000);
    free(million);
    T_OK(base_sha256_file(path, sum, &e), &e);
    hex(sum, 32, text);
    assert_string_equal(text, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    t_write_text(path, "");
    T_OK(base_sha256_file(path, sum, &e), &e);
    hex(sum, 32, text);
    assert_string_equal(text, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");

    t_expect_err_contains(ST_NOT_FOUND, base_sha256_file(t_path("absent"), sum, &e), &e, "absent: ");
    t_expect_err_contains(ST_IO, base_sha256_file(t_dir(), sum, &e), &e, "directory");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_answers),
        cmocka_unit_test(pieces_give_the_same_digest),
        cmocka_unit_test(boundaries_between_strings_count),
        cmocka_unit_test(macs_depend_on_key_and_data),
        cmocka_unit_test(sha256_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
