/* gguf_import_names.c - which tensor becomes which: one row per tensor of a family.
 *
 * Shapes are words of letters: V vocabulary, D hidden, Q and K rows of queries and of keys, H one
 * head, F feed-forward, X feed-forward of an expert, S of the shared expert, E experts, 1 one.
 * Tensors that begin with E are stacks of experts and become one tensor each. The converters of
 * llama and olmo interleave the two halves of every query and key head, since their rope turns
 * neighbours; such rows are put back. */
#include "common/model/gguf_import_impl.h"

#include "common/base/mem.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { INTERLEAVED = GGUF_LLAMA | GGUF_MIXTRAL | GGUF_OLMO };
enum { POST_NORM = GGUF_OLMO2, QWEN2S = GGUF_QWEN2 | GGUF_QWEN2MOE };
enum { QWEN3S = GGUF_QWEN3 | GGUF_QWEN3MOE, FULL_NORM = GGUF_OLMO2 | GGUF_OLMOE };
enum { DENSE = GGUF_EVERY & ~GGUF_MOE, OTHER_MOE = GGUF_MOE & ~GGUF_MIXTRAL };
enum { PRE_NORM = GGUF_EVERY & ~(GGUF_OLMO | GGUF_OLMO2) };
enum { MAY_HAVE_BIAS = GGUF_EVERY & ~(GGUF_MIXTRAL | QWEN2S) };

typedef enum { ALWAYS, OPTIONAL, WITH_ATTENTION_BIAS, WITH_MLP_BIAS } presence;

typedef struct {
    const char *from, *to, *shape;
    int families;
    presence when;
} rule;

static const rule whole_rules[] = {
    {"token_embd.weight", "model.embed_tokens.weight", "VD", GGUF_EVERY, ALWAYS},
    {"output.weight", "lm_head.weight", "VD", GGUF_EVERY, OPTIONAL},
    {"output_norm.weight", "model.norm.weight", "D", GGUF_EVERY & ~GGUF_OLMO, ALWAYS},
};

static const rule layer_rules[] = {
    {"attn_norm.weight", "input_layernorm.weight", "D", PRE_NORM, ALWAYS},
    {"ffn_norm.weight", "post_attention_layernorm.weight", "D", PRE_NORM, ALWAYS},
    {"post_attention_norm.weight", "post_attention_layernorm.weight", "D", POST_NORM, ALWAYS},
    {"post_ffw_norm.weight", "post_feedforward_layernorm.weight", "D", POST_NORM, ALWAYS},
    {"attn_q.weight", "self_attn.q_proj.weight", "QD", GGUF_EVERY, ALWAYS},
    {"attn_k.weight", "self_attn.k_proj.weight", "KD", GGUF_EVERY, ALWAYS},
    {"attn_v.weight", "self_attn.v_proj.weight", "KD", GGUF_EVERY, ALWAYS},
    {"attn_output.weight", "self_attn.o_proj.weight", "DQ", GGUF_EVERY, ALWAYS},
    {"attn_q.bias", "self_attn.q_proj.bias", "Q", QWEN2S, ALWAYS},
    {"attn_k.bias", "self_attn.k_proj.bias", "K", QWEN2S, ALWAYS},
    {"attn_v.bias", "self_attn.v_proj.bias", "K", QWEN2S, ALWAYS},
    {"attn_q.bias", "self_attn.q_proj.bias", "Q", MAY_HAVE_BIAS, WITH_ATTENTION_BIAS},
    {"attn_k.bias", "self_attn.k_proj.bias", "K", MAY_HAVE_BIAS, WITH_ATTENTION_BIAS},
    {"attn_v.bias", "self_attn.v_proj.bias", "K", MAY_HAVE_BIAS, WITH_ATTENTION_BIAS},
    {"attn_output.bias", "self_attn.o_proj.bias", "D", MAY_HAVE_BIAS, WITH_ATTENTION_BIAS},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", "H", QWEN3S, ALWAYS},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", "H", QWEN3S, ALWAYS},
    {"attn_q_norm.weight", "self_attn.q_norm.weight", "Q", FULL_NORM, ALWAYS},
    {"attn_k_norm.weight", "self_attn.k_norm.weight", "K", FULL_NORM, ALWAYS},
    {"ffn_gate.weight", "mlp.gate_proj.weight", "FD", DENSE, ALWAYS},
    {"ffn_up.weight", "mlp.up_proj.weight", "FD", DENSE, ALWAYS},
    {"ffn_down.weight", "mlp.down_proj.weight", "DF", DENSE, ALWAYS},
    {"ffn_gate.bias", "mlp.gate_proj.bias", "F", GGUF_LLAMA, WITH_MLP_BIAS},
    {"ffn_up.bias", "mlp.up_proj.bias", "F", GGUF_LLAMA, WITH_MLP_BIAS},
    {"ffn_down.bias", "mlp.down_proj.bias", "D", GGUF_LLAMA, WITH_MLP_BIAS},
    {"ffn_gate_inp.weight", "mlp.gate.weight", "ED", OTHER_MOE, ALWAYS},
    {"ffn_gate_exps.weight", "mlp.experts.%u.gate_proj.weight", "EXD", OTHER_MOE, ALWAYS},
    {"ffn_up_exps.weight", "mlp.experts.%u.up_proj.weight", "EXD", OTHER_MOE, ALWAYS},
    {"ffn_down_exps.weight", "mlp.experts.%u.down_proj.weight", "EDX", OTHER_MOE, ALWAYS},
    {"ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "1D", GGUF_QWEN2MOE, ALWAYS},
    {"ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "SD", GGUF_QWEN2MOE, ALWAYS},
    {"ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "SD", GGUF_QWEN2MOE, ALWAYS},
    {"ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "DS", GGUF_QWEN2MOE, ALWAYS},
    {"ffn_gate_inp.weight", "block_sparse_moe.gate.weight", "ED", GGUF_MIXTRAL, ALWAYS},
    {"ffn_gate_exps.weight", "block_sparse_moe.experts.%u.w1.weight", "EXD", GGUF_MIXTRAL, ALWAYS},
    {"ffn_down_exps.weight", "block_sparse_moe.experts.%u.w2.weight", "EDX", GGUF_MIXTRAL, ALWAYS},
    {"ffn_up_exps.weight", "block_sparse_moe.experts.%u.w3.weight", "EXD", GGUF_MIXTRAL, ALWAYS},
};

typedef struct {
    gguf_plan *plan;
    const gguf_model *model;
    const mr_gguf *file;
    mr_import_dtype dtype;
    bool *used; /* by the place of a tensor in the file */
} planner;

static uint64_t size_of(const gguf_model *m, char letter) {
    switch (letter) {
    case 'V':
        return m->vocab;
    case 'D':
        return m->hidden;
    case 'Q':
        return m->heads * m->head_dim;
    case 'K':
        return m->kv_heads * m->head_dim;
    case 'H':
        return m->head_dim;
    case 'F':
        return m->mlp;
    case 'X':
        return m->expert_mlp;
    case 'S':
        return m->shared_mlp;
    case 'E':
        return m->experts;
    default:
        return 1;
    }
}

static mr_status check_shape(const planner *p, const mr_gguf_tensor *t, const char *shape,
                             mr_err *err) {
    char wanted[96] = "", found[96] = "";
    size_t w = 0, f = 0;
    bool same = true;
    if (shape[0] == '1' && t->dims == 1) shape++; /* a single row may come without its 1 */
    if (t->dims != strlen(shape)) same = false;
    for (size_t i = 0; shape[i]; i++) {
        const uint64_t size = size_of(p->model, shape[i]);
        if (same && t->shape[i] != size) same = false;
        w += (size_t)snprintf(wanted + w, sizeof(wanted) - w, " %llu", (unsigned long long)size);
    }
    if (same) return MR_OK;
    for (uint32_t i = 0; i < t->dims; i++)
        f += (size_t)snprintf(found + f, sizeof(found) - f, " %llu",
                              (unsigned long long)t->shape[i]);
    return mr_fail(err, MR_ERR_FORMAT, "%s: tensor %s has the shape [%s ]; [%s ] is needed",
                   mr_gguf_name(p->file), t->name, found, wanted);
}

/* The stored type of one output: block rows where they are kept, else a float type. */
static mr_status choose_dtype(const planner *p, gguf_output *out, mr_err *err) {
    const mr_block_format *format = out->from->format;
    if (!format->decode)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: tensor %s is stored as %s, which is not "
                       "supported",
                       mr_gguf_name(p->file), out->from->name, format->name);
    const bool keep = p->dtype == MR_IMPORT_KEEP;
    if (out->dims == 1 && !(keep && format->elements == 1))
        out->dtype = MR_DTYPE_F32;
    else if (!keep)
        out->dtype = p->dtype == MR_IMPORT_F32   ? MR_DTYPE_F32
                     : p->dtype == MR_IMPORT_F16 ? MR_DTYPE_F16
                                                 : MR_DTYPE_BF16;
    else if (format->type == MR_BLOCK_F32)
        out->dtype = MR_DTYPE_F32;
    else if (format->type == MR_BLOCK_F16)
        out->dtype = MR_DTYPE_F16;
    else if (format->type == MR_BLOCK_Q8_0 || format->type == MR_BLOCK_Q4_0)
        out->dtype = MR_DTYPE_U8;
    else
        out->dtype = MR_DTYPE_BF16;
    return MR_OK;
}

/* Adds one output of t; name is taken over. shape: two letters at most. */
static mr_status put(planner *p, const mr_gguf_tensor *t, char *name, const char *shape,
                     uint64_t expert, mr_err *err) {
    gguf_plan *plan = p->plan;
    if (plan->count == plan->room) {
        plan->room = plan->room ? 2 * plan->room : 256;
        plan->items = mr_realloc_array(plan->items, plan->room, sizeof(*plan->items));
    }
    gguf_output *out = &plan->items[plan->count++];
    *out = (gguf_output){.from = t, .name = name, .dims = (uint32_t)strlen(shape)};
    for (uint32_t i = 0; i < out->dims; i++) out->shape[i] = size_of(p->model, shape[i]);
    out->columns = out->shape[out->dims - 1];
    out->rows = out->dims == 2 ? out->shape[0] : 1;
    out->first = expert * out->rows * out->columns;
    return choose_dtype(p, out, err);
}

static bool is_interleaved(const planner *p, const rule *r) {
    return (p->model->family & INTERLEAVED) &&
           (strncmp(r->from, "attn_q.", 7) == 0 || strncmp(r->from, "attn_k.", 7) == 0);
}

static mr_status put_rule(planner *p, const rule *r, const mr_gguf_tensor *t, const char *prefix,
                          mr_err *err) {
    const gguf_model *m = p->model;
    p->used[t - mr_gguf_tensor_at(p->file, 0)] = true;
    mr_status status = check_shape(p, t, r->shape, err);
    if (status != MR_OK) return status;
    if (strlen(r->shape) < 3) {
        status = put(p, t, mr_format("%s%s", prefix, r->to), r->shape, 0, err);
        gguf_output *out = &p->plan->items[p->plan->count - 1];
        if (status != MR_OK || !is_interleaved(p, r)) return status;
        out->head_rows = m->head_dim;
        if (out->dims == 1) { /* a bias: rows of one element */
            if (t->format->elements != 1)
                return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: tensor %s in %s is not supported",
                               mr_gguf_name(p->file), t->name, t->format->name);
            out->rows = out->columns;
            out->columns = 1;
        }
        return MR_OK;
    }
    const char *number = strstr(r->to, "%u");
    for (uint64_t e = 0; e < m->experts && status == MR_OK; e++)
        status = put(p, t,
                     mr_format("%s%.*s%llu%s", prefix, (int)(number - r->to), r->to,
                               (unsigned long long)e, number + 2),
                     r->shape + 1, e, err);
    return status;
}

/* Files from before the stacks have one tensor per expert: blk.0.ffn_gate.3.weight. */
static mr_status put_experts(planner *p, const rule *r, const char *from_prefix,
                             const char *to_prefix, bool *there, mr_err *err) {
    const char *number = strstr(r->to, "%u");
    const size_t stem = strlen(r->from) - strlen("_exps.weight");
    *there = false;
    for (uint64_t e = 0; e < p->model->experts; e++) {
        char *from =
            mr_format("%s%.*s.%llu.weight", from_prefix, (int)stem, r->from, (unsigned long long)e);
        const mr_gguf_tensor *t = mr_gguf_find_tensor(p->file, from);
        free(from);
        if (!t) return MR_OK;
        p->used[t - mr_gguf_tensor_at(p->file, 0)] = true;
        mr_status status = check_shape(p, t, r->shape + 1, err);
        if (status == MR_OK)
            status = put(p, t,
                         mr_format("%s%.*s%llu%s", to_prefix, (int)(number - r->to), r->to,
                                   (unsigned long long)e, number + 2),
                         r->shape + 1, 0, err);
        if (status != MR_OK) return status;
    }
    *there = true;
    return MR_OK;
}

static mr_status apply(planner *p, const rule *r, const char *from_prefix, const char *to_prefix,
                       mr_err *err) {
    const gguf_model *m = p->model;
    if (!(r->families & (int)m->family) || (r->when == WITH_ATTENTION_BIAS && !m->attention_bias) ||
        (r->when == WITH_MLP_BIAS && !m->mlp_bias))
        return MR_OK;
    char *name = mr_format("%s%s", from_prefix, r->from);
    const mr_gguf_tensor *t = mr_gguf_find_tensor(p->file, name);
    bool there = t != NULL || r->when == OPTIONAL;
    mr_status status = MR_OK;
    if (t)
        status = put_rule(p, r, t, to_prefix, err);
    else if (strlen(r->shape) == 3 && m->family == GGUF_MIXTRAL)
        status = put_experts(p, r, from_prefix, to_prefix, &there, err);
    if (status == MR_OK && !there)
        status =
            mr_fail(err, MR_ERR_FORMAT, "%s: tensor %s is missing", mr_gguf_name(p->file), name);
    free(name);
    return status;
}

/* A tensor that nothing has asked for would be lost. */
static mr_status check_unused(const planner *p, mr_err *err) {
    for (uint32_t i = 0; i < mr_gguf_tensor_count(p->file); i++) {
        const mr_gguf_tensor *t = mr_gguf_tensor_at(p->file, i);
        const char *last = strrchr(t->name, '.');
        const size_t stem = last ? (size_t)(last - t->name) : strlen(t->name);
        static const char rotation[] = "attn_rot_embd"; /* follows from rope.freq_base */
        const size_t length = sizeof(rotation) - 1;
        if (p->used[i] || strcmp(t->name, "rope_freqs.weight") == 0 ||
            (stem >= length && strncmp(t->name + stem - length, rotation, length) == 0))
            continue;
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: tensor %s has no place in a %s model",
                       mr_gguf_name(p->file), t->name, p->model->model_type);
    }
    return MR_OK;
}

static mr_status make(planner *p, mr_err *err) {
    mr_status status = MR_OK;
    if (p->model->layers * p->model->experts > MR_MAX_TENSORS / 3)
        return mr_fail(err, MR_ERR_LIMIT,
                       "%s: %llu layers of %llu experts are more tensors than "
                       "%d",
                       mr_gguf_name(p->file), (unsigned long long)p->model->layers,
                       (unsigned long long)p->model->experts, MR_MAX_TENSORS);
    for (size_t i = 0; i < sizeof(whole_rules) / sizeof(whole_rules[0]) && status == MR_OK; i++)
        status = apply(p, &whole_rules[i], "", "", err);
    for (uint64_t layer = 0; layer < p->model->layers && status == MR_OK; layer++) {
        char from[32], to[48];
        snprintf(from, sizeof(from), "blk.%llu.", (unsigned long long)layer);
        snprintf(to, sizeof(to), "model.layers.%llu.", (unsigned long long)layer);
        for (size_t i = 0; i < sizeof(layer_rules) / sizeof(layer_rules[0]) && status == MR_OK; i++)
            status = apply(p, &layer_rules[i], from, to, err);
    }
    return status == MR_OK ? check_unused(p, err) : status;
}

mr_status gguf_plan_make(gguf_plan *out, const gguf_model *model, const mr_gguf *file,
                         mr_import_dtype dtype, mr_err *err) {
    *out = (gguf_plan){0};
    planner p = {.plan = out,
                 .model = model,
                 .file = file,
                 .dtype = dtype,
                 .used = mr_alloc_array(mr_gguf_tensor_count(file) + (size_t)1, sizeof(bool))};
    const mr_status status = make(&p, err);
    free(p.used);
    if (status != MR_OK) gguf_plan_free(out);
    return status;
}

void gguf_plan_free(gguf_plan *plan) {
    for (uint32_t i = 0; i < plan->count; i++) free(plan->items[i].name);
    free(plan->items);
    *plan = (gguf_plan){0};
}

/* Which of the two block formats most tensors have is the model's; the others are named. */
static void describe_blocks(const gguf_plan *plan, json_t *config) {
    uint32_t q8 = 0, q4 = 0;
    for (uint32_t i = 0; i < plan->count; i++) {
        if (plan->items[i].dtype != MR_DTYPE_U8) continue;
        if (plan->items[i].from->format->type == MR_BLOCK_Q8_0)
            q8++;
        else
            q4++;
    }
    if (q8 + q4 == 0) return;
    const uint32_t usual = q8 >= q4 ? MR_BLOCK_Q8_0 : MR_BLOCK_Q4_0;
    json_t *overrides = json_object();
    for (uint32_t i = 0; i < plan->count; i++) {
        const gguf_output *t = &plan->items[i];
        if (t->dtype == MR_DTYPE_U8 && t->from->format->type != usual)
            json_object_set_new(overrides, t->name,
                                json_string(usual == MR_BLOCK_Q8_0 ? "int4" : "int8-block"));
    }
    json_object_set_new(config, "quantization_config",
                        json_pack("{s:s, s:s, s:o}", "quant_method", "memrack", "weights",
                                  usual == MR_BLOCK_Q8_0 ? "int8-block" : "int4", "overrides",
                                  overrides));
}

void gguf_plan_describe(const gguf_plan *plan, json_t *config) {
    static const struct {
        mr_dtype dtype;
        const char *name;
    } floats[] = {
        {MR_DTYPE_BF16, "bfloat16"}, {MR_DTYPE_F16, "float16"}, {MR_DTYPE_F32, "float32"}};
    uint64_t most = 0;
    const char *name = "bfloat16"; /* of the activations where all matrices are blocks */
    for (size_t f = 0; f < sizeof(floats) / sizeof(floats[0]); f++) {
        uint64_t elements = 0;
        for (uint32_t i = 0; i < plan->count; i++)
            if (plan->items[i].dtype == floats[f].dtype && plan->items[i].dims == 2)
                elements += plan->items[i].rows * plan->items[i].columns;
        if (elements > most) {
            most = elements;
            name = floats[f].name;
        }
    }
    json_object_set_new(config, "torch_dtype", json_string(name));
    describe_blocks(plan, config);
}
