/* engine.h - a loaded model that runs steps: dense weights packed, KV cache, retrieval.
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
} mr_engine_options;

mr_status mr_engine_open(mr_engine **out, const mr_engine_options *options, mr_err *err);
void mr_engine_close(mr_engine *engine);
/* The engine's compute threads, idle while the step thread waits for a retrieval: a memshard in the
 * same process may borrow them inside its handler. */
struct mr_team *mr_engine_team(mr_engine *engine);
void mr_engine_info(const mr_engine *engine, mr_wire_worker_info *out);
/* Bytes the engine will hold, by kind, before it allocates them: weights, KV cache, buffers. */
typedef struct {
    uint64_t weight_bytes, kv_bytes, buffer_bytes, index_bytes, table_bytes;
} mr_engine_memory;
mr_status mr_engine_plan(mr_engine_memory *out, const mr_engine_options *options, mr_err *err);

/* Views into a STEP payload; counts were checked against it. */
typedef struct {
    uint32_t sequence_count, token_count, block_count;
    const mr_wire_sequence *sequences; /* [sequence_count] */
    const int32_t *tokens;             /* [token_count], in sequence order */
    const uint32_t *blocks;            /* [block_count], in sequence order */
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
 * A failed step committed nothing a later step could see: run it again. */
mr_status mr_engine_step(mr_engine *engine, const mr_step *step, const mr_step_sink *sink,
                         mr_wire_done *done, mr_err *err);

#endif
