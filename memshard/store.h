/* store.h - the cells one memshard holds of every table of a model.
 *
 * With one width slice (W = 1) a cell is a contiguous range of rows and is mapped from the file,
 * that range only, and read once, so that no request waits for a disk. With more, the rows are
 * streamed once and the slice's columns are kept in memory of our own, row after row: short rows
 * tight, rows of 256 bytes and more on cache lines. A part of a file that does not lie on an
 * element boundary is kept the same way. A table that several layers share is held once. The bytes
 * are known before anything is mapped or allocated, and more than the machine has to give is
 * refused with both figures. Threads: open and close from one thread; the cells are immutable in
 * between. */
#ifndef MR_MEMSHARD_STORE_H
#define MR_MEMSHARD_STORE_H
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "common/ops/ops.h"

typedef struct {
    mr_span rows;
    uint32_t column_first, columns;         /* of a value row */
    uint32_t pre_column_first, pre_columns; /* of a pre-value row */
} mr_cell_span;

/* Which part of table a cell is. */
mr_cell_span mr_cell_span_of(const mr_table_shape *table, mr_grid grid, uint32_t cell);

/* One cell of one table. */
typedef struct {
    mr_cell_span span;
    mr_rows values, pre_values; /* data is NULL where a side is empty */
    mr_mapping mapping[2];      /* values, pre-values: mapped, or */
    void *copy[2];              /* kept: */
    size_t copy_bytes[2];
} mr_cell;

/* Where tables come from: a model, or memory in tests. All arrays are borrowed until close. */
typedef struct {
    const mr_memory_layer *const *layers; /* [layer_count] */
    const mr_table_shape *const *tables;  /* [table_count] */
    const mr_table_facts *facts;          /* [table_count] */
    uint32_t layer_count, table_count;
    /* Bytes [first, first + bytes) of a table's values or pre-values. */
    mr_status (*map)(const void *context, mr_mapping *out, uint32_t table, bool pre_values,
                     uint64_t first, uint64_t bytes, mr_err *err);
    const void *context;
} mr_store_source;

typedef struct {
    mr_grid grid;
    uint32_t cell_count, table_count;
    uint32_t *cell_ids; /* [cell_count], ascending: index, index + M, .. */
    mr_cell *cells;     /* [table_count][cell_count] */
} mr_store;

/* What a shard will hold, before it does. */
typedef struct {
    uint64_t mapped_bytes, kept_bytes; /* of files; of memory of our own */
    uint64_t rows;                     /* whole or sliced, over all tables */
    uint32_t cell_count;
} mr_store_plan;

/* Cell c lies on shard c mod shard_count. More shards than cells are refused with the smallest grid
 * that fits. */
mr_status mr_store_plan_of(mr_store_plan *out, const mr_store_source *source, mr_grid grid,
                           uint32_t shard_index, uint32_t shard_count, mr_err *err);
/* *out is filled by init and emptied by free; after a failure it is empty. */
mr_status mr_store_init(mr_store *out, const mr_store_source *source, mr_grid grid,
                        uint32_t shard_index, uint32_t shard_count, mr_err *err);
void mr_store_free(mr_store *store);

/* NULL: the cell is not held here. */
const mr_cell *mr_store_cell(const mr_store *store, uint32_t table, uint32_t cell);

/* Bytes this process may still take: MemAvailable, or less where a cgroup allows less. UINT64_MAX
 * when the system does not say. */
uint64_t mr_memory_available(void);
/* MR_ERR_NOMEM with both figures when plan needs more than available_bytes. */
mr_status mr_store_fits(const mr_store_plan *plan, uint64_t available_bytes, mr_err *err);

#endif
