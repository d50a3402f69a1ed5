/* memory.c - a memory layer: query, key scores, selection, exponents, retrieval, projection.
 * Formulas and their sources: docs/MODELS.md. */
#include "worker/engine_impl.h"

#include "common/base/log.h"
#include "common/ops/dense.h"

#include <string.h>

typedef struct {
    mr_engine *e;
    const mr_memory_layer *layer;
    const mr_memory_weights *weights;
    uint32_t tokens;
} work;

/* --- queries ---------------------------------------------------------------------------------- */

static void norm_queries(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    const uint32_t kdim = w->layer->key_dim, parts = w->weights->keys.groups * 2;
    (void)member;
    for (uint32_t t = first; t < first + count; t++) {
        float *query = w->e->m.query + (size_t)t * parts * kdim;
        if (w->weights->query_bias) mr_add(query, w->weights->query_bias, parts * kdim);
        if (!w->weights->query_norm) continue;
        for (uint32_t p = 0; p < parts; p++)
            mr_engine_norm(w->e, query + (size_t)p * kdim, query + (size_t)p * kdim,
                           w->weights->query_norm, kdim);
    }
}

/* --- selection -------------------------------------------------------------------------------- */

static void run_loop(void *engine, mr_team_task task, void *argument, uint32_t items,
                     uint64_t amount) {
    mr_engine_run(engine, task, argument, items, amount);
}

static mr_status select_all(const work *w, mr_err *err) {
    mr_engine *e = w->e;
    mr_key_search search = {.ops = e->ops,
                            .keys = &w->weights->keys,
                            .tokens = w->tokens,
                            .query = e->m.query,
                            .key_score = e->m.key_score,
                            .scratch = e->m.scratch,
                            .scratch_bytes = e->m.scratch_bytes,
                            .index = e->m.index,
                            .row = e->m.row,
                            .slot = e->m.slot,
                            .score = e->m.score,
                            .run = run_loop,
                            .run_context = e};
    return mr_key_search_run(&search, err);
}

static mr_status find_exponents(const work *w, mr_err *err) {
    mr_engine *e = w->e;
    return mr_product_exponents(e->m.value_exponent, e->m.dot_exponent, w->layer,
                                &e->manifest->tables[w->layer->table], e->m.score, w->tokens,
                                e->m.x, mr_model_table(e->model, w->layer->table)->pre_width, err);
}

/* --- begin and finish ------------------------------------------------------------------------- */

static void record(const mr_retrieval_request *request, mr_engine *e) {
    const mr_recorded recorded = {.model = mr_recorded_model(&e->manifest->digest),
                                  .layer = request->layer,
                                  .tokens = request->tokens,
                                  .entries = request->entries,
                                  .row = request->row,
                                  .slot = request->slots > 1 ? request->slot : NULL};
    mr_recorder_put(e->recorder, &recorded);
}

static mr_status ask(const work *w, uint32_t index, bool is_topk, mr_err *err) {
    mr_engine *e = w->e;
    const mr_memory_layer *l = w->layer;
    const mr_table_shape *table = mr_model_table(e->model, l->table);
    mr_retrieval_request request = {.layer = index,
                                    .tokens = w->tokens,
                                    .entries = l->entries,
                                    .cores = l->cores,
                                    .slots = l->slots_out,
                                    .width = table->width,
                                    .pre_width = table->pre_width,
                                    .table_rows = table->rows,
                                    .accumulator_bits =
                                        e->manifest->tables[l->table].accumulator_bits,
                                    .gated = l->gated,
                                    .gelu = l->gelu,
                                    .two_trips = e->two_trips || e->trace != NULL,
                                    .table = l->table,
                                    .storage = table->storage,
                                    .row = e->m.row,
                                    .slot = e->m.slot,
                                    .score = e->m.score,
                                    .x = e->m.x,
                                    .value_exponent = e->m.value_exponent,
                                    .dot_exponent = e->m.dot_exponent};
    if (is_topk) {
        request.query = e->m.query;
        request.query_columns = w->weights->query_proj.n;
    } else if (e->recorder)
        record(&request, e);
    return mr_retrieval_begin(e->retrieval, &request, err);
}

/* Where the shards select, ids and scores are never seen here: not while they are traced. */
static bool is_topk(const mr_engine *e, const mr_memory_layer *l) {
    return e->topk && !e->trace && !(l->gated && e->two_trips) &&
           mr_retrieval_can_topk(e->retrieval, l->gated);
}

static mr_status select_and_ask(const work *w, uint32_t layer, mr_err *err) {
    mr_status status = select_all(w, err);
    if (status == MR_OK) status = find_exponents(w, err);
    if (status != MR_OK) return mr_fail_prefix(err, status, "memory layer %u", layer);
    return ask(w, layer, false, err);
}

mr_status mr_memory_begin(mr_engine *e, uint32_t layer, const float *input, uint32_t tokens,
                          mr_err *err) {
    const mr_memory_layer *l = mr_model_memory(e->model, layer);
    const mr_memory_weights *weights = &e->weights.memories[layer];
    const uint32_t d = e->config->d_model, pre = mr_model_table(e->model, l->table)->pre_width;
    work w = {.e = e, .layer = l, .weights = weights, .tokens = tokens};
    if (e->m.input) memcpy(e->m.input, input, (size_t)tokens * d * sizeof(float));
    mr_engine_gemm(e, e->m.query, weights->query_proj.n, input, d, tokens, &weights->query_proj);
    mr_engine_run(e, norm_queries, &w, tokens, 4ull * tokens * weights->query_proj.n);
    if (l->gated) mr_engine_gemm(e, e->m.x, pre, input, d, tokens, &weights->pre_proj);
    return is_topk(e, l) ? ask(&w, layer, true, err) : select_and_ask(&w, layer, err);
}

/* A shard does not select: from now on nobody is asked to. Queries and x are still there. */
static mr_status retrieve_by_ids(mr_engine *e, uint32_t layer, uint32_t tokens, mr_err *err) {
    const work w = {.e = e,
                    .layer = mr_model_memory(e->model, layer),
                    .weights = &e->weights.memories[layer],
                    .tokens = tokens};
    mr_log_warn("the worker selects rows itself: %s", err->text);
    e->topk = false;
    const mr_status status = select_and_ask(&w, layer, err);
    return status == MR_OK ? mr_retrieval_finish(e->retrieval, e->m.pooled, NULL, err) : status;
}

/* Memory+: o * silu(f @ swilu^T + bias). */
static void gate_pooled(mr_engine *e, const mr_memory_weights *weights, uint32_t width,
                        uint32_t tokens) {
    const uint32_t d = e->config->d_model;
    mr_engine_gemm(e, e->m.silu, width, e->m.input, d, tokens, &weights->silu_proj);
    mr_engine_bias(e, e->m.silu, weights->silu_bias, tokens, width);
    for (uint32_t t = 0; t < tokens; t++)
        mr_silu_multiply(e->m.pooled + (size_t)t * width, e->m.silu + (size_t)t * width,
                         e->m.pooled + (size_t)t * width, width);
}

static void report(mr_engine *e, uint32_t layer, uint32_t tokens) {
    const mr_memory_layer *l = mr_model_memory(e->model, layer);
    const mr_memory_trace trace = {.layer = layer,
                                   .tokens = tokens,
                                   .entries = l->entries,
                                   .cores = l->cores,
                                   .index = e->m.index,
                                   .row = e->m.row,
                                   .score = e->m.score,
                                   .pre = l->gated ? e->m.pre : NULL,
                                   .input = e->m.input,
                                   .output = e->m.output};
    if (e->trace->memory) e->trace->memory(e->trace->context, &trace);
}

mr_status mr_memory_finish(mr_engine *e, uint32_t layer, uint32_t tokens, mr_err *err) {
    const mr_memory_layer *l = mr_model_memory(e->model, layer);
    const mr_memory_weights *weights = &e->weights.memories[layer];
    const uint32_t width = mr_model_table(e->model, l->table)->width, d = e->config->d_model;
    mr_status status =
        mr_retrieval_finish(e->retrieval, e->m.pooled, e->trace && l->gated ? e->m.pre : NULL, err);
    if (status == MR_ERR_UNSUPPORTED && is_topk(e, l))
        status = retrieve_by_ids(e, layer, tokens, err);
    if (status != MR_OK) return status;
    if (weights->silu_proj.n) gate_pooled(e, weights, width, tokens);
    if (!weights->value_proj.n)
        memcpy(e->m.output, e->m.pooled, (size_t)tokens * d * sizeof(float));
    else
        mr_engine_gemm(e, e->m.output, d, e->m.pooled, (size_t)l->slots_out * width, tokens,
                       &weights->value_proj);
    mr_engine_bias(e, e->m.output, weights->value_bias, tokens, d);
    if (e->trace) report(e, layer, tokens);
    return MR_OK;
}
