/* config.h - config.json of the official UltraMem code (flat ModelConfig), and what follows from
 * it.
 *
 * Every field that changes the arithmetic is either implemented or refused by its name; fields that
 * never change the output are skipped. A field that is not known here is refused unless it is null,
 * false or begins with an underscore: it might change the answers.
 * Source: the official repository's olmo/config.py as described in docs/MODELS.md. */
#ifndef MR_MODEL_CONFIG_H
#define MR_MODEL_CONFIG_H
#include "common/base/limits.h"
#include "common/base/status.h"
#include "common/model/quant_config.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum { MR_NORM_RMS, MR_NORM_LAYER } mr_norm_kind;

typedef enum {
    MR_MEMORY_NONE,
    MR_MEMORY_PKM,
    MR_MEMORY_PLUS,
    MR_MEMORY_ULTRAMEM_V1,
    MR_MEMORY_ULTRAMEM_V2
} mr_memory_kind;

/* One pair of mem_insert_way: reads ff_norm's output of block source, is due after block
 * destination. destination >= n_layers is legal and never added (a warning says so). */
typedef struct {
    uint32_t source, destination;
} mr_insertion;

typedef struct {
    uint32_t d_model, n_heads, n_kv_heads, head_dim, n_layers;
    uint32_t mlp_hidden; /* rows of ff_proj; the product has mlp_hidden / 2 */
    uint32_t vocab_size; /* ids >= vocab_size are never sampled */
    uint32_t head_rows;  /* rows of the head and the embedding: embedding_size if larger */
    uint32_t context_tokens;
    mr_norm_kind norm;
    bool qk_norm; /* attention_layer_norm */
    bool tied;    /* weight_tying */
    float norm_eps;
    double rope_theta;
    int64_t eos_token, pad_token; /* -1: none */

    bool moe; /* block_type moe */
    uint32_t experts, experts_per_token;
    uint32_t expert_hidden; /* F = mlp_hidden / 2 */
    bool moe_renormalize;

    mr_memory_kind memory;
    uint32_t mem_knum, mem_kdim, mem_vdim, mem_knn, mem_head;
    uint32_t mem_pre_vdim; /* 0: no pre-values (always 0 unless v2) */
    uint32_t mem_key_expand, mem_value_expand;
    double mem_share_ratio;
    bool mem_gelu, mem_query_per_rank;
    bool mem_query_bias;                        /* pkm */
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

#endif
