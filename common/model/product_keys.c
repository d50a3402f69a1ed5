/* product_keys.c - see product_keys.h. */
#include "common/model/product_keys.h"

#include "common/base/mem.h"
#include "common/model/matrices.h"
#include "common/model/pack.h"
#include "common/ops/dense.h"
#include "common/ops/gate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)

#define MEM(suffix) (mr_memory_tensor(model, layer, suffix))

/* --- loading ---------------------------------------------------------------------------------- */

/* Keys of one head and side as a matrix: output n * R + r, input i. */
typedef struct {
    const float *keys; /* [n][kdim][R] */
    uint32_t kdim, rank;
} key_source;

static float key_at(const void *context, uint32_t output, uint32_t i) {
    const key_source *s = context;
    const uint32_t n = output / s->rank, r = output % s->rank;
    return s->keys[((size_t)n * s->kdim + i) * s->rank + r];
}

/* keys_norm over kdim, for each (n, r) of one head and side. */
static void normalise_keys(float *keys, const float *w, const mr_memory_layer *l,
                           const mr_config *c) {
    float column[1 << 16];
    for (uint32_t n = 0; n < l->keys_per_side; n++)
        for (uint32_t r = 0; r < l->rank; r++) {
            float *at = keys + (size_t)n * l->key_dim * l->rank + r;
            for (uint32_t i = 0; i < l->key_dim; i++) column[i] = at[(size_t)i * l->rank];
            if (c->norm == MR_NORM_RMS)
                mr_rms_norm(column, column, w, l->key_dim, c->norm_eps);
            else
                mr_layer_norm(column, column, w, l->key_dim, c->norm_eps);
            for (uint32_t i = 0; i < l->key_dim; i++) at[(size_t)i * l->rank] = column[i];
        }
}

static mr_status open_keys(mr_product_keys *m, const mr_model *model, uint32_t layer, mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const mr_memory_layer *l = mr_model_memory(model, layer);
    const bool normalised =
        c->memory == MR_MEMORY_ULTRAMEM_V1 || c->memory == MR_MEMORY_ULTRAMEM_V2;
    const size_t side = (size_t)l->keys_per_side * l->key_dim * l->rank;
    float *all, *norm = NULL;
    TRY(mr_load_floats(&all, model, MEM("keys")->name, err));
    mr_status status = MR_OK;
    if (normalised) status = mr_load_floats(&norm, model, MEM("keys_norm.weight")->name, err);
    m->keys = mr_alloc_array(2ull * l->heads, sizeof(*m->keys));
    for (uint32_t i = 0; i < 2 * l->heads && status == MR_OK; i++) {
        const key_source source = {all + i * side, l->key_dim, l->rank};
        if (normalised) normalise_keys(all + i * side, norm, l, c);
        status = mr_pack_floats(&m->keys[i], l->keys_per_side * l->rank, l->key_dim, key_at,
                                &source, "product keys", err);
    }
    free(all);
    free(norm);
    return status;
}

static mr_status open_cores(mr_product_keys *m, const mr_model *model, uint32_t layer,
                            mr_err *err) {
    const mr_memory_layer *l = mr_model_memory(model, layer);
    const size_t core = (size_t)l->heads * l->rank * l->rank;
    TRY(mr_load_floats(&m->u, model, MEM("tucker_core_u")->name, err));
    TRY(mr_load_floats(&m->v, model, MEM("tucker_core_v")->name, err));
    m->core = mr_alloc_array(l->cores * core, sizeof(float));
    for (uint32_t i = 0; i < l->cores; i++) {
        float *one;
        char suffix[32];
        snprintf(suffix, sizeof(suffix), "tucker_core.%u", i);
        TRY(mr_load_floats(&one, model, MEM(suffix)->name, err));
        memcpy(m->core + i * core, one, core * sizeof(float));
        free(one);
    }
    return MR_OK;
}

/* I64 to u32, checked to be a permutation of [0, n). */
static mr_status open_shuffle(mr_product_keys *m, const mr_model *model, uint32_t layer,
                              mr_err *err) {
    const mr_tensor *t = MEM("shuffle_index");
    const uint64_t n = t->shape[0];
    mr_mapping map;
    void *index, *seen = NULL;
    mr_status status = mr_tensor_map(&map, model, t, 0, t->bytes, err);
    if (status != MR_OK) return status;
    status = mr_try_alloc(&index, (size_t)n, sizeof(uint32_t), "shuffle index", err);
    m->shuffle = index;
    if (status == MR_OK) status = mr_try_alloc(&seen, (size_t)n / 8 + 1, 1, "shuffle check", err);
    for (uint64_t i = 0; i < n && status == MR_OK; i++) {
        int64_t value;
        memcpy(&value, map.data + 8 * i, sizeof(value));
        if (value < 0 || (uint64_t)value >= n) {
            status =
                mr_fail(err, MR_ERR_FORMAT, "tensor %s: entry %llu is %lld, outside [0, %llu)",
                        t->name, (unsigned long long)i, (long long)value, (unsigned long long)n);
            break;
        }
        uint8_t *byte = (uint8_t *)seen + value / 8;
        const uint8_t bit = (uint8_t)(1u << (value % 8));
        if (*byte & bit)
            status = mr_fail(err, MR_ERR_FORMAT,
                             "tensor %s: %lld occurs twice; it must be a permutation", t->name,
                             (long long)value);
        *byte |= bit;
        m->shuffle[i] = (uint32_t)value;
    }
    free(seen);
    mr_mapping_close(&map);
    return status;
}

mr_status mr_product_keys_open(mr_product_keys *out, const mr_model *model, uint32_t layer,
                               mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const mr_memory_layer *l = mr_model_memory(model, layer);
    const bool pkm = c->memory == MR_MEMORY_PKM;
    const mr_tensor *query = MEM(pkm ? "query_proj.query_mlps.0.weight" : "query_proj.weight");
    *out = (mr_product_keys){
        .layer = l,
        .table_rows = mr_model_table(model, l->table)->rows,
        .groups = (uint32_t)(query->shape[0] / (2ull * l->key_dim)),
        .own_queries = mr_memory_is_plain(c->memory),
        .softmax = mr_memory_is_plain(c->memory),
    };
    TRY(open_keys(out, model, layer, err));
    if (mr_memory_is_plain(c->memory)) return MR_OK;
    TRY(open_cores(out, model, layer, err));
    return open_shuffle(out, model, layer, err);
}

void mr_product_keys_free(mr_product_keys *keys) {
    for (uint32_t i = 0; keys->keys && i < 2 * keys->layer->heads; i++)
        mr_packed_free(&keys->keys[i]);
    free(keys->keys);
    free(keys->core);
    free(keys->u);
    free(keys->v);
    free(keys->shuffle);
    *keys = (mr_product_keys){0};
}

void mr_product_keys_plan(uint64_t *key_bytes, uint64_t *index_bytes, const mr_model *model,
                          uint32_t layer) {
    const mr_memory_layer *l = mr_model_memory(model, layer);
    const mr_tensor *shuffle = MEM("shuffle_index");
    const uint64_t side =
        mr_packed_data_bytes(MR_F32, (uint64_t)l->keys_per_side * l->rank, l->key_dim);
    *key_bytes = 2ull * l->heads * side +
                 sizeof(float) * l->heads * l->rank * (l->rank * (uint64_t)l->cores + 2);
    *index_bytes = shuffle ? shuffle->shape[0] * sizeof(uint32_t) : 0;
}

/* --- the search ------------------------------------------------------------------------------- */

size_t mr_key_score_floats(const mr_memory_layer *layer) {
    return (size_t)MR_SCORE_TILE * 2 * layer->keys_per_side * layer->rank;
}

static uint32_t group_of(const mr_product_keys *k, uint32_t head) {
    return k->own_queries ? head : head / 2;
}

static uint32_t tile_tokens(const mr_key_search *s) {
    const uint32_t left = s->tokens - s->token_first;
    return left < MR_SCORE_TILE ? left : MR_SCORE_TILE;
}

/* Items: the panels of both sides. */
static void score_panels(void *argument, uint32_t member, uint32_t first, uint32_t count) {
    const mr_key_search *s = argument;
    const uint32_t kdim = s->keys->layer->key_dim, parts = s->keys->groups * 2;
    const mr_packed *keys = s->keys->keys + 2ull * s->head;
    const uint32_t panels = mr_packed_panels(keys);
    (void)member;
    for (uint32_t side = 0; side < 2; side++) {
        const uint32_t from = first > side * panels ? first - side * panels : 0;
        const uint32_t end = first + count;
        const uint32_t to = end > (side + 1) * panels ? panels
                            : end > side * panels     ? end - side * panels
                                                      : 0;
        if (from >= to) continue;
        const float *query = s->query + (size_t)s->token_first * parts * kdim +
                             (group_of(s->keys, s->head) * 2ull + side) * kdim;
        s->ops->gemm(s->key_score + (size_t)side * keys->n, 2ull * keys->n, query,
                     (size_t)parts * kdim, NULL, tile_tokens(s), &keys[side], from, to - from);
    }
}

/* Items: the tokens of the tile. */
static void select_tokens(void *argument, uint32_t member, uint32_t first, uint32_t count) {
    mr_key_search *s = argument;
    const mr_memory_layer *l = s->keys->layer;
    const uint32_t n = s->keys->keys[0].n;
    for (uint32_t i = first; i < first + count; i++) {
        const uint32_t t = s->token_first + i;
        const size_t at = (size_t)t * l->entries + (size_t)s->head * l->knn;
        const mr_product_key_query query = {.ops = s->ops,
                                            .keys = s->keys,
                                            .head = s->head,
                                            .row_score = s->key_score + 2ull * i * n,
                                            .column_score = s->key_score + (2ull * i + 1) * n,
                                            .scratch = s->scratch + member * s->scratch_bytes};
        if (!mr_product_key_select(s->index + at, s->score + at, (size_t)s->tokens * l->entries,
                                   &query))
            atomic_store(&s->bad_token, t);
    }
}

/* Items: tokens. */
static void locate(void *argument, uint32_t member, uint32_t first, uint32_t count) {
    const mr_key_search *s = argument;
    const mr_memory_layer *l = s->keys->layer;
    const uint64_t rows = s->keys->table_rows;
    (void)member;
    for (size_t j = (size_t)first * l->entries; j < ((size_t)first + count) * l->entries; j++) {
        if (l->shuffled) s->index[j] = s->keys->shuffle[s->index[j]];
        const uint64_t slot = s->index[j] / l->reach_rows;
        s->row[j] = (uint32_t)((s->index[j] % l->reach_rows + l->row_offset) % rows);
        s->slot[j] = l->slots_out > 1 ? (uint8_t)slot : 0;
    }
}

mr_status mr_key_search_run(mr_key_search *s, mr_err *err) {
    const mr_memory_layer *l = s->keys->layer;
    const mr_packed *keys = s->keys->keys;
    atomic_store(&s->bad_token, UINT32_MAX);
    for (s->token_first = 0; s->token_first < s->tokens; s->token_first += MR_SCORE_TILE)
        for (s->head = 0; s->head < l->heads; s->head++) {
            const uint32_t tokens = tile_tokens(s);
            s->run(s->run_context, score_panels, s, 2 * mr_packed_panels(keys),
                   2ull * tokens * keys->n * l->key_dim);
            s->run(s->run_context, select_tokens, s, tokens, UINT64_MAX);
        }
    if (atomic_load(&s->bad_token) != UINT32_MAX)
        return mr_fail(err, MR_ERR_RANGE, "a product-key score is not a finite number");
    s->run(s->run_context, locate, s, s->tokens, 32ull * s->tokens * l->entries);
    return MR_OK;
}

/* --- exponents -------------------------------------------------------------------------------- */

/* Bounds below which table maxima are never taken (docs/ARCHITECTURE.md). */
static double at_least_tiny(double bound) {
    const double tiny = 0x1p-60;
    return bound > tiny ? bound : tiny;
}

mr_status mr_product_exponents(int16_t *value_exponent, int16_t *dot_exponent,
                               const mr_memory_layer *l, const mr_table_facts *facts,
                               const float *all_scores, uint32_t tokens, const float *all_x,
                               uint32_t pre_width, mr_err *err) {
    const size_t all = (size_t)tokens * l->entries;
    const double value_max = at_least_tiny(facts->value_max);
    const double norm_max = at_least_tiny(facts->pre_norm_max);
    for (uint32_t t = 0; t < tokens; t++) {
        double largest = 0, gate = 1;
        int exponent;
        for (uint32_t m = 0; m < l->cores; m++) {
            const float *score = all_scores + m * all + (size_t)t * l->entries;
            double sum = 0;
            for (uint32_t j = 0; j < l->entries; j++) sum += fabs((double)score[j]);
            if (!(sum <= largest)) largest = sum;
        }
        if (l->gated) {
            const float *x = all_x + (size_t)t * pre_width;
            double square = 0;
            for (uint32_t c = 0; c < pre_width; c++) square += (double)x[c] * (double)x[c];
            gate = sqrt(square) * norm_max;
            if (!mr_exponent_of(&exponent, gate))
                return mr_fail(err, MR_ERR_RANGE, "a gate bound of %g is out of range", gate);
            dot_exponent[t] = (int16_t)exponent;
        }
        if (!mr_exponent_of(&exponent, largest * value_max * gate))
            return mr_fail(err, MR_ERR_RANGE, "a sum bound of %g is out of range",
                           largest * value_max * gate);
        value_exponent[t] = (int16_t)exponent;
    }
    return MR_OK;
}
