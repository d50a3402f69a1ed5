/* retrieval_ask.c - what is asked: a layer cut into asks, an ask laid out as a frame. One frame per
 * cell and token range, both the frame and its answer at most MR_MAX_FRAME_BYTES. A frame is laid
 * out anew for each peer it is sent to: nothing is kept of it here. */
#include "worker/retrieval_impl.h"

#include "common/base/clock.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/ops/gate.h"

#include <assert.h>
#include <string.h>

enum { FRAME_SLACK = 512 };

mr_span mr_part_columns(const mr_retrieval *r, uint32_t cell, uint32_t width) {
    return mr_grid_part(width, r->grid.width_slices, cell % r->grid.width_slices);
}

mr_part mr_part_of(const mr_retrieval *r, uint32_t cell) {
    return (mr_part){
        .rows = mr_grid_part(r->q.table_rows, r->grid.row_groups, cell / r->grid.width_slices),
        .columns = mr_part_columns(r, cell, r->q.width),
        .pre_columns = mr_part_columns(r, cell, r->q.pre_width),
        .every_row = r->grid.row_groups == 1};
}

/* Dots are asked for every entry: a row that is lost later has dots all the same. */
static bool honours_skips(const mr_retrieval *r, uint32_t mode) {
    return r->has_skips && mode == MR_RETRIEVE_POOL;
}

static uint32_t count_entries(const mr_retrieval *r, const mr_ask *a, const mr_part *p) {
    const size_t first = (size_t)a->token_first * r->q.entries;
    const size_t count = (size_t)a->tokens * r->q.entries;
    const uint8_t *skip = honours_skips(r, a->mode) ? r->skip + first : NULL;
    if (p->every_row && !skip) return (uint32_t)count;
    uint32_t inside = 0;
    for (size_t j = 0; j < count; j++)
        inside += r->q.row[first + j] - p->rows.first < p->rows.count && !(skip && skip[j]);
    return inside;
}

static void put_entries(const mr_retrieval *r, const mr_ask *a, const mr_part *p,
                        const mr_wire_retrieve *fixed, const mr_retrieve_layout *at,
                        uint8_t *payload) {
    uint32_t *count = (void *)(payload + at->count), *row = (void *)(payload + at->row);
    uint8_t *slot = at->slot ? payload + at->slot : NULL;
    float *out = at->weight ? (void *)(payload + at->weight) : NULL;
    const float *weight = a->mode == MR_RETRIEVE_POOL ? r->weight : r->q.score;
    const uint8_t *skip = honours_skips(r, a->mode) ? r->skip : NULL;
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    uint32_t used = 0;
    for (uint32_t t = 0; t < a->tokens; t++) {
        const size_t first = ((size_t)a->token_first + t) * r->q.entries;
        const uint32_t before = used;
        for (size_t j = first; j < first + r->q.entries; j++) {
            if (!p->every_row && r->q.row[j] - p->rows.first >= p->rows.count) continue;
            if (skip && skip[j]) continue;
            row[used] = r->q.row[j];
            if (slot) slot[used] = r->q.slot[j];
            if (out)
                for (uint32_t m = 0; m < fixed->cores; m++)
                    out[(size_t)m * fixed->entries + used] =
                        weight[(m + fixed->core_first) * all + j];
            used++;
        }
        count[t] = used - before;
    }
    assert(used == fixed->entries);
}

static void put_gate(const mr_retrieval *r, const mr_ask *a, const mr_part *p,
                     const mr_wire_retrieve *fixed, const mr_retrieve_layout *at,
                     uint8_t *payload) {
    float *x = at->x ? (void *)(payload + at->x) : NULL;
    for (uint32_t t = 0; t < a->tokens; t++) {
        const size_t token = (size_t)a->token_first + t;
        if (fixed->mode == MR_RETRIEVE_GATED_POOL) {
            ((int16_t *)(void *)(payload + at->value_exponent))[t] = r->q.value_exponent[token];
            ((int16_t *)(void *)(payload + at->dot_exponent))[t] = r->q.dot_exponent[token];
            memcpy(x + (size_t)t * r->q.pre_width, r->q.x + token * r->q.pre_width,
                   r->q.pre_width * sizeof(float));
        } else if (fixed->mode == MR_RETRIEVE_DOT) {
            const float *from = r->q.x + token * r->q.pre_width + p->pre_columns.first;
            for (uint32_t c = 0; c < p->pre_columns.count; c++)
                x[(size_t)t * p->pre_columns.count + c] =
                    mr_scale_exact(from[c], 62 - r->q.dot_exponent[token]);
        }
    }
}

static mr_wire_retrieve fixed_of(const mr_retrieval *r, const mr_ask *a, const mr_part *p) {
    const bool pools = a->mode != MR_RETRIEVE_DOT;
    mr_wire_retrieve fixed = {.layer = r->q.layer,
                              .cell = a->cell,
                              .mode = (uint16_t)a->mode,
                              .accumulator_bits = pools ? (uint16_t)r->q.accumulator_bits : 64,
                              .tokens = a->tokens,
                              .entries = count_entries(r, a, p)};
    if (pools) {
        const uint32_t core_columns = r->q.width / r->q.cores;
        const uint64_t last = p->columns.first + p->columns.count - 1;
        fixed.core_first = (uint16_t)(p->columns.first / core_columns);
        fixed.cores = (uint16_t)(last / core_columns - fixed.core_first + 1);
        fixed.slots = (uint16_t)r->q.slots;
    }
    if (a->mode == MR_RETRIEVE_GATED_POOL) {
        fixed.gelu = r->q.gelu;
        fixed.x_columns = r->q.pre_width;
    } else if (a->mode == MR_RETRIEVE_DOT)
        fixed.x_columns = (uint32_t)p->pre_columns.count;
    return fixed;
}

static mr_wire_topk topk_of(const mr_retrieval *r, const mr_ask *a) {
    return (mr_wire_topk){.layer = r->q.layer,
                          .cell = a->cell,
                          .wants = MR_TOPK_POOLED,
                          .accumulator_bits = (uint16_t)r->q.accumulator_bits,
                          .tokens = a->tokens,
                          .query_columns = r->q.query_columns,
                          .x_columns = r->q.gated ? r->q.pre_width : 0};
}

/* --- cutting ---------------------------------------------------------------------------------- */

/* Tokens of one frame: so that it and its answer keep below the frame limit, whatever the rows. */
static uint32_t tokens_per_frame(const mr_retrieval *r, uint32_t mode, const mr_part *p) {
    const uint64_t k = r->q.entries;
    uint64_t up = 4 + 4 * k + k, down = p->columns.count * r->q.slots * (r->q.accumulator_bits / 8);
    if (mode == MR_ASK_TOPK) {
        up = 4ull * (r->q.query_columns + (r->q.gated ? r->q.pre_width : 0));
        down += sizeof(int16_t);
    } else if (mode == MR_RETRIEVE_DOT) {
        up += 4 * p->pre_columns.count;
        down = 8 * k;
    } else {
        up += 4 * k * r->q.cores + 4 + (mode == MR_RETRIEVE_GATED_POOL ? 4ull * r->q.pre_width : 0);
    }
    const uint64_t most = up > down ? up : down;
    return (uint32_t)((MR_MAX_FRAME_BYTES - FRAME_SLACK) / most);
}

static void add_ask(mr_retrieval *r, const mr_ask *a) {
    if (r->ask_count == r->ask_room) {
        r->ask_room = r->ask_room ? 2 * r->ask_room : 256;
        r->asks = mr_realloc_array(r->asks, r->ask_room, sizeof(*r->asks));
    }
    r->asks[r->ask_count++] = *a;
    r->open_count++;
    r->stranded_count++;
    r->stats.requests++;
}

/* Rows read and answer bytes are what a peer's time goes by. */
static mr_status measure(mr_retrieval *r, mr_ask *a, const mr_part *p, bool *is_empty,
                         mr_err *err) {
    if (a->mode == MR_ASK_TOPK) {
        const mr_wire_topk fixed = topk_of(r, a);
        mr_topk_answer_layout at;
        const mr_status status =
            mr_topk_pooled_lay_out(&at, &fixed, r->q.slots, (uint32_t)p->columns.count, err);
        a->answer_bytes = at.bytes;
        a->answer_type = MR_FRAME_POOLED;
        a->work_bytes = 4ull * r->q.entries * a->tokens * p->columns.count + at.bytes;
        return status;
    }
    const mr_wire_retrieve fixed = fixed_of(r, a, p);
    const uint64_t columns = a->mode == MR_RETRIEVE_DOT ? p->pre_columns.count : p->columns.count;
    *is_empty = fixed.entries == 0;
    a->answer_type = mr_retrieve_answer_type(&fixed);
    const mr_status status =
        mr_retrieve_answer_bytes(&a->answer_bytes, &fixed, (uint32_t)p->columns.count, 0, err);
    a->work_bytes = 4ull * fixed.entries * columns + a->answer_bytes;
    return status;
}

mr_status mr_asks_make(mr_retrieval *r, uint32_t mode, mr_err *err) {
    const uint32_t cells = r->grid.row_groups * r->grid.width_slices;
    const int64_t now = mr_now_ns();
    for (uint32_t cell = 0; cell < cells; cell++) {
        const mr_part p = mr_part_of(r, cell);
        if (p.rows.count == 0) continue;
        if ((mode == MR_RETRIEVE_DOT ? p.pre_columns.count : p.columns.count) == 0) continue;
        const uint32_t step = tokens_per_frame(r, mode, &p);
        if (step == 0)
            return mr_fail(err, MR_ERR_LIMIT,
                           "memory layer %u: one token's frame exceeds %d bytes; cut the table "
                           "into more width slices",
                           r->q.layer, MR_MAX_FRAME_BYTES);
        for (uint32_t t = 0; t < r->q.tokens; t += step) {
            bool is_empty = false;
            mr_ask a = {.cell = cell,
                        .token_first = t,
                        .tokens = r->q.tokens - t < step ? r->q.tokens - t : step,
                        .mode = mode,
                        .is_open = true,
                        .is_stranded = true,
                        .stranded_at_ns = now,
                        .hedge_at_ns = INT64_MAX};
            const mr_status status = measure(r, &a, &p, &is_empty, err);
            if (status != MR_OK) return status;
            if (!is_empty) add_ask(r, &a);
        }
    }
    return MR_OK;
}

/* --- sending ---------------------------------------------------------------------------------- */

static uint32_t budget_us(const mr_retrieval *r, int64_t now) {
    int64_t left = r->timeout_ns;
    if (r->step.deadline_ns && r->step.deadline_ns - now < left) left = r->step.deadline_ns - now;
    return left > 1000 ? (uint32_t)(left / 1000) : 1;
}

static mr_status put_topk(mr_retrieval *r, const mr_ask *a, mr_peer *peer,
                          const mr_wire_header *header) {
    const mr_wire_topk fixed = topk_of(r, a);
    mr_topk_layout at;
    const mr_status status = mr_topk_lay_out(&at, &fixed, NULL);
    if (status != MR_OK) return status;
    uint8_t *payload = mr_link_begin(peer->link, header, at.bytes);
    if (!payload) return MR_ERR_AGAIN;
    memset(payload, 0, at.bytes);
    memcpy(payload, &fixed, sizeof(fixed));
    memcpy(payload + at.query, r->q.query + (size_t)a->token_first * r->q.query_columns,
           (size_t)a->tokens * r->q.query_columns * sizeof(float));
    if (at.x)
        memcpy(payload + at.x, r->q.x + (size_t)a->token_first * r->q.pre_width,
               (size_t)a->tokens * r->q.pre_width * sizeof(float));
    mr_link_end(peer->link);
    return MR_OK;
}

static mr_status put_retrieve(mr_retrieval *r, const mr_ask *a, mr_peer *peer,
                              const mr_wire_header *header) {
    const mr_part p = mr_part_of(r, a->cell);
    const mr_wire_retrieve fixed = fixed_of(r, a, &p);
    mr_retrieve_layout at;
    const mr_status status = mr_retrieve_lay_out(&at, &fixed, NULL);
    if (status != MR_OK) return status;
    uint8_t *payload = mr_link_begin(peer->link, header, at.bytes);
    if (!payload) return MR_ERR_AGAIN;
    memset(payload, 0, at.bytes); /* padding is zero */
    memcpy(payload, &fixed, sizeof(fixed));
    put_entries(r, a, &p, &fixed, &at, payload);
    put_gate(r, a, &p, &fixed, &at, payload);
    mr_link_end(peer->link);
    return MR_OK;
}

mr_status mr_ask_put(mr_retrieval *r, mr_ask *a, mr_peer *peer) {
    const int64_t now = mr_now_ns();
    const bool is_topk = a->mode == MR_ASK_TOPK;
    const mr_wire_header header = {.type = is_topk ? MR_FRAME_TOPK : MR_FRAME_RETRIEVE,
                                   .request = mr_ask_request(r, a),
                                   .epoch = r->epoch,
                                   .budget_us = budget_us(r, now)};
    if (a->attempt_count == MR_ASK_ATTEMPTS || a->sends >= MR_ASK_SENDS_MAX) return MR_ERR_LIMIT;
    if (is_topk && peer->version < 2) return MR_ERR_UNSUPPORTED;
    const mr_status status =
        is_topk ? put_topk(r, a, peer, &header) : put_retrieve(r, a, peer, &header);
    if (status != MR_OK) return status;
    mr_peer_owes_more(r, peer, a->work_bytes, now);
    peer->outstanding++;
    peer->outstanding_bytes += a->work_bytes;
    peer->requests++;
    a->attempts[a->attempt_count++] = (mr_attempt){peer, now, peer->outstanding_bytes};
    a->sends++;
    if (a->is_stranded) r->stranded_count--;
    a->is_stranded = false;
    return MR_OK;
}

/* --- the books -------------------------------------------------------------------------------- */

static void settle(mr_retrieval *r, const mr_ask *a, mr_peer *peer) {
    (void)r;
    assert(peer->outstanding > 0 && peer->outstanding_bytes >= a->work_bytes);
    peer->outstanding--;
    peer->outstanding_bytes -= a->work_bytes;
}

bool mr_ask_withdraw(mr_retrieval *r, mr_ask *a, const mr_peer *peer, mr_attempt *out) {
    for (uint32_t i = 0; i < a->attempt_count; i++) {
        if (a->attempts[i].peer != peer) continue;
        *out = a->attempts[i];
        settle(r, a, a->attempts[i].peer);
        a->attempts[i] = a->attempts[--a->attempt_count];
        return true;
    }
    return false;
}

void mr_ask_strand(mr_retrieval *r, mr_ask *a) {
    assert(a->is_open && !a->is_stranded && a->attempt_count == 0);
    a->is_stranded = true;
    a->stranded_at_ns = mr_now_ns();
    a->hedge_at_ns = INT64_MAX;
    r->stranded_count++;
}

/* A loser is told, and pinged: what it does not answer any more would else not be missed. */
void mr_ask_close(mr_retrieval *r, mr_ask *a) {
    const int64_t now = mr_now_ns();
    assert(a->is_open);
    for (uint32_t i = 0; i < a->attempt_count; i++) {
        mr_peer *loser = a->attempts[i].peer;
        const mr_wire_header cancel = {.type = MR_FRAME_CANCEL, .request = mr_ask_request(r, a)};
        settle(r, a, loser);
        mr_peer_was_late(loser, now - a->attempts[i].sent_ns, now);
        if (loser->version >= 2 && mr_peer_is_remote(loser))
            mr_link_send(loser->link, &cancel, NULL, 0);
        mr_peer_ping(r, loser);
    }
    a->attempt_count = 0;
    if (a->is_stranded) r->stranded_count--;
    a->is_open = a->is_stranded = false;
    r->open_count--;
}
