#include <pthread.h>
#include <sched.h>
#include <string.h>

#include "base/ring.h"
#include "tests/t.h"

struct item {
    uint64_t number, again;
    char tail[9];
};

static void full_and_empty(void **state) {
    (void)state;
    struct base_ring r;
    struct item item = {0};
    T_OK(base_ring_init(&r, 5, sizeof item), NULL); /* rounded up to 8 */
    for (int i_round = 0; i_round < 5; i_round++) {
        assert_int_equal(base_ring_pop(&r, &item), ST_AGAIN);
        for (uint64_t i = 0; i < 8; i++) {
            item.number = i;
            T_OK(base_ring_push(&r, &item), NULL);
        }
        assert_int_equal(base_ring_push(&r, &item), ST_AGAIN);
        for (uint64_t i = 0; i < 8; i++) {
            T_OK(base_ring_pop(&r, &item), NULL);
            assert_int_equal(item.number, i);
        }
    }
    base_ring_release(&r);
    base_ring_release(&r);
}

static void odd_sizes(void **state) {
    (void)state;
    struct base_ring r;
    char c;
    T_OK(base_ring_init(&r, 1, 1), NULL);
    T_OK(base_ring_push(&r, "a"), NULL);
    assert_int_equal(base_ring_push(&r, "b"), ST_AGAIN);
    T_OK(base_ring_pop(&r, &c), NULL);
    assert_int_equal(c, 'a');
    base_ring_release(&r);
    assert_int_equal(base_ring_init(&r, 0, 1), ST_INVALID);
    assert_int_equal(base_ring_init(&r, 1, 0), ST_INVALID);
    assert_int_equal(base_ring_init(&r, SIZE_MAX, 1), ST_INVALID);
    assert_int_equal(base_ring_init(&r, SIZE_MAX / 8, 64), ST_INVALID);
}

static void counters_may_wrap(void **state) {
    (void)state;
    struct base_ring r;
    T_OK(base_ring_init(&r, 4, 1), NULL);
    atomic_store(&r.n_pushed, UINT64_MAX - 1);
    atomic_store(&r.n_popped, UINT64_MAX - 1);
    for (char i = 0; i < 4; i++) T_OK(base_ring_push(&r, &i), NULL);
    assert_int_equal(base_ring_push(&r, "x"), ST_AGAIN);
    for (char i = 0; i < 4; i++) {
        char c = -1;
        T_OK(base_ring_pop(&r, &c), NULL);
        assert_int_equal(c, i);
    }
    base_ring_release(&r);
}

enum { N_ITEMS = 200000 };

static void *produce(void *arg) {
    struct base_ring *r = arg;
    for (uint64_t i = 0; i < N_ITEMS;) {
        struct item item = {.number = i, .again = ~i};
        if (base_ring_push(r, &item) == ST_OK)
            i++;
        else
            sched_yield();
    }
    return NULL;
}

static void two_threads(void **state) {
    (void)state;
    struct base_ring r;
    T_OK(base_ring_init(&r, 64, sizeof(struct item)), NULL);
    pthread_t producer;
    assert_int_equal(pthread_create(&producer, NULL, produce, &r), 0);
    uint64_t n_wrong = 0;
    for (uint64_t i = 0; i < N_ITEMS;) {
        struct item item;
        if (base_ring_pop(&r, &item) == ST_OK) {
            n_wrong += item.number != i || item.again != ~i;
            i++;
        } else {
            sched_yield();
        }
    }
    pthread_join(producer, NULL);
    assert_int_equal(n_wrong, 0);
    base_ring_release(&r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_and_empty),
        cmocka_unit_test(odd_sizes),
        cmocka_unit_test(counters_may_wrap),
        cmocka_unit_test(two_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
