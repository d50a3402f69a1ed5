/* store_cell.c - one cell of every table: mapped, copied or left in its file; see store.h. */
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "memshard/store.h"
#include "memshard/store_guard.h"
#include "memshard/tier.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    LINE_BYTES = 64,
    ALIGNED_ROW_BYTES = 256, /* rows from this size on start on a cache line */
    WINDOW_BYTES = 64 << 20, /* of the file that is mapped at a time while streaming */
    HUGE_PAGE_BYTES = 2 << 20,
};

mr_cell_span mr_cell_span_of(const mr_table_shape *table, mr_grid grid, uint32_t cell) {
    const uint32_t group = cell / grid.width_slices, slice = cell % grid.width_slices;
    const mr_span columns = mr_grid_part(table->width, grid.width_slices, slice);
    const mr_span pre = mr_grid_part(table->pre_width, grid.width_slices, slice);
    return (mr_cell_span){
        .rows = mr_grid_part(table->rows, grid.row_groups, group),
        .column_first = (uint32_t)columns.first,
        .columns = (uint32_t)columns.count,
        .pre_column_first = (uint32_t)pre.first,
        .pre_columns = (uint32_t)pre.count,
    };
}

/* --- one side (values or pre-values) of one cell ---------------------------------------------- */

typedef struct {
    mr_held *held;
    mr_cell *cell;
    mr_cell_side *kept;
    uint32_t table;
    bool is_pre;
    mr_span rows;
    mr_row_slice slice;
    uint32_t element_bytes; /* what a row in memory is aligned to */
    uint64_t row_bytes;     /* of a whole row */
    uint64_t stride;        /* bytes from row to row as kept */
    mr_checks checks;       /* crc NULL: none */
} side;

static side side_of(const mr_table_shape *t, uint32_t table, const mr_cell_span *span,
                    bool is_pre) {
    side s = {.table = table, .is_pre = is_pre, .rows = span->rows};
    const mr_storage storage = is_pre ? t->pre_storage : t->storage;
    const uint32_t width = is_pre ? t->pre_width : t->width;
    s.slice = is_pre ? mr_row_slice_of(storage, width, span->pre_column_first, span->pre_columns)
                     : mr_row_slice_of(storage, width, span->column_first, span->columns);
    s.element_bytes = storage.block ? 1 : mr_element_bytes(storage.element);
    s.row_bytes = mr_storage_bytes(storage, width);
    s.stride = s.slice.bytes;
    if (s.slice.bytes < s.row_bytes && s.stride >= ALIGNED_ROW_BYTES)
        s.stride = (s.stride + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
    return s;
}

static bool is_whole(const side *s) {
    return s->slice.bytes == s->row_bytes;
}

/* rows < 2^32 and rows of up to 2^34 bytes: 66 bits in theory, so it is checked. */
static bool side_bytes(uint64_t *out, const side *s) {
    *out = 0;
    return !mr_mul_overflows(s->rows.count, s->stride, out) && *out < SIZE_MAX / 2;
}

static const char *path_of(const side *s) {
    mr_file_part part = {.path = NULL};
    const mr_store_source *source = s->held->source;
    if (!source->file || !source->file(source->context, &part, s->table, s->is_pre) || !part.path)
        return "the table's source";
    return part.path;
}

static mr_status refuse_chunk(const side *s, uint64_t chunk, mr_err *err) {
    const uint64_t first = chunk * s->checks.chunk_bytes;
    const uint64_t last = first + s->checks.chunk_bytes < s->checks.bytes
                              ? first + s->checks.chunk_bytes - 1
                              : s->checks.bytes - 1;
    return mr_fail(
        err, MR_ERR_FORMAT,
        "table %u, %s of rows %llu to %llu: %s does not match the manifest's checksum "
        "(chunk %llu)",
        s->table, s->is_pre ? "pre-values" : "values", (unsigned long long)(first / s->row_bytes),
        (unsigned long long)(last / s->row_bytes), path_of(s), (unsigned long long)chunk);
}

/* Maps [first, first + bytes) of the table, widened to whole chunks where there are checksums, and
 * compares them. *skip: how far into the mapping first lies. A fault on the way is an error. */
static mr_status map_checked(mr_mapping *out, mr_chunk_range *range, const side *s, uint64_t first,
                             uint64_t bytes, _Atomic uint32_t *fault, int *guard, mr_err *err) {
    const mr_store_source *source = s->held->source;
    uint64_t bad;
    *range = (mr_chunk_range){.first = first, .bytes = bytes};
    if (s->checks.crc) *range = mr_chunks_around(&s->checks, first, bytes);
    mr_status status =
        source->map(source->context, out, s->table, s->is_pre, range->first, range->bytes, err);
    if (status != MR_OK) return status;
    *guard = mr_guard_add(out->base, out->base_bytes, fault);
    if (out->base) madvise(out->base, out->base_bytes, MADV_SEQUENTIAL);
    if (s->checks.crc && !mr_chunks_match(&s->checks, range, out->data, &bad))
        status = refuse_chunk(s, bad, err);
    if (atomic_load(fault) != MR_HELD_GOOD)
        status = mr_fail(err, MR_ERR_IO, "table %u: %s became shorter or cannot be read", s->table,
                         path_of(s));
    if (status != MR_OK) {
        mr_guard_remove(*guard);
        *guard = -1;
        mr_mapping_close(out);
    }
    return status;
}

/* Memory of our own, on huge pages where the system has them: rows are read at random, and a miss
 * of the address cache costs as much as the row. */
static mr_status reserve(const side *s, uint64_t bytes, mr_err *err) {
    size_t room = (size_t)bytes;
    if (room >= HUGE_PAGE_BYTES)
        room = (room + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    void *memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mr_fail(err, MR_ERR_NOMEM, "table %u: no memory for %llu bytes of rows", s->table,
                       (unsigned long long)bytes);
    madvise(memory, room, MADV_HUGEPAGE); /* a wish */
    s->kept->copy = memory;
    s->kept->copy_bytes = room;
    s->kept->guard[1] = mr_guard_add(memory, room, &s->held->mark);
    return MR_OK;
}

/* Rows [done, done + rows) of the side into the copy, through a window of the file. */
static mr_status keep_window(const side *s, uint8_t *to, uint64_t done, uint64_t rows,
                             mr_err *err) {
    const uint64_t first = (s->rows.first + done) * s->row_bytes;
    _Atomic uint32_t fault = 0;
    mr_chunk_range range;
    mr_mapping window;
    int guard;
    mr_status status =
        map_checked(&window, &range, s, first, rows * s->row_bytes, &fault, &guard, err);
    if (status != MR_OK) return status;
    const uint8_t *from = window.data + (first - range.first);
    for (uint64_t r = 0; r < rows; r++) {
        mr_row_slice_take(to, from + r * s->row_bytes, &s->slice);
        to += s->stride;
    }
    mr_guard_remove(guard);
    mr_mapping_close(&window);
    if (atomic_load(&fault) != MR_HELD_GOOD)
        status = mr_fail(err, MR_ERR_IO, "table %u: %s became shorter or cannot be read", s->table,
                         path_of(s));
    return status;
}

/* What the scrubber will compare the copy with. */
static void remember_copy(const side *s) {
    const uint64_t chunks = mr_chunk_count(s->kept->copy_bytes, MR_CHUNK_BYTES);
    s->kept->copy_crc = mr_alloc_array(chunks, sizeof(*s->kept->copy_crc));
    for (uint64_t i = 0; i < chunks; i++) {
        const size_t at = i * MR_CHUNK_BYTES, left = s->kept->copy_bytes - at;
        s->kept->copy_crc[i] = mr_crc32c(0, (const uint8_t *)s->kept->copy + at,
                                         left < MR_CHUNK_BYTES ? left : MR_CHUNK_BYTES);
    }
}

/* Rows that came from elsewhere than a file are compared as a whole. */
static mr_status check_copied(const side *s, mr_err *err) {
    const mr_held *held = s->held;
    const mr_store_source *source = held->source;
    uint32_t wanted, crc = 0;
    if (held->options.no_verify) return MR_OK;
    if (!source->cell_check ||
        !source->cell_check(source->context, &wanted, held->grid, s->table, s->is_pre, held->id))
        return mr_fail(
            err, MR_ERR_UNSUPPORTED,
            "the manifest has no checksums of the cells of grid %ux%u, so rows of a peer "
            "cannot be checked: run memrack split with this grid",
            held->grid.row_groups, held->grid.width_slices);
    const uint8_t *row = s->kept->copy;
    for (uint64_t r = 0; r < s->rows.count; r++, row += s->stride)
        crc = mr_crc32c(crc, row, (size_t)s->slice.bytes);
    if (crc == wanted) return MR_OK;
    return mr_fail(
        err, MR_ERR_FORMAT,
        "table %u, %s of cell %u (rows %llu to %llu) from %s do not match the manifest's "
        "checksum",
        s->table, s->is_pre ? "pre-values" : "values", held->id, (unsigned long long)s->rows.first,
        (unsigned long long)(s->rows.first + s->rows.count - 1), path_of(s));
}

static mr_status copy_rows(const side *s, mr_err *err) {
    const mr_store_source *source = s->held->source;
    mr_status status = source->copy(source->context, s->kept->copy, s->stride, s->table, s->is_pre,
                                    s->held->grid, s->held->id, s->rows, err);
    if (status == MR_OK) status = check_copied(s, err);
    if (status != MR_ERR_FORMAT || !source->again) return status;
    mr_log_warn("once more: %s", err ? err->text : "copied rows are wrong");
    source->again(source->context);
    status = source->copy(source->context, s->kept->copy, s->stride, s->table, s->is_pre,
                          s->held->grid, s->held->id, s->rows, err);
    return status == MR_OK ? check_copied(s, err) : status;
}

/* Walks the rows once. */
static mr_status keep_slice(const side *s, uint64_t bytes, mr_err *err) {
    const uint64_t at_once = s->row_bytes < WINDOW_BYTES ? WINDOW_BYTES / s->row_bytes : 1;
    mr_status status = reserve(s, bytes, err);
    uint8_t *to = s->kept->copy;
    if (status == MR_OK && s->held->source->copy) {
        status = copy_rows(s, err);
        if (status == MR_OK) remember_copy(s);
        return status;
    }
    for (uint64_t done = 0; done < s->rows.count && status == MR_OK;) {
        const uint64_t rows = s->rows.count - done < at_once ? s->rows.count - done : at_once;
        status = keep_window(s, to, done, rows, err);
        to += rows * s->stride;
        done += rows;
    }
    if (status == MR_OK) remember_copy(s);
    return status;
}

/* Sets the pages of a mapped part up, so that no retrieval waits for a disk or a fault later: a
 * shard is ready when its rows are. Where the kernel cannot (before 5.14) it is only asked. */
static void make_resident(const mr_mapping *mapping) {
    if (!mapping->base) return;
    madvise(mapping->base, mapping->base_bytes, MADV_NORMAL);
    madvise(mapping->base, mapping->base_bytes, MADV_HUGEPAGE); /* where files can have them */
#ifdef MADV_POPULATE_READ
    if (madvise(mapping->base, mapping->base_bytes, MADV_POPULATE_READ) == 0) return;
#endif
    madvise(mapping->base, mapping->base_bytes, MADV_WILLNEED);
}

/* Reads the rows of a tiered side once, to compare them with the manifest and to learn what later
 * reads must give. Without checksums there is nothing to compare: only what must be fetched is. */
static mr_status learn_rows(const side *s, uint64_t first, uint64_t bytes, mr_err *err) {
    mr_status status = MR_OK;
    if (!s->checks.crc && !s->held->source->is_fetched) return MR_OK;
    for (uint64_t done = 0; done < bytes && status == MR_OK;) {
        const uint64_t piece = bytes - done < WINDOW_BYTES ? bytes - done : WINDOW_BYTES;
        _Atomic uint32_t fault = 0;
        mr_chunk_range range;
        mr_mapping window;
        int guard;
        status = map_checked(&window, &range, s, first + done, piece, &fault, &guard, err);
        if (status != MR_OK) break;
        if (s->checks.crc)
            mr_tier_learn(s->held->options.tier, s->kept->tier_file,
                          s->kept->tensor_first + first + done,
                          window.data + (first + done - range.first), piece);
        mr_guard_remove(guard);
        mr_mapping_close(&window);
        if (atomic_load(&fault) != MR_HELD_GOOD)
            status = mr_fail(err, MR_ERR_IO, "table %u: %s became shorter or cannot be read",
                             s->table, path_of(s));
        done += piece;
    }
    return status;
}

static mr_status open_tiered(const side *s, mr_err *err) {
    const mr_store_source *source = s->held->source;
    mr_cell_side *kept = s->kept;
    mr_file_part part;
    if (source->copy || !source->file || !source->file(source->context, &part, s->table, s->is_pre))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "table %u does not lie in a file here: it cannot be tiered", s->table);
    const uint64_t first = s->rows.first * s->row_bytes, bytes = s->rows.count * s->row_bytes;
    mr_status status = mr_tier_add(s->held->options.tier, &kept->tier_file, part.path,
                                   part.offset + first, bytes, err);
    if (status != MR_OK) return status;
    kept->is_tiered = true;
    kept->tensor_first = part.offset;
    kept->file_first = part.offset + first;
    status = learn_rows(s, first, bytes, err);
    if (s->checks.crc) {
        kept->checks = s->checks;
        kept->chunks = mr_chunks_around(&s->checks, first, bytes);
    }
    return status;
}

static mr_status open_side(const side *s, mr_err *err) {
    mr_rows *rows = s->is_pre ? &s->cell->pre_values : &s->cell->values;
    uint64_t bytes;
    *rows = (mr_rows){.storage = s->slice.storage,
                      .row_first = s->rows.first,
                      .row_count = s->rows.count,
                      .stride = s->stride,
                      .columns = s->slice.columns,
                      .skip = s->slice.skip};
    if (!side_bytes(&bytes, s))
        return mr_fail(err, MR_ERR_LIMIT, "table %u is larger than an address can reach", s->table);
    s->kept->row_bytes = s->row_bytes;
    s->kept->slice = s->slice;
    s->held->bytes += bytes;
    if (bytes == 0) return MR_OK;
    if (s->held->options.tier) return open_tiered(s, err);
    if (is_whole(s) && !s->held->source->copy) {
        const uint64_t first = s->rows.first * s->row_bytes;
        mr_cell_side *kept = s->kept;
        const mr_status status = map_checked(&kept->mapping, &kept->chunks, s, first, bytes,
                                             &s->held->mark, &kept->guard[0], err);
        if (status != MR_OK) return status;
        const uint8_t *data = kept->mapping.data + (first - kept->chunks.first);
        if ((uintptr_t)data % s->element_bytes == 0) {
            make_resident(&kept->mapping);
            kept->checks = s->checks;
            rows->data = data;
            return MR_OK;
        }
        mr_guard_remove(kept->guard[0]);
        kept->guard[0] = -1;
        mr_mapping_close(&kept->mapping);
    }
    const mr_status status = keep_slice(s, bytes, err);
    rows->data = s->kept->copy;
    return status;
}

/* A copy on the GPU of what is in memory here. */
static mr_status put_on_gpu(const side *s, mr_err *err) {
    const mr_rows *rows = s->is_pre ? &s->cell->pre_values : &s->cell->values;
    mr_gpu *gpu = s->held->options.gpu;
    if (!gpu || !rows->data || rows->row_count == 0) return MR_OK;
    if (!mr_gpu_takes(rows)) {
        mr_log_warn("table %u is stored as %s: it is pooled on the CPU", s->table,
                    mr_storage_name(mr_storage_type_of(rows->storage)));
        return MR_OK;
    }
    const mr_status status = mr_gpu_rows_open(&s->kept->on_gpu, gpu, rows, err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "table %u", s->table);
}

static mr_checks checks_of(const mr_held *held, uint32_t table, bool is_pre) {
    mr_checks checks = {.crc = NULL};
    const mr_store_source *source = held->source;
    if (held->options.no_verify || !source->checks ||
        !source->checks(source->context, &checks, table, is_pre))
        checks.crc = NULL;
    return checks;
}

/* --- one cell of every table ------------------------------------------------------------------ */

static mr_status check_cell(mr_grid grid, uint32_t cell, mr_err *err) {
    const uint64_t cells = (uint64_t)grid.row_groups * grid.width_slices;
    if (cells == 0 || cells > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_ARGUMENT, "a grid of %ux%u cells; 1 to %d are possible",
                       grid.row_groups, grid.width_slices, MR_MAX_CELLS);
    if (cell >= cells)
        return mr_fail(err, MR_ERR_RANGE, "cell %u of grid %ux%u, which has %llu", cell,
                       grid.row_groups, grid.width_slices, (unsigned long long)cells);
    return MR_OK;
}

mr_status mr_held_plan(mr_store_plan *out, const mr_store_source *source, mr_grid grid,
                       uint32_t cell, const mr_cell_options *options, mr_err *err) {
    *out = (mr_store_plan){0};
    const mr_status status = check_cell(grid, cell, err);
    if (status != MR_OK) return status;
    mr_store_plan plan = {.cell_count = 1};
    for (uint32_t t = 0; t < source->table_count; t++) {
        const mr_cell_span span = mr_cell_span_of(source->tables[t], grid, cell);
        plan.rows += span.rows.count;
        for (int pre = 0; pre < 2; pre++) {
            const side s = side_of(source->tables[t], t, &span, pre);
            uint64_t bytes;
            uint64_t *sum = is_whole(&s) && !source->copy ? &plan.mapped_bytes : &plan.kept_bytes;
            if (options && options->tier) sum = &plan.tiered_bytes;
            if (!side_bytes(&bytes, &s) || mr_add_overflows(*sum, bytes, sum))
                return mr_fail(err, MR_ERR_LIMIT, "table %u is larger than an address can reach",
                               t);
        }
    }
    *out = plan;
    return MR_OK;
}

mr_status mr_held_open(mr_held **out, const mr_store_source *source, mr_grid grid, uint32_t cell,
                       const mr_cell_options *options, mr_err *err) {
    *out = NULL;
    mr_status status = check_cell(grid, cell, err);
    if (status != MR_OK) return status;
    mr_held *held = mr_alloc(sizeof(*held) + source->table_count * sizeof(held->tables[0]));
    held->id = cell;
    held->grid = grid;
    held->source = source;
    if (options) held->options = *options;
    if (held->options.no_verify)
        mr_log_warn("cell %u of grid %ux%u is taken without looking at its checksums", cell,
                    grid.row_groups, grid.width_slices);
    held->table_count = source->table_count;
    for (uint32_t t = 0; t < held->table_count; t++)
        for (int pre = 0; pre < 2; pre++)
            held->tables[t].side[pre].guard[0] = held->tables[t].side[pre].guard[1] = -1;
    for (uint32_t t = 0; t < held->table_count && status == MR_OK; t++) {
        mr_cell *c = &held->tables[t];
        c->held = held;
        c->table = t;
        c->span = mr_cell_span_of(source->tables[t], grid, cell);
        for (int pre = 0; pre < 2 && status == MR_OK; pre++) {
            side s = side_of(source->tables[t], t, &c->span, pre);
            s.held = held;
            s.cell = c;
            s.kept = &c->side[pre];
            s.checks = checks_of(held, t, pre);
            status = open_side(&s, err);
            if (status == MR_OK) status = put_on_gpu(&s, err);
        }
    }
    if (status != MR_OK) {
        mr_held_close(held);
        return status;
    }
    *out = held;
    return MR_OK;
}

void mr_held_close(mr_held *held) {
    if (!held) return;
    for (uint32_t t = 0; t < held->table_count; t++)
        for (int pre = 0; pre < 2; pre++) {
            mr_cell_side *kept = &held->tables[t].side[pre];
            mr_gpu_rows_close(kept->on_gpu);
            for (int i = 0; i < 2; i++) mr_guard_remove(kept->guard[i]);
            mr_mapping_close(&kept->mapping);
            if (kept->copy) munmap(kept->copy, kept->copy_bytes);
            free(kept->copy_crc);
            if (kept->is_tiered) mr_tier_remove(held->options.tier, kept->tier_file);
        }
    free(held);
}

void mr_held_mark_bad(mr_held *held, const mr_err *why) {
    if (atomic_exchange(&held->is_named, true)) return;
    held->why = *why;
    atomic_store_explicit(&held->mark, MR_HELD_BAD, memory_order_release);
}

mr_status mr_held_check(const mr_held *held, mr_err *err) {
    switch (atomic_load_explicit(&held->mark, memory_order_acquire)) {
    case MR_HELD_GOOD:
        return MR_OK;
    case MR_HELD_FAULTED:
        return mr_fail(err, MR_ERR_IO,
                       "cell %u of grid %ux%u cannot be read any more: its file became shorter, "
                       "or a disk or memory failed",
                       held->id, held->grid.row_groups, held->grid.width_slices);
    default:
        return mr_fail(err, MR_ERR_IO, "cell %u of grid %ux%u is bad: %s", held->id,
                       held->grid.row_groups, held->grid.width_slices, held->why.text);
    }
}
