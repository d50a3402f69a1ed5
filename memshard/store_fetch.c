/* store_fetch.c - rows of a cell to compute with: its own, or out of the tier; see store.h. */
#include "common/base/mem.h"
#include "memshard/store.h"
#include "memshard/tier.h"

#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, PREFETCH_PIECES = 256 };

void mr_fetch_scratch_free(mr_fetch_scratch *scratch) {
    free(scratch->memory);
    *scratch = (mr_fetch_scratch){0};
}

/* Where things lie in the scratch. */
typedef struct {
    uint32_t *bucket; /* [bucket_mask + 1] distinct row + 1, or 0 */
    uint32_t bucket_mask;
    uint32_t *id;         /* [entries] */
    uint32_t *distinct;   /* [entries] row ids */
    mr_tier_piece *piece; /* [2 * entries] */
    uint8_t *rows;
    size_t stride_bytes;
} layout;

static size_t aligned(size_t bytes) {
    return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static mr_status lay_out(layout *to, mr_fetch_scratch *scratch, uint32_t entries,
                         size_t slice_bytes, mr_err *err) {
    uint32_t buckets = 16;
    while (buckets < 2ull * entries && buckets < 1u << 31) buckets *= 2;
    to->bucket_mask = buckets - 1;
    to->stride_bytes = slice_bytes < 4 * ALIGNMENT ? slice_bytes : aligned(slice_bytes);
    const size_t sizes[] = {
        aligned(buckets * sizeof(uint32_t)), aligned(entries * sizeof(uint32_t)),
        aligned(entries * sizeof(uint32_t)), aligned(2ull * entries * sizeof(mr_tier_piece))};
    uint64_t row_bytes, all;
    if (mr_mul_overflows(entries, to->stride_bytes, &row_bytes) ||
        mr_add_overflows(row_bytes, sizes[0] + sizes[1] + sizes[2] + sizes[3] + ALIGNMENT, &all))
        return mr_fail(err, MR_ERR_LIMIT, "%u rows are more than an address can reach", entries);
    if (scratch->bytes < all) {
        mr_fetch_scratch_free(scratch);
        const mr_status status =
            mr_try_alloc_raw(&scratch->memory, (size_t)all, 1, "rows of a request", err);
        if (status != MR_OK) return status;
        scratch->bytes = (size_t)all;
    }
    uint8_t *at = scratch->memory;
    to->bucket = (uint32_t *)(void *)at;
    to->id = (uint32_t *)(void *)(at += sizes[0]);
    to->distinct = (uint32_t *)(void *)(at += sizes[1]);
    to->piece = (mr_tier_piece *)(void *)(at += sizes[2]);
    to->rows = at + sizes[3];
    return MR_OK;
}

/* Numbers the distinct rows in the order they come. */
static uint32_t number_rows(const layout *to, const uint32_t *row, uint32_t entries) {
    uint32_t count = 0;
    memset(to->bucket, 0, ((size_t)to->bucket_mask + 1) * sizeof(*to->bucket));
    for (uint32_t j = 0; j < entries; j++) {
        uint32_t at = (row[j] * 2654435769u) >> 7 & to->bucket_mask;
        while (to->bucket[at] && to->distinct[to->bucket[at] - 1] != row[j])
            at = (at + 1) & to->bucket_mask;
        if (!to->bucket[at]) {
            to->distinct[count] = row[j];
            to->bucket[at] = ++count;
        }
        to->id[j] = to->bucket[at] - 1;
    }
    return count;
}

/* A row's slice: one piece, or two where the scale of its row lies apart. How many. */
static uint32_t pieces_of(mr_tier_piece *out, const mr_cell *cell, bool pre_values, uint32_t row,
                          uint8_t *to) {
    const mr_cell_side *side = &cell->side[pre_values];
    const mr_row_slice *slice = &side->slice;
    const uint64_t first = side->file_first + (row - cell->span.rows.first) * side->row_bytes;
    uint32_t count = 0;
    if (slice->head_bytes)
        out[count++] = (mr_tier_piece){
            .file = side->tier_file, .bytes = slice->head_bytes, .first = first, .to = to};
    out[count++] = (mr_tier_piece){.file = side->tier_file,
                                   .bytes = (uint32_t)slice->bytes - slice->head_bytes,
                                   .first = first + slice->body_first,
                                   .to = to ? to + slice->head_bytes : NULL};
    return count;
}

static mr_status fetch_tiered(const mr_cell *cell, bool pre_values, const uint32_t *row,
                              uint32_t entries, mr_fetch_scratch *scratch, mr_rows *rows_out,
                              const uint32_t **row_out, mr_err *err) {
    layout to = {0};
    mr_status status =
        lay_out(&to, scratch, entries, (size_t)cell->side[pre_values].slice.bytes, err);
    if (status != MR_OK) return status;
    const uint32_t count = number_rows(&to, row, entries);
    uint32_t pieces = 0;
    for (uint32_t i = 0; i < count; i++)
        pieces += pieces_of(to.piece + pieces, cell, pre_values, to.distinct[i],
                            to.rows + i * to.stride_bytes);
    status = mr_tier_read(cell->held->options.tier, to.piece, pieces, err);
    if (status != MR_OK) {
        mr_err why = {{0}};
        if (err) why = *err;
        if (status == MR_ERR_IO) mr_held_mark_bad(cell->held, &why);
        return status;
    }
    rows_out->data = to.rows;
    rows_out->row_first = 0;
    rows_out->row_count = count;
    rows_out->stride = to.stride_bytes;
    *row_out = to.id;
    return MR_OK;
}

mr_status mr_cell_fetch(const mr_cell *cell, bool pre_values, const uint32_t *row, uint32_t entries,
                        mr_fetch_scratch *scratch, mr_rows *rows_out, const uint32_t **row_out,
                        mr_err *err) {
    *rows_out = pre_values ? cell->pre_values : cell->values;
    *row_out = row;
    if (!mr_held_is_good(cell->held)) return mr_held_check(cell->held, err);
    if (!cell->side[pre_values].is_tiered) return MR_OK;
    return fetch_tiered(cell, pre_values, row, entries, scratch, rows_out, row_out, err);
}

void mr_cell_prefetch(const mr_cell *cell, const uint32_t *row, uint32_t entries) {
    mr_tier_piece piece[PREFETCH_PIECES];
    if (!mr_held_is_good(cell->held)) return;
    for (int pre = 0; pre < 2; pre++) {
        uint32_t count = 0;
        if (!cell->side[pre].is_tiered) continue;
        for (uint32_t j = 0; j < entries; j++) {
            if (row[j] - cell->span.rows.first >= cell->span.rows.count) continue;
            count += pieces_of(piece + count, cell, pre, row[j], NULL);
            if (count + 2 <= PREFETCH_PIECES && j + 1 < entries) continue;
            mr_tier_prefetch(cell->held->options.tier, piece, count);
            count = 0;
        }
        if (count > 0) mr_tier_prefetch(cell->held->options.tier, piece, count);
    }
}
