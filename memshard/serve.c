/* serve.c - see serve.h: frames in, answers out. */
#include "memshard/serve_impl.h"

#include "common/base/clock.h"
#include "common/base/limits.h"
#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/net/session.h"

#include <assert.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum { LOG_EVERY_MS = 1000 };

/* --- seats ------------------------------------------------------------------------------------ */

/* As many serving threads as seats never wait here. */
static mr_seat *take_seat(mr_memshard *shard, uint32_t lane) {
    for (uint32_t i = 0;; i++) {
        mr_seat *s = &shard->seats[(lane + i) % MR_SEATS];
        if (!atomic_exchange_explicit(&s->is_taken, true, memory_order_acquire)) return s;
        if (i % MR_SEATS == MR_SEATS - 1) sched_yield();
    }
}

static void give_seat(mr_seat *s) {
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

/* --- frames ----------------------------------------------------------------------------------- */

void *mr_answer_begin(const mr_asked *asked, uint16_t type, uint32_t bytes, mr_err *err) {
    const mr_wire_header header = {
        .type = type, .request = asked->header->request, .epoch = asked->header->epoch};
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

typedef union {
    mr_retrieve_view retrieve;
    mr_topk_view topk;
} any_view;

static mr_status check_frame(any_view *view, const mr_frame *frame, mr_err *err) {
    switch (frame->header->type) {
    case MR_FRAME_RETRIEVE:
        return mr_retrieve_check(&view->retrieve, frame, err);
    case MR_FRAME_TOPK:
        return mr_topk_check(&view->topk, frame, err);
    }
    return mr_fail(err, MR_ERR_UNSUPPORTED, "a memshard does not answer %s frames",
                   mr_frame_name(frame->header->type));
}

static mr_status answer(const mr_asked *asked, const any_view *view, mr_err *err) {
    if (asked->header->type == MR_FRAME_TOPK) return mr_answer_topk(asked, &view->topk, err);
    mr_request q = {.view = view->retrieve};
    return mr_answer_retrieve(asked, &q, err);
}

void mr_memshard_handle(void *context, mr_link *reply, const mr_frame *frame) {
    mr_memshard *shard = context;
    const mr_wire_header *header = frame->header;
    any_view view;
    mr_err err = {{0}};
    mr_status status = check_frame(&view, frame, &err);
    if (status != MR_OK) {
        log_refusal(shard, reply, &err);
        mr_session_refuse(reply, header->request, status, err.text);
        return;
    }
    const mr_asked asked = {shard, take_seat(shard, mr_link_lane(reply)), reply, header};
    status = answer(&asked, &view, &err);
    give_seat(asked.seat);
    if (status == MR_OK) return;
    log_refusal(shard, reply, &err);
    mr_link_send_error(reply, header->request, status, err.text);
}

/* --- open and close --------------------------------------------------------------------------- */

static void free_keys(mr_product_keys *keys, uint32_t count) {
    for (uint32_t i = 0; keys && i < count; i++) mr_product_keys_free(&keys[i]);
    free(keys);
}

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

mr_status mr_memshard_open_keys(mr_memshard *shard, const mr_model *model, mr_err *err) {
    const uint32_t layers = mr_model_memory_count(model);
    uint64_t keys, index;
    mr_store_plan plan = {0};
    assert(!shard->keys && layers == shard->source.layer_count);
    for (uint32_t i = 0; i < layers; i++) {
        mr_product_keys_plan(&keys, &index, model, i);
        plan.kept_bytes += keys + index;
    }
    mr_status status = mr_store_fits(&plan, mr_memory_available(), err);
    if (status != MR_OK) return status;
    mr_product_keys *all = mr_alloc_array(layers, sizeof(*all));
    for (uint32_t i = 0; i < layers && status == MR_OK; i++)
        status = mr_product_keys_open(&all[i], model, i, err);
    if (status != MR_OK) {
        free_keys(all, layers);
        return status;
    }
    shard->keys = all;
    shard->bytes += plan.kept_bytes;
    return MR_OK;
}

void mr_memshard_close(mr_memshard *shard) {
    if (!shard) return;
    for (uint32_t i = 0; i < MR_SEATS; i++) {
        assert(!atomic_load(&shard->seats[i].is_taken));
        free(shard->seats[i].memory);
        for (int side = 0; side < 2; side++) mr_fetch_scratch_free(&shard->seats[i].fetched[side]);
    }
    free_keys(shard->keys, shard->source.layer_count);
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
