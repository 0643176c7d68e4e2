/* From the file's rows to tiles (kernels/cpu/matmul_priv.h has the byte tables). A segment's columns always start at column 0 of its tile, also where the
 * segment is the second part of a block that a leaf cuts. */
#include <string.h>

#include "base/status.h"
#include "kernels/cpu/matmul_priv.h"

size_t cpu_matrix_bytes(enum format format, enum kern_activation activation, uint64_t n_rows, const struct kern_columns *columns) {
    (void)activation; /* one layout serves both */
    return (size_t)((n_rows + KERN_TILE_ROWS - 1) / KERN_TILE_ROWS) * columns->n_segments * cpu_tile_bytes(format);
}

/* Block: F16 d, F16 m, 16 bytes; column j < 16 is the low nibble of byte j, column 16 + j the high one. */
static void pack_q4_1(uint8_t *tile, uint32_t lane, const uint8_t *block, uint32_t first, uint32_t n) {
    for (uint32_t c = 0; c < n; c++) {
        uint32_t from = first + c;
        uint8_t nibble = from < 16 ? block[4 + from] & 15 : block[4 + from - 16] >> 4;
        uint32_t to = c & 15;
        tile[to / 4 * 64 + lane * 4 + to % 4] |= c < 16 ? nibble : (uint8_t)(nibble << 4);
    }
    memcpy(tile + 256 + 2 * lane, block, 2);
    memcpy(tile + 288 + 2 * lane, block + 2, 2);
}

/* Block: F16 d, 32 int8. */
static void pack_q8_0(uint8_t *tile, uint32_t lane, const uint8_t *block, uint32_t first, uint32_t n) {
    for (uint32_t c = 0; c < n; c++) tile[c / 4 * 64 + lane * 4 + c % 4] = block[2 + first + c] ^ 0x80;
    memcpy(tile + 512 + 2 * lane, block, 2);
}

void cpu_matrix_pack(const struct kern_pack *args) {
    const struct kern_matrix *m = args->matrix;
    const struct kern_columns *c = &m->columns;
    const struct format_info *info = kern_format(m->format);
    size_t tile_bytes = cpu_tile_bytes(m->format);
    BASE_ASSERT(args->row_begin % KERN_TILE_ROWS == 0 && args->row_begin + args->n_rows <= m->n_rows);
    BASE_ASSERT(args->first_column <= c->begin && args->first_column % info->block_columns == 0);

    for (uint64_t row = 0; row < args->n_rows; row += KERN_TILE_ROWS) {
        uint32_t n_lanes = (uint32_t)(args->n_rows - row < KERN_TILE_ROWS ? args->n_rows - row : KERN_TILE_ROWS);
        const uint8_t *src = (const uint8_t *)args->src + row * args->row_stride_bytes;
        uint8_t *tile = (uint8_t *)m->data + (size_t)((args->row_begin + row) / KERN_TILE_ROWS) * c->n_segments * tile_bytes;
        for (uint32_t s = 0; s < c->n_segments; s++, tile += tile_bytes) {
            uint64_t column = c->begin + c->segment_begin[s] - args->first_column; /* in the source row */
            uint32_t n = c->segment_columns[s], first = (uint32_t)(column % info->block_columns);
            const uint8_t *block = src + column / info->block_columns * info->block_bytes;
            memset(tile, 0, tile_bytes);
            if (m->format == FMT_Q8_0) memset(tile, 0x80, 512);
            for (uint32_t lane = 0; lane < n_lanes; lane++, block += args->row_stride_bytes) {
                switch (m->format) {
                case FMT_Q4_1: pack_q4_1(tile, lane, block, first, n); break;
                case FMT_Q8_0: pack_q8_0(tile, lane, block, first, n); break;
                case FMT_F16:
                case FMT_BF16:
                    for (uint32_t i = 0; i < n; i++) memcpy(tile + ((size_t)i * KERN_TILE_ROWS + lane) * 2, block + (size_t)i * 2, 2);
                    break;
                case FMT_F32:
                    for (uint32_t i = 0; i < n; i++) memcpy(tile + ((size_t)i * KERN_TILE_ROWS + lane) * 4, block + (size_t)i * 4, 4);
                    break;
                case FMT_COUNT: break;
                }
            }
        }
    }
}
