/* Copies from global into shared memory that go on beside the thread that asked for them, and ldmatrix.
 *
 * A copy writes twice in the eyes of the checks. When it is asked for: whoever still reads the place races with it, and from then on the place holds what nobody has written. When
 * the thread waits for it: as that thread's store, so others may read it only after a barrier that comes later still. The bytes are taken at the wait, so a source that changes
 * meanwhile is a race too. A GPU may be done at any time in between; nothing that is right can tell. */
#include "kernels/simt/engine.h"

namespace simt {

void copy_async(const void *from, uint32_t array_offset, uint32_t array_bytes, size_t offset, site at) {
    thread &t = *self;
    global_access(from, 16, 16, access_kind::load, scope::block, at);
    shared_access(array_offset, array_bytes, offset, 16, 16, access_kind::store, at);
    if (config().check)
        shared_forget(array_offset + (uint32_t)offset, 16);
    t.copies.push_back({from, array_offset, array_bytes, offset, t.copy_group});
}

void copy_async_commit() { self->copy_group++; }

void copy_async_wait(uint32_t n_left, site at) {
    thread &t = *self;
    size_t n = 0;
    for (; n < t.copies.size() && t.copies[n].group + n_left < t.copy_group; n++) {
        const pending_copy &c = t.copies[n];
        global_check(c.from, 16, at);
        memcpy(shared_check(c.array_offset, c.offset, 16, at), c.from, 16);
    }
    t.copies.erase(t.copies.begin(), t.copies.begin() + (long)n);
}

struct rows_payload {
    const void *row;
    uint32_t *r;
    bool transposed;
};

void ldmatrix_x4(uint32_t r[4], const void *row, bool transposed, site at) {
    rows_payload p = {row, r, transposed};
    collective(
        transposed ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, &p,
        [](thread *const *lanes, uint32_t) {
            uint16_t number[4][8][8];
            for (uint32_t l = 0; l < 32; l++)
                memcpy(number[l / 8][l % 8], ((const rows_payload *)lanes[l]->payload)->row, 16);
            for (uint32_t l = 0; l < 32; l++) {
                const auto *mine = (const rows_payload *)lanes[l]->payload;
                uint32_t g = l / 4, k = 2 * (l % 4);
                for (uint32_t j = 0; j < 4; j++)
                    mine->r[j] = mine->transposed ? number[j][k][g] | (uint32_t)number[j][k + 1][g] << 16 : number[j][g][k] | (uint32_t)number[j][g][k + 1] << 16;
            }
        },
        at);
}

} // namespace simt
