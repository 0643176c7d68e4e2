/* What another host needs to run this very binary: the binary, and the shared libraries that it needs or may open, but for those that must be the host's own (glibc, rdma-core, drivers).
 *
 * create, or open → hash, read (any number of threads) → destroy. Files are held open, so that what was hashed is what is sent, also where a new build replaces them meanwhile.
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

struct launch_bundle_options {
    bool with_mpi;       /* MPICH is four times the rest (42 of 53 MB here), and only --backend mpi opens it */
    const char *program; /* of another machine; NULL: this very binary */
    const char *folders; /* with that machine's libraries (libraries.h); NULL: this host's */
};
/* Reads all files once: about 1 GB/s. */
enum st launch_bundle_create(const struct launch_bundle_options *options, struct launch_bundle **bundle, struct err *e);
/* One that lies unpacked in a folder (`make bundle`). */
enum st launch_bundle_open(const char *folder, struct launch_bundle **bundle, struct err *e);
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

/* What a launcher can send: of this binary, and of other machines' where `make bundle ARCH=…` has put them beside it (bundle-MACHINE) or `make install` below (../lib/tandem/bundle-MACHINE). */
#define LAUNCH_MAX_BUNDLES 2
struct launch_bundles {
    int n;
    struct launch_bundle *list[LAUNCH_MAX_BUNDLES];
};
enum st launch_bundles_create(bool with_mpi, struct launch_bundles *bundles, struct err *e);
void launch_bundles_release(struct launch_bundles *bundles);

/* Is what lies in this folder the bundle of that hash? ST_MISMATCH names the first file that differs. Other files there are not looked at. */
enum st launch_bundle_check(const char *folder, const char *hash, struct err *e);

#endif
