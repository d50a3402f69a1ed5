/* matrices.c - see matrices.h. */
#include "common/model/matrices.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const mr_model *model;
    const mr_config *config;
    mr_matrix *matrix;
    uint32_t index, expert;
} naming;

__attribute__((format(printf, 2, 0))) static const mr_tensor *
find(const mr_model *model, const char *format, va_list args) {
    char name[160];
    vsnprintf(name, sizeof(name), format, args);
    const mr_tensor *t = mr_model_find(model, name);
    assert(t);
    return t;
}

static void add_part(mr_matrix *m, const mr_tensor *t, uint64_t first, uint32_t rows,
                     bool transposed) {
    assert(t->dims == 2 && first + rows <= t->shape[0] && m->part_count < MR_MATRIX_PARTS_MAX);
    const uint32_t n = transposed ? (uint32_t)t->columns : rows;
    m->parts[m->part_count++] = (mr_matrix_part){t, first, rows, transposed};
    m->n += n;
    m->k = transposed ? rows : (uint32_t)t->columns;
}

/* A whole tensor, all its rows. */
__attribute__((format(printf, 2, 3))) static void whole(const naming *w, const char *format, ...) {
    va_list args;
    va_start(args, format);
    const mr_tensor *t = find(w->model, format, args);
    va_end(args);
    add_part(w->matrix, t, 0, (uint32_t)t->shape[0], false);
}

/* Rows of one expert in a tensor that holds all of them. */
__attribute__((format(printf, 3, 4))) static void expert_rows(const naming *w, bool transposed,
                                                              const char *format, ...) {
    const uint32_t rows = w->config->expert_hidden;
    va_list args;
    va_start(args, format);
    const mr_tensor *t = find(w->model, format, args);
    va_end(args);
    add_part(w->matrix, t, (uint64_t)w->expert * rows, rows, transposed);
}

#define BLOCK "transformer.blocks.%u."
#define MEM "transformer.mem_blocks.%u."

static void official_matrix(const naming *w, mr_matrix_role role) {
    const uint32_t i = w->index;
    switch (role) {
    case MR_MATRIX_ATT_PROJ:
        return whole(w, BLOCK "att_proj.weight", i);
    case MR_MATRIX_ATTN_OUT:
        return whole(w, BLOCK "attn_out.weight", i);
    case MR_MATRIX_FF_PROJ:
        return whole(w, BLOCK "ff_proj.weight", i);
    case MR_MATRIX_FF_OUT:
        return whole(w, BLOCK "ff_out.weight", i);
    case MR_MATRIX_ROUTER:
        return whole(w, BLOCK "ffn.router.layer.weight", i);
    case MR_MATRIX_EXPERT_GATE:
        return expert_rows(w, false, BLOCK "ffn.experts.mlp.w1", i);
    case MR_MATRIX_EXPERT_UP:
        return expert_rows(w, false, BLOCK "ffn.experts.mlp.v1", i);
    case MR_MATRIX_EXPERT_DOWN:
        return expert_rows(w, true, BLOCK "ffn.experts.mlp.w2", i);
    case MR_MATRIX_QUERY_PROJ:
        if (w->config->memory == MR_MEMORY_PKM)
            return whole(w, MEM "query_proj.query_mlps.0.weight", i);
        return whole(w, MEM "query_proj.weight", i);
    case MR_MATRIX_PRE_PROJ:
        return whole(w, MEM "pre_values_proj.weight", i);
    case MR_MATRIX_VALUE_PROJ:
        return whole(w, MEM "values_proj.weight", i);
    case MR_MATRIX_SILU_PROJ:
        return whole(w, MEM "swilu_projection.weight", i);
    case MR_MATRIX_HEAD:
        if (w->config->tied) return whole(w, "transformer.wte.weight");
        return whole(w, "transformer.ff_out.weight");
    case MR_MATRIX_SHARED_PROJ:
    case MR_MATRIX_SHARED_OUT:
    case MR_MATRIX_SHARED_GATE:
    case MR_MATRIX_NONE:
        break;
    }
    assert(!"the official code has no such matrix");
}

static const char *const role_names[] = {
    [MR_MATRIX_ATT_PROJ] = "att_proj",
    [MR_MATRIX_ATTN_OUT] = "attn_out",
    [MR_MATRIX_FF_PROJ] = "ff_proj",
    [MR_MATRIX_FF_OUT] = "ff_out",
    [MR_MATRIX_ROUTER] = "router",
    [MR_MATRIX_EXPERT_GATE] = "gate",
    [MR_MATRIX_EXPERT_UP] = "up",
    [MR_MATRIX_EXPERT_DOWN] = "down",
    [MR_MATRIX_SHARED_PROJ] = "shared_proj",
    [MR_MATRIX_SHARED_OUT] = "shared_out",
    [MR_MATRIX_SHARED_GATE] = "shared_gate",
    [MR_MATRIX_QUERY_PROJ] = "query_proj",
    [MR_MATRIX_PRE_PROJ] = "pre_proj",
    [MR_MATRIX_VALUE_PROJ] = "value_proj",
    [MR_MATRIX_SILU_PROJ] = "silu_proj",
    [MR_MATRIX_HEAD] = "head",
};

static bool is_expert_role(mr_matrix_role role) {
    return role >= MR_MATRIX_EXPERT_GATE && role <= MR_MATRIX_EXPERT_DOWN;
}

static bool is_memory_role(mr_matrix_role role) {
    return role >= MR_MATRIX_QUERY_PROJ && role <= MR_MATRIX_SILU_PROJ;
}

static void name_matrix(mr_matrix *m) {
    const mr_matrix_id *id = &m->id;
    const char *name = role_names[id->role];
    if (id->role == MR_MATRIX_HEAD)
        snprintf(m->name, sizeof(m->name), "%s", name);
    else if (is_expert_role(id->role))
        snprintf(m->name, sizeof(m->name), "blocks.%u.experts.%u.%s", id->index, id->expert, name);
    else
        snprintf(m->name, sizeof(m->name), "%s.%u.%s",
                 is_memory_role(id->role) ? "mem_blocks" : "blocks", id->index, name);
}

void mr_matrix_of(mr_matrix *out, const mr_model *model, mr_matrix_id id) {
    const naming w = {.model = model,
                      .config = mr_model_config(model),
                      .matrix = out,
                      .index = id.index,
                      .expert = id.expert};
    assert(mr_matrix_exists(model, id));
    *out = (mr_matrix){.id = id};
    name_matrix(out);
    official_matrix(&w, id.role);
}

bool mr_matrix_exists(const mr_model *model, mr_matrix_id id) {
    const mr_config *c = mr_model_config(model);
    const mr_matrix_role role = id.role;
    if (role == MR_MATRIX_NONE || role > MR_MATRIX_HEAD) return false;
    if (id.expert != 0 && !(is_expert_role(role) && id.expert < c->experts)) return false;
    if (role == MR_MATRIX_HEAD) return id.index == 0;
    if (is_memory_role(role)) {
        if (id.index >= c->memory_count) return false;
        if (role == MR_MATRIX_QUERY_PROJ) return true;
        if (role == MR_MATRIX_VALUE_PROJ) return c->memory != MR_MEMORY_PKM;
        if (role == MR_MATRIX_SILU_PROJ) return c->memory == MR_MEMORY_PLUS;
        return mr_model_memory(model, id.index)->gated;
    }
    if (id.index >= c->n_layers) return false;
    if (role == MR_MATRIX_ATT_PROJ || role == MR_MATRIX_ATTN_OUT) return true;
    if (role == MR_MATRIX_FF_PROJ || role == MR_MATRIX_FF_OUT) return !c->moe;
    if (role >= MR_MATRIX_SHARED_PROJ) return false;
    return c->moe;
}

/* What follows in the order of matrices.h, there or not; false at the end. */
static bool advance(const mr_config *c, mr_matrix_id *id) {
    if (id->role == MR_MATRIX_HEAD) return false;
    if (is_expert_role(id->role) && id->expert + 1 < c->experts) {
        id->expert++;
        return true;
    }
    const bool is_block = id->role <= MR_MATRIX_SHARED_GATE;
    id->expert = 0;
    if (id->role == MR_MATRIX_SHARED_GATE || id->role == MR_MATRIX_SILU_PROJ) {
        id->index++;
        if (id->index < (is_block ? c->n_layers : c->memory_count)) {
            id->role = is_block ? MR_MATRIX_ATT_PROJ : MR_MATRIX_QUERY_PROJ;
            return true;
        }
        id->index = 0;
    }
    id->role++;
    return true;
}

bool mr_matrix_next(const mr_model *model, mr_matrix_id *id) {
    do {
        if (!advance(mr_model_config(model), id)) return false;
    } while (!mr_matrix_exists(model, *id));
    return true;
}

/* --- vectors ---------------------------------------------------------------------------------- */

static bool vector_exists(const mr_config *c, mr_vector_role role) {
    if (role == MR_VECTOR_Q_NORM || role == MR_VECTOR_K_NORM) return c->qk_norm;
    if (role == MR_VECTOR_QUERY_BIAS) return c->mem_query_bias;
    if (role == MR_VECTOR_QUERY_NORM) return c->memory != MR_MEMORY_PKM;
    return role == MR_VECTOR_ATTN_NORM || role == MR_VECTOR_FF_NORM || role == MR_VECTOR_FINAL_NORM;
}

uint32_t mr_vector_of(const mr_tensor *parts[MR_VECTOR_PARTS_MAX], const mr_model *model,
                      mr_vector_role role, uint32_t index) {
    static const char *const names[] = {
        [MR_VECTOR_ATTN_NORM] = "attn_norm.weight",
        [MR_VECTOR_FF_NORM] = "ff_norm.weight",
        [MR_VECTOR_Q_NORM] = "q_norm.weight",
        [MR_VECTOR_K_NORM] = "k_norm.weight",
        [MR_VECTOR_QUERY_BIAS] = "query_proj.query_mlps.0.bias",
        [MR_VECTOR_QUERY_NORM] = "query_norm.weight",
        [MR_VECTOR_FINAL_NORM] = "ln_f.weight",
    };
    char name[160];
    if (!vector_exists(mr_model_config(model), role)) return 0;
    if (role == MR_VECTOR_FINAL_NORM)
        snprintf(name, sizeof(name), "transformer.%s", names[role]);
    else if (role == MR_VECTOR_QUERY_BIAS || role == MR_VECTOR_QUERY_NORM)
        snprintf(name, sizeof(name), MEM "%s", index, names[role]);
    else
        snprintf(name, sizeof(name), BLOCK "%s", index, names[role]);
    parts[0] = mr_model_find(model, name);
    assert(parts[0]);
    return 1;
}

const mr_tensor *mr_model_embedding(const mr_model *model) {
    return mr_model_find(model, "transformer.wte.weight");
}

/* --- kinds of tensors ------------------------------------------------------------------------- */

static bool ends_with(const char *text, const char *end) {
    const size_t a = strlen(text), b = strlen(end);
    return a >= b && strcmp(text + a - b, end) == 0;
}

mr_tensor_kind mr_tensor_kind_of(uint32_t *index, bool *is_memory, const char *name) {
    unsigned at;
    *index = UINT32_MAX;
    *is_memory = sscanf(name, "transformer.mem_blocks.%u.", &at) == 1;
    if (*is_memory || sscanf(name, "transformer.blocks.%u.", &at) == 1) *index = at;
    if (ends_with(name, "shuffle_index")) return MR_TENSOR_SHUFFLE;
    if (*is_memory && ends_with(name, ".keys")) return MR_TENSOR_KEYS;
    if (strstr(name, ".experts.")) return MR_TENSOR_EXPERT;
    return strcmp(name, "transformer.wte.weight") == 0 ? MR_TENSOR_EMBEDDING : MR_TENSOR_DENSE;
}
