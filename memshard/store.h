/* store.h - the cells of a model's tables that one memshard holds, opened and closed at run time.
 *
 * A cell of every table together is an mr_held: the unit that is loaded, unloaded, scrubbed and
 * found bad. With one width slice (W = 1) its rows are a contiguous range and are mapped from the
 * file, that range only, and read once, so that no request waits for a disk. With more, the rows
 * are streamed once and the slice's columns (slice.h) are kept in memory of our own, row after row:
 * short rows tight, rows of 256 bytes and more on cache lines. A part of a file that does not lie
 * on an element boundary is kept the same way. With a tier (tier.h) rows stay in the file and are
 * fetched when asked for. A table that several layers share is held once. The bytes are known
 * before anything is mapped or allocated, and more than the machine has to give is refused with
 * both figures. What is mapped or copied is compared with the checksums the source knows, chunk by
 * chunk; a cell whose rows are found bad later, by the scrubber or by a fault under the mapping, is
 * marked and answers errors from then on.
 * Threads: open and close from one thread at a time; a held cell is immutable in between but for
 * its mark, which any thread may set and read. */
#ifndef MR_MEMSHARD_STORE_H
#define MR_MEMSHARD_STORE_H
#include "common/base/checksum.h"
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "common/ops/gpu.h"
#include "common/ops/ops.h"
#include "common/ops/slice.h"

#include <stdatomic.h>

typedef struct mr_tier mr_tier; /* tier.h */
typedef struct mr_held mr_held;

typedef struct {
    mr_span rows;
    uint32_t column_first, columns;         /* of a value row */
    uint32_t pre_column_first, pre_columns; /* of a pre-value row */
} mr_cell_span;

/* Which part of table a cell is. */
mr_cell_span mr_cell_span_of(const mr_table_shape *table, mr_grid grid, uint32_t cell);

/* How the values or the pre-values of a cell are held: mapped, copied or tiered. */
typedef struct {
    mr_mapping mapping; /* of whole chunks where checksums are known */
    int guard[2];       /* slots of store_guard.h, or -1: mapping, copy */
    mr_checks checks;   /* of the tensor; crc NULL: not known or not wanted */
    mr_chunk_range chunks;
    void *copy;
    size_t copy_bytes;
    uint32_t *copy_crc; /* [chunks of copy_bytes], taken when it was made */
    bool is_tiered;
    uint32_t tier_file;
    uint64_t tensor_first; /* tiered: where in the file the tensor begins, and */
    uint64_t file_first;   /* the first byte of the cell's first row, whole */
    uint64_t row_bytes;    /* of a whole row in the file */
    mr_row_slice slice;    /* what is kept of a row */
    mr_gpu_rows *on_gpu;   /* a copy that is pooled there; NULL: none */
} mr_cell_side;

/* One cell of one table. */
typedef struct {
    mr_cell_span span;
    mr_rows values, pre_values; /* data is NULL where a side is empty or tiered */
    mr_held *held;
    uint32_t table;
    mr_cell_side side[2]; /* values, pre-values */
} mr_cell;

/* Where a side of a table lies. */
typedef struct {
    const char *path; /* borrowed from the source */
    uint64_t offset;  /* of the tensor's first byte */
} mr_file_part;

/* Where tables come from: a model, or memory in tests. All arrays are borrowed until close. */
typedef struct mr_store_source mr_store_source;
struct mr_store_source {
    const mr_memory_layer *const *layers; /* [layer_count] */
    const mr_table_shape *const *tables;  /* [table_count] */
    const mr_table_facts *facts;          /* [table_count] */
    uint32_t layer_count, table_count;
    /* Bytes [first, first + bytes) of a table's values or pre-values. */
    mr_status (*map)(const void *context, mr_mapping *out, uint32_t table, bool pre_values,
                     uint64_t first, uint64_t bytes, mr_err *err);
    const void *context;
    /* The rest may be NULL. Checksums of a side (false: not known), borrowed until close. */
    bool (*checks)(const void *context, mr_checks *out, uint32_t table, bool pre_values);
    /* CRC32C of a cell's side, row after row of its slice (false: not known). */
    bool (*cell_check)(const void *context, uint32_t *out, mr_grid grid, uint32_t table,
                       bool pre_values, uint32_t cell);
    bool is_fetched; /* map brings the bytes to the file first */
    /* The file of a side: for tiers, and for sentences. */
    bool (*file)(const void *context, mr_file_part *out, uint32_t table, bool pre_values);
    /* Instead of map: writes rows of a cell's slice, each stride_bytes after the one before. */
    mr_status (*copy)(const void *context, void *out, size_t stride_bytes, uint32_t table,
                      bool pre_values, mr_grid grid, uint32_t cell, mr_span rows, mr_err *err);
    /* After copied rows turned out wrong: the next copy asks somebody else where it can. */
    void (*again)(const void *context);
    const mr_store_source *base; /* what this one was made of; for its own callbacks */
};

/* A model's tables as a source. model and manifest are borrowed until close. */
typedef struct mr_model_tables mr_model_tables;
mr_status mr_model_tables_open(mr_model_tables **out, const mr_model *model,
                               const mr_manifest *manifest, mr_err *err);
const mr_store_source *mr_model_tables_source(const mr_model_tables *tables);
void mr_model_tables_close(mr_model_tables *tables); /* NULL is fine */

/* --- one cell --------------------------------------------------------------------------------- */

typedef struct {
    mr_tier *tier; /* borrowed until close; NULL: all rows in memory */
    mr_gpu *gpu;   /* borrowed until close: f32 and bf16 rows go there too; or NULL */
    bool no_verify;
} mr_cell_options;

typedef enum {
    MR_HELD_GOOD = 0,
    MR_HELD_FAULTED = 1, /* a page of it could not be read: its file was cut short, or memory broke
                          */
    MR_HELD_BAD = 2,     /* found bad, with a sentence */
} mr_held_state;

struct mr_held {
    uint32_t id; /* of the cell */
    mr_grid grid;
    const mr_store_source *source; /* borrowed until close */
    mr_cell_options options;
    uint64_t bytes;        /* of rows, however they are held */
    _Atomic uint32_t mark; /* mr_held_state */
    _Atomic bool is_named; /* the one who set MR_HELD_BAD owns why */
    mr_err why;            /* written before mark becomes MR_HELD_BAD */
    uint32_t table_count;
    mr_cell tables[]; /* [table_count] */
};

/* What a cell, or a shard, will hold before it does. */
typedef struct {
    uint64_t mapped_bytes, kept_bytes; /* of files; of memory of our own */
    uint64_t tiered_bytes;             /* left in files */
    uint64_t rows;                     /* whole or sliced, over all tables */
    uint32_t cell_count;
} mr_store_plan;

/* options NULL: none. source is borrowed until close. A cell outside the grid is MR_ERR_RANGE. */
mr_status mr_held_plan(mr_store_plan *out, const mr_store_source *source, mr_grid grid,
                       uint32_t cell, const mr_cell_options *options, mr_err *err);
mr_status mr_held_open(mr_held **out, const mr_store_source *source, mr_grid grid, uint32_t cell,
                       const mr_cell_options *options, mr_err *err);
void mr_held_close(mr_held *held); /* NULL is fine; nobody may be reading it */

/* The first sentence is kept. Any thread. */
void mr_held_mark_bad(mr_held *held, const mr_err *why);
/* MR_OK, or MR_ERR_IO with the reason: what was read since the last call may not be used. */
mr_status mr_held_check(const mr_held *held, mr_err *err);
static inline bool mr_held_is_good(const mr_held *held) {
    return atomic_load_explicit(&held->mark, memory_order_acquire) == MR_HELD_GOOD;
}
static inline const mr_cell *mr_held_cell(const mr_held *held, uint32_t table) {
    return table < held->table_count ? &held->tables[table] : NULL;
}

/* --- rows of a cell --------------------------------------------------------------------------- */

/* Room that grows to the largest request and is kept; zero it before its first use. One request at
 * a time. */
typedef struct {
    void *memory;
    size_t bytes;
} mr_fetch_scratch;
void mr_fetch_scratch_free(mr_fetch_scratch *scratch);

/* Rows to compute with. In memory: the cell's own rows and row itself, at no cost. Tiered: the rows
 * asked for, each distinct one read once, packed in scratch, and ids into them; valid until scratch
 * is used again. row: [entries], all inside the cell. A row that cannot be read, or a bad cell, is
 * an error. Ask mr_held_check again once the rows have been used: a mapped file may be cut short
 * meanwhile. */
mr_status mr_cell_fetch(const mr_cell *cell, bool pre_values, const uint32_t *row, uint32_t entries,
                        mr_fetch_scratch *scratch, mr_rows *rows_out, const uint32_t **row_out,
                        mr_err *err);
/* Asks for rows that will be fetched soon; a wish, dropped where there is nothing to gain. Ids
 * outside the cell are skipped. */
void mr_cell_prefetch(const mr_cell *cell, const uint32_t *row, uint32_t entries);

/* Where the next piece to compare again is: zero it to begin. */
typedef struct {
    uint32_t table, side;
    uint64_t chunk;
} mr_scrub_cursor;

/* Compares one chunk with its checksum. MR_ERR_CANCELLED: all were compared, the cursor is at the
 * beginning. MR_ERR_IO: the cell is bad, and marked. room: mr_held_scrub_room bytes, page-aligned.
 */
size_t mr_held_scrub_room(const mr_held *held);
mr_status mr_held_scrub(mr_held *held, mr_scrub_cursor *cursor, void *room, uint64_t *bytes,
                        mr_err *err);

/* --- cells index, index + M, .. of a grid: what a shard of a static cluster holds ------------- */

typedef struct {
    mr_grid grid;
    uint32_t cell_count, table_count;
    uint32_t *cell_ids; /* [cell_count], ascending: index, index + M, .. */
    mr_held **held;     /* [cell_count] */
} mr_store;

/* Cell c lies on shard c mod shard_count. More shards than cells are refused with the smallest grid
 * that fits. */
mr_status mr_store_plan_of(mr_store_plan *out, const mr_store_source *source, mr_grid grid,
                           uint32_t shard_index, uint32_t shard_count, mr_err *err);
/* *out is filled by init and emptied by free; after a failure it is empty. options may be NULL. */
mr_status mr_store_init(mr_store *out, const mr_store_source *source, mr_grid grid,
                        uint32_t shard_index, uint32_t shard_count, const mr_cell_options *options,
                        mr_err *err);
void mr_store_free(mr_store *store);

/* NULL: the cell is not held here. */
const mr_cell *mr_store_cell(const mr_store *store, uint32_t table, uint32_t cell);

/* Bytes this process may still take: MemAvailable, or less where a cgroup allows less. UINT64_MAX
 * when the system does not say. */
uint64_t mr_memory_available(void);
/* MR_ERR_NOMEM with both figures when plan needs more than available_bytes. */
mr_status mr_store_fits(const mr_store_plan *plan, uint64_t available_bytes, mr_err *err);

#endif
