/* Goal: guesses are what a plain search of the whole text finds; what the estimates say follows
 * what happens; a guess costs no memory once its text is open.
 * Method: hand-made and random texts beside a search from the start at every token; estimates after
 * runs of right and wrong guesses, and of steps with a known cost. */
#include "coordinator/draft.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

enum { TEXT_MAX = 6000 };

static uint32_t random_below(uint64_t *state, uint32_t bound) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 33) % bound;
}

/* The latest earlier occurrence of the longest run at the end: where it ends, or 0. */
static uint32_t search(const int32_t *text, uint32_t count, uint32_t min, uint32_t max) {
    for (uint32_t n = max; n >= min; n--)
        for (uint32_t end = count - 1; end >= n && count > n; end--)
            if (memcmp(text + end - n, text + count - n, n * sizeof(*text)) == 0) return end;
    return 0;
}

static void expect_lookup(mr_draft *d, const int32_t *text, uint32_t count, uint32_t most,
                          uint32_t min, uint32_t max) {
    const mr_draft_guess g = mr_draft_next(d);
    const uint32_t end = search(text, count, min, max);
    assert_int_equal(g.count, end ? most : 0);
    for (uint32_t i = 0; i < g.count; i++) {
        const int32_t wanted = end + i < count ? text[end + i] : g.tokens[i - (count - end)];
        assert_int_equal(g.tokens[i], wanted);
    }
}

static void test_lookup_by_hand(void **state) {
    (void)state;
    const int32_t text[] = {5, 6, 7, 8, 9, 6, 7, 1, 6, 7, 8, 2, 6};
    mr_drafts *all = mr_drafts_open(&(mr_draft_options){.tokens_max = 4, .kind = MR_DRAFT_LOOKUP});
    mr_draft *d = mr_draft_open(all, 0, 32);
    assert_int_equal(mr_draft_next(d).count, 0); /* nothing is known of an empty text */
    mr_draft_add(d, text, 13);
    assert_int_equal(mr_draft_next(d).count, 0); /* one token is no run */
    mr_draft_push(d, 7);
    mr_draft_guess g = mr_draft_next(d); /* 6 7: its latest occurrence */
    assert_int_equal(g.count, 4);
    assert_memory_equal(g.tokens, ((int32_t[]){8, 2, 6, 7}), 16);
    mr_draft_push(d, 8);
    g = mr_draft_next(d); /* 6 7 8, of two places */
    assert_memory_equal(g.tokens, ((int32_t[]){2, 6, 7, 8}), 16);
    mr_draft_push(d, 9);
    g = mr_draft_next(d); /* 6 7 8 9 at the start: longer, though the others are later */
    assert_memory_equal(g.tokens, ((int32_t[]){6, 7, 1, 6}), 16);
    for (int i = 0; i < 3; i++) mr_draft_push(d, 3);
    g = mr_draft_next(d); /* 3 3: goes on as it did */
    assert_memory_equal(g.tokens, ((int32_t[]){3, 3, 3, 3}), 16);
    mr_draft_close(d);
    mr_drafts_close(all);
}

static void test_lookup_is_a_search(void **state) {
    (void)state;
    static int32_t text[TEXT_MAX];
    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t random = seed;
        const uint32_t min = 1 + random_below(&random, 3), max = min + random_below(&random, 4);
        const uint32_t most = 1 + random_below(&random, MR_MAX_DRAFT_TOKENS);
        const uint32_t words = 2 + random_below(&random, seed % 4 == 0 ? 500 : 12);
        const uint32_t prompt = random_below(&random, 300), count = prompt + 200;
        mr_drafts *all = mr_drafts_open(&(mr_draft_options){
            .tokens_max = most, .kind = MR_DRAFT_LOOKUP, .match_min = min, .match_max = max});
        mr_draft *d = mr_draft_open(all, 0, count);
        for (uint32_t i = 0; i < count; i++) {
            text[i] = (int32_t)random_below(&random, words);
            if (i > 40 && random_below(&random, 3) > 0) text[i] = text[i - 37]; /* it repeats */
        }
        mr_draft_add(d, text, prompt);
        for (uint32_t i = prompt; i < count; i++) {
            if (i > 0) expect_lookup(d, text, i, most, min, max);
            mr_draft_push(d, text[i]);
        }
        mr_draft_close(d);
        mr_drafts_close(all);
    }
}

static void test_a_long_prompt_is_indexed_in_pieces(void **state) {
    (void)state;
    static int32_t text[TEXT_MAX + 8];
    uint64_t random = 3;
    for (uint32_t i = 0; i < TEXT_MAX + 8; i++) text[i] = (int32_t)random_below(&random, 60);
    mr_drafts *all = mr_drafts_open(&(mr_draft_options){.tokens_max = 8, .kind = MR_DRAFT_LOOKUP});
    mr_draft *d = mr_draft_open(all, 0, TEXT_MAX + 8);
    mr_draft_add(d, text, TEXT_MAX);
    assert_int_equal(mr_draft_next(d).count, 0); /* not yet */
    for (uint32_t i = TEXT_MAX; i < TEXT_MAX + 8; i++) {
        mr_draft_push(d, text[i]);
        expect_lookup(d, text, i + 1, 8, 2, 4);
    }
    mr_draft_close(d);
    mr_drafts_close(all);
}

static void push_all(mr_draft *d, const int32_t *tokens, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) mr_draft_push(d, tokens[i]);
}

static void test_the_table_is_shared_by_a_model(void **state) {
    (void)state;
    const int32_t said[] = {1, 2, 3, 10, 11, 12, 13, 14}, other[] = {1, 2, 3, 20};
    mr_drafts *all = mr_drafts_open(
        &(mr_draft_options){.tokens_max = 5, .kind = MR_DRAFT_NGRAM, .table_entries = 1024});
    mr_draft *a = mr_draft_open(all, 7, 64), *b = mr_draft_open(all, 7, 64);
    mr_draft *stranger = mr_draft_open(all, 8, 64);
    push_all(a, said, 8);
    mr_draft_add(b, said, 3); /* a prompt: it teaches nothing, but stands before a guess */
    mr_draft_add(stranger, said, 3);
    mr_draft_guess g = mr_draft_next(b);
    assert_int_equal(g.count, 5);
    assert_memory_equal(g.tokens, said + 3, 5 * sizeof(int32_t));
    assert_int_equal(mr_draft_next(stranger).count, 0);
    push_all(a, other, 4); /* said once, too: the latest counts */
    mr_draft_add(b, said, 3);
    g = mr_draft_next(b);
    assert_int_equal(g.count, 1);
    assert_int_equal(g.tokens[0], 20);
    for (int i = 0; i < 5; i++) push_all(a, said, 4);
    push_all(a, other, 4); /* said most often */
    mr_draft_add(b, said, 3);
    assert_int_equal(mr_draft_next(b).tokens[0], 10);
    mr_draft_close(a);
    mr_draft_close(b);
    mr_draft_close(stranger);
    mr_drafts_close(all);
}

/* A text that repeats for a while is guessed at with more and more confidence, then with less. */
static void test_chances_follow_what_happens(void **state) {
    (void)state;
    mr_drafts *all = mr_drafts_open(&(mr_draft_options){.tokens_max = 8});
    mr_draft *d = mr_draft_open(all, 0, 2000);
    float before = 0;
    for (int32_t i = 0; i < 40; i++) mr_draft_push(d, i % 10);
    for (int32_t i = 40; i < 100; i++) {
        const mr_draft_guess g = mr_draft_next(d);
        assert_int_equal(g.count, 8);
        assert_true(g.chance > 0.4f && g.chance < 1);
        assert_true(g.chance >= before || i == 40);
        before = g.chance;
        mr_draft_push(d, i % 10);
    }
    assert_true(before > 0.85f);
    for (int32_t i = 0; i < 60; i++) { /* pairs that are known, but go on otherwise each time */
        mr_draft_push(d, 1000 + i);
        mr_draft_push(d, 4);
        mr_draft_push(d, 5);
        const mr_draft_guess g = mr_draft_next(d);
        assert_true(g.count > 0);
        before = g.chance;
    }
    assert_true(before < 0.1f);
    mr_draft_close(d);
    mr_drafts_close(all);
}

static uint32_t worth(const mr_draft_cost *c, double sequences, uint32_t count, float chance) {
    mr_draft_step step = {sequences, sequences};
    const uint32_t taken = mr_draft_worth(c, &step, count, chance);
    assert_true(step.tokens == sequences + taken && step.expected >= sequences);
    assert_true(taken <= count);
    return taken;
}

static void test_worth(void **state) {
    (void)state;
    uint64_t random = 5;
    mr_draft_cost unknown = {0}, flat = {0}, steep = {0}, noisy = {0};
    assert_int_equal(worth(&unknown, 1, 8, 0), 0);
    assert_true(worth(&unknown, 1, 8, 0.9f) > 3);
    assert_int_equal(worth(&unknown, 1, 8, 0.2f), 0);
    for (int i = 0; i < 300; i++) {
        const uint32_t m = 1 + random_below(&random, 8);
        mr_draft_cost_note(&flat, m, 10000000 + m * 10000); /* a far network */
        mr_draft_cost_note(&steep, m, 10000 + m * 1000000); /* all of it is arithmetic */
        mr_draft_cost_note(&noisy, m, 1000000 + m * 100000 + random_below(&random, 200000));
        if (i % 50 == 20) mr_draft_cost_note(&noisy, 1, 5000000000ull);
        mr_draft_cost_note(&noisy, 4000, 1); /* large ones do not count */
    }
    assert_int_equal(worth(&flat, 1, 32, 0.95f), 32);
    assert_true(worth(&flat, 1, 32, 0.5f) >= 6);
    assert_int_equal(worth(&flat, 1, 32, 0), 0);
    assert_int_equal(worth(&steep, 1, 32, 0.9f), 0);
    assert_true(worth(&noisy, 1, 32, 0.9f) >= 8);
    for (double n = 1; n < 500; n *= 2) { /* never more with more sequences; none in the end */
        assert_true(worth(&flat, 2 * n, 32, 0.8f) <= worth(&flat, n, 32, 0.8f));
        assert_true(worth(&noisy, 2 * n, 32, 0.8f) <= worth(&noisy, n, 32, 0.8f));
    }
    assert_int_equal(worth(&noisy, 512, 32, 0.8f), 0);
}

static void test_settings(void **state) {
    (void)state;
    mr_err err;
    mr_draft_options o;
    assert_int_equal(mr_draft_settings_read(&o, &(mr_draft_settings){0}, &err), MR_OK);
    assert_int_equal(o.tokens_max, 0);
    assert_int_equal(mr_draft_settings_read(&o, &(mr_draft_settings){6, "ngram"}, &err), MR_OK);
    assert_true(o.tokens_max == 6 && o.kind == MR_DRAFT_NGRAM);
    assert_int_equal(mr_draft_settings_read(&o, &(mr_draft_settings){6, "oracle"}, &err),
                     MR_ERR_ARGUMENT);
    assert_non_null(strstr(err.text, "'oracle'"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup_by_hand),
        cmocka_unit_test(test_lookup_is_a_search),
        cmocka_unit_test(test_a_long_prompt_is_indexed_in_pieces),
        cmocka_unit_test(test_the_table_is_shared_by_a_model),
        cmocka_unit_test(test_chances_follow_what_happens),
        cmocka_unit_test(test_worth),
        cmocka_unit_test(test_settings),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
