/* slice.c - see slice.h. */
#include "common/ops/slice.h"

mr_row_slice mr_row_slice_of(mr_storage storage, uint32_t width, uint32_t first, uint32_t columns) {
    mr_row_slice s = {.storage = storage, .columns = columns};
    const uint64_t row_bytes = mr_storage_bytes(storage, width);
    if (columns == 0) return s;
    if (storage.block == 0) {
        s.body_first = mr_storage_bytes(storage, first);
        s.bytes = mr_storage_bytes(storage, columns);
    } else if (storage.block != MR_WHOLE_ROW) {
        const uint64_t block_bytes = mr_storage_bytes(storage, storage.block);
        const uint64_t last = ((uint64_t)first + columns - 1) / storage.block;
        const uint64_t end = (last + 1) * block_bytes;
        s.skip = first % storage.block;
        s.body_first = first / storage.block * block_bytes;
        s.bytes = (end < row_bytes ? end : row_bytes) - s.body_first;
    } else if (columns == width) {
        s.bytes = row_bytes;
    } else {
        s.head_bytes = mr_storage_scale_bytes(storage);
        s.body_first = s.head_bytes + (uint64_t)first * (mr_element_bits(storage.element) / 8);
        s.bytes = mr_storage_bytes(storage, columns);
    }
    return s;
}
