#include "launcher/elf.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file in memory. */
struct image {
    const unsigned char *bytes;
    uint64_t n;
    const char *path;
    const ElfW(Phdr) *headers;
    int n_headers;
};

/* Address of size bytes at a place of the file; NULL: not all of them lie in it. Structures in these files are aligned, but nobody promises it: a misaligned one is refused. */
static const void *at(const struct image *m, uint64_t offset, uint64_t size, uint64_t alignment)
{
    return offset <= m->n && size <= m->n - offset && offset % alignment == 0 ? m->bytes + offset : NULL;
}

/* The same for an address of the loaded program. *left: bytes of the file behind it in that segment. */
static const void *at_address(const struct image *m, uint64_t address, uint64_t size, uint64_t alignment, uint64_t *left)
{
    for (int i = 0; i < m->n_headers; i++) {
        const ElfW(Phdr) *h = &m->headers[i];
        if (h->p_type != PT_LOAD || address < h->p_vaddr || address - h->p_vaddr >= h->p_filesz)
            continue;
        const uint64_t into = address - h->p_vaddr, rest = h->p_filesz - into, offset = h->p_offset + into;
        if (offset < into || size > rest)
            return NULL;
        if (left)
            *left = offset < m->n ? (rest < m->n - offset ? rest : m->n - offset) : 0;
        return at(m, offset, size, alignment);
    }
    return NULL;
}

int launch_elf_compare_versions(const unsigned a[3], const unsigned b[3])
{
    for (int i = 0; i < 3; i++)
        if (a[i] != b[i])
            return a[i] < b[i] ? -1 : 1;
    return 0;
}

bool launch_elf_parse_version(const char *text, unsigned version[3])
{
    unsigned v[3] = {0};
    if (*text < '0' || *text > '9' || sscanf(text, "%4u.%4u.%4u", &v[0], &v[1], &v[2]) < 2)
        return false;
    memcpy(version, v, sizeof v);
    return true;
}

static const char *string_at(const char *strings, uint64_t n_strings, uint64_t offset)
{
    return offset < n_strings && memchr(strings + offset, 0, n_strings - offset) ? strings + offset : NULL;
}

/* Names like GLIBC_2.34. GLIBC_ABI_DT_RELR marks packed relocations, which 2.36 learned; other names (GLIBC_PRIVATE) say nothing. */
static void take_version(struct launch_elf *elf, const char *name)
{
    unsigned v[3];
    if (strncmp(name, "GLIBC_", 6) != 0)
        return;
    if (!launch_elf_parse_version(strcmp(name + 6, "ABI_DT_RELR") == 0 ? "2.36" : name + 6, v))
        return;
    if (launch_elf_compare_versions(v, elf->glibc) > 0)
        memcpy(elf->glibc, v, sizeof v);
}

static bool read_versions(const struct image *m, uint64_t address, uint64_t n_files, const char *strings, uint64_t n_strings, struct launch_elf *elf)
{
    for (uint64_t f = 0; f < n_files && f < 1024; f++) {
        const ElfW(Verneed) *need = at_address(m, address, sizeof *need, 4, NULL);
        if (!need)
            return false;
        uint64_t aux = address + need->vn_aux;
        for (unsigned i = 0; i < need->vn_cnt; i++) {
            const ElfW(Vernaux) *v = at_address(m, aux, sizeof *v, 4, NULL);
            const char *name = v ? string_at(strings, n_strings, v->vna_name) : NULL;
            if (!name)
                return false;
            take_version(elf, name);
            if (!v->vna_next)
                break;
            aux += v->vna_next;
        }
        if (!need->vn_next)
            break;
        address += need->vn_next;
    }
    return true;
}

static bool read_dynamic(const struct image *m, const ElfW(Phdr) *dynamic, struct launch_elf *elf)
{
    const uint64_t n = dynamic->p_filesz / sizeof(ElfW(Dyn));
    const ElfW(Dyn) *d = at(m, dynamic->p_offset, n * sizeof *d, sizeof(ElfW(Addr)));
    uint64_t strings_at = 0, strings_bytes = 0, needs_at = 0, n_needs = 0, run_path = UINT64_MAX, old_path = UINT64_MAX;
    if (!d)
        return false;
    for (uint64_t i = 0; i < n && d[i].d_tag != DT_NULL; i++)
        switch (d[i].d_tag) {
        case DT_STRTAB: strings_at = d[i].d_un.d_ptr; break;
        case DT_STRSZ: strings_bytes = d[i].d_un.d_val; break;
        case DT_VERNEED: needs_at = d[i].d_un.d_ptr; break;
        case DT_VERNEEDNUM: n_needs = d[i].d_un.d_val; break;
        case DT_RUNPATH: run_path = d[i].d_un.d_val; break;
        case DT_RPATH: old_path = d[i].d_un.d_val; break;
        default: break;
        }
    const char *strings = at_address(m, strings_at, strings_bytes, 1, NULL);
    if (!strings)
        return strings_bytes == 0 && n == 0;
    for (uint64_t i = 0; i < n && d[i].d_tag != DT_NULL; i++) {
        if (d[i].d_tag != DT_NEEDED)
            continue;
        const char *name = string_at(strings, strings_bytes, d[i].d_un.d_val);
        if (!name || elf->n_needed == LAUNCH_ELF_NEEDED)
            return false;
        elf->needed[elf->n_needed] = strdup(name);
        if (!elf->needed[elf->n_needed])
            return false;
        elf->n_needed++;
    }
    const char *paths = string_at(strings, strings_bytes, run_path != UINT64_MAX ? run_path : old_path);
    elf->run_path = paths ? strdup(paths) : NULL;
    return !needs_at || read_versions(m, needs_at, n_needs, strings, strings_bytes, elf);
}

static bool read_image(struct image *m, struct launch_elf *elf)
{
    const ElfW(Ehdr) *h = at(m, 0, sizeof *h, 1);
    const uint16_t one = 1;
    const int order = *(const unsigned char *)&one ? ELFDATA2LSB : ELFDATA2MSB, class = sizeof(ElfW(Addr)) == 8 ? ELFCLASS64 : ELFCLASS32;
    if (!h || memcmp(h->e_ident, ELFMAG, SELFMAG) != 0 || h->e_ident[EI_CLASS] != class || h->e_ident[EI_DATA] != order || h->e_phentsize != sizeof(ElfW(Phdr)))
        return false;
    elf->machine = h->e_machine;
    elf->class = h->e_ident[EI_CLASS];
    m->n_headers = h->e_phnum;
    m->headers = at(m, h->e_phoff, (uint64_t)h->e_phnum * sizeof *m->headers, sizeof(ElfW(Addr)));
    if (!m->headers)
        return false;
    for (int i = 0; i < m->n_headers; i++)
        if (m->headers[i].p_type == PT_DYNAMIC)
            return read_dynamic(m, &m->headers[i], elf);
    return true; /* a static program needs nothing */
}

enum st launch_elf_read(const char *path, struct launch_elf *elf, struct err *e)
{
    *elf = (struct launch_elf){0};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set(e, errno == ENOENT ? ST_NOT_FOUND : ST_IO, "%s: %s", path, strerror(errno));
    struct stat info;
    struct image m = {.path = path};
    void *map = MAP_FAILED;
    if (fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0)
        map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (map == MAP_FAILED)
        return err_set(e, ST_INVALID, "%s: is no file that can be read", path);
    m.bytes = map;
    m.n = (uint64_t)info.st_size;
    elf->path = strdup(path);
    const bool good = elf->path && read_image(&m, elf);
    munmap(map, (size_t)info.st_size);
    if (good)
        return ST_OK;
    launch_elf_release(elf);
    return err_set(e, ST_INVALID, "%s: is no program or library for this machine, or is damaged", path);
}

void launch_elf_release(struct launch_elf *elf)
{
    for (int i = 0; i < elf->n_needed; i++)
        free(elf->needed[i]);
    free(elf->path);
    free(elf->run_path);
    *elf = (struct launch_elf){0};
}
