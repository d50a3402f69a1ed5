/* engine.c - see engine.h: sizes, buffers, opening and closing. The step itself is in step.c. */
#include "worker/engine_impl.h"

#include "common/base/mem.h"
#include "common/ops/dense.h"

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
    WANT(e->b.qkv, t * (d + 2 * kv));
    WANT(e->b.attention, t * d);
    WANT(e->b.out, t * d);
    WANT(e->b.cosine, t * (c->head_dim / 2));
    WANT(e->b.sine, t * (c->head_dim / 2));
    WANT(e->b.position, t);
    WANT(e->b.sequence, t);
    WANT(e->b.block_first, e->step_sequences_max);
    WANT(e->b.logits, (uint64_t)MR_LOGIT_ROWS * c->head_rows);
    WANT(e->b.logit_x, MR_LOGIT_ROWS * d);
    WANT(e->b.select_scratch, (c->head_rows > c->experts ? c->head_rows : c->experts) + 32ull);
    WANT(e->b.candidates, c->head_rows);
    WANT(e->rope_frequency, c->head_dim / 2);
    if (!c->moe) {
        WANT(e->b.ffn, t * c->mlp_hidden);
        return;
    }
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
static memory_needs needs_of(const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    memory_needs needs = {0};
    for (uint32_t i = 0; i < mr_model_memory_count(model); i++) {
        const mr_memory_layer *l = mr_model_memory(model, i);
        const mr_table_shape *t = mr_model_table(model, l->table);
        const bool own = c->memory == MR_MEMORY_PKM || c->memory == MR_MEMORY_PLUS;
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
    const memory_needs needs = needs_of(e->model);
    const uint64_t t = e->step_tokens_max, d = e->config->d_model;
    e->m.scratch_bytes = (size_t)needs.scratch;
    WANT(e->m.index, t * needs.entries);
    WANT(e->m.row, t * needs.entries);
    WANT(e->m.slot, t * needs.entries);
    WANT(e->m.score, t * needs.entries * needs.cores);
    WANT(e->m.pre, t * needs.entries);
    WANT(e->m.query, t * needs.query);
    WANT(e->m.x, t * needs.pre);
    if (e->config->memory == MR_MEMORY_PLUS) WANT(e->m.silu, t * needs.width);
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
    return 2ull * c->n_layers * e->kv_blocks * c->n_kv_heads * MR_KV_BLOCK_TOKENS * c->head_dim;
}

static mr_status allocate(mr_engine *e, mr_err *err) {
    buffers all = {.used = 0};
    want_step(&all, e);
    if (mr_model_memory_count(e->model) > 0) want_memory(&all, e);
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
    if (mr_model_memory_count(e->model) > 0) want_memory(&all, e);
    for (uint32_t i = 0; i < all.used; i++) {
        void *memory;
        memcpy(&memory, all.list[i].at, sizeof(memory));
        free(memory);
    }
    free(e->kv);
}

/* Which memory layers reach the residual stream: one pending slot, overwritten by a new reading
 * even when the old one is due at that very block. */
static void schedule_memory(mr_engine *e) {
    const uint32_t blocks = e->config->n_layers;
    int32_t slot = -1;
    e->memory_added = mr_alloc_array(mr_model_memory_count(e->model), sizeof(bool));
    e->memory_at = mr_alloc_array(blocks, sizeof(int32_t));
    for (uint32_t b = 0; b < blocks; b++) {
        e->memory_at[b] = -1;
        for (uint32_t i = 0; i < mr_model_memory_count(e->model); i++)
            if (mr_model_memory(e->model, i)->source == b) e->memory_at[b] = (int32_t)i;
        if (e->memory_at[b] >= 0) slot = e->memory_at[b];
        if (slot >= 0 && mr_model_memory(e->model, (uint32_t)slot)->destination == b)
            e->memory_added[slot] = true;
    }
}

static mr_status open_retrieval(mr_engine *e, const mr_engine_options *o, mr_err *err) {
    const memory_needs needs = needs_of(e->model);
    if (mr_model_memory_count(e->model) == 0) return MR_OK;
    if (o->shard_count == 0)
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
        .slots_width_max = (uint32_t)needs.slots_width};
    return mr_retrieval_open(&e->retrieval, &options, err);
}

/* Sixteen full contexts, but no more than a GiB of them, and never less than one. */
static uint32_t default_kv_blocks(const mr_config *c) {
    const uint64_t block_bytes =
        2ull * c->n_layers * c->n_kv_heads * c->head_dim * MR_KV_BLOCK_TOKENS * sizeof(float);
    const uint64_t context = (c->context_tokens + MR_KV_BLOCK_TOKENS - 1ull) / MR_KV_BLOCK_TOKENS;
    const uint64_t affordable = MR_GIB / block_bytes;
    const uint64_t blocks = 16 * context < affordable ? 16 * context : affordable;
    return (uint32_t)(blocks > context ? blocks : context);
}

/* What the options leave open, and the sizes that follow; opens nothing. */
static mr_status resolve(mr_engine *e, const mr_engine_options *o, mr_err *err) {
    e->model = o->model;
    e->config = mr_model_config(o->model);
    e->manifest = o->manifest;
    e->ops = o->ops ? o->ops : mr_ops_find(NULL);
    e->two_trips = o->two_trips;
    e->step_tokens_max = o->step_tokens_max ? o->step_tokens_max : STEP_TOKENS_DEFAULT;
    e->step_sequences_max = o->step_sequences_max ? o->step_sequences_max : STEP_SEQUENCES_DEFAULT;
    if (e->step_tokens_max > MR_MAX_STEP_TOKENS || e->step_sequences_max > MR_MAX_STEP_SEQUENCES)
        return mr_fail(err, MR_ERR_LIMIT, "steps of %u tokens and %u sequences; at most %d and %d",
                       e->step_tokens_max, e->step_sequences_max, MR_MAX_STEP_TOKENS,
                       MR_MAX_STEP_SEQUENCES);
    e->kv_blocks = o->kv_blocks ? o->kv_blocks : default_kv_blocks(e->config);
    return MR_OK;
}

mr_status mr_engine_plan(mr_engine_memory *out, const mr_engine_options *options, mr_err *err) {
    mr_engine e = {0};
    *out = (mr_engine_memory){0};
    mr_status status = resolve(&e, options, err);
    if (status == MR_OK) status = mr_team_open(&e.team, options->threads, err);
    if (status != MR_OK) return status;
    buffers all = {.used = 0};
    want_step(&all, &e);
    if (mr_model_memory_count(e.model) > 0) want_memory(&all, &e);
    for (uint32_t i = 0; i < all.used; i++)
        out->buffer_bytes += all.list[i].count * all.list[i].bytes;
    mr_team_close(e.team);
    const memory_needs needs = needs_of(e.model);
    out->buffer_bytes += e.step_tokens_max * (needs.slots_width * sizeof(int64_t) +
                                              needs.entries * (sizeof(int64_t) + 4 * needs.cores));
    out->kv_bytes = kv_floats(&e) * sizeof(float);
    mr_weights_plan(&out->weight_bytes, &out->index_bytes, e.model);
    for (uint32_t i = 0; i < mr_model_table_count(e.model); i++) {
        const mr_table_shape *t = mr_model_table(e.model, i);
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
    if (status == MR_OK) status = mr_weights_open(&e->weights, e->model, NULL, NULL, err);
    if (status == MR_OK) status = open_retrieval(e, options, err);
    if (status != MR_OK) {
        mr_engine_close(e);
        return status;
    }
    mr_rope_frequencies(e->rope_frequency, e->config->head_dim, e->config->rope_theta);
    schedule_memory(e);
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
}

void mr_engine_set_trace(mr_engine *engine, const mr_trace *trace) {
    engine->trace = trace;
}

mr_team *mr_engine_team(mr_engine *engine) {
    return engine->team;
}
