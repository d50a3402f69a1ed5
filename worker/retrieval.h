/* retrieval.h - the worker's side of a memory layer's table: ask the shards, add up what they
 * answer.
 *
 * begin sends, finish waits and adds: what the caller computes in between hides the trip. One
 * retrieval is under way at a time. Answers are integers, so the order in which they come, the
 * number of shards and the grid never show in the result (docs/ARCHITECTURE.md). Threads: the step
 * thread only; it progresses the links itself inside begin, progress and finish. Deadlines: a shard
 * that owes answers and stays silent for timeout_ms fails the retrieval. */
#ifndef MR_WORKER_RETRIEVAL_H
#define MR_WORKER_RETRIEVAL_H
#include "common/model/grid.h"
#include "common/model/manifest.h"
#include "common/net/fabric.h"

typedef struct mr_retrieval mr_retrieval;

typedef struct {
    mr_link **links;              /* [count]; taken over */
    const char *const *addresses; /* [count] or NULL (loop links: never reconnected); copied */
    uint32_t count;               /* cell c is asked from link c mod count */
    mr_grid grid;
    mr_digest digest;
    uint32_t timeout_ms;
    uint32_t tokens_max, entries_max, cores_max, slots_width_max; /* of any layer: buffer sizes */
} mr_retrieval_options;

/* What a layer wants for a batch. All arrays are borrowed until finish. */
typedef struct {
    uint32_t layer, tokens;
    uint32_t entries; /* K, per token */
    uint32_t cores, slots, width, pre_width;
    uint64_t table_rows;
    uint32_t accumulator_bits;
    bool gated, gelu, two_trips;
    const uint32_t *row;           /* [tokens][entries] */
    const uint8_t *slot;           /* [tokens][entries]; all 0 where slots is 1 */
    const float *score;            /* [cores][tokens * entries], raw */
    const float *x;                /* [tokens][pre_width]; gated */
    const int16_t *value_exponent; /* e [tokens] */
    const int16_t *dot_exponent;   /* d [tokens]; gated */
} mr_retrieval_request;

mr_status mr_retrieval_open(mr_retrieval **out, const mr_retrieval_options *options, mr_err *err);
void mr_retrieval_close(mr_retrieval *retrieval);

mr_status mr_retrieval_begin(mr_retrieval *r, const mr_retrieval_request *request, mr_err *err);
mr_status mr_retrieval_progress(mr_retrieval *r,
                                mr_err *err); /* takes what has come; never waits */
/* out: [tokens][slots][width] fp32, each the one rounding of an exact sum. dot: [tokens][entries]
 * the gate's dots as fp32 (two trips only), or NULL. */
mr_status mr_retrieval_finish(mr_retrieval *r, float *out, float *dot, mr_err *err);
/* Forgets a retrieval under way; late answers are dropped. */
void mr_retrieval_abandon(mr_retrieval *r);

typedef struct {
    uint64_t wait_ns, bytes_up, bytes_down;
} mr_retrieval_stats;
mr_retrieval_stats mr_retrieval_take_stats(mr_retrieval *r); /* since the last call */

#endif
