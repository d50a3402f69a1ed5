/* weights.c - see weights.h. */
#include "worker/weights.h"

#include "common/base/mem.h"
#include "common/ops/dense.h"
#include "common/model/pack.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)

typedef struct {
    char text[128];
} name_text;

__attribute__((format(printf, 1, 2))) static name_text named(const char *format, ...) {
    name_text name;
    va_list args;
    va_start(args, format);
    vsnprintf(name.text, sizeof(name.text), format, args);
    va_end(args);
    return name;
}
#define BLOCK(suffix) (named("transformer.blocks.%u." suffix, block).text)
#define MEM(suffix) (named("transformer.mem_blocks.%u." suffix, layer).text)

static mr_status open_experts(mr_block_weights *b, const mr_model *model, uint32_t block,
                              mr_err *err) {
    const mr_config *c = mr_model_config(model);
    TRY(mr_pack_rows(&b->router, model, BLOCK("ffn.router.layer.weight"), 0, c->experts, err));
    b->experts = mr_alloc_array(c->experts, sizeof(*b->experts));
    for (uint32_t e = 0; e < c->experts; e++) {
        const uint64_t row = (uint64_t)e * c->expert_hidden;
        mr_expert *x = &b->experts[e];
        TRY(mr_pack_rows(&x->gate, model, BLOCK("ffn.experts.mlp.w1"), row, c->expert_hidden, err));
        TRY(mr_pack_rows(&x->up, model, BLOCK("ffn.experts.mlp.v1"), row, c->expert_hidden, err));
        TRY(mr_pack_transposed(&x->down, model, BLOCK("ffn.experts.mlp.w2"), row, c->expert_hidden,
                               err));
    }
    return MR_OK;
}

static mr_status open_block(mr_block_weights *b, const mr_model *model, uint32_t block,
                            mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const uint32_t kv = c->n_kv_heads * c->head_dim;
    TRY(mr_load_floats(&b->attn_norm, model, BLOCK("attn_norm.weight"), err));
    TRY(mr_load_floats(&b->ff_norm, model, BLOCK("ff_norm.weight"), err));
    if (c->qk_norm) {
        TRY(mr_load_floats(&b->q_norm, model, BLOCK("q_norm.weight"), err));
        TRY(mr_load_floats(&b->k_norm, model, BLOCK("k_norm.weight"), err));
    }
    TRY(mr_pack_rows(&b->att_proj, model, BLOCK("att_proj.weight"), 0, c->d_model + 2 * kv, err));
    TRY(mr_pack_rows(&b->attn_out, model, BLOCK("attn_out.weight"), 0, c->d_model, err));
    if (c->moe) return open_experts(b, model, block, err);
    TRY(mr_pack_rows(&b->ff_proj, model, BLOCK("ff_proj.weight"), 0, c->mlp_hidden, err));
    return mr_pack_rows(&b->ff_out, model, BLOCK("ff_out.weight"), 0, c->d_model, err);
}

static mr_status open_memory(mr_memory_weights *m, const mr_model *model, uint32_t layer,
                             mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const mr_memory_layer *l = mr_model_memory(model, layer);
    const bool pkm = c->memory == MR_MEMORY_PKM;
    const char *query = pkm ? "query_proj.query_mlps.0.weight" : "query_proj.weight";
    const name_text query_name = named("transformer.mem_blocks.%u.%s", layer, query);
    const mr_tensor *t = mr_model_find(model, query_name.text);
    TRY(mr_pack_rows(&m->query_proj, model, query_name.text, 0, (uint32_t)t->shape[0], err));
    if (pkm && c->mem_query_bias)
        TRY(mr_load_floats(&m->query_bias, model, MEM("query_proj.query_mlps.0.bias"), err));
    if (!pkm) TRY(mr_load_floats(&m->query_norm, model, MEM("query_norm.weight"), err));
    TRY(mr_product_keys_open(&m->keys, model, layer, err));
    if (pkm) return MR_OK;
    TRY(mr_pack_rows(&m->value_proj, model, MEM("values_proj.weight"), 0, c->d_model, err));
    if (c->memory == MR_MEMORY_PLUS)
        return mr_pack_rows(&m->silu_proj, model, MEM("swilu_projection.weight"), 0, c->mem_vdim,
                            err);
    if (!l->gated) return MR_OK;
    return mr_pack_rows(&m->pre_proj, model, MEM("pre_values_proj.weight"), 0, c->mem_pre_vdim,
                        err);
}

static mr_status open_ends(mr_weights *out, const mr_model *model, mr_block_range range,
                           mr_err *err) {
    const mr_config *c = mr_model_config(model);
    const mr_tensor *wte = mr_model_find(model, "transformer.wte.weight");
    mr_dtype_element(&out->embedding_element, wte->dtype);
    if (range.first == 0) TRY(mr_tensor_map(&out->embedding, model, wte, 0, wte->bytes, err));
    if (range.first + range.count < c->n_layers) return MR_OK;
    TRY(mr_pack_rows(&out->head, model,
                     c->tied ? "transformer.wte.weight" : "transformer.ff_out.weight", 0,
                     c->head_rows, err));
    return mr_load_floats(&out->final_norm, model, "transformer.ln_f.weight", err);
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
    mr_packed_free(&b->att_proj);
    mr_packed_free(&b->attn_out);
    mr_packed_free(&b->ff_proj);
    mr_packed_free(&b->ff_out);
    mr_packed_free(&b->router);
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
    mr_mapping_close(&weights->embedding);
    *weights = (mr_weights){0};
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
static uint32_t block_of(const mr_model *model, const mr_tensor *t) {
    const mr_config *c = mr_model_config(model);
    unsigned index;
    if (is_table(model, t)) return UINT32_MAX;
    if (sscanf(t->name, "transformer.blocks.%u.", &index) == 1)
        return index < c->n_layers ? index : UINT32_MAX;
    if (sscanf(t->name, "transformer.mem_blocks.%u.", &index) == 1)
        return index < c->memory_count ? mr_model_memory(model, index)->source : UINT32_MAX;
    if (strcmp(t->name, "transformer.wte.weight") == 0 && !c->tied) return UINT32_MAX;
    return c->n_layers - 1;
}

static uint64_t packed_bytes(const mr_tensor *t) {
    return strstr(t->name, ".keys") ? t->bytes / mr_dtype_bytes(t->dtype) * 4 : t->bytes;
}

void mr_weights_plan(uint64_t *weight_bytes, uint64_t *index_bytes, const mr_model *model,
                     mr_block_range range) {
    *weight_bytes = *index_bytes = 0;
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        if (!mr_range_has(range, block_of(model, t))) continue;
        if (t->dtype == MR_DTYPE_I64)
            *index_bytes += t->bytes / 2; /* kept as u32 */
        else
            *weight_bytes += packed_bytes(t);
    }
}

void mr_weights_by_block(uint64_t *bytes, const mr_model *model) {
    const mr_config *c = mr_model_config(model);
    memset(bytes, 0, c->n_layers * sizeof(*bytes));
    for (uint32_t i = 0; i < mr_model_tensor_count(model); i++) {
        const mr_tensor *t = mr_model_tensor(model, i);
        const uint32_t block = block_of(model, t);
        if (block < c->n_layers && t->dtype != MR_DTYPE_I64) bytes[block] += packed_bytes(t);
    }
}
