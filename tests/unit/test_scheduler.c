/* Goal: every sequence that fits is computed once, in order, within the worker's limits, and no two
 * sequences ever write the same KV block.
 * Method: a few hand-made timelines, then seeded random ones watched by a shadow of the cache. */
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
        &(mr_scheduler_options){blocks, tokens, sequences, MR_MAX_FRAME_BYTES});
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
    mr_scheduler_commit(s);
    mr_sequence_append(a, 7);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[0].id, 1);
    assert_int_equal(p->entries[0].tokens[0], 7);
    assert_int_equal(p->entries[0].position, 10);
    assert_int_equal(p->entries[1].position, 10);
    assert_int_equal(p->entries[1].token_count, 19);
    mr_scheduler_abandon(s); /* the same again */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->entries[1].position, 10);
    mr_scheduler_commit(s);
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
    mr_scheduler_commit(s);
    p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 2);
    mr_scheduler_abandon(s);
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
    mr_scheduler_commit(s);
    mr_scheduler_remove(s, leader); /* done at its first token; the prompt's blocks stay */
    p = mr_scheduler_plan(s);
    assert_int_equal(p->count, 2);
    assert_int_equal(p->entries[0].position, 32);
    assert_int_equal(p->entries[0].token_count, 16);
    assert_true(p->entries[0].samples);
    assert_memory_equal(p->entries[0].blocks, p->entries[1].blocks, 2 * sizeof(uint32_t));
    assert_int_not_equal(p->entries[0].blocks[2], p->entries[1].blocks[2]);
    mr_scheduler_commit(s);
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
            assert_non_null(mr_scheduler_plan(s));
            mr_scheduler_commit(s);
        }
        mr_scheduler_remove(s, leader);
        const mr_plan *p = mr_scheduler_plan(s);
        assert_int_equal(p->entries[0].id, 2);
        assert_int_equal(p->entries[0].position, 0);
        mr_scheduler_commit(s);
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
        mr_scheduler_commit(s);
    }
    assert_null(mr_scheduler_plan(s));
    mr_scheduler_remove(s, a);
    mr_scheduler_close(s);
}

static void test_frames_stay_small_and_everyone_gets_a_turn(void **state) {
    (void)state;
    const uint32_t frame = sizeof(mr_wire_step) + 2 * (sizeof(mr_wire_sequence) + 4 + 4 * 20);
    mr_scheduler *s = mr_scheduler_open(&(mr_scheduler_options){100, 64, 8, frame});
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
        mr_scheduler_commit(s);
        for (uint32_t i = 0; i < count; i++) {
            uint32_t who = 0;
            while (q[who] != sampled[i]) who++;
            if (turns[who] < 17) mr_sequence_append(sampled[i], 1);
        }
    }
    for (uint32_t i = 0; i < 3; i++) assert_int_equal(turns[i], 17);
    mr_scheduler_close(s);
}

/* --- random timelines ------------------------------------------------------------------------- */

enum { SEQUENCES = 60, KV_BLOCKS = 40 };
typedef struct {
    mr_sequence *sequence;
    mr_sequence_spec spec;
    uint32_t position, sampled;
    uint32_t group;
    bool begun;
} shadow;

static uint32_t random_below(uint32_t *seed, uint32_t bound) {
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 8) % bound;
}

static void check_plan(const mr_plan *p, shadow *all, const mr_scheduler_options *limits) {
    uint32_t owner[KV_BLOCKS];
    memset(owner, 0xff, sizeof(owner));
    assert_true(p->count >= 1 && p->count <= limits->step_sequences);
    assert_true(p->tokens <= limits->step_tokens);
    for (uint32_t i = 0; i < p->count; i++) {
        const mr_plan_entry *e = &p->entries[i];
        shadow *w = &all[e->id];
        if (!w->begun) w->position = e->position; /* a follower begins behind the prefix */
        w->begun = true;
        assert_int_equal(e->position, w->position);
        assert_true(e->token_count >= 1);
        assert_true(e->block_count * MR_KV_BLOCK_TOKENS >= e->position + e->token_count);
        for (uint32_t b = e->position / MR_KV_BLOCK_TOKENS; b < e->block_count; b++) {
            assert_true(e->blocks[b] < KV_BLOCKS);
            assert_int_equal(owner[e->blocks[b]], UINT32_MAX); /* nobody else writes here */
            owner[e->blocks[b]] = (uint32_t)e->id;
        }
    }
    for (uint32_t i = 0; i < p->count; i++) /* nobody reads what another one writes */
        for (uint32_t b = 0; b < p->entries[i].position / MR_KV_BLOCK_TOKENS; b++)
            assert_int_equal(owner[p->entries[i].blocks[b]], UINT32_MAX);
}

static uint32_t add_group(mr_scheduler *s, shadow *all, uint32_t at, uint32_t *seed) {
    const uint32_t choices = 1 + random_below(seed, 4);
    mr_sequence_spec spec = {.prompt = prompt,
                             .prompt_count = 1 + random_below(seed, 200),
                             .new_tokens = 1 + random_below(seed, 60),
                             .shares = choices > 1};
    for (uint32_t c = 0; c < choices && at < SEQUENCES; c++, at++) {
        spec.id = at;
        all[at] = (shadow){.spec = spec};
        all[at].sequence = mr_scheduler_add(s, &spec);
        if (c == 0) spec.leader = all[at].sequence;
        spec.shares = false;
    }
    return at;
}

static void finish(mr_scheduler *s, shadow *w) {
    mr_scheduler_remove(s, w->sequence);
    w->sequence = NULL;
}

static void run_timeline(uint32_t seed) {
    const mr_scheduler_options limits = {KV_BLOCKS, 1 + random_below(&seed, 100),
                                         1 + random_below(&seed, 10), MR_MAX_FRAME_BYTES};
    mr_scheduler *s = mr_scheduler_open(&limits);
    shadow all[SEQUENCES];
    uint32_t added = 0, steps = 0, ended = 0;
    while (ended < SEQUENCES) {
        assert_true(steps++ < 100000);
        if (added < SEQUENCES && random_below(&seed, 4) == 0)
            added = add_group(s, all, added, &seed);
        const mr_plan *p = mr_scheduler_plan(s);
        if (!p) continue;
        check_plan(p, all, &limits);
        const uint32_t mood = random_below(&seed, 20);
        if (mood == 0) { /* somebody leaves in mid-step */
            shadow *w = &all[p->entries[random_below(&seed, p->count)].id];
            if (w->sequence) {
                finish(s, w);
                ended++;
            }
        }
        if (mood == 1) {
            mr_scheduler_abandon(s);
            continue;
        }
        mr_plan_entry done[16];
        const uint32_t count = p->count;
        memcpy(done, p->entries, count * sizeof(*done));
        mr_scheduler_commit(s);
        for (uint32_t i = 0; i < count; i++) {
            shadow *w = &all[done[i].id];
            if (!w->sequence) continue;
            w->position += done[i].token_count;
            if (!done[i].samples) continue;
            assert_true(w->position >= w->spec.prompt_count);
            if (++w->sampled < w->spec.new_tokens)
                mr_sequence_append(w->sequence, 5);
            else {
                finish(s, w);
                ended++;
            }
        }
    }
    assert_int_equal(mr_scheduler_look(s).kv_blocks_used, 0);
    assert_int_equal(mr_scheduler_look(s).running + mr_scheduler_look(s).waiting, 0);
    mr_scheduler_close(s);
}

static void test_random_timelines(void **state) {
    (void)state;
    for (uint32_t seed = 1; seed <= 300; seed++) run_timeline(seed);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_is_cut_and_decoding_goes_first),
        cmocka_unit_test(test_admission_waits_for_all_blocks),
        cmocka_unit_test(test_choices_share_the_prompts_blocks),
        cmocka_unit_test(test_a_leader_that_leaves_early_leaves_nothing),
        cmocka_unit_test(test_logits_chunks),
        cmocka_unit_test(test_frames_stay_small_and_everyone_gets_a_turn),
        cmocka_unit_test(test_random_timelines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
