/* serve.c - see serve.h.
 *
 * A request is checked three times over, cheapest first: its own counts (common/net/frames.c), its
 * fit to the layer and the cell, and a bound on the sums: sum of |weight| times the table's largest
 * value must stay inside the accumulator. An honest worker's weights do by construction; without
 * the check a wrong exponent would wrap around silently. */
#include "memshard/serve.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/frames.h"
#include "common/net/session.h"
#include "common/ops/gate.h"

#include <assert.h>
#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

_Static_assert((int)MR_WIRE_EXPONENT_MIN == (int)MR_EXPONENT_MIN &&
                   (int)MR_WIRE_EXPONENT_MAX == (int)MR_EXPONENT_MAX,
               "the wire and the arithmetic agree on exponents");

enum { SCRATCH_COUNT = 64, LOG_EVERY_MS = 1000 };

/* Room of one request at a time, for whichever thread takes it. */
typedef struct {
    atomic_bool is_taken;
    void *memory;
    size_t bytes;
    mr_fetch_scratch fetched[2]; /* values, pre-values */
} scratch;

struct mr_memshard {
    const mr_ops *ops;
    mr_team *team; /* borrowed; NULL: the calling thread alone */
    mr_store_source source;
    mr_store store;
    uint64_t bytes;
    _Atomic int64_t quiet_until_ns; /* refusals are logged once a second at most */
    scratch scratches[SCRATCH_COUNT];
    mr_model_tables *tables; /* owned; NULL when the source is the caller's */
};

/* One request, resolved: everything points into the frame, the model or the store. */
typedef struct {
    mr_retrieve_view view;
    const mr_memory_layer *layer;
    const mr_table_shape *table;
    const mr_table_facts *facts;
    const mr_cell *cell;
    mr_rows values, pre_values; /* to compute with, and ids into them: see mr_cell_fetch */
    const uint32_t *value_row, *pre_row;
    uint32_t core_columns;
    uint32_t answer_bytes;
} request;

/* --- does it fit? ----------------------------------------------------------------------------- */

static mr_status check_pool(const request *q, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const mr_cell_span *span = &q->cell->span;
    const bool one_trip = f->mode == MR_RETRIEVE_GATED_POOL;
    if (span->columns == 0)
        return mr_fail(err, MR_ERR_RANGE, "cell %u has no columns of layer %u", f->cell, f->layer);
    const uint32_t first = span->column_first / q->core_columns;
    const uint32_t last = (span->column_first + span->columns - 1) / q->core_columns;
    if (f->core_first != first || f->cores != last - first + 1)
        return mr_fail(err, MR_ERR_MISMATCH,
                       "layer %u, cell %u has cores %u to %u; asked for %u from %u", f->layer,
                       f->cell, first, last, f->cores, f->core_first);
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

static mr_status check_mode(const request *q, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    if (f->mode == MR_RETRIEVE_GATHER) return MR_OK;
    if (f->mode != MR_RETRIEVE_DOT) return check_pool(q, err);
    if (!q->layer->gated)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u is not gated; asked for gate dots",
                       f->layer);
    if (f->x_columns != q->cell->span.pre_columns)
        return mr_fail(err, MR_ERR_MISMATCH, "layer %u, cell %u has %u pre-value columns; x has %u",
                       f->layer, f->cell, q->cell->span.pre_columns, f->x_columns);
    return MR_OK;
}

static mr_status check_rows(const request *q, mr_err *err) {
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
static mr_status check_sums(const request *q, const float *weight, mr_err *err) {
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
static mr_status check_norms(const request *q, const float *x, mr_err *err) {
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

static mr_status resolve(request *q, const mr_memshard *shard, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const mr_store_source *source = &shard->source;
    if (f->layer >= source->layer_count)
        return mr_fail(err, MR_ERR_RANGE, "layer %u: the model has %u memory layers", f->layer,
                       source->layer_count);
    q->layer = source->layers[f->layer];
    q->table = source->tables[q->layer->table];
    q->facts = &source->facts[q->layer->table];
    q->core_columns = q->table->width / q->layer->cores;
    q->cell = mr_store_cell(&shard->store, q->layer->table, f->cell);
    if (!q->cell)
        return mr_fail(err, MR_ERR_RANGE, "cell %u of grid %ux%u is not held here", f->cell,
                       shard->store.grid.row_groups, shard->store.grid.width_slices);
    mr_status status = check_mode(q, err);
    if (status == MR_OK) status = check_rows(q, err);
    if (status == MR_OK)
        status = mr_retrieve_answer_bytes(&q->answer_bytes, f, q->cell->span.columns,
                                          mr_element_bytes(q->table->element), err);
    return status;
}

/* --- the arithmetic --------------------------------------------------------------------------- */

/* Tokens are independent of each other, so a team may share them out. */
typedef struct {
    const request *q;
    const mr_ops *ops;
    const float *values; /* weights of a pool, x of dots */
    void *out;
} kernel_work;

/* Entries of the tokens before this one. */
static uint32_t entries_before(const request *q, uint32_t token) {
    uint32_t entries = 0;
    for (uint32_t t = 0; t < token; t++) entries += q->view.count[t];
    return entries;
}

static void pool_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const kernel_work *w = context;
    const request *q = w->q;
    const mr_wire_retrieve *f = q->view.fixed;
    const uint32_t entry = entries_before(q, first), end = entries_before(q, first + count);
    const size_t token_columns = (size_t)f->slots * q->values.columns;
    const mr_pool_args args = {
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
    (void)member;
    if (f->accumulator_bits == 32)
        w->ops->pool32((int32_t *)w->out + first * token_columns, &args);
    else
        w->ops->pool64((int64_t *)w->out + first * token_columns, &args);
}

static void dot_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const kernel_work *w = context;
    const request *q = w->q;
    const uint32_t entry = entries_before(q, first), end = entries_before(q, first + count);
    const mr_gate_args args = {
        .rows = q->pre_values,
        .tokens = count,
        .entries = end - entry,
        .count = q->view.count + first,
        .row = q->pre_row + entry,
        .x = w->values + (size_t)first * q->view.fixed->x_columns,
        .x_stride = q->view.fixed->x_columns,
    };
    (void)member;
    w->ops->gate_dot((int64_t *)w->out + entry, &args);
}

static void run_kernel(const mr_memshard *shard, mr_team_task task, kernel_work *work) {
    const uint32_t tokens = work->q->view.fixed->tokens;
    if (shard->team)
        mr_team_run(shard->team, task, work, tokens);
    else
        task(work, 0, 0, tokens);
}

static void pool(const mr_memshard *shard, const request *q, const float *weight, void *sums) {
    kernel_work work = {q, shard->ops, weight, sums};
    memset(sums, 0, q->answer_bytes);
    run_kernel(shard, pool_tokens, &work);
}

static void dots(const mr_memshard *shard, const request *q, const float *x, int64_t *dot) {
    kernel_work work = {q, shard->ops, x, dot};
    run_kernel(shard, dot_tokens, &work);
}

/* One trip: x gets its scale, the dots become gates, the gates and scores weights. */
static mr_status gate(const mr_memshard *shard, const request *q, void *memory, const float **out,
                      mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    int64_t *dot = memory;
    float *x = (float *)(dot + f->entries);
    float *weight = x + (size_t)f->tokens * f->x_columns;
    size_t at = 0;
    for (uint32_t t = 0; t < f->tokens; t++)
        for (uint32_t c = 0; c < f->x_columns; c++, at++)
            x[at] = mr_scale_exact(q->view.x[at], 62 - q->view.dot_exponent[t]);
    const mr_status status = check_norms(q, x, err);
    if (status != MR_OK) return status;
    dots(shard, q, x, dot);
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
    return check_sums(q, weight, err);
}

static void gather(const request *q, uint8_t *out) {
    const mr_rows *rows = &q->values;
    const uint32_t element_bytes = mr_element_bytes(rows->element);
    const size_t bytes = (size_t)rows->columns * element_bytes;
    if (bytes == 0) return;
    for (uint32_t j = 0; j < q->view.fixed->entries; j++, out += bytes) {
        const size_t row =
            (size_t)(q->value_row[j] - rows->row_first) * rows->stride * element_bytes;
        memcpy(out, (const uint8_t *)rows->data + row, bytes);
    }
}

/* --- scratch ---------------------------------------------------------------------------------- */

/* As many serving threads as scratches never wait here. */
static scratch *take_scratch(mr_memshard *shard, size_t bytes, mr_err *err) {
    for (uint32_t i = 0;; i = (i + 1) % SCRATCH_COUNT) {
        scratch *s = &shard->scratches[i];
        if (!atomic_exchange_explicit(&s->is_taken, true, memory_order_acquire)) {
            if (s->bytes >= bytes) return s;
            free(s->memory);
            s->bytes = 0;
            if (mr_try_alloc(&s->memory, bytes, 1, "scratch memory of a request", err) == MR_OK) {
                s->bytes = bytes;
                return s;
            }
            atomic_store_explicit(&s->is_taken, false, memory_order_release);
            return NULL;
        }
        if (i + 1 == SCRATCH_COUNT) sched_yield();
    }
}

static void give_scratch(scratch *s) {
    if (s) atomic_store_explicit(&s->is_taken, false, memory_order_release);
}

/* Only a gate needs any. */
static size_t scratch_bytes(const mr_wire_retrieve *f) {
    if (f->mode != MR_RETRIEVE_GATED_POOL) return 0;
    return (size_t)f->entries * sizeof(int64_t) +
           ((size_t)f->tokens * f->x_columns + (size_t)f->cores * f->entries) * sizeof(float);
}

/* --- frames ----------------------------------------------------------------------------------- */

/* The rows a request needs, from wherever its cell keeps them. */
static mr_status fetch(request *q, scratch *room, mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const bool pre = f->mode == MR_RETRIEVE_GATED_POOL || f->mode == MR_RETRIEVE_DOT;
    mr_status status = MR_OK;
    if (pre)
        status = mr_cell_fetch(q->cell, true, q->view.row, f->entries, &room->fetched[1],
                               &q->pre_values, &q->pre_row, err);
    if (status == MR_OK && f->mode != MR_RETRIEVE_DOT)
        status = mr_cell_fetch(q->cell, false, q->view.row, f->entries, &room->fetched[0],
                               &q->values, &q->value_row, err);
    return status;
}

static void compute(const mr_memshard *shard, const request *q, const float *weight, void *out) {
    if (q->view.fixed->mode == MR_RETRIEVE_GATHER)
        gather(q, out);
    else if (q->view.fixed->mode == MR_RETRIEVE_DOT)
        dots(shard, q, q->view.x, out);
    else
        pool(shard, q, weight, out);
}

/* All that may be refused is done before the answer is begun, but for rows that went bad under the
 * arithmetic: that answer is taken back. */
static mr_status answer(mr_memshard *shard, request *q, mr_link *reply, const mr_frame *frame,
                        mr_err *err) {
    const mr_wire_retrieve *f = q->view.fixed;
    const float *weight = q->view.weight;
    scratch *room = take_scratch(shard, scratch_bytes(f), err);
    if (!room) return MR_ERR_NOMEM;
    mr_status status = fetch(q, room, err);
    if (status == MR_OK) {
        if (f->mode == MR_RETRIEVE_GATED_POOL)
            status = gate(shard, q, room->memory, &weight, err);
        else if (f->mode == MR_RETRIEVE_POOL)
            status = check_sums(q, weight, err);
        else if (f->mode == MR_RETRIEVE_DOT)
            status = check_norms(q, q->view.x, err);
    }
    if (status == MR_OK) {
        const mr_wire_header header = {.type = mr_retrieve_answer_type(f),
                                       .request = frame->header->request,
                                       .epoch = frame->header->epoch};
        void *out = mr_link_begin(reply, &header, q->answer_bytes);
        if (!out)
            status = mr_fail(err, MR_ERR_LIMIT, "too many answers wait on this link");
        else {
            compute(shard, q, weight, out);
            status = mr_held_check(q->cell->held, err);
            if (status == MR_OK)
                mr_link_end(reply);
            else
                mr_link_abandon(reply);
        }
    }
    give_scratch(room);
    return status;
}

static void log_refusal(mr_memshard *shard, const mr_link *reply, const mr_err *err) {
    const int64_t now = mr_now_ns();
    int64_t until = atomic_load(&shard->quiet_until_ns);
    if (now < until) return;
    if (atomic_compare_exchange_strong(&shard->quiet_until_ns, &until,
                                       now + LOG_EVERY_MS * 1000000ll))
        mr_log_warn("%s: refused: %s", mr_link_peer(reply), err->text);
}

void mr_memshard_handle(void *context, mr_link *reply, const mr_frame *frame) {
    mr_memshard *shard = context;
    const mr_wire_header *header = frame->header;
    request q;
    mr_err err = {{0}};
    mr_status status = MR_OK;
    if (header->type != MR_FRAME_RETRIEVE)
        status = mr_fail(&err, MR_ERR_UNSUPPORTED, "a memshard does not answer %s frames",
                         mr_frame_name(header->type));
    else
        status = mr_retrieve_check(&q.view, frame, &err);
    if (status != MR_OK) {
        log_refusal(shard, reply, &err);
        mr_session_refuse(reply, header->request, status, err.text);
        return;
    }
    if (header->epoch != 0)
        status = mr_fail(&err, MR_ERR_MISMATCH, "table map of epoch %llu; this memshard's has none",
                         (unsigned long long)header->epoch);
    if (status == MR_OK) status = resolve(&q, shard, &err);
    if (status == MR_OK) status = answer(shard, &q, reply, frame, &err);
    if (status == MR_OK) return;
    log_refusal(shard, reply, &err);
    mr_link_send_error(reply, header->request, status, err.text);
}

/* --- open and close --------------------------------------------------------------------------- */

mr_status mr_memshard_plan(mr_store_plan *out, const mr_model *model, const mr_manifest *manifest,
                           mr_grid grid, uint32_t shard_index, uint32_t shard_count, mr_err *err) {
    mr_model_tables *tables;
    mr_status status = mr_model_tables_open(&tables, model, manifest, err);
    if (status != MR_OK) return status;
    status =
        mr_store_plan_of(out, mr_model_tables_source(tables), grid, shard_index, shard_count, err);
    mr_model_tables_close(tables);
    return status;
}

mr_status mr_memshard_open_source(mr_memshard **out, const mr_store_source *source,
                                  const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                                  uint32_t shard_count, mr_err *err) {
    mr_store_plan plan;
    *out = NULL;
    mr_status status = mr_store_plan_of(&plan, source, grid, shard_index, shard_count, err);
    if (status != MR_OK) return status;
    mr_memshard *shard = mr_alloc(sizeof(*shard));
    shard->ops = ops ? ops : mr_ops_find(NULL);
    shard->source = *source;
    shard->bytes = plan.mapped_bytes + plan.kept_bytes;
    status =
        mr_store_init(&shard->store, &shard->source, grid, shard_index, shard_count, NULL, err);
    if (status != MR_OK) {
        free(shard);
        return status;
    }
    *out = shard;
    return MR_OK;
}

mr_status mr_memshard_open(mr_memshard **out, const mr_model *model, const mr_manifest *manifest,
                           const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                           uint32_t shard_count, mr_err *err) {
    mr_model_tables *tables;
    *out = NULL;
    mr_status status = mr_model_tables_open(&tables, model, manifest, err);
    if (status != MR_OK) return status;
    status = mr_memshard_open_source(out, mr_model_tables_source(tables), ops, grid, shard_index,
                                     shard_count, err);
    if (status != MR_OK)
        mr_model_tables_close(tables);
    else
        (*out)->tables = tables;
    return status;
}

void mr_memshard_close(mr_memshard *shard) {
    if (!shard) return;
    for (uint32_t i = 0; i < SCRATCH_COUNT; i++) {
        assert(!atomic_load(&shard->scratches[i].is_taken));
        free(shard->scratches[i].memory);
        for (int side = 0; side < 2; side++)
            mr_fetch_scratch_free(&shard->scratches[i].fetched[side]);
    }
    mr_store_free(&shard->store);
    mr_model_tables_close(shard->tables);
    free(shard);
}

void mr_memshard_set_team(mr_memshard *shard, mr_team *team) {
    shard->team = team;
}

uint64_t mr_memshard_bytes(const mr_memshard *shard) {
    return shard->bytes;
}
uint32_t mr_memshard_cell_count(const mr_memshard *shard) {
    return shard->store.cell_count;
}
const uint32_t *mr_memshard_cells(const mr_memshard *shard) {
    return shard->store.cell_ids;
}
