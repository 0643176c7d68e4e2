/* The bundle for other hosts: which files, the archive's form, checks of a copy; damaged ELF files; names of hosts. */
#include <elf.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "launcher/bundle.h"
#include "launcher/elf.h"
#include "launcher/libraries.h"
#include "launcher/remote.h"
#include "tests/t.h"

static uint64_t rng_state;

static uint32_t draw(uint32_t below)
{
    rng_state = rng_state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(rng_state >> 33) % below;
}

static struct launch_bundle *bundle(void)
{
    struct launch_bundle *b = NULL;
    struct err e = {""};
    T_OK(launch_bundle_create(&(const struct launch_bundle_options){.with_mpi = false}, &b, &e), &e);
    return b;
}

static unsigned char *archive(const struct launch_bundle *b)
{
    struct err e = {""};
    unsigned char *data = malloc(launch_bundle_bytes(b));
    assert_non_null(data);
    T_OK(launch_bundle_read(b, 0, data, launch_bundle_bytes(b), &e), &e);
    return data;
}

/* Writes it to DIR/name.tar and unpacks it to DIR/name; returns the folder. */
static const char *unpack(const struct launch_bundle *b, const char *name)
{
    unsigned char *data = archive(b);
    char command[1024];
    t_write_file(t_path("%s.tar", name), data, launch_bundle_bytes(b));
    free(data);
    const char *folder = t_path("%s", name);
    snprintf(command, sizeof command, "mkdir '%s' && cd '%s' && tar xof '%s.tar'", folder, folder, folder);
    assert_int_equal(system(command), 0); /* NOLINT(cert-env33-c) */
    return folder;
}

static void archive_is_the_same_each_time(void **state)
{
    (void)state;
    struct launch_bundle *a = bundle(), *b = bundle();
    assert_string_equal(launch_bundle_hash(a), launch_bundle_hash(b));
    assert_int_equal(strlen(launch_bundle_hash(a)), 64);
    assert_int_equal(launch_bundle_bytes(a), launch_bundle_bytes(b));
    assert_int_equal(launch_bundle_bytes(a) % 10240, 0);
    unsigned char *x = archive(a), *y = archive(b);
    assert_int_equal(memcmp(x, y, launch_bundle_bytes(a)), 0);
    free(x);
    free(y);
    launch_bundle_destroy(a);
    launch_bundle_destroy(b);
}

static void any_piece_is_that_piece(void **state)
{
    (void)state;
    struct launch_bundle *b = bundle();
    const uint64_t all = launch_bundle_bytes(b);
    unsigned char *whole = archive(b), *piece = malloc(100000);
    assert_non_null(piece);
    rng_state = t_seed();
    for (int i = 0; i < 300; i++) {
        uint64_t at = (uint64_t)draw((uint32_t)all), n = draw(i % 3 ? 1500 : 100000);
        if (n > all - at)
            n = all - at;
        struct err e = {""};
        T_OK(launch_bundle_read(b, at, piece, n, &e), &e);
        assert_int_equal(memcmp(piece, whole + at, n), 0);
    }
    struct err e = {""};
    T_OK(launch_bundle_read(b, all, piece, 0, &e), &e);
    t_expect_err_contains(ST_INVALID, launch_bundle_read(b, all - 1, piece, 2, &e), &e, "end");
    t_expect_err_contains(ST_INVALID, launch_bundle_read(b, UINT64_MAX, piece, 2, &e), &e, "end");
    free(piece);
    free(whole);
    launch_bundle_destroy(b);
}

static void a_copy_is_checked(void **state)
{
    (void)state;
    struct launch_bundle *b = bundle();
    const char *folder = unpack(b, "copy"), *hash = launch_bundle_hash(b);
    struct err e = {""};
    struct stat info;
    T_OK(launch_bundle_check(folder, hash, &e), &e);
    assert_int_equal(stat(t_path("copy/bin/tandem"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0700);
    assert_int_equal(stat(t_path("copy/MANIFEST"), &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);

    char other[65];
    strcpy(other, hash);
    other[63] = other[63] == '0' ? '1' : '0';
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, other, &e), &e, "MANIFEST");
    size_t n;
    char *program = t_read_file(t_path("copy/bin/tandem"), &n), *manifest = t_read_file(t_path("copy/MANIFEST"), NULL);
    program[n / 2] ^= 1;
    t_write_file(t_path("copy/bin/tandem"), program, n);
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, hash, &e), &e, "bin/tandem: differs");
    program[n / 2] ^= 1;
    t_write_file(t_path("copy/bin/tandem"), program, n - 1);
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, hash, &e), &e, "bin/tandem: differs");
    t_write_file(t_path("copy/bin/tandem"), program, n);
    T_OK(launch_bundle_check(folder, hash, &e), &e);
    assert_int_equal(unlink(t_path("copy/bin/tandem")), 0);
    assert_int_equal(symlink("/bin/true", t_path("copy/bin/tandem")), 0);
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, hash, &e), &e, "bin/tandem");
    t_write_text(t_path("copy/MANIFEST"), strchr(manifest, '\n') + 1);
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, hash, &e), &e, "MANIFEST");
    t_write_text(t_path("copy/MANIFEST"), "");
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(folder, hash, &e), &e, "MANIFEST");
    t_expect_err_contains(ST_MISMATCH, launch_bundle_check(t_path("nowhere"), hash, &e), &e, "nowhere");
    launch_bundle_destroy(b);
}

/* As `make bundle` leaves it: the same bundle. */
static void an_unpacked_one_is_the_same(void **state)
{
    (void)state;
    struct launch_bundle *a = bundle(), *b = NULL;
    struct err e = {""};
    const char *folder = unpack(a, "unpacked");
    T_OK(launch_bundle_open(folder, &b, &e), &e);
    assert_string_equal(launch_bundle_hash(a), launch_bundle_hash(b));
    assert_string_equal(launch_bundle_machine(a), launch_bundle_machine(b));
    assert_memory_equal(launch_bundle_glibc(a), launch_bundle_glibc(b), 3 * sizeof(unsigned));
    assert_int_equal(launch_bundle_bytes(a), launch_bundle_bytes(b));
    launch_bundle_destroy(a);
    launch_bundle_destroy(b);
    t_expect_err_contains(ST_NOT_FOUND, launch_bundle_open(t_path("nowhere"), &b, &e), &e, "no bundle lies there");
    t_write_text(t_path("unpacked/lib/libnoise.so.1"), "noise");
    t_expect_err_contains(ST_INVALID, launch_bundle_open(folder, &b, &e), &e, "libnoise");
}

static void what_must_be_the_hosts_stays_out(void **state)
{
    (void)state;
    static const char *const hosts[] = {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1", "libpthread.so.0", "libibverbs.so.1", "libmlx5.so.1", "librdmacm.so.1", "libcuda.so.1"};
    static const char *const ours[] = {"libhwloc.so.15", "libsodium.so.23", "libmpich.so.12", "libucp.so.0", "libcap.so.2", "libcrypto.so.3", "libmount.so.1", "libcudart.so.13", "libnuma.so.1"};
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++)
        assert_true(launch_library_is_hosts(hosts[i]));
    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
        assert_false(launch_library_is_hosts(ours[i]));

    struct launch_bundle *b = bundle();
    const unsigned *glibc = launch_bundle_glibc(b);
    assert_int_equal(glibc[0], 2);
    assert_true(glibc[1] >= 17 && glibc[1] < 200);
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    launch_bundle_print(b, f);
    assert_int_equal(fclose(f), 0);
    assert_non_null(strstr(text, "lib/libsodium.so"));
    assert_null(strstr(text, "lib/libc.so"));
    free(text);
    launch_bundle_destroy(b);
}

static void versions(void **state)
{
    (void)state;
    unsigned v[3] = {9, 9, 9};
    assert_true(launch_elf_parse_version("2.36", v));
    assert_true(v[0] == 2 && v[1] == 36 && v[2] == 0);
    assert_true(launch_elf_parse_version("2.36.1", v));
    assert_true(v[2] == 1);
    assert_true(launch_elf_parse_version("2.39-0ubuntu8", v) && v[1] == 39);
    assert_false(launch_elf_parse_version("", v));
    assert_false(launch_elf_parse_version("none", v));
    assert_false(launch_elf_parse_version("2", v));
    assert_false(launch_elf_parse_version("-2.3", v));
    const unsigned old[3] = {2, 4, 0}, young[3] = {2, 34, 0}, patched[3] = {2, 34, 1};
    assert_int_equal(launch_elf_compare_versions(old, young), -1);
    assert_int_equal(launch_elf_compare_versions(patched, young), 1);
    assert_int_equal(launch_elf_compare_versions(young, young), 0);
}

/* A small real library, cut short and changed: never a crash, and a file without its end is refused. */
static void damaged_files(void **state)
{
    (void)state;
    struct launch_elf self, elf;
    char path[4096];
    struct err e = {""};
    T_OK(launch_elf_read("/proc/self/exe", &self, &e), &e);
    assert_true(self.n_needed >= 2);
    assert_true(self.glibc[0] == 2);
    assert_true(launch_library_find("libxxhash.so.0", &self, NULL, path, sizeof path));
    assert_false(launch_library_find("libnobody.so.7", &self, NULL, path, 20));
    assert_true(launch_library_find("libxxhash.so.0", &self, NULL, path, sizeof path));
    size_t n;
    char *good = t_read_file(path, &n), *bad = malloc(n);
    assert_non_null(bad);
    const char *file = t_path("damaged.so");
    rng_state = t_seed();
    for (int i = 0; i < 400; i++) {
        memcpy(bad, good, n);
        size_t bytes = i % 2 ? n : draw((uint32_t)n);
        for (uint32_t k = 0; i % 2 && k < 1 + draw(8); k++)
            bad[draw(k % 2 ? 1024 : (uint32_t)n)] = (char)draw(256);
        t_write_file(file, bad, bytes);
        if (launch_elf_read(file, &elf, &e) == ST_OK)
            launch_elf_release(&elf);
        else
            assert_non_null(strstr(e.text, "damaged.so"));
    }
    /* the dynamic section, where all of it lies, word by word */
    for (size_t at = 0; at < 64; at++) {
        memcpy(bad, good, n);
        memset(bad + at, 0xff, 1);
        t_write_file(file, bad, n);
        if (launch_elf_read(file, &elf, NULL) == ST_OK)
            launch_elf_release(&elf);
    }
    t_write_text(file, "");
    t_expect_err_contains(ST_INVALID, launch_elf_read(file, &elf, &e), &e, "damaged.so");
    t_write_text(file, "#!/bin/sh\n");
    t_expect_err_contains(ST_INVALID, launch_elf_read(file, &elf, &e), &e, "damaged.so");
    t_expect_err_contains(ST_NOT_FOUND, launch_elf_read(t_path("none.so"), &elf, &e), &e, "none.so");
    t_expect_err_contains(ST_INVALID, launch_elf_read(t_dir(), &elf, &e), &e, t_dir());
    free(bad);
    launch_elf_release(&self);
}

static void names_of_hosts(void **state)
{
    (void)state;
    struct launch_target t;
    struct err e = {""};
    T_OK(launch_target_parse("me.too_2@spark-1.lan", &t, &e), &e);
    assert_string_equal(t.user, "me.too_2");
    assert_string_equal(t.name, "spark-1.lan");
    assert_string_equal(t.typed, "me.too_2@spark-1.lan");
    T_OK(launch_target_parse("fe80::1%eth0", &t, &e), &e);
    assert_string_equal(t.user, "");
    T_OK(launch_target_parse("10.0.0.2", &t, &e), &e);
    static const char *const bad[] = {"", "@", "a@", "@a", "-a", "a@-b", "a@b@c", "a b", "a;b", "a$b", "a'b", "a\"b", "a\\b", "a/b", "a\nb", "a\tb", "a*", "a%u@b", "\xc3\xa4"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        t_expect_err_contains(ST_INVALID, launch_target_parse(bad[i], &t, &e), &e, "no host");
    char longest[512];
    memset(longest, 'a', sizeof longest);
    longest[511] = 0;
    t_expect_err_contains(ST_INVALID, launch_target_parse(longest, &t, &e), &e, "long");
    assert_true(launch_host_is_local("127.0.0.1", 1000));
    assert_true(launch_host_is_local("::1", 1000));
    assert_true(launch_host_is_local("localhost", 2000));
    assert_false(launch_host_is_local("192.0.2.1", 1000));    /* for documentation: nobody's */
    assert_false(launch_host_is_local("2001:db8::1", 1000));
    assert_false(launch_host_is_local("nobody.invalid", 300)); /* no resolver knows it, and a dead one has not long */

    const struct passwd *own = getpwuid(geteuid());
    assert_non_null(own);
    struct launch_target user = {.name = "127.0.0.1"};
    assert_true(launch_target_is_local(&user, 1000));
    snprintf(user.user, sizeof user.user, "%s", own->pw_name);
    assert_true(launch_target_is_local(&user, 1000));
    snprintf(user.user, sizeof user.user, "%.40s-else", own->pw_name);
    assert_false(launch_target_is_local(&user, 1000)); /* the same host, other files */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(archive_is_the_same_each_time), cmocka_unit_test(any_piece_is_that_piece), cmocka_unit_test(a_copy_is_checked),
        cmocka_unit_test(an_unpacked_one_is_the_same), cmocka_unit_test(what_must_be_the_hosts_stays_out), cmocka_unit_test(versions),             cmocka_unit_test(damaged_files),
        cmocka_unit_test(names_of_hosts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
