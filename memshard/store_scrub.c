/* store_scrub.c - a held cell compared with its checksums again, a piece at a time; see store.h. */
#include "common/base/mem.h"
#include "memshard/store.h"
#include "memshard/tier.h"

#include <stdlib.h>

static mr_status refuse(const mr_cell *cell, bool pre, const char *where, uint64_t chunk,
                        mr_err *err) {
    return mr_fail(err, MR_ERR_FORMAT, "table %u, %s: chunk %llu of %s is not what it was at load",
                   cell->table, pre ? "pre-values" : "values", (unsigned long long)chunk, where);
}

/* A piece of one side; *chunk is where to begin, of this side. MR_ERR_CANCELLED: there is no such
 * piece. */
static mr_status scrub_side(const mr_cell *cell, bool pre, uint64_t chunk, void *room,
                            uint64_t *bytes, mr_err *err) {
    const mr_cell_side *side = &cell->side[pre];
    if (side->copy) {
        if (chunk >= mr_chunk_count(side->copy_bytes, MR_CHUNK_BYTES)) return MR_ERR_CANCELLED;
        const uint64_t at = chunk * MR_CHUNK_BYTES, left = side->copy_bytes - at;
        *bytes = left < MR_CHUNK_BYTES ? left : MR_CHUNK_BYTES;
        if (mr_crc32c(0, (const uint8_t *)side->copy + at, (size_t)*bytes) == side->copy_crc[chunk])
            return MR_OK;
        return refuse(cell, pre, "the rows in memory", chunk, err);
    }
    if (!side->checks.crc || chunk >= side->chunks.chunk_count) return MR_ERR_CANCELLED;
    const uint64_t at = chunk * side->checks.chunk_bytes, left = side->chunks.bytes - at;
    *bytes = left < side->checks.chunk_bytes ? left : side->checks.chunk_bytes;
    const uint8_t *data;
    if (side->is_tiered) {
        const mr_status status = mr_tier_read_file(cell->held->options.tier, side->tier_file,
                                                   side->tensor_first + side->chunks.first + at,
                                                   (uint32_t)*bytes, room, &data, err);
        if (status != MR_OK) return status;
    } else
        data = side->mapping.data + at;
    if (mr_crc32c(0, data, (size_t)*bytes) == side->checks.crc[side->chunks.chunk_first + chunk])
        return MR_OK;
    return refuse(cell, pre, side->is_tiered ? "the file" : "the mapped file",
                  side->chunks.chunk_first + chunk, err);
}

size_t mr_held_scrub_room(const mr_held *held) {
    size_t room = 0;
    for (uint32_t t = 0; t < held->table_count; t++)
        for (int pre = 0; pre < 2; pre++) {
            const mr_cell_side *side = &held->tables[t].side[pre];
            if (side->is_tiered && side->checks.crc && room < side->checks.chunk_bytes)
                room = side->checks.chunk_bytes;
        }
    return room ? room + 2 * MR_TIER_BLOCK_BYTES : 0;
}

mr_status mr_held_scrub(mr_held *held, mr_scrub_cursor *cursor, void *room, uint64_t *bytes,
                        mr_err *err) {
    mr_err why = {{0}};
    *bytes = 0;
    if (!mr_held_is_good(held)) return mr_held_check(held, err);
    while (cursor->table < held->table_count) {
        mr_status status = scrub_side(&held->tables[cursor->table], cursor->side, cursor->chunk,
                                      room, bytes, &why);
        if (status == MR_ERR_CANCELLED) {
            cursor->chunk = 0;
            cursor->table += cursor->side;
            cursor->side ^= 1;
            continue;
        }
        cursor->chunk++;
        if (!mr_held_is_good(held)) return mr_held_check(held, err); /* a fault, not a wrong sum */
        if (status == MR_OK) return MR_OK;
        mr_held_mark_bad(held, &why);
        return mr_held_check(held, err);
    }
    *cursor = (mr_scrub_cursor){0};
    return MR_ERR_CANCELLED;
}
