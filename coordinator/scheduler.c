/* scheduler.c - see scheduler.h. */
#include "coordinator/scheduler.h"

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "proto/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = MR_KV_BLOCK_TOKENS };

/* The blocks a prompt fills, held while any of its choices is alive. */
typedef enum { PREFIX_BUILDING, PREFIX_READY, PREFIX_BROKEN } prefix_state;
typedef struct {
    prefix_state state; /* broken: the leader left early; followers compute for themselves */
    uint32_t references, count;
    uint32_t blocks[];
} prefix;

struct mr_sequence {
    mr_sequence_spec spec;
    mr_sequence *next, *previous; /* in the line */
    bool running;
    uint32_t position;  /* tokens in the cache */
    uint32_t generated; /* tokens appended */
    int32_t last_token;
    prefix *shared;
    uint32_t shared_count; /* leading blocks that belong to the prefix */
    uint32_t block_count;
    uint32_t *blocks; /* [block_count] once running */
};

struct mr_scheduler {
    mr_scheduler_options options;
    mr_sequence *first, *last; /* the line */
    uint32_t waiting;
    mr_sequence **running; /* [step_sequences] in order of admission */
    uint32_t running_count, running_max;
    uint32_t cursor; /* where the next step starts to collect decoding sequences */
    uint32_t *free_blocks;
    uint32_t free_count;
    mr_plan_entry *entries; /* [step_sequences] */
    mr_plan plan;
    bool planned;
};

mr_scheduler *mr_scheduler_open(const mr_scheduler_options *options) {
    mr_scheduler *s = mr_alloc(sizeof(*s));
    s->options = *options;
    s->running_max = options->step_sequences;
    if (s->running_max > options->step_tokens) s->running_max = options->step_tokens;
    s->running = mr_alloc_array(s->running_max, sizeof(*s->running));
    s->entries = mr_alloc_array(s->running_max, sizeof(*s->entries));
    s->plan.entries = s->entries;
    s->free_blocks = mr_alloc_array(options->kv_blocks, sizeof(*s->free_blocks));
    s->free_count = options->kv_blocks;
    for (uint32_t i = 0; i < options->kv_blocks; i++)
        s->free_blocks[i] = options->kv_blocks - 1 - i; /* the first to go is block 0 */
    return s;
}

void mr_scheduler_close(mr_scheduler *s) {
    if (!s) return;
    while (s->first) mr_scheduler_remove(s, s->first);
    while (s->running_count > 0) mr_scheduler_remove(s, s->running[0]);
    free(s->running);
    free(s->entries);
    free(s->free_blocks);
    free(s);
}

static uint64_t blocks_for(uint64_t tokens) {
    return (tokens + BLOCK - 1) / BLOCK;
}

mr_status mr_scheduler_fits(const mr_scheduler *s, uint64_t tokens, mr_err *err) {
    const uint64_t blocks = blocks_for(tokens);
    const uint64_t fixed = sizeof(mr_wire_step) + sizeof(mr_wire_sequence) + 4;
    if (blocks > s->options.kv_blocks)
        return mr_fail(
            err, MR_ERR_ARGUMENT, "%llu tokens need %llu KV blocks of %d tokens; the worker has %u",
            (unsigned long long)tokens, (unsigned long long)blocks, BLOCK, s->options.kv_blocks);
    if (fixed + 4 * blocks > s->options.frame_bytes)
        return mr_fail(err, MR_ERR_ARGUMENT, "%llu tokens are more than a step can name",
                       (unsigned long long)tokens);
    return MR_OK;
}

/* The last sampled token is never fed back, so it needs no room. */
static uint64_t tokens_of(const mr_sequence_spec *spec) {
    return (uint64_t)spec->prompt_count + (spec->new_tokens > 0 ? spec->new_tokens - 1 : 0);
}

mr_sequence *mr_scheduler_add(mr_scheduler *s, const mr_sequence_spec *spec) {
    mr_sequence *q = mr_alloc(sizeof(*q));
    assert(spec->prompt_count > 0 && mr_scheduler_fits(s, tokens_of(spec), NULL) == MR_OK);
    q->spec = *spec;
    q->block_count = (uint32_t)blocks_for(tokens_of(spec));
    if (spec->leader) {
        assert(spec->leader->shared && spec->leader->spec.prompt_count == spec->prompt_count);
        q->shared = spec->leader->shared;
        q->shared->references++;
        q->spec.leader = NULL; /* it may go before its followers do */
    } else if (spec->shares) {
        /* the block of the last prompt token is never shared: its logits must be computed anew */
        const uint32_t count = (spec->prompt_count - 1) / BLOCK;
        q->shared = mr_alloc(sizeof(prefix) + count * sizeof(uint32_t));
        *q->shared = (prefix){PREFIX_BUILDING, 1, count};
    }
    q->previous = s->last;
    if (s->last)
        s->last->next = q;
    else
        s->first = q;
    s->last = q;
    s->waiting++;
    return q;
}

static void unlink_waiting(mr_scheduler *s, mr_sequence *q) {
    if (q->previous)
        q->previous->next = q->next;
    else
        s->first = q->next;
    if (q->next)
        q->next->previous = q->previous;
    else
        s->last = q->previous;
    q->next = q->previous = NULL;
    s->waiting--;
}

static void give_back(mr_scheduler *s, const uint32_t *blocks, uint32_t count) {
    for (uint32_t i = count; i-- > 0;) s->free_blocks[s->free_count++] = blocks[i];
    assert(s->free_count <= s->options.kv_blocks);
}

static void release_prefix(mr_scheduler *s, mr_sequence *q) {
    prefix *p = q->shared;
    if (!p) return;
    const bool built_by_q = q->spec.shares && q->running;
    if (p->state == PREFIX_BUILDING && q->spec.shares) {
        p->state = PREFIX_BROKEN; /* the leader goes before it is done */
        if (built_by_q) give_back(s, p->blocks, p->count);
    }
    if (--p->references > 0) return;
    if (p->state == PREFIX_READY) give_back(s, p->blocks, p->count);
    free(p);
}

static void forget_running(mr_scheduler *s, const mr_sequence *q) {
    uint32_t at = 0;
    while (s->running[at] != q) at++;
    assert(at < s->running_count);
    s->running_count--;
    memmove(s->running + at, s->running + at + 1, (s->running_count - at) * sizeof(*s->running));
    if (s->cursor > at) s->cursor--;
}

void mr_scheduler_remove(mr_scheduler *s, mr_sequence *q) {
    if (q->running) {
        forget_running(s, q);
        give_back(s, q->blocks + q->shared_count, q->block_count - q->shared_count);
        for (uint32_t i = 0; i < s->plan.count; i++)
            if (s->entries[i].sequence == q) s->entries[i].sequence = NULL;
    } else
        unlink_waiting(s, q);
    release_prefix(s, q);
    free(q->blocks);
    free(q);
}

/* Takes the blocks for the sequence at the head of the line; false: not yet. */
static bool admit(mr_scheduler *s, mr_sequence *q) {
    prefix *p = q->shared;
    const bool follows = p && !q->spec.shares && p->state != PREFIX_BROKEN;
    if (s->running_count == s->running_max) return false;
    if (follows && p->state == PREFIX_BUILDING && p->count > 0) return false;
    const uint32_t borrowed = follows ? p->count : 0;
    if (q->block_count - borrowed > s->free_count) return false;
    unlink_waiting(s, q);
    q->blocks = mr_alloc_array(q->block_count, sizeof(*q->blocks));
    if (borrowed) memcpy(q->blocks, p->blocks, borrowed * sizeof(*q->blocks));
    for (uint32_t i = borrowed; i < q->block_count; i++)
        q->blocks[i] = s->free_blocks[--s->free_count];
    q->position = borrowed * BLOCK;
    q->shared_count = borrowed;
    if (p && q->spec.shares) {
        if (p->count) memcpy(p->blocks, q->blocks, p->count * sizeof(*q->blocks));
        q->shared_count = p->count;
    }
    q->running = true;
    s->running[s->running_count++] = q;
    return true;
}

static uint32_t known_tokens(const mr_sequence *q) {
    return q->spec.prompt_count + q->generated;
}

static bool is_decoding(const mr_sequence *q) {
    return q->position >= q->spec.prompt_count;
}

/* How many prompt tokens of q may go into one step. */
static uint32_t chunk_of(const mr_sequence *q) {
    uint32_t count = q->spec.prompt_count - q->position;
    if (q->spec.chunk_tokens && count > q->spec.chunk_tokens) count = q->spec.chunk_tokens;
    if (q->spec.single_from) {
        if (q->position >= q->spec.single_from)
            count = 1;
        else if (count > q->spec.single_from - q->position)
            count = q->spec.single_from - q->position;
    }
    return count;
}

/* Adds at most `wanted` tokens of q to the plan; false: no room for even one. */
static bool put(mr_scheduler *s, mr_sequence *q, uint32_t wanted) {
    mr_plan *plan = &s->plan;
    const uint32_t room = s->options.step_tokens - plan->tokens;
    if (wanted > room) wanted = room;
    if (wanted == 0 || plan->count == s->running_max) return false;
    const uint64_t used = sizeof(mr_wire_step) +
                          (uint64_t)(plan->count + 1) * sizeof(mr_wire_sequence) +
                          4ull * (plan->tokens + plan->blocks);
    uint32_t blocks = 0;
    for (;; wanted /= 2) { /* a smaller piece may still fit into the frame */
        if (wanted == 0) return false;
        blocks = (uint32_t)blocks_for(q->position + wanted);
        if (used + 4ull * (wanted + blocks) <= s->options.frame_bytes) break;
    }
    const bool decoding = is_decoding(q);
    s->entries[plan->count++] = (mr_plan_entry){
        .sequence = q,
        .owner = q->spec.owner,
        .id = q->spec.id,
        .tokens = decoding ? &q->last_token : q->spec.prompt + q->position,
        .blocks = q->blocks,
        .position = q->position,
        .token_count = wanted,
        .block_count = blocks,
        .samples = q->spec.new_tokens > 0 && q->position + wanted == known_tokens(q),
    };
    plan->tokens += wanted;
    plan->blocks += blocks;
    return true;
}

const mr_plan *mr_scheduler_plan(mr_scheduler *s) {
    assert(!s->planned);
    while (s->first && admit(s, s->first))
        ;
    s->plan.count = s->plan.tokens = s->plan.blocks = 0;
    const uint32_t start = s->running_count ? s->cursor % s->running_count : 0;
    uint32_t left_out = UINT32_MAX;
    for (uint32_t i = 0; i < s->running_count; i++) {
        const uint32_t at = (start + i) % s->running_count;
        mr_sequence *q = s->running[at];
        if (is_decoding(q) && q->position < known_tokens(q) && !put(s, q, 1) &&
            left_out == UINT32_MAX)
            left_out = at;
    }
    s->cursor = left_out == UINT32_MAX ? 0 : left_out; /* who was left out comes first next time */
    for (uint32_t i = 0; i < s->running_count; i++) {
        mr_sequence *q = s->running[i];
        if (!is_decoding(q)) put(s, q, chunk_of(q));
    }
    if (s->plan.count == 0) return NULL;
    s->planned = true;
    return &s->plan;
}

void mr_scheduler_commit(mr_scheduler *s) {
    assert(s->planned);
    s->planned = false;
    for (uint32_t i = 0; i < s->plan.count; i++) {
        mr_sequence *q = s->entries[i].sequence;
        if (!q) continue;
        q->position += s->entries[i].token_count;
        prefix *p = q->shared;
        if (p && q->spec.shares && p->state == PREFIX_BUILDING && q->position >= p->count * BLOCK)
            p->state = PREFIX_READY;
    }
}

void mr_scheduler_abandon(mr_scheduler *s) {
    assert(s->planned);
    s->planned = false;
}

void mr_sequence_append(mr_sequence *q, int32_t token) {
    assert(q->generated < q->spec.new_tokens && q->position == known_tokens(q));
    q->last_token = token;
    q->generated++;
}

bool mr_sequence_is_running(const mr_sequence *q) {
    return q->running;
}

mr_scheduler_state mr_scheduler_look(const mr_scheduler *s) {
    return (mr_scheduler_state){s->waiting, s->running_count, s->options.kv_blocks,
                                s->options.kv_blocks - s->free_count};
}
