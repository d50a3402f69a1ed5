/* topk.c - TOPK: a shard that holds all product keys of a layer scores them itself.
 *
 * It runs the very search a worker runs (common/model/product_keys.h), over all keys, and derives
 * the exponents from all K entries; only then does it keep the entries whose rows lie in the cell
 * and pools them like any other request. So its sums add up with those of other shards to the bits
 * a scoring worker would get. */
#include "common/base/limits.h"
#include "common/ops/gate.h"
#include "memshard/serve_impl.h"

#include <math.h>
#include <string.h>

/* What a request needs beside the answer, in one piece of a seat's room. */
typedef struct {
    float *key_score;
    uint8_t *scratch;
    uint32_t *index, *row;
    uint8_t *slot;
    float *score;
    int16_t *value_exponent, *dot_exponent;
    /* of the entries in the cell */
    uint32_t *cell_count, *cell_row;
    uint8_t *cell_slot;
    float *cell_weight;
    void *gate;
} room;

typedef struct {
    const mr_asked *asked;
    const mr_topk_view *view;
    const mr_product_keys *keys;
    mr_request q;
    mr_wire_retrieve fixed; /* the cell's part as if a worker had asked for it */
    uint32_t entries;       /* of all tokens */
    uint32_t members;
    size_t scratch_bytes;
    room r;
} work;

static bool pools(const work *w) {
    return w->view->fixed->wants == MR_TOPK_POOLED;
}

static uint64_t lay_out(room *out, const work *w, uint8_t *base) {
    const mr_memory_layer *l = w->q.layer;
    const uint64_t tokens = w->view->fixed->tokens, all = w->entries;
    uint64_t used = 0;
#define PLACE(field, count)                                                                        \
    do {                                                                                           \
        if (base) out->field = (void *)(base + used);                                              \
        used += ((uint64_t)(count) * sizeof(*out->field) + 63) / 64 * 64;                          \
    } while (0)
    PLACE(key_score, mr_key_score_floats(l));
    PLACE(scratch, w->members * w->scratch_bytes);
    PLACE(index, all);
    PLACE(row, all);
    PLACE(slot, all);
    PLACE(score, l->cores * all);
    if (pools(w)) {
        PLACE(value_exponent, tokens);
        PLACE(dot_exponent, tokens);
        PLACE(cell_count, tokens);
        PLACE(cell_row, all);
        PLACE(cell_slot, all);
        PLACE(cell_weight, w->fixed.cores * all);
    }
#undef PLACE
    if (pools(w) && l->gated) {
        const mr_wire_retrieve most = {.tokens = w->fixed.tokens,
                                       .entries = w->entries,
                                       .cores = w->fixed.cores,
                                       .x_columns = w->view->fixed->x_columns};
        if (base) out->gate = base + used;
        used += mr_gate_bytes(&most);
    }
    return used;
}

/* --- does it fit? ----------------------------------------------------------------------------- */

static mr_status check_pool(work *w, mr_err *err) {
    const mr_wire_topk *f = w->view->fixed;
    const mr_memory_layer *l = w->q.layer;
    uint16_t core_first = 0, cores = 0;
    const mr_status status = mr_request_cores(&w->q, &core_first, &cores, err);
    if (status != MR_OK) return status;
    if (f->accumulator_bits != w->q.facts->accumulator_bits)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u sums in %u bits; asked for %u", f->layer,
                       w->q.facts->accumulator_bits, f->accumulator_bits);
    const uint32_t x_columns = l->gated ? w->q.table->pre_width : 0;
    if (f->x_columns != x_columns)
        return mr_fail(err, MR_ERR_MISMATCH, "pooling layer %u takes an x of %u columns; it has %u",
                       f->layer, x_columns, f->x_columns);
    if (l->gated && w->q.cell->span.pre_columns != w->q.table->pre_width)
        return mr_fail(
            err, MR_ERR_MISMATCH,
            "scoring and pooling gated layer %u at a shard needs whole rows; cell %u has "
            "%u of %u pre-value columns",
            f->layer, f->cell, w->q.cell->span.pre_columns, w->q.table->pre_width);
    w->fixed = (mr_wire_retrieve){
        .layer = f->layer,
        .cell = f->cell,
        .mode = l->gated ? MR_RETRIEVE_GATED_POOL : MR_RETRIEVE_POOL,
        .accumulator_bits = f->accumulator_bits,
        .tokens = f->tokens,
        .core_first = core_first,
        .cores = cores,
        .slots = (uint16_t)l->slots_out,
        .gelu = l->gelu,
        .x_columns = x_columns,
    };
    return MR_OK;
}

static mr_status resolve(work *w, mr_topk_answer_layout *answer, mr_err *err) {
    const mr_wire_topk *f = w->view->fixed;
    mr_status status =
        mr_request_find(&w->q, w->asked, f->layer, pools(w) ? f->cell : MR_NO_CELL, err);
    if (status != MR_OK) return status;
    const mr_product_keys *keys = w->asked->model->keys;
    if (!keys)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "this memshard does not hold all product keys of layer %u: score at the "
                       "worker, or open the shard with keys",
                       f->layer);
    const mr_memory_layer *l = w->q.layer;
    w->keys = &keys[f->layer];
    const uint32_t columns = w->keys->groups * 2 * l->key_dim;
    if (f->query_columns != columns)
        return mr_fail(err, MR_ERR_MISMATCH, "queries of layer %u have %u columns; it has %u",
                       f->layer, columns, f->query_columns);
    w->entries = f->tokens * l->entries; /* 2^12 * 2^13 at most */
    if (!pools(w))
        return mr_chosen_lay_out(answer, f->tokens, l->entries, l->cores, l->slots_out, err);
    status = check_pool(w, err);
    if (status != MR_OK) return status;
    return mr_topk_pooled_lay_out(answer, f, l->slots_out, w->q.cell->span.columns, err);
}

/* --- search and pool -------------------------------------------------------------------------- */

enum { WORK_TO_SHARE = 1 << 16 }; /* as the worker's: a few microseconds */

static void run_loop(void *shard, mr_team_task task, void *argument, uint32_t items,
                     uint64_t amount) {
    mr_team *team = ((const mr_memshard *)shard)->team;
    if (team && amount >= WORK_TO_SHARE)
        mr_team_run(team, task, argument, items);
    else if (items > 0)
        task(argument, 0, 0, items);
}

static mr_status search(const work *w, mr_err *err) {
    mr_key_search s = {.ops = w->asked->shard->ops,
                       .keys = w->keys,
                       .tokens = w->view->fixed->tokens,
                       .query = w->view->query,
                       .key_score = w->r.key_score,
                       .scratch = w->r.scratch,
                       .scratch_bytes = w->scratch_bytes,
                       .index = w->r.index,
                       .row = w->r.row,
                       .slot = w->r.slot,
                       .score = w->r.score,
                       .run = run_loop,
                       .run_context = w->asked->shard};
    return mr_key_search_run(&s, err);
}

/* The entries in the cell, in token order: what a worker would have asked for. */
static mr_status keep_cell(work *w, mr_err *err) {
    const mr_span rows = w->q.cell->span.rows;
    const uint32_t per_token = w->q.layer->entries;
    const int base = w->fixed.accumulator_bits == 32 ? 30 : 62;
    const bool gated = w->q.layer->gated;
    uint32_t used = 0;
    for (uint32_t t = 0; t < w->fixed.tokens; t++) {
        const uint32_t before = used;
        for (uint32_t j = t * per_token; j < (t + 1) * per_token; j++) {
            if ((uint64_t)w->r.row[j] - rows.first >= rows.count) continue;
            w->r.cell_row[used] = w->r.row[j];
            w->r.cell_slot[used] = w->r.slot[j];
            used++;
        }
        w->r.cell_count[t] = used - before;
    }
    w->fixed.entries = used;
    for (uint32_t m = 0; m < w->fixed.cores; m++) {
        const float *score = w->r.score + (size_t)(w->fixed.core_first + m) * w->entries;
        float *to = w->r.cell_weight + (size_t)m * used;
        for (uint32_t j = 0; j < w->entries; j++) {
            if ((uint64_t)w->r.row[j] - rows.first >= rows.count) continue;
            const int power = base - w->r.value_exponent[j / per_token];
            *to = gated ? score[j] : mr_scale_exact(score[j], power);
            if (!isfinite(*to++))
                return mr_fail(err, MR_ERR_RANGE, "a retrieval weight of layer %u is not finite",
                               w->fixed.layer);
        }
    }
    w->q.view = (mr_retrieve_view){
        .fixed = &w->fixed,
        .count = w->r.cell_count,
        .row = w->r.cell_row,
        .slot = w->fixed.slots > 1 ? w->r.cell_slot : NULL,
        .weight = w->r.cell_weight,
        .value_exponent = w->r.value_exponent,
        .dot_exponent = w->r.dot_exponent,
        .x = w->view->x,
    };
    return MR_OK;
}

static mr_status prepare(work *w, const float **weight, mr_err *err) {
    mr_status status = mr_product_exponents(w->r.value_exponent, w->r.dot_exponent, w->q.layer,
                                            w->q.facts, w->r.score, w->view->fixed->tokens,
                                            w->view->x, w->view->fixed->x_columns, err);
    if (status == MR_OK) status = keep_cell(w, err);
    if (status == MR_OK)
        status = mr_request_fetch(&w->q, w->asked->seat, true, w->q.layer->gated, err);
    if (status != MR_OK) return status;
    *weight = w->r.cell_weight;
    if (w->q.layer->gated) return mr_request_gate(w->asked, &w->q, w->r.gate, weight, err);
    return mr_request_check_sums(&w->q, *weight, err);
}

/* --- answering -------------------------------------------------------------------------------- */

static mr_status put_pooled(const work *w, const mr_topk_answer_layout *at, const float *weight,
                            uint8_t *out, mr_err *err) {
    const size_t sums = (size_t)w->fixed.tokens * w->fixed.slots * w->q.cell->span.columns *
                        (w->fixed.accumulator_bits / 8u);
    const size_t exponents = w->fixed.tokens * sizeof(int16_t);
    const mr_status status = mr_request_pool(w->asked, &w->q, weight, out, sums, err);
    if (status != MR_OK) return status;
    memset(out + sums, 0, at->value_exponent - sums);
    memcpy(out + at->value_exponent, w->r.value_exponent, exponents);
    memset(out + at->value_exponent + exponents, 0, at->bytes - at->value_exponent - exponents);
    return MR_OK;
}

static void put_chosen(const work *w, const mr_topk_answer_layout *at, uint8_t *out) {
    const size_t all = w->entries;
    memset(out, 0, at->bytes);
    memcpy(out + at->row, w->r.row, all * sizeof(uint32_t));
    if (w->q.layer->slots_out > 1) memcpy(out + at->slot, w->r.slot, all);
    memcpy(out + at->score, w->r.score, w->q.layer->cores * all * sizeof(float));
    memcpy(out + at->index, w->r.index, all * sizeof(uint32_t));
}

mr_status mr_answer_topk(const mr_asked *asked, const mr_topk_view *view, mr_err *err) {
    work w = {.asked = asked, .view = view};
    mr_topk_answer_layout at;
    const float *weight = NULL;
    mr_status status = resolve(&w, &at, err);
    if (status != MR_OK) return status;
    w.members = asked->shard->team ? mr_team_size(asked->shard->team) : 1;
    w.scratch_bytes = mr_product_key_scratch(w.q.layer);
    void *memory = mr_seat_room(asked->seat, lay_out(&w.r, &w, NULL), err);
    if (!memory) return MR_ERR_NOMEM;
    lay_out(&w.r, &w, memory);
    status = search(&w, err);
    if (status == MR_OK && pools(&w)) status = prepare(&w, &weight, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "memory layer %u", view->fixed->layer);
    uint8_t *out =
        mr_answer_begin(asked, pools(&w) ? MR_FRAME_POOLED : MR_FRAME_CHOSEN, at.bytes, err);
    if (!out) return MR_ERR_LIMIT;
    if (pools(&w))
        status = put_pooled(&w, &at, weight, out, err);
    else
        put_chosen(&w, &at, out);
    if (status == MR_OK) return mr_answer_end(asked, &w.q, err);
    mr_link_abandon(asked->reply);
    return status;
}
