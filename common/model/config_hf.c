/* config_hf.c - config.json of the Hugging Face families: one row per family says which fields it
 * has and what it means where a field is absent (as its configuration class does).
 *
 * Both layouts are read, that of transformers 4 (rope_theta, rope_scaling) and that of 5
 * (rope_parameters). What is set and not known to the family is refused by name, as is every known
 * field with a value that is not implemented. */
#include "common/model/config_impl.h"

#include "common/base/mem.h"

#include <stdlib.h>
#include <string.h>

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)
#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

enum {
    ATTENTION_BIAS = 1 << 0, /* attention_bias: query, key, value and output */
    MLP_BIAS = 1 << 1,       /* mlp_bias */
    ALWAYS_QKV_BIAS = 1 << 2,
    FIELD_QKV_BIAS = 1 << 3,   /* qkv_bias, true where absent */
    CLIP = 1 << 4,             /* clip_qkv */
    WINDOW = 1 << 5,           /* sliding_window, of all blocks */
    WINDOW_SWITCH = 1 << 6,    /* ... where use_sliding_window says so */
    LAYER_TYPES = 1 << 7,      /* ... of the blocks that layer_types names */
    WINDOW_BEHIND = 1 << 8,    /* ... and without it of those from max_window_layers on */
    QK_NORM_HEAD = 1 << 9,     /* */
    QK_NORM_FULL = 1 << 10,    /* */
    NORM_AFTER = 1 << 11,      /* */
    NORM_PLAIN = 1 << 12,      /* LayerNorm without weights, eps 1e-5 */
    MOE = 1 << 13,             /* */
    SPARSE_STEP = 1 << 14,     /* decoder_sparse_step, mlp_only_layers, moe_intermediate_size */
    SHARED_EXPERT = 1 << 15,   /* */
    NORM_TOPK = 1 << 16,       /* norm_topk_prob; without it MoE weights are renormalised */
    HEAD_DIM_128 = 1 << 17,    /* head_dim where absent */
    HEADS_ARE_WIDTH = 1 << 18, /* n_heads * head_dim must be hidden_size */
    MEMORY = 1 << 19           /* memory_layers and what belongs to them */
};

enum {
    QWEN = WINDOW_SWITCH | LAYER_TYPES | WINDOW_BEHIND,
    QWEN_MOE = MOE | SPARSE_STEP | NORM_TOPK | WINDOW_SWITCH
};

typedef struct {
    const char *type, *architecture;
    mr_family family;
    uint32_t has;
    double eps, theta;
} family_row;

static const family_row families[] = {
    {"llama", "LlamaForCausalLM", MR_FAMILY_LLAMA, ATTENTION_BIAS | MLP_BIAS, 1e-6, 1e4},
    {"mistral", "MistralForCausalLM", MR_FAMILY_MISTRAL, WINDOW, 1e-6, 1e4},
    {"olmo", "OlmoForCausalLM", MR_FAMILY_OLMO, ATTENTION_BIAS | CLIP | NORM_PLAIN, 1e-5, 1e4},
    {"olmo2", "Olmo2ForCausalLM", MR_FAMILY_OLMO2, ATTENTION_BIAS | QK_NORM_FULL | NORM_AFTER, 1e-5,
     1e4},
    {"qwen2", "Qwen2ForCausalLM", MR_FAMILY_QWEN2, QWEN | ALWAYS_QKV_BIAS, 1e-6, 1e4},
    {"qwen3", "Qwen3ForCausalLM", MR_FAMILY_QWEN3,
     QWEN | ATTENTION_BIAS | QK_NORM_HEAD | HEAD_DIM_128, 1e-6, 1e4},
    {"olmoe", "OlmoeForCausalLM", MR_FAMILY_OLMOE,
     ATTENTION_BIAS | CLIP | QK_NORM_FULL | MOE | NORM_TOPK | HEADS_ARE_WIDTH, 1e-5, 1e4},
    {"mixtral", "MixtralForCausalLM", MR_FAMILY_MIXTRAL, WINDOW | MOE, 1e-5, 1e6},
    {"qwen2_moe", "Qwen2MoeForCausalLM", MR_FAMILY_QWEN2_MOE,
     QWEN_MOE | LAYER_TYPES | FIELD_QKV_BIAS | SHARED_EXPERT, 1e-6, 1e4},
    {"qwen3_moe", "Qwen3MoeForCausalLM", MR_FAMILY_QWEN3_MOE,
     QWEN_MOE | WINDOW | ATTENTION_BIAS | QK_NORM_HEAD, 1e-6, 1e4},
    {"memory_plus", "MemoryPlusForCausalLM", MR_FAMILY_MEMORY_PLUS, MEMORY, 1e-5, 1e4},
};

const char *mr_family_name(mr_family family) {
    for (size_t i = 0; i < COUNT(families); i++)
        if (families[i].family == family) return families[i].type;
    return "ultramem";
}

/* Fields that never change the output of a trained model in evaluation. */
static const char *const without_effect[] = {"architectures",
                                             "model_type",
                                             "torch_dtype",
                                             "dtype",
                                             "transformers_version",
                                             "bos_token_id",
                                             "use_cache",
                                             "tokenizer_class",
                                             "name",
                                             "description",
                                             "license",
                                             "initializer_range",
                                             "attention_dropout",
                                             "hidden_dropout",
                                             "pretraining_tp",
                                             "output_router_logits",
                                             "output_attentions",
                                             "output_hidden_states",
                                             "router_aux_loss_coef",
                                             "router_jitter_noise",
                                             "return_dict",
                                             "is_decoder",
                                             "id2label",
                                             "label2id",
                                             "chunk_size_feed_forward"};

/* Read below, for all families; those of some only are here too and refused where they are set and
 * the family does not have them. */
static const char *const read_fields[] = {"hidden_size",
                                          "intermediate_size",
                                          "num_hidden_layers",
                                          "num_attention_heads",
                                          "num_key_value_heads",
                                          "head_dim",
                                          "hidden_act",
                                          "vocab_size",
                                          "max_position_embeddings",
                                          "rms_norm_eps",
                                          "tie_word_embeddings",
                                          "eos_token_id",
                                          "pad_token_id",
                                          "rope_theta",
                                          "rope_scaling",
                                          "rope_parameters",
                                          "partial_rotary_factor",
                                          "quantization_config",
                                          "memrack_pack"};

static const struct {
    const char *name;
    uint32_t has; /* any of these */
} some_fields[] = {
    {"attention_bias", ATTENTION_BIAS},
    {"mlp_bias", MLP_BIAS},
    {"qkv_bias", FIELD_QKV_BIAS},
    {"clip_qkv", CLIP},
    {"sliding_window", WINDOW | WINDOW_SWITCH},
    {"use_sliding_window", WINDOW_SWITCH},
    {"max_window_layers", WINDOW_SWITCH},
    {"layer_types", LAYER_TYPES},
    {"num_experts", MOE},
    {"num_local_experts", MOE},
    {"num_experts_per_tok", MOE},
    {"norm_topk_prob", NORM_TOPK},
    {"decoder_sparse_step", SPARSE_STEP},
    {"mlp_only_layers", SPARSE_STEP},
    {"moe_intermediate_size", SPARSE_STEP},
    {"shared_expert_intermediate_size", SHARED_EXPERT},
    {"memory_layers", MEMORY},
    {"memory_share_values", MEMORY},
    {"memory_keys", MEMORY},
    {"memory_heads", MEMORY},
    {"memory_knn", MEMORY},
    {"memory_key_dim", MEMORY},
    {"memory_value_dim", MEMORY},
    {"memory_swilu_projection", MEMORY},
    {"memory_value_projection", MEMORY},
};

static bool is_set(const json_t *root, const char *name) {
    const json_t *value = json_object_get(root, name);
    return value && !json_is_null(value);
}

static bool is_known(const char *name) {
    for (size_t i = 0; i < COUNT(some_fields); i++)
        if (strcmp(name, some_fields[i].name) == 0) return true;
    return mr_config_is_named(name, without_effect, COUNT(without_effect)) ||
           mr_config_is_named(name, read_fields, COUNT(read_fields)) || name[0] == '_';
}

static mr_status check_fields(const json_t *root, const family_row *row, mr_err *err) {
    for (size_t i = 0; i < COUNT(some_fields); i++) {
        const json_t *value = json_object_get(root, some_fields[i].name);
        if (!value || json_is_null(value) || json_is_false(value)) continue;
        if (some_fields[i].has & row->has) continue;
        return mr_fail(err, MR_ERR_UNSUPPORTED, "field '%s' is set, which model_type '%s' has not",
                       some_fields[i].name, row->type);
    }
    return mr_config_check_unknown(root, is_known, err);
}

/* --- whose it is ------------------------------------------------------------------------------ */

static mr_status find_family(const family_row **out, const json_t *root, mr_err *err) {
    const char *type = "null";
    TRY(mr_json_string(&type, root, "model_type", err));
    *out = NULL;
    for (size_t i = 0; i < COUNT(families); i++)
        if (strcmp(type, families[i].type) == 0) *out = &families[i];
    if (!*out)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "model_type '%.40s' is not implemented; llama, mistral, olmo, olmo2, qwen2, "
                       "qwen3, olmoe, mixtral, qwen2_moe, qwen3_moe and memory_plus are",
                       type);
    const json_t *list = json_object_get(root, "architectures"), *item;
    size_t i;
    if (list && !json_is_null(list) && !json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "field 'architectures' is %s, expected an array",
                       mr_json_type_name(list));
    json_array_foreach(list, i, item) {
        const char *name = json_string_value(item);
        if (name && strcmp(name, (*out)->architecture) == 0) continue;
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'architectures' names '%.60s'; of model_type '%s' only %s is "
                       "implemented",
                       name ? name : mr_json_type_name(item), type, (*out)->architecture);
    }
    return MR_OK;
}

/* --- sizes ------------------------------------------------------------------------------------ */

static mr_status read_heads(mr_config *c, const json_t *root, const family_row *row, mr_err *err) {
    TRY(mr_config_need_u32(&c->d_model, root, "hidden_size", 1, MR_MAX_D_MODEL, err));
    TRY(mr_config_need_u32(&c->n_heads, root, "num_attention_heads", 1, MR_MAX_HEADS, err));
    TRY(mr_config_need_u32(&c->n_layers, root, "num_hidden_layers", 1, MR_MAX_LAYERS, err));
    const bool has_default = row->has & HEAD_DIM_128 && !json_object_get(root, "head_dim");
    if (has_default)
        c->head_dim = 128;
    else if (is_set(root, "head_dim"))
        TRY(mr_json_u32(&c->head_dim, root, "head_dim", 1, MR_MAX_D_MODEL, err));
    else if (c->d_model % c->n_heads == 0)
        c->head_dim = c->d_model / c->n_heads;
    else
        return mr_fail(err, MR_ERR_FORMAT,
                       "hidden_size %u is not a multiple of num_attention_heads %u, and there is "
                       "no head_dim",
                       c->d_model, c->n_heads);
    if (c->head_dim % 2 != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "a head of %u dimensions cannot be rotated: rope needs an even number",
                       c->head_dim);
    const uint64_t width = (uint64_t)c->n_heads * c->head_dim;
    if (width > MR_MAX_D_MODEL)
        return mr_fail(err, MR_ERR_RANGE, "%u heads of %u dimensions are more than %d", c->n_heads,
                       c->head_dim, MR_MAX_D_MODEL);
    c->query_width = (uint32_t)width;
    if (row->has & HEADS_ARE_WIDTH && width != c->d_model)
        return mr_fail(err, MR_ERR_FORMAT,
                       "%u heads of %u dimensions are not hidden_size %u, which model_type '%s' "
                       "needs",
                       c->n_heads, c->head_dim, c->d_model, row->type);
    c->n_kv_heads = c->n_heads;
    TRY(mr_json_u32(&c->n_kv_heads, root, "num_key_value_heads", 1, c->n_heads, err));
    if (c->n_heads % c->n_kv_heads == 0) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT,
                   "num_attention_heads %u is not a multiple of num_key_value_heads %u", c->n_heads,
                   c->n_kv_heads);
}

/* One id or a list of them. */
static mr_status read_eos(mr_config *c, const json_t *root, mr_err *err) {
    const json_t *value = json_object_get(root, "eos_token_id"), *item;
    size_t i;
    c->eos_token = c->pad_token = -1;
    TRY(mr_json_int(&c->pad_token, root, "pad_token_id", -1, MR_MAX_VOCAB, err));
    if (!json_is_array(value)) {
        TRY(mr_json_int(&c->eos_token, root, "eos_token_id", -1, MR_MAX_VOCAB, err));
        c->eos_tokens[0] = c->eos_token;
        c->eos_count = c->eos_token >= 0;
        return MR_OK;
    }
    json_array_foreach(value, i, item) {
        const json_int_t id = json_integer_value(item);
        if (!json_is_integer(item) || id < 0 || id > MR_MAX_VOCAB)
            return mr_fail(err, MR_ERR_FORMAT, "field 'eos_token_id' holds %s, expected token ids",
                           json_is_integer(item) ? "a number out of range"
                                                 : mr_json_type_name(item));
        if (c->eos_count == MR_MAX_EOS_TOKENS)
            return mr_fail(err, MR_ERR_LIMIT, "field 'eos_token_id' holds more than %d ids",
                           MR_MAX_EOS_TOKENS);
        c->eos_tokens[c->eos_count++] = id;
    }
    if (c->eos_count) c->eos_token = c->eos_tokens[0];
    return MR_OK;
}

static mr_status read_sizes(mr_config *c, const json_t *root, mr_err *err) {
    uint32_t inner = 0;
    const char *act = "silu";
    TRY(mr_config_need_u32(&inner, root, "intermediate_size", 1, 1 << 23, err));
    TRY(mr_config_need_u32(&c->vocab_size, root, "vocab_size", 1, MR_MAX_VOCAB, err));
    TRY(mr_config_need_u32(&c->context_tokens, root, "max_position_embeddings", 1, MR_MAX_CONTEXT,
                           err));
    TRY(mr_json_string(&act, root, "hidden_act", err));
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'hidden_act' is '%.40s'; only 'silu' is implemented", act);
    c->mlp_hidden = 2 * inner;
    c->head_rows = c->vocab_size;
    return read_eos(c, root, err);
}

static mr_status read_norms(mr_config *c, const json_t *root, const family_row *row, mr_err *err) {
    double eps = row->eps, clip = 0;
    bool bias = row->has & FIELD_QKV_BIAS;
    TRY(mr_json_bool(&c->tied, root, "tie_word_embeddings", err));
    c->norm = row->has & NORM_PLAIN ? MR_NORM_PLAIN : MR_NORM_RMS;
    if (row->has & NORM_PLAIN) {
        if (is_set(root, "rms_norm_eps"))
            return mr_fail(err, MR_ERR_UNSUPPORTED,
                           "field 'rms_norm_eps' is set, which model_type '%s' has not", row->type);
    } else
        TRY(mr_json_double(&eps, root, "rms_norm_eps", 0, 1, err));
    c->norm_eps = (float)eps;
    c->norm_after = row->has & NORM_AFTER;
    c->qk_norm = row->has & (QK_NORM_HEAD | QK_NORM_FULL);
    c->qk_norm_full = row->has & QK_NORM_FULL;
    TRY(mr_json_bool(&bias, root, row->has & FIELD_QKV_BIAS ? "qkv_bias" : "attention_bias", err));
    c->attn_out_bias = bias && row->has & ATTENTION_BIAS;
    c->qkv_bias = bias || row->has & ALWAYS_QKV_BIAS;
    TRY(mr_json_bool(&c->mlp_bias, root, "mlp_bias", err));
    if (!is_set(root, "clip_qkv")) return MR_OK;
    TRY(mr_json_double(&clip, root, "clip_qkv", 1e-6, 1e30, err));
    c->clip_qkv = (float)clip;
    return MR_OK;
}

/* --- rope ------------------------------------------------------------------------------------- */

static mr_status need_number(double *out, const json_t *o, const char *what, const char *key,
                             double min, mr_err *err) {
    if (!is_set(o, key)) return mr_fail(err, MR_ERR_FORMAT, "field '%s' has no '%s'", what, key);
    const mr_status status = mr_json_double(out, o, key, min, 1e12, err);
    return status == MR_OK ? MR_OK : mr_fail_prefix(err, status, "field '%s'", what);
}

/* The keys of a rope object that its type reads; others are refused. */
static mr_status check_rope_keys(const json_t *o, const char *what, bool llama3, mr_err *err) {
    static const char *const keys[] = {"rope_type",
                                       "type",
                                       "rope_theta",
                                       "factor",
                                       "low_freq_factor",
                                       "high_freq_factor",
                                       "original_max_position_embeddings"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)o, name, value) {
        if (mr_config_is_named(name, keys, llama3 ? COUNT(keys) : 4) || json_is_null(value))
            continue;
        if (strcmp(name, "partial_rotary_factor") == 0 && json_is_number(value) &&
            json_number_value(value) == 1)
            continue;
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field '%s' holds '%.60s', which is not implemented", what, name);
    }
    return MR_OK;
}

static mr_status read_scaling(mr_config *c, const json_t *o, const char *what, mr_err *err) {
    mr_rope_scaling *s = &c->rope_scaling;
    const char *type = "default";
    TRY(mr_json_string(&type, o, "type", err));
    TRY(mr_json_string(&type, o, "rope_type", err));
    if (strcmp(type, "linear") == 0)
        s->kind = MR_ROPE_LINEAR;
    else if (strcmp(type, "llama3") == 0)
        s->kind = MR_ROPE_LLAMA3;
    else if (strcmp(type, "default") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field '%s' has type '%.40s'; default, linear and llama3 are implemented",
                       what, type);
    TRY(check_rope_keys(o, what, s->kind == MR_ROPE_LLAMA3, err));
    TRY(mr_json_double(&c->rope_theta, o, "rope_theta", 1, 1e12, err));
    if (s->kind == MR_ROPE_PLAIN) return MR_OK;
    TRY(need_number(&s->factor, o, what, "factor", 1, err));
    if (s->kind == MR_ROPE_LINEAR) return MR_OK;
    TRY(need_number(&s->low, o, what, "low_freq_factor", 1e-6, err));
    TRY(need_number(&s->high, o, what, "high_freq_factor", 1e-6, err));
    s->original_context = c->context_tokens;
    TRY(mr_json_double(&s->original_context, o, "original_max_position_embeddings", 1,
                       MR_MAX_CONTEXT, err));
    if (s->high > s->low) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT,
                   "field '%s': high_freq_factor %g is not above low_freq_factor"
                   " %g",
                   what, s->high, s->low);
}

static mr_status read_rope(mr_config *c, const json_t *root, const family_row *row, mr_err *err) {
    static const char *const names[] = {"rope_scaling", "rope_parameters"};
    double part = 1;
    c->rope_theta = row->theta;
    TRY(mr_json_double(&c->rope_theta, root, "rope_theta", 1, 1e12, err));
    TRY(mr_json_double(&part, root, "partial_rotary_factor", 0, 1, err));
    if (part != 1)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'partial_rotary_factor' is %g; only 1 is implemented", part);
    if (is_set(root, names[0]) && is_set(root, names[1]))
        return mr_fail(err, MR_ERR_FORMAT,
                       "both 'rope_scaling' and 'rope_parameters' are set; one of them counts");
    for (size_t i = 0; i < COUNT(names); i++) {
        const json_t *o = json_object_get(root, names[i]);
        if (!o || json_is_null(o)) continue;
        if (!json_is_object(o))
            return mr_fail(err, MR_ERR_FORMAT, "field '%s' is %s, expected an object", names[i],
                           mr_json_type_name(o));
        TRY(read_scaling(c, o, names[i], err));
    }
    return MR_OK;
}

/* --- blocks that differ ----------------------------------------------------------------------- */

static mr_status read_layer_types(bool *sliding, const mr_config *c, const json_t *list,
                                  mr_err *err) {
    if (!json_is_array(list) || json_array_size(list) != c->n_layers)
        return mr_fail(err, MR_ERR_FORMAT,
                       "field 'layer_types' is not an array of num_hidden_layers %u", c->n_layers);
    for (uint32_t i = 0; i < c->n_layers; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        sliding[i] = name && strcmp(name, "sliding_attention") == 0;
        if (sliding[i] || (name && strcmp(name, "full_attention") == 0)) continue;
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'layer_types' holds '%.40s'; full_attention and sliding_attention "
                       "are implemented",
                       name ? name : "something that is no text");
    }
    return MR_OK;
}

static mr_status set_windows(mr_config *c, const json_t *root, const family_row *row, bool used,
                             bool *sliding, mr_err *err) {
    uint32_t window = 0, from = 28;
    bool any = false;
    const json_t *types = json_object_get(root, "layer_types");
    const bool typed = row->has & LAYER_TYPES && types && !json_is_null(types);
    TRY(mr_json_u32(&from, root, "max_window_layers", 0, 1 << 20, err));
    if (typed)
        TRY(read_layer_types(sliding, c, types, err));
    else if (used && row->has & LAYER_TYPES && !(row->has & WINDOW_BEHIND))
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'use_sliding_window' is true without 'layer_types': versions of the "
                       "transformers package disagree on which blocks slide");
    else
        for (uint32_t i = 0; i < c->n_layers; i++)
            sliding[i] = used && (!(row->has & WINDOW_BEHIND) || i >= from);
    for (uint32_t i = 0; i < c->n_layers; i++) any |= sliding[i];
    if (!any) return MR_OK;
    if (!used || !is_set(root, "sliding_window"))
        return mr_fail(err, MR_ERR_FORMAT, "field 'layer_types' asks for sliding_attention, but %s",
                       used ? "there is no sliding_window" : "use_sliding_window is not true");
    TRY(mr_json_u32(&window, root, "sliding_window", 1, INT32_MAX, err));
    c->windows = mr_alloc_array(c->n_layers, sizeof(*c->windows));
    for (uint32_t i = 0; i < c->n_layers; i++) c->windows[i] = sliding[i] ? window : 0;
    return MR_OK;
}

static mr_status read_windows(mr_config *c, const json_t *root, const family_row *row,
                              mr_err *err) {
    bool used = is_set(root, "sliding_window");
    if (!(row->has & (WINDOW | WINDOW_SWITCH))) return MR_OK;
    if (row->has & WINDOW_SWITCH) {
        bool is_on = false;
        TRY(mr_json_bool(&is_on, root, "use_sliding_window", err));
        used = is_on && used;
    }
    bool *sliding = mr_alloc_array(c->n_layers, sizeof(*sliding));
    const mr_status status = set_windows(c, root, row, used, sliding, err);
    free(sliding);
    return status;
}

static mr_status read_dense_blocks(mr_config *c, const json_t *root, mr_err *err) {
    const json_t *list = json_object_get(root, "mlp_only_layers"), *item;
    uint32_t step = 1, sparse = 0;
    size_t i;
    TRY(mr_json_u32(&step, root, "decoder_sparse_step", 1, 1 << 20, err));
    if (list && !json_is_null(list) && !json_is_array(list))
        return mr_fail(err, MR_ERR_FORMAT, "field 'mlp_only_layers' is %s, expected an array",
                       mr_json_type_name(list));
    if (step == 1 && json_array_size(list) == 0) return MR_OK;
    c->dense_blocks = mr_alloc_array(c->n_layers, sizeof(*c->dense_blocks));
    for (uint32_t b = 0; b < c->n_layers; b++) c->dense_blocks[b] = (b + 1) % step != 0;
    json_array_foreach(list, i, item) {
        const json_int_t b = json_integer_value(item);
        if (!json_is_integer(item))
            return mr_fail(err, MR_ERR_FORMAT, "field 'mlp_only_layers' holds %s, expected blocks",
                           mr_json_type_name(item));
        if (b >= 0 && b < c->n_layers) c->dense_blocks[b] = true;
    }
    for (uint32_t b = 0; b < c->n_layers; b++) sparse += !c->dense_blocks[b];
    if (sparse) return MR_OK;
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "no block has experts (decoder_sparse_step %u and mlp_only_layers)", step);
}

static mr_status read_experts(mr_config *c, const json_t *root, const family_row *row,
                              mr_err *err) {
    if (!(row->has & MOE)) return MR_OK;
    const char *count = is_set(root, "num_experts") ? "num_experts" : "num_local_experts";
    c->moe = true;
    c->expert_hidden = c->mlp_hidden / 2;
    c->moe_renormalize = !(row->has & NORM_TOPK);
    TRY(mr_config_need_u32(&c->experts, root, count, 1, MR_MAX_EXPERTS, err));
    TRY(mr_config_need_u32(&c->experts_per_token, root, "num_experts_per_tok", 1, c->experts, err));
    TRY(mr_json_bool(&c->moe_renormalize, root, "norm_topk_prob", err));
    if (row->has & SPARSE_STEP) {
        TRY(mr_config_need_u32(&c->expert_hidden, root, "moe_intermediate_size", 1, 1 << 23, err));
        TRY(read_dense_blocks(c, root, err));
    }
    if (!(row->has & SHARED_EXPERT)) return MR_OK;
    return mr_config_need_u32(&c->shared_hidden, root, "shared_expert_intermediate_size", 1,
                              1 << 23, err);
}

/* --- memory in the place of feed-forward parts ------------------------------------------------ */

static mr_status read_memory_layers(mr_config *c, const json_t *list, mr_err *err) {
    const json_t *item;
    size_t i;
    if (!json_is_array(list) || json_array_size(list) > c->n_layers)
        return mr_fail(err, MR_ERR_FORMAT,
                       "field 'memory_layers' is not an array of at most num_hidden_layers %u",
                       c->n_layers);
    c->insertions = mr_alloc_array(json_array_size(list), sizeof(*c->insertions));
    json_array_foreach(list, i, item) {
        const json_int_t block = json_integer_value(item);
        const bool rises = i == 0 || block > (json_int_t)c->insertions[i - 1].source;
        if (!json_is_integer(item) || block < 0 || block >= c->n_layers || !rises)
            return mr_fail(err, MR_ERR_FORMAT,
                           "field 'memory_layers' must hold blocks below %u in rising order",
                           c->n_layers);
        c->insertions[i] = (mr_insertion){(uint32_t)block, (uint32_t)block};
        c->memory_count++;
    }
    return MR_OK;
}

static mr_status read_memory(mr_config *c, const json_t *root, const family_row *row, mr_err *err) {
    const json_t *list = json_object_get(root, "memory_layers");
    bool shared = true;
    if (!(row->has & MEMORY) || !is_set(root, "memory_layers")) return MR_OK;
    if (json_is_array(list) && json_array_size(list) == 0) return MR_OK;
    TRY(read_memory_layers(c, list, err));
    c->memory = MR_MEMORY_META;
    c->mem_query_bias = c->mem_silu = c->mem_value_proj = true;
    TRY(mr_config_need_u32(&c->mem_knum, root, "memory_keys", 1, 65535, err));
    TRY(mr_config_need_u32(&c->mem_head, root, "memory_heads", 1, MR_MAX_MEM_HEADS, err));
    TRY(mr_config_need_u32(&c->mem_knn, root, "memory_knn", 1, MR_MAX_MEM_KNN, err));
    TRY(mr_config_need_u32(&c->mem_kdim, root, "memory_key_dim", 1, 1 << 16, err));
    TRY(mr_config_need_u32(&c->mem_vdim, root, "memory_value_dim", 1, 1 << 16, err));
    TRY(mr_json_bool(&shared, root, "memory_share_values", err));
    TRY(mr_json_bool(&c->mem_silu, root, "memory_swilu_projection", err));
    TRY(mr_json_bool(&c->mem_value_proj, root, "memory_value_projection", err));
    c->mem_own_tables = !shared;
    c->mem_key_expand = c->mem_value_expand = 1;
    c->mem_share_ratio = 1;
    if (c->mem_head * c->mem_knn > MR_MAX_MEM_ENTRIES)
        return mr_fail(err, MR_ERR_RANGE,
                       "memory_heads * memory_knn is %u, at most %d entries a token",
                       c->mem_head * c->mem_knn, MR_MAX_MEM_ENTRIES);
    if (c->mem_silu && !c->mem_value_proj)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'memory_swilu_projection' is true without memory_value_projection");
    if (c->mem_value_proj || c->mem_vdim == c->d_model) return MR_OK;
    return mr_fail(err, MR_ERR_FORMAT,
                   "memory_value_dim %u is not hidden_size %u and there is no value projection",
                   c->mem_vdim, c->d_model);
}

mr_status mr_config_read_hf(mr_config *c, const json_t *root, mr_err *err) {
    const family_row *row;
    TRY(find_family(&row, root, err));
    c->family = row->family;
    TRY(mr_quant_config_parse(&c->quant, root, err));
    TRY(check_fields(root, row, err));
    TRY(read_heads(c, root, row, err));
    TRY(read_sizes(c, root, err));
    TRY(read_norms(c, root, row, err));
    TRY(read_rope(c, root, row, err));
    TRY(read_windows(c, root, row, err));
    TRY(read_memory(c, root, row, err));
    return read_experts(c, root, row, err);
}
