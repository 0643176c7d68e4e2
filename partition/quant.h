/* How the matrices of a safetensors checkpoint are stored: of which tensors each is put together, and what quantization_config says about it.
 *
 * quant_read (once a checkpoint) → quant_scheme_of (each matrix) → quant_report. Spellings, and what each becomes: docs/formats.md.
 * The tensors that are there decide: a module's scheme follows from the names, types and shapes beside its codes. The configuration is read for what shapes cannot tell (the two
 * conventions of GPTQ's zero points), is refused where it names a method that nobody here knows, and is told in a line where it contradicts the tensors.
 * Sources: ModelOpt's and compressed-tensors' public code, AutoGPTQ's and AutoAWQ's packing, DeepSeek-V3's reference inference code. One thread; everything lives in the arena. */
#ifndef PARTITION_QUANT_H
#define PARTITION_QUANT_H

#include "base/arena.h"
#include "partition/checkpoint.h"

#define QUANT_MAX_SOURCES 3

enum quant_role {
    QUANT_BLOCKS,      /* rows of blocks of the scheme's format, as the kernels read them: no codes, scales or zero points beside it */
    QUANT_NUMBERS,     /* plain numbers, which the loader rounds to the scheme's format (FP8, a scale a row): the only source then */
    QUANT_CODES,
    QUANT_SCALES,
    QUANT_ZEROS,       /* zero points */
    QUANT_TENSOR_SCALE /* one F32 for the whole tensor */
};

/* Which part of its tensors a matrix is, where they hold more than one: a plane of [planes, rows, columns] (an expert), of it every step-th row from phase on (gate and up, row by row),
 * or its transpose (BF16 experts, input dimension first). All zero: the tensors are the matrix. */
struct quant_view {
    uint64_t plane, n_planes; /* n_planes 0: the tensors have no such axis */
    uint64_t phase, step;     /* step 0 is 1 */
    bool transposed;          /* the tensor is [planes, columns, rows]; plain numbers only */
};

/* One tensor of a matrix [rows, columns] (of out × in; fused ones whole). An element of it covers row_unit rows and column_unit columns, the last ones perhaps in part. */
struct quant_source {
    const struct ck_tensor *tensor;
    enum quant_role role;
    uint64_t row_unit, column_unit;
    uint32_t element_bytes;
    bool all_columns; /* every rank reads all of them, whichever columns it holds */
    bool transposed; /* rows lie next to each other in the file, else columns */
    uint64_t offset, row_stride, column_stride; /* bytes: element [i, j] lies at offset + i · row_stride + j · column_stride of the tensor */
    /* QUANT_CODES and QUANT_ZEROS: an element holds 8 · element_bytes / bits numbers, the first in its lowest bits */
    uint8_t bits;
    bool along_rows;  /* they follow each other along the rows, else along the columns */
    bool interleaved; /* AWQ: of eight along the rows number i stands at place 0 4 1 5 2 6 3 7 */
    bool is_signed;   /* two's complement; else, where the format's numbers are signed, 2^(bits−1) is added */
};

struct quant_scheme {
    const char *name;       /* for people: "NVFP4 of ModelOpt"; NULL: a tensor in the format that it is stored in */
    enum format format;     /* what the kernels get */
    uint32_t scale_columns; /* as kern_matrix has it; 0 where the format knows */
    uint64_t rows, columns; /* of the whole */
    struct quant_view view;
    bool divides;           /* by the tensor scale, instead of multiplying */
    const struct ck_tensor *input_scale; /* pre_quant_scale: inputs are multiplied by it before they meet the matrix, by whoever builds the program, who looks at its shape too; NULL: they are not */
    bool zero_plus_one;     /* GPTQ's first convention: a zero point is stored less one, modulo 2^bits */
    /* Act-order (GPTQ's desc_act, compressed-tensors' actorder): the group of each column, where they do not ascend; NULL: column / group. */
    const int32_t *group_of;
    const struct ck_tensor *group_tensor; /* that says so */
    uint64_t group_hash;
    uint32_t n_sources;
    struct quant_source sources[QUANT_MAX_SOURCES]; /* the codes first */
};

struct quant;

/* config.json's quantization_config, or compression_config as compressed-tensors called it once; NULL: neither. */
const json_t *quant_section(const json_t *config);

/* config: the parsed config.json. ST_UNSUPPORTED names an unknown method and lists the known ones; ST_INVALID names a malformed key. GGUF: *q is NULL. */
enum st quant_read(const struct checkpoint *ck, const json_t *config, struct arena *arena, struct quant **q, struct err *e);

/* The tensor that holds a module's numbers or codes: MODULE.weight, MODULE.weight_packed, MODULE.qweight, MODULE_blocks (GPT-OSS's experts) or MODULE itself (theirs in BF16); NULL: none. */
const struct ck_tensor *quant_codes(const struct checkpoint *ck, const char *module);
/* Outputs of the matrix that these codes belong to; 0: its tensors do not tell. */
uint64_t quant_rows(const struct checkpoint *ck, const struct ck_tensor *codes);
/* Its inputs too, for who has no model that would say; 0: its tensors do not tell. Of packed words of compressed-tensors weight_shape is read, of others shapes suffice. */
uint64_t quant_columns(const struct checkpoint *ck, const struct ck_tensor *codes);
/* Whether t is codes, so that a module's numbers must be put together. */
bool quant_is_codes(const struct ck_tensor *t);
/* Whether t stands beside codes and belongs to them: scales, zero points, orders of columns. */
bool quant_is_part(const struct checkpoint *ck, const struct ck_tensor *t);

/* Whether a tensor's name says that it stands beside weights and says nothing about them: scales of activations and of the KV cache, which this build chooses itself, shapes that the
 * configuration gives, and orders of columns that are the usual one (another is in the scheme). */
bool quant_is_beside(const char *name);

/* The scheme of the matrix [rows, columns] whose codes these are, or that view of theirs (NULL: they are the matrix). Tensors are missing or too many, of a wrong type or shape: ST_INVALID or ST_UNSUPPORTED, one sentence with the
 * tensor's name. q may be NULL (GGUF). */
enum st quant_scheme_of(const struct checkpoint *ck, struct quant *q, const struct ck_tensor *codes, uint64_t rows, uint64_t columns, const struct quant_view *view,
                        struct arena *arena, const struct quant_scheme **scheme, struct err *e);

/* Numbers along an axis of the tensors for each of the view's: planes, and rows. */
static inline uint64_t quant_view_planes(const struct quant_view *v) { return v->n_planes ? v->n_planes : 1; }
static inline uint64_t quant_view_step(const struct quant_view *v) { return v->step ? v->step : 1; }

/* Whether the configuration says that the module is quantised: exclude and ignore lists (exact names, wildcards, "re:" patterns, fused names for their parts and the reverse),
 * targets of its groups. */
bool quant_expects(const struct quant *q, const char *module);

/* Warns of what contradicted the tensors, a line for each kind. */
void quant_report(const struct quant *q);

#endif
