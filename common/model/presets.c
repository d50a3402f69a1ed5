/* presets.c - see presets.h.
 *
 * The published tables give width, layers, keys, key and value dimensions, top-m and insertion;
 * what they leave open is chosen here: heads of 64 or 128, SwiGLU with 8/3 of the width (the same
 * parameters as a plain FFN of four widths), 50304 tokens, a context of 2048. The insertion of the
 * 1.6B model ends inside it: published is 28:32 of 32 blocks (0..31), whose output the official
 * code loses; here it is 28:31. PKM and Memory+ are given a table of the same number of elements in
 * three layers, as in their papers; MoE comes near the same total. */
#include "common/model/presets.h"

#include "common/base/mem.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A backbone with its published memory, and the three insertion points of pkm and memory_plus. */
static const struct {
    const char *tag, *memory_name;
    uint32_t d_model, heads, layers, mlp_hidden;
    mr_memory_kind memory;
    uint32_t knum, kdim, vdim, pre_vdim, knn, mem_heads;
    double share_ratio;
    const char *insertions, *plain_insertions;
    uint32_t experts, experts_per_token, expert_hidden;
} backbones[] = {
    {"151m", "ultramem-151m-x12", 1024, 16, 12, 5504, MR_MEMORY_ULTRAMEM_V1, 1100, 256, 512, 0, 42,
     2, 1, "3:5/6:8/9:11", "3:3/6:6/9:9", 34, 2, 1536},
    {"680m", "ultramem-680m-x12", 1536, 24, 24, 8192, MR_MEMORY_ULTRAMEM_V1, 1632, 384, 768, 0, 42,
     2, 1, "3:7/8:12/13:17/18:22", "6:6/12:12/18:18", 34, 2, 2304},
    {"1.6b", "ultramem-1.6b-x12", 2048, 16, 32, 11008, MR_MEMORY_ULTRAMEM_V1, 1792, 512, 1024, 0,
     42, 2, 1, "3:7/8:12/13:17/18:22/23:27/28:31", "8:8/16:16/24:24", 34, 2, 3136},
    {"227m", "ultramemv2-227m-1.2b", 768, 12, 20, 4096, MR_MEMORY_ULTRAMEM_V2, 360, 192, 192, 192,
     32, 1, 0.5, "full", "5:5/10:10/15:15", 64, 8, 384},
    {"1b", "ultramemv2-1b-7b", 2048, 16, 16, 11008, MR_MEMORY_ULTRAMEM_V2, 528, 512, 768, 384, 128,
     1, 0.5, "full", "4:4/8:8/12:12", 64, 8, 1024},
};
enum { BACKBONES = sizeof(backbones) / sizeof(backbones[0]), KINDS = 5 };

static void set_text(char *out, size_t room, const char *text) {
    snprintf(out, room, "%s", text);
}

/* PKM and Memory+ read whole rows of d_model elements: 4 heads x 32, a table of equal size. */
static void set_plain_memory(mr_shape *shape, uint32_t which, bool shared) {
    double elements = (double)backbones[which].knum * backbones[which].knum *
                      (backbones[which].vdim + backbones[which].pre_vdim);
    const uint32_t tables = shared ? 1 : 3;
    uint32_t layers = 1;
    for (const char *at = backbones[which].insertions; *at; at++) layers += *at == '/';
    if (strcmp(backbones[which].insertions, "full") == 0) layers = backbones[which].layers;
    elements *= layers;
    shape->memory = shared ? MR_MEMORY_PLUS : MR_MEMORY_PKM;
    shape->knum = (uint32_t)lround(sqrt(elements / tables / shape->d_model));
    shape->vdim = shape->d_model;
    shape->pre_vdim = 0;
    shape->knn = 32;
    shape->mem_heads = 4;
    shape->key_expand = shape->value_expand = 1;
    shape->share_ratio = 1;
    set_text(shape->insertions, sizeof(shape->insertions), backbones[which].plain_insertions);
}

uint32_t mr_preset_count(void) {
    return BACKBONES * KINDS;
}

void mr_preset_at(mr_shape *out, uint32_t index) {
    const uint32_t which = index % BACKBONES, kind = index / BACKBONES;
    const bool v1 = backbones[which].memory == MR_MEMORY_ULTRAMEM_V1;
    assert(index < mr_preset_count());
    *out = (mr_shape){
        .d_model = backbones[which].d_model,
        .heads = backbones[which].heads,
        .kv_heads = backbones[which].heads,
        .layers = backbones[which].layers,
        .mlp_hidden = backbones[which].mlp_hidden,
        .vocab = 50304,
        .context = 2048,
        .tied = true,
        .memory = backbones[which].memory,
        .knum = backbones[which].knum,
        .kdim = backbones[which].kdim,
        .vdim = backbones[which].vdim,
        .pre_vdim = backbones[which].pre_vdim,
        .knn = backbones[which].knn,
        .mem_heads = backbones[which].mem_heads,
        .key_expand = 1,
        .value_expand = v1 ? 4 : 1,
        .share_ratio = backbones[which].share_ratio,
    };
    set_text(out->insertions, sizeof(out->insertions), backbones[which].insertions);
    set_text(out->name, sizeof(out->name), backbones[which].memory_name);
    if (kind == 0) return;
    static const char *const prefix[KINDS] = {"", "dense", "pkm", "memoryplus", "moe"};
    snprintf(out->name, sizeof(out->name), "%s-%s", prefix[kind], backbones[which].tag);
    if (kind == 2 || kind == 3) {
        set_plain_memory(out, which, kind == 3);
        return;
    }
    out->memory = MR_MEMORY_NONE;
    if (kind != 4) return;
    out->experts = backbones[which].experts;
    out->experts_per_token = backbones[which].experts_per_token;
    out->mlp_hidden = 2 * backbones[which].expert_hidden;
}

mr_status mr_preset_find(mr_shape *out, const char *name, mr_err *err) {
    for (uint32_t i = 0; i < mr_preset_count(); i++) {
        mr_preset_at(out, i);
        if (strcmp(out->name, name) == 0) return MR_OK;
    }
    return mr_fail(err, MR_ERR_ARGUMENT,
                   "there is no preset '%.80s'; 'memrack synth --list' shows them", name);
}

/* value * factor, a multiple of step and at least step. */
static uint32_t scaled(uint32_t value, double factor, uint32_t step) {
    if (value == 0) return 0;
    const double whole = round(value * factor / step);
    return whole < 1                   ? step
           : whole * step > UINT32_MAX ? UINT32_MAX / step * step
                                       : (uint32_t)whole * step;
}

static uint32_t keys_per_side(const mr_shape *shape, uint32_t memory_layers, uint64_t *reach_rows) {
    if (shape->memory == MR_MEMORY_ULTRAMEM_V1) {
        *reach_rows = (uint64_t)shape->knum * shape->knum;
        return (uint32_t)sqrt(shape->value_expand) * shape->knum;
    }
    if (shape->memory == MR_MEMORY_ULTRAMEM_V2) {
        const double all = (double)shape->knum * shape->knum * memory_layers;
        const uint32_t side = (uint32_t)sqrt(all * shape->share_ratio);
        *reach_rows = (uint64_t)side * side;
        return shape->key_expand * side;
    }
    *reach_rows = (uint64_t)shape->knum * shape->knum;
    return shape->knum;
}

/* Memory layers of a mem_insert_way that mr_config_parse accepts. */
static uint32_t memory_layers(const mr_shape *shape) {
    if (shape->memory == MR_MEMORY_NONE) return 0;
    if (strcmp(shape->insertions, "full") == 0) return shape->layers;
    uint32_t count = 1;
    for (const char *at = shape->insertions; *at; at++) count += *at == '/';
    return count;
}

/* No more rows than there are keys on a side. */
static void limit_knn(mr_shape *shape) {
    uint64_t rows;
    const uint32_t keys = keys_per_side(shape, memory_layers(shape), &rows);
    if (shape->memory != MR_MEMORY_NONE && keys > 0 && shape->knn > keys) shape->knn = keys;
}

void mr_shape_set_width(mr_shape *shape, uint32_t d_model, uint32_t heads) {
    const double factor = (double)d_model / shape->d_model;
    const uint32_t head_dim = shape->d_model / shape->heads;
    const uint32_t group = shape->heads / shape->kv_heads;
    if (heads == 0) heads = d_model % head_dim == 0 ? d_model / head_dim : shape->heads;
    shape->mlp_hidden = scaled(shape->mlp_hidden, factor, 64);
    if (shape->memory == MR_MEMORY_PKM || shape->memory == MR_MEMORY_PLUS) shape->vdim = d_model;
    shape->d_model = d_model;
    shape->heads = heads;
    shape->kv_heads = heads % group == 0 ? heads / group : heads;
}

void mr_shape_scale(mr_shape *shape, double factor) {
    const uint32_t head_dim = shape->d_model / shape->heads;
    uint32_t heads = scaled(shape->heads, factor, 1);
    uint32_t d_model = heads * head_dim;
    if (shape->heads * factor < 2) { /* too narrow for two whole heads: two smaller ones */
        heads = 2;
        d_model = 2 * scaled(shape->d_model / 2, factor, 8);
    }
    const double widths = (double)d_model / shape->d_model;
    mr_shape_set_width(shape, d_model, heads);
    shape->knum = scaled(shape->knum, factor, 1);
    shape->kdim = scaled(shape->kdim, widths, 8);
    if (shape->memory != MR_MEMORY_PKM && shape->memory != MR_MEMORY_PLUS)
        shape->vdim = scaled(shape->vdim, widths, 16);
    shape->pre_vdim = scaled(shape->pre_vdim, widths, 16);
    limit_knn(shape);
}

void mr_shape_set_layers(mr_shape *shape, uint32_t layers) {
    const uint32_t before = shape->layers;
    shape->layers = layers;
    if (shape->memory == MR_MEMORY_NONE || strcmp(shape->insertions, "full") == 0) {
        limit_knn(shape); /* fewer layers share a smaller ring */
        return;
    }
    char text[MR_INSERTION_TEXT_BYTES] = "";
    size_t used = 0;
    int64_t last = -1; /* a pair that starts at or before the end of the last one would end it */
    for (const char *at = shape->insertions; at && *at; at = strchr(at, '/')) {
        unsigned source, destination;
        if (*at == '/') at++;
        if (sscanf(at, "%u:%u", &source, &destination) != 2) break;
        const uint64_t from = (uint64_t)source * layers / before;
        uint64_t to = (uint64_t)destination * layers / before;
        if (to >= layers) to = layers - 1;
        if ((int64_t)from <= last) continue;
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%" PRIu64 ":%" PRIu64,
                                 used ? "/" : "", from, to);
        if (used >= sizeof(text)) return;
        last = (int64_t)to;
    }
    memcpy(shape->insertions, text, sizeof(text));
}

/* Everything the official code asks for that mr_config_parse cannot see: rows that must exist. */
static mr_status check_keys(const mr_shape *shape, mr_err *err) {
    uint64_t rows;
    const uint32_t count = memory_layers(shape);
    const uint32_t side = (uint32_t)sqrt(shape->value_expand);
    if (shape->memory == MR_MEMORY_ULTRAMEM_V1 && side * side != shape->value_expand)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--value-expand %u: ultramem_v1 needs a square number (1, 4, 9, ...)",
                       shape->value_expand);
    if (shape->value_expand > MR_MAX_SLOTS - 1)
        return mr_fail(err, MR_ERR_ARGUMENT, "--value-expand %u is more than %d",
                       shape->value_expand, MR_MAX_SLOTS - 1);
    const bool whole_rows = shape->memory == MR_MEMORY_PKM || shape->memory == MR_MEMORY_PLUS;
    if (whole_rows && shape->vdim != shape->d_model)
        return mr_fail(err, MR_ERR_ARGUMENT, "--vdim %u: %s needs rows of d_model = %u elements",
                       shape->vdim, mr_memory_kind_name(shape->memory), shape->d_model);
    if (!whole_rows && shape->vdim % MR_SYNTH_RANK != 0)
        return mr_fail(err, MR_ERR_ARGUMENT, "--vdim %u: two cores need an even number",
                       shape->vdim);
    const uint32_t keys = keys_per_side(shape, count, &rows);
    if (keys < shape->knn)
        return mr_fail(err, MR_ERR_ARGUMENT, "--knn %u: there are only %u keys on a side (knum %u)",
                       shape->knn, keys, shape->knum);
    const double table_rows =
        (double)shape->knum * shape->knum * (shape->memory == MR_MEMORY_ULTRAMEM_V2 ? count : 1);
    if (table_rows >= 4294967296.0 || (double)keys * keys >= 4294967296.0)
        return mr_fail(err, MR_ERR_ARGUMENT,
                       "--knum %u gives %.0f rows and %.0f indices; both must stay below 2^32",
                       shape->knum, table_rows, (double)keys * keys);
    return MR_OK;
}

static char *config_text(const mr_shape *shape) {
    const bool memory = shape->memory != MR_MEMORY_NONE, moe = shape->experts > 0;
    const bool tucker =
        shape->memory == MR_MEMORY_ULTRAMEM_V1 || shape->memory == MR_MEMORY_ULTRAMEM_V2;
    char *head = mr_format(
        "{\n"
        "  \"d_model\": %u,\n  \"n_heads\": %u,\n  \"n_kv_heads\": %u,\n  \"clip_qkv\": null,\n"
        "  \"n_layers\": %u,\n  \"mlp_ratio\": 4,\n  \"mlp_hidden_size\": %u,\n"
        "  \"activation_type\": \"swiglu\",\n  \"block_type\": \"%s\",\n"
        "  \"block_group_size\": 1,\n"
        "  \"alibi\": false,\n  \"alibi_bias_max\": 8.0,\n  \"rope\": true,\n"
        "  \"rope_full_precision\": true,\n  \"rope_theta\": 10000,\n"
        "  \"flash_attention\": false,\n"
        "  \"attention_dropout\": 0.0,\n  \"multi_query_attention\": null,\n"
        "  \"attention_layer_norm\": true,\n  \"residual_dropout\": 0.0,\n"
        "  \"embedding_dropout\": 0.0,\n  \"embedding_layer_norm\": false,\n"
        "  \"layer_norm_type\": \"rms\",\n  \"layer_norm_with_affine\": true,\n"
        "  \"layer_norm_eps\": 1e-05,\n  \"attention_layer_norm_with_affine\": true,\n"
        "  \"max_sequence_length\": %u,\n  \"include_bias\": false,\n"
        "  \"bias_for_layer_norm\": false,\n  \"scale_logits\": false,\n  \"vocab_size\": %u,\n"
        "  \"embedding_size\": null,\n  \"weight_tying\": %s,\n  \"eos_token_id\": 0,\n"
        "  \"pad_token_id\": 1,\n  \"init_device\": \"cpu\",\n  \"init_fn\": \"normal\",\n"
        "  \"init_std\": 0.02,\n  \"init_cutoff_factor\": null,\n  \"precision\": null,\n",
        shape->d_model, shape->heads, shape->kv_heads, shape->layers, shape->mlp_hidden,
        moe ? "moe" : "sequential", shape->context, shape->vocab, shape->tied ? "true" : "false");
    char *text = mr_format(
        "%s"
        "  \"moe_num_experts\": %u,\n  \"moe_top_k\": %u,\n  \"moe_mlp_impl\": \"sparse\",\n"
        "  \"moe_log_expert_assignment\": true,\n  \"moe_shared_expert\": false,\n"
        "  \"moe_lbl_in_fp32\": false,\n  \"moe_interleave\": false,\n  \"moe_loss_weight\": 0.1,\n"
        "  \"moe_zloss_weight\": null,\n  \"moe_dropless\": true,\n"
        "  \"moe_capacity_factor\": 1.25,\n  \"scale_emb_init\": false,\n"
        "  \"emb_init_std\": null,\n  \"norm_after\": false,\n  \"convert2fp32\": true,\n"
        "  \"mem_knum\": %u,\n  \"mem_kdim\": %u,\n  \"mem_vdim\": %u,\n  \"mem_knn\": %u,\n"
        "  \"mem_head\": %u,\n  \"mem_tucker_rank_penalty\": 0.001,\n"
        "  \"mem_insert_way\": \"%s\",\n  \"mem_share_ratio\": %.17g,\n  \"mem_type\": \"%s\",\n"
        "  \"mem_value_expand_time\": %u,\n  \"mem_key_expand_time\": %u,\n"
        "  \"mem_pre_vdim\": %u,\n  \"mem_log_interval\": 10,\n"
        "  \"mem_key_balance_reg_coef\": 0.0,\n  \"mem_q_for_each_tucker_rank\": %s,\n"
        "  \"mem_final_top_expand_time\": 1,\n  \"mem_output_dropout_rate\": 0.0,\n"
        "  \"mem_use_glu_act\": false,\n  \"vertical_parallel\": false,\n"
        "  \"mem_parallel_size\": 1%s\n}\n",
        head, moe ? shape->experts : 8, moe ? shape->experts_per_token : 2, shape->knum,
        shape->kdim, shape->vdim, shape->knn, shape->mem_heads,
        memory ? shape->insertions : "no_mem", shape->share_ratio,
        memory ? mr_memory_kind_name(shape->memory) : "ultramem_v2", shape->value_expand,
        shape->key_expand, shape->pre_vdim,
        shape->memory == MR_MEMORY_ULTRAMEM_V2 && shape->mem_heads > 2 ? "true" : "false",
        tucker ? ",\n  \"mem_tucker_rank\": 2,\n  \"mem_tucker_multihead\": 2"
        : shape->memory == MR_MEMORY_PKM ? ",\n  \"mem_query_bias\": true"
                                         : "");
    free(head);
    return text;
}

mr_status mr_shape_config(char **out, const mr_shape *shape, mr_err *err) {
    mr_config config;
    *out = NULL;
    char *text = config_text(shape);
    mr_status status = mr_config_parse(&config, text, strlen(text), "this shape", err);
    if (status != MR_OK) goto free_text;
    for (uint32_t i = 0; i < config.memory_count; i++)
        if (config.insertions[i].destination >= shape->layers) {
            status = mr_fail(err, MR_ERR_ARGUMENT,
                             "--insert %.80s: %u:%u ends outside the %u layers and would be lost",
                             shape->insertions, config.insertions[i].source,
                             config.insertions[i].destination, shape->layers);
            goto free_config;
        }
    if (config.memory != MR_MEMORY_NONE) status = check_keys(shape, err);
    if (status == MR_OK) {
        *out = text;
        text = NULL;
    }
free_config:
    mr_config_free(&config);
free_text:
    free(text);
    if (status == MR_ERR_FORMAT || status == MR_ERR_RANGE) status = MR_ERR_ARGUMENT;
    return status;
}

/* --- tensors ---------------------------------------------------------------------------------- */

typedef struct {
    mr_synth_tensor *items;
    uint32_t count, room;
} tensor_list;

static mr_synth_tensor *add(tensor_list *list, mr_tensor_role role, float mean, float spread,
                            uint32_t dims, const uint64_t *shape, const char *name) {
    if (list->count == list->room) {
        list->room = list->room ? 2 * list->room : 256;
        list->items = mr_realloc_array(list->items, list->room, sizeof(*list->items));
    }
    mr_synth_tensor *tensor = &list->items[list->count++];
    *tensor = (mr_synth_tensor){.role = role, .dims = dims, .mean = mean, .spread = spread};
    tensor->fill = spread > 0 ? MR_FILL_NORMAL : MR_FILL_CONSTANT;
    for (uint32_t i = 0; i < dims; i++) tensor->shape[i] = shape[i];
    set_text(tensor->name, sizeof(tensor->name), name);
    return tensor;
}

/* part is the tensor's name below transformer.KIND.index. */
static void name_part(char out[MR_SYNTH_NAME_BYTES], const char *kind, uint32_t index,
                      const char *part) {
    snprintf(out, MR_SYNTH_NAME_BYTES, "transformer.%s.%u.%s", kind, index, part);
}

static void add_matrix(tensor_list *list, mr_tensor_role role, const char *kind, uint32_t index,
                       const char *part, uint64_t rows, uint64_t columns, double spread) {
    char name[MR_SYNTH_NAME_BYTES];
    name_part(name, kind, index, part);
    add(list, role, 0, (float)spread, 2, (uint64_t[]){rows, columns}, name);
}

static void add_weight(tensor_list *list, const char *kind, uint32_t index, const char *part,
                       uint64_t width, double value) {
    char name[MR_SYNTH_NAME_BYTES];
    name_part(name, kind, index, part);
    add(list, MR_ROLE_DENSE, (float)value, 0, 1, &width, name);
}

static void add_block(tensor_list *list, const mr_shape *s, uint32_t block) {
    const char *kind = "blocks";
    const uint64_t d = s->d_model, head_dim = d / s->heads, half = s->mlp_hidden / 2;
    const double in = 1 / sqrt((double)d);
    const double residual = 1 / sqrt(2.0 * s->layers); /* 2L additions keep the stream near 1 */
    add_weight(list, kind, block, "attn_norm.weight", d, 1);
    add_matrix(list, MR_ROLE_DENSE, kind, block, "att_proj.weight", d + 2 * s->kv_heads * head_dim,
               d, in);
    add_weight(list, kind, block, "q_norm.weight", head_dim, 1);
    add_weight(list, kind, block, "k_norm.weight", head_dim, 1);
    add_matrix(list, MR_ROLE_DENSE, kind, block, "attn_out.weight", d, d, in * residual);
    add_weight(list, kind, block, "ff_norm.weight", d, 1);
    if (s->experts == 0) {
        add_matrix(list, MR_ROLE_DENSE, kind, block, "ff_proj.weight", s->mlp_hidden, d, in);
        add_matrix(list, MR_ROLE_DENSE, kind, block, "ff_out.weight", d, half,
                   residual / sqrt((double)half));
        return;
    }
    const uint64_t rows = s->experts * half;
    add_matrix(list, MR_ROLE_DENSE, kind, block, "ffn.router.layer.weight", s->experts, d, in);
    add_matrix(list, MR_ROLE_DENSE, kind, block, "ffn.experts.mlp.w1", rows, d, in);
    add_matrix(list, MR_ROLE_DENSE, kind, block, "ffn.experts.mlp.v1", rows, d, in);
    add_matrix(list, MR_ROLE_DENSE, kind, block, "ffn.experts.mlp.w2", rows, d,
               residual / sqrt((double)half));
}

static const char kind_memory[] = "mem_blocks";

static void add_plain_memory(tensor_list *list, const mr_shape *s, uint32_t layer) {
    const uint64_t d = s->d_model, queries = 2ull * s->mem_heads * s->kdim, n = s->knum;
    const double in = 1 / sqrt((double)d), key = 1 / sqrt((double)s->kdim);
    char name[MR_SYNTH_NAME_BYTES];
    if (s->memory == MR_MEMORY_PKM) {
        add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "query_proj.query_mlps.0.weight",
                   queries, d, in);
        name_part(name, kind_memory, layer, "query_proj.query_mlps.0.bias");
        add(list, MR_ROLE_DENSE, 0, 0.1f, 1, &queries, name);
        add_matrix(list, MR_ROLE_KEYS, kind_memory, layer, "keys", 2 * s->mem_heads * n, s->kdim,
                   key);
        add_matrix(list, MR_ROLE_TABLE, kind_memory, layer, "values.weight", n * n, d, 0.2);
        return;
    }
    add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "query_proj.weight", queries, d, in);
    add_weight(list, kind_memory, layer, "query_norm.weight", s->kdim, 1);
    add_weight(list, kind_memory, layer, "keys_norm.weight", s->kdim, 1);
    name_part(name, kind_memory, layer, "keys");
    add(list, MR_ROLE_KEYS, 0, (float)key, 4, (uint64_t[]){s->mem_heads, 2, n, s->kdim}, name);
    add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "swilu_projection.weight", s->vdim, d, in);
    add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "values_proj.weight", d, s->vdim,
               0.5 / sqrt((double)s->vdim));
}

/* Norm weights of kdim^-1/4 make a score of query and key about 1 in size. */
static void add_tucker_memory(tensor_list *list, const mr_shape *s, uint32_t layer,
                              uint32_t layers) {
    uint64_t rows;
    const uint64_t d = s->d_model, n = keys_per_side(s, layers, &rows);
    const bool v1 = s->memory == MR_MEMORY_ULTRAMEM_V1;
    const uint64_t queries = (!v1 && s->mem_heads > 2 ? 4ull : 2ull) * s->kdim;
    const double in = 1 / sqrt((double)d), norm = pow((double)s->kdim, -0.25);
    char name[MR_SYNTH_NAME_BYTES];
    add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "query_proj.weight", queries, d, in);
    add_weight(list, kind_memory, layer, "query_norm.weight", s->kdim, norm);
    add_weight(list, kind_memory, layer, "keys_norm.weight", s->kdim, norm);
    name_part(name, kind_memory, layer, "keys");
    add(list, MR_ROLE_KEYS, 0, (float)(1 / sqrt((double)s->kdim)), 5,
        (uint64_t[]){s->mem_heads, 2, n, s->kdim, MR_SYNTH_RANK}, name);
    for (int core = 0; core < 2; core++) {
        name_part(name, kind_memory, layer, core ? "tucker_core.1" : "tucker_core.0");
        add(list, MR_ROLE_DENSE, 0.6f, 0.3f, 3,
            (uint64_t[]){s->mem_heads, MR_SYNTH_RANK, MR_SYNTH_RANK}, name)
            ->layer = layer;
    }
    for (int side = 0; side < 2; side++) {
        name_part(name, kind_memory, layer, side ? "tucker_core_v" : "tucker_core_u");
        mr_synth_tensor *vector = add(list, MR_ROLE_DENSE, 0, 0, 4,
                                      (uint64_t[]){1, s->mem_heads, 1, MR_SYNTH_RANK}, name);
        vector->fill = side ? MR_FILL_TUCKER_V : MR_FILL_TUCKER_U;
        vector->layer = layer;
    }
    name_part(name, kind_memory, layer, "shuffle_index");
    const uint64_t virtual_rows = n * n;
    mr_synth_tensor *shuffle = add(list, MR_ROLE_INDEX, 0, 0, 1, &virtual_rows, name);
    shuffle->fill = MR_FILL_PERMUTATION;
    shuffle->side = n;
    const double values = 0.1 / sqrt((double)s->mem_heads * s->knn);
    const uint64_t slots = s->value_expand;
    if (v1) {
        add_matrix(list, MR_ROLE_TABLE, kind_memory, layer, "values_for_look_up", rows, s->vdim,
                   values);
    } else if (s->pre_vdim > 0) {
        add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "pre_values_proj.weight", s->pre_vdim,
                   d, in);
    }
    add_matrix(list, MR_ROLE_DENSE, kind_memory, layer, "values_proj.weight", d, slots * s->vdim,
               1 / sqrt((double)s->vdim));
}

void mr_shape_tensors(mr_synth_tensor **out, uint32_t *count, const mr_shape *shape) {
    tensor_list list = {0};
    const uint64_t d = shape->d_model;
    const uint32_t memories = memory_layers(shape);
    const double head = 1 / sqrt((double)d);
    add(&list, MR_ROLE_DENSE, 0, (float)head, 2, (uint64_t[]){shape->vocab, d},
        "transformer.wte.weight");
    for (uint32_t i = 0; i < shape->layers; i++) add_block(&list, shape, i);
    add(&list, MR_ROLE_DENSE, 1, 0, 1, &d, "transformer.ln_f.weight");
    if (!shape->tied)
        add(&list, MR_ROLE_DENSE, 0, (float)head, 2, (uint64_t[]){shape->vocab, d},
            "transformer.ff_out.weight");
    const uint64_t rows = (uint64_t)shape->knum * shape->knum *
                          (shape->memory == MR_MEMORY_ULTRAMEM_V2 ? memories : 1);
    const double values = 0.1 / sqrt((double)shape->mem_heads * shape->knn);
    if (shape->memory == MR_MEMORY_ULTRAMEM_V2 || shape->memory == MR_MEMORY_PLUS)
        add(&list, MR_ROLE_TABLE, 0, shape->memory == MR_MEMORY_PLUS ? 1.0f : (float)values, 2,
            (uint64_t[]){rows, shape->vdim}, "transformer.full_memory_layer.values_for_look_up");
    if (shape->memory == MR_MEMORY_ULTRAMEM_V2 && shape->pre_vdim > 0)
        add(&list, MR_ROLE_TABLE, 0, (float)(1 / sqrt((double)shape->pre_vdim)), 2,
            (uint64_t[]){rows, shape->pre_vdim},
            "transformer.full_memory_layer.pre_values_for_look_up");
    for (uint32_t i = 0; i < memories; i++) {
        if (shape->memory == MR_MEMORY_PKM || shape->memory == MR_MEMORY_PLUS)
            add_plain_memory(&list, shape, i);
        else
            add_tucker_memory(&list, shape, i, memories);
    }
    *out = list.items;
    *count = list.count;
}

uint64_t mr_synth_elements(const mr_synth_tensor *tensor) {
    uint64_t elements = 1;
    for (uint32_t i = 0; i < tensor->dims; i++) elements *= tensor->shape[i];
    return elements;
}

mr_shape_counts mr_shape_count(const mr_shape *shape) {
    mr_synth_tensor *tensors;
    uint32_t count;
    mr_shape_counts counts = {0};
    mr_shape_tensors(&tensors, &count, shape);
    for (uint32_t i = 0; i < count; i++) {
        const uint64_t elements = mr_synth_elements(&tensors[i]);
        switch (tensors[i].role) {
        case MR_ROLE_DENSE:
            counts.dense += elements;
            break;
        case MR_ROLE_KEYS:
            counts.keys += elements;
            break;
        case MR_ROLE_INDEX:
            counts.index += elements;
            break;
        case MR_ROLE_TABLE:
            counts.table += elements;
            break;
        }
    }
    free(tensors);
    return counts;
}
