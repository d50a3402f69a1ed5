/* Goal: every sequence that fits is computed once, in order, within the worker's limits; whatever a
 * step reads from the KV cache is what its sequence put there, or an equal prefix of another one.
 * Method: a few hand-made timelines, then seeded random ones with several plans out, watched by a
 * shadow of the cache that holds the tokens themselves. */
#include "common/base/limits.h"
#include "common/base/mem.h"
#include "coordinator/scheduler.h"
#include "proto/wire.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const int32_t prompt[4096];

static mr_scheduler *open_small(uint32_t blocks, uint32_t tokens, uint32_t sequences) {
    return mr_scheduler_open(
        &(mr_scheduler_options){blocks, tokens, sequences, MR_MAX_FRAME_BYTES, 1, 0});
}

static mr_sequence *add(mr_scheduler *s, uint64_t id, uint32_t count, uint32_t new_tokens) {
    return mr_scheduler_add(
        s, &(mr_sequence_spec){
               .id = id, .prompt = prompt, .prompt_count = count, .new_tokens = new_tokens});
}

static void test_prefill_is_cut_and_decoding_goes_first(void **state) {
    (void)state;
    mr_scheduler *s = open_small(100, 20, 8);
    mr_sequence *a = add(s, 1, 10, 5);
    mr_sequence *b = add(s, 2, 50, 5);
    const mr_plan *p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 2);
    assert_int_equal(p->entries[0].id, 1);
    assert_int_equal(p->entries[0].token_count, 10);
    assert_true(p->entries[0].samples);
    assert_int_equal(p->entries[1].token_count, 10);
    assert_false(p->entries[1].samples);
    mr_scheduler_commit(s, p, false);
    mr_sequence_append(a, 7);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].id, 1);
    assert_int_equal(p->entries[0].tokens[0], 7);
    assert_int_equal(p->entries[0].position, 10);
    assert_int_equal(p->entries[1].position, 10);
    assert_int_equal(p->entries[1].token_count, 19);
    mr_scheduler_abandon(s, p); /* the same again */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[1].position, 10);
    mr_scheduler_commit(s, p, false);
    mr_scheduler_remove(s, a);
    mr_scheduler_remove(s, b);
    assert_null(mr_scheduler_plan(s));
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
    mr_scheduler_close(s);
}

static void test_admission_waits_for_all_blocks(void **state) {
    (void)state;
    mr_err err;
    mr_scheduler *s = open_small(4, 64, 8);
    mr_sequence *a = add(s, 1, 16, 33); /* 48 tokens: 3 blocks */
    mr_sequence *b = add(s, 2, 17, 1);  /* 2 blocks: must wait */
    mr_sequence *c = add(s, 3, 1, 1);   /* would fit, but keeps its place */
    const mr_plan *p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 1);
    assert_int_equal(mr_scheduler_look(s).waiting, 2);
    mr_scheduler_remove(s, a); /* while the plan is out */
    assert_null(p->entries[0].sequence);
    mr_scheduler_commit(s, p, false);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 2);
    mr_scheduler_abandon(s, p);
    mr_scheduler_remove(s, b);
    mr_scheduler_remove(s, c);
    assert_int_equal(mr_scheduler_fits(s, 64, &err), MR_OK);
    assert_int_equal(mr_scheduler_fits(s, 65, &err), MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "need 5 KV blocks"));
    assert_int_equal(mr_scheduler_fits(s, UINT64_MAX / 2, &err), MR_ERR_ARGUMENT);
    mr_scheduler_close(s);
}

static void test_choices_share_the_prompts_blocks(void **state) {
    (void)state;
    mr_scheduler *s = open_small(8, 64, 8);
    const mr_sequence_spec first = {
        .id = 1, .prompt = prompt, .prompt_count = 48, .new_tokens = 2, .shares = true};
    mr_sequence *leader = mr_scheduler_add(s, &first);
    mr_sequence_spec next = first;
    next.shares = false;
    next.leader = leader;
    next.id = 2;
    mr_sequence *second = mr_scheduler_add(s, &next);
    next.id = 3;
    mr_sequence *third = mr_scheduler_add(s, &next);
    const mr_plan *p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 1); /* followers wait for the prompt */
    assert_int_equal(p->entries[0].token_count, 48);
    mr_scheduler_commit(s, p, false);
    mr_scheduler_remove(s, leader); /* done at its first token; the prompt's blocks stay */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 2);
    assert_int_equal(p->entries[0].position, 32);
    assert_int_equal(p->entries[0].token_count, 16);
    assert_true(p->entries[0].samples);
    assert_memory_equal(p->entries[0].blocks, p->entries[1].blocks, 2 * sizeof(uint32_t));
    assert_int_not_equal(p->entries[0].blocks[2], p->entries[1].blocks[2]);
    mr_scheduler_commit(s, p, false);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 2 + 2 * 2);
    mr_scheduler_remove(s, second);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 2 + 2);
    mr_scheduler_remove(s, third);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
    mr_scheduler_close(s);
}

static void test_a_leader_that_leaves_early_leaves_nothing(void **state) {
    (void)state;
    for (int running = 0; running < 2; running++) {
        mr_scheduler *s = open_small(8, 16, 8);
        mr_sequence_spec spec = {
            .id = 1, .prompt = prompt, .prompt_count = 48, .new_tokens = 2, .shares = true};
        mr_sequence *leader = mr_scheduler_add(s, &spec);
        spec.shares = false;
        spec.leader = leader;
        spec.id = 2;
        mr_sequence *follower = mr_scheduler_add(s, &spec);
        if (running) {
            const mr_plan *p = mr_scheduler_plan(s);
            assert_non_null(p);
            mr_scheduler_commit(s, p, false);
        }
        mr_scheduler_remove(s, leader);
        const mr_plan *p = mr_scheduler_plan(s);
        assert_int_equal(p->entries[0].id, 2);
        assert_int_equal(p->entries[0].position, running ? 16 : 0);
        mr_scheduler_commit(s, p, false);
        mr_scheduler_remove(s, follower);
        assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
        mr_scheduler_close(s);
    }
}

static void test_logits_chunks(void **state) {
    (void)state;
    static const uint32_t wanted[] = {5, 5, 1, 1, 1};
    mr_scheduler *s = open_small(8, 64, 8);
    mr_sequence *a = mr_scheduler_add(
        s,
        &(mr_sequence_spec){
            .id = 1, .prompt = prompt, .prompt_count = 13, .chunk_tokens = 5, .single_from = 10});
    for (size_t i = 0; i < 5; i++) {
        const mr_plan *p = mr_scheduler_plan(s);
        assert_int_equal(p->entries[0].token_count, wanted[i]);
        assert_false(p->entries[0].samples);
        mr_scheduler_commit(s, p, false);
    }
    assert_null(mr_scheduler_plan(s));
    mr_scheduler_remove(s, a);
    mr_scheduler_close(s);
}

static void test_frames_stay_small_and_everyone_gets_a_turn(void **state) {
    (void)state;
    const uint32_t frame = sizeof(mr_wire_step) + 2 * (sizeof(mr_wire_sequence) + 4 + 4 * 20);
    mr_scheduler *s = mr_scheduler_open(&(mr_scheduler_options){100, 64, 8, frame, 1, 0});
    mr_sequence *q[3];
    uint32_t turns[3] = {0};
    for (uint32_t i = 0; i < 3; i++) q[i] = add(s, i, 16 * 19, 17);
    for (int step = 0; step < 400; step++) {
        const mr_plan *p = mr_scheduler_plan(s);
        if (!p) break;
        assert_true(sizeof(mr_wire_step) + p->count * sizeof(mr_wire_sequence) +
                        4 * (p->tokens + p->blocks) <=
                    frame);
        mr_sequence *sampled[3];
        uint32_t count = 0;
        for (uint32_t i = 0; i < p->count; i++)
            if (p->entries[i].samples) {
                turns[p->entries[i].id]++;
                sampled[count++] = p->entries[i].sequence;
            }
        mr_scheduler_commit(s, p, false);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t who = 0;
            while (q[who] != sampled[i]) who++;
            if (turns[who] < 17) mr_sequence_append(sampled[i], 1);
        }
    }
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(turns[i], 17);
    mr_scheduler_close(s);
}

static void test_a_prompt_starts_behind_what_is_known(void **state) {
    (void)state;
    int32_t text[64];
    for (int i = 0; i < 64; i++) text[i] = i;
    mr_scheduler *s = open_small(8, 64, 8);
    mr_sequence_spec spec = {.id = 1, .prompt = text, .prompt_count = 32, .new_tokens = 17};
    mr_sequence *a = mr_scheduler_add(s, &spec);
    assert_int_equal(mr_scheduler_match(s, text, 64), 0);
    for (int32_t next = 32; next <= 48; next++) { /* its answer goes on as the text does */
        const mr_plan *p = mr_scheduler_plan(s);
        mr_scheduler_commit(s, p, false);
        if (next < 48) mr_sequence_append(a, next);
    }
    assert_int_equal(mr_scheduler_match(s, text, 64), 48); /* while it runs */
    mr_scheduler_remove(s, a);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_idle, 3);
    assert_int_equal(mr_scheduler_match(s, text, 48), 32); /* the last token is computed anew */
    assert_int_equal(mr_scheduler_match(s, text + 1, 48), 0);
    spec = (mr_sequence_spec){.id = 2, .prompt = text, .prompt_count = 64, .new_tokens = 1};
    mr_sequence *b = mr_scheduler_add(s, &spec);
    const mr_plan *p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].position, 48);
    assert_int_equal(mr_sequence_cached_tokens(b), 48);
    mr_scheduler_commit(s, p, false);
    mr_scheduler_remove(s, b);
    spec = (mr_sequence_spec){.id = 3, .prompt = prompt, .prompt_count = 16 * 7, .new_tokens = 1};
    mr_sequence *c = mr_scheduler_add(s, &spec); /* needs seven of eight: the ends go first */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].position, 0);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_idle, 1);
    mr_scheduler_abandon(s, p);
    mr_scheduler_remove(s, c);
    assert_int_equal(mr_scheduler_match(s, text, 64), 16);
    mr_scheduler_close(s);
}

static void test_nothing_tainted_is_shared(void **state) {
    (void)state;
    mr_scheduler *s = open_small(16, 32, 8);
    mr_sequence *a = add(s, 1, 64, 1);
    const mr_plan *p = mr_scheduler_plan(s);
    mr_scheduler_commit(s, p, false);
    p = mr_scheduler_plan(s);
    mr_scheduler_commit(s, p, true); /* its second half */
    assert_int_equal(mr_scheduler_match(s, prompt, 80), 32);
    mr_scheduler_remove(s, a);
    assert_int_equal(mr_scheduler_match(s, prompt, 80), 32);
    mr_scheduler_close(s);
}

static void test_plans_share_out_the_sequences(void **state) {
    (void)state;
    mr_scheduler *s =
        mr_scheduler_open(&(mr_scheduler_options){100, 64, 8, MR_MAX_FRAME_BYTES, .plans_max = 3});
    mr_sequence *q[7];
    for (uint32_t i = 0; i < 7; i++) q[i] = add(s, i, 1, 9);
    const mr_plan *first = mr_scheduler_plan(s); /* all prompts */
    assert_int_equal(first->count, 7);
    assert_null(mr_scheduler_plan(s));
    mr_scheduler_commit(s, first, false);
    for (uint32_t i = 0; i < 7; i++) mr_sequence_append(q[i], 1);
    const mr_plan *out[3];
    uint32_t seen = 0;
    for (int i = 0; i < 3; i++) {
        out[i] = mr_scheduler_plan(s);
        assert_true(out[i]->count <= 3 && out[i]->count >= 1);
        for (uint32_t k = 0; k < out[i]->count; k++) seen |= 1u << out[i]->entries[k].id;
    }
    assert_int_equal(seen, 0x7f);
    assert_null(mr_scheduler_plan(s));
    assert_int_equal(mr_scheduler_look(s).plans, 3);
    mr_scheduler_commit(s, out[1], false); /* in any order */
    mr_scheduler_abandon(s, out[0]);
    const mr_plan *again = mr_scheduler_plan(s);
    assert_int_equal(again->entries[0].position, 1);
    mr_scheduler_commit(s, again, false);
    mr_scheduler_commit(s, out[2], false);
    mr_scheduler_close(s);
}

static void test_kinds_and_holds(void **state) {
    (void)state;
    mr_scheduler *s = open_small(100, 64, 8);
    mr_sequence *q[4];
    for (uint32_t i = 0; i < 4; i++)
        q[i] = mr_scheduler_add(
            s, &(mr_sequence_spec){
                   .id = i, .prompt = prompt, .prompt_count = 40, .new_tokens = 9, .kind = i % 2});
    mr_sequence_hold(q[2], true);
    uint32_t turns[4] = {0};
    for (int i = 0; i < 6; i++) {
        const mr_plan *p = mr_scheduler_plan(s);
        for (uint32_t k = 0; k < p->count; k++) {
            assert_int_equal(p->entries[k].id % 2, p->kind);
            turns[p->entries[k].id]++;
        }
        mr_scheduler_abandon(s, p);
    }
    assert_int_equal(turns[0], 3);
    assert_int_equal(turns[1], 3);
    assert_int_equal(turns[2], 0);
    mr_sequence_hold(q[2], false);
    for (int i = 0; i < 2; i++) {
        const mr_plan *p = mr_scheduler_plan(s);
        for (uint32_t k = 0; k < p->count; k++) turns[p->entries[k].id]++;
        mr_scheduler_abandon(s, p);
    }
    assert_int_equal(turns[2], 1);
    mr_scheduler_close(s);
}

static void test_drafts_go_in_last_and_count_when_appended(void **state) {
    (void)state;
    int32_t text[64], guess[8];
    for (int i = 0; i < 64; i++) text[i] = i;
    mr_scheduler *s = open_small(16, 12, 8);
    mr_sequence_spec spec = {.id = 1, .prompt = text, .prompt_count = 11, .new_tokens = 40};
    mr_sequence *a = mr_scheduler_add(s, &spec);
    const mr_plan *p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].drafts_max, 0); /* a prompt */
    mr_scheduler_commit(s, p, false);
    mr_sequence_append(a, 11);
    for (int i = 0; i < 8; i++) guess[i] = 12 + i;
    guess[6] = 99;
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].drafts_max, 32);
    assert_int_equal(mr_scheduler_draft(s, p, 0, guess, 8), 8);
    assert_int_equal(p->entries[0].token_count, 9);
    assert_int_equal(p->entries[0].drafted, 8);
    assert_int_equal(p->entries[0].block_count, 2);
    assert_int_equal(p->tokens, 9);
    assert_int_equal(p->blocks, 2);
    for (int i = 0; i < 7; i++) assert_int_equal(p->entries[0].tokens[i], 11 + i);
    mr_scheduler_commit(s, p, false);
    assert_int_equal(mr_scheduler_match(s, text, 64), 0); /* committed are 12 tokens */
    assert_null(mr_scheduler_plan(s));                    /* it waits for what was sampled */
    for (int32_t i = 12; i < 18; i++) {
        mr_sequence_append(a, i); /* found in the cache */
        assert_null(mr_scheduler_plan(s));
        assert_int_equal(mr_scheduler_match(s, text, 64), i < 15 ? 0 : 16);
    }
    mr_sequence_append(a, 18); /* not the guess */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].position, 18);
    assert_int_equal(p->entries[0].token_count, 1);
    assert_int_equal(p->entries[0].tokens[0], 18);
    mr_scheduler_abandon(s, p); /* with no draft that could be mistaken for one */
    spec = (mr_sequence_spec){.id = 2, .prompt = text + 16, .prompt_count = 20, .new_tokens = 1};
    mr_sequence *b = mr_scheduler_add(s, &spec);
    p = mr_scheduler_plan(s); /* the prompt takes all the room */
    assert_int_equal(p->count, 2);
    assert_int_equal(p->tokens, 12);
    assert_int_equal(mr_scheduler_draft(s, p, 0, guess, 8), 0);
    mr_scheduler_commit(s, p, true);
    mr_sequence_append(a, 19);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->tokens, 1 + 9);
    assert_int_equal(mr_scheduler_draft(s, p, 0, guess, 8), 2);
    mr_scheduler_abandon(s, p); /* neither these */
    mr_scheduler_remove(s, b);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].position, 19);
    assert_int_equal(p->entries[0].drafted, 0);
    guess[0] = 20;
    assert_int_equal(mr_scheduler_draft(s, p, 0, guess, 1), 1);
    mr_scheduler_remove(s, a); /* in mid-step */
    mr_scheduler_commit(s, p, false);
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
    mr_scheduler_close(s);
}

static void test_no_draft_reaches_beyond_an_answer(void **state) {
    (void)state;
    const int32_t guess[8] = {9, 9, 9, 9, 9, 9, 9, 9};
    mr_scheduler *s = open_small(1, 64, 8); /* 16 tokens, all there is */
    mr_sequence *a = add(s, 1, 12, 5);
    mr_scheduler_commit(s, mr_scheduler_plan(s), false);
    for (uint32_t left = 4; left > 0; left--) {
        mr_sequence_append(a, 0);
        const mr_plan *p = mr_scheduler_plan(s);
        assert_int_equal(p->entries[0].drafts_max, left - 1);
        assert_int_equal(mr_scheduler_draft(s, p, 0, guess, left - 1), left - 1);
        mr_scheduler_commit(s, p, false);
    }
    mr_scheduler_remove(s, a);
    mr_scheduler_close(s);
}

/* --- random timelines ------------------------------------------------------------------------- */

enum { SEQUENCES = 60, KV_BLOCKS = 40, PLANS_MAX = 4, TAINT = 1 << 24, PROMPT_MAX = 200 };
typedef enum { FATE_COMMIT, FATE_TAINT, FATE_ABANDON } fate;

typedef struct {
    mr_sequence *sequence;
    mr_sequence_spec spec;
    int32_t tokens[PROMPT_MAX + 64]; /* what it is made of, as far as known */
    uint32_t position, sampled, tainted_from;
    bool begun, is_out, is_held;
} shadow;

typedef struct {
    const mr_plan *plan; /* NULL: free */
    fate fate;
} out_plan;

typedef struct {
    mr_scheduler *s;
    mr_scheduler_options limits;
    shadow all[SEQUENCES];
    out_plan out[PLANS_MAX];
    int32_t memory[KV_BLOCKS][MR_KV_BLOCK_TOKENS];
    uint32_t added, ended, seed;
    uint64_t cached, accepted;
} timeline;

static uint32_t random_below(uint32_t *seed, uint32_t bound) {
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % bound;
}

static int32_t *place(timeline *t, const mr_plan_entry *e, uint32_t position) {
    const uint32_t block = e->blocks[position / MR_KV_BLOCK_TOKENS];
    assert_true(block < KV_BLOCKS);
    return &t->memory[block][position % MR_KV_BLOCK_TOKENS];
}

/* What the step reads is what belongs there; then it writes, as a worker would, in plan order. */
static void run_entry(timeline *t, const mr_plan_entry *e, fate f) {
    shadow *w = &t->all[e->id];
    if (!w->begun) t->cached += w->position = e->position; /* what was found published */
    w->begun = true;
    assert_false(w->is_out || w->is_held);
    assert_int_equal(e->position, w->position);
    assert_true(e->token_count >= 1);
    assert_true(e->block_count * MR_KV_BLOCK_TOKENS >= e->position + e->token_count);
    for (uint32_t i = 0; i < e->position; i++)
        assert_int_equal(*place(t, e, i), w->tokens[i] | (i >= w->tainted_from ? TAINT : 0));
    if (f == FATE_TAINT && e->position < w->tainted_from) w->tainted_from = e->position;
    const uint32_t known = e->token_count - e->drafted;
    for (uint32_t i = 0; i < e->token_count; i++) {
        const uint32_t at = e->position + i;
        if (i < known) assert_int_equal(e->tokens[i], w->tokens[at]);
        *place(t, e, at) = e->tokens[i] | (at >= w->tainted_from ? TAINT : 0);
    }
    assert_int_equal(e->samples, e->position + known == w->spec.prompt_count + w->sampled);
    w->is_out = true;
}

/* Nobody reads or writes what another sequence in a plan that is out writes. */
static void check_apart(const timeline *t) {
    uint64_t writer[KV_BLOCKS];
    memset(writer, 0xff, sizeof(writer));
    for (int pass = 0; pass < 2; pass++)
        for (int o = 0; o < PLANS_MAX; o++)
            for (uint32_t i = 0; t->out[o].plan && i < t->out[o].plan->count; i++) {
                const mr_plan_entry *e = &t->out[o].plan->entries[i];
                if (!e->sequence) continue;
                const uint32_t first = e->position / MR_KV_BLOCK_TOKENS;
                for (uint32_t b = pass ? 0 : first; b < (pass ? first : e->block_count); b++) {
                    assert_int_equal(writer[e->blocks[b]], UINT64_MAX);
                    if (pass == 0) writer[e->blocks[b]] = e->id;
                }
            }
}

static void add_group(timeline *t) {
    const uint32_t choices = 1 + random_below(&t->seed, 4), flavour = random_below(&t->seed, 3);
    mr_sequence_spec spec = {.prompt_count = 1 + random_below(&t->seed, PROMPT_MAX),
                             .new_tokens = 1 + random_below(&t->seed, 60),
                             .kind = random_below(&t->seed, 8) == 0,
                             .uncached = random_below(&t->seed, 10) == 0,
                             .shares = choices > 1};
    const uint32_t fork_at = random_below(&t->seed, PROMPT_MAX);
    const uint32_t first = t->added;
    for (uint32_t c = 0; c < choices && t->added < SEQUENCES; c++) {
        shadow *w = &t->all[t->added];
        *w = (shadow){.tainted_from = UINT32_MAX};
        for (uint32_t i = 0; i < PROMPT_MAX + 64; i++) /* known texts that part somewhere */
            w->tokens[i] = (int32_t)(i < fork_at ? flavour * 1000 + i : first * 7 + flavour * i);
        spec.id = t->added++;
        spec.prompt = w->tokens;
        w->spec = spec;
        w->sequence = mr_scheduler_add(t->s, &spec);
        if (c == 0) spec.leader = w->sequence;
        spec.shares = false;
    }
}

static void finish(timeline *t, shadow *w) {
    mr_scheduler_remove(t->s, w->sequence);
    w->sequence = NULL;
    t->ended++;
}

/* Guesses, right up to somewhere, for those who decode. */
static void draft_some(timeline *t, const mr_plan *p) {
    for (uint32_t i = 0; i < p->count; i++) {
        const mr_plan_entry *e = &p->entries[i];
        int32_t guess[MR_MAX_DRAFT_TOKENS];
        if (e->drafts_max == 0 || random_below(&t->seed, 2) == 0) continue;
        const uint32_t count = 1 + random_below(&t->seed, e->drafts_max);
        const uint32_t right = random_below(&t->seed, count + 3);
        for (uint32_t k = 0; k < count; k++)
            guess[k] = t->all[e->id].tokens[e->position + 1 + k] + (k >= right);
        const uint32_t had = p->tokens;
        const uint32_t got = mr_scheduler_draft(t->s, p, i, guess, count);
        assert_true(got <= count && p->tokens == had + got && e->drafted == got);
        assert_true(got == count || p->tokens == t->limits.step_tokens);
    }
}

/* What a worker samples: up to the first that is no guess. */
static void take_samples(timeline *t, shadow *w, const mr_plan_entry *e, const int32_t *guess) {
    for (uint32_t k = 0; k <= e->drafted; k++) {
        const int32_t token = w->tokens[w->position];
        if (++w->sampled == w->spec.new_tokens) {
            finish(t, w);
            return;
        }
        mr_sequence_append(w->sequence, token);
        if (k == e->drafted || guess[k] != token) return;
        w->position++;
        t->accepted++;
    }
}

static void settle(timeline *t, out_plan *o) {
    mr_plan_entry done[16];
    const uint32_t count = o->plan->count;
    int32_t guesses[16][MR_MAX_DRAFT_TOKENS];
    memcpy(done, o->plan->entries, count * sizeof(*done));
    for (uint32_t i = 0; i < count; i++)
        if (done[i].sequence)
            memcpy(guesses[i], done[i].tokens + done[i].token_count - done[i].drafted,
                   done[i].drafted * sizeof(int32_t));
    if (o->fate == FATE_ABANDON)
        mr_scheduler_abandon(t->s, o->plan);
    else
        mr_scheduler_commit(t->s, o->plan, o->fate == FATE_TAINT);
    for (uint32_t i = 0; i < count; i++) {
        shadow *w = &t->all[done[i].id];
        w->is_out = false;
        if (!done[i].sequence || o->fate == FATE_ABANDON) continue;
        w->position += done[i].token_count - done[i].drafted;
        if (!done[i].samples) continue;
        assert_true(w->position >= w->spec.prompt_count);
        take_samples(t, w, &done[i], guesses[i]);
    }
    o->plan = NULL;
}

static void plan_one(timeline *t, out_plan *o) {
    const mr_plan *p = mr_scheduler_plan(t->s);
    if (!p) return;
    const uint32_t mood = random_below(&t->seed, 20);
    *o = (out_plan){p, mood == 1 ? FATE_ABANDON : mood == 2 ? FATE_TAINT : FATE_COMMIT};
    draft_some(t, p);
    assert_true(p->count >= 1 && p->count <= t->limits.step_sequences);
    assert_true(p->tokens <= t->limits.step_tokens);
    for (uint32_t i = 0; i < p->count; i++) {
        run_entry(t, &p->entries[i], o->fate);
        assert_int_equal(t->all[p->entries[i].id].spec.kind, p->kind);
    }
    check_apart(t);
    shadow *w = &t->all[p->entries[random_below(&t->seed, p->count)].id];
    if (mood == 0) finish(t, w); /* somebody leaves in mid-step */
}

static void hold_somebody(timeline *t) {
    shadow *w = &t->all[random_below(&t->seed, t->added)];
    if (!w->sequence) return;
    w->is_held = !w->is_held;
    mr_sequence_hold(w->sequence, w->is_held);
}

static uint64_t run_timeline(uint32_t seed, uint64_t *accepted) {
    timeline *t = mr_alloc(sizeof(*t));
    uint32_t steps = 0;
    t->seed = seed;
    t->limits = (mr_scheduler_options){
        KV_BLOCKS,          1 + random_below(&t->seed, 100),       1 + random_below(&t->seed, 10),
        MR_MAX_FRAME_BYTES, 1 + random_below(&t->seed, PLANS_MAX), seed};
    t->s = mr_scheduler_open(&t->limits);
    while (t->ended < SEQUENCES) {
        assert_true(steps++ < 200000);
        if (t->added < SEQUENCES && random_below(&t->seed, 4) == 0) add_group(t);
        if (t->added > 0 && random_below(&t->seed, 10) == 0) hold_somebody(t);
        out_plan *o = &t->out[random_below(&t->seed, t->limits.plans_max)];
        if (o->plan)
            settle(t, o);
        else
            plan_one(t, o);
    }
    for (int i = 0; i < PLANS_MAX; i++)
        if (t->out[i].plan) settle(t, &t->out[i]);
    const mr_scheduler_state end = mr_scheduler_look(t->s);
    assert_int_equal(end.kv_blocks_used, 0);
    assert_int_equal(end.running + end.waiting + end.plans, 0);
    assert_int_equal(end.queued_tokens, 0);
    mr_scheduler_close(t->s);
    *accepted += t->accepted;
    const uint64_t cached = t->cached;
    free(t);
    return cached;
}

static void test_random_timelines(void **state) {
    (void)state;
    uint64_t cached = 0, accepted = 0;
    for (uint32_t seed = 1; seed <= 300; seed++) cached += run_timeline(seed, &accepted);
    assert_true(cached > 300 * 100); /* the interesting cases are there */
    assert_true(accepted > 300 * 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_is_cut_and_decoding_goes_first),
        cmocka_unit_test(test_admission_waits_for_all_blocks),
        cmocka_unit_test(test_choices_share_the_prompts_blocks),
        cmocka_unit_test(test_a_leader_that_leaves_early_leaves_nothing),
        cmocka_unit_test(test_logits_chunks),
        cmocka_unit_test(test_frames_stay_small_and_everyone_gets_a_turn),
        cmocka_unit_test(test_a_prompt_starts_behind_what_is_known),
        cmocka_unit_test(test_nothing_tainted_is_shared),
        cmocka_unit_test(test_plans_share_out_the_sequences),
        cmocka_unit_test(test_kinds_and_holds),
        cmocka_unit_test(test_drafts_go_in_last_and_count_when_appended),
        cmocka_unit_test(test_no_draft_reaches_beyond_an_answer),
        cmocka_unit_test(test_random_timelines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
