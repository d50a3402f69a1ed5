/* retrieval.c - see retrieval.h. A request goes out as one frame per cell and token range (both the
 * frame and its answer at most MR_MAX_FRAME_BYTES); all frames of a shard leave in one write. A
 * gated layer makes one trip where every cell holds whole rows, else two: partial dots first, then
 * the pool with weights the worker made of them. */
#include "worker/retrieval.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/ops/gate.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RECONNECT_EVERY_MS = 250, RECONNECT_DEADLINE_MS = 200, FRAME_SLACK = 512 };

typedef struct {
    mr_link *link; /* NULL: down */
    char *address; /* NULL: cannot be reconnected */
    uint32_t outstanding;
    int64_t heard_ns;    /* when it last answered, or was first asked since */
    int64_t next_try_ns; /* not before: reconnecting */
    uint64_t bytes_sent_before, bytes_received_before;
} peer;

typedef struct {
    uint32_t cell, token_first, tokens;
    uint32_t answer_bytes;
    uint16_t answer_type;
    bool open;
} pending;

typedef enum { IDLE, DOTTING, POOLING } phase;

struct mr_retrieval {
    peer *peers;
    uint32_t peer_count;
    mr_grid grid;
    mr_digest digest;
    int64_t timeout_ns;
    phase phase;
    mr_retrieval_request q; /* the one under way */
    pending *pending;
    uint32_t pending_count, pending_room, open_count;
    uint64_t first_request; /* id of pending[0]; only grows, so late answers are told apart */
    int64_t *acc;           /* [tokens][slots][width] */
    int64_t *dots;          /* [tokens][entries] */
    float *weight;          /* [cores][tokens * entries] */
    mr_link **wait_set;     /* [peer_count] */
    mr_retrieval_stats stats;
};

mr_status mr_retrieval_open(mr_retrieval **out, const mr_retrieval_options *o, mr_err *err) {
    void *acc, *dots = NULL, *weight = NULL;
    const size_t entries = (size_t)o->tokens_max * o->entries_max;
    *out = NULL;
    mr_status status = mr_try_alloc(&acc, (size_t)o->tokens_max * o->slots_width_max,
                                    sizeof(int64_t), "retrieval sums", err);
    if (status == MR_OK) status = mr_try_alloc(&dots, entries, sizeof(int64_t), "gate dots", err);
    if (status == MR_OK)
        status =
            mr_try_alloc(&weight, entries * o->cores_max, sizeof(float), "retrieval weights", err);
    if (status != MR_OK) {
        free(acc);
        free(dots);
        return status;
    }
    mr_retrieval *r = mr_alloc(sizeof(*r));
    r->acc = acc;
    r->dots = dots;
    r->weight = weight;
    r->peers = mr_alloc_array(o->count, sizeof(*r->peers));
    r->wait_set = mr_alloc_array(o->count, sizeof(*r->wait_set));
    r->peer_count = o->count;
    r->grid = o->grid;
    r->digest = o->digest;
    r->timeout_ns = (int64_t)o->timeout_ms * 1000000;
    r->first_request = 1;
    for (uint32_t i = 0; i < o->count; i++) {
        r->peers[i].link = o->links[i];
        if (o->addresses) r->peers[i].address = mr_strdup(o->addresses[i]);
    }
    *out = r;
    return MR_OK;
}

void mr_retrieval_close(mr_retrieval *r) {
    if (!r) return;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        mr_link_close(r->peers[i].link);
        free(r->peers[i].address);
    }
    free(r->peers);
    free(r->wait_set);
    free(r->pending);
    free(r->acc);
    free(r->dots);
    free(r->weight);
    free(r);
}

/* --- peers ------------------------------------------------------------------------------------ */

static void count_bytes(mr_retrieval *r, peer *p) {
    if (!p->link) return;
    const uint64_t sent = mr_link_bytes_sent(p->link), received = mr_link_bytes_received(p->link);
    r->stats.bytes_up += sent - p->bytes_sent_before;
    r->stats.bytes_down += received - p->bytes_received_before;
    p->bytes_sent_before = sent;
    p->bytes_received_before = received;
}

static void drop_peer(mr_retrieval *r, peer *p) {
    count_bytes(r, p);
    if (p->address) { /* a loop link stays: its other side is this process */
        mr_link_close(p->link);
        p->link = NULL;
        p->bytes_sent_before = p->bytes_received_before = 0;
    }
    p->next_try_ns = mr_now_ns();
}

static mr_status reconnect(mr_retrieval *r, uint32_t index, mr_err *err) {
    peer *p = &r->peers[index];
    const int64_t now = mr_now_ns(), deadline = now + RECONNECT_DEADLINE_MS * 1000000ll;
    uint8_t welcome[sizeof(mr_wire_welcome) + MR_MAX_CELLS * sizeof(mr_wire_cell)];
    size_t bytes;
    if (p->link) return MR_OK;
    if (now < p->next_try_ns)
        return mr_fail(err, MR_ERR_UNAVAILABLE, "memshard %u at %s is down", index, p->address);
    p->next_try_ns = now + RECONNECT_EVERY_MS * 1000000ll;
    const mr_session_hello hello = {MR_ROLE_WORKER, MR_ROLE_MEMSHARD, r->digest};
    mr_link *link;
    mr_status status = mr_link_connect(&link, p->address, deadline, err);
    if (status == MR_OK) {
        status = mr_session_open(link, &hello, deadline, welcome, sizeof(welcome), &bytes, err);
        if (status != MR_OK) mr_link_close(link);
    }
    if (status != MR_OK)
        return mr_fail_prefix(err, MR_ERR_UNAVAILABLE, "memshard %u at %s is down", index,
                              p->address);
    const mr_wire_welcome *w = (const void *)welcome;
    if (w->grid_rows != r->grid.row_groups || w->grid_columns != r->grid.width_slices) {
        mr_link_close(link);
        return mr_fail(err, MR_ERR_MISMATCH,
                       "memshard %u at %s came back with grid %ux%u, expected %ux%u", index,
                       p->address, w->grid_rows, w->grid_columns, r->grid.row_groups,
                       r->grid.width_slices);
    }
    p->link = link;
    mr_log_info("memshard %u at %s is back", index, p->address);
    return MR_OK;
}

/* Whose fault it was, for the sentence. */
static mr_status blame(mr_retrieval *r, uint32_t index, mr_status status, mr_err *err) {
    peer *p = &r->peers[index];
    return mr_fail_prefix(err, status, "memshard %u%s%s (memory layer %u)", index,
                          p->address ? " at " : "", p->address ? p->address : "", r->q.layer);
}

/* --- taking answers --------------------------------------------------------------------------- */

static mr_span columns_of(const mr_retrieval *r, uint32_t cell, uint32_t width) {
    return mr_grid_part(width, r->grid.width_slices, cell % r->grid.width_slices);
}
static mr_span rows_of(const mr_retrieval *r, uint32_t cell) {
    return mr_grid_part(r->q.table_rows, r->grid.row_groups, cell / r->grid.width_slices);
}

static void add_pooled(mr_retrieval *r, const pending *a, const uint8_t *payload) {
    const mr_span columns = columns_of(r, a->cell, r->q.width);
    const uint32_t rows = a->tokens * r->q.slots;
    const uint32_t n = (uint32_t)columns.count;
    for (uint32_t i = 0; i < rows; i++) {
        int64_t *out =
            r->acc + ((size_t)a->token_first * r->q.slots + i) * r->q.width + columns.first;
        if (r->q.accumulator_bits == 32) {
            const int32_t *in = (const int32_t *)(const void *)payload + (size_t)i * n;
            for (uint32_t c = 0; c < n; c++) out[c] += in[c];
        } else {
            const int64_t *in = (const int64_t *)(const void *)payload + (size_t)i * n;
            for (uint32_t c = 0; c < n; c++) out[c] = (int64_t)((uint64_t)out[c] + (uint64_t)in[c]);
        }
    }
}

static void add_dots(mr_retrieval *r, const pending *a, const uint8_t *payload) {
    const mr_span span = rows_of(r, a->cell);
    const int64_t *in = (const int64_t *)(const void *)payload;
    const size_t first = (size_t)a->token_first * r->q.entries;
    const size_t end = first + (size_t)a->tokens * r->q.entries;
    for (size_t j = first; j < end; j++)
        if (r->q.row[j] - span.first < span.count)
            r->dots[j] = (int64_t)((uint64_t)r->dots[j] + (uint64_t)*in++);
}

static mr_status take(mr_retrieval *r, peer *p, const mr_frame *frame, mr_err *err) {
    const uint64_t index = frame->header->request - r->first_request;
    p->heard_ns = mr_now_ns();
    if (frame->header->type == MR_FRAME_REFUSE) return mr_frame_error(frame, err);
    if (frame->header->request < r->first_request || index >= r->pending_count ||
        !r->pending[index].open)
        return MR_OK; /* of a retrieval that was given up */
    pending *a = &r->pending[index];
    a->open = false;
    r->open_count--;
    p->outstanding--;
    const mr_status status = mr_answer_check(frame, a->answer_type, a->answer_bytes, err);
    if (status != MR_OK) return status;
    if (a->answer_type == MR_FRAME_DOTS)
        add_dots(r, a, frame->payload);
    else
        add_pooled(r, a, frame->payload);
    return MR_OK;
}

/* Writes and reads what goes without waiting. */
static mr_status pump(mr_retrieval *r, mr_err *err) {
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        mr_frame frame;
        if (!p->link) continue;
        mr_status status = mr_link_flush(p->link, err);
        if (status == MR_ERR_AGAIN) status = MR_OK;
        while (status == MR_OK) {
            status = mr_link_receive(p->link, &frame, err);
            if (status == MR_OK) status = take(r, p, &frame, err);
        }
        if (status == MR_ERR_AGAIN) continue;
        blame(r, i, status, err);
        if (status != MR_ERR_RANGE && status != MR_ERR_ARGUMENT) drop_peer(r, p);
        return status == MR_ERR_IO || status == MR_ERR_FORMAT ? MR_ERR_UNAVAILABLE : status;
    }
    return MR_OK;
}

/* Waits for any of the peers that owe something; fails when one has been silent for too long. */
static mr_status wait_some(mr_retrieval *r, mr_err *err) {
    int64_t earliest = INT64_MAX;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        r->wait_set[i] =
            p->link && (p->outstanding || mr_link_wants_write(p->link)) ? p->link : NULL;
        if (r->wait_set[i] && p->heard_ns + r->timeout_ns < earliest)
            earliest = p->heard_ns + r->timeout_ns;
    }
    const int64_t began = mr_now_ns();
    const mr_status waited = mr_links_wait(r->wait_set, r->peer_count, earliest);
    r->stats.wait_ns += (uint64_t)(mr_now_ns() - began);
    if (waited == MR_OK) return MR_OK;
    for (uint32_t i = 0; i < r->peer_count; i++) {
        peer *p = &r->peers[i];
        if (!r->wait_set[i] || mr_now_ns() < p->heard_ns + r->timeout_ns) continue;
        mr_fail(err, MR_ERR_TIMEOUT, "no answer for %lld ms", (long long)(r->timeout_ns / 1000000));
        blame(r, i, MR_ERR_TIMEOUT, err);
        drop_peer(r, p);
        return MR_ERR_TIMEOUT;
    }
    return waited == MR_ERR_TIMEOUT ? MR_OK : mr_fail(err, waited, "waiting for memshards failed");
}

/* --- asking ----------------------------------------------------------------------------------- */

static uint64_t add_pending(mr_retrieval *r, const pending *a) {
    if (r->pending_count == r->pending_room) {
        r->pending_room = r->pending_room ? 2 * r->pending_room : 256;
        r->pending = mr_realloc_array(r->pending, r->pending_room, sizeof(*r->pending));
    }
    r->pending[r->pending_count] = *a;
    r->open_count++;
    return r->first_request + r->pending_count++;
}

/* Room for a frame in a peer's output; when it is full, works the links until there is some. */
static mr_status make_room(mr_retrieval *r, uint32_t index, const mr_wire_header *header,
                           uint32_t bytes, uint8_t **out, mr_err *err) {
    peer *p = &r->peers[index];
    for (;;) {
        if (!p->link) {
            const mr_status status = reconnect(r, index, err);
            if (status != MR_OK) return status;
        }
        if (p->outstanding == 0) p->heard_ns = mr_now_ns();
        *out = mr_link_begin(p->link, header, bytes);
        if (*out) return MR_OK;
        mr_status status = pump(r, err);
        if (status == MR_OK && mr_link_wants_write(p->link)) status = wait_some(r, err);
        if (status != MR_OK) return status;
    }
}

typedef struct {
    mr_retrieve_mode mode;
    uint32_t cell, token_first, tokens;
    mr_span rows, columns, pre_columns;
    bool every_row; /* one row group: all entries belong to the cell */
} part;

static uint32_t count_entries(const mr_retrieval *r, const part *p) {
    const size_t first = (size_t)p->token_first * r->q.entries;
    const size_t count = (size_t)p->tokens * r->q.entries;
    if (p->every_row) return (uint32_t)count;
    uint32_t inside = 0;
    for (size_t j = 0; j < count; j++)
        inside += r->q.row[first + j] - p->rows.first < p->rows.count;
    return inside;
}

static void put_entries(const mr_retrieval *r, const part *p, const mr_wire_retrieve *fixed,
                        const mr_retrieve_layout *at, uint8_t *payload, const float *weight) {
    uint32_t *count = (void *)(payload + at->count), *row = (void *)(payload + at->row);
    uint8_t *slot = at->slot ? payload + at->slot : NULL;
    float *out = at->weight ? (void *)(payload + at->weight) : NULL;
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    uint32_t used = 0;
    for (uint32_t t = 0; t < p->tokens; t++) {
        const size_t first = ((size_t)p->token_first + t) * r->q.entries;
        const uint32_t before = used;
        for (size_t j = first; j < first + r->q.entries; j++) {
            if (!p->every_row && r->q.row[j] - p->rows.first >= p->rows.count) continue;
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

static void put_gate(const mr_retrieval *r, const part *p, const mr_wire_retrieve *fixed,
                     const mr_retrieve_layout *at, uint8_t *payload) {
    float *x = at->x ? (void *)(payload + at->x) : NULL;
    for (uint32_t t = 0; t < p->tokens; t++) {
        const size_t token = (size_t)p->token_first + t;
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

static mr_status send_part(mr_retrieval *r, const part *p, mr_err *err) {
    const uint32_t entries = count_entries(r, p), core_columns = r->q.width / r->q.cores;
    const bool pools = p->mode != MR_RETRIEVE_DOT;
    uint8_t *payload;
    mr_retrieve_layout at;
    uint32_t answer_bytes;
    if (entries == 0) return MR_OK;
    mr_wire_retrieve fixed = {.layer = r->q.layer,
                              .cell = p->cell,
                              .mode = (uint16_t)p->mode,
                              .accumulator_bits = pools ? (uint16_t)r->q.accumulator_bits : 64,
                              .tokens = p->tokens,
                              .entries = entries};
    if (pools) {
        const uint64_t last = p->columns.first + p->columns.count - 1;
        fixed.core_first = (uint16_t)(p->columns.first / core_columns);
        fixed.cores = (uint16_t)(last / core_columns - fixed.core_first + 1);
        fixed.slots = (uint16_t)r->q.slots;
    }
    if (p->mode == MR_RETRIEVE_GATED_POOL) {
        fixed.gelu = r->q.gelu;
        fixed.x_columns = r->q.pre_width;
    } else if (p->mode == MR_RETRIEVE_DOT)
        fixed.x_columns = (uint32_t)p->pre_columns.count;
    mr_status status = mr_retrieve_lay_out(&at, &fixed, err);
    if (status == MR_OK)
        status =
            mr_retrieve_answer_bytes(&answer_bytes, &fixed, (uint32_t)p->columns.count, 4, err);
    if (status != MR_OK) return status;
    const uint32_t index = p->cell % r->peer_count;
    const mr_wire_header header = {.type = MR_FRAME_RETRIEVE,
                                   .request = r->first_request + r->pending_count,
                                   .budget_us = (uint32_t)(r->timeout_ns / 1000)};
    status = make_room(r, index, &header, at.bytes, &payload, err);
    if (status != MR_OK) return status;
    memset(payload, 0, at.bytes); /* padding is zero */
    memcpy(payload, &fixed, sizeof(fixed));
    put_entries(r, p, &fixed, &at, payload, p->mode == MR_RETRIEVE_POOL ? r->weight : r->q.score);
    put_gate(r, p, &fixed, &at, payload);
    mr_link_end(r->peers[index].link);
    add_pending(r, &(pending){.cell = p->cell,
                              .token_first = p->token_first,
                              .tokens = p->tokens,
                              .answer_bytes = answer_bytes,
                              .answer_type = mr_retrieve_answer_type(&fixed),
                              .open = true});
    r->peers[index].outstanding++;
    return MR_OK;
}

/* Tokens of one frame: so that it and its answer keep below the frame limit, whatever the rows. */
static uint32_t tokens_per_frame(const mr_retrieval *r, const part *p) {
    const uint64_t k = r->q.entries;
    uint64_t up = 4 + 4 * k + k, down = 8 * k;
    if (p->mode == MR_RETRIEVE_DOT)
        up += 4 * p->pre_columns.count;
    else {
        up += 4 * k * r->q.cores + 4 +
              (p->mode == MR_RETRIEVE_GATED_POOL ? 4ull * r->q.pre_width : 0);
        down = p->columns.count * r->q.slots * (r->q.accumulator_bits / 8);
    }
    const uint64_t most = up > down ? up : down;
    return (uint32_t)((MR_MAX_FRAME_BYTES - FRAME_SLACK) / most);
}

static mr_status send_all(mr_retrieval *r, mr_retrieve_mode mode, mr_err *err) {
    const uint32_t cells = r->grid.row_groups * r->grid.width_slices;
    for (uint32_t cell = 0; cell < cells; cell++) {
        part p = {.mode = mode,
                  .cell = cell,
                  .rows = rows_of(r, cell),
                  .columns = columns_of(r, cell, r->q.width),
                  .pre_columns = columns_of(r, cell, r->q.pre_width),
                  .every_row = r->grid.row_groups == 1};
        if (p.rows.count == 0) continue;
        if ((mode == MR_RETRIEVE_DOT ? p.pre_columns.count : p.columns.count) == 0) continue;
        const uint32_t step = tokens_per_frame(r, &p);
        if (step == 0)
            return mr_fail(err, MR_ERR_LIMIT,
                           "memory layer %u: one token's frame exceeds %d bytes; cut the table "
                           "into more width slices",
                           r->q.layer, MR_MAX_FRAME_BYTES);
        for (uint32_t t = 0; t < r->q.tokens; t += step) {
            p.token_first = t;
            p.tokens = r->q.tokens - t < step ? r->q.tokens - t : step;
            const mr_status status = send_part(r, &p, err);
            if (status != MR_OK) return status;
        }
    }
    return pump(r, err);
}

/* --- one retrieval ---------------------------------------------------------------------------- */

static void forget_pending(mr_retrieval *r) {
    r->first_request += r->pending_count;
    r->pending_count = r->open_count = 0;
    for (uint32_t i = 0; i < r->peer_count; i++) r->peers[i].outstanding = 0;
}

void mr_retrieval_abandon(mr_retrieval *r) {
    if (!r) return;
    forget_pending(r);
    r->phase = IDLE;
}

/* The pool's weights: scores (times the gate) scaled to the token's exponent. */
static mr_status make_weights(mr_retrieval *r, mr_err *err) {
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    const int base = r->q.accumulator_bits == 32 ? 30 : 62;
    for (size_t j = 0; j < all; j++) {
        const size_t t = j / r->q.entries;
        float dot = 0;
        if (r->q.gated) dot = mr_dot_to_float(r->dots[j], r->q.dot_exponent[t]);
        for (uint32_t m = 0; m < r->q.cores; m++) {
            float weight = r->q.score[m * all + j];
            if (r->q.gated) weight = mr_gate_weight(dot, weight, r->q.gelu);
            weight = mr_scale_exact(weight, base - r->q.value_exponent[t]);
            if (!isfinite(weight))
                return mr_fail(err, MR_ERR_RANGE,
                               "memory layer %u: a retrieval weight is not finite", r->q.layer);
            r->weight[m * all + j] = weight;
        }
    }
    return MR_OK;
}

static mr_status start_pool(mr_retrieval *r, mr_err *err) {
    const mr_status status = make_weights(r, err);
    if (status != MR_OK) return status;
    forget_pending(r);
    r->phase = POOLING;
    return send_all(r, MR_RETRIEVE_POOL, err);
}

mr_status mr_retrieval_begin(mr_retrieval *r, const mr_retrieval_request *request, mr_err *err) {
    mr_status status;
    assert(r->phase == IDLE);
    r->q = *request;
    const bool whole_rows = r->grid.width_slices == 1;
    memset(r->acc, 0, (size_t)r->q.tokens * r->q.slots * r->q.width * sizeof(*r->acc));
    if (!r->q.gated)
        status = start_pool(r, err);
    else if (whole_rows && !r->q.two_trips) {
        r->phase = POOLING;
        status = send_all(r, MR_RETRIEVE_GATED_POOL, err);
    } else {
        memset(r->dots, 0, (size_t)r->q.tokens * r->q.entries * sizeof(*r->dots));
        r->phase = DOTTING;
        status = send_all(r, MR_RETRIEVE_DOT, err);
    }
    if (status != MR_OK) mr_retrieval_abandon(r);
    return status;
}

mr_status mr_retrieval_progress(mr_retrieval *r, mr_err *err) {
    if (r->phase == IDLE) return MR_OK;
    mr_status status = pump(r, err);
    if (status == MR_OK && r->phase == DOTTING && r->open_count == 0) status = start_pool(r, err);
    if (status != MR_OK) mr_retrieval_abandon(r);
    return status;
}

mr_status mr_retrieval_finish(mr_retrieval *r, float *out, float *dot, mr_err *err) {
    assert(r->phase != IDLE);
    const size_t all = (size_t)r->q.tokens * r->q.entries;
    for (;;) {
        mr_status status = mr_retrieval_progress(r, err);
        if (status == MR_OK && r->phase == POOLING && r->open_count == 0) break;
        if (status == MR_OK && r->open_count > 0) status = wait_some(r, err);
        if (status != MR_OK) {
            mr_retrieval_abandon(r);
            return status;
        }
    }
    const int base = r->q.accumulator_bits == 32 ? 30 : 62;
    const size_t row = (size_t)r->q.slots * r->q.width;
    for (size_t t = 0; t < r->q.tokens; t++) {
        const float scale = mr_scale_exact(1.0f, r->q.value_exponent[t] - base);
        for (size_t c = 0; c < row; c++) out[t * row + c] = (float)r->acc[t * row + c] * scale;
    }
    if (dot)
        for (size_t j = 0; j < all; j++)
            dot[j] = mr_dot_to_float(r->dots[j], r->q.dot_exponent[j / r->q.entries]);
    mr_retrieval_abandon(r);
    return MR_OK;
}

mr_retrieval_stats mr_retrieval_take_stats(mr_retrieval *r) {
    for (uint32_t i = 0; i < r->peer_count; i++) count_bytes(r, &r->peers[i]);
    const mr_retrieval_stats stats = r->stats;
    r->stats = (mr_retrieval_stats){0};
    return stats;
}
