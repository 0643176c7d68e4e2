/* Everybody waits for a 32-bit word to change: workers for `generation` (bumped by run), the creator for `n_busy` to become 0,
 * a barrier for `barrier_generation`. A waiter spins, then counts itself among the word's sleepers and sleeps on a futex.
 * Who changes a word looks at the sleepers afterwards and only then calls the system. Change and look, count and sleep, are
 * sequentially consistent: either the waker sees the sleeper, or the sleeper (the kernel compares the word again) sees the change. */
#include "base/pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/tick.h"

#define MAX_SPIN_US 50
#define MAX_THREADS 4096
#define MAX_CPUS 8192
#define PAUSES_PER_LOOK 16 /* between two looks at the clock, some 0.5 µs */

/* A word to wait for, and how many sleep on it; alone on its line. */
struct wait_word {
    _Alignas(64) _Atomic uint32_t value;
    _Atomic uint32_t n_sleepers;
};

struct worker {
    struct base_pool *pool;
    pthread_t thread;
    int i_thread;
};

struct cpu_mask {
    cpu_set_t bits[MAX_CPUS / CPU_SETSIZE];
};

struct base_pool {
    struct wait_word generation;
    struct wait_word n_busy; /* workers that have not finished the current run */
    struct wait_word barrier_generation;
    _Alignas(64) _Atomic uint32_t n_arrived; /* at the barrier */

    /* Written by the creator before it bumps the generation, read by workers after. */
    _Alignas(64) base_pool_fn fn;
    void *arg;
    bool stop;

    int n_threads;
    uint64_t spin_ns;
    pthread_t creator;
    int creator_rank; /* for the log lines of the workers */
    bool running;     /* touched by the creator only */
    bool bound;
    struct cpu_mask creator_mask; /* before binding, restored by destroy: later threads inherit the creator's mask */
    struct worker *workers;       /* n_threads − 1 */
};

/* --- Waiting --------------------------------------------------------------------------------------------------------------- */

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield is a no-op on most cores */
#endif
}

/* True once the word differs from old; false when the time for spinning is over. */
static bool spin_while_equal(struct wait_word *word, uint32_t old, uint64_t spin_ns) {
    if (spin_ns == 0) {
        sched_yield(); /* let those run whom we wait for */
        return atomic_load_explicit(&word->value, memory_order_acquire) != old;
    }
    const struct base_clock *clock = base_clock_real();
    uint64_t end_ns = 0;
    do {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if (atomic_load_explicit(&word->value, memory_order_acquire) != old) return true;
            pause_cpu();
        }
        uint64_t now_ns = base_now_ns(clock);
        if (end_ns == 0) end_ns = now_ns + spin_ns;
        if (now_ns >= end_ns) return false;
    } while (true);
}

static void wait_while_equal(struct wait_word *word, uint32_t old, uint64_t spin_ns) {
    if (atomic_load_explicit(&word->value, memory_order_acquire) != old) return;
    if (spin_while_equal(word, old, spin_ns)) return;
    atomic_fetch_add(&word->n_sleepers, 1);
    while (atomic_load(&word->value) == old) syscall(SYS_futex, &word->value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&word->n_sleepers, 1);
}

/* After the word was changed with a sequentially consistent operation. */
static void wake_all(struct wait_word *word) {
    if (atomic_load(&word->n_sleepers)) syscall(SYS_futex, &word->value, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
}

/* --- Workers --------------------------------------------------------------------------------------------------------------- */

static void *work(void *arg) {
    struct worker *self = arg;
    struct base_pool *pool = self->pool;
    char name[16];
    snprintf(name, sizeof name, "pool-%d", self->i_thread);
    pthread_setname_np(pthread_self(), name);
    base_log_set_rank(pool->creator_rank);

    for (uint32_t seen = 0;; seen++) {
        wait_while_equal(&pool->generation, seen, pool->spin_ns);
        if (pool->stop) return NULL;
        pool->fn(pool->arg, self->i_thread, pool->n_threads);
        if (atomic_fetch_sub(&pool->n_busy.value, 1) == 1) wake_all(&pool->n_busy);
    }
}

void base_pool_run(struct base_pool *pool, base_pool_fn fn, void *arg) {
    BASE_ASSERT(pthread_equal(pool->creator, pthread_self()));
    BASE_ASSERT(!pool->running); /* a fn that calls run would wait for itself */
    pool->running = true;
    if (pool->n_threads > 1) {
        pool->fn = fn;
        pool->arg = arg;
        atomic_store_explicit(&pool->n_busy.value, (uint32_t)pool->n_threads - 1, memory_order_relaxed);
        atomic_fetch_add(&pool->generation.value, 1);
        wake_all(&pool->generation);
    }
    fn(arg, 0, pool->n_threads);
    uint32_t n_busy;
    while ((n_busy = atomic_load_explicit(&pool->n_busy.value, memory_order_acquire)) != 0) wait_while_equal(&pool->n_busy, n_busy, pool->spin_ns);
    pool->running = false;
}

void base_pool_barrier(struct base_pool *pool, int i_thread) {
    BASE_ASSERT(i_thread >= 0 && i_thread < pool->n_threads);
    base_tick();
    if (pool->n_threads == 1) return;
    /* Read before we arrive: the generation cannot move without us. */
    uint32_t generation = atomic_load_explicit(&pool->barrier_generation.value, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->n_arrived, 1, memory_order_acq_rel) + 1 == (uint32_t)pool->n_threads) {
        atomic_store_explicit(&pool->n_arrived, 0, memory_order_relaxed);
        atomic_fetch_add(&pool->barrier_generation.value, 1);
        wake_all(&pool->barrier_generation);
    } else {
        wait_while_equal(&pool->barrier_generation, generation, pool->spin_ns);
    }
}

int base_pool_n_threads(const struct base_pool *pool) { return pool->n_threads; }

void base_pool_share(size_t n, size_t grain, int i_thread, int n_threads, size_t *begin, size_t *end) {
    if (grain == 0) grain = 1;
    size_t n_grains = n / grain + (n % grain != 0);
    size_t each = n_grains / (size_t)n_threads, n_longer = n_grains % (size_t)n_threads;
    size_t i = (size_t)i_thread;
    /* The first n_longer threads take one grain more. */
    size_t first = i * each + (i < n_longer ? i : n_longer);
    size_t last = first + each + (i < n_longer);
    *begin = first < n_grains ? first * grain : n;
    *end = last < n_grains ? last * grain : n;
}

/* --- Life cycle ------------------------------------------------------------------------------------------------------------ */

static void one_cpu(struct cpu_mask *mask, int os_cpu) {
    memset(mask, 0, sizeof *mask);
    CPU_SET_S((size_t)os_cpu, sizeof *mask, mask->bits);
}

/* Binds the thread and reads the binding back: some sandboxes accept the call and ignore it. */
static enum st bind_thread(pthread_t thread, int i_thread, int os_cpu, struct err *e) {
    struct cpu_mask mask;
    one_cpu(&mask, os_cpu);
    int error = pthread_setaffinity_np(thread, sizeof mask, mask.bits);
    if (error) return err_set(e, ST_INVALID, "thread %d cannot be bound to cpu %d: %s", i_thread, os_cpu, strerror(error));
    struct cpu_mask got;
    memset(&got, 0, sizeof got);
    error = pthread_getaffinity_np(thread, sizeof got, got.bits);
    if (error) return err_set(e, ST_IO, "the binding of thread %d cannot be read back: %s", i_thread, strerror(error));
    if (!CPU_EQUAL_S(sizeof got, mask.bits, got.bits))
        return err_set(e, ST_IO, "thread %d was to be bound to cpu %d alone and is allowed on %d cpus", i_thread, os_cpu,
                       CPU_COUNT_S(sizeof got, got.bits));
    return ST_OK;
}

/* Stops and joins the first n_workers workers, restores the creator's mask, frees all. */
static void tear_down(struct base_pool *pool, int n_workers) {
    pool->stop = true;
    atomic_fetch_add(&pool->generation.value, 1);
    wake_all(&pool->generation);
    for (int i = 0; i < n_workers; i++) pthread_join(pool->workers[i].thread, NULL);
    if (pool->bound) pthread_setaffinity_np(pool->creator, sizeof pool->creator_mask, pool->creator_mask.bits);
    free(pool->workers);
    free(pool);
}

/* Signals are the creator's business, except those that tell a thread of its own fault. */
static void block_signals(sigset_t *old) {
    sigset_t set;
    sigfillset(&set);
    sigdelset(&set, SIGSEGV);
    sigdelset(&set, SIGBUS);
    sigdelset(&set, SIGFPE);
    sigdelset(&set, SIGILL);
    sigdelset(&set, SIGABRT);
    sigdelset(&set, SIGPROF);
    pthread_sigmask(SIG_SETMASK, &set, old);
}

enum st base_pool_create(const struct base_pool_options *options, struct base_pool **pool, struct err *e) {
    int n_threads = options->n_threads;
    if (n_threads < 1 || n_threads > MAX_THREADS) return err_set(e, ST_INVALID, "a pool has 1 … %d threads, not %d", MAX_THREADS, n_threads);
    if (options->spin_us < 0 || options->spin_us > MAX_SPIN_US)
        return err_set(e, ST_INVALID, "a pool spins 0 … %d us, not %d", MAX_SPIN_US, options->spin_us);
    for (int i = 0; options->os_cpus && i < n_threads; i++)
        if (options->os_cpus[i] < 0 || options->os_cpus[i] >= MAX_CPUS)
            return err_set(e, ST_INVALID, "thread %d: there is no cpu %d", i, options->os_cpus[i]);

    struct base_pool *p = aligned_alloc(_Alignof(struct base_pool), sizeof *p);
    if (!p) return err_set(e, ST_NO_MEMORY, "no memory for a thread pool");
    memset(p, 0, sizeof *p);
    p->n_threads = n_threads;
    p->spin_ns = (uint64_t)options->spin_us * BASE_NS_PER_US;
    p->creator = pthread_self();
    p->creator_rank = base_log_rank();
    int n_started = 0;
    enum st st = ST_OK;
    if (n_threads > 1) {
        p->workers = calloc((size_t)n_threads - 1, sizeof *p->workers);
        if (!p->workers) {
            st = err_set(e, ST_NO_MEMORY, "no memory for %d threads", n_threads);
            goto undo;
        }
    }

    if (options->os_cpus) {
        int error = pthread_getaffinity_np(p->creator, sizeof p->creator_mask, p->creator_mask.bits);
        if (error) {
            st = err_set(e, ST_IO, "the binding of the calling thread cannot be read: %s", strerror(error));
            goto undo;
        }
        p->bound = true;
        st = bind_thread(p->creator, 0, options->os_cpus[0], e);
        if (st != ST_OK) goto undo;
    }
    for (int i = 1; i < n_threads; i++) {
        struct worker *w = &p->workers[i - 1];
        w->pool = p;
        w->i_thread = i;
        sigset_t old;
        block_signals(&old);
        int error = pthread_create(&w->thread, NULL, work, w);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
        if (error) {
            st = err_set(e, ST_NO_MEMORY, "thread %d of %d cannot be started: %s", i, n_threads, strerror(error));
            goto undo;
        }
        n_started++;
        if (options->os_cpus) {
            st = bind_thread(w->thread, i, options->os_cpus[i], e);
            if (st != ST_OK) goto undo;
        }
    }
    *pool = p;
    return ST_OK;
undo:
    tear_down(p, n_started);
    return st;
}

void base_pool_destroy(struct base_pool *pool) {
    if (!pool) return;
    BASE_ASSERT(pthread_equal(pool->creator, pthread_self()) && !pool->running);
    tear_down(pool, pool->n_threads - 1);
}
