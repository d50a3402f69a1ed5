/* store_fetch.c - rows of a cell to compute with; see store.h. */
#include "common/base/mem.h"
#include "memshard/store.h"

#include <stdlib.h>

void mr_fetch_scratch_free(mr_fetch_scratch *scratch) {
    free(scratch->memory);
    *scratch = (mr_fetch_scratch){0};
}

mr_status mr_cell_fetch(const mr_cell *cell, bool pre_values, const uint32_t *row, uint32_t entries,
                        mr_fetch_scratch *scratch, mr_rows *rows_out, const uint32_t **row_out,
                        mr_err *err) {
    (void)entries, (void)scratch;
    *rows_out = pre_values ? cell->pre_values : cell->values;
    *row_out = row;
    return mr_held_is_good(cell->held) ? MR_OK : mr_held_check(cell->held, err);
}

void mr_cell_prefetch(const mr_cell *cell, const uint32_t *row, uint32_t entries) {
    (void)cell, (void)row, (void)entries;
}
