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
    assert(0 && "the official code has no such matrix");
}

#define LAYER "model.layers.%u."

/* Mixtral calls gate, up and down w1, w3 and w2. */
static void hf_expert(const naming *w, const char *plain, const char *mixtral) {
    if (w->config->family == MR_FAMILY_MIXTRAL)
        whole(w, LAYER "block_sparse_moe.experts.%u.%s.weight", w->index, w->expert, mixtral);
    else
        whole(w, LAYER "mlp.experts.%u.%s.weight", w->index, w->expert, plain);
}

static void hf_matrix(const naming *w, mr_matrix_role role) {
    const uint32_t i = w->index;
    switch (role) {
    case MR_MATRIX_ATT_PROJ:
        whole(w, LAYER "self_attn.q_proj.weight", i);
        whole(w, LAYER "self_attn.k_proj.weight", i);
        return whole(w, LAYER "self_attn.v_proj.weight", i);
    case MR_MATRIX_ATTN_OUT:
        return whole(w, LAYER "self_attn.o_proj.weight", i);
    case MR_MATRIX_FF_PROJ:
        whole(w, LAYER "mlp.up_proj.weight", i);
        return whole(w, LAYER "mlp.gate_proj.weight", i);
    case MR_MATRIX_FF_OUT:
        return whole(w, LAYER "mlp.down_proj.weight", i);
    case MR_MATRIX_ROUTER:
        if (w->config->family == MR_FAMILY_MIXTRAL)
            return whole(w, LAYER "block_sparse_moe.gate.weight", i);
        return whole(w, LAYER "mlp.gate.weight", i);
    case MR_MATRIX_EXPERT_GATE:
        return hf_expert(w, "gate_proj", "w1");
    case MR_MATRIX_EXPERT_UP:
        return hf_expert(w, "up_proj", "w3");
    case MR_MATRIX_EXPERT_DOWN:
        return hf_expert(w, "down_proj", "w2");
    case MR_MATRIX_SHARED_PROJ:
        whole(w, LAYER "mlp.shared_expert.up_proj.weight", i);
        return whole(w, LAYER "mlp.shared_expert.gate_proj.weight", i);
    case MR_MATRIX_SHARED_OUT:
        return whole(w, LAYER "mlp.shared_expert.down_proj.weight", i);
    case MR_MATRIX_SHARED_GATE:
        return whole(w, LAYER "mlp.shared_expert_gate.weight", i);
    case MR_MATRIX_HEAD:
        if (w->config->tied) return whole(w, "model.embed_tokens.weight");
        return whole(w, "lm_head.weight");
    case MR_MATRIX_QUERY_PROJ:
        return whole(w, LAYER "memory.query_proj.weight", w->config->insertions[i].source);
    case MR_MATRIX_VALUE_PROJ:
        return whole(w, LAYER "memory.value_proj.weight", w->config->insertions[i].source);
    case MR_MATRIX_SILU_PROJ:
        return whole(w, LAYER "memory.swilu_projection.weight", w->config->insertions[i].source);
    case MR_MATRIX_PRE_PROJ:
    case MR_MATRIX_NONE:
        break;
    }
    assert(0 && "these families have no such matrix");
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
    if (w.config->family == MR_FAMILY_OFFICIAL)
        official_matrix(&w, id.role);
    else
        hf_matrix(&w, id.role);
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
        if (role == MR_MATRIX_VALUE_PROJ && c->memory == MR_MEMORY_META) return c->mem_value_proj;
        if (role == MR_MATRIX_VALUE_PROJ) return c->memory != MR_MEMORY_PKM;
        if (role == MR_MATRIX_SILU_PROJ) return c->memory == MR_MEMORY_PLUS || c->mem_silu;
        return mr_model_memory(model, id.index)->gated;
    }
    if (id.index >= c->n_layers) return false;
    if (role == MR_MATRIX_ATT_PROJ || role == MR_MATRIX_ATTN_OUT) return true;
    const bool moe = mr_config_is_moe(c, id.index);
    if (role == MR_MATRIX_FF_PROJ || role == MR_MATRIX_FF_OUT)
        return !moe && mr_config_has_ffn(c, id.index);
    return moe && (role < MR_MATRIX_SHARED_PROJ || c->shared_hidden > 0);
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

static bool vector_exists(const mr_config *c, mr_vector_role role, uint32_t index) {
    switch (role) {
    case MR_VECTOR_ATTN_NORM:
    case MR_VECTOR_FF_NORM:
    case MR_VECTOR_FINAL_NORM:
        return c->norm != MR_NORM_PLAIN;
    case MR_VECTOR_Q_NORM:
    case MR_VECTOR_K_NORM:
        return c->qk_norm;
    case MR_VECTOR_ATT_BIAS:
        return c->qkv_bias;
    case MR_VECTOR_ATTN_OUT_BIAS:
        return c->attn_out_bias;
    case MR_VECTOR_FF_BIAS:
    case MR_VECTOR_FF_OUT_BIAS:
        return c->mlp_bias && !mr_config_is_moe(c, index);
    case MR_VECTOR_QUERY_BIAS:
        return c->mem_query_bias;
    case MR_VECTOR_QUERY_NORM:
        return c->memory != MR_MEMORY_PKM && c->memory != MR_MEMORY_META;
    case MR_VECTOR_SILU_BIAS:
        return c->mem_silu;
    case MR_VECTOR_VALUE_BIAS:
        return c->mem_value_proj;
    }
    return false;
}

/* The names of a role's tensors in a block or memory layer, or of the whole model. */
typedef struct {
    const char *parts[MR_VECTOR_PARTS_MAX];
} vector_names;

static vector_names official_vector(mr_vector_role role) {
    static const vector_names names[] = {
        [MR_VECTOR_ATTN_NORM] = {{"attn_norm.weight"}},
        [MR_VECTOR_FF_NORM] = {{"ff_norm.weight"}},
        [MR_VECTOR_Q_NORM] = {{"q_norm.weight"}},
        [MR_VECTOR_K_NORM] = {{"k_norm.weight"}},
        [MR_VECTOR_QUERY_BIAS] = {{"query_proj.query_mlps.0.bias"}},
        [MR_VECTOR_QUERY_NORM] = {{"query_norm.weight"}},
        [MR_VECTOR_FINAL_NORM] = {{"transformer.ln_f.weight"}},
    };
    return names[role];
}

static vector_names hf_vector(const mr_config *c, mr_vector_role role) {
    static const vector_names names[] = {
        [MR_VECTOR_ATTN_NORM] = {{"input_layernorm.weight"}},
        [MR_VECTOR_FF_NORM] = {{"post_attention_layernorm.weight"}},
        [MR_VECTOR_Q_NORM] = {{"self_attn.q_norm.weight"}},
        [MR_VECTOR_K_NORM] = {{"self_attn.k_norm.weight"}},
        [MR_VECTOR_ATT_BIAS] = {{"self_attn.q_proj.bias", "self_attn.k_proj.bias",
                                 "self_attn.v_proj.bias"}},
        [MR_VECTOR_ATTN_OUT_BIAS] = {{"self_attn.o_proj.bias"}},
        [MR_VECTOR_FF_BIAS] = {{"mlp.up_proj.bias", "mlp.gate_proj.bias"}},
        [MR_VECTOR_FF_OUT_BIAS] = {{"mlp.down_proj.bias"}},
        [MR_VECTOR_QUERY_BIAS] = {{"memory.query_proj.bias"}},
        [MR_VECTOR_SILU_BIAS] = {{"memory.swilu_projection.bias"}},
        [MR_VECTOR_VALUE_BIAS] = {{"memory.value_proj.bias"}},
        [MR_VECTOR_FINAL_NORM] = {{"model.norm.weight"}},
    };
    if (c->norm_after && role == MR_VECTOR_ATTN_NORM)
        return (vector_names){{"post_attention_layernorm.weight"}};
    if (c->norm_after && role == MR_VECTOR_FF_NORM)
        return (vector_names){{"post_feedforward_layernorm.weight"}};
    return names[role];
}

uint32_t mr_vector_of(const mr_tensor *parts[MR_VECTOR_PARTS_MAX], const mr_model *model,
                      mr_vector_role role, uint32_t index) {
    const mr_config *c = mr_model_config(model);
    const bool official = c->family == MR_FAMILY_OFFICIAL;
    uint32_t count = 0;
    if (!vector_exists(c, role, index)) return 0;
    const vector_names names = official ? official_vector(role) : hf_vector(c, role);
    for (; count < MR_VECTOR_PARTS_MAX && names.parts[count]; count++) {
        const char *part = names.parts[count];
        char name[160];
        if (role == MR_VECTOR_FINAL_NORM)
            snprintf(name, sizeof(name), "%s", part);
        else if (role >= MR_VECTOR_QUERY_BIAS && official)
            snprintf(name, sizeof(name), MEM "%s", index, part);
        else if (role >= MR_VECTOR_QUERY_BIAS)
            snprintf(name, sizeof(name), LAYER "%s", c->insertions[index].source, part);
        else if (official)
            snprintf(name, sizeof(name), BLOCK "%s", index, part);
        else
            snprintf(name, sizeof(name), LAYER "%s", index, part);
        parts[count] = mr_model_find(model, name);
        assert(parts[count]);
    }
    return count;
}

const mr_tensor *mr_memory_tensor(const mr_model *model, uint32_t layer, const char *suffix) {
    const mr_config *c = mr_model_config(model);
    char name[160];
    if (c->memory == MR_MEMORY_META)
        snprintf(name, sizeof(name), LAYER "memory.%s", c->insertions[layer].source, suffix);
    else
        snprintf(name, sizeof(name), MEM "%s", layer, suffix);
    return mr_model_find(model, name);
}

const mr_tensor *mr_model_embedding(const mr_model *model) {
    const bool official = mr_model_config(model)->family == MR_FAMILY_OFFICIAL;
    return mr_model_find(model, official ? "transformer.wte.weight" : "model.embed_tokens.weight");
}

const mr_tensor *mr_model_spare_head(const mr_model *model) {
    return mr_model_config(model)->tied ? mr_model_find(model, "lm_head.weight") : NULL;
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
    if (!*is_memory) *is_memory = sscanf(name, "mem_blocks.%u.", &at) == 1; /* panels.h */
    if (*is_memory || sscanf(name, "transformer.blocks.%u.", &at) == 1 ||
        sscanf(name, "model.layers.%u.", &at) == 1 || sscanf(name, "blocks.%u.", &at) == 1)
        *index = at;
    if (ends_with(name, "shuffle_index")) return MR_TENSOR_SHUFFLE;
    if (*is_memory && ends_with(name, ".keys")) return MR_TENSOR_KEYS;
    if (ends_with(name, ".memory.keys")) return MR_TENSOR_KEYS;
    if (strstr(name, ".experts.")) return MR_TENSOR_EXPERT;
    if (ends_with(name, ".rotary_emb.inv_freq")) return MR_TENSOR_UNUSED;
    if (strcmp(name, "lm_head.weight") == 0) return MR_TENSOR_HEAD;
    return strcmp(name, "transformer.wte.weight") == 0 ||
                   strcmp(name, "model.embed_tokens.weight") == 0
               ? MR_TENSOR_EMBEDDING
               : MR_TENSOR_DENSE;
}
