/* What another host needs to run this very binary: the binary, and the shared libraries that it needs or may open, but for those that must be the host's own (glibc, rdma-core, drivers).
 *
 * create → hash, read (any number of threads) → destroy. Files are held open, so that what was hashed is what is sent, also where a new build replaces them meanwhile.
 *
 *   bin/tandem            lib/libhwloc.so.15 …           lib/ucx/libuct_ib.so.0 …        MANIFEST
 *
 * MANIFEST has a line "DIGEST  NAME" for each other file, sorted by name, as `b2sum -l 256` writes and checks it; the bundle's hash is the same digest of MANIFEST. Modes follow from names
 * (0700 in bin/, else 0600), so the hash stands for names, modes and bytes. The same files make the same archive, byte for byte. */
#ifndef LAUNCHER_BUNDLE_H
#define LAUNCHER_BUNDLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/status.h"

#define LAUNCH_HASH_TEXT 65 /* 64 hexadecimal digits and a NUL */

struct launch_bundle;

/* Reads all files once: about 1 GB/s. MPICH is four times the rest (42 of 53 MB here), and only --backend mpi opens it. */
enum st launch_bundle_create(bool with_mpi, struct launch_bundle **bundle, struct err *e);
void launch_bundle_destroy(struct launch_bundle *b);

const char *launch_bundle_hash(const struct launch_bundle *b);
/* As `uname -m` says it: "x86_64", "aarch64". */
const char *launch_bundle_machine(const struct launch_bundle *b);
/* The oldest glibc that will do: {2, 34, 0}. */
const unsigned *launch_bundle_glibc(const struct launch_bundle *b);

/* The archive (ustar, a multiple of 10,240 bytes, as tar writes it): its size, and bytes of it from any place. */
uint64_t launch_bundle_bytes(const struct launch_bundle *b);
enum st launch_bundle_read(const struct launch_bundle *b, uint64_t offset, void *data, size_t bytes, struct err *e);

/* Names, sizes and where they come from. */
void launch_bundle_print(const struct launch_bundle *b, FILE *out);

/* Is what lies in this folder the bundle of that hash? ST_MISMATCH names the first file that differs. Other files there are not looked at. */
enum st launch_bundle_check(const char *folder, const char *hash, struct err *e);

#endif
