/* Goal: a request is answered the same with speculation and without: tokens, texts, events, log
 * probabilities, ends; whatever happens to steps that verify guesses.
 * Method: the scripted worker of fake_worker.h, which only knows what its KV blocks hold, so that a
 * wrong position after an accepted guess shows; every case runs on a core without speculation
 * first, then on one with. */
#include "tests/unit/core_client.h"

static const mr_core_options with = {.draft = {.tokens_max = 6}};

typedef struct {
    client *plain, *guessed;
    uint32_t plain_steps, guessed_steps;
    uint64_t drafted, accepted;
} two_runs;

/* What to ask; the same for both. */
typedef mr_request *make_request(client *c);

static client *run_on(const mr_core_options *options, make_request *make, uint32_t *steps,
                      mr_metrics *metrics) {
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, options);
    client *c = client_new();
    w->delay_ms = 1; /* whatever is in it: guesses are cheap */
    submit(core, c, make(c));
    client_wait(c);
    *steps = w->steps;
    metrics->drafted_tokens = mr_core_metrics(core)->drafted_tokens;
    metrics->accepted_tokens = mr_core_metrics(core)->accepted_tokens;
    assert_int_equal(w->drafted, metrics->drafted_tokens);
    finish(core, w);
    return c;
}

static two_runs run_both(make_request *make) {
    two_runs t;
    mr_metrics m;
    t.plain = run_on(NULL, make, &t.plain_steps, &m);
    assert_int_equal(m.drafted_tokens, 0);
    t.guessed = run_on(&with, make, &t.guessed_steps, &m);
    t.drafted = m.drafted_tokens;
    t.accepted = m.accepted_tokens;
    return t;
}

static void free_both(two_runs *t) {
    client_free(t->plain);
    client_free(t->guessed);
}

static void assert_same(const two_runs *t) {
    const client *a = t->plain, *b = t->guessed;
    assert_int_equal(a->status, b->status);
    assert_int_equal(a->events, b->events);
    assert_int_equal(a->entries, b->entries);
    assert_true(a->prompt_tokens == b->prompt_tokens && a->cached_tokens == b->cached_tokens);
    assert_int_equal(a->generated_tokens, b->generated_tokens);
    for (int i = 0; i < 16; i++) {
        assert_string_equal(mr_text_string(&a->text[i]), mr_text_string(&b->text[i]));
        assert_int_equal(a->finish[i], b->finish[i]);
        assert_int_equal(a->tokens[i].count, b->tokens[i].count);
        if (a->tokens[i].count)
            assert_memory_equal(a->tokens[i].items, b->tokens[i].items,
                                a->tokens[i].count * sizeof(int32_t));
    }
}

static mr_request *long_answer(client *c) {
    return request_for(c, "hello world, hello memory", 300);
}

static mr_request *choices(client *c) {
    mr_request *r = request_for(c, "the quick brown fox jumps over the lazy dog", 70);
    r->choices = 5;
    r->logprobs = true;
    r->top_logprobs = 2;
    return r;
}

static mr_request *odd_length(client *c) {
    return request_for(c, "one two three four five six", 23);
}

static mr_request *stop_string(client *c) {
    mr_request *r = request_for(c, "one two three four five six seven eight", 200);
    const char *const stop[] = {"six sev"};
    const size_t bytes[] = {7};
    r->stops = mr_stop_set_open(stop, bytes, 1);
    r->logprobs = true;
    return r;
}

static mr_request *stop_token(client *c) {
    mr_request *r = request_for(c, "one two three four five six<|end|> seven", 200);
    r->stop_ids[r->stop_id_count++] = 2;
    return r;
}

static void test_answers_are_the_same(void **state) {
    (void)state;
    make_request *const all[] = {long_answer, choices, odd_length, stop_string, stop_token};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
        two_runs t = run_both(all[i]);
        assert_int_equal(t.plain->status, MR_OK);
        assert_same(&t);
        assert_true(t.accepted > 0 && t.accepted <= t.drafted);
        assert_true(t.guessed_steps < t.plain_steps);
        free_both(&t);
    }
    two_runs t = run_both(long_answer);
    assert_true(t.guessed_steps * 3 < t.plain_steps); /* it only repeats itself */
    free_both(&t);
}

static mr_request *less(client *c) {
    mr_request *r = long_answer(c);
    r->has_speculate = true;
    r->speculate = 2;
    return r;
}

static mr_request *more(client *c) {
    mr_request *r = long_answer(c);
    r->has_speculate = true;
    r->speculate = MR_MAX_DRAFT_TOKENS;
    return r;
}

static mr_request *none(client *c) {
    mr_request *r = long_answer(c);
    r->has_speculate = true;
    return r;
}

static void test_a_request_may_ask_for_less(void **state) {
    (void)state;
    two_runs usual = run_both(long_answer), two = run_both(less), most = run_both(more),
             off = run_both(none);
    assert_int_equal(off.drafted, 0);
    assert_int_equal(off.guessed_steps, off.plain_steps);
    assert_true(two.guessed_steps * 3 >= two.plain_steps); /* two accepted and one more a step */
    assert_true(two.guessed_steps > usual.guessed_steps);
    assert_true(most.guessed_steps * 7 >= most.plain_steps); /* the server's six */
    assert_same(&two);
    assert_same(&most);
    free_both(&usual);
    free_both(&two);
    free_both(&most);
    free_both(&off);
}

static void test_version_1_gets_no_guesses(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    w->version = 1;
    mr_core *core = open_core(w, &with);
    client *c = client_new();
    submit(core, c, long_answer(c));
    client_wait(c);
    assert_int_equal(c->status, MR_OK);
    assert_int_equal(w->drafted, 0);
    client_free(c);
    finish(core, w);
}

/* Whatever a wrong guess does to a step, its requests do not hear of it. */
static void test_a_step_that_fails_is_run_without_guesses(void **state) {
    (void)state;
    const int statuses[] = {MR_ERR_RANGE, MR_ERR_UNAVAILABLE, MR_ERR_TIMEOUT, MR_ERR_UNSUPPORTED};
    const mr_lost_policy policies[] = {MR_LOST_FAIL, MR_LOST_WAIT, MR_LOST_DEGRADE};
    for (int i = 0; i < 12; i++) {
        fake_worker *w = fake_worker_new();
        w->drafts_fail = true;
        w->error_status = statuses[i % 4];
        mr_core *core = open_core(w, &with);
        client *c = client_new();
        mr_request *r = long_answer(c);
        r->lost = policies[i / 4];
        submit(core, c, r);
        client_wait(c);
        assert_int_equal(c->status, MR_OK);
        assert_int_equal(c->generated_tokens, 300);
        assert_false(c->is_degraded);
        assert_true(w->drafted > 0 && w->drafted < 100); /* it does not try all the time */
        assert_int_equal(mr_core_metrics(core)->drafted_tokens, 0);
        client_free(c);
        finish(core, w);
    }
}

static void test_a_lost_worker_in_mid_verification(void **state) {
    (void)state;
    char path[64], address[80];
    mr_err err = {{0}};
    mr_core *core;
    snprintf(path, sizeof(path), "/tmp/mr-spec-%ld.sock", (long)getpid());
    snprintf(address, sizeof(address), "unix:%s", path);
    fake_worker *w = fake_worker_new();
    fake_worker_listen(w, path);
    mr_core_options o = with;
    o.worker_address = address;
    o.tokenizer = tokenizer;
    assert_int_equal(mr_core_open(&core, &o, &err), MR_OK);
    assert_int_equal(mr_core_wait_ready(core, mr_now_ns() + 5000000000ll, &err), MR_OK);
    client *c = client_new();
    w->hang_up_at = 12;
    submit(core, c, long_answer(c));
    client_wait(c);
    if (c->status != MR_OK) fail_msg("%s", c->err.text);
    two_runs t = {.guessed = c};
    uint32_t steps;
    mr_metrics m;
    t.plain = run_on(NULL, long_answer, &steps, &m);
    c->cached_tokens = t.plain->cached_tokens;
    assert_same(&t);
    assert_true(mr_core_metrics(core)->accepted_tokens > 0);
    assert_int_equal(mr_core_metrics(core)->failovers, 1);
    free_both(&t);
    finish(core, w);
    unlink(path);
}

static void test_a_worker_that_says_too_much_is_dropped(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        fake_worker *w = fake_worker_new();
        mr_core *core = open_core(w, i ? &with : NULL);
        client *c = client_new();
        w->says_too_much = true;
        submit(core, c, long_answer(c));
        client_wait(c);
        assert_int_equal(c->status, MR_ERR_UNAVAILABLE);
        if (!strstr(c->err.text, "where it should not have")) fail_msg("%s", c->err.text);
        client_free(c);
        finish(core, w);
    }
}

static void test_a_reader_that_stops_in_the_midst(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core = open_core(w, &with);
    for (int i = 0; i < 8; i++) {
        client *c = client_new(), *d = client_new();
        submit(core, c, long_answer(c));
        submit(core, d, choices(d));
        usleep((unsigned)(i * 700));
        c->refuse = true; /* its sink ends it, maybe between two tokens of one step */
        if (i % 2) mr_core_cancel(core, d->id);
        client_wait(c);
        client_wait(d);
        client_free(c);
        client_free(d);
    }
    finish(core, w);
}

/* The table learns from one request what the next will say. */
static void test_what_was_said_before_is_guessed(void **state) {
    (void)state;
    fake_worker *w = fake_worker_new();
    mr_core *core =
        open_core(w, &(mr_core_options){.draft = {.tokens_max = 6, .kind = MR_DRAFT_NGRAM}});
    w->delay_ms = 1;
    uint64_t steps[3] = {0}, before = 0;
    for (int i = 0; i < 3; i++) {
        client *c = client_new();
        submit(core, c, request_for(c, "a b c d e f g h i j k l m n o p q r s t u v w x y z", 26));
        client_wait(c);
        steps[i] = w->steps - before;
        before = w->steps;
        client_free(c);
    }
    assert_true(steps[0] >= 26 && steps[2] * 2 < steps[0]);
    finish(core, w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers_are_the_same),
        cmocka_unit_test(test_a_request_may_ask_for_less),
        cmocka_unit_test(test_version_1_gets_no_guesses),
        cmocka_unit_test(test_a_step_that_fails_is_run_without_guesses),
        cmocka_unit_test(test_a_lost_worker_in_mid_verification),
        cmocka_unit_test(test_a_worker_that_says_too_much_is_dropped),
        cmocka_unit_test(test_a_reader_that_stops_in_the_midst),
        cmocka_unit_test(test_what_was_said_before_is_guessed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
