/* Reading machines: this one (whole, restricted, with HWLOC_* variables set), XML good and bad, synthetic strings good and bad; kinds of CPUs; and
 * what cgroups of both versions leave of memory and CPU time, read from made-up /proc and /sys trees.
 * test-deadline: 180 */
#include <errno.h>
#include <hwloc.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/rng.h"
#include "tests/t.h"
#include "topologies/place.h"

#define CAPTURED "../shared/topologies"
#define N(a) ((int)(sizeof(a) / sizeof *(a)))
#define MIB (1ull << 20)

static struct topo_machine *open_machine(const char *source) {
    struct topo_machine *m;
    struct err e = {{0}};
    T_OK(topo_machine_open(source, &m, &e), &e);
    return m;
}

static void check_consistent(const struct topo_machine *m) {
    int n_pus = 0, n_allowed = 0, *n_of = calloc((size_t)m->n_pus, sizeof *n_of);
    assert_non_null(n_of);
    assert_true(m->n_cores >= 1 && m->n_kinds >= 1);
    bool fastest = false;
    for (int i = 0; i < m->n_absent; i++) /* what is absent is not here */
        for (int k = 0; k < m->n_pus; k++) assert_true(m->absent[i] != m->pus[k].os_index);
    for (int i = 0; i < m->n_cores; i++) {
        const struct topo_core *c = &m->cores[i];
        assert_int_equal(c->first_pu, n_pus);
        assert_true(c->n_pus >= 1 && c->kind >= 0 && c->kind < m->n_kinds);
        assert_true(c->package >= -1 && c->package < m->n_packages && c->numa >= -1 && c->numa < m->n_numa && c->l3 >= -1 && c->l3 < m->n_l3);
        fastest |= c->kind == 0;
        for (int k = 0; k < c->n_pus; k++) {
            assert_int_equal(m->pus[n_pus + k].core, i);
            n_allowed += m->pus[n_pus + k].allowed;
        }
        n_pus += c->n_pus;
    }
    assert_true(fastest);
    assert_int_equal(n_pus, m->n_pus);
    assert_int_equal(n_allowed, m->n_allowed);
    assert_true(topo_machine_cpus(m) >= 1 && topo_machine_cpus(m) <= m->n_allowed);
    free(n_of);
}

/* --- This machine ------------------------------------------------------------------------------------------------------------ */

static void test_live(void **state) {
    (void)state;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) skip();
    setenv("HWLOC_SYNTHETIC", "pack:7 core:3 pu:1", 1); /* none of this touches the live machine */
    setenv("HWLOC_XMLFILE", "/nowhere.xml", 1);
    setenv("HWLOC_FSROOT", "/tmp", 1);
    setenv("HWLOC_COMPONENTS", "synthetic,stop", 1);
    struct topo_machine *m = open_machine(NULL);
    assert_string_equal(getenv("HWLOC_SYNTHETIC"), "pack:7 core:3 pu:1");
    unsetenv("HWLOC_SYNTHETIC");
    unsetenv("HWLOC_XMLFILE");
    unsetenv("HWLOC_FSROOT");
    unsetenv("HWLOC_COMPONENTS");
    check_consistent(m);
    assert_true(m->live);
    assert_true(m->name[0]);
    assert_true(m->memory_bytes > 64 * MIB);
    assert_int_equal(m->n_allowed, CPU_COUNT(&set));
    for (int i = 0; i < m->n_pus; i++) assert_int_equal(m->pus[i].allowed, CPU_ISSET(m->pus[i].os_index, &set) != 0);
    topo_machine_close(m);
    uint64_t bytes;
    char what[256];
    struct err e = {{0}};
    T_OK(topo_memory_available(NULL, &bytes, what, &e), &e);
    assert_true(bytes > 0 && what[0]);
    assert_true(topo_cpu_quota(NULL) >= 0);
}

static void restricted(void *arg) {
    int cpu = *(int *)arg;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    struct topo_machine *m;
    struct topo_placement *p;
    struct topo_place_options o = {.n_ranks = 2};
    if (sched_setaffinity(0, sizeof set, &set) || topo_machine_open(NULL, &m, NULL) || topo_place(m, &o, &p, NULL)) _exit(1);
    if (m->n_allowed != 1 || topo_machine_cpus(m) != 1 || !p->oversubscribed || strcmp(p->note, "2 ranks share 1 CPU") != 0) _exit(2);
    for (int r = 0; r < 2; r++)
        if (p->seats[r].n_threads != 1 || p->seats[r].pus[0] != cpu) _exit(3);
    if (CPU_SET(0, &set), sched_getaffinity(0, sizeof set, &set) || CPU_COUNT(&set) != 1) _exit(4); /* opening moved nobody */
    topo_placement_free(p);
    topo_machine_close(m);
    _exit(0);
}

static void test_restricted(void **state) {
    (void)state;
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set)) skip();
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) t_in_child(restricted, &cpu, 0);
}

static void ignores_children(void *arg) {
    (void)arg;
    signal(SIGCHLD, SIG_IGN); /* then nobody can be waited for */
    struct topo_machine *m;
    if (topo_machine_open("core:2 pu:2", &m, NULL) || m->n_pus != 4) _exit(1);
    topo_machine_close(m);
    _exit(0);
}
static void test_sigchld(void **state) {
    (void)state;
    t_in_child(ignores_children, NULL, 0);
    errno = 0;
    assert_true(waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD); /* no child is left from anything before */
}

/* --- XML --------------------------------------------------------------------------------------------------------------------- */

/* hwloc's own XML of a synthetic machine, changed on the way. Lives until the program ends. */
static const char *write_xml(const char *name, const char *synthetic, unsigned long restrict_mask, unsigned long allow_mask, const char *kinds) {
    hwloc_topology_t t;
    assert_int_equal(hwloc_topology_init(&t), 0);
    assert_int_equal(hwloc_topology_set_synthetic(t, synthetic), 0);
    hwloc_topology_set_flags(t, HWLOC_TOPOLOGY_FLAG_INCLUDE_DISALLOWED);
    assert_int_equal(hwloc_topology_load(t), 0);
    hwloc_bitmap_t set = hwloc_bitmap_alloc();
    if (restrict_mask) {
        hwloc_bitmap_from_ulong(set, restrict_mask);
        assert_int_equal(hwloc_topology_restrict(t, set, 0), 0);
    }
    if (allow_mask) {
        hwloc_bitmap_from_ulong(set, allow_mask);
        assert_int_equal(hwloc_topology_allow(t, set, NULL, HWLOC_ALLOW_FLAG_CUSTOM), 0);
    }
    char *xml;
    int bytes;
    assert_int_equal(hwloc_topology_export_xmlbuffer(t, &xml, &bytes, 0), 0);
    const char *path = t_path("%s", name);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    char *end = strstr(xml, "</topology>");
    assert_non_null(end);
    fprintf(f, "%.*s%s</topology>\n", (int)(end - xml), xml, kinds ? kinds : "");
    fclose(f);
    hwloc_free_xmlbuffer(t, xml);
    hwloc_bitmap_free(set);
    hwloc_topology_destroy(t);
    return path;
}

static void expect_seats(const struct topo_machine *m, int n_ranks, const int *want) {
    struct topo_place_options o = {.n_ranks = n_ranks};
    struct topo_placement *p;
    struct err e = {{0}};
    T_OK(topo_place(m, &o, &p, &e), &e);
    assert_false(p->oversubscribed);
    for (int r = 0, at = 0; r < n_ranks; r++)
        for (int t = 0; t < p->seats[r].n_threads; t++) assert_int_equal(p->seats[r].pus[t], want[at++]);
    topo_placement_free(p);
}

/* F13: one hardware thread per core is left, by restriction or by permission. */
static void test_one_thread_of_each_core(void **state) {
    (void)state;
    struct topo_machine *m = open_machine(write_xml("restricted.xml", "pack:1 core:4 pu:2", 0x55, 0, NULL));
    check_consistent(m);
    assert_int_equal(m->n_pus, 4);
    expect_seats(m, 4, (int[]){0, 2, 4, 6});
    expect_seats(m, 2, (int[]){0, 2, 4, 6});
    topo_machine_close(m);
    m = open_machine(write_xml("allowed.xml", "pack:1 core:4 pu:2", 0, 0xaa, NULL));
    check_consistent(m);
    assert_int_equal(m->n_pus, 8);
    assert_int_equal(m->n_allowed, 4);
    expect_seats(m, 4, (int[]){1, 3, 5, 7});
    topo_machine_close(m);
}

/* F14 and its relatives: what makes a kind. Sixteen cores, two L3. */
static void test_kinds(void **state) {
    (void)state;
#define KIND(mask, infos) "<cpukind cpuset=\"" mask "\">" infos "</cpukind>"
#define INFO(name, value) "<info name=\"" name "\" value=\"" value "\"/>"
    static const struct {
        const char *name, *xml;
        int n_kinds;
        unsigned fast; /* CPUs of kind 0 */
    } cases[] = {
        {"no kinds", "", 1, 0xffff},
        {"three boost limits",
         KIND("0x0101", INFO("FrequencyMaxMHz", "5700")) KIND("0x3030", INFO("FrequencyMaxMHz", "5200"))
             KIND("0xcece", INFO("FrequencyMaxMHz", "4000")),
         1, 0xffff},
        {"boost limits far apart, same base",
         KIND("0x0001", INFO("FrequencyMaxMHz", "6000") INFO("FrequencyBaseMHz", "3000"))
             KIND("0xfffe", INFO("FrequencyMaxMHz", "4000") INFO("FrequencyBaseMHz", "3000")),
         1, 0xffff},
        {"both frequencies far apart",
         KIND("0x00ff", INFO("FrequencyMaxMHz", "3900") INFO("FrequencyBaseMHz", "1400"))
             KIND("0xff00", INFO("FrequencyMaxMHz", "5000") INFO("FrequencyBaseMHz", "1900")),
         2, 0xff00},
        {"capacities in steps below a quarter",
         KIND("0x000f", INFO("LinuxCapacity", "1024")) KIND("0x00f0", INFO("LinuxCapacity", "900")) KIND("0xff00", INFO("LinuxCapacity", "760")), 1,
         0xffff},
        {"a capacity gap",
         KIND("0x000f", INFO("LinuxCapacity", "700")) KIND("0x00f0", INFO("LinuxCapacity", "1024")) KIND("0xff00", INFO("LinuxCapacity", "1000")), 2,
         0xfff0},
        {"three kinds by capacity",
         KIND("0x000f", INFO("LinuxCapacity", "250")) KIND("0x00f0", INFO("LinuxCapacity", "1024")) KIND("0xff00", INFO("LinuxCapacity", "600")), 3,
         0x00f0},
        {"core types",
         KIND("0x00ff", INFO("CoreType", "IntelAtom") INFO("FrequencyMaxMHz", "4000"))
             KIND("0xff00", INFO("CoreType", "IntelCore") INFO("FrequencyMaxMHz", "4200")),
         2, 0xff00},
        {"one core type, many capacities",
         KIND("0x00ff", INFO("CoreType", "IntelCore") INFO("LinuxCapacity", "1024"))
             KIND("0xff00", INFO("CoreType", "IntelCore") INFO("LinuxCapacity", "600")),
         1, 0xffff},
        {"MIDR",
         KIND("0x0f00", INFO("LinuxMIDR", "0x410fd871") INFO("LinuxCapacity", "900"))
             KIND("0xf000", INFO("LinuxMIDR", "0x411fd872") INFO("LinuxCapacity", "910"))
                 KIND("0x00ff", INFO("LinuxMIDR", "0x410fd851") INFO("LinuxCapacity", "1024")),
         2, 0x00ff},
        {"nonsense", KIND("0x00ff", INFO("LinuxCapacity", "nan")) KIND("0xff00", INFO("LinuxCapacity", "-7")), 1, 0xffff},
    };
    for (int i = 0; i < N(cases); i++) {
        struct topo_machine *m = open_machine(write_xml("kinds.xml", "pack:1 l3:2 core:8 pu:1", 0, 0, cases[i].xml));
        check_consistent(m);
        if (m->n_kinds != cases[i].n_kinds) fail_msg("%s: %d kinds, not %d", cases[i].name, m->n_kinds, cases[i].n_kinds);
        for (int c = 0; c < 16; c++)
            if ((m->cores[c].kind == 0) != (cases[i].fast >> m->pus[c].os_index & 1))
                fail_msg("%s: core %d is of kind %d", cases[i].name, c, m->cores[c].kind);
        if (m->n_kinds == 1) expect_seats(m, 2, (int[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});
        topo_machine_close(m);
    }
}

/* Whatever comes out is consistent, or an error that names the file. */
static bool open_hostile(const char *path) {
    struct topo_machine *m = NULL;
    struct err e = {{0}};
    enum st st = topo_machine_open(path, &m, &e);
    if (st == ST_OK) {
        check_consistent(m);
        topo_machine_close(m);
        return true;
    }
    assert_int_equal(st, ST_INVALID);
    if (!strstr(e.text, strrchr(path, '/') + 1)) fail_msg("no file name in '%s'", e.text);
    return false;
}

static void test_xml_damaged(void **state) {
    (void)state;
    struct base_rng r;
    base_rng_init(&r, t_seed());
    const char *paths[8] = {
        write_xml("whole.xml", "pack:2 numa:2 l3:1 core:2 pu:2", 0, 0, KIND("0x00ff", INFO("CoreType", "a")) KIND("0xff00", INFO("CoreType", "b")))};
    int n_paths = 1;
    static const char *const more[] = {"nvidia-dgx-gb10.xml", "fakeheterocpunuma.xml", "nvidiagpunumanodes.xml", "40intel64-2g2n4c+pcilocality.xml"};
    for (int i = 0; i < N(more); i++) {
        const char *path = t_path("%s", more[i]);
        char from[256];
        snprintf(from, sizeof from, "%s/%s", CAPTURED, more[i]);
        if (access(from, R_OK)) continue;
        size_t bytes;
        const char *text = t_read_file(from, &bytes);
        t_write_file(path, text, bytes);
        paths[n_paths++] = path;
    }
    const char *path = t_path("damaged.xml");
    int n_each = t_long() ? 1000 : 30, n_good = 0;
    for (int i = 0; i < n_paths; i++) {
        size_t bytes;
        char *text = t_read_file(paths[i], &bytes);
        for (int k = 0; k < n_each; k++) {
            size_t n = base_rng_below(&r, (uint32_t)bytes - 20); /* cut */
            t_write_file(path, text, n);
            assert_false(open_hostile(path));

            char *copy = malloc(bytes); /* a few bytes changed; now and then a digit, which keeps the XML whole */
            assert_non_null(copy);
            memcpy(copy, text, bytes);
            for (int c = 0, n_changes = 1 + (int)base_rng_below(&r, 4); c < n_changes; c++) {
                size_t at = base_rng_below(&r, (uint32_t)bytes);
                if (k % 3) {
                    for (size_t tries = 0; tries < bytes && (copy[at] < '0' || copy[at] > '9'); tries++) at = (at + 1) % bytes;
                    copy[at] = (char)('0' + base_rng_below(&r, 10));
                } else {
                    copy[at] = (char)base_rng_u32(&r);
                }
            }
            t_write_file(path, copy, bytes);
            n_good += open_hostile(path);
            free(copy);
        }
    }
    assert_true(n_good > 0);
}

static void test_xml_not(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        "\n",
        "hello",
        "<",
        "<topology",
        "<topology/>",
        "<topology version=\"2.0\"></topology>",
        "<html><body/></html>",
        "<?xml version=\"1.0\"?><topology version=\"2.0\"><object type=\"Machine\"/></topology>",
        "<?xml version=\"1.0\"?><topology version=\"9.0\"><object type=\"Machine\" cpuset=\"0x1\"/></topology>",
        "<?xml version=\"1.0\"?><topology version=\"2.0\"><object type=\"PU\" os_index=\"0\" cpuset=\"0x1\"/></topology>",
        "<?xml version=\"1.0\"?><topology version=\"2.0\"><object type=\"Machine\" cpuset=\"0xf...f\" nodeset=\"0x1\"/></topology>"};
    for (int i = 0; i < N(texts); i++) {
        const char *path = t_path("not_%d.xml", i);
        t_write_text(path, texts[i]);
        if (open_hostile(path)) fail_msg("'%s' was taken for a machine", texts[i]);
    }
    char deep[20000] = "<?xml version=\"1.0\"?><topology version=\"2.0\">"; /* two thousand nested objects */
    for (int i = 0; i < 800; i++) strcat(deep, "<object type=\"Group\">");
    t_write_text(t_path("deep.xml"), deep);
    open_hostile(t_path("deep.xml"));

    struct topo_machine *m;
    struct err e = {{0}};
    t_write_file(t_path("nul.xml"), "<a>\0<b>", 8);
    t_expect_err_contains(ST_INVALID, topo_machine_open(t_path("nul.xml"), &m, &e), &e, "neither hwloc's XML nor");
    t_expect_err_contains(ST_INVALID, topo_machine_open(t_dir(), &m, &e), &e, "not a regular file");
    assert_int_equal(mkfifo(t_path("fifo"), 0600), 0);
    t_expect_err_contains(ST_INVALID, topo_machine_open(t_path("fifo"), &m, &e), &e, "not a regular file");
    t_expect_err_contains(ST_NOT_FOUND, topo_machine_open("/nowhere/x", &m, &e), &e, "/nowhere/x: no such file");
    t_expect_err_contains(ST_NOT_FOUND, topo_machine_open("gb10.xml", &m, &e), &e, "gb10.xml: no such file");
    t_expect_err_contains(ST_NOT_FOUND, topo_machine_open("gb10.json", &m, &e), &e, "gb10.json: no such file");
    t_write_text(t_path("big.xml"), "<");
    assert_int_equal(truncate(t_path("big.xml"), 1ll << 40), 0);
    t_expect_err_contains(ST_INVALID, topo_machine_open(t_path("big.xml"), &m, &e), &e, "at most");
}

static void test_synthetic(void **state) {
    (void)state;
    static const struct {
        const char *text;
        int n_packages, n_numa, n_l3, n_cores, n_pus;
    } good[] = {
        {"pu:1", 0, 1, 0, 1, 1},
        {"pack:2 core:4 pu:2", 2, 1, 0, 8, 16},
        {"pack:2 numa:2 l3:3 core:4 pu:2", 2, 4, 12, 48, 96},
        {"numa:4 pack:2 core:1 pu:1", 8, 4, 0, 8, 8},
        {"pack:2 l2:4 core:2 pu:1", 2, 1, 8, 16, 16}, /* the shared cache above the cores where there is no L3 */
        {"pack:2 core:2 l2:1 pu:2", 2, 1, 0, 4, 8},
        {"pack:1 [numa(memory=64GB)] core:2 pu:1", 1, 1, 0, 2, 2},
        {"numa:2(memory=4GB) core:2 pu:1", 0, 2, 0, 4, 4},
        {"2 3 2", -1, -1, -1, -1, 12},
        {"pack:8 core:512 pu:2", 8, 1, 0, 4096, 8192},
    };
    for (int i = 0; i < N(good); i++) {
        struct topo_machine *m = open_machine(good[i].text);
        check_consistent(m);
        assert_string_equal(m->name, good[i].text);
        assert_int_equal(m->n_pus, good[i].n_pus);
        assert_int_equal(m->n_allowed, good[i].n_pus);
        if (good[i].n_cores >= 0) {
            assert_int_equal(m->n_packages, good[i].n_packages);
            assert_int_equal(m->n_numa, good[i].n_numa);
            assert_int_equal(m->n_l3, good[i].n_l3);
            assert_int_equal(m->n_cores, good[i].n_cores);
        }
        assert_int_equal(m->memory_bytes != 0, strstr(good[i].text, "memory=") != NULL);
        topo_machine_close(m);
    }
    static const char *const bad[] = {"",
                                      " ",
                                      "x",
                                      "pack",
                                      "pack:",
                                      "pack:-1 pu:1",
                                      "pack:0 pu:2",
                                      "core:2",
                                      "pack:2 core:4 pu:2 pu:2",
                                      "foo:2 pu:1",
                                      "pu:1 core:2",
                                      "pack:1000000 core:1000000 pu:2",
                                      "100 100 100",
                                      "pack:9999999999999999999 pu:1",
                                      "pack:1 core:8193 pu:1",
                                      "pack:2(",
                                      "[numa]"};
    for (int i = 0; i < N(bad); i++) {
        struct topo_machine *m = NULL;
        struct err e = {{0}};
        enum st st = topo_machine_open(bad[i], &m, &e);
        if (st == ST_OK) {
            check_consistent(m); /* hwloc reads more than we thought */
            topo_machine_close(m);
            continue;
        }
        assert_int_equal(st, ST_INVALID);
        assert_true(e.text[0]);
    }
}

/* --- Memory and CPU time of cgroups ------------------------------------------------------------------------------------------ */

static const char *root;
static int n_roots;

/* A new, empty root with this much MemAvailable and these lines of /proc/self/cgroup and mountinfo (NULL: no such file). */
static void put(const char *path, const char *text) {
    char full[1024];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = full + 1; (slash = strchr(slash, '/')); *slash++ = '/') {
        *slash = 0;
        mkdir(full, 0755);
    }
    t_write_text(full, text);
}
static void new_root(unsigned available_mib, const char *cgroup, const char *mountinfo) {
    root = t_path("root%d", n_roots++);
    char text[256];
    snprintf(text, sizeof text, "MemTotal:       99999999 kB\nMemFree:          1234 kB\nMemAvailable:   %u kB\nBuffers: 5 kB\n",
             available_mib * 1024);
    put("proc/meminfo", text);
    if (cgroup) put("proc/self/cgroup", cgroup);
    if (mountinfo) put("proc/self/mountinfo", mountinfo);
}
/* Values in bytes: "B", or MiB by the macro. */
static void put_mib(const char *path, unsigned long long mib) {
    char text[64];
    snprintf(text, sizeof text, "%llu\n", mib * MIB);
    put(path, text);
}
static void put_stat(const char *path, const char *prefix, unsigned long long inactive_mib, unsigned long long active_mib) {
    char text[512];
    snprintf(text, sizeof text, "anon 123\nfile 99999999999\nshmem 7\n%sinactive_file %llu\n%sactive_file %llu\nunevictable 0\n", prefix,
             inactive_mib * MIB, prefix, active_mib * MIB);
    put(path, text);
}
static void want_memory(unsigned long long mib, const char *what_wanted) {
    uint64_t bytes = 0;
    char what[256] = "";
    struct err e = {{0}};
    T_OK(topo_memory_available(root, &bytes, what, &e), &e);
    if (bytes != mib * MIB || strcmp(what, what_wanted) != 0)
        fail_msg("%s: %.3f MiB by %s, not %llu by %s", root, (double)bytes / MIB, what, mib, what_wanted);
}

#define MOUNT_V2 "25 1 0:22 / /sys rw - sysfs sysfs rw\n30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
#define MOUNT_V1(part)                                                                                                                               \
    "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:27 " part                                                                              \
    " /sys/fs/cgroup/memory rw master:3 - cgroup cgroup rw,memory\n32 30 0:28 " part                                                                 \
    " /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n33 30 0:29 " part " /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"
#define CGROUP_V1(path) "12:cpuset:/\n9:cpu,cpuacct:" path "\n4:memory:" path "\n1:name=systemd:/x\n"

static void test_memory_v2(void **state) {
    (void)state;
    new_root(5000, NULL, NULL);
    want_memory(5000, "MemAvailable");
    new_root(5000, "0::/\n", MOUNT_V2);
    want_memory(5000, "MemAvailable");

    /* a limit on the parent only; siblings use of it, too */
    new_root(5000, "0::/a/b\n", MOUNT_V2);
    put("sys/fs/cgroup/a/b/memory.max", "max\n");
    put_mib("sys/fs/cgroup/a/b/memory.current", 100);
    put_mib("sys/fs/cgroup/a/memory.max", 1000);
    put_mib("sys/fs/cgroup/a/memory.current", 300);
    want_memory(700, "cgroup /a");
    put_mib("sys/fs/cgroup/a/b/memory.max", 650);
    want_memory(550, "cgroup /a/b");
    put_mib("sys/fs/cgroup/memory.max", 400); /* a container's own root has limits */
    put_mib("sys/fs/cgroup/memory.current", 0);
    want_memory(400, "cgroup /");
    put_mib("sys/fs/cgroup/a/memory.high", 350); /* throttled beyond */
    want_memory(50, "cgroup /a");

    /* 300 MiB full of page cache: all of it can be had (F20) */
    new_root(5000, "0::/small\n", NULL);
    put_mib("sys/fs/cgroup/small/memory.max", 300);
    put_mib("sys/fs/cgroup/small/memory.current", 300);
    want_memory(0, "cgroup /small");
    put_stat("sys/fs/cgroup/small/memory.stat", "", 200, 80);
    want_memory(280, "cgroup /small");
    put_stat("sys/fs/cgroup/small/memory.stat", "", 200, 1ull << 40); /* more cache than use */
    want_memory(300, "cgroup /small");
    put_mib("sys/fs/cgroup/small/memory.current", 900);
    put_stat("sys/fs/cgroup/small/memory.stat", "", 100, 100);
    want_memory(0, "cgroup /small");

    /* garbage is no limit */
    new_root(77, "0::/a\n", MOUNT_V2);
    static const char *const garbage[] = {"", "\n", "max", "-5", "1e3", "99999999999999999999999", "0x10", "abc"};
    for (int i = 0; i < N(garbage); i++) {
        put("sys/fs/cgroup/a/memory.max", garbage[i]);
        want_memory(77, "MemAvailable");
    }
    static const char *const lines[] = {"", "\n", "0", "0:", "0::", "::::", "0::\n", ":\n:\n", "4:memory:/x\n", "0:/a\n"};
    for (int i = 0; i < N(lines); i++) {
        put("proc/self/cgroup", lines[i]);
        put("proc/self/mountinfo", i % 2 ? "a b - c\n - cgroup2 x y\n1 2 3\n" : "");
        want_memory(77, "MemAvailable");
    }
}

static void test_memory_v1(void **state) {
    (void)state;
    new_root(5000, CGROUP_V1("/jobs/j1"), MOUNT_V1("/"));
    put("sys/fs/cgroup/memory/jobs/j1/memory.limit_in_bytes", "9223372036854771712\n");
    put_mib("sys/fs/cgroup/memory/jobs/j1/memory.usage_in_bytes", 100);
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    want_memory(5000, "MemAvailable");
    put_mib("sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", 1000);
    put_mib("sys/fs/cgroup/memory/jobs/memory.usage_in_bytes", 800);
    put_stat("sys/fs/cgroup/memory/jobs/memory.stat", "total_", 300, 100);
    want_memory(600, "cgroup /jobs");
    put_stat("sys/fs/cgroup/memory/jobs/memory.stat", "", 10, 10); /* its own pages, where there are no sums over children */
    want_memory(220, "cgroup /jobs");

    /* a container with the host's path: its directory is the mount's root; the parent's limit shows in memory.stat only */
    new_root(5000, CGROUP_V1("/docker/c0ffee/x"), MOUNT_V1("/docker/c0ffee"));
    put_mib("sys/fs/cgroup/memory/memory.limit_in_bytes", 2000);
    put_mib("sys/fs/cgroup/memory/memory.usage_in_bytes", 500);
    put_mib("sys/fs/cgroup/memory/x/memory.limit_in_bytes", 1900);
    put_mib("sys/fs/cgroup/memory/x/memory.usage_in_bytes", 100);
    want_memory(1500, "cgroup /docker/c0ffee");
    put("sys/fs/cgroup/memory/memory.stat", "cache 5\nhierarchical_memory_limit 1048576000\ntotal_inactive_file 0\n");
    want_memory(500, "cgroup /docker/c0ffee");

    /* a path outside of what is mounted */
    new_root(5000, CGROUP_V1("/docker/beef"), MOUNT_V1("/docker/c0ffee"));
    put_mib("sys/fs/cgroup/memory/memory.limit_in_bytes", 2000);
    want_memory(2000, "cgroup /");
    new_root(5000, "0::/../../x\n", MOUNT_V2);
    put_mib("sys/fs/cgroup/memory.max", 1234);
    want_memory(1234, "cgroup /");

    /* version 1 without mountinfo, hybrid with a version 2 that has no controllers, a mount point with a space */
    new_root(5000, CGROUP_V1("/j") "0::/j\n", NULL);
    put_mib("sys/fs/cgroup/memory/j/memory.limit_in_bytes", 600);
    put("sys/fs/cgroup/unified/j/cgroup.procs", "");
    want_memory(600, "cgroup /j");
    new_root(5000, "0::/j\n", "30 25 0:26 / /my\\040cgroups rw - cgroup2 none rw\n");
    put_mib("my cgroups/j/memory.max", 44);
    want_memory(44, "cgroup /j");
}

static void test_memory_errors(void **state) {
    (void)state;
    uint64_t bytes = 42;
    char what[256];
    struct err e = {{0}};
    t_expect_err_contains(ST_IO, topo_memory_available(t_path("no such root"), &bytes, what, &e), &e, "proc/meminfo");
    new_root(1, NULL, NULL);
    put("proc/meminfo", "MemTotal: 5 kB\n");
    t_expect_err_contains(ST_IO, topo_memory_available(root, &bytes, what, &e), &e, "MemAvailable");
    assert_int_equal(bytes, 42);
    put("proc/meminfo", "MemTotal: 999 kB\nMemFree: 1024 kB\nBuffers: 1024 kB\nCached: 2048 kB\n"); /* kernels before 3.14 */
    want_memory(4, "MemAvailable");
}

static void want_quota(double want) {
    double got = topo_cpu_quota(root);
    if (got < want - 1e-9 || got > want + 1e-9) fail_msg("%s: quota %g, not %g", root, got, want);
}

static void test_cpu_quota(void **state) {
    (void)state;
    new_root(1, NULL, NULL);
    want_quota(0);
    new_root(1, "0::/a/b\n", MOUNT_V2);
    want_quota(0);
    put("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    want_quota(0);
    put("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
    want_quota(1.5);
    put("sys/fs/cgroup/a/b/cpu.max", "100000 200000\n");
    want_quota(0.5);
    put("sys/fs/cgroup/a/b/cpu.max", "400000");
    want_quota(1.5);
    static const char *const garbage[] = {"", "max", "-1 100000", "0 100000", "100000 0", "x y", "99999999999999999999999 1"};
    for (int i = 0; i < N(garbage); i++) {
        put("sys/fs/cgroup/a/b/cpu.max", garbage[i]);
        want_quota(1.5);
    }
    new_root(1, CGROUP_V1("/p/q"), MOUNT_V1("/"));
    put("sys/fs/cgroup/cpu,cpuacct/p/q/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu,cpuacct/p/q/cpu.cfs_period_us", "100000\n");
    want_quota(0);
    put("sys/fs/cgroup/cpu,cpuacct/p/cpu.cfs_quota_us", "250000\n");
    put("sys/fs/cgroup/cpu,cpuacct/p/cpu.cfs_period_us", "50000\n");
    want_quota(5);
    put("sys/fs/cgroup/cpu,cpuacct/p/q/cpu.cfs_quota_us", "300000\n");
    want_quota(3);
    new_root(1, CGROUP_V1("/p"), NULL); /* the usual places */
    put("sys/fs/cgroup/cpu,cpuacct/p/cpu.cfs_quota_us", "70000\n");
    put("sys/fs/cgroup/cpu,cpuacct/p/cpu.cfs_period_us", "100000\n");
    want_quota(0.7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_live),          cmocka_unit_test(test_restricted),
        cmocka_unit_test(test_sigchld),       cmocka_unit_test(test_one_thread_of_each_core),
        cmocka_unit_test(test_kinds),         cmocka_unit_test(test_xml_damaged),
        cmocka_unit_test(test_xml_not),       cmocka_unit_test(test_synthetic),
        cmocka_unit_test(test_memory_v2),     cmocka_unit_test(test_memory_v1),
        cmocka_unit_test(test_memory_errors), cmocka_unit_test(test_cpu_quota),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
