/* gguf_import_arch.c - a GGUF file's architecture and its keys, in the words of config.json.
 *
 * Every key of the architecture is read, required to have the one value that changes nothing, or
 * known not to change an answer; any other is refused by name. Three numbers are not in the file
 * but in the code that runs it: whether the weights of chosen experts are normalised, the epsilon
 * of OLMo's norm, and that Mixtral is "llama" with experts. */
#include "common/model/gguf_import_impl.h"

#include "common/base/mem.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    gguf_family family;
    const char *arch, *model_type, *class_name;
} families[] = {
    {GGUF_LLAMA, "llama", "llama", "LlamaForCausalLM"},
    {GGUF_QWEN2, "qwen2", "qwen2", "Qwen2ForCausalLM"},
    {GGUF_QWEN3, "qwen3", "qwen3", "Qwen3ForCausalLM"},
    {GGUF_OLMO, "olmo", "olmo", "OlmoForCausalLM"},
    {GGUF_OLMO2, "olmo2", "olmo2", "Olmo2ForCausalLM"},
    {GGUF_QWEN2MOE, "qwen2moe", "qwen2_moe", "Qwen2MoeForCausalLM"},
    {GGUF_QWEN3MOE, "qwen3moe", "qwen3_moe", "Qwen3MoeForCausalLM"},
    {GGUF_OLMOE, "olmoe", "olmoe", "OlmoeForCausalLM"},
};

/* Keys, without the architecture, that are read below or change no answer. */
static const char *const known_keys[] = {
    "vocab_size",
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "expert_weights_norm",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.clamp_kqv",
    "attention.sliding_window",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scale_linear",
    "tensor_data_layout", /* always the one that the published converters write */
    "pooling_type",
};

/* Keys that must have this value where they are there. */
static const struct {
    const char *key;
    double value;
} fixed_keys[] = {
    {"use_parallel_residual", 0},    {"attention.causal", 1},
    {"attention.max_alibi_bias", 0}, {"attention.scale", 0},
    {"attn_logit_softcapping", 0},   {"final_logit_softcapping", 0},
    {"router_logit_softcapping", 0}, {"expert_gating_func", 1},
    {"expert_group_count", 1},       {"expert_group_used_count", 1},
    {"expert_shared_count", 0},      {"leading_dense_block_count", 0},
    {"moe_every_n_layers", 1},       {"interleave_moe_layer_step", 1},
    {"nextn_predict_layers", 0},     {"rope.scaling.attn_factor", 1},
    {"expert_weights_scale", 1},     {"logit_scale", 1},
    {"embedding_scale", 1},          {"residual_scale", 1},
};

typedef struct {
    mr_gguf *file;
    const gguf_model *model;
    char name[160]; /* of the last key asked for */
} key_source;

static const char *full(key_source *s, const char *key) {
    snprintf(s->name, sizeof(s->name), "%s.%s", s->model->arch, key);
    return s->name;
}

static bool has(key_source *s, const char *key) {
    return mr_gguf_find(s->file, full(s, key)) != NULL;
}

static mr_status read_u64(key_source *s, uint64_t *out, const char *key, uint64_t max,
                          mr_err *err) {
    return mr_gguf_u64(out, s->file, full(s, key), 1, max, err);
}

static mr_status need_u64(key_source *s, uint64_t *out, const char *key, uint64_t max,
                          mr_err *err) {
    if (has(s, key)) return read_u64(s, out, key, max, err);
    return mr_fail(err, MR_ERR_FORMAT, "%s: %s is missing", mr_gguf_name(s->file), full(s, key));
}

static mr_status check_fixed(key_source *s, const char *key, double wanted, mr_err *err) {
    const mr_gguf_value *v = mr_gguf_find(s->file, full(s, key));
    bool flag = false;
    double value = 0;
    if (!v) return MR_OK;
    mr_status status;
    if (v->kind == MR_GGUF_BOOL) {
        status = mr_gguf_bool(&flag, s->file, s->name, err);
        value = flag ? 1 : 0;
    } else
        status = mr_gguf_double(&value, s->file, s->name, -DBL_MAX, DBL_MAX, err);
    if (status != MR_OK) return status;
    const double none = 0; /* a zero says "not used" everywhere but here: */
    const bool zero_counts = strcmp(key, "attention.causal") == 0;
    if (fabs(value - wanted) <= 0 || (!zero_counts && fabs(value - none) <= 0)) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s is %g, which is not supported (only %g is)",
                   mr_gguf_name(s->file), s->name, value, wanted);
}

static bool is_known(const char *key) {
    for (size_t i = 0; i < sizeof(known_keys) / sizeof(known_keys[0]); i++)
        if (strcmp(key, known_keys[i]) == 0) return true;
    for (size_t i = 0; i < sizeof(fixed_keys) / sizeof(fixed_keys[0]); i++)
        if (strcmp(key, fixed_keys[i].key) == 0) return true;
    return false;
}

static mr_status check_keys(key_source *s, mr_err *err) {
    const char *arch = s->model->arch;
    const size_t prefix = strlen(arch);
    uint64_t parts = 0;
    for (uint32_t i = 0; i < mr_gguf_value_count(s->file); i++) {
        const char *key = mr_gguf_value_at(s->file, i)->key;
        if (strncmp(key, arch, prefix) != 0 || key[prefix] != '.') continue;
        if (!is_known(key + prefix + 1))
            return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: key %.200s is not known",
                           mr_gguf_name(s->file), key);
    }
    for (size_t i = 0; i < sizeof(fixed_keys) / sizeof(fixed_keys[0]); i++) {
        const mr_status status = check_fixed(s, fixed_keys[i].key, fixed_keys[i].value, err);
        if (status != MR_OK) return status;
    }
    mr_status status = mr_gguf_u64(&parts, s->file, "split.count", 0, UINT64_MAX, err);
    if (status == MR_OK && parts > 1)
        status = mr_fail(err, MR_ERR_UNSUPPORTED,
                         "%s is one of %llu parts of a split model; join "
                         "them first (llama-gguf-split --merge)",
                         mr_gguf_name(s->file), (unsigned long long)parts);
    return status;
}

static mr_status find_family(gguf_model *m, mr_gguf *file, mr_err *err) {
    char *arch = NULL;
    mr_status status = mr_gguf_text(&arch, file, "general.architecture", 64, err);
    if (status != MR_OK) return status;
    for (size_t i = 0; arch && i < sizeof(families) / sizeof(families[0]); i++)
        if (strcmp(arch, families[i].arch) == 0) {
            m->family = families[i].family;
            m->model_type = families[i].model_type;
            m->class_name = families[i].class_name;
            snprintf(m->arch, sizeof(m->arch), "%s", arch);
        }
    if (m->family == 0)
        status = mr_fail(err, arch ? MR_ERR_UNSUPPORTED : MR_ERR_FORMAT,
                         arch ? "%s: architecture '%.40s' is not supported (llama, qwen2, qwen3, "
                                "olmo, olmo2, qwen2moe, qwen3moe, olmoe are)"
                              : "%s: general.architecture is missing",
                         mr_gguf_name(file), arch);
    free(arch);
    return status;
}

static mr_status read_experts(gguf_model *m, key_source *s, mr_err *err) {
    const char *count_key = full(s, "expert_count");
    mr_status status = mr_gguf_u64(&m->experts, s->file, count_key, 0, MR_MAX_EXPERTS, err);
    if (status != MR_OK) return status;
    if (m->family == GGUF_LLAMA && m->experts > 0) {
        m->family = GGUF_MIXTRAL;
        m->model_type = "mixtral";
        m->class_name = "MixtralForCausalLM";
    }
    if (!(m->family & GGUF_MOE)) {
        if (m->experts == 0) return MR_OK;
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s with experts is not supported",
                       mr_gguf_name(s->file), m->arch);
    }
    status = need_u64(s, &m->experts, "expert_count", MR_MAX_EXPERTS, err);
    if (status == MR_OK)
        status = need_u64(s, &m->experts_used, "expert_used_count", m->experts, err);
    if (status != MR_OK) return status;
    m->norm_topk = m->family == GGUF_MIXTRAL || m->family == GGUF_QWEN3MOE;
    const bool usual = m->norm_topk;
    status = mr_gguf_bool(&m->norm_topk, s->file, full(s, "expert_weights_norm"), err);
    if (status == MR_OK && m->family == GGUF_MIXTRAL && m->norm_topk != usual)
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s is false, which is not supported",
                         mr_gguf_name(s->file), s->name);
    return status;
}

static uint64_t last_dimension(const mr_gguf *file, const char *name, uint32_t from_last) {
    const mr_gguf_tensor *t = mr_gguf_find_tensor(file, name);
    return t && t->dims > from_last ? t->shape[t->dims - 1 - from_last] : 0;
}

/* Widths that old files do not say follow from the tensors. */
static mr_status read_widths(gguf_model *m, key_source *s, mr_err *err) {
    const uint64_t wide = 1u << 24;
    mr_status status = MR_OK;
    if (!(m->family & (GGUF_OLMOE | GGUF_QWEN3MOE)) || has(s, "feed_forward_length"))
        status = need_u64(s, &m->mlp, "feed_forward_length", wide, err);
    if (status != MR_OK || !(m->family & GGUF_MOE)) return status;
    m->expert_mlp = last_dimension(s->file, "blk.0.ffn_up_exps.weight", 1);
    if (m->family & (GGUF_MIXTRAL | GGUF_OLMOE)) m->expert_mlp = m->mlp;
    if (m->family != GGUF_MIXTRAL)
        status = read_u64(s, &m->expert_mlp, "expert_feed_forward_length", wide, err);
    if (m->mlp == 0) m->mlp = m->expert_mlp;
    if (status != MR_OK || m->family != GGUF_QWEN2MOE) return status;
    m->shared_mlp = last_dimension(s->file, "blk.0.ffn_up_shexp.weight", 1);
    return read_u64(s, &m->shared_mlp, "expert_shared_feed_forward_length", wide, err);
}

static mr_status read_attention(gguf_model *m, key_source *s, mr_err *err) {
    mr_status status = need_u64(s, &m->heads, "attention.head_count", MR_MAX_HEADS, err);
    if (status != MR_OK) return status;
    m->kv_heads = m->heads;
    m->head_dim = m->hidden / m->heads;
    status = read_u64(s, &m->kv_heads, "attention.head_count_kv", m->heads, err);
    if (status == MR_OK)
        status = read_u64(s, &m->head_dim, "attention.key_length", MR_MAX_D_MODEL, err);
    uint64_t value_dim = m->head_dim, rope_dim = m->head_dim;
    if (status == MR_OK)
        status = read_u64(s, &value_dim, "attention.value_length", MR_MAX_D_MODEL, err);
    if (status == MR_OK) status = read_u64(s, &rope_dim, "rope.dimension_count", UINT64_MAX, err);
    if (status != MR_OK) return status;
    if (value_dim != m->head_dim || rope_dim != m->head_dim || m->head_dim == 0 ||
        m->head_dim % 2 != 0 || m->heads % m->kv_heads != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: %llu heads, %llu of keys, with keys of %llu, values of %llu and rope "
                       "over %llu are not supported (whole even heads of one size are)",
                       mr_gguf_name(s->file), (unsigned long long)m->heads,
                       (unsigned long long)m->kv_heads, (unsigned long long)m->head_dim,
                       (unsigned long long)value_dim, (unsigned long long)rope_dim);
    status = mr_gguf_u64(&m->window, s->file, full(s, "attention.sliding_window"), 0,
                         MR_MAX_CONTEXT, err);
    if (status != MR_OK || m->window == 0) return status;
    if (!(m->family & (GGUF_LLAMA | GGUF_MIXTRAL)))
        return mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s with sliding windows is not supported",
                       mr_gguf_name(s->file), m->arch);
    if (m->family == GGUF_LLAMA) {
        m->model_type = "mistral";
        m->class_name = "MistralForCausalLM";
    }
    return MR_OK;
}

static mr_status read_norm(gguf_model *m, key_source *s, mr_err *err) {
    const char *key = m->family == GGUF_OLMO ? "attention.layer_norm_epsilon"
                                             : "attention.layer_norm_rms_epsilon";
    if (!has(s, key))
        return mr_fail(err, MR_ERR_FORMAT, "%s: %s is missing", mr_gguf_name(s->file), s->name);
    mr_status status = mr_gguf_double(&m->eps, s->file, full(s, key), 0, 1, err);
    if (status == MR_OK && m->family == GGUF_OLMO && fabs(m->eps - 1e-5) > 1e-9)
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s is %g; OLMo's is 1e-05",
                         mr_gguf_name(s->file), s->name, m->eps);
    if (status == MR_OK)
        status = mr_gguf_double(&m->clip, s->file, full(s, "attention.clamp_kqv"), 0, 1e30, err);
    if (status == MR_OK && m->clip > 0 && !(m->family & (GGUF_OLMO | GGUF_OLMOE)))
        status = mr_fail(err, MR_ERR_UNSUPPORTED, "%s: %s is set, which is not supported",
                         mr_gguf_name(s->file), s->name);
    return status;
}

static mr_status read_rope_tensor(gguf_model *m, mr_gguf *file, mr_err *err) {
    const mr_gguf_tensor *t = mr_gguf_find_tensor(file, "rope_freqs.weight");
    if (!t) return MR_OK;
    if (t->dims != 1 || t->format->type != MR_BLOCK_F32 || t->shape[0] != m->head_dim / 2)
        return mr_fail(err, MR_ERR_FORMAT, "%s: rope_freqs.weight must be %llu numbers in F32",
                       mr_gguf_name(file), (unsigned long long)(m->head_dim / 2));
    if (m->rope_scaling)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "%s: linear rope scaling together with "
                       "rope_freqs.weight is not supported",
                       mr_gguf_name(file));
    float *factors = mr_alloc((size_t)t->bytes);
    mr_status status = mr_gguf_read(file, t, 0, factors, (size_t)t->bytes, err);
    if (status == MR_OK) {
        status =
            gguf_rope_from_factors(&m->rope_scaling, factors, (uint32_t)t->shape[0], m->theta, err);
        if (status != MR_OK)
            mr_fail_prefix(err, status, "%s: rope_freqs.weight", mr_gguf_name(file));
    }
    free(factors);
    return status;
}

static mr_status read_rope(gguf_model *m, key_source *s, mr_err *err) {
    char *type = NULL;
    double factor = 0;
    m->theta = 10000;
    mr_status status = mr_gguf_double(&m->theta, s->file, full(s, "rope.freq_base"), 1, 1e30, err);
    if (status == MR_OK)
        status = mr_gguf_double(&factor, s->file, full(s, "rope.scale_linear"), 0, 1e6, err);
    if (status == MR_OK)
        status = mr_gguf_text(&type, s->file, full(s, "rope.scaling.type"), 64, err);
    if (status == MR_OK)
        status = mr_gguf_double(&factor, s->file, full(s, "rope.scaling.factor"), 0, 1e6, err);
    if (status == MR_OK && type && strcmp(type, "none") != 0 && strcmp(type, "linear") != 0)
        status = mr_fail(err, MR_ERR_UNSUPPORTED,
                         "%s: rope scaling '%.40s' is not supported "
                         "(linear and llama3 are)",
                         mr_gguf_name(s->file), type);
    if (status == MR_OK && type && strcmp(type, "linear") == 0 && !(factor >= 1))
        status = mr_fail(err, MR_ERR_RANGE, "%s: linear rope scaling by %g", mr_gguf_name(s->file),
                         factor);
    if (status == MR_OK && factor > 1 && !(type && strcmp(type, "none") == 0))
        m->rope_scaling = json_pack("{s:s, s:f}", "rope_type", "linear", "factor", factor);
    free(type);
    return status == MR_OK ? read_rope_tensor(m, s->file, err) : status;
}

static mr_status read_all(gguf_model *m, mr_gguf *file, mr_err *err) {
    key_source s = {.file = file, .model = m};
    mr_status status = find_family(m, file, err);
    if (status == MR_OK) status = check_keys(&s, err);
    if (status == MR_OK) status = need_u64(&s, &m->layers, "block_count", MR_MAX_LAYERS, err);
    if (status == MR_OK) status = need_u64(&s, &m->context, "context_length", UINT32_MAX, err);
    if (status == MR_OK) status = need_u64(&s, &m->hidden, "embedding_length", MR_MAX_D_MODEL, err);
    if (status == MR_OK) status = read_experts(m, &s, err);
    if (status == MR_OK) status = read_widths(m, &s, err);
    if (status == MR_OK) status = read_attention(m, &s, err);
    if (status == MR_OK) status = read_norm(m, &s, err);
    if (status == MR_OK) status = read_rope(m, &s, err);
    if (status != MR_OK) return status;
    m->vocab = last_dimension(file, "token_embd.weight", 1);
    if (m->vocab == 0 || m->vocab > MR_MAX_VOCAB)
        return mr_fail(err, MR_ERR_LIMIT, "%s: token_embd.weight must be a matrix of 1 to %d rows",
                       mr_gguf_name(file), MR_MAX_VOCAB);
    m->tied = mr_gguf_find_tensor(file, "output.weight") == NULL;
    m->attention_bias = mr_gguf_find_tensor(file, "blk.0.attn_q.bias") != NULL;
    m->mlp_bias = mr_gguf_find_tensor(file, "blk.0.ffn_up.bias") != NULL;
    return MR_OK;
}

mr_status gguf_model_read(gguf_model *out, mr_gguf *file, mr_err *err) {
    *out = (gguf_model){0};
    const mr_status status = read_all(out, file, err);
    if (status != MR_OK) gguf_model_free(out);
    return status;
}

void gguf_model_free(gguf_model *model) {
    json_decref(model->rope_scaling);
    *model = (gguf_model){0};
}

/* --- config.json ------------------------------------------------------------------------------ */

static void put_int(json_t *config, const char *key, uint64_t value) {
    json_object_set_new(config, key, json_integer((json_int_t)value));
}

/* The shortest decimal that is this f32: 1e-06 and not 9.99999997475e-07. */
static void put_real(json_t *config, const char *key, double value) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, value);
        if (fabsf((float)strtod(text, NULL) - (float)value) <= 0) break;
    }
    json_object_set_new(config, key, json_real(strtod(text, NULL)));
}

static void put_family(json_t *config, const gguf_model *m) {
    const gguf_family f = m->family;
    if (f & (GGUF_LLAMA | GGUF_QWEN3 | GGUF_OLMO | GGUF_OLMO2 | GGUF_QWEN3MOE | GGUF_OLMOE) &&
        strcmp(m->model_type, "mistral") != 0)
        json_object_set_new(config, "attention_bias", json_boolean(m->attention_bias));
    if (f == GGUF_LLAMA && strcmp(m->model_type, "llama") == 0)
        json_object_set_new(config, "mlp_bias", json_boolean(m->mlp_bias));
    if (f & (GGUF_OLMO | GGUF_OLMOE)) {
        json_object_set_new(config, "clip_qkv", json_null());
        if (m->clip > 0) put_real(config, "clip_qkv", m->clip);
    }
    if (strcmp(m->model_type, "mistral") == 0 || f == GGUF_MIXTRAL)
        json_object_set_new(config, "sliding_window",
                            m->window ? json_integer((json_int_t)m->window) : json_null());
    if (f & (GGUF_QWEN2 | GGUF_QWEN3 | GGUF_QWEN2MOE | GGUF_QWEN3MOE))
        json_object_set_new(config, "use_sliding_window", json_false());
    if (!(f & GGUF_MOE)) return;
    put_int(config, f == GGUF_MIXTRAL ? "num_local_experts" : "num_experts", m->experts);
    put_int(config, "num_experts_per_tok", m->experts_used);
    if (f != GGUF_MIXTRAL)
        json_object_set_new(config, "norm_topk_prob", json_boolean(m->norm_topk));
    if (!(f & (GGUF_QWEN2MOE | GGUF_QWEN3MOE))) return;
    put_int(config, "moe_intermediate_size", m->expert_mlp);
    if (f == GGUF_QWEN2MOE) put_int(config, "shared_expert_intermediate_size", m->shared_mlp);
    put_int(config, "decoder_sparse_step", 1);
    json_object_set_new(config, "mlp_only_layers", json_array());
}

static void put_id(json_t *config, const char *key, mr_gguf *file, const char *from) {
    uint64_t id = UINT64_MAX;
    if (mr_gguf_u64(&id, file, from, 0, MR_MAX_VOCAB, NULL) == MR_OK && id != UINT64_MAX)
        put_int(config, key, id);
}

json_t *gguf_model_config(const gguf_model *m, mr_gguf *file) {
    json_t *config = json_pack("{s:[s], s:s, s:s}", "architectures", m->class_name, "model_type",
                               m->model_type, "hidden_act", "silu");
    put_int(config, "hidden_size", m->hidden);
    put_int(config, "intermediate_size", m->mlp);
    put_int(config, "num_hidden_layers", m->layers);
    put_int(config, "num_attention_heads", m->heads);
    put_int(config, "num_key_value_heads", m->kv_heads);
    put_int(config, "head_dim", m->head_dim);
    put_int(config, "vocab_size", m->vocab);
    put_int(config, "max_position_embeddings", m->context);
    if (m->family != GGUF_OLMO) put_real(config, "rms_norm_eps", m->eps);
    put_real(config, "rope_theta", m->theta);
    json_object_set(config, "rope_scaling", m->rope_scaling ? m->rope_scaling : json_null());
    json_object_set_new(config, "tie_word_embeddings", json_boolean(m->tied));
    put_family(config, m);
    put_id(config, "bos_token_id", file, "tokenizer.ggml.bos_token_id");
    put_id(config, "eos_token_id", file, "tokenizer.ggml.eos_token_id");
    put_id(config, "pad_token_id", file, "tokenizer.ggml.padding_token_id");
    return config;
}
