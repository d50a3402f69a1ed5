/* weights.c - see weights.h. */
#include "worker/weights.h"

#include "common/base/mem.h"
#include "common/ops/dense.h"
#include "common/model/pack.h"

#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)

static mr_status open_matrix(mr_packed *out, const mr_model *model, mr_matrix_role role,
                             uint32_t index, uint32_t expert, mr_err *err) {
    const mr_matrix_id id = {role, index, expert};
    mr_matrix matrix;
    if (!mr_matrix_exists(model, id)) return MR_OK; /* stays empty */
    mr_matrix_of(&matrix, model, id);
    return mr_pack_matrix(out, model, &matrix, err);
}

static mr_status open_experts(mr_block_weights *b, const mr_model *model, uint32_t block,
                              mr_err *err) {
    const mr_config *c = mr_model_config(model);
    TRY(open_matrix(&b->router, model, MR_MATRIX_ROUTER, block, 0, err));
    b->experts = mr_alloc_array(c->experts, sizeof(*b->experts));
    for (uint32_t e = 0; e < c->experts; e++) {
        mr_expert *x = &b->experts[e];
        TRY(open_matrix(&x->gate, model, MR_MATRIX_EXPERT_GATE, block, e, err));
        TRY(open_matrix(&x->up, model, MR_MATRIX_EXPERT_UP, block, e, err));
        TRY(open_matrix(&x->down, model, MR_MATRIX_EXPERT_DOWN, block, e, err));
    }
    TRY(open_matrix(&b->shared_proj, model, MR_MATRIX_SHARED_PROJ, block, 0, err));
    TRY(open_matrix(&b->shared_out, model, MR_MATRIX_SHARED_OUT, block, 0, err));
    return open_matrix(&b->shared_gate, model, MR_MATRIX_SHARED_GATE, block, 0, err);
}

/* A norm without weights is one with ones. */
static mr_status open_norm(float **out, const mr_model *model, mr_vector_role role, uint32_t index,
                           mr_err *err) {
    const uint32_t d = mr_model_config(model)->d_model;
    TRY(mr_load_vector(out, model, role, index, err));
    if (*out) return MR_OK;
    *out = mr_alloc_array(d, sizeof(**out));
    for (uint32_t i = 0; i < d; i++) (*out)[i] = 1;
    return MR_OK;
}

static mr_status open_block(mr_block_weights *b, const mr_model *model, uint32_t block,
                            mr_err *err) {
    const mr_config *c = mr_model_config(model);
    TRY(open_norm(&b->attn_norm, model, MR_VECTOR_ATTN_NORM, block, err));
    TRY(open_norm(&b->ff_norm, model, MR_VECTOR_FF_NORM, block, err));
    TRY(mr_load_vector(&b->q_norm, model, MR_VECTOR_Q_NORM, block, err));
    TRY(mr_load_vector(&b->k_norm, model, MR_VECTOR_K_NORM, block, err));
    TRY(mr_load_vector(&b->att_bias, model, MR_VECTOR_ATT_BIAS, block, err));
    TRY(mr_load_vector(&b->attn_out_bias, model, MR_VECTOR_ATTN_OUT_BIAS, block, err));
    TRY(mr_load_vector(&b->ff_bias, model, MR_VECTOR_FF_BIAS, block, err));
    TRY(mr_load_vector(&b->ff_out_bias, model, MR_VECTOR_FF_OUT_BIAS, block, err));
    TRY(open_matrix(&b->att_proj, model, MR_MATRIX_ATT_PROJ, block, 0, err));
    TRY(open_matrix(&b->attn_out, model, MR_MATRIX_ATTN_OUT, block, 0, err));
    TRY(open_matrix(&b->ff_proj, model, MR_MATRIX_FF_PROJ, block, 0, err));
    TRY(open_matrix(&b->ff_out, model, MR_MATRIX_FF_OUT, block, 0, err));
    return mr_config_is_moe(c, block) ? open_experts(b, model, block, err) : MR_OK;
}

static mr_status open_memory(mr_memory_weights *m, const mr_model *model, uint32_t layer,
                             mr_err *err) {
    TRY(open_matrix(&m->query_proj, model, MR_MATRIX_QUERY_PROJ, layer, 0, err));
    TRY(mr_load_vector(&m->query_bias, model, MR_VECTOR_QUERY_BIAS, layer, err));
    TRY(mr_load_vector(&m->query_norm, model, MR_VECTOR_QUERY_NORM, layer, err));
    TRY(mr_load_vector(&m->silu_bias, model, MR_VECTOR_SILU_BIAS, layer, err));
    TRY(mr_load_vector(&m->value_bias, model, MR_VECTOR_VALUE_BIAS, layer, err));
    TRY(mr_product_keys_open(&m->keys, model, layer, err));
    TRY(open_matrix(&m->value_proj, model, MR_MATRIX_VALUE_PROJ, layer, 0, err));
    TRY(open_matrix(&m->silu_proj, model, MR_MATRIX_SILU_PROJ, layer, 0, err));
    return open_matrix(&m->pre_proj, model, MR_MATRIX_PRE_PROJ, layer, 0, err);
}

/* A tied head that is stored all the same must be the embedding: versions of the transformers
 * package disagree on which of the two counts. */
static mr_status check_spare_head(const mr_model *model, mr_err *err) {
    const mr_tensor *rows = mr_model_embedding(model), *head = mr_model_spare_head(model);
    mr_mapping a, b;
    bool same = head && head->dtype == rows->dtype && head->bytes == rows->bytes;
    if (!head) return MR_OK;
    if (same) {
        TRY(mr_tensor_map(&a, model, rows, 0, rows->bytes, err));
        const mr_status status = mr_tensor_map(&b, model, head, 0, head->bytes, err);
        if (status == MR_OK) {
            same = memcmp(a.data, b.data, (size_t)rows->bytes) == 0;
            mr_mapping_close(&b);
        }
        mr_mapping_close(&a);
        if (status != MR_OK) return status;
    }
    if (same) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "tensor %s is not %s, to which config.json says it is tied", head->name,
                   rows->name);
}

static mr_status open_ends(mr_weights *out, const mr_model *model, mr_block_range range,
                           mr_err *err) {
    const mr_tensor *rows = mr_model_embedding(model);
    if (range.first == 0)
        TRY(mr_tensor_rows_open(&out->embedding, model, rows, 0, rows->shape[0], err));
    if (range.first + range.count < mr_model_config(model)->n_layers) return MR_OK;
    TRY(check_spare_head(model, err));
    TRY(open_matrix(&out->head, model, MR_MATRIX_HEAD, 0, 0, err));
    return open_norm(&out->final_norm, model, MR_VECTOR_FINAL_NORM, 0, err);
}

mr_status mr_weights_open(mr_weights *out, const mr_model *model, mr_block_range range,
                          mr_progress progress, void *context, mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const uint32_t parts = range.count + c->memory_count + 1;
    *out = (mr_weights){0};
    out->blocks = mr_alloc_array(c->n_layers, sizeof(*out->blocks));
    out->memories = mr_alloc_array(c->memory_count, sizeof(*out->memories));
    mr_status status = open_ends(out, model, range, err);
    for (uint32_t i = 0; i < range.count && status == MR_OK; i++) {
        status = open_block(&out->blocks[range.first + i], model, range.first + i, err);
        if (progress) progress(context, "loading weights", (double)(i + 1) / parts);
    }
    for (uint32_t i = 0; i < c->memory_count && status == MR_OK; i++) {
        if (mr_range_has(range, mr_model_memory(model, i)->source))
            status = open_memory(&out->memories[i], model, i, err);
        if (progress) progress(context, "loading weights", (double)(range.count + i + 1) / parts);
    }
    if (progress) progress(context, "loading weights", 1.0);
    if (status != MR_OK) mr_weights_close(out, model);
    return status;
}

static void close_block(mr_block_weights *b, uint32_t experts) {
    free(b->attn_norm);
    free(b->ff_norm);
    free(b->q_norm);
    free(b->k_norm);
    free(b->att_bias);
    free(b->attn_out_bias);
    free(b->ff_bias);
    free(b->ff_out_bias);
    mr_packed_free(&b->att_proj);
    mr_packed_free(&b->attn_out);
    mr_packed_free(&b->ff_proj);
    mr_packed_free(&b->ff_out);
    mr_packed_free(&b->router);
    mr_packed_free(&b->shared_proj);
    mr_packed_free(&b->shared_out);
    mr_packed_free(&b->shared_gate);
    for (uint32_t e = 0; b->experts && e < experts; e++) {
        mr_packed_free(&b->experts[e].gate);
        mr_packed_free(&b->experts[e].up);
        mr_packed_free(&b->experts[e].down);
    }
    free(b->experts);
}

static void close_memory(mr_memory_weights *m) {
    mr_packed_free(&m->query_proj);
    mr_packed_free(&m->pre_proj);
    mr_packed_free(&m->value_proj);
    mr_packed_free(&m->silu_proj);
    mr_product_keys_free(&m->keys);
    free(m->query_bias);
    free(m->query_norm);
    free(m->silu_bias);
    free(m->value_bias);
}

void mr_weights_close(mr_weights *weights, const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    for (uint32_t i = 0; weights->blocks && i < c->n_layers; i++)
        close_block(&weights->blocks[i], c->experts);
    for (uint32_t i = 0; weights->memories && i < c->memory_count; i++)
        close_memory(&weights->memories[i]);
    mr_packed_free(&weights->head);
    free(weights->final_norm);
    free(weights->blocks);
    free(weights->memories);
    mr_tensor_rows_close(&weights->embedding);
    *weights = (mr_weights){0};
}

/* --- what the engine needs to know --- */

/* The block whose stage has a matrix. */
static uint32_t block_of_matrix(const mr_model *model, const mr_matrix_id *id) {
    if (id->role == MR_MATRIX_HEAD) return mr_model_config(model)->n_layers - 1;
    return id->role >= MR_MATRIX_QUERY_PROJ ? mr_model_memory(model, id->index)->source : id->index;
}

size_t mr_weights_prepared_bytes(const mr_model *model, mr_block_range range, const mr_ops *ops) {
    size_t most = 0;
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) {
        mr_matrix matrix;
        if (!mr_range_has(range, block_of_matrix(model, &id))) continue;
        mr_matrix_of(&matrix, model, id);
        const mr_storage format = mr_matrix_storage(model, &matrix);
        const mr_packed shape = {
            .element = format.element, .block = format.block, .n = matrix.n, .k = matrix.k};
        const size_t bytes = ops->prepared_bytes(&shape);
        if (bytes > most) most = bytes;
    }
    return most;
}

mr_storage mr_weights_storage(const mr_model *model) {
    mr_storage format = {MR_F32, 0};
    uint64_t most = 0;
    for (mr_matrix_id id = {0}; mr_matrix_next(model, &id);) {
        mr_matrix matrix;
        if (id.index > 0 || id.role > MR_MATRIX_SHARED_OUT || id.expert > 0) continue;
        mr_matrix_of(&matrix, model, id);
        if ((uint64_t)matrix.n * matrix.k <= most) continue;
        most = (uint64_t)matrix.n * matrix.k;
        format = mr_matrix_storage(model, &matrix);
    }
    return format;
}

/* --- how much it is --------------------------------------------------------------------------- */

static bool is_table(const mr_model *model, const mr_tensor *t) {
    for (uint32_t k = 0; k < mr_model_table_count(model); k++)
        if (t == mr_model_table(model, k)->values || t == mr_model_table(model, k)->pre_values)
            return true;
    return false;
}

/* The block whose stage packs a tensor, or UINT32_MAX: nobody does (tables; an embedding that is
 * only mapped). Memory layers belong where they read, what follows the blocks to the last. */
static uint32_t block_of(const mr_model *model, const mr_tensor *t, mr_tensor_kind *kind) {
    const mr_config *c = mr_model_config(model);
    uint32_t index;
    bool is_memory;
    *kind = mr_tensor_kind_of(&index, &is_memory, t->name);
    if (is_table(model, t) || *kind == MR_TENSOR_UNUSED) return UINT32_MAX;
    if (*kind == MR_TENSOR_HEAD && c->tied) return UINT32_MAX;
    if (is_memory)
        return index < c->memory_count ? mr_model_memory(model, index)->source : UINT32_MAX;
    if (index != UINT32_MAX) return index < c->n_layers ? index : UINT32_MAX;
    const bool has_head = !c->tied || c->quant.is_packed; /* in a tensor of its own */
    return *kind == MR_TENSOR_EMBEDDING && has_head ? UINT32_MAX : c->n_layers - 1;
}

/* Product keys are kept as fp32. */
static uint64_t packed_bytes(const mr_tensor *t, mr_tensor_kind kind) {
    return kind == MR_TENSOR_KEYS ? t->bytes / mr_dtype_bytes(t->dtype) * sizeof(float) : t->bytes;
}

void mr_weights_plan(uint64_t *weight_bytes, uint64_t *index_bytes, const mr_model *model,
                     mr_block_range range) {
    *weight_bytes = *index_bytes = 0;
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        mr_tensor_kind kind;
        if (!mr_range_has(range, block_of(model, t, &kind))) continue;
        if (kind == MR_TENSOR_SHUFFLE)
            *index_bytes += t->bytes / 2; /* kept as u32 */
        else
            *weight_bytes += packed_bytes(t, kind);
    }
}

void mr_weights_by_block(uint64_t *bytes, const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    memset(bytes, 0, c->n_layers * sizeof(*bytes));
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        mr_tensor_kind kind;
        const uint32_t block = block_of(model, t, &kind);
        if (block < c->n_layers && kind != MR_TENSOR_SHUFFLE) bytes[block] += packed_bytes(t, kind);
    }
}
