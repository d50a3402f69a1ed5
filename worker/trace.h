/* trace.h - what happens inside a step, for `memrack logits --trace`. Tracing makes the worker
 * select and gate itself (two trips) and computes memory layers whose output is lost too. */
#ifndef MR_WORKER_TRACE_H
#define MR_WORKER_TRACE_H
#include "worker/engine.h"

typedef struct {
    uint32_t layer, tokens, entries, cores;
    const uint32_t *index;       /* [tokens][entries] virtual index after the shuffle */
    const uint32_t *row;         /* [tokens][entries] table row */
    const float *score;          /* [cores][tokens * entries] */
    const float *pre;            /* [tokens][entries] dot before GELU; NULL where not gated */
    const float *input, *output; /* [tokens][d_model] */
} mr_memory_trace;

typedef struct {
    uint32_t block, tokens, experts; /* experts: per token */
    const uint32_t *index;           /* [tokens][experts], best first */
    const float *weight;             /* [tokens][experts] */
    const float *input, *output;     /* [tokens][d_model] */
} mr_moe_trace;

/* Borrowed for the call; tokens are those of the step, in its order. */
typedef struct {
    void (*memory)(void *context, const mr_memory_trace *trace);
    void (*moe)(void *context, const mr_moe_trace *trace);
    void *context;
} mr_trace;

/* NULL ends tracing. Set before the first step; borrowed until the engine closes. */
void mr_engine_set_trace(mr_engine *engine, const mr_trace *trace);

#endif
