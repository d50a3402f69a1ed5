/* scheduler.c - see scheduler.h. */
#include "coordinator/scheduler.h"

#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/scheduler_blocks.h"
#include "proto/wire.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = MR_KV_BLOCK_TOKENS };

/* What followers wait for: the leader's prompt. */
typedef struct {
    bool is_done; /* computed, or the leader left: followers compute what they do not find */
    uint32_t references, tokens;
} prefix;

typedef struct {
    mr_plan plan;
    mr_plan_entry *entries; /* [step_max] */
    bool is_out;
} slot;

struct mr_sequence {
    mr_scheduler *scheduler;
    mr_sequence_spec spec;
    mr_sequence *next, *previous; /* in the line */
    slot *slot;                   /* of the last plan it was in */
    bool running, is_out, is_held, is_tainted;
    uint32_t position;  /* tokens in the cache */
    uint32_t generated; /* tokens appended */
    uint32_t cached;    /* tokens found at the start */
    /* The last token and those drafted behind it; of these, [ahead, ahead_end) are in the cache and
     * may yet be appended. */
    int32_t fed[1 + MR_MAX_DRAFT_TOKENS];
    uint32_t ahead, ahead_end;
    int32_t recent[BLOCK]; /* appended tokens, by position modulo BLOCK */
    prefix *shared;
    uint32_t block_count;
    uint32_t *blocks;   /* [block_count] once running */
    uint32_t published; /* leading blocks that are published, or equal to published ones */
    uint64_t chain;     /* the number of the last of them */
};

struct mr_scheduler {
    mr_scheduler_options options;
    mr_sequence *first, *last; /* the line */
    uint32_t waiting;
    mr_sequence **running; /* [running_max] in order of admission */
    uint32_t running_count, running_max;
    uint32_t step_max; /* sequences of one step */
    uint32_t cursor;   /* where the next step starts to collect decoding sequences */
    kv_pool *pool;
    slot *slots; /* [plans_max] */
    uint32_t plans_out;
    uint32_t last_kind;
    uint64_t queued_tokens;
};

mr_scheduler *mr_scheduler_open(const mr_scheduler_options *options) {
    mr_scheduler *s = mr_alloc(sizeof(*s));
    s->options = *options;
    if (s->options.plans_max == 0) s->options.plans_max = 1;
    s->step_max = options->step_sequences;
    if (s->step_max > options->step_tokens) s->step_max = options->step_tokens;
    s->running_max = s->step_max * s->options.plans_max;
    s->running = mr_alloc_array(s->running_max, sizeof(*s->running));
    s->slots = mr_alloc_array(s->options.plans_max, sizeof(*s->slots));
    for (uint32_t i = 0; i < s->options.plans_max; i++) {
        s->slots[i].entries = mr_alloc_array(s->step_max, sizeof(mr_plan_entry));
        s->slots[i].plan.entries = s->slots[i].entries;
    }
    s->pool = kv_pool_open(options->kv_blocks, options->hash_seed);
    return s;
}

void mr_scheduler_close(mr_scheduler *s) {
    if (!s) return;
    while (s->first) mr_scheduler_remove(s, s->first);
    while (s->running_count > 0) mr_scheduler_remove(s, s->running[s->running_count - 1]);
    for (uint32_t i = 0; i < s->options.plans_max; i++) free(s->slots[i].entries);
    kv_pool_close(s->pool);
    free(s->slots);
    free(s->running);
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

/* What a sequence still counts for in queued_tokens. */
static uint64_t weight_of(const mr_sequence *q) {
    const uint32_t prompt = q->spec.prompt_count;
    return BLOCK + (uint64_t)(q->position < prompt ? prompt - q->position : 0);
}

static void move_to(mr_scheduler *s, mr_sequence *q, uint32_t position) {
    s->queued_tokens -= weight_of(q);
    q->position = position;
    s->queued_tokens += weight_of(q);
    if (q->shared && q->spec.shares && position >= q->shared->tokens) q->shared->is_done = true;
}

/* The last token of a prompt is computed anew: its logits are wanted. */
static uint32_t shareable_blocks(uint32_t prompt_count) {
    return (prompt_count - 1) / BLOCK;
}

mr_sequence *mr_scheduler_add(mr_scheduler *s, const mr_sequence_spec *spec) {
    mr_sequence *q = mr_alloc(sizeof(*q));
    assert(spec->prompt_count > 0 && spec->kind < 2);
    assert(mr_scheduler_fits(s, tokens_of(spec), NULL) == MR_OK);
    q->scheduler = s;
    q->spec = *spec;
    q->block_count = (uint32_t)blocks_for(tokens_of(spec));
    if (spec->leader) {
        assert(spec->leader->shared && spec->leader->spec.prompt_count == spec->prompt_count);
        q->shared = spec->leader->shared;
        q->shared->references++;
        q->spec.leader = NULL; /* it may go before its followers do */
    } else if (spec->shares) {
        const uint32_t tokens = shareable_blocks(spec->prompt_count) * BLOCK;
        q->shared = mr_alloc(sizeof(*q->shared));
        *q->shared = (prefix){tokens == 0, 1, tokens};
    }
    q->previous = s->last;
    if (s->last)
        s->last->next = q;
    else
        s->first = q;
    s->last = q;
    s->waiting++;
    s->queued_tokens += weight_of(q);
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

static void release_prefix(mr_sequence *q) {
    prefix *p = q->shared;
    if (!p) return;
    if (q->spec.shares) p->is_done = true; /* whatever it has come to */
    if (--p->references == 0) free(p);
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
    s->queued_tokens -= weight_of(q);
    if (q->running) {
        forget_running(s, q);
        /* A step that is out may still write here; whoever gets a block next is in a later step,
         * and workers run steps in order. The end of a chain becomes idle first. */
        for (uint32_t i = q->block_count; i-- > 0;) kv_pool_release(s->pool, q->blocks[i]);
        for (uint32_t i = 0; q->slot && i < q->slot->plan.count; i++)
            if (q->slot->entries[i].sequence == q) q->slot->entries[i].sequence = NULL;
    } else
        unlink_waiting(s, q);
    release_prefix(q);
    free(q->blocks);
    free(q);
}

/* Takes the blocks for the sequence at the head of the line; false: not yet. */
static bool admit(mr_scheduler *s, mr_sequence *q) {
    uint32_t idle = 0, found = 0;
    uint64_t chain = 0;
    if (s->running_count == s->running_max) return false;
    if (q->shared && !q->spec.shares && !q->shared->is_done) return false;
    const uint32_t most = q->spec.uncached ? 0 : shareable_blocks(q->spec.prompt_count);
    found = kv_pool_match(s->pool, q->spec.prompt, most, NULL, &idle, &chain);
    if (q->block_count - found > kv_pool_available(s->pool) - idle) return false;
    unlink_waiting(s, q);
    q->blocks = mr_alloc_array(q->block_count, sizeof(*q->blocks));
    kv_pool_match(s->pool, q->spec.prompt, found, q->blocks, &idle, &chain);
    for (uint32_t i = 0; i < found; i++) kv_pool_hold(s->pool, q->blocks[i]);
    for (uint32_t i = found; i < q->block_count; i++) q->blocks[i] = kv_pool_take(s->pool);
    q->published = found;
    q->chain = chain;
    q->cached = found * BLOCK;
    q->running = true;
    s->running[s->running_count++] = q;
    move_to(s, q, q->cached);
    return true;
}

static uint32_t known_tokens(const mr_sequence *q) {
    return q->spec.prompt_count + q->generated;
}

static bool is_decoding(const mr_sequence *q) {
    return q->position >= q->spec.prompt_count;
}

static bool is_ready(const mr_sequence *q, uint32_t kind) {
    return q->spec.kind == kind && !q->is_out && !q->is_held && q->position < known_tokens(q);
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

/* What a STEP of the plan takes, with room for so many more sequences. */
static uint64_t frame_bytes(const mr_plan *plan, uint32_t more) {
    return sizeof(mr_wire_step) + (uint64_t)(plan->count + more) * sizeof(mr_wire_sequence) +
           4ull * (plan->tokens + plan->blocks);
}

/* A token that ends the answer is never fed, so none is drafted where it may be. */
static uint32_t drafts_max(const mr_sequence *q) {
    const uint32_t after_next = q->generated + 1;
    if (after_next >= q->spec.new_tokens) return 0;
    const uint32_t left = q->spec.new_tokens - after_next;
    return left < MR_MAX_DRAFT_TOKENS ? left : MR_MAX_DRAFT_TOKENS;
}

/* Adds at most `wanted` tokens of q to the plan; false: no room for even one. */
static bool put(const mr_scheduler *s, slot *to, mr_sequence *q, uint32_t wanted) {
    mr_plan *plan = &to->plan;
    const uint32_t room = s->options.step_tokens - plan->tokens;
    if (wanted > room) wanted = room;
    if (wanted == 0 || plan->count == s->step_max) return false;
    const uint64_t used = frame_bytes(plan, 1);
    uint32_t blocks = 0;
    for (;; wanted /= 2) { /* a smaller piece may still fit into the frame */
        if (wanted == 0) return false;
        blocks = (uint32_t)blocks_for(q->position + wanted);
        if (used + 4ull * (wanted + blocks) <= s->options.frame_bytes) break;
    }
    const bool decoding = is_decoding(q);
    to->entries[plan->count++] = (mr_plan_entry){
        .sequence = q,
        .owner = q->spec.owner,
        .id = q->spec.id,
        .tokens = decoding ? q->fed : q->spec.prompt + q->position,
        .blocks = q->blocks,
        .position = q->position,
        .token_count = wanted,
        .block_count = blocks,
        .samples = q->spec.new_tokens > 0 && q->position + wanted == known_tokens(q),
        .drafts_max = decoding ? drafts_max(q) : 0,
    };
    plan->tokens += wanted;
    plan->blocks += blocks;
    q->slot = to;
    q->is_out = true;
    q->ahead = q->ahead_end = 0;
    return true;
}

static slot *slot_of(mr_scheduler *s, const mr_plan *plan) {
    slot *to = s->slots;
    while (&to->plan != plan) to++;
    assert(to->is_out);
    return to;
}

uint32_t mr_scheduler_draft(mr_scheduler *s, const mr_plan *plan, uint32_t index,
                            const int32_t *tokens, uint32_t count) {
    slot *to = slot_of(s, plan);
    mr_plan_entry *e = &to->entries[index];
    const uint64_t used = frame_bytes(plan, 0);
    uint32_t blocks = 0;
    assert(index < plan->count && e->sequence && e->drafted == 0 && count <= e->drafts_max);
    if (count > s->options.step_tokens - plan->tokens)
        count = s->options.step_tokens - plan->tokens;
    for (; count > 0; count--) {
        blocks = (uint32_t)blocks_for(e->position + 1ull + count);
        if (used + 4ull * (count + blocks - e->block_count) <= s->options.frame_bytes) break;
    }
    if (count == 0) return 0;
    assert(blocks <= e->sequence->block_count);
    memcpy(e->sequence->fed + 1, tokens, count * sizeof(*tokens));
    to->plan.tokens += count;
    to->plan.blocks += blocks - e->block_count;
    e->block_count = blocks;
    e->token_count += count;
    e->drafted = count;
    return count;
}

/* An equal part of the decoding sequences for each plan that can be out. */
static uint32_t decoding_share(const mr_scheduler *s) {
    uint32_t decoding = 0;
    if (s->options.plans_max == 1) return UINT32_MAX;
    for (uint32_t i = 0; i < s->running_count; i++)
        decoding += is_decoding(s->running[i]) && !s->running[i]->is_held;
    return (decoding + s->options.plans_max - 1) / s->options.plans_max;
}

static bool fill(mr_scheduler *s, slot *to, uint32_t kind) {
    const uint32_t start = s->running_count ? s->cursor % s->running_count : 0;
    const uint32_t share = decoding_share(s);
    uint32_t left_out = UINT32_MAX;
    to->plan.kind = kind;
    to->plan.count = to->plan.tokens = to->plan.blocks = 0;
    for (uint32_t i = 0; i < s->running_count; i++) {
        const uint32_t at = (start + i) % s->running_count;
        mr_sequence *q = s->running[at];
        if (is_decoding(q) && is_ready(q, kind) && (to->plan.count >= share || !put(s, to, q, 1)) &&
            left_out == UINT32_MAX)
            left_out = at;
    }
    if (to->plan.count > 0) /* who was left out comes first next time */
        s->cursor = left_out == UINT32_MAX ? 0 : left_out;
    for (uint32_t i = 0; i < s->running_count; i++) {
        mr_sequence *q = s->running[i];
        if (!is_decoding(q) && is_ready(q, kind)) put(s, to, q, chunk_of(q));
    }
    return to->plan.count > 0;
}

const mr_plan *mr_scheduler_plan(mr_scheduler *s) {
    if (s->plans_out == s->options.plans_max) return NULL;
    slot *to = s->slots;
    while (to->is_out) to++;
    while (s->first && admit(s, s->first))
        ;
    if (!fill(s, to, 1 - s->last_kind) && !fill(s, to, s->last_kind)) return NULL;
    s->last_kind = to->plan.kind;
    to->is_out = true;
    s->plans_out++;
    return &to->plan;
}

static int32_t token_at(const mr_sequence *q, uint32_t position) {
    return position < q->spec.prompt_count ? q->spec.prompt[position] : q->recent[position % BLOCK];
}

static void publish(mr_scheduler *s, mr_sequence *q) {
    int32_t tokens[BLOCK];
    while ((q->published + 1) * BLOCK <= q->position) {
        const uint32_t first = q->published * BLOCK;
        for (uint32_t i = 0; i < BLOCK; i++) tokens[i] = token_at(q, first + i);
        q->chain = kv_pool_publish(s->pool, q->blocks[q->published], q->chain, tokens);
        q->published++;
    }
}

/* So many more of its known tokens are in the cache. */
static void advance(mr_scheduler *s, mr_sequence *q, uint32_t tokens) {
    move_to(s, q, q->position + tokens);
    if (!q->is_tainted && !q->spec.uncached) publish(s, q);
}

/* Back from being out; NULL entries are of sequences that have gone. */
static slot *take_back(mr_scheduler *s, const mr_plan *plan) {
    slot *from = slot_of(s, plan);
    from->is_out = false;
    s->plans_out--;
    for (uint32_t i = 0; i < plan->count; i++)
        if (from->entries[i].sequence) from->entries[i].sequence->is_out = false;
    return from;
}

void mr_scheduler_commit(mr_scheduler *s, const mr_plan *plan, bool is_tainted) {
    const slot *from = take_back(s, plan);
    for (uint32_t i = 0; i < plan->count; i++) {
        const mr_plan_entry *e = &from->entries[i];
        if (!e->sequence) continue;
        e->sequence->is_tainted |= is_tainted;
        e->sequence->ahead = 1;
        e->sequence->ahead_end = 1 + e->drafted;
        advance(s, e->sequence, e->token_count - e->drafted);
    }
}

void mr_scheduler_abandon(mr_scheduler *s, const mr_plan *plan) {
    take_back(s, plan);
}

void mr_sequence_append(mr_sequence *q, int32_t token) {
    assert(q->generated < q->spec.new_tokens && q->position == known_tokens(q));
    const bool is_there = q->ahead < q->ahead_end && q->fed[q->ahead++] == token;
    q->fed[0] = q->recent[q->position % BLOCK] = token;
    q->generated++;
    if (is_there)
        advance(q->scheduler, q, 1);
    else
        q->ahead_end = 0;
}

void mr_sequence_hold(mr_sequence *q, bool is_held) {
    q->is_held = is_held;
}

bool mr_sequence_is_running(const mr_sequence *q) {
    return q->running;
}

uint32_t mr_sequence_cached_tokens(const mr_sequence *q) {
    return q->cached;
}

uint32_t mr_scheduler_match(const mr_scheduler *s, const int32_t *prompt, uint32_t count) {
    uint32_t idle;
    uint64_t chain;
    return BLOCK * kv_pool_match(s->pool, prompt, shareable_blocks(count), NULL, &idle, &chain);
}

mr_scheduler_state mr_scheduler_look(const mr_scheduler *s) {
    return (mr_scheduler_state){.waiting = s->waiting,
                                .running = s->running_count,
                                .plans = s->plans_out,
                                .kv_blocks = s->options.kv_blocks,
                                .kv_blocks_used = s->options.kv_blocks - kv_pool_available(s->pool),
                                .kv_blocks_idle = kv_pool_idle(s->pool),
                                .queued_tokens = s->queued_tokens};
}
