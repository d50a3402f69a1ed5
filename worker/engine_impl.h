/* engine_impl.h - the engine's parts, shared by the files of worker/ only.
 *
 * All buffers are sized for the largest step when the engine opens. T: tokens of a step. */
#ifndef MR_WORKER_ENGINE_IMPL_H
#define MR_WORKER_ENGINE_IMPL_H
#include "common/ops/team.h"
#include "worker/engine.h"
#include "worker/recorder.h"
#include "worker/retrieval.h"
#include "worker/trace.h"
#include "worker/weights.h"

typedef struct {
    /* [T][entries] unless stated */
    uint32_t *index, *row;
    uint8_t *slot;
    float *score;                           /* [cores][T * entries] */
    float *pre;                             /* dots, tracing only */
    float *query;                           /* [T][groups * 2 * kdim] */
    float *x;                               /* [T][pre_width] */
    float *silu;                            /* [T][width], memory_plus */
    float *pooled;                          /* [T][slots_out * width] */
    float *output;                          /* [T][d] */
    float *input;                           /* [T][d], kept for memory_plus' gate and for tracing */
    int16_t *value_exponent, *dot_exponent; /* [T] */
    float *key_score;                       /* [MR_SCORE_TILE][2][n * R] */
    uint8_t *scratch;                       /* [members][scratch_bytes] of selection */
    size_t scratch_bytes;
} mr_memory_buffers;

typedef struct {
    float *x, *h, *f;              /* [T][d] residual stream, normed input, ff_norm output */
    float *qkv;                    /* [T][query_width + 2 kv] */
    float *attention;              /* [T][query_width] */
    float *ffn;                    /* [T][mlp_hidden], or of the shared expert */
    float *out;                    /* [T][d] */
    float *cosine, *sine;          /* [T][head_dim / 2] */
    uint32_t *position, *sequence; /* [T] */
    uint32_t *block_first;         /* [sequences] into step->blocks */
    float *logits;                 /* [MR_LOGIT_ROWS][head_rows] */
    float *logit_x;                /* [MR_LOGIT_ROWS][d] */
    uint8_t *prepared;             /* rows of x in the form gemm reads: [T][the largest] */
    uint64_t *select_scratch;      /* [head_rows + 32] */
    uint32_t *candidates;          /* [head_rows] */
    /* moe */
    float *router;                             /* [T][experts] */
    uint32_t *expert_index;                    /* [T][k] */
    float *expert_weight;                      /* [T][k] */
    float *expert_out;                         /* [T][k][d] */
    uint32_t *expert_slots;                    /* [T * k] tokens of one expert */
    float *expert_x, *expert_gate, *expert_up; /* [T][d], [T][F], [T][F] */
    float *shared_gate;                        /* [T] */
} mr_step_buffers;

enum { MR_LOGIT_ROWS = 64 };

struct mr_engine {
    const mr_model *model;
    const mr_config *config;
    const mr_manifest *manifest;
    const mr_ops *ops;
    mr_team *team;
    mr_weights weights;
    mr_retrieval *retrieval; /* NULL without memory layers */
    bool two_trips;
    bool topk; /* until a shard says that it does not select */
    uint32_t step_tokens_max, step_sequences_max;
    uint32_t kv_blocks;
    mr_engine_part part;
    mr_block_range blocks; /* part.blocks */
    bool has_head;         /* the last stage */
    bool has_memory;       /* some memory layer is read here */
    char numeric_class[32];
    float *kv; /* [blocks.count][2][kv_blocks][n_kv_heads][MR_KV_BLOCK_TOKENS][head_dim] */
    float *rope_frequency; /* [head_dim / 2] */
    bool *memory_added;    /* [memory_count] its output reaches the residual stream */
    int32_t *memory_at;    /* [n_layers] memory layer that reads at this block, or -1 */
    mr_step_buffers b;
    mr_memory_buffers m;
    mr_engine_output output;
    mr_engine_account account;
    uint64_t *wait_ns; /* [memory_count] of the step under way */
    const mr_trace *trace;
    mr_recorder *recorder; /* or NULL */
};

/* A loop over the team; one of little work (in multiply-adds or the like) runs here instead,
 * because waking another core takes longer. */
void mr_engine_run(mr_engine *e, mr_team_task task, void *context, uint32_t items, uint64_t work);
/* y[m][w->n] = x . w^T over the team. */
void mr_engine_gemm(mr_engine *e, float *y, size_t y_stride, const float *x, size_t x_stride,
                    uint32_t m, const mr_packed *w);
/* y[m][n] += bias of each column; NULL: nothing. */
void mr_engine_bias(mr_engine *e, float *y, const float *bias, uint32_t m, uint32_t n);
/* The SwiGLU of rows in b.f: b.ffn = f . proj^T, then y = (silu(gate) * up) . out^T. */
mr_status mr_engine_swiglu(mr_engine *e, float *y, uint32_t tokens, const mr_packed *proj,
                           const float *proj_bias, const mr_packed *out, mr_err *err);
void mr_engine_norm(const mr_engine *e, float *y, const float *x, const float *w, uint32_t n);

/* attention.c: keys and values of all tokens into the cache, then b.attention from b.qkv. */
void mr_attention(mr_engine *e, const mr_step *step, uint32_t block);

/* memory.c: input is ff_norm's output of the layer's block. begin selects and asks; finish leaves
 * what is added to the residual stream in m.output. */
mr_status mr_memory_begin(mr_engine *e, uint32_t layer, const float *input, uint32_t tokens,
                          mr_err *err);
mr_status mr_memory_finish(mr_engine *e, uint32_t layer, uint32_t tokens, mr_err *err);

/* moe.c: b.out = the experts' sum for b.f. */
mr_status mr_moe(mr_engine *e, uint32_t block, uint32_t tokens, mr_err *err);

/* sampler.c: logits [head_rows] of one position. */
mr_status mr_sample(mr_engine *e, const mr_wire_sequence *sequence, const float *logits,
                    mr_wire_sampled *out, mr_wire_logprob *top, mr_err *err);

#endif
