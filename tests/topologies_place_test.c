/* Placement: hand-checked cases, golden placements of captured and synthetic machines, and invariants on thousands of random machines.
 *
 * tests/golden/topologies_places.txt holds a line per case: source <tab> ranks <tab> threads (0: default) <tab> PUs of each rank, ranks apart by ':'
 * <tab> CPU of each rank's progress thread, '-' where none is to spare.
 * It is written anew by TANDEM_WRITE_GOLDEN=1 build/tests/topologies_place_test; review the diff. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/t.h"
#include "topologies/place.h"

#define GOLDEN "tests/golden/topologies_places.txt"
#define CAPTURED "../shared/topologies"

static const char *const captured[] = {"nvidia-dgx-gb10.xml",
                                       "20em64t-hybrid-1p6c2t+2ca4co1t.xml",
                                       "128arm-2pa2n8cluster4co.xml",
                                       "32amd64-4s2n4c-cgroup2.xml",
                                       "48amd64-4pa2n6c-sparse.xml",
                                       "64amd64-4s2n4ca2co.xml",
                                       "40intel64-2g2n4c+pcilocality.xml",
                                       "nvidiagpunumanodes.xml",
                                       "fakeheterocpunuma.xml",
                                       "16em64t-4s2c2t-offlines.xml",
                                       "2pa-pcidomain32bits.xml"};
static const char *const described[] = {"gb10", "rtx5090", "vm"};
/* SMT siblings 64 apart, as Linux numbers them on x86 */
#define INTERLEAVED                                                                                                                                  \
    "pack:2 numa:4 core:8 "                                                                                                                          \
    "pu:2(indexes=0,64,1,65,2,66,3,67,4,68,5,69,6,70,7,71,8,72,9,73,10,74,11,75,12,76,13,77,14,78,15,79,16,80,17,81,18,82,19,83,20,84,21,85,22,86,"  \
    "23,"                                                                                                                                            \
    "87,24,88,25,89,26,90,27,91,28,92,29,93,30,94,31,95,32,96,33,97,34,98,35,99,36,100,37,101,38,102,39,103,40,104,41,105,42,106,43,107,44,108,45,"  \
    "109,46,110,47,111,48,112,49,113,50,114,51,115,52,116,53,117,54,118,55,119,56,120,57,121,58,122,59,123,60,124,61,125,62,126,63,127)"
static const char *const synthetic[] = {
    "pu:1",
    "core:2 pu:1",
    "core:1 pu:2",
    "pack:1 core:4 pu:2",
    "pack:2 core:4 pu:2",
    "pack:2 numa:2 l3:2 core:4 pu:1",
    "pack:1 l3:4 core:6 pu:2",
    "numa:8 core:2 pu:2",
    "numa:2 pu:6",
    "pack:4 core:1 pu:2",
    "pack:2 l3:1 numa:2 core:3 pu:1",
    "pack:1 core:1 pu:4",
    INTERLEAVED,
    "pack:8 core:16 pu:1",
};
#define N(a) ((int)(sizeof(a) / sizeof *(a)))

static struct topo_machine *open_machine(const char *source) {
    struct topo_machine *m;
    struct err e = {{0}};
    T_OK(topo_machine_open(source, &m, &e), &e);
    return m;
}

static struct topo_placement *place(const struct topo_machine *m, int n_ranks, int n_threads, const char *bind) {
    struct topo_place_options o = {.n_ranks = n_ranks, .n_threads = n_threads};
    struct err e = {{0}};
    if (bind) T_OK(topo_bind_parse(bind, &o.bind, &o.list, &e), &e);
    struct topo_placement *p;
    T_OK(topo_place(m, &o, &p, &e), &e);
    return p;
}

/* "5-9,0:15-19,10" */
static char *seats_text(const struct topo_placement *p) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    for (int r = 0; r < p->n_ranks; r++) {
        const int *v = p->seats[r].pus, n = p->seats[r].n_threads;
        fputs(r ? ":" : "", f);
        for (int i = 0, end; i < n; i = end) {
            for (end = i + 1; end < n && v[end] == v[end - 1] + 1; end++) continue;
            fprintf(f, end - i > 1 ? "%s%d-%d" : "%s%d", i ? "," : "", v[i], v[end - 1]);
        }
    }
    fclose(f);
    return text;
}

/* "14:-" */
static char *progress_text(const struct topo_placement *p) {
    char *text;
    size_t bytes;
    FILE *f = open_memstream(&text, &bytes);
    assert_non_null(f);
    for (int r = 0; r < p->n_ranks; r++)
        if (p->seats[r].progress_pu >= 0)
            fprintf(f, "%s%d", r ? ":" : "", p->seats[r].progress_pu);
        else
            fputs(r ? ":-" : "-", f);
    fclose(f);
    return text;
}

static void expect_progress(const char *source, int n_ranks, int n_threads, const char *bind, const char *want) {
    struct topo_machine *m = open_machine(source);
    struct topo_placement *p = place(m, n_ranks, n_threads, bind);
    char *got = progress_text(p);
    if (strcmp(got, want) != 0) fail_msg("%s, %d ranks of %d, bind %s: progress %s, not %s", source, n_ranks, n_threads, bind ? bind : "-", got, want);
    free(got);
    topo_placement_free(p);
    topo_machine_close(m);
}

static void expect(const char *source, int n_ranks, int n_threads, const char *bind, const char *want) {
    struct topo_machine *m = open_machine(source);
    struct topo_placement *p = place(m, n_ranks, n_threads, bind);
    char *got = seats_text(p);
    if (strcmp(got, want) != 0) fail_msg("%s, %d ranks of %d, bind %s: %s, not %s", source, n_ranks, n_threads, bind ? bind : "-", got, want);
    free(got);
    topo_placement_free(p);
    topo_machine_close(m);
}

/* --- Invariants -------------------------------------------------------------------------------------------------------------- */

static int pu_of(const struct topo_machine *m, int os_index) {
    for (int i = 0; i < m->n_pus; i++)
        if (m->pus[i].os_index == os_index) return i;
    return -1;
}

/* A progress thread has a whole core that nobody uses, near its rank. Where one has none, none is left near it. */
static void check_progress(const struct topo_machine *m, const struct topo_placement *p, const int *core_used, bool strict) {
    bool *taken = calloc((size_t)m->n_cores, sizeof *taken);
    assert_non_null(taken);
    int n_busy = 0;
    for (int r = 0; r < p->n_ranks; r++) n_busy += p->seats[r].n_threads;
    for (int r = 0; r < p->n_ranks; r++) {
        if (p->seats[r].progress_pu < 0) continue;
        int pu = pu_of(m, p->seats[r].progress_pu);
        assert_true(pu >= 0 && m->pus[pu].allowed);
        int core = m->pus[pu].core;
        assert_true(core_used[core] == 0 && !taken[core]);
        taken[core] = true;
        n_busy++;
        bool near = false;
        for (int t = 0; t < p->seats[r].n_threads; t++) near |= m->cores[m->pus[pu_of(m, p->seats[r].pus[t])].core].numa == m->cores[core].numa;
        assert_true(near);
    }
    if (p->oversubscribed) {
        for (int r = 0; r < p->n_ranks; r++) assert_int_equal(p->seats[r].progress_pu, -1);
    } else {
        assert_true(n_busy <= topo_machine_cpus(m));
    }
    for (int r = 0; r < p->n_ranks && strict && !p->oversubscribed && n_busy < topo_machine_cpus(m); r++) {
        int own = p->seats[r].progress_pu < 0 ? -1 : m->pus[pu_of(m, p->seats[r].progress_pu)].core;
        for (int c = 0; c < m->n_cores; c++) {
            bool allowed = false, same_numa = false, same_l3 = false, own_l3 = false;
            for (int k = 0; k < m->cores[c].n_pus; k++) allowed |= m->pus[m->cores[c].first_pu + k].allowed;
            if (core_used[c] || taken[c] || !allowed) continue;
            for (int t = 0; t < p->seats[r].n_threads; t++) {
                const struct topo_core *with = &m->cores[m->pus[pu_of(m, p->seats[r].pus[t])].core];
                same_numa |= with->numa == m->cores[c].numa;
                same_l3 |= with->l3 == m->cores[c].l3 && with->package == m->cores[c].package;
                own_l3 |= own >= 0 && with->l3 == m->cores[own].l3 && with->package == m->cores[own].package;
            }
            if (same_numa && own < 0) fail_msg("rank %d could have core %d", r, c);
            if (same_numa && m->n_packages < 2 && m->n_numa < 2 && same_l3 == own_l3 && own >= 0 && m->cores[c].kind < m->cores[own].kind)
                fail_msg("rank %d could have the faster core %d", r, c);
        }
    }
    free(taken);
}

/* What holds for every placement; strict: of the automatic kind, too. */
static void check(const struct topo_machine *m, const struct topo_placement *p, int n_ranks, int n_threads, bool strict) {
    int *n_used = calloc((size_t)m->n_pus, sizeof *n_used), *core_used = calloc((size_t)m->n_cores, sizeof *core_used);
    assert_non_null(n_used);
    assert_non_null(core_used);
    assert_int_equal(p->n_ranks, n_ranks);
    bool repeats = false;
    int n_all = 0;
    for (int r = 0; r < n_ranks; r++) {
        const struct topo_seat *s = &p->seats[r];
        assert_int_equal(s->rank, r);
        assert_int_equal(s->n_threads, n_threads);
        n_all += s->n_threads;
        for (int t = 0; t < s->n_threads; t++) {
            int pu = pu_of(m, s->pus[t]);
            assert_true(pu >= 0 && m->pus[pu].allowed);
            if (n_used[pu]++)
                repeats = true;
            else
                core_used[m->pus[pu].core]++;
            int numa = m->cores[m->pus[pu].core].numa;
            bool found = numa < 0;
            for (int k = 0; k < s->n_numa; k++) found |= numa >= 0 && s->numa[k] == m->numa_os[numa];
            assert_true(found);
        }
        for (int k = 0; k < s->n_numa; k++) { /* sorted, and each for a reason */
            if (k) assert_true(s->numa[k] > s->numa[k - 1]);
            bool found = false;
            for (int t = 0; t < s->n_threads; t++) {
                int numa = m->cores[m->pus[pu_of(m, s->pus[t])].core].numa;
                found |= numa >= 0 && m->numa_os[numa] == s->numa[k];
            }
            assert_true(found);
        }
    }
    assert_int_equal(p->oversubscribed, repeats || n_all > topo_machine_cpus(m));
    if (p->oversubscribed) assert_true(p->note[0]);
    check_progress(m, p, core_used, strict);
    if (strict) {
        int least = 1 << 30, most = 0;
        for (int i = 0; i < m->n_pus; i++) {
            if (!m->pus[i].allowed) continue;
            if (n_used[i] < least) least = n_used[i];
            if (n_used[i] > most) most = n_used[i];
        }
        assert_int_equal(repeats, n_all > m->n_allowed);
        assert_true(most - least <= 1);
        /* Whole cores before siblings, fast kinds before slow ones: nothing free comes before anything used. */
        int last = -1;
        for (int c = 0; c < m->n_cores; c++)
            if (core_used[c]) {
                int order = (core_used[c] - 1) * m->n_kinds + m->cores[c].kind;
                if (order > last) last = order;
            }
        for (int c = 0; c < m->n_cores; c++) {
            int n_allowed = 0;
            for (int k = 0; k < m->cores[c].n_pus; k++) n_allowed += m->pus[m->cores[c].first_pu + k].allowed;
            if (core_used[c] < n_allowed) assert_true(core_used[c] * m->n_kinds + m->cores[c].kind >= last);
        }
    }
    free(core_used);
    free(n_used);
}

/* On a uniform machine: a rank that fits into a domain sits in one, and apart from the others where there are enough. */
static void check_domains(const struct topo_machine *m, const struct topo_placement *p, int n_domains, int (*domain)(const struct topo_core *)) {
    if (n_domains < 1 || m->n_cores % n_domains) return;
    int n_each = m->n_cores / n_domains, n_threads = p->seats[0].n_threads;
    if (n_threads > n_each || p->n_ranks > n_domains * (n_each / n_threads)) return;
    int *n_ranks = calloc((size_t)n_domains, sizeof *n_ranks);
    assert_non_null(n_ranks);
    for (int r = 0; r < p->n_ranks; r++) {
        int d = domain(&m->cores[m->pus[pu_of(m, p->seats[r].pus[0])].core]);
        for (int t = 1; t < n_threads; t++) assert_int_equal(domain(&m->cores[m->pus[pu_of(m, p->seats[r].pus[t])].core]), d);
        n_ranks[d]++;
    }
    for (int d = 0; d < n_domains; d++) assert_true(n_ranks[d] <= (p->n_ranks + n_domains - 1) / n_domains);
    free(n_ranks);
}
static int package_of(const struct topo_core *c) { return c->package; }
static int numa_of(const struct topo_core *c) { return c->numa; }
static int l3_of(const struct topo_core *c) { return c->l3; }

/* --- Tests ------------------------------------------------------------------------------------------------------------------- */

static void test_by_hand(void **state) {
    (void)state;
    expect("pu:1", 1, 0, NULL, "0");
    expect("core:1 pu:2", 1, 0, NULL, "0-1");
    expect("core:1 pu:2", 2, 0, NULL, "0:1");
    expect("pack:1 core:4 pu:2", 1, 4, NULL, "0,2,4,6");
    expect("pack:1 core:4 pu:2", 1, 5, NULL, "0-2,4,6");
    expect("pack:1 core:4 pu:2", 2, 0, NULL, "0-3:4-7");
    expect("pack:1 core:4 pu:2", 2, 2, NULL, "0,2:4,6");
    expect("pack:1 core:4 pu:2", 2, 3, NULL, "0-2:4-6");
    expect("pack:2 core:4 pu:2", 1, 4, NULL, "0,2,4,6");
    expect("pack:2 core:4 pu:2", 2, 2, NULL, "0,2:8,10");
    expect("pack:2 core:4 pu:2", 2, 0, NULL, "0-7:8-15");
    expect("pack:2 core:4 pu:2", 4, 1, NULL, "0:2:8:10");
    expect("pack:2 core:4 pu:1", 3, 2, NULL, "0-1:2-3:4-5");
    expect("pack:2 l3:2 core:4 pu:1", 2, 4, NULL, "0-3:8-11");
    expect("pack:2 l3:2 core:4 pu:1", 2, 6, NULL, "0-2,4-6:8-10,12-14"); /* a rank on two L3 loads both alike */
    expect("pack:4 core:4 pu:1", 1, 6, NULL, "0-2,4-6");                 /* and no third */
    expect("pack:4 core:10 pu:1", 3, 0, NULL, "0-9,30-32:10-19,33-35:20-29,36-38");
    expect("pack:2 core:4 pu:2", 3, 0, NULL, "0-4:8-12:5-7,14-15"); /* the one that spans has whole cores, too */
    expect("pack:4 core:2 pu:1", 2, 0, NULL, "0-3:4-7"); /* neighbouring packages */
    expect("core:2 pu:1", 3, 0, NULL, "0:0:1");
    expect("gb10", 1, 4, NULL, "15-18"); /* the larger L3 */
    expect("gb10", 1, 5, NULL, "15-19");
    expect("gb10", 1, 6, NULL, "5-7,15-17");
    expect("gb10", 1, 10, NULL, "5-9,15-19");
    expect("gb10", 2, 5, NULL, "5-9:15-19");
    expect("rtx5090", 1, 8, NULL, "0-7");
    expect("rtx5090", 1, 9, NULL, "0-4,8-11"); /* both L3 alike */
    expect("rtx5090", 2, 0, NULL, "0,16,1,17,2,18,3,19,4,20,5,21,6,22,7,23:8,24,9,25,10,26,11,27,12,28,13,29,14,30,15,31");
    expect("vm", 2, 0, NULL, "0:1");
    expect("core:2 pu:1", 2, 2, NULL, "0,0:1,1");
}

static void test_bind(void **state) {
    (void)state;
    expect("pack:2 l3:2 core:2 pu:2", 2, 0, "core", "0-7:8-15");
    expect("pack:2 l3:2 core:2 pu:2", 2, 2, "l3", "0,2:8,10");
    expect("pack:2 l3:2 core:2 pu:2", 4, 2, "l3", "0,2:4,6:8,10:12,14");
    expect("pack:2 l3:2 core:2 pu:2", 1, 6, "l3", "0,0-2,2-3");
    expect("pack:2 l3:2 core:2 pu:2", 2, 5, "package", "0-2,4,6:8-10,12,14");
    expect("numa:4 core:2 pu:1", 2, 2, "numa", "0-1:4-5");
    expect("pack:2 core:4 pu:2", 2, 0, "0-3:4,6", "0-3:4,6");
    expect("pack:2 core:4 pu:2", 2, 0, "0,2,4,6", "0,2:4,6");
    expect("pack:2 core:4 pu:2", 3, 2, "0,2,4,6", "0,2:4,6:0,2");
    expect("pack:2 core:4 pu:2", 2, 3, "5:7,9", "5,5,5:7,9,7");

    struct topo_machine *m = open_machine("core:4 pu:1");
    struct topo_placement *p = place(m, 2, 0, "none");
    assert_false(p->bound);
    topo_placement_free(p);
    p = place(m, 2, 0, "l3");
    assert_true(p->bound);
    assert_non_null(strstr(p->note, "one domain"));
    topo_placement_free(p);
    p = place(m, 2, 2, "0-1:1-2");
    assert_true(p->oversubscribed);
    assert_string_equal(p->note, "4 threads of 2 ranks share 3 CPUs");
    topo_placement_free(p);

    static const struct {
        const char *list, *want;
        int n_ranks, n_threads;
    } wrong[] = {{"0:1:2", "for 3 ranks, but there are 2", 2, 0},
                 {"0-4", "CPU 4 is not there", 2, 0},
                 {"0", "0 ranks", 0, 0},
                 {"0", "-1 ranks", -1, 0},
                 {"0", "5000 ranks", 5000, 0},
                 {"0", "-3 threads", 1, -3},
                 {"0", "9999 threads", 1, 9999}};
    for (int i = 0; i < N(wrong); i++) {
        struct err e = {{0}};
        struct topo_place_options o = {.n_ranks = wrong[i].n_ranks, .n_threads = wrong[i].n_threads, .bind = TOPO_BIND_LIST, .list = wrong[i].list};
        struct topo_placement *none = NULL;
        t_expect_err_contains(ST_INVALID, topo_place(m, &o, &none, &e), &e, wrong[i].want);
        assert_null(none);
    }
    topo_machine_close(m);
}

static void test_progress(void **state) {
    (void)state;
    expect_progress("pack:1 core:4 pu:2", 1, 0, NULL, "-");
    expect_progress("pack:1 core:4 pu:2", 1, 4, NULL, "-"); /* siblings alone are no whole core */
    expect_progress("pack:1 core:4 pu:2", 1, 3, NULL, "6");
    expect_progress("pack:1 core:4 pu:2", 2, 1, NULL, "6:4");
    expect_progress("pack:1 core:4 pu:1", 3, 1, NULL, "3:-:-");
    expect_progress("pack:2 core:4 pu:1", 2, 3, NULL, "3:7");
    expect_progress("numa:2 core:2 pu:1", 1, 2, NULL, "-"); /* none on another node */
    expect_progress("pack:1 l3:2 core:2 pu:1", 1, 2, NULL, "3");
    expect_progress("pack:1 l3:2 core:2 pu:1", 1, 2, "l3", "-"); /* --bind keeps it, too */
    expect_progress("pack:1 l3:2 core:2 pu:1", 1, 2, "numa", "3");
    expect_progress("pack:1 core:8 pu:1", 2, 2, "0-2:4-6", "2:6");
    expect_progress("pack:1 core:8 pu:1", 2, 3, "0-2:4-6", "-:-");
    expect_progress("pack:1 core:8 pu:1", 2, 2, "0,2,4,6,7", "7:-");
    expect_progress("gb10", 1, 10, NULL, "14"); /* all fast ones compute */
    expect_progress("gb10", 1, 5, NULL, "14");
    expect_progress("gb10", 2, 4, NULL, "9:19");
    expect_progress("gb10", 1, 5, "l3", "4");
    expect_progress("gb10", 1, 0, NULL, "-");
    expect_progress("gb10", 3, 0, NULL, "-:14:13");
    expect_progress("rtx5090", 1, 8, NULL, "15");

    struct topo_machine *m = open_machine("core:4 pu:1"); /* a quota that leaves none */
    m->cpu_quota = 2;
    struct topo_placement *p = place(m, 2, 0, NULL);
    assert_int_equal(p->seats[0].progress_pu, -1);
    topo_placement_free(p);
    m->cpu_quota = 3.5;
    p = place(m, 2, 0, NULL);
    assert_int_equal(p->seats[0].progress_pu, 3);
    assert_int_equal(p->seats[1].progress_pu, -1);
    topo_placement_free(p);
    topo_machine_close(m);
}

static void test_bind_parse(void **state) {
    (void)state;
    static const char *const good[] = {"auto", "core", "l3", "numa", "package", "none", "0", "0-3", "0-3,7:4,5", "1:1:1"};
    static const char *const bad[] = {
        "", "L4", "cores", "-1", "3-1", "1,", ",1", "1:", ":1", "1--2", "1-", "0x3", "1 2", "99999999999999999999", "0-99999999", "1,,2", "1;2"};
    static const enum topo_bind named[] = {TOPO_BIND_AUTO, TOPO_BIND_CORE, TOPO_BIND_L3, TOPO_BIND_NUMA, TOPO_BIND_PACKAGE, TOPO_BIND_NONE};
    enum topo_bind bind;
    const char *list;
    struct err e = {{0}};
    for (int i = 0; i < N(good); i++) {
        T_OK(topo_bind_parse(good[i], &bind, &list, &e), &e);
        assert_int_equal(bind, i < N(named) ? named[i] : TOPO_BIND_LIST);
        assert_true(i < N(named) ? list == NULL : list == good[i]);
    }
    for (int i = 0; i < N(bad); i++) t_expect_err_contains(ST_INVALID, topo_bind_parse(bad[i], &bind, &list, &e), &e, "none of auto");
}

static void test_notes(void **state) {
    (void)state;
    struct topo_machine *m = open_machine("core:4 pu:2");
    m->cpu_quota = 1.5;
    assert_int_equal(topo_machine_cpus(m), 1);
    struct topo_placement *p = place(m, 2, 0, NULL);
    assert_int_equal(p->seats[0].n_threads, 1);
    assert_true(p->oversubscribed);
    assert_string_equal(p->note, "2 ranks share a quota of 1.5 CPUs");
    topo_placement_free(p);
    m->cpu_quota = 0.3;
    assert_int_equal(topo_machine_cpus(m), 1);
    p = place(m, 1, 0, NULL);
    assert_false(p->oversubscribed);
    topo_placement_free(p);
    m->cpu_quota = 4;
    p = place(m, 2, 0, NULL);
    assert_int_equal(p->seats[1].n_threads, 2);
    assert_false(p->oversubscribed);
    topo_placement_free(p);
    m->cpu_quota = 0;

    /* one hardware thread of each core allowed: bound to that, and said (F13) */
    for (int i = 0; i < m->n_pus; i += 2) m->pus[i].allowed = false;
    m->n_allowed = 4;
    p = place(m, 4, 0, NULL);
    char *text = seats_text(p);
    assert_string_equal(text, "1:3:5:7");
    assert_false(p->oversubscribed);
    assert_non_null(strstr(p->note, "only some hardware threads of 4 cores"));
    free(text);
    topo_placement_free(p);
    for (int i = 0; i < m->n_pus; i++) m->pus[i].allowed = i == 3;
    m->n_allowed = 1;
    p = place(m, 4, 0, NULL);
    assert_true(p->oversubscribed);
    assert_string_equal(p->note, "4 ranks share 1 CPU");
    topo_placement_free(p);
    topo_machine_close(m);
}

static void test_draw(void **state) {
    (void)state;
    struct topo_machine *m = open_machine("pack:2 numa:2 l3:1 core:2 pu:2");
    struct topo_placement *p = place(m, 3, 5, NULL);
    char *text = topo_draw_text(m, p), *json = topo_draw_json(m, p);
    assert_non_null(strstr(text, "16 CPUs on 8 cores, 2 packages, 4 NUMA nodes"));
    assert_non_null(strstr(text, "rank 2: 5 threads on CPUs "));
    json_error_t error;
    json_t *root = json_loads(json, JSON_REJECT_DUPLICATES, &error);
    assert_non_null(root);
    json_t *ranks = json_object_get(root, "ranks");
    assert_int_equal(json_array_size(ranks), 3);
    for (int r = 0; r < 3; r++) {
        json_t *rank = json_array_get(ranks, (size_t)r);
        assert_int_equal(json_integer_value(json_object_get(rank, "rank")), r);
        assert_int_equal(json_array_size(json_object_get(rank, "pus")), 5);
        for (int t = 0; t < 5; t++) assert_int_equal(json_integer_value(json_array_get(json_object_get(rank, "pus"), (size_t)t)), p->seats[r].pus[t]);
        assert_int_equal(json_array_size(json_object_get(rank, "numa")), p->seats[r].n_numa);
    }
    json_decref(root);
    free(text);
    free(json);
    text = topo_draw_text(m, NULL); /* the machine alone */
    json = topo_draw_json(m, NULL);
    assert_non_null(text);
    assert_non_null(strstr(json, "\"ranks\":[]"));
    free(text);
    free(json);
    topo_placement_free(p);
    topo_machine_close(m);

    m = open_machine("core:1 pu:1"); /* many on one */
    p = place(m, 300, 2, NULL);
    text = topo_draw_text(m, p);
    assert_non_null(strstr(text, "[0:r0+]"));
    assert_non_null(strstr(text, "600 threads of 300 ranks share 1 CPU"));
    free(text);
    topo_placement_free(p);
    topo_machine_close(m);
}

/* 1 to 8 ranks, default threads and a few fixed counts, on one source: compared with (or written to) the golden file. */
static void golden(const char *source, const char *name, const char *lines, FILE *out) {
    static const int threads[] = {0, 1, 3};
    struct topo_machine *m = open_machine(source);
    for (int n_ranks = 1; n_ranks <= 8; n_ranks++)
        for (int k = 0; k < N(threads); k++) {
            struct topo_placement *p = place(m, n_ranks, threads[k], NULL);
            check(m, p, n_ranks, p->seats[0].n_threads, true);
            char *seats = seats_text(p), *progress = progress_text(p), *text = malloc(strlen(seats) + strlen(progress) + 2), key[1200];
            assert_non_null(text);
            sprintf(text, "%s\t%s", seats, progress);
            free(seats);
            free(progress);
            int n_key = snprintf(key, sizeof key, "%s\t%d\t%d\t", name, n_ranks, threads[k]);
            if (out) {
                fprintf(out, "%s%s\n", key, text);
            } else if (lines) {
                const char *line = strstr(lines, key);
                if (!line || strncmp(line + n_key, text, strlen(text)) != 0 || line[n_key + (int)strlen(text)] != '\n')
                    fail_msg("%s%s: golden is %.*s", key, text, line ? (int)strcspn(line + n_key, "\n") : 4, line ? line + n_key : "none");
            }
            free(text);
            topo_placement_free(p);
        }
    topo_machine_close(m);
}

static void test_golden_captured(void **state) {
    (void)state;
    if (access(CAPTURED "/nvidia-dgx-gb10.xml", R_OK)) skip();
    const char *lines = t_read_file(GOLDEN, NULL);
    for (int i = 0; i < N(captured); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", CAPTURED, captured[i]);
        golden(path, captured[i], lines, NULL);
    }
}

static void test_golden_synthetic(void **state) {
    (void)state;
    const char *lines = t_read_file(GOLDEN, NULL);
    for (int i = 0; i < N(synthetic); i++) golden(synthetic[i], synthetic[i], lines, NULL);
    for (int i = 0; i < N(described); i++) golden(described[i], described[i], lines, NULL);
}

static int write_golden(void) {
    FILE *f = fopen(GOLDEN, "w");
    if (!f) return 1;
    for (int i = 0; i < N(synthetic); i++) golden(synthetic[i], synthetic[i], NULL, f);
    for (int i = 0; i < N(described); i++) golden(described[i], described[i], NULL, f);
    for (int i = 0; i < N(captured); i++) {
        char path[256];
        snprintf(path, sizeof path, "%s/%s", CAPTURED, captured[i]);
        golden(path, captured[i], NULL, f);
    }
    return fclose(f) != 0;
}

static void test_captured_by_hand(void **state) {
    (void)state;
    if (access(CAPTURED "/nvidia-dgx-gb10.xml", R_OK)) skip();
    const char *gb10 = CAPTURED "/nvidia-dgx-gb10.xml";
    struct topo_machine *m = open_machine(gb10);
    assert_int_equal(m->n_kinds, 2);
    for (int i = 0; i < m->n_cores; i++) { /* A725: 0-4, 10-14; X925: 5-9, 15-19 */
        int cpu = m->pus[m->cores[i].first_pu].os_index;
        assert_int_equal(m->cores[i].kind, cpu % 10 < 5);
        assert_int_equal(m->cores[i].l3, cpu / 10);
    }
    assert_true(m->memory_bytes > 110ull << 30 && m->memory_bytes < 128ull << 30);
    assert_false(m->live);
    assert_string_equal(m->name, "nvidia-dgx-gb10.xml");
    topo_machine_close(m);
    expect(gb10, 1, 10, NULL, "5-9,15-19");
    expect(gb10, 2, 5, NULL, "5-9:15-19");
    expect(gb10, 3, 0, NULL, "5-7,0-2:15-18,10-11:8-9,19,3-4,12");
    expect(gb10, 2, 0, NULL, "5-9,0-4:15-19,10-14");
    expect(CAPTURED "/20em64t-hybrid-1p6c2t+2ca4co1t.xml", 1, 6, NULL, "0,2,4,6,8,10");
    expect(CAPTURED "/20em64t-hybrid-1p6c2t+2ca4co1t.xml", 2, 3, NULL, "0,2,4:6,8,10");
    expect(CAPTURED "/32amd64-4s2n4c-cgroup2.xml", 2, 2, NULL, "0-1:4-5");
    expect(CAPTURED "/48amd64-4pa2n6c-sparse.xml", 8, 6, NULL, "0-5:6-11:12-17:18-23:24-29:30-35:36-41:42-47");
    expect(CAPTURED "/nvidiagpunumanodes.xml", 2, 4, NULL, "0,4,8,12:88,92,96,100");
}

/* Uniform machines: every shape from 1 to 8 packages, caches and cores. */
static void test_uniform(void **state) {
    (void)state;
    for (int n_packages = 1; n_packages <= 4; n_packages++)
        for (int n_l3 = 1; n_l3 <= 3; n_l3++)
            for (int n_cores = 1; n_cores <= 4; n_cores += 1 + (n_cores > 2))
                for (int n_smt = 1; n_smt <= 2; n_smt++) {
                    char text[128];
                    snprintf(text, sizeof text, "pack:%d numa:%d l3:1 core:%d pu:%d", n_packages, n_l3, n_cores, n_smt);
                    struct topo_machine *m = open_machine(text);
                    assert_int_equal(m->n_cores, n_packages * n_l3 * n_cores);
                    for (int n_ranks = 1; n_ranks <= 9; n_ranks++)
                        for (int n_threads = 1; n_threads <= 6; n_threads++) {
                            struct topo_placement *p = place(m, n_ranks, n_threads, NULL);
                            check(m, p, n_ranks, n_threads, true);
                            check_domains(m, p, m->n_packages, package_of);
                            if (n_threads <= n_cores || n_ranks <= n_packages) check_domains(m, p, m->n_numa, numa_of);
                            check_domains(m, p, m->n_l3, l3_of);
                            topo_placement_free(p);
                        }
                    topo_machine_close(m);
                }
}

static int below(struct base_rng *r, int bound) { return (int)base_rng_below(r, (uint32_t)bound); }

/* Anything that the structs can say: uneven domains that do not nest, kinds, holes, forbidden CPUs, shuffled numbers. */
static struct topo_machine *random_machine(struct base_rng *r) {
    struct topo_machine *m = calloc(1, sizeof *m);
    assert_non_null(m);
    int shape = below(r, 3), n_cores = 1 + below(r, shape == 0 ? 4 : shape == 1 ? 20 : 70);
    m->n_packages = below(r, 4);
    m->n_numa = below(r, 5);
    m->n_l3 = below(r, 6);
    m->n_kinds = 1 + (below(r, 2) ? below(r, 3) : 0);
    m->cores = calloc((size_t)n_cores, sizeof *m->cores);
    m->pus = calloc((size_t)n_cores * 4, sizeof *m->pus);
    m->numa_os = calloc(8, sizeof *m->numa_os);
    int n_smt = 1 + below(r, 3), allowed_percent = below(r, 2) ? 100 : below(r, 100), nested = below(r, 3);
    for (int i = 0; i < m->n_numa; i++) m->numa_os[i] = i * 7 % 8;
    for (int i = 0; i < n_cores; i++) {
        struct topo_core *c = &m->cores[m->n_cores++];
        c->package = m->n_packages ? nested ? i * m->n_packages / n_cores : below(r, m->n_packages) : -1;
        c->numa = m->n_numa ? nested ? i * m->n_numa / n_cores : below(r, m->n_numa) : -1;
        c->l3 = m->n_l3 ? nested ? i * m->n_l3 / n_cores : below(r, m->n_l3) : -1;
        c->kind = below(r, m->n_kinds);
        c->first_pu = m->n_pus;
        c->n_pus = below(r, 4) ? n_smt : 1 + below(r, n_smt);
        for (int k = 0; k < c->n_pus; k++) {
            struct topo_pu *p = &m->pus[m->n_pus++];
            p->core = i;
            p->os_index = m->n_pus * 3 % 1021;
            p->allowed = below(r, 100) < allowed_percent;
            m->n_allowed += p->allowed;
        }
    }
    if (!m->n_allowed) {
        m->pus[below(r, m->n_pus)].allowed = true;
        m->n_allowed = 1;
    }
    if (!below(r, 4)) m->cpu_quota = 0.25 * (1 + below(r, 100));
    return m;
}

static void test_random(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    static const char *const binds[] = {"auto", "core", "none", "l3", "numa", "package"};
    for (int i = 0, n = t_long() ? 50000 : 4000; i < n; i++) {
        struct topo_machine *m = random_machine(&r);
        for (int k = 0; k < 3; k++) {
            int n_ranks = 1 + below(&r, below(&r, 2) ? 4 : 20), n_threads = below(&r, below(&r, 2) ? 4 : 20),
                bind = below(&r, 4) ? 0 : below(&r, N(binds));
            struct topo_placement *p = place(m, n_ranks, n_threads, binds[bind]), *again = place(m, n_ranks, n_threads, binds[bind]);
            if (!n_threads) n_threads = topo_machine_cpus(m) / n_ranks > 1 ? topo_machine_cpus(m) / n_ranks : 1;
            check(m, p, n_ranks, n_threads, bind < 3);
            char *a = seats_text(p), *b = seats_text(again);
            assert_string_equal(a, b);
            free(a);
            free(b);
            if (k == 0) {
                a = topo_draw_text(m, p);
                b = topo_draw_json(m, p);
                char *svg = topo_draw_svg(m, p);
                assert_non_null(svg);
                assert_non_null(strstr(svg, "</svg>"));
                free(svg);
                assert_non_null(a);
                assert_non_null(b);
                free(a);
                free(b);
            }
            topo_placement_free(p);
            topo_placement_free(again);
        }
        topo_machine_close(m);
    }
}

int main(void) {
    if (getenv("TANDEM_WRITE_GOLDEN")) return write_golden();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_bind),
        cmocka_unit_test(test_progress),
        cmocka_unit_test(test_bind_parse),
        cmocka_unit_test(test_notes),
        cmocka_unit_test(test_draw),
        cmocka_unit_test(test_golden_captured),
        cmocka_unit_test(test_golden_synthetic),
        cmocka_unit_test(test_captured_by_hand),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
