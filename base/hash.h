/* Digests. XXH3 (128 bit) where nobody would forge: data, plans, settings. Keyed BLAKE2b (libsodium) where somebody could want to. */
#ifndef BASE_HASH_H
#define BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

struct digest {
    uint8_t bytes[16];
};

/* Incremental XXH3-128. create → update … → final (may be called repeatedly) → destroy. One thread. */
struct base_hasher;
struct base_hasher *base_hasher_create(void);
void base_hasher_update(struct base_hasher *h, const void *data, size_t bytes);
void base_hasher_update_u64(struct base_hasher *h, uint64_t value);   /* little-endian on every machine */
void base_hasher_update_str(struct base_hasher *h, const char *text); /* length first, so that ("ab","c") differs from ("a","bc") */
struct digest base_hasher_final(const struct base_hasher *h);
void base_hasher_destroy(struct base_hasher *h);

struct digest base_hash(const void *data, size_t bytes);
uint64_t base_hash64(const void *data, size_t bytes, uint64_t seed);

/* 32 hexadecimal digits and a NUL. */
void base_digest_hex(const struct digest *d, char text[33]);

/* Keyed digest that cannot be forged without the key: BLAKE2b, 32 bytes out. */
enum st base_mac(const uint8_t key[32], const void *data, size_t bytes, uint8_t mac[32]);
/* Whether that is its digest; takes the same time wherever it differs. */
bool base_mac_is(const uint8_t key[32], const void *data, size_t bytes, const uint8_t mac[32]);
/* A key that nobody can guess. */
enum st base_key_draw(uint8_t key[32], struct err *e);
/* SHA-256 of a whole file, streamed. */
enum st base_sha256_file(const char *path, uint8_t sum[32], struct err *e);

#endif
