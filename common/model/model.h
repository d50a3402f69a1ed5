/* model.h - an opened model directory: configuration, tensors, and the geometry of its memory.
 *
 * Opening reads config.json and the headers of the safetensors files, checks every tensor the
 * architecture needs (name, type, shape), and maps nothing. Tensor bytes are mapped on demand, the
 * part that is asked for only, so that a shard never maps more than it holds.
 * Threads: open and close from one thread; everything else only reads. */
#ifndef MR_MODEL_MODEL_H
#define MR_MODEL_MODEL_H
#include "common/base/hash.h"
#include "common/model/config.h"
#include "common/model/dtype.h"

typedef struct mr_model mr_model;

enum { MR_NO_FILE = 0x7fffffff };

typedef struct mr_tensor {
    char *name;
    mr_dtype dtype;
    uint32_t dims;
    uint64_t shape[MR_MAX_TENSOR_DIMS];
    uint32_t file;   /* which of the model's safetensors files; MR_NO_FILE: see panels.h */
    uint64_t offset; /* of the first byte in that file */
    uint64_t bytes;
    /* What its numbers are (rows.h); set when a model is opened. */
    mr_storage storage;
    uint64_t columns;               /* numbers in a row; 0: no numbers, or panels */
    const struct mr_tensor *scales; /* of an F8_E4M3 tensor, else NULL */
} mr_tensor;

/* A physical value table. v1 and pkm have one per memory layer, v2 and memory_plus one in all. */
typedef struct {
    const mr_tensor *values;     /* [rows][width] */
    const mr_tensor *pre_values; /* [rows][pre_width], or NULL */
    uint64_t rows;               /* < 2^32 */
    uint32_t width, pre_width;
    mr_storage storage, pre_storage; /* how values and pre-values are stored */
} mr_table_shape;

/* One memory layer, in map order: all that follows from config and tensors.
 * Letters as in docs/MODELS.md: n, P, A, kx, R, M, K. */
typedef struct {
    uint32_t table;                /* index of its mr_table_shape */
    uint32_t source, destination;  /* blocks */
    uint32_t heads, knn, entries;  /* K = heads * knn */
    uint32_t keys_per_side;        /* n */
    uint32_t key_dim, rank, cores; /* kdim, R (1 where there is none), M (1) */
    uint64_t reach_rows;           /* P: rows this layer can address */
    uint64_t row_offset;           /* v2: layer * knum^2; else 0 */
    uint32_t slots;                /* expansion slots of an index (E or kx^2; 1) */
    uint32_t slots_out;            /* slots of the answer: slots, or 1 where they are summed */
    bool shuffled, gated, gelu;
} mr_memory_layer;

mr_status mr_model_open(mr_model **out, const char *directory, mr_err *err);
void mr_model_close(mr_model *model); /* NULL is fine */

const mr_config *mr_model_config(const mr_model *model);
const char *mr_model_directory(const mr_model *model);
const char *mr_model_name(const mr_model *model); /* last part of the directory's path */
const mr_tensor *mr_model_find(const mr_model *model, const char *name); /* NULL: not there */
uint32_t mr_model_tensor_count(const mr_model *model);
const mr_tensor *mr_model_tensor(const mr_model *model, uint32_t index);
const char *mr_model_file(const mr_model *model, const mr_tensor *tensor); /* path */

uint32_t mr_model_table_count(const mr_model *model);
const mr_table_shape *mr_model_table(const mr_model *model, uint32_t table);
uint32_t mr_model_memory_count(const mr_model *model);
const mr_memory_layer *mr_model_memory(const mr_model *model, uint32_t layer);

/* SHA-256 over config.json, every safetensors header, and each file's size and modification time:
 * cheap, and changes whenever the files do. It keys the manifest; the manifest holds the digest of
 * the content. */
mr_digest mr_model_fingerprint(const mr_model *model);

/* A read-only mapping of bytes [first, first + bytes) of a tensor. */
typedef struct {
    const uint8_t *data; /* the asked-for bytes; aligned as the file is */
    void *base;
    size_t base_bytes;
} mr_mapping;
mr_status mr_tensor_map(mr_mapping *out, const mr_model *model, const mr_tensor *tensor,
                        uint64_t first, uint64_t bytes, mr_err *err);
void mr_mapping_close(mr_mapping *mapping);
/* The bytes of a tensor in a mapping of its whole file that lasts as long as the model: for weights
 * that are used as they lie. One mapping a file, since one for each of tens of thousands of experts
 * would meet the kernel's limit; pages are read when they are touched. Any thread. */
mr_status mr_tensor_borrow(const void **out, const mr_model *model, const mr_tensor *tensor,
                           mr_err *err);

/* A model whose files are only there in part (source.h): called by mr_tensor_map, in any thread,
 * before bytes [first, first + bytes) of a tensor are mapped; returns when they are there. Set
 * once, right after open. */
typedef mr_status (*mr_model_fetch)(void *context, const mr_tensor *tensor, uint64_t first,
                                    uint64_t bytes, mr_err *err);
void mr_model_set_fetch(mr_model *model, mr_model_fetch fetch, void *context);
bool mr_model_is_fetched(const mr_model *model);

#endif
