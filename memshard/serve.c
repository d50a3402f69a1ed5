/* serve.c - see serve.h: frames in, answers out. */
#include "memshard/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/server.h"
#include "common/net/session.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_EVERY_MS = 1000 };

/* --- seats ------------------------------------------------------------------------------------ */

/* As many serving threads as seats never wait here. */
mr_seat *mr_seat_take(mr_memshard *shard, uint32_t lane, const mr_snapshot **held) {
    mr_seat *s;
    for (uint32_t i = 0;; i++) {
        s = &shard->seats[(lane + i) % MR_SEATS];
        if (!atomic_exchange_explicit(&s->is_taken, true, memory_order_acquire)) break;
        if (i % MR_SEATS == MR_SEATS - 1) sched_yield();
    }
    /* Whoever replaces the snapshot looks for pins after it did: either it sees ours, or we see
     * that it was replaced. */
    for (;;) {
        *held = atomic_load(&shard->held);
        atomic_store(&s->pinned, *held);
        if (atomic_load(&shard->held) == *held) return s;
    }
}

void mr_seat_give(mr_seat *s) {
    atomic_store_explicit(&s->pinned, NULL, memory_order_release);
    atomic_store_explicit(&s->is_taken, false, memory_order_release);
}

void *mr_seat_room(mr_seat *seat, size_t bytes, mr_err *err) {
    if (seat->bytes >= bytes) return seat->memory;
    if (bytes > MR_SEAT_BYTES_MAX) {
        mr_fail(err, MR_ERR_LIMIT, "a request that needs %zu bytes of room; at most %d", bytes,
                MR_SEAT_BYTES_MAX);
        return NULL;
    }
    free(seat->memory);
    seat->bytes = 0;
    if (mr_try_alloc(&seat->memory, bytes, 1, "the room of a request", err) != MR_OK) return NULL;
    seat->bytes = bytes;
    return seat->memory;
}

/* --- answers ---------------------------------------------------------------------------------- */

/* Version 1 has no waiting time in answers. */
static uint32_t waited_of(const mr_asked *asked) {
    return mr_link_version(asked->reply) == 1 ? 0 : asked->waited_us;
}

void *mr_answer_begin(const mr_asked *asked, uint16_t type, uint32_t bytes, mr_err *err) {
    const mr_wire_header header = {.type = type,
                                   .request = asked->header->request,
                                   .epoch = asked->header->epoch,
                                   .budget_us = waited_of(asked)};
    void *out = mr_link_begin(asked->reply, &header, bytes);
    if (!out) mr_fail(err, MR_ERR_LIMIT, "too many answers wait on this link");
    return out;
}

mr_status mr_answer_end(const mr_asked *asked, const mr_request *q, mr_err *err) {
    const mr_status status = q->cell ? mr_held_check(q->cell->held, err) : MR_OK;
    if (status == MR_OK)
        mr_link_end(asked->reply);
    else
        mr_link_abandon(asked->reply);
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

void mr_serve_refuse(mr_memshard *shard, mr_link *reply, uint64_t request, mr_status status,
                     const mr_err *err) {
    log_refusal(shard, reply, err);
    mr_session_refuse(reply, request, status, err->text);
}

/* What went wrong with one request. A late or a stale one is part of normal life: counted only. */
static void send_error(const mr_asked *asked, mr_status status, const mr_err *err) {
    mr_memshard *shard = asked->shard;
    const mr_wire_header header = {.type = MR_FRAME_ERROR,
                                   .request = asked->header->request,
                                   .budget_us = waited_of(asked),
                                   .status = status};
    atomic_fetch_add_explicit(&shard->counts.refused, 1, memory_order_relaxed);
    if (status == MR_ERR_TIMEOUT)
        atomic_fetch_add_explicit(&shard->counts.expired, 1, memory_order_relaxed);
    else if (status == MR_ERR_STALE)
        atomic_fetch_add_explicit(&shard->counts.stale, 1, memory_order_relaxed);
    else
        log_refusal(shard, asked->reply, err);
    mr_link_send(asked->reply, &header, err->text,
                 (uint32_t)strnlen(err->text, MR_ERR_TEXT_BYTES - 1));
}

/* --- requests --------------------------------------------------------------------------------- */

static mr_grid grid_of(const mr_link *link) {
    const mr_link_grid grid = mr_link_get_grid(link);
    return (mr_grid){grid.rows, grid.columns};
}

mr_status mr_serve_check(mr_any_view *view, const mr_frame *frame, mr_err *err) {
    switch (frame->header->type) {
    case MR_FRAME_RETRIEVE:
        return mr_retrieve_check(&view->retrieve, frame, err);
    case MR_FRAME_TOPK:
        return mr_topk_check(&view->topk, frame, err);
    case MR_FRAME_PREFETCH:
        return mr_prefetch_check(&view->prefetch, frame, err);
    case MR_FRAME_CANCEL:
        return mr_frame_check(frame, err);
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "a memshard does not answer %s frames",
                   mr_frame_name(frame->header->type));
}

static mr_status answer(const mr_asked *asked, const mr_any_view *view, mr_err *err) {
    const uint32_t budget_us = asked->header->budget_us;
    if (budget_us > 0 && asked->waited_us >= budget_us)
        return mr_fail(err, MR_ERR_TIMEOUT, "too late: the request waited %u us of its %u",
                       asked->waited_us, budget_us);
    if (asked->header->type == MR_FRAME_TOPK) return mr_answer_topk(asked, &view->topk, err);
    mr_request q = {.view = view->retrieve};
    return mr_answer_retrieve(asked, &q, err);
}

void mr_serve_now(mr_memshard *shard, mr_link *reply, const mr_wire_header *header,
                  const mr_any_view *view, int64_t seen_ns) {
    const int64_t begun = mr_now_ns(), came = seen_ns ? seen_ns : begun;
    const int64_t waited_us = (begun - came) / 1000;
    const mr_snapshot *held;
    mr_err err = {{0}};
    mr_asked asked = {.shard = shard,
                      .seat = mr_seat_take(shard, mr_link_lane(reply), &held),
                      .reply = reply,
                      .header = header,
                      .waited_us = waited_us < UINT32_MAX ? (uint32_t)waited_us : UINT32_MAX};
    asked.model = mr_snapshot_find(held, mr_link_digest(reply), grid_of(reply));
    const mr_status status = answer(&asked, view, &err);
    const int64_t now = mr_now_ns();
    mr_stats_note(asked.seat, now, now - came);
    mr_seat_give(asked.seat);
    if (status != MR_OK) send_error(&asked, status, &err);
}

/* A wish: what is not held is skipped. */
void mr_serve_prefetch(mr_memshard *shard, mr_link *link, uint32_t layer, uint32_t cell,
                       const uint32_t *row, uint32_t rows, bool only_tiered) {
    const mr_snapshot *held;
    mr_seat *seat = mr_seat_take(shard, mr_link_lane(link), &held);
    const mr_model_held *model = mr_snapshot_find(held, mr_link_digest(link), grid_of(link));
    if (model && layer < model->tables->layer_count &&
        cell < model->grid.row_groups * model->grid.width_slices && model->by_cell[cell]) {
        const mr_cell *c = mr_held_cell(model->by_cell[cell], model->tables->layers[layer]->table);
        if (!only_tiered || c->side[0].is_tiered) mr_cell_prefetch(c, row, rows);
    }
    mr_seat_give(seat);
}

void mr_memshard_handle(void *context, mr_link *reply, const mr_frame *frame) {
    mr_memshard *shard = context;
    const mr_wire_header *header = frame->header;
    mr_any_view view;
    mr_err err = {{0}};
    const bool waits = header->type == MR_FRAME_RETRIEVE || header->type == MR_FRAME_TOPK;
    if (waits && mr_queue_put(shard, reply, frame)) return;
    const mr_status status = mr_serve_check(&view, frame, &err);
    if (status != MR_OK) {
        mr_serve_refuse(shard, reply, header->request, status, &err);
        return;
    }
    if (header->type == MR_FRAME_CANCEL) {
        mr_queue_cancel(shard, reply, header->request);
    } else if (header->type == MR_FRAME_PREFETCH) {
        const mr_wire_prefetch *f = view.prefetch.fixed;
        atomic_fetch_add_explicit(&shard->counts.prefetched, f->rows, memory_order_relaxed);
        mr_serve_prefetch(shard, reply, f->layer, f->cell, view.prefetch.row, f->rows, false);
    } else {
        mr_serve_now(shard, reply, header, &view, mr_link_seen_ns(reply));
    }
}

/* --- sessions --------------------------------------------------------------------------------- */

/* The cells a session is told of: copied, because they may change the next moment; kept for the
 * thread until its next session. */
static pthread_once_t offered_once = PTHREAD_ONCE_INIT;
static pthread_key_t offered_key;

static void make_offered_key(void) {
    if (pthread_key_create(&offered_key, free) != 0) abort();
}

static mr_wire_cell *copy_cells(const mr_model_held *model) {
    pthread_once(&offered_once, make_offered_key);
    free(pthread_getspecific(offered_key));
    mr_wire_cell *cells = mr_alloc_array(model->cell_count, sizeof(*cells));
    pthread_setspecific(offered_key, cells);
    for (uint32_t i = 0; i < model->cell_count; i++) cells[i].cell = model->cell_ids[i];
    return cells;
}

mr_status mr_memshard_offer(void *context, const mr_wire_hello *hello, mr_session_offer *out,
                            mr_err *err) {
    mr_memshard *shard = context;
    const mr_snapshot *held;
    const mr_grid asked = {out->grid_rows, out->grid_columns};
    mr_digest digest;
    char text[MR_DIGEST_TEXT_BYTES];
    mr_status status = MR_OK;
    memcpy(digest.bytes, hello->digest, sizeof(digest.bytes));
    mr_seat *seat = mr_seat_take(shard, 0, &held);
    const mr_model_held *model = mr_snapshot_find(held, &digest, asked);
    if (model) {
        out->digest = model->digest;
        out->grid_rows = model->grid.row_groups;
        out->grid_columns = model->grid.width_slices;
        out->cell_count = model->cell_count;
        out->tail = copy_cells(model);
        out->tail_bytes = model->cell_count * (uint32_t)sizeof(mr_wire_cell);
    } else if (held->count > 0) {
        mr_digest_text(&digest, text);
        status =
            mr_fail(err, MR_ERR_MISMATCH,
                    "this memshard holds no cells of the model with digest %.12s...%s", text,
                    mr_snapshot_find(held, &digest, (mr_grid){0}) ? " in the grid asked for" : "");
    } else if (memcmp(&digest, &(mr_digest){0}, sizeof(digest)) != 0) {
        status = mr_fail(err, MR_ERR_MISMATCH, "this memshard holds nothing yet");
    } else {
        out->grid_rows = out->grid_columns = 1; /* of no cells */
    }
    mr_seat_give(seat);
    return status;
}

void mr_memshard_serve_options(mr_memshard *shard, mr_server_options *out) {
    out->role = MR_ROLE_MEMSHARD;
    out->offer = mr_memshard_offer;
    out->handler = mr_memshard_handle;
    out->round_over = mr_memshard_round_over;
    out->link_closed = mr_memshard_link_closed;
    out->context = shard;
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

/* Cells index, index + count, .. of a source. Closes the source when that fails. */
static mr_status open_static(mr_memshard **out, mr_table_source *source, const mr_ops *ops,
                             mr_grid grid, uint32_t index, uint32_t count, mr_err *err) {
    mr_store_plan plan;
    mr_memshard *shard = NULL;
    uint32_t *cells = NULL;
    *out = NULL;
    mr_status status = mr_store_plan_of(&plan, source->tables, grid, index, count, err);
    if (status == MR_OK) status = mr_memshard_open_empty(&shard, ops, err);
    if (status != MR_OK) {
        if (source->close) source->close(source);
        return status;
    }
    shard->is_static = true;
    cells = mr_alloc_array(plan.cell_count, sizeof(*cells));
    for (uint32_t i = 0; i < plan.cell_count; i++) cells[i] = index + i * count;
    const mr_load_order order = {
        .source = "", .grid = grid, .cells = cells, .cell_count = plan.cell_count};
    status = mr_memshard_adopt(shard, source, &order, NULL, NULL, err);
    free(cells);
    if (status != MR_OK) {
        mr_memshard_close(shard);
        return status;
    }
    *out = shard;
    return MR_OK;
}

mr_status mr_memshard_open_source(mr_memshard **out, const mr_store_source *tables,
                                  const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                                  uint32_t shard_count, mr_err *err) {
    mr_table_source source = {.tables = tables};
    return open_static(out, &source, ops, grid, shard_index, shard_count, err);
}

static void close_tables(mr_table_source *source) {
    mr_model_tables_close(source->own);
}

mr_status mr_memshard_open(mr_memshard **out, const mr_model *model, const mr_manifest *manifest,
                           const mr_ops *ops, mr_grid grid, uint32_t shard_index,
                           uint32_t shard_count, mr_err *err) {
    mr_model_tables *tables;
    *out = NULL;
    const mr_status status = mr_model_tables_open(&tables, model, manifest, err);
    if (status != MR_OK) return status;
    mr_table_source source = {.tables = mr_model_tables_source(tables),
                              .digest = manifest->digest,
                              .model = model,
                              .close = close_tables,
                              .own = tables};
    return open_static(out, &source, ops, grid, shard_index, shard_count, err);
}

void mr_memshard_set_team(mr_memshard *shard, mr_team *team) {
    shard->team = team;
}

uint64_t mr_memshard_bytes(mr_memshard *shard) {
    return mr_memshard_look(shard).bytes_held;
}

static const mr_model_held *first_of(mr_memshard *shard) {
    const mr_snapshot *held = atomic_load(&shard->held);
    return held->count > 0 ? held->models[0] : NULL;
}

uint32_t mr_memshard_cell_count(mr_memshard *shard) {
    const mr_model_held *first = first_of(shard);
    return first ? first->cell_count : 0;
}
const uint32_t *mr_memshard_cells(mr_memshard *shard) {
    const mr_model_held *first = first_of(shard);
    return first ? first->cell_ids : NULL;
}
