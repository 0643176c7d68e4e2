#include "tests/t_comm.h"

enum { N_RANKS = 3 };

struct telling {
    struct comm_identity identities[N_RANKS];
    enum st codes[N_RANKS];
    struct err errs[N_RANKS];
};

static bool say_hello(struct comm **c, void *arg) {
    struct telling *t = arg;
    int r = comm_rank(*c);
    t->codes[r] = comm_hello(*c, &t->identities[r], soon(), &t->errs[r]);
    /* The hello spoils nothing: the group may still agree to close together. */
    struct err e = {0};
    if (t->codes[r] != ST_INVALID) CHECK_ST(ST_OK, comm_barrier(*c, soon(), &e), &e);
    return true;
}

static struct telling alike(void) {
    struct telling t = {0};
    for (int r = 0; r < N_RANKS; r++)
        t.identities[r] = (struct comm_identity){.build_id = "0123456789abcdef0123456789abcdef",
                                                 .kernel_variant = "cpu/avx512-vnni",
                                                 .plan = {.bytes = {1, 2, 3}},
                                                 .model = {.bytes = {4, 5}},
                                                 .settings = {.bytes = {6}}};
    return t;
}

static void run(struct telling *t) { group_run("shm", N_RANKS, true, 64, 0, say_hello, t); }

static void all_know(struct telling *t, const char *want) {
    run(t);
    for (int r = 0; r < N_RANKS; r++) {
        t_expect_err_contains(ST_MISMATCH, t->codes[r], &t->errs[r], want);
        assert_string_equal(t->errs[r].text, t->errs[0].text);
    }
}

static void twins_agree(void **state) {
    (void)state;
    struct telling t = alike();
    run(&t);
    for (int r = 0; r < N_RANKS; r++) T_OK(t.codes[r], &t.errs[r]);
    group_run("self", 1, true, 64, 0, say_hello, &t);
    T_OK(t.codes[0], &t.errs[0]);
}

static void each_field_is_named(void **state) {
    (void)state;
    struct telling t = alike();
    t.identities[2].build_id = "fedc";
    all_know(&t, "ranks 0 and 2 do not match: source build: rank 0 has 0123456789abcdef0123456789abcdef, rank 2 has fedc");
    t = alike();
    t.identities[1].kernel_variant = "cpu/avx2";
    all_know(&t, "ranks 0 and 1 do not match: kernel variant: rank 0 has cpu/avx512-vnni, rank 1 has cpu/avx2");
    t = alike();
    t.identities[1].plan.bytes[15] = 0xab;
    all_know(&t, "plan: rank 0 has 01020300000000000000000000000000, rank 1 has 010203000000000000000000000000ab");
    t = alike();
    t.identities[0].model.bytes[0] = 0xff;
    all_know(&t, "ranks 0 and 1 do not match: model: rank 0 has ff05");
    t = alike();
    t.identities[2].settings.bytes[0] = 7;
    all_know(&t, "ranks 0 and 2 do not match: settings: rank 0 has 06");
    /* Several differences: the lowest rank and its first field, on all sides. */
    t = alike();
    t.identities[2].build_id = "x";
    t.identities[1].settings.bytes[0] = 7;
    all_know(&t, "ranks 0 and 1 do not match: settings");
}

static void odd_text_is_filtered(void **state) {
    (void)state;
    struct telling t = alike();
    t.identities[1].kernel_variant = "cpu/\x1b[31m\nx\xff";
    all_know(&t, "rank 1 has cpu/?[31m?x?");
    t = alike();
    t.identities[1].kernel_variant = NULL;
    all_know(&t, "rank 1 has nothing");
    t = alike(); /* fills the field to the last byte: no end mark on the wire */
    t.identities[2].build_id = "0123456789012345678901234567890123456789012345678901234567890123";
    all_know(&t, "rank 2 has 0123456789012345678901234567890123456789012345678901234567890123");
    t = alike();
    for (int r = 0; r < N_RANKS; r++) t.identities[r].build_id = "01234567890123456789012345678901234567890123456789012345678901234";
    run(&t);
    for (int r = 0; r < N_RANKS; r++) t_expect_err_contains(ST_INVALID, t.codes[r], &t.errs[r], "longer than 64 bytes");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(twins_agree),
        cmocka_unit_test(each_field_is_named),
        cmocka_unit_test(odd_text_is_filtered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
