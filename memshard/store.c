/* store.c - the cells of a shard of a static cluster, and what memory there is; see store.h. */
#include "memshard/store.h"

#include "common/base/limits.h"
#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
    mr_status status = check_split(grid, shard_index, shard_count, err);
    if (status != MR_OK) return status;
    mr_store_plan plan = {.cell_count = count_cells(grid, shard_index, shard_count)};
    for (uint32_t i = 0; i < plan.cell_count; i++) {
        mr_store_plan one;
        status = mr_held_plan(&one, source, grid, shard_index + i * shard_count, NULL, err);
        if (status != MR_OK) return status;
        plan.rows += one.rows;
        if (mr_add_overflows(plan.mapped_bytes, one.mapped_bytes, &plan.mapped_bytes) ||
            mr_add_overflows(plan.kept_bytes, one.kept_bytes, &plan.kept_bytes))
            return mr_fail(err, MR_ERR_LIMIT, "the cells are larger than an address can reach");
    }
    *out = plan;
    return MR_OK;
}

mr_status mr_store_init(mr_store *out, const mr_store_source *source, mr_grid grid,
                        uint32_t shard_index, uint32_t shard_count, const mr_cell_options *options,
                        mr_err *err) {
    mr_store_plan plan;
    *out = (mr_store){0};
    mr_status status = mr_store_plan_of(&plan, source, grid, shard_index, shard_count, err);
    if (status != MR_OK) return status;
    out->grid = grid;
    out->cell_count = plan.cell_count;
    out->table_count = source->table_count;
    out->cell_ids = mr_alloc_array(plan.cell_count, sizeof(*out->cell_ids));
    out->held = mr_alloc_array(plan.cell_count, sizeof(mr_held *));
    for (uint32_t i = 0; i < plan.cell_count; i++) out->cell_ids[i] = shard_index + i * shard_count;
    for (uint32_t i = 0; i < plan.cell_count && status == MR_OK; i++)
        status = mr_held_open(&out->held[i], source, grid, out->cell_ids[i], options, err);
    if (status != MR_OK) mr_store_free(out);
    return status;
}

void mr_store_free(mr_store *store) {
    for (uint32_t i = 0; i < store->cell_count; i++) mr_held_close(store->held[i]);
    free(store->held);
    free(store->cell_ids);
    *store = (mr_store){0};
}

const mr_cell *mr_store_cell(const mr_store *store, uint32_t table, uint32_t cell) {
    const uint32_t first = store->cell_count ? store->cell_ids[0] : 0;
    const uint32_t step = store->cell_count > 1 ? store->cell_ids[1] - first : 1;
    if (table >= store->table_count || cell < first || (cell - first) % step != 0) return NULL;
    const uint32_t at = (cell - first) / step;
    return at < store->cell_count ? mr_held_cell(store->held[at], table) : NULL;
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
