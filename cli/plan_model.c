/* plan_model.c - see plan_model.h. */
#include "cli/plan_model.h"

#include "common/base/mem.h"
#include "common/model/geometry.h"
#include "common/model/grid.h"
#include "common/model/rows.h"
#include "common/model/matrices.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* --- subjects --------------------------------------------------------------------------------- */

void mr_plan_subject_free(mr_plan_subject *s) {
    free(s->tables);
    free(s->layers);
    *s = (mr_plan_subject){0};
}

static void add_tables(mr_plan_subject *s) {
    for (uint32_t i = 0; i < s->table_count; i++) {
        const mr_table_shape *t = &s->tables[i];
        s->table_bytes += t->rows * (mr_storage_bytes(t->storage, t->width) +
                                     mr_storage_bytes(t->pre_storage, t->pre_width));
    }
}

static void add_config(mr_plan_subject *s, const mr_config *c) {
    s->blocks = c->n_layers;
    s->context_tokens = c->context_tokens;
    s->kv_token_bytes = 2ull * c->n_layers * c->n_kv_heads * c->head_dim * sizeof(float);
    s->experts = c->moe ? c->experts : 0;
    s->experts_per_token = c->moe ? c->experts_per_token : 0;
}

/* By name, as everywhere; tables are counted by their shapes. */
static void add_tensor(mr_plan_subject *s, const char *name, uint64_t bytes, uint64_t elements,
                       bool is_table, bool is_tied) {
    uint32_t index;
    bool is_memory;
    const mr_tensor_kind kind = mr_tensor_kind_of(&index, &is_memory, name);
    if (is_table || kind == MR_TENSOR_UNUSED || (kind == MR_TENSOR_HEAD && is_tied)) return;
    if (kind == MR_TENSOR_SHUFFLE)
        s->index_bytes += elements * sizeof(uint32_t);
    else if (kind == MR_TENSOR_KEYS)
        s->key_bytes += bytes;
    else if (kind == MR_TENSOR_EXPERT)
        s->expert_bytes += bytes;
    else {
        s->dense_bytes += bytes;
        if (is_tied || kind != MR_TENSOR_EMBEDDING) s->token_dense_bytes += bytes;
    }
}

mr_status mr_plan_subject_open(mr_plan_subject *out, const char *directory, mr_err *err) {
    mr_model *model;
    *out = (mr_plan_subject){0};
    const mr_status status = mr_model_open(&model, directory, err);
    if (status != MR_OK) return status;
    const mr_config *c = mr_model_config(model);
    snprintf(out->name, sizeof(out->name), "%s", mr_model_name(model));
    add_config(out, c);
    out->table_count = mr_model_table_count(model);
    out->layer_count = mr_model_memory_count(model);
    out->tables = mr_alloc_array(out->table_count + 1u, sizeof(*out->tables));
    out->layers = mr_alloc_array(out->layer_count + 1u, sizeof(*out->layers));
    for (uint32_t i = 0; i < out->table_count; i++) out->tables[i] = *mr_model_table(model, i);
    for (uint32_t i = 0; i < out->layer_count; i++) out->layers[i] = *mr_model_memory(model, i);
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        bool is_table = false;
        for (uint32_t j = 0; j < out->table_count; j++)
            is_table |= out->tables[j].values == t || out->tables[j].pre_values == t;
        add_tensor(out, t->name, t->bytes, mr_tensor_numbers(t), is_table,
                   c->tied && !c->quant.is_packed);
    }
    for (uint32_t i = 0; i < out->table_count; i++)
        out->tables[i].values = out->tables[i].pre_values = NULL;
    add_tables(out);
    mr_model_close(model);
    return MR_OK;
}

typedef struct {
    mr_tensor *items;
    uint32_t count;
} tensor_list;

static const mr_tensor *find_tensor(const void *context, const char *name) {
    const tensor_list *list = context;
    for (uint32_t i = 0; i < list->count; i++)
        if (strcmp(list->items[i].name, name) == 0) return &list->items[i];
    return NULL;
}

static void mark_nothing(void *context, const mr_tensor *tensor, uint64_t columns) {
    (void)context, (void)tensor, (void)columns;
}

/* The tensors such a model would have, stored as bf16, through the same checks as a real one. */
mr_status mr_plan_subject_of_shape(mr_plan_subject *out, const mr_shape *shape, mr_err *err) {
    char *json;
    mr_config c;
    mr_synth_tensor *synth;
    tensor_list list = {0};
    *out = (mr_plan_subject){0};
    mr_status status = mr_shape_config(&json, shape, err);
    if (status != MR_OK) return status;
    status = mr_config_parse(&c, json, strlen(json), "the preset", err);
    free(json);
    if (status != MR_OK) return status;
    snprintf(out->name, sizeof(out->name), "%s", shape->name);
    add_config(out, &c);
    mr_shape_tensors(&synth, &list.count, shape);
    list.items = mr_alloc_array(list.count + 1u, sizeof(*list.items));
    for (uint32_t i = 0; i < list.count; i++) {
        mr_tensor *t = &list.items[i];
        const uint64_t elements = mr_synth_elements(&synth[i]);
        *t = (mr_tensor){.name = synth[i].name,
                         .dtype = synth[i].role == MR_ROLE_INDEX ? MR_DTYPE_I64 : MR_DTYPE_BF16,
                         .dims = synth[i].dims};
        memcpy(t->shape, synth[i].shape, sizeof(synth[i].shape));
        t->bytes = elements * mr_dtype_bytes(t->dtype);
        add_tensor(out, t->name, t->bytes, elements, synth[i].role == MR_ROLE_TABLE, c.tied);
    }
    out->tables = mr_alloc_array(c.memory_count + 1u, sizeof(*out->tables));
    out->layers = mr_alloc_array(c.memory_count + 1u, sizeof(*out->layers));
    mr_geometry g = {.find = find_tensor,
                     .context = &list,
                     .config = &c,
                     .tables = out->tables,
                     .layers = out->layers,
                     .mark = mark_nothing};
    status = mr_geometry_check(&g, err);
    out->table_count = g.table_count;
    out->layer_count = c.memory_count;
    add_tables(out);
    free(list.items);
    free(synth);
    mr_config_free(&c);
    if (status != MR_OK) mr_plan_subject_free(out);
    return status;
}

/* --- bytes ------------------------------------------------------------------------------------ */

/* Row groups that at least one of k random rows falls into. */
static double groups_touched(uint32_t groups, uint32_t k) {
    return groups * (1 - pow(1 - 1.0 / groups, k));
}

/* Cores whose columns a slice has: weights are sent for those only. */
static uint32_t cores_of_slice(const mr_memory_layer *l, uint32_t width, mr_span slice) {
    if (slice.count == 0) return 0;
    const uint32_t chunk = width / l->cores;
    return (uint32_t)((slice.first + slice.count - 1) / chunk - slice.first / chunk + 1);
}

mr_plan_traffic mr_plan_pooled(const mr_plan_subject *s, uint32_t layer, uint32_t grid_rows,
                               uint32_t grid_columns) {
    const mr_memory_layer *l = &s->layers[layer];
    const mr_table_shape *t = &s->tables[l->table];
    const double k = l->entries, touched = groups_touched(grid_rows, l->entries);
    const bool two_trips = l->gated && grid_columns > 1;
    mr_plan_traffic out = {.trips = two_trips ? 2 : 1, .rows = ceil(k / grid_rows)};
    for (uint32_t w = 0; w < grid_columns; w++) {
        const mr_span slice = mr_grid_part(t->width, grid_columns, w),
                      pre = mr_grid_part(t->pre_width, grid_columns, w);
        const double cores = cores_of_slice(l, t->width, slice);
        /* ids, slots, weights or scores; the count of every token and cell */
        out.up += k * (4 + (l->slots_out > 1) + 4 * cores) + 4 * touched;
        out.down += touched * l->slots_out * (double)slice.count * (l->gated ? 8 : 4);
        if (l->gated && !two_trips) out.up += touched * (4.0 * t->pre_width + 2 * sizeof(int16_t));
        if (!two_trips) continue;
        out.up += k * 4 + touched * (4 + 4.0 * (double)pre.count);
        out.down += k * 8;
    }
    return out;
}

mr_plan_traffic mr_plan_gathered(const mr_plan_subject *s, uint32_t layer, uint32_t shards) {
    const mr_memory_layer *l = &s->layers[layer];
    const mr_table_shape *t = &s->tables[l->table];
    const double row = (double)mr_storage_bytes(t->storage, t->width) +
                       (double)mr_storage_bytes(t->pre_storage, t->pre_width);
    return (mr_plan_traffic){.up = 4.0 * l->entries + 4 * groups_touched(shards, l->entries),
                             .down = row * l->entries,
                             .trips = 1,
                             .rows = ceil((double)l->entries / shards)};
}

/* --- time ------------------------------------------------------------------------------------- */

static double layer_us(const mr_plan_rack *r, const mr_plan_traffic *t) {
    const double most = t->up > t->down ? t->up : t->down; /* both ways at once */
    const double wire_us = r->batch * most * 8 / (r->nic_gbps * 1e3);
    return t->trips * r->latency_us + wire_us + r->batch * t->rows / r->rows_per_s * 1e6;
}

/* Part of a step's dense time that runs between a layer's begin and its finish: the blocks of its
 * window, or the feed-forward beside it (taken for half a block). */
static double window_us(const mr_plan_subject *s, uint32_t layer, double dense_us) {
    const mr_memory_layer *l = &s->layers[layer];
    const double blocks = l->destination > l->source ? l->destination - l->source + 0.5 : 0.5;
    return dense_us * blocks / s->blocks;
}

static double dense_us_of(const mr_plan_subject *s, const mr_plan_rack *r) {
    double bytes = (double)s->token_dense_bytes + (double)s->key_bytes +
                   (double)s->kv_token_bytes * r->context_tokens * r->batch;
    if (s->experts) /* experts at least one token chose */
        bytes += (double)s->expert_bytes *
                 (1 - pow(1 - (double)s->experts_per_token / s->experts, r->batch));
    return bytes / (r->read_gbs * 1e3);
}

static void finish_choice(mr_plan_choice *c, const mr_plan_subject *s, const mr_plan_rack *r,
                          double dense_us, uint32_t shards) {
    for (uint32_t i = 0; i < s->layer_count; i++) {
        const mr_plan_traffic t = c->is_gather
                                      ? mr_plan_gathered(s, i, shards)
                                      : mr_plan_pooled(s, i, c->grid_rows, c->grid_columns);
        const double wait = layer_us(r, &t) - window_us(s, i, dense_us);
        c->token_bytes += t.up + t.down;
        c->trips += t.trips;
        c->wait_us += wait > 0 ? wait : 0;
    }
    c->step_us = dense_us + c->wait_us;
    c->tokens_per_s = r->batch * 1e6 / c->step_us;
}

static double narrowest(const mr_plan_subject *s, uint32_t columns) {
    double least = INFINITY;
    for (uint32_t i = 0; i < s->table_count; i++) {
        const mr_table_shape *t = &s->tables[i];
        least = fmin(least, (double)mr_storage_bytes(t->storage, t->width / columns));
    }
    return least;
}

/* Quicker first; within one part in a hundred, fewer bytes. */
static int compare_choices(const void *a, const void *b) {
    const mr_plan_choice *x = a, *y = b;
    const double step = round(log(x->step_us) * 100) - round(log(y->step_us) * 100);
    if (step != 0) return step < 0 ? -1 : 1;
    if (x->token_bytes != y->token_bytes) return x->token_bytes < y->token_bytes ? -1 : 1;
    return 0;
}

mr_status mr_plan_make(mr_plan *out, const mr_plan_subject *s, const mr_plan_rack *r, mr_err *err) {
    *out = (mr_plan){0};
    if (r->nodes < r->replicas)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "%u replicas of a cell need %u nodes or more; the rack has %u", r->replicas,
                       r->replicas, r->nodes);
    out->shards = r->nodes / r->replicas;
    out->kv_bytes = s->kv_token_bytes * r->context_tokens * r->batch;
    out->worker_bytes =
        s->dense_bytes + s->expert_bytes + s->key_bytes + s->index_bytes + out->kv_bytes;
    out->memshard_bytes = (s->table_bytes + out->shards - 1) / out->shards;
    out->fits_hbm = out->worker_bytes <= r->hbm_bytes;
    out->fits_dram = out->memshard_bytes <= r->dram_bytes;
    out->nodes_wanted =
        r->replicas * (uint32_t)((s->table_bytes + r->dram_bytes - 1) / r->dram_bytes);
    out->dense_us = dense_us_of(s, r);
    if (s->layer_count == 0) return MR_OK;
    for (uint32_t w = 1; w <= out->shards && out->choice_count < MR_PLAN_CHOICES - 1; w++) {
        if (out->shards % w != 0) continue;
        const double slice = narrowest(s, w);
        if (slice < MR_PLAN_SLICE_BYTES_MIN) break;
        mr_plan_choice *c = &out->choices[out->choice_count++];
        *c = (mr_plan_choice){
            .grid_rows = out->shards / w, .grid_columns = w, .slice_bytes_min = slice};
        finish_choice(c, s, r, out->dense_us, out->shards);
    }
    mr_plan_choice *gather = &out->choices[out->choice_count++];
    *gather = (mr_plan_choice){.grid_rows = out->shards,
                               .grid_columns = 1,
                               .is_gather = true,
                               .slice_bytes_min = narrowest(s, 1)};
    finish_choice(gather, s, r, out->dense_us, out->shards);
    qsort(out->choices, out->choice_count, sizeof(*out->choices), compare_choices);
    return MR_OK;
}
