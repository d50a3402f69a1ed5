/* config.c - config.json of the official code: one row per field says what becomes of it.
 *
 * The official ModelConfig has about a hundred fields. Each is read, required to have the one value
 * that is implemented, or known never to change the output. Anything else that is set is refused by
 * name: better to say no than to answer with other numbers than the model's. */
#include "common/model/config.h"

#include "common/base/log.h"
#include "common/base/mem.h"
#include "common/model/config_impl.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Fields that never change the output of a trained model in evaluation. */
static const char *const without_effect[] = {"golden",
                                             "alibi_bias_max",
                                             "rope_full_precision",
                                             "flash_attention",
                                             "attention_dropout",
                                             "residual_dropout",
                                             "embedding_dropout",
                                             "init_device",
                                             "init_fn",
                                             "init_std",
                                             "init_cutoff_factor",
                                             "precision",
                                             "moe_mlp_impl",
                                             "moe_log_expert_assignment",
                                             "moe_lbl_in_fp32",
                                             "moe_loss_weight",
                                             "moe_zloss_weight",
                                             "moe_capacity_factor",
                                             "scale_emb_init",
                                             "emb_init_std",
                                             "convert2fp32",
                                             "mem_tucker_rank_penalty",
                                             "mem_log_interval",
                                             "mem_key_balance_reg_coef",
                                             "mem_final_top_expand_time",
                                             "mem_output_dropout_rate",
                                             "mem_parallel_size",
                                             "architectures",
                                             "model_type",
                                             "torch_dtype",
                                             "dtype",
                                             "transformers_version",
                                             "bos_token_id",
                                             "use_cache",
                                             "tokenizer_class",
                                             "name",
                                             "description",
                                             "license"};

/* Read below. */
static const char *const read_fields[] = {"d_model",
                                          "n_heads",
                                          "n_kv_heads",
                                          "multi_query_attention",
                                          "n_layers",
                                          "mlp_ratio",
                                          "mlp_hidden_size",
                                          "max_sequence_length",
                                          "vocab_size",
                                          "embedding_size",
                                          "weight_tying",
                                          "eos_token_id",
                                          "pad_token_id",
                                          "layer_norm_type",
                                          "layer_norm_eps",
                                          "attention_layer_norm",
                                          "rope_theta",
                                          "block_type",
                                          "moe_num_experts",
                                          "moe_top_k",
                                          "moe_normalize_expert_weights",
                                          "mem_type",
                                          "mem_insert_way",
                                          "mem_knum",
                                          "mem_kdim",
                                          "mem_vdim",
                                          "mem_knn",
                                          "mem_head",
                                          "mem_pre_vdim",
                                          "mem_key_expand_time",
                                          "mem_value_expand_time",
                                          "mem_share_ratio",
                                          "mem_use_glu_act",
                                          "mem_query_bias",
                                          "mem_q_for_each_tucker_rank",
                                          "mem_tucker_rank",
                                          "mem_tucker_multihead",
                                          "quantization_config",
                                          "memrack_pack"};

typedef enum { ALWAYS, WITH_MOE, WITH_QK_NORM } condition;

/* Fields with exactly one implemented value; json is that value, null means "absent or null". */
static const struct {
    const char *name, *json;
    bool null_is_fine;
    condition when;
} fixed_fields[] = {
    {"activation_type", "\"swiglu\"", false, ALWAYS},
    {"block_group_size", "1", true, ALWAYS},
    {"alibi", "false", true, ALWAYS},
    {"rope", "true", false, ALWAYS},
    {"clip_qkv", "null", true, ALWAYS},
    {"embedding_layer_norm", "false", true, ALWAYS},
    {"layer_norm_with_affine", "true", true, ALWAYS},
    {"attention_layer_norm_with_affine", "true", true, WITH_QK_NORM},
    {"include_bias", "false", false, ALWAYS},
    {"bias_for_layer_norm", "false", true, ALWAYS},
    {"scale_logits", "false", true, ALWAYS},
    {"norm_after", "false", true, ALWAYS},
    {"vertical_parallel", "false", true, ALWAYS},
    {"moe_shared_expert", "false", true, WITH_MOE},
    {"moe_interleave", "false", true, ALWAYS},
    {"moe_dropless", "true", true, WITH_MOE},
};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static bool is_known(const char *name) {
    for (size_t i = 0; i < COUNT(fixed_fields); i++)
        if (strcmp(name, fixed_fields[i].name) == 0) return true;
    return mr_config_is_named(name, without_effect, COUNT(without_effect)) ||
           mr_config_is_named(name, read_fields, COUNT(read_fields)) || name[0] == '_';
}

static mr_status check_fixed(const json_t *root, const mr_config *c, mr_err *err) {
    for (size_t i = 0; i < COUNT(fixed_fields); i++) {
        const json_t *value = json_object_get(root, fixed_fields[i].name);
        if (fixed_fields[i].when == WITH_MOE && !c->moe) continue;
        if (fixed_fields[i].when == WITH_QK_NORM && !c->qk_norm) continue;
        if (!value && strcmp(fixed_fields[i].name, "rope") == 0)
            return mr_fail(err, MR_ERR_FORMAT,
                           "field 'rope' is missing; the official default is no "
                           "rotary embedding, which is not implemented");
        if (!value) continue;
        if (json_is_null(value) && fixed_fields[i].null_is_fine) continue;
        json_t *wanted = json_loads(fixed_fields[i].json, JSON_DECODE_ANY, NULL);
        const bool same = json_equal(wanted, value);
        json_decref(wanted);
        if (same) continue;
        char *found = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
        const mr_status status =
            mr_fail(err, MR_ERR_UNSUPPORTED, "field '%s' is %.80s; only %s is implemented",
                    fixed_fields[i].name, found ? found : "?", fixed_fields[i].json);
        free(found);
        return status;
    }
    return MR_OK;
}

#define TRY(call)                                                                                  \
    do {                                                                                           \
        const mr_status try_status = (call);                                                       \
        if (try_status != MR_OK) return try_status;                                                \
    } while (0)

static mr_status read_heads(mr_config *c, const json_t *root, mr_err *err) {
    bool multi_query = false;
    TRY(mr_config_need_u32(&c->d_model, root, "d_model", 1, MR_MAX_D_MODEL, err));
    TRY(mr_config_need_u32(&c->n_heads, root, "n_heads", 1, MR_MAX_HEADS, err));
    TRY(mr_config_need_u32(&c->n_layers, root, "n_layers", 1, MR_MAX_LAYERS, err));
    if (c->d_model % c->n_heads != 0)
        return mr_fail(err, MR_ERR_FORMAT, "d_model %u is not a multiple of n_heads %u", c->d_model,
                       c->n_heads);
    c->head_dim = c->d_model / c->n_heads;
    c->query_width = c->d_model;
    if (c->head_dim % 2 != 0)
        return mr_fail(err, MR_ERR_FORMAT,
                       "a head of %u dimensions cannot be rotated: rope needs an even number",
                       c->head_dim);
    TRY(mr_json_bool(&multi_query, root, "multi_query_attention", err));
    c->n_kv_heads = multi_query ? 1 : c->n_heads;
    TRY(mr_json_u32(&c->n_kv_heads, root, "n_kv_heads", 1, c->n_heads, err));
    if (multi_query && c->n_kv_heads != 1)
        return mr_fail(err, MR_ERR_FORMAT, "multi_query_attention is true but n_kv_heads is %u",
                       c->n_kv_heads);
    if (c->n_heads % c->n_kv_heads != 0)
        return mr_fail(err, MR_ERR_FORMAT, "n_heads %u is not a multiple of n_kv_heads %u",
                       c->n_heads, c->n_kv_heads);
    return MR_OK;
}

static mr_status read_sizes(mr_config *c, const json_t *root, mr_err *err) {
    double ratio = 4;
    uint32_t embedding = 0;
    TRY(mr_json_double(&ratio, root, "mlp_ratio", 0, 1024, err));
    const double hidden = ratio * c->d_model;
    const json_t *explicit_hidden = json_object_get(root, "mlp_hidden_size");
    if (!explicit_hidden || json_is_null(explicit_hidden)) {
        if (!(hidden >= 2 && hidden <= 1 << 24))
            return mr_fail(err, MR_ERR_RANGE, "mlp_ratio %g gives no usable hidden size", ratio);
        c->mlp_hidden = (uint32_t)hidden;
    }
    TRY(mr_json_u32(&c->mlp_hidden, root, "mlp_hidden_size", 2, 1 << 24, err));
    if (c->mlp_hidden % 2 != 0)
        return mr_fail(err, MR_ERR_FORMAT, "mlp_hidden_size %u cannot be halved for swiglu",
                       c->mlp_hidden);
    TRY(mr_config_need_u32(&c->vocab_size, root, "vocab_size", 1, MR_MAX_VOCAB, err));
    TRY(mr_json_u32(&embedding, root, "embedding_size", 0, MR_MAX_VOCAB, err));
    if (embedding != 0 && embedding < c->vocab_size)
        return mr_fail(err, MR_ERR_FORMAT, "embedding_size %u is smaller than vocab_size %u",
                       embedding, c->vocab_size);
    c->head_rows = embedding ? embedding : c->vocab_size;
    TRY(mr_config_need_u32(&c->context_tokens, root, "max_sequence_length", 1, MR_MAX_CONTEXT,
                           err));
    c->eos_token = c->pad_token = -1;
    TRY(mr_json_int(&c->eos_token, root, "eos_token_id", -1, MR_MAX_VOCAB, err));
    c->eos_tokens[0] = c->eos_token;
    c->eos_count = c->eos_token >= 0;
    return mr_json_int(&c->pad_token, root, "pad_token_id", -1, MR_MAX_VOCAB, err);
}

static mr_status read_norms(mr_config *c, const json_t *root, mr_err *err) {
    const char *norm = "default";
    double eps = 1e-5;
    c->tied = true;
    TRY(mr_json_bool(&c->tied, root, "weight_tying", err));
    TRY(mr_json_bool(&c->qk_norm, root, "attention_layer_norm", err));
    TRY(mr_json_string(&norm, root, "layer_norm_type", err));
    if (strcmp(norm, "rms") == 0)
        c->norm = MR_NORM_RMS;
    else if (strcmp(norm, "default") == 0)
        c->norm = MR_NORM_LAYER;
    else
        return mr_fail(
            err, MR_ERR_UNSUPPORTED,
            "field 'layer_norm_type' is '%.40s'; only 'rms' and 'default' are implemented", norm);
    TRY(mr_json_double(&eps, root, "layer_norm_eps", 0, 1, err));
    c->norm_eps = (float)eps;
    c->rope_theta = 10000;
    return mr_json_double(&c->rope_theta, root, "rope_theta", 1, 1e12, err);
}

static mr_status read_block(mr_config *c, const json_t *root, mr_err *err) {
    const char *type = "sequential";
    TRY(mr_json_string(&type, root, "block_type", err));
    if (strcmp(type, "moe") == 0)
        c->moe = true;
    else if (strcmp(type, "sequential") != 0)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'block_type' is '%.40s'; only 'sequential' and 'moe' are implemented",
                       type);
    if (!c->moe) return MR_OK;
    int64_t norm = 0;
    TRY(mr_config_need_u32(&c->experts, root, "moe_num_experts", 1, MR_MAX_EXPERTS, err));
    TRY(mr_config_need_u32(&c->experts_per_token, root, "moe_top_k", 1, c->experts, err));
    c->expert_hidden = c->mlp_hidden / 2;
    const json_t *renormalize = json_object_get(root, "moe_normalize_expert_weights");
    if (!renormalize || json_is_null(renormalize)) return MR_OK;
    if (json_is_real(renormalize) && json_real_value(renormalize) == 1.0)
        norm = 1;
    else
        TRY(mr_json_int(&norm, root, "moe_normalize_expert_weights", 0, 1 << 20, err));
    if (norm != 1)
        return mr_fail(
            err, MR_ERR_UNSUPPORTED,
            "field 'moe_normalize_expert_weights' is %lld; only null and 1 are implemented",
            (long long)norm);
    c->moe_renormalize = true;
    return MR_OK;
}

static void add_insertion(mr_config *c, uint32_t source, uint32_t destination) {
    c->insertions = mr_realloc_array(c->insertions, c->memory_count + 1, sizeof(*c->insertions));
    c->insertions[c->memory_count++] = (mr_insertion){source, destination};
}

/* "1:2/3:5". A destination at or beyond n_layers is legal, and its output is lost. */
static mr_status read_insertions(mr_config *c, const char *text, mr_err *err) {
    if (strcmp(text, "full") == 0) {
        for (uint32_t i = 0; i < c->n_layers; i++) add_insertion(c, i, i);
        return MR_OK;
    }
    for (const char *at = text;;) {
        unsigned long pair[2];
        for (int i = 0; i < 2; i++) {
            char *end;
            if (*at < '0' || *at > '9') goto malformed;
            errno = 0;
            pair[i] = strtoul(at, &end, 10);
            if (errno || pair[i] > 1000000 || (i == 0 && *end != ':')) goto malformed;
            at = end + (i == 0);
        }
        if (pair[0] >= c->n_layers)
            return mr_fail(
                err, MR_ERR_FORMAT,
                "mem_insert_way '%.80s' reads at block %lu, but there are only %u blocks", text,
                pair[0], c->n_layers);
        for (uint32_t i = 0; i < c->memory_count; i++)
            if (c->insertions[i].source == pair[0])
                return mr_fail(err, MR_ERR_UNSUPPORTED,
                               "mem_insert_way '%.80s' reads twice at block %lu", text, pair[0]);
        if (pair[1] < pair[0])
            return mr_fail(err, MR_ERR_FORMAT,
                           "mem_insert_way '%.80s': %lu:%lu adds before it reads", text, pair[0],
                           pair[1]);
        if (c->memory_count >= MR_MAX_LAYERS) goto malformed;
        add_insertion(c, (uint32_t)pair[0], (uint32_t)pair[1]);
        if (*at == '\0') return MR_OK;
        if (*at++ != '/') goto malformed;
    }
malformed:
    return mr_fail(err, MR_ERR_FORMAT,
                   "mem_insert_way '%.80s' is neither no_mem, full, nor pairs such as 1:2/3:5",
                   text);
}

static mr_status read_memory_kind(mr_config *c, const json_t *root, mr_err *err) {
    static const struct {
        const char *name;
        mr_memory_kind kind;
    } kinds[] = {{"pkm", MR_MEMORY_PKM},
                 {"memory_plus", MR_MEMORY_PLUS},
                 {"ultramem_v1", MR_MEMORY_ULTRAMEM_V1},
                 {"ultramem_v2", MR_MEMORY_ULTRAMEM_V2}};
    const char *type = NULL;
    TRY(mr_json_string(&type, root, "mem_type", err));
    if (!type) return mr_fail(err, MR_ERR_FORMAT, "field 'mem_type' is missing");
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (strcmp(type, kinds[i].name) == 0) {
            c->memory = kinds[i].kind;
            return MR_OK;
        }
    return mr_fail(err, MR_ERR_UNSUPPORTED,
                   "field 'mem_type' is '%.40s'; pkm, memory_plus, ultramem_v1 and ultramem_v2 are "
                   "implemented",
                   type);
}

/* What the official classes themselves can run: see docs/MODELS.md, "query layout". */
static mr_status check_v2(mr_config *c, mr_err *err) {
    const uint32_t heads_max = c->mem_query_per_rank ? 4 : 2;
    const uint32_t kx = c->mem_key_expand;
    if (c->mem_head > heads_max)
        return mr_fail(err, MR_ERR_FORMAT,
                       "mem_head is %u; this query layout feeds at most %u heads", c->mem_head,
                       heads_max);
    if (kx > 16) return mr_fail(err, MR_ERR_RANGE, "mem_key_expand_time is %u; at most 16", kx);
    if (c->mem_value_expand != 1 && c->mem_value_expand != kx * kx)
        return mr_fail(err, MR_ERR_FORMAT,
                       "mem_value_expand_time is %u; with mem_key_expand_time %u it is 1 or %u",
                       c->mem_value_expand, kx, kx * kx);
    if (!(c->mem_share_ratio > 0))
        return mr_fail(err, MR_ERR_RANGE, "mem_share_ratio must be above 0");
    return MR_OK;
}

static mr_status read_memory(mr_config *c, const json_t *root, mr_err *err) {
    const char *way = "no_mem";
    TRY(mr_json_string(&way, root, "mem_insert_way", err));
    if (strcmp(way, "no_mem") == 0) return MR_OK;
    if (c->moe)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'mem_insert_way' is '%.40s' with block_type 'moe': memory layers "
                       "need block_type 'sequential'",
                       way);
    TRY(read_memory_kind(c, root, err));
    TRY(mr_config_need_u32(&c->mem_knum, root, "mem_knum", 1, 65535, err));
    TRY(mr_config_need_u32(&c->mem_kdim, root, "mem_kdim", 1, 1 << 16, err));
    TRY(mr_config_need_u32(&c->mem_knn, root, "mem_knn", 1, MR_MAX_MEM_KNN, err));
    TRY(mr_config_need_u32(&c->mem_head, root, "mem_head", 1, MR_MAX_MEM_HEADS, err));
    if (c->memory == MR_MEMORY_PKM)
        c->mem_vdim = c->d_model;
    else
        TRY(mr_config_need_u32(&c->mem_vdim, root, "mem_vdim", 1, 1 << 16, err));
    if (c->mem_head * c->mem_knn > MR_MAX_MEM_ENTRIES)
        return mr_fail(err, MR_ERR_RANGE, "mem_head * mem_knn is %u, at most %d entries a token",
                       c->mem_head * c->mem_knn, MR_MAX_MEM_ENTRIES);
    c->mem_key_expand = c->mem_value_expand = 1;
    c->mem_share_ratio = 1;
    c->mem_query_bias = c->memory == MR_MEMORY_PKM;
    TRY(mr_json_bool(&c->mem_query_bias, root, "mem_query_bias", err));
    if (c->mem_query_bias && c->memory != MR_MEMORY_PKM)
        return mr_fail(err, MR_ERR_UNSUPPORTED,
                       "field 'mem_query_bias' is true; only pkm has a query bias");
    TRY(mr_json_u32(&c->mem_tucker_rank, root, "mem_tucker_rank", 0, 1 << 16, err));
    TRY(mr_json_u32(&c->mem_tucker_cores, root, "mem_tucker_multihead", 0, 1 << 16, err));
    TRY(read_insertions(c, way, err));
    if (c->memory == MR_MEMORY_ULTRAMEM_V1 && c->mem_head > 2)
        return mr_fail(err, MR_ERR_FORMAT,
                       "mem_head is %u; ultramem_v1 makes one query for at most 2 heads",
                       c->mem_head);
    if (c->memory != MR_MEMORY_ULTRAMEM_V2) return MR_OK;
    TRY(mr_json_u32(&c->mem_key_expand, root, "mem_key_expand_time", 1, 1 << 16, err));
    TRY(mr_json_u32(&c->mem_value_expand, root, "mem_value_expand_time", 1, 1 << 16, err));
    TRY(mr_json_u32(&c->mem_pre_vdim, root, "mem_pre_vdim", 0, 1 << 16, err));
    TRY(mr_json_double(&c->mem_share_ratio, root, "mem_share_ratio", 0, 1, err));
    TRY(mr_json_bool(&c->mem_gelu, root, "mem_use_glu_act", err));
    TRY(mr_json_bool(&c->mem_query_per_rank, root, "mem_q_for_each_tucker_rank", err));
    return check_v2(c, err);
}

static void warn_lost(const mr_config *c, const char *what) {
    for (uint32_t i = 0; i < c->memory_count; i++)
        if (c->insertions[i].destination >= c->n_layers)
            mr_log_warn(
                "%s: memory layer %u (%u:%u) is due after block %u of %u: its output is lost, "
                "as in the official code",
                what, i, c->insertions[i].source, c->insertions[i].destination,
                c->insertions[i].destination, c->n_layers);
}

static mr_status read_official(mr_config *c, const json_t *root, mr_err *err) {
    TRY(read_heads(c, root, err));
    TRY(read_sizes(c, root, err));
    TRY(read_norms(c, root, err));
    TRY(read_block(c, root, err));
    TRY(check_fixed(root, c, err));
    TRY(read_memory(c, root, err));
    TRY(mr_quant_config_parse(&c->quant, root, err));
    return mr_config_check_unknown(root, is_known, err);
}

/* The official fields say whose it is; of the others model_type does. */
static mr_status read_all(mr_config *c, const json_t *root, mr_err *err) {
    if (!json_is_object(root))
        return mr_fail(err, MR_ERR_FORMAT, "it holds %s, not an object", mr_json_type_name(root));
    const bool official = json_object_get(root, "d_model") && json_object_get(root, "n_heads");
    if (!official && json_object_get(root, "model_type")) return mr_config_read_hf(c, root, err);
    return read_official(c, root, err);
}

mr_status mr_config_parse(mr_config *out, const char *json, size_t bytes, const char *what,
                          mr_err *err) {
    json_t *root;
    *out = (mr_config){0};
    mr_status status = mr_json_parse(&root, json, bytes, what, err);
    if (status != MR_OK) return status;
    status = read_all(out, root, err);
    json_decref(root);
    if (status == MR_OK) {
        warn_lost(out, what);
        return MR_OK;
    }
    mr_config_free(out);
    return mr_fail_prefix(err, status, "%s", what);
}

void mr_config_free(mr_config *config) {
    free(config->insertions);
    mr_quant_config_free(&config->quant);
    free(config->windows);
    free(config->dense_blocks);
    *config = (mr_config){0};
}

const char *mr_memory_kind_name(mr_memory_kind kind) {
    switch (kind) {
    case MR_MEMORY_NONE:
        return "none";
    case MR_MEMORY_PKM:
        return "pkm";
    case MR_MEMORY_PLUS:
        return "memory_plus";
    case MR_MEMORY_META:
        return "memory_plus (Meta)";
    case MR_MEMORY_ULTRAMEM_V1:
        return "ultramem_v1";
    case MR_MEMORY_ULTRAMEM_V2:
        return "ultramem_v2";
    }
    return "unknown";
}
