/* Uninitialised locals. They have no cell, and what a compiler makes of them is any value, often the same one each time. So kernels are compiled twice, with locals that begin as a pattern
 * (0xfe in each byte) and with locals that begin as zeroes, and a program runs with both, under one seed. With TANDEM_SIMT_BITS=FILE the first run writes there what each launch left
 * in memory, the second one compares, and at the first difference it has a finding.
 *
 * What is compared: after each launch a digest of all buffers that it stored to. Whatever leaves the device was in such a buffer when a launch ended, if not the host or a copy put it there;
 * so nothing escapes that a copy, a kernel after it or a host that looks at pinned memory could see, and the launch at fault is the first that differs. Sparse buffers are too large for that:
 * of them, what copies read is compared. A local that decides about nothing which is stored makes no difference, and is no finding. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "kernels/simt/engine.h"

namespace simt {

/* One of the file: what a launch left in all buffers that it stored to; or, without a name, that simt_catch begins. */
struct left_bits {
    char what[52];
    uint32_t n_launches;
    uint64_t digest;
};

static int file = -1;
static enum { unasked, off, writes, compares } mode;
static uint32_t n_launches; /* since simt_catch began */

static bool is_on() {
    if (mode != unasked) return mode != off;
    const char *path = getenv("TANDEM_SIMT_BITS");
    struct stat there;
    mode = off;
    if (!path) return false;
    file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0 || fstat(file, &there) != 0) {
        fprintf(stderr, "TANDEM_SIMT_BITS=%s: cannot be read and written\n", path);
        exit(2);
    }
    mode = there.st_size ? compares : writes;
    return true;
}

static bool read_one(left_bits *was) { return read(file, was, sizeof *was) == (ssize_t)sizeof *was; }
static void write_one(const left_bits &now) {
    if (write(file, &now, sizeof now) == (ssize_t)sizeof now) return;
    fprintf(stderr, "TANDEM_SIMT_BITS: the file cannot be written\n");
    exit(2);
}

/* By a finding the other run may have ended its part earlier, or this one. */
void locals_begin() {
    left_bits mark = {};
    n_launches = 0;
    if (!is_on()) return;
    if (mode == writes)
        write_one(mark);
    else
        while (read_one(&mark) && mark.what[0]) {
        }
}

static void note(const operation &o, const std::string &where, uint64_t digest) {
    left_bits now = {{0}, n_launches, digest}, was = {};
    snprintf(now.what, sizeof now.what, "%s", o.what);
    if (mode == writes) return write_one(now);
    if (read_one(&was) && !was.what[0]) lseek(file, -(off_t)sizeof was, SEEK_CUR); /* where locals_begin looks for it */
    if (memcmp(&now, &was, sizeof now) == 0) return;
    bool is_same_launch = strcmp(now.what, was.what) == 0 && now.n_launches == was.n_launches;
    finding("uninitialised local: kernel %s, launch %u, grid (%u,%u,%u), %u threads: %s%s depends on the value with which a local begins", o.what,
            n_launches, o.grid.x, o.grid.y, o.grid.z, o.block_dim.x * o.block_dim.y * o.block_dim.z,
            is_same_launch ? "what it leaves in " : "whether it comes, and so what an earlier one leaves,", is_same_launch ? where.c_str() : "");
}

void locals_launched(const std::vector<launch *> &all) {
    std::string where;
    uint64_t digest = 0;
    n_launches += (uint32_t)all.size();
    if (!is_on()) return;
    regions_changed([&](const region &r) {
        if (r.sparse) return;
        where += (where.empty() ? "buffer " : ", ") + r.name;
        digest = XXH3_64bits_withSeed(r.base, r.bytes, digest + r.number);
    });
    note(*all.back(), where.empty() ? "memory" : where, digest);
}

void locals_copied(const operation &o, const void *from, size_t bytes) {
    const region *r = region_find(from);
    if (r && r->sparse && is_on()) note(o, "buffer " + r->name, XXH3_64bits(from, bytes));
}

} // namespace simt

int simt_compares_bits(void) { return simt::is_on() && simt::mode == simt::compares; }
