/* engine.c - see engine.h: sizes, buffers, opening and closing. The step itself is in step.c. */
#include "worker/engine_impl.h"

#include "common/base/mem.h"
#include "common/ops/dense.h"
#include "worker/stage.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEP_TOKENS_DEFAULT = 512, STEP_SEQUENCES_DEFAULT = 64, TIMEOUT_MS_DEFAULT = 500 };

/* A buffer: where its pointer lies in the engine, how many elements of which size. */
typedef struct {
    void **at;
    uint64_t count;
    uint32_t bytes;
} buffer;
enum { BUFFERS_MAX = 48 };

typedef struct {
    buffer list[BUFFERS_MAX];
    uint32_t used;
} buffers;

static void want(buffers *b, void *at, uint64_t count, uint32_t bytes) {
    if (count > 0) b->list[b->used++] = (buffer){at, count, bytes};
}
#define WANT(field, count) want(b, &(field), (count), sizeof(*(field)))

static void want_step(buffers *b, mr_engine *e) {
    const mr_config *c = e->config;
    const uint64_t t = e->step_tokens_max, d = c->d_model,
                   kv = (uint64_t)c->n_kv_heads * c->head_dim;
    WANT(e->b.x, t * d);
    WANT(e->b.h, t * d);
    WANT(e->b.f, t * d);
    WANT(e->b.qkv, t * (c->query_width + 2 * kv));
    WANT(e->b.attention, t * c->query_width);
    WANT(e->b.out, t * d);
    WANT(e->b.cosine, t * (c->head_dim / 2));
    WANT(e->b.sine, t * (c->head_dim / 2));
    WANT(e->b.position, t);
    WANT(e->b.sequence, t);
    WANT(e->b.block_first, e->step_sequences_max);
    const uint32_t head_rows = e->has_head ? c->head_rows : 0;
    WANT(e->b.logits, (uint64_t)MR_LOGIT_ROWS * head_rows);
    if (e->has_head) WANT(e->b.logit_x, MR_LOGIT_ROWS * d);
    WANT(e->b.select_scratch, (head_rows > c->experts ? head_rows : c->experts) + 32ull);
    WANT(e->b.candidates, head_rows);
    WANT(e->b.prepared, t * mr_weights_prepared_bytes(e->model, e->blocks, e->ops));
    WANT(e->rope_frequency, c->head_dim / 2);
    const uint64_t dense = mr_config_has_dense(c) ? c->mlp_hidden : 0;
    WANT(e->b.ffn, t * (dense > 2ull * c->shared_hidden ? dense : 2ull * c->shared_hidden));
    if (!c->moe) return;
    if (c->shared_hidden) WANT(e->b.shared_gate, t);
    const uint64_t chosen = t * c->experts_per_token;
    WANT(e->b.router, t * c->experts);
    WANT(e->b.expert_index, chosen);
    WANT(e->b.expert_weight, chosen);
    WANT(e->b.expert_out, chosen * d);
    WANT(e->b.expert_slots, chosen);
    WANT(e->b.expert_x, t * d);
    WANT(e->b.expert_gate, t * c->expert_hidden);
    WANT(e->b.expert_up, t * c->expert_hidden);
}

/* The largest of every memory layer's needs: layers take turns in one set of buffers. */
typedef struct {
    uint64_t entries, cores, query, pre, width, slots_width, key_scores, scratch;
} memory_needs;

#define GROW(field, value)                                                                         \
    do {                                                                                           \
        if ((uint64_t)(value) > needs.field) needs.field = (uint64_t)(value);                      \
    } while (0)
static memory_needs needs_of(const mr_engine *e) {
    const mr_model *model = e->model;
    const mr_config *c = mr_model_config(model);
    memory_needs needs = {0};
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        if (!mr_range_has(e->blocks, l->source)) continue;
        const mr_table_shape *t = mr_model_table(model, l->table);
        const bool own = mr_memory_is_plain(c->memory);
        GROW(entries, l->entries);
        GROW(cores, l->cores);
        GROW(query, (own ? l->heads : 2u) * 2ull * l->key_dim); /* UltraMem: one or two groups */
        GROW(pre, t->pre_width);
        GROW(width, t->width);
        GROW(slots_width, (uint64_t)l->slots_out * t->width);
        GROW(key_scores, mr_key_score_floats(l));
        GROW(scratch, mr_product_key_scratch(l));
    }
    return needs;
}

static void want_memory(buffers *b, mr_engine *e) {
    const memory_needs needs = needs_of(e);
    const uint64_t t = e->step_tokens_max, d = e->config->d_model;
    e->m.scratch_bytes = (size_t)needs.scratch;
    WANT(e->m.index, t * needs.entries);
    WANT(e->m.row, t * needs.entries);
    WANT(e->m.slot, t * needs.entries);
    WANT(e->m.score, t * needs.entries * needs.cores);
    WANT(e->m.pre, t * needs.entries);
    WANT(e->m.query, t * needs.query);
    WANT(e->m.x, t * needs.pre);
    if (e->config->memory == MR_MEMORY_PLUS || e->config->mem_silu)
        WANT(e->m.silu, t * needs.width);
    WANT(e->m.pooled, t * needs.slots_width);
    WANT(e->m.output, t * d);
    WANT(e->m.input, t * d);
    WANT(e->m.value_exponent, t);
    WANT(e->m.dot_exponent, t);
    WANT(e->m.key_score, needs.key_scores);
    WANT(e->m.scratch, mr_team_size(e->team) * needs.scratch);
}

static uint64_t kv_floats(const mr_engine *e) {
    const mr_config *c = e->config;
    return 2ull * e->blocks.count * e->kv_blocks * c->n_kv_heads * MR_KV_BLOCK_TOKENS * c->head_dim;
}

static mr_status allocate(mr_engine *e, mr_err *err) {
    buffers all = {.used = 0};
    want_step(&all, e);
    if (e->has_memory) want_memory(&all, e);
    for (uint32_t i = 0; i < all.used; i++) {
        const buffer *b = &all.list[i];
        void *memory;
        const mr_status status =
            mr_try_alloc(&memory, (size_t)b->count, b->bytes, "step buffer", err);
        if (status != MR_OK) return status;
        memcpy(b->at, &memory,
               sizeof(memory)); /* any pointer type: they share one representation */
    }
    void *kv; /* a position is written before it is read */
    const mr_status status =
        mr_try_alloc_raw(&kv, (size_t)kv_floats(e), sizeof(float), "KV cache", err);
    e->kv = kv;
    return status;
}

static void release(mr_engine *e) {
    buffers all = {.used = 0};
    want_step(&all, e);
    if (e->has_memory) want_memory(&all, e);
    for (uint32_t i = 0; i < all.used; i++) {
        void *memory;
        memcpy(&memory, all.list[i].at, sizeof(memory));
        free(memory);
    }
    free(e->kv);
}

/* Tables that layers of ours read without a gate: those share the row cache. */
static uint32_t count_cached_tables(const mr_engine *e) {
    uint32_t count = 0;
    for (uint32_t t = 0; t < mr_model_table_count(e->model); t++) {
        bool is_cached = false;
        for (uint32_t i = 0; i < mr_model_memory_count(e->model); i++) {
            const mr_memory_layer *l = mr_model_memory(e->model, i);
            is_cached |= l->table == t && !l->gated && mr_range_has(e->blocks, l->source);
        }
        count += is_cached;
    }
    return count;
}

static mr_status open_retrieval(mr_engine *e, const mr_engine_options *o, mr_err *err) {
    const memory_needs needs = needs_of(e);
    if (!e->has_memory) return MR_OK;
    if (o->shard_count == 0 && !o->route)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "the model has memory layers and no memshard was given");
    const mr_grid grid = o->grid.row_groups ? o->grid : (mr_grid){1, 1};
    const mr_retrieval_options options = {
        .links = o->shards,
        .addresses = o->addresses,
        .count = o->shard_count,
        .grid = grid,
        .digest = e->manifest->digest,
        .timeout_ms = o->retrieval_timeout_ms ? o->retrieval_timeout_ms : TIMEOUT_MS_DEFAULT,
        .tokens_max = e->step_tokens_max,
        .entries_max = (uint32_t)needs.entries,
        .cores_max = (uint32_t)needs.cores,
        .slots_width_max = (uint32_t)needs.slots_width,
        .route = o->route,
        .layers = mr_model_memory_count(e->model),
        .tables = mr_model_table_count(e->model),
        .cached_tables = count_cached_tables(e),
        .seed = o->seed,
        .spin_ns = o->spin_us * 1000ll,
        .row_cache_bytes = o->row_cache_bytes,
        .ops = e->ops,
        .dial = o->dial,
        .dial_context = o->dial_context,
        .newer_route = o->newer_route,
        .newer_context = o->newer_context};
    return mr_retrieval_open(&e->retrieval, &options, err);
}

/* Sixteen full contexts, but no more than a GiB of them, and never less than one. All stages of a
 * pipeline need the same number, whatever blocks they have. */
static uint32_t default_kv_blocks(const mr_config *c, uint32_t stages) {
    const uint64_t layers = (c->n_layers + stages - 1ull) / stages;
    const uint64_t block_bytes =
        2ull * layers * c->n_kv_heads * c->head_dim * MR_KV_BLOCK_TOKENS * sizeof(float);
    const uint64_t context = (c->context_tokens + MR_KV_BLOCK_TOKENS - 1ull) / MR_KV_BLOCK_TOKENS;
    const uint64_t affordable = MR_GIB / block_bytes;
    const uint64_t blocks = 16 * context < affordable ? 16 * context : affordable;
    return (uint32_t)(blocks > context ? blocks : context);
}

static mr_status resolve_part(mr_engine *e, const mr_engine_options *o, mr_err *err) {
    const uint32_t stages = o->stages ? o->stages : 1;
    const mr_status status = mr_stage_range(&e->blocks, e->model, o, err);
    if (status != MR_OK) return status;
    const uint32_t end = e->blocks.first + e->blocks.count;
    e->has_head = end == e->config->n_layers;
    e->has_memory = mr_stage_reads_memory(e->model, e->blocks);
    e->kv_blocks = o->kv_blocks ? o->kv_blocks : default_kv_blocks(e->config, stages);
    e->part = (mr_engine_part){.stage = o->stage,
                               .stages = stages,
                               .blocks = e->blocks,
                               .columns = e->config->d_model,
                               .pending_in = mr_stage_pending(e->model, e->blocks.first),
                               .pending_out = mr_stage_pending(e->model, end),
                               .memory_count = mr_model_memory_count(e->model),
                               .step_tokens_max = e->step_tokens_max};
    return MR_OK;
}

/* What the options leave open, and the sizes that follow; opens nothing. */
static mr_status resolve(mr_engine *e, const mr_engine_options *o, mr_err *err) {
    e->model = o->model;
    e->config = mr_model_config(o->model);
    e->manifest = o->manifest;
    e->ops = o->ops ? o->ops : mr_ops_find(NULL);
    e->two_trips = o->two_trips;
    e->topk = o->topk;
    e->recorder = o->recorder;
    e->step_tokens_max = o->step_tokens_max ? o->step_tokens_max : STEP_TOKENS_DEFAULT;
    e->step_sequences_max = o->step_sequences_max ? o->step_sequences_max : STEP_SEQUENCES_DEFAULT;
    if (e->step_tokens_max > MR_MAX_STEP_TOKENS || e->step_sequences_max > MR_MAX_STEP_SEQUENCES)
        return mr_fail(err, MR_ERR_LIMIT, "steps of %u tokens and %u sequences; at most %d and %d",
                       e->step_tokens_max, e->step_sequences_max, MR_MAX_STEP_TOKENS,
                       MR_MAX_STEP_SEQUENCES);
    return resolve_part(e, o, err);
}

static bool reads_table(const mr_engine *e, uint32_t table) {
    for (uint32_t i = 0; i < mr_model_memory_count(e->model); i++) {
        const mr_memory_layer *l = mr_model_memory(e->model, i);
        if (l->table == table && mr_range_has(e->blocks, l->source)) return true;
    }
    return false;
}

mr_status mr_engine_plan(mr_engine_memory *out, const mr_engine_options *options, mr_err *err) {
    mr_engine e = {0};
    *out = (mr_engine_memory){0};
    mr_status status = resolve(&e, options, err);
    if (status == MR_OK) status = mr_team_open(&e.team, options->threads, err);
    if (status != MR_OK) return status;
    buffers all = {.used = 0};
    want_step(&all, &e);
    if (e.has_memory) want_memory(&all, &e);
    for (uint32_t i = 0; i < all.used; i++)
        out->buffer_bytes += all.list[i].count * all.list[i].bytes;
    mr_team_close(e.team);
    const memory_needs needs = needs_of(&e);
    out->buffer_bytes += e.step_tokens_max * (needs.slots_width * sizeof(int64_t) +
                                              needs.entries * (sizeof(int64_t) + 4 * needs.cores));
    out->kv_bytes = kv_floats(&e) * sizeof(float);
    mr_weights_plan(&out->weight_bytes, &out->index_bytes, e.model, e.blocks);
    for (uint32_t i = 0; i < mr_model_table_count(e.model); i++) {
        const mr_table_shape *t = mr_model_table(e.model, i);
        if (!reads_table(&e, i)) continue;
        out->table_bytes += t->values->bytes + (t->pre_values ? t->pre_values->bytes : 0);
    }
    return MR_OK;
}

mr_status mr_engine_open(mr_engine **out, const mr_engine_options *options, mr_err *err) {
    mr_engine *e = mr_alloc(sizeof(*e));
    *out = NULL;
    mr_status status = resolve(e, options, err);
    if (status == MR_OK) status = mr_team_open(&e->team, options->threads, err);
    if (status == MR_OK) status = allocate(e, err);
    if (status == MR_OK)
        status = mr_weights_open(&e->weights, e->model, e->blocks, NULL, NULL, err);
    if (status == MR_OK) status = open_retrieval(e, options, err);
    if (status != MR_OK) {
        mr_engine_close(e);
        return status;
    }
    if (!e->retrieval) /* taken over all the same */
        for (uint32_t i = 0; i < options->shard_count; i++) mr_link_close(options->shards[i]);
    mr_config_rope(e->rope_frequency, e->config);
    e->memory_at = mr_alloc_array(e->config->n_layers, sizeof(int32_t));
    e->memory_added = mr_alloc_array(e->part.memory_count + 1ull, sizeof(bool));
    e->wait_ns = mr_alloc_array(e->part.memory_count + 1ull, sizeof(uint64_t));
    mr_stage_schedule(e->memory_at, e->memory_added, e->model);
    e->account.more.layers = e->part.memory_count;
    e->account.wait_ns = e->wait_ns;
    snprintf(e->numeric_class, sizeof(e->numeric_class), "%s/%s", e->ops->name,
             mr_storage_name(mr_storage_type_of(mr_weights_storage(e->model))));
    *out = e;
    return MR_OK;
}

void mr_engine_close(mr_engine *engine) {
    if (!engine) return;
    mr_retrieval_close(engine->retrieval);
    if (engine->team) {
        release(engine);
        mr_weights_close(&engine->weights, engine->model);
        mr_team_close(engine->team);
    }
    free(engine->memory_added);
    free(engine->memory_at);
    free(engine->wait_ns);
    free(engine);
}

void mr_engine_info(const mr_engine *engine, mr_wire_worker_info *out) {
    *out = (mr_wire_worker_info){.vocab_size = engine->config->vocab_size,
                                 .logit_columns = engine->config->head_rows,
                                 .context_tokens = engine->config->context_tokens,
                                 .kv_blocks = engine->kv_blocks,
                                 .kv_block_tokens = MR_KV_BLOCK_TOKENS,
                                 .step_tokens_max = engine->step_tokens_max,
                                 .step_sequences_max = engine->step_sequences_max};
    if (engine->part.stages > 1) {
        out->stage = (uint16_t)engine->part.stage;
        out->stages = (uint16_t)engine->part.stages;
    }
}

const mr_engine_part *mr_engine_get_part(const mr_engine *engine) {
    return &engine->part;
}

const char *mr_engine_numeric_class(const mr_engine *engine) {
    return engine->numeric_class;
}

const mr_engine_account *mr_engine_last(const mr_engine *engine) {
    return &engine->account;
}

mr_engine_output mr_engine_hidden(const mr_engine *engine) {
    return engine->output;
}

void mr_engine_set_trace(mr_engine *engine, const mr_trace *trace) {
    engine->trace = trace;
}

mr_status mr_engine_set_route(mr_engine *engine, const mr_route *route, mr_err *err) {
    return engine->retrieval ? mr_retrieval_set_route(engine->retrieval, route, err) : MR_OK;
}

uint64_t mr_engine_route_epoch(const mr_engine *engine) {
    return engine->retrieval ? mr_retrieval_epoch(engine->retrieval) : 0;
}

mr_status mr_engine_reach(mr_engine *engine, int64_t deadline_ns, mr_err *err) {
    return engine->retrieval ? mr_retrieval_reach(engine->retrieval, deadline_ns, err) : MR_OK;
}

mr_team *mr_engine_team(mr_engine *engine) {
    return engine->team;
}
