/* retrieval_cache.c - the row cache at work: rows that are in it are pooled here, with the kernels
 * and the weights a shard would use; rows worth having are fetched with GATHER once a retrieval is
 * over, a few at a time, and are simply not there until they have come.
 *
 * Only layers without a gate: a gate needs the pre-value row too, and where gates are computed is
 * part of how a layer is asked for. */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/ops/slice.h"

#include <stdlib.h>
#include <string.h>

enum {
    FETCH_ROWS_MAX = 64,
    FETCH_BYTES_MAX = 256 << 10, /* of one answer */
    FETCH_PATIENCE_MS = 1000,
    SEQUENCE_SHIFT = 16,
    SLICES_MAX = 64, /* a table cut finer is not cached */
};

struct mr_row_fetch {
    /* rows seen in this retrieval that the cache would take */
    uint32_t wanted[FETCH_ROWS_MAX];
    uint32_t wanted_count;
    /* the fetch under way */
    bool is_active;
    uint64_t sequence;
    int64_t until_ns;
    mr_rowcache_table *table;
    uint32_t row[FETCH_ROWS_MAX];
    uint32_t row_count, width;
    mr_storage storage;
    size_t row_bytes;
    uint64_t slices_due; /* a bit each */
    uint8_t *data;       /* [row_count][row_bytes] */
    size_t data_bytes;
    /* entries that are pooled here */
    uint32_t *count, *slot_row; /* [tokens], [tokens * entries] */
    uint8_t *slot;              /* [tokens * entries] */
    float *weight;              /* [cores][tokens * entries] */
    int32_t *acc32;             /* [slots * width] */
    size_t entries_room;
};

mr_status mr_cache_open(mr_retrieval *r, const mr_retrieval_options *o, mr_err *err) {
    const size_t entries = (size_t)o->tokens_max * o->entries_max;
    void *slot_row, *slot = NULL, *weight = NULL, *acc32 = NULL, *count = NULL;
    if (o->row_cache_bytes == 0) return MR_OK;
    mr_status status = mr_try_alloc(&slot_row, entries, 4, "row cache entries", err);
    if (status == MR_OK) status = mr_try_alloc(&slot, entries, 1, "row cache entries", err);
    if (status == MR_OK)
        status = mr_try_alloc(&weight, entries * o->cores_max, 4, "row cache weights", err);
    if (status == MR_OK)
        status = mr_try_alloc(&acc32, o->slots_width_max, 4, "row cache sums", err);
    if (status == MR_OK) status = mr_try_alloc(&count, o->tokens_max, 4, "row cache counts", err);
    r->fetch = mr_alloc(sizeof(*r->fetch));
    *r->fetch = (mr_row_fetch){.slot_row = slot_row,
                               .slot = slot,
                               .weight = weight,
                               .acc32 = acc32,
                               .count = count,
                               .entries_room = entries};
    if (status != MR_OK) return status; /* the retrieval is closed, and this with it */
    r->ops = o->ops ? o->ops : mr_ops_find(NULL);
    const uint32_t tables = o->tables ? o->tables : MR_MAX_LAYERS;
    r->cache =
        mr_rowcache_open(o->row_cache_bytes, tables, o->cached_tables ? o->cached_tables : tables);
    return MR_OK;
}

void mr_cache_close(mr_retrieval *r) {
    mr_rowcache_close(r->cache);
    if (!r->fetch) return;
    free(r->fetch->slot_row);
    free(r->fetch->slot);
    free(r->fetch->weight);
    free(r->fetch->acc32);
    free(r->fetch->count);
    free(r->fetch->data);
    free(r->fetch);
}

/* --- pooling here ----------------------------------------------------------------------------- */

static void want(mr_row_fetch *f, const mr_rowcache_table *t, uint32_t row) {
    if (f->wanted_count == FETCH_ROWS_MAX || f->is_active || !mr_rowcache_wants(t, row)) return;
    for (uint32_t i = 0; i < f->wanted_count; i++)
        if (f->wanted[i] == row) return;
    f->wanted[f->wanted_count++] = row;
}

/* Entries that hit, in token order; the number of them. */
static uint32_t find_hits(mr_retrieval *r, mr_rowcache_table *t) {
    mr_row_fetch *f = r->fetch;
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    uint32_t used = 0;
    for (size_t token = 0; token < r->q.tokens; token++) {
        const uint32_t before = used;
        for (size_t j = token * r->q.entries; j < (token + 1) * r->q.entries; j++) {
            const uint32_t at = mr_rowcache_find(t, r->q.row[j]);
            if (at == UINT32_MAX) {
                want(f, t, r->q.row[j]);
                continue;
            }
            r->skip[j] = MR_SKIP_CACHED;
            f->slot_row[used] = at;
            f->slot[used] = r->q.slot[j];
            for (uint32_t m = 0; m < r->q.cores; m++)
                f->weight[m * f->entries_room + used] = r->weight[m * all + j];
            used++;
        }
        f->count[token] = used - before;
    }
    return used;
}

static void pool_hits(mr_retrieval *r, const mr_rowcache_table *t) {
    mr_row_fetch *f = r->fetch;
    const size_t sums = (size_t)r->q.slots * r->q.width;
    mr_pool_args args = {.rows = mr_rowcache_rows(t),
                         .tokens = 1,
                         .row = f->slot_row,
                         .slot = r->q.slots > 1 ? f->slot : NULL,
                         .weight = f->weight,
                         .weight_stride = f->entries_room,
                         .slots = r->q.slots,
                         .core_columns = r->q.width / r->q.cores};
    for (size_t token = 0; token < r->q.tokens; token++) {
        int64_t *acc = r->acc + token * sums;
        args.count = &f->count[token];
        args.entries = f->count[token];
        if (args.entries == 0) continue;
        if (r->q.accumulator_bits == 64)
            r->ops->pool64(acc, &args);
        else {
            memset(f->acc32, 0, sums * sizeof(*f->acc32));
            r->ops->pool32(f->acc32, &args);
            for (size_t c = 0; c < sums; c++) acc[c] += f->acc32[c];
        }
        args.row += args.entries;
        if (args.slot) args.slot += args.entries;
        args.weight += args.entries;
    }
}

void mr_cache_pool(mr_retrieval *r) {
    mr_rowcache_table *t =
        mr_rowcache_use(r->cache, r->q.table, r->q.width, r->q.storage, r->q.table_rows);
    r->fetch->wanted_count = 0;
    if (!t || r->grid.width_slices > SLICES_MAX) return;
    const uint32_t hits = find_hits(r, t);
    r->stats.cache_hits += hits;
    r->stats.cache_misses += (uint64_t)r->q.tokens * r->q.entries - hits;
    if (hits == 0) return;
    r->has_skips = true;
    pool_hits(r, t);
}

/* --- fetching --------------------------------------------------------------------------------- */

/* Of the rows wanted, those of one row group, as many as one answer takes. */
static uint32_t pick_rows(mr_retrieval *r, mr_row_fetch *f) {
    const uint32_t group = mr_grid_part_of(r->q.table_rows, r->grid.row_groups, f->wanted[0]);
    f->row_count = 0;
    for (uint32_t i = 0; i < f->wanted_count; i++) {
        if (mr_grid_part_of(r->q.table_rows, r->grid.row_groups, f->wanted[i]) != group) continue;
        if ((f->row_count + 1) * f->row_bytes > FETCH_BYTES_MAX) break;
        f->row[f->row_count++] = f->wanted[i];
    }
    return group;
}

static bool send_gather(mr_retrieval *r, const mr_row_fetch *f, mr_peer *peer, uint32_t cell,
                        uint32_t slice) {
    const mr_wire_retrieve fixed = {.layer = r->q.layer,
                                    .cell = cell,
                                    .mode = MR_RETRIEVE_GATHER,
                                    .tokens = 1,
                                    .entries = f->row_count};
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE,
                                   .request =
                                       MR_REQUEST_FETCH | f->sequence << SEQUENCE_SHIFT | slice,
                                   .epoch = r->epoch,
                                   .budget_us = FETCH_PATIENCE_MS * 1000};
    mr_retrieve_layout at;
    if (mr_retrieve_lay_out(&at, &fixed, NULL) != MR_OK) return false;
    uint8_t *payload = mr_link_begin(peer->link, &header, at.bytes);
    if (!payload) return false;
    memset(payload, 0, at.bytes);
    memcpy(payload, &fixed, sizeof(fixed));
    memcpy(payload + at.count, &f->row_count, sizeof(uint32_t));
    memcpy(payload + at.row, f->row, f->row_count * sizeof(uint32_t));
    mr_link_end(peer->link);
    peer->rows_expected++;
    return true;
}

void mr_cache_fetch(mr_retrieval *r, int64_t now) {
    mr_row_fetch *f = r->fetch;
    if (f->is_active && now > f->until_ns) f->is_active = false;
    if (f->is_active || f->wanted_count == 0 || r->q.gated || r->q.query) return;
    f->table = mr_rowcache_use(r->cache, r->q.table, r->q.width, r->q.storage, r->q.table_rows);
    f->width = r->q.width;
    f->storage = r->q.storage;
    f->row_bytes = (size_t)mr_storage_bytes(f->storage, f->width);
    const uint32_t group = pick_rows(r, f);
    const size_t bytes = f->row_count * f->row_bytes;
    if (bytes == 0) return;
    if (bytes > f->data_bytes) {
        free(f->data);
        f->data = mr_alloc(FETCH_BYTES_MAX);
        f->data_bytes = FETCH_BYTES_MAX;
    }
    f->sequence++;
    f->sequence &= (1ull << 40) - 1;
    f->slices_due = 0;
    f->until_ns = now + FETCH_PATIENCE_MS * 1000000ll;
    for (uint32_t w = 0; w < r->grid.width_slices; w++) {
        const uint32_t cell = group * r->grid.width_slices + w;
        if (mr_part_columns(r, cell, f->width).count == 0) continue;
        mr_peer *peer = mr_choose_idle(r, cell, now);
        if (!peer || !send_gather(r, f, peer, cell, w)) return; /* what was sent comes in vain */
        f->slices_due |= 1ull << w;
    }
    f->is_active = f->slices_due != 0;
    mr_peers_flush(r);
}

void mr_cache_take(mr_retrieval *r, mr_peer *peer, const mr_frame *frame) {
    mr_row_fetch *f = r->fetch;
    const uint64_t request = frame->header->request;
    const uint32_t slice = (uint32_t)(request & ((1u << SEQUENCE_SHIFT) - 1));
    if (peer->rows_expected > 0) peer->rows_expected--;
    if (!f || !f->is_active || slice >= SLICES_MAX || !(f->slices_due & 1ull << slice) ||
        (request & ~MR_REQUEST_FETCH) >> SEQUENCE_SHIFT != f->sequence)
        return;
    const mr_span columns = mr_part_columns(r, slice, f->width);
    const mr_row_slice part =
        mr_row_slice_of(f->storage, f->width, (uint32_t)columns.first, (uint32_t)columns.count);
    const uint32_t bytes = (uint32_t)part.bytes * f->row_count;
    if (mr_answer_check(frame, MR_FRAME_ROWS, bytes, NULL) != MR_OK) {
        f->is_active = false; /* refused, or not what was asked: the rows stay where they are */
        return;
    }
    for (uint32_t i = 0; i < f->row_count; i++)
        mr_row_slice_put(f->data + i * f->row_bytes, frame->payload + i * part.bytes, &part);
    f->slices_due &= ~(1ull << slice);
    if (f->slices_due != 0) return;
    f->is_active = false;
    for (uint32_t i = 0; i < f->row_count; i++)
        mr_rowcache_put(f->table, f->row[i], f->data + i * f->row_bytes);
}
