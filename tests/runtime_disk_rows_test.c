/* Rows that stay in their file, where the system gives less than was asked for or takes no direct I/O: the same numbers as a plain read has. */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

/* What pread does besides reading. */
static struct {
    size_t most;  /* bytes of a call */
    bool refuses; /* direct I/O, as some file systems do when they are read, not when they are opened */
    int n_calls;
} fake;
static ssize_t fake_pread(int fd, void *to, size_t bytes, off_t offset);
#define pread fake_pread
#include "runtime/disk_rows.c"
#undef pread

#include "tests/t_ck.h"

enum { ROWS = 9, COLUMNS = 5000 }; /* a row of 20000 bytes begins anywhere in a sector and takes several */

static ssize_t fake_pread(int fd, void *to, size_t bytes, off_t offset)
{
    fake.n_calls++;
    const bool direct = fcntl(fd, F_GETFL) & O_DIRECT;
    if (direct && (fake.refuses || offset % ALIGNMENT || bytes % ALIGNMENT || (uintptr_t)to % ALIGNMENT)) {
        errno = EINVAL;
        return -1;
    }
    const ssize_t n = pread(fd, to, bytes, offset);
    return n > 0 && (size_t)n > fake.most ? (ssize_t)fake.most : n;
}

static float number(int row, int column) { return (float)(row * COLUMNS + column); }

/* All rows, last first; a row that is not there. */
static void check(size_t most, bool refuses)
{
    static float table[ROWS * COLUMNS], read[COLUMNS];
    const char *path = t_path("table.safetensors");
    for (int i = 0; i < ROWS * COLUMNS; i++)
        table[i] = number(i / COLUMNS, i % COLUMNS);
    t_safetensors(path, &(struct t_tensor){"table", "F32", 2, {ROWS, COLUMNS}, table, sizeof table}, 1, NULL);
    struct checkpoint *ck;
    struct err e = {""};
    T_OK(ck_open(path, &ck, &e), &e);
    const struct ck_tensor *tensor = ck_find(ck, "table");
    const uint64_t row_bytes = sizeof read;
    const struct part_weight w = {.name = "table",
                                  .tensor = tensor,
                                  .columns = {0, COLUMNS},
                                  .slices = {{.offset = tensor->offset, .run_bytes = row_bytes, .stride = {row_bytes}}},
                                  .slice_bytes = ROWS * row_bytes};
    const struct part_model m = {.ck = ck};
    void *memory = t_guard_alloc(rt_disk_rows_bytes(&w, 1));
    struct rt_disk_rows d;
    fake.most = most;
    fake.refuses = refuses;
    T_OK(rt_disk_rows_open(&d, &m, &w, memory, &e), &e);
    assert_true(!refuses || !(fcntl(d.fd, F_GETFL) & O_DIRECT));
    for (int row = ROWS; row-- > 0;) {
        T_OK(rt_disk_rows_read(&d, 0, (uint64_t)row, read, &e), &e);
        assert_memory_equal(read, table + row * COLUMNS, sizeof read);
    }
    fake.n_calls = 0;
    t_expect_err_contains(ST_IO, rt_disk_rows_read(&d, 0, ROWS, read, &e), &e, "row 9 of table cannot be read: the file ends there");
    assert_in_range(fake.n_calls, 1, 2 + row_bytes / most + row_bytes / ALIGNMENT);
    rt_disk_rows_close(&d);
    t_guard_free(memory);
    ck_close(ck);
}

static void whole_reads(void **state)
{
    (void)state;
    check(SIZE_MAX, false);
}

static void short_reads(void **state)
{
    (void)state;
    check(4096, false);
    check(5000, false); /* the next one would begin off the alignment */
}

static void no_direct_io(void **state)
{
    (void)state;
    t_declare_warnings();
    check(SIZE_MAX, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(whole_reads), cmocka_unit_test(short_reads), cmocka_unit_test(no_direct_io)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
