/* store.c - see store.h. */
#include "memshard/store.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdio.h>
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
    uint32_t table;
    bool is_pre;
    mr_span rows;
    uint32_t width, column_first, columns; /* of a whole row, of the slice */
    mr_element element;
    uint32_t element_bytes;
    size_t stride; /* elements from row to row as kept */
} side;

static side side_of(const mr_table_shape *t, uint32_t table, const mr_cell_span *span,
                    bool is_pre) {
    side s = {.table = table,
              .is_pre = is_pre,
              .rows = span->rows,
              .width = is_pre ? t->pre_width : t->width,
              .column_first = is_pre ? span->pre_column_first : span->column_first,
              .columns = is_pre ? span->pre_columns : span->columns,
              .element = is_pre ? t->pre_element : t->element};
    s.element_bytes = mr_element_bytes(s.element);
    s.stride = s.columns;
    if (s.columns < s.width && s.stride * s.element_bytes >= ALIGNED_ROW_BYTES) {
        const size_t per_line = LINE_BYTES / s.element_bytes;
        s.stride = (s.stride + per_line - 1) / per_line * per_line;
    }
    return s;
}

static bool is_whole(const side *s) {
    return s->columns == s->width;
}

/* rows < 2^32 and width < 2^32 elements of 4 bytes: fits 66 bits in theory, so it is checked. */
static bool side_bytes(uint64_t *out, const side *s) {
    *out = 0;
    return !mr_mul_overflows(s->rows.count, s->stride, out) &&
           !mr_mul_overflows(*out, s->element_bytes, out) && *out < SIZE_MAX / 2;
}

/* Memory of our own, on huge pages where the system has them: rows are read at random, and a miss
 * of the address cache costs as much as the row. */
static mr_status reserve(mr_cell *cell, const side *s, uint64_t bytes, mr_err *err) {
    size_t room = (size_t)bytes;
    if (room >= HUGE_PAGE_BYTES)
        room = (room + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    void *memory = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return mr_fail(err, MR_ERR_NOMEM, "table %u: no memory for %llu bytes of rows", s->table,
                       (unsigned long long)bytes);
    madvise(memory, room, MADV_HUGEPAGE); /* a wish */
    cell->copy[s->is_pre] = memory;
    cell->copy_bytes[s->is_pre] = room;
    return MR_OK;
}

/* Walks the rows once, a window of the file at a time. */
static mr_status keep_slice(mr_cell *cell, const mr_store_source *source, const side *s,
                            uint64_t bytes, mr_err *err) {
    mr_status status = reserve(cell, s, bytes, err);
    if (status != MR_OK) return status;
    uint8_t *to = cell->copy[s->is_pre];
    const uint64_t row_bytes = (uint64_t)s->width * s->element_bytes;
    const size_t slice_first = (size_t)s->column_first * s->element_bytes;
    const size_t slice_bytes = (size_t)s->columns * s->element_bytes;
    const uint64_t at_once = row_bytes < WINDOW_BYTES ? WINDOW_BYTES / row_bytes : 1;
    for (uint64_t done = 0; done < s->rows.count;) {
        const uint64_t rows = s->rows.count - done < at_once ? s->rows.count - done : at_once;
        mr_mapping window;
        status = source->map(source->context, &window, s->table, s->is_pre,
                             (s->rows.first + done) * row_bytes, rows * row_bytes, err);
        if (status != MR_OK) return status;
        if (window.base) madvise(window.base, window.base_bytes, MADV_SEQUENTIAL);
        for (uint64_t r = 0; r < rows; r++) {
            memcpy(to, window.data + r * row_bytes + slice_first, slice_bytes);
            to += s->stride * s->element_bytes;
        }
        mr_mapping_close(&window);
        done += rows;
    }
    return MR_OK;
}

/* Reads a mapped part once and sets its pages up, so that no retrieval waits for a disk or a fault
 * later: a shard is ready when its rows are. Where the kernel cannot (before 5.14) it is only
 * asked. */
static void make_resident(const mr_mapping *mapping) {
    if (!mapping->base) return;
#ifdef MADV_POPULATE_READ
    if (madvise(mapping->base, mapping->base_bytes, MADV_POPULATE_READ) == 0) return;
#endif
    madvise(mapping->base, mapping->base_bytes, MADV_WILLNEED);
}

static mr_status open_side(mr_cell *cell, const mr_store_source *source, const side *s,
                           mr_err *err) {
    mr_rows *rows = s->is_pre ? &cell->pre_values : &cell->values;
    uint64_t bytes;
    *rows = (mr_rows){.element = s->element,
                      .row_first = s->rows.first,
                      .row_count = s->rows.count,
                      .stride = s->stride,
                      .columns = s->columns};
    if (!side_bytes(&bytes, s))
        return mr_fail(err, MR_ERR_LIMIT, "table %u is larger than an address can reach", s->table);
    if (bytes == 0) return MR_OK;
    mr_mapping *mapping = &cell->mapping[s->is_pre];
    if (is_whole(s)) {
        const uint64_t row_bytes = (uint64_t)s->width * s->element_bytes;
        const mr_status status = source->map(source->context, mapping, s->table, s->is_pre,
                                             s->rows.first * row_bytes, bytes, err);
        if (status != MR_OK) return status;
        if ((uintptr_t)mapping->data % s->element_bytes == 0) {
            make_resident(mapping);
            rows->data = mapping->data;
            return MR_OK;
        }
        mr_mapping_close(mapping);
    }
    const mr_status status = keep_slice(cell, source, s, bytes, err);
    rows->data = cell->copy[s->is_pre];
    return status;
}

/* --- the store -------------------------------------------------------------------------------- */

static mr_status check_split(mr_grid grid, uint32_t index, uint32_t count, mr_err *err) {
    const uint64_t cells = (uint64_t)grid.row_groups * grid.width_slices;
    if (cells == 0 || cells > MR_MAX_CELLS)
        return mr_fail(err, MR_ERR_ARGUMENT, "a grid of %ux%u cells; 1 to %d are possible",
                       grid.row_groups, grid.width_slices, MR_MAX_CELLS);
    if (count == 0 || count > MR_MAX_MEMSHARDS || index >= count)
        return mr_fail(err, MR_ERR_ARGUMENT, "memshard %u of %u: at most %d, counted from 0", index,
                       count, MR_MAX_MEMSHARDS);
    if (count > cells)
        return mr_fail(
            err, MR_ERR_ARGUMENT,
            "%u memshards for the %llu cells of grid %ux%u: some would hold nothing; the "
            "smallest grid that fits is %ux%u",
            count, (unsigned long long)cells, grid.row_groups, grid.width_slices,
            (count + grid.width_slices - 1) / grid.width_slices, grid.width_slices);
    return MR_OK;
}

static uint32_t count_cells(mr_grid grid, uint32_t index, uint32_t count) {
    const uint32_t cells = grid.row_groups * grid.width_slices;
    return (cells - index + count - 1) / count;
}

mr_status mr_store_plan_of(mr_store_plan *out, const mr_store_source *source, mr_grid grid,
                           uint32_t shard_index, uint32_t shard_count, mr_err *err) {
    *out = (mr_store_plan){0};
    const mr_status status = check_split(grid, shard_index, shard_count, err);
    if (status != MR_OK) return status;
    mr_store_plan plan = {.cell_count = count_cells(grid, shard_index, shard_count)};
    for (uint32_t t = 0; t < source->table_count; t++)
        for (uint32_t i = 0; i < plan.cell_count; i++) {
            const mr_table_shape *table = source->tables[t];
            const mr_cell_span span = mr_cell_span_of(table, grid, shard_index + i * shard_count);
            plan.rows += span.rows.count;
            for (int pre = 0; pre < 2; pre++) {
                const side s = side_of(table, t, &span, pre);
                uint64_t bytes;
                uint64_t *sum = is_whole(&s) ? &plan.mapped_bytes : &plan.kept_bytes;
                if (!side_bytes(&bytes, &s) || mr_add_overflows(*sum, bytes, sum))
                    return mr_fail(err, MR_ERR_LIMIT,
                                   "table %u is larger than an address can reach", t);
            }
        }
    *out = plan;
    return MR_OK;
}

mr_status mr_store_init(mr_store *out, const mr_store_source *source, mr_grid grid,
                        uint32_t shard_index, uint32_t shard_count, mr_err *err) {
    mr_store_plan plan;
    *out = (mr_store){0};
    mr_status status = mr_store_plan_of(&plan, source, grid, shard_index, shard_count, err);
    if (status != MR_OK) return status;
    status = mr_store_fits(&plan, mr_memory_available(), err);
    if (status != MR_OK) return status;
    out->grid = grid;
    out->cell_count = plan.cell_count;
    out->table_count = source->table_count;
    out->cell_ids = mr_alloc_array(plan.cell_count, sizeof(*out->cell_ids));
    for (uint32_t i = 0; i < plan.cell_count; i++) out->cell_ids[i] = shard_index + i * shard_count;
    out->cells = mr_alloc_array((size_t)plan.cell_count * source->table_count, sizeof(*out->cells));
    for (uint32_t t = 0; t < source->table_count; t++)
        for (uint32_t i = 0; i < plan.cell_count; i++) {
            mr_cell *cell = &out->cells[(size_t)t * plan.cell_count + i];
            cell->span = mr_cell_span_of(source->tables[t], grid, out->cell_ids[i]);
            for (int pre = 0; pre < 2 && status == MR_OK; pre++) {
                const side s = side_of(source->tables[t], t, &cell->span, pre);
                status = open_side(cell, source, &s, err);
            }
        }
    if (status != MR_OK) mr_store_free(out);
    return status;
}

void mr_store_free(mr_store *store) {
    for (size_t i = 0; i < (size_t)store->cell_count * store->table_count; i++)
        for (int pre = 0; pre < 2; pre++) {
            mr_cell *cell = &store->cells[i];
            mr_mapping_close(&cell->mapping[pre]);
            if (cell->copy[pre]) munmap(cell->copy[pre], cell->copy_bytes[pre]);
        }
    free(store->cells);
    free(store->cell_ids);
    *store = (mr_store){0};
}

const mr_cell *mr_store_cell(const mr_store *store, uint32_t table, uint32_t cell) {
    const uint32_t first = store->cell_count ? store->cell_ids[0] : 0;
    const uint32_t step = store->cell_count > 1 ? store->cell_ids[1] - first : 1;
    if (table >= store->table_count || cell < first || (cell - first) % step != 0) return NULL;
    const uint32_t at = (cell - first) / step;
    return at < store->cell_count ? &store->cells[(size_t)table * store->cell_count + at] : NULL;
}

/* --- memory ----------------------------------------------------------------------------------- */

/* The number behind `key` in a file of "key number" lines; key "": the file is one number. */
static bool read_number(const char *path, const char *key, uint64_t *out) {
    char line[128];
    unsigned long long value;
    bool found = false;
    FILE *file = fopen(path, "re");
    if (!file) return false;
    while (!found && fgets(line, sizeof(line), file))
        if (strncmp(line, key, strlen(key)) == 0 &&
            sscanf(line + strlen(key), "%llu", &value) == 1) {
            *out = value;
            found = true;
        }
    fclose(file);
    return found;
}

/* What a cgroup counts as used includes file pages, which it gives back when asked for memory. */
uint64_t mr_memory_available(void) {
    uint64_t available = UINT64_MAX, kib, limit, used, active = 0, inactive = 0;
    if (read_number("/proc/meminfo", "MemAvailable:", &kib)) available = kib * 1024;
    if (!read_number("/sys/fs/cgroup/memory.max", "", &limit) ||
        !read_number("/sys/fs/cgroup/memory.current", "", &used))
        return available;
    read_number("/sys/fs/cgroup/memory.stat", "active_file ", &active);
    read_number("/sys/fs/cgroup/memory.stat", "inactive_file ", &inactive);
    used = used > active + inactive ? used - active - inactive : 0;
    const uint64_t left = limit > used ? limit - used : 0;
    return left < available ? left : available;
}

mr_status mr_store_fits(const mr_store_plan *plan, uint64_t available_bytes, mr_err *err) {
    uint64_t need;
    if (mr_add_overflows(plan->mapped_bytes, plan->kept_bytes, &need)) need = UINT64_MAX;
    if (need <= available_bytes) return MR_OK;
    return mr_fail(
        err, MR_ERR_NOMEM,
        "this memshard would hold %llu bytes (%.1f GiB) of tables, but %llu bytes (%.1f GiB) "
        "are available: use more memshards",
        (unsigned long long)need, (double)need / (double)MR_GIB,
        (unsigned long long)available_bytes, (double)available_bytes / (double)MR_GIB);
}
