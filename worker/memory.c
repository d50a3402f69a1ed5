/* memory.c - a memory layer: query, key scores, selection, exponents, retrieval, projection.
 * Formulas and their sources: docs/MODELS.md. */
#include "worker/engine_impl.h"

#include "common/ops/dense.h"
#include "common/ops/gate.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

/* Bounds below which table maxima are never taken (docs/ARCHITECTURE.md). */
static double at_least_tiny(double bound) {
    const double tiny = 0x1p-60;
    return bound > tiny ? bound : tiny;
}

typedef struct {
    mr_engine *e;
    const mr_memory_layer *layer;
    const mr_memory_weights *weights;
    uint32_t tokens;
    uint32_t head, token_first; /* of the tile being scored */
    atomic_uint bad_token;      /* first token with a score that is no number, or UINT32_MAX */
} work;

/* --- queries ---------------------------------------------------------------------------------- */

static void norm_queries(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    const uint32_t kdim = w->layer->key_dim, parts = w->weights->groups * 2;
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

/* --- key scores and selection ----------------------------------------------------------------- */

static uint32_t group_of(const mr_engine *e, uint32_t head) {
    const bool own = e->config->memory == MR_MEMORY_PKM || e->config->memory == MR_MEMORY_PLUS;
    return own ? head : head / 2; /* two heads share a query in UltraMem */
}

static uint32_t tile_tokens(const work *w) {
    const uint32_t left = w->tokens - w->token_first;
    return left < MR_SCORE_TILE ? left : MR_SCORE_TILE;
}

/* Items: the panels of both sides. */
static void score_panels(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    const mr_engine *e = w->e;
    const uint32_t kdim = w->layer->key_dim, parts = w->weights->groups * 2;
    const mr_packed *keys = w->weights->keys + 2ull * w->head;
    const uint32_t panels = (keys->n + MR_PANEL - 1) / MR_PANEL;
    (void)member;
    for (uint32_t side = 0; side < 2; side++) {
        const uint32_t from = first > side * panels ? first - side * panels : 0;
        const uint32_t end = first + count;
        const uint32_t to = end > (side + 1) * panels ? panels
                            : end > side * panels     ? end - side * panels
                                                      : 0;
        if (from >= to) continue;
        const float *query = e->m.query + (size_t)w->token_first * parts * kdim +
                             (group_of(e, w->head) * 2ull + side) * kdim;
        e->ops->gemm(e->m.key_score + (size_t)side * keys->n, 2ull * keys->n, query,
                     (size_t)parts * kdim, tile_tokens(w), &keys[side], from, to - from);
    }
}

/* Items: the tokens of the tile. */
static void select_tokens(void *context, uint32_t member, uint32_t first, uint32_t count) {
    work *w = context;
    mr_engine *e = w->e;
    const mr_memory_layer *l = w->layer;
    const bool softmax = e->config->memory == MR_MEMORY_PKM || e->config->memory == MR_MEMORY_PLUS;
    const uint32_t n = w->weights->keys[0].n;
    for (uint32_t i = first; i < first + count; i++) {
        const uint32_t t = w->token_first + i;
        const size_t at = (size_t)t * l->entries + (size_t)w->head * l->knn;
        const mr_product_key_query query = {.ops = e->ops,
                                            .layer = l,
                                            .weights = w->weights,
                                            .head = w->head,
                                            .row_score = e->m.key_score + 2ull * i * n,
                                            .column_score = e->m.key_score + (2ull * i + 1) * n,
                                            .scratch = e->m.scratch + member * e->m.scratch_bytes};
        if (!mr_product_key_select(e->m.index + at, e->m.score + at, (size_t)w->tokens * l->entries,
                                   softmax, &query))
            atomic_store(&w->bad_token, t);
    }
}

static void locate(void *context, uint32_t member, uint32_t first, uint32_t count) {
    const work *w = context;
    mr_memory_buffers *m = &w->e->m;
    const mr_memory_layer *l = w->layer;
    const uint64_t rows = mr_model_table(w->e->model, l->table)->rows;
    (void)member;
    for (size_t j = (size_t)first * l->entries; j < ((size_t)first + count) * l->entries; j++) {
        if (l->shuffled) m->index[j] = w->weights->shuffle[m->index[j]];
        const uint64_t slot = m->index[j] / l->reach_rows;
        m->row[j] = (uint32_t)((m->index[j] % l->reach_rows + l->row_offset) % rows);
        m->slot[j] = l->slots_out > 1 ? (uint8_t)slot : 0;
    }
}

static mr_status select_all(work *w, mr_err *err) {
    mr_engine *e = w->e;
    const uint32_t panels = (w->weights->keys[0].n + MR_PANEL - 1) / MR_PANEL;
    atomic_store(&w->bad_token, UINT32_MAX);
    for (w->token_first = 0; w->token_first < w->tokens; w->token_first += MR_SCORE_TILE)
        for (w->head = 0; w->head < w->layer->heads; w->head++) {
            mr_engine_run(e, score_panels, w, 2 * panels,
                          2ull * tile_tokens(w) * w->weights->keys[0].n * w->layer->key_dim);
            mr_team_run(e->team, select_tokens, w, tile_tokens(w));
        }
    if (atomic_load(&w->bad_token) != UINT32_MAX)
        return mr_fail(err, MR_ERR_RANGE, "a product-key score is not a finite number");
    mr_engine_run(e, locate, w, w->tokens, 32ull * w->tokens * w->layer->entries);
    return MR_OK;
}

/* --- exponents -------------------------------------------------------------------------------- */

static mr_status find_exponents(work *w, mr_err *err) {
    mr_engine *e = w->e;
    const mr_memory_layer *l = w->layer;
    const mr_table_facts *facts = &e->manifest->tables[l->table];
    const size_t all = (size_t)w->tokens * l->entries;
    const double value_max = at_least_tiny(facts->value_max);
    const double norm_max = at_least_tiny(facts->pre_norm_max);
    for (uint32_t t = 0; t < w->tokens; t++) {
        double largest = 0, gate = 1;
        int exponent;
        for (uint32_t m = 0; m < l->cores; m++) {
            const float *score = e->m.score + m * all + (size_t)t * l->entries;
            double sum = 0;
            for (uint32_t j = 0; j < l->entries; j++) sum += fabs((double)score[j]);
            if (!(sum <= largest)) largest = sum;
        }
        if (l->gated) {
            const uint32_t width = mr_model_table(e->model, l->table)->pre_width;
            const float *x = e->m.x + (size_t)t * width;
            double square = 0;
            for (uint32_t c = 0; c < width; c++) square += (double)x[c] * (double)x[c];
            gate = sqrt(square) * norm_max;
            if (!mr_exponent_of(&exponent, gate))
                return mr_fail(err, MR_ERR_RANGE, "a gate bound of %g is out of range", gate);
            e->m.dot_exponent[t] = (int16_t)exponent;
        }
        if (!mr_exponent_of(&exponent, largest * value_max * gate))
            return mr_fail(err, MR_ERR_RANGE, "a sum bound of %g is out of range",
                           largest * value_max * gate);
        e->m.value_exponent[t] = (int16_t)exponent;
    }
    return MR_OK;
}

/* --- begin and finish ------------------------------------------------------------------------- */

static mr_status ask(work *w, uint32_t index, mr_err *err) {
    mr_engine *e = w->e;
    const mr_memory_layer *l = w->layer;
    const mr_table_shape *table = mr_model_table(e->model, l->table);
    const mr_retrieval_request request = {.layer = index,
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
                                          .row = e->m.row,
                                          .slot = e->m.slot,
                                          .score = e->m.score,
                                          .x = e->m.x,
                                          .value_exponent = e->m.value_exponent,
                                          .dot_exponent = e->m.dot_exponent};
    return mr_retrieval_begin(e->retrieval, &request, err);
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
    mr_status status = select_all(&w, err);
    if (status == MR_OK) status = find_exponents(&w, err);
    if (status == MR_OK)
        status = ask(&w, layer, err);
    else
        mr_fail_prefix(err, status, "memory layer %u", layer);
    return status;
}

/* memory_plus: o * silu(f @ swilu^T). */
static void gate_pooled(mr_engine *e, const mr_memory_weights *weights, uint32_t width,
                        uint32_t tokens) {
    const uint32_t d = e->config->d_model;
    mr_engine_gemm(e, e->m.silu, width, e->m.input, d, tokens, &weights->silu_proj);
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
    const mr_status status =
        mr_retrieval_finish(e->retrieval, e->m.pooled, e->trace && l->gated ? e->m.pre : NULL, err);
    if (status != MR_OK) return status;
    if (e->config->memory == MR_MEMORY_PLUS) gate_pooled(e, weights, width, tokens);
    if (e->config->memory == MR_MEMORY_PKM)
        memcpy(e->m.output, e->m.pooled, (size_t)tokens * d * sizeof(float));
    else
        mr_engine_gemm(e, e->m.output, d, e->m.pooled, (size_t)l->slots_out * width, tokens,
                       &weights->value_proj);
    if (e->trace) report(e, layer, tokens);
    return MR_OK;
}
