/* Feeds LLVMFuzzerTestOneInput with seeds and mutations of seeds, without help from the compiler: no coverage guides it, so good
 * seeds matter. With clang's libFuzzer the same files can be linked instead of this one.
 *
 * usage: NAME_fuzz [-seconds=10] [-runs=N] [-seed=N] [FILE or directory of seeds …]
 * The input that crashes is written to crash-NAME_fuzz; give it as the only FILE with -runs=0 to see it again. */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/rng.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);
/* There only when linked with a sanitizer. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

enum { MAX_SEEDS = 4096, MAX_SEED_BYTES = 1 << 20, MAX_GROWTH = 4096, HANG_S = 10 };

struct input {
    uint8_t *data;
    size_t bytes;
};
static struct input seeds[MAX_SEEDS];
static int n_seeds;

/* --- The input of the moment, for whoever dies over it --- */
static const uint8_t *current;
static size_t current_bytes;
static char crash_name[256];

static void save_current(void) {
    int fd = open(crash_name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0) return;
    ssize_t n = write(fd, current, current_bytes);
    close(fd);
    if (n < 0) return;
    static const char note[] = "the input that did it was saved as crash-*\n";
    n = write(STDERR_FILENO, note, sizeof note - 1);
    (void)n;
}
static void on_signal(int number) {
    save_current();
    signal(number, SIG_DFL);
    raise(number);
}

static void try_input(const uint8_t *data, size_t bytes) {
    /* An exact copy, so that a sanitizer sees the first byte that is read too far. */
    uint8_t *copy = malloc(bytes ? bytes : 1);
    if (!copy) exit(1);
    memcpy(copy, data, bytes);
    current = copy;
    current_bytes = bytes;
    alarm(HANG_S);
    LLVMFuzzerTestOneInput(copy, bytes);
    alarm(0);
    free(copy);
}

/* --- Seeds --- */
static void read_seeds(const char *path) {
    struct stat st;
    if (stat(path, &st) != 0) return; /* a fuzzer may have none */
    if (S_ISDIR(st.st_mode)) {
        struct dirent **entries;
        int n = scandir(path, &entries, NULL, alphasort); /* sorted: a run can be repeated by its seed */
        for (int i = 0; i < n; i++) {
            char name[4096];
            snprintf(name, sizeof name, "%s/%s", path, entries[i]->d_name);
            if (entries[i]->d_name[0] != '.') read_seeds(name);
            free(entries[i]);
        }
        if (n >= 0) free(entries);
        return;
    }
    if (n_seeds == MAX_SEEDS) return;
    FILE *f = fopen(path, "rb");
    if (!f) return;
    uint8_t *data = malloc(MAX_SEED_BYTES);
    if (!data) exit(1);
    size_t bytes = fread(data, 1, MAX_SEED_BYTES, f);
    fclose(f);
    seeds[n_seeds++] = (struct input){data, bytes};
}

/* --- Mutations --- */
static size_t mutate(struct base_rng *rng, uint8_t *data, size_t bytes, size_t capacity) {
    static const uint64_t interesting[] = {0,          1,          7,         8,          0x7f,        0x80,
                                           0xff,       0x7fff,     0xffff,    0x7fffffff, 0x80000000u, 0xffffffffu,
                                           1ull << 32, 1ull << 40, INT64_MAX, 1ull << 63, UINT64_MAX,  UINT64_MAX - 7};
    uint32_t n = 1u + base_rng_below(rng, 6);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t kind = base_rng_below(rng, 8);
        if (bytes == 0) kind = 4;
        size_t at = bytes ? base_rng_below(rng, (uint32_t)bytes) : 0;
        size_t length = 1u + base_rng_below(rng, base_rng_below(rng, 4) ? 8 : 64);
        if (kind != 4 && length > bytes - at) length = bytes - at;
        switch (kind) {
        case 0: data[at] ^= (uint8_t)(1u << base_rng_below(rng, 8)); break;
        case 1: data[at] = (uint8_t)base_rng_u32(rng); break;
        case 2:
        case 3: { /* a length or an offset becomes absurd */
            uint64_t value = interesting[base_rng_below(rng, sizeof interesting / sizeof interesting[0])];
            size_t width = (size_t)1 << base_rng_below(rng, 4);
            if (base_rng_below(rng, 2)) at = at / width * width;
            memcpy(data + at, &value, width < bytes - at ? width : bytes - at);
            break;
        }
        case 4: /* insert */
            if (bytes + length > capacity) break;
            memmove(data + at + length, data + at, bytes - at);
            for (size_t j = 0; j < length; j++) data[at + j] = (uint8_t)base_rng_u32(rng);
            bytes += length;
            break;
        case 5: /* delete */
            memmove(data + at, data + at + length, bytes - at - length);
            bytes -= length;
            break;
        case 6: { /* repeat a part elsewhere */
            size_t to = base_rng_below(rng, (uint32_t)bytes);
            memmove(data + to, data + at, length < bytes - to ? length : bytes - to);
            break;
        }
        default: bytes = base_rng_below(rng, 8) ? bytes : at; break; /* cut off, more rarely */
        }
    }
    return bytes;
}

int main(int argc, char **argv) {
    uint64_t seconds = 10, seed = 1;
    int64_t n_runs = -1;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "-seconds=", 9) == 0)
            seconds = strtoull(argv[i] + 9, NULL, 10);
        else if (strncmp(argv[i], "-runs=", 6) == 0)
            n_runs = strtoll(argv[i] + 6, NULL, 10);
        else if (strncmp(argv[i], "-seed=", 6) == 0)
            seed = strtoull(argv[i] + 6, NULL, 10);
        else
            read_seeds(argv[i]);
    }
    const char *slash = strrchr(argv[0], '/');
    snprintf(crash_name, sizeof crash_name, "crash-%s", slash ? slash + 1 : argv[0]);
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGALRM};
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(save_current);
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++)
        if (!__sanitizer_set_death_callback || deadly[i] == SIGALRM || deadly[i] == SIGABRT) signal(deadly[i], on_signal);

    for (int i = 0; i < n_seeds; i++) try_input(seeds[i].data, seeds[i].bytes);
    try_input((const uint8_t *)"", 0);

    uint8_t *data = malloc(MAX_SEED_BYTES + MAX_GROWTH);
    if (!data) return 1;
    struct base_rng rng;
    base_rng_init(&rng, seed);
    uint64_t end_ns = base_now_ns(base_clock_real()) + seconds * BASE_NS_PER_S;
    int64_t n_done = 0;
    while (n_runs < 0 ? base_now_ns(base_clock_real()) < end_ns : n_done < n_runs) {
        size_t bytes = 0;
        if (n_seeds) {
            const struct input *from = &seeds[base_rng_below(&rng, (uint32_t)n_seeds)];
            memcpy(data, from->data, from->bytes);
            bytes = from->bytes;
        }
        bytes = mutate(&rng, data, bytes, MAX_SEED_BYTES + MAX_GROWTH);
        try_input(data, bytes);
        n_done++;
    }
    printf("%lld inputs made from %d seeds (-seed=%llu)\n", (long long)n_done, n_seeds, (unsigned long long)seed);
    free(data);
    for (int i = 0; i < n_seeds; i++) free(seeds[i].data);
    return 0;
}
