/* geometry.c - which tensors a model must have, of which shapes; source: the official class
 * definitions as described in docs/MODELS.md. What a checkpoint decides by itself (R, M, E) is read
 * from its shapes. */
#include "common/model/geometry_impl.h"

#include "common/base/mem.h"
#include "common/model/rows.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static void shape_text(char *out, size_t room, uint32_t dims, const uint64_t *shape) {
    size_t used = (size_t)snprintf(out, room, "[");
    for (uint32_t i = 0; i < dims && used < room; i++)
        used += (size_t)snprintf(out + used, room - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)shape[i]);
    if (used < room) snprintf(out + used, room - used, "]");
}

static mr_status find(mr_geometry *g, const mr_tensor **out, const char *name, mr_err *err) {
    *out = g->find(g->context, name);
    if (!*out) return mr_fail(err, MR_ERR_FORMAT, "tensor %s is missing", name);
    g->mark(g->mark_context, *out, 0);
    return MR_OK;
}

static mr_status check_type(const mr_tensor *t, int kind, mr_err *err) {
    mr_element element;
    if (kind == INDEX) {
        if (t->dtype == MR_DTYPE_I64) return MR_OK;
        return mr_fail(err, MR_ERR_FORMAT, "tensor %s has type %s, expected I64", t->name,
                       mr_dtype_name(t->dtype));
    }
    if (mr_dtype_element(&element, t->dtype) == 0) return MR_OK;
    if (kind == MATRIX && t->dtype == MR_DTYPE_U8 && t->storage.block) return MR_OK;
    if (kind == MATRIX && t->scales) return MR_OK;
    if (kind != MATRIX && (t->scales || (t->dtype == MR_DTYPE_U8 && t->storage.block)))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "tensor %s has type %s; for it only floats are implemented", t->name,
                       mr_dtype_name(t->dtype));
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "tensor %s has type %s; F32, BF16 and F16 are implemented, and U8 where "
                   "config.json's quantization_config says how it is stored",
                   t->name, mr_dtype_name(t->dtype));
}

mr_status mr_geometry_need(mr_geometry *g, const mr_tensor **out, int kind, const char *name,
                           uint32_t dims, const uint64_t *shape, mr_err *err) {
    const mr_tensor *t;
    if (g->config->quant.is_packed && kind >= MATRIX && !g->find(g->context, name)) {
        t = g->invent(g->mark_context, name, shape);
        if (out) *out = t;
        return MR_OK;
    }
    TRY(find(g, &t, name, err));
    TRY(check_type(t, kind, err));
    const bool codes = t->dtype == MR_DTYPE_U8 && dims == 2;
    uint64_t stored[MR_MAX_TENSOR_DIMS];
    memcpy(stored, shape, dims * sizeof(*shape));
    if (codes) stored[1] = mr_storage_bytes(t->storage, shape[1]);
    if (t->dims != dims || memcmp(t->shape, stored, dims * sizeof(*stored)) != 0) {
        char found[200], wanted[200], how[80] = "";
        shape_text(found, sizeof(found), t->dims, t->shape);
        shape_text(wanted, sizeof(wanted), dims, stored);
        if (codes)
            snprintf(how, sizeof(how), ": %llu columns stored as %s", (unsigned long long)shape[1],
                     mr_storage_name(mr_storage_type_of(t->storage)));
        return mr_fail(err, MR_ERR_FORMAT, "tensor %s has shape %s, expected %s%s", name, found,
                       wanted, how);
    }
    if (codes) g->mark(g->mark_context, t, shape[1]);
    if (out) *out = t;
    return MR_OK;
}

static mr_status need(mr_geometry *g, const mr_tensor **out, int kind, const char *name,
                      uint32_t dims, const uint64_t *shape, mr_err *err) {
    return mr_geometry_need(g, out, kind, name, dims, shape, err);
}

__attribute__((format(printf, 2, 3))) static const char *named(char *out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(out, MR_GEOMETRY_NAME_BYTES, format, args);
    va_end(args);
    return out;
}

static mr_status check_block(mr_geometry *g, uint32_t block, mr_err *err) {
    const mr_config *c = g->config;
    const uint64_t d = c->d_model, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    char name[MR_GEOMETRY_NAME_BYTES];
#define BLOCK(suffix) named(name, "transformer.blocks.%u." suffix, block)
    TRY(need(g, NULL, FLOATS, BLOCK("attn_norm.weight"), SHAPE(d), err));
    TRY(need(g, NULL, FLOATS, BLOCK("ff_norm.weight"), SHAPE(d), err));
    TRY(need(g, NULL, MATRIX, BLOCK("att_proj.weight"), SHAPE(d + 2 * kv, d), err));
    TRY(need(g, NULL, MATRIX, BLOCK("attn_out.weight"), SHAPE(d, d), err));
    if (c->qk_norm) {
        TRY(need(g, NULL, FLOATS, BLOCK("q_norm.weight"), SHAPE(c->head_dim), err));
        TRY(need(g, NULL, FLOATS, BLOCK("k_norm.weight"), SHAPE(c->head_dim), err));
    }
    if (!c->moe) {
        TRY(need(g, NULL, MATRIX, BLOCK("ff_proj.weight"), SHAPE(c->mlp_hidden, d), err));
        return need(g, NULL, MATRIX, BLOCK("ff_out.weight"), SHAPE(d, c->mlp_hidden / 2), err);
    }
    const uint64_t rows = (uint64_t)c->experts * c->expert_hidden;
    TRY(need(g, NULL, FLOAT_MATRIX, BLOCK("ffn.router.layer.weight"), SHAPE(c->experts, d), err));
    TRY(need(g, NULL, MATRIX, BLOCK("ffn.experts.mlp.w1"), SHAPE(rows, d), err));
    TRY(need(g, NULL, MATRIX, BLOCK("ffn.experts.mlp.v1"), SHAPE(rows, d), err));
    return need(g, NULL, FLOAT_MATRIX, BLOCK("ffn.experts.mlp.w2"), SHAPE(rows, d), err);
#undef BLOCK
}

#define MEM(suffix) named(name, "transformer.mem_blocks.%u." suffix, i)

mr_status mr_geometry_check_selection(const mr_memory_layer *l, uint32_t i, mr_err *err) {
    if (l->knn > l->keys_per_side)
        return mr_fail(err, MR_ERR_FORMAT, "memory layer %u: mem_knn %u exceeds its %u keys a side",
                       i, l->knn, l->keys_per_side);
    if ((uint64_t)l->keys_per_side * l->keys_per_side > UINT32_MAX)
        return mr_fail(err, MR_ERR_LIMIT,
                       "memory layer %u: %u keys a side give more than 2^32 pairs", i,
                       l->keys_per_side);
    return MR_OK;
}

/* A table's side: its rows as they are stored. */
static mr_status need_rows(mr_geometry *g, const mr_tensor **out, mr_storage *storage,
                           const char *name, uint64_t rows, uint64_t width, mr_err *err) {
    TRY(find(g, out, name, err));
    const mr_tensor *t = *out;
    TRY(mr_quant_config_storage(storage, &g->config->quant, name, t->dtype, err));
    const uint64_t columns = storage->block ? mr_storage_bytes(*storage, width) : width;
    if (t->dims == 2 && t->shape[0] == rows && t->shape[1] == columns) return MR_OK;
    char found[200], stored[80] = "";
    shape_text(found, sizeof(found), t->dims, t->shape);
    if (storage->block)
        snprintf(stored, sizeof(stored), ": %llu columns stored as %s", (unsigned long long)width,
                 mr_storage_name(mr_storage_type_of(*storage)));
    return mr_fail(err, MR_ERR_FORMAT, "tensor %s has shape %s, expected [%llu, %llu]%s", name,
                   found, (unsigned long long)rows, (unsigned long long)columns, stored);
}

mr_status mr_geometry_set_table(mr_geometry *g, uint32_t index, const char *values, uint64_t rows,
                                uint64_t width, const char *pre_values, uint64_t pre_width,
                                mr_err *err) {
    mr_table_shape t = {.rows = rows, .width = (uint32_t)width, .pre_width = (uint32_t)pre_width};
    TRY(need_rows(g, &t.values, &t.storage, values, rows, width, err));
    if (pre_width)
        TRY(need_rows(g, &t.pre_values, &t.pre_storage, pre_values, rows, pre_width, err));
    if (rows > UINT32_MAX)
        return mr_fail(err, MR_ERR_LIMIT, "tensor %s has %llu rows, at most 2^32 - 1 are addressed",
                       values, (unsigned long long)rows);
    g->mark(g->mark_context, t.values, width);
    if (pre_width) g->mark(g->mark_context, t.pre_values, pre_width);
    g->tables[index] = t;
    if (index >= g->table_count) g->table_count = index + 1;
    return MR_OK;
}

static mr_status check_pkm(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    mr_memory_layer *l = &g->layers[i];
    const uint64_t n = c->mem_knum, d = c->d_model, h = c->mem_head, kdim = c->mem_kdim;
    char name[MR_GEOMETRY_NAME_BYTES];
    TRY(mr_geometry_check_selection(l, i, err));
    TRY(need(g, NULL, FLOATS, MEM("keys"), SHAPE(2 * h * n, kdim), err));
    TRY(need(g, NULL, MATRIX, MEM("query_proj.query_mlps.0.weight"), SHAPE(h * 2 * kdim, d), err));
    if (c->mem_query_bias)
        TRY(need(g, NULL, FLOATS, MEM("query_proj.query_mlps.0.bias"), SHAPE(h * 2 * kdim), err));
    l->table = i;
    return mr_geometry_set_table(g, i, MEM("values.weight"), n * n, d, NULL, 0, err);
}

static mr_status check_plus(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    const uint64_t n = c->mem_knum, d = c->d_model, h = c->mem_head, kdim = c->mem_kdim;
    const uint64_t v = c->mem_vdim;
    char name[MR_GEOMETRY_NAME_BYTES];
    TRY(mr_geometry_check_selection(&g->layers[i], i, err));
    TRY(need(g, NULL, FLOATS, MEM("keys"), SHAPE(h, 2, n, kdim), err));
    TRY(need(g, NULL, MATRIX, MEM("query_proj.weight"), SHAPE(h * 2 * kdim, d), err));
    TRY(need(g, NULL, FLOATS, MEM("query_norm.weight"), SHAPE(kdim), err));
    TRY(need(g, NULL, MATRIX, MEM("swilu_projection.weight"), SHAPE(v, d), err));
    TRY(need(g, NULL, MATRIX, MEM("values_proj.weight"), SHAPE(d, v), err));
    if (g->find(g->context, MEM("keys_norm.weight"))) /* in the file, without effect */
        TRY(need(g, NULL, FLOATS, name, SHAPE(kdim), err));
    g->layers[i].table = 0;
    return mr_geometry_set_table(g, 0, "transformer.full_memory_layer.values_for_look_up", n * n, v,
                                 NULL, 0, err);
}

/* R from the keys, M from the number of cores. */
static mr_status check_tucker(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    mr_memory_layer *l = &g->layers[i];
    const mr_tensor *keys;
    char name[MR_GEOMETRY_NAME_BYTES];
    const uint64_t h = c->mem_head;
    TRY(find(g, &keys, MEM("keys"), err));
    if (keys->dims != 5 || keys->shape[4] < 1 || keys->shape[4] > MR_MAX_TUCKER_RANK)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %s must have shape [head, 2, n, kdim, R] with R in [1, %d]", name,
                       MR_MAX_TUCKER_RANK);
    const uint64_t r = keys->shape[4];
    l->rank = (uint32_t)r;
    TRY(need(g, NULL, FLOATS, MEM("keys"), SHAPE(h, 2, l->keys_per_side, c->mem_kdim, r), err));
    TRY(need(g, NULL, FLOATS, MEM("query_norm.weight"), SHAPE(c->mem_kdim), err));
    TRY(need(g, NULL, FLOATS, MEM("keys_norm.weight"), SHAPE(c->mem_kdim), err));
    TRY(need(g, NULL, FLOATS, MEM("tucker_core_u"), SHAPE(1, h, 1, r), err));
    TRY(need(g, NULL, FLOATS, MEM("tucker_core_v"), SHAPE(1, h, 1, r), err));
    for (l->cores = 0;; l->cores++) {
        named(name, "transformer.mem_blocks.%u.tucker_core.%u", i, l->cores);
        if (!g->find(g->context, name)) break;
        if (l->cores >= MR_MAX_CORES)
            return mr_fail(err, MR_ERR_LIMIT, "memory layer %u has more than %d cores", i,
                           MR_MAX_CORES);
        TRY(need(g, NULL, FLOATS, name, SHAPE(h, r, r), err));
    }
    if (l->cores == 0) return mr_fail(err, MR_ERR_FORMAT, "tensor %s is missing", name);
    if ((c->mem_tucker_rank && c->mem_tucker_rank != l->rank) ||
        (c->mem_tucker_cores && c->mem_tucker_cores != l->cores))
        return mr_fail(
            err, MR_ERR_FORMAT,
            "memory layer %u has rank %u and %u cores; config.json says mem_tucker_rank %u and "
            "mem_tucker_multihead %u",
            i, l->rank, l->cores, c->mem_tucker_rank, c->mem_tucker_cores);
    if (c->mem_vdim % l->cores != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "mem_vdim %u is not a multiple of the %u cores of memory layer %u",
                       c->mem_vdim, l->cores, i);
    const uint64_t virtual_rows = (uint64_t)l->keys_per_side * l->keys_per_side;
    return need(g, NULL, INDEX, MEM("shuffle_index"), SHAPE(virtual_rows), err);
}

/* kx of v1, E = kx^2: columns of values_proj / vdim, or keys / knum where it is stored as panels;
 * 0: neither fits. */
static uint32_t value_expansion(const mr_geometry *g, uint32_t i) {
    const mr_config *c = g->config;
    char name[MR_GEOMETRY_NAME_BYTES];
    const mr_tensor *keys = g->find(g->context, MEM("keys"));
    const mr_tensor *t = g->find(g->context, MEM("values_proj.weight"));
    for (uint32_t kx = 1; kx * kx <= MR_MAX_SLOTS - 1; kx++) {
        const uint64_t columns = (uint64_t)kx * kx * c->mem_vdim;
        if (!t && c->quant.is_packed && keys && keys->dims == 5 &&
            keys->shape[2] == (uint64_t)kx * c->mem_knum)
            return kx;
        if (t && t->dims == 2 &&
            t->shape[1] ==
                (t->dtype == MR_DTYPE_U8 ? mr_storage_bytes(t->storage, columns) : columns))
            return kx;
    }
    return 0;
}

static mr_status check_v1(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    mr_memory_layer *l = &g->layers[i];
    const uint64_t d = c->d_model, v = c->mem_vdim;
    char name[MR_GEOMETRY_NAME_BYTES];
    const uint32_t kx = value_expansion(g, i);
    const uint64_t expand = (uint64_t)kx * kx;
    named(name, "transformer.mem_blocks.%u.values_proj.weight", i);
    if (kx == 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "tensor %s: its columns must be mem_vdim %u times a square of at most 225",
                       name, c->mem_vdim);
    TRY(need(g, NULL, MATRIX, name, SHAPE(d, expand * v), err));
    l->slots = l->slots_out = (uint32_t)expand;
    l->keys_per_side = kx * c->mem_knum;
    l->reach_rows = (uint64_t)c->mem_knum * c->mem_knum;
    l->shuffled = true;
    TRY(mr_geometry_check_selection(l, i, err));
    TRY(need(g, NULL, MATRIX, MEM("query_proj.weight"), SHAPE(2ull * c->mem_kdim, d), err));
    TRY(check_tucker(g, i, err));
    l->table = i;
    return mr_geometry_set_table(g, i, MEM("values_for_look_up"), l->reach_rows, v, NULL, 0, err);
}

static mr_status check_v2(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    mr_memory_layer *l = &g->layers[i];
    const uint64_t d = c->d_model, v = c->mem_vdim, pre = c->mem_pre_vdim;
    const uint64_t own = (uint64_t)c->mem_knum * c->mem_knum;
    const uint64_t rows = own * c->memory_count; /* A: the ring all layers share */
    char name[MR_GEOMETRY_NAME_BYTES];
    const uint32_t side = (uint32_t)sqrt((double)rows * c->mem_share_ratio); /* knum', floor */
    const uint32_t kx = c->mem_key_expand;
    if (side == 0)
        return mr_fail(err, MR_ERR_RANGE, "mem_share_ratio %g leaves no rows", c->mem_share_ratio);
    l->reach_rows = (uint64_t)side * side;
    l->keys_per_side = kx * side;
    l->row_offset = i * own;
    l->slots = kx * kx;
    l->slots_out = c->mem_value_expand == l->slots ? l->slots : 1;
    l->shuffled = true;
    l->gated = pre > 0;
    l->gelu = l->gated && c->mem_gelu;
    TRY(mr_geometry_check_selection(l, i, err));
    TRY(check_tucker(g, i, err));
    if (c->mem_query_per_rank && l->rank != 2)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'mem_q_for_each_tucker_rank' is true with rank %u; the official code "
                       "runs only with 2",
                       l->rank);
    const uint64_t query_rows = (c->mem_query_per_rank ? 2ull * l->rank : 2ull) * c->mem_kdim;
    TRY(need(g, NULL, MATRIX, MEM("query_proj.weight"), SHAPE(query_rows, d), err));
    TRY(need(g, NULL, MATRIX, MEM("values_proj.weight"), SHAPE(d, l->slots_out * v), err));
    if (pre) TRY(need(g, NULL, MATRIX, MEM("pre_values_proj.weight"), SHAPE(pre, d), err));
    l->table = 0;
    return mr_geometry_set_table(g, 0, "transformer.full_memory_layer.values_for_look_up", rows, v,
                                 "transformer.full_memory_layer.pre_values_for_look_up", pre, err);
}

mr_memory_layer mr_geometry_plain_layer(const mr_config *c, uint32_t i) {
    return (mr_memory_layer){.source = c->insertions[i].source,
                             .destination = c->insertions[i].destination,
                             .heads = c->mem_head,
                             .knn = c->mem_knn,
                             .entries = c->mem_head * c->mem_knn,
                             .keys_per_side = c->mem_knum,
                             .key_dim = c->mem_kdim,
                             .rank = 1,
                             .cores = 1,
                             .reach_rows = (uint64_t)c->mem_knum * c->mem_knum,
                             .slots = 1,
                             .slots_out = 1};
}

static mr_status check_memory(mr_geometry *g, uint32_t i, mr_err *err) {
    const mr_config *c = g->config;
    mr_memory_layer *l = &g->layers[i];
    *l = mr_geometry_plain_layer(c, i);
    switch (c->memory) {
    case MR_MEMORY_PKM:
        return check_pkm(g, i, err);
    case MR_MEMORY_PLUS:
        return check_plus(g, i, err);
    case MR_MEMORY_ULTRAMEM_V1:
        return check_v1(g, i, err);
    case MR_MEMORY_ULTRAMEM_V2:
        return check_v2(g, i, err);
    case MR_MEMORY_META: /* geometry_hf.c */
    case MR_MEMORY_NONE:
        break;
    }
    return MR_OK;
}

mr_status mr_geometry_check(mr_geometry *g, mr_err *err) {
    const mr_config *c = g->config;
    if (c->family != MR_FAMILY_OFFICIAL) return mr_geometry_check_hf(g, err);
    TRY(need(g, NULL, MATRIX, "transformer.wte.weight", SHAPE(c->head_rows, c->d_model), err));
    TRY(need(g, NULL, FLOATS, "transformer.ln_f.weight", SHAPE(c->d_model), err));
    if (!c->tied)
        TRY(need(g, NULL, MATRIX, "transformer.ff_out.weight", SHAPE(c->head_rows, c->d_model),
                 err));
    for (uint32_t i = 0; i < c->n_layers; i++) TRY(check_block(g, i, err));
    for (uint32_t i = 0; i < c->memory_count; i++) TRY(check_memory(g, i, err));
    return MR_OK;
}
