/* slice.h - columns of a stored row as a row of their own: what a cell of a grid keeps of a row,
 * what an answer to GATHER carries, and what the checksum of a cell goes over.
 *
 * Without scales: the elements. With a scale a row: the scale, then the codes. With smaller blocks:
 * every block that has one of the columns, whole (the last of the row as it is there); `skip`
 * columns of the first one are not the slice's own. Nothing at all where there are no columns. */
#ifndef MR_OPS_SLICE_H
#define MR_OPS_SLICE_H
#include "common/ops/element.h"

typedef struct {
    mr_storage storage;
    uint32_t columns, skip;
    uint64_t bytes;      /* of the slice */
    uint32_t head_bytes; /* its first bytes are those of the row: 0, or those of the scale */
    uint64_t body_first; /* where in the row the others are */
} mr_row_slice;

/* Columns [first, first + columns) of a row of `width`. */
mr_row_slice mr_row_slice_of(mr_storage storage, uint32_t width, uint32_t first, uint32_t columns);

/* Takes a slice out of a row. */
static inline void mr_row_slice_take(void *out, const void *row, const mr_row_slice *slice) {
    const uint8_t *from = row;
    memcpy(out, from, slice->head_bytes);
    memcpy((uint8_t *)out + slice->head_bytes, from + slice->body_first,
           (size_t)slice->bytes - slice->head_bytes);
}

/* Puts a slice back: all slices of a row make the row again. */
static inline void mr_row_slice_put(void *row, const void *data, const mr_row_slice *slice) {
    uint8_t *to = row;
    memcpy(to, data, slice->head_bytes);
    memcpy(to + slice->body_first, (const uint8_t *)data + slice->head_bytes,
           (size_t)slice->bytes - slice->head_bytes);
}

#endif
