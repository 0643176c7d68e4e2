/* Atomic accesses and fences: what they hand on, and who looks at a flag in vain. */
#include "kernels/simt/engine.h"

#include <algorithm>

namespace simt {

/* What a location hands on: to threads of the block that wrote it, and to all of the launch. */
struct location {
    view in_block, in_device;
    uint64_t block; /* its key */
};
static std::map<const void *, location> locations; /* of the launches that run */

void atomics_forget() { locations.clear(); }

static view given_by(const location &where, const thread &t, scope s) {
    view given = s != scope::block ? where.in_device : view();
    return where.block == t.in_block->key ? view_join(given, where.in_block) : given;
}

static void give(location &where, const thread &t, scope s, const view &given) {
    where.in_block = where.block == t.in_block->key ? view_join(where.in_block, given) : given;
    where.block = t.in_block->key;
    if (s != scope::block) where.in_device = view_join(where.in_device, given);
}

static void spin(thread &t) {
    size_t n_threads = 0;
    for (const block *b : resident) n_threads += b->threads.size();
    if (++n_spins > 1000 + 300 * n_threads)
        finding("deadlock: %s still looks at %s:%d for what no other thread will write", text_of(t).c_str(), t.at.file, t.at.line);
    redraw(&t);
    if (chance(4) == 0) bulk_progress(resident);
    /* Spinning warps draw again and again, and together would outbid for ever one whose last draw was low. */
    if (chance(16) == 0)
        for (block *b : resident)
            for (warp &w : b->warps) w.priority = chance(1u << 30);
    to_scheduler();
}

uint32_t atomic(uint32_t *p, update u, uint32_t value, uint32_t compare, order o, scope s, site at) {
    thread &t = *self;
    access_kind kind = u == update::read ? access_kind::atomic_load : u == update::write ? access_kind::atomic_store : access_kind::atomic_update;
    global_access(p, sizeof *p, alignof(uint32_t), kind, s, at);
    t.at = at;
    uint32_t old = *p;
    bool writes = u != update::read && !(u == update::compare_exchange && old != compare);
    location &where = locations[p];
    if (u != update::write) {
        view given = given_by(where, t, s);
        if (o == order::acquire || o == order::acquire_release)
            t.knows = view_join(t.knows, given);
        else
            t.pending = view_join(t.pending, given);
    }
    if (writes) {
        *p = u == update::add ? old + value : value;
        bool releases = o == order::release || o == order::acquire_release;
        if (u == update::write) /* a plain atomic store ends what earlier ones gave; an update goes on with it */
            where = location();
        give(where, t, s, releases ? view_given(t) : t.fenced);
        n_spins = 0;
        may_give_way();
    } else {
        spin(t);
    }
    return old;
}

/* A b128 at once; a v4 word by word in an order drawn from the seed, and others may run in between. Nor does a word of a v4 store hand on those beside it: it gives what was
 * before all of them. */
void atomic_wide(uint32_t *p, access_kind kind, uint4 *v, site at) {
    thread &t = *self;
    bool at_once = kind == access_kind::b128_load || kind == access_kind::b128_store,
         writes = kind == access_kind::b128_store || kind == access_kind::v4_store;
    uint32_t words[4], order[4] = {0, 1, 2, 3};
    memcpy(words, v, sizeof words);
    view given = kind == access_kind::v4_store ? view_given(t) : view();
    global_access(p, sizeof words, sizeof words, kind, scope::system, at);
    if (kind == access_kind::b128_store) given = view_given(t);
    t.at = at;
    for (uint32_t k = 0; k < 4; k++) {
        std::swap(order[k], order[k + chance(4 - k)]);
        uint32_t i = order[k];
        location &where = locations[p + i];
        if (writes) {
            p[i] = words[i];
            where = location();
            give(where, t, scope::system, given);
            n_spins = 0;
        } else {
            words[i] = p[i];
            given = view_join(given, given_by(where, t, scope::system));
        }
        if (!at_once) may_give_way();
    }
    if (writes) {
        may_give_way();
        return;
    }
    memcpy(v, words, sizeof words);
    t.knows = view_join(t.knows, given);
    spin(t);
}

void fence(scope s) {
    thread &t = *self;
    (void)s; /* a narrow fence is taken for a wide one: the scope of the atomics decides */
    t.knows = view_join(t.knows, t.pending);
    t.pending = nullptr;
    t.fenced = view_given(t);
}

} // namespace simt
