/* engine.h - a loaded model, or one pipeline stage of it, that runs steps: dense weights packed, KV
 * cache, retrieval.
 *
 * A step runs any number of sequences, each with one or more new tokens at known positions, commits
 * their keys and values to the KV blocks the caller names, and samples where asked. Results do not
 * depend on which sequences share a step, on how a prompt is cut into steps, or on threads.
 * Threads: one thread at a time calls step; the engine has a team of compute threads under it.
 * After the first steps of the largest size nothing is allocated. */
#ifndef MR_WORKER_ENGINE_H
#define MR_WORKER_ENGINE_H
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/model/model.h"
#include "common/net/fabric.h"
#include "common/ops/ops.h"
#include "proto/wire.h"
#include "worker/route.h"
#include "worker/weights.h"

typedef struct mr_engine mr_engine;

typedef struct {
    const mr_model *model;       /* borrowed until close */
    const mr_manifest *manifest; /* borrowed until close */
    const mr_ops *ops;           /* NULL: the best of this processor */
    uint32_t threads;            /* 0: one per core */
    uint32_t kv_blocks;          /* of MR_KV_BLOCK_TOKENS tokens; 0: 16 contexts or 1 GiB */
    uint32_t step_tokens_max;    /* 0: 512 */
    uint32_t step_sequences_max; /* 0: 64 */
    mr_grid grid;                /* {0, 0}: 1x1 */
    bool two_trips;              /* gate on the worker even where one trip would do */
    /* Links to the memshards, cell c on link c mod shard_count: sessions to processes, or loop
     * links to shards in this process. A model with memory layers needs at least one. */
    mr_link **shards;             /* taken over on success: closed with the engine */
    const char *const *addresses; /* [shard_count] for reconnecting; copied; NULL for loop links */
    uint32_t shard_count;
    uint32_t retrieval_timeout_ms; /* a shard silent for so long fails the step; 0: 500 */
    /* Instead of links and their grid: which peers hold which cell; copied. They are connected in
     * the background. newer_route as in worker/retrieval.h; both may be NULL. */
    const mr_route *route;
    const mr_route *(*newer_route)(void *context, uint64_t epoch);
    void *newer_context;
    /* How peers of a route are reached; as in worker/retrieval.h. */
    mr_status (*dial)(void *context, mr_link **out, const mr_route_peer *peer, int64_t deadline_ns,
                      mr_err *err);
    void *dial_context;
    uint64_t row_cache_bytes; /* hot rows of layers without a gate, kept here; 0: none */
    uint32_t spin_us; /* poll the links for so long before waiting; only with a spare core */
    bool topk;        /* the shards select, where they hold the keys */
    uint64_t seed;    /* of jitter */
    struct mr_recorder
        *recorder; /* gets what is asked for by ids (recorder.h); borrowed; or NULL */
    /* Which part of a pipeline this is; stages 0 or 1: the whole model. block_count 0: the blocks
     * that mr_stage_cut gives the stage. A stage that reads no memory layer needs no shards. */
    uint32_t stage, stages;
    uint32_t block_first, block_count;
} mr_engine_options;

/* What a stage computes, and what it hands on. */
typedef struct {
    uint32_t stage, stages; /* 0, 1: the whole model */
    mr_block_range blocks;
    uint32_t columns; /* d_model: of a token's hidden state */
    /* The memory layer whose output comes in or goes out beside the hidden states, because its skip
     * window is cut here; or -1. */
    int32_t pending_in, pending_out;
    uint32_t memory_count; /* memory layers of the whole model */
    uint32_t step_tokens_max;
} mr_engine_part;

mr_status mr_engine_open(mr_engine **out, const mr_engine_options *options, mr_err *err);
void mr_engine_close(mr_engine *engine);
/* The engine's compute threads, idle while the step thread waits for a retrieval: a memshard in the
 * same process may borrow them inside its handler. */
struct mr_team *mr_engine_team(mr_engine *engine);
/* Between steps, from the step thread: a newer route of the same grid. Copied; nothing to do for an
 * engine that reads no memory layer. */
mr_status mr_engine_set_route(mr_engine *engine, const mr_route *route, mr_err *err);
uint64_t mr_engine_route_epoch(const mr_engine *engine); /* in use; 0: static or none */
/* Waits until every cell has a replica that is connected. */
mr_status mr_engine_reach(mr_engine *engine, int64_t deadline_ns, mr_err *err);
void mr_engine_info(const mr_engine *engine, mr_wire_worker_info *out);
const mr_engine_part *mr_engine_get_part(const mr_engine *engine);
/* Kernels and storage type of the dense weights, "avx512/bf16": engines of one class give the same
 * bits for the dense layers, and so does every class with the same type (ops.h). */
const char *mr_engine_numeric_class(const mr_engine *engine);
/* Bytes the engine will hold, by kind, before it allocates them: weights, KV cache, buffers. */
typedef struct {
    uint64_t weight_bytes, kv_bytes, buffer_bytes, index_bytes, table_bytes;
} mr_engine_memory;
mr_status mr_engine_plan(mr_engine_memory *out, const mr_engine_options *options, mr_err *err);

/* Views into a STEP payload; counts were checked against it. Stages after the first also take what
 * the one before them gave: the residual stream after its blocks, and the output of the memory
 * layer part.pending_in where there is one; else NULL. Borrowed for the call. */
typedef struct {
    uint32_t sequence_count, token_count, block_count;
    const mr_wire_sequence *sequences; /* [sequence_count] */
    const int32_t *tokens;             /* [token_count], in sequence order */
    const uint32_t *blocks;            /* [block_count], in sequence order */
    const float *hidden, *pending;     /* [token_count][columns] */
    uint32_t flags;                    /* mr_step_flag */
    int64_t deadline_ns;               /* by mr_now_ns; 0: none. Retrievals keep to it */
} mr_step;

/* What a step reports; called in the thread that runs the step. Either may be NULL. */
typedef struct {
    /* logits: [columns] of one position, borrowed for the call */
    void (*logits)(void *context, uint32_t sequence, uint32_t position, const float *logits,
                   uint32_t columns);
    void (*sampled)(void *context, uint32_t sequence, const mr_wire_sampled *sampled,
                    const mr_wire_logprob *top);
    void *context;
} mr_step_sink;

/* Checks everything against the engine's limits first (MR_ERR_RANGE and a sentence: nothing ran).
 * A failed step committed nothing a later step could see: run it again. Only the last stage calls
 * the sink. */
mr_status mr_engine_step(mr_engine *engine, const mr_step *step, const mr_step_sink *sink,
                         mr_wire_done *done, mr_err *err);

/* After a step of any stage but the last: what the next one takes. [token_count][columns], borrowed
 * until the next step; pending is NULL unless part.pending_out is a layer. */
typedef struct {
    const float *hidden, *pending;
} mr_engine_output;
mr_engine_output mr_engine_hidden(const mr_engine *engine);

/* Of the last step, failed or not: counters, and the exposed wait of each memory layer this stage
 * read, [more->layers], all of the model; borrowed until the next step. */
typedef struct {
    mr_wire_done done;
    mr_wire_done_more more;
    const uint64_t *wait_ns;
} mr_engine_account;
const mr_engine_account *mr_engine_last(const mr_engine *engine);

#endif
