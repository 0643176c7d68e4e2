#include "base/hash.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* struct base_hasher is libxxhash's state under our name. */
static XXH3_state_t *state_of(const struct base_hasher *h) {
    BASE_ASSERT(h != NULL);
    return (XXH3_state_t *)(uintptr_t)h;
}

static struct digest to_digest(XXH128_hash_t hash) {
    struct digest d;
    XXH128_canonical_t canonical; /* big-endian on every machine */
    XXH128_canonicalFromHash(&canonical, hash);
    memcpy(d.bytes, canonical.digest, sizeof d.bytes);
    return d;
}

struct base_hasher *base_hasher_create(void) {
    XXH3_state_t *state = XXH3_createState();
    BASE_ASSERT(state != NULL); /* some hundred bytes: without them nothing else will work either */
    XXH3_128bits_reset(state);
    return (struct base_hasher *)(void *)state;
}

void base_hasher_update(struct base_hasher *h, const void *data, size_t bytes) {
    if (bytes) XXH3_128bits_update(state_of(h), data, bytes);
}

void base_hasher_update_u64(struct base_hasher *h, uint64_t value) {
    uint8_t bytes[8];
    for (int i = 0; i < 8; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    base_hasher_update(h, bytes, sizeof bytes);
}

void base_hasher_update_str(struct base_hasher *h, const char *text) {
    size_t n = strlen(text);
    base_hasher_update_u64(h, n);
    base_hasher_update(h, text, n);
}

struct digest base_hasher_final(const struct base_hasher *h) {
    return to_digest(XXH3_128bits_digest(state_of(h)));
}

void base_hasher_destroy(struct base_hasher *h) {
    if (h) XXH3_freeState(state_of(h));
}

struct digest base_hash(const void *data, size_t bytes) {
    return to_digest(XXH3_128bits(bytes ? data : "", bytes));
}

uint64_t base_hash64(const void *data, size_t bytes, uint64_t seed) { return XXH3_64bits_withSeed(bytes ? data : "", bytes, seed); }

void base_digest_hex(const struct digest *d, char text[33]) {
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < sizeof d->bytes; i++) {
        text[2 * i] = digits[d->bytes[i] >> 4];
        text[2 * i + 1] = digits[d->bytes[i] & 15];
    }
    text[32] = 0;
}

enum st base_mac(const uint8_t key[32], const void *data, size_t bytes, uint8_t mac[32]) {
    if (sodium_init() < 0) return ST_IO;
    uint8_t out[32];
    if (crypto_generichash(out, sizeof out, bytes ? data : NULL, bytes, key, 32) != 0) return ST_INVALID;
    memcpy(mac, out, sizeof out);
    return ST_OK;
}

bool base_mac_is(const uint8_t key[32], const void *data, size_t bytes, const uint8_t mac[32]) {
    uint8_t right[32];
    return base_mac(key, data, bytes, right) == ST_OK && sodium_memcmp(right, mac, sizeof right) == 0;
}

enum st base_key_draw(uint8_t key[32], struct err *e) {
    if (sodium_init() < 0) return err_set(e, ST_IO, "libsodium cannot be initialised");
    randombytes_buf(key, 32);
    return ST_OK;
}

enum st base_sha256_file(const char *path, uint8_t sum[32], struct err *e) {
    enum { READ_BYTES = 256 << 10 };
    if (sodium_init() < 0) return err_set(e, ST_IO, "libsodium cannot be initialised");
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));

    enum st st = ST_OK;
    unsigned char *buffer = malloc(READ_BYTES);
    if (!buffer) {
        st = err_set(e, ST_NO_MEMORY, "%s: no memory to read it", path);
        goto out;
    }
    crypto_hash_sha256_state state;
    crypto_hash_sha256_init(&state);
    for (;;) {
        ssize_t n = read(fd, buffer, READ_BYTES);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            st = err_set(e, ST_IO, "%s: %s", path, strerror(errno));
            goto out;
        }
        if (n == 0) break;
        crypto_hash_sha256_update(&state, buffer, (unsigned long long)n);
    }
    crypto_hash_sha256_final(&state, sum);
out:
    free(buffer);
    close(fd);
    return st;
}
