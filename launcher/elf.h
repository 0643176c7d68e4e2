/* What the loader would read of a program or a shared library: its machine, what it needs, where it looks for that, and the newest glibc that it asks for.
 *
 * Read from the dynamic section by way of the program headers (a stripped file has no others). Files may be cut short or be something else: each offset is checked. */
#ifndef LAUNCHER_ELF_H
#define LAUNCHER_ELF_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

#define LAUNCH_ELF_NEEDED 64

struct launch_elf {
    char *path; /* as given */
    uint16_t machine;
    uint8_t class;                   /* ELFCLASS32, ELFCLASS64 */
    char *needed[LAUNCH_ELF_NEEDED]; /* "libm.so.6" */
    int n_needed;
    char *run_path;    /* DT_RUNPATH, else DT_RPATH, as written; or NULL */
    unsigned glibc[3]; /* 2, 36, 0: highest GLIBC_… of its version needs; zeroes: none */
};

/* ST_NOT_FOUND: no such file; ST_INVALID: it is no ELF file of this class and byte order, or contradicts itself. */
enum st launch_elf_read(const char *path, struct launch_elf *elf, struct err *e);
void launch_elf_release(struct launch_elf *elf);

/* -1, 0, 1. */
int launch_elf_compare_versions(const unsigned a[3], const unsigned b[3]);
/* "2.36" or "2.36.1" at the beginning of text. */
bool launch_elf_parse_version(const char *text, unsigned version[3]);

#endif
