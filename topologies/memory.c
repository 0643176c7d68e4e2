/* set_mempolicy(2) by hand: libnuma is one more dependency for one call.
 *
 * Which policy: MPOL_PREFERRED_MANY (Linux 5.15). It takes memory from the nearest of our nodes that has room and falls back to the others of the machine. MPOL_BIND would not fall
 * back: once the nodes are full it kills, although the budget that was checked counts the memory of the whole host. Interleaving would send half of a rank's reads over the link
 * between nodes, where first touch by bound threads sends none. Before 5.15: MPOL_PREFERRED, which means the same for one node; for several it would put everything on the first,
 * so the kernel's default (the node of the CPU that touches) stays. */
#include "topologies/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.h"

/* From linux/mempolicy.h, which older systems have without the last one. */
#define POLICY_PREFERRED 1
#define POLICY_PREFERRED_MANY 5

#define MAX_NODE 65535
#define WORD_BITS (8 * (int)sizeof(unsigned long))

enum st topo_memory_bind(const int *numa, int n_numa, bool *bound, struct err *e) {
    int last = -1;
    for (int i = 0; i < n_numa; i++) {
        if (numa[i] < 0 || numa[i] > MAX_NODE) return err_set(e, ST_INVALID, "a NUMA node with the number %d", numa[i]);
        if (numa[i] > last) last = numa[i];
    }
    if (bound) *bound = false;
    if (last < 0) return ST_OK;
    size_t n_words = (size_t)last / WORD_BITS + 1;
    unsigned long *mask = calloc(n_words, sizeof *mask);
    if (!mask) return err_set(e, ST_NO_MEMORY, "no memory for a set of NUMA nodes");
    int n_nodes = 0;
    for (int i = 0; i < n_numa; i++) {
        unsigned long bit = 1ul << (numa[i] % WORD_BITS), *word = &mask[numa[i] / WORD_BITS];
        n_nodes += !(*word & bit);
        *word |= bit;
    }
    unsigned long n_bits = n_words * (unsigned long)WORD_BITS + 1; /* the kernel takes one off */
#ifdef SYS_set_mempolicy
    long failed = syscall(SYS_set_mempolicy, POLICY_PREFERRED_MANY, mask, n_bits);
    if (failed && errno == EINVAL && n_nodes == 1) failed = syscall(SYS_set_mempolicy, POLICY_PREFERRED, mask, n_bits);
#else
    long failed = -1;
    errno = ENOSYS;
#endif
    int why = errno;
    if (failed)
        LOG_DBG("topo", "memory is not bound to %d NUMA node%s (first %d): %s", n_nodes, n_nodes == 1 ? "" : "s", numa[0], strerror(why));
    else if (bound)
        *bound = true;
    free(mask);
    return ST_OK;
}
