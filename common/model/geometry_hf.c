/* geometry_hf.c - which tensors a model of a Hugging Face family must have, of which shapes;
 * source: the modeling code of the transformers package as described in docs/MODELS.md. */
#include "common/model/geometry_impl.h"

#include <stdarg.h>
#include <stdio.h>

typedef struct {
    mr_geometry *g;
    uint32_t block;
} place;

__attribute__((format(printf, 2, 3))) static void name_it(char *out, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(out, MR_GEOMETRY_NAME_BYTES, format, args);
    va_end(args);
}

/* Vectors are floats, matrices may be in any row format. */
static mr_status need(const place *p, const char *name, uint32_t dims, const uint64_t *shape,
                      mr_err *err) {
    char whole[MR_GEOMETRY_NAME_BYTES];
    name_it(whole, "model.layers.%u.%s", p->block, name);
    return mr_geometry_need(p->g, NULL, dims == 1 ? FLOATS : MATRIX, whole, dims, shape, err);
}

static mr_status check_attention(const place *p, mr_err *err) {
    const mr_config *c = p->g->config;
    const uint64_t d = c->d_model, q = c->query_width, kv = (uint64_t)c->n_kv_heads * c->head_dim;
    TRY(need(p, "self_attn.q_proj.weight", SHAPE(q, d), err));
    TRY(need(p, "self_attn.k_proj.weight", SHAPE(kv, d), err));
    TRY(need(p, "self_attn.v_proj.weight", SHAPE(kv, d), err));
    TRY(need(p, "self_attn.o_proj.weight", SHAPE(d, q), err));
    if (c->qkv_bias) {
        TRY(need(p, "self_attn.q_proj.bias", SHAPE(q), err));
        TRY(need(p, "self_attn.k_proj.bias", SHAPE(kv), err));
        TRY(need(p, "self_attn.v_proj.bias", SHAPE(kv), err));
    }
    if (c->attn_out_bias) TRY(need(p, "self_attn.o_proj.bias", SHAPE(d), err));
    if (!c->qk_norm) return MR_OK;
    TRY(need(p, "self_attn.q_norm.weight", SHAPE(c->qk_norm_full ? q : c->head_dim), err));
    return need(p, "self_attn.k_norm.weight", SHAPE(c->qk_norm_full ? kv : c->head_dim), err);
}

static mr_status check_norms(const place *p, mr_err *err) {
    const mr_config *c = p->g->config;
    const uint64_t d = c->d_model;
    if (c->norm == MR_NORM_PLAIN) return MR_OK;
    if (c->norm_after)
        TRY(need(p, "post_feedforward_layernorm.weight", SHAPE(d), err));
    else
        TRY(need(p, "input_layernorm.weight", SHAPE(d), err));
    return need(p, "post_attention_layernorm.weight", SHAPE(d), err);
}

/* The three matrices of a SwiGLU below prefix, by the names of this family. */
static mr_status check_swiglu(const place *p, const char *prefix, const char *const names[3],
                              uint64_t hidden, mr_err *err) {
    const uint64_t d = p->g->config->d_model;
    char name[MR_GEOMETRY_NAME_BYTES];
    name_it(name, "%s.%s.weight", prefix, names[0]);
    TRY(need(p, name, SHAPE(hidden, d), err));
    name_it(name, "%s.%s.weight", prefix, names[1]);
    TRY(need(p, name, SHAPE(hidden, d), err));
    name_it(name, "%s.%s.weight", prefix, names[2]);
    return need(p, name, SHAPE(d, hidden), err);
}

static const char *const plain_names[] = {"gate_proj", "up_proj", "down_proj"};
static const char *const mixtral_names[] = {"w1", "w3", "w2"};

static mr_status check_experts(const place *p, mr_err *err) {
    const mr_config *c = p->g->config;
    const bool mixtral = c->family == MR_FAMILY_MIXTRAL;
    const char *prefix = mixtral ? "block_sparse_moe" : "mlp";
    char name[MR_GEOMETRY_NAME_BYTES];
    name_it(name, "%s.gate.weight", prefix);
    TRY(need(p, name, SHAPE(c->experts, c->d_model), err));
    for (uint32_t e = 0; e < c->experts; e++) {
        name_it(name, "%s.experts.%u", prefix, e);
        TRY(check_swiglu(p, name, mixtral ? mixtral_names : plain_names, c->expert_hidden, err));
    }
    if (c->shared_hidden == 0) return MR_OK;
    TRY(need(p, "mlp.shared_expert_gate.weight", SHAPE(1, c->d_model), err));
    return check_swiglu(p, "mlp.shared_expert", plain_names, c->shared_hidden, err);
}

/* A matrix and its bias. */
static mr_status need_linear(const place *p, const char *name, uint64_t rows, uint64_t columns,
                             mr_err *err) {
    char full[MR_GEOMETRY_NAME_BYTES];
    name_it(full, "memory.%s.weight", name);
    TRY(need(p, full, SHAPE(rows, columns), err));
    name_it(full, "memory.%s.bias", name);
    return need(p, full, SHAPE(rows), err);
}

/* The memory layer in the place of this block's feed-forward part. */
static mr_status check_memory(const place *p, mr_err *err) {
    const mr_config *c = p->g->config;
    const uint64_t d = c->d_model, n = c->mem_knum, h = c->mem_head, kdim = c->mem_kdim;
    char keys[MR_GEOMETRY_NAME_BYTES], values[MR_GEOMETRY_NAME_BYTES];
    uint32_t i = 0;
    while (c->insertions[i].source != p->block) i++;
    mr_memory_layer *l = &p->g->layers[i];
    *l = mr_geometry_plain_layer(c, i);
    l->table = c->mem_own_tables ? i : 0;
    TRY(mr_geometry_check_selection(l, i, err));
    name_it(keys, "model.layers.%u.memory.keys", p->block);
    TRY(mr_geometry_need(p->g, NULL, FLOATS, keys, SHAPE(h, 2, n, kdim), err));
    TRY(need_linear(p, "query_proj", h * 2 * kdim, d, err));
    if (c->mem_silu) TRY(need_linear(p, "swilu_projection", c->mem_vdim, d, err));
    if (c->mem_value_proj) TRY(need_linear(p, "value_proj", d, c->mem_vdim, err));
    if (!c->mem_own_tables && i > 0) return MR_OK; /* the first one's */
    name_it(values, "model.memory.values.weight");
    if (c->mem_own_tables) name_it(values, "model.layers.%u.memory.values.weight", p->block);
    return mr_geometry_set_table(p->g, l->table, values, n * n, c->mem_vdim, NULL, 0, err);
}

static mr_status check_feed_forward(const place *p, mr_err *err) {
    const mr_config *c = p->g->config;
    if (!mr_config_has_ffn(c, p->block)) return check_memory(p, err);
    if (mr_config_is_moe(c, p->block)) return check_experts(p, err);
    TRY(check_swiglu(p, "mlp", plain_names, c->mlp_hidden / 2, err));
    if (!c->mlp_bias) return MR_OK;
    TRY(need(p, "mlp.gate_proj.bias", SHAPE(c->mlp_hidden / 2), err));
    TRY(need(p, "mlp.up_proj.bias", SHAPE(c->mlp_hidden / 2), err));
    return need(p, "mlp.down_proj.bias", SHAPE(c->d_model), err);
}

/* In some files and without effect: frequencies that follow from the configuration. */
static void pass_over_frequencies(const place *p) {
    char name[MR_GEOMETRY_NAME_BYTES];
    name_it(name, "model.layers.%u.self_attn.rotary_emb.inv_freq", p->block);
    const mr_tensor *t = p->g->find(p->g->context, name);
    if (t) p->g->mark(p->g->mark_context, t, 0);
}

mr_status mr_geometry_check_hf(mr_geometry *g, mr_err *err) {
    const mr_config *c = g->config;
    const uint64_t d = c->d_model, rows = c->head_rows;
    TRY(mr_geometry_need(g, NULL, MATRIX, "model.embed_tokens.weight", SHAPE(rows, d), err));
    if (c->norm != MR_NORM_PLAIN)
        TRY(mr_geometry_need(g, NULL, FLOATS, "model.norm.weight", SHAPE(d), err));
    /* where it is tied and there all the same, it is without effect */
    if (!c->tied || g->find(g->context, "lm_head.weight"))
        TRY(mr_geometry_need(g, NULL, MATRIX, "lm_head.weight", SHAPE(rows, d), err));
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const place p = {.g = g, .block = i};
        TRY(check_norms(&p, err));
        TRY(check_attention(&p, err));
        TRY(check_feed_forward(&p, err));
        pass_over_frequencies(&p);
    }
    return MR_OK;
}
