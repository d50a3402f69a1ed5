/* serve_pool.c - RETRIEVE: rows pooled, dotted or handed out.
 *
 * A request is checked three times over, cheapest first: its own counts (common/net/frames.c), its
 * fit to the layer and the cell, and a bound on the sums: sum of |weight| times the table's largest
 * value must stay inside the accumulator. An honest worker's weights do by construction; without
 * the check a wrong exponent would wrap around silently. */
#include "common/base/limits.h"
#include "common/ops/gate.h"
#include "memshard/serve_impl.h"

#include <math.h>
#include <string.h>

_Static_assert((int)MR_WIRE_EXPONENT_MIN == (int)MR_EXPONENT_MIN &&
                   (int)MR_WIRE_EXPONENT_MAX == (int)MR_EXPONENT_MAX,
               "the wire and the arithmetic agree on exponents");

/* --- does it fit? ----------------------------------------------------------------------------- */

mr_status mr_request_cores(const mr_request *q, uint16_t *first, uint16_t *count, mr_err *err) {
    const mr_cell_span *span = &q->cell->span;
    if (span->columns == 0)
        return mr_fail(err, MR_ERR_RANGE, "this cell has no columns of this layer");
    *first = (uint16_t)(span->column_first / q->core_columns);
    *count = (uint16_t)((span->column_first + span->columns - 1) / q->core_columns - *first + 1u);
    return MR_OK;
}

static mr_status check_pool(const mr_request *q, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const mr_cell_span *span = &q->cell->span;
    const bool one_trip = f->mode == MR_RETRIEVE_GATED_POOL;
    uint16_t first = 0, count = 0;
    const mr_status status = mr_request_cores(q, &first, &count, err);
    if (status != MR_OK) return status;
    if (f->core_first != first || f->cores != count)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "layer %u, cell %u has cores %u to %u; asked for %u from %u", f->layer,
                       f->cell, first, first + count - 1, f->cores, f->core_first);
    if (f->slots != q->layer->slots_out)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u answers %u slots; asked for %u", f->layer,
                       q->layer->slots_out, f->slots);
    if (f->accumulator_bits != q->facts->accumulator_bits)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u sums in %u bits; asked for %u", f->layer,
                       q->facts->accumulator_bits, f->accumulator_bits);
    if (!one_trip) return MR_OK;
    if (!q->layer->gated || (f->gelu == 1) != q->layer->gelu)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u is %s%s; asked for a gate%s", f->layer,
                       q->layer->gated ? "gated" : "not gated", q->layer->gelu ? " with GELU" : "",
                       f->gelu ? " with GELU" : "");
    if (span->pre_columns != q->table->pre_width || f->x_columns != q->table->pre_width)
        return mr_fail(
            err, MR_ERR_MISMATCH,
            "gated pool of layer %u needs the %u columns of a whole pre-value row; cell %u "
            "has %u and x %u",
            f->layer, q->table->pre_width, f->cell, span->pre_columns, f->x_columns);
    return MR_OK;
}

static mr_status check_mode(const mr_request *q, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    if (mr_retrieve_gathers(f)) return MR_OK;
    if (f->mode != MR_RETRIEVE_DOT) return check_pool(q, err);
    if (!q->layer->gated)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u is not gated; asked for gate dots",
                       f->layer);
    if (f->x_columns != q->cell->span.pre_columns)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u, cell %u has %u pre-value columns; x has %u",
                       f->layer, f->cell, q->cell->span.pre_columns, f->x_columns);
    return MR_OK;
}

static mr_status check_rows(const mr_request *q, mr_err *err) {
    const mr_span rows = q->cell->span.rows;
    const uint32_t *row = q->view.row;
    const uint32_t entries = q->view.fixed->entries;
    bool bad = false;
    for (uint32_t j = 0; j < entries; j++) bad |= (uint64_t)row[j] - rows.first >= rows.count;
    if (!bad) return MR_OK;
    uint32_t at = 0;
    while ((uint64_t)row[at] - rows.first < rows.count) at++;
    return mr_fail(err, MR_ERR_RANGE,
                   "row %u is not in cell %u of layer %u, which has rows %llu to %llu", row[at],
                   q->view.fixed->cell, q->view.fixed->layer, (unsigned long long)rows.first,
                   (unsigned long long)(rows.first + rows.count) - 1);
}

/* Weights that carry 2^(30-e) or 2^(62-e). Half as much again is left for roundings of the worker's
 * own bound; the accumulator holds twice as much. */
mr_status mr_request_check_sums(const mr_request *q, const float *weight, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const double value_max = fmax(q->facts->value_max, 0x1p-60);
    const double limit = (f->accumulator_bits == 32 ? 0x1.8p30 : 0x1.8p62) / value_max;
    for (uint32_t core = 0; core < f->cores; core++) {
        const float *w = weight + (size_t)core * f->entries;
        for (uint32_t t = 0; t < f->tokens; t++) {
            double sum = 0;
            for (uint32_t j = 0; j < q->view.count[t]; j++) sum += fabs((double)w[j]);
            w += q->view.count[t];
            if (!(sum <= limit))
                return mr_fail(
                    err, MR_ERR_RANGE,
                    "token %u of layer %u has weights of %g in all, more than the %g that "
                    "%u-bit sums hold",
                    t, f->layer, sum, limit, f->accumulator_bits);
        }
    }
    return MR_OK;
}

/* By Cauchy and Schwarz |x . p| <= |x| |p|: x that carries 2^(62-d) is bounded by its norm. */
static mr_status check_norms(const mr_request *q, const float *x, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const double limit = 0x1.8p62 / fmax(q->facts->pre_norm_max, 0x1p-60);
    for (uint32_t t = 0; t < f->tokens; t++, x += f->x_columns) {
        double sum = 0;
        for (uint32_t c = 0; c < f->x_columns; c++) sum += (double)x[c] * (double)x[c];
        if (!(sum <= limit * limit))
            return mr_fail(err, MR_ERR_RANGE,
                           "token %u of layer %u has an x of norm %g, more than the %g that 64-bit "
                           "dots hold",
                           t, f->layer, sqrt(sum), limit);
    }
    return MR_OK;
}

mr_status mr_request_find(mr_request *q, const mr_asked *asked, uint32_t layer, uint32_t cell,
                          mr_err *err) {
    const mr_model_held *model = asked->model;
    const bool may_move = asked->header->epoch != 0 || !asked->shard->is_static;
    if (!model) return mr_fail(err, MR_ERR_STALE, "no cells of this session's model are held here");
    const mr_store_source *tables = model->tables;
    if (layer >= tables->layer_count)
        return mr_fail(err, MR_ERR_RANGE, "layer %u: the model has %u memory layers", layer,
                       tables->layer_count);
    q->layer = tables->layers[layer];
    q->table = tables->tables[q->layer->table];
    q->facts = &tables->facts[q->layer->table];
    q->core_columns = q->table->width / q->layer->cores;
    if (cell == MR_NO_CELL) return MR_OK;
    const uint32_t cells = model->grid.row_groups * model->grid.width_slices;
    const mr_held *held = cell < cells ? model->by_cell[cell] : NULL;
    if (!held)
        return mr_fail(err, may_move && cell < cells ? MR_ERR_STALE : MR_ERR_RANGE,
                       "cell %u of grid %ux%u is not held here", cell, model->grid.row_groups,
                       model->grid.width_slices);
    q->cell = mr_held_cell(held, q->layer->table);
    return MR_OK;
}

static mr_status resolve(mr_request *q, const mr_asked *asked, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    mr_status status = mr_request_find(q, asked, f->layer, f->cell, err);
    if (status == MR_OK) status = check_mode(q, err);
    if (status == MR_OK) status = check_rows(q, err);
    const bool pre = f->mode == MR_RETRIEVE_GATHER_PRE;
    if (status == MR_OK)
        status = mr_retrieve_answer_bytes(&q->answer_bytes, f, q->cell->span.columns,
                                          q->cell->side[pre].slice.bytes, err);
    return status;
}

mr_status mr_request_fetch(mr_request *q, mr_seat *seat, bool values, bool pre_values,
                           mr_err *err) {
    const uint32_t entries = q->view.fixed->entries;
    mr_status status = MR_OK;
    if (pre_values)
        status = mr_cell_fetch(q->cell, true, q->view.row, entries, &seat->fetched[1],
                               &q->pre_values, &q->pre_row, err);
    if (status == MR_OK && values)
        status = mr_cell_fetch(q->cell, false, q->view.row, entries, &seat->fetched[0], &q->values,
                               &q->value_row, err);
    return status;
}

/* --- the arithmetic --------------------------------------------------------------------------- */

/* Tokens are independent of each other, so a team may share them out. */
typedef struct {
    const mr_request *q;
    const mr_ops *ops;
    const float *values; /* weights of a pool, x of dots */
    void *out;
} kernel_work;

/* Entries of the tokens before this one. */
static uint32_t entries_before(const mr_request *q, uint32_t token) {
    uint32_t entries = 0;
    for (uint32_t t = 0; t < token; t++) entries += q->view.count[t];
    return entries;
}

static mr_pool_args pool_args(const kernel_work *w, uint32_t first, uint32_t count) {
    const mr_request *q = w->q;
    const mr_wire_retrieve *f = q->view.fixed;
    const uint32_t entry = entries_before(q, first), end = entries_before(q, first + count);
    return (mr_pool_args){
        .rows = q->values,
        .tokens = count,
        .entries = end - entry,
        .count = q->view.count + first,
        .row = q->value_row + entry,
        .slot = q->view.slot ? q->view.slot + entry : NULL,
        .weight = w->values + entry,
        .weight_stride = f->entries,
        .slots = f->slots,
        .column_first = q->cell->span.column_first,
        .core_columns = q->core_columns,
        .core_first = f->core_first,
    };
}

static void pool_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const kernel_work *w = context;
    const mr_wire_retrieve *f = w->q->view.fixed;
    const size_t token_columns = (size_t)f->slots * w->q->values.columns;
    const mr_pool_args args = pool_args(w, first, count);
    (void)member;
    if (f->accumulator_bits == 32)
        w->ops->pool32((int32_t *)w->out + first * token_columns, &args);
    else
        w->ops->pool64((int64_t *)w->out + first * token_columns, &args);
}

static mr_gate_args dot_args(const kernel_work *w, uint32_t first, uint32_t count) {
    const mr_request *q = w->q;
    const uint32_t entry = entries_before(q, first), end = entries_before(q, first + count);
    return (mr_gate_args){
        .rows = q->pre_values,
        .tokens = count,
        .entries = end - entry,
        .count = q->view.count + first,
        .row = q->pre_row + entry,
        .x = w->values + (size_t)first * q->view.fixed->x_columns,
        .x_stride = q->view.fixed->x_columns,
    };
}

static void dot_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const kernel_work *w = context;
    const mr_gate_args args = dot_args(w, first, count);
    (void)member;
    w->ops->gate_dot((int64_t *)w->out + entries_before(w->q, first), &args);
}

static void run_kernel(const mr_memshard *shard, mr_team_task task, kernel_work *work) {
    const uint32_t tokens = work->q->view.fixed->tokens;
    if (shard->team)
        mr_team_run(shard->team, task, work, tokens);
    else
        task(work, 0, 0, tokens);
}

/* The seat's stream; made when it is first needed. */
static mr_status gpu_lane(mr_gpu_lane **out, const mr_asked *asked, const mr_request *q,
                          mr_err *err) {
    mr_status status = MR_OK;
    if (!asked->seat->gpu)
        status = mr_gpu_lane_open(&asked->seat->gpu, q->cell->held->options.gpu, err);
    *out = asked->seat->gpu;
    return status;
}

mr_status mr_request_pool(const mr_asked *asked, const mr_request *q, const float *weight,
                          void *sums, size_t bytes, mr_err *err) {
    kernel_work work = {q, asked->shard->ops, weight, sums};
    const mr_gpu_rows *on_gpu = q->cell->side[0].on_gpu;
    memset(sums, 0, bytes);
    if (on_gpu) {
        mr_gpu_lane *lane;
        const mr_pool_args args = pool_args(&work, 0, q->view.fixed->tokens);
        const mr_status status = gpu_lane(&lane, asked, q, err);
        if (status != MR_OK) return status;
        return mr_gpu_pool(lane, on_gpu, sums, q->view.fixed->accumulator_bits, &args, err);
    }
    run_kernel(asked->shard, pool_tokens, &work);
    return MR_OK;
}

static mr_status dots(const mr_asked *asked, const mr_request *q, const float *x, int64_t *dot,
                      mr_err *err) {
    kernel_work work = {q, asked->shard->ops, x, dot};
    const mr_gpu_rows *on_gpu = q->cell->side[1].on_gpu;
    if (on_gpu) {
        mr_gpu_lane *lane;
        const mr_gate_args args = dot_args(&work, 0, q->view.fixed->tokens);
        const mr_status status = gpu_lane(&lane, asked, q, err);
        return status == MR_OK ? mr_gpu_gate_dot(lane, on_gpu, dot, &args, err) : status;
    }
    run_kernel(asked->shard, dot_tokens, &work);
    return MR_OK;
}

size_t mr_gate_bytes(const mr_wire_retrieve *f) {
    return (size_t)f->entries * sizeof(int64_t) +
           ((size_t)f->tokens * f->x_columns + (size_t)f->cores * f->entries) * sizeof(float);
}

/* One trip: x gets its scale, the dots become gates, the gates and scores weights. */
mr_status mr_request_gate(const mr_asked *asked, const mr_request *q, void *memory,
                          const float **out, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    int64_t *dot = memory;
    float *x = (float *)(dot + f->entries);
    float *weight = x + (size_t)f->tokens * f->x_columns;
    size_t at = 0;
    for (uint32_t t = 0; t < f->tokens; t++)
        for (uint32_t c = 0; c < f->x_columns; c++, at++)
            x[at] = mr_scale_exact(q->view.x[at], 62 - q->view.dot_exponent[t]);
    mr_status status = check_norms(q, x, err);
    if (status == MR_OK) status = dots(asked, q, x, dot, err);
    if (status != MR_OK) return status;
    uint32_t j = 0;
    for (uint32_t t = 0; t < f->tokens; t++)
        for (uint32_t end = j + q->view.count[t]; j < end; j++) {
            const float value = mr_dot_to_float(dot[j], q->view.dot_exponent[t]);
            for (uint32_t core = 0; core < f->cores; core++) {
                const size_t w = (size_t)core * f->entries + j;
                weight[w] = mr_scale_exact(mr_gate_weight(value, q->view.weight[w], f->gelu == 1),
                                           62 - q->view.value_exponent[t]);
            }
        }
    *out = weight;
    return mr_request_check_sums(q, weight, err);
}

static void gather(const mr_request *q, uint8_t *out) {
    const bool pre = q->view.fixed->mode == MR_RETRIEVE_GATHER_PRE;
    const mr_rows *rows = pre ? &q->pre_values : &q->values;
    const uint32_t *id = pre ? q->pre_row : q->value_row;
    const size_t bytes = (size_t)q->cell->side[pre].slice.bytes;
    if (bytes == 0) return;
    for (uint32_t j = 0; j < q->view.fixed->entries; j++, out += bytes) {
        const size_t row = (size_t)(id[j] - rows->row_first) * rows->stride;
        memcpy(out, (const uint8_t *)rows->data + row, bytes);
    }
}

/* --- answering -------------------------------------------------------------------------------- */

static mr_status prepare(const mr_asked *asked, mr_request *q, const float **weight, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const bool gated = f->mode == MR_RETRIEVE_GATED_POOL;
    const bool pre_alone = f->mode == MR_RETRIEVE_DOT || f->mode == MR_RETRIEVE_GATHER_PRE;
    mr_status status = mr_request_fetch(q, asked->seat, !pre_alone, gated || pre_alone, err);
    if (status != MR_OK) return status;
    switch (f->mode) {
    case MR_RETRIEVE_POOL:
        *weight = q->view.weight;
        return mr_request_check_sums(q, *weight, err);
    case MR_RETRIEVE_GATED_POOL: {
        void *room = mr_seat_room(asked->seat, mr_gate_bytes(f), err);
        return room ? mr_request_gate(asked, q, room, weight, err) : MR_ERR_NOMEM;
    }
    case MR_RETRIEVE_DOT:
        return check_norms(q, q->view.x, err);
    }
    return MR_OK;
}

mr_status mr_answer_retrieve(const mr_asked *asked, mr_request *q, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const float *weight = NULL;
    mr_status status = resolve(q, asked, err);
    if (status == MR_OK) status = prepare(asked, q, &weight, err);
    if (status != MR_OK) return status;
    void *out = mr_answer_begin(asked, mr_retrieve_answer_type(f), q->answer_bytes, err);
    if (!out) return MR_ERR_LIMIT;
    if (mr_retrieve_gathers(f))
        gather(q, out);
    else if (f->mode == MR_RETRIEVE_DOT)
        status = dots(asked, q, q->view.x, out, err);
    else
        status = mr_request_pool(asked, q, weight, out, q->answer_bytes, err);
    if (status == MR_OK) return mr_answer_end(asked, q, err);
    mr_link_abandon(asked->reply);
    return status;
}
