/* weights.h - everything of a model but its value tables, in the form the step reads: of the whole
 * model, or of a range of blocks (a pipeline stage), which leaves the others empty.
 * Immutable after open; shared by all threads. */
#ifndef MR_WORKER_WEIGHTS_H
#define MR_WORKER_WEIGHTS_H
#include "common/model/product_keys.h"
#include "common/model/rows.h"
#include "common/ops/ops.h"

/* Blocks [first, first + count) of a model: what one pipeline stage computes. */
typedef struct {
    uint32_t first, count;
} mr_block_range;

static inline bool mr_range_has(mr_block_range range, uint32_t block) {
    return block >= range.first && block - range.first < range.count;
}

typedef struct {
    mr_packed gate, up; /* w1, v1: [expert_hidden][d] */
    mr_packed down;     /* w2 transposed: d outputs, expert_hidden inputs */
} mr_expert;

typedef struct {
    float *attn_norm, *ff_norm;   /* [d]; ones where the norm has no weights */
    float *q_norm, *k_norm;       /* [head_dim], or of all heads together; or NULL */
    mr_packed att_proj, attn_out; /* [query_width + 2 kv][d], [d][query_width] */
    mr_packed ff_proj, ff_out;    /* [mlp_hidden][d], [d][mlp_hidden / 2]; empty where moe */
    float *att_bias, *attn_out_bias, *ff_bias, *ff_out_bias; /* of the outputs, or NULL */
    mr_packed router;                                        /* moe: [experts][d] */
    mr_expert *experts;                                      /* moe: [experts] */
    mr_packed shared_proj, shared_out, shared_gate; /* [2 shared_hidden][d], transposed; [1][d] */
} mr_block_weights;

/* One memory layer. */
typedef struct {
    mr_packed query_proj;
    float *query_bias;             /* or NULL */
    float *query_norm;             /* [kdim] or NULL */
    float *silu_bias, *value_bias; /* Memory+ as Meta published it, else NULL */
    mr_product_keys keys;
    mr_packed pre_proj;   /* [pre_width][d]; empty where not gated */
    mr_packed value_proj; /* [d][slots_out * width]; empty for pkm */
    mr_packed silu_proj;  /* memory_plus: [width][d] */
} mr_memory_weights;

typedef struct {
    mr_tensor_rows embedding;    /* mapped as it is stored; the first stage's */
    mr_packed head;              /* [head_rows][d]; the last stage's, as is final_norm */
    float *final_norm;           /* [d] */
    mr_block_weights *blocks;    /* [n_layers]; empty outside the range */
    mr_memory_weights *memories; /* [memory_count]; empty where another stage reads */
} mr_weights;

mr_status mr_weights_open(mr_weights *out, const mr_model *model, mr_block_range range,
                          mr_progress progress, void *context, mr_err *err);
void mr_weights_close(mr_weights *weights, const mr_model *model);
/* Bytes mr_weights_open will hold: packed weights, and shuffle indices apart. */
void mr_weights_plan(uint64_t *weight_bytes, uint64_t *index_bytes, const mr_model *model,
                     mr_block_range range);
/* Bytes of the largest prepared row (ops.h) that any matrix of the range asks for. */
size_t mr_weights_prepared_bytes(const mr_model *model, mr_block_range range, const mr_ops *ops);
/* What most of the weights are stored as: of the matrix with the most numbers in a block. */
mr_storage mr_weights_storage(const mr_model *model);
/* Of the plan, packed weights only, by block: [n_layers]; the head's and final norm's go to the
 * last.
 */
void mr_weights_by_block(uint64_t *bytes, const mr_model *model);

#endif
