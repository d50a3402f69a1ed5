/* grid.h - a table cut into row groups x width slices, and who holds which cell.
 *
 * A grid of G row groups and W width slices cuts a table of `rows` x `width` into cells
 * c = g * W + w. Row group g owns rows [rows*g/G, rows*(g+1)/G); width slice w owns value columns
 * [width*w/W, width*(w+1)/W) and the pre-value columns cut the same way. A slice may be one element
 * wide and may straddle cores. Cell c lies on memshard c mod M. */
#ifndef MR_MODEL_GRID_H
#define MR_MODEL_GRID_H
#include "common/base/status.h"

#include <stdint.h>

typedef struct {
    uint32_t row_groups, width_slices; /* G, W; both >= 1 */
} mr_grid;

typedef struct {
    uint64_t first, count;
} mr_span;

/* "2x4"; refuses anything else, zeros, and more than MR_MAX_CELLS cells. */
mr_status mr_grid_parse(mr_grid *out, const char *text, mr_err *err);

/* Part `index` of `parts` of [0, total); parts may be empty where parts > total. */
static inline mr_span mr_grid_part(uint64_t total, uint32_t parts, uint32_t index) {
    const uint64_t first = (uint64_t)((unsigned __int128)total * index / parts);
    const uint64_t end = (uint64_t)((unsigned __int128)total * (index + 1u) / parts);
    return (mr_span){first, end - first};
}
/* The part a row lies in: the inverse of mr_grid_part. */
static inline uint32_t mr_grid_part_of(uint64_t total, uint32_t parts, uint64_t item) {
    return (uint32_t)((((unsigned __int128)item + 1) * parts - 1) / total);
}

#endif
