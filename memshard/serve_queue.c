/* serve_queue.c - frames of one round of a serving thread wait for each other.
 *
 * While more frames are known to have come, a frame is put aside; when all were taken, those of the
 * same model, layer and cell are worked on one after the other, whoever sent them, so that rows
 * they share come from memory (or from the tier's files) once and from the cache after that.
 * Reading all first also lets a CANCEL overtake what it cancels, and what has run out of time is
 * dropped before anything is computed for it. A frame that comes alone never waits and is never
 * copied. Threads: a lane belongs to its serving thread. Bounds: MR_QUEUE_FRAMES frames and
 * MR_QUEUE_BYTES bytes; beyond, the queue is worked off at once. */
#include "common/base/mem.h"
#include "memshard/serve_impl.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { QUEUE_FRAMES = 32, QUEUE_BYTES = 4 << 20 };

typedef struct {
    mr_link *link; /* NULL: cancelled, or its link is gone */
    const mr_wire_header *header;
    mr_any_view view;
    int64_t seen_ns;
    uint32_t layer, cell;
} waiting;

struct mr_lane {
    waiting frames[QUEUE_FRAMES]; /* in the order they came */
    uint32_t count;
    size_t used;
    uint8_t *copies; /* [QUEUE_BYTES] headers and payloads, each on 64 bytes */
};

static mr_lane *lane_of(mr_memshard *shard, uint32_t index) {
    if (index >= MR_LANES) return NULL;
    mr_lane *lane = shard->lanes[index];
    if (lane) return lane;
    void *copies;
    if (mr_try_alloc_raw(&copies, QUEUE_BYTES, 1, "waiting requests", NULL) != MR_OK) return NULL;
    lane = mr_alloc(sizeof(*lane));
    lane->copies = copies;
    shard->lanes[index] = lane;
    return lane;
}

/* --- working off ------------------------------------------------------------------------------ */

static bool goes_before(const waiting *a, const waiting *b) {
    const int digest = memcmp(mr_link_digest(a->link), mr_link_digest(b->link), sizeof(mr_digest));
    if (digest != 0) return digest < 0;
    if (a->layer != b->layer) return a->layer < b->layer;
    return a->cell < b->cell;
}

static bool go_together(const waiting *a, const waiting *b) {
    return !goes_before(a, b) && !goes_before(b, a);
}

/* A tier may read for all of them at once. */
static void prefetch(mr_memshard *shard, const waiting *w) {
    if (w->header->type == MR_FRAME_RETRIEVE)
        mr_serve_prefetch(shard, w->link, w->layer, w->cell, w->view.retrieve.row,
                          w->view.retrieve.fixed->entries, true);
}

static void work_off(mr_memshard *shard, mr_lane *lane) {
    const waiting *order[QUEUE_FRAMES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < lane->count; i++) {
        const waiting *w = &lane->frames[i];
        uint32_t at = count;
        if (!w->link) continue;
        for (; at > 0 && goes_before(w, order[at - 1]); at--) order[at] = order[at - 1];
        order[at] = w;
        count++;
    }
    for (uint32_t i = 0; i < count && count > 1; i++) prefetch(shard, order[i]);
    for (uint32_t i = 0; i < count; i++) {
        const waiting *w = order[i];
        if (i > 0 && go_together(w, order[i - 1]))
            atomic_fetch_add_explicit(&shard->counts.together, 1, memory_order_relaxed);
        mr_serve_now(shard, w->link, w->header, &w->view, w->seen_ns);
    }
    atomic_fetch_sub_explicit(&shard->counts.queue_depth, lane->count, memory_order_relaxed);
    lane->count = 0;
    lane->used = 0;
}

void mr_memshard_round_over(void *context, uint32_t index) {
    mr_memshard *shard = context;
    mr_lane *lane = index < MR_LANES ? shard->lanes[index] : NULL;
    if (lane && lane->count > 0) work_off(shard, lane);
}

/* --- putting aside ---------------------------------------------------------------------------- */

bool mr_queue_put(mr_memshard *shard, mr_link *link, const mr_frame *frame) {
    const uint32_t index = mr_link_lane(link);
    mr_lane *lane = index < MR_LANES ? shard->lanes[index] : NULL;
    if (!mr_link_is_crowded(link) && (!lane || lane->count == 0)) return false;
    if (mr_link_seen_ns(link) == 0) return false; /* no server: nobody ends a round */
    lane = lane_of(shard, index);
    if (!lane) return false;
    const size_t bytes = sizeof(*frame->header) + frame->header->payload_bytes;
    if (lane->count == QUEUE_FRAMES || QUEUE_BYTES - lane->used < bytes) work_off(shard, lane);
    waiting *w = &lane->frames[lane->count];
    uint8_t *copy = lane->copies + lane->used;
    mr_err err;
    memcpy(copy, frame->header, sizeof(*frame->header));
    memcpy(copy + sizeof(*frame->header), frame->payload, frame->header->payload_bytes);
    const mr_frame kept = {(const void *)copy, copy + sizeof(*frame->header)};
    const mr_status status = mr_serve_check(&w->view, &kept, &err);
    if (status != MR_OK) {
        mr_serve_refuse(shard, link, frame->header->request, status, &err);
        return true;
    }
    const bool topk = frame->header->type == MR_FRAME_TOPK;
    w->link = link;
    w->header = kept.header;
    w->seen_ns = mr_link_seen_ns(link);
    w->layer = topk ? w->view.topk.fixed->layer : w->view.retrieve.fixed->layer;
    w->cell = topk ? w->view.topk.fixed->cell : w->view.retrieve.fixed->cell;
    lane->used = (lane->used + bytes + 63) / 64 * 64;
    if (lane->used > QUEUE_BYTES) lane->used = QUEUE_BYTES;
    lane->count++;
    atomic_fetch_add_explicit(&shard->counts.queue_depth, 1, memory_order_relaxed);
    return true;
}

void mr_queue_cancel(mr_memshard *shard, const mr_link *link, uint64_t request) {
    const uint32_t index = mr_link_lane(link);
    mr_lane *lane = index < MR_LANES ? shard->lanes[index] : NULL;
    for (uint32_t i = 0; lane && i < lane->count; i++)
        if (lane->frames[i].link == link && lane->frames[i].header->request == request) {
            lane->frames[i].link = NULL;
            atomic_fetch_add_explicit(&shard->counts.cancelled, 1, memory_order_relaxed);
        }
}

void mr_memshard_link_closed(void *context, mr_link *link) {
    mr_memshard *shard = context;
    const uint32_t index = mr_link_lane(link);
    mr_lane *lane = index < MR_LANES ? shard->lanes[index] : NULL;
    for (uint32_t i = 0; lane && i < lane->count; i++)
        if (lane->frames[i].link == link) lane->frames[i].link = NULL;
}

void mr_queue_free(mr_memshard *shard) {
    for (uint32_t i = 0; i < MR_LANES; i++) {
        if (!shard->lanes[i]) continue;
        free(shard->lanes[i]->copies);
        free(shard->lanes[i]);
    }
}
