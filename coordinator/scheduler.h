/* scheduler.h - which tokens of which sequences go into the next step: continuous batching.
 *
 * Pure bookkeeping: no I/O, no clock, no threads of its own. A sequence is one answer being written
 * (one choice of one prompt). It waits in line until every KV block it can ever need is there, then
 * runs until it is removed: nothing is preempted, so whatever has begun can end. A step takes one
 * token of every sequence that is decoding, then pieces of prompts in order of arrival, up to the
 * worker's limits.
 *
 * Up to plans_max plans are out at a time, each to be committed or abandoned, in any order; a
 * sequence is in one of them at most. With several of them the decoding sequences are dealt out
 * evenly, so that every stage of a pipeline has something to do. A plan holds sequences of one kind
 * only; two kinds take turns.
 *
 * Behind the token of a decoding sequence a plan may bring drafted ones (draft.h), as far as the
 * step has room once everybody has got what is due to him. When the step is committed they are in
 * the cache, but count for nothing: a token that is appended and equals the next of them is found
 * there, at the first that does not the rest are forgotten and written over.
 *
 * Full KV blocks of committed tokens are published (scheduler_blocks.h), and a prompt starts behind
 * the longest run of published blocks it begins with; its last token is always computed anew. What
 * a tainted step computed, and all behind it, is never published. The n choices of a prompt: the
 * first one (the leader) computes the prompt, the others (followers) wait for it and then find its
 * blocks. Order of arrival is kept strictly: a waiting follower never lets a later prompt take
 * blocks, which is why two half-admitted prompts cannot block each other.
 *
 * Threads: one owner. Memory: the scheduler owns sequences; prompts are borrowed until removal. */
#ifndef MR_COORDINATOR_SCHEDULER_H
#define MR_COORDINATOR_SCHEDULER_H
#include "common/base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mr_scheduler mr_scheduler;
typedef struct mr_sequence mr_sequence;

typedef struct {
    uint32_t kv_blocks;      /* of MR_KV_BLOCK_TOKENS tokens */
    uint32_t step_tokens;    /* most tokens of a step */
    uint32_t step_sequences; /* most sequences of a step; plans_max times as many run */
    uint32_t frame_bytes;    /* most payload bytes of a STEP frame */
    uint32_t plans_max;      /* out at a time; 0: 1 */
    uint64_t hash_seed;      /* of the index of published blocks */
} mr_scheduler_options;

typedef struct {
    uint64_t id; /* unique; what the worker's answers name */
    void *owner;
    const int32_t *prompt; /* [prompt_count >= 1] borrowed */
    uint32_t prompt_count;
    uint32_t new_tokens;   /* most tokens to be sampled; 0: the prompt is only computed */
    uint32_t chunk_tokens; /* most prompt tokens a step; 0: as many as fit */
    uint32_t single_from;  /* from this position one prompt token a step; 0: nowhere */
    uint32_t kind;         /* 0 or 1: never in one plan with the other kind */
    bool uncached;         /* computes all of its prompt, publishes nothing */
    bool shares;           /* followers will come */
    mr_sequence *leader;   /* of a follower: a sequence with the same prompt that shares */
} mr_sequence_spec;

mr_scheduler *mr_scheduler_open(const mr_scheduler_options *options);
void mr_scheduler_close(mr_scheduler *scheduler); /* NULL is fine; drops all sequences */

/* Whether a sequence of so many tokens can ever run here; MR_ERR_ARGUMENT and the figures if not.
 */
mr_status mr_scheduler_fits(const mr_scheduler *scheduler, uint64_t tokens, mr_err *err);

/* Puts a sequence at the end of the line. It must fit. */
mr_sequence *mr_scheduler_add(mr_scheduler *scheduler, const mr_sequence_spec *spec);
/* At any time, also while a plan with it is out. Frees its blocks and itself. */
void mr_scheduler_remove(mr_scheduler *scheduler, mr_sequence *sequence);

typedef struct {
    mr_sequence *sequence; /* NULL: removed since the plan was made, be it committed or not */
    void *owner;
    uint64_t id;
    const int32_t *tokens;  /* [token_count], the drafted ones at the end */
    const uint32_t *blocks; /* [block_count] */
    uint32_t position, token_count, block_count;
    bool samples;        /* a new token follows from this step */
    uint32_t drafted;    /* mr_scheduler_draft; then up to 1 + drafted new tokens do */
    uint32_t drafts_max; /* how many may be drafted: the answer has room for no more */
} mr_plan_entry;

typedef struct {
    const mr_plan_entry *entries;
    uint32_t count, tokens, blocks; /* blocks: the sum of block_count */
    uint32_t kind;
} mr_plan;

/* Admits from the line and plans the next step; NULL when there is nothing to run, or plans_max are
 * out. The plan holds until the first one made after it was committed or abandoned; an entry's
 * tokens and blocks until its sequence is removed. */
const mr_plan *mr_scheduler_plan(mr_scheduler *scheduler);
/* Adds drafted tokens to the index-th entry, once, as many of count <= drafts_max as the step has
 * room for; returns how many. The plan was made just now. */
uint32_t mr_scheduler_draft(mr_scheduler *scheduler, const mr_plan *plan, uint32_t index,
                            const int32_t *tokens, uint32_t count);
/* The plan's tokens are in the cache. is_tainted: they, and what comes behind them in these
 * sequences, are not to be shared. */
void mr_scheduler_commit(mr_scheduler *scheduler, const mr_plan *plan, bool is_tainted);
void mr_scheduler_abandon(mr_scheduler *scheduler, const mr_plan *plan); /* they are not */

/* The token sampled for a sequence whose samples entry was committed: its next input. Where tokens
 * were drafted: all that were sampled, one after the other. */
void mr_sequence_append(mr_sequence *sequence, int32_t token);
/* A held sequence is in no further plan until it is let go. */
void mr_sequence_hold(mr_sequence *sequence, bool is_held);
bool mr_sequence_is_running(const mr_sequence *sequence);
/* How many tokens of its prompt were there already when it began. */
uint32_t mr_sequence_cached_tokens(const mr_sequence *sequence);

/* How many tokens of a prompt would be found published. */
uint32_t mr_scheduler_match(const mr_scheduler *scheduler, const int32_t *prompt, uint32_t count);

typedef struct {
    uint32_t waiting, running, plans;
    uint32_t kv_blocks, kv_blocks_used, kv_blocks_idle; /* idle: published, held by nobody */
    uint64_t queued_tokens; /* prompt tokens to be computed, and 16 for each sequence */
} mr_scheduler_state;
mr_scheduler_state mr_scheduler_look(const mr_scheduler *scheduler);

#endif
