/* config.h - config.json of the official UltraMem code (flat ModelConfig) or of a Hugging Face
 * family, and what follows from it.
 *
 * Every field that changes the arithmetic is either implemented or refused by its name; fields that
 * never change the output are skipped. A field that is not known here is refused unless it is null,
 * false or begins with an underscore: it might change the answers.
 * Sources: the official repository's olmo/config.py, and the configuration classes of the
 * transformers package (versions 4 and 5), as described in docs/MODELS.md. */
#ifndef MR_MODEL_CONFIG_H
#define MR_MODEL_CONFIG_H
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/quant_config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whose configuration and tensor names these are. */
typedef enum {
    MR_FAMILY_OFFICIAL, /* the UltraMem authors' */
    MR_FAMILY_LLAMA,    /* Hugging Face's from here on: model_type */
    MR_FAMILY_MISTRAL,
    MR_FAMILY_OLMO,
    MR_FAMILY_OLMO2,
    MR_FAMILY_QWEN2,
    MR_FAMILY_QWEN3,
    MR_FAMILY_OLMOE,
    MR_FAMILY_MIXTRAL,
    MR_FAMILY_QWEN2_MOE,
    MR_FAMILY_QWEN3_MOE,
    MR_FAMILY_MEMORY_PLUS /* Meta's Memory+: Llama's blocks, some with a memory for an FFN */
} mr_family;

/* LayerNorm has no bias; MR_NORM_PLAIN is LayerNorm without weights. */
typedef enum { MR_NORM_RMS, MR_NORM_LAYER, MR_NORM_PLAIN } mr_norm_kind;

typedef enum { MR_ROPE_PLAIN, MR_ROPE_LINEAR, MR_ROPE_LLAMA3 } mr_rope_kind;

/* How rotary frequencies are scaled. */
typedef struct {
    mr_rope_kind kind;
    double factor;
    double low, high, original_context; /* llama3 */
} mr_rope_scaling;

enum { MR_MAX_EOS_TOKENS = 16 };

typedef enum {
    MR_MEMORY_NONE,
    MR_MEMORY_PKM,
    MR_MEMORY_PLUS, /* as the UltraMem authors wrote it */
    MR_MEMORY_META, /* as Meta published it: pkm's keys, plus' gate and projection, with biases */
    MR_MEMORY_ULTRAMEM_V1,
    MR_MEMORY_ULTRAMEM_V2
} mr_memory_kind;

/* One pair of mem_insert_way: reads ff_norm's output of block source, is due after block
 * destination. destination >= n_layers is legal and never added (a warning says so). */
typedef struct {
    uint32_t source, destination;
} mr_insertion;

typedef struct {
    mr_family family;
    uint32_t d_model, n_heads, n_kv_heads, head_dim, n_layers;
    uint32_t query_width; /* n_heads * head_dim: d_model in most */
    uint32_t mlp_hidden;  /* rows of ff_proj; the product has mlp_hidden / 2 */
    uint32_t vocab_size;  /* ids >= vocab_size are never sampled */
    uint32_t head_rows;   /* rows of the head and the embedding: embedding_size if larger */
    uint32_t context_tokens;
    mr_norm_kind norm;
    bool norm_after;   /* what attention and feed-forward give is normed, not what they take */
    bool qk_norm;      /* attention_layer_norm */
    bool qk_norm_full; /* over all heads together, not each head alone */
    bool tied;         /* weight_tying */
    bool qkv_bias, attn_out_bias, mlp_bias;
    float norm_eps;
    float clip_qkv; /* 0: none */
    double rope_theta;
    mr_rope_scaling rope_scaling;
    uint32_t *windows; /* [n_layers] positions a query sees, 0: all; NULL: all everywhere */
    int64_t eos_token, pad_token;          /* -1: none */
    int64_t eos_tokens[MR_MAX_EOS_TOKENS]; /* eos_token is the first */
    uint32_t eos_count;

    bool moe; /* block_type moe */
    uint32_t experts, experts_per_token;
    uint32_t expert_hidden; /* F = mlp_hidden / 2 */
    uint32_t shared_hidden; /* of the shared expert; 0: none */
    bool moe_renormalize;
    bool *dense_blocks; /* [n_layers] blocks of a moe model without experts; NULL: none */

    mr_memory_kind memory;
    uint32_t mem_knum, mem_kdim, mem_vdim, mem_knn, mem_head;
    uint32_t mem_pre_vdim; /* 0: no pre-values (always 0 unless v2) */
    uint32_t mem_key_expand, mem_value_expand;
    double mem_share_ratio;
    bool mem_gelu, mem_query_per_rank;
    bool mem_query_bias;                        /* pkm, meta */
    bool mem_own_tables;                        /* meta: one table a layer, not one in all */
    bool mem_silu, mem_value_proj;              /* meta: it has them */
    uint32_t mem_tucker_rank, mem_tucker_cores; /* as stated; 0: not stated, the tensors tell */
    mr_insertion *insertions;                   /* [memory_count], in map order */
    uint32_t memory_count;

    mr_quant_config quant; /* how tensors are stored */
} mr_config;

/* json: the text of config.json; what: its name for sentences. *out is zeroed on failure. */
mr_status mr_config_parse(mr_config *out, const char *json, size_t bytes, const char *what,
                          mr_err *err);
void mr_config_free(mr_config *config);
const char *mr_memory_kind_name(mr_memory_kind kind);
const char *mr_family_name(mr_family family); /* model_type, or "ultramem" */

static inline bool mr_config_is_moe(const mr_config *c, uint32_t block) {
    return c->moe && !(c->dense_blocks && c->dense_blocks[block]);
}
/* Keys without norms or cores, queries of their own for each head, scores by softmax. */
static inline bool mr_memory_is_plain(mr_memory_kind kind) {
    return kind == MR_MEMORY_PKM || kind == MR_MEMORY_PLUS || kind == MR_MEMORY_META;
}
/* false: a memory layer stands where the block's FFN would. */
static inline bool mr_config_has_ffn(const mr_config *c, uint32_t block) {
    if (c->memory != MR_MEMORY_META) return true;
    for (uint32_t i = 0; i < c->memory_count; i++)
        if (c->insertions[i].source == block) return false;
    return true;
}
static inline bool mr_config_has_dense(const mr_config *c) {
    return !c->moe || c->dense_blocks;
}
static inline uint32_t mr_config_window(const mr_config *c, uint32_t block) {
    return c->windows ? c->windows[block] : 0;
}
/* frequency[head_dim / 2], in the precision of the code the family comes from. */
void mr_config_rope(float *frequency, const mr_config *c);

#endif
