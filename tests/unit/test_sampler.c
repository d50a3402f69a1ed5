/* test_sampler.c - from logits to tokens.
 *
 * Goal: filters keep exactly whom they should, draws follow the distribution, and nothing but seed,
 * choice and output position decides a draw. Method: an engine with only what sampling reads. */
#include "worker/engine_impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 300, COLUMNS = 310 };

static mr_config config = {.vocab_size = VOCAB, .head_rows = COLUMNS};
static uint64_t scratch[COLUMNS + 32];
static uint32_t candidates[COLUMNS];
static float logits[COLUMNS];

static mr_engine make_engine(const char *isa) {
    mr_engine e = {.config = &config, .ops = mr_ops_find(isa)};
    e.b.select_scratch = scratch;
    e.b.candidates = candidates;
    for (int i = 0; i < COLUMNS; i++) logits[i] = (float)((i * 37) % 101) * 0.06f - 3;
    for (int i = VOCAB; i < COLUMNS; i++) logits[i] = 50; /* padding of the head: never sampled */
    return e;
}

static uint32_t sample(mr_engine *e, mr_wire_sequence s) {
    mr_wire_sampled out;
    mr_wire_logprob top[MR_MAX_LOGPROBS];
    mr_err err;
    assert_int_equal(mr_sample(e, &s, logits, &out, top, &err), MR_OK);
    assert_true(out.token >= 0 && out.token < VOCAB);
    return (uint32_t)out.token;
}

static double softmax_of(uint32_t token, double temperature) {
    double sum = 0;
    for (int i = 0; i < VOCAB; i++) sum += exp((double)logits[i] / temperature);
    return exp((double)logits[token] / temperature) / sum;
}

static void test_greedy_takes_the_best_and_the_lower_id(void **state) {
    mr_engine e = make_engine("ref");
    (void)state;
    logits[200] = logits[90] = 7;
    assert_int_equal(sample(&e, (mr_wire_sequence){.top_p = 1}), 90);
    logits[10] = NAN;
    mr_wire_sampled out;
    mr_err err;
    const mr_wire_sequence s = {.top_p = 1};
    assert_int_equal(mr_sample(&e, &s, logits, &out, NULL, &err), MR_ERR_RANGE);
}

static void test_logprobs(void **state) {
    mr_engine e = make_engine(NULL);
    mr_wire_sampled out;
    mr_wire_logprob top[MR_MAX_LOGPROBS];
    mr_err err;
    (void)state;
    const mr_wire_sequence s = {.top_p = 1, .logprobs = 5};
    assert_int_equal(mr_sample(&e, &s, logits, &out, top, &err), MR_OK);
    assert_int_equal(out.top_count, 5);
    assert_int_equal(top[0].token, out.token);
    for (int i = 0; i < 5; i++) {
        assert_true(fabs((double)top[i].logprob - log(softmax_of((uint32_t)top[i].token, 1))) <
                    1e-5);
        assert_true(i == 0 || top[i].logprob <= top[i - 1].logprob);
    }
}

static void test_draws_follow_the_distribution(void **state) {
    enum { DRAWS = 60000 };
    mr_engine e = make_engine(NULL);
    static uint32_t seen[VOCAB];
    double chi = 0;
    (void)state;
    for (uint32_t i = 0; i < DRAWS; i++)
        seen[sample(&e, (mr_wire_sequence){
                            .temperature = 0.8f, .top_p = 1, .seed = 5, .output_position = i})]++;
    for (uint32_t t = 0; t < VOCAB; t++) {
        const double expected = DRAWS * softmax_of(t, (double)0.8f);
        chi += (seen[t] - expected) * (seen[t] - expected) / expected;
    }
    assert_true(chi < VOCAB + 6 * sqrt(2.0 * VOCAB)); /* six sigma */
}

/* Whom the filters must keep, computed the plain way. */
static void check_filter(mr_wire_sequence s, const char *isa) {
    mr_engine e = make_engine(isa);
    bool allowed[VOCAB] = {false}, seen[VOCAB] = {false};
    uint32_t order[VOCAB];
    double mass = 0, total = 0;
    for (uint32_t i = 0; i < VOCAB; i++) order[i] = i;
    for (uint32_t i = 1; i < VOCAB; i++)
        for (uint32_t j = i; j > 0 && logits[order[j]] > logits[order[j - 1]]; j--) {
            const uint32_t t = order[j];
            order[j] = order[j - 1];
            order[j - 1] = t;
        }
    const uint32_t k = s.top_k ? s.top_k : VOCAB;
    const double t = (double)s.temperature, best = (double)logits[order[0]];
    for (uint32_t i = 0; i < k; i++) total += exp(((double)logits[order[i]] - best) / t);
    for (uint32_t i = 0; i < k && (i == 0 || mass < (double)s.top_p * total * (1 - 1e-7)); i++) {
        const double weight = exp(((double)logits[order[i]] - best) / t);
        if (i > 0 && weight < (double)s.min_p * (1 - 1e-5)) break;
        mass += weight;
        allowed[order[i]] = true;
    }
    for (uint32_t i = 0; i < 30000; i++) {
        s.output_position = i;
        seen[sample(&e, s)] = true;
    }
    for (uint32_t i = 0; i < VOCAB; i++) assert_true(allowed[i] || !seen[i]);
    for (uint32_t i = 0; i < VOCAB; i++)
        if (allowed[i] && exp(((double)logits[i] - best) / t) / mass > 0.001) assert_true(seen[i]);
}

static void test_filters(void **state) {
    (void)state;
    check_filter((mr_wire_sequence){.temperature = 1, .top_p = 1, .top_k = 7}, NULL);
    check_filter((mr_wire_sequence){.temperature = 1, .top_p = 0.3f}, NULL);
    check_filter((mr_wire_sequence){.temperature = 1, .top_p = 0.9f}, "ref");
    check_filter((mr_wire_sequence){.temperature = 1, .top_p = 1, .min_p = 0.35f}, NULL);
    check_filter(
        (mr_wire_sequence){.temperature = 0.5f, .top_p = 0.8f, .min_p = 0.1f, .top_k = 100}, NULL);
    check_filter((mr_wire_sequence){.temperature = 2, .top_p = 1e-6f}, NULL);
}

static void test_only_the_counter_decides(void **state) {
    mr_engine fast = make_engine(NULL), plain = make_engine("ref");
    uint32_t differs = 0;
    (void)state;
    for (uint32_t i = 0; i < 500; i++) {
        mr_wire_sequence s = {
            .temperature = 1, .top_p = 0.95f, .seed = 1ull << 40, .output_position = i};
        const uint32_t first = sample(&fast, s);
        s.id = 99; /* who asks, and in which company, does not matter */
        s.position = i * 3;
        assert_int_equal(sample(&plain, s), first);
        s.seed = 2;
        differs += sample(&fast, s) != first;
        s.seed = 1ull << 40;
        s.choice = 1;
        differs += sample(&fast, s) != first;
    }
    assert_true(differs > 800);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_takes_the_best_and_the_lower_id),
        cmocka_unit_test(test_logprobs), cmocka_unit_test(test_draws_follow_the_distribution),
        cmocka_unit_test(test_filters), cmocka_unit_test(test_only_the_counter_decides)};
    return cmocka_run_group_tests_name("sampler", tests, NULL, NULL);
}
